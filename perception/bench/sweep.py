"""Many configurations one after the other, resumable: backends x precisions x models x input sizes x batches x threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from engine import BACKENDS, ModelError, choose_model
from engine.files import write_whole
from perception.bench.charts import draw_pareto
from perception.bench.machine import clip_sha256, code_sha256, describe_machine, folder_sha256
from perception.bench.measure import NO_ACCURACY, Labelled, measure
from perception.bench.page import listed, page, table
from perception.bench.schema import MODES, Case, Record, Report, Settings, Side
from perception.bench.text import Rows, aligned, markdown_table
from perception.bench.variants import ROOT, NoSuchCombination, Variant, changed
from perception.capture.uri import parse
from perception.config import Config
from perception.errors import BadInput, FreespaceError, tell

BROKEN = 0.02  # of IoU below the best of the same network's (`family`): an export that lost something
HEAD = ["cell", "FPS", "95 %", "p50 ms", "p99 ms", "CPU ms", "RSS MB", "J/frame", "IoU", "front", "remark"]


@dataclass(frozen=True)
class Axes:
    """What is combined; None leaves a value to the configuration."""

    backends: Sequence[str | None] = (None,)
    precisions: Sequence[str | None] = (None,)
    models: Sequence[str | None] = (None,)
    input_sizes: Sequence[str | None] = (None,)
    batches: Sequence[int] = (1,)
    threads: Sequence[int | None] = (None,)

    def cells(self) -> list[dict[str, Any]]:
        names = ("backend", "precision", "model", "input_size", "batch", "threads")
        every = product(self.backends, self.precisions, self.models, self.input_sizes, self.batches, self.threads)
        return [{name: value for name, value in zip(names, cell, strict=True) if value is not None} for cell in every]


class Cell(Record):
    """A file of a sweep.

    Attributes:
        key: hash of all that the result depends on: a cell of another key is measured again.
        state: ``done``; ``impossible``: there is no such combination, whatever is installed; ``failed``: tried again the
            next time.
    """

    name: str
    key: str
    state: Literal["done", "impossible", "failed"]
    reason: str = ""
    report: Report | None = None


def sweep(
    source: str,
    config: Config,
    axes: Axes,
    settings: Settings,
    labelled: Labelled | None,
    out: Path,
    say: Callable[[str], None] = tell,
) -> list[Cell]:
    """Measure what ``out`` does not hold yet, a JSON for each cell, and after each the pages over all that are there.

    Raises:
        KeyboardInterrupt: as it came; what is there is said.
        BadInput: the source cannot be read, or not one cell can be measured.
    """
    if parse(source).live:
        raise BadInput("a sweep wants a recording: of a live source no two cells get the same frames")
    wanted = list({name_of(values): values for values in axes.cells()}.values())  # the same thing twice is one cell
    if max(axes.batches) > 1 and "engine" not in settings.modes:  # else there were nothing to set the batches beside
        settings = settings.model_copy(update={"modes": ["engine", *settings.modes]})
    fixed = surroundings(source, labelled)
    cells: list[Cell] = []
    for number, values in enumerate(wanted, 1):
        name = name_of(values)
        own = settings.model_copy(update={"batch": values.get("batch", 1)})
        if own.batch > 1:
            own = own.model_copy(update={"modes": ["engine"]})
        depends = [fixed, own.model_dump(), identity(values, config)]
        key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        cell = read_cell(out / f"{name}.json", key)
        if cell is None:
            say(f"cell {number} of {len(wanted)}: {name}")
            try:
                cell = measure_cell(source, config, values, own, labelled, name, key, say)
            except KeyboardInterrupt:
                say(f"interrupted: {len(cells)} of {len(wanted)} cells are in {out}; the same command goes on from there")
                raise
            write_whole(out / f"{name}.json", (cell.model_dump_json(by_alias=True, indent=1) + "\n").encode())
        else:
            say(f"cell {number} of {len(wanted)}: {name} is {cell.state} already")
        cells.append(cell)
        write_pages(cells, out)
    if not any(cell.report for cell in cells):
        raise BadInput(f"no cell could be measured: {cells[0].name}: {cells[0].reason}")
    return cells


def write_pages(cells: Sequence[Cell], out: Path) -> None:
    """Over all cells so far, once there is one with numbers."""
    if any(cell.report for cell in cells):
        write_whole(out / "sweep.html", sweep_page(cells).encode())
        write_whole(out / "sweep.md", sweep_markdown(cells).encode())


def name_of(values: dict[str, Any]) -> str:
    """Of a cell and its file: what was chosen, in the order of the options; a model by its file's stem and bytes."""
    parts = []
    for key, value in values.items():
        if key == "model":
            bytes_of = model_sha256(value) or hashlib.sha256(str(value).encode()).hexdigest()
            parts.append(f"{Path(value).stem}-{bytes_of[:6]}")
        elif key == "batch":
            parts.append(f"batch{value}")
        elif key == "threads":
            parts.append(f"threads{value}")
        else:
            parts.append(str(value))
    return "-".join(parts) or "default"


