"""The pages of TensorBoard that put curves side by side: "Is it healthy?" and HPARAMS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LINES = "Multiline"

HEALTH: dict[str, dict[str, list[Any]]] = {
    "Is it healthy?": {
        "1. Losses: objective, training, held out": [LINES, [r"loss/.*"]],
        "2. Effective sample share": [LINES, [r"steer/ess$"]],
        "3. Largest weight, in uniform ones": [LINES, [r"steer/weight_max$"]],
        "4. KL spent, nats": [LINES, [r"steer/kl_spent$"]],
        "5. Excess loss: mean and standard deviation": [
            LINES,
            [r"steer/excess_mean$", r"steer/excess_std$"],
        ],
        "6. Weight on wrong labels, and their share": [
            LINES,
            [r"steer/mass_on_noise$", r"steer/noise_share$"],
        ],
        "7. Adversary: temperature, strength, prior": [
            LINES,
            [r"steer/tau$", r"steer/strength$", r"steer/prior$"],
        ],
        "8. Loss of each group": [LINES, [r"group/.*/loss$"]],
        "9. Weight of each group": [LINES, [r"group/.*/weight$"]],
    }
}
"""Page → chart → kind and tags, regular expressions."""

SECTIONS = ("method", "optimizer", "train", "target")
HOW_IT_IS_SHOWN = ("train.board.", "train.log_every", "train.eval_every", "train.save_every")


def settings(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """What HPARAMS sorts runs by: the numbers and words of the sections that are compared, by dotted
    key, and the seed."""
    chosen = {key: config[key] for key in (*SECTIONS, "seed") if key in config}
    found = _flat(chosen, "")
    return {key: value for key, value in found.items() if not key.startswith(HOW_IT_IS_SHOWN)}


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, bool | float | str]:
    found: dict[str, bool | float | str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
    return found
