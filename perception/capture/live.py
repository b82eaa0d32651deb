"""A source that is opened, watched and opened again: cameras and network streams.

One thread reads a connection, another watches the clock. A read that never returns holds up neither: its connection is left to
its thread, which closes it should the read ever come back, and the next one is opened in a thread of its own.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perception.capture.base import Selection, Source
from perception.capture.uri import Address
from perception.causes import Cause, Code
from perception.config import CaptureConfig
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame
from perception.slot import Closed, Slot

MOST_PROBLEMS = 100
ASKED = ("width", "height", "fps", "pixel_format", "exposure_ms")  # of `CaptureConfig`: what a device is asked for
RATE_TOLERANCE = 0.01  # 29.97 is 30
MOST_STUCK = 3  # connections whose read or opening never came back; no more are opened beside them
CLOSING_S = 0.5  # that `close` waits for the connection to be closed


class Ended(Exception):
    """A connection has come to the regular end of what it had to give."""


@dataclass(frozen=True, slots=True)
class Grab:
    """One picture, as it was when the grab returned.

    Attributes:
        picture: makes the image, uint8 BGR ``(H, W, 3)``; called once, by whoever takes the frame. Raises where that fails.
        stamp_ns: Unix time at which the grab returned.
        grabbed_ns: the same moment on ``time.perf_counter_ns``.
        decode_ms: what decoding took, without ``picture``.
    """

    picture: Callable[[], NDArray[np.uint8]]
    stamp_ns: int = field(default_factory=time.time_ns)
    grabbed_ns: int = field(default_factory=time.perf_counter_ns)
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Lost:
    """A picture that came and cannot be shown. ``reason`` follows "a picture could not be decoded: "."""

    reason: str


class Connection(ABC):
    """What is open. Used by one thread.

    Attributes:
        detail: one phrase: how it is read.
        fps: pictures a second, where known.
        remarks: what was asked of it and is otherwise; a sentence each.
    """

    detail: str = ""
    fps: float | None = None
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def read(self) -> Grab | Lost | None:
        """Wait for what comes next; None: something came that is no picture yet.

        Raises:
            Ended: that was all, and nothing is wrong.
            Exception: it broke off; the message is a phrase that says why.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything."""


@dataclass(eq=False)
class Attempt:
    """One connection on its way through opening, reading and closing. Times are of ``time.monotonic``, seconds."""

    begun: float
    opened: float | None = None
    heard: float | None = None  # anything came
    seen: float | None = None  # a picture came
    abandoned: bool = False
    finished: bool = False
    error: BaseException | None = None


class LiveSource(Source):
    """Frames of a connection that is opened again whenever it breaks off, hangs, or sends what cannot be decoded.

    ``seq`` counts every picture that came, also those that nobody took and those that could not be decoded; both count as
    ``dropped`` from the moment at which `frames` is iterated. Only the newest picture waits to be taken, and none is taken
    twice.

    Raises:
        BadInput: the first attempt showed that there can be no such source.
        FreespaceError: from `frames`: for ``give_up_s`` there was no source.
    """

    def __init__(
        self,
        address: Address,
        capture: CaptureConfig,
        connect: Callable[[], Connection],
        chance: random.Random | None = None,
    ) -> None:
        """Begin to open it, and wait until the first attempt has come to something, for at most ``open_timeout_s``.

        Args:
            connect: opens one connection. Raises BadInput: there can be none; any other Exception: not now.
            chance: where the jitter comes from.
        """
        super().__init__(
            address.shown, live=True, clock="system", trouble=Cause(Code.STARTING, f"{address.shown}: is being opened")
        )
        if capture.start_s:
            raise BadInput(f"{self.uri}: is live, it cannot begin at {capture.start_s:g} s; leave the start out")
        self._address, self._capture, self._connect = address, capture, connect
        self._chance = chance or random.Random()
        self._selection = Selection(0.0, capture.duration_s, capture.every)
        self._slot: Slot[tuple[int, int, Grab]] = Slot(1, newest_wins=True)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # of attempts, not of frames: those would wake it all the time
        self._attempts: list[Attempt] = []  # those whose thread has not come to its end
        self._over = self._taken = False
        self._error: BaseException | None = None
        self._seq = self._lost = self._failures = 0
        self._ever_opened = False
        self._remarked: set[str] = set()
        self._good = True  # whether the picture before was
        self._since = time.monotonic()  # of the last frame, or of the beginning
        self._keeper = threading.Thread(target=self._keep_open, name="live", daemon=True)
        self._keeper.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._ever_opened or self._failures, capture.open_timeout_s)
            if isinstance(self._error, BadInput):
                raise self._error
        except BaseException:
            self.close()
            raise

    # -- What comes out --

    def frames(self) -> Iterator[Frame]:
        self._taken = True
        first_ns: int | None = None
        while True:
            try:
                seq, stretch, grab = self._slot.get()
            except Closed:
                break
            begun = time.perf_counter_ns()
            try:
                image = grab.picture()
            except Exception as error:
                with self._lock:
                    self._lose(self._phrase(error))
                continue
            first_ns = grab.grabbed_ns if first_ns is None else first_ns
            if self._selection.duration_s is not None and grab.grabbed_ns - first_ns >= self._selection.duration_s * 1e9:
                return
            decode_ms = grab.decode_ms + (time.perf_counter_ns() - begun) / 1e6
            yield Frame(
                image,
                seq,
                grab.stamp_ns,
                "system",
                self.uri,
                name=f"{seq:06d}",
                decode_ms=decode_ms,
                dropped=self.dropped,
                stretch=stretch,
                grabbed_ns=grab.grabbed_ns,
            )
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End `frames` at once. A connection that does not come back soon is closed by its thread when it does."""
        self._end(None)
        self._slot.abort()
        with self._changed:
            left = [attempt for attempt in self._attempts if not attempt.abandoned]
            for attempt in left:
                attempt.abandoned = True
            self._changed.wait_for(lambda: all(attempt.finished for attempt in left), CLOSING_S)

    # -- One connection: in its own thread --

    def _read(self, attempt: Attempt) -> None:
        connection = None
        try:
            connection = self._connect()
            if not self._opened(attempt, connection):
                return
            while self._take(attempt, connection.read()):
                pass
        except BaseException as error:
            attempt.error = error
        finally:
            try:
                if connection is not None:
                    connection.close()
            except Exception as error:
                attempt.error = attempt.error or error
            with self._changed:
                attempt.finished = True
                self._attempts.remove(attempt)
                self._changed.notify_all()

    def _opened(self, attempt: Attempt, connection: Connection) -> bool:
        with self._changed:
            if attempt.abandoned:
                return False
            attempt.opened = time.monotonic()
            self.detail, self.fps = connection.detail, connection.fps or self.fps
            self.reconnections += self._ever_opened
            self._ever_opened = True
            for remark in connection.remarks:
                if remark not in self._remarked:
                    self._remarked.add(remark)
                    self._remark(remark)
            self._changed.notify_all()
            return True

    def _take(self, attempt: Attempt, came: Grab | Lost | None) -> bool:
        """Hand on what came; False: nobody wants more of it.

        Raises:
            TimeoutError: nothing was taken for so long that what comes now has waited, nobody knows how long: this program
                stood still. The stamp of its grab says nothing.
        """
        with self._lock:
            if attempt.abandoned:
                return False
            now = time.monotonic()
            if attempt.heard is not None and now - attempt.heard > self._capture.read_timeout_s:
                raise TimeoutError
            attempt.heard = now
            if isinstance(came, Lost):
                self._seq += 1
                self._lose(came.reason)
            elif came is not None:
                if self._failures:
                    self._remark(f"{self.uri}: pictures come again, after {attempt.heard - self._since:.1f} s")
                attempt.seen = self._since = attempt.heard
                self._failures, self._good, self.trouble = 0, True, None
                if self._taken and self._seq % self._selection.every == 0:
                    self._slot.put((self._seq, self.reconnections, came))
                    self.dropped = self._lost + self._slot.dropped
                self._seq += 1
            return True

    def _lose(self, reason: str) -> None:
        if self._taken:
            self._lost += 1
            self.dropped = self._lost + self._slot.dropped
        if self._good:  # one sentence for a run of them
            self._remark(f"{self.uri}: a picture could not be decoded: {reason}")
        self._good = False

    # -- Watching, and opening again: in its own thread --

    def _keep_open(self) -> None:
        try:
            with self._changed:
                while not self._over:
                    trouble = self._watch(self._begin()) if self._room() else self._too_many()
                    if not self._over:
                        self._failures += 1
                        self._report(trouble)
                        self._changed.notify_all()
                        self._wait(pause(self._capture, self._failures, self._chance))
        except FreespaceError as error:
            self._end(error)
        except BaseException as error:
            self._end(FreespaceError(f"{self.uri}: {self._phrase(error)}"))

    def _begin(self) -> Attempt:
        attempt = Attempt(time.monotonic())
        self._attempts.append(attempt)
        threading.Thread(target=self._read, args=(attempt,), name="grab", daemon=True).start()
        return attempt

    def _watch(self, attempt: Attempt) -> Cause:
        """Wait until nothing more is to be had from ``attempt``, and say why."""
        while not attempt.finished and not self._over:
            due, trouble, last = self._deadline(attempt)
            if time.monotonic() < due:
                self._wait(due - time.monotonic())
            elif last:
                attempt.abandoned = True
                return trouble
            else:
                self._report(trouble)
        if attempt.finished and not self._over:
            return self._why(attempt)
        return Cause(Code.ENDED, f"{self.uri}: was closed")

    def _deadline(self, attempt: Attempt) -> tuple[float, Cause, bool]:
        """When there is something wrong with ``attempt`` unless more comes, what, and whether it is left then."""
        opening_s, reading_s = self._capture.open_timeout_s, self._capture.read_timeout_s
        if attempt.opened is None:
            text = f"{self.uri}: cannot be opened: no answer in {opening_s:g} s"
            return attempt.begun + opening_s, Cause(Code.UNREACHABLE, text), True
        if attempt.heard is None:  # a camera may take its time for the first picture
            text = f"{self.uri}: no picture within {opening_s:g} s of its opening"
            return attempt.opened + opening_s, Cause(Code.STALLED, text), True
        stalled = attempt.heard + reading_s
        picture = attempt.opened if attempt.seen is None else attempt.seen
        # Data without pictures: before a key frame there is nothing to be done but to wait for it.
        corrupt = Cause(Code.CORRUPT, f"{self.uri}: data come, but no picture that can be decoded")
        if picture + 2 * opening_s <= stalled:
            return picture + 2 * opening_s, corrupt, True
        if picture + reading_s < stalled and self.trouble != corrupt:
            return picture + reading_s, corrupt, False
        return stalled, Cause(Code.STALLED, f"{self.uri}: no picture for {reading_s:g} s"), True

    def _why(self, attempt: Attempt) -> Cause:
        """Of an attempt that came to an end by itself. Raises what ends the source."""
        error = attempt.error
        if isinstance(error, Ended):
            self.trouble = Cause(Code.ENDED, f"{self.uri}: has ended")
            self._end(None)
            return self.trouble
        if attempt.opened is None:
            if isinstance(error, BadInput) and not self._ever_opened:
                raise error
            return Cause(Code.UNREACHABLE, f"{self.uri}: cannot be opened: {self._phrase(error)}")
        if isinstance(error, TimeoutError):
            return Cause(Code.STALLED, f"{self.uri}: no picture for {self._capture.read_timeout_s:g} s")
        return Cause(Code.DISCONNECTED, f"{self.uri}: broke off: {self._phrase(error)}")

    def _room(self) -> bool:
        return len(self._attempts) < MOST_STUCK

    def _too_many(self) -> Cause:
        return Cause(
            Code.STALLED,
            f"{self.uri}: {len(self._attempts)} connections hang in the driver and do not come back; no further one is opened",
        )

    def _wait(self, seconds: float) -> None:
        """Wait for a change. Raises FreespaceError: there was no source for ``give_up_s``."""
        left = float("inf")
        if self._capture.give_up_s:
            left = self._since + self._capture.give_up_s - time.monotonic()
            if left <= 0:
                reason = self.trouble.text if self.trouble else f"{self.uri}: no picture"
                raise FreespaceError(f"{reason}; given up after {self._capture.give_up_s:g} s")
        self._changed.wait(max(0.0, min(seconds, left)))

    def _report(self, trouble: Cause) -> None:
        if trouble != self.trouble:
            self._remark(trouble.text)
        self.trouble = trouble

    def _remark(self, text: str) -> None:
        keep_latest(self.problems, self._address.cleaned(text))

    def _phrase(self, error: BaseException | None) -> str:
        text = str(getattr(error, "strerror", None) or error or type(error).__name__)
        return self._address.cleaned(text.strip().removeprefix(f"{self.uri}: "))

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            if not self._over:
                self._over, self._error = True, error
            self._slot.finish()
            self._changed.notify_all()


