"""The ground in an MCAP file: what a 3D panel of Foxglove shows, in ``base_link``.

============================  ========================  =================================================================
topic                         schema                    content
============================  ========================  =================================================================
``/tf``                       foxglove.FrameTransform   where the camera sits: ``base_link`` to the frames' ``frame_id``
``/camera/calibration``       foxglove.CameraCalibration  of ``/camera/image``, so that panels can project onto it
``/freespace/ground``         foxglove.SceneUpdate      outlines, the vehicle, the end of the way ahead and its interval
``/freespace/scan``           foxglove.LaserScan        how far free ground reaches; as in REP 117 infinity where it does not
                                                        end within the range, NaN where the view ends before
``/freespace/occupancy``      foxglove.Grid             `Metres.occupancy`, twice a second at most; in colour, too
``/freespace/distances``      freespace/distances       numbers to be plotted; absent where they are not known
============================  ========================  =================================================================

A result that is not valid takes the ground away: an entity that says why, a scan without ranges, a grid that knows nothing.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from calibration.camera import Camera, DistortionModel
from perception.birdseye import AHEAD_COLOUR, VEHICLE_COLOUR, laser_ranges, vehicle, way_ahead
from perception.freespace import Freespace, Ground, Ring
from perception.metres import FREE, OCCUPIED, UNKNOWN, Metres
from perception.painting import EGO_COLOUR, OTHER_COLOUR, Colour

HOLE_COLOUR = (60, 60, 230)  # BGR
WARNING_COLOUR = (40, 40, 255)
CELL_M = 0.25  # side of the grid's cells
GRID_NS = 500_000_000  # between grids
NUMBER = {"type": "number"}
DISTANCES = {
    "title": "freespace/distances",
    "type": "object",
    "properties": dict.fromkeys(("area_m2", "ahead_m", "ahead_near_m", "ahead_far_m"), NUMBER),
}
MODELS: dict[DistortionModel, str] = {"equidistant": "kannala_brandt"}  # those that Foxglove calls otherwise
# A cell as it is written: red, green, blue, alpha, occupancy. Unknown ones cannot be seen.
CELL_FIELDS = ("red", "green", "blue", "alpha", "occupancy")
CELLS = {UNKNOWN: (0, 0, 0, 0), FREE: (*EGO_COLOUR[::-1], 90), OCCUPIED: (230, 60, 60, 200)}


class GroundChannels:
    """Logs the ground into a context of the SDK; nothing before `place`."""

    def __init__(self, context: Any) -> None:
        import foxglove
        from foxglove import channels

        self._transform = channels.FrameTransformChannel("/tf", context=context)
        self._calibration = channels.CameraCalibrationChannel("/camera/calibration", context=context)
        self._scene = channels.SceneUpdateChannel("/freespace/ground", context=context)
        self._scan = channels.LaserScanChannel("/freespace/scan", context=context)
        self._grid = channels.GridChannel("/freespace/occupancy", context=context)
        self._distances = foxglove.Channel("/freespace/distances", schema=DISTANCES, context=context)
        self._metres: Metres | None = None
        self.restart()

    def restart(self) -> None:
        """Begin another file: it is to be complete by itself."""
        self._gridded: tuple[bool, int] | None = None  # whether the newest grid is of a valid result, and its time

    def place(self, metres: Metres, frame_id: str, picture: tuple[int, int], at: int) -> None:
        """Say where the camera is whose frames are shown as pictures of ``(width, height)``."""
        self._metres = metres
        self._transform.log(transform(metres.camera, frame_id, at), log_time=at)
        self._calibration.log(calibration(metres.camera, frame_id, picture, at), log_time=at)

    def report(self, result: Freespace, at: int) -> None:
        """Log a result, stamped ``at`` nanoseconds."""
        if self._metres is None:
            return
        ground, frame_id = result.ground, self._metres.camera.mount.frame_id
        self._scene.log(scene(result, self._metres, at), log_time=at)
        self._scan.log(laser_scan(ground, frame_id, at), log_time=at)
        self._distances.log(orjson.dumps(distances(ground)), log_time=at)
        if self._gridded is None or self._gridded[0] != result.valid or not 0 <= at - self._gridded[1] < GRID_NS:
            self._grid.log(grid(self._metres.occupancy(result.polygons, CELL_M), self._metres, at), log_time=at)
            self._gridded = result.valid, at


def transform(camera: Camera, frame_id: str, at: int) -> Any:
    """foxglove.FrameTransform of the camera's optical frame in ``base_link``."""
    from foxglove.messages import FrameTransform, Quaternion, Vector3

    pose = camera.mount.base_from_camera
    turn = cv2.Rodrigues(pose[:3, :3])[0].ravel()
    angle = float(np.linalg.norm(turn))
    x, y, z = (turn * (math.sin(angle / 2) / angle if angle else 0.0)).tolist()
    return FrameTransform(
        timestamp=stamp(at),
        parent_frame_id=camera.mount.frame_id,
        child_frame_id=frame_id,
        translation=Vector3(**dict(zip("xyz", pose[:3, 3].tolist(), strict=True))),
        rotation=Quaternion(x=x, y=y, z=z, w=math.cos(angle / 2)),
    )


def calibration(camera: Camera, frame_id: str, picture: tuple[int, int], at: int) -> Any:
    """foxglove.CameraCalibration for frames that are shown as pictures of ``(width, height)``, as ROS writes it."""
    from foxglove.messages import CameraCalibration

    k = camera.intrinsics.scaled(picture)
    return CameraCalibration(
        timestamp=stamp(at),
        frame_id=frame_id,
        width=k.width,
        height=k.height,
        distortion_model=MODELS.get(k.distortion_model, k.distortion_model),
        D=list(k.distortion),
        K=k.matrix.ravel().tolist(),
        R=np.eye(3).ravel().tolist(),
        P=np.hstack([k.matrix, np.zeros((3, 1))]).ravel().tolist(),
    )


