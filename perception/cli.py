"""The command line. Exit codes: 0 done, 1 failed at run time, 2 bad usage or input, 130 interrupted."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from perception import __version__
from perception.errors import BadInput, FreespaceError, tell

if TYPE_CHECKING:
    from engine.base import Engine

INTERRUPTED = 130

app = typer.Typer(
    name="freespace",
    help="Real-time drivable-area perception: video in, drivable polygons and overlays out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Backend = Annotated[Optional[str], typer.Option(help="auto, tensorrt, tensorrt_rtx, openvino, onnxruntime or torch.")]
Model = Annotated[Optional[str], typer.Option(help="Model file (.onnx); the shipped one by default.")]
InputSize = Annotated[Optional[str], typer.Option(help="WIDTHxHEIGHT of the network's input; the file's own by default.")]
Precision = Annotated[
    Optional[str],
    typer.Option(help="auto, fp32, bf16 (openvino), fp16 (tensorrt) or int8; auto is fp32 for a named CPU backend."),
]


def main() -> None:
    """Entry point of the console script: a user's mistake ends in one sentence on stderr, not in a traceback."""
    from engine.contract import EngineError, ModelError

    try:
        app()
    except (BadInput, ModelError) as error:
        fail(error, 2)
    except (FreespaceError, EngineError) as error:
        fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def fail(error: Exception, code: int) -> None:
    print(f"freespace: {error}", file=sys.stderr)
    sys.exit(code)


def parse_pair(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    """Two whole numbers. Raises BadInput: ``text`` is something else."""
    first, found, second = text.partition(separator)
    if not (found and first.isdigit() and second.isdigit()):
        raise BadInput(f"{option} {text!r}: wanted something like {example}")
    return int(first), int(second)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"freespace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="A video, an image, a folder of images, or synthetic://SCENE.")],
    out: Annotated[Optional[str], typer.Option(help="Overlay video to write (.mp4, H.264).")] = None,
    polygons: Annotated[Optional[str], typer.Option(help="Polygons to write, one JSON object per frame (.jsonl).")] = None,
    masks: Annotated[Optional[str], typer.Option(help="Folder for one PNG mask (0/255) per frame.")] = None,
    contact_sheet: Annotated[Optional[str], typer.Option(help="Page of a dozen overlays to write (.png).")] = None,
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    input_size: InputSize = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads for the network; 0 leaves it to the backend.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="YAML file; options given here win over it.")] = None,
    plane: Annotated[Optional[str], typer.Option(help="freespace (whole road) or ego (own carriageway).")] = None,
    start: Annotated[Optional[float], typer.Option(help="Begin at this media time, seconds.")] = None,
    duration: Annotated[Optional[float], typer.Option(help="Take this much media time, seconds.")] = None,
    every: Annotated[Optional[int], typer.Option(help="Take one frame of every N.")] = None,
    image_fps: Annotated[Optional[float], typer.Option(help="Rate at which a folder of images is played.")] = None,
    overwrite: Annotated[Optional[bool], typer.Option("--overwrite", help="Replace existing outputs.")] = None,
    show: Annotated[Optional[bool], typer.Option("--show", help="Show the overlay in a window.")] = None,
) -> None:
    """Find the drivable area in every frame of SOURCE."""
    from perception.config import load_config

    settings = load_config(
        config,
        {
            "output.video": out,
            "output.polygons": polygons,
            "output.masks": masks,
            "output.contact_sheet": contact_sheet,
            "output.overwrite": overwrite,
            "output.show": show,
            "engine.model": model,
            "engine.backend": backend,
            "engine.precision": precision,
            "engine.threads": threads,
            "engine.input_size": input_size,
            "polygons.plane": plane,
            "capture.start_s": start,
            "capture.duration_s": duration,
            "capture.every": every,
            "capture.image_fps": image_fps,
        },
    )
    from perception.session import run_session

    with stop_on_signal() as stop:
        interrupted = run_session(source, settings, stop)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; results of an earlier demo are replaced.")] = Path(
        "freespace-demo"
    ),
    backend: Backend = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the synthetic drive, fetch nothing.")] = False,
) -> None:
    """Run the shipped model over ten seconds of real dashcam video."""
    from perception.demo import run_demo

    with stop_on_signal() as stop:
        interrupted = run_demo(out, backend, offline, stop)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def parity(
    model: Annotated[Optional[str], typer.Argument(help="Model file (.onnx); the shipped one by default.")] = None,
    source: Annotated[str, typer.Option(help="Frames to compare on, as for 'run'.")] = "synthetic://drive?seconds=1",
    every: Annotated[int, typer.Option(help="Take one frame of every N.", min=1)] = 1,
    precision: Annotated[
        str, typer.Option(help="Of every backend but torch that computes in it; the others take fp32.")
    ] = "fp32",
    tolerance: Annotated[int, typer.Option(help="Largest difference allowed, grey levels of 255.", min=0)] = 2,
) -> None:
    """Compare the scores of every backend that works here with those of the torch reference, pixel by pixel."""
    from engine import BACKENDS, DEFAULT_MODEL, open_engine, read_contract
    from engine.parity import compare
    from perception.capture import Selection, open_source

    if not any(precision in backend.precisions for backend in BACKENDS.values()):
        raise BadInput(f"no backend computes in {precision!r}")

    quantised = read_contract(Path(model) if model else DEFAULT_MODEL).quantised

    def open_backend(name: str) -> Engine:
        wanted = precision if precision in BACKENDS[name].precisions else "fp32"
        return open_engine(model, name, "int8" if quantised else wanted, say=tell)

    with open_source(source, Selection(every=every)) as frames:
        comparison = compare((f.image for f in frames.frames()), open_backend)
        problems = frames.problems
    if not comparison.rows:
        reasons = "".join(f"; {name}: {reason}" for name, reason in comparison.left_out.items())
        raise BadInput(f"only one backend works here, there is nothing to compare it with{reasons}")
    if not comparison.rows[0].frames:
        raise BadInput(f"{source}: no frames to compare on{': ' + problems[0] if problems else ''}")
    print(comparison)
    worst = max(row.largest for row in comparison.rows)
    if worst > tolerance:
        raise FreespaceError(f"backends differ by up to {worst} grey levels, allowed are {tolerance}")


