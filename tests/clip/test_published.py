"""The published runs' configs against what arXiv 2505.06699 and its code say, written out here; and the
commands of docs/reproduce.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from steering.cli import _parsed
from steering.config import RunConfig, load_config, method_section, with_method
from steering.dro.online.specs import MovingAverage
from steering.runs.ask import training
from steering.schedules import Constant
from steering.training.decay import CosineDecay
from steering.training.recipes.adam import AdamW

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
REFERENCES = {  # OpenAI's WIT-400M, and DFN-2B twice
    "openai_vitb32": ("ViT-B-32-quickgelu", "openai"),
    "dfn2b_vitb16": ("ViT-B-16-quickgelu", "dfn2b"),
    "dfn2b_vitl14": ("ViT-L-14-quickgelu", "dfn2b"),
}
ROWS = {"B32": "openai_vitb32", "B16": "dfn2b_vitb16", "L14": "dfn2b_vitl14"}


def methods(config: RunConfig) -> dict[str, tuple[str, object, str | None]]:
    """Name, options and reference of every method that a config compares; None: the config's own."""
    found = {}
    for label, section in config.compare.methods.items():
        method = with_method(config, method_section(section), label).method
        found[label] = (method.name, method.options, section.get("reference"))
    return found


def numbers(options: object, *names: str) -> list[object]:
    """Values of keys; a schedule that stays where it is is its number."""
    found = [getattr(options, name) for name in names]
    return [value.value if isinstance(value, Constant) else value for value in found]


def gamma(options: object) -> tuple[float, int | None]:
    estimator = options.estimator  # type: ignore[attr-defined]
    assert isinstance(estimator, MovingAverage)
    return estimator.gamma, estimator.decay_epochs


@pytest.mark.parametrize("name", ["dfn192m_vitb16", "dfn192m_vitb16_kd", "dfn192m_scaling"])
def test_the_headline_run(name: str) -> None:
    config = load_config(f"clip/{name}")
    assert config.target.name == "ViT-B-16"
    assert {
        label: (section["name"], section["pretrained"])
        for label, section in config.references.items()
    } == REFERENCES
    assert config.reference is not None
    assert (config.reference.name, config.reference.pretrained) == REFERENCES["openai_vitb32"]
    train, optimizer = config.train, config.optimizer
    assert (train.batch_size, train.samples) == (8 * 640, 1_280_000_000)
    assert config.dry_run.examples == 192_160_462
    assert round(train.samples / config.dry_run.examples) == 7  # epochs
    assert type(optimizer) is AdamW
    assert numbers(optimizer, "lr", "weight_decay", "warmup") == [3.125e-4, 0.2, 500]
    assert numbers(optimizer, "betas", "eps") == [(0.9, 0.98), 1e-6]
    assert optimizer.schedule == CosineDecay()
    assert config.method.name == "drrho"
    assert numbers(config.method.options, "tau", "epsilon", "radius") == [0.01, 1e-4, None]
    assert gamma(config.method.options)[0] == 1.0


def test_fastclip_beside_it() -> None:
    config = load_config("clip/dfn192m_vitb16")
    found = methods(config)
    assert [*found] == ["openclip", "fastclip", *(f"drrho-clip {row}" for row in ROWS)]
    name, options, _ = found["fastclip"]
    assert name == "dro"
    assert numbers(options, "tau", "radius", "epsilon") == [0.07, 11, 1e-14]
    assert gamma(options)[0] == 1.0
    assert config.optimizer.temperature_lr == config.optimizer.lr / 4
    for row, reference in ROWS.items():
        name, options, chosen = found[f"drrho-clip {row}"]
        assert (name, chosen or "openai_vitb32") == ("drrho", reference)
        assert options == config.method.options


