"""The driver layer and the kernels through the real PyCUDA, on a stand-in for ``libcuda.so.1`` that needs no GPU.

PyCUDA is linked against the driver's library, so every test here runs in a process of its own that finds `libcuda_host.c`,
compiled, under that name; this one needs neither. What a test leaves behind on the device, and what PyCUDA says to standard
error about it, fails the test.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import road_image, write_model
from cuda_host import HostModule, host_compiler, host_kernels, kernel_names
from fakes import CudaError, Knobs, make_tensorrt
from numpy.typing import NDArray

from engine import read_contract, tensorrt_engine
from engine.contract import EngineError, ModelError, ResizeMode
from engine.cuda import launch
from engine.cuda.driver import Gpu, Module, Stream, capturing, graph_driver
from engine.cuda.launch import DeviceTables, KernelModule
from engine.cuda.resampling import halving_tables, resampling_tables
from engine.preprocess import fit

TESTS = Path(__file__).parent
SOURCE = TESTS / "libcuda_host.c"
FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1")
KINDS = ("memory", "pinned", "stream", "event", "module", "function", "graph", "executable", "retained", "pushed")
KERNELS = "FREESPACE_TEST_KERNELS"  # for the process of a test: path of the kernels compiled for the host
LIMIT_S = 120.0  # on a busy machine

Array = NDArray[Any]


def pycuda_library() -> Path | None:
    """PyCUDA's extension module, or None where PyCUDA is not installed. It is not loaded."""
    found = find_spec("pycuda")
    folders = found.submodule_search_locations or [] if found else []
    return next((path for folder in folders for path in sorted(Path(folder).glob("_driver*.so"))), None)


def c_compiler() -> str | None:
    """Path of a C compiler, None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


if pycuda_library() is None:
    pytest.skip("PyCUDA is not installed", allow_module_level=True)
if not (c_compiler() and host_compiler()):
    pytest.skip("no C and C++ compiler to make a driver and kernels for the host with", allow_module_level=True)


def driver_names(library: Path) -> list[str]:
    """Every name in ``library`` that could be one of the driver's functions; one too many does no harm."""
    return sorted({name.decode() for name in re.findall(rb"(?<=\0)cu[A-Z]\w+(?=\0)", library.read_bytes())})


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For processes in which ``libcuda.so.1`` is the stand-in."""
    folder = tmp_path_factory.mktemp("libcuda")
    stubs = folder / "stubs.c"  # weak: what the stand-in has itself takes their place
    library, compiler = pycuda_library(), c_compiler()
    assert library is not None
    assert compiler is not None
    lines = [f'__attribute__((weak)) int {name}(void) {{ return unsupported("{name}"); }}' for name in driver_names(library)]
    stubs.write_text("\n".join(["int unsupported(const char *name);", *lines, ""]), encoding="utf-8")
    output = str(folder / "libcuda.so.1")
    subprocess.run([compiler, *FLAGS, "-o", output, str(SOURCE), str(stubs), "-ldl", "-lpthread"], check=True)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": str(TESTS.parent),
        KERNELS: str(host_kernels().path),
        "OMP_NUM_THREADS": "1",
    }


Body = Callable[..., None]
BODIES: dict[str, Body] = {}


def on_the_stand_in(*, tidy: bool = True, **settings: str) -> Callable[[Body], Callable[..., None]]:
    """A test whose body runs in a process of its own, on the stand-in; where it takes a `Gpu`, with its context current.

    Args:
        tidy: it fails also where something is left on the device, or on standard error.
        settings: environment variables of that process; see `libcuda_host.c`.
    """

    def decorate(body: Body) -> Callable[..., None]:
        name = body.__name__
        BODIES[name] = body

        def test(environment: dict[str, str]) -> None:
            command = [sys.executable, __file__, name, *(["tidy"] if tidy else [])]
            done = subprocess.run(
                command, env={**environment, **settings}, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            if done.returncode or (tidy and done.stderr):
                pytest.fail(f"exit code {done.returncode}\n{done.stderr}", pytrace=False)

        test.__name__, test.__doc__, test.__module__ = name, body.__doc__, body.__module__
        return test

    return decorate


def run_body(name: str, tidy: bool) -> None:
    """In the process of a test."""
    body = BODIES[name]
    if inspect.signature(body).parameters:
        with opened() as gpu, gpu.current():
            body(gpu)
    else:
        body()
    gc.collect()
    assert not tidy or alive() == {}, f"left behind: {alive()}"


# For the process of a test


@functools.cache
def libcuda() -> Any:
    library = ctypes.CDLL("libcuda.so.1")
    library.libcuda_host_live.argtypes = [ctypes.c_char_p]
    return library


def alive() -> dict[str, int]:
    """What exists on the device, by kind; without what there is none of."""
    counts = {kind: int(libcuda().libcuda_host_live(kind.encode())) for kind in KINDS}
    return {kind: count for kind, count in counts.items() if count}


@contextmanager
def opened() -> Iterator[Gpu]:
    gpu = Gpu()
    try:
        yield gpu
    finally:
        gpu.close()


def cubin() -> bytes:
    """What the stand-in takes for one."""
    return f"HOST KERNELS {os.environ[KERNELS]}\0".encode()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def in_thread(work: Callable[[], None]) -> None:
    """Raises what ``work`` raised."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def fails(kind: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=message):
        call()


