"""ROS 2 messages from results, and frames from ROS 2 messages, without ROS: whoever calls brings the classes.

Every message about a frame has the stamp of that frame. What is in pixels has the frame's own ``frame_id``, what is in metres
that of the ground (``base_link``, REP-103: x forward, y left). A result that is not valid takes back what was said before: no
outline, a scan without ranges, a grid that knows nothing, a black mask.
"""

from __future__ import annotations

import array
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.camera import Camera, DistortionModel, Intrinsics
from perception.birdseye import laser_ranges
from perception.errors import BadInput, FreespaceError
from perception.frame import SECOND_NS
from perception.freespace import Freespace, Ring, State
from perception.overlay import draw
from perception.polygons import exact_mask
from perception.sinks.base import Output
from perception.sinks.ground_channels import WARNING_COLOUR, ground_rings, warning
from perception.status import Status

Types: TypeAlias = Callable[[str], Any]
"""Gives a message class by its name, such as ``sensor_msgs/msg/LaserScan``: those of rclpy or of rosbags."""

Image = NDArray[np.uint8]
Number: TypeAlias = float  # within `Messages` the name means its method

RINGS = 1_000_000  # ids kept for the rings of one polygon
NO_POLYGON = -1  # id of the message that says that there is no polygon
LINE_M = 0.1  # width of the markers' lines
JPEG_QUALITY = 80

OK, WARN, ERROR, STALE = "OK", "WARN", "ERROR", "STALE"  # constants of diagnostic_msgs/DiagnosticStatus
LEVELS: dict[State, str] = {
    "starting": WARN,
    "running": OK,
    "degraded": WARN,
    "stale": STALE,
    "blind": ERROR,
    "error": ERROR,
}


