"""Class names to values of label pixels, and back: a mapping in YAML.

Either one index a class, for label images of indices (``road: 3``), or a value for each plane: 1, 0, or 255 for unknown::

    background: {freespace: 0, ego: 0}     # pixels without any object
    classes:                               # later ones win where objects overlap
      road: {freespace: 1}                 # a plane that is not named is unknown
      own lane: {freespace: 1, ego: 1}
      car: {freespace: 0, ego: 0}
      void: {}
      "*": {freespace: 0, ego: 0}          # optional: all others

Case, spaces, ``_``, ``-`` and ``/`` in class names do not matter. An object of a class that is not there may be anything: its
pixels are unknown, 255 on every plane and as an index.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from engine.contract import KNOWN_PLANES
from training.annotations.base import Annotation, Region
from training.annotations.raster import outlines, paint, rasterise

IGNORE = 255
OTHERS = "*"
UNMAPPED = "unknown"  # what pixels that are unknown are called on the way back, where the mapping has no name for them

Values = tuple[int, ...]


@dataclass(frozen=True)
class Classes:
    """A mapping.

    Attributes:
        planes: names of the planes, () for a single label of indices.
        background: value of pixels without any object, one for each plane, or a single index.
        values: of each class, likewise, in order of priority, the highest last; names as `key_of` gives them.
    """

    planes: tuple[str, ...]
    background: Values
    values: dict[str, Values]

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the images of a label lie within the output folder: by plane, or all in the folder itself."""
        return self.planes or ("",)

    def rank(self, label: str) -> int | None:
        """Place of a class in the order of priority from 1 on, None where the mapping does not know it."""
        names = list(self.values)
        key = key_of(label)
        key = key if key in self.values else OTHERS
        return names.index(key) + 1 if key in self.values else None

    @property
    def unknown(self) -> Values:
        """The values of a pixel of which nothing is known."""
        return (IGNORE,) * len(self.background)

    @property
    def unknown_rank(self) -> int:
        """The rank of such pixels, above all classes."""
        return len(self.values) + 1

    @property
    def table(self) -> NDArray[np.uint8]:
        """uint8 ``(2 + classes, max(1, planes))``: values by rank, those of the background first, unknown last."""
        return np.array([self.background, *self.values.values(), self.unknown], np.uint8)

    def line_for(self, label: str) -> str:
        """A line of YAML that would map ``label``: off the road, or to the first index that is free."""
        taken = {IGNORE, *self.background, *(v for values in self.values.values() for v in values)}
        free = next((index for index in range(IGNORE) if index not in taken), 0)
        value = f"{{{', '.join(f'{plane}: 0' for plane in self.planes)}}}" if self.planes else str(free)
        plain = re.fullmatch(r"[^\W\d]([\w -]*\w)?", label) and yaml.safe_load(label) == label
        return f"{label if plain else json.dumps(label, ensure_ascii=False)}: {value}"


THINGS = """
sidewalk, pavement, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, traffic sign, vegetation,
terrain, grass, sky, rail track, ego vehicle, hood, person, pedestrian, rider, car, truck, bus, caravan, trailer, train,
motorcycle, bicycle, vehicle, obstacle, cone, license plate, background
"""
UNKNOWN = """
void, ignore, unknown, unlabeled, unlabelled, out of roi, rectification border, static, dynamic, ground, parking
"""

DEFAULT_CLASSES = Classes(
    KNOWN_PLANES,
    (0, 0),
    {
        "not ego": (IGNORE, 0),  # so that the labels of `LANE_CLASSES` have a way back
        **dict.fromkeys(
            ("freespace", "free space", "road", "street", "road surface", "drivable", "drivable area"), (1, IGNORE)
        ),
        **dict.fromkeys(("ego", "ego road", "ego lane", "alternative", "direct"), (1, 1)),
        **{name.strip(): (0, 0) for name in THINGS.split(",")},
        **{name.strip(): (IGNORE, IGNORE) for name in UNKNOWN.split(",")},
    },
)
"""Names that the formats here and many a project use. Where only the road is labelled, what of it is ``ego`` is unknown."""

LANE_CLASSES = replace(DEFAULT_CLASSES, background=(IGNORE, 0))
"""For BDD100K, which labels only what the ego vehicle may use: elsewhere there may be road, but none that is ``ego``."""


def default_classes(name: str) -> Classes:
    """The mapping for the format ``name`` where none is given."""
    return LANE_CLASSES if name == "bdd100k" else DEFAULT_CLASSES


def key_of(label: str) -> str:
    return " ".join(re.split(r"[\s_\-/]+", label.strip().lower()))


