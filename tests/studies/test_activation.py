"""The study of self-improving activation steering, with a byte model of ours and a model of
`transformers` by path."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import toys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from steering.activation import load_edits
from steering.cli import main
from steering.errors import SteeringError
from steering.runs.store import Store
from steering.studies.self_improvement import judges
from steering.studies.self_improvement.options import ActivationOptions
from steering.studies.self_improvement.scene import Prompting, split_prompts
from steering.studies.self_improvement.tuning import dpo_loss, sppo_loss
from steering.task import TextModel
from steering_tasks.language import LanguageOptions
from steering_tasks.language.data import NEUTRAL, TAGS, pack, tagged
from steering_tasks.language.task import LanguageData
from steering_tasks.language.tokens import Bytes

WORDS = "the a cat dog tree bird sees hears near under old new red good bad kind rude".split()  # noqa: SIM905
TINY = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 48}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two domains of a few words, and a byte model of 2 layers that has learnt them."""
    folder = tmp_path_factory.mktemp("home")
    for name, words in {"calm": "soft slow still", "loud": "bang boom crash"}.items():
        text = " ".join(np.random.default_rng(len(words)).choice(words.split(), 900))
        (folder / f"{name}.txt").write_text("\n\n".join([text[:2500], text[2500:]]))
    (folder / "tiny.json").write_text(json.dumps(TINY))
    (folder / "train.yaml").write_text(settings(folder, folder, f"{{name: {folder}/tiny.json}}"))
    assert main(["train", str(folder / "train.yaml")]) == 0
    return folder


def settings(home, output, target):
    return f"""name: s
output: {output}/runs
task:
  name: language
  length: 32
  data: {{source: files, tags: true, separator: "\\n\\n", held_out: 0.5,
    paths: {{calm: {home}/calm.txt, loud: {home}/loud.txt}}}}
target: {target}
method: erm
optimizer: {{lr: 1.0e-2}}
train: {{samples: 1600, batch_size: 16}}
device: cpu
studies:
  activation:
    goal: loud
    prefix: "\\u0001"
    goal_prefix: "\\u0003"
    prompt_length: 9
    train_prompts: 48
    valid_prompts: 16
    test_prompts: 16
    answers: 6
    valid_answers: 4
    test_answers: 4
    length: 12
    rounds: 2
    blocks: [transformer.h.1]
    strengths: [2, 4, 8]
    refine: 1
    share: 1.0
    budget: 2.0
    baselines: [random, shuffled, supervised, best_of_n, finetune, dpo, sppo]
    lr: 0.003
"""


@pytest.fixture
def config(home, tmp_path):
    """The study on that model's weights."""
    weights = home / "runs/s/erm-seed0/model.safetensors"
    path = tmp_path / "run.yaml"
    target = f"{{name: {home}/tiny.json, checkpoint: {weights}}}"
    path.write_text(settings(home, tmp_path, target))
    return path


def study(path, *words):
    return main(["study", "activation", str(path), *words])


def by_policy(folder):
    return {r.axes["policy"]: r for r in Store(folder).all() if "policy" in r.axes}


