"""`task.loss`: the loss of an example as a key of any config of the task."""

import json

import pytest
import torch
import torch.nn.functional as F

from steering.cli import main
from steering.config import ConfigError, load_config
from steering.outputs import Fingerprint
from steering.runs.ask import training
from steering.runs.store import Store
from steering_tasks.classification.evaluation import losses as losses_of
from steering_tasks.classification.losses import GeneralizedCrossEntropy
from steering_tasks.classification.risk import ClassificationRisk

CONFIG = "configs/classification/digits.yaml"


def scores(n=9, classes=4):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(n, classes, generator=generator)
    return {"image": logits, "label": torch.randint(classes, (n,), generator=generator)}


def losses(loss, batch):
    return ClassificationRisk(loss).outputs(torch.nn.Identity(), batch)["loss"]


def test_both_ends_in_closed_form_and_the_default_to_the_bit():
    batch = scores()
    entropy = F.cross_entropy(batch["image"], batch["label"], reduction="none")
    assert torch.equal(losses(None, batch), entropy)
    torch.testing.assert_close(losses(GeneralizedCrossEntropy(0.0), batch), entropy)
    torch.testing.assert_close(losses(GeneralizedCrossEntropy(1e-6), batch), entropy)
    one_hot = F.one_hot(batch["label"], 4)
    half_absolute_error = 0.5 * (batch["image"].softmax(-1) - one_hot).abs().sum(-1)
    torch.testing.assert_close(losses(GeneralizedCrossEntropy(1.0), batch), half_absolute_error)


def test_the_evaluated_loss_is_of_the_same_kind():
    batch = scores()
    probability = batch["image"].softmax(-1)
    for loss in (None, GeneralizedCrossEntropy(0.7)):
        expected = losses(loss, batch).double().mean().item()
        found = losses_of(probability, batch["label"], loss).mean()
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_config_that_does_not_name_it_keeps_its_key():
    def key(*words):
        return training(load_config(CONFIG, ["method=erm", *words])).key

    plain = key()
    # As it was before there was such a key: a new one orphans no finished run.
    assert plain[:12] == "ef3fba82e8d2"
    assert key("task.loss=cross_entropy") == plain
    others = {key("task.loss=gce"), key("task.loss={name: gce, q: 0.5}"), plain}
    assert len(others) == 3
    assert key("task.loss=gce") == key("task.loss={name: gce, q: 0.7}")
    with pytest.raises(ConfigError, match=r"task.loss: q: expected a number in \[0, 1\], got 2"):
        load_config(CONFIG, ["task.loss={name: gce, q: 2}"])
    with pytest.raises(ConfigError, match=r"no loss 'hinge'; known: cross_entropy, gce"):
        load_config(CONFIG, ["task.loss=hinge"])


def test_stored_outputs_of_another_loss_are_other_outputs():
    usual = Fingerprint("w", "i", "d")
    assert ClassificationRisk().identity == ""
    found = Fingerprint("w", "i", "d", risk=ClassificationRisk(GeneralizedCrossEntropy()).identity)
    assert found.digest() != usual.digest()
    with pytest.raises(Exception, match=r"loss: the usual stored, gce\(q=0.7\) wanted"):
        usual.require(found, "outputs in x")


@pytest.mark.parametrize("method", ["erm", "drrho"])
def test_a_run_by_any_method(tmp_path, method):
    """One reference serves steering by cross entropy and by the other loss: its stored losses are
    those of each."""
    small = ["smoke=true", "train.samples=64", "train.eval_every=0", f"output={tmp_path}"]
    same = "{train.samples: 64, task.data.part: [0.0, 0.33], task.loss: cross_entropy}"
    small.append(f"reference.train={same}")
    for loss in ("cross_entropy", "gce"):
        assert main(["train", CONFIG, *small, f"method={method}", f"task.loss={loss}"]) == 0
    runs = Store(next(tmp_path.iterdir())).all()
    mine = [record for record in runs if record.label.startswith(method)]
    assert len(mine) == 2
    first = [record.curves()[0]["train/loss"] for record in mine]
    if method == "erm":  # ten classes and no training yet: log 10, and (1 − 0.1^0.7)/0.7
        assert first[0] == pytest.approx(2.3026, rel=0.1)
        assert first[1] == pytest.approx((1 - 0.1**0.7) / 0.7, rel=0.1)
    else:
        files = next(tmp_path.iterdir()).glob("outputs/*/outputs.json")
        stored = [json.loads(file.read_text())["fingerprint"] for file in files]
        assert len({one["weights"] for one in stored}) == 1
        assert sorted(one["risk"] for one in stored) == ["", "gce(q=0.7)"]
