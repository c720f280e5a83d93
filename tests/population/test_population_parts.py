"""The parts of a population by themselves: prior, mixture, noise, average of weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.population import (
    Mixed,
    MixtureOfProbabilities,
    Predicted,
    WeightAverage,
    fit_prior,
    noise_scale,
    perturb,
    predicted,
    renew_batch_norm,
    top_weights,
)
from steering.population.prior import likelihood_gap
from steering.risk import ReferenceRisk
from steering_tasks.classification.losses import GeneralizedCrossEntropy
from steering_tasks.classification.risk import ClassificationRisk


def table(members, items, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(members, items, generator=generator, dtype=torch.float64).clamp_min(1e-3)


def expectation_maximisation(p, rounds=3000):
    """The same weights by another algorithm: each round is w ← w·slope, which never makes it worse."""
    w = np.full(len(p), 1 / len(p))
    for _ in range(rounds):
        w = w * (p / (w @ p)).mean(1)
    return w, -np.log(w @ p).mean()


@pytest.mark.parametrize("members", [2, 5, 30])
def test_the_prior_is_that_of_expectation_maximisation(members):
    p = table(members, 500) ** torch.linspace(0.5, 2, members, dtype=torch.float64)[:, None]
    found, (w, loss) = fit_prior(p), expectation_maximisation(p.numpy())
    assert abs(found.loss - loss) < 1e-4
    assert np.abs(found.weights.numpy() - w).max() < 0.02
    assert abs(found.weights.sum().item() - 1) < 1e-12
    # The slope is at most 1, and 1 for the members that are in use.
    slope = (p / (found.weights @ p)).mean(1)
    assert slope.max() < 1 + 2e-3
    active = found.weights > 0.02
    torch.testing.assert_close(slope[active], torch.ones_like(slope[active]), rtol=0, atol=2e-3)
    assert found.gap == pytest.approx(slope.max().item() - 1)


def test_the_gap_bounds_what_other_weights_could_gain():
    p = table(6, 300)
    _, least = expectation_maximisation(p.numpy())
    for seed in range(20):
        w = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w = w / w.sum()
        loss = -(w @ p).log().mean().item()
        assert loss - least <= likelihood_gap(w, p) + 1e-9
        assert loss - least >= -1e-9


def test_a_member_that_alone_knows_gets_all_and_complements_share():
    alone = torch.tensor([[0.9, 0.8, 0.7], [0.0, 0.0, 0.0]])
    assert fit_prior(alone).weights[0] > 0.999
    halves = torch.tensor([[0.8, 0.01], [0.01, 0.8]])
    torch.testing.assert_close(fit_prior(halves).weights, torch.full((2,), 0.5).double())
    same = table(1, 50).expand(4, 50)
    found = fit_prior(same)
    torch.testing.assert_close(found.weights, torch.full((4,), 0.25).double())
    assert found.loss == pytest.approx(-same[0].log().mean().item())


def test_the_prior_is_at_least_as_good_on_its_slice_as_equal_weights():
    for seed in range(10):
        p = table(7, 20, seed)
        assert fit_prior(p, steps=seed).loss <= -p.mean(0).log().mean().item() + 1e-12


def test_another_objective_is_followed():
    p = torch.tensor([[0.9, 0.2, 0.9], [0.5, 0.5, 0.5]])
    # Of the least likely item alone, the second member is the better one.
    found = fit_prior(p, objective=lambda mixed: -mixed.amin().log())
    assert found.weights[1] > 0.99
    assert fit_prior(p).weights[1] < 0.5


def test_bad_probabilities_are_refused():
    with pytest.raises(ValueError, match="2 items are impossible under every member"):
        fit_prior(torch.tensor([[0.5, 0.0, 0.0], [0.1, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        fit_prior(torch.tensor([[1.5]]))
    with pytest.raises(ValueError, match=r"\(members, items\), got \(3,\)"):
        fit_prior(torch.rand(3))


def test_top_weights_are_the_largest_ones_and_sum_to_one():
    w = torch.tensor([0.1, 0.4, 0.2, 0.3])
    torch.testing.assert_close(top_weights(w, 2), torch.tensor([0, 4 / 7, 0, 3 / 7]))
    for k in range(1, 5):
        assert top_weights(w, k).sum().item() == pytest.approx(1)
    torch.testing.assert_close(top_weights(w, 4), w)
    with pytest.raises(ValueError, match=r"1 \.\. 4"):
        top_weights(w, 5)


def members(count, items, classes, seed=0):
    """Predictions of several models of the same labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (items,), generator=generator)
    found = []
    for _ in range(count):
        p = torch.randn(items, classes, generator=generator, dtype=torch.float64).softmax(-1)
        found.append(
            Predicted(p.gather(1, label[:, None]), torch.ones(items, 1, dtype=torch.bool), p)
        )
    return found, label


