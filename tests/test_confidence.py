"""Confidence: counts, fits and errors against numbers found another way, and calibrated graphs against their definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from conftest import road_image
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.confidence import (
    KEY,
    PlaneCalibration,
    calibrated,
    count_levels,
    expected_error,
    find_sigmoid,
    fit,
    fit_polygons,
    fold,
    isotonic,
    polygon_shift,
    shifted,
    with_record,
)
from calibration.quantization import QuantisationOptions, quantise
from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.contract import ModelError
from engine.preprocess import fit as fit_frame
from perception.capture import open_source
from perception.confidence_command import PolygonTruth, at_network, confidence_command, polygons_described
from perception.config import PolygonConfig
from perception.errors import BadInput
from perception.node import process
from perception.polygons import extract
from perception.synthetic import render, scene_from_uri

P = np.arange(256) / 255


def table(pixels: dict[int, tuple[int, int]]) -> np.ndarray:
    """Counts with ``pixels`` of a level: how many are not drivable, and how many are."""
    counts = np.zeros((256, 2), np.int64)
    for level, numbers in pixels.items():
        counts[level] = numbers
    return counts


def counts_of(slope: float, offset: float, pixels: int = 10_000_000) -> np.ndarray:
    """Levels 1 to 254, equally often, of a network whose scores should have been ``sigmoid(slope * logit + offset)``."""
    inner = P[1:-1]
    true = 1 / (1 + (inner / (1 - inner)) ** -slope * np.exp(-offset))
    drivable = np.rint(pixels * true).astype(np.int64)
    counts = np.zeros((256, 2), np.int64)
    counts[1:-1] = np.stack([pixels - drivable, drivable], axis=1)
    return counts


# -- Counts and errors -------------------------------------------------------------------------------------------------


def test_counts_leave_out_what_is_unknown() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 256, (40, 50), np.uint8), rng.choice(np.array([0, 1, 255], np.uint8), (40, 50))
    counts = count_levels(scores, labels)
    for level in (0, 17, 254, 255):
        assert counts[level].tolist() == [int(np.sum((scores == level) & (labels == kind))) for kind in (0, 1)]
    assert counts.sum() == np.sum(labels != 255)


def test_expected_error_of_hand_made_counts() -> None:
    # Level 51 says 0.2, and 30 of 100 are; level 204 says 0.8, and all 300 are: (100 * 0.1 + 300 * 0.2) / 400.
    counts = table({51: (70, 30), 204: (0, 300)})
    assert expected_error(counts) == pytest.approx(0.175)
    assert expected_error(counts, None) == pytest.approx(0.175)
    # Levels 120 and 130 lie in one bin of 15 (0.467 to 0.533), where what one says too much the other says too little.
    opposite = table({120: (100, 0), 130: (0, 100)})
    assert expected_error(opposite) == pytest.approx(abs(120 / 255 + 130 / 255 - 1) / 2)
    assert expected_error(opposite, None) == pytest.approx((120 / 255 + 125 / 255) / 2)
    assert np.isnan(expected_error(table({})))


# -- Fits --------------------------------------------------------------------------------------------------------------


@given(st.floats(0.3, 3.0))
def test_temperature_is_found(slope: float) -> None:
    found = fit(counts_of(slope, 0.0), "temperature")
    assert found.slope == pytest.approx(slope, abs=2e-4)
    assert found.offset == 0
    assert found.described() == {"temperature": pytest.approx(1 / slope, rel=1e-3)}


@given(st.floats(0.3, 3.0), st.floats(-2.0, 2.0))
def test_slope_and_offset_are_found(slope: float, offset: float) -> None:
    found = fit(counts_of(slope, offset), "affine")
    assert (found.slope, found.offset) == (pytest.approx(slope, abs=2e-4), pytest.approx(offset, abs=2e-4))


def test_temperature_is_the_likeliest_also_where_none_fits() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 5000, (256, 2))
    counts[:, 1] += np.arange(256) * 40
    levels = np.clip(np.arange(256), 0.25, 254.75)  # the ends stand for the middle of the half a level that they hold

    def loss(slope: float) -> float:
        p = 1 / (1 + ((255 - levels) / levels) ** slope)
        return -float(counts[:, 1] @ np.log(p) + counts[:, 0] @ np.log(1 - p))

    slopes = np.linspace(0.01, 2, 2000)
    assert fit(counts, "temperature").slope == pytest.approx(slopes[np.argmin([loss(s) for s in slopes])], abs=1e-3)


def test_calibration_mends_the_error_of_what_it_was_fitted_to() -> None:
    counts = counts_of(0.6, -0.3)
    before = expected_error(counts, None)
    for method, left in (("temperature", 0.7), ("affine", 0.03), ("isotonic", 0.03)):
        levels = fit(counts, method).apply()
        after = np.zeros_like(counts)
        np.add.at(after, levels, counts)
        assert expected_error(after, None) < left * before, method


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=12))
def test_isotonic_is_the_minimax_of_means(pixels: list[tuple[int, int]]) -> None:
    """At i it is the largest over a <= i of the smallest over b >= i of the mean from a to b (Robertson et al. 1988)."""
    counts = table({20 * i: numbers for i, numbers in enumerate(pixels)})
    seen = np.flatnonzero(counts.sum(1))
    if not len(seen):
        return
    values = isotonic(counts)
    for i in range(len(seen)):
        means = [
            [counts[seen[a : b + 1], 1].sum() / counts[seen[a : b + 1]].sum() for b in range(i, len(seen))]
            for a in range(i + 1)
        ]
        assert values[seen[i]] == pytest.approx(max(min(row) for row in means))
    assert np.all(np.diff(values) >= -1e-12)
    if len(seen) > 1:
        middle = (seen[0] + seen[1]) / 2
        line = np.interp(middle, seen[:2], values[seen[:2]])
        assert values[int(middle)] == pytest.approx(line, abs=0.05)


@given(st.floats(0.2, 5.0))
def test_a_temperature_moves_no_level_over_one_half(slope: float) -> None:
    levels = PlaneCalibration(slope).apply()
    assert np.array_equal(levels >= 128, np.arange(256) >= 128)
    assert np.all(np.diff(levels.astype(int)) >= 0)


def test_labels_without_any_doubt_do_not_drive_it_to_infinity() -> None:
    found = fit(table({3: (100_000, 0), 252: (0, 100_000)}), "temperature")
    assert 1 < found.slope < 10
    assert np.isfinite(fit(table({0: (5000, 0), 255: (0, 5000)}), "affine").slope)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ModelError, match="temperature, affine, isotonic"):
        fit(counts_of(1, 0), "beta")
    with pytest.raises(ModelError, match="999 are; a fit needs 1000"):
        fit(table({10: (5000, 0), 200: (0, 999)}), "temperature")
    with pytest.raises(ModelError, match="high scores do not mean drivable"):
        fit(counts_of(1, 0)[::-1], "temperature")


# -- Polygons ----------------------------------------------------------------------------------------------------------


polygon_lists = st.lists(st.tuples(st.floats(0.5, 0.99), st.floats(0.05, 0.95), st.floats(0.01, 1.0)), min_size=1, max_size=20)


@given(polygon_lists)
def test_shifted_polygons_are_right_on_average(polygons: list[tuple[float, float, float]]) -> None:
    means, true, areas = np.array(polygons).T
    said = shifted(means, fit_polygons(means, true, areas))
    assert areas @ said == pytest.approx(areas @ true, abs=1e-6)
    assert np.array_equal(np.argsort(said, kind="stable"), np.argsort(means, kind="stable")) or len(set(means)) < len(means)


def test_shift_of_one_polygon_by_hand() -> None:
    # Odds of 0.9 are 9, those of 0.75 are 3: a third, whatever the polygon weighs.
    assert fit_polygons(np.array([0.9]), np.array([0.75]), np.array([0.2])) == pytest.approx(np.log(1 / 3))
    assert shifted(0.9, float(np.log(1 / 3))) == pytest.approx(0.75)
    assert shifted(0.83, 0.0) == 0.83
    assert (shifted(0.0, 2.0), shifted(1.0, -2.0)) == (0, 1)
    assert fit_polygons(np.empty(0), np.empty(0), np.empty(0)) == 0


def test_polygons_weigh_by_area_and_stand_in_bins() -> None:
    truths = [
        PolygonTruth(0, "a", 0.91, 0.89, 300_000),
        PolygonTruth(1, "b", 0.89, 0.93, 100_000),
        PolygonTruth(2, "c", 0.60, 0.20, 9_000),
        PolygonTruth(2, "c", 0.50, 0.49, 1_000),
    ]
    found = polygons_described(truths, 0.0)
    assert found["says"] == pytest.approx((0.91 * 300 + 0.89 * 100 + 0.6 * 9 + 0.5) / 410, abs=1e-4)
    assert found["true"] == pytest.approx((0.89 * 300 + 0.93 * 100 + 0.2 * 9 + 0.49) / 410, abs=1e-4)
    assert [(b["around"], b["number"]) for b in found["bins"]] == [(0.5, 1), (0.6, 1), (0.9, 2)]
    assert found["bins"][2]["true"] == pytest.approx(0.90)
    assert found["within"] == pytest.approx(401 / 410, abs=1e-4), "one of the small ones is far off"
    small, large = found["small"], found["large"]
    assert (small["number"], small["says"], small["true"], small["within"]) == (2, 0.55, 0.345, 0.5)
    assert (large["number"], large["says"], large["true"], large["within"]) == (2, 0.9, 0.91, 0.5)
    assert polygons_described(truths[:2], 0.0)["small"] == {"number": 0}


def test_extract_gives_shifted_confidences() -> None:
    scores = np.full((32, 64), 204, np.uint8)  # 0.8, odds of 4
    resampling = fit_frame((640, 320), (64, 32), "stretch")
    (plain,) = extract(scores, resampling, "freespace", PolygonConfig())
    (lower,) = extract(scores, resampling, "freespace", PolygonConfig(), float(np.log(0.25)))
    assert plain.confidence == pytest.approx(0.8)
    assert lower.confidence == pytest.approx(0.5)
    assert np.array_equal(plain.exterior, lower.exterior)


def test_results_of_a_run_have_the_shift_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    image = road_image()
    image[32:, :, 1:] = 50, 0  # logits of 0.2 * 50 - 8 = 2
    cv2.imwrite(str(tmp_path / "road.png"), image)
    said = []
    for shift in (0.0, -1.5):
        record = {"planes": {"freespace": {"polygon_shift": shift}}}
        onnx.save(with_record(onnx.load(str(tiny_model)), record), str(tmp_path / "model.onnx"))
        with open_engine(tmp_path / "model.onnx", "onnxruntime") as engine, open_source(str(tmp_path / "road.png")) as source:
            [polygon] = [polygon for output in process(source, engine) for polygon in output.result.polygons]
        said.append(polygon.confidence)
    assert said == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-0.5))], abs=0.005)


# -- The graph ---------------------------------------------------------------------------------------------------------


def write(path: Path, head: list[onnx.NodeProto], tensors: list[onnx.TensorProto], last: str = "Sigmoid") -> Path:
    """A model of the contract, 64x32, with ``head`` between ``channels`` (1, 3, 32, 64; 0 to 1) and ``logits``."""
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["moved"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["moved", "small"], ["channels"]),
        *head,
        helper.make_node(last, ["logits"], ["probability"]),
        helper.make_node("Mul", ["probability", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["scores"], to=TensorProto.UINT8),
    ]
    constants = [helper.make_tensor(n, TensorProto.FLOAT, (), [v]) for n, v in (("small", 1 / 255), ("levels", 255.0))]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 32, 64, 3]),
        helper.make_tensor_value_info("scores", TensorProto.UINT8, [1, 2, 32, 64]),
    ]
    graph = helper.make_graph(nodes, "head", ports[:1], ports[1:], [*constants, *tensors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(
        model, {"freespace.contract": "1", "freespace.planes": "freespace,ego", "freespace.resize": "stretch"}
    )
    onnx.save(model, str(path))
    return path


def convolution(outputs: int, stride: int = 1, bias: bool = True) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    rng = np.random.default_rng(outputs)
    tensors = [numpy_helper.from_array(rng.normal(0, 2, (outputs, 3, stride, stride)).astype(np.float32), "weight")]
    if bias:
        tensors.append(numpy_helper.from_array(rng.normal(0, 1, outputs).astype(np.float32), "bias"))
    names = [t.name for t in tensors]
    return helper.make_node("Conv", ["channels", *names], ["features"], strides=[stride] * 2), tensors


def head(kind: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Ways in which a network may end."""
    if kind in ("straight", "no bias"):
        node, tensors = convolution(2, bias=kind == "straight")
        node.output[0] = "logits"
        return [node], tensors
    if kind in ("CRD", "DCR"):
        node, tensors = convolution(8, stride=2)
        return [node, helper.make_node("DepthToSpace", ["features"], ["logits"], blocksize=2, mode=kind)], tensors
    node, tensors = convolution(2)  # clipped: there is nothing that a slope could go into
    limits = [helper.make_tensor(n, TensorProto.FLOAT, (), [v]) for n, v in (("low", -4.0), ("high", 4.0))]
    return [node, helper.make_node("Clip", ["features", "low", "high"], ["logits"])], [*tensors, *limits]


