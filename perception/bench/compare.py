"""Is one measurement slower than another? Judged by intervals, not by eye; refused where they are not of the same thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perception.bench.figures import LEVEL, geometric_mean, interval, ratio_interval
from perception.bench.schema import Case, Report, Side, case_of
from perception.errors import BadInput

ALLOWED = 0.03  # slower than this counts
ACCURACY_ALLOWED = 0.005  # IoU
WORKLOAD_LIMIT = 0.05  # by which the fixed workload may differ before two files do not compare

Verdict = Literal["regression", "no regression", "undecided"]


@dataclass(frozen=True)
class Judged:
    """One figure of both: as costs, so that above 1 the second is slower.

    Attributes:
        first, second: geometric means over windows, in ``unit``.
        ratio, low, high: cost of the second over that of the first, and its interval.
    """

    mode: str
    load: str
    what: str
    unit: str
    first: float
    second: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Attributes: paired: whether windows were measured in turn; level: of each interval, so that all of them together hold
    95 %; notes: what is to be known."""

    rows: list[Judged]
    paired: bool
    level: float
    allowed: float
    notes: list[str]

    @property
    def verdict(self) -> Verdict:
        verdicts = [row.verdict for row in self.rows]
        return "regression" if "regression" in verdicts else "undecided" if "undecided" in verdicts else "no regression"


def compare_sides(report: Report, allowed: float = ALLOWED) -> Comparison:
    """B against A of one report, whose windows were measured in turn: each round is a pair.

    Raises:
        BadInput: there is no B.
    """
    if len(report.sides) != 2:
        raise BadInput("only one side was measured; compare two reports, or measure with --against")
    first, second = report.sides
    unequal = accuracy_differs(first, second)
    return judged(first, second, allowed, True, note_changes(first, second) + ([unequal] if unequal else []))


def compare_reports(first: Report, second: Report, allowed: float = ALLOWED, despite: Sequence[str] = ()) -> Comparison:
    """The second report against the first, side A of each.

    Args:
        despite: keys of `differences` that may differ.

    Raises:
        BadInput: they are not of the same thing; or there is nothing that both measured.
    """
    a, b = first.sides[0], second.sides[0]
    found = differences(first, second)
    if unknown := set(despite) - set(KEYS):
        raise BadInput(f"--despite {min(unknown)}: unknown; known: {', '.join(KEYS)}")
    if unlike := {key: text for key, text in found.items() if key not in despite}:
        raise BadInput(
            f"these are not of the same thing: {'; '.join(unlike.values())}; measure both alike, or, where that is what you "
            f"want to know, give --despite {' --despite '.join(unlike)}"
        )
    notes = note_changes(a, b) + [f"compared despite: {text}" for text in found.values()]
    value, low, high = ratio_interval(second.workload_ms[b.label], first.workload_ms[a.label])
    other_state = ""
    if low > 1 + WORKLOAD_LIMIT or high < 1 / (1 + WORKLOAD_LIMIT):
        other_state = (
            f"the fixed workload took {value:.2f} times as long ({low:.2f} to {high:.2f}) with the second as with the first: "
            "the machine was in another state, and no verdict is possible; measure both in turn with --against"
        )
    elif low < 1 / (1 + WORKLOAD_LIMIT) or high > 1 + WORKLOAD_LIMIT:
        notes.append(f"the fixed workload's ratio is only known to be {low:.2f} to {high:.2f}: the machine itself is noisy")
    return judged(a, b, allowed, False, notes, other_state)


# -- Whether ------------------------------------------------------------------------------------------------------------

KEYS: dict[str, Callable[[Report, Side], object]] = {
    "machine": lambda r, s: (r.machine.cpu, r.machine.cores, r.machine.quota, r.machine.board),
    "gpu": lambda r, s: [(gpu.name, gpu.power_limit_w) for gpu in r.machine.gpus],
    "governor": lambda r, s: r.machine.governor,
    "clip": lambda r, s: r.clip.sha256,
    "frame": lambda r, s: (r.clip.size, r.clip.fps),
    "mode": lambda r, s: sorted((case.mode, case.load) for case in s.cases),
    "window": lambda r, s: r.settings.window_s,
    "batch": lambda r, s: r.settings.batch,
    "backend": lambda r, s: s.engine.backend,
    "precision": lambda r, s: s.engine.precision,
    "device": lambda r, s: s.engine.device,
    "threads": lambda r, s: s.engine.threads,
    "input-size": lambda r, s: s.engine.input_size,
    "config": lambda r, s: s.config_sha256,
    "workload": lambda r, s: r.workload,
    "accuracy": lambda r, s: None,  # see `accuracy_differs`
}


def differences(first: Report, second: Report) -> dict[str, str]:
    """What makes them unlike, by key: a phrase each."""
    a, b = first.sides[0], second.sides[0]
    found = {}
    for key, of in KEYS.items():
        one, two = of(first, a), of(second, b)
        if one != two:
            found[key] = f"{key} {shown(one)} and {shown(two)}"
    if first.clip.sha256 is None and "clip" not in found:
        found["clip"] = "clip: a live source never gives the same frames twice"
    if text := accuracy_differs(a, b):
        found["accuracy"] = text
    return found