def test_mixtures_are_those_of_all_members_at_once():
    found, label = members(5, 30, 4)
    weights = {"even": torch.full((5,), 0.2), "some": torch.tensor([0.5, 0, 0, 0.5, 0])}
    mixed = Mixed(weights)
    for one in found:
        mixed.add(one)
    for name, w in weights.items():
        whole = sum(a * one.classes for a, one in zip(w.tolist(), found, strict=True))
        mine = mixed.found(name)
        expected = -whole.gather(1, label[:, None]).log()[:, 0]
        np.testing.assert_allclose(mine.nll().values, expected, rtol=1e-6)
        np.testing.assert_array_equal(mine.hits().values, (whole.argmax(1) == label).double())
        # Jensen: the mixture is never worse than its members are on average.
        mean = sum(a * one.nll().mean() for a, one in zip(w.tolist(), found, strict=True))
        assert mine.nll().mean() <= mean


def test_equal_members_give_their_loss_for_any_weights():
    (one,), _ = members(1, 30, 4)
    weights = torch.rand(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixed = Mixed({"any": weights / weights.sum()})
    for _ in range(3):
        mixed.add(one)
    np.testing.assert_allclose(mixed.found("any").nll().values, one.nll().values)


def test_items_that_do_not_count_are_left_out():
    true = torch.tensor([[0.5, 0.25], [0.5, 0.0]], dtype=torch.float64)
    one = Predicted(true, torch.tensor([[True, True], [True, False]]))
    scores = one.nll()
    np.testing.assert_allclose(scores.values, [1.5 * math.log(2), math.log(2)])
    np.testing.assert_array_equal(scores.weights, [2, 1])
    assert scores.mean() == pytest.approx(4 / 3 * math.log(2))
    assert one.items().tolist() == [0.5, 0.25, 0.5]
    assert one.hits() is None


class Points(IndexedData):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 3, generator=generator)
        self.y = torch.randint(4, (n,), generator=generator)

    def __len__(self):
        return len(self.x)

    def batch(self, index, epoch):  # noqa: ARG002
        rows = torch.from_numpy(index)
        return {"x": self.x[rows], "y": self.y[rows], "index": rows}

    def fingerprint(self):
        return str(len(self))


class PointRisk(ReferenceRisk):
    def outputs(self, model, batch, logits=False):
        scores = model(batch["x"])
        found = {"loss": F.cross_entropy(scores, batch["y"], reduction="none")}
        return found | ({"logits": scores} if logits else {})

    def losses(self, target, reference, batch):  # noqa: ARG002
        return Units(target["loss"], logits=target.get("logits"))


def test_predictions_are_the_models_own():
    data, model = Points(70), nn.Linear(3, 4)
    found = predicted(model, PointRisk(), data, torch.device("cpu"), batch_size=16)
    p = model(data.x).softmax(-1).double()
    torch.testing.assert_close(found.classes, p, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.true, p.gather(1, data.y[:, None]), rtol=1e-5, atol=1e-6)
    assert found.hits().mean() == (p.argmax(1) == data.y).double().mean()


def test_losses_that_are_no_log_probabilities_are_refused():
    class PairRisk(PointRisk):
        unit = "pair"

        def losses(self, target, reference, batch):  # noqa: ARG002
            return Pairs(target["loss"], target["loss"], batch["index"])

    with pytest.raises(SteeringError, match="a loss of a pair is no logarithm of a probability"):
        predicted(nn.Linear(3, 4), PairRisk(), Points(4), torch.device("cpu"))


class LabelledPoints(Points):
    """The same with the label where classification has it."""

    def batch(self, index, epoch):
        found = super().batch(index, epoch)
        return {"index": found["index"], "image": found["x"], "label": found["y"]}


def test_probabilities_are_those_of_the_logits_whatever_the_loss():
    data, model = LabelledPoints(70), nn.Linear(3, 4)
    p = model(data.x).softmax(-1).double()
    for risk in (ClassificationRisk(), ClassificationRisk(GeneralizedCrossEntropy(0.7))):
        found = predicted(model, risk, data, torch.device("cpu"), batch_size=16)
        torch.testing.assert_close(found.true, p.gather(1, data.y[:, None]), rtol=1e-5, atol=1e-6)
        assert found.hits().mean() == (p.argmax(1) == data.y).double().mean()


