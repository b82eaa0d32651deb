"""What a drive is, and how a URI names it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import parse_qsl

from calibration.camera import Camera, Intrinsics, Mount
from perception.errors import BadInput
from perception.synthetic.road import LIGHTS, ROADS, LightName, Road

SCHEME = "synthetic"


@dataclass(frozen=True)
class Scene:
    """A drive; everything in it follows from these values.

    Attributes:
        name: one of `ROADS`: the road and its traffic.
        width, height: image size, pixels.
        fps: frames per second of the drive.
        seconds: how long the drive takes.
        seed: of everything that is left to chance.
        light: ``day``, ``dusk`` or ``night``; None takes the road's own.
        cars: number of other vehicles; None takes the road's own.
    """

    name: str = "drive"
    width: int = 1280
    height: int = 720
    fps: float = 25.0
    seconds: float = 10.0
    seed: int = 0
    light: LightName | None = None
    cars: int | None = None

    @property
    def road(self) -> Road:
        return ROADS[self.name]

    @property
    def frame_count(self) -> int:
        return max(1, round(self.seconds * self.fps))

    @property
    def camera(self) -> Camera:
        """The dashboard camera: 65 degrees wide, 1.45 m above the ground, looking down a little."""
        # A tall image gets a longer focal length, or its lower rows would look at the bonnet.
        focal = max(0.78 * self.width, 1.0 * self.height)
        centre = ((self.width - 1) / 2, (self.height - 1) / 2)
        return Camera(Intrinsics(focal, focal, *centre, self.width, self.height), Mount(height_m=1.45, pitch=0.05))


def scene_from_uri(uri: str) -> Scene:
    """The scene that a URI such as ``synthetic://curve?size=640x360&fps=30&seconds=4&seed=3&light=dusk&cars=2`` names.

    Raises:
        BadInput: an unknown scene or key, or a value out of its range; the sentence names it and what there is.
    """
    start, _, rest = uri.partition("://")
    if start != SCHEME:
        raise BadInput(f"{uri}: a synthetic drive is written {SCHEME}://NAME, with NAME one of {', '.join(ROADS)}")
    name, _, query = rest.partition("?")
    name = name.strip("/") or Scene.name
    if name not in ROADS:
        raise BadInput(f"{uri}: there is no synthetic scene '{name}', only {', '.join(ROADS)}")
    values: dict[str, int | float | str] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key == "size":
            across, _, down = text.partition("x")
            wanted = "WIDTHxHEIGHT between 16x16 and 7680x4320"
            values["width"] = _number(uri, key, text, 16, 7680, wanted, across)
            values["height"] = _number(uri, key, text, 16, 4320, wanted, down)
        elif key == "fps":
            values[key] = _number(uri, key, text, 0.1, 1000.0, "a number between 0.1 and 1000")
        elif key == "seconds":
            values[key] = _number(uri, key, text, 0.001, 86400.0, "a number above 0, up to 86400")
        elif key == "seed":
            values[key] = _number(uri, key, text, 0, 2**31 - 1, "a whole number between 0 and 2147483647")
        elif key == "cars":
            values[key] = _number(uri, key, text, 0, 30, "a whole number between 0 and 30")
        elif key == "light":
            if text not in LIGHTS:
                raise BadInput(f"{uri}: light must be one of {', '.join(LIGHTS)}, not '{text}'")
            values[key] = text
        else:
            raise BadInput(f"{uri}: unknown key '{key}'; known are size, fps, seconds, seed, light and cars")
    return Scene(name, **values)  # type: ignore[arg-type]


def _number(uri: str, key: str, text: str, low: float, high: float, wanted: str, part: str | None = None) -> float:
    """``text``, or a part of it, as a number of the type of ``low``, within [low, high]; `BadInput` otherwise."""
    try:
        value = type(low)(text if part is None else part)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise BadInput(f"{uri}: {key} must be {wanted}, not '{text}'")
    return value
