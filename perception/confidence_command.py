"""``freespace calibrate confidence`` as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.confidence import (
    BINS,
    KEY,
    METHODS,
    PlaneCalibration,
    Reals,
    Table,
    binned,
    calibrated,
    count_levels,
    expected_error,
    fit,
    fit_polygons,
    polygon_shift,
    shifted,
    with_record,
)
from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.base import Engine
from engine.preprocess import Resampling
from perception.config import PolygonConfig
from perception.errors import BadInput
from perception.polygons import extract, inside_rings
from perception.sinks import check_output
from perception.sinks.base import part_of, write_whole
from training.datasets import IGNORE, PLANES, SPLITS, Sample, find_samples, read_sample
from training.evaluate import rounded, sequences_to_draw
from training.metrics import bounds, divide, resampled
from training.splits import split_samples

WIDTH = 0.05  # of a bin of polygons; bins lie around 0.5, 0.55, ... 1
WEIGHT = 1_000_000  # polygons weigh as many millionths as their labelled pixels are of the image
SMALL = 0.01  # of the image: what is smaller is an island
HONEST = 0.03  # a polygon that says 0.9 should be right 0.87 to 0.93 of the time

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class PolygonTruth:
    """One polygon on a labelled frame.

    Attributes:
        image, sequence: where it was seen.
        mean: mean score inside, 0 to 1, before any shift.
        drivable: share of its labelled pixels that are labelled drivable.
        weight: its labelled pixels, in millionths of the image.
    """

    image: int
    sequence: str
    mean: float
    drivable: float
    weight: int


@dataclass
class Measured:
    """What a model says of a plane, beside its labels.

    Attributes:
        counts: int64 ``(256, 2)``, see `calibration.confidence.count_levels`; at the network's resolution, so that every frame
            weighs the same.
        polygons: of all frames.
        frames: how many.
    """

    counts: Table = field(default_factory=lambda: np.zeros((256, 2), np.int64))
    polygons: list[PolygonTruth] = field(default_factory=list)
    frames: int = 0


def confidence_command(
    model: str | None,
    data: Path,
    out: Path | None,
    split: str | None = None,
    method: str = "temperature",
    splits: Path | None = None,
    report: Path | None = None,
    diagram: Path | None = None,
    check: bool = False,
    overwrite: bool = False,
    backend: str = "onnxruntime",
) -> None:
    """Fit the confidence of ``model`` to the labels of a split, write the calibrated file and say what came of it.

    Args:
        out: the file to write; with ``check`` there is none.
        split: ``dev`` by default, with ``check`` ``val``.
        check: only measure the model as it is.
        report, diagram: JSON and PNG to write.

    Raises:
        BadInput, ModelError: with one sentence for the user.
    """
    split = split or ("val" if check else "dev")
    if split not in SPLITS:
        raise BadInput(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if check == (out is not None):
        raise BadInput("give --out, the file to write, or --check to measure only")
    if method not in METHODS:
        raise BadInput(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    for path in filter(None, (out, report, diagram)):
        check_output(path, overwrite)
    if diagram and diagram.suffix.lower() != ".png":
        raise BadInput(f"{diagram}: the diagram is a picture, give it a name that ends in .png")
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    if out and KEY in contract.metadata:
        raise BadInput(f"{contract.path}: its confidence is calibrated already; take the file it was made from, or --check")
    try:
        samples = split_samples(find_samples(data), file=splits)[split]
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(str(error)) from error
    if not samples:
        raise BadInput(f"no labelled images in split {split!r} below {data}")
    with open_engine(contract.path, backend) as engine:
        before = measure(engine, samples)
    if not before:
        raise BadInput(f"no plane of the model is labelled in split {split!r} below {data}")
    if out is None:
        shifts = {plane: polygon_shift(contract.metadata, plane) for plane in before}
        found = {plane: described(m, shifts[plane]) for plane, m in before.items()}
        print_found(f"{contract.path.name}, split {split}", found)
        finish(report, diagram, {"split": split, "model": contract.sha256, "planes": found}, [("measured", before)])
        return
    fits = {plane: fit(m.counts, method) for plane, m in before.items()}
    graph, part = calibrated(contract, fits), part_of(out)
    try:
        part.write_bytes(graph.SerializeToString())
        with open_engine(part, backend) as engine:
            after = measure(engine, samples)
    finally:
        part.unlink(missing_ok=True)
    shifts = {plane: fit_polygons(*columns(m.polygons)) for plane, m in after.items()}
    record = {
        "method": method,
        "of": contract.sha256,
        "split": split,
        "planes": {plane: recorded(fits[plane], before[plane], after[plane], shifts[plane]) for plane in before},
    }
    write_whole(out, with_record(graph, record).SerializeToString())
    first = {plane: described(m, 0.0) for plane, m in before.items()}
    second = {plane: described(m, shifts[plane]) for plane, m in after.items()}
    print_found(f"{contract.path.name} before, split {split}", first)
    print_found(f"{out.name} after, on the frames it was fitted to", second)
    for plane, calibration in fits.items():
        said = calibration.described() if calibration.levels is None else {"levels": "256 of its own"}
        values = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in said.items())
        print(f"{plane}: {values}; log-odds of polygons {shifts[plane]:+.4f}")
    print(f"{out}: check it on frames that nothing was chosen on: 'freespace calibrate confidence {out} --check --data {data}'")
    finish(report, diagram, record | {"before": first, "after": second}, [("before", before), ("after", after)])


# -- Measuring ---------------------------------------------------------------------------------------------------------


def measure(engine: Engine, samples: Iterable[Sample]) -> dict[str, Measured]:
    """What the model says of each plane, on the data sets whose labels know both what is the plane and what is not.

    Labels are taken as drawn, as in ``evaluate``. Polygons are those of ``run`` with its default settings, without shift.

    Raises:
        BadInput: an image or label cannot be read.
    """
    config = PolygonConfig()
    found: dict[tuple[str, str], Measured] = {}
    for number, sample in enumerate(samples):
        try:
            image, drawn = read_sample(sample, strict=True)
        except ValueError as error:
            raise BadInput(str(error)) from error
        scores, size = engine.segment([image]), (image.shape[1], image.shape[0])
        resampling = scores.resamplings[0]
        for plane, values in zip(engine.contract.planes, scores.values[0], strict=True):
            labels = drawn[PLANES.index(plane)]
            if np.all(labels == IGNORE):
                continue
            measured = found.setdefault((sample.dataset, plane), Measured())
            measured.frames += 1
            measured.counts += count_levels(*at_network(values, labels, resampling))
            for polygon in extract(values, resampling, plane, config):
                inside = labels[inside_rings(list(polygon.rings), size) > 0]
                known = inside[inside != IGNORE]
                if known.size:
                    weight = max(1, round(WEIGHT * known.size / labels.size))
                    name = f"{sample.dataset}/{sample.sequence}"
                    measured.polygons.append(PolygonTruth(number, name, polygon.confidence, float(known.mean()), weight))
    planes: dict[str, Measured] = {}
    for (_, plane), m in found.items():
        if m.counts.sum(0).all():
            total = planes.setdefault(plane, Measured())
            total.counts += m.counts
            total.polygons += m.polygons
            total.frames += m.frames
    return planes


def at_network(values: U8, labels: U8, resampling: Resampling) -> tuple[U8, U8]:
    """The scores of the part of the input that shows the frame, and the label at each score's place; both ``(h, w)``."""
    left, top, width, height = resampling.content
    corner = resampling.frame_from_input(np.array([[left, top]], np.float64))[0]
    step = resampling.frame_from_input(np.array([[left + 1, top + 1]], np.float64))[0] - corner
    columns, rows = (
        np.clip(np.rint(corner[axis] + step[axis] * np.arange(count)), 0, labels.shape[1 - axis] - 1).astype(int)
        for axis, count in ((0, width), (1, height))
    )
    return values[top : top + height, left : left + width], labels[rows[:, None], columns]


