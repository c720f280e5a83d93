"""The picture that a reader of a CLIP run looks at first: a few images and the captions the model finds for them."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from tasks.clip.evaluation import RetrievalSet, embed_texts
from tasks.clip.models import ClipInputs, image_features

SHOWN, TOP = 12, 3
RIGHT, WRONG = "#1a7f37", "#555555"


@torch.no_grad()
def retrieved_captions(module: nn.Module, inputs: ClipInputs, data: RetrievalSet, device: torch.device) -> Figure:
    """Twelve images of a set, spread evenly over its first batch, each with its best three captions; the right one green."""
    images, right = next(data.images(inputs))
    chosen = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().astype(int)
    text = embed_texts(module, inputs, data.captions, device)  # (m, d)
    scores = image_features(module, images[chosen].to(device)) @ text.T  # (12, m)
    best = scores.topk(min(TOP, len(data.captions)), dim=1)
    figure = Figure(figsize=(10, 0.95 * len(chosen) / 2 + 0.3), layout="constrained")
    grid = figure.subplots((len(chosen) + 1) // 2, 4, width_ratios=[1, 5, 1, 5], squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    mean, std = torch.tensor(inputs.mean)[:, None, None], torch.tensor(inputs.std)[:, None, None]
    for number, row in enumerate(chosen):
        picture, words = grid[number // 2, 2 * (number % 2)], grid[number // 2, 2 * (number % 2) + 1]
        picture.imshow((images[row] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
        answer = int(right[row])
        lines = [(f"true: {data.captions[answer]}", "black")]
        for score, caption in zip(best.values[number].tolist(), best.indices[number].tolist(), strict=True):
            lines.append((f"{score:+.2f}  {data.captions[caption]}", RIGHT if caption == answer else WRONG))
        for line, (string, colour) in enumerate(lines):
            words.text(
                0, 0.92 - 0.27 * line, _shorten(string), color=colour, fontsize=7, va="top", transform=words.transAxes
            )
    return figure


def _shorten(text: str, width: int = 62) -> str:
    text = text.replace("$", r"\$")
    return text if len(text) <= width else text[: width - 1] + "…"