def laser_scan(ground: Ground | None, frame_id: str, at: int) -> Any:
    """foxglove.LaserScan of the boundary of free ground."""
    from foxglove.messages import LaserScan, Pose, Quaternion, Vector3

    pose = Pose(position=Vector3(), orientation=Quaternion(w=1.0))
    if ground is None:
        return LaserScan(timestamp=stamp(at), frame_id=frame_id, pose=pose)
    scan = ground.scan
    ranges = laser_ranges(scan)
    return LaserScan(
        timestamp=stamp(at),
        frame_id=frame_id,
        pose=pose,
        start_angle=scan.angle_min,
        end_angle=scan.angle_min + scan.angle_increment * (len(ranges) - 1),
        ranges=ranges.tolist(),
    )


def scene(result: Freespace, metres: Metres, at: int) -> Any:
    """foxglove.SceneUpdate: one entity, which replaces that of the result before."""
    from foxglove.messages import (
        LinePrimitive,
        LinePrimitiveLineType,
        Point3,
        Pose,
        Quaternion,
        SceneEntity,
        SceneUpdate,
        TextPrimitive,
        Vector3,
    )

    def line(points: Ring, bgr: Colour, closed: bool = False) -> Any:
        return LinePrimitive(
            type=LinePrimitiveLineType.LineLoop if closed else LinePrimitiveLineType.LineStrip,
            pose=Pose(position=Vector3(), orientation=Quaternion(w=1.0)),
            thickness=2.0,
            scale_invariant=True,
            points=[Point3(x=x, y=y, z=0.0) for x, y in points.tolist()],
            color=colour(bgr),
        )

    lines = [line(points, bgr, True) for points, bgr in ground_rings(result)]
    lines.append(line(vehicle(metres.config), VEHICLE_COLOUR, True))
    if result.ground:
        lines += [line(points, AHEAD_COLOUR) for points in way_ahead(result.ground, metres.config)]
    texts = []
    if not result.valid:
        where, red = (
            Pose(position=Vector3(x=metres.config.bumper_m + 5.0), orientation=Quaternion(w=1.0)),
            colour(WARNING_COLOUR),
        )
        text = TextPrimitive(pose=where, billboard=True, font_size=16.0, scale_invariant=True, color=red, text=warning(result))
        texts.append(text)
    frame_id = metres.camera.mount.frame_id
    entity = SceneEntity(timestamp=stamp(at), frame_id=frame_id, id="freespace", frame_locked=True, lines=lines, texts=texts)
    return SceneUpdate(entities=[entity])


def ground_rings(result: Freespace) -> list[tuple[Ring, Colour]]:
    """All rings on the ground, metres in ``base_link``, and their colours."""
    return [
        (ring, HOLE_COLOUR if n else EGO_COLOUR if polygon.ego else OTHER_COLOUR)
        for polygon in result.polygons
        for part in polygon.ground or []
        for n, ring in enumerate(part.rings)
    ]


def grid(occupancy: NDArray[np.int8], metres: Metres, at: int) -> Any:
    """foxglove.Grid of `Metres.occupancy`: the same rows and columns, of `CELL_FIELDS`."""
    from foxglove.messages import Grid, PackedElementField, PackedElementFieldNumericType, Pose, Quaternion, Vector2, Vector3

    cells = np.zeros((*occupancy.shape, len(CELL_FIELDS)), np.uint8)
    for value, rgba in CELLS.items():
        cells[occupancy == value] = (*rgba, value % 256)
    kinds = PackedElementFieldNumericType
    x, y = metres.occupancy_origin(CELL_M)
    return Grid(
        timestamp=stamp(at),
        frame_id=metres.camera.mount.frame_id,
        pose=Pose(position=Vector3(x=x, y=y, z=0.0), orientation=Quaternion(w=1.0)),
        column_count=occupancy.shape[1],
        cell_size=Vector2(x=CELL_M, y=CELL_M),
        row_stride=cells.strides[0],
        cell_stride=cells.strides[1],
        fields=[
            PackedElementField(name=name, offset=n, type=kinds.Int8 if name == "occupancy" else kinds.Uint8)
            for n, name in enumerate(CELL_FIELDS)
        ],
        data=cells.tobytes(),
    )


def distances(ground: Ground | None) -> dict[str, float]:
    """What is known of area and distance ahead; JSON has no infinity."""
    if ground is None:
        return {}
    known = {"area_m2": ground.area_m2}
    if ground.ahead:
        known |= {"ahead_m": ground.ahead.m, "ahead_near_m": ground.ahead.near_m, "ahead_far_m": ground.ahead.far_m}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def warning(result: Freespace) -> str:
    """What is to be shown where a result is not valid."""
    return " ".join([f"NOT VALID ({result.state}).", *(cause.text for cause in result.causes)])


def stamp(ns: int) -> Any:
    """Nanoseconds as a Foxglove time stamp."""
    from foxglove.messages import Timestamp

    return Timestamp(sec=ns // 1_000_000_000, nsec=ns % 1_000_000_000)


def colour(bgr: Colour) -> Any:
    from foxglove.messages import Color

    blue, green, red = (level / 255 for level in bgr)
    return Color(r=red, g=green, b=blue, a=1.0)
