"""The whole way of a frame, from the video file to its result, beside the loop that public demos run.

    python -m benchmarks.end_to_end --peer twinlitenet.onnx --clip drive.mp4 --out benchmarks/results/NAME.json

All are run in turn, several rounds, the order rotating, in one process; each round reads the clip from the beginning.
Compared are frames per second of wall time over the same frames, as a ratio within each round: what else the machine does
hits all. Neither writes a video unless ``--video`` is given; Freespace writes its polygons, the peer paints its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2

from benchmarks.peer import PEER_HEIGHT, PEER_WIDTH, PeerLoop
from engine import open_engine
from engine.base import Engine
from perception.capture import Selection, open_source
from perception.config import Config, OutputConfig
from perception.demo import ClipUnavailable, fetch_clip
from perception.node import Summary, run
from perception.sinks import open_sinks

PACKAGES = ("numpy", "opencv-python", "av", "onnxruntime", "openvino", "shapely")
NEITHER = ("decode", "infer")
ALONE = ", one at a time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="720p video; the demo's clip by default")
    parser.add_argument("--peer", type=Path, help="twinlitenet.onnx; without it only Freespace is measured")
    parser.add_argument("--model", help="model file of Freespace; the shipped one by default")
    parser.add_argument("--backend", action="append", help="may be given several times; default: onnxruntime and openvino")
    parser.add_argument(
        "--precision",
        action="append",
        choices=["bf16", "int8"],
        help="also measure openvino in it, with several frames on their way as 'run' does, and with one at a time",
    )
    parser.add_argument("--video", action="store_true", help="both write a video, too (H.264 here, mp4v there)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the clip, per round")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    clip = arguments.clip or demo_clip(parser)

    engines = {
        name: open_engine(arguments.model, name, throughput=True) for name in arguments.backend or ("onnxruntime", "openvino")
    }
    for precision in arguments.precision or ():
        for suffix, throughput in (("", True), (ALONE, False)):
            engines[f"openvino {precision}{suffix}"] = open_engine(
                arguments.model, "openvino", precision, throughput=throughput
            )
    peer = PeerLoop(arguments.peer) if arguments.peer else None
    loops: dict[str, Callable[[], tuple[int, float]]] = {}
    summaries: dict[str, list[Summary]] = {name: [] for name in engines}
    for name, engine in engines.items():
        loops[f"freespace, {name}"] = lambda engine=engine, name=name: freespace_round(  # type: ignore[misc]
            engine, clip, arguments.seconds, arguments.video, summaries[name]
        )
    if peer:
        loops["peer, onnxruntime"] = lambda: peer_round(peer, clip, arguments.seconds, arguments.video)

    rates: dict[str, list[float]] = {name: [] for name in loops}
    expected = 0
    for round_number in range(arguments.rounds + 1):
        order = list(loops)[round_number % len(loops) :] + list(loops)[: round_number % len(loops)]
        for name in order:
            frames, seconds = loops[name]()
            if expected and frames != expected:
                parser.error(f"{name} read {frames} frames where another read {expected}")
            expected = frames
            if round_number:  # the first round warms up
                rates[name].append(frames / seconds)
                print(f"round {round_number}: {name:<42} {frames / seconds:7.1f} FPS", flush=True)
    report = results(rates, {k: v[1:] for k, v in summaries.items()})
    report["settings"] = {
        "clip": clip.name,
        "video": arguments.video,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "models": {name: engine.contract.sha256 for name, engine in engines.items()},
        "input_size": next(iter(engines.values())).input_size,
    }
    report["settings"]["frames_per_round"] = expected
    if peer:
        report["settings"]["peer_input_size"] = [PEER_WIDTH, PEER_HEIGHT]
        report["stages_ms"]["peer"] = {"infer": {"p50": round(statistics.median(peer.infer_ms), 3)}}
    report["machine"] = machine()
    print_report(report)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def demo_clip(parser: argparse.ArgumentParser) -> Path:
    """The demo's clip; ends the program with a sentence where it cannot be had."""
    try:
        return fetch_clip()
    except ClipUnavailable as error:
        parser.error(f"no clip ({error}); give one with --clip")


def freespace_round(engine: Engine, clip: Path, seconds: float, video: bool, kept: list[Summary]) -> tuple[int, float]:
    """Frames and seconds of the path that ``freespace run CLIP --polygons`` takes."""
    with tempfile.TemporaryDirectory() as folder, open_source(str(clip), Selection(duration_s=seconds)) as source:
        output = OutputConfig(polygons=f"{folder}/polygons.jsonl", video=f"{folder}/overlay.mp4" if video else None)
        config = Config(output=output)
        started = time.perf_counter()
        summary = run(source, engine, open_sinks(config, source.fps), config)
        elapsed = time.perf_counter() - started
    kept.append(summary)
    return summary.frames, elapsed


def peer_round(peer: PeerLoop, clip: Path, seconds: float, video: bool) -> tuple[int, float]:
    """Frames and seconds of the peer's loop: read, process, (write), one after the other."""
    capture = cv2.VideoCapture(str(clip))
    fps = capture.get(cv2.CAP_PROP_FPS)
    size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    frames, wanted = 0, round(seconds * fps)
    with tempfile.TemporaryDirectory() as folder:
        writer = cv2.VideoWriter(f"{folder}/out.mp4", cv2.VideoWriter.fourcc(*"mp4v"), fps, size) if video else None
        started = time.perf_counter()
        while frames < wanted:
            good, frame = capture.read()
            if not good:
                break
            painted = peer.process(frame)  # type: ignore[arg-type]
            if writer:
                writer.write(painted)
            frames += 1
        if writer:
            writer.release()
        elapsed = time.perf_counter() - started
    capture.release()
    return frames, elapsed


def results(rates: dict[str, list[float]], summaries: dict[str, list[Summary]]) -> dict[str, Any]:
    peer = next((name for name in rates if name.startswith("peer")), None)
    report: dict[str, Any] = {"fps": {}, "ratio_to_peer": {}, "stages_ms": {}}
    for name, values in rates.items():
        report["fps"][name] = spread(values)
        if peer and name != peer:
            report["ratio_to_peer"][name] = spread([a / b for a, b in zip(values, rates[peer], strict=True)])
    for name, rounds in summaries.items():
        stages = [r.stages.percentiles() for r in rounds]
        middle = {s: {p: statistics.median(x[s][p] for x in stages) for p in stages[0][s]} for s in stages[0]}
        if name.endswith(ALONE):  # else the total holds the time behind other frames
            middle["total without decode and infer"] = {
                50: statistics.median(x["total"][50] - sum(x[s][50] for s in NEITHER) for x in stages)
            }
        report["stages_ms"][name] = {s: {f"p{p}": round(v, 3) for p, v in ps.items()} for s, ps in middle.items()}
    return report


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def machine() -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"\n{report['machine']['cpu']}, {report['machine']['cores']} cores; medians over rounds (min to max)")
    for name, fps in report["fps"].items():
        ratio = report["ratio_to_peer"].get(name)
        beside = f"   {ratio['median']:5.2f} x the peer ({ratio['min']} to {ratio['max']})" if ratio else ""
        print(f"{name:<42} {fps['median']:7.1f} FPS ({fps['min']} to {fps['max']}){beside}")
    for name, stages in report["stages_ms"].items():
        print(f"\n{name}: milliseconds per frame")
        for stage, percentiles in stages.items():
            print(f"  {stage:<30}" + "  ".join(f"{p} {v:7.2f}" for p, v in percentiles.items()))


if __name__ == "__main__":
    main()
