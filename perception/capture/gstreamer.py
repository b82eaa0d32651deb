"""GStreamer pipelines through an OpenCV that has GStreamer: a Jetson's cameras and decoder, and pipelines of the user's own."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2

from perception.capture.camera import OpenCvConnection, quiet
from perception.capture.live import Connection, differences
from perception.capture.uri import Address
from perception.config import CaptureConfig
from perception.errors import BadInput

# One picture waits at most, and none is held back for its time stamp.
APPSINK = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
FROM_JETSON = f"nvvidconv ! video/x-raw,format=BGRx ! {APPSINK}"


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with it; the wheels of the Python Package Index are not."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def on_jetson() -> bool:
    return Path("/etc/nv_tegra_release").exists()


def pipeline_of(address: Address, capture: CaptureConfig) -> str:
    """The pipeline for a ``csi``, ``gstreamer`` or, on a Jetson, ``rtsp`` address; it ends with an ``appsink``."""
    if address.kind == "csi":
        width, height, fps = capture.width or 1280, capture.height or 720, capture.fps or 30.0
        exposure = ""
        if capture.exposure_ms is not None:
            exposure_ns = round(capture.exposure_ms * 1e6)
            exposure = f' exposuretimerange="{exposure_ns} {exposure_ns}"'
        caps = f"video/x-raw(memory:NVMM),width={width},height={height},framerate={fraction(fps)}"
        return f"nvarguscamerasrc sensor-id={address.target}{exposure} ! {caps} ! {FROM_JETSON}"
    if address.kind == "rtsp":
        parts = urlsplit(address.target)
        host = parts.netloc.rpartition("@")[2]
        location = f"{parts.scheme}://{host}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        user = f" user-id={quoted(unquote(parts.username))}" if parts.username else ""
        password = f" user-pw={quoted(unquote(parts.password))}" if parts.password else ""
        source = (
            f"rtspsrc location={quoted(location)}{user}{password} protocols={capture.transport} latency=0 drop-on-latency=true"
        )
        return f"{source} ! decodebin ! {FROM_JETSON}"  # decodebin takes nvv4l2decoder, whatever the codec
    pipeline = address.target.strip().rstrip("!").rstrip()
    return pipeline if "appsink" in pipeline else f"{pipeline} ! {APPSINK}"


def open_pipeline(address: Address, capture: CaptureConfig) -> Connection:
    """Start the pipeline.

    Raises:
        BadInput: this OpenCV has no GStreamer, or the pipeline cannot be started.
    """
    if not has_gstreamer():
        raise BadInput(
            f"{address.shown}: needs an OpenCV with GStreamer, and this one ({cv2.__version__}) has none; use the system's "
            "(on a Jetson the one of JetPack, elsewhere 'apt install python3-opencv' in an environment made with "
            "--system-site-packages), or build it with -D WITH_GSTREAMER=ON"
        )
    with quiet():
        device = cv2.VideoCapture(pipeline_of(address, capture), cv2.CAP_GSTREAMER)
    if not device.isOpened():
        device.release()
        what = f"is there a camera at connector {address.target}?" if address.kind == "csi" else "try it with gst-launch-1.0"
        raise BadInput(f"{address.shown}: GStreamer cannot start this pipeline; {what}")
    width, height = int(device.get(cv2.CAP_PROP_FRAME_WIDTH)), int(device.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps = device.get(cv2.CAP_PROP_FPS) or None
    exposure_ms = capture.exposure_ms if address.kind == "csi" else None
    remarks = differences(address.shown, capture, width=width, height=height, fps=fps, exposure_ms=exposure_ms)
    return OpenCvConnection(device, f"GStreamer, {width}x{height}", fps, remarks)


def quoted(text: str) -> str:
    """``text`` as one word of a pipeline."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def fraction(fps: float) -> str:
    return f"{round(fps)}/1" if abs(fps - round(fps)) < 1e-6 else f"{round(fps * 1001)}/1001"
