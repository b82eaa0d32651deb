"""How a recording is played: at its own pace, and again from its beginning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from perception.capture.base import Source
from perception.capture.live import keep_latest
from perception.errors import FreespaceError
from perception.frame import Frame
from perception.slot import Closed, Slot

LATE_S = 1.0  # so far behind, one goes on from there


class Pace:
    """Says when each picture of a recording is due: the first at once, the others at their distance in media time.

    Attributes:
        slips: how often there was no keeping up, and the rest was put off.
    """

    def __init__(self, longest_s: float = float("inf")) -> None:
        """``longest_s``: a longer gap between pictures is none of the recording's own, and not waited for."""
        self.slips = 0
        self._longest_ns = longest_s * 1e9
        self._offset_ns: int | None = None

    def wait(self, media_ns: int, over: threading.Event) -> None:
        """Return when the picture of ``media_ns`` is due, or ``over`` is set."""
        now = time.perf_counter_ns()
        if self._offset_ns is None:
            self._offset_ns = now - media_ns
        early_ns = self._offset_ns + media_ns - now
        if early_ns < -LATE_S * 1e9 or early_ns > self._longest_ns:
            self.slips += early_ns < 0
            self._offset_ns = now - media_ns
        elif early_ns > 0:
            over.wait(early_ns / 1e9)


class PacedSource(Source):
    """A recording played as a live source: each frame comes at its media time, and who takes it too late gets a newer one.

    Stamps and numbers stay those of the recording; ``grabbed_ns`` is when the frame was released. Frames that nobody took count
    as dropped.
    """

    def __init__(self, recording: Source) -> None:
        super().__init__(
            recording.uri,
            recording.fps,
            recording.total,
            recording.dropped,
            recording.problems,
            live=True,
            detail="at its own pace",
            continuous=recording.continuous,
            clock=recording.clock,
        )
        self._recording = recording
        self._slot: Slot[Frame] = Slot(1, newest_wins=True)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._player = threading.Thread(target=self._play, name="pace", daemon=True)

    def _play(self) -> None:
        pace = Pace()
        try:
            for frame in self._recording.frames():
                pace.wait(frame.stamp_ns, self._over)
                if self._over.is_set():
                    break
                self._slot.put(replace(frame, grabbed_ns=time.perf_counter_ns()))
                self.dropped = self._recording.dropped + self._slot.dropped
        except Closed:
            pass
        except BaseException as error:
            self._error = error
        self.dropped = self._recording.dropped + self._slot.dropped
        if pace.slips:
            keep_latest(self.problems, f"{self.uri}: cannot be read at its own pace; it was held up {pace.slips} times")
        self._recording.close()
        self._slot.finish()

    def frames(self) -> Iterator[Frame]:
        self._player.start()
        while True:
            try:
                frame = self._slot.get()
            except Closed:
                break
            yield replace(frame, dropped=self.dropped)
        if self._error is not None and not self._over.is_set():
            raise self._error

    def close(self) -> None:
        self._over.set()
        self._slot.abort()
        if self._player.ident is None:
            self._recording.close()
        else:
            self._player.join(timeout=1.0)  # it closes the recording, which is not to be closed while it is read


class LoopedSource(Source):
    """A recording that begins again when it ends; numbers and stamps go on rising.

    Raises:
        FreespaceError: from `frames`: there was not one frame in it.
    """

    def __init__(self, first: Source, again: Callable[[], Source]) -> None:
        super().__init__(
            first.uri,
            first.fps,
            dropped=first.dropped,
            detail=first.detail,
            continuous=first.continuous,
            clock=first.clock,
        )
        self._recording = first
        self._again = again
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        last: Frame | None = None
        step, period_ns, rounds, lost_before = 1, round(1e9 / (self.fps or 25.0)), 0, 0
        while not self._closed.is_set():
            begun, last_before = None, last
            for frame in self._recording.frames():
                if begun is None:
                    begun = frame
                    number = last_before.seq + step - frame.seq if last_before else 0
                    later_ns = last_before.stamp_ns + period_ns - frame.stamp_ns if last_before else 0
                elif last is not None and last_before is None:
                    step, period_ns = frame.seq - last.seq, frame.stamp_ns - last.stamp_ns  # of the first round, exactly
                self.dropped = lost_before + self._recording.dropped
                last = replace(
                    frame,
                    seq=frame.seq + number,
                    stamp_ns=frame.stamp_ns + later_ns,
                    logged_ns=None if frame.logged_ns is None else frame.logged_ns + later_ns,
                    name=f"{frame.name}-{rounds + 1}" if rounds else frame.name,
                    dropped=self.dropped,
                    stretch=rounds,
                )
                yield last
            lost_before += self._recording.dropped
            self.dropped = lost_before
            for problem in self._recording.problems:
                if problem not in self.problems:
                    keep_latest(self.problems, problem)
            self._recording.close()
            if begun is None:
                raise FreespaceError(f"{self.uri}: no frame could be read")
            if self._closed.is_set():
                return
            rounds += 1
            self._recording = self._again()

    def close(self) -> None:
        self._closed.set()
        self._recording.close()
