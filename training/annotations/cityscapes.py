"""Cityscapes: one ``*_polygons.json`` an image, ``objects`` from far to near: later ones lie on top."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from training.annotations.base import Annotation, Entry, Region, read_ring, read_size


def recognise(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("objects"), list) and "imgWidth" in data and "imgHeight" in data


def read(data: Any, path: Path) -> list[Entry]:
    return [Entry("", partial(read_image, data, path))]


def read_image(data: Any, path: Path) -> Annotation:
    regions = [
        Region(str(thing["label"]).removesuffix("group"), [read_ring(thing["polygon"])])  # "cargroup": cars in one outline
        for thing in data["objects"]
        if not thing.get("deleted")
    ]
    image = re.sub(r"_gt(Fine|Coarse)_polygons$", "_leftImg8bit", path.stem)
    return Annotation(image, read_size(data["imgWidth"], data["imgHeight"]), regions, layered=True)
