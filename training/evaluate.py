"""Accuracy of a deployed model file: a user's frame through the engine, at the label's resolution."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engine.base import Engine
from training.datasets import PLANES, SPLITS, Sample, find_samples, read_sample, split_of
from training.metrics import Counts, count

Row = tuple[str, str, str]  # data set, condition, plane


def evaluate_model(engine: Engine, data: Path, split: str, threshold: float = 0.5) -> dict[Row, Counts]:
    """Counts per data set, condition and plane over the labelled images of ``split``.

    Scores are brought to the image's size bilinearly and compared with ``threshold``; labels are taken as drawn. Polygons do
    not take part: small regions count as what they are. BDD100K has a second row, ``no seams``, in which the unlabelled seams
    between its lanes are not counted.

    Raises:
        ValueError: the split is unknown or has no images.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    samples = [s for s in find_samples(data) if split_of(s) == split]
    if not samples:
        raise ValueError(f"no labelled images in split {split!r} below {data}")
    totals: dict[Row, Counts] = {}

    def add(sample: Sample, condition: str, plane: str, drivable: NDArray[np.bool_], target: NDArray[np.uint8]) -> None:
        key = (sample.dataset, condition, plane)
        totals[key] = totals.get(key, Counts()) + count(drivable, target)

    for sample in samples:
        image, planes = read_sample(sample, strict=True)
        lenient = read_sample(sample)[1] if sample.dataset == "bdd100k" else None
        scores, size = engine.segment([image]), (image.shape[1], image.shape[0])
        for index, plane in enumerate(engine.contract.planes):
            drivable = cv2.resize(scores.values[0, index], size, interpolation=cv2.INTER_LINEAR) > int(255 * threshold)
            channel = PLANES.index(plane)
            add(sample, "all", plane, drivable, planes[channel])
            if sample.condition != "any":
                add(sample, sample.condition, plane, drivable, planes[channel])
            if lenient is not None:
                add(sample, "no seams", plane, drivable, lenient[channel])
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
    report = {
        "definition": definition,
        "split": split,
        "weights": weights_sha256(engine.contract.path),
        "input_size": list(engine.input_size),
        "backend": engine.name,
        "precision": engine.precision,
        "results": results,
    }
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, path)


def weights_sha256(path: Path) -> str:
    """Of a model file's weights alone: it stays when the metrics measured with them are written into the file."""
    digest = hashlib.sha256()
    for tensor in sorted(onnx.load(str(path)).graph.initializer, key=lambda t: t.name):
        digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()
