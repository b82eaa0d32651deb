"""What every reader gives and every writer takes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
LARGEST_PIXELS = 1 << 28  # of an image; more is a broken number
FARTHEST_PX = 1e6  # of a vertex from the image; likewise
DECIMALS = 4  # of written coordinates, pixels

MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    zlib.error,
    cv2.error,
    shapely.errors.ShapelyError,
)
"""What reading a file of another form than it should have may raise."""

Ring = NDArray[np.float64]


class Patch(NamedTuple):
    """A rectangle of pixels: ``mask`` bool ``(h, w)``, whose top-left pixel is (``left``, ``top``) of the image."""

    mask: NDArray[np.bool_]
    left: int
    top: int


@dataclass(frozen=True)
class Region:
    """One labelled region: either ``rings`` or ``bitmap``.

    Attributes:
        label: name of its class as in the file.
        rings: the exterior, then the holes, each float ``(n, 2)``, pixel centres at whole numbers, first point not repeated.
        bitmap: its pixels.
        unsure: whether its object lies somewhere within and no more is known, as within a box.
    """

    label: str
    rings: list[Ring] = field(default_factory=list)
    bitmap: Patch | None = None
    unsure: bool = False


@dataclass(frozen=True)
class Annotation:
    """Everything that is labelled on one image.

    Attributes:
        image: its file name, maybe with folders in front, maybe without suffix.
        size: (width, height) in pixels, None where the file does not say it.
        regions: in the order of the file.
        layered: whether later regions lie on top of earlier ones whatever their class.
        left_out: what the file holds besides, such as points and lines, for the user to know.
    """

    image: str
    size: tuple[int, int] | None
    regions: list[Region]
    layered: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """Name for files made from this one: that of the image without folders and suffix."""
        return stem_of(self.image)


class Entry(NamedTuple):
    """One image of an annotation file: ``where`` it stands ('' where the file is about one image), and how to read it.

    ``read`` raises one of `MALFORMED`; so one broken entry leaves the others whole.
    """

    where: str
    read: Callable[[], Annotation]


def stem_of(image: str) -> str:
    name = PurePosixPath(image.replace("\\", "/")).name
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def counted(number: int, noun: str) -> str:
    """``1 label``, ``2 labels``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def read_size(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) of an image, None where either is missing. Raises ValueError: no size that an image has."""
    if width is None or height is None:
        return None
    size = int(width), int(height)
    if size != (width, height) or min(size) < 1 or size[0] * size[1] > LARGEST_PIXELS:
        raise ValueError(f"the image's size is given as {width}x{height}")
    return size


def read_ring(points: ArrayLike) -> Ring:
    """Points ``(n, 2)`` that count from the image's corner, as our pixels; a repeated first point goes.

    Raises:
        ValueError: something else, or coordinates far away from any image.
    """
    ring = np.array(points, np.float64).reshape(-1, 2) if np.size(points) == 0 else np.array(points, np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(f"points of shape {ring.shape} are no outline; wanted pairs of x and y")
    if not np.all(np.abs(ring) < FARTHEST_PX):  # also where one is not a number
        raise ValueError("a coordinate lies far away from any image")
    if len(ring) > 1 and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    return ring - 0.5


def read_rectangle(points: ArrayLike) -> Ring:
    """Two opposite corners, as an outline. Raises ValueError: something else."""
    corners = np.array(points, np.float64)
    if corners.shape != (2, 2):
        raise ValueError(f"a rectangle has two corners, not {len(corners)}")
    (left, top), (right, bottom) = corners
    return read_ring([(left, top), (left, bottom), (right, bottom), (right, top)])


def written_ring(ring: Ring) -> list[list[float]]:
    """A ring as labelling tools count: from the image's corner."""
    points: list[list[float]] = np.round(ring + 0.5, DECIMALS).tolist()
    return points


def decode_bitmap(png: bytes) -> NDArray[np.bool_]:
    """Pixels of a PNG file that are set: not transparent, or, where it knows no transparency, not black.

    Raises:
        ValueError: it cannot be decoded.
    """
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if image is None:
        raise ValueError("a bitmap cannot be decoded as an image")
    if image.ndim == 2:
        return np.asarray(image != 0)
    return np.asarray(image[..., 3] != 0 if image.shape[2] == 4 else image.any(axis=2))
