"""The language modelling task: options, data, models, evaluation, tied together for the
framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.exhibits import Exhibit, Judged, Labels
from steering.task import Evaluation, Metric, Model, ModelSpec, Sketch, Task, TextModel

from .corpus import held_out, read_domains, say_shared, split_documents, stdlib
from .data import (
    Blocks,
    corrupted,
    first_of_each,
    mixed,
    pack,
    part_of,
    require_each,
    tagged,
)
from .derived import derived
from .evaluation import (
    block_losses,
    domain_scores,
    losses_by_domain,
    perplexities,
    perplexity_figure,
)
from .models import build_causal, causal_network
from .options import LanguageData, LanguageOptions
from .recipe import cooked
from .risk import LanguageRisk
from .tokens import Tokens, open_tokens

__all__ = ["LanguageData", "LanguageOptions", "LanguageTask"]


class LanguageTask(Task):
    """Causal language modelling; domains are groups."""

    Options: ClassVar[type] = LanguageOptions
    units: ClassVar[tuple[str, ...]] = ("token", "sequence")
    may_have_groups: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric(percent=False, higher_is_better=False)
    }

    def __init__(self, options: LanguageOptions) -> None:
        self.options, self.risk = options, LanguageRisk(options.unit)
        self.groups = tuple(options.data.paths or options.data.modules)

    @cached_property
    def _texts(self) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
        """Training, validation and reserved documents by domain."""
        data = self.options.data
        train, validation = self._read
        kept: dict[str, list[str]] = {}
        if data.reserved:
            kept, train = split_documents(train, data.reserved, data.seed, "task.data.reserved")
        train = cooked(train, data.dedup, data.filter, data.duplicate, data.seed, kept)
        return train, validation, kept

    @cached_property
    def _read(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Training documents, the reserved ones among them, and validation documents."""
        data = self.options.data
        if data.source == "stdlib":
            return stdlib(tuple(data.modules))
        train = read_domains(data.paths, data.column, data.separator, "task.data.paths")
        if not data.validation:
            return held_out(train, data.held_out)
        sections = {
            "task.data.paths": data.paths,
            "task.data.validation": {name: data.validation[name] for name in train},
        }
        validation = read_domains(
            sections["task.data.validation"], data.column, data.separator, "task.data.validation"
        )
        say_shared(
            {
                f"{key}.{name}": path
                for key, paths in sections.items()
                for name, path in paths.items()
            }
        )
        return train, validation

    @cached_property
    def _tokens(self) -> Tokens:
        return open_tokens(self.options.tokenizer)

    @cached_property
    def _train(self) -> Blocks:
        data, tokens = self.options.data, self._tokens
        whole = pack(self._texts[0], tokens, self.options.length)
        blocks = part_of(whole, *data.part, data.seed)
        numbers = {name: number for number, name in enumerate(self.groups)}
        blocks = corrupted(
            blocks,
            {numbers[name]: v for name, v in data.corrupt.items()},
            tokens.ordinary,
            data.seed,
        )
        if data.mix:
            weights = np.array([data.mix.get(name, 0.0) for name in self.groups])
            blocks = mixed(blocks, weights, data.seed, self.groups)
        else:
            require_each(blocks, self.groups, "task.data.part", len(whole))
        blocks = tagged(blocks, 0.5, data.seed) if data.tags else blocks
        return derived(blocks, data.derive, self)

    @cached_property
    def _validation(self) -> Blocks:
        blocks = pack(self._texts[1], self._tokens, self.options.length)
        limit = self.options.data.validation_blocks
        blocks = blocks if limit is None else first_of_each(blocks, limit)
        return tagged(blocks, 0.0, 0) if self.options.data.tags else blocks

    def network(self, spec: ModelSpec) -> Model:
        return build_causal(spec, self._tokens, self.options.length)

    def sketch(self, spec: ModelSpec) -> Sketch:
        """Needs the tokenizer, but neither documents nor weights."""
        with torch.device("meta"):
            model = self.network(replace(spec, pretrained=None, checkpoint=None))
            tokens = torch.zeros(1, self.options.length + 1, dtype=torch.long)
            mask = torch.ones(1, self.options.length, dtype=torch.bool)
        return Sketch(model, {"tokens": tokens, "mask": mask})

    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:  # noqa: ARG002
        if reference is not None and reference.inputs_fingerprint != target.inputs_fingerprint:
            raise SteeringError("reference: has another tokenizer than the target")
        return self._train

    def plain_data(self, model: Model) -> IndexedData:  # noqa: ARG002
        return self._train

    def labels(self) -> Labels:
        """Wrong are the tokens that `corrupt` has replaced, of a sequence their share; without it
        nothing is known."""
        blocks = self._train
        if blocks.wrong is None or self.options.unit == "token":
            return Labels(wrong_items=blocks.wrong)
        counts = blocks.counts[:, None]
        return Labels(wrong_items=blocks.wrong.sum(-1, keepdims=True) / counts)

    def exhibits(self, numbers: Sequence[int]) -> list[Exhibit]:
        """Blocks as text, behind their domain."""
        return self._as_text(self._train, numbers)

    def _as_text(self, blocks: Blocks, numbers: Sequence[int]) -> list[Exhibit]:
        names, decode = self.groups, self._tokens.decode
        return [
            # The last block of a domain may end before its row does.
            Exhibit(
                f"{names[blocks.domain[n]]}: {decode(blocks.tokens[n][: blocks.counts[n] + 1].tolist())}"
            )
            for n in numbers
        ]

    def held_out_data(self, model: Model) -> Mapping[str, IndexedData]:  # noqa: ARG002
        parts: dict[str, IndexedData] = {"validation": self._validation}
        if self.options.data.reserved:
            blocks = pack(self._texts[2], self._tokens, self.options.length)
            # As those of the validation documents: every block with its tag.
            parts["reserved"] = tagged(blocks, 0.0, 0) if self.options.data.tags else blocks
        return parts

    def documents(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
        train, validation, _ = self._texts
        return train, validation

    def text_model(self, model: Model) -> TextModel:
        network = causal_network(model.module)
        limit = getattr(network.config, "max_position_embeddings", None)
        return TextModel(network, self._tokens, limit)

    def evaluate(self, model: Model, device: torch.device) -> Evaluation:
        """ "perplexity/average" over the domains, and of each; per token, on the validation
        documents."""
        blocks, names = self._validation, self.groups
        losses = block_losses(model.module, self.risk, blocks, device)
        metrics = perplexities(losses_by_domain(losses, blocks, len(names)), names)
        shown = Metric(percent=False, higher_is_better=False, exp=True)
        scores = domain_scores(losses, blocks, names)
        meaning = {f"perplexity/{name}": replace(shown, of=(f"loss/{name}",)) for name in names}
        meaning["perplexity/average"] = replace(shown, of=tuple(scores))
        figures = {"perplexity": perplexity_figure(metrics)}
        loss = float(losses.sum() / blocks.counts.sum())
        judged = Judged(losses / blocks.counts, partial(self._as_text, blocks))
        return Evaluation(scores, metrics, meaning, figures, loss, judged)
