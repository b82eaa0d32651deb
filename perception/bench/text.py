"""A report as text for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.bench.schema import Case, Machine, Report, Side

Rows = list[list[str]]

CASES = ["side", "mode", "load", "FPS", "95 %", "p50", "p90", "p95", "p99", "max", "mean", "jitter", "steady", "dropped"]
COSTS = ["side", "mode", "load", "CPU ms/frame", "cores", "others", "RSS MB", "threads", "J/frame", "bound by"]
STAGES = ["side", "mode", "load", "stage", "p50", "p90", "p95", "p99", "max", "mean", "jitter"]
COLD = ["side", "imports", "open engine", "first result", "total, median", "least", "most"]


def tables(report: Report) -> list[tuple[str, list[str], Rows]]:
    """(title, head, rows) of everything that is told as text."""
    each = [(side, case) for side in report.sides for case in side.cases]
    found = [
        ("Throughput, and latency in ms", CASES, [case_row(side, case) for side, case in each]),
        ("What it takes, and what it is bound by", COSTS, [cost_row(side, case) for side, case in each]),
        ("Milliseconds by stage", STAGES, [row for side, case in each for row in stage_rows(side, case)]),
    ]
    if cold := [cold_row(side) for side in report.sides if side.cold]:
        found.append(("Cold start, seconds", COLD, cold))
    if sensed := [row for side, case in each for row in sensor_rows(side, case)]:
        found.append(("Sensors", ["side", "mode", "load", "sensor", "mean", "least", "most"], sensed))
    if exact := [row for side in report.sides for row in accuracy_rows(side)]:
        found.append(("Accuracy", ["side", "split", "data set", "plane", "images", "IoU", "95 %"], exact))
    return found


def case_row(side: Side, case: Case) -> list[str]:
    d, fps, s = case.stages[case.headline], case.fps, case.stability
    steady = "yes" if s.steady else f"drift {s.drift_percent:+.0f} %, {len(s.slow)} slow"
    values = [f"{v:.2f}" for v in (d.p50, d.p90, d.p95, d.p99, d.max, d.mean, d.jitter)]
    where = [side.label, case.mode, case.load]
    return [*where, f"{fps.value:.1f}", f"{fps.low:.1f} to {fps.high:.1f}", *values, steady, str(case.dropped)]


def cost_row(side: Side, case: Case) -> list[str]:
    cores = float(np.mean([w.cores_used for w in case.windows]))
    others = [w.others_cores for w in case.windows if w.others_cores is not None]
    return [
        *(side.label, case.mode, case.load, f"{case.cpu_ms.value:.2f}", f"{cores:.2f}"),
        f"{np.mean(others):.2f}" if others else "–",
        *(f"{case.rss_mb:.0f}", str(case.threads)),
        f"{case.energy_j:.3f} ({case.power_source})" if case.energy_j is not None else "–",
        case.bound_by,
    ]


def stage_rows(side: Side, case: Case) -> Rows:
    return [
        [side.label, case.mode, case.load, stage, *(f"{v:.2f}" for v in (d.p50, d.p90, d.p95, d.p99, d.max, d.mean, d.jitter))]
        for stage, d in case.stages.items()
    ]


def cold_row(side: Side) -> list[str]:
    assert side.cold
    medians = [np.median(getattr(side.cold, name)) for name in ("imports", "open_engine", "first_result", "total")]
    return [side.label, *(f"{m:.2f}" for m in medians), f"{min(side.cold.total):.2f}", f"{max(side.cold.total):.2f}"]


def sensor_rows(side: Side, case: Case) -> Rows:
    return [
        [side.label, case.mode, case.load, name, *(f"{v:.1f}" for v in (s.mean, s.low, s.high))]
        for name, s in case.sensors.items()
    ]


def accuracy_rows(side: Side) -> Rows:
    if not side.accuracy:
        return []
    return [
        [
            *(side.label, side.accuracy.split, row.dataset, row.plane, str(row.images), f"{row.iou:.4f}"),
            f"{row.low:.4f} to {row.high:.4f}" if row.low is not None and row.high is not None else "–",
        ]
        for row in side.accuracy.rows
    ]


def describe(report: Report) -> list[str]:
    """What was measured, on what, how: a line each."""
    clip, settings = report.clip, report.settings
    rate = f"{clip.fps:.4g} FPS" if clip.fps else "no rate"
    said = [describe_machine(report.machine)]
    for side in report.sides:
        e = side.engine
        said.append(
            f"{side.label} ({side.what}): {e.model} {e.model_sha256[:12]} at {e.input_size[0]}x{e.input_size[1]}, "
            f"{e.backend} {e.precision} on {e.device}, "
            f"Freespace {side.version}{f' {side.revision}' if side.revision else ''}"
        )
    said.append(f"{clip.name}, {clip.size[0]}x{clip.size[1]}, {rate}, sha256 {(clip.sha256 or 'none: live')[:12]}")
    said.append(f"{settings.rounds} windows of {settings.window_s:g} s for each case, in turn; batch {settings.batch}")
    return said


def describe_machine(machine: Machine) -> str:
    parts = [machine.board, machine.cpu, f"{machine.cores} cores", f"{machine.memory_gib:g} GiB"]
    parts += [f"{gpu.name} (driver {gpu.driver})" for gpu in machine.gpus]
    return ", ".join([p for p in parts if p] + [machine.system])


def headline(report: Report) -> list[str]:
    """The sentences to quote."""
    said = []
    for side in report.sides:
        for case in side.cases:
            d = case.stages[case.headline]
            where = f"{side.label}, {case.mode}, {case.load}"
            if case.load == "flat-out":
                said.append(f"{where}: {case.fps.value:.1f} FPS (95 %: {case.fps.low:.1f} to {case.fps.high:.1f})")
            else:
                said.append(f"{where}: p50 {d.p50:.2f} ms, p99 {d.p99:.2f} ms, {case.dropped} dropped")
    return said


def aligned(head: Sequence[str], rows: Rows) -> list[str]:
    wide = [max(len(line[i]) for line in [list(head), *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in [list(head), *rows]]


def terminal(report: Report) -> str:
    parts = [*describe(report)]
    for title, head, rows in tables(report):
        parts += ["", f"{title}:", *aligned(head, rows)]
    parts += ["", *(f"note: {note}" for note in report.notes)]
    return "\n".join(parts).rstrip()


def markdown(report: Report) -> str:
    parts = ["# Freespace benchmark", "", *(f"- {line}" for line in describe(report)), f"- `{report.command}`"]
    parts += [f"- {report.created}, Python {report.machine.python}, flags: {' '.join(report.machine.flags) or 'none known'}"]
    parts += [f"- {name} {version}" for name, version in report.machine.packages.items()]
    for title, head, rows in tables(report):
        parts += ["", f"## {title}", "", markdown_table(head, rows)]
    if report.notes:
        parts += ["", "## Notes", "", *(f"- {note}" for note in report.notes)]
    return "\n".join([*parts, ""])


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
