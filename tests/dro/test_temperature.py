"""A temperature of its own for every row: Adam by row, what it converges to, its table, bad
input."""

import math

import pytest
import torch
from adversaries import stochastic
from torch import Tensor

from steering import worst_case
from steering.dro.online.individual_temperatures import LARGEST_SLOPE, IndividualTemperatures
from steering.dro.online.row_table import merged, split_state
from steering.dro.online.temperature import Temperature
from steering.items import Units

ROWS = 6


def visit(table: IndividualTemperatures, rows: Tensor, slope: Tensor) -> Tensor:
    tau, learn = table.visit(rows, False)
    assert not learn(slope).any()
    return tau


def slopes(count: int) -> Tensor:
    return 4 * torch.randn(
        count, ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def test_every_row_has_torchs_adam_of_its_own():
    # Rows are seen at different times; the oracle is torch's Adam on a scalar, clamped slopes,
    # projected after each step.
    table = IndividualTemperatures(ROWS, 0.3, lr=0.02, minimum=0.05, maximum=0.4).double()
    twins = [torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(ROWS)]
    adams = [torch.optim.Adam([twin], lr=0.02) for twin in twins]
    generator = torch.Generator().manual_seed(1)
    for slope in slopes(40):
        rows = torch.randperm(ROWS, generator=generator)[:4].view(2, 2)
        found = visit(table, rows, slope[rows])
        for row in rows.flatten().tolist():
            assert found[rows == row].item() == pytest.approx(twins[row].item(), rel=1e-12)
            twins[row].grad = slope[row].clamp(-5, 5)
            adams[row].step()
            twins[row].data.clamp_(0.05, 0.4)
    final = table.read(torch.arange(ROWS), False)
    assert final.min() == 0.05 or final.max() == 0.4  # a border was met
    assert LARGEST_SLOPE == 5


def test_the_first_visit_moves_by_the_step_whatever_the_slope():
    table = IndividualTemperatures(3, 0.3, lr=0.02).double()
    visit(table, torch.tensor([0, 2]), torch.tensor([1e-3, -100.0]).double())
    torch.testing.assert_close(
        table.read(torch.arange(3), False),
        torch.tensor([0.28, 0.3, 0.32]).double(),
        rtol=1e-5,
        atol=0,
    )


def test_a_slope_that_is_not_finite_is_passed_over():
    table, rows = IndividualTemperatures(2, 0.3, lr=0.02), torch.arange(2)
    for slope in ([1.0, math.nan], [math.inf, 2.0], [-math.inf, math.nan]):
        visit(table, rows, torch.tensor(slope))
    found = table.read(rows, False)
    torch.testing.assert_close(found, torch.tensor([0.28, 0.28]))


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
def test_every_row_comes_to_meet_the_radius(divergence):
    # Fixed losses, the whole row in every batch: τ of a row is then the multiplier of its own
    # constrained problem.
    losses = torch.randn(ROWS, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses *= torch.linspace(0.2, 2.0, ROWS).double()[:, None]  # so one τ would not do for all
    risk = stochastic(
        ROWS,
        tau=1.0,
        radius=0.2,
        divergence=divergence,
        estimator="batch",
        individual_tau=True,
        tau_max=10.0,
    ).double()
    units = Units(losses, None, torch.arange(ROWS))
    for step in range(1500):
        risk.temperature.lr = 0.1 * 0.995**step
        estimate = risk(units)
    exact = worst_case(losses, divergence, radius=0.2)
    torch.testing.assert_close(estimate.weights, exact.weights, rtol=0.01, atol=1e-4)
    torch.testing.assert_close(estimate.loss, exact.value.mean(), rtol=1e-4, atol=0)
    tau = risk.temperature.read(torch.arange(ROWS), False)
    assert tau.max() > 5 * tau.min()


def test_a_shared_temperature_gives_the_same_step():
    losses = torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads, metrics = [], []
    for individual in (False, True):
        leaf = losses.clone().requires_grad_()
        risk = stochastic(ROWS, tau=0.7, radius=0.3, individual_tau=individual).double()
        estimate = risk(Units(leaf, losses.flip(0) / 3, torch.arange(ROWS)))
        estimate.loss.backward()
        grads.append(leaf.grad)
        metrics.append(estimate.metrics)
    torch.testing.assert_close(
        grads[1], grads[0], rtol=1e-6, atol=1e-9
    )  # log τ is stored in float32 for the shared one
    assert metrics[1].keys() - metrics[0].keys() == {"tau_deviation"}
    assert metrics[1]["tau"] == pytest.approx(0.7)
    assert metrics[1]["tau_deviation"] == pytest.approx(0, abs=1e-12)


def test_temperatures_stay_float32_beside_half_precision_estimates(tmp_path):
    risk = stochastic(
        ROWS,
        tau=0.3,
        radius=0.1,
        gamma=0.5,
        individual_tau=True,
        duals="float16",
        duals_folder=str(tmp_path),
    )
    table = risk.temperature.duals.table
    assert table.dtype == torch.float32
    assert risk.estimator.duals.table.dtype == torch.float16
    visit(risk.temperature, torch.tensor([4]), torch.tensor([1.0]))
    assert table[4, 0] == pytest.approx(0.29)
    assert not table[:4].any()


def test_state_survives_and_another_number_of_ranks_reads_it(monkeypatch):
    from steering import distributed

    options = {
        "tau": 0.3,
        "radius": 0.1,
        "gamma": 0.5,
        "individual_tau": True,
        "split": True,
    }
    whole = stochastic(7, **options)
    visit(whole.temperature, torch.arange(5), torch.tensor([1.0, -1, 2, -2, 3]))
    expected = whole.temperature.read(torch.arange(7), False)
    parts = []
    for rank in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "active", lambda: True)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: 3)
            part = stochastic(7, **options)
            part.load_state_dict(merged([whole.state_dict()], part))
            shared, own = split_state(part)
            assert {key.split(".")[0] for key in own} == {"temperature", "estimator"}
            parts.append(shared | own)
    again = stochastic(7, **options)
    again.load_state_dict(merged(parts, again))
    torch.testing.assert_close(
        again.temperature.read(torch.arange(7), False), expected, rtol=0, atol=0
    )
    visit(again.temperature, torch.arange(5), torch.ones(5))  # the moments are there too
    visit(whole.temperature, torch.arange(5), torch.ones(5))
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": None}, "individual_tau must be false without a radius"),
        ({"individual_tau_lr": 0.0}, "individual_tau_lr must be a number > 0, got 0.0"),
        ({"tau": 2.0}, r"tau must be a number in \[0.0001, 1.0\], got 2.0"),
        ({"tau_min": 3.0}, r"tau_min must lie in \(0, 1.0\], got 3.0"),
        ({"divergence": "cvar", "level": 0.3, "tau": None}, "radius must be None for 'cvar'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        stochastic(2, **({"tau": 0.3, "radius": 0.1, "individual_tau": True} | options))


def test_infinity_is_for_the_whole_run():
    """There the adversary is another formula; a schedule that leaves it, or comes to it, is refused."""
    endless, finite = Temperature(math.inf, learned=False), Temperature(1.0, learned=False)
    endless.at(math.inf)
    finite.at(2.0)
    assert finite().item() == pytest.approx(2.0)
    for one, tau in ((endless, 1.0), (finite, math.inf), (finite, 0.0), (finite, math.nan)):
        with pytest.raises(ValueError, match="tau must be a number > 0 all the way"):
            one.at(tau)
