"""Sources of frames, by URI."""

from __future__ import annotations

from pathlib import Path

from perception.capture.base import Selection, Source
from perception.errors import BadInput

__all__ = ["Selection", "Source", "open_source"]


def open_source(uri: str, selection: Selection | None = None, image_fps: float = 10.0) -> Source:
    """Open what ``uri`` names: a video file, an image, a folder of images, or ``synthetic://scene?key=value``.

    Args:
        selection: the part of the recording to take.
        image_fps: rate at which a folder of images is played.

    Raises:
        BadInput: nothing is there, or it is none of these.
    """
    selection = selection or Selection()
    if uri.startswith("synthetic://"):
        from perception.capture.synthetic import SyntheticSource

        return SyntheticSource(uri, selection)
    if "://" in uri:
        raise BadInput(
            f"{uri}: unknown kind of source {uri.split('://')[0]!r}; give a video, an image, a folder, or synthetic://…"
        )
    path = Path(uri)
    try:
        path.stat()
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
        raise BadInput(f"{uri}: no such file or folder{why}") from error
    from perception.capture.images import IMAGE_SUFFIXES, ImageSource

    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(uri, selection, image_fps)
    from perception.capture.video import VideoSource

    return VideoSource(uri, selection)
