"""PyCUDA and TensorRT for tests on machines without a GPU, held to what their releases really expose.

    fakes = install(monkeypatch, release="10.3", gpu="Orin", compute_capability=(8, 7))

puts them where ``import pycuda.driver`` and ``import tensorrt`` find them until the test is over. The surfaces lie beside this
file as JSON; `fakes.extract_surface` makes them out of the real packages.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .gpu import CudaError, Gpu
from .libcuda import FakeLibcuda
from .pycuda_driver import make_pycuda
from .tensorrt import SURFACES, Knobs, make_tensorrt

if TYPE_CHECKING:
    import pytest

__all__ = ["SURFACES", "CudaError", "FakeLibcuda", "Fakes", "Gpu", "Knobs", "install", "make_pycuda", "make_tensorrt"]


@dataclass(frozen=True)
class Fakes:
    """What `install` put in place.

    Attributes:
        gpu: memory, streams, ``log``, leak counters and knobs of the device.
        trt: knobs, logs and counters of TensorRT.
        cuda: the module ``pycuda.driver``.
        tensorrt: the module ``tensorrt`` or ``tensorrt_rtx``.
        libcuda: what ``ctypes.CDLL("libcuda.so.1")`` gives.
    """

    gpu: Gpu
    trt: Knobs
    cuda: ModuleType
    tensorrt: ModuleType
    libcuda: FakeLibcuda

    def leaks(self) -> list[str]:
        """What is left of a test that should have cleaned up; empty when all is well."""
        found = {
            "bytes of device memory": self.gpu.live_bytes,
            "bytes of page-locked memory": self.gpu.pinned_bytes,
            "streams": self.gpu.live_streams,
            "pending operations": self.gpu.pending,
            "contexts on a stack": self.gpu.pushed,
            "holds on the primary context": self.gpu.retained,
            "graphs": len(self.libcuda.graphs) + len(self.libcuda.executables),
            "device allocations left to the garbage collector": len(self.gpu.collected),
            **{f"{kind} objects": count for kind, count in self.trt.live.items()},
        }
        return [f"{count} {what}" for what, count in found.items() if count]


def install(
    monkeypatch: pytest.MonkeyPatch,
    release: str = "11.4",
    gpu: str = "Orin",
    compute_capability: tuple[int, int] = (8, 7),
    memory_limit: int = 256 << 20,
    attributes: dict[str, int] | None = None,
) -> Fakes:
    """Put the fakes into ``sys.modules`` for the length of a test.

    Args:
        release: of TensorRT, out of `SURFACES`; ``rtx-1.7`` installs ``tensorrt_rtx`` and hides ``tensorrt``.
        gpu: name of the device.
        compute_capability: of the device.
        memory_limit: bytes of device memory.
        attributes: device attributes by their upper-case names, over the defaults.

    ``ctypes.CDLL`` gives the fake library for names that begin with ``libcuda.so``. ``import pycuda.autoinit`` fails.
    """
    device = Gpu(gpu, compute_capability, memory_limit, attributes or {})
    knobs = Knobs()
    driver, trt, libcuda = make_pycuda(device), make_tensorrt(release, device, knobs), FakeLibcuda(device)
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    package.VERSION, package.VERSION_TEXT = (2026, 1), "2026.1"  # type: ignore[attr-defined]
    package.__path__ = []
    for name, module in (("pycuda", package), ("pycuda.driver", driver)):
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=name == "pycuda")
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, trt if name == trt.__name__ else None)
    real = ctypes.CDLL

    class CDLL(real):  # type: ignore[misc, valid-type]
        def __new__(cls, name: Any = None, *args: Any, **kwargs: Any) -> Any:
            return libcuda if str(name).startswith("libcuda.so") else real(name, *args, **kwargs)

    monkeypatch.setattr(ctypes, "CDLL", CDLL)
    return Fakes(device, knobs, driver, trt, libcuda)
