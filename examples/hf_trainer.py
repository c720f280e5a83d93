"""Steering in a Hugging Face Trainer: a small language model of Python source, guided by a smaller
one.

    python examples/hf_trainer.py

Needs no download: the text is Python's standard library, the tokens are bytes. What is ours are the
lines with "steer" and "reference" in them.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import steering
from steering.integrations.hugging_face import SteeringTrainer, reference_losses
from steering_tasks.language.corpus import stdlib
from steering_tasks.language.data import corrupted, pack
from steering_tasks.language.tokens import Bytes

LENGTH = 64


class Sequences(torch.utils.data.Dataset):
    """Blocks of bytes; an item carries its own number."""

    def __init__(self, blocks):
        self.tokens = torch.from_numpy(blocks.tokens[blocks.counts == LENGTH, :-1].astype("int64"))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": self.tokens[i], "index": torch.tensor(i)}


def collate(items):
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def model(width, layers):
    torch.manual_seed(0)
    shape = {
        "n_embd": width,
        "n_layer": layers,
        "n_head": 4,
        "n_positions": LENGTH,
        "vocab_size": 257,
    }
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", **shape, bos_token_id=256, eos_token_id=256)
    )


def arguments(folder, steps, lr):
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=lr,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )


def main(steps: int = 150) -> dict[str, float]:
    """Validation loss of plain training and of steered training, nats per byte."""
    train, validation = stdlib(("email", "xml"))
    clean = pack(train, Bytes(), LENGTH)
    noisy = Sequences(
        corrupted(clean, {1: 0.5}, 256, seed=0)
    )  # half the bytes of one domain are random
    held_out = Sequences(pack(validation, Bytes(), LENGTH))
    held_out.tokens = held_out.tokens[:300]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = model(32, 1)
        Trainer(
            reference,
            arguments(folder, steps, 5e-3),
            train_dataset=Sequences(clean),
            data_collator=collate,
        ).train()
        guide = reference_losses(reference, noisy, collate)
        for name in ("plain", "steered"):
            target, shared = (
                model(64, 2),
                {"train_dataset": noisy, "eval_dataset": held_out, "data_collator": collate},
            )
            if name == "plain":
                trainer = Trainer(target, arguments(folder, steps, 3e-3), **shared)
            else:
                steer = steering.DRRho(num_examples=len(noisy), tau=0.5)
                options = {"steer": steer, "reference_losses": guide}
                trainer = SteeringTrainer(
                    target, arguments(folder, steps, 3e-3), **shared, **options
                )
            trainer.train()
            found[name] = trainer.evaluate()["eval_loss"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    options = parser.parse_args()
    result = main(options.steps)
    for name, loss in result.items():
        print(f"{name}: {loss:.3f} nats per byte on clean text that was held out")
    print(
        "The evaluation above is each model's own loss. The train_loss of the steered run is another thing, a risk of excess"
        " losses, the target's less the reference's: below zero the target is better than its reference where it counts most."
    )
    if options.json:
        options.json.write_text(json.dumps(result))
