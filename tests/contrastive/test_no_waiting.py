"""No step of the contrastive risk asks a GPU for a number: checked without one, on tensors that
have a device but no values.

Any operation whose outcome depends on values (a branch, `.item()`, a boolean index) raises there,
and so does a tensor that was left on the CPU. tests/gpu/test_gpu.py asks a real GPU the same.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from steering import GlobalContrastiveLoss
from steering.contrastive import Pairs
from steering.contrastive.global_risk import GlobalRisk
from steering.contrastive.risk import anchor_risks

B, D = 200, 16


class NoCopies(TorchDispatchMode):
    """A number or a tensor that goes from the CPU to a GPU is waited for; the fake one would let it
    pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            assert source.device == out.device, f"{func}: {source.device} to {out.device}"
        return out


KINDS = [
    {},
    {"radius": 0.3},
    {"radius": 0.3, "individual_tau": True},
    {"estimator": "mirror_descent"},
    {"estimator": "batch"},
    {"strength": "auto"},
]


def features() -> list[torch.Tensor]:
    return [F.normalize(torch.randn(B, D), dim=-1) for _ in range(4)]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_forward(options, guided):
    with FakeTensorMode(), torch.device("cuda"):
        risk = stochastic(2 * B, tau=0.1, gamma=0.5, **options)
        image, text, *guide = features()
        pairs = Pairs(image, text, torch.arange(B), *(guide if guided else ()))
        with NoCopies():
            risks, metrics = anchor_risks(risk, pairs)
        assert risks.device.type == "cuda"
        assert {x.device.type for x in metrics.values()} == {"cuda"}


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("individual", [True, False])
def test_backward(individual, budget, monkeypatch):
    # The engine wants a real device: the two halves of the function are called by hand.
    made = []

    def apply(image, text, *others):
        ctx = SimpleNamespace(
            mark_non_differentiable=lambda *_: None, needs_input_grad=(True, True)
        )
        ctx.save_for_backward = lambda *x: setattr(ctx, "saved_tensors", x)
        made.append(ctx)
        return GlobalRisk.forward(ctx, image, text, *others)

    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        risk = stochastic(2 * B, tau=0.1, gamma=0.5, radius=0.3, individual_tau=individual)
        image, text, *guide = features()
        monkeypatch.setattr(GlobalRisk, "apply", apply)
        anchor_risks(risk, Pairs(image, text, torch.arange(B), *guide), budget)
        with NoCopies():
            gradients = GlobalRisk.backward(made[0], torch.full((2, B), 1 / (2 * B)))
        assert [g.shape for g in gradients[:2]] == [image.shape, text.shape]


def test_the_function_of_the_package_with_its_checks():
    with FakeTensorMode(), torch.device("cuda"):
        criterion = GlobalContrastiveLoss(B, radius=0.3, gamma=0.5)
        image, text, *guide = features()
        assert criterion(image, text, torch.arange(B), *guide).device.type == "cuda"


def test_what_does_wait_is_caught():
    # The exact step of chi-square asks how many rounds it still needs.
    with FakeTensorMode(), torch.device("cuda"):
        risk = stochastic(2 * B, tau=0.1, divergence="chi2", estimator="batch")
        pairs = Pairs(*features()[:2], torch.arange(B))
        with pytest.raises(DataDependentOutputException):
            anchor_risks(risk, pairs)
