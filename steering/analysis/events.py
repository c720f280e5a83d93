"""TensorBoard events of a page, written without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def write_events(folder: Path, name: str, text: str, pictures: Mapping[str, bytes]) -> None:
    """One text and some pictures as an event file; earlier event files of the same name are
    replaced.

    Args:
        folder: becomes the run's name in TensorBoard.
        name: tag of the text and of the first picture.
        pictures: name -> PNG.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{name}"
    for old in folder.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    words = TensorProto(
        dtype="DT_STRING",
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    values = [Summary.Value(tag=f"{name}/text_summary", metadata=plugin, tensor=words)]
    for key, picture in pictures.items():
        width, height = (
            int.from_bytes(picture[at : at + 4]) for at in (16, 20)
        )  # where a PNG has them
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=picture
        )
        values.append(Summary.Value(tag=f"{name}/{key}" if key else name, image=image))
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=values)))
    writer.close()


@dataclass(frozen=True)
class Curve:
    """One line of a study: values by step, and how far a band reaches to both sides; an error of 0
    draws none."""

    steps: Sequence[int]
    mean: Sequence[float]
    error: Sequence[float]


def write_curves(folder: Path, name: str, curves: Mapping[str, Curve]) -> None:
    """Means and bands as scalars `study/TAG`, `study/TAG/low` and `study/TAG/high`; earlier ones of
    the same name are replaced.

    Args:
        folder: becomes the run's name in TensorBoard: of a method, or of the reference.
        curves: tag -> its curve.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{name}"
    for old in folder.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    for tag, curve in curves.items():
        for step, mean, error in zip(curve.steps, curve.mean, curve.error, strict=True):
            lines = {"": mean}
            if error > 0:
                lines |= {"/low": mean - error, "/high": mean + error}
            values = [
                Summary.Value(tag=f"study/{tag}{end}", simple_value=value)
                for end, value in lines.items()
            ]
            writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    writer.close()