class Messages:
    """Builds messages; it remembers nothing of those before.

    Args:
        types: the classes to build from. Every field is given by keyword, and sequences of numbers as the classes want
            them: ``array.array`` for rclpy, numpy arrays for rosbags.
    """

    def __init__(self, types: Types) -> None:
        self._types = cache(types)
        self._of_rclpy = hasattr(self._types("std_msgs/msg/Header"), "get_fields_and_field_types")

    # -- Parts -----------------------------------------------------------------------------------------------------

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of the type ``package/Name``."""
        return self._types(name.replace("/", "/msg/"))(**fields)

    def numbers(self, values: NDArray[Any]) -> Any:
        """A sequence of numbers, flat, as the classes hold one."""
        if not self._of_rclpy:
            return np.ascontiguousarray(values).reshape(-1)
        sequence = array.array(values.dtype.char)
        sequence.frombytes(np.ascontiguousarray(values).tobytes())
        return sequence

    def time(self, stamp_ns: int) -> Any:
        """builtin_interfaces/Time."""
        seconds, nanoseconds = divmod(stamp_ns, SECOND_NS)
        return self.make("builtin_interfaces/Time", sec=seconds, nanosec=nanoseconds)

    def header(self, frame_id: str, stamp_ns: int) -> Any:
        """std_msgs/Header."""
        return self.make("std_msgs/Header", stamp=self.time(stamp_ns), frame_id=frame_id)

    def pose(self, x: Number = 0.0, y: Number = 0.0) -> Any:
        """geometry_msgs/Pose without a turn."""
        return self.make(
            "geometry_msgs/Pose",
            position=self.make("geometry_msgs/Point", x=x, y=y, z=0.0),
            orientation=self.make("geometry_msgs/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
        )

    def image(self, pixels: Image, encoding: str, result: Freespace) -> Any:
        """sensor_msgs/Image of uint8 ``(h, w)`` or ``(h, w, channels)``, about the frame of ``result``."""
        height, width, *channels = pixels.shape
        return self.make(
            "sensor_msgs/Image",
            header=self.header(result.frame_id, result.stamp_ns),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=width * math.prod(channels),
            data=self.numbers(pixels),
        )

    # -- Results ---------------------------------------------------------------------------------------------------

    def polygons(self, output: Output) -> list[Any]:
        """geometry_msgs/PolygonInstanceStamped, one for each ring.

        With ground they are in metres in the ground's frame, each part of a polygon within range a polygon of its own; else in
        pixels (x right, y down, (0, 0) the centre of the top-left one) with the ``frame_id`` of the image.

        ``id`` is ``polygon * 1_000_000 + ring``: ring 0 is the exterior, the others are holes in it. Where there is nothing,
        for example since the result is not valid, there is one message without points, its id -1: what was free is not any
        more.
        """
        result = output.result
        frame_id = ground_frame(output) or result.frame_id
        if result.ground:
            regions = [part.rings for polygon in result.polygons for part in polygon.ground or []]
        else:
            regions = [polygon.rings for polygon in result.polygons]
        rings = [(p * RINGS + r, ring) for p, region in enumerate(regions) for r, ring in enumerate(region)]
        return [
            self.make(
                "geometry_msgs/PolygonInstanceStamped",
                header=self.header(frame_id, result.stamp_ns),
                polygon=self.make("geometry_msgs/PolygonInstance", id=number, polygon=self.polygon(ring)),
            )
            for number, ring in rings or [(NO_POLYGON, np.empty((0, 2)))]
        ]

    def polygon(self, ring: Ring) -> Any:
        """geometry_msgs/Polygon of points ``(n, 2)``."""
        points = [self.make("geometry_msgs/Point32", x=x, y=y, z=0.0) for x, y in ring.tolist()]
        return self.make("geometry_msgs/Polygon", points=points)

    def polygons_json(self, output: Output | Freespace) -> Any:
        """std_msgs/String with the ``freespace/1`` object (`Freespace.to_json`): all that is known, in one message."""
        result = output.result if isinstance(output, Output) else output
        return self.make("std_msgs/String", data=result.to_json())

    def mask(self, output: Output) -> Any:
        """sensor_msgs/Image mono8 of the frame's size: 255 where free, else 0, as `perception.sinks.masks` writes it."""
        return self.image(exact_mask(output.scores, output.resampling, output.polygons), "mono8", output.result)

    def scores(self, output: Output) -> Any:
        """sensor_msgs/Image mono8 of the network's size: ``round(255 * p)``."""
        return self.image(output.scores, "mono8", output.result)

    def overlay(self, output: Output) -> Any:
        """sensor_msgs/Image bgr8: `perception.overlay.draw`."""
        return self.image(draw(output.frame.image, output.result, output.metres), "bgr8", output.result)

    def overlay_compressed(self, output: Output, quality: int = JPEG_QUALITY) -> Any:
        """sensor_msgs/CompressedImage: `overlay` as a JPEG of that quality, 1 to 100."""
        picture = draw(output.frame.image, output.result, output.metres)
        done, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise FreespaceError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels cannot be written as a JPEG")
        return self.make(
            "sensor_msgs/CompressedImage",
            header=self.header(output.result.frame_id, output.result.stamp_ns),
            format="bgr8; jpeg compressed bgr8",  # as image_transport writes it
            data=self.numbers(np.asarray(jpeg, np.uint8)),
        )

    def occupancy(self, output: Output, resolution_m: Number) -> Any:
        """nav_msgs/OccupancyGrid of `Metres.occupancy`; None without a calibrated camera."""
        metres, result = output.metres, output.result
        if metres is None:
            return None
        cells = metres.occupancy(result.polygons, resolution_m)
        info = self.make(
            "nav_msgs/MapMetaData",
            map_load_time=self.time(result.stamp_ns),
            resolution=resolution_m,
            width=cells.shape[1],
            height=cells.shape[0],
            origin=self.pose(*metres.occupancy_origin(resolution_m)),
        )
        header = self.header(metres.camera.mount.frame_id, result.stamp_ns)
        return self.make("nav_msgs/OccupancyGrid", header=header, info=info, data=self.numbers(cells))

    def scan(self, output: Output) -> Any:
        """sensor_msgs/LaserScan: how far free ground reaches from the origin of the ground's frame.

        As in REP 117 infinity means that it does not end within the range, NaN that nobody knows: the view ends before. Of a
        result that is not valid there are no ranges. None without a calibrated camera.
        """
        result, frame_id = output.result, ground_frame(output)
        if frame_id is None:
            return None
        scan = result.ground.scan if result.ground else None
        first, step, reach, ranges = 0.0, 0.0, 0.0, np.empty(0, np.float32)
        if scan:
            first, step, reach = scan.angle_min, scan.angle_increment, scan.range_max_m
            ranges = laser_ranges(scan).astype(np.float32)
        return self.make(
            "sensor_msgs/LaserScan",
            header=self.header(frame_id, result.stamp_ns),
            angle_min=first,
            angle_max=first + step * max(0, len(ranges) - 1),
            angle_increment=step,
            time_increment=0.0,
            scan_time=0.0,
            range_min=0.0,
            range_max=reach,
            ranges=self.numbers(ranges),
            intensities=self.numbers(np.empty(0, np.float32)),
        )

    def markers(self, output: Output) -> Any:
        """visualization_msgs/MarkerArray: all markers of the result before deleted, then a closed LINE_STRIP for each ring on
        the ground, and the reason where the result is not valid."""
        result, ground = output.result, ground_frame(output)
        kind = self._types("visualization_msgs/msg/Marker")
        header = self.header(ground or result.frame_id, result.stamp_ns)
        markers = [self.marker(header, action=kind.DELETEALL)]
        for number, (ring, bgr) in enumerate(ground_rings(result)):
            closed = np.vstack([ring, ring[:1]]).tolist()
            points = [self.make("geometry_msgs/Point", x=x, y=y, z=0.0) for x, y in closed]
            markers.append(self.marker(header, id=number, type=kind.LINE_STRIP, bgr=bgr, size=LINE_M, points=points))
        if ground and not result.valid:
            markers.append(self.marker(header, type=kind.TEXT_VIEW_FACING, bgr=WARNING_COLOUR, size=1.0, text=warning(result)))
        return self.make("visualization_msgs/MarkerArray", markers=markers)

    def marker(
        self,
        header: Any,
        id: int = 0,
        type: int = 0,
        action: int = 0,
        bgr: tuple[int, int, int] = (0, 0, 0),
        size: Number = 0.0,
        points: list[Any] | None = None,
        text: str = "",
    ) -> Any:
        """visualization_msgs/Marker in the namespace ``freespace`` that moves with its frame until it is deleted.

        Args:
            size: width of a line, or height of a letter, metres.
        """
        blue, green, red = (level / 255 for level in bgr)
        unused: dict[str, Any] = {}
        if not self._of_rclpy:  # the classes of rosbags have no defaults
            nothing = np.empty(0, np.uint8)
            unused = {
                "colors": [],
                "texture_resource": "",
                "texture": self.make("sensor_msgs/CompressedImage", header=self.header("", 0), format="", data=nothing),
                "uv_coordinates": [],
                "mesh_resource": "",
                "mesh_file": self.make("visualization_msgs/MeshFile", filename="", data=nothing),
                "mesh_use_embedded_materials": False,
            }
        return self.make(
            "visualization_msgs/Marker",
            header=header,
            ns="freespace",
            id=id,
            type=type,
            action=action,
            pose=self.pose(),
            scale=self.make("geometry_msgs/Vector3", x=size, y=0.0, z=size),
            color=self.make("std_msgs/ColorRGBA", r=red, g=green, b=blue, a=1.0),
            lifetime=self.make("builtin_interfaces/Duration", sec=0, nanosec=0),
            frame_locked=True,
            points=points or [],
            text=text,
            **unused,
        )

    def transform(self, camera: Camera, frame_id: str, stamp_ns: int) -> Any:
        """tf2_msgs/TFMessage: the pose of the camera's optical frame ``frame_id`` in the ground's frame."""
        pose = camera.mount.base_from_camera
        turn = cv2.Rodrigues(pose[:3, :3])[0].ravel()
        angle = math.hypot(*turn)
        x, y, z = (turn * (math.sin(angle / 2) / angle if angle else 0.0)).tolist()
        transform = self.make(
            "geometry_msgs/Transform",
            translation=self.make("geometry_msgs/Vector3", **dict(zip("xyz", pose[:3, 3].tolist(), strict=True))),
            rotation=self.make("geometry_msgs/Quaternion", x=x, y=y, z=z, w=math.cos(angle / 2)),
        )
        header = self.header(camera.mount.frame_id, stamp_ns)
        stamped = self.make("geometry_msgs/TransformStamped", header=header, child_frame_id=frame_id, transform=transform)
        return self.make("tf2_msgs/TFMessage", transforms=[stamped])

    # -- The node --------------------------------------------------------------------------------------------------

    def diagnostics(self, status: Status, stamp_ns: int | None = None, name: str = "freespace") -> Any:
        """diagnostic_msgs/DiagnosticArray with one status: its level by `LEVELS`, its values those of ``status``.

        Args:
            stamp_ns: when the status was asked for; by default now.
            name: of the component.
        """
        kind = self._types("diagnostic_msgs/msg/DiagnosticStatus")
        says = " ".join(cause.text for cause in status.causes)
        one = self.make(
            "diagnostic_msgs/DiagnosticStatus",
            level=getattr(kind, LEVELS[status.state]),
            name=name,
            message=f"{status.state}: {says}" if says else status.state,
            hardware_id=status.source,
            values=[self.make("diagnostic_msgs/KeyValue", key=key, value=value) for key, value in key_values(status)],
        )
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        return self.make("diagnostic_msgs/DiagnosticArray", header=self.header("", stamp_ns), status=[one])

    def float(self, value: Number) -> Any:
        """std_msgs/Float64."""
        return self.make("std_msgs/Float64", data=value)


