"""A ``pycuda.driver`` on a `fakes.gpu.Gpu`: the real names, the real strictness, no device."""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from . import gpu as device
from .gpu import CudaError, Gpu
from .surface import build_module, read_surface

SURFACE = "pycuda_2026_1"
RUNTIME_ERRORS = (100, 209, 301, 600)
LAUNCH_ERRORS = (701, 702, 703, 719)


def host_bytes(buffer: Any, writable: bool) -> np.ndarray:
    """The memory of a contiguous host buffer as bytes, not copied."""
    view = memoryview(buffer)
    if not view.contiguous:
        raise ValueError("ndarray is not contiguous")
    if writable and view.readonly:
        raise BufferError("buffer source array is read-only")
    array = np.asarray(buffer if isinstance(buffer, np.ndarray) else view)
    return array.reshape(-1, order="A").view(np.uint8)


def make_enum(name: str, described: dict[str, Any]) -> type:
    """Boost.Python's enums are ints with names."""
    kind = type(name, (int,), {"names": {}, "__members__": {}})
    for label, value in described["members"].items():
        kind.names[label] = kind(value)  # type: ignore[attr-defined]
        setattr(kind, label, kind.names[label])  # type: ignore[attr-defined]
    return kind


def make_pycuda(gpu: Gpu) -> ModuleType:
    """A module of the surface of `SURFACE` that works on ``gpu``.

    It raises what PyCUDA raises: ``LogicError`` without a current context on the calling thread (the stack is per thread),
    for popping an empty stack, freeing twice, unknown handles; ``MemoryError`` beyond the limit; TypeError for calls that
    Boost.Python would refuse, such as a plain int for a kernel. Device memory, streams and events belong to the context
    they were made in; given up on another thread they warn and leak, as in PyCUDA.
    """

    def translate(error: CudaError) -> Exception:
        name = (
            "RuntimeError" if error.code in RUNTIME_ERRORS else "LaunchError" if error.code in LAUNCH_ERRORS else "LogicError"
        )
        kind = module.MemoryError if error.code == 2 else getattr(module, name)
        return kind(str(error))  # type: ignore[no-any-return]

    def call(routine: str, context: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Under the device's lock, with the context checked and errors translated."""

        def wrap(body: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(body)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                with gpu.lock:
                    try:
                        if context:
                            gpu.require(routine)
                        else:
                            gpu.check(routine, lost_too=True)
                        return body(*args, **kwargs)
                    except CudaError as error:
                        raise translate(error) from error

            return guarded

        return wrap

    class Device:
        @call("cuDeviceGet", context=False)
        def __init__(self, index: int) -> None:
            if isinstance(index, str):
                raise NotImplementedError("a device by its PCI bus")
            if not 0 <= index < gpu.count:
                raise CudaError("cuDeviceGet", 101)
            self._index = index

        @staticmethod
        @call("cuDeviceGetCount", context=False)
        def count() -> int:
            return gpu.count

        def name(self) -> str:
            return gpu.name

        def pci_bus_id(self) -> str:
            return "0000:01:00.0"

        def compute_capability(self) -> tuple[int, int]:
            return gpu.compute_capability

        def total_memory(self) -> int:
            return gpu.memory_limit

        def get_attribute(self, attribute: Any) -> int:
            names = [n for n, v in module.device_attribute.names.items() if v == attribute and n in gpu.attributes]
            if not names:
                raise NotImplementedError(f"device attribute {attribute}: give it to install(attributes=...)")
            return gpu.attributes[names[0]]

        def __getattr__(self, name: str) -> int:
            if name[0] == "_" or not hasattr(module.device_attribute, name.upper()):
                raise AttributeError(name)
            return self.get_attribute(getattr(module.device_attribute, name.upper()))

        @call("cuDevicePrimaryCtxRetain", context=False)
        def retain_primary_context(self) -> Any:
            context = module.Context.__new__(module.Context)
            context._index, context._valid, context._thread = self._index, True, threading.get_ident()
            gpu.retained += 1
            return context

    class Context:
        _valid = False
        _thread = 0
        _popped = False  # by the driver's own call, so that PyCUDA's stack alone has it

        @property
        def handle(self) -> int:
            return 0x7F00_0000_0100

        @call("cuCtxPushCurrent", context=False)
        def push(self) -> None:
            if not self._valid:
                raise CudaError("cuCtxPushCurrent", 201)
            gpu.stack().append(self)

        @staticmethod
        @call("context::pop", context=False)
        def pop() -> None:
            if gpu.current() is None:
                raise CudaError("context::pop", 201, "cannot pop non-current context")
            gpu.stack().pop()

        @call("context::detach", context=False)
        def detach(self) -> None:
            if not self._valid:
                raise CudaError("context::detach", 201, "cannot detach from invalid context")
            current = gpu.current() is self
            if current or self._thread == threading.get_ident():  # else PyCUDA leaks the context
                gpu.released_with.append(gpu.live_bytes)
                gpu.retained -= 1
            if not current and self._thread == threading.get_ident():
                gpu.stack().append(self)  # PyCUDA pushes it and leaves it there
            if current and self._popped:
                gpu.stack().pop()
            self._valid = False

        @staticmethod
        @call("cuCtxSynchronize")
        def synchronize() -> None:
            if gpu._captures:
                gpu.break_captures()
                raise CudaError("cuCtxSynchronize", device.CAPTURE_UNSUPPORTED)
            gpu.finish_all("cuCtxSynchronize")

        @staticmethod
        @call("cuCtxGetDevice")
        def get_device() -> Any:
            return module.Device(gpu.current()._index)

        @staticmethod
        def get_current() -> Any:
            return gpu.current()

    class Owned:
        """What belongs to the context it was made in."""

        _context: Any = None

        def _acquire(self) -> None:
            if gpu.current() is None:
                raise CudaError("explicit_context_dependent", 201, "no currently active context?")
            self._context = gpu.current()

        def _release(self, what: str, action: Callable[[], None]) -> None:
            """Give up as PyCUDA does: nothing in a dead context, a warning and a leak in another thread's."""
            context, self._context = self._context, None
            if not context._valid:
                return
            if gpu.current() is not context and context._thread != threading.get_ident():
                warnings.warn(f"{what} in out-of-thread context could not be cleaned up", UserWarning, stacklevel=3)
                return
            try:
                action()
            except CudaError as error:
                if error.code != gpu.lost:
                    raise

    class DeviceAllocation(Owned):
        _address = 0
        _size = 0

        def __int__(self) -> int:
            return self._address

        __index__ = __int__

        def free(self) -> None:
            with gpu.lock:
                if self._context is None:
                    raise translate(CudaError("device_allocation::free", 400))
                try:
                    self._release("device_allocation", lambda: gpu.free(self._address))
                except CudaError as error:
                    raise translate(error) from error

        def __del__(self) -> None:
            if self._context is not None:
                gpu.collected.append(self._size)
                self.free()

    class Stream(Owned):
        @call("explicit_context_dependent")
        def __init__(self, flags: int = 0) -> None:
            self._acquire()
            self._stream = gpu.create_stream(flags)

        @property
        def handle(self) -> int:
            return int(self._stream.handle)

        @call("cuStreamSynchronize")
        def synchronize(self) -> None:
            gpu.finish_stream(self._stream.handle, "cuStreamSynchronize")

        @call("cuStreamQuery")
        def is_done(self) -> bool:
            return gpu.is_done(self._stream.handle)

        @call("cuStreamWaitEvent")
        def wait_for_event(self, event: Any) -> None:
            gpu.wait(self._stream.handle, event._event)

        def __del__(self) -> None:
            if self._context is not None:
                with gpu.lock:
                    self._release("stream", lambda: gpu.destroy_stream(self._stream.handle))

    class Event(Owned):
        @call("explicit_context_dependent")
        def __init__(self, flags: int = 0) -> None:
            self._acquire()
            self._event = device.Event(timed=not flags & module.event_flags.DISABLE_TIMING)

        @call("cuEventRecord")
        def record(self, stream: Any = None) -> Any:
            gpu.record(self._event, handle_of(stream))
            return self

        @call("cuEventSynchronize")
        def synchronize(self) -> Any:
            if not gpu.event_done(self._event, "cuEventSynchronize"):
                gpu.finish(self._event.last, "cuEventSynchronize")  # type: ignore[arg-type]
            return self

        @call("cuEventQuery")
        def query(self) -> bool:
            if gpu.event_done(self._event, "cuEventQuery"):
                return True
            gpu.is_done(self._event.last.stream)  # type: ignore[union-attr]
            return False

        def time_since(self, event: Any) -> float:
            return elapsed_ms(event, self)  # type: ignore[no-any-return]

        def time_till(self, event: Any) -> float:
            return elapsed_ms(self, event)  # type: ignore[no-any-return]

    class Module:
        def get_function(self, name: str) -> Any:
            with gpu.lock:
                if name not in self._host.names:  # type: ignore[attr-defined]
                    raise translate(CudaError("cuModuleGetFunction", 500))
            function = module.Function.__new__(module.Function)
            function._host, function._name, function._kinds = self._host, name, None  # type: ignore[attr-defined]
            return function

    class Function:
        _host: Any
        _name: str
        _kinds: list[str] | None

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            block, grid = kwargs.pop("block", None), kwargs.pop("grid", (1, 1))
            stream, shared = kwargs.pop("stream", None), kwargs.pop("shared", 0)
            if kwargs:
                raise ValueError(f"extra keyword arguments: {','.join(kwargs)}")
            if block is None:
                raise ValueError("must specify block size")
            values = [kernel_argument(i, a) for i, a in enumerate(args)]
            self._start(grid, block, stream, shared, values)

        def prepare(self, arg_types: Any, texrefs: Any = None) -> Any:
            self._kinds = [t if isinstance(t, str) else np.dtype(t).char for t in arg_types]
            if any(isinstance(t, str) and len(t) > 1 for t in self._kinds):
                self._kinds = list("".join(self._kinds))
            return self

        def prepared_async_call(self, grid: Any, block: Any, stream: Any, *args: Any, shared_size: int = 0) -> None:
            if self._kinds is None or len(self._kinds) != len(args):
                raise TypeError(f"prepared for {self._kinds}, called with {len(args)} arguments")
            kinds = [np.uint64 if k == "P" else np.dtype(k).type for k in self._kinds]
            self._start(
                grid, block, stream, shared_size, [k(int(a) if k is np.uint64 else a) for k, a in zip(kinds, args, strict=True)]
            )

        def prepared_call(self, grid: Any, block: Any, *args: Any, shared_size: int = 0) -> None:
            self.prepared_async_call(grid, block, None, *args, shared_size=shared_size)

        @call("cuLaunchKernel")
        def _start(self, grid: Any, block: Any, stream: Any, shared: int, values: list[Any]) -> None:
            if len(block) != 3 or not 1 <= len(grid) <= 3 or not all(type(n) is int for n in (*block, *grid)):
                raise TypeError(f"block must be three ints and grid up to three, got {block} and {grid}")
            if min(*block, *grid) < 1 or np.prod(block) > gpu.attributes["MAX_THREADS_PER_BLOCK"]:
                raise CudaError("cuLaunchKernel", 1)

            def run() -> None:
                for value in values:
                    if isinstance(value, np.uint64) and value:
                        gpu.at(int(value), 1)
                self._host.launch(self._name, (*grid, 1, 1)[:3], tuple(block), values)

            gpu.enqueue(handle_of(stream), f"kernel {self._name}", run, "cuLaunchKernel")

    def kernel_argument(place: int, argument: Any) -> Any:
        """By value, as PyCUDA packs them: NumPy scalars and device allocations; a plain int is refused."""
        if isinstance(argument, module.DeviceAllocation):
            return np.uint64(int(argument))
        if isinstance(argument, np.number):
            return argument
        if isinstance(argument, (np.ndarray, np.void)):
            return argument.copy()
        raise TypeError(f"invalid type on parameter #{place} (0-based)")

    def handle_of(stream: Any) -> int:
        if stream is None:
            return device.DEFAULT_STREAM
        if not isinstance(stream, module.Stream):
            raise TypeError(f"a Stream is wanted, got {type(stream).__name__}")
        return int(stream.handle)

    def address_of(pointer: Any) -> int:
        if isinstance(pointer, bool) or not hasattr(pointer, "__index__"):
            raise TypeError(f"a device pointer is wanted, got {type(pointer).__name__}")
        return int(pointer)

    @call("cuEventElapsedTime")
    def elapsed_ms(start: Any, end: Any) -> float:
        for event in (start._event, end._event):
            if not event.timed or event.last is None:
                raise CudaError("cuEventElapsedTime", 400)
            if not gpu.event_done(event, "cuEventElapsedTime"):
                raise CudaError("cuEventElapsedTime", 600)
        return float(end._event.time_ns - start._event.time_ns) / 1e6

    def init(flags: int = 0) -> None:
        if gpu.count == 0:
            raise translate(CudaError("cuInit", 100))
        gpu.initialised = True

    def get_driver_version() -> int:
        return gpu.driver_version

    def get_version() -> tuple[int, int, int]:
        return (13, 0, 0)

    @call("cuMemGetInfo")
    def mem_get_info() -> tuple[int, int]:
        return gpu.memory_limit - gpu.live_bytes, gpu.memory_limit

    @call("cuMemAlloc")
    def mem_alloc(size: int) -> Any:
        allocation = module.DeviceAllocation.__new__(module.DeviceAllocation)
        allocation._address, allocation._size = gpu.allocate(size), size
        allocation._acquire()
        return allocation

    @call("cuMemHostAlloc")
    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        block, release = gpu.pin(count * kind.itemsize)
        array: np.ndarray = np.asarray(_Pinned(block, release)).view(kind).reshape(shape, order=order)
        return array

    def pagelocked_zeros(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        array = pagelocked_empty(shape, dtype, order, mem_flags)
        array.fill(0)
        return array  # type: ignore[no-any-return]

    def copy(routine: str, name: str, stream: Any, run: Callable[[], None], host: np.ndarray | None) -> None:
        """Queue a copy; a stream that captures takes page-locked memory only."""
        handle = handle_of(stream)
        if host is not None and not gpu.is_pinned(int(host.ctypes.data), host.nbytes):
            gpu.pageable_copies += 1
            target = gpu.stream(handle, routine)
            if target.capture is not None:
                target.capture.broken = True
                raise CudaError(routine, device.CAPTURE_UNSUPPORTED, "host memory is not page-locked")
        gpu.enqueue(handle, name, run, routine)

    @call("cuMemcpyHtoDAsync")
    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
        address, host = address_of(dest), host_bytes(src, writable=False)

        def run() -> None:
            gpu.at(address, host.nbytes)[:] = host

        copy("cuMemcpyHtoDAsync", "htod", stream, run, host)

    @call("cuMemcpyDtoHAsync")
    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
        address, host = address_of(src), host_bytes(dest, writable=True)

        def run() -> None:
            host[:] = gpu.at(address, host.nbytes)

        copy("cuMemcpyDtoHAsync", "dtoh", stream, run, host)

    @call("cuMemcpyDtoDAsync")
    def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Any = None) -> None:
        to, origin = address_of(dest), address_of(src)

        def run() -> None:
            gpu.at(to, size)[:] = gpu.at(origin, size)

        copy("cuMemcpyDtoDAsync", "dtod", stream, run, None)

    @call("cuMemsetD8Async")
    def memset_d8_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
        address = address_of(dest)

        def run() -> None:
            gpu.at(address, size)[:] = data

        copy("cuMemsetD8Async", "memset", stream, run, None)

    def blocking(asynchronous: Callable[..., None], routine: str) -> Callable[..., None]:
        """The synchronous twin: on the default stream, done on return."""

        @call(routine)
        def run(*args: Any, **kwargs: Any) -> None:
            gpu.unsafe(routine)
            asynchronous(*args, **kwargs)
            gpu.finish_blocking(routine)

        return run

    @call("cuModuleLoadDataEx")
    def module_from_buffer(buffer: Any, options: Any = (), message_handler: Any = None) -> Any:
        gpu.unsafe("cuModuleLoadDataEx")
        if gpu.refuse_module or not bytes(buffer):
            raise CudaError("cuModuleLoadDataEx", gpu.refuse_module or 200)
        loaded = module.Module.__new__(module.Module)
        loaded._host = importlib.import_module("cuda_host").host_kernels()
        return loaded

    bodies = {name: thing for name, thing in locals().items() if name not in ("gpu", "translate", "call", "Owned")}
    bodies["memcpy_htod"] = blocking(memcpy_htod_async, "cuMemcpyHtoD")
    bodies["memcpy_dtoh"] = blocking(memcpy_dtoh_async, "cuMemcpyDtoH")
    bodies["memcpy_dtod"] = blocking(memcpy_dtod_async, "cuMemcpyDtoD")
    bodies["memset_d8"] = blocking(memset_d8_async, "cuMemsetD8")
    bodies["make_enum"] = make_enum
    module = build_module("pycuda.driver", read_surface(SURFACE), bodies, {"Error": Exception})
    return module


class _Pinned:
    """Page-locked memory behind a NumPy array; released with the last view of it."""

    def __init__(self, block: np.ndarray, release: Callable[[], None]) -> None:
        self.__array_interface__ = block.__array_interface__
        self.block = block
        weakref.finalize(self, release)
