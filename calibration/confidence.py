"""Scores as honest probabilities: of all pixels that say 0.8, eight of ten are drivable.

All that a fit needs is a table of how often each of the 256 levels of a score met each label, so counts come first, and
what is fitted and measured follows from them exactly. A plane's calibration is written into the model's graph, so that every
backend gives calibrated scores at no cost: see `calibrated`. What was done stands in the model's metadata under `KEY`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.contract import OUTPUT_NAME, ModelContract, ModelError

if TYPE_CHECKING:
    import onnx

KEY = "freespace.confidence"
METHODS = ("temperature", "affine", "isotonic")
LEVELS = 256
BINS = 15  # of equal width, as in Guo et al. 2017
END = 0.25  # what the levels 0 and 255 stand for: the middle of the half a level that they hold
SHIFT_LIMIT = 8.0
FEWEST = 1000  # labelled pixels of either kind that a fit needs

Table = NDArray[np.int64]
Reals = NDArray[np.float64]
U8 = NDArray[np.uint8]
Number = TypeVar("Number", float, Reals)


@dataclass(frozen=True)
class PlaneCalibration:
    """What is done to the scores of one plane: ``p' = sigmoid(slope * logit(p) + offset)``, or a level for each level.

    Attributes:
        slope: 1 / temperature; positive.
        offset: 0 for a temperature alone, which leaves 0.5 where it is.
        levels: uint8 ``(256,)``, instead of both, not falling.
    """

    slope: float = 1.0
    offset: float = 0.0
    levels: U8 | None = None

    def apply(self) -> U8:
        """What each level becomes, uint8 ``(256,)``."""
        if self.levels is not None:
            return self.levels
        return np.rint(255 * sigmoid(self.slope * level_logits() + self.offset)).astype(np.uint8)

    def described(self) -> dict[str, Any]:
        """For JSON."""
        if self.levels is not None:
            return {"levels": self.levels.tolist()}
        return {"temperature": 1 / self.slope} if self.offset == 0 else {"slope": self.slope, "offset": self.offset}


# -- Counts ------------------------------------------------------------------------------------------------------------


def count_levels(scores: U8, labels: U8) -> Table:
    """How many pixels of each level are labelled not drivable and drivable, int64 ``(256, 2)``.

    Args:
        scores: uint8 of any shape, ``round(255 * p)``.
        labels: uint8 of the same shape: 0, 1, and anything else for unknown, which does not count.
    """
    return np.stack([np.bincount(scores[labels == kind], minlength=LEVELS) for kind in (0, 1)], axis=1)


def expected_error(counts: Table, bins: int | None = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): mean over pixels of | what their bin says - what is true there |.

    Args:
        counts: int64 ``(256, 2)`` as `count_levels` gives them.
        bins: of equal width in probability; None takes each level by itself, which no binning can hide anything in.

    Returns:
        0 to 1; NaN where there is no pixel.
    """
    said, true, number = binned(counts, bins)
    return float(np.abs(said - true).sum() / number.sum()) if number.sum() else float("nan")


