"""A GPU that is host memory and queues: nothing asynchronous happens before somebody waits for it.

Work given to a stream is queued and runs, in the stream's order, when the stream, an event behind it or the whole context is
waited for, or when another stream's work that waits for its event runs. A missing synchronisation therefore shows as missing
data. Fresh memory is filled with `GARBAGE`. `log` tells in which order operations really ran.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

GARBAGE = 0xCD
ALIGNMENT = 256
DEFAULT_STREAM = 0
NON_BLOCKING = 1
GLOBAL_MODE, THREAD_LOCAL_MODE, RELAXED_MODE = 0, 1, 2
CAPTURE_UNSUPPORTED = 900

MESSAGES = {
    1: "invalid argument",
    2: "out of memory",
    3: "initialization error",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    200: "device kernel image is invalid",
    201: "invalid device context",
    209: "no kernel image is available for execution on the device",
    400: "invalid resource handle",
    401: "the operation cannot be performed in the present state",
    500: "named symbol not found",
    600: "device not ready",
    700: "an illegal memory access was encountered",
    719: "unspecified launch failure",
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
    905: "dependency created on uncaptured work in another stream",
    907: "operation not permitted on an event last recorded in a capturing stream",
    908: "attempt to terminate a thread-local capture sequence from another thread",
}


class CudaError(Exception):
    """A driver call that failed. Attributes: ``code``, the CUresult."""

    def __init__(self, routine: str, code: int, note: str = "") -> None:
        super().__init__(f"{routine} failed: {MESSAGES[code]}" + (f" - {note}" if note else ""))
        self.code = code


@dataclass(eq=False)
class Operation:
    """Work on a stream. ``needs`` must be done before it; ``capture`` is set where it was recorded instead of queued."""

    stream: int
    name: str
    run: Callable[[], None]
    needs: list[Operation] = field(default_factory=list)
    done: bool = False
    capture: Capture | None = None


@dataclass(eq=False)
class Capture:
    """What a stream, and those that wait for its events, were given between begin and end of a capture."""

    origin: int
    mode: int
    thread: int
    operations: list[Operation] = field(default_factory=list)
    broken: bool = False


@dataclass(eq=False)
class Stream:
    handle: int
    flags: int
    queue: deque[Operation] = field(default_factory=deque)
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    timed: bool
    last: Operation | None = None
    time_ns: int = 0


class Gpu:
    """One device with its memory, streams, graphs and, for each thread, its stack of contexts.

    Knobs:
        memory_limit: bytes of device memory; one more is out of memory.
        lost: a CUresult that every call on memory, streams and events fails with from now on, as after a fault; an illegal
            access sets it to 700. Contexts can still be pushed, popped and given up.
        refuse_capture: beginning a capture fails with 900.
        refuse_module: a CUresult that loading a module fails with.

    To be read:
        log: ``(stream handle, operation)`` as they ran: ``htod``, ``dtoh``, ``dtod``, ``memset``, ``kernel NAME``,
            ``execute``, ``record``, ``wait``, ``graph``.
        pageable_copies: asynchronous copies from or to host memory that is not page-locked.
        collected: sizes of device allocations that the garbage collector had to free.
        released_with: live bytes at each release of the primary context.
        retained: how often the primary context is held.
    """

    def __init__(self, name: str, compute_capability: tuple[int, int], memory_limit: int, attributes: dict[str, int]) -> None:
        self.name, self.compute_capability, self.memory_limit = name, compute_capability, memory_limit
        self.attributes = {
            "COMPUTE_CAPABILITY_MAJOR": compute_capability[0],
            "COMPUTE_CAPABILITY_MINOR": compute_capability[1],
            "MULTIPROCESSOR_COUNT": 8,
            "MAX_THREADS_PER_BLOCK": 1024,
            "WARP_SIZE": 32,
            "INTEGRATED": 0,
            **attributes,
        }
        self.count = 1
        self.driver_version = 13000
        self.initialised = False
        self.lost = 0
        self.refuse_capture = False
        self.refuse_module = 0
        self.log: list[tuple[int, str]] = []
        self.pageable_copies = 0
        self.collected: list[int] = []
        self.released_with: list[int] = []
        self.retained = 0
        self.lock = threading.RLock()
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._pinned: dict[int, int] = {}
        self._streams = {DEFAULT_STREAM: Stream(DEFAULT_STREAM, 0)}
        self._captures: list[Capture] = []
        self._next_handle = 0x7F00_0000_1000  # too large for a C int: a handle cut to 32 bits is found out
        self._stacks = threading.local()
        self._all_stacks: dict[int, list[Any]] = {}

    # Contexts

    def stack(self) -> list[Any]:
        """The calling thread's contexts, the current one last."""
        if not hasattr(self._stacks, "contexts"):
            self._stacks.contexts = []
            with self.lock:
                self._all_stacks[threading.get_ident()] = self._stacks.contexts
        contexts: list[Any] = self._stacks.contexts
        return contexts

    @property
    def pushed(self) -> int:
        """Contexts that are still pushed, over all threads."""
        return sum(len(stack) for stack in self._all_stacks.values())

    def current(self) -> Any:
        """The calling thread's current context, or None."""
        stack = self.stack()
        while stack and not stack[-1]._valid:
            stack.pop()
        return stack[-1] if stack else None

    def require(self, routine: str) -> None:
        """Raises `CudaError` where the thread has no context, or the device is lost."""
        self.check(routine)
        if self.current() is None:
            raise CudaError(routine, 201)

    def check(self, routine: str, lost_too: bool = False) -> None:
        if not self.initialised:
            raise CudaError(routine, 3)
        if self.lost and not lost_too:
            raise CudaError(routine, self.lost)

    # Memory

    @property
    def live_bytes(self) -> int:
        """Bytes of device memory in use."""
        return sum(len(block) for block in self._memory.values())

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory in use."""
        return sum(self._pinned.values())

    @property
    def live_streams(self) -> int:
        """Streams that exist, without the default one."""
        return len(self._streams) - 1

    @property
    def pending(self) -> int:
        """Operations that wait in queues."""
        return sum(len(s.queue) for s in self._streams.values())

    def allocate(self, size: int) -> int:
        self.unsafe("cuMemAlloc")
        if size <= 0:
            raise CudaError("cuMemAlloc", 1)
        if self.live_bytes + size > self.memory_limit:
            raise CudaError("cuMemAlloc", 2)
        block = aligned(size)
        self._memory[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        """Free device memory; like the real one this waits for all work first, where the device still works."""
        if self.lost:
            self._memory.pop(address, None)
            return
        self.unsafe("cuMemFree")
        if address not in self._memory:
            raise CudaError("cuMemFree", 1)
        self.finish_all("cuMemFree")
        del self._memory[address]

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        """The device memory of a range. Raises `CudaError` 700 where not all of it is allocated."""
        for start, block in self._memory.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise CudaError("cuStreamSynchronize", 700)

    def pin(self, size: int) -> tuple[NDArray[np.uint8], Callable[[], None]]:
        """Page-locked host memory, and what releases it."""
        self.unsafe("cuMemHostAlloc")
        block = aligned(max(size, 1))[:size]
        address = int(block.ctypes.data)
        self._pinned[address] = size

        def release() -> None:
            self._pinned.pop(address, None)

        return block, release

    def is_pinned(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + length for start, length in self._pinned.items())

    # Streams, events and what runs on them

    def new_handle(self) -> int:
        self._next_handle += 0x100
        return self._next_handle

    def create_stream(self, flags: int) -> Stream:
        stream = Stream(self.new_handle(), flags)
        self._streams[stream.handle] = stream
        return stream

    def destroy_stream(self, handle: int) -> None:
        """Forget a stream. What is queued there runs first: a real one would get it done in its own time."""
        stream = self._streams.pop(handle)
        while stream.queue and not self.lost:
            self._step(stream.queue, "cuStreamDestroy")

    def stream(self, handle: int, routine: str) -> Stream:
        if handle not in self._streams:
            raise CudaError(routine, 400)
        return self._streams[handle]

    def enqueue(
        self, handle: int, name: str, run: Callable[[], None], routine: str, needs: tuple[Operation, ...] = ()
    ) -> Operation:
        """Queue ``run`` on a stream, or record it where the stream is capturing."""
        with self.lock:
            self.check(routine)
            stream = self.stream(handle, routine)
            operation = Operation(handle, name, run, list(needs))
            if stream.capture is not None:
                operation.capture = stream.capture
                stream.capture.operations.append(operation)
                return operation
            if handle == DEFAULT_STREAM:
                if any(s.capture is not None and not s.flags & NON_BLOCKING for s in self._streams.values()):
                    self.break_captures()
                    raise CudaError(routine, CAPTURE_UNSUPPORTED, "work on the default stream")
                others = [s for s in self._streams.values() if not s.flags & NON_BLOCKING and s.handle != handle]
                operation.needs += [s.queue[-1] for s in others if s.queue]
            elif not stream.flags & NON_BLOCKING and self._streams[DEFAULT_STREAM].queue:
                operation.needs.append(self._streams[DEFAULT_STREAM].queue[-1])
            stream.queue.append(operation)
            return operation

    def finish(self, operation: Operation, routine: str) -> None:
        """Run a stream's work up to and with ``operation``."""
        with self.lock:
            queue = self._queue_of(operation)
            while not operation.done:
                self._step(queue, routine)

    def _queue_of(self, operation: Operation) -> deque[Operation]:
        stream = self._streams.get(operation.stream)
        return stream.queue if stream is not None and operation in stream.queue else deque([operation])

    def _step(self, queue: deque[Operation], routine: str) -> None:
        first = queue[0]
        for need in first.needs:
            if not need.done:
                self.finish(need, routine)
        queue.popleft()
        first.done, first.needs = True, []
        self.execute(first, routine)

    def execute(self, operation: Operation, routine: str) -> None:
        self.log.append((operation.stream, operation.name))
        try:
            operation.run()
        except CudaError as error:
            self.lost = error.code
            raise CudaError(routine, error.code, operation.name) from error
        except Exception as error:
            self.lost = 719
            raise CudaError(routine, 719, f"{operation.name}: {error}") from error

    def finish_stream(self, handle: int, routine: str) -> None:
        with self.lock:
            stream = self.stream(handle, routine)
            if stream.capture is not None:
                stream.capture.broken = True
                raise CudaError(routine, CAPTURE_UNSUPPORTED)
            if stream.queue:
                self.finish(stream.queue[-1], routine)

    def finish_all(self, routine: str) -> None:
        with self.lock:
            for stream in list(self._streams.values()):
                if stream.queue:
                    self.finish(stream.queue[-1], routine)

    def finish_blocking(self, routine: str) -> None:
        """What a call on the default stream waits for: all streams but the non-blocking ones."""
        with self.lock:
            for stream in list(self._streams.values()):
                if stream.queue and not stream.flags & NON_BLOCKING:
                    self.finish(stream.queue[-1], routine)

    def is_done(self, handle: int) -> bool:
        """Whether a stream is idle. Asking lets one operation pass, so that a loop that polls comes to an end."""
        queue = self.stream(handle, "cuStreamQuery").queue
        if queue:
            self._step(queue, "cuStreamQuery")
            return False
        return True

    def record(self, event: Event, handle: int) -> None:
        def stamp() -> None:
            event.time_ns = time.perf_counter_ns()

        event.last = self.enqueue(handle, "record", stamp, "cuEventRecord")

    def wait(self, handle: int, event: Event) -> None:
        with self.lock:
            stream = self.stream(handle, "cuStreamWaitEvent")
            last = event.last
            if last is None:
                return
            if last.capture is not None and last.capture in self._captures:
                stream.capture = last.capture
            elif stream.capture is not None:
                stream.capture.broken = True
                raise CudaError("cuStreamWaitEvent", 905)
            self.enqueue(handle, "wait", lambda: None, "cuStreamWaitEvent", () if last.capture is not None else (last,))

    def event_done(self, event: Event, routine: str) -> bool:
        if event.last is not None and event.last.capture is not None:
            event.last.capture.broken = True
            raise CudaError(routine, 907)
        return event.last is None or event.last.done

    # Graphs

    def unsafe(self, routine: str) -> None:
        """For calls that are not allowed on a thread that is capturing: they break the capture and raise 900."""
        with self.lock:
            ours = [c for c in self._captures if c.mode == GLOBAL_MODE or (c.mode, c.thread) == (1, threading.get_ident())]
            if ours:
                self.break_captures()
                raise CudaError(routine, CAPTURE_UNSUPPORTED)

    def break_captures(self) -> None:
        for capture in self._captures:
            capture.broken = True

    def capturing(self, handle: int) -> bool:
        return self.stream(handle, "cuStreamIsCapturing").capture is not None

    def begin_capture(self, handle: int, mode: int) -> None:
        with self.lock:
            stream = self.stream(handle, "cuStreamBeginCapture")
            if self.refuse_capture or handle == DEFAULT_STREAM:
                raise CudaError("cuStreamBeginCapture", CAPTURE_UNSUPPORTED)
            if stream.capture is not None:
                raise CudaError("cuStreamBeginCapture", 401)
            if mode not in (GLOBAL_MODE, THREAD_LOCAL_MODE, RELAXED_MODE):
                raise CudaError("cuStreamBeginCapture", 1)
            stream.capture = Capture(handle, mode, threading.get_ident())
            self._captures.append(stream.capture)

    def end_capture(self, handle: int) -> list[Operation]:
        with self.lock:
            capture = self.stream(handle, "cuStreamEndCapture").capture
            if capture is None or capture.origin != handle:
                raise CudaError("cuStreamEndCapture", 401)
            if capture.mode == THREAD_LOCAL_MODE and capture.thread != threading.get_ident():
                raise CudaError("cuStreamEndCapture", 908)
            self._captures.remove(capture)
            for stream in self._streams.values():
                if stream.capture is capture:
                    stream.capture = None
            if capture.broken:
                raise CudaError("cuStreamEndCapture", 901)
            return capture.operations

    def launch_graph(self, operations: list[Operation], handle: int) -> None:
        """Queue a graph as one operation; its parts are logged as they run, on the streams they were recorded on."""

        def run() -> None:
            for operation in operations:
                if operation.name not in ("record", "wait"):
                    self.log.append((operation.stream, operation.name))
                    operation.run()

        self.enqueue(handle, "graph", run, "cuGraphLaunch")


def aligned(size: int) -> NDArray[np.uint8]:
    """``size`` bytes of `GARBAGE` at an address of `ALIGNMENT`."""
    raw = np.full(size + ALIGNMENT, GARBAGE, np.uint8)
    start = -int(raw.ctypes.data) % ALIGNMENT
    return raw[start : start + size]
