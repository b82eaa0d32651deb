"""How true the metres are, and how honest the interval beside them: against rendered drives, whose truth is exact.

    python -m benchmarks.metres --out benchmarks/results/NAME.json

For frames of each drive the boundary of free ground is taken along the rays of the scan, from the truth (`ground_polygons`:
where rays really meet the road, hills and all) and in four ways from pixels:

- ``geometry``: from the true outlines in pixels: what projection, clipping and the flat ground cost;
- ``polygons``: from the true masks, at the network's size, through the product's polygons: what that adds;
- ``disturbed``: as ``geometry``, but the camera's pitch, roll and height are not what the calibration says, and the outlines
  are off, by normal errors with the standard deviations that the intervals assume;
- ``network``: from the shipped network's scores. It has never seen a rendered picture: its errors here are its own.

Errors are relative to the true range and of rays whose true boundary lies within ``--reach``, image sides and the view's own
beginning left out. ``held`` is the share of these in which the true range lies within the stated 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from benchmarks.common import machine
from calibration.camera import Camera
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
WAYS = ("geometry", "polygons", "disturbed", "network")
PLANE = "freespace"
HEIGHT_SIGMA_M = 0.02
DRAWS = 8  # of what disturbs, for each frame: all rays of a frame share one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40, help="of each drive, half a second apart")
    parser.add_argument("--reach", type=float, default=30.0, help="metres")
    parser.add_argument("--seed", type=int, default=0, help="of what disturbs")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"frames": arguments.frames, "reach_m": arguments.reach, "settings": GroundConfig().model_dump()}
    with open_engine() as engine:
        results["model"] = engine.contract.sha256
        for kind, drives in (("flat", FLAT), ("slopes", SLOPES)):
            results[kind] = measure(drives, arguments, engine)
            print_table(kind, results[kind])
    if arguments.out:
        arguments.out.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")


def measure(drives: Sequence[tuple[str, int]], arguments: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    """For each way, over all rays of all frames of all drives: number of rays, relative errors, share held."""
    found: dict[str, list[Array]] = {way: [] for way in WAYS}
    rng = np.random.default_rng(arguments.seed)
    for name, seed in drives:
        scene = Scene(name, fps=2.0, seconds=arguments.frames / 2, seed=seed)
        calibrated = replace(scene.camera, mount=replace(scene.camera.mount, sigma={"height_m": HEIGHT_SIGMA_M}))
        metres = Metres(calibrated, GroundConfig())
        for index in range(arguments.frames):
            frame = render(scene, index)
            true = metres.free_ranges(Edges(list(rings(frame.ground_polygons[PLANE]))))
            counted = (true < arguments.reach) & clear_of_sides(metres, frame, true)
            for way in (*WAYS, *["disturbed"] * (DRAWS - 1)):
                ranges, near, far = ranges_of(way, metres, frame, engine, rng)
                error = np.abs(ranges - true) / true
                held = (near - 1e-3 <= true) & (true <= far + 1e-3)
                found[way].append(np.stack([error, held])[:, counted])
    return {way: figures(np.concatenate(rays, axis=1)) for way, rays in found.items()}


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
        if way == "disturbed":
            outlines = disturb(outlines, metres, rng)
        polygons = [as_polygon(shape) for shape in outlines]
    scan = metres.place(polygons)[1].scan
    return scan.ranges_m, scan.near_m, scan.far_m


def disturb(outlines: list[shapely.Polygon], metres: Metres, rng: np.random.Generator) -> list[shapely.Polygon]:
    """The outlines as a camera sees them whose pose is not the calibrated one, moved up or down as a whole in the image."""
    k, mount, config = metres.camera.intrinsics, metres.camera.mount, metres.config
    really = replace(
        mount,
        pitch=mount.pitch + rng.normal(0, config.pitch_sigma),
        roll=mount.roll + rng.normal(0, config.pitch_sigma),
        height_m=mount.height_m + rng.normal(0, HEIGHT_SIGMA_M),
    )
    camera = Camera(k, really)
    shift = np.array([[0.0, rng.normal(0, config.pixel_sigma * k.height)]])

    def seen(pixels: Array) -> Array:
        """Where a point on the ground appears to the camera as it really is; the picture's border goes along."""
        rays = metres.camera.pixel_rays(pixels) * (mount.height_m / really.height_m, mount.height_m / really.height_m, 1.0)
        return np.asarray(camera.intrinsics.project(rays @ camera.camera_from_base[:3, :3].T) + shift)

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


if __name__ == "__main__":
    main()