def test_another_loss_without_logits_and_labels_is_refused():
    class OtherRisk(PointRisk):
        identity = "gce(q=0.7)"

    with pytest.raises(SteeringError, match=r"a loss of gce\(q=0.7\) is no logarithm"):
        predicted(nn.Linear(3, 4), OtherRisk(), Points(4), torch.device("cpu"))


def test_classes_that_share_the_first_place_share_the_hit():
    p = torch.tensor([[0.2] * 5, [0.4, 0.4, 0.2, 0, 0], [0.4, 0.4, 0.2, 0, 0]], dtype=torch.float64)
    label = torch.tensor([[0], [1], [2]])
    found = Predicted(p.gather(1, label), torch.ones(3, 1, dtype=torch.bool), p)
    np.testing.assert_allclose(found.hits().values, [1 / 5, 1 / 2, 0])


def test_the_mixture_module_mixes_probabilities():
    models = [nn.Linear(3, 4) for _ in range(3)]
    x, w = torch.randn(6, 3), torch.tensor([2.0, 0.0, 1.0])
    found = MixtureOfProbabilities(models, w)(x)
    expected = (2 * models[0](x).softmax(-1) + models[2](x).softmax(-1)) / 3
    torch.testing.assert_close(found.softmax(-1), expected)
    torch.testing.assert_close(found, expected.log())
    assert len(MixtureOfProbabilities(models, w).members) == 2
    one = MixtureOfProbabilities(models[:1])
    torch.testing.assert_close(one(x).softmax(-1), models[0](x).softmax(-1))
    with pytest.raises(ValueError, match="3 numbers ≥ 0, one for each member"):
        MixtureOfProbabilities(models, torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="0 numbers"):
        MixtureOfProbabilities([])


def test_noise_has_the_size_of_each_tensor_and_no_say_in_other_draws():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 100), nn.LayerNorm(100), nn.Linear(100, 1, bias=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    perturb(model, 0.25, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state_dict()
    noise = after["0.weight"] - before["0.weight"]
    assert noise.std().item() == pytest.approx(0.25 * before["0.weight"].std().item(), rel=0.02)
    assert torch.equal(after["2.bias"], before["2.bias"])  # a single number
    assert torch.equal(after["1.weight"], before["1.weight"])  # all ones: no deviation
    again = nn.Sequential(nn.Linear(200, 100), nn.LayerNorm(100), nn.Linear(100, 1, bias=True))
    again.load_state_dict(before)
    perturb(again, 0.25, seed=3)
    assert all(torch.equal(again.state_dict()[name], after[name]) for name in after)
    again.load_state_dict(before)
    perturb(again, 0.25, seed=4)
    assert not torch.equal(again.state_dict()["0.weight"], after["0.weight"])
    again.load_state_dict(before)
    perturb(again, 0.0, seed=4)
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)


def test_the_scale_of_noise_falls_along_a_cosine():
    found = [noise_scale(k, 5, 0.25, 0.05) for k in range(1, 5)]
    assert found[0] == 0.25
    assert found[-1] == pytest.approx(0.05)
    assert found[1] == pytest.approx(0.05 + 0.1 * (1 + math.cos(math.pi / 3)))
    assert noise_scale(1, 2, 0.25, 0.05) == 0.25
    with pytest.raises(ValueError, match=r"1 \.\. 4"):
        noise_scale(5, 5, 0.25, 0.05)


def test_an_average_of_weights_is_the_mean():
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(5)]
    for number, model in enumerate(models):
        model[1].num_batches_tracked.fill_(number)
    mean = WeightAverage()
    for model in models:
        mean.add(model.state_dict())
    found = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    mean.load_into(found)
    expected = torch.stack([model[0].weight for model in models]).mean(0)
    torch.testing.assert_close(found[0].weight, expected)
    assert found[1].num_batches_tracked == 4
    with pytest.raises(SteeringError, match="different architectures"):
        mean.add(nn.Linear(3, 5).state_dict())
    with pytest.raises(SteeringError, match="no model was added"):
        WeightAverage().load_into(found)


def test_statistics_of_batch_normalisation_are_those_of_the_data():
    data = Points(96)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 4))
    model[1].running_mean.fill_(7.0)
    model[1].momentum = 0.3
    batches = [data.batch(rows, 0) for rows in np.arange(96).reshape(3, 32)]
    assert renew_batch_norm(model, PointRisk(), batches)
    hidden = model[0](data.x)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    within = hidden.reshape(3, 32, 4).var(1).mean(0)
    torch.testing.assert_close(model[1].running_var, within)
    assert model[1].momentum == 0.3
    assert not any(module.training for module in model.modules())
    assert not renew_batch_norm(nn.Linear(3, 4), PointRisk(), iter([None]))
