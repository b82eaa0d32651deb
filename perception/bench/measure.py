"""A measurement from beginning to end: cold starts, warm-up, rounds of windows in turn, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from engine import BACKENDS
from perception.bench.bound import bound_by
from perception.bench.figures import distribution, geometric_mean, histogram, interval, settled, stability, timeline
from perception.bench.loops import Samples
from perception.bench.machine import clip_sha256, command_line, config_sha256, describe_machine
from perception.bench.schema import (
    SCHEMA,
    Accuracy,
    Case,
    Clip,
    Cold,
    EngineFacts,
    Load,
    Machine,
    Mode,
    Report,
    Sensed,
    Settings,
    Side,
    Spread,
    WarmUp,
    Window,
    loads_of,
)
from perception.bench.sensors import Sampler, open_sensors
from perception.bench.variants import EVALUATION_LIMIT_S, Variant, Worker
from perception.bench.workload import WORKLOAD
from perception.capture.uri import redacted
from perception.errors import BadInput, FreespaceError, tell

HEADLINES: dict[Load, str] = {"one-at-a-time": "total", "source-rate": "age", "flat-out": "total"}
WARM_UP_PART = 0.3  # of a window is one of the warm-up
WARM_UP_MOST = 12  # windows; then it is measured all the same, and said
WORKLOAD_S = 0.1  # each round, for each side
NO_ACCURACY = "accuracy could not be measured"
OTHERS_LIMIT = 0.05  # of the cores may be taken by other programs before that is noted

Loop = Callable[[float], Samples]
Key = tuple[str, Mode, Load]


@dataclass(frozen=True)
class Labelled:
    """Images to measure accuracy on, as `training.evaluate.evaluate_model` takes them."""

    data: Path
    split: str = "val"
    splits: Path | None = None


@dataclass
class Running:
    """A case while it is measured."""

    loop: Loop
    warm_up: WarmUp | None = None
    windows: list[Samples] = field(default_factory=list)


def measure(
    source: str,
    variants: Mapping[str, Variant],
    settings: Settings,
    labelled: Labelled | None = None,
    beside: Mapping[str, Callable[[float], float]] | None = None,
    say: Callable[[str], None] = tell,
) -> tuple[Report, dict[str, list[float]]]:
    """Measure every variant, by its label, in turn.

    Args:
        source: URI.
        beside: other loops that are warmed up by the same rule, have a window of so many seconds in each round, too, in the
            same rotation, and return frames per second.

    Returns:
        the report, and the frames per second of ``beside`` by round.

    Raises:
        BadInput, FreespaceError: what is measured cannot be opened, or failed.
    """
    if settings.batch > 1 and settings.modes != ["engine"]:
        raise BadInput("--batch: the loop takes one frame at a time; measure batches with --mode engine")
    machine, loops = describe_machine(), dict(beside or {})
    colds = cold_starts(source, variants, settings, say)
    with ExitStack() as stack:
        workers = {label: open_workers(stack, source, v, settings, say) for label, v in variants.items()}
        facts = {label: next(iter(w.values())).facts for label, w in workers.items()}
        clip = describe_clip(source, next(iter(facts.values()))["clip"])
        on_gpu = any(f["engine"]["device"] != "CPU" for f in facts.values())
        bus = next((found for f in facts.values() if (found := f.get("bus"))), None)
        sensors, notes = open_sensors(on_gpu, bool(machine.board), bus)
        sampler = stack.enter_context(Sampler(sensors))
        cases: dict[Key, Running] = {}
        for label, own in workers.items():
            for mode in settings.modes:
                for load in loads_of(mode, clip.live):
                    cases[label, mode, load] = Running(loop_of(own[load == "flat-out"], mode, load))
        if labelled:
            for own in workers.values():
                check_images(own[max(own)], labelled)
        say("warming up")
        for (label, mode, load), case in cases.items():
            case.warm_up = warm_up(case.loop, HEADLINES[load], settings.window_s)
            if not case.warm_up.settled:
                notes.append(f"{label}, {mode}, {load}: the warm-up did not settle within 2 % in {WARM_UP_MOST} windows")
        for name, loop in loops.items():
            if not warm_up_beside(loop, settings.window_s):
                notes.append(f"{name}: the warm-up did not settle within 2 % in {WARM_UP_MOST} windows")
        workload_ms: dict[str, list[float]] = {label: [] for label in variants}
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(settings.rounds):
            say(f"round {number + 1} of {settings.rounds}")
            for label, own in rotated(list(workers.items()), number):
                workload_ms[label].append(float(next(iter(own.values())).ask(do="workload", seconds=WORKLOAD_S)["ms"]))
            for turn in in_turn(cases, number, list(rates)):
                if isinstance(turn, str):
                    rates[turn].append(loops[turn](settings.window_s))
                else:
                    turn.windows.append(turn.loop(settings.window_s))
        accuracies: dict[str, Accuracy | None] = {}
        for label, own in workers.items():
            accuracies[label] = None
            if labelled:
                say(f"accuracy on {labelled.data}, split {labelled.split}")
                try:
                    accuracies[label] = evaluate(own[max(own)], labelled)
                except FreespaceError as error:
                    notes.append(f"{label}: {NO_ACCURACY}: {error}")
        whole = {
            key: summary(case, key[1], key[2], workers[key[0]][key[2] == "flat-out"], machine, clip, sampler)
            for key, case in cases.items()
        }
    sides = [
        Side(
            label=label,
            what=variant.what,
            version=facts[label]["code"]["version"],
            revision=facts[label]["code"]["revision"],
            engine=EngineFacts(**facts[label]["engine"] | {"depth": depth_of(workers[label])}),
            config=variant.config.model_dump(
                mode="json", exclude_defaults=True, exclude={"output": True, "capture": {"source"}}
            ),
            config_sha256=config_sha256(variant.config),
            cases=[case for (owner, _, _), case in whole.items() if owner == label],
            cold=colds[label],
            accuracy=accuracies[label],
        )
        for label, variant in variants.items()
    ]
    for (label, mode, load), done in whole.items():
        if (runs := cases[label, mode, load].windows[0].mean_of) > 1:
            notes.append(of_means(f"{label}, {mode}, {load}", runs))
        if done.invalid:
            frames = sum(w.frames for w in done.windows)
            notes.append(f"{label}, {mode}, {load}: {done.invalid} of {frames} results were not valid")
    for label, ms in workload_ms.items():
        spread = max(ms) / min(ms) - 1
        if spread > 0.1:
            notes.append(f"{label}: the fixed workload's time varied by {spread:.0%}; this machine is not steady now")
    if (others := most_of_others(whole.values())) > OTHERS_LIMIT * machine.cores:
        notes.append(
            f"other programs took {others:.1f} of {machine.cores} cores in at least one case; end them and measure again"
        )
    report = Report(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command_line(),
        machine=machine,
        clip=clip,
        settings=settings,
        sides=sides,
        workload=WORKLOAD,
        workload_ms=workload_ms,
        notes=notes,
    )
    return report, rates


# -- Processes ---------------------------------------------------------------------------------------------------------


def open_workers(
    stack: ExitStack, source: str, variant: Variant, settings: Settings, say: Callable[[str], None]
) -> dict[bool, Worker]:
    """By whether they are for throughput: that is how a recording opens its engine, and a live source does not.

    Where the backend knows no difference it is one process.
    """
    say(f"opening {variant.what}")
    many = stack.enter_context(Worker(variant, source, True, settings.batch))
    if BACKENDS[many.facts["engine"]["backend"]].depth == 1:
        return {False: many, True: many}
    return {False: stack.enter_context(Worker(variant, source, False, settings.batch)), True: many}


def depth_of(workers: Mapping[bool, Worker]) -> int:
    return int(workers[True].facts["engine"]["depth"])


def cold_starts(
    source: str, variants: Mapping[str, Variant], settings: Settings, say: Callable[[str], None]
) -> dict[str, Cold | None]:
    """Of each variant, by its label, in turn."""
    starts: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
    for number in range(settings.cold_starts):
        say(f"cold start {number + 1} of {settings.cold_starts}")
        for label in rotated(list(variants), number):
            with Worker(variants[label], source, throughput=True) as worker:
                starts[label].append(worker.facts["cold_s"])
    return {
        label: Cold(**{name: [start[name] for start in own] for name in own[0]}) if own else None
        for label, own in starts.items()
    }


def loop_of(worker: Worker, mode: Mode, load: Load) -> Loop:
    return lambda seconds: Samples(**worker.ask(120 + 4 * seconds, do="window", mode=mode, load=load, seconds=seconds))


def evaluate(worker: Worker, labelled: Labelled) -> Accuracy:
    return Accuracy(**worker.ask(EVALUATION_LIMIT_S, do="evaluate", **request_of(labelled)))


def check_images(worker: Worker, labelled: Labelled) -> None:
    """Raises BadInput: there is nothing to evaluate."""
    worker.ask(EVALUATION_LIMIT_S, do="samples", **request_of(labelled))


def request_of(labelled: Labelled) -> dict[str, str | None]:
    return {"data": str(labelled.data), "split": labelled.split, "splits": str(labelled.splits) if labelled.splits else None}


def describe_clip(source: str, found: dict[str, Any]) -> Clip:
    name = redacted(source) if "://" in source else Path(source).name
    return Clip(name=name, sha256=clip_sha256(source, found["live"]), **found)


# -- Windows -----------------------------------------------------------------------------------------------------------


def warm_up(loop: Loop, headline: str, window_s: float) -> WarmUp:
    """Short windows until the last three medians lie within 2 % of each other, or there were `WARM_UP_MOST`."""
    medians: list[float] = []
    while not settled(medians) and len(medians) < WARM_UP_MOST:
        medians.append(float(np.median(loop(WARM_UP_PART * window_s).stages[headline])))
    return WarmUp(medians_ms=medians, settled=settled(medians))


def warm_up_beside(loop: Callable[[float], float], window_s: float) -> bool:
    """As `warm_up`, of milliseconds per frame; whether they came to agree."""
    spent: list[float] = []
    while not settled(spent) and len(spent) < WARM_UP_MOST:
        spent.append(1e3 / loop(WARM_UP_PART * window_s))
    return settled(spent)


def in_turn(cases: Mapping[Key, Running], number: int, beside: Sequence[str] = ()) -> list[Running | str]:
    """The order of a round: the cases, and what is measured ``beside``, rotate; the sides of one case come one after the other,
    in every other round reversed."""
    together: dict[tuple[Mode, Load], list[Running | str]] = {}
    for (_, mode, load), case in cases.items():
        together.setdefault((mode, load), []).append(case)
    turns = [*together.values(), *([name] for name in beside)]
    return [one for sides in rotated(turns, number) for one in sides[:: -1 if number % 2 else 1]]


def rotated(items: list[Any], by: int) -> list[Any]:
    by %= len(items)
    return items[by:] + items[:by]


def summary(case: Running, mode: Mode, load: Load, worker: Worker, machine: Machine, clip: Clip, sampler: Sampler) -> Case:
    """All windows of a case as figures."""
    assert case.warm_up
    headline, began_ns = HEADLINES[load], case.windows[0].began_ns
    read = [sampler.between(w.began_ns, w.began_ns + round(w.seconds * 1e9)) for w in case.windows]
    windows = [
        window_record(number, samples, headline, began_ns, [r["power_w"] for r in readings if "power_w" in r])
        for number, (samples, readings) in enumerate(zip(case.windows, read, strict=True))
    ]
    stages = {
        stage: distribution([np.array(w.stages[stage], np.float64) for w in case.windows if w.stages.get(stage)])
        for stage in dict.fromkeys(stage for w in case.windows for stage in w.stages)
    }
    values = np.concatenate([w.stages[headline] for w in case.windows])
    at_s = np.concatenate([np.array(w.at_s) + (w.began_ns - began_ns) / 1e9 for w in case.windows])
    names = sorted({name for readings in read for one in readings for name in one})
    sensed = {name: np.array([one[name] for readings in read for one in readings if name in one]) for name in names}
    fps = spread([w.fps for w in windows])
    others = [w.others_cores for w in windows if w.others_cores is not None]
    power = [w.power_w for w in windows if w.power_w is not None]
    # Throughput that counts windows by what they are: flat out a slow one is slow by its rate, else by its median.
    slowness = [1 / w.fps for w in windows] if load == "flat-out" else [w.p50_ms for w in windows]
    engine = worker.facts["engine"]
    return Case(
        mode=mode,
        load=load,
        headline=headline,
        warm_up=case.warm_up,
        windows=windows,
        stages=stages,
        histogram=histogram(values),
        timeline=timeline(at_s, values),
        fps=fps,
        cpu_ms=spread([w.cpu_ms for w in windows]),
        dropped=sum(w.dropped for w in windows),
        invalid=sum(w.invalid for w in windows),
        rss_mb=max(w.rss_mb for w in windows),
        threads=max(w.threads for w in windows),
        stability=stability(slowness),
        sensors={name: Sensed(mean=float(v.mean()), low=float(v.min()), high=float(v.max())) for name, v in sensed.items()},
        energy_j=float(np.mean(power)) / fps.value if power else None,
        power_source=sampler.power_source if power else None,
        bound_by=bound_by(
            load,
            mode,
            fps.value,
            clip.fps,
            {stage: d.mean for stage, d in stages.items()},
            machine.quota or machine.cores,
            float(np.mean([w.cores_used for w in windows])),
            float(np.mean(others)) if others else 0.0,
            engine["device"] != "CPU",
            depth=int(engine["depth"]),
            dropped=sum(w.dropped for w in windows),
            gpu_percent=float(sensed["gpu_percent"].mean()) if "gpu_percent" in sensed else None,
        ),
    )


def window_record(number: int, samples: Samples, headline: str, began_ns: int, power_w: list[float]) -> Window:
    values = samples.stages[headline]
    machine_s = samples.machine_s
    return Window(
        round=number,
        at_s=(samples.began_ns - began_ns) / 1e9,
        seconds=samples.seconds,
        frames=samples.frames,
        fps=samples.frames / samples.seconds,
        p50_ms=float(np.percentile(values, 50)),
        p95_ms=float(np.percentile(values, 95)),
        cpu_ms=1e3 * samples.cpu_s / samples.frames,
        cores_used=samples.cpu_s / samples.seconds,
        others_cores=None if machine_s is None else max(0.0, machine_s - samples.cpu_s) / samples.seconds,
        rss_mb=samples.rss_mb,
        threads=samples.threads,
        dropped=samples.dropped,
        invalid=samples.invalid,
        power_w=float(np.mean(power_w)) if power_w else None,
    )


def of_means(case: str, runs: int) -> str:
    return f"{case}: each time is the mean of {runs} runs in a row: p95, p99, max and jitter are of such means, not of frames"


def spread(values: list[float]) -> Spread:
    """Geometric mean over windows with its interval; without one where a value is 0."""
    if min(values) <= 0:
        mean = float(np.mean(values))
        return Spread(value=mean, low=min(values), high=max(values))
    value, low, high = interval(values, geometric_mean)
    return Spread(value=value, low=low, high=high)


def most_of_others(cases: Any) -> float:
    return max((float(np.mean([w.others_cores or 0.0 for w in case.windows])) for case in cases), default=0.0)
