"""Pixels to metres and back on the flat ground, the plane z = 0 of ``base_link``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.camera import Camera

Array = NDArray[np.float64]


def horizon_row(camera: Camera) -> float:
    """The image row, pixels, where the flat ground vanishes; it may lie outside the image."""
    return camera.cy - camera.fy * math.tan(camera.pitch)


def ground_from_pixels(camera: Camera, pixels: ArrayLike) -> Array:
    """Where the rays of pixels meet the flat ground.

    Args:
        pixels: ``(N, 2)`` pixels (u, v).

    Returns:
        float64 ``(N, 2)`` metres in ``base_link`` (x forward, y left); NaN at and above the horizon.
    """
    rays = camera.pixel_rays(pixels)
    # A ray on the horizon falls by rounding error alone: it is level to 1e-12 of its length.
    falls = np.where(rays[:, 2] < -1e-12, -rays[:, 2], np.nan)
    return np.asarray(rays[:, :2] * (camera.height_m / falls)[:, None])


def pixels_from_ground(camera: Camera, points: ArrayLike) -> Array:
    """Pixels of points on the flat ground.

    Args:
        points: ``(N, 2)`` metres in ``base_link`` (x forward, y left).

    Returns:
        float64 ``(N, 2)`` pixels (u, v), also outside the image; NaN for points not in front of the camera.
    """
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    return camera.project(np.column_stack([xy, np.zeros(len(xy))]))
