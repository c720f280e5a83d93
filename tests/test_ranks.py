"""Fact 11: K ranks with a share of the batch each descend the gradient of one process with the
whole batch.

Twice over: K threads that play the ranks of one process (the gathers share one graph), and K real
gloo processes.
"""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adversaries import flat, nested
from torch import Tensor, nn

import steering
from steering import distributed, losses
from steering.contrastive import Pairs
from steering.dro.online.groups import GroupWeights, group_means
from steering.items import Units
from steering.methods import build_method
from steering.methods.drrho import DroOptions, DrrhoOptions
from steering.methods.erm import ErmOptions

B, ALL, STEPS = 8, 12, 2
INDEX = [
    torch.tensor([7, 2, 0, 11, 3, 5, 1, 10]),
    torch.tensor([0, 11, 9, 2, 5, 6, 7, 8]),
]  # five pairs come back

# ---- the cases: a module, and its loss of one rank's share of a batch
# -------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Rows `part` of a global batch; `leaf` is what a model would have computed on the whole of
    it."""

    leaf: nn.ParameterDict
    part: slice
    step: int

    def target(self, name: str) -> Tensor:
        return self.leaf[f"{name}{self.step}"][self.part]

    def constant(self, seed: int, *shape: int) -> Tensor:
        return random(B, *shape, seed=seed + self.step)[self.part]

    @property
    def index(self) -> Tensor:
        return INDEX[self.step][self.part]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves() -> nn.ParameterDict:
    """Features and losses of every step, for the whole batch."""
    made = nn.ParameterDict()
    for step in range(STEPS):
        made[f"image{step}"] = F.normalize(random(B, 4, seed=10 + step), dim=-1)
        made[f"text{step}"] = F.normalize(random(B, 4, seed=20 + step), dim=-1)
        made[f"losses{step}"] = random(B, seed=30 + step)
        made[f"grid{step}"] = random(B, 3, seed=40 + step)
    return made


def pairs(module: nn.Module, share: Share) -> Tensor:
    guide = (F.normalize(share.constant(seed, 6), dim=-1) for seed in (50, 60))
    scale = torch.full(share.index.shape, 20.0)
    return module(
        Pairs(share.target("image"), share.target("text"), share.index, *guide, scale)
    ).loss


def contrastive(module: nn.Module, share: Share) -> Tensor:
    guide = (F.normalize(share.constant(seed, 6), dim=-1) for seed in (50, 60))
    return module(share.target("image"), share.target("text"), share.index, *guide)


def examples(module: nn.Module, share: Share) -> Tensor:
    return module(share.target("losses"), share.constant(70), share.index)


def masked(module: nn.Module, share: Share) -> Tensor:
    """A mask that keeps more items on some ranks than on others."""
    mask = torch.linspace(-2, 1, B)[share.part] < share.constant(90)
    return module(share.target("losses"), share.constant(70), mask=mask)


def domains(module: nn.Module, share: Share) -> Tensor:
    """Three groups, the last of which the second half of the batch lacks."""
    groups = torch.tensor([2, 0, 1, 2, 1, 0, 0, 1])[share.part]
    mask = torch.linspace(-2, 1, B)[share.part] < share.constant(90)
    return module(share.target("losses"), share.constant(70), groups, mask)


def distilled(module: nn.Module, share: Share) -> Tensor:
    mask = torch.linspace(-2, 1, B)[share.part] < share.constant(90)
    logits = share.target("grid"), share.constant(80, 3)
    return module(share.target("losses"), *logits, mask)


def grid(module: nn.Module, share: Share) -> Tensor:
    """Three rows over the batch, and a mask that keeps more items on some ranks than on others.

    Some tensors are transposed views, some are not: collectives deal with memory.
    """
    mask = (torch.linspace(-2, 1, B)[share.part] < share.constant(90, 3).T).contiguous()
    reference = share.constant(80, 3).T.contiguous()
    return module(Units(share.target("grid").T, reference, torch.arange(3), mask)).loss


def grouped(module: nn.Module, share: Share) -> Tensor:
    """Three groups, the last of which the second half of the batch lacks."""
    groups = torch.tensor([2, 0, 1, 2, 1, 0, 0, 1])[share.part]
    return module(*group_means(share.target("losses"), groups, 3))


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module, Share], Tensor]]
CASES: dict[str, Case] = {
    "InfoNCE": (lambda: build_method("erm", ErmOptions(tau=0.3), ALL, unit="pair"), pairs),
    "global risk": (
        lambda: build_method("dro", DroOptions(**flat(tau=0.4, gamma=0.3)), ALL),
        pairs,
    ),
    "global risk with a reference": (
        lambda: build_method(
            "drrho", DrrhoOptions(**flat(tau=0.4, gamma=0.3, radius=0.2, strength=0.7)), ALL
        ),
        pairs,
    ),
    "DRRho on examples": (lambda: steering.DRRho(ALL, tau=0.6, gamma=0.3, radius=0.2), examples),
    "DRRho on a masked grid": (
        lambda: build_method("drrho", DrrhoOptions(**flat(tau=0.6, gamma=0.3, radius=0.2)), ALL),
        grid,
    ),
    "temperatures of their own": (
        lambda: build_method(
            "drrho", DrrhoOptions(**flat(tau=0.4, gamma=0.3, radius=0.2, individual_tau=True)), ALL
        ),
        pairs,
    ),
    "temperatures of their own on a masked grid": (
        lambda: build_method(
            "dro", DroOptions(**flat(tau=0.4, gamma=0.3, radius=0.2, individual_tau=True)), ALL
        ),
        grid,
    ),
    "temperatures of their own, nested": (
        lambda: build_method(
            "nested", nested(inner=flat(tau=0.4, radius=0.2, individual_tau=True, gamma=0.5)), ALL
        ),
        pairs,
    ),
    "temperatures of their own, distilled": (
        lambda: build_method(
            "drrho",
            DrrhoOptions(**flat(tau=0.4, radius=0.2, individual_tau=True, distill=0.5)),
            ALL,
        ),
        pairs,
    ),
    "SCENT over pairs": (
        lambda: build_method(
            "drrho", DrrhoOptions(**flat(tau=0.4, estimator="mirror_descent", log_alpha=-0.5)), ALL
        ),
        pairs,
    ),
    "half chi-square over pairs": (
        lambda: build_method("drrho", DrrhoOptions(**flat(tau=0.4, divergence="chi2")), ALL),
        pairs,
    ),
    "CVaR on examples": (
        lambda: steering.DRRho(ALL, divergence="cvar", level=0.4, step=0.3),
        examples,
    ),
    "strength auto over pairs": (
        lambda: build_method("drrho", DrrhoOptions(**flat(tau=0.4, strength="auto")), ALL),
        pairs,
    ),
    "strength auto on a masked grid": (
        lambda: build_method(
            "drrho", DrrhoOptions(**flat(tau=0.6, strength="auto", gamma=0.3)), ALL
        ),
        grid,
    ),
    "nested over pairs": (
        lambda: build_method(
            "nested",
            nested(inner={"tau": 0.4}, outer=flat(tau=0.3, radius=0.1, gamma=0.5, prior=2.0)),
            ALL,
        ),
        pairs,
    ),
    "nested on a masked grid": (
        lambda: build_method("nested", nested(inner={"tau": 0.6}, outer={"strength": "auto"}), ALL),
        grid,
    ),
    "a temperature that moves by itself": (
        lambda: steering.GlobalContrastiveLoss(ALL, tau=0.4, gamma=0.3, radius=0.2, strength=0.7),
        contrastive,
    ),
    "DRRho with a prior": (lambda: steering.DRRho(tau=0.6, gamma=0.3, prior=2.0), masked),
    "soft filter": (lambda: losses.SoftFilter(prior=2.0), masked),
    "Rho-1": (lambda: losses.Rho1(share=0.5), masked),
    "group DRO": (lambda: losses.GroupDRO(3, step=0.5, strength=0.5), domains),
    "DoReMi": (lambda: losses.DoReMi(3), domains),
    "distillation": (losses.Distillation, distilled),
    "nested, the module": (
        lambda: losses.NestedContrastiveLoss(ALL, tau=0.4, outer_tau=0.3, outer_gamma=0.5),
        contrastive,
    ),
    "groups": (lambda: GroupWeights(3, step=0.5, smoothing=0.01), grouped),
    "ERM on a masked grid": (lambda: build_method("erm", ErmOptions(), ALL), grid),
}


def total_loss(
    case: Case, leaf: nn.ParameterDict, rank: int, count: int
) -> tuple[Tensor, nn.Module]:
    """Loss of one rank over all steps (the second reads the history of the first), and its module
    afterwards."""
    make, loss_of = case
    module, b = make().double(), B // count
    loss = sum(
        loss_of(module, Share(leaf, slice(rank * b, (rank + 1) * b), step)) for step in range(STEPS)
    )
    assert isinstance(loss, Tensor)
    return loss, module


@dataclass(frozen=True)
class Outcome:
    loss: float
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def single(case: Case) -> Outcome:
    leaf = leaves()
    loss, module = total_loss(case, leaf, 0, 1)
    loss.backward()
    return outcome(loss, leaf, module)


def outcome(loss: Tensor, leaf: nn.ParameterDict, module: nn.Module) -> Outcome:
    named = itertools.chain(leaf.named_parameters(), module.named_parameters())
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None and p.grad.any()}
    return Outcome(
        loss.item(), gradients, {name: value.clone() for name, value in module.state_dict().items()}
    )


def same(found: Outcome, expected: Outcome) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.gradients.keys() == expected.gradients.keys()
    assert len(found.gradients) >= STEPS
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-10, atol=1e-12)
    same_state(found.state, expected.state, rtol=1e-12)


def part_of(state: dict[str, Tensor], extent: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of one process as a rank would hold it: the rows of these extents alone, zero bits
    where never visited."""
    found = dict(state)
    for key in [key for key in extent if key.endswith(".duals.extent")]:
        name, (first, stop, rows) = key.removesuffix(".duals.extent"), extent[key].tolist()
        if key in found:  # one process keeps it the same way
            found[key], found[f"{name}.duals.part"] = (
                extent[key],
                found[f"{name}.duals.part"][first:stop],
            )
            continue
        (kept,) = {f"{name}.log_u", f"{name}.nu"} & found.keys()
        values, visited = found.pop(kept), found.pop(f"{name}.visited")
        assert len(values) == rows
        found[key], found[f"{name}.duals.part"] = (
            extent[key],
            values.where(visited, 0.0)[first:stop],
        )
    return found


