"""Drawing with less than a pixel's precision: polygons, pictures in a rectangle, darkening."""

from __future__ import annotations

import math
from typing import TypeVar

import cv2
import numpy as np

from perception.synthetic.types import Array, Colour, Image, Single

Picture = TypeVar("Picture", Image, Single)


def fill_polygon(image: Image, outline: Array, colour: Colour | float) -> None:
    """Fill an outline, ``(N, 2)`` pixels, with soft edges."""
    sixteenths = np.clip(np.round(outline * 16), -(2**24), 2**24).astype(np.int32)
    cv2.fillPoly(image, [sixteenths], colour, cv2.LINE_AA, 4)


def dim(image: Image, keep: Image) -> None:
    """Multiply every channel of an image by ``keep / 255``, ``(H, W)``."""
    image[:] = cv2.multiply(image, cv2.merge([keep] * 3), scale=1 / 255)


def placed(
    picture: Picture, at: Array, before: tuple[float, float], after: tuple[float, float], size: tuple[int, int]
) -> tuple[tuple[slice, slice], Picture] | None:
    """Scale a picture to the rectangle from ``at - before`` to ``at + after``, pixels (u, v).

    Args:
        size: width and height of the image to place it in.

    Returns:
        The part of the image that the rectangle covers, and what the picture shows there; None for nothing.
    """
    (u, v), (left, up), (right, down) = at, before, after
    u0, v0 = max(math.ceil(u - left), 0), max(math.ceil(v - up), 0)
    u1, v1 = min(math.floor(u + right) + 1, size[0]), min(math.floor(v + down) + 1, size[1])
    if u0 >= u1 or v0 >= v1:
        return None
    step_u, step_v = picture.shape[1] / (left + right), picture.shape[0] / (up + down)
    move = np.array([[step_u, 0.0, (u0 - u + left) * step_u - 0.5], [0.0, step_v, (v0 - v + up) * step_v - 0.5]])
    patch = cv2.warpAffine(picture, move, (u1 - u0, v1 - v0), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return (slice(v0, v1), slice(u0, u1)), np.asarray(patch, picture.dtype)
