"""Looks on while a risk trains, and tells what makes it useless: weights that have collapsed, a
radius that binds nothing.

Nothing here waits for a device but `news`, which whoever writes a log calls where it reads numbers
anyway.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from steering.dro.divergences.base import Divergence
from steering.dro.divergences.rows import EPS

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
        # Shares and items of the last steps: a look at all of them at once costs a fraction of a
        # look at each.
        self.recent: list[tuple[Tensor, Tensor | float]] = []
        # Steps in a row. No buffer: a resumed run may look anew.
        self.low: Tensor | None = None
        self.seen: Tensor | None = None  # share and items when it was too many, zeros before

    def size(self, items: int) -> None:
        """Rows of so many items are trained on: can they spend the radius?"""
        if self.radius is None or items in self.sizes or torch.compiler.is_compiling():
            return
        self.sizes.add(items)
        most = self.divergence.most(items)
        if items > 1 and self.radius >= most * (1 - 8 * EPS):
            self._note(
                "radius",
                f"radius {self.radius:g} is beyond what weights on {items} items can spend ({most:.4g}): the "
                "constraint is void, tau goes to its minimum, and the worst item gets all the weight; set a smaller radius",
            )

    def wants(self, items: int) -> bool:
        """Whether it is worth telling the share of rows of so many items. CVaR was told how many
        share the weight, and of a few items two are nothing to warn of."""
        compiling = torch.compiler.is_compiling()
        return self.divergence.takes_budget and items >= FEWEST and not compiling

    def share(self, share: Tensor, items: Tensor | float, what: str) -> None:
        """The mean effective sample share of a step's rows, (), detached, and how many items they
        have, () or a number.

        Args:
            what: the items of whom, for the message: "examples of each batch".
        """
        # The module has moved since; tensors of two devices cannot be stacked.
        if self.recent and self.recent[0][0].device != share.device:
            self.recent.clear()
            self.low = self.seen = None
        self.what = what
        self.recent.append((share, items))
        if len(self.recent) >= LONG:
            self._take_in()

    @torch.no_grad()
    def _take_in(self) -> None:
        """Count the steps in a row that had too few items, over what has come in since the last
        time; nothing is read from the device."""
        if not self.recent:
            return
        shares = torch.stack([share.double() for share, _ in self.recent])
        items = torch.stack([shares.new_full((), 0.0) + items for _, items in self.recent])
        self.recent.clear()
        number = shares * items
        low = (number < 2) & (items >= FEWEST)
        # A row whose margin is passed has no weight at all, which is no collapse.
        if self.margin:
            low &= number > 0.5
        before = torch.zeros_like(low[0], dtype=torch.int64) if self.low is None else self.low
        steps = torch.arange(1, len(low) + 1, device=low.device)
        # The last healthy step up to each, 0: none yet. Then the count goes on from the steps before.
        healthy = torch.where(low, 0, steps).cummax(0).values
        in_a_row = steps - healthy + torch.where(healthy == 0, before, 0)
        self.low = in_a_row[-1]
        late = in_a_row == LONG
        now = torch.stack([shares, items], -1)[late.int().argmax()]
        # The first collapse stays: it is what the warning tells of, whenever somebody reads it.
        seen = torch.zeros_like(now) if self.seen is None else self.seen
        self.seen = torch.where(late.any() & (seen[1] == 0), now, seen)

    def news(self) -> dict[str, str]:
        """Warnings that were not told before, name → one line; waits for the device."""
        self._take_in()
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
