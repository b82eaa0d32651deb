"""Accuracy of a deployed model file: the very path that a user's frame takes, at the label's resolution."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2

from engine.base import Engine
from training.datasets import PLANES, find_samples, read_sample, split_of
from training.metrics import Counts, count

Row = tuple[str, str, str]  # data set, condition, plane


def evaluate_model(engine: Engine, data: Path, split: str, threshold: float = 0.5) -> dict[Row, Counts]:
    """Counts per data set, condition and plane over the labelled images of ``split``.

    Scores are brought to the image's size bilinearly and compared with ``threshold``; labels are taken as drawn.

    Raises:
        ValueError: the split is unknown or has no images.
    """
    samples = [s for s in find_samples(data) if split_of(s) == split]
    if not samples:
        raise ValueError(f"no labelled images in split {split!r} below {data}")
    totals: dict[Row, Counts] = {}
    for sample in samples:
        image, planes = read_sample(sample, strict=True)
        scores = engine.segment([image])
        for index, plane in enumerate(engine.contract.planes):
            upscaled = cv2.resize(scores.values[0, index], (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
            counts = count(upscaled > int(255 * threshold), planes[PLANES.index(plane)])
            for condition in {"all", sample.condition} - {"any"}:
                key = (sample.dataset, condition, plane)
                totals[key] = totals.get(key, Counts()) + counts
    return {k: v for k, v in sorted(totals.items()) if v.tp + v.fn and supervised(k)}


def supervised(row: Row) -> bool:
    """Whether the data set's annotators drew this plane."""
    dataset, _, plane = row
    return plane == ("ego" if dataset == "bdd100k" else "freespace")


def print_report(rows: dict[Row, Counts], split: str, engine: Engine) -> None:
    print(f"{engine.contract.path.name} {engine.contract.sha256[:12]}, {engine.name} {engine.precision}, split {split}")
    print("dataset-level IoU = TP / (TP + FP + FN), summed over all labelled pixels of all images")
    print(f"{'data set':<10} {'condition':<10} {'plane':<10} {'n':>5} {'IoU':>8} {'Dice':>8} {'precision':>10} {'recall':>8}")
    for (dataset, condition, plane), c in rows.items():
        ratios = f"{c.iou:8.4f} {c.dice:8.4f} {c.precision:10.4f} {c.recall:8.4f}"
        print(f"{dataset:<10} {condition:<10} {plane:<10} {c.images:>5} {ratios}")


def write_report(path: Path, rows: dict[Row, Counts], split: str, engine: Engine) -> None:
    """The same as JSON, with the counts that the ratios come from."""
    results: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "condition": condition,
            "plane": plane,
            "images": c.images,
            "iou": round(c.iou, 4),
            "dice": round(c.dice, 4),
            "tp": c.tp,
            "fp": c.fp,
            "fn": c.fn,
            "tn": c.tn,
        }
        for (dataset, condition, plane), c in rows.items()
    ]
    definition = "dataset-level IoU = TP / (TP + FP + FN), summed over all labelled pixels of all images of the split"
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps({"definition": definition, "split": split, "backend": engine.name, "results": results}, indent=1)
    )
    os.replace(part, path)
