"""The peers' loops and the measurements beside them: right masks, right numbers, who did not run is named."""

from __future__ import annotations

import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import BLUE, CYAN, GREEN, RED, road_image, road_video
from fakes import install
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from benchmarks import cameras, peer_loops, peers, scaling
from benchmarks.peer_loops import (
    Found,
    Network,
    OnnxRuntimeNetwork,
    OpenVinoNetwork,
    TensorRtNetwork,
    content,
    fewer_points,
    in_half,
    letterboxed,
    mask_polygons,
    read_clean,
    road_segmentation,
    supervision,
    twinlitenet,
    yolop,
)
from engine import DEFAULT_MODEL, open_engine
from engine.base import Engine
from engine.contract import ModelError
from engine.preprocess import fit
from perception.config import PolygonConfig
from perception.errors import BadInput
from perception.polygons import extract
from perception.timing import Stages

WIDTH, HEIGHT = 64, 32
DRIVABLE = [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]  # rows: the rest, the class; columns: R, G, B
LANES = [[0.0, 0.0, 0.0], [-1.0, -1.0, 1.0]]  # only what is blue and nothing else


def colour_network(path: Path, outputs: dict[str, list[list[float]]], bias: float = -0.2, scale: float = 1.0) -> Path:
    """``(1, 3, h, w)`` in, a 1x1 convolution out for each output: scores of the classes by colour alone.

    ``bias`` is that of every class but the first, ``scale`` what the input is multiplied by before.
    """
    size = (HEIGHT, WIDTH)
    nodes, weights = [], []
    for name, rows in outputs.items():
        kernel = scale * np.array(rows, np.float32)[:, :, None, None]
        offsets = np.array([0.0] + [bias] * (len(rows) - 1), np.float32)
        weights += [numpy_helper.from_array(kernel, f"{name}.weight"), numpy_helper.from_array(offsets, f"{name}.bias")]
        nodes.append(helper.make_node("Conv", ["input", f"{name}.weight", f"{name}.bias"], [name], kernel_shape=[1, 1]))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(rows), *size]) for name, rows in outputs.items()],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@pytest.fixture(scope="session")
def twin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_network(tmp_path_factory.mktemp("peer") / "twin.onnx", {"area": DRIVABLE, "lanes": LANES})


@pytest.fixture(scope="session")
def twin_network(twin_file: Path) -> Network:
    return OnnxRuntimeNetwork(twin_file)


def lower_half(height: int = 64, width: int = 128) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 2 :] = True
    return mask


def away_from_border(mask: np.ndarray, pixels: int = 2) -> np.ndarray:
    """Where a mask's border is further away than ``pixels``."""
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel) == cv2.erode(mask.astype(np.uint8), kernel)


def agree(found: np.ndarray | None, wanted: np.ndarray) -> None:
    assert found is not None
    assert found.dtype == bool
    assert found.shape == wanted.shape
    inside = away_from_border(wanted)
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(found[inside], wanted[inside])


# -- Loops -------------------------------------------------------------------------------------------------------------


def test_twinlitenet_finds_and_paints(twin_network: Network) -> None:
    frame = road_image()
    frame[:16] = BLUE  # lanes of this network
    before = frame.copy()
    done = twinlitenet(twin_network).process(frame)
    agree(done.found.drivable, lower_half())
    lanes = np.zeros((64, 128), bool)
    lanes[:16] = True
    agree(done.found.masks[1], lanes)
    np.testing.assert_array_equal(frame, before)
    area, lane = done.found.masks
    assert (done.picture[area & ~lane] == (0, 0, 255)).all()
    assert (done.picture[lane] == (0, 255, 0)).all()
    np.testing.assert_array_equal(done.picture[~area & ~lane], frame[~area & ~lane])
    assert list(done.stages) == ["preprocess", "infer", "postprocess", "draw"]
    assert all(value > 0 for value in done.stages.values())


