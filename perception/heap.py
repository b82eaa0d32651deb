"""Memory of a process through which thousands of frames pass."""

from __future__ import annotations

import ctypes

# As in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST, KEPT = 32 << 20, 256 << 20  # bytes; 32 MiB is the most that glibc takes for the former
RESERVED = 4  # frames


def keep_frames_memory(one_heap: bool) -> None:
    """Let memory of frames be used again for the next ones; to be called before there are threads. Without glibc, nothing.

    By itself glibc may give each frame's memory back to the system and take it anew, a page at a time, which costs a
    millisecond for one of 1280x720, or may not, by chance.

    Args:
        one_heap: for days. Else each thread has a heap of its own: frames are made in one and let go in others, so each of
            these heaps comes to hold as much as all of them together need at most, and memory creeps up for hours until it has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    if one_heap:
        mallopt(M_ARENA_MAX, 1)


def reserve_frames(frame_bytes: int) -> None:
    """Take memory for `RESERVED` frames more and let go of it: with one heap that is kept (`keep_frames_memory`) it is there.

    How many frames are alive at once depends on how threads take turns. Without this a run that lasts for days takes a
    frame more whenever there is one more of them than ever before; so what it takes is known after its first frame.
    """
    frames = [b"1" * frame_bytes for _ in range(RESERVED)]  # written to: what is only asked for is not taken yet
    del frames
