"""One image and everything that must travel with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SECOND_NS = 1_000_000_000

Clock = Literal["media", "system", "ros"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured image.

    Attributes:
        image: uint8 ``(H, W, 3)``, BGR, C-contiguous.
        seq: number of the frame in its source; a gap means frames that never reached us.
        stamp_ns: time of exposure where the source knows it, else of the moment the grab returned, on ``clock``.
        clock: ``media`` (time since the start of a file), ``system`` (Unix time) or ``ros``.
        source: where it came from, as a person would write it.
        frame_id: name of the camera's coordinate frame, passed through untouched.
        name: stem for files made from this frame: the image's own stem, or the frame number.
        decode_ms: time the source spent making the image, in milliseconds.
        dropped: frames the source had lost when this one was made.
        stretch: frames of one number follow each other; another one means that the source was opened, or begun, again.
        logged_ns: of a bag: when its message was recorded, on the recorder's clock; None elsewhere.
        grabbed_ns: when it was there, on `time.perf_counter_ns`: what its age is counted from.
    """

    image: NDArray[np.uint8]
    seq: int
    stamp_ns: int
    clock: Clock
    source: str
    frame_id: str = "camera"
    name: str = ""
    decode_ms: float = 0.0
    dropped: int = 0
    stretch: int = 0
    logged_ns: int | None = None
    grabbed_ns: int = field(default_factory=time.perf_counter_ns)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]
