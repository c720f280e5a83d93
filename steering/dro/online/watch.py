"""Looks on while a risk trains, and tells what makes it useless: weights that have collapsed, a
radius that binds nothing.

Nothing here waits for a device but `news`, which whoever writes a log calls where it reads numbers
anyway.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from steering.dro.divergences.base import Divergence, farthest
from steering.dro.divergences.cressie_read import KL

LONG = 50
"""Training steps in a row that make a collapse, and calls between two looks of a loop that has no
log."""
FEWEST = 4
"""Items of a row below which two of them are nothing to warn of."""
_LOG = logging.getLogger("steering")


class Watch:
    """Of one `StochasticRisk`.

    Args:
        divergence: whose weights.
        radius: its budget, None with a penalty.
        margin: whether all weights of a row may be zero, because it has passed a margin; else that
            is a collapse, too.
    """

    def __init__(self, divergence: Divergence, radius: float | None, margin: bool = False) -> None:
        self.divergence, self.radius, self.margin = divergence, radius, margin
        self.notes: dict[str, str] = {}  # found, and not told yet
        self.told: set[str] = set()
        self.sizes: set[int] = set()
        self.what, self.calls = "", 0
        self.low: Tensor | None = None  # steps in a row; no buffer: a resumed run may look anew
        self.seen: Tensor | None = None  # share and items when it was too many, zeros before

    def size(self, items: int) -> None:
        """Rows of so many items are trained on: can they spend the radius?"""
        if self.radius is None or items in self.sizes or torch.compiler.is_compiling():
            return
        self.sizes.add(items)
        if items > 1 and self.radius >= self._most(items):
            self._note(
                "radius",
                f"radius {self.radius:g} is beyond what weights on {items} items can spend ({self._most(items):.4g}): the "
                "constraint is void, tau goes to its minimum, and the worst item gets all the weight; set a smaller radius",
            )

    def _most(self, items: int) -> float:
        if isinstance(self.divergence, KL):
            return math.log(items)
        return farthest(
            self.divergence, torch.tensor(float(items), dtype=torch.float64, device="cpu")
        ).item()

    @torch.no_grad()
    def share(self, share: Tensor, items: Tensor | int, what: str) -> None:
        """The mean effective sample share of a step's rows, (), and how many items they have, () or
        a number.

        Args:
            what: the items of whom, for the message: "examples of each batch".
        """
        if (
            not self.divergence.takes_budget or torch.compiler.is_compiling()
        ):  # CVaR was told how many
            return
        if not isinstance(items, Tensor):
            if items < FEWEST:
                return
            items = share.new_full((), items)
        number = share.detach() * items
        low = (number < 2) & (items >= FEWEST)
        if self.margin:
            low &= number > 0.5
        if self.low is None or self.seen is None or self.low.device != share.device:
            self.low, self.seen = (
                torch.zeros_like(low, dtype=torch.int64),
                torch.stack([share, items.to(share)]) * 0,
            )
        self.what = what
        self.low = torch.where(low, self.low + 1, 0)
        now = torch.stack([share.detach(), items.to(share.dtype)]).to(self.seen.dtype)
        self.seen = torch.where((self.low == LONG) & (self.seen[1] == 0), now, self.seen)

    def news(self) -> dict[str, str]:
        """Warnings that were not told before, name → one line; waits for the device."""
        if self.seen is not None and "weights" not in self.told:
            share, items = self.seen.tolist()
            if items > 0:
                help_ = "raise tau (1 suits losses in nats), or set a radius"
                self._note(
                    "weights",
                    f"all weight lies on one or two {self.what}: effective sample share {share:.3f} for {LONG} steps, "
                    f"B = {items:g}; " + (help_ if self.radius is None else "lower the radius"),
                )
        notes, self.notes = self.notes, {}
        return notes

    def tell(self) -> None:
        """Log what is new; looks at the numbers in every `LONG`th call."""
        if torch.compiler.is_compiling():
            return
        self.calls += 1
        if self.notes or self.calls % LONG == 0:
            for text in self.news().values():
                _LOG.warning("%s", text)

    def _note(self, name: str, text: str) -> None:
        if name not in self.told:
            self.told.add(name)
            self.notes[name] = text


def warnings(module: nn.Module) -> dict[str, str]:
    """What the risks inside a module have to tell for the first time: name → one line. Waits for
    the device."""
    found: dict[str, str] = {}
    for path, part in module.named_modules():
        watch = getattr(part, "watch", None)
        if isinstance(watch, Watch):
            prefix = "outer_" if path.rpartition(".")[2] == "outer" else ""
            found |= {
                prefix + name: prefix + text if prefix else text
                for name, text in watch.news().items()
            }
    return found