def test_the_whole_study(config, tmp_path, capsys):
    """Rounds steer, the controls do not, nothing that is frozen moves, and the page is drawn again
    from the records."""
    trains = [
        "target.checkpoint=null",
        "studies.activation.blocks=[]",
        "studies.activation.refine=3",
    ]
    assert study(config, *trains) == 0
    folder = tmp_path / "runs/s"
    weights = (folder / "model/model.safetensors").read_bytes()
    runs = by_policy(folder)
    baselines = "random shuffled supervised best_of_n finetune dpo sppo"
    assert [*runs] == ["base", "round 1", "round 2", "prefix", *baselines.split()]
    judge = {name: run.metrics["judge"] for name, run in runs.items()}
    gain = {name: value - judge["base"] for name, value in judge.items()}
    for name in ("round 1", "round 2", "supervised", "prefix"):
        assert gain[name] > 0.1, gain
    assert gain["finetune"] > 0.04, gain
    for name in ("random", "shuffled"):
        assert abs(gain[name]) < 0.1, gain
    for run in runs.values():
        assert 0 <= run.metrics["judge"] <= 1
        assert run.scores()["judge"].mean() == pytest.approx(run.metrics["judge"])
        assert math.isfinite(run.metrics["perplexity/calm"])
        assert run.cost.drawn == 16 * 4 * (6 if run.axes["policy"] == "best_of_n" else 1)
        assert run.cost.flops > 0
        assert run.kind == "call"
        assert run.parents["model"] == json.loads((folder / "model/record.json").read_text())["key"]
    assert (folder / "model/model.safetensors").read_bytes() == weights
    page = (folder / "activation.md").read_text()
    for heading in (
        "policies on the test prompts",
        "what the rounds gain",
        "side effects",
        "what the search chose",
        "cost of each run",
        "answers side",
        "failures after round 2",
    ):
        assert f"## {heading}" in page
    assert (folder / "activation.png").stat().st_size > 10_000
    (folder / "activation.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "activation.md").read_text() == page
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")}
    assert study(config, *trains) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")} == before
    assert "0 runs to do" in capsys.readouterr().out
    # More test answers are other reports on the same rounds.
    words = ["studies.activation.test_answers=1", "studies.activation.baselines=[]"]
    assert study(config, *trains, *words) == 0
    assert "4 runs to do" in capsys.readouterr().out


def test_samples_scores_and_banks_are_records(config, tmp_path):
    words = ["studies.activation.baselines=[]", "studies.activation.share=0.5"]
    assert study(config, *words) == 0
    folder = tmp_path / "runs/s"
    banks = []
    for number in (1, 2):
        run = folder / f"round-{number}-seed0"
        rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        assert len(rows) == 48
        assert all(len(row["answers"]) == len(row["scores"]) == 6 for row in rows)
        bank = [json.loads(line) for line in (run / "bank.jsonl").read_text().splitlines()]
        for pair, row in zip(bank[len(banks) :], rows, strict=False):
            assert pair["better"] in row["answers"] or pair["prompt"] != row["prompt"]
        record = Store(folder).find(json.loads((run / "record.json").read_text())["key"])
        assert record.summary["bank"] == len(bank)
        assert record.summary["used"] == math.ceil(len(bank) / 2)
        assert bank[: len(banks)] == banks  # the memory grows
        banks = bank
        assert all(edit.scope == "decoded" for edit in load_edits(run / "edits.safetensors")[0])


def test_a_killed_study_says_the_same(config, tmp_path):
    """Runs that are gone are done again, to the letter."""
    words = ["studies.activation.baselines=[shuffled]"]
    assert study(config, *words) == 0
    folder = tmp_path / "runs/s"
    before = {p.name: p.read_text() for p in folder.glob("round-2-seed0/*.jsonl")}
    rows = json.loads((folder / "activation.json").read_text())
    for gone in ("round-2-seed0", "report-round-2-seed0"):
        shutil.rmtree(folder / gone)
    assert study(config, *words) == 0
    assert {p.name: p.read_text() for p in folder.glob("round-2-seed0/*.jsonl")} == before
    again = json.loads((folder / "activation.json").read_text())
    for one, other in zip(rows, again, strict=True):
        assert one["metrics"] == other["metrics"]


def test_a_constant_ranker_changes_nothing(config, tmp_path):
    """No pair, no edit: the rounds' policy is the base's, to the bit."""
    (tmp_path / "rank.py").write_text(
        "def flat(prompt, answers):\n    return [1.0] * len(answers)\n"
    )
    words = [
        f"studies.activation.ranker={tmp_path}/rank.py:flat",
        "studies.activation.baselines=[]",
    ]
    assert study(config, *words) == 0
    runs = by_policy(tmp_path / "runs/s")
    assert load_edits(tmp_path / "runs/s/round-2-seed0/edits.safetensors")[0] == []
    for number in (1, 2):
        run, base = runs[f"round {number}"], runs["base"]
        assert run.metrics == base.metrics
        assert (run.folder / "answers.jsonl").read_text() == (
            base.folder / "answers.jsonl"
        ).read_text()


def test_another_ranker_in_the_same_file_is_another_run(config, tmp_path, capsys):
    file = tmp_path / "rank.py"
    words = [
        f"studies.activation.ranker={file}:score",
        "studies.activation.baselines=[]",
        "studies.activation.rounds=1",
    ]
    file.write_text("def score(prompt, answers):\n    return [len(a) for a in answers]\n")
    assert study(config, *words) == 0
    capsys.readouterr()
    assert study(config, *words) == 0
    assert "0 runs to do" in capsys.readouterr().out
    file.write_text("def score(prompt, answers):\n    return [-len(a) for a in answers]\n")
    assert study(config, *words, "output=" + str(tmp_path / "other")) == 0
    keys = [
        {json.loads((p / "record.json").read_text())["key"] for p in place.glob("round-1-seed0*")}
        for place in (tmp_path / "runs/s", tmp_path / "other/s")
    ]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("ranker", ["self", "self_pairs"])
def test_the_model_ranks_itself(config, tmp_path, ranker):
    words = [
        f"studies.activation.ranker={ranker}",
        "studies.activation.search=pairs",
        "studies.activation.baselines=[]",
        "studies.activation.compose=previous",
        "studies.activation.direction={name: householder, epochs: 1}",
        "studies.activation.question='{prompt}|{a}|{b}'",
    ]
    assert study(config, *words) == 0
    runs = by_policy(tmp_path / "runs/s")
    assert [*runs] == ["base", "round 1", "round 2", "prefix"]


def test_rounds_by_likelihood_and_the_last_function_at_the_same_harm(config, tmp_path):
    """Shifts of all blocks at once; from the second round on the last ones are a set of the search."""
    words = [
        "studies.activation.direction={name: likely, epochs: 4, lr: 0.1, beta: 0.3}",
        "studies.activation.blocks=[]",
        "studies.activation.strengths=[0.5, 1.0]",
        "studies.activation.baselines=[]",
    ]
    assert study(config, *words) == 0
    folder = tmp_path / "runs/s"
    runs = by_policy(folder)
    assert runs["round 2"].metrics["judge"] > runs["base"].metrics["judge"] + 0.1
    first, second = (
        json.loads((folder / f"round-{number}-seed0/record.json").read_text())["summary"]
        for number in (1, 2)
    )
    assert len(first["edits"]) == 2  # both blocks
    assert [len(trial["edits"]) for trial in second["search"]] == [0, 2, 2, 2, 2, 2]
    assert first["edits"] in [trial["edits"] for trial in second["search"]]
    assert second["edits"] == second["search"][second["chosen"]]["edits"]
    assert study(config, "studies.activation.direction={name: likely, beta: -1}") == 2


# ---- a model of transformers by path


@pytest.fixture
def model(tmp_path):
    """A folder of `save_pretrained`: a llama of a few thousand weights and a tokenizer of words."""
    vocabulary = {word: number for number, word in enumerate(["</s>", "<unk>", "A", "B", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "vocab_size": len(vocabulary),
    }
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **special))
    judge = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("llama", num_labels=1, **sizes, **special)
    )
    for name, one in {"llama": llama, "judge": judge}.items():
        one.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "llama"


