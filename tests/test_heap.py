"""One heap for all threads, as the C library itself counts them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from perception.heap import keep_frames_memory

if sys.argv[1] != "untouched":
    keep_frames_memory(one_heap=sys.argv[1] == "shared")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(6)

def take():
    barrier.wait()
    libc.malloc(5000)
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""

FAULTS = """
import resource, sys
import numpy as np
from perception.heap import keep_frames_memory

if sys.argv[1] != "untouched":
    keep_frames_memory(one_heap=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    frames = [np.ones(1920 * 1080 * 3, np.uint8) for _ in range(4)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

RESERVE = """
import resource, sys
import numpy as np
from perception.heap import RESERVED, keep_frames_memory, reserve_frames

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_frames_memory(one_heap=True)
if sys.argv[1] == "reserved":
    reserve_frames(1280 * 720 * 3)
before = faults()
frames = [np.ones(1280 * 720 * 3, np.uint8) for _ in range(RESERVED)]
print(faults() - before)
"""

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")


def output(program: str, how: str) -> str:
    return subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True, timeout=60).stdout


@glibc
def test_all_threads_share_one_heap_where_it_is_for_days() -> None:
    heaps = {how: output(HEAPS, how).count("<heap nr=") for how in ("untouched", "apart", "shared")}
    assert heaps["shared"] == 1
    assert min(heaps["untouched"], heaps["apart"]) > 1


@glibc
def test_memory_of_a_frame_is_used_again() -> None:
    faults = {how: int(output(FAULTS, how)) for how in ("untouched", "kept")}
    pages = 1920 * 1080 * 3 / 4096
    assert faults["kept"] < 8 * pages
    assert faults["kept"] < faults["untouched"] / 5


@glibc
def test_as_many_frames_as_are_reserved_take_no_more_memory() -> None:
    faults = {how: int(output(RESERVE, how)) for how in ("not", "reserved")}
    page, frame = 4096, 1280 * 720 * 3
    assert faults["not"] > 3 * frame / page, "else this says nothing"
    assert faults["reserved"] < 0.2 * frame / page
