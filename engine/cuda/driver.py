"""The CUDA driver behind PyCUDA: primary context, memory, streams, events, modules, graphs.

Nothing else of ours imports PyCUDA, so another binding could take its place here. The *primary* context is used, the one that
TensorRT, torch and every other library in the process share; ``pycuda.autoinit`` and ``make_context`` would each make one more.

Everything but `Gpu` wants the context current on the calling thread: ``with gpu.current(): ...``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.contract import EngineError, ModelError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: neither waits for the default stream, which other libraries use, nor it for ours
THREAD_LOCAL_CAPTURE = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


def import_driver() -> ModuleType:
    """PyCUDA's driver module, initialised. Raises `ModelError`: not installed, or no driver or GPU to be had."""
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as error:
        raise ModelError("the TensorRT backends need PyCUDA; 'freespace doctor' says how to install it") from error
    except ImportError as error:  # libcuda.so.1 is not there
        raise ModelError(f"PyCUDA does not load: {error}; is an NVIDIA driver installed? See 'freespace doctor'") from error
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise ModelError(f"the NVIDIA driver does not start: {error}; see 'freespace doctor'") from error
    if not count:
        raise ModelError("the NVIDIA driver finds no GPU; see 'freespace doctor'")
    return cuda  # type: ignore[no-any-return]


class Gpu:
    """One GPU and its primary context, retained until `close`.

    Attributes:
        name: as the driver calls it.
        compute_capability: such as ``(8, 7)``.
        multiprocessors: how many.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Raises `ModelError`: no PyCUDA, no driver, no such GPU; `EngineError`: it cannot be had."""
        self.cuda = import_driver()
        if not 0 <= ordinal < self.cuda.Device.count():
            raise ModelError(f"GPU {ordinal}: this machine has {self.cuda.Device.count()}")
        device = self.cuda.Device(ordinal)
        self.name: str = device.name()
        self.compute_capability: tuple[int, int] = tuple(device.compute_capability())
        self.multiprocessors = int(device.get_attribute(self.cuda.device_attribute.MULTIPROCESSOR_COUNT))
        try:
            self._context: Any = device.retain_primary_context()
        except self.cuda.Error as error:  # another process has it for itself, or there is no memory for a context
            raise EngineError(f"{self.name}: {error}") from error

    @property
    def architecture(self) -> str:
        """As nvcc names it, such as ``sm_87``."""
        return "sm_{}{}".format(*self.compute_capability)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context current on this thread for a while. Failures of the driver come out as `EngineError`."""
        if self._context is None:
            raise EngineError(f"{self.name}: let go of already")
        try:
            self._context.push()
            try:
                yield
            finally:
                self.cuda.Context.pop()
        except self.cuda.Error as error:
            raise EngineError(f"{self.name}: {error}") from error

    def allocate(self, nbytes: int) -> DeviceMemory:
        return DeviceMemory(self.cuda.mem_alloc(max(nbytes, 1)), nbytes)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """Page-locked host memory, which the device copies from and to while the CPU goes on."""
        return np.asarray(self.cuda.pagelocked_empty(tuple(shape), dtype))

    def stream(self) -> Stream:
        return Stream(self.cuda)

    def event(self) -> Any:
        """With ``record(stream.raw)``, ``synchronize()`` and ``time_since(earlier)`` in milliseconds."""
        return self.cuda.Event()

    def module(self, cubin: bytes) -> Module:
        return Module(self.cuda.module_from_buffer(cubin))

    def free_bytes(self) -> int:
        """Device memory that nobody uses, bytes."""
        return int(self.cuda.mem_get_info()[0])

    def close(self) -> None:
        """Let go of the context, on any thread. Safe to call twice."""
        if self._context is not None:
            context, self._context = self._context, None
            # PyCUDA releases a context that is not current on its own thread only, silently, and one that is current stays on
            # the driver's stack. So: current for PyCUDA, not for the driver.
            with suppress(self.cuda.Error):  # of a device that is lost
                context.push()
                ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            context.detach()


class DeviceMemory:
    """A block of device memory; freed by `free`, not by chance."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self._allocation = allocation
        self.address = int(allocation)
        self.nbytes = nbytes

    def free(self) -> None:
        if self._allocation is not None:
            allocation, self._allocation, self.nbytes = self._allocation, None, 0
            allocation.free()


class Stream:
    """Work in order. Host arrays must be pinned and must not change until the stream has been waited for."""

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda = cuda
        self.raw: Any = cuda.Stream(NON_BLOCKING)
        self.handle = int(self.raw.handle)

    def upload(self, address: int, source: NDArray[Any]) -> None:
        self._cuda.memcpy_htod_async(address, source, self.raw)

    def download(self, target: NDArray[Any], address: int) -> None:
        self._cuda.memcpy_dtoh_async(target, address, self.raw)

    def wait_for(self, event: Any) -> None:
        """What is enqueued from now on waits for ``event``; the CPU does not."""
        self.raw.wait_for_event(event)

    def synchronize(self) -> None:
        self.raw.synchronize()

    def close(self) -> None:
        """Let go of the driver's stream now, even if a traceback somewhere still holds this one."""
        self.raw = None


class Module:
    """Loaded kernels; a `engine.cuda.launch.KernelModule`."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._functions: dict[str, Any] = {}

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[np.generic],
        stream: Stream,
    ) -> None:
        function = self._functions.get(kernel)
        if function is None:
            function = self._functions[kernel] = self._module.get_function(kernel)
        function(*args, grid=grid, block=block, stream=stream.raw)


class Graph:
    """What a stream did between `begin_capture` and `end_capture`, to be done again in one call.

    PyCUDA has no graphs, so this calls the driver itself.
    """

    def __init__(self, driver: Any, executable: ctypes.c_void_p) -> None:
        self._driver = driver
        self._executable: ctypes.c_void_p | None = executable

    def launch(self, stream: Stream) -> None:
        check(self._driver.cuGraphLaunch(self._executable, ctypes.c_void_p(stream.handle)), "cuGraphLaunch")

    def free(self) -> None:
        if self._executable is not None:
            executable, self._executable = self._executable, None
            self._driver.cuGraphExecDestroy(executable)


@contextmanager
def capturing(stream: Stream, driver: Any) -> Iterator[list[Graph]]:
    """Record instead of run: the list holds the graph afterwards. Raises `EngineError`: the work cannot be captured."""
    graphs: list[Graph] = []
    handle = ctypes.c_void_p(stream.handle)
    check(driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL_CAPTURE), "cuStreamBeginCapture")
    captured = ctypes.c_void_p()
    try:
        yield graphs
    except BaseException:
        driver.cuStreamEndCapture(handle, ctypes.byref(captured))  # or the stream stays unusable
        if captured:
            driver.cuGraphDestroy(captured)
        raise
    check(driver.cuStreamEndCapture(handle, ctypes.byref(captured)), "cuStreamEndCapture")
    executable = ctypes.c_void_p()
    code = driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), captured, ctypes.c_ulonglong(0))
    driver.cuGraphDestroy(captured)
    check(code, "cuGraphInstantiate")
    graphs.append(Graph(driver, executable))


def graph_driver() -> Any:
    """The driver's own library, for graphs. Raises `EngineError`: it has none of the calls (CUDA before 11.4)."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        library.cuGraphInstantiateWithFlags  # noqa: B018 - asks whether it is there
    except (OSError, AttributeError) as error:
        raise EngineError(f"no CUDA graphs: {error}") from error
    return library


def check(code: int, call: str) -> None:
    if code:
        raise EngineError(f"{call} failed with CUDA error {code}")
