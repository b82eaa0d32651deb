"""What is true of a frame: masks, polygons and metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import Polygon
from shapely.geometry.polygon import orient

from calibration.camera import Camera
from engine.contract import KNOWN_PLANES
from perception.synthetic.road import Road
from perception.synthetic.scene import Scene
from perception.synthetic.sightings import Sighting
from perception.synthetic.types import Array, Image, Single
from perception.synthetic.view import View

PLANES = KNOWN_PLANES


def edges_of(road: Road) -> dict[str, tuple[float, float]]:
    """Offsets, metres, of the right and the left edge of each of `PLANES`."""
    return {"freespace": (road.right, road.left), "ego": (road.right, road.ego_left)}


def mask_beside_vehicles(camera: Camera, sightings: list[Sighting]) -> Image:
    """uint8 ``(H, W)``: 0 where a pixel's centre lies on a vehicle, 255 elsewhere."""
    mask = np.full((camera.intrinsics.height, camera.intrinsics.width), 255, np.uint8)
    for sighting in sightings:
        for outline in sighting.outlines:
            _clear_convex(mask, outline, sighting.limit)
    return mask


def _clear_convex(mask: Image, outline: Array, limit: float) -> None:
    """Set to 0 the pixels whose centres lie within a convex outline and not below row ``limit``."""
    height, width = mask.shape
    u0, v0 = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
    u1, v1 = np.ceil(outline.max(axis=0)).astype(int) + 1
    u1, v1 = min(u1, width), min(v1, height, math.floor(limit) + 1)
    if u0 >= u1 or v0 >= v1:
        return
    us, vs = np.arange(u0, u1, dtype=np.float32), np.arange(v0, v1, dtype=np.float32)[:, None]
    inside = np.ones((v1 - v0, u1 - u0), bool)
    around = np.roll(outline, -1, axis=0) - outline
    area = np.sum(outline[:, 0] * np.roll(outline[:, 1], -1) - np.roll(outline[:, 0], -1) * outline[:, 1])
    for (pu, pv), (du, dv) in zip(outline, around * np.sign(area), strict=True):
        inside &= np.float32(du) * (vs - np.float32(pv)) >= np.float32(dv) * (us - np.float32(pu))
    mask[v0:v1, u0:u1][inside] = 0


@dataclass(frozen=True, eq=False)
class Rendered:
    """One frame and what is true of it.

    Attributes:
        scene, index: what was rendered.
        camera: intrinsics and pose in ``base_link``.
        image: uint8 ``(H, W, 3)``, BGR.
        masks: plane -> uint8 ``(H, W)``, 255 where a pixel's centre sees the plane: ``freespace`` is the road surface
            between its edges, both carriageways; ``ego`` the own carriageway. Vehicles are left out.
    """

    scene: Scene
    index: int
    camera: Camera
    image: Image
    masks: dict[str, Image]
    _view: View
    _sightings: list[Sighting]

    @cached_property
    def polygons(self) -> dict[str, list[Polygon]]:
        """The planes as polygons in pixels, from the geometry and not from the masks, largest first.

        Clipped to the image's rectangle [-0.5, W - 0.5] x [-0.5, H - 0.5]; vehicles are holes or notches. Exteriors run
        counter-clockwise as seen on the screen, interiors clockwise.
        """
        frame = shapely.box(-0.5, -0.5, self.camera.intrinsics.width - 0.5, self.camera.intrinsics.height - 0.5)
        hidden = shapely.union_all(
            [
                shapely.convex_hull(shapely.MultiPoint(outline)).intersection(shapely.box(-1e6, -1e6, 1e6, sighting.limit))
                for sighting in self._sightings
                for outline in sighting.outlines
            ]
        )
        found = {}
        for plane, edges in edges_of(self.scene.road).items():
            strips = [shapely.make_valid(strip).intersection(frame) for strip in self._view.strips(*edges)]
            parts = shapely.get_parts(shapely.union_all(strips).difference(hidden))
            # Slivers of less than a hundredth of a pixel are the rounding of edges that coincide.
            kept = [orient(part, sign=-1.0) for part in parts if isinstance(part, Polygon) and part.area > 0.01]
            found[plane] = sorted(kept, key=lambda part: -part.area)
        return found

    @cached_property
    def ground_polygons(self) -> dict[str, list[Polygon]]:
        """`polygons` with every vertex in metres on the ground, x and y in ``base_link``, up to 1500 m away.

        A vertex on a vehicle's outline lies where its ray meets the ground beyond, as with any polygon from an image.
        """
        return {
            plane: [shapely.transform(polygon, lambda pixels: self.metres(pixels)[:, :2]) for polygon in polygons]
            for plane, polygons in self.polygons.items()
        }

    def metres(self, pixels: NDArray[np.floating]) -> Array:
        """Where the rays of pixels first meet the ground, whatever stands in between.

        Args:
            pixels: ``(N, 2)`` pixels (u, v), at and below the bottom of the image too.

        Returns:
            float64 ``(N, 3)`` metres in ``base_link``; NaN above the skyline. On the edge of a crest, its near side.
        """
        uv = np.asarray(pixels, np.float64).reshape(-1, 2)
        # The topmost vertices of polygons lie on the skyline, to within rounding.
        top = float(self._view.skyline[-1])
        rows = np.where(np.abs(uv[:, 1] - top) < 1e-6, top, uv[:, 1])
        at_depth_1 = self.camera.pixel_rays(uv) / self.camera.intrinsics.rays(uv)[:, 2:]
        points = at_depth_1 * self._view.depth_of_rows(rows)[:, None]
        return np.asarray(points + np.array([0.0, 0.0, self.camera.mount.height_m]))

    @cached_property
    def ground(self) -> Single:
        """float32 ``(H, W, 2)``: x, y in ``base_link``, metres, of each pixel's ground; NaN on sky, vehicles."""
        view, camera = self._view, self.camera
        k = camera.intrinsics
        ground = np.full((k.height, k.width, 2), np.nan, np.float32)
        ground[view.first_row :, :, 0] = view.row_x[:, None]
        ground[view.first_row :, :, 1] = -np.multiply.outer(view.row_depth, (np.arange(k.width) - k.cx) / k.fx)
        ground[mask_beside_vehicles(camera, self._sightings) == 0] = np.nan
        return ground
