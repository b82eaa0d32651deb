"""``freespace calibrate``: what makes the numbers mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from perception.errors import BadInput
from perception.options import Model, board_of
from perception.signals import INTERRUPTED, stop_on_signal
from perception.training_commands import DATA, SPLITS, failed_writes, training_extra

app = typer.Typer(
    help="Calibrate the camera, its place on the vehicle, the network's INT8 and its confidence.", no_args_is_help=True
)


@app.command()
def camera(
    sources: Annotated[list[str], typer.Argument(help="Photographs, folders or videos of the board; with --live a camera.")],
    size: Annotated[str, typer.Option(help="Of a chessboard its inner corners, of a ChArUco board its squares: 9x6.")],
    square: Annotated[float, typer.Option(help="Side of a square, metres.")],
    out: Annotated[Path, typer.Option(help="Camera file to write (.yaml).")],
    pattern: Annotated[str, typer.Option(help="chessboard or charuco.")] = "chessboard",
    marker: Annotated[Optional[float], typer.Option(help="Of a ChArUco board: side of a marker, metres.")] = None,
    dictionary: Annotated[str, typer.Option(help="Of a ChArUco board: OpenCV's name of its markers.")] = "DICT_5X5_100",
    model: Annotated[str, typer.Option(help="pinhole, rational (wide) or fisheye.")] = "pinhole",
    name: Annotated[str, typer.Option(help="What the camera is called.")] = "camera",
    pictures: Annotated[Optional[Path], typer.Option(help="Folder for coverage.png and undistortion.png.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Take views from a camera, saying what is missing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Find a camera's intrinsics from views of a chessboard or ChArUco board."""
    from perception.calibrate_camera import calibrate_camera

    board = board_of(pattern, size, square, marker, dictionary)
    with stop_on_signal() as stop, failed_writes():
        interrupted = calibrate_camera(sources, board, model, out, name, pictures, live, overwrite, stop)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def ground(
    camera: Annotated[Path, typer.Option(help="Camera file, as 'calibrate camera' writes it (.yaml).")],
    out: Annotated[Path, typer.Option(help="Camera file to write, with the mount (.yaml).")],
    points: Annotated[Optional[Path], typer.Option(help="Points of the ground: pixels and metres (.yaml).")] = None,
    board: Annotated[Optional[str], typer.Option(help="Picture of a chessboard that lies on the ground.")] = None,
    size: Annotated[Optional[str], typer.Option(help="Of the board: inner corners such as 9x6.")] = None,
    square: Annotated[Optional[float], typer.Option(help="Of the board: a square's side, metres.")] = None,
    board_at: Annotated[
        Optional[str], typer.Option(help="X,Y,YAW of the board: its middle, metres, and its first side, radians.")
    ] = None,
    lines: Annotated[Optional[str], typer.Option(help="Recording of a straight, level road with lane lines.")] = None,
    motion: Annotated[Optional[str], typer.Option(help="Recording of driving straight on.")] = None,
    height: Annotated[
        Optional[float], typer.Option(help="Of the lens above the ground, metres; for --lines and --motion.")
    ] = None,
    roll: Annotated[Optional[float], typer.Option(help="Of the camera, radians; for --lines and --motion.")] = None,
    position: Annotated[
        Optional[str],
        typer.Option(help="X,Y of the camera, metres ahead and left of base_link; for --lines, --motion, --board."),
    ] = None,
    start: Annotated[float, typer.Option(help="Of a recording: begin at this media time, seconds.")] = 0.0,
    duration: Annotated[Optional[float], typer.Option(help="Of a recording: take this much, seconds.")] = None,
    every: Annotated[Optional[int], typer.Option(help="One frame of every N; 10 for --lines, else 1.", min=1)] = None,
    image: Annotated[
        Optional[str], typer.Option(help="The picture that --points were read from: its size, and for --picture.")
    ] = None,
    picture: Annotated[Optional[Path], typer.Option(help="Check picture to write: horizon, grid, residuals (.png).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Find where the camera sits on the vehicle: give one of --points, --board, --lines and --motion."""
    from perception.calibrate_ground import ground_command
    from perception.capture import Selection

    selection = None
    if start or duration is not None or every is not None:
        selection = Selection(start, duration, every or (10 if lines is not None else 1))
    shown = (points, board, size, square, board_at, lines, motion)
    ground_command(camera, out, *shown, height, roll, position, selection, image, picture, overwrite)


@app.command()
def quantize(
    sources: Annotated[
        Optional[list[str]],
        typer.Argument(help="Videos, images or folders: some hundred frames like those to come; with --frames the model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Model file to write (.onnx).")] = ...,  # type: ignore[assignment]
    model: Model = None,
    frames: Annotated[
        Optional[list[str]], typer.Option(help="The same, where the model comes first: MODEL --frames ...")
    ] = None,
    every: Annotated[int, typer.Option(help="Take one frame of every N.", min=1)] = 1,
    method: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "minmax",
    activations: Annotated[str, typer.Option(help="uint8 (fastest on processors) or int8 (for TensorRT).")] = "uint8",
    keep: Annotated[
        Optional[list[str]],
        typer.Option(help="Keep nodes with this in their name in float, or none; the sensitive ones by default."),
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

    shown, kept = list(sources or ()), tuple(keep or ())
    if frames:
        if len(shown) + bool(model) > 1:
            raise BadInput(
                f"with --frames one model, and nothing else: got {' and '.join([*shown, *([model] if model else [])])}"
            )
        shown, model = list(frames), shown[0] if shown else model
    if not shown:
        raise BadInput("no frames: give videos, images or folders, some hundred frames like those to come")
    quantise_command(shown, out, model, every, method, activations, kept, overwrite, sensitivity, keep_worst, lose)


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