def ground_frame(output: Output) -> str | None:
    """The ``frame_id`` of the ground; None without a calibrated camera."""
    if ground := output.result.ground:
        return ground.frame_id
    return output.metres.camera.mount.frame_id if output.metres else None


def key_values(status: Status) -> Iterator[tuple[str, str]]:
    """The fields of a `Status` as text; milliseconds and rates with one decimal, what is unknown left out."""
    yield from (("state", status.state), ("valid", str(status.valid).lower()), ("frames", str(status.frames)))
    yield "causes", " ".join(cause.code.value for cause in status.causes)
    yield "invalid", str(status.invalid)
    yield from ((f"dropped.{place}", str(count)) for place, count in status.dropped.items())
    yield from ((f"dropped.output.{name}", str(count)) for name, count in status.sink_dropped.items())
    yield from (("reconnections", str(status.reconnections)), ("fps", f"{status.fps:.1f}"))
    if status.age_ms is not None:
        yield "age_ms", f"{status.age_ms:.1f}"
    for stage, percentiles in status.latency_ms.items():
        yield from ((f"latency_ms.{stage}.p{p}", f"{value:.1f}") for p, value in percentiles.items())
    yield from (("uptime_s", f"{status.uptime_s:.0f}"), ("source", status.source))
    yield from (("model", status.model), ("backend", status.backend))


