"""The pinhole camera and where it sits on the vehicle.

Pixels: ``u`` right, ``v`` down, (0, 0) the centre of the top-left pixel. Camera optical frame: x right, y down, z
forward. ``base_link`` (REP-103): x forward, y left, z up, its origin on the ground straight below the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, and its pose in ``base_link``.

    Attributes:
        fx, fy: focal lengths, pixels.
        cx, cy: principal point, pixels.
        width, height: image size, pixels.
        height_m: height of the optical centre above the ground, metres.
        pitch: rotation about base_link's y axis, radians; positive looks down. Roll and yaw are zero.

    Raises:
        ValueError: a focal length, the image size or the height is not positive, or the pitch is beyond a quarter turn.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    height_m: float
    pitch: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fx", "fy", "width", "height", "height_m"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"camera {name} must be positive, not {value}")
        if not abs(self.pitch) < math.pi / 2:
            raise ValueError(f"camera pitch must lie within a quarter turn, in radians, not {self.pitch}")

    @property
    def base_from_camera(self) -> Array:
        """float64 ``(4, 4)``: homogeneous transform from the camera's optical frame to ``base_link``."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        return np.array(
            [
                [0.0, -s, c, 0.0],  # columns: the optical axes right, down, forward, then the optical centre
                [-1.0, 0.0, 0.0, 0.0],
                [0.0, -c, -s, self.height_m],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )

    @property
    def camera_from_base(self) -> Array:
        """float64 ``(4, 4)``: the inverse of `base_from_camera`."""
        rotation = self.base_from_camera[:3, :3].T
        inverse = np.eye(4)
        inverse[:3, :3] = rotation
        inverse[:3, 3] = -rotation @ self.base_from_camera[:3, 3]
        return inverse

    def project(self, points_base: ArrayLike) -> Array:
        """Pixels of points in ``base_link``.

        Args:
            points_base: ``(N, 3)`` metres in ``base_link``.

        Returns:
            float64 ``(N, 2)`` pixels (u, v), also outside the image; NaN for points not in front of the camera.
        """
        camera_from_base = self.camera_from_base
        points = np.asarray(points_base, np.float64).reshape(-1, 3) @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
        depth = np.where(points[:, 2] > 0, points[:, 2], np.nan)
        return np.stack([self.cx + self.fx * points[:, 0] / depth, self.cy + self.fy * points[:, 1] / depth], axis=1)

    def pixel_rays(self, pixels: ArrayLike) -> Array:
        """Directions in ``base_link`` in which pixels look.

        Args:
            pixels: ``(N, 2)`` pixels (u, v).

        Returns:
            float64 ``(N, 3)``, scaled to one metre of depth along the optical axis, so that the optical centre plus
            ``depth * ray`` is the point at that depth.
        """
        uv = np.asarray(pixels, np.float64).reshape(-1, 2)
        rays = np.stack([(uv[:, 0] - self.cx) / self.fx, (uv[:, 1] - self.cy) / self.fy, np.ones(len(uv))], axis=1)
        return np.asarray(rays @ self.base_from_camera[:3, :3].T)
