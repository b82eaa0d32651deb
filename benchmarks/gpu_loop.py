"""How much of the TensorRT plan's own throughput the whole loop reaches, from a frame's bytes to the scores' bytes.

    python -m benchmarks.gpu_loop --out result.json
    python -m benchmarks.gpu_loop --frames 100000        # memory over a long run as well

Rounds of three loops in turn, in one process on one GPU: the plan alone (its graph launched again and again, nothing
copied), the loop over frames in page-locked memory, and the loop over ordinary arrays, which the CPU copies once more.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import BACKENDS, open_engine
from engine.tensorrt_engine import TensorRtEngine

PERCENTILES = (50, 95, 99)
WARM_UP = 50


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    engine = open_engine(options.model, options.backend, options.precision, say=print)
    assert isinstance(engine, TensorRtEngine)
    with engine:
        result = measure(engine, options.width, options.height, options.rounds, options.seconds)
        if options.frames:
            result["memory"] = memory_over(engine, options.width, options.height, options.frames)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--backend", default="tensorrt", choices=[name for name, b in BACKENDS.items() if b.gpu])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="per loop and round")
    parser.add_argument("--frames", type=int, default=0, help="then run this many and watch the device's free memory")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def measure(engine: TensorRtEngine, width: int, height: int, rounds: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pinned = [engine.frame_buffer((height, width, 3)) for _ in range(engine.depth + 1)]
    ordinary = [np.empty_like(buffer) for buffer in pinned]
    for frame in (*pinned, *ordinary):
        frame[:] = rng.integers(0, 256, frame.shape, np.uint8)
    stages: dict[str, list[float]] = {"h2d": [], "preprocess": [], "infer": [], "d2h": []}
    loops: dict[str, Callable[[float], float]] = {
        "plan alone": lambda s: plan_alone(engine, s),
        "pinned frames": lambda s: whole_loop(engine, pinned, s, stages),
        "ordinary frames": lambda s: whole_loop(engine, ordinary, s, None),
    }
    for loop in loops.values():
        loop(min(seconds, 0.5))
    for values in stages.values():
        values.clear()
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            rates[name].append(loop(seconds))
    base = np.array(rates["plan alone"])
    return {
        "gpu": engine.device,
        "python": platform.python_version(),
        "backend": engine.name,
        "precision": engine.precision,
        "model": engine.contract.sha256,
        "input": list(engine.input_size),
        "frame": [width, height],
        "fps": {name: round(float(np.median(values)), 1) for name, values in rates.items()},
        "of_plan_alone": {
            name: [round(float(v), 4) for v in np.percentile(np.array(values) / base, [0, 50, 100])]
            for name, values in rates.items()
        },
        "stage_ms": {
            name: {f"p{p}": round(float(np.percentile(values, p)), 4) for p in PERCENTILES} for name, values in stages.items()
        },
    }


def plan_alone(engine: TensorRtEngine, seconds: float) -> float:
    """Frames per second of the network with everything resident on the device."""
    frames, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine.infer_resident(WARM_UP)
        frames += WARM_UP
    return frames / (time.perf_counter() - started)


def whole_loop(
    engine: TensorRtEngine, frames: list[NDArray[np.uint8]], seconds: float, stages: dict[str, list[float]] | None
) -> float:
    """Frames per second from bytes to scores, with as many frames on their way as the engine takes."""
    done, handed, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine.submit([frames[handed % len(frames)]])
        handed += 1
        if handed - done == engine.depth:
            done += collect(engine, stages)
    while done < handed:
        done += collect(engine, stages)
    return done / (time.perf_counter() - started)


def collect(engine: TensorRtEngine, stages: dict[str, list[float]] | None) -> int:
    timings = engine.collect().timings
    if stages is not None:
        for name in stages:
            stages[name].append(getattr(timings, f"{name}_ms"))
    return 1


def memory_over(engine: TensorRtEngine, width: int, height: int, frames: int) -> dict[str, int]:
    """Free device memory before and after ``frames`` frames, bytes."""
    frame = np.zeros((height, width, 3), np.uint8)
    for _ in range(WARM_UP):
        engine.segment([frame])
    before = engine.free_bytes()
    for _ in range(frames):
        engine.segment([frame])
    after = engine.free_bytes()
    return {"frames": frames, "free_before": before, "free_after": after, "growth": before - after}


if __name__ == "__main__":
    main()
