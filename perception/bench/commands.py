"""``freespace bench``: the command line. Nothing heavy is imported before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from perception.errors import BadInput, FreespaceError
from perception.options import Backend, InputSize, Model, Precision

if TYPE_CHECKING:
    from perception.bench.measure import Labelled
    from perception.bench.schema import Report, Settings

MEASURE = "measure"


class Group(TyperGroup):
    """``bench SOURCE`` is ``bench measure SOURCE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [MEASURE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=Group, help="Measure speed so that it can be believed; 'bench SOURCE' is 'bench measure SOURCE'.")

Source = Annotated[Optional[str], typer.Argument(help="As for 'run'; the demo's clip by default.")]
Modes = Annotated[
    Optional[list[str]], typer.Option("--mode", help="engine, pipeline or end-to-end; repeatable; all three by default.")
]
Rounds = Annotated[int, typer.Option(help="Windows of each case, all cases in turn.", min=2)]
WindowS = Annotated[float, typer.Option("--window", help="Length of a window, seconds.", min=0.1)]
Colds = Annotated[int, typer.Option("--cold-starts", help="Fresh processes to start; 0 for none.", min=0)]
Data = Annotated[Optional[Path], typer.Option(help="Labelled images as for 'evaluate': measures accuracy, too.")]
Split = Annotated[str, typer.Option(help="Of the labelled images.")]
Splits = Annotated[Optional[Path], typer.Option(help="File that says which sequence is in which split.")]
ConfigFile = Annotated[Optional[Path], typer.Option("--config", help="YAML file; options given here win over it.")]
Allowed = Annotated[float, typer.Option("--allow", help="Per cent by which a figure may be worse.", min=0.0)]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 1 also where the noise allows no verdict.")]


