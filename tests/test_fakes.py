"""The fakes keep their promises: the real names, deferred work, counted memory, contexts per thread."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import importlib.util
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import BLUE, CYAN, GREEN, RED
from fakes import SURFACES, Fakes, install
from fakes.surface import read_surface

THREAD_LOCAL = 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return install(monkeypatch)


@pytest.fixture
def cuda(fakes: Fakes) -> Iterator[Any]:
    """The driver with its primary context current, given back afterwards."""
    fakes.cuda.init()
    context = fakes.cuda.Device(0).retain_primary_context()
    context.push()
    yield fakes.cuda
    fakes.cuda.Context.pop()
    context.detach()


def fixed(model: Path, batch: int = 1) -> bytes:
    """The model's bytes with the batch fixed."""
    graph = onnx.load(str(model))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return bytes(graph.SerializeToString())


def listener(trt: Any) -> Any:
    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity.name, message))

    return Listener()


def build(trt: Any, logger: Any, data: bytes, prepare: Any = lambda builder, config: None) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(data)
    config = builder.create_builder_config()
    prepare(builder, config)
    return builder.build_serialized_network(network, config)


def load(trt: Any, logger: Any, plan: Any) -> tuple[Any, Any, Any]:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    return runtime, engine, engine.create_execution_context()


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("release", SURFACES)
def test_the_module_has_the_names_of_the_release_and_no_others(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    surface, trt = read_surface(SURFACES[release]), install(monkeypatch, release).tensorrt
    enums = {name for name in surface["enums"] if "." not in name}
    assert public(trt) == {*surface["classes"], *enums, *surface["functions"], *surface["aliases"]}
    for name, described in surface["classes"].items():
        nested = {e.partition(".")[2] for e in surface["enums"] if e.startswith(f"{name}.")}
        missing = set(described["attributes"]) ^ (public(getattr(trt, name)) - nested)
        assert not {m for m in missing if described["attributes"].get(m) != "value"}, name
    for name, described in surface["enums"].items():
        kind = trt
        for part in name.split("."):
            kind = getattr(kind, part)
        assert {n: int(m) for n, m in kind.__members__.items()} == described["members"]
    assert importlib.util.find_spec(trt.__name__) is not None


def test_pycuda_has_the_names_of_the_release_and_no_others(fakes: Fakes) -> None:
    surface = read_surface("pycuda_2026_1")
    parts = ("classes", "enums", "functions", "values")
    assert public(fakes.cuda) == {name for part in parts for name in surface[part]}
    for name, described in surface["classes"].items():
        if not issubclass(getattr(fakes.cuda, name), Exception):
            assert public(getattr(fakes.cuda, name)) == set(described["attributes"]), name
    assert importlib.import_module("pycuda.driver") is fakes.cuda
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pycuda.autoinit")


def test_names_that_went_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = install(monkeypatch, "11.4").tensorrt, install(monkeypatch, "10.3").tensorrt
    assert old.BuilderFlag.FP16.name == "FP16"
    assert old.NetworkDefinitionCreationFlag.EXPLICIT_BATCH.value == 0
    for gone in (
        lambda: new.BuilderFlag.FP16,
        lambda: new.IInt8EntropyCalibrator2,
        lambda: new.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
        lambda: new.Builder.platform_has_fast_fp16,
        lambda: new.ICudaEngine.device_memory_size,
        lambda: old.ICudaEngine.num_bindings,
        lambda: new.ComputeCapability,
        lambda: old.IBuilderConfig.max_workspace_size,
    ):
        with pytest.raises(AttributeError):
            gone()


def test_calls_that_the_release_refuses_are_refused(fakes: Fakes) -> None:
    trt = fakes.tensorrt
    logger = listener(trt)
    builder = trt.Builder(logger=logger)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    for refused in (
        lambda: trt.Builder(),
        lambda: trt.Builder("logger"),
        lambda: trt.Runtime(logger, 1),
        lambda: trt.IBuilderConfig(),
        lambda: config.set_flag(1),
        lambda: builder.create_network(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit=1),
        lambda: trt.BuilderFlag.TF32 < 3,
        lambda: trt.DataType.INT8 < trt.DataType.FLOAT,
    ):
        with pytest.raises(TypeError):
            refused()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        builder.num_DLA_cores = 1

    class Forgetful(trt.ILogger):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="must be called"):
        Forgetful()


