"""What live operation adds to each frame: the checks of the picture, the stabiliser, its figures, the judgement, the hand-over.

    python -m benchmarks.live_overhead --clip drive.mp4 --out benchmarks/results/NAME.json

Every part is timed by itself on the frames and scores of the clip, in one thread, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import demo_clip, machine
from engine import open_engine
from perception.capture import Selection, Source, open_source
from perception.config import Config, HealthConfig, LoopConfig, StabiliseConfig
from perception.freespace import Freespace
from perception.lookout import Lookout, Sight
from perception.monitor import Monitor
from perception.node import Interpreter
from perception.slot import Slot
from perception.stabilise import Stabiliser
from perception.stability import Stability

ON_THE_WAY = ("stabiliser", "judgement", "put", "take")
BESIDE = ("checks of the picture", "figures of steadiness")  # in the capture thread; after the result went out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="720p video; the demo's clip by default")
    parser.add_argument("--seconds", type=float, default=6.0, help="of the clip")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    clip = arguments.clip or str(demo_clip(parser))
    cv2.setNumThreads(1)
    with open_source(clip, Selection(duration_s=arguments.seconds)) as source, open_engine() as engine:
        monitor = Monitor(source, LoopConfig(), live=True)
        plain = Config(health=HealthConfig(enabled=False), stabilise=StabiliseConfig(enabled=False))
        interpreter = Interpreter(plain, engine, source.continuous, monitor)
        times = measure(source, engine, interpreter, monitor)
    rows = {name: percentiles(values[len(values) // 10 :]) for name, values in times.items()}
    for title, parts in (("on the way of a result", ON_THE_WAY), ("beside it", BESIDE)):
        rows[title] = percentiles(np.sum([times[name] for name in parts], axis=0)[len(times["infer"]) // 10 :])
    report = {"milliseconds": rows, "clip": Path(clip).name, "frames": len(times["infer"]), "machine": machine()}
    for name, row in rows.items():
        print(f"{name:<24}" + "  ".join(f"{p} {v:7.3f}" for p, v in row.items()))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(source: Source, engine: Any, interpreter: Interpreter, monitor: Monitor) -> dict[str, list[float]]:
    """Milliseconds of every part for every frame."""
    lookout, stabiliser, stability = Lookout(HealthConfig(), True, True), Stabiliser(StabiliseConfig()), Stability()
    slot: Slot[Any] = Slot(1, newest_wins=True)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter_ns()
        result = work()
        times.setdefault(name, []).append((time.perf_counter_ns() - began) / 1e6)
        return result

    for frame in source.frames():
        frame = replace(frame, grabbed_ns=time.perf_counter_ns())
        sight: Future[Sight] = Future()
        seen = timed("checks of the picture", partial(lookout.look, frame))
        sight.set_result(seen)
        timed("infer", partial(engine.submit, [frame.image]))
        output = timed("polygons and result", partial(interpreter.read, frame, sight, time.perf_counter_ns(), 0))
        steady = timed("stabiliser", partial(stabiliser.steady, output.scores, frame.stamp_ns))
        timed("figures of steadiness", partial(stability.add, steady, frame.stamp_ns))

        def judge(frame: Any = frame, result: Freespace = output.result, seen: Any = seen) -> None:
            monitor.turn()
            monitor.begin()
            monitor.judge(frame, list(seen.causes))
            monitor.published(result, frame)

        timed("judgement", judge)
        timed("put", partial(slot.put, frame))
        timed("take", slot.get)
    return times


def percentiles(values: Any) -> dict[str, float]:
    points = (50, 95, 99)
    return {f"p{p}": round(float(v), 4) for p, v in zip(points, np.percentile(values, points), strict=True)}


if __name__ == "__main__":
    main()