@app.command()
def build(
    model: Annotated[Optional[Path], typer.Argument(help="Model file (.onnx); the shipped one by default.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8 for a model with Q/DQ nodes.")] = "fp16",
    input_size: InputSize = None,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 1,
    workspace: Annotated[int, typer.Option(help="Most scratch memory, MiB; 0 for TensorRT's own limit.", min=0)] = 0,
    timing_cache: Annotated[Optional[Path], typer.Option(help="File of build timings to use and to update.")] = None,
    dla: Annotated[int, typer.Option(help="Deep learning accelerator to use, -1 for none.", min=-1)] = -1,
    version_compatible: Annotated[bool, typer.Option(help="Let later releases of TensorRT load the plan.")] = False,
    rtx: Annotated[bool, typer.Option("--rtx", help="Build with TensorRT for RTX.")] = False,
    target: Annotated[
        Optional[str], typer.Option(help="Compute capability such as 8.6, for RTX: build without that GPU.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even where a plan fits.")] = False,
) -> None:
    """Compile a model into a TensorRT plan, which 'run --backend tensorrt' then finds."""
    from engine import DEFAULT_MODEL, read_contract
    from engine.build import PlanOptions
    from engine.graph import at_size
    from perception.plan import build as build_plan

    contract = read_contract(model or DEFAULT_MODEL)
    if input_size:
        contract = at_size(contract, parse_pair(input_size, "x", "--input-size", "640x384"))
    targets = (parse_pair(target, ".", "--target", "8.6"),) if target else ()
    options = PlanOptions(precision, batch, workspace, dla, version_compatible, targets)
    build_plan(contract, options, "tensorrt_rtx" if rtx or targets else "tensorrt", timing_cache, force)


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False) -> None:
    """Say what is installed and works on this machine, and how to mend what does not; exit code 1 where 'run' cannot work."""
    from perception.doctor import examine, print_report

    report = examine()
    if json:
        print(report.to_json())
    else:
        print_report(report)
    if not report.ready:
        raise typer.Exit(1)


