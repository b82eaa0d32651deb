"""COCO: one JSON file for many images; polygons, or run lengths (plain or compressed) for crowds and masks.

What has only a box is somewhere within it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.annotations.base import LARGEST_PIXELS, Annotation, Entry, Patch, Region, read_rectangle, read_ring, read_size


def recognise(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("images"), list) and isinstance(data.get("annotations"), list)


def read(data: Any, path: Path) -> list[Entry]:
    names = {c["id"]: str(c["name"]) for c in data.get("categories") or []}
    objects: dict[Any, list[Any]] = {image["id"]: [] for image in data["images"]}
    for thing in data["annotations"]:
        if thing["image_id"] not in objects:
            raise ValueError(f"an object belongs to image {thing['image_id']}, which is not in the file")
        objects[thing["image_id"]].append(thing)
    return [
        Entry(str(image.get("file_name", image["id"])), partial(read_image, image, objects[image["id"]], names))
        for image in data["images"]
    ]


def read_image(image: Any, objects: list[Any], names: dict[Any, str]) -> Annotation:
    size = read_size(image.get("width"), image.get("height"))
    regions: list[Region] = []
    left_out: list[str] = []
    for thing in objects:
        if thing["category_id"] not in names:
            raise ValueError(f"an object has category {thing['category_id']}, which is not in the file")
        label, shape = names[thing["category_id"]], thing.get("segmentation")
        if not shape:
            if not thing.get("bbox"):
                raise ValueError(f"{label!r}: has neither segmentation nor bbox")
            left, top, width, height = thing["bbox"]
            box = read_rectangle([(left, top), (left + width, top + height)])
            regions.append(Region(label, [box], unsure=True))
            left_out.append(f"{label!r}: has no segmentation")
        elif isinstance(shape, dict):
            patch = read_runs(shape)
            height, width = patch.mask.shape
            size = size or (width, height)
            if size != (width, height):
                raise ValueError(f"{label!r}: run lengths for {width}x{height} pixels, the image has {size[0]}x{size[1]}")
            regions.append(Region(label, bitmap=patch))
        else:
            regions += [Region(label, [read_ring(np.array(part, np.float64).reshape(-1, 2))]) for part in shape]
    return Annotation(str(image["file_name"]), size, regions, left_out=left_out)


def read_runs(shape: Any) -> Patch:
    """Pixels of a run-length encoding ``{"counts": [...] or "...", "size": [height, width]}``. Raises ValueError: broken."""
    counts = shape["counts"]
    if isinstance(counts, str):
        counts = decompress(counts)
    height, width = shape["size"]
    return Patch(expand(counts, width, height), 0, 0)


def expand(counts: list[int], width: int, height: int) -> NDArray[np.bool_]:
    """Run lengths, of unset and set pixels in turn, down the columns, as a mask bool ``(height, width)``.

    Raises:
        ValueError: they do not add up to the image.
    """
    if any(type(n) is not int or n < 0 for n in (*counts, width, height)) or width * height > LARGEST_PIXELS:
        raise ValueError("run lengths must be whole numbers")
    if sum(counts) != width * height:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of a {width}x{height} image")
    mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.asarray(mask.reshape(width, height).T)


def decompress(text: str) -> list[int]:
    """Run lengths of a compressed string: five bits a character from 48 on, lowest first, bit 5 of all but the last set; the
    sign is the highest bit; from the fourth number on, each is the difference to the last but one.

    Raises:
        ValueError: a character that cannot be, or an end within a number.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no part of compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number = value - (1 << shift) if bits & 16 else value
            numbers.append(number + numbers[-2] if len(numbers) > 2 else number)
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return numbers
