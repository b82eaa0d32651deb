"""``freespace calibrate``: what makes the numbers mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from perception.options import Model

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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Turn a float model into an INT8 one; check it with 'evaluate' on labelled frames before you use it."""
    from perception.quantise import quantise_command

    quantise_command(frames, out, model, every, method, activations, tuple(keep or ()), overwrite)
