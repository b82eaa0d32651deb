"""Measures the ratios of budgets.yaml and judges them: exit code 1 where one is broken beyond doubt.

python -m benchmarks.check_budgets --peer twinlitenet.onnx
python -m benchmarks.check_budgets --without-peer --strict
python -m benchmarks.check_budgets --budgets mine.yaml --peer twinlitenet.onnx --clip drive.mp4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from benchmarks.peer_loops import Loop, OnnxRuntimeNetwork, twinlitenet
from perception.bench.commands import clip
from perception.bench.figures import interval, ratio_interval
from perception.bench.loops import RAMP
from perception.bench.measure import measure
from perception.bench.schema import Record, Report, Settings, loads_of
from perception.bench.text import describe
from perception.bench.variants import Variant
from perception.config import Config
from perception.errors import BadInput

BUDGETS = Path(__file__).parent / "budgets.yaml"

PEER = "peer/"  # what its figures begin with
WINDOW_FIGURES = ("fps", "p50_ms", "p95_ms", "cpu_ms")

Series = dict[str, list[float]]
Verdict = Literal["holds", "broken", "undecided", "not credible"]


class Budget(Record):
    """One ratio and its limit; see budgets.yaml."""

    name: str
    figure: str
    over: str
    at_least: float | None = Field(None, gt=0)
    at_most: float | None = Field(None, gt=0)
    target: float | None = Field(None, gt=0)
    cannot_exceed: float | None = Field(None, gt=0)
    cannot_be_below: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def one_limit(self) -> Budget:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("wanted either at_least or at_most")
        return self


class Budgets(Record):
    settings: Settings
    budgets: list[Budget]


@dataclass(frozen=True)
class Outcome:
    """A budget, its ratio with interval, and whether it holds."""

    budget: Budget
    ratio: tuple[float, float, float]
    verdict: Verdict


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=Path, default=BUDGETS)
    parser.add_argument("--clip", help="video; the demo's clip by default")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer", type=Path, help="twinlitenet.onnx, for the budgets against the peer's loop")
    peer.add_argument("--without-peer", action="store_true", help="leave those budgets out")
    parser.add_argument("--strict", action="store_true", help="exit code 1 also where the measurement allows no verdict")
    parser.add_argument("--model", help="model file of Freespace; the shipped one by default")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    try:
        budgets = read_budgets(options.budgets)
        wanted, left_out = to_measure(budgets, options.peer, options.without_peer)
        source = clip(options.clip)
        config = Config.model_validate({"engine": {"model": options.model, "backend": options.backend}})
        beside = {"peer": peer_rate(twinlitenet(OnnxRuntimeNetwork(options.peer)), source)} if options.peer else {}
        report, rates = measure(source, {"A": Variant("the defaults", config)}, budgets.settings, beside=beside)
    except BadInput as error:
        parser.error(str(error))
    outcomes = judge(wanted, series_of(report, rates))
    skipped = [f"left out, --without-peer: {budget.name}" for budget in left_out]
    print("\n".join([*describe(report), *map(line, outcomes), *skipped, *(f"note: {note}" for note in report.notes)]))
    return exit_code(outcomes, options.strict)


def exit_code(outcomes: list[Outcome], strict: bool) -> int:
    bad = ("broken", "undecided", "not credible") if strict else ("broken",)
    return int(any(outcome.verdict in bad for outcome in outcomes))


def to_measure(budgets: Budgets, peer: Path | None, without_peer: bool) -> tuple[list[Budget], list[Budget]]:
    """The budgets to measure, and those that are left out because that was asked for.

    Raises:
        BadInput: a budget names what is not measured, or there is no peer for it.
    """
    known = {PEER + "fps", *known_figures(budgets.settings)}
    for budget in budgets.budgets:
        if unknown := {budget.figure, budget.over} - known:
            raise BadInput(f"budget {budget.name!r}: {min(unknown)} is not measured; what is: {', '.join(sorted(known))}")
    of_peer = [b for b in budgets.budgets if b.figure.startswith(PEER) or b.over.startswith(PEER)]
    if of_peer and not peer and not without_peer:
        raise BadInput(f"budget {of_peer[0].name!r} wants the peer's loop: give --peer twinlitenet.onnx, or --without-peer")
    left_out = [] if peer else of_peer
    return [budget for budget in budgets.budgets if budget not in left_out], left_out


def known_figures(settings: Settings) -> set[str]:
    cases = [f"{mode}/{load}" for mode in settings.modes for load in loads_of(mode)]
    cold = {"cold/total_ms"} if settings.cold_starts else set()
    return {"workload/ms", *cold, *(f"{case}/{figure}" for case in cases for figure in WINDOW_FIGURES)}


def read_budgets(path: Path) -> Budgets:
    """Raises BadInput: no such file, or it holds something else."""
    try:
        return Budgets.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise BadInput(f"{path}: {error}") from error


def peer_rate(peer: Loop, source: str) -> Callable[[float], float]:
    """Frames per second of the peer's loop over ``source``, over and over: opened and begun before a window is, as ours is."""

    def window(seconds: float) -> float:
        capture = cv2.VideoCapture(source)
        if not capture.isOpened():
            raise BadInput(f"{source}: the peer's loop cannot read it")
        play(peer, capture, RAMP * seconds, source)
        frames, spent = play(peer, capture, seconds, source)
        capture.release()
        return frames / spent

    return window


