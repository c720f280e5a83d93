"""What a pass has found so far, on all ranks and on disk."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from steering import distributed
from steering.errors import SteeringError
from steering.outputs.fingerprint import weights_fingerprint
from steering.reading import user_path
from steering.reference_pass.file import LossFile, Owner

FLUSH_SECONDS = 10.0


class Record:
    """Losses found so far, and the file that keeps them.

    Attributes:
        values: float32, (n,), NaN where nothing is known yet.
        met: how often this pass has met an example, int64, (n,).
    """

    def __init__(self, count: int, file: str | Path | None, model: nn.Module) -> None:
        self.count, self.model = count, model
        self.values = torch.full((count,), float("nan"))
        self.met = torch.zeros(count, dtype=torch.int64)
        self.flushed = time.monotonic()
        self.file: LossFile | None = None
        if file is not None:
            self.file = LossFile(user_path(file), Owner(weights_fingerprint(model), count))

    @property
    def complete(self) -> bool:
        return bool(self.values.isfinite().all())

    def read(self) -> None:
        """Take in what earlier passes have left on disk."""
        if self.file is None:
            return
        stored = self.file.read()
        if stored is not None:
            self.values = stored
        if not self.complete:
            self.file.prepare()

    def knows(self, index: Tensor) -> bool:
        return bool(self.values[index].isfinite().all())

    def meet(self, index: Tensor) -> None:
        """Count the examples of a batch; refuse one that this pass has met before."""
        self.met += index.bincount(minlength=self.count)
        twice = (self.met[index] > 1).nonzero()
        if len(twice):
            example = int(index[twice[0, 0]])
            raise SteeringError(
                f"reference_losses: example {example} is there twice; every number 0 .. "
                f"{self.count - 1} must come once"
            )

    def add(self, index: Tensor, losses: Tensor) -> None:
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            place = int(wrong[0, 0])
            raise SteeringError(
                f"reference_losses: the loss of example {int(index[place])} is "
                f"{float(losses[place])}, expected a finite number"
            )
        self.values[index] = losses
        if self.file is not None and time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.write_part(self.values)
            self.flushed = time.monotonic()

    def finish(self) -> None:
        """Join what the ranks have found, and keep it."""
        self.values = _merged(self.values, self.model)
        # From here on all ranks hold the same, so they raise, or do not, together.
        missing = self.values.isnan().nonzero().flatten()
        if len(missing):
            some = ", ".join(str(int(number)) for number in missing[:5])
            more = ", ..." if len(missing) > 5 else ""
            if self.met[missing].any():  # here they came, but in a batch that was another rank's
                raise SteeringError(
                    f"reference_losses: examples {some}{more} came, but in no process where they were its part: the "
                    "processes' loaders have different orders; give a loader with shuffle=False"
                )
            raise SteeringError(
                f"reference_losses: {len(missing)} of {self.count} examples never came: {some}{more}"
            )
        if self.file is not None:
            if distributed.rank() == 0:
                self.file.write(self.values)
            distributed.barrier()


@torch.no_grad()
def _merged(values: Tensor, model: nn.Module) -> Tensor:
    """What any rank knows, the first that does; NaN where none does."""
    if not distributed.active():
        return values
    first = next(model.parameters(), None)
    device = values.device if first is None else first.device  # collectives of a GPU want it there
    everyone = distributed.gather(values.to(device)[None]).cpu()
    found = everyone[0]
    for other in everyone[1:]:
        found = torch.where(found.isnan(), other, found)
    return found