def surroundings(source: str, labelled: Labelled | None) -> list[Any]:
    """What every cell depends on: the machine with its drivers and packages, the code, the clip, the labelled images."""
    machine = describe_machine().model_dump(exclude={"mhz", "memory_gib", "system"})
    images = None
    if labelled:
        splits = labelled.splits.read_text() if labelled.splits and labelled.splits.is_file() else None
        images = [str(labelled.data), folder_sha256(labelled.data), labelled.split, splits]
    return [machine, code_sha256(ROOT), clip_sha256(source, live=False), images]


def identity(values: dict[str, Any], config: Config) -> list[Any]:
    """What a cell depends on beside `surroundings`: its settings, and the model's bytes where they can be read now."""
    model = values.get("model", config.engine.model)
    precision = values.get("precision", config.engine.precision)
    backend = values.get("backend", config.engine.backend)
    sha256 = model_sha256(model, backend if backend in BACKENDS else "onnxruntime", precision)
    return [values, sha256, config.model_dump(mode="json")]


def model_sha256(model: str | None, backend: str = "onnxruntime", precision: str = "auto") -> str:
    """Empty where it cannot be read."""
    try:
        return choose_model(model, backend, precision).sha256
    except ModelError:
        return ""


def read_cell(place: Path, key: str) -> Cell | None:
    """A cell that needs no measuring; None where there is none, or it failed, or is of other settings."""
    try:
        cell = Cell.model_validate_json(place.read_bytes())
    except (OSError, ValidationError):
        return None
    return cell if cell.key == key and cell.state != "failed" else None


def measure_cell(
    source: str,
    config: Config,
    values: dict[str, Any],
    settings: Settings,
    labelled: Labelled | None,
    name: str,
    key: str,
    say: Callable[[str], None],
) -> Cell:
    try:
        own = changed(config, {f"engine.{k}": v for k, v in values.items() if k != "batch"})
        report, _ = measure(source, {"A": Variant(name, own)}, settings, labelled, say=say)
    except NoSuchCombination as error:
        say(f"{name}: {error}")
        return Cell(name=name, key=key, state="impossible", reason=str(error))
    except FreespaceError as error:
        say(f"{name}: {error}")
        return Cell(name=name, key=key, state="failed", reason=str(error))
    if labelled and not report.sides[0].accuracy:
        return Cell(name=name, key=key, state="failed", reason=next(n for n in report.notes if NO_ACCURACY in n))
    return Cell(name=name, key=key, state="done", report=report)


# -- What came of it ---------------------------------------------------------------------------------------------------


def common_mode(reports: Sequence[Report]) -> str:
    """The mode nearest to the whole that all cells were measured in: only numbers of one mode stand side by side."""
    measured = [{case.mode for case in report.sides[0].cases} for report in reports]
    return next(mode for mode in reversed(MODES) if all(mode in own for own in measured))


def throughput_case(report: Report, mode: str) -> Case:
    return next(case for case in report.sides[0].cases if (case.mode, case.load) == (mode, "flat-out"))


