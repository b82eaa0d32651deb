"""Is one measurement slower than another? Judged by intervals, not by eye; refused where they are not of the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from perception.bench.figures import LEVEL, geometric_mean, interval, ratio_interval
from perception.bench.schema import Case, Report, Side, case_of
from perception.errors import BadInput

ALLOWED = 0.03  # slower than this counts
COLD_ALLOWED = 0.1  # at least, of a cold start: there are few of them
COLD = "cold start"
ACCURACY_ALLOWED = 0.005  # IoU
WORKLOAD_LIMIT = 0.05  # by which the fixed workload may differ before two files do not compare

Verdict = Literal["regression", "no regression", "undecided"]


@dataclass(frozen=True)
class Judged:
    """One figure of both: as costs, so that above 1 the second is slower.

    Attributes:
        first, second: means over windows, in ``unit``.
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
    95 %; notes: what is to be known, those of the reports included; not_judged: figures without a verdict, in words."""

    rows: list[Judged]
    paired: bool
    level: float
    allowed: float
    notes: list[str]
    not_judged: list[str]

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
    notes = [*note_changes(first, second), *([unequal] if unequal else []), *report.notes]
    return judged(first, second, allowed, True, notes)


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
    for whose, report in (("first", first), ("second", second)):
        if len(report.sides) > 1:
            notes.append(f"the {whose} report has two sides: its A ({report.sides[0].what}) is compared, not its B")
    value, low, high = ratio_interval(second.workload_ms[b.label], first.workload_ms[a.label])
    other_state = ""
    if low > 1 + WORKLOAD_LIMIT or high < 1 / (1 + WORKLOAD_LIMIT):
        other_state = (
            f"the fixed workload took {value:.2f} times as long ({low:.2f} to {high:.2f}) with the second as with the first: "
            "the machine was in another state, and no verdict is possible; measure both in turn with --against"
        )
    elif low < 1 / (1 + WORKLOAD_LIMIT) or high > 1 + WORKLOAD_LIMIT:
        notes.append(f"the fixed workload's ratio is only known to be {low:.2f} to {high:.2f}: the machine itself is noisy")
    notes += [f"{whose}: {note}" for whose, report in (("the first", first), ("the second", second)) for note in report.notes]
    return judged(a, b, allowed, False, notes, other_state)


# -- Whether ------------------------------------------------------------------------------------------------------------

KEYS: dict[str, Callable[[Report, Side], object]] = {
    "machine": lambda r, s: (r.machine.cpu, r.machine.cores, r.machine.quota, r.machine.board),
    "flags": lambda r, s: tuple(r.machine.flags),
    "gpu": lambda r, s: [(gpu.name, gpu.power_limit_w) for gpu in r.machine.gpus],
    "driver": lambda r, s: [gpu.driver for gpu in r.machine.gpus],
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
    notes += [f"{key} {one} and {two}" for key, one, two in changed_settings(a.config, b.config)]
    if a.accuracy and b.accuracy and a.accuracy.data == b.accuracy.data:
        notes.append(f"IoU {a.accuracy.iou:.4f} and {b.accuracy.iou:.4f}, split {a.accuracy.split}")
    return notes


def changed_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(SECTION.KEY, value, value) of what was set otherwise; both hold what differs from the defaults."""
    for section in sorted({*a, *b}):
        ours, theirs = a.get(section, {}), b.get(section, {})
        for key in sorted({*ours, *theirs}):
            one, two = (shown(own.get(key, "the default")) for own in (ours, theirs))
            if one != two:
                yield f"{section}.{key}", one, two


