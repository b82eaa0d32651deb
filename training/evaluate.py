"""Accuracy of a deployed model file: a user's frame through the engine, at the label's resolution."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import numpy_helper

from engine.base import Engine
from engine.files import write_whole
from training.datasets import IGNORE, PLANES, SPLITS, U8, Sample, bdd_planes, find_samples, read_sample
from training.metrics import (
    BoundaryCounts,
    Counts,
    bootstrap,
    bootstrap_difference,
    count,
    count_boundary,
    iou,
    mean_over_images,
    table,
    worst,
)
from training.splits import parse_entry, split_samples, unit_of

KEY_SEQUENCES = "freespace.trained_sequences"  # of a model file: own data sets and their sequences, as in a file of splits

Row = tuple[str, str, str]  # data set, condition, plane

DEFINITION = "dataset-level IoU = TP / (TP + FP + FN), summed over all labelled pixels of all images"


@dataclass(frozen=True)
class ImageResult:
    """One plane of one image.

    Attributes:
        name: its path below the data folder.
        sequence: the drive it comes from.
        counts: of pixels.
        boundary: of outline pixels.
    """

    name: str
    sequence: str
    counts: Counts
    boundary: BoundaryCounts


@dataclass
class Result(Counts):
    """Counts of a row, and the images that they are summed from."""

    per_image: list[ImageResult] = field(default_factory=list)

    @property
    def boundary(self) -> BoundaryCounts:
        """Outline pixels of all images."""
        return sum((i.boundary for i in self.per_image), BoundaryCounts())

    @property
    def groups(self) -> list[str] | None:
        """The sequence of each image where there are several with several images, else None: images stand alone."""
        return sequences_to_draw([i.sequence for i in self.per_image])

    @property
    def interval(self) -> tuple[float, float]:
        """What the IoU lies between, 95 %, by bootstrap over sequences, or images where `groups` is None."""
        return bootstrap(table(i.counts for i in self.per_image), self.groups)

    @property
    def image_iou(self) -> float:
        """Mean of the images' own IoUs."""
        return mean_over_images(iou(table(i.counts for i in self.per_image)))

    @property
    def worst(self) -> list[ImageResult]:
        """The three images with the lowest IoU."""
        return [self.per_image[i] for i in worst(iou(table(i.counts for i in self.per_image)), 3)]


def evaluate_model(
    engine: Engine, data: Path, split: str, threshold: float = 0.5, splits: Path | None = None
) -> dict[Row, Result]:
    """Results per data set, condition and plane over the labelled images of ``split`` below ``data``: see `evaluate_samples`.

    Raises as `samples_of`.
    """
    samples = samples_of(data, split, splits)
    if seen := trained_on(engine.contract.metadata, samples):
        print(f"note: the model was trained on {seen} of these {len(samples)} images; give its --splits", file=sys.stderr)
    return evaluate_samples(engine, samples, data, threshold)