Start = Callable[[KernelModule, Sequence[int], int, Any], None]
"""Launches with ``(module, addresses of the inputs, address of the output, stream)``."""


def by_the_driver(gpu: Gpu, start: Start, inputs: Sequence[Array], out: Array) -> None:
    """Inputs to the device, launch, ``out`` to the device before and back afterwards; all in page-locked memory."""
    arrays = [*inputs, out]
    stream, module = gpu.stream(), gpu.module(cubin())
    blocks = [gpu.allocate(array.nbytes) for array in arrays]
    for array, block in zip(arrays, blocks, strict=True):
        staged = gpu.pinned(array.shape, array.dtype)
        staged[...] = array
        stream.upload(block.address, staged)
        stream.synchronize()
    start(module, [block.address for block in blocks[:-1]], blocks[-1].address, stream)
    result = gpu.pinned(out.shape, out.dtype)
    stream.download(result, blocks[-1].address)
    stream.synchronize()
    out[...] = result
    for block in blocks:
        block.free()


def check_kernel(gpu: Gpu, start: Start, inputs: Sequence[Array], shape: tuple[int, ...]) -> None:
    """The same bytes as without a driver, for which the arguments are packed by other code."""
    wanted, got = np.full(shape, 7, np.uint8), np.full(shape, 7, np.uint8)
    host = HostModule(Path(os.environ[KERNELS]), kernel_names())
    start(host, [array.ctypes.data for array in inputs], wanted.ctypes.data, None)
    with gpu.current():
        by_the_driver(gpu, start, inputs, got)
    assert len(np.unique(wanted)) > 20, "an even picture would prove nothing"
    assert np.array_equal(got, wanted)


# The tests


@on_the_stand_in()
def test_open_and_close() -> None:
    gpu = Gpu()
    assert (gpu.name, gpu.compute_capability, gpu.architecture) == ("Host", (8, 7), "sm_87")
    assert alive() == {"retained": 1}
    with gpu.current():
        assert alive() == {"retained": 1, "pushed": 1}
        assert gpu.free_bytes() == 1 << 30
    gpu.close()
    assert alive() == {}, "also none on this thread's stack of contexts"
    gpu.close()
    fails(ModelError, "has 1", lambda: Gpu(1))


@on_the_stand_in(LIBCUDA_HOST_DEVICES="0")
def test_no_gpu() -> None:
    fails(ModelError, "no CUDA-capable device", Gpu)


@on_the_stand_in(LIBCUDA_HOST_BUSY="1")
def test_a_gpu_that_another_process_holds() -> None:
    fails(EngineError, "busy", Gpu)


