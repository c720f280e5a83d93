"""A live reference in a Hugging Face Trainer: it is frozen, apart, and says what the stored losses
say."""

import copy
import json

import pytest
import torch

import steering
from steering.errors import SteeringError

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

import transformers as hf
from hf_toys import (
    SAVING,
    WORDS,
    Items,
    Linear,
    N,
    Sentences,
    Unlike,
    arguments,
    bert,
    cheap_collections,  # noqa: F401
    gpt,
    llama,
    mean,
    run,
)

from steering.integrations.hugging_face import SteeringTrainer, reference_losses

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainer itself


class Unnumbered(Sentences):
    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def made(folder, steer="rho1", model=None, data=None, unit="token", **options):
    names = {"reference_losses", "ref_model", "optimizers", "model_init"} & set(options)
    ours = {name: options.pop(name) for name in names}
    if "model_init" not in ours:
        ours["model"] = model or gpt()
    return SteeringTrainer(
        args=arguments(folder, **options),
        train_dataset=data or Sentences(),
        eval_dataset=data or Sentences(),
        data_collator=hf.default_data_collator,
        steer=steer,
        unit=unit,
        **ours,
    )


def dropping():
    """A reference that would be another one in training mode."""
    torch.manual_seed(5)
    shape = {"vocab_size": WORDS, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(**shape, embd_pdrop=0.5, resid_pdrop=0.5, bos_token_id=0, eos_token_id=0)
    )


def other():
    torch.manual_seed(3)
    return hf.GPT2LMHeadModel(gpt().config)


@pytest.mark.parametrize("unit", ["example", "sequence", "token"])
def test_a_live_reference_trains_as_its_stored_losses_do(tmp_path, unit):
    moved = []
    for live in (True, False):
        reference, model = dropping(), gpt()
        steer = steering.DRRho(N, tau=0.3)
        if live:
            given = {"ref_model": reference.train()}
        else:
            found = reference_losses(reference, Sentences(), hf.default_data_collator, unit=unit)
            given = {"reference_losses": found}
        run(made(tmp_path, steer, model, unit=unit, max_steps=4, **given))
        moved.append(model.lm_head.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-5, atol=1e-6)


def test_the_reference_is_frozen_and_in_no_checkpoint(tmp_path):
    reference = dropping().train()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    model = gpt()
    trainer = made(
        tmp_path, model=model, ref_model=reference, optim="adamw_torch", weight_decay=0.5, **SAVING
    )
    reference.train()  # somebody else's hand
    run(trainer)
    assert not reference.training
    assert all(not p.requires_grad and p.grad is None for p in reference.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    theirs = {id(p) for p in reference.parameters()}
    groups = trainer.optimizer.param_groups
    assert not theirs & {id(p) for group in groups for p in group["params"]}
    folder = tmp_path / "checkpoint-2"
    saved = hf.GPT2LMHeadModel.from_pretrained(folder)
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight)
    state = torch.load(folder / "steering.pt", weights_only=True)
    assert not any(isinstance(value, torch.Tensor) for value in state.values())  # rho1 has none
    assert not list(tmp_path.rglob("*ref*"))


def test_a_run_beside_a_live_reference_resumes(tmp_path):
    def steer():
        return steering.DRRho(N, tau=0.3)

    whole, part, again = gpt(), gpt(), gpt()
    run(made(tmp_path / "whole", steer(), whole, ref_model=other(), max_steps=4))
    run(made(tmp_path / "part", steer(), part, ref_model=other(), max_steps=2, **SAVING))
    resumed = made(tmp_path / "part", steer(), again, ref_model=other(), max_steps=4)
    run(resumed, resume_from_checkpoint=True)
    torch.testing.assert_close(again.lm_head.weight, whole.lm_head.weight)


def test_numbers_are_not_needed_beside_a_live_reference(tmp_path):
    moved = []
    for data in (Unnumbered(), Sentences()):
        model = gpt()
        run(made(tmp_path, "rho1", model, data, ref_model=other()))
        moved.append(model.lm_head.weight.detach().clone())
    assert torch.equal(*moved)


@pytest.mark.parametrize("as_path", [True, False])
def test_a_folder_is_loaded_as_the_class_that_it_names(tmp_path, as_path):
    folder = tmp_path / "reference"
    dropping().save_pretrained(folder)
    trainer = made(tmp_path / "run", ref_model=folder if as_path else str(folder))
    loaded = trainer.reference.model
    assert type(loaded) is hf.GPT2LMHeadModel
    assert not loaded.training
    torch.testing.assert_close(loaded.lm_head.weight.float(), dropping().lm_head.weight)
    run(trainer)


def folder_of_no_class(folder):
    dropping().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Mine"]}))
    return folder


def shared_head():
    model = gpt()
    part = copy.deepcopy(model)
    part.transformer = model.transformer
    return {"model": model, "ref_model": part}


def itself():
    model = gpt()
    return {"model": model, "ref_model": model}


def wrapped_itself():
    model = gpt()
    return {"model": model, "ref_model": torch.nn.DataParallel(model)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (itself, "is the model that is trained; give a copy"),
        (wrapped_itself, "is the model that is trained; give a copy"),
        (shared_head, "shares the parameter transformer.wte.weight"),
        (lambda: {"ref_model": gpt(), "reference_losses": torch.zeros(N)}, "give one of them"),
        (lambda: {"ref_model": 3}, "expected a model, a folder or a name, got int"),
        (lambda: {}, r"rho1 compares with a reference; give ref_model= or reference_losses="),
        (lambda: {"ref_model": "no/such/folder/here"}, "ref_model: no/such/folder/here"),
    ],
)
def test_a_reference_that_is_none(tmp_path, monkeypatch, given, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SteeringError, match=told) as caught:
        made(tmp_path, **given())
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_class_that_is_not_there(tmp_path):
    folder = folder_of_no_class(tmp_path / "reference")
    with pytest.raises(SteeringError, match=r"names no class of transformers \(Mine\)"):
        made(tmp_path / "run", ref_model=folder)


