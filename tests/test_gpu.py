"""On a real GPU: the same scores, from any camera format, for as long as it runs. Skipped elsewhere, with the reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from engine import DEFAULT_MODEL, installed, missing, open_engine, read_contract, usable
from engine.cuda import launch
from engine.cuda.compile import cubin
from engine.cuda.driver import Gpu
from engine.cuda.resampling import resampling_tables
from engine.preprocess import fit, resample, to_bgr
from engine.tensorrt_engine import TensorRtEngine, TensorRtRtxEngine
from perception.synthetic import render, scene_from_uri

CLASSES = {"tensorrt": TensorRtEngine, "tensorrt_rtx": TensorRtRtxEngine}


def why_not(backend: str) -> str:
    return usable(backend) if installed(backend) else f"not installed: {', '.join(missing(backend))}"


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(all(map(why_not, CLASSES)), reason="; ".join(f"{name}: {why_not(name)}" for name in CLASSES)),
]


@pytest.fixture(scope="module", params=CLASSES)
def engine(request: pytest.FixtureRequest) -> Iterator[TensorRtEngine]:
    if reason := why_not(request.param):
        pytest.skip(reason)
    with CLASSES[request.param](read_contract(DEFAULT_MODEL)) as opened:
        yield opened


def drive(size: str = "1280x720", frame: int = 20) -> np.ndarray:
    return render(scene_from_uri(f"synthetic://traffic?size={size}"), frame).image


def same_road(scores: np.ndarray, wanted: np.ndarray) -> bool:
    """Half precision and a grey level of resampling apart."""
    difference = np.abs(scores.astype(int) - wanted)
    return bool(difference.mean() < 1 and np.mean((scores > 127) != (wanted > 127)) < 0.005)


@pytest.mark.parametrize("size", ["1280x720", "1920x1080", "640x480", "322x226"])
def test_scores_are_those_of_the_cpu(engine: TensorRtEngine, size: str) -> None:
    image = drive(size)
    with open_engine(None, "onnxruntime") as reference:
        assert same_road(engine.segment([image]).values, reference.segment([image]).values)


@pytest.mark.parametrize("pixel_format", ["nv12", "yuyv"])
def test_camera_formats(engine: TensorRtEngine, pixel_format: str) -> None:
    yuv = cv2.cvtColor(drive(), cv2.COLOR_BGR2YUV)
    if pixel_format == "nv12":
        frame = np.concatenate([yuv[..., 0], yuv[::2, ::2, 1:].reshape(360, 1280)])
    else:
        frame = np.empty((720, 1280, 2), np.uint8)
        frame[..., 0], frame[:, ::2, 1], frame[:, 1::2, 1] = yuv[..., 0], yuv[:, ::2, 1], yuv[:, ::2, 2]
    with open_engine(None, "onnxruntime") as reference:
        wanted = reference.segment([np.ascontiguousarray(to_bgr(frame, pixel_format))]).values  # type: ignore[arg-type]
    assert same_road(engine.segment([frame], pixel_format).values, wanted)  # type: ignore[arg-type]


def test_kernels_resample_as_the_cpu_does() -> None:
    gpu = Gpu()
    rng = np.random.default_rng(0)
    try:
        with gpu.current():
            module, stream = gpu.module(cubin(gpu.architecture)), gpu.stream()
            for size in ((1280, 720), (3840, 2160), (333, 517), (64, 40)):
                image = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                resampling = fit(size, (448, 256), "letterbox")
                tables = resampling_tables(resampling)
                memory = [gpu.allocate(n) for n in (image.nbytes, tables.block().nbytes, 3 * 448 * 256)]
                out, wanted = gpu.pinned((256, 448, 3)), np.zeros((256, 448, 3), np.uint8)
                stream.upload(memory[0].address, image)
                stream.upload(memory[1].address, tables.block())
                on_device = launch.DeviceTables.at(memory[1].address, tables)
                launch.resample_bgr(module, memory[0].address, 3 * size[0], on_device, memory[2].address, stream)
                stream.download(out, memory[2].address)
                stream.synchronize()
                resample(image, resampling, wanted)
                assert np.abs(out.astype(int) - wanted).max() <= 1
                for block in memory:
                    block.free()
            del module, stream, out, memory, block
    finally:
        gpu.close()


def test_frames_keep_their_order_and_the_network_becomes_a_graph(engine: TensorRtEngine) -> None:
    images = [drive(frame=10 * i) for i in range(6)]
    alone = [engine.segment([image]).values for image in images]
    answers = []
    for number, image in enumerate(images):
        engine.submit([image])
        if number:
            answers.append(engine.collect().values)
    answers.append(engine.collect().values)
    assert all(np.array_equal(a, b) for a, b in zip(alone, answers, strict=True))
    assert all(buffers.graph for buffers in engine._sets)


def test_threads_and_a_second_engine(engine: TensorRtEngine) -> None:
    image = drive()
    wanted = engine.segment([image]).values
    wrong: list[object] = []

    def work(used: TensorRtEngine) -> None:
        for _ in range(50):
            try:
                if not np.array_equal(used.segment([image]).values, wanted):
                    wrong.append("other scores")
            except Exception as error:
                wrong.append(error)

    with type(engine)(read_contract(DEFAULT_MODEL)) as second:
        threads = [threading.Thread(target=work, args=(e,)) for e in (engine, second, engine)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_device_memory_does_not_grow(engine: TensorRtEngine) -> None:
    image = drive()
    for _ in range(100):
        engine.segment([image])
    before = engine.free_bytes()
    for _ in range(5000):
        engine.segment([image])
    assert before - engine.free_bytes() < 4 << 20, "other processes may take a little meanwhile"