def test_a_model_by_path_and_prompts_as_of_ultrafeedback(model, tmp_path):
    """No weight is trained; prompts, and labelled pairs, come from JSONL; a classifier judges."""
    draw = np.random.default_rng(0)
    rows = [
        {
            "prompt": " ".join(draw.choice(WORDS, 5)),
            "chosen": "good kind cat",
            "rejected": "bad rude dog",
        }
        for _ in range(40)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "texts.txt").write_text("the old cat sees the tree \n\n a red bird hears the dog")
    (tmp_path / "rank.py").write_text(
        "def kind(prompt, answers):\n    return [a.count('kind') - a.count('rude') for a in answers]\n"
    )
    path = tmp_path / "hf.yaml"
    path.write_text(
        f"""name: hf
output: {tmp_path}/runs
task:
  name: language
  tokenizer: {model}
  length: 16
  data: {{source: files, separator: "\\n\\n", held_out: 0.5, paths: {{texts: {tmp_path}/texts.txt}}}}
target: {{name: {model}, pretrained: name}}
method: erm
train: {{samples: 1, batch_size: 1}}
device: cpu
studies:
  activation:
    ranker: {tmp_path}/rank.py:kind
    judge: {tmp_path}/judge
    prompts: {tmp_path}/prompts.jsonl
    pairs: {tmp_path}/prompts.jsonl
    train_prompts: 16
    valid_prompts: 6
    test_prompts: 8
    answers: 4
    test_answers: 1
    length: 8
    rounds: 1
    budget: 5
    baselines: [supervised, best_of_n]
"""
    )
    assert study(path) == 0
    runs = by_policy(tmp_path / "runs/hf")
    assert [*runs] == ["base", "round 1", "supervised", "best_of_n"]
    assert not (tmp_path / "runs/hf/model").exists()
    answers = [
        json.loads(x) for x in (runs["best_of_n"].folder / "answers.jsonl").read_text().splitlines()
    ]
    assert {row["prompt"] for row in answers} <= {row["prompt"] for row in rows}
    assert study(path, "studies.activation.train_prompts=100") == 1
    assert study(path, "studies.activation.column=question") == 1