def accuracy_differs(a: Side, b: Side) -> str:
    """Why another model is no faster one: its accuracy is not known, or is less. Empty where nothing speaks against it."""
    if a.accuracy and b.accuracy:
        if (a.accuracy.data, a.accuracy.split) != (b.accuracy.data, b.accuracy.split):
            return "accuracy was measured on other images"
        lost = a.accuracy.iou - b.accuracy.iou
        return f"accuracy: the second loses {lost:.4f} of IoU" if lost > ACCURACY_ALLOWED else ""
    if a.engine.model_sha256 != b.engine.model_sha256:
        return "accuracy: the models differ, and it is not known of both what they are worth; measure with --data"
    return ""


def shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text


def note_changes(a: Side, b: Side) -> list[str]:
    """What differs and is what one wants to compare."""
    notes = []
    if a.engine.model_sha256 != b.engine.model_sha256:
        notes.append(f"models {a.engine.model} {a.engine.model_sha256[:12]} and {b.engine.model} {b.engine.model_sha256[:12]}")
    if (a.version, a.revision) != (b.version, b.revision):
        notes.append(f"code {a.version} {a.revision or ''} and {b.version} {b.revision or ''}")
    if a.accuracy and b.accuracy and a.accuracy.data == b.accuracy.data:
        notes.append(f"IoU {a.accuracy.iou:.4f} and {b.accuracy.iou:.4f}, split {a.accuracy.split}")
    return notes


# -- How much -----------------------------------------------------------------------------------------------------------


def figures_of(case: Case) -> dict[tuple[str, str], tuple[list[float], bool]]:
    """(figure, unit) -> (a value for each window, whether more is better)."""
    windows = case.windows
    cpu: dict[tuple[str, str], tuple[list[float], bool]] = {}
    if all(w.cpu_ms > 0 for w in windows):
        cpu = {("processor time", "ms"): ([w.cpu_ms for w in windows], False)}
    if case.load == "flat-out":
        return {("throughput", "FPS"): ([w.fps for w in windows], True), **cpu}
    return {
        (f"{case.headline} p50", "ms"): ([w.p50_ms for w in windows], False),
        (f"{case.headline} p95", "ms"): ([w.p95_ms for w in windows], False),
    }


def judged(a: Side, b: Side, allowed: float, paired: bool, notes: list[str], other_state: str = "") -> Comparison:
    """Every figure that both have. A figure's interval is at such a level that with 95 % all of them hold (Bonferroni)."""
    pairs = [(case, other) for case in a.cases if (other := case_of(b, case.mode, case.load))]
    number = sum(len(set(figures_of(case)) & set(figures_of(other))) for case, other in pairs)
    if not number:
        raise BadInput("there is nothing that both measured; give both the same --mode")
    level = 1 - (1 - LEVEL) / number
    rows = []
    for case, other in pairs:
        theirs = figures_of(other)
        for (what, unit), (first, better_up) in figures_of(case).items():
            if (what, unit) not in theirs:
                continue
            second = theirs[what, unit][0]
            over, under = (first, second) if better_up else (second, first)
            if paired:
                ratio, low, high = interval((np.array(over) / np.array(under)).tolist(), level=level)
            else:
                ratio, low, high = ratio_interval(over, under, level)
            verdict = "undecided" if other_state else verdict_of(ratio, low, high, allowed)
            one, two = (float(geometric_mean(np.array(values))) for values in (first, second))
            rows.append(Judged(case.mode, case.load, what, unit, one, two, ratio, low, high, verdict))
    return Comparison(rows, paired, level, allowed, [*([other_state] if other_state else []), *notes])


def verdict_of(ratio: float, low: float, high: float, allowed: float) -> Verdict:
    """From a cost's ratio and interval.

    A regression: slower beyond doubt, and by more than allowed as far as can be told. None: not slower by more than allowed,
    beyond doubt. Else the noise is too large for a verdict.
    """
    if low > 1 and ratio > 1 + allowed:
        return "regression"
    return "no regression" if high <= 1 + allowed else "undecided"


def lines(comparison: Comparison) -> list[str]:
    """The comparison as text."""
    how = "windows measured in turn, round by round" if comparison.paired else "windows of two runs, not measured in turn"
    said = [
        f"cost of the second over the first; above 1 it is slower; {how}; "
        f"{comparison.level:.1%} intervals, {len(comparison.rows)} at once; {comparison.allowed:.0%} are allowed",
        f"{'mode':<11} {'load':<14} {'figure':<15} {'first':>9} {'second':>9}      {'ratio':>6}  {'interval':<15} verdict",
    ]
    for row in comparison.rows:
        said.append(
            f"{row.mode:<11} {row.load:<14} {row.what:<15} {row.first:9.3f} {row.second:9.3f} {row.unit:<4} {row.ratio:6.3f}  "
            f"{f'{row.low:.3f} to {row.high:.3f}':<15} {row.verdict}"
        )
    said += [f"note: {note}" for note in comparison.notes]
    ends = {
        "regression": "regression: the second is slower",
        "no regression": f"no regression: no figure is worse by more than {comparison.allowed:.0%}",
        "undecided": "undecided: the noise of these measurements is larger than what is asked; give more --rounds, on a quiet "
        "machine, and measure in turn with --against",
    }
    return [*said, ends[comparison.verdict]]
