"""Image–text data made on the spot, and a CLIP model small enough for tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

HOME = Path(__file__).parents[2]
MODELS = HOME / "configs/clip/models"
COLOURS = ("red", "green", "blue", "black", "orange", "purple", "brown", "pink")
SHAPES = ("circle", "square", "bar", "frame")
CAPTIONS = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]


def drawing(i: int, size: int = 32) -> Image.Image:
    """The picture of CAPTIONS[i % 32]; its place depends on i."""
    colour, shape = COLOURS[i % 8], SHAPES[i // 8 % 4]
    paper = Image.new("RGB", (size, size), "white")
    pen, x = ImageDraw.Draw(paper), 2 + i // 32 % 6
    if shape == "circle":
        pen.ellipse((x, 4, x + 20, 24), fill=colour)
    elif shape == "bar":
        pen.rectangle((x, 12, x + 24, 17), fill=colour)
    else:
        pen.rectangle(
            (x, 4, x + 20, 24), fill=colour if shape == "square" else None, outline=colour, width=3
        )
    return paper


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def members(*numbers: int) -> dict[str, bytes]:
    """Files of a shard with the drawings of these numbers."""
    return {
        name: data
        for i in numbers
        for name, data in (
            (f"{i:05}.png", png(drawing(i))),
            (f"{i:05}.txt", CAPTIONS[i % 32].encode()),
        )
    }


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def model_json(path: Path, **changes: Any) -> Path:
    """A tiny model config for 32×32 images with the glyphs' tokenizer; changes are of its sections'
    entries."""
    vision = {"image_size": 32, "timm_model_name": "steering_convnet_small", "timm_proj": ""}
    text = {"context_length": 8, "vocab_size": 2014, "width": 32, "heads": 2, "layers": 1}
    text["tokenizer_kwargs"] = {"bpe_path": str(MODELS / "glyphs.bpe.gz")}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    for key, value in changes.items():
        section = next((s for s in (vision, text) if key in s), config)
        section[key] = value
    path.write_text(json.dumps(config))
    return path