def play(peer: Loop, capture: cv2.VideoCapture, seconds: float, source: str) -> tuple[int, float]:
    """(frames, seconds) of a stretch at least so long. Raises BadInput: there are no frames."""
    frames, began, ends = 0, time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not frames:
        good, frame = capture.read()
        if not good:
            ends += 1
            if ends > frames + 1 or not capture.set(cv2.CAP_PROP_POS_FRAMES, 0):
                raise BadInput(f"{source}: the peer's loop cannot read it")
            continue
        peer.process(np.asarray(frame, np.uint8))
        frames += 1
    return frames, spent


def series_of(report: Report, rates: dict[str, list[float]]) -> Series:
    """All that a budget may name: a value for each round, or each start."""
    side = report.sides[0]
    found: Series = {f"{name}/fps": values for name, values in rates.items()}
    found["workload/ms"] = report.workload_ms[side.label]
    if side.cold:
        found["cold/total_ms"] = [1e3 * s for s in side.cold.total]
    for case in side.cases:
        for figure in WINDOW_FIGURES:
            found[f"{case.mode}/{case.load}/{figure}"] = [getattr(window, figure) for window in case.windows]
    return found


def judge(budgets: list[Budget], series: Series) -> list[Outcome]:
    return [judge_one(budget, series) for budget in budgets]


def judge_one(budget: Budget, series: Series) -> Outcome:
    """Broken where the whole interval lies beyond the limit, held where none of it does; not credible where the whole of it
    lies where no ratio can be."""
    one, other = series[budget.figure], series[budget.over]
    paired = not budget.figure.startswith("cold/") and not budget.over.startswith("cold/")
    ratio = interval((np.array(one) / np.array(other)).tolist()) if paired else ratio_interval(one, other)
    _, low, high = ratio
    verdict: Verdict
    if budget.at_least is not None:
        verdict = "broken" if high < budget.at_least else "holds" if low >= budget.at_least else "undecided"
    else:
        assert budget.at_most is not None
        verdict = "broken" if low > budget.at_most else "holds" if high <= budget.at_most else "undecided"
    if low > (budget.cannot_exceed or np.inf) or high < (budget.cannot_be_below or 0.0):
        verdict = "not credible"
    return Outcome(budget, ratio, verdict)


def line(outcome: Outcome) -> str:
    budget = outcome.budget
    limit = f"at least {budget.at_least:g}" if budget.at_least is not None else f"at most {budget.at_most:g}"
    target = f", target {budget.target:g}" if budget.target is not None else ""
    ratio = "{:.3g} ({:.3g} to {:.3g})".format(*outcome.ratio)
    return f"{outcome.verdict:<12} {ratio:<26} {limit}{target}: {budget.name}"


if __name__ == "__main__":
    sys.exit(main())
