"""Memory of a process that runs for days."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # as in malloc.h


def share_one_heap() -> None:
    """Let all threads take memory from one heap; to be called before there are any. Where the C library is not glibc, nothing.

    By itself glibc gives each thread a heap of its own. Frames are made in one thread and let go in others, so each of these
    heaps comes to hold as much as all of them together need at most, and memory creeps up for hours until it has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