def test_input_of_twinlitenet_is_planar_rgb(twin_network: Network) -> None:
    seen = peer_loops.planar_rgb(np.full((64, 128, 3), (10, 20, 255), np.uint8), (WIDTH, HEIGHT))
    assert seen.shape == (1, 3, HEIGHT, WIDTH)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[0, :, 0, 0], [1.0, 20 / 255, 10 / 255], rtol=1e-6)


def test_openvino_finds_the_same(twin_file: Path, twin_network: Network) -> None:
    pytest.importorskip("openvino")
    frame = road_image()
    theirs = twinlitenet(OpenVinoNetwork(twin_file)).process(frame).found.masks
    for one, other in zip(theirs, twinlitenet(twin_network).process(frame).found.masks, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("release", ["10.3", "11.4"])
def test_tensorrt_finds_the_same(
    twin_file: Path, twin_network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fakes = install(monkeypatch, release)
    loop = twinlitenet(TensorRtNetwork(twin_file))
    frame = road_image()
    for shifted in (frame, frame[::-1].copy()):  # the second not from what the first left behind
        found = loop.process(shifted).found.masks
        for one, other in zip(found, twinlitenet(twin_network).process(shifted).found.masks, strict=True):
            np.testing.assert_array_equal(one, other)
    assert loop.facts()["runtime"] == f"tensorrt {fakes.tensorrt.__version__} fp16"
    loop.close()
    loop.close()
    assert fakes.leaks() == []


def test_yolop_letterboxes_and_normalises() -> None:
    frame = np.full((96, 128, 3), (30, 60, 90), np.uint8)
    assert content((128, 96), (64, 32)) == (10, 0, 43, 32)  # 128 / 3 = 42.67
    mean, deviation = (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)
    blob = letterboxed(frame, (64, 32), mean, deviation)
    assert blob.shape == (1, 3, 32, 64)
    inner = [(90 / 255 - 0.5) / 0.1, (60 / 255 - 0.4) / 0.2, (30 / 255 - 0.3) / 0.4]
    np.testing.assert_allclose(blob[0, :, 16, 30], inner, rtol=1e-5)
    grey = 114 / 255
    np.testing.assert_allclose(blob[0, :, 5, 3], [(grey - 0.5) / 0.1, (grey - 0.4) / 0.2, (grey - 0.3) / 0.4], rtol=1e-5)
    assert (np.abs(blob[0, 0] - inner[0]) < 1e-5).sum() == 43 * 32


@pytest.mark.parametrize("size", [(128, 64), (128, 96), (96, 160)])
def test_yolop_finds_what_is_there_whatever_the_padding(twin_network: Network, size: tuple[int, int]) -> None:
    width, height = size
    frame = np.full((height, width, 3), RED, np.uint8)
    frame[height // 2 :] = GREEN
    done = yolop(twin_network, own=False).process(frame)
    found = done.found.drivable
    assert found is not None
    assert found.shape == (height, width)
    rows = found.mean(axis=1)
    blur = round(2 * max(width / WIDTH, height / HEIGHT))  # two pixels of the network
    assert (rows[: height // 2 - blur] == 0).all()
    assert (rows[height // 2 + blur :] == 1).all()
    assert (done.picture[-1, 0] == (0, (200 + 255) // 2, 0)).all()  # half the frame, half green
    np.testing.assert_array_equal(done.picture[0], frame[0])


def test_yolops_own_network_is_given_what_it_was_trained_on(twin_network: Network) -> None:
    loop = yolop(twin_network, own=True)
    assert isinstance(loop, peer_loops.StepwiseLoop)
    blob = loop.prepare(np.full((64, 128, 3), (255, 0, 127), np.uint8))
    expected = [(127 / 255 - 0.485) / 0.229, (0 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(blob[0, :, 0, 0], expected, rtol=1e-5)
    assert "its own network" in loop.about
    assert "TwinLiteNet's network" in yolop(twin_network, own=False).about


def test_supervision_draws_polygons_of_each_class(twin_network: Network) -> None:
    frame = road_image()
    frame[:16] = BLUE
    done = supervision(twin_network).process(frame)
    agree(done.found.drivable, lower_half())
    (area,), (lane,) = done.found.polygons
    assert cv2.boundingRect(area) == pytest.approx((0, 32, 128, 32), abs=2)
    assert cv2.boundingRect(lane) == pytest.approx((0, 0, 128, 16), abs=2)
    assert (done.picture[48, 0] == (0, 255, 0)).all()  # on the outline
    np.testing.assert_array_equal(done.picture[48, 64], frame[48, 64])  # within it nothing is filled


def test_polygons_of_a_mask() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:35, 10:50] = True
    mask[15:25, 20:40] = False
    outer, hole = mask_polygons(mask)
    assert cv2.contourArea(outer) == 29 * 39  # between the outermost pixels' centres
    assert cv2.boundingRect(hole) == (19, 14, 22, 12)  # the pixels around the hole
    mask[:] = False
    mask[3, 3] = True  # a point is no polygon
    assert mask_polygons(mask) == []


@given(st.integers(12, 400), st.integers(0, 1000))
def test_fewer_points_are_a_part_of_the_points(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = 200 + 30 * rng.random(count)
    ring = np.rint(np.stack([300 + radius * np.cos(angles), 300 + radius * np.sin(angles)], axis=1)).astype(np.int32)
    fewer = fewer_points(ring)
    assert 3 <= len(fewer) <= max(int(0.25 * count), 3)
    assert set(map(tuple, fewer.tolist())) <= set(map(tuple, ring.tolist()))


def test_road_segmentation_takes_bgr_and_four_classes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    # Input B, G, R of 0 to 255: red is background, green is road, cyan is curb, blue is a mark.
    classes = [[-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [0.6, 0.6, -1.0], [1.0, -1.0, -1.0]]
    file = colour_network(tmp_path / "road.onnx", {"output": classes}, bias=0.0)
    frame = np.concatenate([np.full((64, 32, 3), colour, np.uint8) for colour in (RED, GREEN, CYAN, BLUE)], axis=1)
    loop = road_segmentation(OpenVinoNetwork(file))
    done = loop.process(frame)
    assert done.found.classes is not None
    np.testing.assert_array_equal(done.found.classes[:, 16::32], np.tile([0, 1, 2, 3], (64, 1)))
    assert done.found.drivable is not None
    np.testing.assert_array_equal(done.found.drivable[0, 16::32], [False, True, False, True])
    road = peer_loops.ROAD_CLASSES[1]
    np.testing.assert_allclose(done.picture[0, 48], (np.array(GREEN) + road) / 2, atol=1)


def test_a_loop_that_knows_no_road_says_so() -> None:
    assert Found().drivable is None


# -- Networks ----------------------------------------------------------------------------------------------------------


def test_denormal_weights_become_zero(tmp_path: Path) -> None:
    file = colour_network(tmp_path / "tiny.onnx", {"area": DRIVABLE})
    model = onnx.load(str(file))
    weight = next(t for t in model.graph.initializer if t.name == "area.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0], values[0, 1, 0, 0] = 1e-40, 1.2e-38  # denormal; the smallest normal number is 1.1755e-38
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(file))
    clean, share = read_clean(file)
    cleaned = numpy_helper.to_array(next(t for t in clean.graph.initializer if t.name == "area.weight"))
    assert cleaned[0, 0, 0, 0] == 0
    assert cleaned[0, 1, 0, 0] == np.float32(1.2e-38)
    np.testing.assert_array_equal(cleaned[1], values[1])
    assert share == 1 / 8  # 6 weights and 2 offsets


def test_half_precision_computes_the_same(twin_file: Path) -> None:
    model, _ = read_clean(twin_file)
    half = in_half(model)
    kinds = {t.data_type for t in half.graph.initializer}
    assert kinds == {TensorProto.FLOAT16}
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT  # the original stays
    blob = np.random.default_rng(0).random((1, 3, HEIGHT, WIDTH), np.float32)
    providers = ["CPUExecutionProvider"]
    results = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=providers).run(None, {"input": blob})
        for m in (model, half)
    ]
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == np.float16
        np.testing.assert_allclose(rounded.astype(np.float32), exact, atol=3e-3)


def test_what_is_no_network_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"not a network")
    with pytest.raises(BadInput, match=r"wrong\.onnx: is no ONNX file"):
        OnnxRuntimeNetwork(wrong)
    with pytest.raises(BadInput, match=r"wanted is a fixed \(1, 3, h, w\)"):
        OnnxRuntimeNetwork(tiny_model)  # takes bytes, channels last


# -- Side by side ------------------------------------------------------------------------------------------------------


def test_who_cannot_run_is_named_with_the_reason(twin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        opened, skipped = peers.open_peers(None, None, None, None, stack)
    assert opened == []
    assert len(skipped) == 7
    assert skipped["TwinLiteNet's demo, ONNX Runtime"] == "its network was not given (--twinlitenet)"
    assert skipped["Intel road-segmentation-adas-0001, OpenVINO"] == "its network was not given (--intel)"

    def missing(file: Path) -> Network:
        raise ModelError("no GPU here")

    monkeypatch.setattr(peers, "TensorRtNetwork", missing)
    with ExitStack() as stack:
        opened, skipped = peers.open_peers(twin_file, None, None, None, stack)
    assert opened[0].name == "TwinLiteNet's demo, ONNX Runtime"  # what others are compared with
    assert {loop.name for loop in opened} | set(skipped) == {
        "TwinLiteNet's demo, ONNX Runtime",
        "TwinLiteNet's demo, OpenVINO",
        "TwinLiteNet's demo, TensorRT",
        "YOLOP-style drawing, ONNX Runtime",
        "supervision-style polygons, ONNX Runtime",
        "Intel road-segmentation-adas-0001, OpenVINO",
        "Ultralytics segmentation",
    }
    assert skipped["TwinLiteNet's demo, TensorRT"] == "no GPU here"


def test_a_file_that_is_not_there_is_a_mistake() -> None:
    with ExitStack() as stack, pytest.raises(BadInput, match=r"nowhere\.onnx: no such file"):
        peers.open_peers(Path("nowhere.onnx"), None, None, None, stack)


def test_ultralytics_is_skipped_where_it_is_not_installed(twin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with ExitStack() as stack:
        _, skipped = peers.open_peers(None, None, None, twin_file, stack)
    assert skipped["Ultralytics segmentation"] == "the package ultralytics is not installed"


def made_up(fps: float, frames: int = 10, **stages: float) -> peers.Round:
    return peers.Round(frames, frames / fps, 0.02 * frames, {stage: [value] for stage, value in stages.items()})


def test_ratios_are_of_rounds() -> None:
    slow = [made_up(r, infer=i) for r, i in ((5.0, 30.0), (10.0, 50.0), (20.0, 40.0))]  # the machine got faster and faster
    fast = [made_up(3 * r.fps) for r in slow]
    uneven = [made_up(r.fps * f) for r, f in zip(slow, (2.0, 4.0, 8.0), strict=True)]
    facts: dict[str, dict[str, Any]] = {"fast": {"about": "a"}, "slow": {"about": "b"}, "uneven": {"about": "c"}}
    found = peers.summarise({"fast": fast, "slow": slow, "uneven": uneven}, facts, "fast", "slow", {})
    assert found["fast"]["over_baseline"] == {"value": 3.0, "low": 3.0, "high": 3.0}  # what hits both drops out
    assert found["slow"]["over_baseline"] is None
    assert found["slow"]["ours_over_it"] == {"value": 3.0, "low": 3.0, "high": 3.0}
    assert found["fast"]["ours_over_it"] is None
    assert found["slow"]["fps"]["value"] == pytest.approx(10.0)  # geometric mean
    assert found["slow"]["fps"]["low"] < 5.1
    ratio = found["uneven"]["over_baseline"]
    assert ratio["value"] == pytest.approx(4.0, abs=1e-3)
    assert ratio["low"] < 2.0 < 8.0 < ratio["high"]  # of three values no interval is narrower than they are
    assert ratio["low"] * ratio["high"] == pytest.approx(16.0, rel=0.01)  # symmetrical, as they are, on a logarithmic scale
    assert found["slow"]["stages_ms"] == {"infer": 40.0}
    assert found["slow"]["cpu_ms"] == 20.0
    assert found["slow"]["about"] == "b"


def test_the_interval_of_a_ratio_holds_the_true_one() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        noise = rng.normal(0, 0.1, 8)
        machine = rng.normal(0, 0.5, 8)
        _, low, high = peers.ratio(np.exp(1 + machine + noise).tolist(), np.exp(machine).tolist())
        held += low <= math.e <= high
    assert 0.90 <= held / 200 <= 0.99


def test_rounds_rotate_and_the_first_one_warms_up(capsys: pytest.CaptureFixture[str]) -> None:
    played: list[str] = []

    def player(name: str, fps: float) -> peers.Round:
        played.append(name)
        return made_up(fps * len(played))

    rounds = peers.in_turn({"a": lambda: player("a", 1.0), "b": lambda: player("b", 2.0), "c": lambda: player("c", 3.0)}, 3)
    assert "".join(played) == "abcbcacababc"
    assert [round(r.fps) for r in rounds["a"]] == [6, 8, 10]
    with pytest.raises(BadInput, match="b read 8 frames where a read 10"):
        peers.in_turn({"a": lambda: made_up(1.0), "b": lambda: made_up(1.0, frames=8)}, 2)


def test_decoding_that_comes_in_bursts_is_a_mean(
    twin_network: Network, tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bursts = [0.0, 0.0, 0.0, 40.0, 0.0, 0.0, 0.0, 40.0]
    stages = Stages()
    for milliseconds in bursts:
        stages.add("decode", milliseconds)
    assert stages.means() == {"decode": 10.0}
    summary = SimpleNamespace(frames=len(bursts), stages=stages)
    clip = road_video(tmp_path / "road.mp4", 3)
    for module in (peers, scaling):
        monkeypatch.setattr(module, "run", lambda *_: summary)
    played = peers.play_freespace(tiny_engine, str(clip), 1.0, False, False)
    assert played.stages["decode"] == [10.0]
    assert scaling.stages_over(tiny_engine, clip, tmp_path / "p.jsonl")["decode"] == 10.0
    peer = peers.Round(len(bursts), 1.0, 1.0, {"decode": bursts})
    rows = peers.summarise({"p": [peer, peer]}, {"p": {}}, "p", None, {})
    assert rows["p"]["stages_ms"]["decode"] == 10.0


def test_all_see_the_same_frames(twin_network: Network, tiny_engine: Engine, tmp_path: Path) -> None:
    clip = str(road_video(tmp_path / "road.mp4", 10))
    theirs = peers.play_peer(twinlitenet(twin_network), clip, 0.6, True)
    ours = peers.play_freespace(tiny_engine, clip, 0.6, False, True)
    assert theirs.frames == ours.frames == 6
    assert list(theirs.stages) == ["decode", "preprocess", "infer", "postprocess", "draw", "write"]
    assert {len(values) for values in theirs.stages.values()} == {6}
    assert theirs.cpu_s > 0
    assert ours.cpu_s > 0
    assert set(ours.stages) == {"decode", "preprocess", "infer", "postprocess", "draw", "write"}
    assert sum(sum(values) for values in theirs.stages.values()) / 1e3 <= theirs.seconds
    with pytest.raises(BadInput, match="cannot read it"):
        peers.play_peer(twinlitenet(twin_network), str(tmp_path / "none.mp4"), 1.0, False)


def test_masks_for_accuracy(twin_network: Network, tiny_engine: Engine) -> None:
    image = road_image()
    theirs = peers.peer_mask(twinlitenet(twin_network), image)
    assert theirs is not None
    agree(theirs[0], lower_half())
    np.testing.assert_array_equal(theirs[0], theirs[1])  # one mask for both planes
    ours = peers.freespace_masks(tiny_engine, image)
    agree(ours[0], lower_half())
    assert ours[1].mean() == pytest.approx(0.25, abs=0.02)
    assert ours[1][40:, 70:].all()


def test_peers_from_end_to_end(
    twin_file: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "OpenVinoNetwork", OnnxRuntimeNetwork)  # opens at once
    clip, out = road_video(tmp_path / "road.mp4", 6), tmp_path / "results" / "peers.json"
    arguments = ["--clip", str(clip), "--twinlitenet", str(twin_file), "--model", str(tiny_model)]
    arguments += ["--engine", "onnxruntime", "--rounds", "2", "--seconds", "0.4", "--out", str(out)]
    assert peers.main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["frames_per_round"] == 4
    assert report["ours"] == "Freespace, onnxruntime fp32"
    assert report["baseline"] == "TwinLiteNet's demo, ONNX Runtime"
    assert str(tmp_path) not in out.read_text()  # names, not places
    row = report["loops"][report["baseline"]]
    assert row["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert len(row["sha256"]) == 64
    assert len(row["rates"]) == 2
    one, other = (report["loops"][name]["rates"] for name in (report["ours"], report["baseline"]))
    wanted = math.sqrt(one[0] / other[0] * one[1] / other[1])
    assert row["ours_over_it"]["value"] == pytest.approx(wanted, rel=0.01)
    shown = capsys.readouterr().out
    assert "| Freespace, onnxruntime fp32, drawn |" in shown
    assert "- not run: Ultralytics segmentation: its network was not given (--ultralytics)" in shown


@pytest.mark.parametrize("module", [peers, scaling])
def test_mistakes_are_sentences(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--rounds", "1"])
    assert stopped.value.code == 2
    assert "must be at least 2" in capsys.readouterr().err


# -- Scaling -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-100, 100)), min_size=4, max_size=30))
def test_lines_are_numpys(points: list[tuple[int, float]]) -> None:
    x, y = [float(p[0]) for p in points], [p[1] for p in points]
    if len(set(x)) < 2:
        with pytest.raises(ValueError, match="two places"):
            scaling.fit_line(x, y)
        return
    (slope, constant), covariance = np.polyfit(x, y, 1, cov=True)
    line = scaling.fit_line(x, y)
    np.testing.assert_allclose([line.slope, line.constant], [slope, constant], atol=1e-6)
    errors = np.sqrt(np.maximum(np.diag(covariance), 0))
    np.testing.assert_allclose([line.slope_error, line.constant_error], errors, atol=1e-5)


def test_a_straight_line_has_no_error() -> None:
    line = scaling.fit_line([1, 2, 4, 8], [5, 7, 11, 19])
    assert (line.slope, line.constant) == pytest.approx((2, 3))
    assert (line.slope_error, line.constant_error) == pytest.approx((0, 0), abs=1e-9)
    assert math.isnan(scaling.fit_line([1, 2], [1, 5]).slope_error)


def test_cameras_are_fitted_and_plotted() -> None:
    def row(count: int, pace: str) -> dict[str, Any]:
        figures = {"fps": 50.0 - count, "memory MB": 100.0 + 20 * count, "cpu ms a frame": 9.0}
        return {"cameras": count, "way": "one by one", "pace": pace, **{k: {"median": v} for k, v in figures.items()}}

    rows = [row(count, "flat out") for count in (1, 2, 4, 8)] + [row(1, "paced")]
    assert cameras.slopes(rows) == {
        "fps for one more camera, one by one, flat out": -1.0,
        "cpu ms a frame for one more camera, one by one, flat out": 0.0,
        "memory MB for one more camera, one by one, flat out": 20.0,
    }
    drawn = cameras.plots(rows)
    assert drawn.count("<svg") == 3
    assert drawn.count("<circle") == 3 * 4
    assert drawn.count("<polyline") == 3


def test_made_up_scores_hold_what_they_promise() -> None:
    resampling, config = fit((1280, 720), (448, 256), "stretch"), PolygonConfig()

    def polygons_of(scores: np.ndarray) -> list[Any]:
        return extract(scores, resampling, "freespace", config)

    for count in scaling.COUNTS["regions"]:
        assert len(polygons_of(scaling.many_regions(count, resampling))) == count
    for count in scaling.COUNTS["holes"]:
        (polygon,) = polygons_of(scaling.many_holes(count, resampling))
        assert len(polygon.interiors) == count
    for count in scaling.COUNTS["specks"]:
        scores = scaling.many_specks(count, resampling)
        (polygon,) = polygons_of(scores)
        assert len(polygon.exterior) == 4
        below = scores[scores.shape[0] // 2 :] > 127
        assert int(below.sum()) == count
    for teeth in scaling.COUNTS["vertices"]:
        (polygon,) = polygons_of(scaling.wavy_region(teeth, resampling))
        assert 2 * teeth <= len(polygon.exterior) <= 5 * teeth + 8


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_a_network_cut_down_to_one_plane(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((8, 3, 1, 1)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w", "b"], ["deep"]),
            helper.make_node("DepthToSpace", ["deep"], ["scores"], blocksize=2, mode=mode),
        ],
        "head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2, 8, 12])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"freespace.planes": "freespace,ego"})
    onnx.save(model, str(tmp_path / "two.onnx"))
    one = scaling.one_plane(tmp_path / "two.onnx", tmp_path / "one.onnx")
    image = rng.random((1, 3, 4, 6), np.float32)
    both, first = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for path in (tmp_path / "two.onnx", one)
    )
    assert first.shape == (1, 1, 8, 12)
    np.testing.assert_allclose(first, both[:, :1], atol=1e-6)
    assert {p.key: p.value for p in onnx.load(str(one)).metadata_props} == {"freespace.planes": "freespace"}


def test_the_shipped_network_can_be_cut(tmp_path: Path, tiny_model: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 448, 3), np.uint8)
    with open_engine(DEFAULT_MODEL, "onnxruntime", threads=1) as whole:
        both = whole.segment([image]).values
    with open_engine(scaling.one_plane(DEFAULT_MODEL, tmp_path / "one.onnx"), "onnxruntime", threads=1) as cut:
        assert cut.contract.planes == ("freespace",)
        first = cut.segment([image]).values
    assert np.abs(first.astype(int) - both[:, :1]).max() <= 1
    with pytest.raises(ModelError, match="leave the part 'planes' out"):
        scaling.one_plane(tiny_model, tmp_path / "none.onnx")


def test_scaling_from_end_to_end(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "SIZES", {"720p": (128, 64), "4K": (256, 128)})
    monkeypatch.setattr(scaling, "COUNTS", {name: counts[:2] for name, counts in scaling.COUNTS.items()})
    monkeypatch.setattr(scaling, "POLYGON_REPEATS", 2)
    monkeypatch.setattr(scaling, "LOOK_S", 0.0)
    clip, out, html = road_video(tmp_path / "road.mp4", 10), tmp_path / "scaling.json", tmp_path / "scaling.html"
    arguments = ["--clip", str(clip), "--model", str(tiny_model), "--backend", "onnxruntime", "--rounds", "2", "--frames", "4"]
    arguments += ["--minutes", "0.05", "--only", "hours", "--only", "frames", "--only", "polygons"]
    assert scaling.main([*arguments, "--out", str(out), "--page", str(html)]) == 0
    report = json.loads(out.read_text())
    assert list(report["parts"]) == ["hours", "frames", "polygons"]
    frames = report["parts"]["frames"]
    assert {"decode", "preprocess", "infer", "postprocess", "draw", "publish"} <= set(frames)
    small, large = 0.00819, 0.03277  # megapixels, in turn
    assert [x for x, _ in frames["decode"]["points"]] == [large, small, small, large]
    slope, _ = np.polyfit(*np.array(frames["decode"]["points"]).T, 1)
    assert frames["decode"]["slope"] == pytest.approx(slope, rel=0.02, abs=0.2)
    hours = report["parts"]["hours"]
    assert set(hours) == {"time", "memory"}
    last = max(x for x, _ in hours["memory"]["points"])
    assert last * 60 == pytest.approx(0.05, abs=0.02)
    page = html.read_text()
    assert page.count("<svg") == 2 + len(frames) + len(report["parts"]["polygons"])
    assert "src=" not in page
    assert 'href="http' not in page
    assert str(tmp_path) not in out.read_text() + page
    assert "ms per megapixel" in capsys.readouterr().out
