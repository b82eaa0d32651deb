"""A rendered drive with exact ground truth: for demonstrations, tests and measurements without any recording.

The world is a road with a heading ``psi(s)`` and an elevation ``h(s)`` by its arc length ``s``, and an offset ``d``
from its centre line, positive to the left; traffic keeps right. The ego vehicle follows its lane, and ``base_link``
turns and tips with the road, so that seen from it the road surface is a profile ``z(x)`` of the forward distance alone.
With a camera that neither rolls nor yaws, the rays of one image row then meet the surface at one distance, the first
one, and ``y`` is linear along the row: a frame is rendered row by row, and what a crest hides is exact. Slopes are
small angles: the profile is sheared, not rotated, and an offset is laid out along ``y``, as ``d / cos(psi)``.

A frame is a function of the scene and of the frame's index, so that frames can be rendered in any order.

Where to look:
    ``scene``, ``road``: what a drive is, its URI, and the roads there are to choose from.
    ``course``, ``traffic``, ``shapes``: the world: how the road runs, who else drives on it, what vehicles measure.
    ``view``, ``sightings``: road and vehicles as the camera sees them at one moment.
    ``rendering``, ``truth``: a frame, and the masks, polygons and metres that belong to it.
    ``paint``: what the image looks like; nothing in it is ground truth.
    ``chance``, ``types``: random numbers and array types.
"""

from __future__ import annotations

from perception.synthetic.rendering import render
from perception.synthetic.road import LIGHTS, ROADS
from perception.synthetic.scene import Scene, scene_from_uri
from perception.synthetic.truth import PLANES, Rendered

__all__ = ["LIGHTS", "PLANES", "ROADS", "Rendered", "Scene", "render", "scene_from_uri"]