def pause(capture: CaptureConfig, failures: int, chance: random.Random) -> float:
    """Seconds to wait after so many failures in a row: doubled from one to the next, and shortened by up to a half, so that not
    all who lost a camera come back to it at the same moment."""
    longest = min(capture.retry_longest_s, capture.retry_first_s * 2.0 ** min(failures - 1, 60))
    return longest * chance.uniform(0.5, 1.0)


def keep_latest(problems: list[str], text: str) -> None:
    """Add to a list that lives for hours, unless it was said last."""
    if problems[-1:] != [text]:
        problems.append(text)
        del problems[:-MOST_PROBLEMS]


def differences(shown: str, capture: CaptureConfig, **given: str | float | None) -> tuple[str, ...]:
    """One sentence for each thing that was asked for in ``capture`` and is otherwise; what is None could not be set."""
    asked = {name: getattr(capture, name) for name in ASKED}
    return tuple(
        f"{shown}: {name} {wanted} was asked for, "
        + (f"{given[name]} comes" if given.get(name) else "which cannot be set here")
        for name, wanted in asked.items()
        if wanted is not None and not same(wanted, given.get(name))
    )


def same(wanted: str | float, given: str | float | None) -> bool:
    if isinstance(wanted, str) or isinstance(given, str) or given is None:
        return str(wanted).upper() == str(given).upper()
    return abs(wanted - given) <= RATE_TOLERANCE * wanted if isinstance(wanted, float) else wanted == given