def columns(polygons: Sequence[PolygonTruth]) -> tuple[Reals, Reals, Reals]:
    """Mean scores, shares drivable and weights, float64 ``(n,)`` each."""
    return (
        np.array([p.mean for p in polygons], np.float64),
        np.array([p.drivable for p in polygons], np.float64),
        np.array([p.weight for p in polygons], np.float64),
    )


# -- What came of it ---------------------------------------------------------------------------------------------------


def recorded(calibration: PlaneCalibration, before: Measured, after: Measured, shift: float) -> dict[str, Any]:
    """What the model's metadata say of a plane."""
    return calibration.described() | {
        "polygon_shift": round(shift, 5),
        "frames": before.frames,
        "polygons": len(after.polygons),
        "ece_before": round(expected_error(before.counts), 5),
        "ece_after": round(expected_error(after.counts), 5),
    }


def described(m: Measured, shift: float) -> dict[str, Any]:
    """A plane as the report has it: errors of pixels, the table of reliability, and what polygons say and what is true."""
    said, true, number = binned(m.counts)
    rows = [
        {"from": round(i / BINS, 4), "says": round(s / n, 5), "true": round(t / n, 5), "pixels": int(n)}
        for i, (s, t, n) in enumerate(zip(said, true, number, strict=True))
        if n
    ]
    return {
        "frames": m.frames,
        "ece": round(expected_error(m.counts), 5),
        "ece_256": round(expected_error(m.counts, None), 5),
        "reliability": rows,
        "polygons": polygons_described(m.polygons, shift),
    }


