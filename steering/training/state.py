"""A run under way: what it is made of, and what a checkpoint holds of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from steering import distributed
from steering.dro.online.row_table import merged, split_state
from steering.methods.registry import Method
from steering.training.checkpoint import (
    load_newest,
    load_parts,
    require_same_run,
    save_checkpoint,
    save_part,
)
from steering.training.clock import Clock
from steering.training.job import Job
from steering.training.log import RunLog
from steering.training.observers.observer import Observer
from steering.training.plan import Plan, require_even_parts
from steering.training.recipes import carry_over
from steering.training.selection import Selection, examples_drawn, who_asks
from steering.training.step import (
    Gradient,
    all_random_states,
    autocast_to,
    set_random_state,
)
from steering.training.tryout import first_part, freeze_unused, in_plain_words
from steering.training.wraps import load_whole_state, whole_state, wrapped

_LOG = logging.getLogger("steering")


def take_memory(method: Method, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Give a method what a checkpoint holds of another one's memory.

    Each rank takes its rows of the whole, however many ranks have written them.

    Args:
        folder, step, state: of the checkpoint, as `load_newest` found it.
    """
    parts = load_parts(folder, step, state.get("parts", 0))
    method.load_state_dict(state["method"] | (merged(parts, method) if parts else {}))


class State:
    """Models, optimiser and counters of a run.

    Attributes:
        drawn, batch_size: examples that a step draws and that it trains on, over all ranks.
        module: the target as it was given; `gradient` has it wrapped.
        selection: None where every drawn example is trained on.
        observers: look on, and have their part in a checkpoint.
        log: on rank 0, once the run has begun.
        broken: counts steps whose loss or gradient was not finite, on the device.
    """

    def __init__(self, job: Job, observers: Sequence[Observer] = ()) -> None:
        # First what the config alone can tell, before anything is moved to a device.
        require_even_parts(job.train)
        self.job, self.observers = job, observers
        self.batch_size = job.train.batch_size
        self.drawn = examples_drawn(job.train, job.method.selector, len(job.data))
        # Counted in what is trained on: a selector draws more in as many steps.
        steps = job.train.samples // self.batch_size
        # The order is that of what is drawn: without a selector it is what is trained on.
        self.plan = Plan(len(job.data), self.drawn, steps * self.drawn, job.seed)
        # Moved before the optimiser is made, whose groups hold these very tensors.
        self.module = job.target.module.to(job.device).train()
        self.method = job.method.to(job.device).train()
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=job.train.precision == "fp16")
        # A partial of plain values: a bound method would keep the run alive.
        autocast = partial(autocast_to, job.train.precision, job.device.type)
        # Before the module is wrapped: DDP wants a gradient for every parameter that it knows. The
        # optimiser comes first and passes over what gets none.
        self.optimizer = job.optimizer.build(self.module, self.method)
        if job.carried is not None:
            carry_over(self.optimizer, job.carried)
        self._freeze_unused(autocast)
        self.selection, self.gradient = self._steps(autocast)
        self.clock = Clock()
        self.log: RunLog | None = None
        self.evaluation_seconds, self.skipped, self.epoch = 0.0, 0, -1
        self.broken = torch.zeros((), device=job.device)
        # The last: they may look at all of it.
        for observer in observers:
            observer.begin(self)

    def _freeze_unused(self, autocast: partial[AbstractContextManager]) -> None:
        job = self.job
        if distributed.active():
            batch = first_part(job.data, self.plan, job.train, job.device)
            with in_plain_words(job.train):
                freeze_unused(self.module, job.task.risk, batch, autocast)

    def _steps(
        self, autocast: partial[AbstractContextManager]
    ) -> tuple[Selection | None, Gradient]:
        """What turns a drawn batch into one to train on, and that into gradients."""
        job, parts, risk = self.job, self.job.train.accumulation, self.job.task.risk
        # Drawing no more than the batch leaves a selector nothing to choose from.
        selector = self.method.selector if self.drawn > self.batch_size else None
        asked, reference = who_asks(job.reference, selector)
        selection = None
        if selector is not None:
            count = self.batch_size // distributed.world_size()
            selection = Selection(self.module, selector, risk, asked, count, parts, autocast)
        module, scale = wrapped(self.module, job.device), self.scaler.scale
        return selection, Gradient(module, self.method, risk, reference, parts, autocast, scale)

    @cached_property
    def wrong(self) -> torch.Tensor | None:
        """How much of the label of each loss of a training example is wrong, in [0, 1], (n, k); k is
        1 where the losses of an example share one label. None: nobody knows."""
        labels = self.job.task.labels()
        known = labels.wrong if labels.wrong_items is None else labels.wrong_items
        return None if known is None else torch.from_numpy(known).reshape(len(known), -1)

    def due(self, done: int, every: int) -> bool:
        """Whether something is due after so many steps that happens at every so many, if at all."""
        return every > 0 and done % every == 0

    def evaluates(self, done: int) -> bool:
        """Whether models are evaluated on the way after so many steps; the end is no way."""
        return self.due(done, self.job.train.eval_every) and done < self.plan.steps

    def reports(self, done: int) -> bool:
        """Whether anything is logged, evaluated or saved after so many steps."""
        train = self.job.train
        cadences = (train.log_every, train.eval_every, train.save_every)
        return done == self.plan.steps or any(self.due(done, every) for every in cadences)

    def all_skipped(self) -> int:
        """Unreadable examples met by all ranks."""
        # The collective is a mean; of float64 numbers `round` makes a whole one again.
        mine = torch.tensor(self.skipped, dtype=torch.float64, device=self.job.device)
        return round(distributed.mean(mine).item() * distributed.world_size())

    def save(self, done: int) -> None:
        """Write a checkpoint; every rank calls this."""
        folder, world = self.job.folder / "checkpoints", distributed.world_size()
        # Running estimates are split over the ranks, and each writes what it holds.
        method, own = split_state(self.method)
        if own:
            save_part(folder, done, own)
            # The whole is what makes a checkpoint valid, so all parts stand before it.
            distributed.barrier()
        # Made by every rank, though rank 0 alone writes it: random states and counts are gathered.
        state = {
            "identity": self.job.identity,
            "target": whole_state(self.module),
            "method": method,
            "parts": world if own else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "observers": [observer.state_dict() for observer in self.observers],
            "random": all_random_states(self.job.device),
            "seconds": self.clock.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "skipped": self.all_skipped(),
        }
        if distributed.rank() == 0:
            save_checkpoint(folder, done, state)
        # Writing drops older checkpoints with the parts of all ranks, so none may begin the next.
        distributed.barrier()

    def restore(self) -> int:
        """Step to start from: 0, or that of the newest checkpoint, whose state is taken over."""
        # On the CPU, where generators want their states; `load_state_dict` copies the rest to its
        # device.
        found = load_newest(self.job.folder / "checkpoints", torch.device("cpu"))
        if found is None:
            # Ranks draw other dropout masks; a resumed run takes its own generators back instead.
            torch.manual_seed(self.job.seed + distributed.rank())
            return 0
        step, state = found
        require_same_run(self.job.folder, state["identity"], self.job.identity, self.job.config)
        # Before the optimiser: its state is matched to parameters by their place.
        load_whole_state(self.module, state["target"])
        take_memory(self.method, self.job.folder / "checkpoints", step, state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for observer, remembered in zip(self.observers, state["observers"], strict=True):
            observer.load_state_dict(remembered)
        self.clock.seconds = state["seconds"]
        self.evaluation_seconds = state["evaluation_seconds"]
        # What was skipped before is counted once, not by every rank that goes on.
        self.skipped = state["skipped"] if distributed.rank() == 0 else 0
        self._restore_random(state["random"])
        _LOG.info("resuming %s at step %d", self.job.folder, step)
        return step

    def _restore_random(self, states: list[list[torch.Tensor]]) -> None:
        # Other ranks have other parts of the batch, so no state would mean the same for them.
        if len(states) == distributed.world_size():
            set_random_state(self.job.device, states[distributed.rank()])
        else:
            _LOG.warning(
                "resuming on another number of processes: random numbers (dropout) will differ"
            )
