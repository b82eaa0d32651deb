"""BDD100K: one JSON file for many frames or for one, ``labels`` with ``poly2d``; lines and boxes in it are other tasks.

The files do not say the images' size. Drivable areas are called ``direct`` and ``alternative``, whichever of the data set's
three forms a file has: by category, by ``attributes.areaType``, or as ``area/...`` within ``frames``.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.annotations.base import FARTHEST_PX, Annotation, Entry, Region, read_ring, read_size

FLATNESS_PX = 0.01  # how far the straight pieces may lie off a curve
AREAS = {"drivable": "direct", "alternative": "alternative"}


def recognise(data: Any) -> bool:
    return any(isinstance(f, dict) and "name" in f and ("labels" in f or "frames" in f) for f in frames_of(data)[:1])


def frames_of(data: Any) -> list[Any]:
    if isinstance(data, list):
        return data
    if not isinstance(data, dict):
        return []
    return data["frames"] if isinstance(data.get("frames"), list) and "name" not in data else [data]


def read(data: Any, path: Path) -> list[Entry]:
    frames = frames_of(data)
    where = [str(f.get("name")) if isinstance(f, dict) and len(frames) > 1 else "" for f in frames]
    return [Entry(name, partial(read_frame, frame)) for name, frame in zip(where, frames, strict=True)]


def read_frame(frame: Any) -> Annotation:
    old = "frames" in frame
    labels = [thing for part in frame["frames"] for thing in part["objects"]] if old else frame["labels"] or []
    regions = []
    for thing in labels:
        label = area_name(thing)
        for outline in outlines_of(thing.get("poly2d") or []):
            if outline.get("closed", True) and not label.startswith("lane"):
                vertices = outline["vertices"]
                types = outline.get("types") or "L" * len(vertices)
                regions.append(Region(label, [read_ring(flatten(vertices, types))]))
    size = frame.get("size") or {}
    return Annotation(str(frame["name"]), read_size(size.get("width"), size.get("height")), regions)


def area_name(thing: Any) -> str:
    category = str(thing["category"])
    if category == "drivable area":
        return str((thing.get("attributes") or {}).get("areaType") or category)
    group, _, area = category.partition("/")
    return AREAS.get(area, category) if group == "area" else category


def outlines_of(poly2d: list[Any]) -> list[dict[str, Any]]:
    """Each outline with its ``vertices`` and ``types``; in the oldest form the list itself is one: ``[[x, y, "L"], ...]``."""
    if poly2d and isinstance(poly2d[0], list):
        return [{"vertices": [p[:2] for p in poly2d], "types": "".join(p[2] for p in poly2d)}]
    return poly2d


def flatten(vertices: list[Any], types: str) -> list[tuple[float, float]]:
    """A closed outline without curves. ``types`` has a letter a vertex: two of type C steer a cubic Bezier curve from the
    vertex before them to the one behind them, which may be the first one again.

    Raises:
        ValueError: another letter, a curve without its points, or not a letter a vertex.
    """
    points = np.array(vertices, np.float64)
    if len(types) != len(points) or set(types) - {"L", "C"}:
        raise ValueError(f"types {types!r} do not fit {len(points)} vertices")
    if not np.all(np.abs(points) < FARTHEST_PX):
        raise ValueError("a coordinate lies far away from any image")
    line = [points[0]] if len(points) else []
    i = 1
    while i < len(points):
        if types[i] == "L":
            line.append(points[i])
            i += 1
            continue
        if i + 1 == len(points) or types[i + 1] != "C":
            raise ValueError(f"types {types!r}: a curve needs two points of type C")
        line += bezier(line[-1], points[i], points[i + 1], points[(i + 2) % len(points)])
        i += 3
    return [(float(x), float(y)) for x, y in line]


def bezier(p0: Any, p1: Any, p2: Any, p3: Any) -> list[Any]:
    """Points behind ``p0`` up to ``p3`` on the curve, so dense that the line through them lies within `FLATNESS_PX` of it."""
    bend = 6 * max(np.linalg.norm(p0 - 2 * p1 + p2), np.linalg.norm(p1 - 2 * p2 + p3))  # bounds the second derivative
    pieces = max(1, math.ceil(math.sqrt(bend / 8 / FLATNESS_PX)))
    t = (np.arange(1, pieces + 1) / pieces)[:, None]
    curve = (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3
    return list(curve)
