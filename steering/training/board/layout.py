"""The pages of TensorBoard that put curves side by side: "Is it healthy?" and HPARAMS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from steering.methods.registry import find_method
from steering.typed import default_of, plain_field

LINES = "Multiline"

HEALTH: dict[str, dict[str, list[Any]]] = {
    "Is it healthy?": {
        "1. Loss in training": [LINES, [r"loss/train_mean$"]],
        "2. Loss on held-out examples": [LINES, [r"loss/validation$"]],
        "3. Weight on wrong labels, and their share": [
            LINES,
            [r"steer/mass_on_noise$", r"steer/noise_share$"],
        ],
        "4. Effective sample share": [LINES, [r"steer/ess$"]],
        "5. Largest weight, in uniform ones": [LINES, [r"steer/weight_max$"]],
        "6. KL spent, nats": [LINES, [r"steer/kl_spent$"]],
        "7. Excess loss: mean": [LINES, [r"steer/excess_mean$"]],
        "8. Excess loss: standard deviation": [LINES, [r"steer/excess_std$"]],
        "9. Adversary: temperature, strength, prior": [
            LINES,
            [r"steer/tau$", r"steer/strength$", r"steer/prior$"],
        ],
        "10. Loss of each group": [LINES, [r"group/.*/loss$"]],
        "11. Weight of each group": [LINES, [r"group/.*/weight$"]],
        "12. What each method descends: not to be compared": [LINES, [r"loss/objective$"]],
    }
}
"""Page → chart → kind and tags, regular expressions."""

SECTIONS = ("method", "optimizer", "train", "target")
HOW_IT_IS_SHOWN = ("train.board.", "train.log_every", "train.eval_every", "train.save_every")


def settings(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """What HPARAMS sorts runs by: the numbers and words of the sections that are compared, by dotted
    key, and the seed. Of a method only what it was told: each has other keys, and TensorBoard
    shows few columns."""
    chosen = {key: config[key] for key in (*SECTIONS, "seed") if key in config}
    if "method" in chosen:
        chosen["method"] = _told(chosen["method"])
    found = _flat(chosen, "")
    return {key: value for key, value in found.items() if not key.startswith(HOW_IT_IS_SHOWN)}


def _told(method: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a method's section that are not as it has them by itself, and its name."""
    known = fields(find_method(str(method["name"])).options)
    usual = {field.name: plain_field(field, default_of(field)) for field in known}
    return {"name": method["name"]} | _unusual(method, usual)


def _unusual(section: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a section with other values than usual, also of sections within, as those of
    `nested`; a part that is chosen by another name is told whole."""
    found = {}
    for key, value in section.items():
        other = usual.get(key)
        if value == other:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            value = _unusual(value, other) if value.get("name") == other.get("name") else value
        found[key] = value
    return found


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, bool | float | str]:
    found: dict[str, bool | float | str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
    return found