# -- How much -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure that both sides may have.

    Attributes:
        values: a number for each window, or start, in ``unit``.
        more_is_better: as of frames per second.
        share: whether the values are per cent of the frames, and so may be 0.
    """

    values: list[float]
    unit: str
    more_is_better: bool = False
    share: bool = False

    @property
    def costs(self) -> list[float]:
        """Positive, more being worse. A share counts beside the frames: one of 5 % more costs 1.05 times as much."""
        if self.share:
            return [1 + value / 100 for value in self.values]
        return [1 / value for value in self.values] if self.more_is_better else self.values

    @property
    def mean(self) -> float:
        values = np.array(self.values)
        return float(values.mean() if self.share else geometric_mean(values))


Place = tuple[str, str, str]  # mode, load, figure


def figures_of(side: Side) -> dict[Place, Figure]:
    found: dict[Place, Figure] = {}
    for case in side.cases:
        found |= {(case.mode, case.load, what): figure for what, figure in figures_of_case(case).items()}
    if side.cold and len(side.cold.total) > 1:
        found[COLD, "", "total"] = Figure([1e3 * seconds for seconds in side.cold.total], "ms")
    return found


def figures_of_case(case: Case) -> dict[str, Figure]:
    windows = case.windows
    found: dict[str, Figure] = {}
    if case.load != "one-at-a-time":
        found["throughput"] = Figure([w.fps for w in windows], "FPS", more_is_better=True)
    if case.load == "flat-out":
        if all(w.cpu_ms > 0 for w in windows):
            found["processor time"] = Figure([w.cpu_ms for w in windows], "ms")
    else:
        found[f"{case.headline} p50"] = Figure([w.p50_ms for w in windows], "ms")
        found[f"{case.headline} p95"] = Figure([w.p95_ms for w in windows], "ms")
    found["dropped"] = Figure([100 * w.dropped / (w.dropped + w.frames) for w in windows], "%", share=True)
    found["invalid"] = Figure([100 * min(1.0, w.invalid / w.frames) for w in windows], "%", share=True)
    return found


def in_common(a: Side, b: Side) -> list[tuple[Place, Figure, Figure]]:
    """What both have; shares only where there is anything to them."""
    ours, theirs = figures_of(a), figures_of(b)
    pairs = [(place, figure, theirs[place]) for place, figure in ours.items() if place in theirs]
    return [(place, one, two) for place, one, two in pairs if not one.share or any([*one.values, *two.values])]


def judged(a: Side, b: Side, allowed: float, paired: bool, notes: list[str], other_state: str = "") -> Comparison:
    """Every figure that both have. A figure's interval is at such a level that with 95 % all of them hold (Bonferroni)."""
    common = in_common(a, b)
    if all(place[0] == COLD for place, _, _ in common):
        raise BadInput("there is nothing that both measured; give both the same --mode")
    level = 1 - (1 - LEVEL) / len(common)
    rows = []
    for (mode, load, what), first, second in common:
        over, under = second.costs, first.costs
        if paired and len(over) == len(under):
            ratio, low, high = interval((np.array(over) / np.array(under)).tolist(), level=level)
        else:
            ratio, low, high = ratio_interval(over, under, level)
        limit = max(allowed, COLD_ALLOWED) if mode == COLD else allowed
        verdict = "undecided" if other_state else verdict_of(ratio, low, high, limit)
        rows.append(Judged(mode, load, what, first.unit, first.mean, second.mean, ratio, low, high, verdict))
    notes = [*([other_state] if other_state else []), *notes, *unsteady("the first", a), *unsteady("the second", b)]
    return Comparison(rows, paired, level, allowed, notes, not_judged(a, b))


def unsteady(whose: str, side: Side) -> list[str]:
    """A note for each case that is not to be quoted."""
    return [
        f"{whose}, {case.mode}, {case.load}: is not steady: drift {s.drift_percent:+.0f} %, {len(s.slow)} slow windows"
        for case in side.cases
        if not (s := case.stability).steady
    ]


def not_judged(a: Side, b: Side) -> list[str]:
    """Of each case what has no interval, first and second."""
    said = []
    for case in a.cases:
        if other := case_of(b, case.mode, case.load):
            one, two = (c.stages[c.headline].p99 for c in (case, other))
            said.append(
                f"{case.mode}, {case.load}: {case.headline} p99 {one:.2f} and {two:.2f} ms, "
                f"RSS {case.rss_mb:.0f} and {other.rss_mb:.0f} MB"
            )
    return said


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
    said += [f"not judged: {figures}" for figures in comparison.not_judged]
    said += [f"note: {note}" for note in comparison.notes]
    ends = {
        "regression": "regression: the second is slower",
        "no regression": f"no regression: no figure is worse by more than {comparison.allowed:.0%}",
        "undecided": "undecided: the noise of these measurements is larger than what is asked; give more --rounds, on a quiet "
        "machine, and measure in turn with --against",
    }
    return [*said, ends[comparison.verdict]]
