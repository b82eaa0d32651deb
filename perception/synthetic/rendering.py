"""One frame of a drive: the geometry first, then the truth and the picture of it."""

from __future__ import annotations

from perception.synthetic.paint.image import paint_image
from perception.synthetic.scene import Scene
from perception.synthetic.sightings import sightings_in
from perception.synthetic.truth import Rendered, edges_of, mask_beside_vehicles
from perception.synthetic.view import View


def render(scene: Scene, index: int) -> Rendered:
    """The frame ``index`` of a scene, at ``index / scene.fps`` seconds. Frames need no order; they share textures.

    Raises:
        ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"frame index must not be negative, got {index}")
    view = View(scene, index)
    sightings = sightings_in(view)
    planes = {plane: view.road_mask(*edges) for plane, edges in edges_of(scene.road).items()}
    image = paint_image(view, sightings, planes["freespace"])
    clear = mask_beside_vehicles(view.camera, sightings)
    masks = {plane: mask & clear for plane, mask in planes.items()}
    return Rendered(scene, index, view.camera, image, masks, view, sightings)
