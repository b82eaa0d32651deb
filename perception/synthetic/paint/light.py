"""Day, dusk and night, and how the distance fades things."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perception.synthetic.road import LightName
from perception.synthetic.scene import Scene
from perception.synthetic.types import Colour


class Light(NamedTuple):
    """What the light makes of a scene.

    Attributes:
        zenith, horizon: colours of the sky.
        haze: what far things fade into.
        range_m: distance at which they have faded by 63 percent; at night the reach of the headlights.
        tint: what the light does to every colour, a factor per channel.
        cloud: colour of the clouds.
        grain: standard deviation of the sensor's noise, grey levels.
        lamps: whether vehicles have their lights on.
        headlights: whether it is so dark that we see by our own.
    """

    zenith: Colour
    horizon: Colour
    haze: Colour
    range_m: float
    tint: Colour
    cloud: Colour
    grain: float
    lamps: bool = False
    headlights: bool = False

    def faded(self, distance: float) -> float:
        """Share of the haze in what is seen at a distance, metres: 0 to 1."""
        return float(1 - np.exp(-max(distance, 0.0) / self.range_m))


_LIGHTS: dict[LightName, Light] = {
    "day": Light(
        zenith=(205, 150, 96),
        horizon=(236, 222, 205),
        haze=(214, 204, 192),
        range_m=700.0,
        tint=(1.0, 1.0, 1.0),
        cloud=(244, 242, 240),
        grain=2.0,
    ),
    "dusk": Light(
        zenith=(122, 84, 70),
        horizon=(118, 158, 226),
        haze=(112, 116, 140),
        range_m=380.0,
        tint=(0.56, 0.50, 0.50),
        cloud=(116, 112, 160),
        grain=3.5,
        lamps=True,
    ),
    "night": Light(
        zenith=(46, 34, 26),
        horizon=(58, 48, 42),
        haze=(30, 24, 20),
        range_m=55.0,
        tint=(0.98, 1.10, 1.16),
        cloud=(48, 40, 36),
        grain=5.5,
        lamps=True,
        headlights=True,
    ),
}


def light_of(scene: Scene) -> Light:
    return _LIGHTS[scene.light or scene.road.light]