def binned(counts: Table, bins: int | None = BINS) -> tuple[Reals, Reals, Reals]:
    """Per bin, float64 ``(bins,)``: the sum of what pixels say, how many are drivable, how many there are."""
    number = counts.sum(1)
    bin_of = np.arange(LEVELS) if bins is None else np.minimum(np.arange(LEVELS) * bins // 255, bins - 1)
    said = number * np.arange(LEVELS) / 255
    size = LEVELS if bins is None else bins
    return tuple(np.bincount(bin_of, values, size) for values in (said, counts[:, 1], number))  # type: ignore[return-value]


# -- Fits --------------------------------------------------------------------------------------------------------------


def fit(counts: Table, method: str) -> PlaneCalibration:
    """The calibration of a plane by one of `METHODS`, from counts int64 ``(256, 2)``.

    ``temperature`` (Guo et al. 2017) and ``affine`` (Platt 1999) maximise the likelihood of the labels, ``isotonic`` is the
    least-squares map that never falls (Zadrozny & Elkan 2002).

    Raises:
        ModelError: the method is unknown, a label hardly occurs, or high scores do not mean drivable.
    """
    if method not in METHODS:
        raise ModelError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if min(counts.sum(0)) < FEWEST:
        raise ModelError(
            f"{counts[:, 0].sum()} labelled pixels are not drivable and {counts[:, 1].sum()} are; "
            f"a fit needs {FEWEST} of either"
        )
    if method == "isotonic":
        return PlaneCalibration(levels=np.rint(255 * isotonic(counts)).astype(np.uint8))
    logits = level_logits()
    features = logits[:, None] if method == "temperature" else np.stack([logits, np.ones(LEVELS)], axis=1)
    slope, *offset = logistic_regression(features, counts)
    if slope <= 0:
        raise ModelError("high scores do not mean drivable on these frames; do the model and the labels belong together?")
    return PlaneCalibration(float(slope), float(offset[0]) if offset else 0.0)


def logistic_regression(features: Reals, counts: Table) -> Reals:
    """Weights ``(k,)`` of ``sigmoid(features @ weights)`` by Newton's method on the likelihood of ``counts (n, 2)``.

    Labels are smoothed by Platt's (1999) prior, so that labels without any doubt do not drive the weights to infinity.
    """
    negative, positive = counts.sum(0)
    truth = (counts[:, 1] * (positive + 1) / (positive + 2) + counts[:, 0] / (negative + 2)) / np.maximum(counts.sum(1), 1)
    share = counts.sum(1) / counts.sum()

    def loss(weights: Reals) -> float:
        z = features @ weights
        return float(share @ (np.logaddexp(0, z) - truth * z))

    weights = np.zeros(features.shape[1])
    for _ in range(100):
        p = sigmoid(features @ weights)
        gradient = features.T @ (share * (p - truth))
        hessian = (features * (share * p * (1 - p))[:, None]).T @ features
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(weights)), gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:  # too far: the likelihood is convex
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def isotonic(counts: Table) -> Reals:
    """Share of drivable pixels at each level, float64 ``(256,)``, made not to fall by pooling adjacent violators.

    Levels that do not occur lie on the line between their neighbours.
    """
    blocks: list[list[float]] = []  # positives, pixels, levels
    seen = np.flatnonzero(counts.sum(1))
    for level in seen:
        blocks.append([counts[level, 1], counts[level].sum(), 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    values = np.concatenate([np.full(int(levels), positive / pixels) for positive, pixels, levels in blocks])
    return np.asarray(np.interp(np.arange(LEVELS), seen, values))


def level_logits() -> Reals:
    """The log-odds that each level stands for, float64 ``(256,)``."""
    levels = np.clip(np.arange(LEVELS, dtype=np.float64), END, 255 - END)
    return np.asarray(np.log(levels / (255 - levels)))


def sigmoid(z: Reals) -> Reals:
    return np.asarray(1 / (1 + np.exp(-z)))


# -- Polygons ----------------------------------------------------------------------------------------------------------


def fit_polygons(means: Reals, fractions: Reals, areas: Reals) -> float:
    """The shift of log-odds that makes polygons right on average: ``sum(areas * (shifted(means) - fractions)) == 0``.

    Pixels are calibrated over the whole image, but a polygon is where the network is sure, and where it is wrong it is wrong
    of whole stretches of road; so the mean score inside promises too much. One number per plane mends that without
    changing which of two polygons is the surer one.

    Args:
        means: mean score of each polygon, 0 to 1.
        fractions: true share of drivable pixels in it.
        areas: what it weighs, such as its labelled share of the image.
    """
    if not len(means) or not areas.sum():
        return 0.0
    wanted = float(areas @ fractions)
    low, high = -SHIFT_LIMIT, SHIFT_LIMIT
    for _ in range(60):  # bisection: the sum grows with the shift
        middle = (low + high) / 2
        low, high = (middle, high) if float(areas @ shifted(means, middle)) < wanted else (low, middle)
    return (low + high) / 2


def shifted(mean: Number, shift: float) -> Number:
    """Confidence of polygons with mean scores ``mean``, 0 to 1: their log-odds moved by ``shift``."""
    odds = float(np.exp(shift))
    return mean * odds / (1 - mean + mean * odds)


def polygon_shift(metadata: Mapping[str, str], plane: str) -> float:
    """The shift that a model's metadata hold for polygons of ``plane``; 0 where it is not calibrated.

    Raises:
        ModelError: what it says of its confidence cannot be read.
    """
    try:
        planes = json.loads(metadata.get(KEY, "{}")).get("planes", {})
        return float(planes.get(plane, {}).get("polygon_shift", 0.0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{KEY!r} in the model's metadata cannot be read; calibrate the model again") from error


# -- The graph ---------------------------------------------------------------------------------------------------------


def calibrated(contract: ModelContract, planes: Mapping[str, PlaneCalibration]) -> onnx.ModelProto:
    """A copy of a model whose scores are calibrated in its graph; planes that are not named stay as they are.

    Slope and offset go into the weights and biases of the last convolution where it leads straight, or by a DepthToSpace, to
    the sigmoid, in float; else a multiplication and an addition stand before the sigmoid. Levels are looked up behind the
    last node. All else, INT8 nodes too, stays as it was. Metrics in the metadata go where decisions at 0.5 may move.

    Raises:
        ModelError: the model is calibrated already, has no such plane, or no sigmoid before its output.
    """
    import onnx

    from engine.graph import first_line

    if KEY in contract.metadata:
        raise ModelError(f"{contract.path}: its confidence is calibrated already; take the file that it was made from")
    model = onnx.load(str(contract.path))
    ordered = [PlaneCalibration()] * len(contract.planes)
    for plane, calibration in planes.items():
        ordered[contract.plane_index(plane)] = calibration
    slopes, offsets = (np.array(values, np.float32) for values in zip(*((c.slope, c.offset) for c in ordered), strict=True))
    if np.any(slopes != 1) or np.any(offsets != 0):
        sigmoid_node = find_sigmoid(contract, model.graph)
        if not fold(model.graph, sigmoid_node, slopes, offsets):
            insert_affine(model.graph, sigmoid_node, slopes, offsets)
    if any(c.levels is not None for c in ordered):
        insert_lookup(model.graph, np.stack([np.arange(LEVELS) if c.levels is None else c.levels for c in ordered]))
    if any(c.offset != 0 or c.levels is not None for c in ordered):  # decisions move, and with them what was measured
        kept = {p.key: p.value for p in model.metadata_props if p.key != "freespace.metrics"}
        onnx.helper.set_model_props(model, kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{contract.path}: cannot be calibrated: {first_line(error)}; take the float32 model") from error
    return model


def find_sigmoid(contract: ModelContract, graph: onnx.GraphProto) -> onnx.NodeProto:
    """The sigmoid that the scores come from, by scaling, rounding and casting alone."""
    made_by = {output: node for node in graph.node for output in node.output}
    node: onnx.NodeProto | None = made_by.get(OUTPUT_NAME)
    while node is not None and node.op_type in ("Cast", "Round", "Mul", "Clip", "Identity"):
        node = made_by.get(node.input[0])
    if node is None or node.op_type != "Sigmoid":
        raise ModelError(f"{contract.path}: its scores do not come from a sigmoid; take --method isotonic, which needs none")
    return node


def fold(graph: onnx.GraphProto, sigmoid_node: onnx.NodeProto, slopes: NDArray[Any], offsets: NDArray[Any]) -> bool:
    """Scale the last convolution's weights and biases by ``slopes`` and add ``offsets``, both ``(K,)``; False: it cannot be."""
    from onnx import TensorProto, helper, numpy_helper

    made_by = {output: node for node in graph.node for output in node.output}
    readers = [name for node in graph.node for name in node.input]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    node = made_by.get(sigmoid_node.input[0])
    if node is not None and node.op_type == "DepthToSpace" and readers.count(node.output[0]) == 1:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        cells = attributes["blocksize"] ** 2
        spread = np.repeat if attributes.get("mode", b"DCR") == b"CRD" else np.tile  # channels of a plane together, or apart
        slopes, offsets = spread(slopes, cells), spread(offsets, cells)
        node = made_by.get(node.input[0])
    if node is None or node.op_type != "Conv" or readers.count(node.output[0]) != 1:
        return False
    own = [constants[name] for name in node.input[1:] if name in constants and readers.count(name) == 1]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    if len(own) != len(node.input) - 1 or any(t.data_type not in kinds or t.dims[0] != len(slopes) for t in own):
        return False
    weights = numpy_helper.to_array(own[0])
    folded = {own[0].name: weights * slopes[:, None, None, None]}
    if len(own) > 1:
        folded[own[1].name] = numpy_helper.to_array(own[1]) * slopes + offsets
    else:
        folded[f"{node.output[0]}_confidence"] = offsets
        node.input.append(f"{node.output[0]}_confidence")
        graph.initializer.append(TensorProto(name=node.input[-1]))
    for tensor in graph.initializer:
        if tensor.name in folded:
            tensor.CopyFrom(numpy_helper.from_array(folded[tensor.name].astype(weights.dtype), tensor.name))
    return True


def insert_affine(graph: onnx.GraphProto, sigmoid_node: onnx.NodeProto, slopes: NDArray[Any], offsets: NDArray[Any]) -> None:
    """``slopes`` times, plus ``offsets``, both ``(K,)``, before the sigmoid."""
    from onnx import helper, numpy_helper

    source, place = sigmoid_node.input[0], list(graph.node).index(sigmoid_node)
    graph.initializer.extend(
        numpy_helper.from_array(values.reshape(1, -1, 1, 1), f"confidence_{name}")
        for name, values in (("slopes", slopes), ("offsets", offsets))
    )
    graph.node.insert(place, helper.make_node("Mul", [source, "confidence_slopes"], ["confidence_scaled"], "confidence/Mul"))
    graph.node.insert(
        place + 1, helper.make_node("Add", ["confidence_scaled", "confidence_offsets"], ["confidence_logits"], "confidence/Add")
    )
    sigmoid_node.input[0] = "confidence_logits"


def insert_lookup(graph: onnx.GraphProto, levels: NDArray[Any]) -> None:
    """Look each score up in the row of its plane, ``(K, 256)``, before it is given out.

    One table for all planes, each a row further on; as floats, since not every runtime gathers bytes.
    """
    from onnx import TensorProto, helper, numpy_helper

    last = next(node for node in graph.node if OUTPUT_NAME in node.output)
    last.output[list(last.output).index(OUTPUT_NAME)] = "confidence_raw"
    rows = (np.arange(len(levels)) * LEVELS).astype(np.int32).reshape(1, -1, 1, 1)
    graph.initializer.extend(
        [
            numpy_helper.from_array(levels.astype(np.float32).ravel(), "confidence_levels"),
            numpy_helper.from_array(rows, "confidence_rows"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["confidence_raw"], ["confidence_index"], "confidence/Cast", to=TensorProto.INT32),
            helper.make_node("Add", ["confidence_index", "confidence_rows"], ["confidence_place"], "confidence/Add"),
            helper.make_node("Gather", ["confidence_levels", "confidence_place"], ["confidence_found"], "confidence/Gather"),
            helper.make_node("Cast", ["confidence_found"], [OUTPUT_NAME], "confidence/Cast_1", to=TensorProto.UINT8),
        ]
    )


def with_record(model: onnx.ModelProto, record: Mapping[str, Any]) -> onnx.ModelProto:
    """The model, its metadata holding ``record`` (JSON) under `KEY`."""
    from onnx import helper

    metadata = {p.key: p.value for p in model.metadata_props} | {KEY: json.dumps(record)}
    helper.set_model_props(model, metadata)
    return model
