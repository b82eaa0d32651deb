"""Every backend gives the same scores, and what the model file says about itself is true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine import BACKENDS, DEFAULT_MODEL, installed, open_engine, read_contract, usable
from engine.parity import compare
from perception.synthetic import render, scene_from_uri

ZOO_LIMIT_BYTES = 10_000_000


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if reason := out_of_reach(request.param):
        pytest.skip(reason)
    return str(request.param)


def out_of_reach(name: str) -> str:
    return usable(name) if installed(name) else f"{name} is not installed"


def drive_images() -> list[np.ndarray]:
    return [render(scene_from_uri(f"synthetic://{name}?size=640x360"), 20).image for name in ("drive", "night", "traffic")]


def test_scores_are_what_the_weights_say(backend: str, tiny_model: Path) -> None:
    """Green is freespace in the tiny model, red is not: known without running any runtime."""
    image = np.zeros((48, 80, 3), np.uint8)
    image[:, :40] = (0, 255, 0)
    image[:, 40:] = (0, 0, 255)
    with open_engine(tiny_model, backend) as engine:
        scores = engine.segment([image])
    assert scores.values.shape == (1, 2, 32, 64)
    assert scores.values.dtype == np.uint8
    assert scores.values[0, 0, :, :31].min() > 250
    assert scores.values[0, 0, :, 33:].max() < 5


def test_a_batch_is_its_images_one_by_one(backend: str, tiny_model: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 60, 3), np.uint8), rng.integers(0, 256, (90, 30, 3), np.uint8)]
    with open_engine(tiny_model, backend) as engine:
        together = engine.segment(images)
        apart = [engine.segment([image]).values[0] for image in images]
    assert np.abs(together.values.astype(int) - np.stack(apart)).max() <= 1
    assert [r.frame_size for r in together.resamplings] == [(60, 40), (30, 90)]


def test_scores_belong_to_the_caller(backend: str, tiny_model: Path) -> None:
    with open_engine(tiny_model, backend) as engine:
        first = engine.segment([np.full((32, 64, 3), (0, 255, 0), np.uint8)]).values
        kept = first.copy()
        engine.segment([np.full((32, 64, 3), (0, 0, 255), np.uint8)])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    "image",
    [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 4), np.uint8), np.zeros((10, 10, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(image: np.ndarray, tiny_model: Path) -> None:
    with open_engine(tiny_model) as engine, pytest.raises(ValueError, match="uint8"):
        engine.segment([image])


def test_two_engines_in_one_process(tiny_model: Path) -> None:
    image = drive_images()[0]
    with open_engine(tiny_model) as first, open_engine() as second:
        assert first.segment([image]).values.shape[2:] == (32, 64)
        assert second.segment([image]).values.shape[3] == second.input_size[0]


def test_backends_agree_on_the_shipped_model() -> None:
    rows = compare(drive_images(), lambda name: open_engine(None, name, "fp32")).rows
    assert len(rows) == sum(not out_of_reach(name) for name in BACKENDS) - 1
    assert rows
    for row in rows:
        assert row.largest <= 2, row


def test_shipped_model_tells_about_itself() -> None:
    metadata = read_contract(DEFAULT_MODEL).metadata
    assert "CamVid" in metadata["freespace.training_data"]
    assert all(phase["epochs"] > 0 for phase in json.loads(metadata["freespace.recipe"]))
    results = json.loads(metadata["freespace.metrics"])["results"]
    assert {(r["dataset"], r["plane"]) for r in results} == {
        ("camvid", "freespace"),
        ("idd_lite", "freespace"),
        ("bdd100k", "ego"),
    }
    assert all(r["images"] > 0 for r in results)


def test_shipped_weights_are_small_and_hold_no_denormals() -> None:
    files = [p for p in DEFAULT_MODEL.parent.iterdir() if p.suffix == ".onnx"]
    assert sum(p.stat().st_size for p in files) <= ZOO_LIMIT_BYTES
    for path in files:
        model = onnx.load(str(path))
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
        floats = [w for w in weights if w.dtype == np.float32]
        assert sum(w.size for w in floats) <= 1_500_000
        for weight in floats:
            assert not np.any((weight != 0) & (np.abs(weight) < np.finfo(np.float32).tiny))


def test_shipped_model_sees_the_synthetic_road() -> None:
    """Not an accuracy claim: colours, layout or planes mixed up anywhere would fail it."""
    scene = scene_from_uri("synthetic://straight?size=640x360")
    frame = render(scene, 20)
    with open_engine() as engine:
        scores = engine.segment([frame.image])
    points = np.argwhere(frame.masks["freespace"] > 0)[:, ::-1].astype(float)
    sky = np.array([[x, y] for x in range(0, 640, 16) for y in range(0, 100, 10)], float)
    for points_there, wanted in ((points, 0.8), (sky, 0.0)):
        at = np.rint(scores.resamplings[0].input_from_frame(points_there)).astype(int)
        share = np.mean(scores.values[0, 0, at[:, 1].clip(0, None), at[:, 0].clip(0, None)] > 127)
        assert share >= wanted if wanted else share <= 0.01


def test_auto_goes_on_where_a_library_is_broken(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is there, and importing it fails: in asking what the processor can do, or in opening it."""

    def broken() -> bool:
        raise ImportError("libopenvino.so: undefined symbol")

    monkeypatch.setattr("engine.AUTO", ("openvino", "onnxruntime"))
    monkeypatch.setattr("engine.openvino_engine.native_bf16", broken)
    said: list[str] = []
    with open_engine(tiny_model, say=said.append) as engine:
        assert engine.name == "onnxruntime"
        assert "openvino failed" in engine.reason
    assert "undefined symbol" in said[0]
