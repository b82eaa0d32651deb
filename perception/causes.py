"""Why a result is missing or must be used with care: a code for programs, a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Code(str, Enum):
    """What can be wrong; the value is what is published."""

    STARTING = "starting"
    # The source
    UNREACHABLE = "source_unreachable"  # cannot be opened: no route, no such device, access denied
    DISCONNECTED = "source_disconnected"  # was there, broke off; being opened again
    STALLED = "source_stalled"  # open, and no frame comes
    CORRUPT = "source_corrupt"  # frames come that cannot be decoded
    ENDED = "source_ended"
    UNSTAMPED = "source_unstamped"  # frames come without stamps: nobody knows how old they are
    # The picture
    FROZEN = "image_frozen"
    DARK = "image_dark"
    COVERED = "image_covered"
    OVEREXPOSED = "image_overexposed"
    DEFOCUSED = "image_defocused"
    UNCALIBRATED = "image_uncalibrated"  # of another shape than the calibration is for
    SCENE_CUT = "scene_cut"
    # The loop
    SLOW = "inference_slow"
    STUCK = "inference_stuck"
    FAILED = "inference_failed"
    LATE = "result_late"  # older than the budget when it was published
    DROPPING = "frames_dropped"
    SINK_DROPPING = "output_dropping"
    SINK_FAILED = "output_failed"


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong.

    Attributes:
        code: for programs.
        text: one sentence for a person, with what is known: how long, how much, what to do.
    """

    code: Code
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", encodable(self.text))  # it may name a file

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code.value, "text": self.text}


def encodable(text: str) -> str:
    """``text`` as UTF-8 can hold it: bytes of a file name that are no UTF-8 become ``\\udcXX``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
