"""How far the outline of free space is off in the image, on labelled frames: what ``ground.pixel_sigma`` stands for.

    python -m benchmarks.outlines DATA --split dev --out benchmarks/results/NAME.json

In each column, upwards from the bottom, free space ends somewhere, in the label and in the scores. The difference, as a share
of the image's height, is the error of the outline there. Counted are columns in which both begin free and end within the
picture, at a pixel whose label is known. Most are off by little, and some by much: there the network took something for road
that is none, or the other way round. ``sigma`` is the standard deviation of a normal distribution that fits the former alone,
1.48 times the median; ``held`` is the share of all columns within 1.96 times the default of ``ground.pixel_sigma``, which
was chosen by the dev split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine
from engine import open_engine
from perception.config import GroundConfig
from training.datasets import IGNORE, find_samples, read_sample
from training.splits import split_samples

PLANES = ("freespace", "ego")
EVERY = 8  # columns
NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="dev", choices=("dev", "val"))
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    found: dict[str, list[NDArray[np.float64]]] = {}
    images: dict[str, int] = {}
    with open_engine() as engine:
        model = engine.contract.sha256
        for sample in split_samples(find_samples(arguments.data))[arguments.split]:
            image, drawn = read_sample(sample, strict=True)
            scores = engine.segment([image])
            for index, plane in enumerate(PLANES):
                if not (drawn[index] == 1).any():
                    continue
                resampling = scores.resamplings[0]
                left, top, width, height = resampling.content
                content = scores.values[0, engine.contract.plane_index(plane)][top : top + height, left : left + width]
                wide = cv2.resize(content, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
                key = f"{sample.dataset} {plane}"
                found.setdefault(key, []).append(errors(wide > 127, drawn[index]))
                images[key] = images.get(key, 0) + 1
    rows: dict[str, Any] = {}
    print(f"{'set, plane':<22}{'images':>7}{'columns':>9}{'median':>9}{'sigma':>9}{'p68':>9}{'p95':>9}{'held':>8}")
    for key, parts in {**found, "all": [part for those in found.values() for part in those]}.items():
        off = np.abs(np.concatenate(parts))
        sigma = NORMAL * float(np.median(off))
        p68, p95 = np.percentile(off, (68, 95)).tolist()
        rows[key] = {
            "images": images.get(key, sum(images.values())),
            "columns": off.size,
            "sigma": sigma,
            "p68": p68,
            "p95": p95,
            "held": float((off <= 1.96 * GroundConfig().pixel_sigma).mean()),
        }
        print(
            f"{key:<22}{rows[key]['images']:>7}{off.size:>9}{np.median(off):>9.4f}{sigma:>9.4f}{p68:>9.4f}{p95:>9.4f}"
            f"{rows[key]['held']:>8.1%}"
        )
    if arguments.out:
        result = {"split": arguments.split, "model": model, "rows": rows, "machine": machine()}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def errors(free: NDArray[np.bool_], label: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Rows by which the end of free space is too high, as fractions of the height, in every eighth column."""
    known, true = label[::-1, ::EVERY] != IGNORE, label[::-1, ::EVERY] == 1
    ours = free[::-1, ::EVERY]
    # Own bonnets are not labelled: columns begin where the label is known.
    first = known.argmax(axis=0)
    rows = np.arange(len(label))[:, None]
    true_end = np.where(true | (rows < first), len(label), rows).min(axis=0)
    our_end = np.where(ours | (rows < first), len(label), rows).min(axis=0)
    columns = np.arange(true.shape[1])
    inner = np.minimum(true_end, len(label) - 1), columns
    counted = known.any(axis=0) & (true_end > first) & (our_end > first) & (true_end < len(label)) & (our_end < len(label))
    counted &= known[inner]
    return np.asarray((our_end - true_end)[counted] / len(label), np.float64)


if __name__ == "__main__":
    main()
