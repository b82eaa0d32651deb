"""``freespace calibrate``: what makes the numbers mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from perception.options import Model
from perception.training_commands import DATA, SPLITS, failed_writes, training_extra

app = typer.Typer(
    help="Calibrate the camera, its place on the vehicle, the network's INT8 and its confidence.", no_args_is_help=True
)


@app.command()
def quantize(
    frames: Annotated[list[str], typer.Argument(help="Videos, images or folders: some hundred frames like those to come.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.onnx).")],
    model: Model = None,
    every: Annotated[int, typer.Option(help="Take one frame of every N.", min=1)] = 1,
    method: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "minmax",
    activations: Annotated[str, typer.Option(help="uint8 (fastest on processors) or int8 (for TensorRT).")] = "uint8",
    keep: Annotated[
        Optional[list[str]], typer.Option(help="Keep nodes with this in their name in float; the sensitive ones by default.")
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Measure each layer in INT8 alone, worst first.")] = False,
    keep_worst: Annotated[Optional[int], typer.Option(help="Keep the N most sensitive layers in float.", min=0)] = None,
    lose: Annotated[
        Optional[float], typer.Option(help="Keep as many in float as it takes: mean difference of scores, such as 0.0025.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Turn a float model into an INT8 one; check it with 'evaluate' on labelled frames before you use it."""
    from perception.quantise import quantise_command

    kept = tuple(keep or ())
    quantise_command(frames, out, model, every, method, activations, kept, overwrite, sensitivity, keep_worst, lose)


@app.command()
def confidence(
    data: Annotated[Path, DATA],
    model: Annotated[Optional[str], typer.Argument(help="Model file (.onnx); the shipped one by default.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="Calibrated model file to write (.onnx).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only measure the model as it is.")] = False,
    split: Annotated[Optional[str], typer.Option(help="dev to fit on and val to --check on, by default.")] = None,
    method: Annotated[str, typer.Option(help="temperature (moves no decision), affine or isotonic.")] = "temperature",
    splits: Annotated[Optional[Path], SPLITS] = None,
    report: Annotated[Optional[Path], typer.Option(help="JSON file to write what was measured to.")] = None,
    diagram: Annotated[Optional[Path], typer.Option(help="Reliability diagram to write (.png).")] = None,
    backend: Annotated[str, typer.Option(help="What runs the network, as for 'run'.")] = "onnxruntime",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Make scores and polygons say how often they are right: fit them to labelled frames, or --check a model on some."""
    with training_extra():
        from perception.confidence_command import confidence_command
    with failed_writes():
        confidence_command(model, data, out, split, method, splits, report, diagram, check, overwrite, backend)
