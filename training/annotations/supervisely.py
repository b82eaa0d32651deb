"""Supervisely: one JSON file an image, ``objects`` with ``classTitle``; polygons with holes, rectangles, bitmaps."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from training.annotations.base import (
    Annotation,
    Entry,
    Patch,
    Region,
    decode_bitmap,
    read_rectangle,
    read_ring,
    read_size,
    written_ring,
)

META = "meta"  # name of the file with the project's classes
FOLDER = "ann"  # of a data set's annotations, beside that of its images


def recognise(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    return is_meta(data) or (isinstance(data.get("objects"), list) and isinstance(data.get("size"), dict))


def is_meta(data: dict[str, Any]) -> bool:
    return isinstance(data.get("classes"), list) and isinstance(data.get("tags"), list) and "objects" not in data


def read(data: Any, path: Path) -> list[Entry]:
    return [] if is_meta(data) else [Entry("", partial(read_image, data, path))]


def read_image(data: Any, path: Path) -> Annotation:
    regions: list[Region] = []
    left_out: list[str] = []
    for thing in data["objects"]:
        label, bitmap = str(thing["classTitle"]), thing.get("bitmap")
        kind = thing.get("geometryType") or ("bitmap" if bitmap else "polygon")
        if kind == "bitmap":
            left, top = (int(v) for v in bitmap["origin"])
            png = zlib.decompress(base64.b64decode(bitmap["data"], validate=True))
            regions.append(Region(label, bitmap=Patch(decode_bitmap(png), left, top)))
        elif kind == "rectangle":
            regions.append(Region(label, [read_rectangle(thing["points"]["exterior"])]))
        elif kind == "polygon":
            points = thing["points"]
            regions.append(Region(label, [read_ring(r) for r in (points["exterior"], *points.get("interior", []))]))
        else:
            left_out.append(f"{label!r}: a {kind} has no area")
    size = read_size(data["size"]["width"], data["size"]["height"])
    return Annotation(path.stem, size, regions, left_out=left_out)


def write(annotation: Annotation) -> bytes:
    """The file for ``annotation``, whose size is known and whose regions are polygons."""
    assert annotation.size
    objects = [
        {
            "classTitle": region.label,
            "geometryType": "polygon",
            "description": "",
            "tags": [],
            "points": {
                "exterior": written_ring(region.rings[0]),
                "interior": [written_ring(r) for r in region.rings[1:]],
            },
        }
        for region in annotation.regions
    ]
    width, height = annotation.size
    data = {"description": "", "tags": [], "size": {"height": height, "width": width}, "objects": objects}
    return orjson.dumps(data, option=orjson.OPT_INDENT_2)


def write_meta(labels: Sequence[str]) -> bytes:
    """The project's `META`, which names the classes; an import asks for it."""
    colours = ("#3CC850", "#E6B428", "#5078DC", "#C83C78")
    classes = [{"title": t, "shape": "polygon", "color": colours[i % len(colours)]} for i, t in enumerate(labels)]
    return orjson.dumps({"classes": classes, "tags": []}, option=orjson.OPT_INDENT_2)