def polygons_described(polygons: Sequence[PolygonTruth], shift: float) -> dict[str, Any]:
    """What polygons say, weighed by area, and what is true: of all and by bins, with 95 % intervals of the difference.

    ``within`` is the share of the area in bins that say what is true within `HONEST`; ``small`` and ``large`` count every
    polygon once, those of less than `SMALL` of the image and the others.
    """
    means, true, weights = columns(polygons)
    if not len(means):
        return {"number": 0}
    said = np.asarray(shifted(means, shift))
    place = np.rint(said / WIDTH).astype(int)
    bins: list[dict[str, Any]] = []
    for index in np.unique(place):
        own = np.flatnonzero(place == index)
        share = weights[own].sum() / weights.sum()
        says, is_true = (float(values[own] @ weights[own] / weights[own].sum()) for values in (said, true))
        low, high = difference_interval([polygons[int(i)] for i in own], said[own])
        bins.append(
            {
                "around": round(float(index * WIDTH), 2),
                "number": len(own),
                "share": round(float(share), 5),
                "says": round(says, 4),
                "true": round(is_true, 4),
                "difference_95": [rounded(low), rounded(high)],
            }
        )
    low, high = difference_interval(polygons, said)
    return {
        "number": len(polygons),
        "shift": round(shift, 5),
        "says": round(float(said @ weights / weights.sum()), 4),
        "true": round(float(true @ weights / weights.sum()), 4),
        "difference_95": [rounded(low), rounded(high)],
        "within": round(sum(b["share"] for b in bins if abs(b["says"] - b["true"]) <= HONEST), 4),
        "small": each_once(polygons, said, weights < SMALL * WEIGHT),
        "large": each_once(polygons, said, weights >= SMALL * WEIGHT),
        "bins": bins,
    }


def each_once(polygons: Sequence[PolygonTruth], said: Reals, kept: NDArray[np.bool_]) -> dict[str, Any]:
    """What the polygons that are ``kept``, ``(n,)``, say on average, each counted once, and what is true, with the 95 %
    interval of the difference; ``within`` is the share of them that are right within `HONEST` each by itself."""
    own = np.flatnonzero(kept)
    if not len(own):
        return {"number": 0}
    says, true = said[own], np.array([polygons[int(i)].drivable for i in own])
    low, high = difference_interval([replace(polygons[int(i)], weight=WEIGHT) for i in own], says)
    return {
        "number": len(own),
        "says": round(float(says.mean()), 4),
        "true": round(float(true.mean()), 4),
        "difference_95": [rounded(low), rounded(high)],
        "within": round(float((np.abs(says - true) <= HONEST).mean()), 4),
    }


def difference_interval(polygons: Sequence[PolygonTruth], said: Reals) -> tuple[float, float]:
    """What polygons say less what is true lies between, 95 %, by bootstrap over sequences, or images where they have none."""
    images: dict[int, NDArray[np.int64]] = {}
    sequences: dict[int, str] = {}
    for polygon, says in zip(polygons, said, strict=True):
        row = [round(says * polygon.weight), round(polygon.drivable * polygon.weight), polygon.weight]
        images[polygon.image] = images.get(polygon.image, np.zeros(3, np.int64)) + row
        sequences[polygon.image] = polygon.sequence
    sums = resampled(np.array(list(images.values()), np.int64), sequences_to_draw(list(sequences.values())), seed=0)
    return bounds(divide(sums[:, 0] - sums[:, 1], sums[:, 2]), 0.95)


