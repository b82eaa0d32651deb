"""What vehicles are painted like: panels, wheels, windows, lamps."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from perception.synthetic.shapes import SHAPES, Box, Shape
from perception.synthetic.types import Array, Colour

SHADES = {"rear": 0.82, "front": 0.9, "left": 0.72, "right": 0.66, "top": 1.12}  # of the faces, lit from above
SKIRT_M = 0.22  # height up to which a vehicle is black
RED_LIGHT: Colour = (70.0, 60.0, 255.0)
WHITE_LIGHT: Colour = (225.0, 245.0, 255.0)


class Piece(NamedTuple):
    """A painted polygon: ``(N, 3)`` metres in the vehicle's frame, its colour, and of a lamp the light it gives."""

    points: Array
    colour: Colour
    light: Colour | None = None


class _Detail(NamedTuple):
    """A rectangle on a face: left, right, low and high end as shares of the face; of a lamp the light it gives."""

    colour: Colour
    extent: tuple[float, float, float, float]
    light: Colour | None = None


def _lower_details(rear_lamps: tuple[float, float]) -> dict[str, list[_Detail]]:
    """Bumper or grille, number plate and lamps; rear ones have the heights ``rear_lamps``."""
    lamps = [(0.03, 0.2), (0.8, 0.97)]
    return {
        "rear": [
            _Detail((34, 33, 33), (0.02, 0.98, 0.0, 0.24)),
            _Detail((200, 206, 208), (0.37, 0.63, 0.34, 0.5)),
            *(_Detail((40, 36, 170), (*sides, *rear_lamps), RED_LIGHT) for sides in lamps),
        ],
        "front": [
            _Detail((34, 33, 33), (0.22, 0.78, 0.08, 0.5)),
            _Detail((206, 210, 212), (0.4, 0.6, 0.12, 0.26)),
            *(_Detail((222, 224, 224), (*sides, 0.5, 0.76), WHITE_LIGHT) for sides in lamps),
        ],
    }


_LOWER = {"car": _lower_details((0.55, 0.82)), "van": _lower_details((0.4, 0.7)), "truck": _lower_details((0.4, 0.7))}

_GLASS: Colour = (66.0, 56.0, 48.0)
_SKY_IN_GLASS: Colour = (112, 100, 88)
_CAR_SIDE = [_Detail(_GLASS, (0.06, 0.46, 0.14, 0.88)), _Detail(_GLASS, (0.51, 0.94, 0.14, 0.88))]
_CAR_SCREEN = [_Detail(_GLASS, (0.08, 0.92, 0.12, 0.9)), _Detail(_SKY_IN_GLASS, (0.08, 0.92, 0.7, 0.9))]
_VAN_SCREEN = [_Detail(_GLASS, (0.1, 0.9, 0.42, 0.88)), _Detail(_SKY_IN_GLASS, (0.1, 0.9, 0.74, 0.88))]
_UPPER: dict[str, dict[str, list[_Detail]]] = {
    "car": {"rear": _CAR_SCREEN, "front": _CAR_SCREEN, "left": _CAR_SIDE, "right": _CAR_SIDE},
    "van": {
        "rear": _VAN_SCREEN,
        "front": _VAN_SCREEN,
        "left": [_Detail(_GLASS, (0.02, 0.38, 0.2, 0.8))],
        "right": [_Detail(_GLASS, (0.62, 0.98, 0.2, 0.8))],
    },
    "truck": {
        "rear": [_Detail((90, 92, 94), (0.49, 0.51, 0.0, 1.0))],  # between the doors
        "front": [_Detail(_GLASS, (0.06, 0.94, 0.1, 0.5))],
    },
}


@lru_cache(maxsize=64)
def body(kind: str, colour: Colour) -> tuple[Piece, ...]:
    """The pieces of a vehicle, back to front."""
    shape, paint = SHAPES[kind], np.asarray(colour)
    sill = (*shape.lower.bottom[:3], SKIRT_M)
    skirt, shell = Box(shape.lower.bottom, sill), Box(sill, shape.lower.top)
    pieces = [Piece(skirt.face(name), (14, 13, 13)) for name in ("rear", "front", "left", "right")]
    for name, shade in SHADES.items():
        face = shell.face(name)
        pieces.append(Piece(face, _colour(paint * shade)))
        if name in ("left", "right"):
            pieces.append(Piece(_part(face, (0, 1, 0, 0.3)), _colour(paint * shade * 0.8)))
            pieces += _wheels(shape, name, 120.0 if kind == "car" else 60.0)
        pieces += [Piece(_part(face, detail.extent), detail.colour, detail.light) for detail in _LOWER[kind].get(name, [])]
    if kind == "truck":
        paint = paint * 0.4 + 120  # its tarpaulin
    for name, shade in SHADES.items():
        face = shape.upper.face(name)
        pieces.append(Piece(face, _colour(paint * shade)))
        pieces += [Piece(_part(face, detail.extent), detail.colour) for detail in _UPPER[kind].get(name, [])]
    return tuple(pieces)


def _colour(values: Array) -> Colour:
    blue, green, red = np.minimum(values, 255).tolist()
    return blue, green, red


def _part(face: Array, extent: tuple[float, float, float, float]) -> Array:
    """``(4, 3)``: a rectangle on a face, from its ends left, right, low and high as shares of the face."""
    u0, u1, v0, v1 = extent
    ends = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
    weights = np.array([[(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v] for u, v in ends])
    return np.asarray(weights @ face)


def _wheels(shape: Shape, side: str, rim: float) -> list[Piece]:
    """Tyres and rims of grey ``rim`` on the left or right side."""
    rear, front, half, _ = shape.lower.bottom
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    y = np.full(len(turn), (half if side == "left" else -half) * 1.005)
    pieces = []
    for at in (0.19, 0.80):
        for radius, grey in ((0.34, 18.0), (0.2, rim)):
            x = rear + (front - rear) * at
            disc = np.stack([x + radius * np.cos(turn), y, 0.34 + radius * np.sin(turn)], axis=1)
            pieces.append(Piece(disc if side == "right" else disc[::-1], (grey, grey, grey)))
    return pieces