def outputs_of(path: Path, name: str, image: np.ndarray) -> np.ndarray:
    """The tensor ``name`` inside a model, by ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(path))
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return np.asarray(ReferenceEvaluator(model).run([name], {"image": image[None]})[0][0])


@pytest.mark.parametrize(
    ("kind", "folds"), [("straight", True), ("no bias", True), ("CRD", True), ("DCR", True), ("clipped", False)]
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graph_computes_what_the_calibration_says(tmp_path: Path, kind: str, folds: bool, backend: str) -> None:
    pytest.importorskip(backend)
    source, target = write(tmp_path / "plain.onnx", *head(kind)), tmp_path / "calibrated.onnx"
    contract = read_contract(source)
    planes = {"freespace": PlaneCalibration(0.7, 0.4), "ego": PlaneCalibration(1.6)}
    model = calibrated(contract, planes)
    onnx.save(model, str(target))
    before = onnx.load(str(source)).graph
    assert fold(before, find_sigmoid(contract, before), np.ones(2), np.zeros(2)) == folds
    assert len(model.graph.node) - len(before.node) == (0 if folds else 2), "at no cost where it can be folded"
    image = np.random.default_rng(4).integers(0, 256, (32, 64, 3), np.uint8)
    logits = outputs_of(source, "logits", image).astype(np.float64)
    wanted = 255 / (1 + np.exp(-np.stack([0.7 * logits[0] + 0.4, 1.6 * logits[1]])))
    with open_engine(target, backend, "fp32") as engine:
        scores = engine.segment([image]).values[0]
    assert np.abs(scores - wanted).max() <= 0.51
    assert len(np.unique(scores)) > 50


def test_planes_that_are_not_named_stay_as_they_are(tmp_path: Path) -> None:
    source, target = write(tmp_path / "plain.onnx", *head("CRD")), tmp_path / "calibrated.onnx"
    onnx.save(calibrated(read_contract(source), {"ego": PlaneCalibration(0.5, 0.2)}), str(target))
    image = np.random.default_rng(4).integers(0, 256, (32, 64, 3), np.uint8)
    with open_engine(source, "onnxruntime") as a, open_engine(target, "onnxruntime") as b:
        first, second = (e.segment([image]).values[0] for e in (a, b))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_levels_are_looked_up_in_the_graph(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    source, target = write(tmp_path / "plain.onnx", *head("CRD")), tmp_path / "calibrated.onnx"
    rng = np.random.default_rng(8)
    levels = np.sort(rng.integers(0, 256, 256)).astype(np.uint8)
    onnx.save(calibrated(read_contract(source), {"ego": PlaneCalibration(levels=levels)}), str(target))
    image = rng.integers(0, 256, (32, 64, 3), np.uint8)
    with open_engine(source, backend, "fp32") as a, open_engine(target, backend, "fp32") as b:
        first, second = (e.segment([image]).values[0] for e in (a, b))
    assert np.array_equal(second[0], first[0])
    assert np.array_equal(second[1], levels[first[1]])


def test_int8_models_are_calibrated_in_their_float_head(tmp_path: Path) -> None:
    source, small, target = write(tmp_path / "plain.onnx", *head("CRD")), tmp_path / "int8.onnx", tmp_path / "calibrated.onnx"
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (32, 64, 3), np.uint8) for _ in range(8)]
    for keep in (("features",), ()):  # the last convolution in float, or in int8: then its weights are not to be touched
        onnx.save(quantise(read_contract(source), images, QuantisationOptions(keep=keep)), str(small))
        model = calibrated(read_contract(small), {"freespace": PlaneCalibration(0.5)})
        assert any(node.name == "confidence/Mul" for node in model.graph.node) == (not keep)
        onnx.save(model, str(target))
        with open_engine(small, "onnxruntime") as a, open_engine(target, "onnxruntime") as b:
            first, second = (e.segment([images[0]]).values[0].astype(int) for e in (a, b))
        inner = (first[0] > 5) & (first[0] < 250)
        assert np.abs(PlaneCalibration(0.5).apply()[first[0]][inner].astype(int) - second[0][inner]).max() <= 2
        assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("slope", [0.4, 0.9, 2.5])
def test_a_temperature_changes_no_decision_of_the_shipped_network(tmp_path: Path, slope: float) -> None:
    plain, target = tmp_path / "plain.onnx", tmp_path / "calibrated.onnx"
    model = onnx.load(str(DEFAULT_MODEL))
    helper.set_model_props(model, {p.key: p.value for p in model.metadata_props if p.key != KEY})
    onnx.save(model, str(plain))
    onnx.save(calibrated(read_contract(plain), {p: PlaneCalibration(slope) for p in ("freespace", "ego")}), str(target))
    scene = scene_from_uri("synthetic://traffic?size=640x360&seed=5")
    noise = np.random.default_rng(3).integers(0, 256, (256, 448, 3), np.uint8)
    frames = [render(scene, 0).image, render(scene, 30).image, noise, cv2.blur(noise, (31, 31))]
    with open_engine(plain, "onnxruntime") as a, open_engine(target, "onnxruntime") as b:
        for frame in frames:
            before, after = (e.segment([frame]).values for e in (a, b))
            moved = (before >= 128) != (after >= 128)
            assert np.all((before[moved] == 127) | (before[moved] == 128)), "only what lies at 0.5 itself, by rounding"
            assert np.count_nonzero(moved) <= 2
            assert not np.array_equal(before, after)
    assert "freespace.metrics" in read_contract(target).metadata, "so what was measured still holds"
    affine = calibrated(read_contract(plain), {"ego": PlaneCalibration(slope, 0.1)})
    assert "freespace.metrics" not in {p.key for p in affine.metadata_props}


def test_what_cannot_be_calibrated(tmp_path: Path) -> None:
    source = write(tmp_path / "plain.onnx", *head("CRD"))
    with pytest.raises(ModelError, match="no plane 'sky'"):
        calibrated(read_contract(source), {"sky": PlaneCalibration(0.5)})
    twice = tmp_path / "twice.onnx"
    onnx.save(
        with_record(calibrated(read_contract(source), {"ego": PlaneCalibration(0.5)}), {"method": "temperature"}), str(twice)
    )
    with pytest.raises(ModelError, match="calibrated already"):
        calibrated(read_contract(twice), {"ego": PlaneCalibration(0.5)})
    hard = write(tmp_path / "hard.onnx", *head("CRD"), last="HardSigmoid")
    with pytest.raises(ModelError, match="do not come from a sigmoid; take --method isotonic"):
        calibrated(read_contract(hard), {"ego": PlaneCalibration(0.5)})
    calibrated(read_contract(hard), {"ego": PlaneCalibration(levels=np.arange(256, dtype=np.uint8))})


def test_shift_is_read_from_the_metadata() -> None:
    record = {"planes": {"ego": {"polygon_shift": -0.43}}}
    assert polygon_shift({KEY: json.dumps(record)}, "ego") == -0.43
    assert polygon_shift({KEY: json.dumps(record)}, "freespace") == 0
    assert polygon_shift({}, "ego") == 0
    for broken in ("{", "[]", '{"planes": {"ego": 3}}', '{"planes": {"ego": {"polygon_shift": "much"}}}'):
        with pytest.raises(ModelError, match="cannot be read"):
            polygon_shift({KEY: broken}, "ego")


# -- The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_labels_are_taken_at_the_places_of_the_scores(mode: str) -> None:
    resampling = fit_frame((180, 60), (60, 60), mode)  # type: ignore[arg-type]
    labels = np.random.default_rng(0).integers(0, 2, (60, 180), np.uint8)
    values = np.random.default_rng(1).integers(0, 256, (60, 60), np.uint8)
    scores, found = at_network(values, labels, resampling)
    # Three columns of the frame are one of the input, whose centre is that of the middle one; letterboxed, so are three rows.
    wanted = labels[:, 1::3] if mode == "stretch" else labels[1::3, 1::3]
    assert np.array_equal(found, wanted)
    assert np.array_equal(scores, values if mode == "stretch" else values[20:40])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Frames whose pixels are drivable with a probability that is known: sigmoid of half of what the tiny model computes.

    Its logit is 0.2 * (green - red) - 8, the same over blocks of 8 x 8 pixels.
    """
    rng = np.random.default_rng(6)
    folder = tmp_path / "data" / "mine"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for sequence in range(8):
        for number in range(6):
            green = np.kron(rng.integers(15, 66, (4, 8)), np.ones((8, 8), int))
            image = np.zeros((32, 64, 3), np.uint8)
            image[..., 1] = green
            truth = rng.random(green.shape) < 1 / (1 + np.exp(-0.5 * (0.2 * green - 8)))
            cv2.imwrite(str(folder / f"images/drive{sequence}_{number}.png"), image)
            cv2.imwrite(str(folder / f"labels/drive{sequence}_{number}.png"), truth.astype(np.uint8))
    (folder / "classes.yaml").write_text("background: 0\nclasses: {road: 1}\n")
    return tmp_path / "data"


