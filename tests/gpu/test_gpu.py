"""Checks that need a GPU; skipped without one."""

import pytest
import torch

from steering import GlobalContrastiveLoss
from steering.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]


def _loss_and_gradient(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(64, 32, generator=generator, dtype=dtype).to(device) for _ in range(4)]
    image, text, guide_image, guide_text = (torch.nn.functional.normalize(x, dim=-1) for x in features)
    image.requires_grad_()
    criterion = GlobalContrastiveLoss(64, tau=0.07, gamma=0.5).double().to(device)
    for _ in range(2):  # the second visit reads the running estimate
        loss = criterion(image, text, torch.arange(64, device=device), guide_image, guide_text)
    loss.backward()
    return loss.item(), image.grad.cpu()


def test_contrastive_loss_is_the_same_on_the_gpu():
    (loss, gradient), (expected, expected_gradient) = _loss_and_gradient("cuda"), _loss_and_gradient("cpu")
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


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
