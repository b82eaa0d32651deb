"""The TensorRT engine on a device of this machine's memory: fake driver and TensorRT, real kernels compiled for the host.

The fakes defer all work until somebody waits for it, so a forgotten wait shows as missing data.
"""

from __future__ import annotations

import gc
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from cuda_host import host_compiler
from fakes import Fakes, install

from engine import choose_backend, open_engine, read_contract
from engine.build import PlanOptions
from engine.contract import EngineError, ModelContract, ModelError
from engine.graph import as_fp16
from engine.preprocess import PixelFormat, fit, resample, to_bgr
from engine.tensorrt_engine import TensorRtEngine, TensorRtRtxEngine

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no C++ compiler to run the kernels on the host with")

RELEASES = ["10.3", "10.13", "11.4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engine.tensorrt_engine.cubin", lambda arch, fresh=False: f"cubin for {arch}".encode())
    return tmp_path / "freespace"


@pytest.fixture(params=RELEASES)
def fakes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Fakes]:
    """Fails the test that leaves anything behind on the device."""
    installed = install(monkeypatch, request.param)
    yield installed
    gc.collect()
    assert installed.leaks() == []
    assert installed.trt.violations == []


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Fakes:
    return install(monkeypatch, RELEASES[-1])


@pytest.fixture
def contract(tiny_model: Path) -> ModelContract:
    return read_contract(tiny_model)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def patches(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Even patches: a grey level more or less does not move a score of the tiny model far."""
    return np.ascontiguousarray(noise((shape[0] // 8, shape[1] // 8, *shape[2:]), seed).repeat(8, 0).repeat(8, 1))


def wanted_scores(contract: ModelContract, image: np.ndarray) -> np.ndarray:
    """By OpenCV and ONNX Runtime."""
    half = as_fp16(onnx.load(str(contract.path)))
    small = np.zeros((1, contract.input_size[1], contract.input_size[0], 3), np.uint8)
    resample(image, fit((image.shape[1], image.shape[0]), contract.input_size, contract.resize), small[0])
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": small})[0])


def close_to(scores: np.ndarray, wanted: np.ndarray) -> bool:
    """The kernels may be a grey level off, which the tiny model makes up to 26 of."""
    difference = np.abs(scores.astype(int) - wanted)
    return bool(difference.max() <= 30 and difference.mean() < 3)


@pytest.mark.parametrize("size", [(64, 32), (640, 360), (1280, 720), (321, 227), (48, 96)])
def test_scores_are_those_of_the_other_runtimes(fakes: Fakes, contract: ModelContract, size: tuple[int, int]) -> None:
    image = patches((size[1] // 8 * 8, size[0] // 8 * 8, 3))
    with TensorRtEngine(contract) as engine:
        result = engine.segment([image])
        assert close_to(result.values, wanted_scores(contract, image))
    assert result.values.std() > 20, "an even answer would prove nothing"
    assert (engine.precision, engine.device, result.planes) == ("fp16", "Orin", contract.planes)
    timings = result.timings
    assert all(np.isfinite([timings.preprocess_ms, timings.infer_ms, timings.h2d_ms, timings.d2h_ms]))


@pytest.mark.parametrize("pixel_format", ["nv12", "yuyv"])
def test_camera_formats_need_no_conversion(newest: Fakes, contract: ModelContract, pixel_format: PixelFormat) -> None:
    bgr = patches((96, 160, 3))
    yuv = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV)
    if pixel_format == "nv12":
        chroma = yuv[::2, ::2, 1:].reshape(48, 160)
        frame = np.concatenate([yuv[..., 0], chroma])
    else:
        frame = np.empty((96, 160, 2), np.uint8)
        frame[..., 0] = yuv[..., 0]
        frame[:, ::2, 1], frame[:, 1::2, 1] = yuv[:, ::2, 1], yuv[:, ::2, 2]
    with TensorRtEngine(contract) as engine:
        scores = engine.segment([frame], pixel_format).values
    assert close_to(scores, wanted_scores(contract, np.ascontiguousarray(to_bgr(frame, pixel_format))))
    assert any(f"resample_{pixel_format}" in operation for _, operation in newest.gpu.log)


def test_every_frame_gets_its_own_answer_in_order(fakes: Fakes, contract: ModelContract) -> None:
    images = [patches((72, 128, 3), seed) for seed in range(8)]
    answers = []
    with TensorRtEngine(contract) as engine:
        for number, image in enumerate(images):
            engine.submit([image.copy()])
            if number:
                answers.append(engine.collect().values)
        answers.append(engine.collect().values)
    for image, answer in zip(images, answers, strict=True):
        assert close_to(answer, wanted_scores(contract, image))


def test_the_next_frame_is_copied_while_the_network_works(newest: Fakes, contract: ModelContract) -> None:
    with TensorRtEngine(contract) as engine:
        engine.segment([noise((72, 128, 3))])
        engine.submit([noise((72, 128, 3))])
        engine.submit([noise((72, 128, 3))])
        newest.gpu.log.clear()
        with engine._gpu.current():
            engine._running[1].uploaded.synchronize()  # waits for the second frame's copy alone
        operations = [operation for _, operation in newest.gpu.log]
        assert operations.count("htod") == 2
        assert not any(o == "execute" or o.startswith(("kernel", "graph")) for o in operations)
        assert len({stream for stream, o in newest.gpu.log if o == "htod"}) == 1
        engine.collect()
        engine.collect()


def test_frames_may_be_reused_at_once_and_frame_buffers_save_the_copy(newest: Fakes, contract: ModelContract) -> None:
    first, second = patches((32, 64, 3), 1), patches((32, 64, 3), 2)
    with TensorRtEngine(contract) as engine:
        frame = first.copy()
        engine.submit([frame])
        frame[:] = second
        assert close_to(engine.collect().values, wanted_scores(contract, first))

        buffer = engine.frame_buffer((32, 64, 3))
        buffer[:] = first
        engine.submit([buffer])
        buffer[:] = second  # against the rule: shows that no copy was made
        assert close_to(engine.collect().values, wanted_scores(contract, second))
    assert newest.gpu.pageable_copies <= 1, "only the tables, once"


def test_no_more_than_two_frames_are_on_their_way(fakes: Fakes, contract: ModelContract) -> None:
    image = noise((32, 64, 3))
    with TensorRtEngine(contract) as engine:
        with pytest.raises(RuntimeError, match="nothing has been submitted"):
            engine.collect()
        engine.submit([image])
        engine.submit([image])
        with pytest.raises(RuntimeError, match="collect one first"):
            engine.submit([image])
        engine.collect()
        engine.submit([image])  # left uncollected: closing must do


def test_batches(newest: Fakes, contract: ModelContract) -> None:
    images = [patches((40 + 8 * i, 64, 3), i) for i in range(5)]
    with TensorRtEngine(contract, options=PlanOptions("fp16", batch=2)) as engine:
        for i in range(20):  # so many frame sizes that the tables of the first ones are let go meanwhile
            pair = [patches((32 + 8 * i, 64, 3), i), patches((32, 64 + 8 * i, 3), i)]
            for image, answer in zip(pair, engine.segment(pair).values, strict=True):
                assert close_to(answer[None], wanted_scores(contract, image))
        scores = engine.segment(images)
        with pytest.raises(ValueError, match="2 at a time"):
            engine.submit(images)
    assert scores.values.shape == (5, 2, 32, 64)
    for image, answer in zip(images, scores.values, strict=True):
        assert close_to(answer[None], wanted_scores(contract, image))
    assert [r.frame_size for r in scores.resamplings] == [(64, 40 + 8 * i) for i in range(5)]


def test_the_network_runs_as_a_graph_from_its_second_time_on(fakes: Fakes, contract: ModelContract) -> None:
    image = patches((32, 64, 3))
    with TensorRtEngine(contract) as engine:
        answers = [engine.segment([image]).values for _ in range(6)]
        assert len(fakes.libcuda.executables) == 2, "one for each set of buffers"
        assert fakes.libcuda.launches == 4
    assert all(close_to(answer, wanted_scores(contract, image)) for answer in answers)


@pytest.mark.parametrize("knob", ["refuse_capture", "uncapturable"])
def test_without_graphs_it_goes_on_and_says_so_once(newest: Fakes, contract: ModelContract, knob: str) -> None:
    setattr(newest.gpu if knob == "refuse_capture" else newest.trt, knob, True)
    said: list[str] = []
    image = patches((32, 64, 3))
    with TensorRtEngine(contract, say=said.append) as engine:
        answers = [engine.segment([image]).values for _ in range(5)]
    assert all(close_to(answer, wanted_scores(contract, image)) for answer in answers)
    assert [line for line in said if "CUDA graphs" in line] == said[1:]
    assert len(said) == 2, "the build, and this"
    gc.collect()
    assert newest.leaks() == []


def test_any_thread_may_use_it(fakes: Fakes, contract: ModelContract) -> None:
    images = [patches((32, 64, 3), seed) for seed in range(4)]
    wanted = [wanted_scores(contract, image) for image in images]
    wrong: list[Any] = []
    with TensorRtEngine(contract) as engine:

        def work(number: int) -> None:
            for _ in range(10):
                try:
                    if not close_to(engine.segment([images[number]]).values, wanted[number]):
                        wrong.append(number)
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert fakes.gpu.pushed == 0


def test_two_engines_in_one_process(fakes: Fakes, contract: ModelContract) -> None:
    image = patches((64, 64, 3))
    first, second = TensorRtEngine(contract), TensorRtEngine(contract)
    assert np.array_equal(first.segment([image]).values, second.segment([image]).values)
    first.close()
    assert close_to(second.segment([image]).values, wanted_scores(contract, image))
    second.close()
    assert len(fakes.trt.builds) == 1, "the second found the plan of the first"


def test_memory_does_not_grow(newest: Fakes, contract: ModelContract) -> None:
    with TensorRtEngine(contract) as engine:
        sizes = [(24 + 8 * i, 40 + 8 * i) for i in range(40)]
        largest = noise((*sizes[-1], 3))
        for _ in range(3):
            engine.segment([largest])
        held = newest.gpu.live_bytes
        for _ in range(300):
            engine.segment([largest])
        assert newest.gpu.live_bytes == held
        for height, width in sizes:
            engine.submit([noise((height, width, 3))])
            if len(engine._running) == 2:
                engine.collect()
        engine.collect()
        assert newest.gpu.live_bytes < held + 64 * 1024, "tables of frame sizes gone by are let go"


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("fail_parse", "Unsupported operator Sausage"),
        ("fail_build", "Could not find any implementation for node"),
        ("fail_deserialize", "Serialization assertion failed"),
    ],
)
def test_what_tensorrt_says_reaches_the_user(fakes: Fakes, contract: ModelContract, knob: str, message: str) -> None:
    setattr(fakes.trt, knob, message)
    with pytest.raises((ModelError, EngineError), match=message):
        TensorRtEngine(contract)


def test_a_driver_that_is_too_old(fakes: Fakes, contract: ModelContract, tiny_model: Path) -> None:
    fakes.trt.no_runtime = True
    with pytest.raises(EngineError, match="driver new enough"):
        TensorRtEngine(contract)
    said: list[str] = []
    with open_engine(tiny_model, say=said.append) as engine:
        assert engine.name == "openvino"
    assert "driver new enough" in said[-1]


def test_a_plan_that_tensorrt_refuses_is_built_again(newest: Fakes, contract: ModelContract, folder: Path) -> None:
    TensorRtEngine(contract).close()
    (plan,) = (folder / "plans").glob("*.plan")
    plan.write_bytes(b"not a plan any more")
    described = json.loads(plan.with_suffix(".json").read_text())
    described["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
    plan.with_suffix(".json").write_text(json.dumps(described))
    said: list[str] = []
    with TensorRtEngine(contract, say=said.append) as engine:
        assert engine.segment([noise((32, 64, 3))]).values.shape == (1, 2, 32, 64)
    assert len(newest.trt.builds) == 2
    assert "cannot load the plan" in said[0]
    gc.collect()
    assert newest.leaks() == []


def test_kernels_that_the_driver_refuses_are_compiled_again(
    newest: Fakes, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def cubin(arch: str, fresh: bool = False) -> bytes:
        asked.append(fresh)
        newest.gpu.refuse_module = 0 if fresh else 200
        return b"cubin"

    monkeypatch.setattr("engine.tensorrt_engine.cubin", cubin)
    with TensorRtEngine(contract) as engine:
        engine.segment([noise((32, 64, 3))])
    assert asked == [False, True]


def test_build_then_run_builds_once(newest: Fakes, tiny_model: Path, tmp_path: Path) -> None:
    from perception.cli import app

    newest.trt.dla_cores = 1
    app(["build", str(tiny_model), "--workspace", "64", "--dla", "0", "--version-compatible"], standalone_mode=False)
    source = "synthetic://drive?size=128x64&fps=10&seconds=0.3"
    out = ["--polygons", str(tmp_path / "out.jsonl")]
    app(["run", source, "--model", str(tiny_model), "--backend", "tensorrt", *out], standalone_mode=False)
    assert len(newest.trt.builds) == 1


def test_no_execution_context(fakes: Fakes, contract: ModelContract) -> None:
    fakes.trt.no_context = True
    with pytest.raises(EngineError, match="execution context"):
        TensorRtEngine(contract)


def test_a_failing_run_is_an_exception_and_the_next_one_works(fakes: Fakes, contract: ModelContract) -> None:
    image = patches((32, 64, 3))
    with TensorRtEngine(contract) as engine:
        fakes.trt.fail_execute = "Cuda failure: unspecified launch failure"
        with pytest.raises(EngineError, match="unspecified launch failure"):
            engine.segment([image])
        fakes.trt.fail_execute = ""
        assert close_to(engine.segment([image]).values, wanted_scores(contract, image))


def test_a_lost_device_is_an_exception_and_closing_works(newest: Fakes, contract: ModelContract) -> None:
    engine = TensorRtEngine(contract)
    engine.segment([noise((32, 64, 3))])
    newest.gpu.lost = 700
    with pytest.raises(EngineError):
        engine.segment([noise((32, 64, 3))])
    engine.close()
    assert newest.gpu.retained == 0


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, folder: Path, contract: ModelContract) -> None:
    small = install(monkeypatch, "11.4", memory_limit=100_000)
    with TensorRtEngine(contract) as engine, pytest.raises(EngineError, match="memory") as caught:
        engine.segment([noise((720, 1280, 3))])
    gc.collect()
    assert small.leaks() == []
    assert caught.tb is not None, "whoever keeps the exception does not keep the device's memory"


def test_closing(fakes: Fakes, contract: ModelContract) -> None:
    engine = TensorRtEngine(contract)
    engine.submit([noise((32, 64, 3))])
    engine.close()
    engine.close()
    for call in (engine.collect, lambda: engine.segment([noise((32, 64, 3))]), lambda: engine.frame_buffer((2, 2, 3))):
        with pytest.raises(EngineError, match="closed"):
            call()
    kinds = [kind for kind in fakes.trt.destroyed if kind in ("IExecutionContext", "ICudaEngine", "Runtime")]
    assert kinds == ["IExecutionContext", "ICudaEngine", "Runtime"]


def test_wrong_frames(fakes: Fakes, contract: ModelContract) -> None:
    with TensorRtEngine(contract) as engine:
        for image, pixel_format in (
            (noise((8, 8)), "bgr"),
            (noise((8, 8, 3)).astype(np.float32), "bgr"),
            (noise((7, 8)), "nv12"),
            (noise((8, 7, 2)), "yuyv"),
        ):
            with pytest.raises(ValueError, match=f"a {pixel_format} frame must be uint8"):
                engine.segment([image], pixel_format)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no images"):
            engine.segment([])


def test_tensorrt_for_rtx(monkeypatch: pytest.MonkeyPatch, folder: Path, contract: ModelContract) -> None:
    rtx = install(monkeypatch, "rtx-1.7", gpu="GeForce RTX 3060", compute_capability=(8, 6))
    image = patches((32, 64, 3))
    with TensorRtRtxEngine(contract) as engine:
        assert close_to(engine.segment([image]).values, wanted_scores(contract, image))
    gc.collect()
    assert rtx.leaks() == []
    (plan,) = (folder / "plans").glob("*.plan")
    assert "any" in plan.name, "a plan for every GPU of that compute capability"


def test_auto_takes_tensorrt_where_it_works(fakes: Fakes, tiny_model: Path) -> None:
    assert choose_backend()[0] == "tensorrt"
    with open_engine(tiny_model) as engine:
        assert (engine.name, engine.precision) == ("tensorrt", "fp16")
        assert "auto" in engine.reason


@pytest.mark.parametrize("break_it", ["no gpu", "no build"])
def test_auto_goes_on_to_the_next_backend(newest: Fakes, tiny_model: Path, break_it: str) -> None:
    if break_it == "no gpu":
        newest.gpu.count = 0
    else:
        newest.trt.fail_build = "out of tactics"
    said: list[str] = []
    with open_engine(tiny_model, say=said.append) as engine:
        assert engine.name in ("openvino", "onnxruntime")
        assert break_it == "no gpu" or "tensorrt failed" in engine.reason
    assert any(("cannot be used" if break_it == "no gpu" else "out of tactics") in line for line in said)


@pytest.mark.parametrize(("precision", "message"), [("int8", "Q/DQ"), ("bf16", "not bf16")])
def test_precisions_that_cannot_be_had(newest: Fakes, tiny_model: Path, precision: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_engine(tiny_model, "tensorrt", precision)


def test_benchmark_of_the_loop(newest: Fakes, tiny_model: Path, tmp_path: Path) -> None:
    """That it runs and counts; what it measures needs a GPU."""
    from benchmarks.gpu_loop import main

    small = ["--width", "64", "--height", "32", "--rounds", "2", "--seconds", "0.05", "--frames", "20"]
    result = main(["--model", str(tiny_model), *small, "--out", str(tmp_path / "result.json")])
    assert result["of_plan_alone"]["plan alone"] == [1, 1, 1]
    assert all(rate > 0 for rate in result["fps"].values())
    assert result["memory"]["frames"] == 20
    assert result["memory"]["growth"] == 0
    assert (tmp_path / "result.json").exists()


def test_run_from_the_command_line(
    newest: Fakes, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two frames on their way at a time: each result keeps its own frame's number and stamp."""
    from perception.cli import app
    from perception.freespace import Freespace

    outs = {}
    for backend in ("tensorrt", "onnxruntime"):
        out = tmp_path / f"{backend}.jsonl"
        source = "synthetic://drive?size=128x64&fps=10&seconds=1"
        app(
            ["run", source, "--model", str(tiny_model), "--backend", backend, "--polygons", str(out)],
            standalone_mode=False,
        )
        outs[backend] = [Freespace.from_json(line) for line in out.read_text().splitlines()]
    ours, others = outs["tensorrt"], outs["onnxruntime"]
    assert [(r.seq, r.stamp_ns) for r in ours] == [(r.seq, r.stamp_ns) for r in others]
    for mine, theirs in zip(ours, others, strict=True):
        assert sum(p.area_px for p in mine.polygons) == pytest.approx(sum(p.area_px for p in theirs.polygons), abs=60)
        assert {"h2d", "d2h"} <= mine.latency_ms.keys()
    assert "building tiny.onnx in fp16 for Orin" in capsys.readouterr().err
