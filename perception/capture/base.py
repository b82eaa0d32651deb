"""What every source of frames offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from perception.causes import Cause
from perception.frame import Clock, Frame


@dataclass(frozen=True)
class Selection:
    """Which part of a recording to take.

    Attributes:
        start_s: skip what comes before, seconds of media time.
        duration_s: stop after this many seconds of media time; None takes all.
        every: take one frame of every ``every``.
    """

    start_s: float = 0.0
    duration_s: float | None = None
    every: int = 1


@dataclass
class Source(ABC):
    """Frames from one place, in order. A context manager; iterate `frames` once.

    Attributes:
        uri: as the user gave it, without credentials: what may be shown, logged and published.
        fps: frames per media second that `frames` yields (after ``Selection.every``); None where it has no meaning.
        total: how many frames are expected, None where unknown; an estimate, for progress only.
        dropped: frames lost so far: undecodable, or never delivered.
        problems: one sentence for each thing that was wrong so far; of a live source, the latest of them.
        live: whether frames come when they come, and those that nobody takes in time are of no use.
        trouble: why no frames are coming at the moment; None while they are.
        detail: one phrase: how it is read, for example what decodes it.
        continuous: whether frame follows frame, as in a video; of separate images nothing is known from those before.
        reconnections: how often it had to be opened again.
        clock: of the stamps.
    """

    uri: str
    fps: float | None = None
    total: int | None = None
    dropped: int = 0
    problems: list[str] = field(default_factory=list)
    live: bool = False
    trouble: Cause | None = None
    detail: str = ""
    continuous: bool = True
    reconnections: int = 0
    clock: Clock = "media"

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yield frames until the source ends."""

    def close(self) -> None:  # noqa: B027 - many sources hold nothing
        """Release files and devices. Safe to call twice, while `frames` is suspended, and from another thread."""

    def lost(self, reason: str) -> None:
        """Count one frame that could not be delivered and remember why."""
        self.dropped += 1
        self.problems.append(reason)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
