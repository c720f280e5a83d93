"""A budget in bytes decides how many blocks are kept, and a kept block is not multiplied out
again."""

import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic

from steering.contrastive import Pairs, problem
from steering.contrastive import risk as risk_of
from steering.contrastive.risk import anchor_risks

B, D = 200, 16
ROWS = 50  # of a block
BLOCK = ROWS * B * 4  # bytes


@pytest.fixture
def seen(monkeypatch):
    """The first row of every block whose logits are multiplied out, and the bytes kept when pass 1
    is over."""
    monkeypatch.setattr(problem, "BLOCK_BYTES", 1)
    log = {"starts": [], "bytes": 0, "kept": None}
    logits, sums = problem.Problem.logits, risk_of.sums

    def noted(self, some, out):
        log["starts"].append(some.start)
        return logits(self, some, out)

    def passed(asked):
        found = sums(asked)
        log["bytes"] = sum(x.untyped_storage().nbytes() for x in found.kept.blocks.values())
        log["kept"] = found.kept
        return found

    monkeypatch.setattr(problem.Problem, "logits", noted)
    monkeypatch.setattr(risk_of, "sums", passed)
    return log


@pytest.mark.parametrize("path", ["one exponential", "two exponentials", "individual"])
@pytest.mark.parametrize(
    ("budget", "kept"),
    [(0, 0), (BLOCK - 1, 0), (BLOCK, 1), (3 * BLOCK - 1, 2), (3 * BLOCK, 3), (9 * BLOCK, 4)],
)
def test_blocks_within_the_budget_are_kept_and_the_others_made_again(seen, path, budget, kept):
    generator = torch.Generator().manual_seed(0)
    image, text, *guide = F.normalize(torch.randn(4, B, D, generator=generator), dim=-1)
    # At τ = 0.002 logits span a thousand nats: one exponential is tried, and given up.
    options = {
        "tau": 0.002 if path == "two exponentials" else 0.2,
        "tau_min": 1e-4,
        "strength": 0.5,
    }
    if path == "individual":
        options |= {"radius": 0.3, "individual_tau": True}
    risk = stochastic(2 * B, **options)
    risks, _ = anchor_risks(
        risk, Pairs(image.requires_grad_(), text, torch.arange(B), *guide), budget
    )
    starts = list(range(0, B, ROWS))
    assert seen["starts"] == starts * (2 if path == "two exponentials" else 1)
    assert seen["bytes"] == kept * BLOCK <= max(budget, 0)
    assert (seen["kept"].shifts is not None) == (path == "one exponential")
    seen["starts"].clear()
    risks.mean().backward()
    assert seen["starts"] == starts[kept:]
    assert not seen["kept"].blocks  # given back as pass 2 goes