# -- From messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """How the pixels of a sensor_msgs/Image lie in memory.

    Attributes:
        channels: numbers for each pixel, one after the other.
        code: of `cv2.cvtColor`, to BGR; None where it is BGR.
        dtype: of a number.
        rows: rows of memory for each row of the image; 1.5 where the colours follow below the brightness.
        even: what must be even: ``""``, ``"w"`` (the width) or ``"wh"``.
    """

    channels: int
    code: int | None
    dtype: type[np.uint8] | type[np.uint16] = np.uint8
    rows: float = 1.0
    even: str = ""


ENCODINGS: Mapping[str, Encoding] = {
    "bgr8": Encoding(3, None),
    "8UC3": Encoding(3, None),
    "rgb8": Encoding(3, cv2.COLOR_RGB2BGR),
    "bgra8": Encoding(4, cv2.COLOR_BGRA2BGR),
    "rgba8": Encoding(4, cv2.COLOR_RGBA2BGR),
    "mono8": Encoding(1, cv2.COLOR_GRAY2BGR),
    "8UC1": Encoding(1, cv2.COLOR_GRAY2BGR),
    "mono16": Encoding(1, cv2.COLOR_GRAY2BGR, np.uint16),
    "16UC1": Encoding(1, cv2.COLOR_GRAY2BGR, np.uint16),
    "yuv422": Encoding(2, cv2.COLOR_YUV2BGR_UYVY, even="w"),
    "uyvy": Encoding(2, cv2.COLOR_YUV2BGR_UYVY, even="w"),
    "yuv422_yuy2": Encoding(2, cv2.COLOR_YUV2BGR_YUY2, even="w"),
    "yuyv": Encoding(2, cv2.COLOR_YUV2BGR_YUY2, even="w"),
    "nv12": Encoding(1, cv2.COLOR_YUV2BGR_NV12, rows=1.5, even="wh"),
    "nv21": Encoding(1, cv2.COLOR_YUV2BGR_NV21, rows=1.5, even="wh"),
    "bayer_rggb8": Encoding(1, cv2.COLOR_BayerRGGB2BGR, even="wh"),
    "bayer_bggr8": Encoding(1, cv2.COLOR_BayerBGGR2BGR, even="wh"),
    "bayer_gbrg8": Encoding(1, cv2.COLOR_BayerGBRG2BGR, even="wh"),
    "bayer_grbg8": Encoding(1, cv2.COLOR_BayerGRBG2BGR, even="wh"),
}


def image_from_message(message: Any) -> Image:
    """The picture in a sensor_msgs/Image or sensor_msgs/CompressedImage (JPEG, PNG), of rclpy or rosbags.

    16-bit grey is scaled from its whole range. YUV is BT.601, limited range. Raw bgr8 without padding is not copied: the
    picture shares the message's memory where that can be written.

    Returns:
        uint8 ``(H, W, 3)``, BGR, C-contiguous.

    Raises:
        BadInput: the encoding is none of `ENCODINGS`.
        FreespaceError: the data do not fit the size, or cannot be decoded.
    """
    data = np.frombuffer(message.data, np.uint8)
    if hasattr(message, "format"):
        return decode(data, message.format)
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(ENCODINGS)
        raise BadInput(f"images with the encoding {message.encoding!r} cannot be read; have the driver publish one of {known}")
    what = f"a {message.encoding} image of {message.width} x {message.height} pixels"
    width, height, step = int(message.width), int(message.height), int(message.step)
    if not (width and height) or ("w" in encoding.even and width % 2) or ("h" in encoding.even and height % 2):
        even = {"": "", "w": ", an even number of columns", "wh": ", even numbers of rows and columns"}[encoding.even]
        raise FreespaceError(f"{what} is none: there must be pixels{even}")
    rows, row = round(height * encoding.rows), width * encoding.channels * np.dtype(encoding.dtype).itemsize
    if step < row:
        raise FreespaceError(f"{what} has at least {row} bytes a row, and its step is {step}")
    if len(data) < step * (rows - 1) + row:
        raise FreespaceError(f"{what} with a step of {step} has {step * rows} bytes, and {len(data)} came")
    if len(data) < step * rows:  # the last row without its padding
        data = np.concatenate([data, np.zeros(step * rows - len(data), np.uint8)])
    pixels: NDArray[Any] = data[: step * rows].reshape(rows, step)[:, :row]
    if encoding.dtype is np.uint16:
        pixels = np.ascontiguousarray(pixels).view(">u2" if message.is_bigendian else "<u2")
        pixels = np.rint(pixels / 257).astype(np.uint8)
    pixels = pixels.reshape(rows, width, encoding.channels) if encoding.channels > 1 else pixels
    if encoding.code is not None:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), encoding.code)
    return np.require(pixels, np.uint8, ["C", "W"])


def decode(data: Image, form: str) -> Image:
    """The picture in the ``data`` of a CompressedImage whose ``format`` is ``form``; errors as `image_from_message`."""
    if "compressedDepth" in form:
        raise BadInput(f"the format {form!r} is of depth, not of a picture; choose a topic with pictures")
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error as error:
        raise FreespaceError(f"a compressed image ({form}) cannot be decoded: {error.err}") from error
    if picture is None:
        raise FreespaceError(f"a compressed image ({form}) of {len(data)} bytes cannot be decoded; JPEG and PNG can")
    return np.asarray(picture, np.uint8)


MODELS: Mapping[str, DistortionModel] = {**{name: name for name in get_args(DistortionModel)}, "fisheye": "equidistant"}


def intrinsics_from_message(message: Any, name: str = "camera") -> Intrinsics:
    """The camera in a sensor_msgs/CameraInfo, for the images as they come (K and D, not the rectified P).

    A region of interest moves the principal point, binning shrinks the image, in that order, as CameraInfo has it.

    Args:
        name: of the camera.

    Raises:
        BadInput: the camera is not calibrated (K is zero), its distortion model is unknown or its coefficients are too many.
    """
    k, d = (np.asarray(values, np.float64) for values in (message.k, message.d))
    if not k.any():
        raise BadInput("camera_info has no calibration: K is zero; calibrate the camera, or give --calibration")
    model = MODELS.get(message.distortion_model or "plumb_bob")
    if model is None:
        raise BadInput(f"camera_info has the distortion model {message.distortion_model!r}; known are {', '.join(MODELS)}")
    while len(d) and not d[-1]:  # rational_polynomial may come with all 14 of OpenCV
        d = d[:-1]
    roi = message.roi
    try:
        full = Intrinsics(
            fx=float(k[0]),
            fy=float(k[4]),
            cx=float(k[2]) - roi.x_offset,
            cy=float(k[5]) - roi.y_offset,
            width=int(roi.width or message.width),
            height=int(roi.height or message.height),
            distortion_model=model,
            distortion=tuple(d.tolist()),
            name=name,
        )
    except ValueError as error:
        raise BadInput(f"camera_info: {error}") from error
    columns, rows = max(1, message.binning_x), max(1, message.binning_y)
    return full.scaled((full.width // columns, full.height // rows)) if columns * rows > 1 else full
