"""How true the metres are, and how honest the interval beside them: against rendered drives, whose truth is exact.

    python -m benchmarks.metres --out benchmarks/results/NAME.json

For frames of each drive the boundary of free ground is taken along the rays of the scan, from the truth (`ground_polygons`:
where rays really meet the road, hills and all) and in four ways from pixels:

- ``geometry``: from the true outlines in pixels: what projection, clipping and the flat ground cost;
- ``polygons``: from the true masks, at the network's size, through the product's polygons: what that adds;
- ``recalibrated``: as ``geometry``, but by a camera that was calibrated as a user would: intrinsics from pictures of a board
  whose corners are off, the mount through these from seven points on the ground that are off. The vehicle nods, and outlines
  are off, by as much as the settings say;
- ``network``: from the shipped network's scores. It has never seen a rendered picture: its errors here are its own.

Errors are relative to the true range and of rays whose true boundary lies within ``--reach``, image sides and the view's own
beginning left out. ``held`` is the share of these in which the true range lies within the stated 95 % interval.

``calibrations`` asks the same of the calibration alone, of points whose pixels are exact: cameras calibrated as above, with the
mount from seven points, or from lane lines in rendered pictures of a straight road, their ends off, and a taped height.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from benchmarks.common import machine
from calibration.boards import Board, View
from calibration.camera import Camera, Intrinsics, Mount
from calibration.extrinsics import PIXEL_SIGMA, TAPE_SIGMA_M, from_points
from calibration.ground import RangeUncertainty, ground_from_pixels, pixels_from_ground
from calibration.intrinsics import calibrate
from calibration.vanishing import END_SIGMA, Heading, combine, line_heading, road_lines
from engine import open_engine
from engine.base import Engine
from engine.preprocess import fit, resample
from perception.boundary import Edges
from perception.config import GroundConfig, PolygonConfig
from perception.freespace import Polygon
from perception.metres import GAP_M, Metres
from perception.polygons import extract
from perception.synthetic import Rendered, Scene, render

Array = NDArray[np.float64]

FLAT = (("straight", 11), ("curve", 12), ("traffic", 13), ("cut-in", 14))
SLOPES = (("drive", 15), ("hills", 16))
WAYS = ("geometry", "polygons", "recalibrated", "network")
PLANE = "freespace"
HEIGHT_SIGMA_M = 0.02
DRAWS = 8  # calibrations for each drive; in each frame of each the vehicle nods and the outlines are off once
BOARD = Board("chessboard", 9, 6, 0.025)
VIEWS = 15
CORNER_SIGMA = 0.3  # pixels
TAPED = np.array([[7, 2], [7, -2], [15, 3], [15, -3], [11, 0], [9, 1], [20, 2.0]])  # metres
RANGES_M = (10.0, 20.0, 30.0)
ROAD_IMAGES, OF_THESE = 40, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40, help="of each drive, half a second apart")
    parser.add_argument("--reach", type=float, default=30.0, help="metres")
    parser.add_argument("--calibrations", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of what disturbs")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"frames": arguments.frames, "reach_m": arguments.reach, "settings": GroundConfig().model_dump()}
    results["calibrations"] = calibrations(arguments.calibrations, arguments.seed)
    print_calibrations(results["calibrations"])
    results["cost_ms"] = cost(arguments.seed)
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in results["cost_ms"].items()))
    with open_engine() as engine:
        results["model"] = engine.contract.sha256
        for kind, drives in (("flat", FLAT), ("slopes", SLOPES)):
            rays = {name: measure(name, seed, arguments, engine) for name, seed in drives}
            rays[kind] = {way: np.concatenate([one[way] for one in rays.values()], axis=1) for way in WAYS}
            for name, ways in rays.items():
                results[name] = {way: figures(found) for way, found in ways.items()}
                print_table(name, results[name])
    if arguments.out:
        arguments.out.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")


def measure(name: str, seed: int, arguments: argparse.Namespace, engine: Engine) -> dict[str, Array]:
    """For each way, over all rays of all frames of a drive: float64 ``(2, n)`` relative errors, and whether they held."""
    found: dict[str, list[Array]] = {way: [] for way in WAYS}
    rng = np.random.default_rng([arguments.seed, seed])
    scene = Scene(name, fps=2.0, seconds=arguments.frames / 2, seed=seed)
    exact = {"pitch": 0.0, "roll": 0.0, "height_m": HEIGHT_SIGMA_M}
    true = Metres(replace(scene.camera, mount=replace(scene.camera.mount, sigma=exact)), GroundConfig())
    others = [Metres(by_points(scene.camera, rng), GroundConfig()) for _ in range(DRAWS)]
    for index in range(arguments.frames):
        frame = render(scene, index)
        for way, metres in (*((way, true) for way in WAYS if way != "recalibrated"), *(("recalibrated", m) for m in others)):
            wanted = metres.free_ranges(Edges(list(rings(frame.ground_polygons[PLANE]))))
            counted = (wanted < arguments.reach) & clear_of_sides(metres, frame, wanted)
            ranges, near, far = ranges_of(way, metres, frame, engine, rng)
            error = np.abs(ranges - wanted) / wanted
            held = (near - 1e-3 <= wanted) & (wanted <= far + 1e-3)
            found[way].append(np.stack([error, held])[:, counted])
    return {way: np.concatenate(rays, axis=1) for way, rays in found.items()}


def cost(seed: int) -> dict[str, float]:
    """Milliseconds, the median, that a frame of four polygons of 65 corners each takes: with a camera calibrated as above, and
    with one without distortion of which only standard deviations are known."""
    rng, true = np.random.default_rng(seed), Scene("straight").camera
    camera = by_points(true, rng)
    angles = np.linspace(0, 2 * np.pi, 65, endpoint=False)
    star = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(60, 130, (65, 1))
    polygons = [as_polygon(shapely.Polygon(star + np.array([x, 570.0]))) for x in (160.0, 480.0, 800.0, 1120.0)]
    plain = Camera(replace(camera.intrinsics, distortion=()), replace(camera.mount, covariance=None))
    found = {}
    for name, one in (("distorted", camera), ("plain", plain)):
        metres, times = Metres(one, GroundConfig()), []
        for _ in range(200):
            begin = perf_counter()
            metres.place(polygons)
            times.append(1e3 * (perf_counter() - begin))
        found[name] = float(np.median(times))
    return found


def by_board(true: Intrinsics, rng: np.random.Generator) -> Intrinsics:
    """A lens calibrated from views of a board whose corners are off."""
    views: list[View] = []
    while len(views) < VIEWS:
        turn = cv2.Rodrigues(np.append(rng.uniform(-0.6, 0.6, 2), rng.uniform(-3, 3)))[0]
        towards = true.rays([rng.uniform((0, 0), (true.width, true.height))])[0] * rng.uniform(0.25, 0.6)
        pixels = true.project((BOARD.points - BOARD.points.mean(axis=0)) @ turn.T + towards)
        pixels += rng.normal(0, CORNER_SIGMA, pixels.shape)
        if ((pixels > 10) & (pixels < np.array([true.width, true.height]) - 11)).all():
            views.append(View(f"{len(views)}", (true.width, true.height), pixels, np.arange(BOARD.count)))
    return calibrate(BOARD, views).intrinsics


def by_points(true: Camera, rng: np.random.Generator) -> Camera:
    """A camera calibrated from views of a board, then from points on the ground, all of which are off."""
    lens = by_board(true.intrinsics, rng)
    seen = pixels_from_ground(true, TAPED + rng.normal(0, TAPE_SIGMA_M, TAPED.shape))
    return Camera(lens, from_points(lens, seen + rng.normal(0, PIXEL_SIGMA, seen.shape), TAPED).mount)


def by_lines(true: Camera, road: Sequence[Array], rng: np.random.Generator) -> Camera:
    """A camera calibrated from views of a board, then from lane lines, ``road``, in some images, and a height that is off."""
    lens = by_board(true.intrinsics, rng)
    height = true.mount.height_m + rng.normal(0, TAPE_SIGMA_M)
    known = Mount(height, sigma={"height_m": TAPE_SIGMA_M, "roll": 0.0})
    images = [road[i] + rng.normal(0, END_SIGMA, road[i].shape) for i in rng.choice(len(road), OF_THESE, replace=False)]
    found = [line_heading(lens, lines, known) for lines in images]
    return Camera(lens, combine(lens, [heading for heading in found if isinstance(heading, Heading)], known).mount)


def calibrations(draws: int, seed: int) -> dict[str, list[dict[str, float]]]:
    """Of cameras calibrated anew, by what their mounts come from: for each range how far it is off, how wide its interval is,
    and how often it holds."""
    rng, true = np.random.default_rng(seed), Scene("straight").camera
    scene = Scene("straight", fps=2.0, seconds=ROAD_IMAGES / 2, seed=21)
    road = [road_lines(render(scene, index).image) for index in range(ROAD_IMAGES)]
    results: dict[str, list[dict[str, float]]] = {}
    for way in ("points", "lines"):
        off, half, held = [], [], []
        for _ in range(draws):
            camera = by_points(true, rng) if way == "points" else by_lines(true, road, rng)
            aside = rng.uniform(-0.15, 0.15, len(RANGES_M))
            points = np.array(RANGES_M)[:, None] * np.column_stack([np.cos(aside), np.sin(aside)])
            placed = ground_from_pixels(camera, pixels_from_ground(true, points))
            near, far = RangeUncertainty(camera, camera.uncertain).intervals(placed).T
            off.append(np.hypot(*placed.T) - RANGES_M)
            half.append((far - near) / 2)
            held.append((near <= RANGES_M) & (far >= RANGES_M))
        results[way] = [
            {
                "range_m": range_m,
                "calibrations": draws,
                "off_m": float(np.sqrt(np.mean(np.square(off), axis=0))[i]),
                "half_interval_m": float(np.median(half, axis=0)[i]),
                "held": float(np.mean(held, axis=0)[i]),
            }
            for i, range_m in enumerate(RANGES_M)
        ]
    return results


def ranges_of(
    way: str, metres: Metres, frame: Rendered, engine: Engine, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The scan's ranges and their intervals."""
    if way == "network":
        scores = engine.segment([frame.image])
        plane, resampling = scores.values[0, engine.contract.plane_index(PLANE)], scores.resamplings[0]
        polygons = extract(plane, resampling, PLANE, PolygonConfig())
    elif way == "polygons":
        resampling = fit((frame.image.shape[1], frame.image.shape[0]), engine.contract.input_size, engine.contract.resize)
        width, height = engine.contract.input_size
        small = np.zeros((height, width, 3), np.uint8)
        resample(np.repeat(frame.masks[PLANE][:, :, None], 3, axis=2), resampling, small)
        polygons = extract(np.ascontiguousarray(small[:, :, 0]), resampling, PLANE, PolygonConfig())
    else:
        outlines = frame.polygons[PLANE]
        if way == "recalibrated":
            outlines = disturb(outlines, frame.camera, metres.config, rng)
        polygons = [as_polygon(shape) for shape in outlines]
    scan = metres.place(polygons)[1].scan
    return scan.ranges_m, scan.near_m, scan.far_m