def print_found(title: str, planes: dict[str, dict[str, Any]]) -> None:
    print(f"{title}; ECE: {BINS} bins of equal width (each of the 256 levels by itself)")
    for plane, found in planes.items():
        polygons = found["polygons"]
        print(f"  {plane}, {found['frames']} frames: ECE {found['ece']:.4f} ({found['ece_256']:.4f})")
        if not polygons["number"]:
            continue
        print(
            f"    {polygons['number']} polygons say {polygons['says']:.3f}, right {polygons['true']:.3f} of the area, "
            f"difference {interval(polygons)} (95 %); {100 * polygons['within']:.1f} % of it in bins right within {HONEST}"
        )
        for name, size in (("small", f"under {SMALL:.0%} of the image"), ("large", "larger")):
            if (each := polygons[name])["number"]:
                print(
                    f"    each once, {size}: {each['number']} say {each['says']:.3f}, right {each['true']:.3f}, difference "
                    f"{interval(each)}; {100 * each['within']:.1f} % of them right within {HONEST} by themselves"
                )
        for row in polygons["bins"]:
            print(
                f"    around {row['around']:.2f}: {row['number']:4d}, {100 * row['share']:5.1f} % of the area, say "
                f"{row['says']:.3f}, right {row['true']:.3f}, difference {interval(row)}"
            )


def interval(found: dict[str, Any]) -> str:
    low, high = found["difference_95"]
    return "unknown" if low is None else f"{low:+.3f} to {high:+.3f}"


def finish(
    report: Path | None, diagram: Path | None, content: dict[str, Any], stages: Sequence[tuple[str, dict[str, Measured]]]
) -> None:
    """Write what was asked for."""
    if report:
        write_whole(report, (json.dumps(content, indent=1) + "\n").encode())
    if diagram:
        done, data = cv2.imencode(".png", draw(stages))
        if not done:
            raise BadInput(f"{diagram}: the diagram could not be encoded")
        write_whole(diagram, data.tobytes())


# -- The diagram -------------------------------------------------------------------------------------------------------

PANEL, MARGIN, STRIP = 360, 56, 90  # pixels: of a diagram's side, around it, and of the bars below
INKS = ((150, 150, 150), (200, 90, 20))  # BGR, of the stages
BLACK, PALE, FONT = (40, 40, 40), (225, 225, 225), cv2.FONT_HERSHEY_SIMPLEX


def draw(stages: Sequence[tuple[str, dict[str, Measured]]]) -> U8:
    """Reliability diagrams (DeGroot & Fienberg 1983), BGR: a panel for each plane, how many pixels each bin holds below."""
    inks = INKS[-len(stages) :]
    panels = [
        panel(plane, [(name, ink, s[plane]) for (name, s), ink in zip(stages, inks, strict=True)]) for plane in stages[-1][1]
    ]
    return np.asarray(np.hstack(panels), np.uint8)


def panel(plane: str, stages: Sequence[tuple[str, tuple[int, int, int], Measured]]) -> U8:
    side, pad = PANEL, MARGIN
    canvas = np.full((pad + side + STRIP + pad, pad + side + pad // 2, 3), 255, np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(pad + x * side), round(pad + (1 - y) * side)

    def write(text: str, place: tuple[int, int], ink: tuple[int, int, int] = BLACK) -> None:
        cv2.putText(canvas, text, place, FONT, 0.42, ink, 1, cv2.LINE_AA)

    for tick in np.linspace(0, 1, 6):
        cv2.line(canvas, at(tick, 0), at(tick, 1), PALE)
        cv2.line(canvas, at(0, tick), at(1, tick), PALE)
        write(f"{tick:.1f}", (at(tick, 0)[0] - 10, at(0, 0)[1] + 16))
        write(f"{tick:.1f}", (at(0, 0)[0] - 30, at(0, tick)[1] + 5))
    cv2.line(canvas, at(0, 0), at(1, 1), BLACK, 1, cv2.LINE_AA)
    cv2.rectangle(canvas, at(0, 1), at(1, 0), BLACK)
    bottom = pad + side + STRIP
    for order, (name, ink, m) in enumerate(stages):
        said, true, number = binned(m.counts)
        held = number > 0
        points = [at(s / n, t / n) for s, t, n in zip(said[held], true[held], number[held], strict=True)]
        cv2.polylines(canvas, [np.array(points, np.int32)], False, ink, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(canvas, point, 4, ink, cv2.FILLED, cv2.LINE_AA)
        wide = side / BINS / len(stages)
        for i in np.flatnonzero(held):
            left = at(i / BINS, 0)[0] + round(order * wide) + 1
            high = round((STRIP - 30) * np.log10(number[i]) / np.log10(max(number.sum(), 10)))
            cv2.rectangle(canvas, (left, bottom - high), (left + max(1, round(wide) - 2), bottom), ink, cv2.FILLED)
        write(f"{name}: ECE {expected_error(m.counts):.4f}", (pad + 8, pad + 18 + 18 * order), ink)
    write(f"{plane}: share labelled drivable over score", (pad, pad - 14))
    write("below: pixels in each bin, logarithmic", (pad, bottom + 18))
    return canvas
