"""What vehicles measure: each is two boxes, one on top of the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perception.synthetic.types import Array


class Box(NamedTuple):
    """A convex part of a vehicle: a rectangle below, a rectangle above it. Metres: x forward, y left, z up."""

    bottom: tuple[float, float, float, float]  # rear x, front x, half width, z
    top: tuple[float, float, float, float]

    def corners(self) -> Array:
        """``(8, 3)``: rear right, rear left, front left, front right, below and then above."""
        return np.array(
            [
                (x, y, z)
                for rear, front, half, z in (self.bottom, self.top)
                for x, y in ((rear, -half), (rear, half), (front, half), (front, -half))
            ]
        )

    def face(self, name: str) -> Array:
        """``(4, 3)``: the corners of one of `FACES`, counter-clockwise as seen from outside, the first edge below."""
        return self.corners()[list(FACES[name])]


FACES = {
    "rear": (1, 0, 4, 5),
    "front": (3, 2, 6, 7),
    "left": (2, 1, 5, 6),
    "right": (0, 3, 7, 4),
    "top": (4, 7, 6, 5),
}


class Shape(NamedTuple):
    """A vehicle stands on the ground with its lower box: bonnet and boot, or chassis; the upper one is its cabin."""

    lower: Box
    upper: Box


SHAPES: dict[str, Shape] = {
    "car": Shape(
        Box((-2.15, 2.15, 0.90, 0.0), (-2.12, 2.05, 0.86, 0.88)),
        Box((-1.95, 0.95, 0.84, 0.88), (-1.25, 0.10, 0.64, 1.46)),
    ),
    "van": Shape(
        Box((-2.4, 2.4, 0.98, 0.0), (-2.4, 2.3, 0.96, 1.05)),
        Box((-2.4, 1.75, 0.95, 1.05), (-2.3, 0.95, 0.85, 2.05)),
    ),
    "truck": Shape(
        Box((-4.2, 4.2, 1.22, 0.0), (-4.2, 4.2, 1.22, 1.15)),
        Box((-4.2, 4.1, 1.22, 1.15), (-4.2, 4.0, 1.22, 3.35)),
    ),
}