def disturb(
    outlines: list[shapely.Polygon], camera: Camera, config: GroundConfig, rng: np.random.Generator
) -> list[shapely.Polygon]:
    """The outlines as the camera sees them while the vehicle nods, moved up or down as a whole in the image."""
    k, mount = camera.intrinsics, camera.mount
    pitch, roll = rng.normal(0, config.pitch_sigma, 2)
    nodding = Camera(k, replace(mount, pitch=mount.pitch + pitch, roll=mount.roll + roll))
    shift = np.array([[0.0, rng.normal(0, config.pixel_sigma * k.height)]])

    def seen(pixels: Array) -> Array:
        """Where what a pixel shows appears then; the picture's border goes along."""
        return np.asarray(k.project(camera.pixel_rays(pixels) @ nodding.camera_from_base[:3, :3].T) + shift)

    frame = shapely.box(-0.5, -0.5, k.width - 0.5, k.height - 0.5)
    # What was just outside the picture may come into it.
    moved = [shapely.make_valid(shapely.transform(shapely.segmentize(shape, 20), seen)) for shape in outlines]
    return [part for shape in moved for part in shapely.get_parts(shapely.intersection(shape, frame)) if part.area > 1]


def clear_of_sides(metres: Metres, frame: Rendered, true: Array) -> NDArray[np.bool_]:
    """Rays whose true boundary is neither where the view begins nor at a side of the picture."""
    first, step, count = metres._rays
    bearings = metres.camera.mount.yaw + first + step * np.arange(count)
    ends = true[:, None] * np.stack([np.cos(bearings), np.sin(bearings)], axis=1)
    border = shapely.distance(shapely.MultiPolygon(metres.view.seen).boundary, shapely.points(ends))
    return np.asarray(np.isfinite(true) & (border > 2 * GAP_M))


