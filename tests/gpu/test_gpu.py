"""Checks that need a GPU; skipped without one."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from adversaries import stochastic

from steering import GlobalContrastiveLoss, worst_case
from steering.cli import main
from steering.contrastive import Pairs
from steering.contrastive.risk import anchor_risks
from steering.items import Units

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@contextmanager
def waiting_is_an_error():
    """In this block a call that waits for the device raises."""
    with warnings.catch_warnings():
        # torch says of this mode that it is a prototype: once, and our warnings are errors.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _loss_and_gradient(device, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(64, 32, generator=generator, dtype=dtype).to(device) for _ in range(4)]
    image, text, guide_image, guide_text = (
        torch.nn.functional.normalize(x, dim=-1) for x in features
    )
    image.requires_grad_()
    text.requires_grad_()
    criterion = GlobalContrastiveLoss(64, tau=0.07, gamma=0.5, **options).double().to(device)
    for _ in range(2):  # the second visit reads the running estimate
        loss = criterion(image, text, torch.arange(64, device=device), guide_image, guide_text)
    loss.backward()
    slopes = [p.grad.cpu() for p in criterion.parameters() if p.grad is not None]
    estimates = [x.cpu().double() for x in criterion.state_dict().values()]
    return loss.item(), [image.grad.cpu(), text.grad.cpu(), *slopes, *estimates]


@pytest.mark.parametrize(
    "options",
    [{}, {"radius": 0.5}, {"radius": 0.5, "individual_tau": True}, {"strength": "auto"}],
    ids=str,
)
def test_contrastive_loss_is_the_same_on_the_gpu(options):
    (loss, found), (expected, numbers) = (
        _loss_and_gradient(device, **options) for device in ("cuda", "cpu")
    )
    assert loss == pytest.approx(expected, rel=1e-12)
    assert len(found) == len(numbers)
    for x, y in zip(found, numbers, strict=True):  # gradients, slopes of log τ, running estimates
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_runs_on_the_gpu(precision, tmp_path):
    arguments = [
        "configs/clip/glyphs.yaml",
        "smoke=true",
        "device=cuda",
        f"train.precision={precision}",
        f"output={tmp_path}",
    ]
    assert main(["train", *arguments]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("divergence", "options"),
    [
        ("kl", {"penalty": 0.5}),
        ("kl", {"radius": 0.3}),
        ("chi2", {"penalty": 0.5}),
        ("chi2", {"radius": 0.3}),
        ("cvar", {"level": 0.3}),
        ("cressie-read", {"order": 1.5, "radius": 0.3}),
        ("tv", {"radius": 0.3}),
    ],
)
def test_the_exact_solver_is_the_same_on_the_gpu(divergence, options, dtype):
    losses = torch.randn(37, 501, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.rand(37, 501, generator=torch.Generator().manual_seed(1)) < 0.8
    for kept in (None, mask):
        expected = worst_case(losses, divergence, mask=kept, **options)
        found = worst_case(
            losses.cuda(), divergence, mask=None if kept is None else kept.cuda(), **options
        )
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            found.value.cpu(), expected.value, rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(
            found.weights.cpu(), expected.weights, rtol=1e3 * tolerance, atol=tolerance
        )
        assert found.gap.abs().max() < 100 * tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "moving_average", "strength": "auto"},
        {"estimator": "mirror_descent"},
        {"estimator": "batch"},
    ],
)
def test_a_step_of_a_kl_risk_does_not_wait_for_the_gpu(options):
    risk = stochastic(100, tau=0.5, **options).cuda()
    target, reference = (torch.randn(4, 64, device="cuda") for _ in range(2))
    units = Units(target.requires_grad_(), reference, torch.arange(4, device="cuda"))
    risk(units).loss.backward()
    with waiting_is_an_error():
        risk(units).loss.backward()


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize(
    "options", [{}, {"radius": 0.3}, {"radius": 0.3, "individual_tau": True}], ids=str
)
def test_a_step_of_the_contrastive_risk_does_not_wait_for_the_gpu(options, budget):
    # tests/contrastive/test_no_waiting.py asks the same without a GPU.
    risk = stochastic(256, tau=0.1, gamma=0.5, **options).cuda()
    features = [
        torch.nn.functional.normalize(torch.randn(128, 32, device="cuda"), dim=-1) for _ in range(4)
    ]
    pairs = Pairs(
        *(x.requires_grad_() for x in features[:2]), torch.arange(128, device="cuda"), *features[2:]
    )
    anchor_risks(risk, pairs, budget)[0].mean().backward()
    with waiting_is_an_error():
        anchor_risks(risk, pairs, budget)[0].mean().backward()