calibrate = typer.Typer(help="Calibrate: the network's quantisation.", no_args_is_help=True)
app.add_typer(calibrate, name="calibrate")


@calibrate.command()
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


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder that holds camvid/, idd_lite/ and bdd100k/.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the log; an unfinished run there is resumed.")],
    epochs: Annotated[Optional[int], typer.Option(help="Passes of samples-per-epoch samples.", min=1)] = None,
    samples_per_epoch: Annotated[Optional[int], typer.Option(help="Samples drawn per epoch.", min=2)] = None,
    batch: Annotated[Optional[int], typer.Option(help="Samples per step.", min=2)] = None,
    seed: Annotated[Optional[int], typer.Option(help="Of everything random.")] = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads; 0 leaves it to torch.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    pretrained: Annotated[bool, typer.Option(help="Start the encoder from ImageNet weights.")] = True,
    init: Annotated[Optional[Path], typer.Option(help="Start from this checkpoint instead: a second phase.")] = None,
    views: Annotated[Optional[Path], typer.Option(help="Train on what 'distil' wrote as well.")] = None,
    encoder_rate: Annotated[Optional[float], typer.Option(help="Peak learning rate of the encoder.")] = None,
    decoder_rate: Annotated[Optional[float], typer.Option(help="Peak learning rate of the decoder.")] = None,
) -> None:
    """Train the network on labelled frames."""
    with training_extra():
        from training.trainer import TrainConfig
        from training.trainer import train as run_training

    settings = TrainConfig(
        str(data), str(out), pretrained=pretrained, init=str(init or ""), views=str(views or ""), device=device
    )
    given: dict[str, Any] = {
        "epochs": epochs,
        "samples_per_epoch": samples_per_epoch,
        "batch": batch,
        "seed": seed,
        "threads": threads,
    }
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    with missing_files():
        print(f"checkpoint {run_training(settings)}")


