"""Baselines that change weights, on the very pairs that the rounds found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steering import distributed
from steering.activation import Pair, Speaker
from steering.activation.sampling import joined, token_losses
from steering.data import mix
from steering.errors import SteeringError
from steering.runs.call import Call, Outcome
from steering.runs.record import WEIGHTS, Metric
from steering.studies.self_improvement.judges import encoded
from steering.studies.self_improvement.rounds import bank_of
from steering.studies.self_improvement.scene import Prompting, Scene, open_scene
from steering.weights import save_weights

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Log-ratios to the frozen model of better and worse answers, and margins, (b,) each; (b,)."""


@dataclass(frozen=True)
class Tuning:
    """How weights are tuned.

    Attributes:
        kind: "finetune" on the better answers, "dpo" or "sppo" on the pairs.
        beta: of DPO.
        eta: of SPPO.
    """

    kind: str
    epochs: int
    batch_size: int
    lr: float
    beta: float
    eta: float


def dpo_loss(beta: float, better: Tensor, worse: Tensor, margin: Tensor) -> Tensor:  # noqa: ARG001
    """−log σ(β (log-ratio of the better − log-ratio of the worse)).

    Source: Rafailov et al. (2023), arXiv 2305.18290, equation 7.
    """
    return -F.logsigmoid(beta * (better - worse))


def sppo_loss(eta: float, better: Tensor, worse: Tensor, margin: Tensor) -> Tensor:
    """½ [(log-ratio⁺ − η (P − ½))² + (log-ratio⁻ + η (P − ½))²], P = σ(margin) the probability that
    the better answer wins.

    Source: Wu et al. (2024), arXiv 2405.00675, with log Z replaced by η/2.
    """
    target = eta * (margin.sigmoid() - 0.5)
    return ((better - target).square() + (worse + target).square()) / 2


def tune(call: Call) -> Outcome:
    """Tune a copy of the model. Parents: "model", unless the config gives weights, and "bank", the
    round whose pairs are used."""
    options, start = call.options, time.monotonic()
    how, seed = Tuning(**options["tuning"]), int(options["seed"])
    scene, pairs = open_scene(call, Prompting(**options["prompting"])), bank_of(call.parent("bank"))
    if not pairs:
        raise SteeringError(f"{how.kind}: the rounds found no pair, so there is nothing to learn")
    model = scene.task.build(call.ask.config.target)
    model.module.load_state_dict(scene.model.module.state_dict())
    model.module.to(call.workshop.device).eval()
    learner = Speaker(scene.task.text_model(model).network, scene.speaker.end)
    solver = torch.optim.AdamW(learner.network.parameters(), lr=how.lr, weight_decay=0.0)
    losses = []
    for epoch in range(how.epochs):
        order = np.argsort(mix(seed, epoch, np.arange(len(pairs))), kind="stable")
        for first in range(0, len(pairs), how.batch_size):
            own = [pairs[number] for number in order[first : first + how.batch_size]]
            loss = _loss(scene, learner, how, own)
            solver.zero_grad()
            loss.backward()
            solver.step()
            losses.append(float(loss.detach()))
    if distributed.rank() == 0:
        save_weights(call.folder / WEIGHTS, model.module, {"key": call.ask.key})
    trained = len(pairs) * how.epochs
    seconds = time.monotonic() - start
    speakers = [scene.speaker, *[learner] * 3]  # a backward pass counts as two forward ones
    cost = scene.cost(speakers, 0, seconds, trained=trained, steps=len(losses))
    metrics = {"loss": float(np.mean(losses[-max(1, len(losses) // how.epochs) :]))}
    meaning = {"loss": Metric(percent=False, higher_is_better=False)}
    return Outcome(metrics, meaning, cost=cost, summary={"pairs": len(pairs)})


def _loss(scene: Scene, learner: Speaker, how: Tuning, pairs: Sequence[Pair]) -> Tensor:
    better = [pair.better for pair in pairs]
    if how.kind == "finetune":
        total, count = _log_likelihood(scene, learner, pairs, better)
        return -total.sum() / count
    form: PairLoss = {"dpo": partial(dpo_loss, how.beta), "sppo": partial(sppo_loss, how.eta)}[
        how.kind
    ]
    ratios = []
    for side in (better, [pair.worse for pair in pairs]):
        mine = _log_likelihood(scene, learner, pairs, side)[0]
        with torch.no_grad():
            frozen = _log_likelihood(scene, scene.speaker, pairs, side)[0]
        ratios.append(mine - frozen)
    margins = torch.tensor([pair.margin for pair in pairs]).to(ratios[0])
    return form(ratios[0], ratios[1], margins).mean()


def _log_likelihood(
    scene: Scene, speaker: Speaker, pairs: Sequence[Pair], answers: Sequence[str]
) -> tuple[Tensor, int]:
    """log p of each answer, (b,), with gradient, and the tokens of all."""
    prompts = scene.rows([pair.prompt for pair in pairs])
    rows = [encoded(scene.text.tokens, answer) for answer in answers]
    tokens, mask = joined(speaker, prompts, rows)
    said = speaker.network(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
    speaker.tally.tokens += int(mask.sum())
    losses = token_losses(said.logits, tokens, mask, [len(one) for one in prompts])
    return -losses.sum(1), max(1, sum(map(len, rows)))
