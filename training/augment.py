"""Augmentation for driving images: geometry on image and target together, then what light, weather and cameras do."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.datasets import IGNORE

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

GREY = (114, 114, 114)


def augment(image: U8, planes: U8, size: tuple[int, int], rng: np.random.Generator, gentle: bool = False) -> tuple[U8, U8]:
    """A random view of a labelled image.

    Args:
        image: ``(H, W, 3)`` BGR.
        planes: ``(K, H, W)`` targets, or `IGNORE`.
        size: (width, height) of what comes back.
        gentle: hardly zoom or turn: the image is a random view already.

    Returns:
        image ``(h, w, 3)`` and planes ``(K, h, w)``; what lies outside the source is grey and `IGNORE`.
    """
    matrix = random_view((image.shape[1], image.shape[0]), size, rng, gentle)
    view, targets = take_view(image, planes, matrix, size)
    return recolour(view, rng), targets


def take_view(image: U8, planes: U8, matrix: NDArray[np.float64], size: tuple[int, int]) -> tuple[U8, U8]:
    """Image and planes along an affine map source -> target pixels; what lies outside the source is `GREY` and `IGNORE`."""
    if np.hypot(matrix[0, 0], matrix[1, 0]) < 0.7:  # a bilinear warp that shrinks a lot skips pixels
        image = np.asarray(cv2.blur(image, (2, 2)), np.uint8)
    view = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=GREY)
    targets = np.stack([cv2.warpAffine(p, matrix, size, flags=cv2.INTER_NEAREST, borderValue=IGNORE) for p in planes])
    return np.asarray(view, np.uint8), np.asarray(targets, np.uint8)


def random_view(
    source: tuple[int, int], target: tuple[int, int], rng: np.random.Generator, gentle: bool = False
) -> NDArray[np.float64]:
    """Affine map source -> target pixels: stretch to the target, then flip, zoom, aspect, rotation and shift."""
    (sw, sh), (tw, th) = source, target
    least, most, turn_deg = (0.95, 1.15, 0.5) if gentle else (0.8, 1.8, 2.0)
    zoom = np.exp(rng.uniform(np.log(least), np.log(most)))
    aspect = np.exp(rng.uniform(-0.05, 0.05) if gentle else rng.uniform(-0.2, 0.2))
    zx, zy = zoom * np.sqrt(aspect), zoom / np.sqrt(aspect)
    angle = np.deg2rad(rng.normal(0, turn_deg))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    stretch = np.array([[tw / sw * zx * flip, 0.0], [0.0, th / sh * zy]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ stretch
    slack = np.array([abs(zx - 1) * tw / 2, abs(zy - 1) * th / 2])
    centre = np.array([tw / 2, th / 2]) + rng.uniform(-1, 1, 2) * slack
    shift = centre - linear @ np.array([sw / 2, sh / 2])
    return np.column_stack([linear, shift])


def recolour(image: U8, rng: np.random.Generator) -> U8:
    """Exposure, contrast, colour cast, night, shadow, glare, blur, noise and JPEG, each now and then."""
    x: Any = image.astype(np.float32) / 255.0
    if rng.random() < 0.8:
        x = np.clip(x, 0, 1) ** np.exp(rng.uniform(-0.5, 0.5)).astype(np.float32)
        x = (x - 0.45) * rng.uniform(0.65, 1.35) + 0.45 + rng.uniform(-0.12, 0.12)
    if rng.random() < 0.6:
        grey = x.mean(axis=2, keepdims=True)
        x = grey + (x - grey) * rng.uniform(0.0, 1.6)
        x = x * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    if x.mean() > 0.3 and rng.random() < 0.12:
        x = night(x, rng)
    if rng.random() < 0.2:
        x = cast_shadow(x, rng)
    if rng.random() < 0.1:
        x = glare(x, rng)
    if rng.random() < 0.15:
        x = haze(x, rng)
    if rng.random() < 0.25:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.3:
        x = x + rng.normal(0, rng.uniform(0.005, 0.06), x.shape).astype(np.float32)
    y: U8 = np.clip(x * 255.0 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, packed = cv2.imencode(".jpg", y, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        y = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return y


def night(x: F32, rng: np.random.Generator) -> F32:
    """Darkness with the headlamps' pool of light low in the middle, sodium or LED cast, and sensor noise."""
    h, w = x.shape[:2]
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    pool = np.exp(-(((u / w - rng.uniform(0.4, 0.6)) / 0.35) ** 2) - ((v / h - rng.uniform(0.7, 0.95)) / 0.3) ** 2)
    light = rng.uniform(0.08, 0.3) + rng.uniform(0.2, 0.5) * pool
    cast = np.array([rng.uniform(0.6, 1.1), rng.uniform(0.85, 1.0), rng.uniform(0.95, 1.15)], np.float32)
    dark = np.clip(x, 0, 1) ** 1.3 * light[..., None] * cast
    return np.asarray(dark + rng.normal(0, rng.uniform(0.005, 0.03), x.shape), np.float32)


def cast_shadow(x: F32, rng: np.random.Generator) -> F32:
    h, w = x.shape[:2]
    corners = rng.uniform([-0.2 * w, 0.3 * h], [1.2 * w, 1.1 * h], (int(rng.integers(3, 6)), 2)).astype(np.int32)
    shade = np.zeros((h, w), np.float32)
    cv2.fillPoly(shade, [cv2.convexHull(corners)], float(rng.uniform(0.3, 0.65)))
    return np.asarray(x * (1 - cv2.blur(shade, (5, 5)))[..., None], np.float32)


def glare(x: F32, rng: np.random.Generator) -> F32:
    h, w = x.shape[:2]
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    distance = np.hypot((u - rng.uniform(0, w)) / w, (v - rng.uniform(0, 0.7 * h)) / h)
    light = rng.uniform(0.4, 1.0) * np.exp(-((distance / rng.uniform(0.1, 0.35)) ** 2))
    return np.asarray(x + light[..., None], np.float32)


def haze(x: F32, rng: np.random.Generator) -> F32:
    """Fog or a dirty lens: towards grey, more so in the upper (farther) part."""
    depth = np.linspace(1.0, rng.uniform(0.1, 0.6), x.shape[0], dtype=np.float32)[:, None, None]
    amount = rng.uniform(0.15, 0.6) * depth
    return np.asarray(x * (1 - amount) + rng.uniform(0.4, 0.85) * amount, np.float32)