@pytest.mark.parametrize("release", SURFACES)
def test_from_an_onnx_file_to_scores(monkeypatch: pytest.MonkeyPatch, release: str, tiny_model: Path) -> None:
    """The way of every release: parse, build, load, bind by name, execute, copy; nothing is there before the wait."""
    fakes = install(monkeypatch, release, gpu="RTX", compute_capability=(8, 6))
    trt, cuda = fakes.tensorrt, fakes.cuda
    logger = listener(trt)

    def target(builder: Any, config: Any) -> None:
        if hasattr(trt, "ComputeCapability"):
            config.num_compute_capabilities = 1
            assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    cuda.init()
    owner = cuda.Device(0).retain_primary_context()
    owner.push()
    plan = build(trt, logger, fixed(tiny_model), target)
    assert plan.nbytes == len(bytes(plan)) == memoryview(plan).nbytes
    runtime, engine, context = load(trt, logger, plan)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["image", "scores"]
    assert engine.get_tensor_mode("scores") == trt.TensorIOMode.OUTPUT
    assert tuple(engine.get_tensor_shape("image")) == (1, 32, 64, 3)
    assert engine.get_tensor_dtype("image") == trt.uint8

    stream = cuda.Stream()
    image, scores = cuda.pagelocked_empty((1, 32, 64, 3), np.uint8), cuda.pagelocked_zeros((1, 2, 32, 64), np.uint8)
    memory = {"image": cuda.mem_alloc(image.nbytes), "scores": cuda.mem_alloc(scores.nbytes)}
    for name, block in memory.items():
        assert context.set_tensor_address(name, int(block))
    cuda.memcpy_htod_async(memory["image"], image, stream)
    assert context.execute_async_v3(stream.handle)
    cuda.memcpy_dtoh_async(scores, memory["scores"], stream)
    for place, colour in enumerate((RED, GREEN, CYAN, BLUE)):  # after the copy was queued: it takes what is there when it runs
        image[0, :, place * 16 : (place + 1) * 16] = colour
    assert not scores.any()
    assert fakes.gpu.log == []
    assert fakes.gpu.pending == 3
    stream.synchronize()
    assert [name for _, name in fakes.gpu.log] == ["htod", "execute", "dtoh"]
    assert scores[0, 0, 0, ::16].tolist() == [0, 255, 255, 0]
    assert scores[0, 1, 0, ::16].tolist() == [0, 255, 0, 0]

    for block in memory.values():
        block.free()
    del context
    del engine
    del runtime
    del stream, image, scores, logger
    gc.collect()
    fakes.libcuda.cuCtxPopCurrent_v2(None)  # PyCUDA's `detach` leaves it on the driver's stack
    owner.detach()
    order = [kind for kind in fakes.trt.destroyed if kind in ("IExecutionContext", "ICudaEngine", "Runtime")]
    assert order == ["IExecutionContext", "ICudaEngine", "Runtime"]
    assert fakes.trt.violations == []
    assert fakes.leaks() == []
    assert fakes.gpu.released_with == [0]


def test_the_wrong_order_of_destruction_is_noticed(fakes: Fakes, cuda: Any, tiny_model: Path) -> None:
    logger = listener(fakes.tensorrt)
    runtime, engine, context = load(fakes.tensorrt, logger, build(fakes.tensorrt, logger, fixed(tiny_model)))
    del runtime
    assert fakes.trt.violations == []
    del engine
    assert fakes.trt.violations == ["Runtime went before its ICudaEngine"]
    assert context.execute_async_v3(0) is False
    assert len(fakes.trt.violations) == 2
    del context
    assert fakes.trt.violations[2:] == ["ICudaEngine went before its IExecutionContext"]