def read_classes(path: Path) -> Classes:
    """Read a mapping. Raises FileNotFoundError, and ValueError with everything that is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken YAML: {error}") from error
    if not isinstance(data, dict) or set(data) != {"background", "classes"} or not isinstance(data["classes"], dict):
        raise ValueError(f"{path}: a mapping has two keys, background and classes, and classes are names with values")
    if not data["classes"]:
        raise ValueError(f"{path}: there is no class")
    given = {"background": data["background"], **{f"classes.{name}": value for name, value in data["classes"].items()}}
    with_planes = isinstance(data["background"], dict)
    wrong = [f"{where}: {reason}" for where, value in given.items() if (reason := mistake(value, with_planes))]
    wrong += [f"classes.{name}: a name is text; put it in quotes" for name in data["classes"] if not isinstance(name, str)]
    names = Counter(key_of(str(name)) for name in data["classes"])
    wrong += [f"classes.{name}: stands there {count} times" for name, count in names.items() if count > 1]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")

    def values(value: Any) -> Values:
        return tuple(value.get(plane, IGNORE) for plane in KNOWN_PLANES) if with_planes else (value,)

    classes = {key_of(name): values(value) for name, value in data["classes"].items()}
    return Classes(KNOWN_PLANES if with_planes else (), values(data["background"]), classes)


def mistake(value: Any, with_planes: bool) -> str:
    """What is wrong with a value of a mapping, '' for nothing."""
    if not with_planes:
        return (
            "" if type(value) is int and 0 <= value <= 255 else f"wanted an index from 0 to 255 as for background, not {value}"
        )
    if not isinstance(value, dict) or set(value) - set(KNOWN_PLANES):
        return f"wanted values for {' and '.join(KNOWN_PLANES)} as for background, not {value}"
    bad = [v for v in value.values() if type(v) is not int or v not in (0, 1, IGNORE)]
    return f"a plane is 0, 1 or {IGNORE}, not {bad[0]}" if bad else ""


@dataclass(frozen=True)
class Label:
    """An annotation as pixels.

    Attributes:
        ranks: int32 ``(H, W)``, `Classes.rank` of the class that each pixel belongs to, 0 for the background.
        unmapped: how many objects each class has that the mapping does not know; their pixels are unknown.
        remarks: what had to be put right or left out.
    """

    ranks: NDArray[np.int32]
    unmapped: Counter[str]
    remarks: list[str]


def draw(annotation: Annotation, size: tuple[int, int], classes: Classes) -> Label:
    """Paint the regions of ``annotation`` on an image of ``size`` (width, height), by priority or, if layered, in turn.

    What is unsure is painted first, as unknown; objects of classes that are not mapped last, for they may hide any other.

    Raises:
        ValueError: an outline has no area, or pixels are unknown and the mapping uses `IGNORE` as the index of a class.
    """
    unmapped = Counter(region.label for region in annotation.regions if classes.rank(region.label) is None)
    painted = [(classes.rank(region.label) or classes.unknown_rank, region) for region in annotation.regions]
    if not annotation.layered:
        painted.sort(key=lambda pair: pair[0])
    painted.sort(key=lambda pair: not pair[1].unsure)
    ranks = np.zeros((size[1], size[0]), np.int32)
    remarks = list(annotation.left_out)
    for rank, region in painted:
        if region.unsure and tuple(classes.table[rank].tolist()) == classes.background:
            continue  # whatever its shape
        patch, repairs = rasterise(region, size)
        paint(ranks, patch, classes.unknown_rank if region.unsure else rank)
        remarks += repairs
    if not classes.planes and (ranks == classes.unknown_rank).any():
        taken = [name for name, (index,) in [("background", classes.background), *classes.values.items()] if index == IGNORE]
        if taken:
            raise ValueError(f"some pixels are unknown, and the mapping uses {IGNORE}, which would say so, for {taken[0]!r}")
    return Label(ranks, unmapped, remarks)


def regions_of(planes: NDArray[np.uint8], classes: Classes) -> list[Region]:
    """The regions of a label, uint8 ``(max(1, planes), H, W)``, without the background, in the order of priority.

    Where several classes have the same values it is taken to be the first. What is unknown is called `UNMAPPED` where no
    class says so, and is unknown again when it is read.

    Raises:
        ValueError: there is a value that no class has.
    """
    names: dict[Values, str] = {}
    for name, values in classes.values.items():
        if name != OTHERS:
            names.setdefault(values, name)
    if classes.rank(UNMAPPED) is None:
        names.setdefault(classes.unknown, UNMAPPED)
    regions = []
    covered = (planes == np.array(classes.background)[:, None, None]).all(axis=0)
    for values, name in names.items():
        if values == classes.background:
            continue
        mask = (planes == np.array(values)[:, None, None]).all(axis=0)
        covered |= mask
        regions += [Region(name, rings) for rings in outlines(mask)]
    if not covered.all():
        y, x = np.argwhere(~covered)[0]
        raise ValueError(f"the values {tuple(planes[:, y, x].tolist())} at pixel ({x}, {y}) are those of no class")
    return regions