def samples_of(data: Path, split: str, splits: Path | None = None) -> list[Sample]:
    """The labelled images of ``split`` below ``data``.

    ``splits`` is a file as `training.splits` reads it, such as the one that a training run leaves behind.

    Raises:
        ValueError: the split is unknown or has no images.
        FileNotFoundError: no data set lies there.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    samples = split_samples(find_samples(data), file=splits)[split]
    if not samples:
        raise ValueError(f"no labelled images in split {split!r} below {data}")
    return samples


def trained_on(metadata: Mapping[str, str], samples: Sequence[Sample]) -> int:
    """How many of the samples are of sequences that a model file says it was trained on."""
    held = json.loads(metadata.get(KEY_SEQUENCES, "{}"))
    entries = {dataset: [parse_entry(text) for text in texts] for dataset, texts in held.items()}

    def seen(sample: Sample) -> bool:
        own = entries.get(sample.dataset, ())
        return any(entry.sequence == unit_of(sample) and entry.holds(sample.image.stem) for entry in own)

    return sum(map(seen, samples))


def evaluate_samples(engine: Engine, samples: Iterable[Sample], data: Path, threshold: float = 0.5) -> dict[Row, Result]:
    """Results per data set, condition and plane; images are named by their path below ``data``.

    Scores are brought to the image's size bilinearly and compared with ``threshold``; labels are taken as drawn. Polygons do
    not take part: small regions count as what they are. A row is left out where the plane was never drawn, or never known
    not to be there. BDD100K has a further row, ``no seams``, in which the unlabelled seams between its lanes are not counted.

    Raises:
        ValueError: a file cannot be decoded, or image and label differ in size.
    """
    rows: dict[Row, list[ImageResult]] = {}
    for sample in samples:
        image, drawn = read_sample(sample, strict=True)
        scores, size = engine.segment([image]), (image.shape[1], image.shape[0])
        name = Path(os.path.relpath(sample.image, data)).as_posix()
        for index, plane in enumerate(engine.contract.planes):
            target = drawn[PLANES.index(plane)]
            if np.all(target == IGNORE):
                continue
            drivable = cv2.resize(scores.values[0, index], size, interpolation=cv2.INTER_LINEAR) > int(255 * threshold)
            for conditions, labels in targets_by_condition(sample, target):
                result = ImageResult(name, sample.sequence, count(drivable, labels), count_boundary(drivable, labels))
                for condition in conditions:
                    rows.setdefault((sample.dataset, condition, plane), []).append(result)
    results = {row: summed(images) for row, images in sorted(rows.items())}
    return {row: r for row, r in results.items() if r.tp + r.fn and r.fp + r.tn}


def targets_by_condition(sample: Sample, drawn: U8) -> list[tuple[list[str], U8]]:
    """The conditions that a plane of an image counts in, and its target uint8 ``(h, w)`` there."""
    conditions = ["all"] if sample.condition == "any" else ["all", *sample.condition.split("+")]
    if sample.dataset != "bdd100k":
        return [(conditions, drawn)]
    return [(conditions, drawn), (["no seams"], bdd_planes(drawn)[PLANES.index("ego")])]


def summed(images: list[ImageResult]) -> Result:
    total = sum((i.counts for i in images), Counts())
    return Result(total.tp, total.fp, total.fn, total.tn, total.images, images)


def sequences_to_draw(sequences: Sequence[str]) -> list[str] | None:
    """Images of a sequence resemble each other and are drawn together, unless there is but one, or each has its own."""
    return list(sequences) if 1 < len(set(sequences)) < len(sequences) else None


def print_report(rows: dict[Row, Result], split: str, engine: Engine) -> None:
    print(f"{engine.contract.path.name} {engine.contract.sha256[:12]}, {engine.name} {engine.precision}, split {split}")
    print(DEFINITION)
    print("95 %: bootstrap over sequences, over images where marked *; boundary: F-score of outlines at 0.75 % of the diagonal")
    wide = max([10, *(len(dataset) for dataset, _, _ in rows)])
    print(
        f"{'data set':<{wide}} {'condition':<10} {'plane':<10} {'n':>5} {'IoU':>8} {'Dice':>8} {'precision':>10} {'recall':>8} "
        f"{'accuracy':>9} {'boundary':>9} {'image IoU':>10}  {'95 % of IoU':<14}"
    )
    for (dataset, condition, plane), r in rows.items():
        low, high = r.interval
        print(
            f"{dataset:<{wide}} {condition:<10} {plane:<10} {r.images:>5} {r.iou:8.4f} {r.dice:8.4f} {r.precision:10.4f} "
            f"{r.recall:8.4f} {r.accuracy:9.4f} {r.boundary.f_score:9.4f} {r.image_iou:10.4f}  {low:.4f} {high:.4f}"
            f"{'' if r.groups else ' *'}"
        )
    for (dataset, condition, plane), r in rows.items():
        if condition == "all":
            print(f"lowest {dataset} {plane}: " + ", ".join(f"{i.name} {i.counts.iou:.4f}" for i in r.worst))


def write_report(path: Path, rows: dict[Row, Result], split: str, engine: Engine) -> None:
    """The same as JSON, with the counts that the ratios come from, and those of each image for `compare_reports`."""
    results: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "condition": condition,
            "plane": plane,
            "images": r.images,
            "iou": rounded(r.iou),
            "iou_95": [rounded(limit) for limit in r.interval],
            "resampled": "images" if r.groups is None else "sequences",
            "units": len(set(r.groups or range(r.images))),
            "dice": rounded(r.dice),
            "precision": rounded(r.precision),
            "recall": rounded(r.recall),
            "accuracy": rounded(r.accuracy),
            "boundary_f": rounded(r.boundary.f_score),
            "image_iou": rounded(r.image_iou),
            "tp": r.tp,
            "fp": r.fp,
            "fn": r.fn,
            "tn": r.tn,
        }
        for (dataset, condition, plane), r in rows.items()
    ]
    images: list[dict[str, Any]] = [
        {
            "dataset": dataset,
            "condition": condition,
            "plane": plane,
            "name": i.name,
            "sequence": i.sequence,
            "tp": i.counts.tp,
            "fp": i.counts.fp,
            "fn": i.counts.fn,
            "tn": i.counts.tn,
            "iou": rounded(i.counts.iou),
        }
        for (dataset, condition, plane), r in rows.items()
        for i in r.per_image
    ]
    report = {
        "definition": f"{DEFINITION} of the split",
        "split": split,
        "weights": weights_sha256(engine.contract.path),
        "input_size": list(engine.input_size),
        "backend": engine.name,
        "precision": engine.precision,
        "results": results,
        "images": images,
    }
    write_whole(path, (json.dumps(report, indent=1) + "\n").encode())


def rounded(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 4)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images of a row.

    Attributes:
        dataset, condition, plane: the row.
        images: how many.
        first, second: dataset-level IoU of either.
        low, high: what the second less the first lies between, 95 %, by paired bootstrap over sequences or images.
    """

    dataset: str
    condition: str
    plane: str
    images: int
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.second - self.first


