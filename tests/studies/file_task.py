"""The toy task with a file of data: a number that shifts every vector."""

from dataclasses import dataclass
from pathlib import Path

import toys

from steering.storage import sha256


@dataclass
class FileOptions(toys.Options):
    path: str = "???"
    """A file with a number."""


class Shifted(toys.Vectors):
    def __init__(self, options, seed, dtype):
        super().__init__(options, seed, dtype)
        self.image = self.image + float(Path(options.path).read_text())

    def fingerprint(self):
        return sha256([self.image.numpy().tobytes()])


class FileTask(toys.Toy):
    Options = FileOptions

    def train_data(self, target, reference, seed):  # noqa: ARG002
        return Shifted(self.options, seed, next(target.module.parameters()).dtype)

    def plain_data(self, model):
        return Shifted(self.options, None, next(model.module.parameters()).dtype)
