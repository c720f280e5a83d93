"""Edits of hidden states: a context manager around any `nn.Module` with named layers.

An edit is a pure function of (activation, position, mask). So a row gives the same numbers alone
and in a batch, padded or not, with a cache of keys and values or without.

Shapes: b rows, T positions of one call, d width of a layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from steering.activation.moves import Move

Scope = Literal["all", "prompt", "answer", "decoded"]
CACHES = ("cache", "past_key_values")  # what `transformers` calls it, newer name first


@dataclass(frozen=True, eq=False)
class Edit:
    """One move at one layer.

    Attributes:
        layer: name in the model's `named_modules`; its output is edited.
        move: what happens to an activation.
        strength: of the move; 0 leaves every bit as it is.
        scope: which positions. Position t holds token t and predicts token t + 1. With p tokens of
            the prompt: "all"; "prompt", t < p; "answer", t >= p; "decoded", t >= p − 1: every
            position that a token of the answer is decoded from, the prompt's last one included.
            Padding is never edited.
    """

    layer: str
    move: Move
    strength: float = 1.0
    scope: Scope = "all"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope: expected {', '.join(get_args(Scope))}, got {self.scope!r}")


@contextmanager
def steered(
    model: nn.Module,
    edits: Sequence[Edit],
    prompt: Tensor | Sequence[int] | None = None,
    keep_norm: bool = False,
) -> Iterator[None]:
    """Edit a model's activations inside the block; afterwards, also after an exception, the model is
    as it was.

    Several edits of one layer add: each sees the activation without the others. Where the model
    finds its padding and its position after cached tokens, in the keywords `attention_mask`,
    `position_ids` and `cache` (`past_key_values`) of `transformers`, the edits find them too.

    Args:
        model: the module that is called inside the block (a model, a tower); a layer's output may
            be a tensor (b, T, d), or a tuple that begins with one.
        prompt: tokens of each row's prompt without padding, (b,); needed by every scope but "all".
            A batch of k·b rows (k samples of each prompt, in order) repeats each k times.
        keep_norm: give every edited activation its old norm back.

    Raises:
        ValueError: a layer that the model does not have, or a scope without a prompt; inside the
            block: a layer without positions, or rows that do not fit the prompt.
    """
    for edit in edits:
        find_layer(model, edit.layer)
        if edit.scope != "all" and prompt is None:
            raise ValueError(f"scope {edit.scope!r}: prompt is needed, the tokens of each prompt")
    by_layer: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.strength != 0:
            by_layer.setdefault(edit.layer, []).append(edit)
    call = _Call(None if prompt is None else torch.as_tensor(prompt).reshape(-1))
    with ExitStack() as hooks:
        if by_layer:
            _begin(hooks, model, call)
        for layer, own in by_layer.items():
            change = partial(_changed, call, own, keep_norm)
            handle = find_layer(model, layer).register_forward_hook(change)
            hooks.callback(handle.remove)
        yield


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers during the last call inside the block, by name, detached."""
    found: dict[str, Tensor] = {}

    def keep(layer: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        found[layer] = _first(output).detach()

    with ExitStack() as hooks:
        for layer in layers:
            handle = find_layer(model, layer).register_forward_hook(partial(keep, layer))
            hooks.callback(handle.remove)
        yield found


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The module of that name; ValueError, with names like it, when there is none."""
    names = dict(model.named_modules())
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3) or block_names(model)[:3]
        raise ValueError(f"the model has no {layer!r}; such as {', '.join(near) or 'none'}")
    return names[layer]


def block_names(model: nn.Module) -> list[str]:
    """The blocks of a transformer: the members of its longest `nn.ModuleList`, in order; else of its
    longest `nn.Sequential`."""
    named = list(model.named_modules())
    lists = [(name, len(one)) for name, one in named if isinstance(one, nn.ModuleList)]
    lists = lists or [(name, len(one)) for name, one in named if isinstance(one, nn.Sequential)]
    if not lists:
        return []
    name, length = max(lists, key=lambda one: one[1])
    return [f"{name}.{number}" if name else str(number) for number in range(length)]


class _Call:
    """Where the positions of the model's present call stand."""

    def __init__(self, prompt: Tensor | None) -> None:
        self.prompt = prompt
        self.begin((), {})

    def begin(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Take from a call what says where its positions are."""
        self._tokens = _token_count(inputs, keywords)
        self._mask, self._position = (
            _two_axes(keywords.get(name)) for name in ("attention_mask", "position_ids")
        )
        past = next((keywords[name] for name in CACHES if keywords.get(name) is not None), None)
        # Read now: the layers lengthen the cache as they run.
        self._offset = 0 if past is None else _length_of(past)

    def where(self, activation: Tensor, scope: Scope) -> Tensor | None:
        """Which positions an edit of that scope changes, bool, (b, T, 1) or (1, T, 1); None:
        every one."""
        if self._mask is None and scope == "all":
            return None
        if activation.ndim != 3:
            raise ValueError(
                f"scope {scope!r}: expected activations (b, T, d), got {tuple(activation.shape)}"
            )
        length = activation.shape[1]
        if self._tokens not in (None, length):
            # Of another tower, such as the patches of an image beside a padded text.
            if scope == "all":
                return None
            raise ValueError(
                f"scope {scope!r}: activations of {length} positions for {self._tokens} tokens; "
                "expected 'all', or a layer that the tokens go through"
            )
        real = self._real(length, activation)
        if scope == "all":
            return real[..., None]
        position, prompt = self._positions(length, activation), self._prompts(activation)
        chosen = {
            "prompt": position < prompt,
            "answer": position >= prompt,
            "decoded": position >= prompt - 1,
        }[scope]
        return (chosen & real)[..., None]

    def _real(self, length: int, like: Tensor) -> Tensor:
        """Which positions are no padding, (b, T) or (1, T)."""
        if self._mask is None:
            return torch.ones(1, length, dtype=torch.bool, device=like.device)
        if self._mask.shape[1] < length:
            raise ValueError(
                f"attention_mask: {self._mask.shape[1]} positions for activations of {length}"
            )
        return self._mask[:, -length:].to(like.device) != 0

    def _positions(self, length: int, like: Tensor) -> Tensor:
        """Number of each position among its row's real tokens, (b, T) or (1, T)."""
        if self._mask is not None:
            return ((self._mask != 0).long().cumsum(1) - 1)[:, -length:].to(like.device)
        if self._position is not None:
            return self._position.to(like.device)
        if self._offset is None:
            raise ValueError(
                "scope: this cache (of states, without attention) does not say how many tokens it "
                "holds; pass attention_mask or position_ids, or generate with use_cache=False"
            )
        return torch.arange(length, device=like.device)[None] + self._offset

    def _prompts(self, like: Tensor) -> Tensor:
        assert self.prompt is not None  # `steered` requires it for these scopes
        times, left = divmod(len(like), len(self.prompt))
        if left:
            raise ValueError(
                f"prompt: lengths of {len(self.prompt)} prompts for a batch of {len(like)} rows"
            )
        return self.prompt.to(like.device).repeat_interleave(times)[:, None]


def _token_count(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> int | None:
    """Tokens of each row of a call, by the names of `transformers`; None: it does not say."""
    given = (keywords.get("input_ids"), keywords.get("inputs_embeds"), *inputs[:1])
    found = [one for one in given if isinstance(one, Tensor) and one.ndim in (2, 3)]
    return found[0].shape[1] if found else None


def _length_of(cache: Any) -> int | None:
    """Tokens in a cache; None where it keeps no count of them, as that of a state-space model."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return None


def _begin(hooks: ExitStack, model: nn.Module, call: _Call) -> None:
    def begin(_module: nn.Module, inputs: Any, keywords: Mapping[str, Any]) -> None:
        call.begin(inputs, keywords)

    hooks.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)


def _changed(
    call: _Call,
    edits: Sequence[Edit],
    keep_norm: bool,
    _layer: nn.Module,
    _inputs: Any,
    output: Any,
) -> Any:
    """A layer's output with its activation edited."""
    activation = _first(output)
    wide = activation if activation.dtype == torch.float64 else activation.float()
    places = [call.where(activation, edit.scope) for edit in edits]
    edited = wide  # nothing in place: a move may have a gradient
    for edit, where in zip(edits, places, strict=True):
        added = edit.move.displacement(wide, edit.strength)
        edited = edited + (added if where is None else torch.where(where, added, 0.0))
    if keep_norm:
        edited = edited * (wide.norm(dim=-1, keepdim=True) / _norm(edited))
    edited = edited.to(activation.dtype)
    inside = [where for where in places if where is not None]
    if len(inside) == len(places):  # the others keep their bits
        edited = torch.where(
            torch.stack(torch.broadcast_tensors(*inside)).any(0), edited, activation
        )
    return edited if isinstance(output, Tensor) else (edited, *output[1:])


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _first(output: Any) -> Tensor:
    """The activation in what a layer gives out."""
    return output if isinstance(output, Tensor) else output[0]


def _two_axes(value: Any) -> Tensor | None:
    """A mask or positions of (b, T); other forms (a prepared 4-D mask) say nothing here."""
    return value if isinstance(value, Tensor) and value.ndim == 2 else None
