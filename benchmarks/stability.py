"""What the stabiliser does: flicker, agreement with the truth, and how soon an obstacle shows, without it and with it.

    python -m benchmarks.stability drive.mp4 other.mp4 --out benchmarks/results/NAME.json

Rendered drives have an exact truth. They are rendered at 640x360 and then shaken and spoilt as by a camera on a vehicle (see
`spoilt`): pictures and truth are shaken alike, so that the truth trembles, too, and its own figures are what no filter should
get below by much. Of clips there is no truth; the first seconds of each are taken.

The settings were chosen on the drives of ``--tuning``, on challenge01 and project_video02 of the demo's footage, and on shaken
photographs of CamVid and IDD; the results kept are of other drives and clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine
from engine import open_engine
from engine.base import Engine
from perception.capture import Selection, open_source
from perception.config import StabiliseConfig
from perception.polygons import level_of
from perception.stabilise import Stabiliser
from perception.stability import Stability
from perception.synthetic import Scene, render
from training.metrics import Table, bootstrap_difference, count, iou, table

U8 = NDArray[np.uint8]

# (scene, seed)
TUNING = (("drive", 0), ("cut-in", 0), ("curve", 1), ("dusk", 2))
REPORTED = (("drive", 8), ("traffic", 3), ("hills", 4), ("night", 5), ("straight", 6), ("cut-in", 7))
SIZE = (640, 360)
PLANE = "freespace"

SHAKE_PX = (0.5, 0.9)  # standard deviation across and down, of 640x360: 0.06 and 0.1 degrees
SHAKE_HZ = 6.0  # corner of its spectrum
GAIN = 0.03  # standard deviation of the exposure
NOISE = 6.0  # standard deviation of the sensor's noise, grey levels

SHOWN = 0.9  # of an obstacle, for it to count as shown


@dataclass
class Series:
    """What the network says of consecutive frames, at its own size.

    Attributes:
        name: of the drive or clip.
        stamps_ns: of the frames.
        scores: uint8 ``(h, w)`` each.
        truth: uint8 ``(h, w)`` each, from 128 on drivable; empty where there is none.
        vehicles: bool ``(h, w)`` each: other vehicles before the road; empty where nobody asked.
    """

    name: str
    stamps_ns: list[int]
    scores: list[U8]
    truth: list[U8]
    vehicles: list[NDArray[np.bool_]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, help="videos")
    parser.add_argument("--model", help="model file; the shipped one by default")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tuning", action="store_true", help="the drives that the settings were chosen on")
    parser.add_argument("--fps", type=float, default=25.0, help="of the drives")
    parser.add_argument("--drive-seconds", type=float, default=8.0)
    parser.add_argument("--clip-seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = StabiliseConfig()
    with open_engine(arguments.model, arguments.backend) as engine:
        drives = [
            drive(engine, Scene(name, *SIZE, arguments.fps, arguments.drive_seconds, seed))
            for name, seed in (TUNING if arguments.tuning else REPORTED)
        ]
        clips = [clip(engine, path, arguments.clip_seconds) for path in arguments.clips]
        report: dict[str, Any] = {
            "drives": {series.name: figures(series, config) for series in drives},
            "clips": {series.name: figures(series, config) for series in clips},
            "iou": overlap(drives, config),
            "cut_in": [covering(series, config) for series in drives if series.vehicles],
            "sudden_obstacle": [
                sudden(engine, Scene(name, *SIZE, arguments.fps, seconds=8.0, seed=seed), second, config)
                for name, seed, second in (("cut-in", 7, 5.0), ("traffic", 3, 3.0), ("drive", 8, 4.0), ("dusk", 9, 2.0))
            ],
            "cost_ms": cost([*drives, *clips], config),
            "settings": {
                "stabilise": config.model_dump(),
                "longest_false_drivable_s": round(Stabiliser(config).longest_false_s(), 3),
                "fps": arguments.fps,
                "drive_seconds": arguments.drive_seconds,
                "clip_seconds": arguments.clip_seconds,
                "engine": f"{engine.name} {engine.precision}",
                "model": engine.contract.sha256,
            },
            "machine": machine(),
        }
    print_report(report)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


# What is looked at


def drive(engine: Engine, scene: Scene) -> Series:
    """A rendered drive through the network. Vehicles are told apart only where one cuts in."""
    series = Series(f"{scene.name}, seed {scene.seed}", [], [], [], [])
    for index, (move, gain, noise) in enumerate(spoilt(scene)):
        rendered, road = render(scene, index), None
        series.stamps_ns.append(round(index * 1e9 / scene.fps))
        series.scores.append(scored(engine, photographed(rendered.image, move, gain, noise)))
        series.truth.append(at_network_size(engine, shaken(rendered.masks[PLANE], move)))
        if scene.name == "cut-in":
            road = render(without_traffic(scene), index).masks[PLANE]
            series.vehicles.append(
                (at_network_size(engine, shaken(road, move)) >= 128) & (series.truth[-1] < 128),
            )
    return series


def clip(engine: Engine, path: Path, seconds: float) -> Series:
    series = Series(path.name, [], [], [], [])
    with open_source(str(path), Selection(duration_s=seconds)) as source:
        for frame in source.frames():
            series.stamps_ns.append(frame.stamp_ns)
            series.scores.append(scored(engine, frame.image))
    return series


def without_traffic(scene: Scene) -> Scene:
    return Scene(scene.name, scene.width, scene.height, scene.fps, scene.seconds, scene.seed, scene.light, cars=0)


def spoilt(scene: Scene) -> Iterator[tuple[NDArray[np.float32], float, NDArray[np.float32]]]:
    """What the camera adds to each frame of a drive: a shift (2 x 3 matrix), a gain, and noise to be added.

    Shift and gain are first-order low-pass noise: neighbouring frames resemble each other at 60 frames a second and hardly
    at 10.
    """
    rng = np.random.default_rng((scene.seed, 7))
    stays = np.exp(-2 * np.pi * SHAKE_HZ / scene.fps)
    state = rng.standard_normal(3)
    for _ in range(scene.frame_count):
        across, down, brightness = state * (*SHAKE_PX, GAIN)
        noise = rng.standard_normal((scene.height, scene.width, 3), np.float32) * np.float32(NOISE)
        yield np.array([[1, 0, across], [0, 1, down]], np.float32), 1 + brightness, noise
        state = stays * state + np.sqrt(1 - stays**2) * rng.standard_normal(3)


def shaken(image: U8, move: NDArray[np.float32]) -> U8:
    size = image.shape[1], image.shape[0]
    return np.asarray(cv2.warpAffine(image, move, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def photographed(image: U8, move: NDArray[np.float32], gain: float, noise: NDArray[np.float32]) -> U8:
    exposed = np.rint(shaken(image, move) * np.float32(gain) + noise)
    return np.asarray(np.clip(exposed, 0, 255), np.uint8)


def scored(engine: Engine, image: U8) -> U8:
    return np.array(engine.segment([image]).values[0, engine.contract.plane_index(PLANE)])


def at_network_size(engine: Engine, mask: U8) -> U8:
    return np.asarray(cv2.resize(mask, engine.input_size, interpolation=cv2.INTER_AREA), np.uint8)


# What is measured


def steadied(series: Series, config: StabiliseConfig) -> list[U8]:
    stabiliser = Stabiliser(config)
    return [stabiliser.steady(scores, stamp) for scores, stamp in zip(series.scores, series.stamps_ns, strict=True)]


def stability(planes: Iterable[U8], stamps_ns: Iterable[int]) -> dict[str, float | None]:
    found = Stability()
    for plane, stamp in zip(planes, stamps_ns, strict=True):
        found.add(plane, stamp)
    return {key: None if value is None else round(value, 6) for key, value in asdict(found.figures()).items()}


def figures(series: Series, config: StabiliseConfig) -> dict[str, Any]:
    """Stability of the scores as they come, of the steady ones and of the truth; IoU against the truth."""
    steady = steadied(series, config)
    report: dict[str, Any] = {"raw": stability(series.scores, series.stamps_ns)}
    report["steady"] = stability(steady, series.stamps_ns)
    if series.truth:
        report["truth"] = stability(series.truth, series.stamps_ns)
        for name, planes in (("raw", series.scores), ("steady", steady)):
            report[name]["iou_with_truth"] = round(float(iou(against(planes, series.truth))), 5)
    else:
        report["steady"]["iou_with_raw"] = round(float(iou(against(steady, [binary(s) for s in series.scores]))), 5)
    return report


def against(planes: Iterable[U8], truth: Iterable[U8]) -> Table:
    """Counts of TP, FP, FN and TN over all frames, int64 ``(4,)``."""
    masks = ((mask >= 128).astype(np.uint8) for mask in truth)
    return np.asarray(table(count(plane > level_of(0.5), mask) for plane, mask in zip(planes, masks, strict=True)).sum(axis=0))


def binary(scores: U8) -> U8:
    return np.where(scores > level_of(0.5), 255, 0).astype(np.uint8)


def overlap(drives: list[Series], config: StabiliseConfig) -> dict[str, Any]:
    """IoU over all drives, and the 95 % interval of the difference: seconds of drives drawn, the same ones for both."""
    without, with_it, groups = [], [], []
    for series in drives:
        for i, steady in enumerate(steadied(series, config)):
            without.append(against(series.scores[i : i + 1], series.truth[i : i + 1]))
            with_it.append(against([steady], series.truth[i : i + 1]))
            groups.append((series.name, series.stamps_ns[i] // 1_000_000_000))
    low, high = bootstrap_difference(np.array(without), np.array(with_it), groups)
    before, after = (float(iou(np.sum(counts, axis=0))) for counts in (without, with_it))
    return {
        "raw": round(before, 5),
        "steady": round(after, 5),
        "difference": round(after - before, 5),
        "interval": [round(low, 5), round(high, 5)],
        "units": len(set(groups)),
    }


def covering(series: Series, config: StabiliseConfig) -> dict[str, Any]:
    """How soon a pixel that was drivable and is now covered by a vehicle is not drivable in the results.

    ``within``: share of those pixels that are not drivable 0, 1, 2 and 3 frames later, of those still covered then.
    ``vehicle_drivable``: share of all pixels on vehicles before the road that are drivable in the results.
    """
    report: dict[str, Any] = {"drive": series.name}
    drivable_truth = [mask >= 128 for mask in series.truth]
    for name, planes in (("raw", series.scores), ("steady", steadied(series, config))):
        drivable = [plane > level_of(0.5) for plane in planes]
        within = []
        for later in range(4):
            covered = missed = 0
            for i in range(1, len(planes) - 3):
                fresh = drivable_truth[i - 1] & series.vehicles[i] & series.vehicles[i + later]
                covered += np.count_nonzero(fresh)
                missed += np.count_nonzero(fresh & drivable[i + later])
            within.append(float(round(1 - missed / covered, 4)))
        on_vehicles = sum(np.count_nonzero(v) for v in series.vehicles)
        wrong = sum(np.count_nonzero(v & d) for v, d in zip(series.vehicles, drivable, strict=True))
        report[name] = {"within": within, "vehicle_drivable": float(round(wrong / on_vehicles, 5))}
    return report


def sudden(engine: Engine, scene: Scene, second: float, config: StabiliseConfig) -> dict[str, Any]:
    """All vehicles appear at once, from one frame to the next, after a second without any.

    ``shown``: share of the pixels which the network itself calls not drivable in a frame, of those that the vehicles take
    from the road, that is not drivable in the steady result, 0, 1, 2 frames after. ``delay_frames``: when `SHOWN` is.
    """
    first, stabiliser = round(second * scene.fps), Stabiliser(config)
    shown: list[float] = []
    network: list[float] = []
    for index, (move, gain, noise) in enumerate(spoilt(scene)):
        if not first - round(scene.fps) <= index < first + 6:
            continue
        rendered = render(scene if index >= first else without_traffic(scene), index)
        raw = scored(engine, photographed(rendered.image, move, gain, noise))
        steady = stabiliser.steady(raw, round(index * 1e9 / scene.fps))
        if index >= first:
            road = at_network_size(engine, shaken(render(without_traffic(scene), index).masks[PLANE], move)) >= 128
            taken = road & (at_network_size(engine, shaken(rendered.masks[PLANE], move)) < 128)
            seen = taken & (raw <= level_of(0.5))
            network.append(share(seen, taken))
            shown.append(share(seen & (steady <= level_of(0.5)), seen))
    delay = next((frames for frames, part in enumerate(shown) if part >= SHOWN), None)
    return {
        "drive": f"{scene.name}, seed {scene.seed}",
        "second": second,
        "network": network,
        "shown": shown,
        "delay_frames": delay,
    }


def share(some: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return float(round(np.count_nonzero(some) / np.count_nonzero(of), 4))


def cost(series: list[Series], config: StabiliseConfig) -> dict[str, dict[str, float]]:
    """Milliseconds per frame of the stabiliser and of the figures, on one thread, scores as they came."""
    times: dict[str, list[float]] = {"steady": [], "stability": []}
    for each in series:
        stabiliser, found = Stabiliser(config), Stability()
        for scores, stamp in zip(each.scores, each.stamps_ns, strict=True):
            started = perf_counter()
            steady = stabiliser.steady(scores, stamp)
            between = perf_counter()
            found.add(steady, stamp)
            times["steady"].append((between - started) * 1e3)
            times["stability"].append((perf_counter() - between) * 1e3)
    return {name: {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)} for name, values in times.items()}


def print_report(report: dict[str, Any]) -> None:
    print(f"{'':24}{'flickers a minute':>27}{'pixels flip-flop, ppm':>30}{'IoU, frame to frame':>27}{'IoU with truth':>19}")
    print(f"{'':24}" + 3 * f"{'raw':>11}{'steady':>9}{'truth':>8}" + f"{'raw':>11}{'steady':>9}")
    for name, sides in {**report["drives"], **report["clips"]}.items():
        line = f"{name:24}"
        for key, scale, digits in (("flickers_per_minute", 1, 1), ("flip_flop", 1e6, 0), ("iou_mean", 1, 4)):
            for side, width in (("raw", 11), ("steady", 9), ("truth", 8)):
                value = sides.get(side, {}).get(key)
                line += f"{'-':>{width}}" if value is None else f"{value * scale:{width}.{digits}f}"
        if "truth" in sides:
            line += f"{sides['raw']['iou_with_truth']:11.4f}{sides['steady']['iou_with_truth']:9.4f}"
        print(line)
    total = report["iou"]
    low, high = total["interval"]
    print(f"\nIoU over all drives {total['raw']:.4f}, steady {total['steady']:.4f}: {low:+.4f} to {high:+.4f}")
    for found in report["cut_in"]:
        print(
            f"{found['drive']}: pixels newly covered by a vehicle, not drivable 0, 1, 2, 3 frames later, and vehicle drivable"
        )
        for name in ("raw", "steady"):
            print(f"  {name:8} {found[name]['within']}  {found[name]['vehicle_drivable']:.4f}")
    for found in report["sudden_obstacle"]:
        print(
            f"sudden obstacle, {found['drive']}: {found['delay_frames']} frames late; "
            f"shown {found['shown'][:3]} of the network's {found['network'][:3]}"
        )
    for name, times in report["cost_ms"].items():
        print(f"{name}: " + "  ".join(f"{key} {value:.3f}" for key, value in times.items()) + " ms")


if __name__ == "__main__":
    main()
