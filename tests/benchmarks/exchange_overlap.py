"""What it saves to exchange the texts' gradient while the image tower goes backward: two processes,
a network of a known rate.

    python tests/benchmarks/exchange_overlap.py                  # over the loopback device
    python tests/benchmarks/exchange_overlap.py --rate 1gbit     # two hosts with a link of that rate; root and iproute2

"at once" waits for the exchange as soon as it is sent, "overlapped" is the code as it is. Both take
the same steps, in turns, in the same two processes of one thread; wall time, medians. Prints a
table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steering import GlobalContrastiveLoss, distributed

ROUNDS, WIDTH, HIDDEN = 25, 512, 1024
HOSTS = [("steering0", "10.77.0.1"), ("steering1", "10.77.0.2")]


class Towers(nn.Module):
    """Image tower first, as open_clip does; each a perceptron on `tokens` positions, whose mean is
    the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
            for _ in range(2)
        )

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [
            F.normalize(tower(x).mean(1), dim=-1)
            for tower, x in ((self.image, image), (self.text, text))
        ]


def worker(rank: int, store: str, size: int, tokens: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = DistributedDataParallel(Towers())
    criterion = GlobalContrastiveLoss(2 * size, gamma=0.8)
    index = torch.arange(rank * size, (rank + 1) * size)
    inputs = [torch.randn(size, tokens, WIDTH) for _ in range(2)]
    waited, fetch, send = [0.0], distributed.Arriving.wait, distributed.send_to_owner

    def timed(arriving: distributed.Arriving) -> torch.Tensor:
        start = time.perf_counter()
        found = fetch(arriving)
        waited[0] += time.perf_counter() - start
        return found

    distributed.Arriving.wait = timed
    found: dict[str, list[list[float]]] = {"at once": [], "overlapped": []}
    for number in range(ROUNDS + 2):
        for name, times in found.items():
            distributed.send_to_owner = (
                send if name == "overlapped" else lambda x: _waited_for(send(x))
            )
            dist.barrier()
            waited[0], start = 0.0, time.perf_counter()
            criterion(*model(*inputs), index).backward()
            dist.barrier()
            if number > 1:
                times.append([time.perf_counter() - start, waited[0]])
    if rank == 0:
        print(
            json.dumps(
                {
                    name: [statistics.median(column) for column in zip(*t, strict=True)]
                    for name, t in found.items()
                }
            )
        )
    distributed.leave()


def _waited_for(arriving: distributed.Arriving) -> distributed.Arriving:
    return distributed.Arriving(arriving.wait(), arriving.sent, None)


@contextmanager
def network(rate: str | None):
    """Words before a command that put it on one of two hosts, and the device it talks through."""
    if rate is None:
        yield [([], "lo")] * 2
        return
    with ExitStack() as stack:
        for host, _ in HOSTS:
            _run("ip", "netns", "add", host)
            stack.callback(_run, "ip", "netns", "del", host)
        _run(
            "ip",
            "link",
            "add",
            "link0",
            "netns",
            HOSTS[0][0],
            "type",
            "veth",
            "peer",
            "link0",
            "netns",
            HOSTS[1][0],
        )
        for host, address in HOSTS:
            _run("ip", "-n", host, "address", "add", f"{address}/24", "dev", "link0")
            _run("ip", "-n", host, "link", "set", "link0", "up")
            limit = ("tbf", "rate", rate, "burst", "256kb", "latency", "100ms")
            _run("ip", "netns", "exec", host, "tc", "qdisc", "add", "dev", "link0", "root", *limit)
        yield [(["ip", "netns", "exec", host], "link0") for host, _ in HOSTS]


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def measure(rate: str | None, size: int, tokens: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder, network(rate) as hosts:
        processes = [
            subprocess.Popen(
                [
                    *words,
                    sys.executable,
                    __file__,
                    "--worker",
                    str(rank),
                    f"{folder}/store",
                    str(size),
                    str(tokens),
                ],
                env=os.environ | {"GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, (words, device) in enumerate(hosts)
        ]
        out = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        return json.loads(out[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", help="of the link between the two hosts, as tc writes it")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 1024], help="pairs of a process"
    )
    parser.add_argument(
        "--tokens", type=int, default=4, help="positions that a tower computes for an example"
    )
    options = parser.parse_args()
    print(
        "| pairs a process | exchange | step, ms | of it waiting for the exchange, ms |\n| --- | --- | --- | --- |"
    )
    for size in options.sizes:
        for name, (step, waiting) in measure(options.rate, size, options.tokens).items():
            print(f"| {size} | {name} | {1e3 * step:.0f} | {1e3 * waiting:.1f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
