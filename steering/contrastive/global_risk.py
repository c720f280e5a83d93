"""The global contrastive risk as a function with a gradient: duals between the two passes of
`blocked.py`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.blocked import Kept, Sums
from steering.contrastive.exchange import Parcel, expecting
from steering.contrastive.gradients import Entries, gradients
from steering.contrastive.problem import LOG2E, Features, Problem
from steering.items import Pairs


class GlobalRisk(torch.autograd.Function):
    """The height log(ε + u) of every anchor, (2, b), as it is; the gradient is ∂ log(ε + û)/∂S.

    u is the running estimate that û has just moved: as everywhere, the weights are exp(h/τ)/((B −
    1)(ε + u)), detached. What other ranks know of the texts' gradient goes into the parcel. There
    is no second derivative, and asking for one is an error.

    All that lies between the passes is in `ctx`: the features as saved tensors, which autograd
    lets go when the graph is over, whoever still holds the loss; and what pass 1 has kept, which
    pass 2 uses up.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        image: Tensor,  # noqa: ARG004  (the problem holds them, detached)
        text: Tensor,  # noqa: ARG004
        height: Tensor,
        problem: Problem,
        found: Sums,
        parcel: Parcel,
    ) -> Tensor:
        ctx.scales, ctx.kept, ctx.parcel = problem.scales, found.kept, parcel
        # A dual without history is log û itself: the output with a gradient must be another tensor.
        height = height.clone()
        ctx.save_for_backward(height, found.log_means, *problem.features)
        return height

    @staticmethod
    def backward(ctx, weights: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        # Autograd runs a backward pass with gradients on only if it is to be differentiated itself.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the contrastive risk in blocks has no second derivative (create_graph=True)"
            )
        height, log_means, *features = ctx.saved_tensors
        # Blocks are cut by shapes and device alone, so these are the ones that pass 1 has numbered.
        problem, kept = Problem(Features(*features), ctx.scales), ctx.kept
        # The chain rule through D = S/τ.
        weights = weights / problem.scales.of_own(problem.own)
        with torch.autocast(weights.device.type, enabled=False):
            # Every rank comes here, as there is a collective inside, and another one where the
            # texts' gradient is wanted.
            entries = _entries(problem, kept, weights, height)
            grad_image, grad_text = gradients(problem, kept, entries, ctx.needs_input_grad[:2])
        # What the positives push back: h_ij = D_ij − D_ii, so ∂L/∂S_ii is minus the sum of an anchor's
        # entries. That sum is its weight times û/(ε + u), as in (28) of docs/theory.md, so no block
        # is needed for it.
        pull = (weights * (log_means - height).exp()).sum(0)[:, None]  # (b, 1)
        known = None
        if grad_image is not None:
            grad_image.addcmul_(pull, problem.features.text[problem.own], value=-1)
        if grad_text is not None:
            # The positives' part is this rank's own; what goes on its way are the negatives'.
            known = -pull * problem.features.image
            # Sent as early as can be, and fetched as late: `exchange.py`.
            ctx.parcel.content = distributed.send_to_owner(grad_text)
        return grad_image, known, None, None, None, None


def _entries(problem: Problem, kept: Kept, weights: Tensor, height: Tensor) -> Entries:
    """Of ∂L/∂S, with the texts' of all ranks.

    Args:
        weights: upstream gradients over τ, (2, b).
        height: log(ε + u), (2, b).
    """
    # a and b as logarithms, since e^(−D_ii) alone may leave floating point. A weight of zero is −∞,
    # and 2 to that is 0 at every D; the sign comes back as a factor.
    logs = weights.abs().log2() - LOG2E * height - kept.positives - math.log2(problem.others)
    signs = weights.sign()
    # This rank's images are negatives of the texts of all ranks, and (31) wants the gradient of all
    # ranks' losses to arrive at them.
    every = distributed.gather(torch.stack([logs[1], signs[1]], -1))  # (B, 2): one exchange
    # Asking costs less than two products with ones, but a GPU would have to wait for the answer.
    if signs.device.type == "cpu" and not bool((signs[0] < 0).any() or (every[:, 1] < 0).any()):
        return Entries(logs[0], every[:, 0])
    return Entries(logs[0], every[:, 0], (signs[0], every[:, 1]))


def with_gradient(pairs: Pairs, problem: Problem, found: Sums, height: Tensor) -> Tensor:
    """log(ε + u), (2, b), with the gradient that `GlobalRisk` gives it.

    Args:
        pairs: those that the problem was made of.
        found: the sums of the problem.
        height: log(ε + u), detached.
    """
    text, parcel = expecting(pairs.text)
    made: Tensor = GlobalRisk.apply(pairs.image, text, height, problem, found, parcel)
    return made
