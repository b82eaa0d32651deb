"""The same clip through the loops that people use today, and through Freespace, side by side.

    python -m benchmarks.peers --twinlitenet twinlitenet.onnx --out benchmarks/results/NAME.json
    python -m benchmarks.peers --twinlitenet twinlitenet.onnx --engine auto --engine openvino:bf16 --video
    python -m benchmarks.peers --twinlitenet twinlitenet.onnx --data DATA        # IoU of each beside its speed

All are run one at a time within one process, in rounds, the order rotating; in each round every loop reads the clip from its
beginning. Compared are frames per second of wall time over the same frames as ratios within a round, so that what else the
machine does hits all; intervals are bootstrapped over rounds. The first round only warms up.

Peers paint their frames in memory. Freespace writes its polygons to a file, as ``freespace run CLIP --polygons`` does; in the
row "drawn" it paints every frame, too. Times by stage are means: decoding is waiting for FFmpeg's threads, which give several
frames at once, so most frames cost nothing and a median says nothing. With ``--video`` all of them also write a video (H.264
here, mp4v there).
Networks are not part of this project: a loop whose network is not given is named with the reason why it did not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import command, demo_clip, machine
from benchmarks.peer_loops import (
    Loop,
    NotHere,
    OnnxRuntimeNetwork,
    OpenVinoNetwork,
    TensorRtNetwork,
    UltralyticsLoop,
    road_segmentation,
    supervision,
    twinlitenet,
    yolop,
)
from engine import open_engine
from engine.base import Engine
from engine.contract import EngineError, ModelError
from engine.files import write_whole
from perception.bench.figures import geometric_mean, interval
from perception.bench.machine import clip_sha256, revision
from perception.bench.text import markdown_table
from perception.capture import Selection, open_source
from perception.config import Config, OutputConfig
from perception.errors import BadInput
from perception.node import run
from perception.overlay import draw
from perception.sinks import Output, Sink, open_sinks

STAGES = ("decode", "preprocess", "infer", "postprocess", "draw", "write")
ONE_AT_A_TIME, DRAWN = "one at a time", "drawn"

IOU_NOTE = (
    "IoU: every network is at home on the data it was trained on. TwinLiteNet was trained on BDD100K, perhaps on these very "
    "images, and has one mask, which stands for both planes; Freespace was trained on other parts of all of these sets."
)

Interval = tuple[float, float, float]  # value, low, high


@dataclass
class Round:
    """What a loop did with the clip: seconds of wall time and of processor time (all threads), and milliseconds by stage."""

    frames: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    stages: dict[str, list[float]] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        return self.frames / self.seconds

    def add(self, stages: Mapping[str, float]) -> None:
        for stage, milliseconds in stages.items():
            self.stages.setdefault(stage, []).append(milliseconds)


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        play: one round.
        masks: drivable area in a frame, for accuracy: a bool ``(H, W)`` of each plane, or None where it knows none.
        facts: versions, hashes and sizes.
    """

    play: Callable[[], Round]
    masks: Callable[[NDArray[np.uint8]], NDArray[np.bool_] | None]
    facts: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="video; the demo's clip by default")
    parser.add_argument(
        "--twinlitenet", type=Path, metavar="ONNX", help="TwinLiteNet; also what the loops without their own use"
    )
    parser.add_argument("--yolop", type=Path, metavar="ONNX", help="YOLOP's own network")
    parser.add_argument("--intel", type=Path, metavar="XML", help="road-segmentation-adas-0001")
    parser.add_argument("--ultralytics", type=Path, metavar="PT", help="weights of a segmentation model")
    parser.add_argument(
        "--engine", action="append", metavar="BACKEND[:PRECISION]", help="of Freespace; repeatable; auto by default"
    )
    parser.add_argument("--model", help="model file of Freespace; the shipped one by default")
    parser.add_argument("--video", action="store_true", help="all write a video, too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of the clip, per round")
    parser.add_argument(
        "--data", type=Path, help="labelled images as for 'freespace evaluate': measures IoU on their split val"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.seconds <= 0:
        parser.error("--rounds must be at least 2, and --seconds more than 0")
    source = options.clip or str(demo_clip(parser))
    with ExitStack() as stack:
        try:
            window = partial(play_peer, source=source, seconds=options.seconds, video=options.video)
            peers, skipped = open_peers(options.twinlitenet, options.yolop, options.intel, options.ultralytics, stack)
            cases = freespace_cases(options.engine or ["auto"], options.model, source, options.seconds, options.video, stack)
            cases |= {loop.name: Case(partial(window, loop), partial(peer_mask, loop), loop.facts()) for loop in peers}
            rounds = in_turn({name: case.play for name, case in cases.items()}, options.rounds)
            accuracy = measure_accuracy(cases, options.data) if options.data else {}
        except (BadInput, ModelError, EngineError) as error:
            parser.error(str(error))
    ours, baseline = next(iter(cases)), peers[0].name if peers else None
    report = {
        "schema": "freespace-peers/1",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command("benchmarks.peers", arguments),
        "machine": machine(),
        "revision": revision(Path(__file__).parents[1]),
        "clip": {"name": Path(source).name, "sha256": clip_sha256(source, False), "seconds": options.seconds},
        "video": options.video,
        "rounds": options.rounds,
        "frames_per_round": next(iter(rounds.values()))[0].frames,
        "skipped": skipped,
        "ours": ours,
        "baseline": baseline,
        "loops": summarise(rounds, {name: case.facts for name, case in cases.items()}, ours, baseline, accuracy),
    }
    print(markdown(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, (json.dumps(report, indent=1) + "\n").encode())
    return 0


# -- Who takes part ----------------------------------------------------------------------------------------------------


def open_peers(
    twin: Path | None, own_yolop: Path | None, intel: Path | None, weights: Path | None, stack: ExitStack
) -> tuple[list[Loop], dict[str, str]]:
    """The loops that can run here, TwinLiteNet's on ONNX Runtime first, and why the others cannot.

    Raises:
        BadInput: a file that was given is not there, or is no network.
    """
    for given in (twin, own_yolop, intel, weights):
        if given and not given.is_file():
            raise BadInput(f"{given}: no such file")
    wanted: dict[str, Callable[[], Loop]] = {
        "TwinLiteNet's demo, ONNX Runtime": lambda: twinlitenet(OnnxRuntimeNetwork(given_file(twin, "--twinlitenet"))),
        "TwinLiteNet's demo, OpenVINO": lambda: twinlitenet(OpenVinoNetwork(given_file(twin, "--twinlitenet"))),
        "TwinLiteNet's demo, TensorRT": lambda: twinlitenet(TensorRtNetwork(given_file(twin, "--twinlitenet"))),
        "YOLOP-style drawing": lambda: yolop(OnnxRuntimeNetwork(given_file(own_yolop or twin, "--yolop")), bool(own_yolop)),
        "supervision-style polygons": lambda: supervision(OnnxRuntimeNetwork(given_file(twin, "--twinlitenet"))),
        "Intel road-segmentation-adas-0001, OpenVINO": lambda: road_segmentation(OpenVinoNetwork(given_file(intel, "--intel"))),
        "Ultralytics segmentation": lambda: UltralyticsLoop(given_file(weights, "--ultralytics")),
    }
    opened: list[Loop] = []
    skipped: dict[str, str] = {}
    for name, make in wanted.items():
        try:
            loop = make()
        except (NotHere, ModelError, EngineError, ImportError) as reason:
            skipped[name] = str(reason)
            continue
        stack.callback(loop.close)
        opened.append(loop)
    return opened, skipped


def given_file(file: Path | None, option: str) -> Path:
    if file is None:
        raise NotHere(f"its network was not given ({option})")
    return file


def freespace_cases(
    engines: Sequence[str], model: str | None, source: str, seconds: float, video: bool, stack: ExitStack
) -> dict[str, Case]:
    """A row for each engine as ``freespace run`` opens it; of the first also one that draws, one with a frame at a time.

    Raises:
        ModelError: an engine cannot be had.
    """
    cases: dict[str, Case] = {}
    for index, wanted in enumerate(engines):
        backend, _, precision = wanted.partition(":")
        many = stack.enter_context(open_engine(model, backend, precision or "auto", throughput=True))
        name = f"Freespace, {many.name} {many.precision}"
        rows = [(name, many, False)]
        if not index:
            rows += [] if video else [(f"{name}, {DRAWN}", many, True)]
            single = stack.enter_context(open_engine(model, backend, precision or "auto"))
            rows.append((f"{name}, {ONE_AT_A_TIME}", single, False))
        for row, engine, painted in rows:
            play = partial(play_freespace, engine, source, seconds, video, painted)
            cases[row] = Case(play, partial(freespace_masks, engine), engine_facts(engine))
    return cases


def engine_facts(engine: Engine) -> dict[str, Any]:
    return {
        "about": "the product's own loop, from the file to polygons in a file",
        "runtime": f"{engine.name} {engine.precision}, {engine.depth} frames on their way",
        "network": engine.contract.path.name,
        "sha256": engine.contract.sha256,
        "input_size": list(engine.input_size),
    }


# -- One round ---------------------------------------------------------------------------------------------------------


def play_peer(loop: Loop, source: str, seconds: float, video: bool) -> Round:
    """Read, process, (write), one after the other, as demos do. Raises BadInput: OpenCV cannot read the clip."""
    capture, done = cv2.VideoCapture(source), Round()
    fps = capture.get(cv2.CAP_PROP_FPS)
    size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    wanted = round(seconds * fps)
    with tempfile.TemporaryDirectory() as folder:
        writer = cv2.VideoWriter(f"{folder}/out.mp4", cv2.VideoWriter.fourcc(*"mp4v"), fps, size) if video else None
        began, spent = time.perf_counter(), time.process_time()
        while done.frames < wanted:
            started = time.perf_counter_ns()
            good, frame = capture.read()
            if not good:
                break
            decoded = time.perf_counter_ns()
            result = loop.process(np.asarray(frame, np.uint8))
            stages = {"decode": (decoded - started) / 1e6, **result.stages}
            if writer:
                started = time.perf_counter_ns()
                writer.write(result.picture)
                stages["write"] = (time.perf_counter_ns() - started) / 1e6
            done.add(stages)
            done.frames += 1
        if writer:
            writer.release()
        done.seconds, done.cpu_s = time.perf_counter() - began, time.process_time() - spent
    capture.release()
    if not done.frames:
        raise BadInput(f"{source}: the peers' loops cannot read it; give a video file with --clip")
    return done


class PainterSink(Sink):
    """Paints every frame in memory, as the peers do."""

    target = Path("painted")

    def write(self, output: Output) -> None:
        draw(output.frame.image, output.result, output.metres)

    def close(self) -> None:
        pass


SINK_STAGES = {"painter": "draw", "jsonl": "write", "video": "write"}  # kind of sink -> stage


def play_freespace(engine: Engine, source: str, seconds: float, video: bool, painted: bool) -> Round:
    """The way that ``freespace run CLIP --polygons`` takes."""
    with tempfile.TemporaryDirectory() as folder, open_source(source, Selection(duration_s=seconds)) as opened:
        output = OutputConfig(polygons=f"{folder}/polygons.jsonl", video=f"{folder}/overlay.mp4" if video else None)
        config = Config(output=output)
        began, spent = time.perf_counter(), time.process_time()
        sinks = [*open_sinks(config, opened.fps), *([PainterSink()] if painted else [])]
        summary = run(opened, engine, sinks, config)
        done = Round(summary.frames, time.perf_counter() - began, time.process_time() - spent)
    for stage, mean in summary.stages.means().items():
        if (known := SINK_STAGES.get(stage, stage)) in STAGES:
            done.stages[known] = [sum(done.stages.get(known, [0.0])) + mean]
    return done


def in_turn(plays: Mapping[str, Callable[[], Round]], rounds: int) -> dict[str, list[Round]]:
    """``rounds`` of each, after one that warms up. Raises BadInput: they do not see the same frames."""
    names, found = list(plays), {name: list[Round]() for name in plays}
    expected: tuple[str, int] | None = None
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            played = plays[name]()
            expected = expected or (name, played.frames)
            if abs(played.frames - expected[1]) > 1:  # decoders differ in which frame is the last one before a moment
                raise BadInput(f"{name} read {played.frames} frames where {expected[0]} read {expected[1]}")
            if number:
                found[name].append(played)
                print(f"round {number}: {name:<70} {played.fps:7.1f} FPS", file=sys.stderr, flush=True)
    return found


# -- Accuracy ----------------------------------------------------------------------------------------------------------


def peer_mask(loop: Loop, image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """The one mask it has, for both planes."""
    found = loop.process(image).found.drivable
    return None if found is None else np.stack([found, found])


def freespace_masks(engine: Engine, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    from training.datasets import PLANES

    scores = engine.segment([image])
    left, top, width, height = scores.resamplings[0].content
    masks = []
    for plane in PLANES:
        inner = scores.values[0, engine.contract.plane_index(plane), top : top + height, left : left + width]
        masks.append(cv2.resize(inner, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 127)
    return np.stack(masks)


def measure_accuracy(cases: Mapping[str, Case], data: Path) -> dict[str, dict[str, float]]:
    """Loop -> "data set plane" -> IoU over all labelled pixels of split val (`training.evaluate.DEFINITION`)."""
    from training.datasets import PLANES, find_samples, read_sample
    from training.metrics import Counts, count
    from training.splits import split_samples

    counts: dict[str, dict[str, Counts]] = {name: {} for name in cases}
    for sample in split_samples(find_samples(data))["val"]:
        image, targets = read_sample(sample, strict=True)
        for name, case in cases.items():
            masks = case.masks(image)
            if masks is None:
                continue
            for plane, mask, target in zip(PLANES, masks, targets, strict=True):
                if (target == 1).any():
                    key = f"{sample.dataset} {plane}"
                    counts[name][key] = counts[name].get(key, Counts()) + count(mask, target)
    return {name: {key: round(c.iou, 4) for key, c in rows.items()} for name, rows in counts.items()}


# -- Figures -----------------------------------------------------------------------------------------------------------


def summarise(
    rounds: Mapping[str, Sequence[Round]],
    facts: Mapping[str, Mapping[str, Any]],
    ours: str,
    baseline: str | None,
    accuracy: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, Any]]:
    """Each loop: its rate, its ratio to the baseline and that of ours to it, milliseconds by stage; facts, accuracy."""
    rates = {name: [r.fps for r in played] for name, played in rounds.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, played in rounds.items():
        found[name] = {
            "fps": spread(interval(rates[name], geometric_mean)),
            "cpu_ms": round(float(np.median([1e3 * r.cpu_s / r.frames for r in played])), 3),
            "rates": [round(rate, 3) for rate in rates[name]],
            "over_baseline": spread(ratio(rates[name], rates[baseline])) if baseline and name != baseline else None,
            "ours_over_it": spread(ratio(rates[ours], rates[name])) if name != ours else None,
            "stages_ms": {
                stage: round(float(np.mean([np.mean(r.stages[stage]) for r in played])), 3)
                for stage in STAGES
                if stage in played[0].stages
            },
            **facts[name],
        }
        if accuracy.get(name):
            found[name]["iou"] = dict(accuracy[name])
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """Geometric mean of the ratios of rounds, and its bootstrap interval."""
    return interval((np.array(over) / np.array(under)).tolist(), geometric_mean)


def spread(found: Interval) -> dict[str, float]:
    value, low, high = found
    return {"value": round(value, 3), "low": round(low, 3), "high": round(high, 3)}


def markdown(report: Mapping[str, Any]) -> str:
    """A table of rates and ratios, one of stages, and what did not run."""
    loops, cpu, cores = report["loops"], report["machine"]["cpu"], report["machine"]["cores"]
    said = [
        f"{cpu}, {cores} cores; {report['clip']['name']}, {report['frames_per_round']} frames a round, "
        f"{report['rounds']} rounds in turn; {'all write a video' if report['video'] else 'no video written'}; 95 % intervals",
        "",
        markdown_table(
            ["loop", "FPS", f"over {report['baseline'] or 'the first'}", f"{report['ours']} over it"],
            [[name, *(shown(row[key]) for key in ("fps", "over_baseline", "ours_over_it"))] for name, row in loops.items()],
        ),
        "",
        markdown_table(
            ["ms per frame, mean", *STAGES, "processor time"],
            [
                [
                    name,
                    *(f"{row['stages_ms'][s]:.2f}" if s in row["stages_ms"] else "–" for s in STAGES),
                    f"{row['cpu_ms']:.1f}",
                ]
                for name, row in loops.items()
            ],
        ),
    ]
    if sets := sorted({key for row in loops.values() for key in row.get("iou", {})}):
        cells = [
            [name, *(f"{row['iou'][s]:.3f}" if s in row.get("iou", {}) else "–" for s in sets)] for name, row in loops.items()
        ]
        said += ["", markdown_table(["IoU", *sets], cells), "", IOU_NOTE]
    said += ["", *(f"- {name}: {row['about']}; {row['network']} {row['sha256'][:12]}" for name, row in loops.items())]
    said += [f"- not run: {name}: {reason}" for name, reason in report["skipped"].items()]
    return "\n".join(said)


def shown(row: Mapping[str, float] | None) -> str:
    return "–" if row is None else f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