def test_plans_of_other_releases_gpus_and_damaged_ones_do_not_load(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    def make(release: str, cc: tuple[int, int], gpu: str = "Orin", compatible: bool = False) -> bytes:
        trt = install(monkeypatch, release, gpu, cc).tensorrt
        flag = trt.BuilderFlag.VERSION_COMPATIBLE
        return bytes(build(trt, listener(trt), fixed(tiny_model), lambda b, c: compatible and c.set_flag(flag)))

    plans = {
        "not compatible with this version": make("10.3", (8, 7)),
        "incompatible device": make("10.13", (8, 6)),
        "corrupt": make("10.13", (8, 7))[:-1],
    }
    relative, sibling = make("10.3", (8, 7), compatible=True), make("10.13", (8, 7), "Orin Nano")
    fakes = install(monkeypatch, "10.13")
    logger = listener(fakes.tensorrt)
    runtime = fakes.tensorrt.Runtime(logger)
    for reason, plan in plans.items():
        assert runtime.deserialize_cuda_engine(plan) is None
        assert logger.lines[-1][0] == "ERROR"
        assert reason in logger.lines[-1][1]
    assert runtime.deserialize_cuda_engine(sibling) is not None
    assert logger.lines[-1][0] == "WARNING"
    assert runtime.deserialize_cuda_engine(relative) is None
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(relative) is not None


def test_what_can_go_wrong_in_a_build(fakes: Fakes, tiny_model: Path) -> None:
    trt = fakes.tensorrt
    logger = listener(trt)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(), logger)
    assert not parser.parse(b"no model")
    assert parser.num_errors == 1
    assert parser.get_error(0).desc()
    assert build(trt, logger, tiny_model.read_bytes()) is None
    assert "optimization profile" in logger.lines[-1][1]

    def profile(builder: Any, config: Any) -> None:
        shapes = builder.create_optimization_profile()
        shapes.set_shape("image", (1, 32, 64, 3), (1, 32, 64, 3), (4, 32, 64, 3))
        assert config.add_optimization_profile(shapes) == 0

    runtime, engine, context = load(trt, logger, build(trt, logger, tiny_model.read_bytes(), profile))
    assert context.infer_shapes() == ["image"]
    assert not context.set_input_shape("image", (5, 32, 64, 3))
    assert context.set_input_shape("image", (3, 32, 64, 3))
    assert tuple(context.get_tensor_shape("scores")) == (3, 2, 32, 64)
    fakes.trt.fail_build = "no tactic"
    assert build(trt, logger, fixed(tiny_model)) is None
    assert "no tactic" in logger.lines[-1][1]
    fakes.trt.no_context = True
    assert engine.create_execution_context() is None
    fakes.trt.no_runtime = True
    with pytest.raises(TypeError, match="nullptr"):
        trt.Runtime(logger)
    del runtime


