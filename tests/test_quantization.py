"""INT8 models: what they are, what they keep, and that they say nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from calibration.quantization import QuantisationOptions, measure, named, quantise, with_scales
from calibration.sensitivity import keep_to_lose, keep_worst, layers, scores_of, sensitivities, table
from engine import DEFAULT_INT8, DEFAULT_MODEL, DEFAULT_SYMMETRIC, open_engine, read_contract
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
@pytest.mark.parametrize("file", ["made now", DEFAULT_INT8.name, DEFAULT_SYMMETRIC.name])
def test_int8_says_nearly_the_same(quantised: Path, backend: str, file: str) -> None:
    row = Parity(backend, "int8")
    model = quantised if file == "made now" else DEFAULT_INT8.with_name(file)
    with open_engine(model, backend) as engine, open_engine(DEFAULT_MODEL, "onnxruntime") as reference:
        assert engine.precision == "int8"
        for image in drive(4, seed=4):  # not those that the ranges were measured on
            row.add(engine.segment([image]).values[0], reference.segment([image]).values[0], engine.contract.planes)
    assert row.largest > 2, "the same as the float model would mean that nothing was quantised"
    assert all(iou > 0.97 for iou in row.iou.values()), row.iou


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_ways_of_finding_ranges(tiny_model: Path, method: str) -> None:
    options = QuantisationOptions(method, "int8", keep=())
    model = quantise(read_contract(tiny_model), drive(20), options)
    assert json.loads({p.key: p.value for p in model.metadata_props}["freespace.quantisation"])["frames"] == 20, (
        "in parts of 8, 8 and 4"
    )
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
    uncalibrated = json.loads(read_contract(DEFAULT_MODEL).metadata["freespace.confidence"])["of"]
    for path in (DEFAULT_INT8, DEFAULT_SYMMETRIC):
        origin = json.loads(read_contract(path).metadata["freespace.quantisation"])
        assert origin["of"] == uncalibrated, "made of the float model that ships with it"


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


def two_layers(path: Path) -> Path:
    """A model of two convolutions that scores green less red in every pixel. The first, ``rough``, has one large weight, for
    blue: in 8 bits the others, a thousandth of it, are nothing. The second, ``fine``, has weights of 1."""
    from onnx import TensorProto, helper

    rough = np.array([[1000.0, 0.2, -0.2], [1000.0, 0.2, -0.2]], np.float32).reshape(2, 3, 1, 1)
    initializers = [
        onnx.numpy_helper.from_array(rough, "rough_weight"),
        onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "fine_weight"),
        helper.make_tensor("levels", TensorProto.FLOAT, (), [255.0]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "rough_weight"], ["first"], "rough", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["first"], ["positive"], "positive"),
        helper.make_node("Conv", ["positive", "fine_weight"], ["logits"], "fine", kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
        helper.make_node("Mul", ["probability", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["scores"], to=TensorProto.UINT8),
    ]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 64, 3]),
        helper.make_tensor_value_info("scores", TensorProto.UINT8, ["N", 2, 32, 64]),
    ]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(
        model, {"freespace.contract": "1", "freespace.planes": "freespace,ego", "freespace.resize": "stretch"}
    )
    onnx.save(model, str(path))
    return path


def red_and_green(count: int) -> list[np.ndarray]:
    images = np.random.default_rng(0).integers(0, 32, (count, 32, 64, 3), np.uint8)
    images[..., 0] = 0
    return list(images)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_sensitivity_finds_the_layer_that_int8_spoils(tmp_path: Path, activations: str) -> None:
    contract = read_contract(two_layers(tmp_path / "two.onnx"))
    measured = measure(contract, red_and_green(8), QuantisationOptions(activations=activations))
    assert layers(measured.model) == [("rough", "positive"), ("fine",)]
    worst, best = sensitivities(measured)
    assert (worst.layer, worst.kind, best.layer) == (("rough", "positive"), "Conv", ("fine",))
    # Without its small weights the first layer gives 0, and every score is 0.5: the difference follows from the pixels alone.
    pixels = np.stack(measured.inputs)[:, 0].astype(np.float64)
    scores = np.rint(255 / (1 + np.exp(-np.maximum(0.2 * (pixels[..., 1] - pixels[..., 2]), 0))))
    assert worst.difference == pytest.approx(np.abs(scores - 128).mean() / 255, rel=0.02)
    assert best.difference < 0.005
    assert "rough" in table([worst, best]).splitlines()[2]
    assert keep_worst([worst, best], 1) == ["rough", "positive"]
    assert keep_to_lose(measured, [worst, best], 0.02) == ["rough", "positive"], "no more than it takes"
    with pytest.raises(ModelError, match="already move by"):
        keep_to_lose(measured, [worst, best], 0.0)


def test_kept_layers_stay_in_float_and_only_the_named_ones_do_not(tmp_path: Path) -> None:
    measured = measure(read_contract(two_layers(tmp_path / "two.onnx")), red_and_green(8), QuantisationOptions())
    for model, wanted in (
        (with_scales(measured, kept=["rough", "positive"]), {"fine"}),
        (with_scales(measured, only=["rough", "positive"]), {"rough"}),
        (with_scales(measured), {"rough", "fine"}),
    ):
        weights = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
        assert {n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights} == wanted
    assert named(measured.model, ["ough", "posit"]) == ["rough", "positive"]
    wanted_scores = list(scores_of(measured.model, measured.inputs))
    kept = list(scores_of(with_scales(measured, kept=["rough", "positive", "fine"]), measured.inputs))
    assert all(np.array_equal(a, b) for a, b in zip(kept, wanted_scores, strict=True)), "all of it in float is the float model"


def test_symmetric_models_round_nothing_between_a_convolution_and_its_clipping(tmp_path: Path) -> None:
    measured = measure(
        read_contract(two_layers(tmp_path / "t.onnx")), red_and_green(8), QuantisationOptions(activations="int8")
    )
    nodes = {node.name: node for node in with_scales(measured).graph.node}
    assert nodes["positive"].input[0] == nodes["rough"].output[0]


def test_quantize_command_measures_sensitivity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perception.errors import BadInput
    from perception.quantise import quantise_command

    model, frames, out = two_layers(tmp_path / "two.onnx"), tmp_path / "frames", tmp_path / "int8.onnx"
    frames.mkdir()
    for i, image in enumerate(red_and_green(8)):
        cv2.imwrite(str(frames / f"{i}.png"), image)
    quantise_command([str(frames)], out, str(model), 1, "minmax", "uint8", (), False, lose=0.02)
    said = capsys.readouterr().out
    assert said.index("rough") < said.index("fine"), "the worst first"
    assert "in float: rough, positive" in said
    kept = json.loads(read_contract(out).metadata["freespace.quantisation"])["kept"]
    assert kept == ["rough", "positive"]
    quantise_command([str(frames)], out, str(model), 1, "minmax", "uint8", (), True, sensitivity=True, worst=0)
    assert json.loads(read_contract(out).metadata["freespace.quantisation"])["kept"] == []
    with pytest.raises(BadInput, match="--keep-worst"):
        quantise_command([str(frames)], out, str(model), 1, "minmax", "uint8", ("fine",), True, worst=1)
    with pytest.raises(BadInput, match="--keep 'notanode': no node"):
        quantise_command(["nowhere.mp4"], out, str(model), 1, "minmax", "uint8", ("fine", "notanode"), True)
    for options, said in (({"lose": -1.0}, "--lose -1"), ({"lose": 1.5}, "--lose 1.5"), ({"worst": -1}, "--keep-worst -1")):
        with pytest.raises(BadInput, match=said):
            quantise_command(["nowhere.mp4"], out, str(model), 1, "minmax", "uint8", (), True, **options)  # type: ignore[arg-type]


def test_all_frames_count_in_every_method(tiny_model: Path) -> None:
    """The brightest is the last of nine: ranges know it."""
    frames = [np.full((64, 128, 3), 10, np.uint8)] * 8
    for method in ("percentile", "entropy"):
        options = QuantisationOptions(method, "int8", keep=())
        measured = [
            measure(read_contract(tiny_model), [*frames, last], options) for last in (frames[0], np.full_like(frames[0], 250))
        ]
        dark, bright = (max(float(np.max(r.range_value[1])) for r in m.ranges.data.values()) for m in measured)
        assert bright > dark


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
    named = ["calibrate", "quantize", str(tiny_model), "--frames", source, "--out", str(out), "--keep", "none", "--overwrite"]
    app(named, standalone_mode=False)
    assert "int8 from 10 frames" in capsys.readouterr().out
    assert json.loads(read_contract(out).metadata["freespace.quantisation"])["kept"] == []
    with pytest.raises(Exception, match="one model, and nothing else"):
        app([*named, "--model", str(tiny_model)], standalone_mode=False)
    with pytest.raises(Exception, match="no frames"):
        app(["calibrate", "quantize", "--out", str(out), "--overwrite"], standalone_mode=False)
