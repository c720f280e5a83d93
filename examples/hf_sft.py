"""Supervised fine-tuning of a small language model, steered token by token by a smaller one.

    python examples/hf_sft.py
    python examples/hf_sft.py --model PATH_OR_NAME --reference PATH_OR_NAME

The task is to write the first sentence of a function's docstring after its signature, on functions
of Python's standard library, so nothing is downloaded. In the training set a quarter of the letters
are mistyped. The reference has learnt from a few clean examples. Without --model both models are
made here, of bytes; on one core that is all under a minute.

Measured with --seed 0, 1 and 2: the reference 2.40, plain 2.47 to 2.54, Rho-1 2.30 to 2.36, DRRho
2.34 to 2.40 nats per token. That shows that the parts work together, and which way steering moves a
model where a share of the tokens is noise that a reference can tell; no more. It is a toy. Where
noise came in one piece, so that a model can see it coming, plain training was better than both.
"""

import argparse
import ast
import json
import random
import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from steering.integrations.hugging_face import SteeringTrainer

END, PAD, LENGTH = 256, 257, 96
MISTYPED, CLEAN = 0.25, 300  # share of letters; examples that the reference learns from
STEERS = {
    "plain": None,
    "rho1": "rho1",  # the tokens of the largest excess loss alone
    "drrho": {"name": "drrho", "tau": 2.0},
}


def functions():
    """(signature, first sentence) of the documented functions of the standard library."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                sentence = " ".join(text.split("\n\n")[0].split()).partition(". ")[0]
                found.append((f"{node.name}({ast.unparse(node.args)})"[:40] + ": ", sentence))
    random.Random(0).shuffle(found)
    return found


def source_text():
    """Blocks of the standard library's other source."""
    files = sorted(Path(sysconfig.get_path("stdlib"), "email").glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    return [text[i : i + LENGTH - 1] for i in range(0, len(text), LENGTH)]


def mistyped(text, draw):
    """With some letters replaced by any others: nothing tells beforehand which."""
    return "".join(chr(draw.randrange(33, 127)) if draw.random() < MISTYPED else c for c in text)


class Pairs(torch.utils.data.Dataset):
    """Prompts and completions; only the completion's tokens have labels."""

    def __init__(self, pairs, encode, end):
        self.items = []
        for prompt, completion in pairs:
            first, second = encode(prompt), [*encode(completion), end]
            ids = (first + second)[:LENGTH]
            labels = ([-100] * len(first) + second)[:LENGTH]
            self.items.append({"input_ids": ids, "labels": labels})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(items):
    """Padding on the right, which has no label."""
    longest = max(len(item["labels"]) for item in items)
    rows = {"input_ids": PAD, "labels": -100, "attention_mask": 0}
    found = {name: [] for name in rows}
    for item in items:
        item = {**item, "attention_mask": [1] * len(item["labels"])}
        for name, filler in rows.items():
            found[name].append(item[name] + [filler] * (longest - len(item[name])))
    return {name: torch.tensor(value) for name, value in found.items()}


def small(width, layers):
    """A causal model of bytes, with random weights."""
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            **shape,
            num_attention_heads=4,
            vocab_size=258,
            max_position_embeddings=LENGTH,
            bos_token_id=END,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )


def trained(model, data, steps, lr, folder, **steering):
    """A trainer that has run; steered if `steer` is among the arguments."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=lr,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=0,
    )
    kind = SteeringTrainer if steering else Trainer
    trainer = kind(model, arguments, train_dataset=data, data_collator=collate, **steering)
    trainer.train()
    return trainer


def models(options, encode, end, folder):
    """A function that makes the target anew, and the reference."""
    if options.model:
        reference = AutoModelForCausalLM.from_pretrained(options.reference or options.model)
        return lambda: AutoModelForCausalLM.from_pretrained(options.model), reference
    source = Pairs([("", text) for text in source_text()], encode, end)  # both read this first
    target = trained(small(64, 2), source, options.steps, 3e-3, folder).model.state_dict()
    reference = trained(small(32, 1), source, options.steps, 5e-3, folder).model

    def make():
        model = small(64, 2)
        model.load_state_dict(target)
        return model

    return make, reference


def main(options: argparse.Namespace) -> dict[str, float]:
    """Loss on clean completions that were held out, nats per token, by how it was trained."""
    set_seed(options.seed)
    encode, end = (lambda text: list(text.encode())), END
    if options.model:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        end = tokenizer.eos_token_id

        def encode(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

    pairs, draw = functions(), random.Random(options.seed)
    known, held_out, training = pairs[:CLEAN], pairs[CLEAN : 2 * CLEAN], pairs[2 * CLEAN :]
    noisy = [(prompt, mistyped(text, draw)) for prompt, text in training]
    clean, noisy, held_out = (Pairs(some, encode, end) for some in (known, noisy, held_out))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make, reference = models(options, encode, end, folder)
        reference = trained(reference, clean, options.steps, options.lr, folder)
        found["reference"] = reference.evaluate(held_out)["eval_loss"]
        for name, steer in STEERS.items():
            set_seed(options.seed)
            steered = {"steer": steer, "ref_model": reference.model, "unit": "token"}
            trainer = trained(
                make(), noisy, options.steps, options.lr, folder, **(steered if steer else {})
            )
            found[name] = trainer.evaluate(held_out)["eval_loss"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or name of a causal model to tune")
    parser.add_argument("--reference", help="of the reference; default: the model before tuning")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=2e-3, help="1e-5 suits a model of a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    options = parser.parse_args()
    result = main(options)
    for name, loss in result.items():
        print(f"{name:9} {loss:.3f} nats per token of clean completions that were held out")
    if options.json:
        options.json.write_text(json.dumps(result))
