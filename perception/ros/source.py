"""A topic with images as a source of frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from perception.capture.bag import JUMP_NS
from perception.capture.base import Source
from perception.causes import Cause, Code
from perception.errors import FreespaceError
from perception.frame import SECOND_NS, Frame
from perception.messages import image_from_message
from perception.slot import Closed, Slot

UNSTAMPED = (
    "images of {} have no stamps: their latency is not known, and results are not steadied; have the driver stamp its images"
)


class Arrival(NamedTuple):
    """A message as it came: its number, its header's stamp, its stretch, and when, on `time.perf_counter_ns`."""

    message: Any
    seq: int
    stamp_ns: int
    stretch: int
    grabbed_ns: int


class TopicSource(Source):
    """Frames from the messages that `give` is given; only the newest waits to be taken.

    ``seq`` counts every image that was published, as far as that can be known; stamp and ``frame_id`` are those of the
    header. An image that is not newer than the one before it came too late and counts as dropped; where stamps go back by more
    than a second a bag was begun again: another stretch. Stamps of 0 are none: nothing is remembered from such an image to the
    next, since nobody knows how long after it that is.

    Args:
        topic: its name.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(topic, live=True, clock="ros")
        self._slot: Slot[Arrival] = Slot(1, newest_wins=True)
        self._seq = self._lost = self._stretch = 0
        self._stamp_ns: int | None = None
        self._heard_ns = time.perf_counter_ns()

    @property
    def silent_s(self) -> float:
        """Seconds since the last message, or the beginning."""
        return (time.perf_counter_ns() - self._heard_ns) / 1e9

    def give(self, message: Any) -> None:
        """A sensor_msgs/Image or CompressedImage has come."""
        self._heard_ns = time.perf_counter_ns()
        stamp = message.header.stamp
        stamp_ns = stamp.sec * SECOND_NS + stamp.nanosec
        if self._in_order(stamp_ns):
            with suppress(Closed):
                self._slot.put(Arrival(message, self._seq, stamp_ns, self._stretch, self._heard_ns))
        else:
            self._lost += 1
        self._seq += 1
        self.dropped = self._lost + self._slot.dropped

    def _in_order(self, stamp_ns: int) -> bool:
        """Whether an image of this stamp is newer than those before, or begins another stretch."""
        newest_ns = self._stamp_ns
        if stamp_ns and newest_ns is not None and stamp_ns <= newest_ns <= stamp_ns + JUMP_NS:
            return False
        if not stamp_ns or (newest_ns is not None and stamp_ns < newest_ns):
            self.begin_anew()
        self._stamp_ns = stamp_ns
        return True

    def begin_anew(self) -> None:
        """The next frame has nothing to do with those before: what is remembered of them is forgotten."""
        self._stretch += 1

    def missed(self, count: int) -> None:
        """So many images were published and never came."""
        self._seq += count
        self._lost += count

    def frames(self) -> Iterator[Frame]:
        while True:
            try:
                arrival = self._slot.get()
            except Closed:
                return
            begun = time.perf_counter_ns()
            try:
                image = image_from_message(arrival.message)
            except FreespaceError as error:
                self._lost += 1
                if self.trouble is None or str(error) not in self.trouble.text:
                    self.problems = [str(error)]
                    self.trouble = Cause(Code.CORRUPT, f"{self.uri}: {error}")
                continue
            self.trouble = None if arrival.stamp_ns else Cause(Code.UNSTAMPED, UNSTAMPED.format(self.uri))
            yield Frame(
                image,
                arrival.seq,
                arrival.stamp_ns,
                "ros",
                self.uri,
                frame_id=arrival.message.header.frame_id,
                name=f"{arrival.seq:06d}",
                decode_ms=(time.perf_counter_ns() - begun) / 1e6,
                dropped=self.dropped,
                stretch=arrival.stretch,
                grabbed_ns=arrival.grabbed_ns,
            )

    def close(self) -> None:
        self._slot.abort()