def test_progress_can_stop_a_build(fakes: Fakes, tiny_model: Path) -> None:
    trt = fakes.tensorrt

    class Monitor(trt.IProgressMonitor):
        def __init__(self, last: int) -> None:
            trt.IProgressMonitor.__init__(self)
            self.seen: list[Any] = []
            self.last = last

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.seen.append((phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.seen.append(step)
            return len(self.seen) < self.last

        def phase_finish(self, phase_name: str) -> None:
            self.seen.append(phase_name)

    for last, built in ((100, True), (3, False)):
        monitor, logger = Monitor(last), listener(trt)
        plan = build(trt, logger, fixed(tiny_model), lambda b, c, m=monitor: setattr(c, "progress_monitor", m))
        assert (plan is not None) == built
        assert (not logger.lines) == built
        assert monitor.seen[0] == ("Building engine", None, 3)
        assert monitor.seen[-1] == "Building engine"


def test_a_timing_cache_goes_round(fakes: Fakes, tiny_model: Path) -> None:
    trt = fakes.tensorrt
    kept: list[bytes] = []

    def with_cache(data: bytes) -> Any:
        def prepare(builder: Any, config: Any) -> None:
            assert config.set_timing_cache(config.create_timing_cache(data), False)
            configs.append(config)

        return prepare

    for _ in range(2):
        configs: list[Any] = []
        build(trt, listener(trt), fixed(tiny_model), with_cache(kept[-1] if kept else b""))
        kept.append(bytes(configs[0].get_timing_cache().serialize()))
    assert [b["timing_cache"] for b in fakes.trt.builds] == [0, 7]
    config = trt.Builder(listener(trt)).create_builder_config()
    assert config.create_timing_cache(b"damaged") is None
    old = config.create_timing_cache(kept[0].replace(b"11.4", b"11.3"))
    assert not config.set_timing_cache(old, False)


def test_execution_fails_when_asked_to(fakes: Fakes, cuda: Any, tiny_model: Path) -> None:
    logger = listener(fakes.tensorrt)
    _runtime, _engine, context = load(fakes.tensorrt, logger, build(fakes.tensorrt, logger, fixed(tiny_model)))
    stream, blocks = cuda.Stream(), [cuda.mem_alloc(32 * 64 * 3), cuda.mem_alloc(2 * 32 * 64)]
    assert not context.execute_async_v3(stream.handle)
    assert "not set" in logger.lines[-1][1]
    for name, block in zip(("image", "scores"), blocks, strict=True):
        assert context.set_tensor_address(name, int(block))
    assert not context.set_tensor_address("nothing", int(blocks[0]))
    fakes.trt.fail_execute = "hopeless"
    assert not context.execute_async_v3(stream.handle)
    assert "hopeless" in logger.lines[-1][1]
    fakes.trt.fail_execute, fakes.trt.fail_infer_at_run = "", "later"
    assert context.execute_async_v3(stream.handle)
    with pytest.raises(cuda.LaunchError, match="unspecified launch failure"):
        stream.synchronize()
    with pytest.raises(cuda.LaunchError):
        cuda.mem_get_info()


def test_work_waits_for_somebody_who_waits(fakes: Fakes, cuda: Any) -> None:
    copying, computing = cuda.Stream(), cuda.Stream()
    block, ready, other = cuda.mem_alloc(4), cuda.Event(), cuda.Event()
    source, first, second = (cuda.pagelocked_zeros(4, np.uint8) for _ in range(3))
    source[:] = 7
    cuda.memcpy_htod_async(block, source, copying)
    ready.record(copying)
    cuda.memcpy_dtoh_async(first, block, computing)  # nobody said that this needs the upload
    computing.wait_for_event(ready)
    cuda.memcpy_dtoh_async(second, block, computing)
    other.record(computing)
    with pytest.raises(cuda.RuntimeError, match="not ready"):
        other.time_since(ready)
    computing.synchronize()
    assert first.tolist() == [0xCD] * 4
    assert second.tolist() == [7] * 4
    assert other.time_since(ready) >= 0
    here, there = copying.handle, computing.handle
    order = [(there, "dtoh"), (here, "htod"), (here, "record"), (there, "wait"), (there, "dtoh"), (there, "record")]
    assert fakes.gpu.log == order
    polled = cuda.Event().record(copying)
    asked = 0
    while not polled.query():
        asked += 1
    assert asked == 1
    assert copying.is_done()


def test_the_default_stream_waits_for_the_others(fakes: Fakes, cuda: Any) -> None:
    stream, free = cuda.Stream(), cuda.Stream(1)
    block, out = cuda.mem_alloc(4), np.zeros(4, np.uint8)
    cuda.memset_d8_async(block, 3, 4, stream)
    cuda.memset_d8_async(block, 9, 4, free)
    cuda.memcpy_dtoh(out, block)
    assert out.tolist() == [3] * 4
    assert fakes.gpu.pending == 1


def test_memory_is_counted_limited_and_guarded(fakes: Fakes, cuda: Any) -> None:
    fakes.gpu.memory_limit = 1000
    block = cuda.mem_alloc(600)
    assert cuda.mem_get_info() == (400, 1000)
    assert int(block) % 256 == 0
    with pytest.raises(cuda.MemoryError, match="cuMemAlloc failed: out of memory"):
        cuda.mem_alloc(401)
    block.free()
    with pytest.raises(cuda.LogicError):
        block.free()
    assert fakes.gpu.live_bytes == 0
    assert fakes.gpu.collected == []
    dropped = cuda.mem_alloc(10)
    del dropped
    assert fakes.gpu.live_bytes == 0
    assert fakes.gpu.collected == [10]
    pinned = cuda.pagelocked_empty((2, 3), np.float32)
    part = pinned[1:]
    del pinned
    assert fakes.gpu.pinned_bytes == 24
    del part
    assert fakes.gpu.pinned_bytes == 0
    with pytest.raises(TypeError):
        cuda.mem_alloc(1.5)
    with pytest.raises(ValueError, match="contiguous"):
        cuda.memcpy_htod_async(0, np.zeros((4, 4), np.uint8)[:, ::2])
    short = cuda.mem_alloc(8)
    stream = cuda.Stream()
    cuda.memcpy_htod_async(int(short), np.zeros(9, np.uint8), stream)
    assert fakes.gpu.pageable_copies == 1
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        stream.synchronize()
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        cuda.mem_alloc(1)


def test_contexts_belong_to_threads(fakes: Fakes) -> None:
    cuda = fakes.cuda
    with pytest.raises(cuda.LogicError, match="initialization"):
        cuda.Device(0)
    cuda.init()
    with pytest.raises(cuda.LogicError, match="invalid device ordinal"):
        cuda.Device(1)
    device = cuda.Device(0)
    assert (device.name(), device.compute_capability(), device.multiprocessor_count) == ("Orin", (8, 7), 8)
    context = device.retain_primary_context()
    for call in (lambda: cuda.mem_alloc(1), cuda.Stream, cuda.Event, cuda.mem_get_info, cuda.Context.pop):
        with pytest.raises(cuda.LogicError, match="invalid device context"):
            call()
    context.push()
    block = cuda.mem_alloc(4)
    failures: list[Exception] = []

    def elsewhere() -> None:
        try:
            cuda.mem_alloc(4)
        except cuda.LogicError as error:
            failures.append(error)
        with pytest.warns(UserWarning, match="out-of-thread"):
            block.free()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failures) == 1
    assert fakes.gpu.live_bytes == 4
    cuda.Context.pop()
    with pytest.raises(cuda.LogicError):
        cuda.Context.pop()
    context.detach()
    with pytest.raises(cuda.LogicError, match="cannot detach"):
        context.detach()
    assert fakes.gpu.released_with == [4]
    assert "4 bytes of device memory" in fakes.leaks()


def test_kernels_run_in_their_turn_on_what_is_there(fakes: Fakes, cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        names = ("increment",)

        def launch(self, name: str, grid: Any, block: Any, args: Any, stream: object = None) -> None:
            address, count = args
            memory = (ctypes.c_ubyte * int(count)).from_address(int(address))
            for i in range(count):
                memory[i] += 1

    monkeypatch.setattr("cuda_host.host_kernels", Host)
    function = cuda.module_from_buffer(b"cubin").get_function("increment")
    stream, block, out = cuda.Stream(), cuda.mem_alloc(3), cuda.pagelocked_zeros(3, np.uint8)
    size = {"block": (32, 1, 1), "grid": (1, 1)}
    cuda.memset_d8_async(block, 5, 3, stream)
    function(block, np.int32(3), **size, stream=stream)
    function.prepare("Pi").prepared_async_call((1, 1), (32, 1, 1), stream, int(block), 3)
    cuda.memcpy_dtoh_async(out, block, stream)
    assert not out.any()
    stream.synchronize()
    assert out.tolist() == [7] * 3
    assert (stream.handle, "kernel increment") in fakes.gpu.log
    with pytest.raises(TypeError, match="parameter #1"):
        function(block, 3, **size)
    with pytest.raises(ValueError, match="block size"):
        function(block, np.int32(3))
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        function(block, np.int32(3), block=(1025, 1, 1))
    with pytest.raises(cuda.LogicError, match="symbol not found"):
        cuda.module_from_buffer(b"cubin").get_function("nothing")
    fakes.gpu.refuse_module = 209
    with pytest.raises(cuda.RuntimeError, match="no kernel image"):
        cuda.module_from_buffer(b"cubin")
    fakes.gpu.refuse_module = 0
    function(np.uint64(12345), np.int32(3), **size, stream=stream)
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        stream.synchronize()


def test_graphs_replay_what_was_captured(fakes: Fakes, cuda: Any) -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    stream, side, event = cuda.Stream(), cuda.Stream(), cuda.Event()
    block, source, out = cuda.mem_alloc(4), cuda.pagelocked_zeros(4, np.uint8), cuda.pagelocked_zeros(4, np.uint8)
    handle = ctypes.c_void_p(stream.handle)
    assert driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL) == 0
    cuda.memcpy_htod_async(block, source, stream)
    event.record(stream)
    side.wait_for_event(event)
    cuda.memcpy_dtoh_async(out, block, side)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0
    assert driver.cuGraphDestroy(graph) == 0
    assert driver.cuGraphDestroy(graph) == 400
    for value in (1, 2):
        source[:] = value
        assert driver.cuGraphLaunch(executable, handle) == 0
        assert out[0] == value - 1
        stream.synchronize()
        assert out.tolist() == [value] * 4
    names = [name for _, name in fakes.gpu.log]
    assert names == ["graph", "htod", "dtoh"] * 2
    assert driver.launches == 2
    assert fakes.leaks()[-1] != ""
    assert len(driver.executables) == 1
    assert driver.cuGraphExecDestroy(executable) == 0
    assert driver.cuGraphLaunch(executable, handle) == 400
    with pytest.raises(ctypes.ArgumentError):
        driver.cuStreamBeginCapture_v2(stream.handle, THREAD_LOCAL)
    fakes.gpu.refuse_capture = True
    assert driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL) == 900