@app.command()
def distil(
    teacher: Annotated[Path, typer.Option(help="Road network (.onnx): RGB / 255 in, logits of elsewhere and drivable out.")],
    data: Annotated[Path, typer.Option(help="Folder that holds camvid/, idd_lite/ and bdd100k/.")],
    out: Annotated[Path, typer.Option(help="Folder for the views; must not exist.")],
    footage: Annotated[Optional[list[Path]], typer.Option(help="Video without labels; may be given again.")] = None,
    views: Annotated[str, typer.Option(help="How many views of each image.")] = "camvid=2,idd_lite=2,bdd100k=16,footage=4",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
) -> None:
    """Let a teacher network score views of the training images and of footage, for 'train --views'."""
    with training_extra():
        from training.datasets import find_samples, split_of
        from training.distil import Teacher, parse_views, write_views

    if out.exists():
        raise BadInput(f"{out} exists already; give another --out")
    with missing_files():
        samples = [s for s in find_samples(data) if split_of(s) == "train"]
        wanted = parse_views(views)
        count = write_views(Teacher(teacher), samples, footage or [], wanted, out, seed)
    print(f"{count} views in {out}")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder that holds camvid/, idd_lite/ and bdd100k/.")],
    split: Annotated[str, typer.Option(help="val (for reports) or dev (for choices).")] = "val",
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    report: Annotated[Optional[Path], typer.Option(help="JSON file to write the counts and ratios to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
) -> None:
    """Dataset-level IoU of a model file on labelled frames, by data set, plane and condition."""
    with training_extra():
        from training.evaluate import evaluate_model, print_report, write_report

    from engine import open_engine
    from perception.sinks import check_output

    if report:
        check_output(report, overwrite)
    with missing_files(), open_engine(model, backend or "auto", precision or float_or_int8(model)) as engine:
        rows = evaluate_model(engine, data, split)
    print_report(rows, split, engine)
    if report:
        write_report(report, rows, split, engine)


def float_or_int8(model: str | None) -> str:
    """The most accurate precision of a model file."""
    from engine import DEFAULT_MODEL, read_contract

    return "int8" if read_contract(Path(model) if model else DEFAULT_MODEL).quantised else "fp32"


@app.command()
def export(
    checkpoints: Annotated[list[Path], typer.Argument(help="last.pt of a training run; several are averaged.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.onnx).")],
    width: Annotated[int, typer.Option(help="Input width, pixels; a multiple of 32.")] = 448,
    height: Annotated[int, typer.Option(help="Input height, pixels; a multiple of 32.")] = 256,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for a file that computes in float16.")] = "fp32",
    report: Annotated[Optional[Path], typer.Option(help="JSON of 'evaluate' to store in the file as its metrics.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Turn a checkpoint into one self-contained model file and check it against torch."""
    from perception.sinks import check_output

    check_output(out, overwrite)
    with training_extra():
        from training.export import ParityError, export_model

    try:
        with missing_files():
            largest = export_model(checkpoints, out, (width, height), report, precision)
    except ParityError as error:
        raise FreespaceError(str(error)) from error
    print(f"{out}: differs from torch by at most {largest} grey levels")


@app.command()
def masks(
    out: Annotated[Path, typer.Option(help="Folder for the label PNGs, or for the JSON files of --from-...")],
    annotations: Annotated[Optional[list[Path]], typer.Argument(help="JSON files, or folders of them.")] = None,
    from_polygons: Annotated[Optional[Path], typer.Option(help="Turn the polygons of 'run' into annotations (.jsonl).")] = None,
    from_masks: Annotated[Optional[Path], typer.Option(help="Turn a folder of label PNGs into annotations.")] = None,
    images: Annotated[Optional[Path], typer.Option(help="Folder of the images, where they lie elsewhere.")] = None,
    mapping: Annotated[Optional[Path], typer.Option(help="YAML file: class names to indices or planes.")] = None,
    format_name: Annotated[
        Optional[str],
        typer.Option("--format", help="labelme, supervisely, coco, bdd100k or cityscapes; the first two are written, too."),
    ] = None,
    overlay: Annotated[Optional[Path], typer.Option(help="Folder for each label on its image, and a page of them.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Turn polygon annotations into label PNGs, or results and label PNGs into annotations; exit code 1 if any was skipped."""
    if sum(map(bool, (annotations, from_polygons, from_masks))) != 1:
        raise BadInput("give annotations, or --from-polygons, or --from-masks")
    if overlay and not annotations:
        raise BadInput("--overlay goes with annotations")
    if mapping and from_polygons:
        raise BadInput("--mapping does not go with --from-polygons: classes are called as the planes")
    from training.annotations import convert
    from training.annotations.classes import read_classes

    with missing_files(), failed_writes():
        classes = read_classes(mapping) if mapping else None
        target = format_name or "labelme"
        if from_polygons:
            report = convert.annotations_from_polygons(
                from_polygons, out, images=images, format_name=target, overwrite=overwrite
            )
        elif from_masks:
            report = convert.annotations_from_masks(
                from_masks, out, images=images, classes=classes, format_name=target, overwrite=overwrite
            )
        else:
            report = convert.masks_from_annotations(
                annotations or [],
                out,
                images=images,
                classes=classes,
                format_name=format_name,
                overlays=overlay,
                overwrite=overwrite,
            )
    convert.print_report(report, "labels" if annotations else "annotations", out)
    if not report.complete:
        raise typer.Exit(1)


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that outputs are closed; a second Ctrl-C ends at once."""
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def training_extra() -> Iterator[None]:
    """Say how to install what training needs, where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(f"this command needs {error.name}; pip install '.[train]' in the project's folder") from error


@contextmanager
def missing_files() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(str(error)) from error


@contextmanager
def failed_writes() -> Iterator[None]:
    """Say what the system says of a full disk or a folder that cannot be written."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FreespaceError(f"{error.filename or 'output'}: {error.strerror or error}") from error


if __name__ == "__main__":
    main()
