"""INT8 models: what they are, what they keep, and that they say nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.quantization import QuantisationOptions, quantise
from engine import DEFAULT_INT8, DEFAULT_MODEL, open_engine, read_contract
from engine.contract import ModelError
from engine.graph import is_quantised
from engine.parity import Parity
from perception.synthetic import render, scene_from_uri


def drive(count: int, seed: int = 3) -> list[np.ndarray]:
    scene = scene_from_uri(f"synthetic://traffic?size=640x360&seed={seed}")
    return [render(scene, 5 * i).image for i in range(count)]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(quantise(read_contract(DEFAULT_MODEL), drive(12)), str(path))
    return path


def test_quantised_file_keeps_the_contract(quantised: Path) -> None:
    before, after = read_contract(DEFAULT_MODEL), read_contract(quantised)
    assert after.quantised
    assert not before.quantised
    assert (after.planes, after.input_size, after.batch, after.resize) == (
        before.planes,
        before.input_size,
        before.batch,
        before.resize,
    )
    assert after.metadata["freespace.training_data"] == before.metadata["freespace.training_data"]
    assert "freespace.metrics" not in after.metadata, "those of the float model are not its own"
    origin = json.loads(after.metadata["freespace.quantisation"])
    assert (origin["of"], origin["frames"], origin["method"]) == (before.sha256, 12, "minmax")
    assert quantised.stat().st_size < 0.4 * DEFAULT_MODEL.stat().st_size


def test_weights_are_symmetric_per_channel_and_the_head_stays_in_float(quantised: Path) -> None:
    graph = onnx.load(str(quantised)).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    floats = []
    for node in convolutions:
        weight = made_by.get(node.input[1])
        if weight is None:
            floats.append(node.name)
            continue
        assert weight.op_type == "DequantizeLinear"
        values, scales, zeros = (constants[name] for name in weight.input)
        assert values.dtype == np.int8
        assert scales.shape == (values.shape[0],)
        assert not zeros.any()
    assert len(floats) == 3
    assert all("head" in name or "stages.0" in name for name in floats), floats
    assert not any(
        node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.int8(0)).dtype == np.int32 for node in graph.node
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_says_nearly_the_same(quantised: Path, backend: str) -> None:
    row = Parity(backend, "int8")
    with open_engine(quantised, backend) as engine, open_engine(DEFAULT_MODEL, "onnxruntime") as reference:
        assert engine.precision == "int8"
        for image in drive(4, seed=4):  # not those that the ranges were measured on
            row.add(engine.segment([image]).values[0], reference.segment([image]).values[0], engine.contract.planes)
    assert row.largest > 2, "the same as the float model would mean that nothing was quantised"
    assert all(iou > 0.97 for iou in row.iou.values()), row.iou


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_ways_of_finding_ranges(tiny_model: Path, method: str) -> None:
    options = QuantisationOptions(method, "int8", keep=())
    model = quantise(read_contract(tiny_model), drive(20), options)
    assert json.loads({p.key: p.value for p in model.metadata_props}["freespace.quantisation"])["frames"] == 16, "in parts of 8"
    assert is_quantised(model)
    zeros = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("zero_point")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros), "symmetric, as TensorRT wants it"


def test_what_cannot_be_quantised(quantised: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="quantised already"):
        quantise(read_contract(quantised), drive(8))
    with pytest.raises(ModelError, match="3 frames are too few"):
        quantise(read_contract(tiny_model), drive(3))
    with pytest.raises(ModelError, match="minmax, percentile, entropy"):
        quantise(read_contract(tiny_model), drive(8), QuantisationOptions("guess"))


@pytest.mark.parametrize(
    ("model", "backend", "precision", "message"),
    [
        (DEFAULT_INT8, "openvino", "bf16", "computes in int8 and not in bf16"),
        (DEFAULT_INT8, "onnxruntime", "fp32", "computes in int8 and not in fp32"),
        (DEFAULT_MODEL, "openvino", "int8", "calibrate quantize"),
        (None, "torch", "int8", "not int8"),
    ],
)
def test_precisions_that_do_not_fit_the_file(model: Path | None, backend: str, precision: str, message: str) -> None:
    pytest.importorskip(backend)
    with pytest.raises(ModelError, match=message):
        open_engine(model, backend, precision)


def test_int8_without_a_model_is_the_shipped_one() -> None:
    with open_engine(None, "onnxruntime", "int8") as engine:
        assert engine.contract.path == DEFAULT_INT8
    origin = json.loads(read_contract(DEFAULT_INT8).metadata["freespace.quantisation"])
    assert origin["of"] == read_contract(DEFAULT_MODEL).sha256, "made of the float model that ships with it"


@pytest.mark.parametrize(
    ("flags", "precision"), [("fpu sse2 avx2", ("fp32", "bf16")), ("fpu avx2 avx_vnni", ("int8",))], ids=["old", "vnni"]
)
def test_auto_takes_int8_where_the_processor_is_made_for_it(
    flags: str, precision: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("engine.cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr("engine.AUTO", ("openvino", "onnxruntime"))
    with open_engine() as engine:
        assert engine.precision in precision
    with open_engine(tiny_model) as engine:
        assert engine.precision in ("fp32", "bf16"), "a model of one's own is taken as it is"


def test_quantize_command(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perception.cli import app

    out = tmp_path / "int8.onnx"
    source = "synthetic://drive?size=128x64&fps=10&seconds=1"
    arguments = ["calibrate", "quantize", source, "--out", str(out), "--model", str(tiny_model), "--keep", "none"]
    app(arguments, standalone_mode=False)
    assert "int8 from 10 frames" in capsys.readouterr().out
    assert read_contract(out).quantised
    with pytest.raises(Exception, match="--overwrite"):
        app(arguments, standalone_mode=False)
