"""Real plans: TensorRT for RTX compiles without a GPU, so every shipped model goes through NVIDIA's own parser and builder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from calibration.quantization import QuantisationOptions, quantise
from engine import DEFAULT_INT8, DEFAULT_MODEL, DEFAULT_SYMMETRIC, read_contract, tensorrt_api
from engine.build import BuildCancelled, PlanOptions, build_plan, prepare_onnx
from engine.contract import ModelError
from engine.graph import at_size
from perception.synthetic import render, scene_from_uri

if tensorrt_api.module_name("tensorrt_rtx") is None:
    pytest.skip("TensorRT for RTX is not installed (x86-64 only)", allow_module_level=True)

MODELS = [path for path in sorted(DEFAULT_MODEL.parent.glob("*.onnx")) if not read_contract(path).quantised]
TARGETS = [(7, 5), (8, 6), (8, 9), (12, 0)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm{t[0]}{t[1]}")
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_shipped_models_compile(model: Path, target: tuple[int, int], precision: str) -> None:
    trt = tensorrt_api.load("tensorrt_rtx")
    contract = read_contract(model)
    options = PlanOptions(precision, compute_capabilities=(target,))
    phases: set[str] = set()

    def report(phase: str, done: int, steps: int) -> bool:
        phases.add(phase)
        return 0 < done <= steps

    plan, timings = build_plan(trt, prepare_onnx(contract, options), options, progress=report)
    floats = [numpy_helper.to_array(t) for t in onnx.load(str(model)).graph.initializer]
    weights = sum(w.size for w in floats if w.dtype == np.float32)
    assert len(plan) > weights * (2 if precision == "fp16" else 4), "the weights are in it"
    assert timings == b"", "this flavour has none"
    assert phases, "the build said how far it was"


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm{t[0]}{t[1]}")
def test_shipped_models_compile_in_int8(target: tuple[int, int], tmp_path: Path) -> None:
    """The file that ships, and one that is made now."""
    trt = tensorrt_api.load("tensorrt_rtx")
    scene = scene_from_uri("synthetic://traffic?size=640x360")
    frames = [render(scene, 5 * i).image for i in range(8)]
    path = tmp_path / "int8.onnx"
    onnx.save(quantise(read_contract(DEFAULT_MODEL), frames, QuantisationOptions(activations="int8")), str(path))
    options = PlanOptions("int8", compute_capabilities=(target,))
    for model in (DEFAULT_SYMMETRIC, path):
        assert build_plan(trt, prepare_onnx(read_contract(model), options), options)[0]


def test_the_file_for_processors_is_refused() -> None:
    with pytest.raises(ModelError, match="--activations int8"):
        prepare_onnx(read_contract(DEFAULT_INT8), PlanOptions("int8"))


def test_sizes_and_batches_compile() -> None:
    trt = tensorrt_api.load("tensorrt_rtx")
    contract = at_size(read_contract(DEFAULT_MODEL), (640, 384))
    options = PlanOptions("fp16", batch=4, compute_capabilities=((8, 6),))
    assert build_plan(trt, prepare_onnx(contract, options), options)[0]


def test_a_plan_for_several_targets_and_none_that_is_unknown() -> None:
    trt = tensorrt_api.load("tensorrt_rtx")
    contract = read_contract(DEFAULT_MODEL)
    both = PlanOptions("fp16", compute_capabilities=((8, 6), (8, 9)))
    assert build_plan(trt, prepare_onnx(contract, both), both)[0]
    unknown = PlanOptions("fp16", compute_capabilities=((5, 3),))
    with pytest.raises(ModelError, match="SM53"):
        build_plan(trt, prepare_onnx(contract, unknown), unknown)


def test_stopping_a_real_build() -> None:
    options = PlanOptions("fp16", compute_capabilities=((8, 6),))
    source = prepare_onnx(read_contract(DEFAULT_MODEL), options)
    with pytest.raises(BuildCancelled):
        build_plan(tensorrt_api.load("tensorrt_rtx"), source, options, progress=lambda *_: False)


def test_the_parser_names_what_it_cannot_do(tmp_path: Path) -> None:
    model = onnx.load(str(DEFAULT_MODEL))
    model.graph.node[3].CopyFrom(
        helper.make_node("Sausage", list(model.graph.node[3].input)[:1], list(model.graph.node[3].output), domain="butcher")
    )
    model.opset_import.append(helper.make_opsetid("butcher", 1))
    options = PlanOptions("fp32", compute_capabilities=((8, 6),))
    with pytest.raises(ModelError, match="Sausage"):
        build_plan(tensorrt_api.load("tensorrt_rtx"), model.SerializeToString(), options)


def test_build_command_for_a_card_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perception.cli import app

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    app(["build", "--target", "8.6"], standalone_mode=False)
    assert "built in" in capsys.readouterr().out
    (manifest,) = (tmp_path / "freespace/plans").glob("*.json")
    described = json.loads(manifest.read_text())
    assert (described["flavour"], described["gpu"], described["compute_capability"]) == ("tensorrt_rtx", "any", [8, 6])
    app(["build", "--target", "8.6"], standalone_mode=False)
    assert "fits already" in capsys.readouterr().out
