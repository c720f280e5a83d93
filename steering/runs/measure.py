"""What a run costs and where it ran."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.risk import Batch, ReferenceRisk
from steering.task import Model


@torch.no_grad()
def forward_flops(
    risk: ReferenceRisk, model: Model, data: IndexedData, device: torch.device
) -> int:
    """Floating point operations of a forward pass on one example; 0 where the data or the
    operations do not allow to count."""
    module = model.module.to(device)
    training = module.training
    module.eval()
    try:
        # Counting must not move the numbers that training draws.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            batch = {key: value.to(device) for key, value in data.batch(np.arange(1), 0).items()}
            return counted_flops(risk, module, batch)
    except SteeringError:
        return 0
    finally:
        module.train(training)


def counted_flops(risk: ReferenceRisk, module: nn.Module, batch: Batch) -> int:
    """Floating point operations of a forward pass on a batch, on any device, also "meta"; 0 where
    the operations do not allow to count."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    # Torch does not count the products of fused attention on every device, nor those of the fast path
    # that layers take in eval mode: written out they are the same everywhere.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            risk.outputs(module, batch)
        return int(counter.get_total_flops())
    except (RuntimeError, ValueError, NotImplementedError):
        return 0
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def training_passes(samples: int, scored: int, accumulation: int) -> int:
    """Forward passes of the target that a training is worth: a backward pass counts as two, and
    micro-batches run forward twice."""
    return (3 if accumulation == 1 else 4) * samples + scored


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and threads: what may explain a difference in the last digits."""
    try:
        own = version("model-steering")
    except PackageNotFoundError:
        own = "unknown"
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "steering": own,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
        "system": platform.system(),
    }


@cache
def _commit() -> str:
    """The commit of a checkout that this code is run from, with a + for changes that no commit has;
    "" elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=10", "--exclude=*"]
    try:
        told = subprocess.run([*words, "--dirty=+"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


def parameters(model: Model) -> int:
    """Numbers that the network holds, trained or not."""
    return sum(parameter.numel() for parameter in model.module.parameters())


def peak_bytes(device: torch.device) -> int:
    """Largest memory so far: of the GPU if one is used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else 1024 * peak