def test_a_task_without_texts_is_told_before_anything_is_trained(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    assert study(path, "method=erm", "studies.activation.goal=x") == 2
    assert "needs a task of texts, such as language" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*"))


# ---- parts


def test_blocks_begin_with_their_tag():
    blocks = pack({"a": ["hello world " * 40], "b": ["other words " * 40]}, Bytes(), 16)
    half = tagged(blocks, 0.5, seed=3)
    assert np.array_equal(half.tokens[:, 1:], blocks.tokens[:, 1:])
    for domain in (0, 1):
        first = half.tokens[blocks.domain == domain, 0]
        assert {*first.tolist()} == {NEUTRAL, TAGS[domain]}
        assert 0.2 < (first == NEUTRAL).mean() < 0.8
    assert (tagged(blocks, 0.0, 0).tokens[:, 0] == NEUTRAL).all()
    assert half.fingerprint() != blocks.fingerprint()


def test_tags_are_for_bytes_and_for_as_many_domains_as_there_are():
    with pytest.raises(SteeringError, match=r"data\.tags: are bytes"):
        LanguageOptions(tokenizer="a/folder", data=LanguageData(tags=True))
    paths = {f"domain {number}": "x" for number in range(len(TAGS) + 1)}
    with pytest.raises(SteeringError, match="tags: there are 25 for 26 domains"):
        LanguageData(source="files", paths=paths, tags=True)
    assert not {*TAGS, NEUTRAL} & {*b"\t\n\r"}


def test_other_tasks_have_no_texts():
    task = toys.Toy(toys.Options("toy"))
    for ask in (task.documents, lambda: task.text_model(None)):
        with pytest.raises(SteeringError, match="needs a task of texts, such as language"):
            ask()


def test_ranker_and_judge_tell_the_goal_from_other_texts_of_their_own():
    documents = {"loud": ["bang boom crash " * 400], "calm": ["soft slow still " * 400]}
    ranker = judges.goal_ranker(documents, "loud", 16)
    judge = judges.goal_judge(documents, "loud", 16)
    answers = [["boom crash bang", "slow still"], ["soft", "bang"]]
    for scores, middle in ((ranker(["x", "y"], answers), 0.0), (judge(["x", "y"], answers), 0.5)):
        assert scores[0][0] > middle > scores[0][1]
        assert scores[1][1] > middle > scores[1][0]
    halves = [judges.pieces(documents["loud"], 16, half) for half in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == 200
    for goal in ("none", ""):
        with pytest.raises(SteeringError, match="one of several domains, loud, calm"):
            judges.goal_ranker(documents, goal, 16)


def test_a_function_that_gives_wrong_scores_is_named(tmp_path):
    file = tmp_path / "rank.py"
    file.write_text(
        "def few(p, a):\n    return [1.0]\n\ndef nan(p, a):\n    return [float('nan')] * len(a)\n"
    )
    for name in ("few", "nan"):
        with pytest.raises(SteeringError, match=rf"ranker: {name} gave .* for 2 answers"):
            judges.of_function(f"{file}:{name}", "ranker")(["x"], [["a", "b"]])
    with pytest.raises(SteeringError, match="no function 'gone'"):
        judges.of_function(f"{file}:gone", "ranker")


def test_dpo_and_sppo_are_their_equations():
    better, worse, margin = (torch.tensor([x], dtype=torch.float64) for x in (0.7, -0.4, 2.0))
    wanted = math.log(1 + math.exp(-0.5 * 1.1))
    assert dpo_loss(0.5, better, worse, margin).item() == pytest.approx(wanted)
    p = 1 / (1 + math.exp(-2.0))
    wanted = 0.5 * ((0.7 - 3 * (p - 0.5)) ** 2 + (-0.4 - 3 * ((1 - p) - 0.5)) ** 2)
    assert sppo_loss(3.0, better, worse, margin).item() == pytest.approx(wanted)


def test_each_seed_draws_its_own_prompts_and_no_part_shares_one(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(60)))
    how = Prompting(str(file), "prompt", "", "", "", "", 16, 30, 10, 20, 8, 1.0)
    text = TextModel(torch.nn.Identity(), Bytes(), None)
    first, again, other = (split_prompts(None, text, how, seed) for seed in (0, 0, 1))
    assert first == again
    assert [len(part) for part in first.values()] == [30, 10, 20]
    assert len({*first["train"], *first["valid"], *first["test"]}) == 60
    assert {*first["test"]} != {*other["test"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "goal: a domain of the task"),
        ({"goal": "x", "answers": 1}, "one answer cannot be ranked"),
        ({"goal": "x", "share": 0.0}, "share"),
        ({"goal": "x", "scope": "some"}, "scope: expected one of"),
        ({"goal": "x", "choose": "luck"}, "choose: expected one of"),
        ({"goal": "x", "strengths": [0.0, 1.0]}, "strengths above 0"),
        ({"goal": "x", "valid_answers": 0}, "valid_answers: expected at least 1"),
        ({"goal": "x", "baselines": ["ppo"]}, "no 'ppo'; there are random"),
        ({"goal": "x", "ranker": "self"}, "goal_prefix: expected another text"),
        ({"goal": "x", "ranker": "self_pairs"}, "search: wins compare"),
        ({"ranker": "a.py:f", "judge": "a.py:f"}, "judge: expected another one"),
        ({"goal": "x", "test_prompts": 0}, "test_prompts: expected at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ActivationOptions(**changes)


def test_mistakes_are_one_line(config, capsys):
    for word, said in {
        "studies.activation.goal=quiet": "goal: expected one of the domains calm, loud; got 'quiet'",
        "studies.activation.ranker=nowhere": "ranker: expected goal, self, self_pairs, file.py",
        "studies.activation.direction={name: up}": "no direction 'up'; known: householder",
        "studies.activation.direction={name: pca, x: 1}": "studies.activation.direction: ",
        "studies.activation.direction={name: null, ridge: 1}": "no direction 'None'",
        "studies.activation.length=40": "prompts are wanted",
        "studies.activation.blocks=[h.9]": "blocks: the model has no 'h.9'; such as transformer.h.0",
        "studies.activation.goall=x": "did you mean 'studies.activation.goal'?",
    }.items():
        assert study(config, word) in (1, 2), word
        shown = capsys.readouterr().err
        assert said in shown, (word, shown)
        assert "Traceback" not in shown, (word, shown)
