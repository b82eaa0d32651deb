"""What the polygons of one frame cost, alone: from scores to simplified, checked rings in source pixels.

python -m benchmarks.polygons --clip drive.mp4
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import demo_clip
from engine import open_engine
from perception.capture import Selection, open_source
from perception.config import PolygonConfig
from perception.polygons import extract

REPEATS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="720p video; the demo's clip by default")
    parser.add_argument("--every", type=int, default=5, help="take one frame of every N")
    arguments = parser.parse_args()
    clip = arguments.clip or demo_clip(parser)
    cv2.setNumThreads(1)
    config = PolygonConfig()
    with open_engine() as engine, open_source(str(clip), Selection(every=arguments.every)) as source:
        scored = [engine.segment([frame.image]) for frame in source.frames()]
        plane = engine.contract.plane_index(config.plane)
    times, vertices = [], []
    for scores in scored * REPEATS:
        started = time.perf_counter()
        polygons = extract(scores.values[0, plane], scores.resamplings[0], config.plane, config)
        times.append((time.perf_counter() - started) * 1e3)
        vertices.append(sum(len(ring) for polygon in polygons for ring in polygon.rings))
    p50, p95, p99 = np.percentile(times[len(scored) :], [50, 95, 99])
    width, height = scored[0].resamplings[0].frame_size
    print(f"{clip.name}, {width}x{height}, {len(scored)} frames x {REPEATS - 1}: {np.median(vertices):.0f} vertices a frame")
    print(f"polygons: p50 {p50:.2f}  p95 {p95:.2f}  p99 {p99:.2f} ms")


if __name__ == "__main__":
    main()