def rings(shapes: list[shapely.Polygon]) -> Iterator[Array]:
    for shape in shapes:
        for line in (shape.exterior, *shape.interiors):
            yield shapely.get_coordinates(line)[:-1]


def as_polygon(shape: shapely.Polygon) -> Polygon:
    exterior, *interiors = rings([shape])
    return Polygon(PLANE, False, 1.0, shape.area, exterior, interiors)


def figures(rays: Array) -> dict[str, float]:
    error, held = rays
    return {
        "rays": int(error.size),
        "median_error": float(np.nanmedian(error)),
        "p95_error": float(np.nanpercentile(error, 95)),
        "held": float(np.mean(held)),
    }


def print_table(kind: str, ways: dict[str, Any]) -> None:
    print(f"{kind:<12}{'rays':>8}{'median':>10}{'p95':>10}{'held':>8}")
    for way, row in ways.items():
        print(f"{way:<12}{row['rays']:>8}{row['median_error']:>10.2%}{row['p95_error']:>10.2%}{row['held']:>8.1%}")


def print_calibrations(ways: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'mount from':<12}{'range':>8}{'off, rms':>10}{'interval':>10}{'held':>8}")
    for way, rows in ways.items():
        for row in rows:
            print(f"{way:<12}{row['range_m']:>7.0f}m{row['off_m']:>9.2f}m{row['half_interval_m']:>9.2f}m{row['held']:>8.1%}")


if __name__ == "__main__":
    main()
