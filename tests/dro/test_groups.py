"""Groups: means, exponentiated gradient (group DRO, DoReMi), its resting points, and the exact
solver over groups."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.dro import worst_case
from steering.dro.online.groups import GroupWeights, group_means


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONES = torch.ones(3)


def test_means_and_counts_by_hand():
    losses = rows(1.0, 2.0, 6.0, 4.0).requires_grad_()
    means, counts = group_means(losses, torch.tensor([2, 0, 2, 2]), 4)
    torch.testing.assert_close(means, rows(2.0, 0.0, 11 / 3, 0.0))
    assert counts.tolist() == [1, 0, 3, 0]
    (means * rows(10.0, 99.0, 3.0, 99.0)).sum().backward()
    torch.testing.assert_close(losses.grad, rows(1.0, 10.0, 1.0, 1.0))


def test_exponentiated_gradient_by_hand():
    # exp(L) = (1, 2, 5) from uniform: q = (1, 2, 5)/8; again with an absent group 2: (1, 4, 25)/30
    # if its loss stays.
    weights = GroupWeights(3, step=1.0)
    scores = rows(1.0, 2.0, 5.0).log()
    torch.testing.assert_close(weights.update(scores, ONES), rows(1, 2, 5) / 8)
    torch.testing.assert_close(
        weights.update(rows(0.0, math.log(2), 77.0), torch.tensor([1, 1, 0])), rows(1, 4, 25) / 30
    )
    torch.testing.assert_close(weights.mean, (rows(1, 2, 5) / 8 + rows(1, 4, 25) / 30) / 2)


def test_doremi_against_loops():
    # DoReMi: η = 1, c = 1e-3, scores clipped at zero per token, absent domains keep theirs, running
    # mean.
    generator = np.random.default_rng(0)
    weights, a, last, means = (
        GroupWeights(4, step=1.0, smoothing=1e-3),
        np.full(4, 0.25),
        np.zeros(4),
        [],
    )
    for _ in range(12):
        domains, excess = generator.integers(0, 4, 9), generator.normal(size=9)
        for d in range(4):
            tokens = [max(x, 0.0) for x, domain in zip(excess, domains, strict=True) if domain == d]
            last[d] = sum(tokens) / len(tokens) if tokens else last[d]
        a = a * np.exp(last)
        a = (1 - 1e-3) * a / a.sum() + 1e-3 / 4
        means.append(a)
        clipped = torch.from_numpy(excess).clamp_min(0)
        found = weights.update(*group_means(clipped, torch.from_numpy(domains), 4))
        np.testing.assert_allclose(found.numpy(), a, rtol=1e-12)
    np.testing.assert_allclose(weights.mean.numpy(), np.mean(means, 0), rtol=1e-12)


@pytest.mark.parametrize("step", [0.05, 1.0, 20.0])
def test_with_a_penalty_it_rests_at_the_exact_worst_case(step: float):
    losses, prior = rows(0.3, 1.2, -0.5, 2.0), rows(4, 2, 1, 3)
    weights = GroupWeights(4, step=step, penalty=0.7, prior=prior)
    for _ in range(int(400 / min(step, 4)) + 10):
        q = weights.update(losses, torch.ones(4))
    torch.testing.assert_close(
        q, worst_case(losses, "kl", penalty=0.7, prior=prior).weights, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("step", [0.3, 5.0])
def test_each_penalised_step_is_the_proximal_one(step: float):
    # The maximiser of ⟨q, L⟩ − τ KL(q‖q⁰) − KL(q‖q_old)/η: on the simplex all slopes are equal
    # there, and none is higher.
    prior, losses = rows(4, 2, 1, 3) / 10, rows(0.3, 1.2, -0.5, 2.0)
    weights = GroupWeights(4, step=step, penalty=0.7, prior=prior)
    old = weights.update(rows(1.0, 0.0, 0.5, -1.0), torch.ones(4))

    def objective(q: Tensor) -> Tensor:
        return (q * losses - 0.7 * q * (q / prior).log() - q * (q / old).log() / step).sum(-1)

    q = weights.update(losses, torch.ones(4)).requires_grad_()
    (slopes,) = torch.autograd.grad(objective(q), q)
    torch.testing.assert_close(slopes, slopes.mean().expand(4))
    others = torch.distributions.Dirichlet(torch.ones(4).double()).sample((500,))
    assert (objective(others) < objective(q)).all()


def test_equal_losses_leave_the_weights_as_they_are():
    weights = GroupWeights(3, step=2.0, prior=rows(1, 2, 5))
    for _ in range(5):
        q = weights.update(rows(7.0, 7.0, 7.0), ONES)
    torch.testing.assert_close(q, rows(1, 2, 5) / 8)


def test_doremi_where_the_reference_is_worse_everywhere():
    # DoReMi: scores of zero drift q to uniform by (1 − c) q + c/k; no weight below c/k; one step's
    # mean.
    weights, c = GroupWeights(3, smoothing=0.1), 0.1
    first = weights.update(rows(9.0, 0.0, 0.0), ONES)
    torch.testing.assert_close(weights.mean, first)
    assert (first >= c / 3).all()
    torch.testing.assert_close(weights.update(torch.zeros(3), ONES), (1 - c) * first + c / 3)


def test_the_exact_worst_group_of_those_present():
    losses = rows(1.0, 2.0, 6.0, 4.0).requires_grad_()
    means, counts = group_means(
        losses, torch.tensor([2, 0, 2, 2]), 4
    )  # 2 and 11/3, two groups absent
    found = worst_case(means, "kl", radius=math.inf, mask=counts > 0)  # the free adversary
    torch.testing.assert_close(found.value.detach(), rows(11 / 3)[0])
    found.value.backward()
    torch.testing.assert_close(losses.grad, rows(1, 0, 1, 1) / 3)


def test_without_one_it_goes_for_the_worst_group():
    weights = GroupWeights(3, step=0.5)
    for _ in range(200):
        q = weights.update(rows(0.0, 1.0, 0.9), ONES)
    torch.testing.assert_close(q, rows(0, 1, 0), rtol=0, atol=1e-4)


def test_the_mean_iterate_solves_the_game():
    # Minimise max((w − 1)², (w + 2)² + 1): a convex game whose saddle point is known in closed
    # form.
    w, weights, ws = (
        torch.zeros((), dtype=torch.float64, requires_grad=True),
        GroupWeights(2, step=0.02),
        [],
    )
    for step in range(4000):
        losses = torch.stack([(w - 1) ** 2, (w + 2) ** 2 + 1])
        loss = weights(losses, torch.ones(2))
        (gradient,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= 0.05 / math.sqrt(1 + step / 50) * gradient
        ws.append(w.item())
    # (w − 1)² = (w + 2)² + 1 at w = −2/3; there q (w − 1) + (1 − q)(w + 2) = 0 gives q = (w + 2)/3
    # = 4/9.
    assert sum(ws[1000:]) / 3000 == pytest.approx(-2 / 3, abs=0.01)
    assert weights.log_q.exp()[0].item() == pytest.approx(4 / 9, abs=0.05)


def test_the_loss_has_detached_weights_and_skips_the_absent():
    means = rows(1.0, 3.0, math.nan).requires_grad_()
    weights = GroupWeights(3, step=0.1)
    loss = weights(means, torch.tensor([1, 1, 0]))
    loss.backward()
    torch.testing.assert_close(means.grad[:2], weights.log_q.exp()[:2])
    assert means.grad[2] == 0
    assert loss.isfinite()


def test_a_shift_of_all_losses_and_an_order_of_the_groups_do_not_matter():
    scores = rows(0.3, 2.0, -1.0)
    found = GroupWeights(3).update(scores, ONES)
    torch.testing.assert_close(GroupWeights(3).update(scores + 50, ONES), found)
    order = [2, 0, 1]
    torch.testing.assert_close(GroupWeights(3).update(scores[order], ONES), found[order])


def test_extremes():
    huge = GroupWeights(3, step=1e4, smoothing=1e-3)
    q = huge.update(rows(1e6, -1e6, 0.0), ONES)
    torch.testing.assert_close(q, rows(1 - 1e-3, 0, 0) + 1e-3 / 3)
    assert GroupWeights(1).update(rows(5.0), torch.ones(1)).tolist() == [1.0]


def test_item_weights_make_the_batch_look_like_the_mix():
    weights = GroupWeights(2, prior=rows(1, 3))
    found = weights.item_weights(torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5, 1.5]))


def test_the_state_travels():
    whole, resumed = GroupWeights(3, smoothing=0.01), GroupWeights(3, smoothing=0.01)
    whole.update(rows(1, 2, 3), ONES)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(
        whole.update(rows(3, 2, 1), torch.tensor([1, 0, 1])),
        resumed.update(rows(3, 2, 1), torch.tensor([1, 0, 1])),
    )
    assert torch.equal(whole.mean, resumed.mean)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("step must be a number ≥ 0, got -0.1", {"step": -0.1}),
        (r"smoothing must be in \[0, 1\), got 1", {"smoothing": 1.0}),
        ("penalty must be a number ≥ 0, got nan", {"penalty": math.nan}),
        ("prior must be 3 finite numbers > 0", {"prior": rows(1, 0, 1)}),
        ("prior must be 3 finite numbers > 0", {"prior": rows(1, 1)}),
    ],
)
def test_wrong_options_are_named(message: str, options: dict):
    with pytest.raises(ValueError, match=message):
        GroupWeights(3, **options)


def test_wrong_groups_are_named():
    with pytest.raises(ValueError, match=r"groups: 3 at position 1, expected numbers in \[0, 3\)"):
        group_means(rows(1, 2), torch.tensor([0, 3]), 3)
    with pytest.raises(
        ValueError, match=r"losses of groups: inf at position 1, expected finite numbers"
    ):
        GroupWeights(2).update(rows(1, math.inf), torch.ones(2))
    with pytest.raises(ValueError, match="must both be"):
        group_means(rows(1, 2), torch.tensor([0]), 3)
