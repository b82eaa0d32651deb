"""Counts, ratios, outlines and intervals against numbers found another way; and what is made of them in a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import DEFAULT_MODEL
from training import evaluate as evaluation
from training.datasets import IGNORE, PLANES, Sample, find_samples, read_sample
from training.evaluate import (
    compare_reports,
    evaluate_model,
    evaluate_samples,
    print_comparison,
    print_report,
    write_report,
)
from training.metrics import (
    BoundaryCounts,
    Counts,
    bootstrap,
    bootstrap_difference,
    class_iou,
    confusion,
    count,
    count_boundary,
    frequency_weighted_iou,
    iou,
    mean_iou,
    mean_over_images,
    table,
    worst,
)


def test_ratios_by_hand() -> None:
    counts = Counts(tp=6, fp=2, fn=4, tn=12, images=1)
    assert counts.iou == 0.5
    assert counts.dice == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert (counts.precision, counts.recall) == (0.75, 0.6)
    assert counts.specificity == pytest.approx(12 / 14)
    assert counts.accuracy == 0.75
    assert np.isnan(Counts().accuracy)
    assert np.isnan(Counts(tp=1).specificity)


def test_tables_of_counts() -> None:
    images = [Counts(1, 2, 1, 0, 1), Counts(0, 0, 0, 9, 1), Counts(3, 0, 0, 1, 1)]
    rows = table(images)
    assert rows.tolist() == [[1, 2, 1, 0], [0, 0, 0, 9], [3, 0, 0, 1]]
    assert table([]).shape == (0, 4)
    scores = iou(rows)
    assert scores[[0, 2]].tolist() == [0.25, 1.0]
    assert np.isnan(scores[1])
    assert iou(rows.sum(0)) == 4 / 7
    assert mean_over_images(scores) == 0.625
    assert np.isnan(mean_over_images(scores[1:2]))
    assert worst(scores, 3) == [0, 2], "an image without the plane has no score"
    assert worst(scores, 1) == [0]


# Several classes.


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_confusion_is_counting(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, classes, (6, 9)).astype(np.uint8)
    target = rng.integers(0, classes, (6, 9)).astype(np.uint8)
    target[rng.random(target.shape) < 0.3] = IGNORE
    prediction[target == IGNORE] = 77  # whatever it says there
    matrix = confusion(prediction, target, classes)
    wanted = [[int(np.sum((target == t) & (prediction == p))) for p in range(classes)] for t in range(classes)]
    assert matrix.tolist() == wanted
    ious, shares = [], []
    for c in range(classes):
        single = count(prediction == c, np.where(target == IGNORE, IGNORE, target == c).astype(np.uint8))
        ious.append(single.iou)
        shares.append(np.sum(target == c) / np.sum(target != IGNORE))
    assert np.allclose(class_iou(matrix), ious, equal_nan=True)
    assert mean_iou(matrix) == pytest.approx(np.nanmean(ious))
    assert frequency_weighted_iou(matrix) == pytest.approx(np.nansum(np.multiply(shares, ious)))


def test_confusion_refuses_what_it_cannot_count() -> None:
    index = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="prediction has classes from 0 to 2; wanted 0 to 1"):
        confusion(np.array([[0, 2], [0, 0]]), index, 2)
    with pytest.raises(ValueError, match="target has classes from -1 to 0"):
        confusion(index, np.array([[0, -1], [0, 0]]), 2)
    with pytest.raises(ValueError, match="same shape"):
        confusion(index, index[:1], 2)
    nothing = confusion(index, index + IGNORE, 2)
    assert nothing.sum() == 0
    assert np.isnan(mean_iou(nothing))
    assert np.isnan(frequency_weighted_iou(nothing))


# Outlines.


def outline_by_hand(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    h, w = mask.shape
    return [
        (y, x)
        for y in range(h)
        for x in range(w)
        if mask[y, x] and known[y, x]
        if any(
            0 <= v < h and 0 <= u < w and known[v, u] and not mask[v, u]
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        )
    ]


@given(seed=st.integers(0, 10_000), tolerance=st.sampled_from([0.0, 0.075, 0.11, 0.2]))
@settings(max_examples=60, deadline=None)
def test_outlines_are_matched_within_the_tolerance(seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (9, 13)
    prediction = cv2.blur(rng.random(shape), (3, 3)) > 0.5
    target = (cv2.blur(rng.random(shape), (3, 3)) > 0.5).astype(np.uint8)
    target[rng.random(shape) < 0.1] = IGNORE
    found = count_boundary(prediction, target, tolerance)
    said, true = outline_by_hand(prediction, target != IGNORE), outline_by_hand(target == 1, target != IGNORE)
    limit = tolerance * np.hypot(9, 13)

    def matched(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
        return sum(any(np.hypot(y - v, x - u) <= limit + 1e-6 for v, u in others) for y, x in points)

    assert found == BoundaryCounts(len(said), matched(said, true), len(true), matched(true, said))


def test_outline_score_by_hand() -> None:
    target = np.zeros((100, 100), np.uint8)
    target[50:] = 1
    prediction = target == 1
    assert count_boundary(prediction, target) == BoundaryCounts(100, 100, 100, 100), "the image's border is no outline"
    assert count_boundary(np.roll(prediction, 1, 0) & prediction, target).f_score == 1, "1 pixel is within 0.75 % of 141"
    assert count_boundary(np.roll(prediction, 2, 0) & prediction, target).f_score == 0
    half = prediction.copy()
    half[50:60, 50:] = False
    counts = count_boundary(half, target)  # the step has 9 pixels more (rows 51 to 59); 1 column more is near the true line
    assert (counts.actual, counts.actual_matched) == (100, 51)
    assert (counts.predicted, counts.predicted_matched) == (109, 51)
    assert counts.f_score == pytest.approx(2 * (51 / 109) * (51 / 100) / (51 / 109 + 51 / 100))
    assert (counts + counts).f_score == counts.f_score
    assert (counts + counts).predicted == 218


def test_outline_score_where_there_is_no_outline() -> None:
    target = np.zeros((20, 20), np.uint8)
    nothing, something = target == 1, np.eye(20, dtype=bool)
    assert np.isnan(count_boundary(nothing, target).f_score)
    assert count_boundary(something, target).f_score == 0
    assert count_boundary(nothing, something.astype(np.uint8)).f_score == 0
    assert count_boundary(something, np.full_like(target, IGNORE)) == BoundaryCounts()


# Intervals.


def counts_of_images(number: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(500, 900, number), rng.integers(0, 90, (number, 2)), rng.integers(0, 2000, number)])


def accuracy(counts: NDArray[Any]) -> NDArray[np.float64]:
    return (counts[..., 0] + counts[..., 3]) / counts.sum(-1)


def test_interval_of_a_mean_is_the_one_of_statistics() -> None:
    """Images of one size: the accuracy is a mean, whose interval is 1.96 standard errors to both sides."""
    right = np.random.default_rng(3).integers(600, 1000, 240)
    counts = np.column_stack([right, 1000 - right, np.zeros((240, 2), np.int64)])
    low, high = bootstrap(counts, statistic=accuracy)
    error = right.std() / np.sqrt(240) / 1000
    assert low == pytest.approx(right.mean() / 1000 - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(right.mean() / 1000 + 1.96 * error, abs=0.15 * error)
    narrow = bootstrap(counts, statistic=accuracy, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_interval_of_the_iou_is_that_of_drawing_images() -> None:
    """Against the plain loop: draw images, sum their counts, take the ratio."""
    counts = counts_of_images(40)
    rng = np.random.default_rng(11)
    values = []
    for _ in range(4000):
        tp, fp, fn, _ = counts[rng.integers(40, size=40)].sum(0)
        values.append(tp / (tp + fp + fn))
    wanted = np.quantile(values, [0.025, 0.975])
    assert bootstrap(counts) == pytest.approx(wanted, abs=0.1 * (wanted[1] - wanted[0]))
    assert bootstrap(counts) == bootstrap(counts)
    assert bootstrap(counts, seed=1) != bootstrap(counts)


def test_images_of_a_sequence_are_drawn_together() -> None:
    counts = counts_of_images(30)
    repeated, drives = np.repeat(counts, 4, axis=0), [f"drive {i // 4}" for i in range(120)]
    assert bootstrap(repeated, drives) == bootstrap(counts), "four copies of an image say no more than one"
    low, high = bootstrap(repeated)
    wide_low, wide_high = bootstrap(counts)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(2, rel=0.15)
    shuffled = np.random.default_rng(0).permutation(120)
    several = bootstrap(repeated[shuffled], [drives[i] for i in shuffled])
    assert several == pytest.approx((wide_low, wide_high), abs=0.15 * (wide_high - wide_low))


def test_paired_interval_is_that_of_the_difference() -> None:
    first = counts_of_images(60)
    second = first + np.array([5, 0, -5, 0])  # five pixels more are found in every image
    low, high = bootstrap_difference(first, second)
    difference = iou(second.sum(0)) - iou(first.sum(0))
    assert low <= difference <= high
    assert bootstrap_difference(second, first) == pytest.approx((-high, -low))
    alone = bootstrap(first)
    assert high - low < 0.1 * (alone[1] - alone[0]), "what is hard for both drops out"
    assert bootstrap_difference(first, first) == (0, 0)
    grouped = bootstrap_difference(np.repeat(first, 3, 0), np.repeat(second, 3, 0), np.repeat(np.arange(60), 3).tolist())
    assert grouped == (low, high)


def test_intervals_that_cannot_be_known() -> None:
    counts = counts_of_images(4)
    assert np.isnan(bootstrap(counts[:1])).all()
    assert np.isnan(bootstrap(counts, ["one drive"] * 4)).all()
    assert np.isnan(bootstrap(counts * [0, 0, 0, 1])).all(), "nothing to find and nothing found"
    with pytest.raises(ValueError, match="3 groups for 4 images"):
        bootstrap(counts, ["a", "b", "c"])
    with pytest.raises(ValueError, match="tables of 4 and 3 images"):
        bootstrap_difference(counts, counts[:3])


# Reports.


class Eyes:
    """An engine that takes what is bright in an image for drivable, in every plane."""

    contract = SimpleNamespace(planes=PLANES, path=DEFAULT_MODEL, sha256="0" * 64)
    name, precision, input_size = "eyes", "fp32", (64, 48)

    def __init__(self, threshold: int = 100) -> None:
        self.threshold = threshold

    def segment(self, images: list[NDArray[np.uint8]]) -> SimpleNamespace:
        bright = np.where(images[0][..., 1] > self.threshold, 255, 0).astype(np.uint8)
        return SimpleNamespace(values=np.repeat(bright[None, None], len(self.contract.planes), 1))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CamVid, IDD and BDD100K in small: road from row 24 on; in image i the answer begins 8 (i % 3) rows lower, weakly."""
    root = tmp_path / "data"
    for folder, stems, (road, other) in (
        ("camvid/val", [f"seq_{i:06d}" for i in range(5)], (3, 5)),
        ("idd_lite/train", [f"{i // 2}_{i:06d}" for i in range(6)], (0, 1)),
        ("bdd100k/train", [f"b{i}" for i in range(4)], (1, 0)),
    ):
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "labels").mkdir()
        for i, stem in enumerate(stems):
            label = np.full((48, 64), other, np.uint8)
            label[24:] = road
            if "bdd" in folder:
                label[24:, 32] = other  # the seam between two lanes
            image = np.zeros((48, 64, 3), np.uint8)
            image[24:] = 128
            image[24 + 8 * (i % 3) :] = 255
            cv2.imwrite(str(root / folder / "images" / f"{stem}.jpg"), image)
            cv2.imwrite(str(root / folder / "labels" / f"{stem}.png"), label)
    (root / "bdd100k/train/day.txt").write_text("b0\nb1\nb2\n")
    (root / "bdd100k/train/night.txt").write_text("b3\n")
    return root


