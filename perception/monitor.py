"""What is known of a run while it goes on, and what that means for its results: may they be used, and if not, why."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from perception.capture.base import Source
from perception.causes import Cause, Code
from perception.config import LoopConfig
from perception.frame import Frame
from perception.freespace import Freespace, State
from perception.status import Status
from perception.timing import Stages

MS = 1_000_000  # nanoseconds
RECENT_S = 5.0  # rates and drops are of the last seconds
LATENCY_RESULTS = 1800  # a minute at 30 frames per second
SLOW_PART = 0.75  # a result that took more of the budget than this is said to be slow
ALIVE_S = 10.0  # a loop that does not come round for so long hangs

NOT_BLIND = (Code.SCENE_CUT,)  # things seen in a picture that do not speak against it


@dataclass(frozen=True)
class Verdict:
    """Whether a result may be used."""

    state: State
    valid: bool
    causes: tuple[Cause, ...] = ()


class Monitor:
    """Told of everything by the threads of a run; says how it is doing. Of a recording only the pictures can be at fault.

    Args:
        source: asked for its troubles and losses.
        live: whether a result grows old.
        model, backend: for `status`.
        clock: nanoseconds, as `time.perf_counter_ns`.
    """

    def __init__(
        self,
        source: Source,
        config: LoopConfig,
        live: bool,
        model: str = "",
        backend: str = "",
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.live = live
        self.config = config
        self._source, self._model, self._backend, self._clock = source, model, backend, clock
        self._lock = threading.RLock()
        self._began = self._turned = clock()
        self._busy: int | None = None  # since when the network has been at work
        self._too_late: tuple[int, int] | None = None  # when a frame was found to be so last, and when that was grabbed
        self._newest: Frame | None = None  # that has a result
        self._verdict = Verdict("starting", False)
        self._counts: Counter[str] = Counter()
        self._slot_dropped = 0
        self._sinks: dict[str, Callable[[], int]] = {}
        self._sink_trouble: dict[str, tuple[int, Cause]] = {}
        self._recent: deque[tuple[int, int, int]] = deque()  # (moment, results, dropped) so far
        self._latency = Stages(LATENCY_RESULTS)
        self._failure: Cause | None = None

    # -- Told by the loop ------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """The loop has come round."""
        self._turned = self._clock()

    def begin(self) -> None:
        """The network has got a frame."""
        if self._busy is None:
            self._busy = self._clock()

    def idle(self) -> None:
        """The network has nothing to do."""
        self._busy = None

    def too_late(self, frame: Frame) -> None:
        """``frame`` had grown older than the budget before there was time for it."""
        self._too_late = (self._clock(), frame.grabbed_ns)

    def failed(self, error: BaseException, of_source: bool = False) -> None:
        """The run is over because of ``error``, of the source or else of the network."""
        trouble = self._source.trouble
        code = (trouble.code if trouble else Code.ENDED) if of_source else Code.FAILED
        self._failure = Cause(code, f"The run failed: {error}")

    def lost(self, slot_dropped: int) -> None:
        """So many frames found nobody with time for them."""
        self._slot_dropped = slot_dropped

    def watch_sink(self, name: str, dropped: Callable[[], int]) -> None:
        """Ask ``dropped`` how many outputs a sink had no time for."""
        with self._lock:
            self._sinks[name] = dropped

    def sink_trouble(self, name: str, cause: Cause) -> None:
        """A sink is late or has failed."""
        with self._lock:
            _, known = self._sink_trouble.get(name, (0, None))
            if known is None or known.code is not Code.SINK_FAILED:  # that is for good
                self._sink_trouble[name] = (self._clock(), cause)

    # -- What it means ---------------------------------------------------------------------------------------------

    def judge(self, frame: Frame, seen: list[Cause]) -> Verdict:
        """Whether the result of ``frame`` may be used at this moment.

        Args:
            seen: what the picture itself gave reason for.
        """
        if blinds(seen):
            return Verdict("blind", False, tuple(seen))
        if late := self.late(frame):
            return late
        causes = [*seen, *self._burdens(frame)]
        return Verdict("degraded" if causes else "running", True, tuple(causes))

    def late(self, frame: Frame) -> Verdict | None:
        """That the result of ``frame`` is too old at this moment; None while it is not."""
        cause = self._aged(frame, Code.LATE, self.config.budget_ms)
        return Verdict("stale", False, (cause,)) if cause else None

    def _aged(self, frame: Frame, code: Code, allowed_ms: float) -> Cause | None:
        """``code`` where ``frame`` is older than ``allowed_ms``, and ages count."""
        age_ms = (self._clock() - frame.grabbed_ns) / MS
        if not self.live or age_ms <= allowed_ms:
            return None
        return Cause(code, f"The result was {age_ms:.0f} ms old when it was there, {self.config.budget_ms:g} ms are allowed.")

    def _burdens(self, frame: Frame) -> list[Cause]:
        """What is wrong without making the result wrong."""
        if not self.live:
            return []
        causes = []
        if trouble := self._source.trouble:
            causes.append(trouble)
        if slow := self._aged(frame, Code.SLOW, SLOW_PART * self.config.budget_ms):
            causes.append(slow)
        results, dropped = self._lately()
        if dropped > results:
            text = f"Of the frames of the last {RECENT_S:g} s, {dropped} of {dropped + results} were dropped."
            causes.append(Cause(Code.DROPPING, text))
        with self._lock:
            now = self._clock()
            for name, (moment, cause) in list(self._sink_trouble.items()):
                if cause.code is Code.SINK_FAILED or now - moment < RECENT_S * 1e9:
                    causes.append(cause)
                else:
                    del self._sink_trouble[name]
        return causes

    def silence(self) -> Verdict | None:
        """What is to be said where there is no result that is new enough; None while there is one, or none is due."""
        if self._failure:
            return Verdict("error", False, (self._failure,))
        with self._lock:
            now, newest = self._clock(), self._newest
            since = newest.grabbed_ns if newest else self._began
            missing_ms = (now - since) / MS
            budget = self.config.budget_ms
            if not self.live or missing_ms <= budget:
                return None
            causes = []
            busy = self._busy
            if busy is not None and (now - busy) / MS > budget:
                causes.append(Cause(Code.STUCK, f"The network has been at work on one frame for {(now - busy) / 1e9:.1f} s."))
            if trouble := self._source.trouble:
                causes.append(trouble)
            if (late := self._too_late) and (now - late[0]) / MS <= budget:
                age_ms = (late[0] - late[1]) / MS
                text = f"Frames are {age_ms:.0f} ms old when their turn comes, {budget:g} ms are allowed."
                return Verdict("stale", False, tuple(causes) or (Cause(Code.LATE, text),))
            if newest is None:
                waiting = Cause(Code.STARTING, f"No frame has come in the {missing_ms / 1e3:.1f} s since the start.")
                return Verdict("starting", False, tuple(causes) or (waiting,))
            waiting = Cause(Code.STALLED, f"The newest result is of a frame from {missing_ms / 1e3:.1f} s ago.")
            return Verdict("stale", False, tuple(causes) or (waiting,))

    def silent_from(self) -> int:
        """The moment, on the clock, from which `silence` has something to say unless a result comes."""
        with self._lock:
            return (self._newest.grabbed_ns if self._newest else self._began) + round(self.config.budget_ms * MS)

    # -- Told of what was published --------------------------------------------------------------------------------

    def published(self, result: Freespace, frame: Frame | None) -> None:
        """``result`` went out, with its ``frame`` or in place of one."""
        with self._lock:
            self._verdict = Verdict(result.state, result.valid, tuple(result.causes))
            self._counts["invalid"] += not result.valid
            if frame is None:
                return
            self._newest = frame
            self._counts["frames"] += 1
            self._latency.add_all(result.latency_ms)
            now = self._clock()
            self._recent.append((now, self._counts["frames"], sum(self.dropped.values())))
            while len(self._recent) > 1 and now - self._recent[0][0] > RECENT_S * 1e9:
                self._recent.popleft()

    @property
    def newest(self) -> Frame | None:
        """The frame of the newest result."""
        return self._newest

    @property
    def alive(self) -> bool:
        """Whether the loop still comes round; a source without frames does not stop it."""
        return (self._clock() - self._turned) / 1e9 < ALIVE_S

    @property
    def dropped(self) -> dict[str, int]:
        """Frames lost so far, by place."""
        return {"source": self._source.dropped, "slot": self._slot_dropped}

    def _lately(self) -> tuple[int, int]:
        """(results, frames dropped) of the last `RECENT_S`."""
        with self._lock:
            if len(self._recent) < 2:
                return 1, 0
            first, last = self._recent[0], self._recent[-1]
            return last[1] - first[1], last[2] - first[2]

    def status(self) -> Status:
        """A snapshot; from any thread."""
        with self._lock:
            now, newest, verdict = self._clock(), self._newest, self.silence() or self._verdict
            recent = [r for r in self._recent if now - r[0] <= RECENT_S * 1e9]
            seconds = (recent[-1][0] - recent[0][0]) / 1e9 if len(recent) > 1 else 0.0
            status = Status(
                state=verdict.state,
                causes=verdict.causes,
                valid=verdict.valid,
                frames=self._counts["frames"],
                invalid=self._counts["invalid"],
                dropped=self.dropped,
                sink_dropped={name: dropped() for name, dropped in self._sinks.items()},
                reconnections=self._source.reconnections,
                fps=(recent[-1][1] - recent[0][1]) / seconds if seconds > 0 else 0.0,
                age_ms=(now - newest.grabbed_ns) / MS if newest and self.live else None,
                latency_ms={},
                uptime_s=(now - self._began) / 1e9,
                source=self._source.uri,
                model=self._model,
                backend=self._backend,
            )
        return replace(status, latency_ms=self._latency.percentiles())  # outside: it takes most of the time


def blinds(seen: list[Cause]) -> bool:
    """Whether something in a picture speaks against using it."""
    return any(cause.code not in NOT_BLIND for cause in seen)
