"""A tiny task for the tests of everything that is not one: random vectors, linear models, both
shapes of loss items.

`kind: pairs` is two linear towers on pairs of noisy views of one hidden vector; `kind: units` a
linear classifier with one loss per example. Also loadable by path, as `toys.py:Toy`, which is how
the tests' configs name it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from steering import distributed
from steering.data import IndexedData, uniform
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.methods import build_method, find_method
from steering.methods.selection import SelectorOptions, with_selection
from steering.reference import LiveReference
from steering.risk import ReferenceRisk
from steering.schema import TrainConfig
from steering.storage import sha256
from steering.task import Evaluation, Model, ModelSpec, Task, scores_of
from steering.training.loop import Job
from steering.training.recipes import OPTIMIZERS

sys.path.insert(0, str(Path(__file__).parent))  # also where a config names this file by its path

from adversaries import FLAT, flat_for

WIDTH = 6  # of every vector, and the number of classes


@dataclass
class Options:
    name: str
    kind: str = "pairs"
    """"pairs" or "units"."""
    n: int = 64
    """Training examples."""
    augment: bool = False
    """Add noise that depends on (seed, epoch, example)."""
    nan_at: int | None = None
    """The example whose vectors are NaN."""
    unreadable: int | None = None
    """The example that is replaced by its right neighbour."""
    broken_at: int | None = None
    """The example that raises SteeringError."""


class Towers(nn.Module):
    """Two linear maps; a bias (vector), a matrix each, and a logit scale that nobody trains, as in
    CLIP."""

    def __init__(self, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Dropout(dropout), nn.Linear(WIDTH, 5, dtype=dtype))
        self.text = nn.Linear(WIDTH, 5, dtype=dtype)
        self.logit_scale = nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image), self.text(text)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class PairRisk(ReferenceRisk):
    unit = "pair"

    def outputs(self, model, batch):
        image, text = model(batch["image"], batch["text"])
        return {
            "image": F.normalize(_wide(image), dim=-1),
            "text": F.normalize(_wide(text), dim=-1),
        }

    def losses(self, target, reference, batch):
        guide = (
            {}
            if reference is None
            else {f"reference_{key}": value for key, value in reference.items()}
        )
        return Pairs(target["image"], target["text"], batch["index"], **guide)


class UnitRisk(ReferenceRisk):
    def outputs(self, model, batch):
        label = batch["text"].argmax(-1)  # (b,)
        return {"loss": F.cross_entropy(_wide(model(batch["image"])), label, reduction="none")}

    def losses(self, target, reference, batch):  # noqa: ARG002
        return Units(target["loss"], None if reference is None else reference["loss"])


class Vectors(IndexedData):
    """n pairs of views of hidden vectors."""

    def __init__(
        self, options: Options, seed: int | None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.options, self.seed = options, seed
        generator = torch.Generator().manual_seed(options.n)
        hidden, *noise = torch.randn(3, options.n, WIDTH, generator=generator, dtype=torch.float64)
        self.image, self.text = ((hidden + 0.3 * part).to(dtype) for part in noise)

    def __len__(self) -> int:
        return self.options.n

    def batch(self, index, epoch):
        options = self.options
        skipped = index == options.unreadable
        index = np.where(skipped, (index + 1) % options.n, index)
        if options.broken_at in index:
            raise SteeringError(f"vectors.tar: example {options.broken_at} is damaged")
        rows = torch.from_numpy(index)
        image = self.image[rows]
        if options.augment and self.seed is not None:
            image = (
                image + torch.from_numpy(uniform(self.seed, epoch, index)).to(image.dtype)[:, None]
            )
        image[rows == options.nan_at] = torch.nan
        return {
            "image": image,
            "text": self.text[rows],
            "index": rows,
            "skipped": torch.tensor(int(skipped.sum())),
        }

    def fingerprint(self) -> str:
        return sha256([self.image.numpy().tobytes(), self.text.numpy().tobytes()])


class Toy(Task):
    Options: ClassVar[type] = Options

    def __init__(self, options: Options) -> None:
        self.options = options
        self.risk = PairRisk() if options.kind == "pairs" else UnitRisk()

    def network(self, spec: ModelSpec) -> Model:
        if spec.name != "linear":
            raise SteeringError(f"target.name: no model {spec.name!r}; known: linear")
        dtype = getattr(torch, spec.options.get("dtype", "float32"))
        if self.options.kind == "pairs":
            module: nn.Module = Towers(spec.options.get("dropout", 0.0), dtype)
        else:
            module = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        return Model(module, None, sha256([str(spec.options.get("inputs", "plain"))]))

    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:  # noqa: ARG002
        return Vectors(self.options, seed, next(target.module.parameters()).dtype)

    def plain_data(self, model: Model) -> IndexedData:
        return Vectors(self.options, None, next(model.module.parameters()).dtype)

    @torch.no_grad()
    def evaluate(self, model: Model, device: torch.device) -> Evaluation:
        """Retrieval among the first training pairs (or likelihood), in two groups of metrics; each
        rank scores its share."""
        data = self.plain_data(model)
        batch = {
            key: value.to(device)
            for key, value in data.batch(np.arange(min(16, len(data))), 0).items()
        }
        outputs = self.risk.outputs(model.module, batch)
        mine = distributed.share(len(batch["index"]))
        if self.options.kind == "units":
            values = {"seen/likelihood": outputs["loss"][mine.start : mine.stop].neg().exp()}
        else:
            scores = outputs["image"][mine.start : mine.stop] @ outputs["text"].T
            right = (
                scores.argsort(-1, descending=True) == torch.tensor([*mine], device=device)[:, None]
            )
            recall = {f"image_to_text_R@{k}": right[:, :k].any(-1) for k in (1, 5)}
            values = {
                f"{group}/{name}": value
                for group in ("seen", "easy_split")
                for name, value in recall.items()
            }
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        found = {
            name: scores_of(distributed.gather_uneven(value.double()))
            for name, value in values.items()
        }
        return Evaluation(found, figures={"picture": figure})

    def held_out_data(self, model: Model) -> dict[str, IndexedData]:
        return {"first": Vectors(Options("toy", n=16), None, next(model.module.parameters()).dtype)}


def make_job(
    folder: Path,
    *,
    method: str = "drrho",
    guided: bool = True,
    select: SelectorOptions | None = None,
    optimizer: str = "adamw",
    **changes: object,
) -> Job:
    """A job on the CPU: target from seed 0, live reference from seed 1, 20 steps of 16 pairs;
    changes go where they belong.

    Keys of `Options` change the task, those of the method's options the method, and so on for the
    optimizer and the loop; `seed` the order of the data; `dropout` and `dtype` the target; `select`
    puts a selector before the method. An unknown key is an error.
    """
    sections = {
        "task": (Options, {"name": "toy"}),
        "method": (find_method(method).options, {}),
        "optimizer": (OPTIMIZERS.find(optimizer), {"lr": 0.02}),
        "train": (TrainConfig, {"samples": 320, "batch_size": 16, "log_every": 5}),
        "spec": (None, {}),
        "job": (None, {"seed": 0}),
    }
    fields_of_method = find_method(method).options.__dataclass_fields__
    free = {"dropout": "spec", "dtype": "spec", "seed": "job"}
    for key, value in changes.items():
        names = [
            name for name, (cls, _) in sections.items() if cls and key in cls.__dataclass_fields__
        ]
        names = ["method"] if key in FLAT and "divergence" in fields_of_method else names
        sections[free.get(key) or names[0]][1][key] = value
    built = {
        name: cls(**(values if name != "method" else flat_for(method, values)))
        for name, (cls, values) in sections.items()
        if cls
    }
    task, spec = Toy(built["task"]), ModelSpec("linear", options=sections["spec"][1])
    torch.manual_seed(0)
    target = task.build(spec)
    torch.manual_seed(1)
    reference = task.build(
        ModelSpec("linear", options={"dtype": spec.options.get("dtype", "float32")})
    )
    seed = sections["job"][1]["seed"]
    data = task.train_data(target, None, seed)
    return Job(
        folder=folder,
        title="toy",
        task=task,
        target=target,
        reference=LiveReference(reference.module, task.risk) if guided else None,
        method=with_selection(
            build_method(method, built["method"], len(data), unit=task.risk.unit), select, method
        ),
        data=data,
        optimizer=built["optimizer"],
        train=built["train"],
        seed=seed,
        device=torch.device("cpu"),
    )


CONFIG = f"""
name: study
task: {{name: "{__file__}:Toy"}}
target: linear
reference: {{name: linear, cache: auto, train: {{train.samples: 64}}}}
method: {{name: drrho, estimator: {{name: moving_average, gamma: 0.5}}}}
optimizer: {{lr: 0.02}}
train: {{samples: 320, batch_size: 16, log_every: 5}}
device: cpu
compare:
  methods: {{plain: {{name: erm}}, global: {{name: dro}}, drrho: {{name: drrho}}}}
  seeds: [0, 1]
"""


def write_config(folder: Path) -> Path:
    """A config file in a folder, with that folder's `runs` as output."""
    path = folder / "toy.yaml"
    path.write_text(f"{CONFIG}output: {folder}/runs\n")
    return path


def folder_of(study: Path, label: str) -> Path:
    """The folder of a run of a study by its label."""
    assert (study / label / "ask.json").is_file(), [path.name for path in study.iterdir()]
    return study / label


class Lookup(nn.Module):
    """A "CLIP model" whose features are rows of given tables: image (b, 3, 1, 1) and tokens (b, 1)
    hold row numbers."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.images, self.texts = images, texts

    def encode_image(self, image: Tensor) -> Tensor:
        return self.images[image[:, 0, 0, 0].long()]

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        found = self.texts[tokens[:, 0]]
        return nn.functional.normalize(found, dim=-1) if normalize else found