def test_what_must_not_be_done_in_a_capture_breaks_it(fakes: Fakes, cuda: Any, tiny_model: Path) -> None:
    logger = listener(fakes.tensorrt)
    _runtime, _engine, context = load(fakes.tensorrt, logger, build(fakes.tensorrt, logger, fixed(tiny_model)))
    stream, blocks = cuda.Stream(), {"image": cuda.mem_alloc(32 * 64 * 3), "scores": cuda.mem_alloc(2 * 32 * 64)}
    for name, block in blocks.items():
        context.set_tensor_address(name, int(block))
    execute = functools.partial(context.execute_async_v3, stream.handle)
    handle, graph = ctypes.c_void_p(stream.handle), ctypes.c_void_p()

    def capture(action: Any) -> int:
        assert fakes.libcuda.cuStreamBeginCapture_v2(handle, THREAD_LOCAL) == 0
        action()
        return fakes.libcuda.cuStreamEndCapture(handle, ctypes.byref(graph))

    def refused(call: Any) -> Any:
        def action() -> None:
            with pytest.raises(cuda.LogicError, match="when stream is capturing"):
                call()

        return action

    pageable = np.zeros(4, np.uint8)
    for call in (
        stream.synchronize,
        lambda: cuda.mem_alloc(4),
        lambda: cuda.memcpy_htod_async(blocks["image"], pageable, stream),
        lambda: cuda.memcpy_htod(blocks["image"], pageable),
        lambda: cuda.pagelocked_empty(4, np.uint8),
    ):
        assert capture(refused(call)) == 901
    assert capture(execute) == 901
    assert "outside of the capture" in logger.lines[-1][1]
    assert execute()
    assert capture(execute) == 0
    fakes.libcuda.cuGraphInstantiateWithFlags(ctypes.byref(ctypes.c_void_p()), graph, ctypes.c_ulonglong(0))
    fakes.trt.uncapturable = True
    assert capture(execute) == 901
    kept = weakref.ref(context)
    cuda.Event().record(stream)
    del context, execute
    assert kept() is None  # neither a graph nor queued work keeps it
