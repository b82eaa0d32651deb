"""Cameras of the system, and whatever else OpenCV opens, as connections.

V4L2 goes through OpenCV rather than FFmpeg: both wheels have it, but FFmpeg's cannot set an exposure, and OpenCV separates the
grab, after which the stamp is taken, from the decoding of the picture.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.capture.live import Connection, Grab, Lost, differences
from perception.capture.uri import Address
from perception.config import CaptureConfig
from perception.errors import BadInput, FreespaceError

MANUAL_EXPOSURE = 1  # V4L2_EXPOSURE_MANUAL
EXPOSURE_UNITS_PER_MS = 10.0  # V4L2 counts in 100 microseconds


class OpenCvConnection(Connection):
    """Reads an opened ``cv2.VideoCapture``."""

    def __init__(self, capture: Any, detail: str, fps: float | None, remarks: tuple[str, ...] = ()) -> None:
        self._capture, self.detail, self.fps, self.remarks = capture, detail, fps, remarks

    def read(self) -> Grab | Lost:
        if not self._capture.grab():
            raise FreespaceError("the device gives no more pictures")
        grab = Grab(lambda: image)
        there, image = self._capture.retrieve()
        if not there or image is None or not image.size:
            return Lost("the driver's data are no picture")
        image = as_bgr(image)
        return grab

    def close(self) -> None:
        self._capture.release()


def open_camera(address: Address, capture: CaptureConfig) -> Connection:
    """Open a V4L2 device and ask of it what ``capture`` asks.

    Raises:
        BadInput: there is no such device, it may not be read, is no camera, or another program has it.
    """
    check_device(address)
    if capture.pixel_format is not None and (len(capture.pixel_format) != 4 or not capture.pixel_format.isascii()):
        raise BadInput(f"pixel_format {capture.pixel_format!r}: wants four letters, such as MJPG or YUYV")
    # Else a camera that stops sending is held for ten seconds, and cannot be opened again.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, round(capture.read_timeout_s))))
    with quiet():
        device = cv2.VideoCapture(address.target, cv2.CAP_V4L2)
    if not device.isOpened():
        device.release()
        raise BadInput(f"{address.shown}: cannot be opened as a camera: it is none, or another program has it")
    # The format first: it decides which sizes there are, as these do which rates.
    if capture.pixel_format is not None:
        device.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*capture.pixel_format.upper()))
    for setting, asked in (
        (cv2.CAP_PROP_FRAME_WIDTH, capture.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, capture.height),
        (cv2.CAP_PROP_FPS, capture.fps),
    ):
        if asked is not None:
            device.set(setting, asked)
    exposed = capture.exposure_ms is not None and (
        device.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
        and device.set(cv2.CAP_PROP_EXPOSURE, capture.exposure_ms * EXPOSURE_UNITS_PER_MS)
    )
    width, height = int(device.get(cv2.CAP_PROP_FRAME_WIDTH)), int(device.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps = device.get(cv2.CAP_PROP_FPS) or None
    code = int(device.get(cv2.CAP_PROP_FOURCC))
    pixel_format = code.to_bytes(4, "little").decode("latin-1").strip("\0 ") if code > 0 else ""
    exposure_ms = capture.exposure_ms if exposed else None
    remarks = differences(
        address.shown, capture, width=width, height=height, fps=fps, pixel_format=pixel_format, exposure_ms=exposure_ms
    )
    rate = f" at {fps:g} FPS" if fps else ""
    return OpenCvConnection(device, f"V4L2 {pixel_format} {width}x{height}{rate}", fps, remarks)


def check_device(address: Address) -> None:
    """Raises BadInput: no such device, or none that may be read."""
    path = Path(address.target)
    try:
        character = stat.S_ISCHR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        there = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        raise BadInput(f"{address.shown}: no such camera as {path}; those here: {there}") from error
    if not character:
        raise BadInput(f"{address.shown}: {path} is no device")
    if not os.access(path, os.R_OK | os.W_OK):
        raise BadInput(f"{address.shown}: {path} may not be read by this user; make the user a member of its group ('video')")


def as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 BGR ``(H, W, 3)`` of a grey, BGRA or BGR picture, contiguous."""
    if image.ndim == 2 or image.shape[2] == 1:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    elif image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    return np.ascontiguousarray(image, np.uint8)


@contextmanager
def quiet() -> Iterator[None]:
    """OpenCV's own log lines of a failed opening say nothing to a user, and may quote a pipeline's password."""
    logging = getattr(cv2.utils, "logging", None)
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT) if logging else None
    try:
        yield
    finally:
        if logging:
            logging.setLogLevel(level)
