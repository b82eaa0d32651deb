"""Which views of a board a calibration still wants: the measures of ROS's ``camera_calibration``, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.boards import Board, View

Array = NDArray[np.float64]

NEW = 0.2  # sum of the differences in all measures, from which on a view is another one (ROS's number)
SHARPER = 0.8  # of a like view's blur: then it takes that one's place
STEADY = 0.002  # of the image's width: a corner that moves farther from one frame to the next was not at rest
WANTED_VIEWS = 15
MOST_VIEWS = 60
LEFT_TO_RIGHT = (0.2, 0.8)  # how far to the borders boards should come
LARGEST = 0.45  # square root of the part of the image that the nearest board should fill
DISTANCES = 1.5  # between the nearest and the farthest view
TILT = 0.35  # radians, to all sides


def measure(board: Board, view: View) -> Array:
    """Where a board is and how it is held: ``(x, y, size, turn, nod)``.

    ``x`` is 0 where the corners touch the left border and 1 at the right, ``y`` likewise from top to bottom; ``size`` is the
    square root of the part of the image within the corners' hull; ``turn`` and ``nod`` are the tilt out of the image plane in
    radians, positive where the left, or the upper, edge is the nearer one. The tilt follows from the foreshortening at the
    board's middle, so that no focal length is needed; a lens that squeezes its border tilts boards there.
    """
    width, height = view.size
    low, high = view.pixels.min(axis=0), view.pixels.max(axis=0)
    before, behind = np.maximum(low, 0.0), np.maximum(np.array(view.size) - 1.0 - high, 0.0)
    x, y = before / np.maximum(before + behind, 1e-9)
    area = cv2.contourArea(cv2.convexHull(view.pixels.astype(np.float32)))
    plane = board.points[view.ids, :2] / board.square_m
    plane = plane - plane.mean(axis=0)
    homography, _ = cv2.findHomography(plane, view.pixels)
    if homography is None:
        return np.array([x, y, np.sqrt(area / (width * height)), 0.0, 0.0])
    u, v, w = homography @ (0.0, 0.0, 1.0)
    slopes = (homography[:2, :2] - np.outer((u / w, v / w), homography[2, :2])) / w  # pixels per square
    directions, stretch, _ = np.linalg.svd(slopes)
    tilt = float(np.arccos(np.clip(stretch[1] / max(stretch[0], 1e-12), 0.0, 1.0)))
    squeezed = directions[:, 1]
    nearness = np.linalg.inv(homography)[2, :2]  # how the inverse of the depth grows along u and v, up to a factor
    nearness = nearness * np.sign(np.linalg.inv(homography)[2] @ (u / w, v / w, 1.0))
    turn, nod = -tilt * squeezed * (1.0 if nearness @ squeezed > 0 else -1.0)
    return np.array([x, y, np.sqrt(area / (width * height)), turn, nod])


def offer(board: Board, kept: Sequence[View], view: View) -> list[View]:
    """The kept views with ``view``, if it shows the board in another way than each of them, or sharper than a like one."""
    if view.trouble:
        return list(kept)
    here = measure(board, view)
    distances = [float(np.abs(here - measure(board, other)).sum()) for other in kept]
    if not distances or min(distances) > NEW:
        return [*kept, view]
    nearest = int(np.argmin(distances))
    if view.blur_px < SHARPER * kept[nearest].blur_px:
        return [view if i == nearest else other for i, other in enumerate(kept)]
    return list(kept)


def thin_out(board: Board, views: Sequence[View], most: int = MOST_VIEWS) -> list[View]:
    """At most ``most`` of the views, as different as can be: each next one the farthest from those taken (Gonzalez 1985)."""
    if len(views) <= most:
        return list(views)
    measures = np.array([measure(board, view) for view in views])
    taken = [0]
    distance = np.abs(measures - measures[0]).sum(axis=1)
    while len(taken) < most:
        taken.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.abs(measures - measures[taken[-1]]).sum(axis=1))
    return [views[i] for i in sorted(taken)]


def steady(before: View | None, view: View) -> bool:
    """Whether the board was at rest between two frames that follow each other."""
    if before is None:
        return False
    common, here, there = np.intersect1d(view.ids, before.ids, return_indices=True)
    if not len(common):
        return False
    return bool(np.hypot(*(view.pixels[here] - before.pixels[there]).T).max() < STEADY * view.size[0])


def missing(board: Board, views: Sequence[View]) -> list[str]:
    """What to show the camera next, as sentences; empty where enough was seen."""
    if not views:
        return ["hold the board so that all of it is in the picture, and keep it still"]
    x, y, size, turn, nod = np.array([measure(board, view) for view in views]).T
    first, last = LEFT_TO_RIGHT
    wanted = [
        (x.min() > first, "move the board to the left border of the picture"),
        (x.max() < last, "move the board to the right border of the picture"),
        (y.min() > first, "move the board to the upper border of the picture"),
        (y.max() < last, "move the board to the lower border of the picture"),
        (size.max() < LARGEST, "bring the board nearer, until it fills a quarter of the picture"),
        (size.max() < DISTANCES * size.min(), "show the board from farther away as well as from near"),
        (turn.max() < TILT, "tilt the board: its left edge towards the camera"),
        (turn.min() > -TILT, "tilt the board: its right edge towards the camera"),
        (nod.max() < TILT, "tilt the board: its upper edge towards the camera"),
        (nod.min() > -TILT, "tilt the board: its lower edge towards the camera"),
    ]
    said = [sentence for lacking, sentence in wanted if lacking]
    if not said and len(views) < WANTED_VIEWS:
        said.append(f"show the board in {WANTED_VIEWS - len(views)} more places and tilts")
    return said
