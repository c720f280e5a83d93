"""A new domain in one file: spoken digits, a task that the package knows nothing of.

    steering train configs/audio/digits.yaml
    steering compare configs/audio/digits.yaml task.path=recordings.tar

Reads wav files named DIGIT_SPEAKER_TAKE.wav from a folder or a tar (the Free Spoken Digit Dataset's
layout; takes 0 to 4 are the test part), shows them to a small convolutional net as mel
spectrograms, and gives one loss per recording. Without a path it makes tones of ten pitches, so
that the example runs anywhere. docs/guide-own-task.md walks through it.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from scipy.io import wavfile
from torch import nn

from steering import IndexedData, ReferenceRisk, SteeringError, Task, Units
from steering.data import uniform
from steering.storage import sha256
from steering.task import Evaluation, Model, scores_of

RATE, SECONDS = 8000, 0.75


@dataclass
class AudioOptions:
    name: str = "examples/audio_digits.py:Audio"
    """Says which task this is."""
    path: str | None = None
    """A folder or a tar of DIGIT_SPEAKER_TAKE.wav, 8 kHz; null: synthetic tones."""
    label_noise: float = 0.3
    """Share of the training labels that are replaced by a random digit."""
    part: tuple[float, float] = (0.0, 1.0)
    """The training recordings whose hash lies in [low, high)."""


def read_recordings(path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waveforms, float32 (n, samples), digits, (n,), and whether each is a test recording, (n,)."""
    if path is None:
        return make_tones()
    files = {file.name: file.read_bytes() for file in sorted(Path(path).glob("*.wav"))}
    if Path(path).is_file():
        with tarfile.open(path) as tar:
            members = [member for member in tar.getmembers() if member.name.endswith(".wav")]
            members.sort(key=lambda member: member.name)
            files = {Path(m.name).name: tar.extractfile(m).read() for m in members}
    if not files:
        raise SteeringError(f"task.path: no .wav files in {path}")
    waves = [fixed_length(wavfile.read(io.BytesIO(content))[1]) for content in files.values()]
    names = [Path(name).stem.split("_") for name in files]
    digits, takes = ([int(name[part]) for name in names] for part in (0, 2))
    return np.stack(waves), np.array(digits), np.array(takes) < 5


def make_tones(n: int = 1200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy tones, a pitch for each digit, in place of recordings."""
    number = np.arange(n)
    digit, time = number % 10, np.arange(int(RATE * SECONDS)) / RATE
    pitch = 220 * 2 ** ((digit + 0.8 * uniform(5, number)) / 6)
    noise = uniform(6, number[:, None], np.arange(len(time))) - 0.5
    waves = np.sin(2 * np.pi * pitch[:, None] * time) + 4 * noise
    return waves.astype(np.float32), digit, number % 4 == 0


def fixed_length(wave: np.ndarray) -> np.ndarray:
    """The first 0.75 s in [−1, 1], padded with silence, float32."""
    wave = wave[: int(RATE * SECONDS)].astype(np.float32) / 32768
    return np.pad(wave, (0, int(RATE * SECONDS) - len(wave)))


class Recordings(IndexedData):
    """Waveforms, shifted in time while training: a function of seed, epoch and number alone."""

    def __init__(self, waves: np.ndarray, labels: np.ndarray, seed: int | None = None) -> None:
        self.waves, self.labels, self.seed = waves, labels, seed

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        waves = self.waves[index]
        if self.seed is not None:
            shift = (uniform(self.seed, epoch, index) * RATE / 10).astype(np.int64)
            waves = np.stack([np.roll(wave, by) for wave, by in zip(waves, shift, strict=True)])
        tensors = {"wave": waves, "label": self.labels[index], "index": index}
        return {key: torch.from_numpy(value) for key, value in tensors.items()}

    def fingerprint(self) -> str:
        return sha256([self.waves.tobytes(), self.labels.tobytes()])


class AudioRisk(ReferenceRisk):
    def outputs(self, model, batch, logits=False):
        scores = model(batch["wave"]).float()  # (b, 10)
        loss = F.cross_entropy(scores, batch["label"], reduction="none")  # (b,)
        return {"loss": loss, "logits": scores} if logits else {"loss": loss}

    def losses(self, target, reference, batch):
        given = reference or {}
        logits = {"logits": target.get("logits"), "reference_logits": given.get("logits")}
        return Units(target["loss"], given.get("loss"), **logits)


class Audio(Task):
    Options = AudioOptions

    def __init__(self, options: AudioOptions) -> None:
        self.risk = AudioRisk()
        waves, digits, test = read_recordings(options.path)
        number = np.arange(len(digits))
        wrong = uniform(0, 1, number) < options.label_noise
        labels = np.where(wrong, (uniform(0, 2, number) * 10).astype(np.int64), digits)
        low, high = options.part
        kept = ~test & (low <= uniform(0, 3, number)) & (uniform(0, 3, number) < high)
        self.train, self.test = (waves[kept], labels[kept]), Recordings(waves[test], digits[test])

    def network(self, spec):
        width = int(spec.options.get("width", 16))
        if spec.name != "mel-cnn":
            raise SteeringError(f"target.name: no model {spec.name!r} for audio; expected mel-cnn")
        module = nn.Sequential(
            torchaudio.transforms.MelSpectrogram(RATE, n_fft=256, hop_length=80, n_mels=32),
            torchaudio.transforms.AmplitudeToDB(),
            # (b, 1, mels, frames), each of mean 0 and variance 1
            *(nn.Unflatten(0, (-1, 1)), nn.InstanceNorm2d(1)),
            *(nn.Conv2d(1, width, 5, 2, 2), nn.GroupNorm(4, width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 5, 2, 2), nn.GroupNorm(4, 2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(32 * width, 10)),
        )
        return Model(module, inputs=None, inputs_fingerprint="waves as they are")

    def train_data(self, target, reference, seed):
        return Recordings(*self.train, seed)

    def plain_data(self, model):
        return Recordings(*self.train)

    @torch.no_grad()
    def evaluate(self, model, device):
        batch = self.test.batch(np.arange(len(self.test)), epoch=0)
        right = model.module(batch["wave"].to(device)).argmax(-1).cpu() == batch["label"]
        return Evaluation({"test/accuracy": scores_of(right)})
