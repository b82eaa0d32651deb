"""LabelMe: one JSON file an image, ``shapes`` with ``label``, ``shape_type`` and ``points``.

A hole is a polygon of its own with the flag ``hole``; it is cut out of the polygons with its label and its ``group_id``.
"""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from training.annotations.base import (
    Annotation,
    Entry,
    Patch,
    Region,
    Ring,
    decode_bitmap,
    read_rectangle,
    read_ring,
    read_size,
    written_ring,
)

WITHOUT_AREA = ("point", "points", "line", "linestrip")


def recognise(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def read(data: Any, path: Path) -> list[Entry]:
    return [Entry("", partial(read_image, data, path))]


def read_image(data: Any, path: Path) -> Annotation:
    regions: list[Region] = []
    left_out: list[str] = []
    groups: dict[tuple[str, Any], list[Region]] = {}
    holes: list[tuple[tuple[str, Any], Ring]] = []
    for shape in data["shapes"]:
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
        if kind in WITHOUT_AREA:
            left_out.append(f"{label!r}: a {kind} has no area")
            continue
        group = label, shape.get("group_id")
        if kind == "mask":
            left, top = (round(v) for v in shape["points"][0])
            bitmap = decode_bitmap(base64.b64decode(shape["mask"], validate=True))
            regions.append(Region(label, bitmap=Patch(bitmap, left, top)))
            continue
        if kind not in ("polygon", "rectangle"):
            raise ValueError(f"{label!r}: shapes of type {kind!r} are not read")
        ring = (read_rectangle if kind == "rectangle" else read_ring)(shape["points"])
        if (shape.get("flags") or {}).get("hole"):
            holes.append((group, ring))
        else:
            regions.append(Region(label, [ring]))
            groups.setdefault(group, []).append(regions[-1])
    for group, ring in holes:
        if group not in groups:
            raise ValueError(f"a hole of {group[0]!r} (group {group[1]}) has no polygon around it")
        for region in groups[group]:
            region.rings.append(ring)
    size = read_size(data.get("imageWidth"), data.get("imageHeight"))
    return Annotation(data.get("imagePath") or path.stem, size, regions, left_out=left_out)


def write(annotation: Annotation) -> bytes:
    """The file for ``annotation``, whose size is known and whose regions are polygons; the image is named, not inside."""
    assert annotation.size
    shapes = []
    for number, region in enumerate(annotation.regions, start=1):
        group = number if len(region.rings) > 1 else None
        for i, ring in enumerate(region.rings):
            shape = {"label": region.label, "points": written_ring(ring), "group_id": group, "description": "hole" if i else ""}
            shapes.append({**shape, "shape_type": "polygon", "flags": {"hole": True} if i else {}})
    width, height = annotation.size
    data: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": annotation.image, "imageData": None}
    return orjson.dumps({**data, "imageHeight": height, "imageWidth": width}, option=orjson.OPT_INDENT_2)
