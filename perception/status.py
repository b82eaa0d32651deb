"""How a run is doing at this moment: what the web page, the metrics and the watchdog ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from perception.causes import Cause
from perception.freespace import State


@dataclass(frozen=True)
class Status:
    """A snapshot.

    Attributes:
        state, causes: as in the newest `perception.freespace.Freespace`.
        valid: whether its polygons may be used.
        frames: results so far.
        invalid: those of them, and of the reports between them, that were not valid.
        dropped: frames lost so far, by place: ``source`` and ``slot``.
        sink_dropped: outputs that each sink had no time for, by its name.
        reconnections: how often the source was opened again.
        fps: results a second, over the last seconds.
        age_ms: since the newest result's frame was grabbed; None before the first.
        latency_ms: stage -> percentile (50, 95, 99) -> milliseconds, over the last minute.
        uptime_s: since the run began.
        source, model, backend: what runs, without credentials.
    """

    state: State = "starting"
    causes: tuple[Cause, ...] = ()
    valid: bool = False
    frames: int = 0
    invalid: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    sink_dropped: dict[str, int] = field(default_factory=dict)
    reconnections: int = 0
    fps: float = 0.0
    age_ms: float | None = None
    latency_ms: dict[str, dict[int, float]] = field(default_factory=dict)
    uptime_s: float = 0.0
    source: str = ""
    model: str = ""
    backend: str = ""