def latency_case(report: Report, mode: str) -> Case:
    return next(case for case in report.sides[0].cases if case.mode == mode and case.load != "flat-out")


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether there is no other point that is at least as good in both and better in one; more is better."""
    return [not any(x >= a and y >= b and (x > a or y > b) for x, y in points) for a, b in points]


def merit(report: Report, mode: str) -> tuple[float, float]:
    """(throughput, IoU), or less latency in place of the latter where accuracy was not measured."""
    accuracy, latency = report.sides[0].accuracy, latency_case(report, mode)
    return throughput_case(report, mode).fps.value, accuracy.iou if accuracy else -latency.stages[latency.headline].p50


def family(side: Side) -> tuple[str, tuple[int, int]]:
    """What other cells' accuracy is set beside: the network that the model file names, at the same input size."""
    engine = side.engine
    return engine.network or engine.model.partition(".")[0], engine.input_size


def best_of_families(reports: Sequence[Report]) -> dict[tuple[str, tuple[int, int]], float]:
    best: dict[tuple[str, tuple[int, int]], float] = {}
    for side in (report.sides[0] for report in reports):
        if side.accuracy:
            best[family(side)] = max(side.accuracy.iou, best.get(family(side), 0.0))
    return best


def rows_of(cells: Iterable[Cell]) -> Rows:
    cells = list(cells)
    done = [cell.report for cell in cells if cell.report]
    mode = common_mode(done)
    fronts = iter(pareto([merit(report, mode) for report in done]))
    best = best_of_families(done)
    rows = []
    for cell in cells:
        if not cell.report:
            rows.append([cell.name, *["–"] * 8, "", f"{cell.state}: {cell.reason}"])
            continue
        side, fast, soon = cell.report.sides[0], throughput_case(cell.report, mode), latency_case(cell.report, mode)
        latency, iou = soon.stages[soon.headline], side.accuracy.iou if side.accuracy else None
        missing = best[family(side)] - iou if iou is not None else 0.0
        lost = f"loses {missing:.3f} of IoU: is the export whole?" if missing > BROKEN else ""
        rows.append(
            [
                *(cell.name, f"{fast.fps.value:.1f}", f"{fast.fps.low:.1f} to {fast.fps.high:.1f}"),
                *(f"{latency.p50:.2f}", f"{latency.p99:.2f}", f"{fast.cpu_ms.value:.2f}", f"{fast.rss_mb:.0f}"),
                f"{fast.energy_j:.3f}" if fast.energy_j is not None else "–",
                f"{iou:.4f}" if iou is not None else "–",
                "yes" if next(fronts) else "",
                lost or ("" if fast.stability.steady else "not steady"),
            ]
        )
    return rows


def explained(cells: Sequence[Cell]) -> list[str]:
    reports = [cell.report for cell in cells if cell.report]
    mode, accuracy = common_mode(reports), reports[0].sides[0].accuracy
    soon = latency_case(reports[0], mode)
    said = [f"FPS: {mode}, flat-out; ms: {mode}, {soon.load}, {soon.headline}"]
    said.append("cells are measured one after the other, not in turn: to judge between two, use --against")
    if accuracy:
        sets = ", ".join(f"{row.dataset} {row.plane} ({row.images})" for row in accuracy.rows)
        said.append(f"IoU: mean over {sets}; split {accuracy.split}")
    return said


def sweep_text(cells: Sequence[Cell]) -> str:
    return "\n".join([*explained(cells), *aligned(HEAD, rows_of(cells))])


def sweep_markdown(cells: Sequence[Cell]) -> str:
    said = [f"- {line}" for line in explained(cells)]
    return "\n".join(["# Freespace sweep", "", *said, "", markdown_table(HEAD, rows_of(cells)), ""])


def sweep_page(cells: Sequence[Cell]) -> str:
    done = [(cell.name, cell.report) for cell in cells if cell.report]
    mode = common_mode([report for _, report in done])
    points = [merit(report, mode) for _, report in done]
    named = [(name, x, y, best) for (name, _), (x, y), best in zip(done, points, pareto(points), strict=True)]
    exact = all(report.sides[0].accuracy for _, report in done)
    if exact:
        chart = draw_pareto("Speed and accuracy", "FPS", "IoU", named)
    else:
        chart = draw_pareto("Throughput and latency", "FPS", "- p50, ms", named)
    notes = [f"{cell.name}: {note}" for cell in cells if cell.report for note in cell.report.notes]
    return page(
        "Freespace sweep",
        [
            ("Cells", listed(explained(cells)) + table(HEAD, rows_of(cells))),
            ("Pareto front", f'<div class="charts">{chart}</div>'),
        ],
        notes,
    )
