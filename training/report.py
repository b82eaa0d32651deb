"""A run as one page: ``report.html`` holds its settings, curves, metrics and pictures, and needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from engine.files import write_whole
from training.logs import ENVIRONMENT, LOG, STEPS, flatten, read_entries

REPORT, HEALTH, SHEETS = "report.html", "health.json", "sheets"
SETTINGS = ("config.json", "recipe.yaml", "config.yaml")
SPLITS = ("splits.json", "splits.yaml")

SPELLED = {"iou": "IoU", "f1": "F1", "dice": "Dice"}
POINTS = 300  # of a curve; longer ones are drawn as mean and range of as many parts
SHOWN_SHEETS = 8  # spread over the run, first and last among them
LONG_TABLE = 24  # rows; a longer one is folded away
FEW_STEPS = 5  # measured; fewer say little
WIDE = ("Loss", "Parts of the loss", "Gradient norm, before clipping")  # charts that may need a logarithmic axis
SERIES = 8  # colours, after which they repeat dashed

F64 = NDArray[np.float64]


class Series(NamedTuple):
    """One curve: what it is called, and float arrays ``(n,)``."""

    name: str
    x: F64
    y: F64


class Metric(NamedTuple):
    """Where a number of ``log.jsonl`` belongs: ``dev/camvid/freespace/iou``; IoU is what needs no name."""

    split: str
    dataset: str
    plane: str
    name: str


def write_report(run: Path) -> Path:
    """Write ``report.html`` from what lies in the folder of a run, each part optional.

    Settings from ``config.json`` or ``recipe.yaml``, data from ``splits.json`` or ``splits.yaml`` (split -> data set ->
    list), curves from ``steps.csv`` and ``log.jsonl``, ``health.json`` as `training.health` reports it, pictures from
    ``sheets/*.jpg``, command and versions from ``environment.json``. What cannot be read is named in the report and left out.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of a run in it.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such folder; give the folder of a run")
    notes: list[str] = []
    settings = next((s for n in SETTINGS if (s := read_mapping(run / n, notes))), {})
    splits = next((s for n in SPLITS if (s := read_mapping(run / n, notes))), {})
    health, environment = read_mapping(run / HEALTH, notes), read_mapping(run / ENVIRONMENT, notes)
    entries, steps = read_log(run / LOG, notes), read_steps(run / STEPS, notes)
    sheets = sorted((run / SHEETS).glob("*.jpg"))
    if not (settings or splits or health or environment or entries or steps or sheets or notes):
        raise FileNotFoundError(f"{run}: nothing of a run is in it; give the folder that --out of 'freespace train' named")
    metrics = metrics_of(entries)
    sections = [
        ("Result", [cards(entries, metrics, steps), best_and_last(metrics)]),
        ("Curves", curves(steps, entries, metrics, notes)),
        ("Metrics by epoch", [by_epoch(entries, metrics)]),
        ("Predictions", [pictures(sheets)]),
        ("Gradient health", [health_table(health)]),
        ("Data", [data_table(splits)]),
        ("Settings", [table(("setting", "value"), leaves(settings), "settings")]),
        ("Time", [timing(entries, steps)]),
        ("Environment", [environment_table(environment)]),
    ]
    path = run / REPORT
    write_whole(path, page(run.resolve().name, [(title, [p for p in parts if p]) for title, parts in sections], notes).encode())
    return path


def read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """What a JSON or YAML file holds; nothing, and a note, where it cannot be read."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" else json.loads(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} cannot be read: it holds no settings by name")
        return {}
    return content


def read_log(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Entries of the epochs, flat."""
    try:
        entries = [entry for _, entry in read_entries(path.read_text(encoding="utf-8"))] if path.exists() else []
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return []
    return [flatten(e) for e in entries if isinstance(e, dict) and "epoch" in e]


def read_steps(path: Path, notes: list[str]) -> dict[str, F64]:
    """Columns of ``steps.csv``, NaN where a field is no number; a torn last row is left out."""
    if not path.exists():
        return {}
    try:
        columns, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    whole = [row for row in rows if len(row) == len(columns)]
    found = {name: np.array([to_float(row[i]) for row in whole]) for i, name in enumerate(columns)} if whole else {}
    return found if "step" in found else {}


def to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def metrics_of(entries: Sequence[Mapping[str, Any]]) -> dict[Metric, Series]:
    """Every number that has a split, over the epochs that have it."""
    found: dict[Metric, list[tuple[float, float]]] = {}
    for entry in entries:
        for key, value in entry.items():
            split, _, rest = key.partition("/")
            if rest and split != "loss" and isinstance(value, (int, float)) and math.isfinite(value):
                parts = rest.split("/")
                place = (*parts[:2], "/".join(parts[2:]) or "iou") if len(parts) > 1 else ("all", "all", rest)
                found.setdefault(Metric(split, *place), []).append((entry["epoch"], float(value)))
    return {m: Series(f"{m.dataset} {m.plane}", *np.array(v, float).T) for m, v in sorted(found.items())}


def best_of(metric: Metric, series: Series) -> int:
    """Position of the best value: the least of losses and errors, the greatest of all others, the earliest of equals."""
    lower = any(word in metric.name for word in ("loss", "error"))
    return int(series.y.argmin() if lower else series.y.argmax())


# --- parts of the page -------------------------------------------------------------------------------------------------


def cards(entries: Sequence[Mapping[str, Any]], metrics: Mapping[Metric, Series], steps: Mapping[str, F64]) -> str:
    """The run in a handful of numbers."""
    facts = []
    for metric, series in metrics.items():
        if metric.name == "iou" and metric.split != "train":
            best = best_of(metric, series)
            facts.append((f"{series.y[best]:.4f}", f"best {metric.split} IoU, {series.name}, epoch {series.x[best]:.0f}"))
    if entries:
        facts.append((str(entries[-1]["epoch"]), "epochs"))
        if "loss" in entries[-1]:
            facts.append((number(entries[-1]["loss"]), "loss in the last epoch"))
        facts.append((duration(sum(e.get("seconds", 0) for e in entries)), "of training"))
    elif steps:
        facts.append((f"{steps['step'][-1]:.0f}", "steps"))
    listed = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for value, what in facts)
    return f'<dl class="cards">{listed}</dl>' if facts else ""


def best_and_last(metrics: Mapping[Metric, Series]) -> str:
    rows = []
    for metric, series in metrics.items():
        best = best_of(metric, series)
        rows.append((*metric, number(series.y[best]), f"{series.x[best]:.0f}", number(series.y[-1]), f"{series.x[-1]:.0f}"))
    return table(("split", "data set", "plane", "metric", "best", "in epoch", "last", "in epoch"), rows)


def by_epoch(entries: Sequence[Mapping[str, Any]], metrics: Mapping[Metric, Series]) -> str:
    """A row per epoch, a column per number; the best of each column is marked, and so is the last row."""
    if not entries:
        return ""
    others = [k for k in dict.fromkeys(key for e in entries for key in e) if "/" not in k or k.startswith("loss/")]
    known = {m: {float(x): float(y) for x, y in zip(s.x, s.y, strict=True)} for m, s in metrics.items()}
    best = {m: float(s.x[best_of(m, s)]) for m, s in metrics.items()}
    rows = []
    for index, entry in enumerate(entries):
        cells = [f"<td>{escape(number(entry.get(key, '')))}</td>" for key in others]
        for metric in metrics:
            mark = ' class="best"' if best[metric] == entry["epoch"] else ""
            cells.append(f"<td{mark}>{escape(number(known[metric].get(float(entry['epoch']), '')))}</td>")
        rows.append(f"<tr{' class=last' if index == len(entries) - 1 else ''}>{''.join(cells)}</tr>")
    names = [*others, *(" ".join(m) for m in metrics)]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    note = '<p><span class="best">Best</span> of each column; the last epoch is the last row.</p>' if metrics else ""
    return note + folded(f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>", len(rows), "epochs")


def health_table(health: Mapping[str, Any]) -> str:
    layers = [row for row in health.get("layers", []) if isinstance(row, dict)]
    if not health:
        return ""
    found = [escape(str(finding)) for finding in health.get("findings", [])]
    said = "".join(f"<li>{finding}</li>" for finding in found)
    keys = ("name", "kind", "weights", "gradient", "weight", "update", "relative", "verdict")
    dead = health.get("dead", {})
    rows = [[number(row.get(key, "")) if row.get(key) is not None else "" for key in keys] for row in layers]
    explained = (
        "<p>Medians over the latest steps measured; layers that were frozen are not listed. Gradient and weight: norms; "
        "update: norm of a step's change over the weights'; relative: root mean square of the gradient over that of the median "
        "layer. Verdict: vanishing, the layer hardly learns; exploding, its gradient is far longer than its weights; restless, "
        "a step changes it by more than a tenth; empty, nothing is wrong.</p>"
    )
    head = ("layer", "kind", "weights", "gradient", "weight norm", "update", "relative", "verdict")
    silent = [(name, f"{share:.1%}") for name, share in dead.items() if share]
    return (
        (
            f'<ul class="findings">{said}</ul>'
            if said
            else "<p>Nothing found: gradients reach every layer in a like measure.</p>"
        )
        + measured_at(health)
        + (explained + table(head, rows, "layers") if rows else "")
        + table(("activation", "channels that are 0 everywhere in a batch"), silent, "activations with dead channels")
    )


def measured_at(health: Mapping[str, Any]) -> str:
    """What the section rests on: a short run has hardly been looked at."""
    steps, measured = health.get("steps"), health.get("measured")
    if not isinstance(steps, int) or not isinstance(measured, int) or not measured:
        return ""
    few = " These are few; a longer run says more." if measured < FEW_STEPS else ""
    return f"<p>Measured at {measured} of the {steps} steps of the last phase.{few}</p>"


def data_table(splits: Mapping[str, Any]) -> str:
    """Split -> data set -> sequences, as counts."""
    rows = []
    for split, sets in splits.items():
        for name, members in sets.items() if isinstance(sets, dict) else ():
            counted = len(members) if isinstance(members, (list, dict)) else members
            rows.append((split, name, number(counted)))
    return table(("split", "data set", "sequences"), rows)


def timing(entries: Sequence[Mapping[str, Any]], steps: Mapping[str, F64]) -> str:
    rows = []
    times = [float(e["seconds"]) for e in entries if isinstance(e.get("seconds"), (int, float))]
    if times:
        rows += [("whole run", duration(sum(times))), ("epoch, median", duration(float(np.median(times))))]
    if "seconds" in steps:
        rows.append(("step, median", f"{np.nanmedian(steps['seconds']) * 1000:.0f} ms"))
        rows.append(("steps", f"{len(steps['seconds'])}"))
    return table(("what", "value"), rows)


def environment_table(environment: Mapping[str, Any]) -> str:
    starts = [start for start in environment.get("starts", []) if isinstance(start, dict)]
    if not starts:
        return ""
    last = starts[-1]
    resumed = f"<p>Started {len(starts)} times; the latest start is shown.</p>" if len(starts) > 1 else ""
    command = f"<pre><code>{escape(str(last.get('command', '')))}</code></pre>"
    return resumed + command + table(("what", "value"), leaves({k: v for k, v in last.items() if k != "command"}))


def pictures(sheets: Sequence[Path]) -> str:
    if not sheets:
        return ""
    chosen = [sheets[i] for i in np.unique(np.linspace(0, len(sheets) - 1, SHOWN_SHEETS).round().astype(int))]
    explained = "Errors: found road green, false road red, missed road blue, unknown grey."
    left_out = f" {len(chosen)} of {len(sheets)} sheets are shown." if len(chosen) < len(sheets) else ""
    shown = "".join(
        f'<figure><figcaption>{escape(sheet.stem)}</figcaption><img alt="predictions, {escape(sheet.stem)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(sheet.read_bytes()).decode()}"></figure>'
        for sheet in reversed(chosen)
    )
    return f"<p>{explained}{left_out}</p>{shown}"


# --- curves ------------------------------------------------------------------------------------------------------------


def curves(
    steps: Mapping[str, F64], entries: Sequence[Mapping[str, Any]], metrics: Mapping[Metric, Series], notes: list[str]
) -> list[str]:
    """Loss and its parts, rate, length of the gradient, and each metric by split."""
    charts: list[tuple[str, str, list[Series], list[int]]] = []  # title, name of x, curves, positions of their best
    if steps:
        at = steps["step"]
        columns = [("Loss", ["loss"]), ("Parts of the loss", [k for k in steps if k.startswith("loss/")])]
        columns += [("Rate", ["rate"]), ("Gradient norm, before clipping", ["gradient_norm"])]
        for title, names in columns:
            series = [Series(name.removeprefix("loss/"), at, steps[name]) for name in names if name in steps]
            charts.append((title, "step", [s for s in series if np.isfinite(s.y).any()], []))
    elif any("loss" in e for e in entries):
        values = np.array([(e["epoch"], to_float(str(e["loss"]))) for e in entries if "loss" in e], float).T
        charts.append(("Loss", "epoch", [Series("loss", *values)], []))
    for split, name in dict.fromkeys((m.split, m.name) for m in metrics):
        own = {m: s for m, s in metrics.items() if (m.split, m.name) == (split, name)}
        title = f"{SPELLED.get(name, name)} on {split}"
        charts.append((title, "epoch", list(own.values()), [best_of(m, s) for m, s in own.items()]))
    charts = [chart for chart in charts if any(np.isfinite(s.y).any() for s in chart[2])]
    try:
        drawn = [draw_chart(number, *chart) for number, chart in enumerate(charts)]
    except ImportError:
        notes.append("Curves are left out: matplotlib is not installed.")
        return []
    return [f'<div class="charts">{"".join(drawn)}</div>'] if drawn else []


def draw_chart(index: int, title: str, x_name: str, series: Sequence[Series], best: Sequence[int]) -> str:
    """A figure: its title, its key and the curves as SVG whose colours are the page's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink, grid = "#010101", "#020202"  # stand for the page's colours, see `inline`
    with rc_context({"svg.fonttype": "none", "font.size": 9, "axes.edgecolor": grid, "axes.unicode_minus": False}):
        figure = Figure(figsize=(5.6, 2.7), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, curve in enumerate(series):
            colour, dash = f"#0301{place % SERIES:02x}", ("-", "--", ":")[place // SERIES % 3]
            x, mean, low, high = thinned(curve.x, curve.y)
            if low is not None and high is not None:
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            lone = "o" if len(x) == 1 else None
            axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.5, marker=lone, markersize=4)
        for place, position in enumerate(best):
            curve, colour = series[place], f"#0301{place % SERIES:02x}"
            axes.plot(curve.x[position], curve.y[position], "o", color=colour, markersize=6)
            axes.plot(curve.x[-1], curve.y[-1], "o", color=colour, markersize=6, markerfacecolor="none")
        values = np.concatenate([c.y[np.isfinite(c.y)] for c in series])
        if title in WIDE and values.min() > 0 and values.max() > 50 * values.min():
            axes.set_yscale("log")
        axes.set_xlabel(x_name, color=ink)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(which="both", color=grid, labelcolor=ink)
        axes.grid(color=grid, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        out = io.StringIO()
        canvas.print_svg(out)  # type: ignore[no-untyped-call]
    key = "".join(
        f'<span class="key c{place % SERIES}{" dashed" if place >= SERIES else ""}">{escape(curve.name)}</span>'
        for place, curve in enumerate(series)
        if len(series) > 1 or best
    )
    marks = '<span class="marks">● best ○ last</span>' if best else ""
    picture = inline(out.getvalue(), f"chart{index}-", title)
    return f"<figure><figcaption><b>{escape(title)}</b> {key}{marks}</figcaption>{picture}</figure>"


def thinned(x: F64, y: F64) -> tuple[F64, F64, F64 | None, F64 | None]:
    """x, y and nothing of a short curve; of a long one middle, mean, least and greatest of each of `POINTS` parts."""
    if len(x) <= POINTS:
        return x, y, None, None
    parts = [part[np.isfinite(part)] for part in np.array_split(y, POINTS)]
    middles = np.array([part.mean() for part in np.array_split(x, POINTS)])
    mean, low, high = (np.array([f(p) if p.size else math.nan for p in parts]) for f in (np.mean, np.min, np.max))
    return middles, mean, low, high


def inline(svg: str, prefix: str, title: str) -> str:
    """matplotlib's SVG as a part of a page: no references outside, names of its own, the page's colours and width."""
    box = svg[(start := svg.index('viewBox="')) : svg.index('"', start + 9) + 1]
    body = svg[svg.index(">", start) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = body.replace("#010101", "var(--ink)").replace("#020202", "var(--line)")
    body = re.sub(r"#0301(0\d)", lambda match: f"var(--c{int(match[1])})", body)
    return f'<svg role="img" aria-label="{escape(title)}" {box}>{body}'


# --- HTML --------------------------------------------------------------------------------------------------------------

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --soft: #f3f5f7; --ink: #1c2126; --faint: #5b6670; --line: #d3d9df; --good: #0b7a4b; --bad: #b3261e;
  --c0: #0072b2; --c1: #d55e00; --c2: #00875f; --c3: #b5478c; --c4: #6a4fb3; --c5: #8a6d00; --c6: #3a6b7c; --c7: #a03030;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --soft: #1e242a; --ink: #e4e8ec; --faint: #9aa5b0; --line: #3a434c; --good: #4fd39a; --bad: #ff8a80;
    --c0: #56b4e9; --c1: #ff9a56; --c2: #3ddc97; --c3: #f29bc4; --c4: #b7a4f0; --c5: #e6c229; --c6: #8fc7d6; --c7: #ff8a80;
  }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink); }
body { font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
p { color: var(--faint); margin: .4rem 0; }
nav a { color: var(--c0); margin-right: 1rem; white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
.cards div { display: flex; flex-direction: column-reverse; justify-content: flex-end; max-width: 13rem; }
.cards div { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; }
.cards dt { color: var(--faint); font-size: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem 2rem; }
figure { margin: 0 0 1rem; min-width: 0; }
figcaption { font-size: .85rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; display: block; stroke-linejoin: round; }
svg text { font-family: system-ui, sans-serif !important; }
img { max-width: 100%; height: auto; border-radius: .3rem; }
.key, .marks { margin-left: .8rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 1.1rem; margin-right: .3rem; vertical-align: middle; }
.key::before { border-top: 3px solid var(--colour); }
.key.dashed::before { border-top-style: dashed; }
.marks { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 600; }
tr.last td { font-weight: 600; }
.best { color: var(--good); font-weight: 600; }
summary { cursor: pointer; color: var(--c0); }
pre { background: var(--soft); padding: .6rem 1rem; border-radius: .5rem; overflow-x: auto; }
.findings { color: var(--bad); padding-left: 1.2rem; }
.notes { border-left: 3px solid var(--bad); padding-left: 1rem; list-style: none; }
""" + "".join(f".c{i} {{ --colour: var(--c{i}); }}\n" for i in range(SERIES))


def page(name: str, sections: Sequence[tuple[str, Sequence[str]]], notes: Sequence[str]) -> str:
    """The whole page; sections without a part are left out."""
    filled = [(title, parts) for title, parts in sections if parts]
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title, _ in filled)
    body = "".join(f'<section id="{anchor(title)}"><h2>{title}</h2>{"".join(parts)}</section>\n' for title, parts in filled)
    said = f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)} – training report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>Training run {escape(name)}</h1><nav>{links}</nav>{said}</header>\n"
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], what: str = "rows") -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return folded(f"<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody>", len(rows), what)


def folded(content: str, rows: int, what: str) -> str:
    shown = f'<div class="scroll"><table>{content}</table></div>'
    return shown if rows <= LONG_TABLE else f"<details><summary>{rows} {escape(what)}</summary>{shown}</details>"


def leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of ``a.b`` and value."""
    if isinstance(value, Mapping) and value:
        return [row for k, v in value.items() for row in leaves(v, f"{name}.{k}" if name else str(k))]
    return [(name, value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))] if name else []


def number(value: Any) -> str:
    """Whole numbers in full, others to four digits, text as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6):
        return f"{value:.0f}" if isinstance(value, int) else f"{value:g}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def escape(text: str) -> str:
    return html.escape(text, quote=True)
