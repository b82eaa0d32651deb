"""One heap for all threads, as the C library itself counts them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from perception.heap import share_one_heap

if sys.argv[1] == "shared":
    share_one_heap()
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


def heaps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_all_threads_share_one_heap() -> None:
    assert heaps("apart") > 1, "else this says nothing"
    assert heaps("shared") == 1
