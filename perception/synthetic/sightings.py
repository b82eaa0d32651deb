"""The other vehicles as the camera sees them."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from perception.synthetic.shapes import SHAPES
from perception.synthetic.traffic import Pose, Vehicle, traffic_of
from perception.synthetic.types import Array
from perception.synthetic.view import NEAR_M, View


class Sighting(NamedTuple):
    """A vehicle as the camera sees it.

    Attributes:
        vehicle, pose: which, and where.
        outlines: convex polygons, ``(N, 2)`` pixels; together the silhouette, with the shaded ground under the vehicle.
        limit: the image row, pixels, below which a crest hides it.
    """

    vehicle: Vehicle
    pose: Pose
    outlines: tuple[Array, ...]
    limit: float

    @property
    def ahead(self) -> float:
        """Distance of its middle along the road, metres."""
        return self.pose.ahead


def sightings_in(view: View) -> list[Sighting]:
    """The vehicles that are in front of the camera, far to near; some may lie beside the image or behind a crest."""
    found = []
    for vehicle in traffic_of(view.scene):
        pose, shape = vehicle.pose(view.t, view.road), SHAPES[vehicle.kind]
        reach = shape.lower.bottom[1]
        if pose.ahead + reach >= NEAR_M + 0.5:
            corners = [view.camera.project(view.base_from_road(pose.on_road(box.corners()))) for box in shape]
            outlines = tuple(cv2.convexHull(c.astype(np.float32))[:, 0].astype(np.float64) for c in corners)
            found.append(Sighting(vehicle, pose, outlines, view.row_limit(pose.ahead - reach)))
    return sorted(found, key=lambda sighting: -sighting.ahead)
