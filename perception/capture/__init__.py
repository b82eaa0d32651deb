"""Sources of frames, by URI."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from perception.capture.base import Selection, Source
from perception.capture.uri import Address, parse
from perception.config import CaptureConfig
from perception.errors import BadInput

__all__ = ["Selection", "Source", "comes_live", "open_source"]


def open_source(uri: str, selection: Selection | CaptureConfig | None = None, image_fps: float = 10.0) -> Source:
    """Open what ``uri`` names: a video file, an image, a folder of images, ``synthetic://scene?key=value``, a camera (``0``,
    ``v4l2:///dev/video0``, ``csi://0``), a stream (``rtsp://``, ``http://``) or ``gstreamer://pipeline``.

    Args:
        selection: the part of the recording to take; or all settings of capturing, which hold that, too.
        image_fps: rate at which a folder of images is played, where they do not say it.

    Raises:
        BadInput: nothing is there, or it is none of these. A stream that cannot be reached is no mistake: it may come to be.
    """
    if isinstance(selection, CaptureConfig):
        capture = selection
        selection = Selection(capture.start_s, capture.duration_s, capture.every)
    else:
        capture, selection = CaptureConfig(image_fps=image_fps), selection or Selection()
    address = parse(uri)
    if address.live:
        return open_live(address, capture)
    again = partial(open_recording, address, capture, selection)
    source = again()
    if capture.loop or capture.realtime:
        from perception.capture.pace import LoopedSource, PacedSource

        source = LoopedSource(source, again) if capture.loop else source
        source = PacedSource(source) if capture.realtime else source
    return source


def comes_live(uri: str, capture: CaptureConfig) -> bool:
    """Whether `open_source` makes a live source of ``uri``. Raises BadInput: no source has such an address."""
    return capture.realtime or parse(uri).live


def open_recording(address: Address, capture: CaptureConfig, selection: Selection) -> Source:
    """Open a video, an image, a folder of images, a synthetic scene, or a video on a web server. Raises BadInput."""
    if address.kind == "synthetic":
        from perception.capture.synthetic import SyntheticSource

        return SyntheticSource(address.target, selection)
    if address.kind == "video":
        from perception.capture.stream import WebVideo

        return WebVideo(address, capture, selection)
    path = Path(address.target)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', None) or error})"
        raise BadInput(f"{address.shown}: no such file or folder{why}") from error
    from perception.capture.bag import BagSource, is_bag

    if is_bag(path):
        return BagSource(address.target, selection, capture.topic)
    if capture.topic is not None:
        raise BadInput(f"{address.shown}: is no ROS 2 bag, and has no topic {capture.topic}; leave --topic out")
    from perception.capture.images import IMAGE_SUFFIXES, ImageSource

    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(address.target, selection, capture.image_fps)
    from perception.capture.video import VideoSource

    return VideoSource(address.target, selection)


def open_live(address: Address, capture: CaptureConfig) -> Source:
    """Open a camera, a pipeline or a stream. Raises BadInput: there can be none."""
    from perception.capture.camera import open_camera
    from perception.capture.gstreamer import has_gstreamer, on_jetson, open_pipeline
    from perception.capture.live import Connection, LiveSource
    from perception.capture.stream import StreamConnection
    from perception.errors import FreespaceError

    def connect() -> Connection:
        if address.kind == "v4l2":
            return open_camera(address, capture)
        if address.kind in ("csi", "gstreamer"):
            return open_pipeline(address, capture)
        if address.kind == "rtsp" and capture.hardware and on_jetson() and has_gstreamer():
            try:
                return open_pipeline(address, capture)
            except FreespaceError:  # in software, then; and PyAV says what is wrong
                pass
        return StreamConnection(address, capture)

    return LiveSource(address, capture, connect)
