"""Edits of the graph: the same scores in half precision and at other sizes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.contract import ModelError
from engine.graph import as_fp16, at_size, is_quantised, load, with_input
from perception.synthetic import render, scene_from_uri


def scores_of(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def drive(size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(render(scene_from_uri("synthetic://drive?size=640x360"), 20).image, size)[None]


def test_half_precision_says_nearly_the_same_in_half_the_bytes() -> None:
    model = onnx.load(str(DEFAULT_MODEL))
    half = as_fp16(model)
    image = drive((448, 256))
    difference = np.abs(scores_of(model, image).astype(int) - scores_of(half, image))
    assert 0 < difference.max() <= 16, "half precision, and not the same file again"
    assert difference.mean() < 0.2
    assert half.ByteSize() < 0.55 * model.ByteSize()
    floats = [t for t in half.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert all(t.dims == [4] for t in floats), "only the scales of resizes stay in float32"
    weights = [numpy_helper.to_array(t) for t in half.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert all(np.all((w == 0) | (np.abs(w) >= 2.0**-24)) for w in weights)
    assert [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)] == [TensorProto.UINT8] * 2


def test_weights_that_half_precision_cannot_hold_are_refused(tiny_model: Path) -> None:
    model = onnx.load(str(tiny_model))
    next(t for t in model.graph.initializer if t.name == "bias").CopyFrom(
        numpy_helper.from_array(np.array([1e6, 0], np.float32), "bias")
    )
    with pytest.raises(ModelError, match=r"1e\+06.*65504"):
        as_fp16(model)


def test_quantised_models_are_known_and_kept(tiny_model: Path) -> None:
    model = onnx.load(str(tiny_model))
    assert not is_quantised(model)
    model.graph.node.append(helper.make_node("QuantizeLinear", ["logits", "levels"], ["quantised"]))
    assert is_quantised(model)
    with pytest.raises(ModelError, match="quantised"):
        as_fp16(model)


@pytest.mark.parametrize("size", [(320, 192), (640, 384), (448, 256)])
def test_other_input_sizes(size: tuple[int, int]) -> None:
    fixed = with_input(onnx.load(str(DEFAULT_MODEL)), size, 2)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*fixed.graph.input, *fixed.graph.output)]
    assert shapes == [[2, size[1], size[0], 3], [2, 2, size[1], size[0]]]
    images = drive(size).repeat(2, axis=0)
    scores = scores_of(fixed, images)
    assert np.array_equal(scores[0], scores[1])
    road = cv2.resize((scores[0, 0] > 127).astype(np.uint8), (448, 256), interpolation=cv2.INTER_NEAREST)
    wanted = scores_of(onnx.load(str(DEFAULT_MODEL)), drive((448, 256)))[0, 0] > 127
    assert np.mean((road > 0) == wanted) > 0.97, "the same road at another size"


def test_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="100x100"):
        at_size(read_contract(DEFAULT_MODEL), (100, 100))


def test_a_contract_at_another_size_loads_so() -> None:
    contract = at_size(read_contract(DEFAULT_MODEL), (320, 192))
    assert (contract.input_size, contract.batch, contract.sha256) == ((320, 192), 1, read_contract(DEFAULT_MODEL).sha256)
    assert load(contract).graph.input[0].type.tensor_type.shape.dim[2].dim_value == 320


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_backends_run_at_another_size(backend: str) -> None:
    pytest.importorskip(backend)
    image = drive((640, 360))[0]
    with open_engine(None, backend, input_size=(320, 192)) as engine:
        scores = engine.segment([image]).values
    reference = scores_of(load(at_size(read_contract(DEFAULT_MODEL), (320, 192))), cv2.resize(image, (320, 192))[None])
    assert scores.shape == (1, 2, 192, 320)
    assert np.abs(scores.astype(int) - reference).max() <= 2
