"""Losses for weak labels against loops and closed forms (METHODS 5, acceptance fact 1)."""

import math

import pytest
import torch
import torch.nn.functional as F

from steering.training.heads import Head, Scale, fit_head
from steering.weak_labels import (
    adaptive_confidence_loss,
    balanced_answers,
    confidence_loss,
    generalized_cross_entropy,
    soft_cross_entropy,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (7,), generator=generator)


@pytest.mark.parametrize("q", [1e-9, 0.3, 0.7, 1.0])
def test_generalized_cross_entropy_against_its_formula(batch, q):
    logits, labels = batch
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    expected = torch.tensor([(1 - one.item() ** q) / q for one in p], dtype=torch.float64)
    found = generalized_cross_entropy(logits, labels, q)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found >= 0).all()
    assert (found <= 1 / q).all()


def test_its_limits(batch):
    logits, labels = batch
    entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(
        generalized_cross_entropy(logits, labels, 0.0), entropy, rtol=0, atol=0
    )
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1e-8), entropy)
    one_hot = F.one_hot(labels, 4).double()
    half_l1 = 0.5 * (logits.softmax(-1) - one_hot).abs().sum(-1)
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1.0), half_l1)


@pytest.mark.parametrize("q", [0.2, 0.7, 1.0])
def test_its_gradient_is_that_of_cross_entropy_times_p_to_the_q(batch, q):
    logits, labels = batch
    p = logits.softmax(-1).gather(1, labels[:, None])

    def gradient(loss):
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf).sum(), leaf)[0]

    found = gradient(lambda x: generalized_cross_entropy(x, labels, q))
    plain = gradient(lambda x: F.cross_entropy(x, labels, reduction="none"))
    torch.testing.assert_close(found, p**q * plain)


@pytest.mark.parametrize("q", [-0.1, 1.1])
def test_an_order_out_of_range(batch, q):
    with pytest.raises(ValueError, match="q must lie in"):
        generalized_cross_entropy(*batch, q)


def test_confidence_loss_by_hand():
    """Two classes: the answer is hardened at the quantile of p that leaves the weak share above."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
    weak = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    # The weak labels give class 0 a share of 0.4: of four items the threshold leaves two above.
    assert balanced_answers(logits, weak).tolist() == [0, 0, 1, 1]
    c = 0.5 * 0.05 / 0.1
    target = (1 - c) * weak + c * F.one_hot(torch.tensor([0, 0, 1, 1]), 2)
    expected = -(target * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(confidence_loss(logits, weak, 0.05), expected)
    torch.testing.assert_close(
        confidence_loss(logits, weak, 0.1), confidence_loss(logits, weak, 1.0)
    )  # the ramp ends at a tenth, without a jump
    torch.testing.assert_close(confidence_loss(logits, weak, 0.0), soft_cross_entropy(logits, weak))


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_confidence_loss_of_other_precisions(dtypes):
    generator = torch.Generator().manual_seed(0)
    logits, weak = torch.randn(2, 8, 3, generator=generator)
    logits, weak = (
        one.to(getattr(torch, name))
        for one, name in zip((logits, weak.softmax(-1)), dtypes, strict=True)
    )
    wide = confidence_loss(logits.double(), weak.double(), 0.5)
    found = confidence_loss(logits, weak, 0.5).double()
    torch.testing.assert_close(found, wide, rtol=0.03, atol=0.03)


def test_adaptive_confidence_loss_against_a_loop(batch):
    logits, _ = batch
    weak = torch.randn(7, 4, dtype=torch.float64).softmax(-1)
    found = adaptive_confidence_loss(logits, weak, 0.5, temperature=2.0)
    for row, target, value in zip(logits, weak, found, strict=True):
        log_p = row - row.logsumexp(0)
        own, teacher = -log_p.max(), -(target * log_p).sum()
        e_own, e_teacher = math.exp(own / 2), math.exp(teacher / 2)
        a = e_own / (e_own + e_teacher)
        torch.testing.assert_close(value, (1 - a) * teacher + a * own)
    torch.testing.assert_close(
        adaptive_confidence_loss(logits, weak, 0.0), soft_cross_entropy(logits, weak)
    )


def test_a_head_is_the_minimum():
    """The gradient of a strongly convex problem is zero there, and nowhere else."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    labels = (x[:, 0] + 0.5 * torch.randn(200, generator=generator, dtype=torch.float64) > 0).long()
    x = Scale.of(x)(x)

    def loss(logits, progress):  # noqa: ARG001
        return F.cross_entropy(logits, labels, reduction="none")

    head = fit_head(x, loss, 2, decay=0.01)
    weight, bias = head.weight.requires_grad_(), head.bias.requires_grad_()
    value = loss(Head(weight, bias)(x), 1.0).mean() + 0.005 * weight.square().sum()
    for gradient in torch.autograd.grad(value, [weight, bias]):
        assert gradient.abs().max() < 1e-6
    again = fit_head(
        x, loss, 2, decay=0.01, start=Head(torch.ones(5, 2).double(), torch.ones(2).double())
    )
    torch.testing.assert_close(again.weight, head.weight, rtol=0, atol=1e-4)
