"""TensorRT on an NVIDIA GPU: from the frame's bytes to the scores' bytes without the CPU in between.

Two sets of buffers and two streams: while the network works on one frame, the next one is copied to the device.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tensorrt_api
from engine.base import Engine, EngineTimings, Scores
from engine.build import PlanOptions
from engine.contract import INPUT_NAME, OUTPUT_NAME, EngineError, ModelContract
from engine.cuda import launch
from engine.cuda.compile import cubin
from engine.cuda.driver import DeviceMemory, Gpu, Graph, Module, Stream, capturing, graph_driver
from engine.cuda.resampling import resampling_tables
from engine.plans import ANY_GPU, Plan, Say, Target, obtain_plan
from engine.preprocess import PixelFormat, Resampling

SETS = 2
ALIGNMENT = 256  # of frames in one block of device memory, bytes
TABLES_KEPT = 16  # a folder of images may hold a new frame size in every file


class BufferSet:
    """Memory and events for one batch on its way. Sizes in bytes but for the shapes."""

    def __init__(self, gpu: Gpu, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        self._gpu = gpu
        self.frames = gpu.allocate(0)
        self.staging: NDArray[np.uint8] = gpu.pinned((1,))
        self.input = gpu.allocate(int(np.prod(input_shape)))
        self.output = gpu.allocate(int(np.prod(output_shape)))
        self.scores: NDArray[np.uint8] = gpu.pinned(output_shape)
        self.upload_begun, self.uploaded, self.begun, self.prepared, self.inferred, self.done = (gpu.event() for _ in range(6))
        self.graph: Graph | None = None
        self.warm = False  # TensorRT wants one ordinary run before its work is captured
        self.stage_ms = 0.0  # the CPU's copy into page-locked memory
        self.resamplings: tuple[Resampling, ...] = ()

    def reserve(self, nbytes: int) -> None:
        """Room for the frames of a batch; never called while the set is in use."""
        if self.frames.nbytes < nbytes:
            self.staging = self._gpu.pinned((nbytes,))
            self.frames.free()  # holds nothing from here on, should the next line fail
            self.frames = self._gpu.allocate(nbytes)

    def timings(self) -> EngineTimings:
        return EngineTimings(
            preprocess_ms=self.prepared.time_since(self.begun),
            infer_ms=self.inferred.time_since(self.prepared),
            h2d_ms=self.stage_ms + self.uploaded.time_since(self.upload_begun),
            d2h_ms=self.done.time_since(self.inferred),
        )

    def free(self) -> None:
        if self.graph:
            self.graph.free()
        for memory in (self.frames, self.input, self.output):
            memory.free()
        vars(self).clear()  # events and page-locked memory, even if a traceback somewhere still holds this set


class TensorRtEngine(Engine):
    """Runs a plan that is built on first use and kept (`engine.plans`). Usable from any thread; calls wait for one another.

    The GPU's primary context is current on a thread inside a call only: other users of CUDA in the process are not disturbed.
    Timings are the device's own, from CUDA events; ``h2d_ms`` holds the CPU's copy into page-locked memory as well.
    """

    name = "tensorrt"
    depth = SETS

    def __init__(
        self,
        contract: ModelContract,
        precision: str = "auto",
        threads: int = 0,
        say: Say = lambda line: None,
        *,
        ordinal: int = 0,
        options: PlanOptions | None = None,
    ) -> None:
        """Load the plan for ``contract``, or build it, which takes up to some minutes.

        Args:
            precision: ``fp32``, ``fp16``, ``int8``; ``auto`` is int8 for a quantised model, else fp16.
            threads: of no use here.
            say: gets a line when a plan is built or CUDA graphs cannot be used.
            ordinal: which GPU.
            options: all of how to build, the batch with it; takes the place of ``precision``.

        Raises:
            ModelError: TensorRT, PyCUDA, a driver or a GPU is missing, or the model cannot be compiled.
            EngineError: the device or the plan fails.
        """
        options = options or PlanOptions(resolve_precision(precision, contract))
        super().__init__(contract)
        self.precision = options.precision
        self.batch = options.batch
        self._say = say
        self._lock = threading.RLock()
        self._sets: list[BufferSet] = []
        self._free: deque[BufferSet] = deque()
        self._running: deque[BufferSet] = deque()
        self._tables: dict[Resampling, tuple[launch.DeviceTables, DeviceMemory]] = {}
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._kernels: Module | None = None
        self._copying: Stream | None = None
        self._computing: Stream | None = None
        self._graphs: Any = None
        trt = tensorrt_api.load(self.name)
        self._logger = tensorrt_api.make_logger(trt)
        self._gpu: Gpu | None = Gpu(ordinal)
        try:
            self.device = self._gpu.name
            kernels = cubin(self._gpu.architecture)  # before the plan, which takes much longer
            target = target_of(trt.__version__, self.name, self._gpu)
            with self._gpu.current():  # for the build as well, or it would be for the first GPU
                plan = obtain_plan(trt, contract, options, target, say=say)
                if not self._load_plan(trt, plan):
                    if plan.built:
                        raise EngineError(f"TensorRT cannot load the plan: {self._logger.said()}")
                    say(f"TensorRT cannot load the plan: {self._logger.said()}")
                    if not self._load_plan(trt, obtain_plan(trt, contract, options, target, say=say, force=True)):
                        raise EngineError(f"TensorRT cannot load the plan: {self._logger.said()}")
                self._prepare(kernels)
        except BaseException:
            self.close()
            raise

    def _load_plan(self, trt: ModuleType, plan: Plan) -> bool:
        """Whether TensorRT takes the plan."""
        self._logger.errors.clear()
        try:
            self._runtime = trt.Runtime(self._logger)
        except TypeError as error:  # what the bindings make of a null pointer
            raise EngineError(f"TensorRT does not start, is the driver new enough for it? {self._logger.said()}") from error
        if plan.dla_core >= 0:
            self._runtime.DLA_core = plan.dla_core
        if plan.version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        return self._engine is not None

    def _prepare(self, kernels: bytes) -> None:
        gpu = self._open_gpu()
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {INPUT_NAME, OUTPUT_NAME}:
            raise EngineError(f"the plan has the tensors {', '.join(sorted(names))}, wanted {INPUT_NAME} and {OUTPUT_NAME}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"TensorRT gives no execution context: {self._logger.said()}")
        try:
            self._kernels = gpu.module(kernels)
        except gpu.cuda.Error:  # cut short when the power went, or from a compiler that is too new for the driver
            self._kernels = gpu.module(cubin(gpu.architecture, fresh=True))
        self._copying, self._computing = gpu.stream(), gpu.stream()
        shapes = [tuple(self._engine.get_tensor_shape(name)) for name in (INPUT_NAME, OUTPUT_NAME)]
        for _ in range(SETS):
            self._sets.append(BufferSet(gpu, *shapes))
        self._free.extend(self._sets)
        with suppress(EngineError):
            self._graphs = graph_driver()

    def _open_gpu(self) -> Gpu:
        if self._gpu is None:
            raise EngineError("the engine is closed")
        return self._gpu

    def frame_buffer(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Page-locked memory for a frame, uint8: capture into it and hand it in, and one copy by the CPU is saved.

        Unlike other frames it must not change between `submit` and `collect`. It lives as long as the engine.
        """
        with self._lock:
            gpu = self._open_gpu()
            with gpu.current():
                buffer: NDArray[np.uint8] = gpu.pinned(shape)
            self._pinned[buffer.ctypes.data] = buffer
        return buffer

    def segment(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> Scores:
        """As `Engine.segment`; more images than the plan takes go through one after another."""
        with self._lock:
            if self._running:
                raise RuntimeError("collect first what has been submitted")
            parts = [
                super(TensorRtEngine, self).segment(images[i : i + self.batch], pixel_format)
                for i in range(0, max(len(images), 1), self.batch)
            ]
        if len(parts) == 1:
            return parts[0]
        times = [[p.timings.preprocess_ms, p.timings.infer_ms, p.timings.h2d_ms, p.timings.d2h_ms] for p in parts]
        return Scores(
            np.concatenate([p.values for p in parts]),
            self.contract.planes,
            tuple(r for p in parts for r in p.resamplings),
            EngineTimings(*np.sum(times, axis=0).tolist()),
        )

    def submit(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> None:
        """As `Engine.submit`, for up to ``batch`` images, and returns before the device has done it."""
        resamplings = self.resamplings(images, pixel_format)
        if len(images) > self.batch:
            raise ValueError(f"{len(images)} images, but the plan takes {self.batch} at a time")
        with self._lock:
            gpu = self._open_gpu()
            if not self._free:
                raise RuntimeError(f"{self.depth} batches are on their way already; collect one first")
            buffers = self._free.popleft()
            try:
                with gpu.current():
                    self._enqueue(buffers, images, resamplings, pixel_format)
            except BaseException:
                self._free.append(buffers)
                raise
            self._running.append(buffers)

    def collect(self) -> Scores:
        """As `Engine.collect`; waits for the device."""
        with self._lock:
            gpu = self._open_gpu()
            if not self._running:
                raise RuntimeError("nothing has been submitted")
            buffers = self._running.popleft()
            try:
                with gpu.current():
                    buffers.done.synchronize()
                    values = np.array(buffers.scores[: len(buffers.resamplings)])
                    return Scores(values, self.contract.planes, buffers.resamplings, buffers.timings())
            finally:
                self._free.append(buffers)

    def _enqueue(
        self,
        buffers: BufferSet,
        images: Sequence[NDArray[np.uint8]],
        resamplings: tuple[Resampling, ...],
        pixel_format: PixelFormat,
    ) -> None:
        copying, computing = self._streams()
        started = time.perf_counter_ns()
        offsets = np.cumsum([0, *(-(-image.nbytes // ALIGNMENT) * ALIGNMENT for image in images)]).tolist()
        buffers.reserve(offsets[-1])
        sources = [self._stage(buffers, image, offset) for image, offset in zip(images, offsets, strict=False)]
        if len(self._tables) + len(images) > TABLES_KEPT:
            computing.synchronize()  # kernels on their way may be reading them
            self._free_tables()
        tables = [self._tables_for(resampling) for resampling in resamplings]
        buffers.stage_ms = (time.perf_counter_ns() - started) / 1e6
        buffers.resamplings = resamplings

        buffers.upload_begun.record(copying.raw)
        for source, offset in zip(sources, offsets, strict=False):
            copying.upload(buffers.frames.address + offset, source)
        buffers.uploaded.record(copying.raw)

        computing.wait_for(buffers.uploaded)
        buffers.begun.record(computing.raw)
        width, height = self.input_size
        for index, (table, offset) in enumerate(zip(tables, offsets, strict=False)):
            target = buffers.input.address + index * 3 * width * height
            self._resample(buffers.frames.address + offset, table, pixel_format, target)
        buffers.prepared.record(computing.raw)
        self._infer(buffers)
        buffers.inferred.record(computing.raw)
        computing.download(buffers.scores, buffers.output.address)
        buffers.done.record(computing.raw)

    def _stage(self, buffers: BufferSet, image: NDArray[np.uint8], offset: int) -> NDArray[np.uint8]:
        """The frame in page-locked memory: itself where it lies there."""
        own = self._pinned.get(image.ctypes.data)
        if own is not None and own.nbytes == image.nbytes and image.flags.c_contiguous:
            return image
        staged = buffers.staging[offset : offset + image.nbytes].reshape(image.shape)
        np.copyto(staged, image)
        return staged

    def _tables_for(self, resampling: Resampling) -> launch.DeviceTables:
        if resampling not in self._tables:
            tables = resampling_tables(resampling)
            block = tables.block()
            memory = self._open_gpu().allocate(block.nbytes)
            _, computing = self._streams()
            computing.upload(memory.address, block)
            computing.synchronize()  # `block` is gone after this
            self._tables[resampling] = launch.DeviceTables.at(memory.address, tables), memory
        return self._tables[resampling][0]

    def _free_tables(self) -> None:
        for _, memory in self._tables.values():
            memory.free()
        self._tables.clear()

    def _resample(self, frame: int, tables: launch.DeviceTables, pixel_format: PixelFormat, target: int) -> None:
        _, computing = self._streams()
        assert self._kernels is not None
        width, height = tables.frame_size
        if pixel_format == "nv12":
            chroma = frame + width * height
            launch.resample_nv12(self._kernels, frame, width, chroma, width, launch.BT601, tables, target, computing)
        elif pixel_format == "yuyv":
            launch.resample_yuyv(self._kernels, frame, 2 * width, launch.BT601, tables, target, computing)
        else:
            launch.resample_bgr(self._kernels, frame, 3 * width, tables, target, computing)

    def _infer(self, buffers: BufferSet) -> None:
        """Run the network, by a CUDA graph from the second time on."""
        _, computing = self._streams()
        if buffers.graph:
            buffers.graph.launch(computing)
            return
        for name, memory in ((INPUT_NAME, buffers.input), (OUTPUT_NAME, buffers.output)):
            if not self._context.set_tensor_address(name, memory.address):
                raise EngineError(f"TensorRT takes no memory for {name}: {self._logger.said()}")
        if self._graphs and buffers.warm:
            try:
                with capturing(computing, self._graphs) as graphs:
                    self._execute(computing)
                buffers.graph = graphs[0]
                buffers.graph.launch(computing)
                return
            except EngineError as error:
                self._graphs = None
                self._say(f"running without CUDA graphs: {error}")
        self._execute(computing)
        buffers.warm = True

    def _execute(self, stream: Stream) -> None:
        self._logger.errors.clear()
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT cannot run the plan: {self._logger.said()}")

    def _streams(self) -> tuple[Stream, Stream]:
        """For copies to the device, and for all the rest."""
        assert self._copying is not None
        assert self._computing is not None
        return self._copying, self._computing

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames of the network's size need no resampling, so this is `segment`."""
        return self.segment(list(batch)).values

    def infer_resident(self, count: int) -> None:
        """Run the network ``count`` times on what lies on the device already, and wait: what the plan alone can do."""
        with self._lock:
            gpu = self._open_gpu()
            if self._running:
                raise RuntimeError("collect first what has been submitted")
            with gpu.current():
                for _ in range(count):
                    self._infer(self._sets[0])
                self._wait_for_device()

    def free_bytes(self) -> int:
        """Device memory that nobody uses, bytes."""
        gpu = self._open_gpu()
        with gpu.current():
            return gpu.free_bytes()

    def close(self) -> None:
        """Free everything in the order in which it depends on each other; what was not collected is lost."""
        with self._lock:
            if self._gpu is None:
                return
            gpu = self._gpu
            try:
                with gpu.current():
                    self._wait_for_device()
                    self._free.clear()
                    self._running.clear()
                    while self._sets:  # nameless: its events and page-locked memory go while the context is current, or never
                        self._sets.pop().free()
                    self._free_tables()
                    self._pinned.clear()
                    for stream in (self._copying, self._computing):
                        if stream:
                            stream.close()
                    self._forget()
            except Exception as error:  # of a device that is lost: there is nothing left to free
                self._say(f"{self.name} could not be closed properly: {error}")
            finally:
                self._forget()
                self._gpu = None
                gpu.close()

    def _forget(self) -> None:
        """Let go of TensorRT's objects, each before what it came from."""
        self._context = None
        self._engine = None
        self._runtime = None
        self._kernels = self._copying = self._computing = None

    def _wait_for_device(self) -> None:
        for stream in (self._copying, self._computing):
            if stream:
                with suppress(Exception):  # after a failure of the device there is nothing to wait for
                    stream.synchronize()


class TensorRtRtxEngine(TensorRtEngine):
    """TensorRT for RTX: plans for every GPU of a compute capability, finished on the GPU at hand when they are loaded."""

    name = "tensorrt_rtx"


def resolve_precision(precision: str, contract: ModelContract) -> str:
    if precision != "auto":
        return precision
    return "int8" if contract.quantised else "fp16"


def target_of(version: str, flavour: str, gpu: Gpu) -> Target:
    """What a plan for ``gpu`` is bound to."""
    if flavour == "tensorrt_rtx":
        return Target(flavour, version, ANY_GPU, gpu.compute_capability)
    return Target(flavour, version, gpu.name, gpu.compute_capability, gpu.multiprocessors)