def compare_reports(a: Path, b: Path) -> list[Comparison]:
    """Two JSON reports of `write_report`, row by row, for the planes that both have.

    Raises:
        FileNotFoundError: a report is not there.
        ValueError: a file is no report with images, or they are of other splits, images or labels.
    """
    (split, first), (other_split, second) = read_images(a), read_images(b)
    if split != other_split:
        raise ValueError(f"{a} is of split {split!r} and {b} of {other_split!r}; evaluate both models on the same split")
    planes = {plane for _, _, plane in first} & {plane for _, _, plane in second}
    if not planes:
        raise ValueError(f"{a} and {b} have no plane in common")
    keys = [row for row in first if row[2] in planes]
    if set(keys) != {row for row in second if row[2] in planes}:
        raise ValueError(f"{a} and {b} have other data sets or conditions; evaluate both models on the same data")
    comparisons = []
    for row in keys:
        names = list(first[row])
        different = set(names) ^ set(second[row])
        if different:
            raise ValueError(f"{min(different)} is in only one of {a} and {b}; evaluate both models on the same data")
        groups = sequences_to_draw([first[row][name][0] for name in names])
        one, two = (np.array([images[row][name][1] for name in names], np.int64) for images in (first, second))
        moved = np.flatnonzero((one[:, [0, 2]].sum(1) != two[:, [0, 2]].sum(1)) | (one.sum(1) != two.sum(1)))
        if moved.size:
            raise ValueError(f"{names[moved[0]]} has other labels in {a} than in {b}; evaluate both models on the same data")
        low, high = bootstrap_difference(one, two, groups)
        comparisons.append(Comparison(*row, len(names), float(iou(one.sum(0))), float(iou(two.sum(0))), low, high))
    return comparisons


def read_images(report: Path) -> tuple[str, dict[Row, dict[str, tuple[str, list[int]]]]]:
    """Split of a report, and by row and image name its sequence and TP, FP, FN, TN. Raises as `compare_reports`."""
    if not report.is_file():
        raise FileNotFoundError(f"no report {report}; 'freespace evaluate --report' writes one")
    rows: dict[Row, dict[str, tuple[str, list[int]]]] = {}
    try:
        content = json.loads(report.read_text())
        for i in content["images"]:
            counts = [int(i[key]) for key in ("tp", "fp", "fn", "tn")]
            rows.setdefault((i["dataset"], i["condition"], i["plane"]), {})[i["name"]] = (i["sequence"], counts)
        return str(content["split"]), rows
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{report}: not a report with results by image; write it again with 'freespace evaluate'") from error


def print_comparison(comparisons: Sequence[Comparison], a: Path, b: Path) -> None:
    print(f"IoU of {b} less that of {a}, on the same images; 95 %: paired bootstrap; marked where it leaves 0 out")
    wide = max([10, *(len(c.dataset) for c in comparisons)])
    print(
        f"{'data set':<{wide}} {'condition':<10} {'plane':<10} {'n':>5} {'first':>8} {'second':>8} {'difference':>11}  "
        f"{'95 % of it':<17}"
    )
    for c in comparisons:
        print(
            f"{c.dataset:<{wide}} {c.condition:<10} {c.plane:<10} {c.images:>5} {c.first:8.4f} {c.second:8.4f} "
            f"{c.difference:+11.4f}  {c.low:+.4f} {c.high:+.4f}{' better' if c.low > 0 else ' worse' if c.high < 0 else ''}"
        )


def weights_sha256(path: Path) -> str:
    """Of a model file's weights alone: it stays when the metrics measured with them are written into the file."""
    digest = hashlib.sha256()
    for tensor in sorted(onnx.load(str(path)).graph.initializer, key=lambda t: t.name):
        digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()
