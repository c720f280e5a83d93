"""Keys: what makes another run, and what does not."""

from dataclasses import dataclass, field, replace

import pytest
import torch
import toys
from safetensors.torch import load_file, save_file

from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.runs.ask import (
    evaluation,
    model_outputs,
    reference_target,
    training,
    with_parents_first,
)
from steering.runs.call import calling
from steering.runs.execute import execute
from steering.runs.record import read_record
from steering.runs.store import Store
from steering.runs.transport import read_ask, write_ask
from steering.runs.workshop import Workshop
from steering.training.recipes import OPTIMIZERS, AdamW
from steering.typed import differences


@pytest.fixture
def config(tmp_path):
    path = toys.write_config(tmp_path)
    return lambda *overrides: load_config(path, overrides)


def test_a_key_is_of_what_changes_the_result(config):
    def key(*overrides):
        return training(config(*overrides)).key

    same = [
        "name=x",
        "output=y",
        "train.log_every=1",
        "train.save_every=1",
        "train.eval_every=3",
        "train.workers=2",
    ]
    same += [
        "train.threads=1",
        "compare.seeds=[4]",
        "device=auto",
        "jobs=2",
        "reference.cache=elsewhere",
    ]
    same += [
        "studies={plane: {n: 1}}",
        "references={other: {name: linear}}",
        "reference.label=other",
    ]
    for override in same:
        assert key(override) == key(), override
    other = [
        "seed=4",
        "train.samples=960",
        "method.tau=0.06",
        "task.n=65",
        "target.options={dropout: 0.5}",
        "method=dro",
    ]
    other += [
        "reference.cache=null",
        "optimizer.lr=2",
        "reference.train={train.samples: 96}",
        "reference.options={dropout: 0.1}",
    ]
    keys = {override: key(override) for override in other}
    assert len({key(), *keys.values()}) == len(other) + 1, keys


def test_a_default_that_is_written_out_is_no_difference(config):
    keys = {
        training(config(*words)).key
        for words in ([], ["method.strength=1.0"], ["optimizer.eps=1e-6", "train.clip_norm=1.0"])
    }
    assert len(keys) == 1


def test_a_method_without_a_reference_does_not_care_which_there_is(config):
    assert (
        training(config("method=dro")).key == training(config("method=dro", "reference=null")).key
    )
    assert training(config("method=dro")).parents == {}
    assert [*training(config()).parents] == ["reference"]
    with pytest.raises(ConfigError, match="drrho needs a reference; add a reference: section"):
        training(config("reference=null"))


def test_a_new_config_key_orphans_nothing(config, monkeypatch):
    """A field with a default, added to any section, leaves every key as it was."""

    @dataclass(frozen=True)
    class Wider(AdamW):
        momentum: float = 0.9
        more: dict = field(default_factory=dict)

    ask = training(config("optimizer.lr=0.5"))
    assert ask.key  # computed now, with the optimizer as it is
    known = {name: getattr(ask.config.optimizer, name) for name in AdamW.__dataclass_fields__}
    monkeypatch.setitem(OPTIMIZERS._parts, "adamw", Wider)
    wider = replace(ask, config=replace(ask.config, optimizer=Wider(**known)))
    assert wider.key == ask.key
    assert (
        replace(ask, config=replace(ask.config, optimizer=Wider(**known, momentum=0.8))).key
        != ask.key
    )


def test_differences_go_into_nested_dataclasses():
    @dataclass
    class Inner:
        a: int = 1
        b: tuple[int, int] = (1, 2)

    @dataclass
    class Outer:
        name: str
        inner: Inner = field(default_factory=Inner)
        x: list[int] = field(default_factory=lambda: [1])

    assert differences(Outer("n")) == {"name": "n"}
    assert differences(Outer("n", Inner(b=(1, 3)), [2])) == {
        "name": "n",
        "inner": {"b": [1, 3]},
        "x": [2],
    }


def test_weights_count_by_content_not_by_path(config, tmp_path):
    import torch

    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"x": torch.zeros(2)}, one)
    save_file({"x": torch.zeros(2)}, two)

    def keys(path):
        words = [f"target.checkpoint={path}"], [f"reference.checkpoint={path}"], [f"start={path}"]
        return [training(config(*word)).key for word in words]

    before = keys(one)
    assert before == keys(two)  # other paths, the same weights
    save_file({key: value + 1 for key, value in load_file(one).items()}, one)
    assert all(
        now != then for now, then in zip(keys(one), before, strict=True)
    )  # the same path, other weights
    assert len({*before, training(config()).key}) == 4


def test_parents_come_first_and_once(config):
    asks = [training(config(f"seed={seed}")) for seed in (0, 1)]
    order = with_parents_first(asks)
    assert [ask.label for ask in order] == ["reference", "drrho-seed0", "drrho-seed1"]
    assert order[1].asked["reference"] == order[0].key


