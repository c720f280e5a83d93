"""The texts' gradient travels between the ranks while the image tower goes backward.

Autograd takes, of the nodes that are ready, the one made last. Waiting is a node of its own,
`Arrival`, that passes for the one made first: everything that does not depend on it goes before,
which is the image tower, and then the text tower finds its gradient there. DDP's all-reduce
overlaps with the towers in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.distributed import Arriving


@dataclass
class Parcel:
    """Left by the sender's backward pass, fetched by `Arrival`'s; None where nothing is under
    way."""

    content: Arriving | None = None

    def fetch(self) -> Tensor | None:
        # Handed over once. A graph that is kept runs its sender again, which leaves a parcel anew.
        content, self.content = self.content, None
        return None if content is None else content.wait()


class Arrival(torch.autograd.Function):
    """The identity, whose gradient is what this rank knows itself plus what arrives."""

    @staticmethod
    def forward(ctx, x: Tensor, parcel: Parcel) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.parcel = parcel
        return x.view_as(x)

    @staticmethod
    def backward(ctx, own: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        rest: Tensor | None = ctx.parcel.fetch()
        # What has arrived is in a buffer of the exchange's own, so it may be written over.
        return own if rest is None else rest.add_(own), None


def expecting(x: Tensor) -> tuple[Tensor, Parcel]:
    """x, and where the sender puts the rest of x's gradient; waited for as late as can be."""
    parcel = Parcel()
    arrival: Any = Arrival.apply(x, parcel)
    if arrival.grad_fn is not None:
        # The engine takes the ready node with the highest number. Torch has no public way to say
        # "last of all"; without this the gradient is the same, but it is waited for at once.
        arrival.grad_fn._set_sequence_nr(0)
    return arrival, parcel
