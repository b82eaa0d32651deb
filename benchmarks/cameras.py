"""What it costs to look through several cameras in one process: one engine, 1 to 8 streams of the same clip.

    python -m benchmarks.cameras --clip drive.mp4 --out benchmarks/results/NAME.json --page cameras.html

Each combination of a number of cameras and a way runs in a process of its own, in turn, several rounds, the order rotating:

- ``one by one``: as ``freespace run a.mp4 b.mp4 …`` does; ``batch``: what waits goes through the network as one batch
  (ONNX Runtime, which computes batches);
- ``flat out``: recordings, every frame counts: frames a second of all cameras and of each, from their common start to the
  end of the first one; spread is the slowest camera's part of the fastest one's rate;
- ``paced``: the clip as so many live cameras, of which every ``--every``-th frame is taken: ages, and what was dropped.

Slopes are fitted by least squares over the medians, and plotted. Memory is the most there was. Not for Windows.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command, demo_clip, machine
from benchmarks.scaling import Series, draw_series
from engine import open_engine
from engine.base import Engine
from engine.files import write_whole
from engine.shared import SharedEngine
from perception.bench.page import page, table
from perception.capture import open_source
from perception.config import CaptureConfig, Config, LoopConfig
from perception.freespace import Freespace
from perception.node import run

WAYS = {"one by one": 1, "batch": 8}  # images in a batch at most
PACES = ("flat out", "paced")
BUDGET_MS = 1000.0  # of a live camera: what is looked at is how old results are, not which of them are too old


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="video; the demo's clip by default")
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--backend", default="onnxruntime", help="only ONNX Runtime and torch compute batches here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the clip, for each camera")
    parser.add_argument("--every", type=int, default=5, help="paced: one frame of so many")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--page", type=Path, help="HTML file with the plots")
    chosen = parser.parse_args(arguments)
    clip = str(chosen.clip or demo_clip(parser))
    work = [(count, way, pace) for count in chosen.cameras for way in WAYS for pace in PACES]
    found: dict[tuple[int, str, str], list[dict[str, float]]] = {item: [] for item in work}
    for round_number in range(chosen.rounds):
        turn = round_number * len(work) // chosen.rounds
        for count, way, pace in work[turn:] + work[:turn]:
            capture = CaptureConfig(
                duration_s=chosen.seconds, realtime=pace == "paced", every=chosen.every if pace == "paced" else 1
            )
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                one = process.submit(measure, clip, chosen.backend, count, WAYS[way], capture).result()
            found[count, way, pace].append(one)
            print(f"round {round_number + 1}: {count} cameras, {way}, {pace}: " + shown(one), flush=True)
    rows: list[dict[str, Any]] = [
        {"cameras": count, "way": way, "pace": pace, **spread(rounds)} for (count, way, pace), rounds in found.items()
    ]
    fitted = slopes(rows)
    if chosen.page:
        write_whole(chosen.page, plots(rows).encode())
    report = {"rows": rows, "slopes": fitted, "command": command("benchmarks.cameras", arguments), "machine": machine()}
    for row in rows:
        print(
            f"{row['cameras']} cameras, {row['way']:<11}{row['pace']:<9}"
            + shown({k: v["median"] for k, v in row.items() if isinstance(v, dict)})
        )
    for name, slope in fitted.items():
        print(f"{name}: {slope}")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(clip: str, backend: str, count: int, most: int, capture: CaptureConfig) -> dict[str, float]:
    """One run of ``count`` cameras, in a process of its own; times of live cameras are their ages."""
    config = Config(capture=capture, loop=LoopConfig(budget_ms=BUDGET_MS))
    sources = [open_source(clip, capture) for _ in range(count)]
    results: list[list[tuple[float, Freespace]]] = [[] for _ in range(count)]
    summaries: list[Any] = [None] * count
    with SharedEngine(open_engine(None, backend, throughput=not capture.realtime), most) as shared:
        with shared.share() as first:
            first.segment([np.zeros((720, 1280, 3), np.uint8)])  # what is done once is not of a frame
        together = threading.Barrier(count + 1)

        def loop(number: int, engine: Engine) -> None:
            def note(result: Freespace) -> None:
                results[number].append((time.perf_counter(), result))

            together.wait()
            summaries[number] = run(sources[number], engine, [], config, on_result=note, notify=lambda message: None)

        threads = [threading.Thread(target=partial(loop, number, shared.share())) for number in range(count)]
        for thread in threads:
            thread.start()
        together.wait()
        began, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
    end = min(notes[-1][0] for notes in results)  # while all had something to do
    rates = [sum(at <= end for at, _ in notes) / (end - began) for notes in results]
    frames, lost = sum(map(len, results)), sum(summary.dropped for summary in summaries)
    of = "age" if capture.realtime else "total"
    times = [result.latency_ms[of] for notes in results for _, result in notes]
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {
        "fps": sum(rates),
        "fps each": sum(rates) / count,
        "spread": min(rates) / max(rates),
        f"{of} p50 ms": float(p50),
        f"{of} p95 ms": float(p95),
        f"{of} p99 ms": float(p99),
        "dropped": lost / max(1, lost + frames),
        "invalid": sum(summary.invalid.total() for summary in summaries) / frames,
        "cpu ms a frame": 1e3 * cpu / frames,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def spread(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": round(statistics.median(one[name] for one in rounds), 3),
            "min": round(min(one[name] for one in rounds), 3),
            "max": round(max(one[name] for one in rounds), 3),
        }
        for name in rounds[0]
    }


def series(rows: list[dict[str, Any]]) -> list[Series]:
    """The medians against the number of cameras, wherever there are several."""
    found = []
    for way in WAYS:
        for pace, name in ((p, n) for p in PACES for n in ("fps", "cpu ms a frame", "memory MB", "age p50 ms")):
            one = Series(f"{way}, {pace}", "cameras", name, "for one more camera")
            for row in rows:
                if (row["way"], row["pace"]) == (way, pace) and name in row:
                    one.add(row["cameras"], row[name]["median"])
            if len(set(one.x)) > 1:
                found.append(one)
    return found


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What one more camera costs, from the medians, by least squares."""
    return {f"{one.y_name} {one.unit}, {one.name}": round(one.line.slope, 3) for one in series(rows)}


def plots(rows: list[dict[str, Any]]) -> str:
    """One HTML page that needs nothing beside it."""
    head = ["figure", "slope"]
    listed = [[name, str(slope)] for name, slope in slopes(rows).items()]
    drawn = "".join(draw_series(one.y_name, one, "median of the rounds") for one in series(rows))
    return page("Freespace cameras", [("Slopes", table(head, listed)), ("Cameras", f'<div class="charts">{drawn}</div>')])


def shown(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.{2 if value < 10 else 0}f}" for name, value in values.items())


if __name__ == "__main__":
    main()
