"""The part of ``libcuda.so`` that PyCUDA leaves out: CUDA graphs, as functions of a `ctypes.CDLL`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .gpu import CudaError, Gpu, Operation


class Entry:
    """One function of the library: takes what ctypes would take, returns the CUresult.

    ``argtypes`` and ``restype`` can be set as on a real one. Without ``argtypes`` ctypes passes a Python int as a C int, so a
    handle that does not fit raises here instead of being cut.
    """

    def __init__(self, body: Callable[..., None], count: int) -> None:
        self.body, self.count = body, count
        self.argtypes: list[Any] | None = None
        self.restype: Any = ctypes.c_int

    def __call__(self, *args: Any) -> int:
        if len(args) != self.count or (self.argtypes is not None and len(self.argtypes) != self.count):
            raise TypeError(f"takes {self.count} arguments, got {len(args)} with argtypes {self.argtypes}")
        if self.argtypes is None and any(type(a) is int and not -(2**31) <= a < 2**31 for a in args):
            raise ctypes.ArgumentError("a handle was passed as a Python int without argtypes: ctypes would cut it to 32 bits")
        try:
            self.body(*map(plain, args))
        except CudaError as error:
            return error.code
        return 0


def plain(argument: Any) -> Any:
    """The int in an argument; references and pointers to where a result goes stay what they point to."""
    if hasattr(argument, "_obj"):
        return argument._obj
    if isinstance(argument, ctypes._Pointer):
        return argument.contents
    if isinstance(argument, ctypes._SimpleCData):
        return argument.value or 0
    return argument or 0


class FakeLibcuda:
    """Stands in for ``ctypes.CDLL("libcuda.so.1")``; only the names below exist.

    Attributes:
        graphs, executables: what lives, by handle. Empty at the end, or there is a leak.
        launches: how many graphs were launched.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, list[Operation]] = {}
        self.launches = 0
        self.cuCtxPopCurrent_v2 = Entry(self._pop, 1)
        self.cuStreamBeginCapture_v2 = Entry(self._begin, 2)
        self.cuStreamEndCapture = Entry(self._end, 2)
        self.cuGraphInstantiateWithFlags = Entry(self._instantiate, 3)
        self.cuGraphLaunch = Entry(self._launch, 2)
        self.cuGraphExecDestroy = Entry(self._destroy_executable, 1)
        self.cuGraphDestroy = Entry(self._destroy_graph, 1)

    def _pop(self, context: Any) -> None:
        self._gpu.check("cuCtxPopCurrent", lost_too=True)
        self._gpu.current()._popped = True

    def _begin(self, stream: int, mode: int) -> None:
        self._gpu.require("cuStreamBeginCapture")
        self._gpu.begin_capture(stream, mode)

    def _end(self, stream: int, graph: Any) -> None:
        self._gpu.require("cuStreamEndCapture")
        graph.value = 0
        operations = self._gpu.end_capture(stream)
        graph.value = self._gpu.new_handle()
        self.graphs[graph.value] = operations

    def _instantiate(self, executable: Any, graph: int, flags: int) -> None:
        self._gpu.require("cuGraphInstantiate")
        executable.value = self._gpu.new_handle()
        self.executables[executable.value] = list(self._known(self.graphs, graph))

    def _launch(self, executable: int, stream: int) -> None:
        self._gpu.require("cuGraphLaunch")
        self._gpu.launch_graph(self._known(self.executables, executable), stream)
        self.launches += 1

    def _destroy_executable(self, executable: int) -> None:
        self._known(self.executables, executable)
        del self.executables[executable]

    def _destroy_graph(self, graph: int) -> None:
        self._known(self.graphs, graph)
        del self.graphs[graph]

    @staticmethod
    def _known(table: dict[int, list[Operation]], handle: int) -> list[Operation]:
        if handle not in table:
            raise CudaError("graph", 400)
        return table[handle]