def all_of(data: Path, engine: Any) -> dict[tuple[str, str, str], Any]:
    return evaluate_samples(engine, find_samples(data), data)


def test_rows_hold_what_was_drawn(data: Path) -> None:
    rows = all_of(data, Eyes(200))
    assert list(rows) == [
        ("bdd100k", "all", "ego"),
        ("bdd100k", "day", "ego"),
        ("bdd100k", "night", "ego"),
        ("bdd100k", "no seams", "ego"),
        ("camvid", "all", "freespace"),
        ("idd_lite", "all", "freespace"),
    ]
    camvid = rows["camvid", "all", "freespace"]  # 0, 8, 16, 0, 8 rows of 24 are missed
    assert (camvid.images, camvid.tp, camvid.fp, camvid.fn) == (5, (5 * 24 - 32) * 64, 0, 32 * 64)
    assert camvid.tn == 5 * 24 * 64
    assert camvid.image_iou == pytest.approx(np.mean([1, 2 / 3, 1 / 3, 1, 2 / 3]))
    assert [Path(i.name).stem for i in camvid.worst] == ["seq_000002", "seq_000001", "seq_000004"]
    assert camvid.boundary == BoundaryCounts(5 * 64, 2 * 64, 5 * 64, 2 * 64)
    assert camvid.groups is None, "one sequence alone cannot be drawn from"
    assert rows["idd_lite", "all", "freespace"].groups == ["0", "0", "1", "1", "2", "2"]
    assert rows["bdd100k", "all", "ego"].groups is None, "each image has a sequence of its own"
    assert (rows["bdd100k", "day", "ego"].images, rows["bdd100k", "night", "ego"].images) == (3, 1)
    low, high = camvid.interval
    assert 1 / 3 < low < camvid.iou < high < 1


