"""Two processes under other people's trainers."""

import multiprocessing
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import steering
import steering.distributed

pl = pytest.importorskip(
    "lightning.pytorch",
    reason="Lightning is not installed: pip install 'model-steering[lightning]'",
)

from lightning_toys import QUIET, Module  # noqa: E402

from steering.integrations.lightning import SteeringCallback  # noqa: E402

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

from hf_toys import (  # noqa: E402
    Items,
    Linear,
    Ragged,
    Scaled,
    another,
    arguments,
    cheap_collections,  # noqa: F401
    gpt,
    mean,
    padded,
    run,
)
from transformers import default_data_collator  # noqa: E402

from steering.integrations.hugging_face import (  # noqa: E402
    SteeringTrainer,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


FIRST = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "save_strategy": "no"}
CASES = {
    # A steer that sees the items of all ranks, under rows of unlike lengths.
    "drrho, tokens": lambda: {
        "steer": steering.DRRho(8, tau=0.3, gamma=0.7),
        "unit": "token",
        "ref_model": another(),
    },
    "drrho, examples": lambda: {
        "steer": steering.DRRho(8, tau=0.3, gamma=0.7),
        "reference_losses": torch.linspace(0, 3, 8),
    },
    "rho1, tokens": lambda: {"steer": "rho1", "unit": "token", "ref_model": another()},
    # One that sees this rank's alone: the ranks' means count by their tokens.
    "mean, tokens": lambda: {"steer": mean, "unit": "token"},
}


def stepped(case, folder, size, parts, backend=None):
    """The trainer of a case after two steps, of 4 examples each and then all over again."""
    model = gpt()

    class InOrder(SteeringTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    made = InOrder(
        model,
        arguments(folder, **FIRST, **changes, ddp_backend=backend),
        train_dataset=Ragged(),
        data_collator=padded(),
        **CASES[case](),
    )
    run(made)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    return weights, logged


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder of what two processes have found."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["steering.integrations.hugging_face", "steering.integrations.lightning", "pytest"]
    )
    port = free_port()
    ranks = [context.Process(target=as_rank, args=(rank, str(folder), port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
    assert [process.exitcode for process in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains_on_both_batches(tmp_path, two_ranks, case, parts):
    """The same weights and the same log, with whole batches and with two micro-batches a step."""
    start = torch.cat([p.detach().flatten() for p in gpt().parameters()])
    weights, logged = stepped(case, tmp_path, 4 // parts, parts)
    assert (weights - start).abs().max() > 1e-3
    for rank in range(2):
        found = torch.load(two_ranks / f"{case}-{parts}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["weights"], weights, rtol=1e-4, atol=1e-6)
        for mine, theirs in zip(logged, found["logged"], strict=True):
            told = {name for name in mine if name.startswith("steer/")}
            assert told >= {"steer/target_loss"}
            for name in told:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


def test_two_processes_average_the_gradients_of_the_steer(two_ranks):
    """Each rank has another share of the data; both end at one scale, that of one process with the
    whole batch."""
    steer = Scaled()
    index = torch.arange(8)
    x, y = Items().x[index], Items().y[index]
    model = Linear()
    halves = [
        (steer(F.cross_entropy(model.layer(x[h]), y[h], reduction="none"), None, None))
        for h in index.split(4)
    ]
    slope = torch.autograd.grad((halves[0] + halves[1]) / 2, steer.scale)[0].item()
    for name in ("hf", "lightning"):
        scales = [
            torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)
        ]
        assert scales[0] == scales[1] == pytest.approx(1 - 0.1 * slope, rel=1e-5), name
    assert (two_ranks / "checkpoint-1/steering.pt").is_file()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_rank(rank, folder, port):
    """One step on examples 0 .. 3 or 4 .. 7, in both trainers; rank 1 starts with another scale,
    which must not matter."""
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    steer = Scaled(start=1.0 if rank == 0 else 3.0)

    class Sharded(SteeringTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    made = Sharded(
        Linear(),
        arguments(folder, max_steps=1, ddp_backend="gloo", save_strategy="steps", save_steps=1),
        train_dataset=Subset(Items(), range(8)),
        data_collator=default_data_collator,
        steer=steer,
    )
    made.train()
    torch.save(steer.scale.item(), f"{folder}/hf-{rank}.pt")
    steer = Scaled(start=1.0 if rank == 0 else 3.0)
    items = Items()
    data = TensorDataset(items.x[:8], items.y[:8], torch.arange(8))
    loader = DataLoader(data, batch_size=4, sampler=range(4 * rank, 4 * rank + 4))
    options = QUIET | {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    pl.Trainer(max_epochs=1, callbacks=[SteeringCallback(steer)], **options).fit(
        Module(steer, both=True), loader
    )
    torch.save(steer.scale.item(), f"{folder}/lightning-{rank}.pt")
    for case in CASES:
        for parts in (1, 2):
            weights, logged = stepped(case, folder, 2 // parts, parts, "gloo")
            found = {"weights": weights, "logged": logged}
            torch.save(found, f"{folder}/{case}-{parts}-{rank}.pt")
    steering.distributed.leave()
