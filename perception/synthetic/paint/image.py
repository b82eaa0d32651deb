"""The camera's image, painted from far to near."""

from __future__ import annotations

import numpy as np

from perception.synthetic.paint.background import paint_background
from perception.synthetic.paint.ground import paint_ground
from perception.synthetic.paint.lamps import Lamp, dim_to_headlights, paint_lamps
from perception.synthetic.paint.light import light_of
from perception.synthetic.paint.roadside import Thing, paint_thing, things_in
from perception.synthetic.paint.sensor import through_sensor
from perception.synthetic.paint.vehicles import paint_vehicle
from perception.synthetic.sightings import Sighting
from perception.synthetic.types import Image
from perception.synthetic.view import View


def paint_image(view: View, sightings: list[Sighting], road: Image) -> Image:
    """The camera's image, uint8 ``(H, W, 3)`` BGR. ``road`` is the road's mask without vehicles."""
    image = np.empty((view.camera.intrinsics.height, view.camera.intrinsics.width, 3), np.uint8)
    paint_background(view, image)
    paint_ground(view, image)
    lamps: list[Lamp] = []
    to_paint: list[Thing | Sighting] = [*things_in(view), *sightings]
    for item in sorted(to_paint, key=lambda item: -item.ahead):
        if isinstance(item, Sighting):
            lamps += paint_vehicle(view, image, item)
        else:
            paint_thing(view, image, road, item)
    if light_of(view.scene).headlights:
        dim_to_headlights(image, view.scene)
    paint_lamps(image, lamps, sightings)
    return through_sensor(view, image)