def test_seams_between_lanes_count_in_one_row_and_not_in_the_other(data: Path) -> None:
    rows = all_of(data, Eyes())
    assert rows["bdd100k", "all", "ego"].fp == 4 * 24
    lenient = sum(
        (
            count(read_sample(s)[0][..., 1] > 100, read_sample(s)[1][PLANES.index("ego")])
            for s in find_samples(data)
            if s.dataset == "bdd100k"
        ),
        Counts(),
    )
    row = rows["bdd100k", "no seams", "ego"]
    assert (row.tp, row.fp, row.fn, row.tn) == (lenient.tp, lenient.fp, lenient.fn, lenient.tn)
    assert row.fp < 4 * 24


def test_files_are_decoded_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    imread = cv2.imread

    def counting(path: str, *flags: int) -> Any:
        opened.append(path)
        return imread(path, *flags)

    samples = find_samples(data)
    monkeypatch.setattr(cv2, "imread", counting)
    evaluate_samples(Eyes(), samples, data)
    assert sorted(opened) == sorted(str(p) for s in samples for p in (s.image, s.label))


def test_a_set_of_ones_own_has_the_planes_that_it_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, one, or one that is only known not to be there; and conditions may be several."""
    drawn = np.zeros((2, 48, 64), np.uint8)
    drawn[0, 24:] = 1
    images = {
        "both": np.stack([drawn[0], drawn[0]]),
        "road": np.stack([drawn[0], np.full_like(drawn[0], IGNORE)]),
        "off the road": np.stack([drawn[0], np.where(drawn[0], IGNORE, 0)]),
        "all road": np.stack([np.ones_like(drawn[0]), drawn[0]]),
    }
    image = np.repeat(drawn[0][..., None] * 255, 3, axis=2)
    samples = [Sample(name, "drive", Path(f"data/{name}.png"), Path()) for name in images]
    samples[0] = replace(samples[0], condition="night+rain")
    samples.append(replace(samples[0], condition="any", image=Path("data/one of both.png")))
    images["one of both"] = images["road"]
    monkeypatch.setattr(evaluation, "read_sample", lambda sample, strict: (image, images[sample.image.stem]))
    rows = evaluate_samples(Eyes(), samples, Path("data"))  # type: ignore[arg-type]
    assert list(rows) == [
        ("all road", "all", "ego"),
        *(("both", condition, plane) for condition in ("all", "night", "rain") for plane in ("ego", "freespace")),
        ("off the road", "all", "freespace"),
        ("road", "all", "freespace"),
    ]
    assert all(r.iou == 1 for r in rows.values())
    assert [i.name for i in rows["both", "all", "freespace"].per_image] == ["both.png", "one of both.png"]
    assert [i.name for i in rows["both", "all", "ego"].per_image] == ["both.png"], "where it is not labelled it has no result"
    assert np.isnan(rows["both", "all", "ego"].interval).all()


def test_report_says_what_was_measured(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = all_of(data, Eyes(200))
    print_report(rows, "val", Eyes())  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("camvid "))
    row = rows["camvid", "all", "freespace"]
    low, high = row.interval
    numbers = [row.iou, row.dice, row.precision, row.recall, row.accuracy, row.boundary.f_score, row.image_iou, low, high]
    assert line.split() == ["camvid", "all", "freespace", "5", *(f"{n:.4f}" for n in numbers), "*"]
    assert "lowest camvid freespace: camvid/val/images/seq_000002.jpg 0.3333" in "\n".join(lines)

    write_report(tmp_path / "r.json", rows, "val", Eyes())  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "r.json"], "nothing is left beside it"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert report["weights"] == evaluation.weights_sha256(DEFAULT_MODEL)
    assert (report["split"], report["backend"], report["input_size"]) == ("val", "eyes", [64, 48])
    result = next(r for r in report["results"] if r["dataset"] == "camvid")
    assert (result["images"], result["tp"], result["fn"], result["iou"]) == (5, row.tp, row.fn, round(row.iou, 4))
    assert result["iou_95"] == [round(low, 4), round(high, 4)]
    assert (result["resampled"], result["units"]) == ("images", 5)
    idd = next(r for r in report["results"] if r["dataset"] == "idd_lite")
    assert (idd["resampled"], idd["units"]) == ("sequences", 3)
    night = next(r for r in report["results"] if r["condition"] == "night")
    assert night["iou_95"] == [None, None], "of one image nothing is known"
    for result in report["results"]:
        own = [i for i in report["images"] if all(i[k] == result[k] for k in ("dataset", "condition", "plane"))]
        assert [sum(i[k] for i in own) for k in ("tp", "fp", "fn", "tn")] == [result[k] for k in ("tp", "fp", "fn", "tn")]
        assert np.mean([i["iou"] for i in own]) == pytest.approx(result["image_iou"], abs=1e-4)


def test_split_that_is_not_there(data: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'test'; known: train, dev, val"):
        evaluate_model(Eyes(), data, "test")  # type: ignore[arg-type]
    only = data / "only"
    only.mkdir()
    (data / "camvid").rename(only / "camvid")
    with pytest.raises(ValueError, match="no labelled images in split 'dev'"):
        evaluate_model(Eyes(), only, "dev")  # type: ignore[arg-type]


# Two reports.


@pytest.fixture
def reports(data: Path, tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "weak.json", tmp_path / "strong.json"
    for path, threshold in zip(paths, (200, 100), strict=True):
        write_report(path, all_of(data, Eyes(threshold)), "val", Eyes())  # type: ignore[arg-type]
    return paths


def test_two_models_are_compared_on_the_same_images(
    reports: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = (all_of(data, Eyes(threshold)) for threshold in (200, 100))
    comparisons = {(c.dataset, c.condition, c.plane): c for c in compare_reports(*reports)}
    assert list(comparisons) == list(weak)
    for row, c in comparisons.items():
        assert (c.images, c.first, c.second) == (weak[row].images, weak[row].iou, strong[row].iou)
        assert c.difference == c.second - c.first
    c = comparisons["idd_lite", "all", "freespace"]
    one, two = (table(i.counts for i in rows["idd_lite", "all", "freespace"].per_image) for rows in (weak, strong))
    assert (c.low, c.high) == bootstrap_difference(one, two, ["0", "0", "1", "1", "2", "2"])
    back = compare_reports(*reversed(reports))
    assert np.allclose([(b.high, b.low) for b in back], [(-c.low, -c.high) for c in comparisons.values()], equal_nan=True)

    print_comparison(list(comparisons.values()), *reports)
    print_comparison(back, *reversed(reports))
    lines = capsys.readouterr().out.splitlines()
    better, worse = (line.split() for line in lines if line.startswith("idd_lite"))
    assert better[3:] == [
        "6",
        *(f"{n:.4f}" for n in (c.first, c.second)),
        *(f"{n:+.4f}" for n in (c.difference, c.low, c.high)),
        "better",
    ]
    assert worse[-1] == "worse"


def change(path: Path, how: Any) -> None:
    report = json.loads(path.read_text())
    how(report)
    path.write_text(json.dumps(report))


def test_order_of_images_does_not_matter(reports: tuple[Path, Path]) -> None:
    before = compare_reports(*reports)
    change(reports[1], lambda r: r["images"].reverse())
    assert str(compare_reports(*reports)) == str(before)


def move_a_label(report: dict[str, Any]) -> None:
    report["images"][-1]["fn"] += 1
    report["images"][-1]["tn"] -= 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda r: r.update(split="dev"), "of split 'val' and .* of 'dev'"),
        (lambda r: r["images"].pop(), r"idd_lite/train/images/2_000005\.jpg is in only one of"),
        (move_a_label, r"idd_lite/train/images/2_000005\.jpg has other labels"),
        (lambda r: r["images"][-1].update(tn=0), r"idd_lite/train/images/2_000005\.jpg has other labels"),
        (lambda r: r.update(images=[i for i in r["images"] if i["condition"] != "night"]), "other data sets or conditions"),
        (lambda r: [i.update(plane="lane") for i in r["images"]], "no plane in common"),
        (lambda r: r.pop("images"), "not a report with results by image; write it again"),
        (lambda r: r["images"][0].update(tp=None), "not a report with results by image"),
    ],
)
def test_reports_that_cannot_be_compared(reports: tuple[Path, Path], how: Any, message: str) -> None:
    change(reports[1], how)
    with pytest.raises(ValueError, match=message):
        compare_reports(*reports)


def test_report_that_is_none(reports: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no report .*'freespace evaluate --report' writes one"):
        compare_reports(reports[0], tmp_path / "other.json")
    for content in (b"half a rep", b"[]", b"\xff\xfe"):
        reports[1].write_bytes(content)
        with pytest.raises(ValueError, match="not a report"):
            compare_reports(*reports)


def test_models_with_other_planes_are_compared_on_those_they_share(reports: tuple[Path, Path]) -> None:
    change(reports[1], lambda r: r.update(images=[i for i in r["images"] if i["plane"] == "ego"]))
    assert {c.plane for c in compare_reports(*reports)} == {"ego"}
