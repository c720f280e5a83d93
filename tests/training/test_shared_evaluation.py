"""Every process evaluates its share: two find what one finds, to the score, for every task of
ours."""

import json
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from clip.made_data import CAPTIONS, drawing, members, model_json, png, write_shard

from steering.task import ModelSpec
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.options import ClassificationData
from steering_tasks.clip import ClipOptions, ClipTask
from steering_tasks.clip.task import ClipData, ZeroShot
from steering_tasks.language import LanguageOptions, LanguageTask
from steering_tasks.language.task import LanguageData

PATIENCE = 100


def _write(folder):
    """Odd numbers of everything; an image that cannot be read; images with two captions."""
    pictures = np.random.default_rng(0).integers(0, 255, (33, 8, 8), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", image=pictures, label=np.arange(33) % 3)
    files = members(*range(35)) | {
        "00003.png": b"no image",
        "00035.png": png(drawing(5)),
        "00035.txt": b"one more",
    }
    write_shard(folder / "held.tar", files)
    for i in range(7):
        (folder / f"classes/{i}").mkdir(parents=True)
        (folder / f"classes/{i}/x.png").write_bytes(png(drawing(i)))
    for name in "ab":
        (folder / f"{name}.txt").write_text(
            "\n\n".join(f"{name} document {i} " * 12 for i in range(3))
        )
    (folder / "gpt2.json").write_text(
        '{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}'
    )
    model_json(folder / "clip.json")


def _evaluations(folder):
    arrays = ClassificationData(
        source="arrays", path=f"{folder}/train.npz", test_path=f"{folder}/test.npz", groups="class"
    )
    texts = LanguageData(
        source="files", paths={n: f"{folder}/{n}.txt" for n in "ab"}, separator="\n\n"
    )
    held = f"{folder}/held.tar"
    zero_shot = ZeroShot(path=f"{folder}/classes", classes=CAPTIONS[:7], templates=["{}"])
    tasks = {
        "linear": ClassificationTask(ClassificationOptions(data=arrays)),
        f"{folder}/gpt2.json": LanguageTask(LanguageOptions(data=texts, length=16)),
        f"{folder}/clip.json": ClipTask(
            ClipOptions(
                data=ClipData(source="shards", path=held),
                retrieval={"held": held},
                zero_shot=zero_shot,
            )
        ),
    }
    found = {}
    for name, task in tasks.items():
        torch.manual_seed(0)
        model = task.build(ModelSpec(name))
        model.module.eval()
        evaluation = task.evaluate(model, torch.device("cpu"))
        scores = {
            key: [score.values.tolist(), score.weights.tolist()]
            for key, score in evaluation.scores.items()
        }
        found[name] = {"metrics": evaluation.values(), "scores": scores}
    return found


def _work(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE)
    )
    (folder / f"{rank}.json").write_text(json.dumps(_evaluations(folder)))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    _write(tmp_path)
    mp.start_processes(_work, (tmp_path,), nprocs=2, start_method="forkserver")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = json.loads(json.dumps(_evaluations(tmp_path)))
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        assert first[name]["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)
        assert first[name]["scores"].keys() == expected["scores"].keys()
        for key, (values, weights) in expected["scores"].items():
            np.testing.assert_allclose(first[name]["scores"][key][0], values, rtol=1e-5)
            assert first[name]["scores"][key][1] == weights
    clip = alone[f"{tmp_path}/clip.json"]["scores"]
    assert (
        len(clip["held/image_to_text_R@1"][0]) == 34
    )  # of 36 one cannot be read, and one is another's picture
    assert len(clip["zero_shot_top1"][0]) == 7