def test_a_reference_of_another_kind_is_refused_in_the_first_step(tmp_path):
    trainer = made(tmp_path, ref_model=bert("BertForMaskedLM"))
    with pytest.raises(SteeringError, match=r"BertForMaskedLM has another kind of loss \(tokens\)"):
        run(trainer)


def test_a_reference_of_another_family_is_taken(tmp_path):
    trainer = made(tmp_path, ref_model=llama(), max_steps=3)
    run(trainer)
    assert all("steer/reference_loss" in e for e in trainer.state.log_history if "loss" in e)


def test_a_new_model_each_time_keeps_its_reference(tmp_path):
    trainer = made(tmp_path, model_init=lambda: gpt(), ref_model=other())
    moved = []
    for _ in range(2):
        run(trainer)
        moved.append(trainer.model.lm_head.weight.detach().clone())
    assert torch.equal(*moved)


def test_classifiers_have_live_references_too(tmp_path):
    torch.manual_seed(1)
    reference, moved = Linear(), []
    found = reference_losses(reference, Items(), hf.default_data_collator)
    for given in ({"reference_losses": found}, {"ref_model": reference}):
        model = Linear()
        trainer = SteeringTrainer(
            model,
            arguments(tmp_path),
            train_dataset=Items(),
            data_collator=hf.default_data_collator,
            steer={"name": "drrho", "tau": 0.5},
            **given,
        )
        run(trainer)
        moved.append(model.layer.weight.detach().clone())
    torch.testing.assert_close(*moved)


def test_half_precision_is_the_reference_s_too(tmp_path):
    """bf16 autocast on a CPU: the losses are float32 and near those of full precision."""
    losses = []
    for half in (False, True):
        trainer = made(tmp_path, ref_model=other(), bf16=half, max_steps=1)
        run(trainer)
        [entry] = [e for e in trainer.state.log_history if "loss" in e]
        losses.append(entry["steer/reference_loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


# ---- methods of the registry as steers


@pytest.mark.parametrize(
    ("steer", "told"),
    [
        ("rho_1", "no method 'rho_1'"),
        ({"share": 0.5}, "must have a 'name'"),
        ({"name": "rho1", "kep": 0.5}, r"steer \(rho1\).*kep"),
        ({"name": "rho1", "share": 1.5}, "share must lie in"),
        ({"name": "rho1", "share": "half"}, r"steer \(rho1\).*share"),
        ("jest", "not of a token"),
        ("group_dro", "weights groups, and there are none"),
        ("rho_loss", "selects examples before they are trained on"),
        ("distillation", "needs whole distributions"),
        (3, "a method's name or section, got int"),
        (steering.losses.GroupDRO(8), "GroupDRO takes groups in the third place, .* numbers of"),
        (steering.losses.DoReMi(8), "DoReMi takes groups in the third place"),
        (steering.losses.Distillation(), "Distillation takes reference_logits in the third place"),
        (lambda x, reference, domains: (x - reference)[domains], "function takes domains in the"),
    ],
)
def test_methods_that_are_no_steers(tmp_path, steer, told):
    with pytest.raises(SteeringError, match=told) as caught:
        made(tmp_path, steer, ref_model=other(), unit="example" if steer == "rho_loss" else "token")
    assert "\n" not in str(caught.value)


def test_a_method_learns_its_temperature_and_resumes_it(tmp_path):
    section = {"name": "drrho", "radius": 0.05}
    whole = made(tmp_path / "whole", section, ref_model=other(), max_steps=4, unit="sequence")
    [parameter] = whole.own.values()
    start = parameter.item()
    run(whole)
    assert parameter.item() != start
    run(made(tmp_path / "part", section, ref_model=other(), unit="sequence", **SAVING))
    again = made(tmp_path / "part", section, ref_model=other(), max_steps=4, unit="sequence")
    run(again, resume_from_checkpoint=True)
    [resumed] = again.own.values()
    assert resumed.item() == pytest.approx(parameter.item(), abs=1e-6)
    other_kind = made(tmp_path / "part", {"name": "drrho", "divergence": "chi2"}, ref_model=other())
    with pytest.raises(SteeringError, match="divergence kl, and this steer has chi2"):
        run(other_kind, resume_from_checkpoint=True)


def test_plain_training_is_a_method_too(tmp_path):
    """erm by token is the plain trainer's own step."""
    moved = []
    for plain in (True, False):
        model = llama()
        shared = {"train_dataset": Sentences(), "data_collator": hf.default_data_collator}
        args = arguments(tmp_path)
        if plain:
            run(hf.Trainer(model, args, **shared))
        else:
            run(SteeringTrainer(model, args, **shared, steer="erm", unit="token"))
        moved.append(model.lm_head.weight.detach().clone())
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-6)


def test_a_function_is_given_the_live_losses(tmp_path):
    seen = []

    def watched(losses, reference, index):
        seen.append((losses.shape, reference.shape, reference.requires_grad, index.shape))
        return losses.mean()

    data = Sentences()
    run(made(tmp_path, watched, Unlike("shifted"), data, ref_model=Unlike("shifted")))
    assert seen == [(torch.Size([20]), torch.Size([20]), False, torch.Size([20]))] * 2
    run(made(tmp_path, mean, Unlike("shifted"), Unnumbered()))