def test_command_writes_a_calibrated_model(
    labelled: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, diagram = tmp_path / "out.onnx", tmp_path / "report.json", tmp_path / "diagram.png"
    confidence_command(str(tiny_model), labelled, out, "train", report=report, diagram=diagram)
    contract = read_contract(out)
    record = json.loads(contract.metadata[KEY])
    assert (record["method"], record["split"], record["of"]) == ("temperature", "train", read_contract(tiny_model).sha256)
    plane = record["planes"]["freespace"]
    assert plane["temperature"] == pytest.approx(2.0, rel=0.1), "the probabilities were drawn with half of the logits"
    assert plane["ece_after"] < 0.25 * plane["ece_before"]
    content = json.loads(report.read_text())
    before, after = (content[when]["freespace"] for when in ("before", "after"))
    assert sum(row["pixels"] for row in before["reliability"]) == 64 * 32 * before["frames"]
    assert after["polygons"]["says"] == pytest.approx(after["polygons"]["true"], abs=1e-3), "right on average where fitted"
    assert before["polygons"]["says"] > before["polygons"]["true"] + 0.05, "and it was not"
    picture = cv2.imread(str(diagram))
    assert picture is not None
    assert picture.std() > 10
    with open_engine(out, "onnxruntime") as engine:
        assert polygon_shift(engine.contract.metadata, "freespace") == plane["polygon_shift"]
    assert f"temperature {plane['temperature']:.4f}" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*part*"))

    held_out = tmp_path / "val.json"
    confidence_command(str(out), labelled, None, check=True, report=held_out)
    found = json.loads(held_out.read_text())
    assert found["split"] == "val"
    assert found["planes"]["freespace"]["ece"] < 0.3 * plane["ece_before"]
    with pytest.raises(BadInput, match="calibrated already"):
        confidence_command(str(out), labelled, tmp_path / "again.onnx", "train")
    with pytest.raises(BadInput, match="--overwrite"):
        confidence_command(str(tiny_model), labelled, out, "train")


@pytest.mark.parametrize("method", ["affine", "isotonic"])
def test_command_by_other_methods(labelled: Path, tiny_model: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "out.onnx"
    confidence_command(str(tiny_model), labelled, out, "train", method)
    plane = json.loads(read_contract(out).metadata[KEY])["planes"]["freespace"]
    assert plane["ece_after"] < 0.25 * plane["ece_before"]
    assert set(plane) >= ({"slope", "offset"} if method == "affine" else {"levels"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "unknown split 'test'; known: train, dev, val"),
        ({"method": "beta"}, "unknown method 'beta'"),
        ({"check": True}, "give --out, the file to write, or --check"),
        ({"out": None}, "give --out, the file to write, or --check"),
        ({"diagram": "reliability.jpg"}, "ends in .png"),
        ({"data": "nowhere"}, "no such folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_told(
    labelled: Path, tiny_model: Path, tmp_path: Path, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("data", "diagram"):
        if key in change:
            change[key] = Path(str(change[key]))
    arguments = {"model": str(tiny_model), "data": labelled, "out": tmp_path / "out.onnx", "split": "train", **change}
    command: Callable[..., None] = confidence_command
    with pytest.raises(BadInput, match=message):
        command(**arguments)
    assert not (tmp_path / "out.onnx").exists()
