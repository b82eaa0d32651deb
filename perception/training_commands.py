"""Commands that make models: labels, training, distillation, evaluation, export, and looking into a network."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from perception.errors import BadInput, FreespaceError
from perception.options import Backend, Model, Precision, parse_pair

if TYPE_CHECKING:
    from training.recipe import Recipe

app = typer.Typer()

DATA: Any = typer.Option(help="Folder of data sets: camvid/, idd_lite/, bdd100k/, or any folder with images/ and labels/.")
SPLITS: Any = typer.Option(help="File that says which sequence is in which split.")
SIZE: Any = typer.Option(help="WIDTHxHEIGHT of the network's input; that of its training by default.")
DEVICE: Any = typer.Option(help="auto, cpu or cuda.")


@app.command()
def train(
    recipe: Annotated[
        Optional[str], typer.Argument(help="A recipe of training/recipes by name (small, unet, ...), or a .yaml file.")
    ] = None,
    data: Annotated[Path, DATA] = ...,  # type: ignore[assignment]
    out: Annotated[Optional[Path], typer.Option(help="Folder of the run; an unfinished one there is resumed.")] = None,
    change: Annotated[
        Optional[list[str]], typer.Option("--set", help="KEY=VALUE of the recipe, such as optimiser.rate=0.001; repeatable.")
    ] = None,
    epochs: Annotated[Optional[int], typer.Option(help="Passes.", min=1)] = None,
    batch: Annotated[Optional[int], typer.Option(help="Samples per step.", min=2)] = None,
    seed: Annotated[Optional[int], typer.Option(help="Of everything random.")] = None,
    init: Annotated[
        Optional[list[Path]],
        typer.Option(help="Start from a checkpoint, or from the shipped weights, small or nano; several: their mean."),
    ] = None,
    views: Annotated[Optional[Path], typer.Option(help="Train on what 'distil' wrote as well.")] = None,
    splits: Annotated[Optional[Path], SPLITS] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Threads that augment images.", min=1)] = 1,
    device: Annotated[str, DEVICE] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the data and stop; exit code 1 if something is wrong.")] = False,
    preview: Annotated[Optional[Path], typer.Option(help="Draw augmented, labelled images to this file and stop.")] = None,
) -> None:
    """Train a network on labelled frames by a recipe; under torchrun, on several GPUs or machines."""
    with training_extra():
        from training.recipe import load_recipe, parse_overrides

    with missing_files(), failed_writes():
        given = {"epochs": epochs, "batch": batch, "seed": seed}
        settings = load_recipe(recipe, parse_overrides(change or []) | {k: v for k, v in given.items() if v is not None})
        if check:
            check_only(data, settings, splits)
        elif preview:
            preview_only(data, settings, splits, preview)
        elif out is None:
            raise BadInput("give --out, a folder for the run")
        else:
            with training_extra():
                from training.health import NotFinite
                from training.trainer import Run
                from training.trainer import train as run_training

            if out.is_file():
                raise BadInput(f"{out}: is a file; give --out a folder")
            run = Run(data, out, splits, views, tuple(init or ()), threads, workers, device, tensorboard)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
            try:
                last = run_training(settings, run)
                if os.environ.get("RANK", "0") == "0":
                    print(f"checkpoint {last}")
            except NotFinite as error:
                raise FreespaceError(str(error)) from error


def check_only(data: Path, settings: Recipe, splits: Path | None) -> None:
    with training_extra():
        from training.check import check_data, print_report

    report = check_data(data, seed=settings.data.seed, fractions=settings.data.fractions, splits=splits)
    print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def preview_only(data: Path, settings: Recipe, splits: Path | None, out: Path) -> None:
    with training_extra():
        from training.augment import parse_augmentation
        from training.datasets import find_samples
        from training.preview import write_preview
        from training.recipe import parse_size
        from training.splits import split_samples

    samples = split_samples(find_samples(data), settings.data.seed, settings.data.fractions, splits)["train"]
    pages = write_preview(
        samples,
        out,
        augmentation=parse_augmentation(settings.augment),
        size=parse_size(settings.sizes[-1]),
        width=settings.data.cache_width,
        seed=settings.seed,
    )
    print(f"wrote {' and '.join(map(str, pages))}")


@app.command()
def distil(
    teacher: Annotated[Path, typer.Option(help="Road network (.onnx): RGB / 255 in, logits of elsewhere and drivable out.")],
    data: Annotated[Path, DATA],
    out: Annotated[Path, typer.Option(help="Folder for the views; must not exist.")],
    footage: Annotated[Optional[list[Path]], typer.Option(help="Video without labels; may be given again.")] = None,
    views: Annotated[str, typer.Option(help="How many views of each image.")] = "camvid=2,idd_lite=2,bdd100k=16,footage=4",
    hints: Annotated[
        Optional[str], typer.Option(help="Name of a tensor in the teacher: its features are kept, for 'train' to learn from.")
    ] = None,
    splits: Annotated[Optional[Path], SPLITS] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1,
) -> None:
    """Let a teacher network score views of the training images and of footage, for 'train --views'."""
    with training_extra():
        from training.datasets import find_samples
        from training.distil import Teacher, parse_views, write_views
        from training.splits import split_samples

    if out.exists():
        raise BadInput(f"{out} exists already; give another --out")
    for path in (teacher, *(footage or [])):  # now, not after an hour
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
    with missing_files(), failed_writes():
        samples = split_samples(find_samples(data), file=splits)["train"]
        wanted = parse_views(views, {s.dataset for s in samples})
        count = write_views(Teacher(teacher, hints), samples, footage or [], wanted, out, seed)
    print(f"{count} views in {out}")


@app.command()
def evaluate(
    data: Annotated[Optional[Path], DATA] = None,
    split: Annotated[str, typer.Option(help="val (for reports) or dev (for choices).")] = "val",
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    splits: Annotated[Optional[Path], SPLITS] = None,
    report: Annotated[Optional[Path], typer.Option(help="JSON file to write the counts and ratios to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
    compare: Annotated[
        Optional[tuple[Path, Path]], typer.Option(help="Two reports: how the second one's IoU differs, with intervals.")
    ] = None,
) -> None:
    """Dataset-level IoU of a model file on labelled frames, by data set, plane and condition."""
    with training_extra():
        from training.evaluate import compare_reports, evaluate_model, print_comparison, print_report, write_report

    from engine import open_engine
    from perception.sinks import check_output

    if compare:
        with missing_files():
            print_comparison(compare_reports(*compare), *compare)
        return
    if data is None:
        raise BadInput("give --data, or two reports to --compare")
    if report:
        check_output(report, overwrite)
    with missing_files(), open_engine(model, backend or "auto", precision or float_or_int8(model)) as engine:
        rows = evaluate_model(engine, data, split, splits=splits)
    print_report(rows, split, engine)
    if report:
        with missing_files(), failed_writes():
            write_report(report, rows, split, engine)


def float_or_int8(model: str | None) -> str:
    """The most accurate precision of a model file."""
    from engine import DEFAULT_MODEL, read_contract

    return "int8" if read_contract(Path(model) if model else DEFAULT_MODEL).quantised else "fp32"


@app.command()
def export(
    checkpoints: Annotated[list[Path], typer.Argument(help="last.pt of a training run; several are averaged.")],
    out: Annotated[Path, typer.Option(help="Model file (.onnx), or weights to start other trainings from (.pt).")],
    size: Annotated[Optional[str], SIZE] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for a file that computes in float16.")] = "fp32",
    report: Annotated[Optional[Path], typer.Option(help="JSON of 'evaluate' to store in the file as its metrics.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Turn a checkpoint into one self-contained model file and check it against torch."""
    from perception.sinks import check_output

    check_output(out, overwrite)
    with training_extra():
        from training.export import ParityError, export_model, export_weights

    pair = parse_pair(size, "x", "--size", "448x256") if size else None
    try:
        with missing_files(), failed_writes():
            if out.suffix == ".pt":
                export_weights(checkpoints, out)
                print(f"wrote {out}")
            else:
                largest = export_model(checkpoints, out, pair, report, precision)
                print(f"{out}: differs from torch by at most {largest} grey levels")
    except ParityError as error:
        raise FreespaceError(str(error)) from error


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
    """Turn polygon annotations into label PNGs, or results and label PNGs into annotations; exit code 1 if any is missing."""
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


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A network's name, a checkpoint, or a model file (.onnx).")],
    size: Annotated[Optional[str], SIZE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Parameters, FLOPs, output sizes, receptive field and memory of a network, layer by layer."""
    with training_extra():
        from training.summary import as_json as to_json
        from training.summary import print_summary, summarise

    with missing_files():
        described = summarise(model, parse_pair(size, "x", "--size", "448x256") if size else None)
    if as_json:
        print(json.dumps(to_json(described), indent=1))
    else:
        print_summary(described)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="A checkpoint, or a network's name for random weights.")],
    source: Annotated[Optional[Path], typer.Argument(help="Image, video or folder of images.")] = None,
    out: Annotated[Path, typer.Option(help="Picture, or video (.mp4) of a clip.")] = Path("explained.png"),
    plane: Annotated[str, typer.Option(help="freespace or ego.")] = "freespace",
    region: Annotated[str, typer.Option(help="What is explained: mask, a pixel x,y or a box x,y,width,height.")] = "mask",
    layer: Annotated[Optional[str], typer.Option(help="Layer by name; the encoder's last one by default.")] = None,
    method: Annotated[str, typer.Option(help="gradcam or hirescam.")] = "gradcam",
    field: Annotated[bool, typer.Option("--field", help="Draw the effective receptive field instead.")] = False,
    pixel: Annotated[Optional[str], typer.Option(help="--field: of this output pixel x,y; the centre by default.")] = None,
    initial: Annotated[bool, typer.Option("--initial", help="--field: beside it, that of untrained weights.")] = False,
    images: Annotated[int, typer.Option(help="--field: images of the source to take.", min=1)] = 16,
    every: Annotated[int, typer.Option(help="One frame of this many.", min=1)] = 1,
    size: Annotated[Optional[str], SIZE] = None,
    device: Annotated[str, DEVICE] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Where a network looks: Grad-CAM over frames, or its effective receptive field."""
    with training_extra():
        from training.explain import explain_activation, explain_field, parse_region

    from perception.sinks import check_output

    check_output(out, overwrite)
    pair = parse_pair(size, "x", "--size", "448x256") if size else None
    with missing_files(), failed_writes():
        if field:
            at = parse_pair(pixel, ",", "--pixel", "224,128") if pixel else None
            explain_field(
                model,
                out,
                source=source,
                plane=plane,
                pixel=at,
                initial=initial,
                images=images,
                every=every,
                size=pair,
                device=device,
            )
            print(f"wrote {out}")
        elif source is None:
            raise BadInput("give an image or a clip, or --field")
        else:
            count = explain_activation(
                model,
                source,
                out,
                plane=plane,
                region=parse_region(region),
                layer=layer,
                method=method,
                size=pair,
                every=every,
                device=device,
            )
            print(f"wrote {out}: {count} frame{'s' if count > 1 else ''}")


@contextmanager
def training_extra() -> Iterator[None]:
    """Say how to install what training needs, where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(f"this command needs {error.name}; pip install '.[train]' in the project's folder") from error


@contextmanager
def missing_files() -> Iterator[None]:
    """Say what is missing or wrong; what the system says of a missing file, in words."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        missing = error.filename if isinstance(error, FileNotFoundError) else None
        raise BadInput(f"{missing}: no such file or folder" if missing else str(error)) from error


@contextmanager
def failed_writes() -> Iterator[None]:
    """Say what the system says of a full disk or a folder that cannot be written."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FreespaceError(f"{error.filename or 'output'}: {error.strerror or error}") from error
