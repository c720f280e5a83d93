"""`steering dry-run`: what a training will take, before there are data, weights or a GPU."""

from __future__ import annotations

import json
from dataclasses import asdict

from steering.config import RunConfig
from steering.console import CONSOLE, in_bytes, in_columns, in_time, print_lines
from steering.runs.ask import reference_training, trains_reference
from steering.runs.forecast import Forecast, Network, forecast
from steering.runs.gpus import GOOD, GPUS, MEASURED

Lines = list[list[str]]


def dry_run(config: RunConfig, json: bool = False) -> Forecast:
    """`steering dry-run CONFIG`: print the forecast of the training that `steering train` would do.

    Args:
        json: print it as one JSON object.
    """
    found = forecast(config)
    if json:
        _print_json(config, found)
        return found
    print_lines(CONSOLE, in_columns(_about(config, found)), clip=False)
    print_lines(CONSOLE, ["", *in_columns(_hours(config, found))], clip=False)
    note = (
        f"Shares of the peak are assumptions: {MEASURED:.0%} is what a published run of this kind got,"
        f" {GOOD:.0%} what a trainer gets whose data never keep it waiting. Matrix products of the"
        " loss and evaluations are not counted."
    )
    CONSOLE.print(f"\n{note}")
    if trains_reference(config) and found.reference is not None:
        _before(config)
    return found


def _about(config: RunConfig, found: Forecast) -> Lines:
    examples = f"unknown: {found.unknown}; set dry_run.examples"
    if found.examples is not None:
        epochs = found.drawn / found.examples
        examples = f"{found.examples:,}, each drawn {epochs:.3g} times"
    lines = [["run", f"{config.name}, method {config.method.name}"]]
    lines += [["target", _network(found.target)]]
    if found.reference is not None:
        place = "outputs stored" if found.stored else "live"
        lines += [["reference", f"{_network(found.reference)}; {place}"]]
        lines += [["its outputs", _outputs(found)]]
    lines += [["examples", examples]]
    lines += [["steps", f"{found.steps:,} of {config.train.batch_size:,} examples"]]
    lines += [["trained on", f"{found.samples:,} examples"]]
    if found.scored:
        lines += [["scored", f"{found.scored:,} examples, of which the method selects"]]
    lines += [
        ["processes", f"{found.processes}, {_share(config, found):,} examples a forward pass"]
    ]
    if found.dual_bytes is None:
        lines += [["running estimates", "unknown, as the number of examples is"]]
    else:
        lines += [["running estimates", f"{in_bytes(found.dual_bytes)} in each process"]]
    lines += [["FLOPs", f"{found.flops:.3g}{_storing(found)}"]]
    return lines


def _network(network: Network) -> str:
    flops = f"{network.flops / 1e9:.4g} GFLOPs" if network.flops else "uncounted FLOPs"
    return f"{network.name}: {network.parameters:,} parameters, {flops} forward on an example"


def _outputs(found: Forecast) -> str:
    """Shapes of the reference's outputs and their bytes on disk, or what these would be."""
    assert found.reference is not None
    shapes = found.reference.outputs.items()
    told = ", ".join(f"{name} {list(shape) if shape else '(a number)'}" for name, shape in shapes)
    each = found.reference.output_bytes
    if found.examples is None:
        return f"{told}; {in_bytes(each)} an example stored"
    verb = "are" if found.stored else "would be"
    return f"{told}; stored they {verb} {in_bytes(each * found.examples)}"


def _storing(found: Forecast) -> str:
    if found.storing_flops is None:
        return ", and one pass of the reference over the data"
    return f", and {found.storing_flops:.3g} for the stored outputs" if found.storing_flops else ""


def _share(config: RunConfig, found: Forecast) -> int:
    return config.train.batch_size // (found.processes * config.train.accumulation)


def _hours(config: RunConfig, found: Forecast) -> Lines:
    """Wall time on each GPU, and GPU hours."""
    flops, processes = found.flops + (found.storing_flops or 0), found.processes
    lines = [["GPU", f"at {MEASURED:.0%} of its peak", "GPU hours", f"at {GOOD:.0%}", "GPU hours"]]
    for gpu in GPUS:
        line = [f"{processes} x {gpu.name}"]
        for share in (MEASURED, GOOD):
            seconds = gpu.seconds(flops, processes, config.train.precision, share)
            line += [in_time(seconds), f"{seconds * processes / 3600:,.3g}"]
        lines += [line]
    return lines


def _before(config: RunConfig) -> None:
    """The training of the reference itself, if `reference.train` asks for one."""
    before = forecast(reference_training(config).config)
    CONSOLE.print(
        f"The reference is trained first: {before.steps:,} steps, {before.flops:.3g} FLOPs.",
        soft_wrap=True,
    )


def _print_json(config: RunConfig, found: Forecast) -> None:
    flops, precision = found.flops + (found.storing_flops or 0), config.train.precision
    hours = {
        f"{gpu.name} at {share}": gpu.seconds(flops, found.processes, precision, share) / 3600
        for gpu in GPUS
        for share in (MEASURED, GOOD)
    }
    values = asdict(found) | {"cache_bytes": found.cache_bytes, "hours": hours}
    print(json.dumps(values, indent=2))