def test_kinds_and_parents_make_other_keys(config):
    c = reference_target(config())
    trained = training(config("method=erm"))
    asks = [
        evaluation(c, "a"),
        evaluation(c, "a", model=trained),
        model_outputs(c, "losses"),
        model_outputs(c, "logits"),
        model_outputs(c, "losses", part="first"),
        training(config("method=erm"), start=trained),
        trained,
    ]
    assert len({ask.key for ask in asks}) == len(asks)


def test_an_ask_survives_the_way_to_another_process(config, tmp_path):
    ask = training(config(), "label", {"method": "x", "seed": 3})
    write_ask(tmp_path / "ask.json", ask)
    again = read_ask(tmp_path / "ask.json")
    assert (again.key, again.label, again.axes) == (ask.key, "label", {"method": "x", "seed": 3})
    assert again.parents["reference"].key == ask.parents["reference"].key


FUNCTION = """
from steering.runs.call import Outcome
from steering.runs.record import Cost


def doubled(call):
    parent = call.parent("first")
    before = 1 if parent is None else parent.summary["value"]
    call.write("note.txt", "here")
    value = before * call.options["times"]
    return Outcome({"value": value}, cost=Cost(seconds=1.0), summary={"value": value})
"""


def test_a_function_of_a_study_is_a_run_like_any_other(config, tmp_path):
    """Its arguments and its parents are its identity; it is called once."""
    file = tmp_path / "own.py"
    file.write_text(FUNCTION)
    name = f"{file}:doubled"
    workshop = Workshop(Store(tmp_path / "runs"), torch.device("cpu"))
    first = calling(config(), name, {"times": 2}, "first")
    second = calling(config(), name, {"times": 3}, "second", {"round": 2}, first=first)
    record = execute(second, workshop)
    assert record.metrics == {"value": 6}
    assert record.axes == {"round": 2}
    assert record.parents == {"first": first.key}
    assert (record.folder / "note.txt").read_text() == "here"
    assert read_record(record.folder).summary == {"value": 6}
    (record.folder / "note.txt").unlink()
    assert execute(second, workshop).key == record.key
    assert not (record.folder / "note.txt").exists()
    keys = {
        calling(config(), name, {"times": times}, "x", **parents).key
        for times in (2, 3)
        for parents in ({}, {"first": first})
    }
    assert len(keys) == 4
    same = calling(config("target.name=toy2", "seed=3"), name, {"times": 2}, "first")
    assert same.key == first.key  # what a function reads of a config, it names as an argument
    with pytest.raises(SteeringError, match="has no function 'halved'"):
        execute(calling(config(), f"{file}:halved", {}, "halved"), workshop)
    file.write_text(FUNCTION + "# changed")
    assert calling(config(), name, {"times": 2}, "first").key != first.key
    file.write_text(FUNCTION)
    write_ask(tmp_path / "ask.json", second)
    assert read_ask(tmp_path / "ask.json").key == second.key


def test_a_frozen_model_is_that_of_its_own_task(config, tmp_path):
    """The same words in a config are another network in another task."""
    workshop = Workshop(Store(tmp_path / "runs"), torch.device("cpu"))
    pairs = workshop.opened(training(config()))
    units = workshop.opened(training(config("task.kind=units", "method={name: erm}")))
    spec = config().target
    models = [opened.frozen(spec).model.module for opened in (pairs, units, pairs)]
    assert type(models[0]) is not type(models[1])
    assert models[0] is models[2]


def test_a_reference_that_cannot_be_built_is_named_as_one(config, tmp_path):
    workshop = Workshop(Store(tmp_path / "runs"), torch.device("cpu"))
    wrong = training(config("reference={name: nonsense, checkpoint: x.safetensors}"))
    with pytest.raises(SteeringError, match=r"^reference"):
        workshop.reference(wrong)


def test_code_and_folders_of_models_count_by_content_too(config, tmp_path):
    """A method of one's own is another one once its text has changed, and so is a model of
    `transformers` in a folder."""
    method, folder = tmp_path / "own.py", tmp_path / "model"
    method.write_text(OWN_METHOD)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")

    def keys():
        own = training(config(f"method={{name: '{method}:flat'}}", "reference=null"))
        given = config(f"target.name={folder}", "target.pretrained=name", "method=erm")
        call = calling(given, "steering.studies.recipes_order0:order0", {}, "x", reads_model=True)
        return own.key, training(given).key, call.key

    before = keys()
    assert keys() == before
    method.write_text(OWN_METHOD + "# another\n")
    (folder / "model.safetensors").write_bytes(b"another")
    assert not {*before} & {*keys()}


OWN_METHOD = """
from dataclasses import dataclass
from steering.extend import Method, Step, register

@dataclass(frozen=True)
class Options: ...

@register("flat", Options)
class Flat(Method):
    \"\"\"The mean.\"\"\"
    def __init__(self, options):
        super().__init__()
    def forward(self, items):
        return Step(items.target.mean(), {})
"""
