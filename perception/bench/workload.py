"""A fixed amount of work that has nothing to do with the product: how fast this machine is, at this moment."""

from __future__ import annotations

import time

import cv2
import numpy as np

WORKLOAD = "workload/1"  # another number where any of it changes: milliseconds of different ones do not compare
SHARE_S = 0.02  # the least time spent on it

_RNG = np.random.default_rng(1)
_IMAGE = _RNG.integers(0, 256, (720, 1280, 3), np.uint8)
_SQUARE = _RNG.standard_normal((16, 48, 48), np.float32)
_KEYS = _RNG.integers(0, 1 << 30, 20_000)


def once() -> float:
    """Resize a frame, blur it, multiply matrices, sort: arithmetic, memory and branches on one thread. A checksum."""
    small = cv2.resize(_IMAGE, (640, 360), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (5, 5), 0)
    product = _SQUARE @ _SQUARE  # small ones: no library uses threads for them
    return float(blurred[::16, ::16].sum()) + float(product[0, 0, 0]) + float(np.sort(_KEYS)[0])


def measure(seconds: float) -> float:
    """Milliseconds of one round of work, the median over ``seconds`` of them."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        spent, began = list[float](), time.perf_counter()
        while time.perf_counter() - began < max(seconds, SHARE_S) or len(spent) < 3:
            started = time.perf_counter_ns()
            once()
            spent.append((time.perf_counter_ns() - started) / 1e6)
    finally:
        cv2.setNumThreads(threads)
    return float(np.median(spent))
