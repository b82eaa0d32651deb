"""What this process, and the machine around it, spend: processor time, memory, threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1e6


@dataclass(frozen=True)
class Usage:
    """A moment.

    Attributes:
        at_ns: on `time.perf_counter_ns`.
        cpu_s: processor time of this process so far, all threads.
        machine_s: processor time so far of the cores that this process may use, by whomever; None where it cannot be told.
    """

    at_ns: int
    cpu_s: float
    machine_s: float | None


def now(proc: Path = Path("/proc")) -> Usage:
    return Usage(time.perf_counter_ns(), time.process_time(), machine_seconds(proc))


def machine_seconds(proc: Path = Path("/proc")) -> float | None:
    """Seconds that the cores this process may use were not idle since the machine was started (proc_stat(5))."""
    try:
        lines = [line.split() for line in (proc / "stat").read_text().splitlines()]
        busy = {name: busy_ticks(ticks) for name, *ticks in lines if name.startswith("cpu")}
        ours = sum(busy[f"cpu{core}"] for core in os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else busy["cpu"]
    except (OSError, ValueError, KeyError):
        return None
    return ours / os.sysconf("SC_CLK_TCK")


def busy_ticks(ticks: Sequence[str]) -> int:
    """All but idle and waiting; guests are within user time."""
    user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
    return user + nice + system + irq + softirq + steal


def resident_mb(proc: Path = Path("/proc")) -> float:
    """Memory of this process that is in RAM."""
    try:
        return int((proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    except (OSError, IndexError, ValueError):
        try:
            import resource
        except ImportError:  # Windows
            return 0.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # the most there was; bytes on macOS


def thread_count(proc: Path = Path("/proc")) -> int:
    try:
        return len(list((proc / "self/task").iterdir()))
    except OSError:
        return threading.active_count()