def same_state(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 0) -> None:
    extents = [extent.tolist() for key, extent in expected.items() if key.endswith(".duals.extent")]
    if any(
        stop - first < rows for first, stop, rows in extents
    ):  # of another rank: its part is compared with one process
        found, expected = (
            {key: x for key, x in state.items() if ".duals." not in key}
            for state in (found, expected)
        )
    else:
        expected = part_of(expected, found)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol)


# ---- ranks as threads
# -------------------------------------------------------------------------------------------------


class Threads:
    """Collectives among threads: everybody lays a tensor on the table, everybody takes all of
    them."""

    def __init__(self, count: int) -> None:
        self.count, self.local, self.table = count, threading.local(), [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def exchange(self, x: Tensor) -> list[Tensor]:
        self.table[self.local.rank] = x
        self.barrier.wait()
        everything = list(self.table)
        self.barrier.wait()
        return everything

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distributed, "active", lambda: self.count > 1)
        monkeypatch.setattr(distributed, "rank", lambda: self.local.rank)
        monkeypatch.setattr(distributed, "world_size", lambda: self.count)
        monkeypatch.setattr(distributed, "gather", lambda x: torch.cat(self.exchange(x)))
        monkeypatch.setattr(
            distributed, "mean", lambda x: torch.stack(self.exchange(x.detach())).mean(0)
        )

    def run(self, job: Callable[[int], tuple[Tensor, nn.Module]]) -> list[tuple[Tensor, nn.Module]]:
        def as_rank(rank: int) -> tuple[Tensor, nn.Module]:
            self.local.rank = rank
            try:
                return job(rank)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(as_rank, range(self.count)))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "name", [name for name, (_, loss_of) in CASES.items() if loss_of not in (pairs, contrastive)]
)
def test_threads_descend_the_gradient_of_one_process(name, count, monkeypatch):
    # Risks of pairs exchange in their backward pass too, which threads with one graph cannot play:
    # see the processes below.
    expected = single(CASES[name])
    ranks, leaf = Threads(count), leaves()
    ranks.install(monkeypatch)
    results = ranks.run(lambda rank: total_loss(CASES[name], leaf, rank, count))
    loss = torch.stack([loss for loss, _ in results]).mean()
    loss.backward()  # one graph: gives the leaves the average over the ranks
    for _, module in results[1:]:
        for p, q in zip(results[0][1].parameters(), module.parameters(), strict=True):
            if p.grad is not None:
                p.grad += q.grad
    same(outcome(loss, leaf, results[0][1]), expected)
    for _, module in results[1:]:
        same_state(module.state_dict(), results[0][1].state_dict())


# ---- ranks as processes
# -----------------------------------------------------------------------------------------------


def process(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=count
    )
    found = {}
    for name, case in CASES.items():
        leaf = leaves()
        loss, module = total_loss(case, leaf, rank, count)
        loss.backward()
        distributed.average_gradients(leaf)  # what DDP does
        distributed.average_gradients(module)
        found[name] = outcome(distributed.mean(loss), leaf, module)
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.leave()


@pytest.mark.parametrize("count", [2, 4, 8])  # of eight each has a single example
def test_processes_descend_the_gradient_of_one_process(count, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["steering.losses", "steering.methods", "pytest"])
    workers = [
        context.Process(target=process, args=(rank, count, tmp_path)) for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=90)
    assert [worker.exitcode for worker in workers] == [0] * count
    with torch.serialization.safe_globals([Outcome]):
        found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    for name, case in CASES.items():
        same(found[0][name], single(case))
        for other in found[1:]:
            same_state(other[name].state, found[0][name].state)  # to the bit
            same_state(other[name].state, single(case).state, rtol=1e-12)