@app.command(MEASURE)
def measure_command(
    source: Source = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for bench.json, bench.md and bench.html.")] = None,
    mode: Modes = None,
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    input_size: InputSize = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads for the network; 0 leaves it to the backend.")] = None,
    batch: Annotated[int, typer.Option(help="Frames at a time, with --mode engine.", min=1)] = 1,
    config: ConfigFile = None,
    against: Annotated[
        Optional[str],
        typer.Option(help="Measure B in turn with A: KEY=VALUE,... such as backend=onnxruntime or checkout=DIR, or a .yaml."),
    ] = None,
    rounds: Rounds = 8,
    window: WindowS = 3.0,
    cold_starts: Colds = 5,
    data: Data = None,
    split: Split = "val",
    splits: Splits = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report in --out.")] = False,
) -> None:
    """Measure the engine alone, the loop, and the whole way from SOURCE to results."""
    from perception.bench.compare import compare_sides, lines
    from perception.bench.measure import measure
    from perception.bench.text import terminal
    from perception.bench.variants import Variant, parse_variant
    from perception.config import load_config

    place = report_places(out, overwrite)
    chosen = {"model": model, "backend": backend, "precision": precision, "input_size": input_size, "threads": threads}
    base = load_config(config, {"capture.source": source, **{f"engine.{key}": value for key, value in chosen.items()}})
    variants = {"A": Variant(", ".join(f"{k} {v}" for k, v in chosen.items() if v is not None) or "the defaults", base)}
    if against:
        variants["B"] = parse_variant(against, base)
    report, _ = measure(
        clip(base.capture.source),
        variants,
        settings_of(mode, rounds, window, cold_starts, batch),
        labelled_of(data, split, splits),
    )
    print(terminal(report))
    if against:
        print("\n" + "\n".join(lines(compare_sides(report))))
    if place:
        write_report(report, place)


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="Folder: one JSON for each cell, sweep.html, sweep.md. Finished cells are kept.")],
    source: Source = None,
    backends: Annotated[Optional[str], typer.Option(help="Such as openvino,onnxruntime.")] = None,
    precisions: Annotated[Optional[str], typer.Option(help="Such as fp32,int8.")] = None,
    models: Annotated[Optional[str], typer.Option(help="Model files or names, such as nano,mine.onnx.")] = None,
    input_sizes: Annotated[Optional[str], typer.Option(help="Such as 640x384,320x192.")] = None,
    batch: Annotated[Optional[str], typer.Option(help="Such as 1,4,8; above 1 mode engine only.")] = None,
    threads: Annotated[Optional[str], typer.Option(help="Such as 1,2,4.")] = None,
    mode: Modes = None,
    config: ConfigFile = None,
    rounds: Rounds = 5,
    window: WindowS = 2.0,
    cold_starts: Colds = 0,
    data: Data = None,
    split: Split = "val",
    splits: Splits = None,
) -> None:
    """Measure every combination, one after the other; begun again, it goes on where it was."""
    from perception.bench.sweep import Axes, sweep_text
    from perception.bench.sweep import sweep as run_sweep
    from perception.config import load_config

    make_folder(out)
    base = load_config(config, {"capture.source": source})
    axes = Axes(
        listed(backends),
        listed(precisions),
        listed(models),
        listed(input_sizes),
        numbers("--batch", batch, least=1) or (1,),
        numbers("--threads", threads, least=0) or (None,),
    )
    settings = settings_of(mode, rounds, window, cold_starts, 1)
    cells = run_sweep(clip(base.capture.source), base, axes, settings, labelled_of(data, split, splits), out)
    print(sweep_text(cells))
    print(f"wrote {out / 'sweep.html'}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="bench.json; of one that was measured --against another it is enough.")],
    second: Annotated[Optional[Path], typer.Argument(help="The bench.json that may be slower.")] = None,
    allow: Allowed = 3.0,
    despite: Annotated[
        Optional[list[str]], typer.Option(help="Compare although this differs (backend, machine, ...); repeatable.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Judge whether the second is slower: exit code 1 for a regression, 2 where they are not of the same thing."""
    from perception.bench.compare import compare_reports, compare_sides, lines
    from perception.bench.schema import read_report

    report = read_report(first)
    if second:
        found = compare_reports(report, read_report(second), allow / 100, despite or ())
    else:
        found = compare_sides(report, allow / 100)
    print("\n".join(lines(found)))
    if found.verdict == "regression" or (strict and found.verdict == "undecided"):
        raise typer.Exit(1)


def report_places(out: Path | None, overwrite: bool) -> Path | None:
    """The folder, made; checked before anything is measured. Raises BadInput."""
    if out is None:
        return None
    make_folder(out)
    if (out / "bench.json").exists() and not overwrite:
        raise BadInput(f"{out / 'bench.json'}: exists already; give --overwrite to replace it")
    return out


def make_folder(out: Path) -> None:
    from perception.sinks.base import make_folder

    if out.is_file():
        raise BadInput(f"{out}: is a file; --out wants a folder")
    make_folder(out)


def write_report(report: Report, out: Path) -> None:
    from engine.files import write_whole
    from perception.bench.page import report_page
    from perception.bench.text import markdown

    files = {"bench.md": markdown(report), "bench.html": report_page(report), "bench.json": report.to_json()}
    try:
        for name, content in files.items():
            write_whole(out / name, content.encode())
    except OSError as error:
        raise FreespaceError(f"{out}: cannot be written: {error.strerror or error}") from error
    print(f"wrote {', '.join(str(out / name) for name in files)}")


def clip(source: str | None) -> str:
    if source is not None:
        return source
    from perception.demo import ClipUnavailable, fetch_clip

    try:
        return str(fetch_clip())
    except ClipUnavailable as error:
        raise BadInput(f"the demo's clip cannot be had ({error}); give a SOURCE") from error


def settings_of(mode: list[str] | None, rounds: int, window: float, cold_starts: int, batch: int) -> Settings:
    from perception.bench.schema import MODES, Settings

    chosen = [known for known in MODES if known in (mode or MODES)]
    if unknown := [m for m in mode or () if m not in MODES]:
        raise BadInput(f"--mode {unknown[0]}: unknown; known: {', '.join(MODES)}")
    return Settings(modes=chosen, rounds=rounds, window_s=window, cold_starts=cold_starts, batch=batch)


def labelled_of(data: Path | None, split: str, splits: Path | None) -> Labelled | None:
    if data is None:
        return None
    from perception.bench.measure import Labelled

    if not data.is_dir():
        raise BadInput(f"{data}: no such folder")
    return Labelled(data, split, splits)


def listed(text: str | None) -> tuple[str | None, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else (None,)


def numbers(option: str, text: str | None, least: int) -> tuple[int, ...]:
    found = [part.strip() for part in (text or "").split(",") if part.strip()]
    if wrong := [part for part in found if not part.isdigit() or int(part) < least]:
        raise BadInput(f"{option} {wrong[0]!r}: wanted whole numbers from {least} on, such as 1,2,4")
    return tuple(map(int, found))