def test_distillation() -> None:
    config = load_config("clip/dfn192m_vitb16_kd")
    found = methods(config)
    assert [*found] == [
        f"{one} {row}" for row in ROWS for one in ("mobileclip", "fastclip-kd", "drrho-kd")
    ]
    for row, reference in ROWS.items():
        assert all(
            (found[f"{one} {row}"][2] or "openai_vitb32") == reference
            for one in ("mobileclip", "fastclip-kd", "drrho-kd")
        )
        _, fastclip, _ = found[f"fastclip-kd {row}"]
        assert numbers(fastclip, "strength", "tau", "radius", "epsilon") == [0, 0.07, 11, 1e-14]
        assert gamma(fastclip)[0] == 1.0
        assert found[f"drrho-kd {row}"][1] == config.method.options
        assert found[f"mobileclip {row}"][0] == "distillation"
    assert config.method.options.distill_scale == 100


def test_jest() -> None:
    """A fifth of each worker's 640 pairs, in two chunks; as many pairs drawn as in the other rows."""
    config, headline = load_config("clip/dfn192m_vitb16_jest"), load_config("clip/dfn192m_vitb16")
    assert config.train.batch_size == headline.train.batch_size // 5
    assert config.train.samples == headline.train.samples // 5
    assert config.optimizer == headline.optimizer
    found = methods(config)
    assert [*found] == [f"{one} {row}" for one in ("jest", "jest top-k") for row in ROWS]
    for label, (name, options, reference) in found.items():
        assert name == "jest"
        assert numbers(options, "share", "chunks", "reference_scale") == [0.2, 2, 100]
        assert options.top == ("top-k" in label)  # type: ignore[attr-defined]
        assert (reference or "openai_vitb32") == ROWS[label.split()[-1]]


@pytest.mark.parametrize(
    ("name", "radius", "low"),
    [("cc3m", 6.5, 0.2), ("cc12m", 8.5, 0.2), ("laion400m_vitb16", 16, 0.8)],
)
def test_fastclip_elsewhere(name: str, radius: float, low: float) -> None:
    config = load_config(f"clip/{name}")
    found = methods(config)
    _, options, _ = found["fastclip"]
    assert numbers(options, "tau", "radius") == [0.07, radius]
    assert gamma(options)[0] == low
    if name == "cc3m":
        assert gamma(options) == (0.2, 18)
        assert config.optimizer.temperature_lr == 2e-4
        _, options, _ = found["fastclip individual"]
        assert numbers(options, "tau", "radius", "individual_tau_lr") == [0.03, 7, 0.0133]


def test_the_scaling_study() -> None:
    study = load_config("clip/dfn192m_scaling").studies["scaling"]
    assert [*study["methods"]] == ["openclip", "drrho-clip"]
    assert (
        study["methods"]["drrho-clip"]
        == load_config("clip/dfn192m_vitb16").compare.methods["drrho-clip B32"]
    )
    assert [size["target.name"] for size in study["sizes"].values()] == [
        "ViT-B-32",
        "ViT-B-16",
        "ViT-L-14",
    ]
    assert (study["metric"], study["cost"]) == ("zero_shot_top1", "forward")


@pytest.mark.parametrize("name", ["dfn192m_vitb16", "cc3m", "cc12m", "laion400m_vitb16"])
def test_imagenet_has_its_names(name: str) -> None:
    zero_shot = load_config(f"clip/{name}").task.zero_shot
    assert (zero_shot.classes, zero_shot.templates) == ("imagenet", "openai")


def test_every_row_has_a_command_that_asks_for_a_run() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n## Rows\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|.* \| `(clip/.+)` \|$", table, re.M)
    assert len(rows) == 10  # each but the references
    for row, words in rows:
        config = load_config(*(lambda name, *more: (name, more))(*shlex.split(words)))
        assert training(config).key, row
    evaluated = re.findall(r"^steering (evaluate .+)$", table, re.M)
    found = []
    for line in evaluated:
        arguments = _parsed(shlex.split(line))
        config = load_config(arguments.config, arguments.overrides)
        assert config.reference is None
        found.append((config.target.name, config.target.pretrained))
    assert found == [*REFERENCES.values()]