def test_a_driver_that_does_not_load(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    lines = ["from engine.cuda.driver import Gpu", "try: Gpu()", "except Exception as error: print(repr(error))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={**environment, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stdout.startswith("ModelError")
    assert "is an NVIDIA driver installed" in done.stdout


@on_the_stand_in()
def test_copies_there_and_back(gpu: Gpu) -> None:
    sent = noise(37, 53, 3)
    stream, memory = gpu.stream(), gpu.allocate(sent.nbytes)
    assert gpu.free_bytes() == (1 << 30) - sent.nbytes
    source, target = gpu.pinned(sent.shape), gpu.pinned(sent.shape)
    assert alive() == {"memory": 1, "pinned": 2, "stream": 1, "retained": 1, "pushed": 1}
    source[...] = sent
    stream.upload(memory.address, source)
    stream.download(target, memory.address)
    stream.synchronize()
    assert np.array_equal(target, sent)

    part = np.zeros(10, np.uint8)
    stream.download(part, memory.address + 100)
    stream.synchronize()
    assert np.array_equal(part, sent.reshape(-1)[100:110])
    memory.free()
    memory.free()
    assert gpu.pinned((3, 4), np.float32).dtype == np.float32
    del stream, source, target
    assert alive() == {"retained": 1, "pushed": 1}


@on_the_stand_in()
def test_resampling_kernels(gpu: Gpu) -> None:
    check_resampling(gpu, (161, 93), (64, 32), "letterbox")
    check_resampling(gpu, (40, 30), (64, 48), "stretch")
    check_resampling(gpu, (640, 360), (64, 32), "stretch")


def check_resampling(gpu: Gpu, frame: tuple[int, int], size: tuple[int, int], mode: ResizeMode) -> None:
    """Of all formats. The tables are uploaded in one piece."""
    tables = resampling_tables(fit(frame, size, mode))
    block, shape = tables.block(), (size[1], size[0], 3)
    (width, height), even = frame, frame[0] + frame[0] % 2

    def bgr(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.resample_bgr(module, at[1], 3 * width, DeviceTables.at(at[0], tables), out, stream)

    def nv12(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        uploaded = DeviceTables.at(at[0], tables)
        launch.resample_nv12(module, at[1], width, at[2], even, launch.BT709, uploaded, out, stream)

    def yuyv(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.resample_yuyv(module, at[1], 2 * even, launch.BT601, DeviceTables.at(at[0], tables), out, stream)

    check_kernel(gpu, bgr, [block, noise(height, width, 3)], shape)
    check_kernel(gpu, nv12, [block, noise(height, width), noise((height + 1) // 2, even, seed=1)], shape)
    check_kernel(gpu, yuyv, [block, noise(height, even, 2)], shape)


@on_the_stand_in()
def test_remapping_kernel(gpu: Gpu) -> None:
    """With the frame halved before, and its coordinates partly outside."""
    halvings = halving_tables((320, 180), (64, 32))
    assert halvings.size != (320, 180)
    x, y = np.meshgrid(np.linspace(-20, 330, 64), np.linspace(-10, 190, 32))
    coordinates = np.stack([x, y + np.sin(x / 9)], axis=-1).astype(np.float32)

    def remap(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        uploaded = DeviceTables.at(at[0], halvings)
        launch.remap_bgr(module, at[1], 960, (320, 180), at[2], out, (64, 32), halvings=uploaded, halved=at[3], stream=stream)

    scratch = np.zeros((halvings.size[1], halvings.size[0], 3), np.uint8)
    check_kernel(gpu, remap, [halvings.block(), noise(180, 320, 3), coordinates, scratch], (32, 64, 3))


@on_the_stand_in()
def test_kernels_for_scores(gpu: Gpu) -> None:
    shape = (2, 33, 50)
    first, second = noise(*shape, seed=1), noise(*shape, seed=2)

    def blend(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.blend_scores(module, at[0], at[1], out, shape, 1.0, reset=True, stream=stream)
        launch.blend_scores(module, at[0], at[2], out, shape, 0.3, stream=stream)

    def pack(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.pack_mask(module, at[0], None, out, shape, 40, 200, stream)
        launch.pack_mask(module, at[1], out, out, shape, 40, 200, stream)

    check_kernel(gpu, blend, [np.zeros(shape, np.float32), first, second], shape)
    check_kernel(gpu, pack, [first, second], (2, 33, 7))


@on_the_stand_in()
def test_arguments_of_other_types_are_refused(gpu: Gpu) -> None:
    """That what was compared above is what the kernels declare: one parameter too wide and the driver notices."""
    module, stream, memory = gpu.module(cubin()), gpu.stream(), gpu.allocate(64)
    address = np.uint64(memory.address)
    args = [address, address, address, np.int32(8), np.int32(1), np.float32(1), np.int32(1)]

    def start(*args: Any) -> None:
        module.launch("blend_scores", (1, 1, 1), (32, 8, 1), args, stream)

    start(*args)
    for wrong in ([*args[:-1], np.int64(1)], args[:-1], [*args, np.int32(1)], [*args[:5], np.float64(1), np.int32(1)]):
        fails(gpu.cuda.LogicError, "invalid argument", functools.partial(start, *wrong))
    fails(TypeError, "parameter #6", functools.partial(start, *args[:-1], 1))
    unknown = functools.partial(module.launch, "sausage", (1, 1, 1), (1, 1, 1), [], stream)
    fails(gpu.cuda.LogicError, "named symbol not found", unknown)
    memory.free()


@on_the_stand_in()
def test_opened_in_one_thread_used_in_others_closed_in_another() -> None:
    gpu: list[Gpu] = []
    kept: list[tuple[Stream, Module, Any, Any]] = []

    def blend(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.blend_scores(module, at[0], at[1], out, (1, 32, 64), 1.0, reset=True, stream=stream)

    def use() -> None:
        check_kernel(gpu[0], blend, [np.zeros((1, 32, 64), np.float32), noise(1, 32, 64)], (1, 32, 64))

    def load() -> None:
        with gpu[0].current():
            kept.append((gpu[0].stream(), gpu[0].module(cubin()), gpu[0].event(), gpu[0].allocate(100)))

    def close() -> None:
        with gpu[0].current():
            kept[0][-1].free()
            kept.clear()
        gpu[0].close()

    in_thread(lambda: gpu.append(Gpu()))
    in_thread(load)
    for _ in range(3):
        in_thread(use)
    assert alive() == {"memory": 1, "stream": 1, "module": 1, "event": 1, "retained": 1}
    in_thread(close)
    assert alive() == {}


@on_the_stand_in()
def test_several_threads_at_once() -> None:
    errors: list[BaseException] = []

    def blend(module: KernelModule, at: Sequence[int], out: int, stream: Any) -> None:
        launch.blend_scores(module, at[0], at[1], out, (1, 32, 64), 1.0, reset=True, stream=stream)

    with opened() as gpu:

        def work(seed: int) -> None:
            try:
                for _ in range(20):
                    check_kernel(gpu, blend, [np.zeros((1, 32, 64), np.float32), noise(1, 32, 64, seed=seed)], (1, 32, 64))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


@on_the_stand_in()
def test_a_thread_without_the_context_is_refused() -> None:
    with opened() as gpu:
        fails(gpu.cuda.LogicError, "invalid device context", lambda: gpu.allocate(1))
        fails(gpu.cuda.LogicError, "context", gpu.stream)
        with gpu.current():
            memory = gpu.allocate(16)
            in_thread(lambda: fails(gpu.cuda.LogicError, "invalid device context", lambda: gpu.allocate(1)))
            memory.free()


@on_the_stand_in()
def test_two_at_once() -> None:
    """They share one context: the first to be closed leaves the other its own, current where it was."""
    first, second = Gpu(), Gpu()
    assert alive() == {"retained": 2}
    with first.current(), second.current():
        memory = second.allocate(10)
        memory.free()
    with first.current():
        second.close()
        assert alive() == {"retained": 1, "pushed": 1}
        memory = first.allocate(10)
        memory.free()
    assert alive() == {"retained": 1}
    first.close()


@on_the_stand_in()
def test_a_second_one_after_the_first() -> None:
    for _ in range(3):
        with opened() as gpu, gpu.current():
            gpu.allocate(10).free()
        assert alive() == {}


@on_the_stand_in(LIBCUDA_HOST_MEMORY="1000")
def test_out_of_memory(gpu: Gpu) -> None:
    with pytest.raises(EngineError, match="out of memory"), gpu.current():
        gpu.allocate(2000)
    assert alive() == {"retained": 1, "pushed": 1}
    gpu.allocate(1000).free()


@on_the_stand_in()
def test_other_errors_of_the_driver(gpu: Gpu) -> None:
    with pytest.raises(EngineError, match="not the kernels of this host"), gpu.current():
        gpu.module(b"\x7fELF")
    with pytest.raises(EngineError, match="invalid argument"), gpu.current():
        gpu.stream().upload(4096, noise(8))
    assert alive() == {"retained": 1, "pushed": 1}


@on_the_stand_in(tidy=False)
def test_an_illegal_access_ends_the_device_and_closing_still_works() -> None:
    gpu = Gpu()
    with gpu.current():
        module, stream = gpu.module(cubin()), gpu.stream()
    args = [np.uint64(4096)] * 3 + [np.int32(8), np.int32(1), np.float32(1), np.int32(1)]
    for _ in range(2):
        with pytest.raises(EngineError, match="illegal memory access"), gpu.current():
            module.launch("blend_scores", (1, 1, 1), (32, 8, 1), args, stream)
    with gpu.current():
        del module, stream
    gpu.close()
    assert not {"retained", "pushed"} & alive().keys()


@on_the_stand_in()
def test_events_tell_time(gpu: Gpu) -> None:
    stream, begun, done = gpu.stream(), gpu.event(), gpu.event()
    fails(gpu.cuda.LogicError, "invalid resource handle", lambda: done.time_since(begun))
    begun.record(stream.raw)
    stream.wait_for(begun)
    done.record(stream.raw)
    done.synchronize()
    assert 0 <= done.time_since(begun) < 1000 * LIMIT_S


@on_the_stand_in()
def test_a_graph_does_again_what_was_recorded(gpu: Gpu) -> None:
    shape = (1, 32, 64)
    stream, module = gpu.stream(), gpu.module(cubin())
    state, scores = gpu.allocate(4 * 32 * 64), gpu.allocate(32 * 64)
    source, target = gpu.pinned(shape), gpu.pinned(shape)
    target[...] = 0
    source[...] = noise(*shape, seed=1)
    with capturing(stream, graph_driver()) as graphs:
        stream.upload(scores.address, source)
        launch.blend_scores(module, state.address, scores.address, scores.address, shape, 1.0, reset=True, stream=stream)
        stream.download(target, scores.address)
    assert not target.any(), "recorded, not run"
    for seed in (1, 2):
        source[...] = noise(*shape, seed=seed)
        graphs[0].launch(stream)
        stream.synchronize()
        assert np.array_equal(target, source)
    assert alive()["executable"] == 1
    graphs[0].free()
    graphs[0].free()
    assert not {"graph", "executable"} & alive().keys()
    state.free()
    scores.free()


@on_the_stand_in()
def test_captures_that_fail(gpu: Gpu) -> None:
    """Either way the stream works afterwards, and nothing is left of the graph."""
    stream, memory = gpu.stream(), gpu.allocate(16)

    def forbidden() -> None:
        with capturing(stream, graph_driver()):
            stream.upload(memory.address, noise(16))
            with pytest.raises(gpu.cuda.LogicError, match="capturing"):
                gpu.allocate(16)

    def abandoned() -> None:
        with capturing(stream, graph_driver()):
            stream.upload(memory.address, noise(16))
            raise KeyError("ours")

    fails(EngineError, "cuStreamEndCapture failed with CUDA error 901", forbidden)
    fails(KeyError, "ours", abandoned)
    assert "graph" not in alive()
    got = np.zeros(16, np.uint8)
    stream.upload(memory.address, noise(16))
    stream.download(got, memory.address)
    stream.synchronize()
    assert np.array_equal(got, noise(16))
    memory.free()


# The whole engine: PyCUDA is real, TensorRT is not


class Device:
    """What `fakes.make_tensorrt` wants of a device, by way of the driver that is there."""

    name, compute_capability, memory_limit = "Host", (8, 7), 1 << 30

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._calls: list[Any] = []
        self._kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def current(self) -> int | None:
        context = ctypes.c_void_p()
        libcuda().cuCtxGetCurrent(ctypes.byref(context))
        return context.value

    def capturing(self, handle: int) -> bool:
        status = ctypes.c_int()
        assert libcuda().cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status)) == 0
        return bool(status.value)

    def break_captures(self) -> None:
        libcuda().cuCtxSynchronize()

    def enqueue(self, handle: int, name: str, run: Callable[[], None], routine: str) -> None:
        self._calls.append(self._kind(lambda _: run()))
        code = libcuda().cuLaunchHostFunc(ctypes.c_void_p(handle), self._calls[-1], None)
        if code:
            raise CudaError(routine, code)

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


@contextmanager
def engines(**knobs: Any) -> Iterator[Callable[..., Any]]:
    """Opens `TensorRtEngine`s on the model of `conftest.write_model`; TensorRT's knobs are those of the fakes."""
    set_knobs = Knobs(**knobs)
    sys.modules["tensorrt"] = make_tensorrt("11.4", Device(), set_knobs)  # type: ignore[arg-type]
    tensorrt_engine.cubin = lambda arch: cubin()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        contract = read_contract(write_model(Path(folder, "tiny.onnx")))
        yield functools.partial(tensorrt_engine.TensorRtEngine, contract)
    gc.collect()
    assert set_knobs.violations == []
    assert not any(set_knobs.live.values())


def is_right(scores: NDArray[np.uint8]) -> bool:
    """Of `conftest.road_image`: freespace below, ego below on the right."""
    wanted = np.zeros((1, 2, 32, 64), bool)
    wanted[:, 0, 16:], wanted[:, 1, 16:, 32:] = True, True
    return bool(np.array_equal(scores > 127, wanted))


@on_the_stand_in()
def test_the_engine() -> None:
    """Frames of several sizes, with and without a graph, two on their way, in camera formats; closed by another thread."""
    images = [road_image(*size) for size in ((64, 32), (640, 320), (128, 64), (1280, 640))]
    yuyv = np.full((64, 128, 2), 128, np.uint8)
    with engines() as open_engine:
        engine = open_engine()
        assert (engine.name, engine.device, engine.precision) == ("tensorrt", "Host", "fp16")
        for image in images * 2:
            scores = engine.segment([image])
            assert is_right(scores.values)
            assert min(scores.timings.preprocess_ms, scores.timings.infer_ms, scores.timings.h2d_ms) >= 0
        assert alive()["executable"] == 2, "a graph for each set of buffers"
        engine.submit([images[1]])
        engine.submit([images[2]])
        assert is_right(engine.collect().values)
        assert is_right(engine.collect().values)
        assert engine.segment([yuyv], "yuyv").values.max() < 128
        buffer = engine.frame_buffer((32, 64, 3))
        buffer[...] = images[0]
        assert is_right(engine.segment([buffer]).values)
        del buffer
        in_thread(lambda: engine.segment([images[0]]))
        in_thread(engine.close)
        assert alive() == {}, "closing gives back all of it"


@on_the_stand_in()
def test_the_engine_beside_another_user_of_the_context() -> None:
    """Whose context is not given up with the engine's: what is not freed stays."""
    with engines() as open_engine, opened():
        with open_engine() as engine:
            for _ in range(4):
                assert is_right(engine.segment([road_image(128, 64)]).values)
            engine.submit([road_image(64, 32)])
        assert alive() == {"retained": 1}


@on_the_stand_in()
def test_the_engine_without_graphs() -> None:
    """A network that cannot be captured: the capture is broken off, and the frame gets its scores all the same."""
    said: list[str] = []
    with engines(uncapturable=True) as open_engine:
        with open_engine(say=said.append) as engine:
            for _ in range(5):
                assert is_right(engine.segment([road_image(128, 64)]).values)
        assert alive() == {}
    assert [line for line in said if "without CUDA graphs" in line] == said[1:]
    assert len(said) == 2


@on_the_stand_in(LIBCUDA_HOST_MEMORY="200000")
def test_the_engine_with_too_little_memory() -> None:
    with engines() as open_engine:
        with open_engine() as engine:
            for _ in range(3):
                fails(EngineError, "out of memory", lambda: engine.segment([road_image(640, 320)]))
                for _ in range(2):  # on both sets of buffers
                    assert is_right(engine.segment([road_image(64, 32)]).values)
        assert alive() == {}


if __name__ == "__main__":
    run_body(sys.argv[1], "tidy" in sys.argv[2:])
