"""What the checks of the picture cost for one frame, and how often they doubt a recording that is good.

python -m benchmarks.picture_checks
python -m benchmarks.picture_checks drive.mp4 folder/of/frames --fps 25
python -m benchmarks.picture_checks folder/of/photos --separate
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np

from perception.capture import open_source
from perception.config import HealthConfig
from perception.frame import Frame
from perception.pictures import PictureCheck
from perception.synthetic import Scene, render

PICTURES, ROUNDS, PERIOD_NS = 25, 20, 40_000_000
SIZES = ((1280, 720), (1920, 1080))


def cost(width: int, height: int) -> None:
    """Milliseconds of `PictureCheck.look` on a rendered drive: each frame is read from memory, not from a cache."""
    scene = Scene(width=width, height=height)
    images = [render(scene, i).image for i in range(PICTURES)]
    check, times = PictureCheck(HealthConfig(), live=True), []
    for number in range(PICTURES * ROUNDS):
        frame = Frame(images[number % PICTURES], number, number * PERIOD_NS, "system", "synthetic")
        started = time.perf_counter()
        check.look(frame)
        times.append((time.perf_counter() - started) * 1e3)
    p50, p95, p99 = np.percentile(times[PICTURES:], [50, 95, 99])
    print(f"{width}x{height}: p50 {p50:.3f}  p95 {p95:.3f}  p99 {p99:.3f} ms")


def alarms(uri: str, fps: float, separate: bool) -> None:
    """Count the frames of a recording that is known to be good, and what is said about them."""
    check, said, frames = PictureCheck(HealthConfig(), live=True), Counter[str](), 0
    with open_source(uri, image_fps=fps) as source:
        for frame in source.frames():
            if separate:
                check = PictureCheck(HealthConfig(), live=True)
            frames += 1
            for cause in check.look(replace(frame, grabbed_ns=frame.stamp_ns)):  # as if it had been live
                said[cause.code.value] += 1
                if said[cause.code.value] == 1:
                    print(f"{uri}: {frame.name}: {cause.text}")
    print(f"{uri}: {frames} frames, {sum(said.values())} alarms {dict(said) or ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", help="videos or folders of images in which nothing is wrong")
    parser.add_argument("--fps", type=float, default=10.0, help="rate of a folder of images")
    parser.add_argument("--separate", action="store_true", help="take each picture as the first one of another camera")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for width, height in SIZES:
        cost(width, height)
    for uri in arguments.recordings:
        alarms(uri, arguments.fps, arguments.separate)


if __name__ == "__main__":
    main()
