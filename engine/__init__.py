"""Image in, score planes out.

>>> from engine import open_engine
>>> with open_engine() as engine:                      # doctest: +SKIP
...     scores = engine.segment([image]).values        # uint8 (1, planes, h, w)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract import ModelContract, ModelError, read_contract

if TYPE_CHECKING:
    from engine.base import Engine

__all__ = ["BACKENDS", "DEFAULT_MODEL", "ModelContract", "ModelError", "installed", "open_engine", "read_contract"]

DEFAULT_MODEL = Path(__file__).parent / "zoo" / "freespace.onnx"

# Backend -> (module, class, the package it wraps). CPU backends in the order of their measured speed; see
# benchmarks/results. The torch reference is never chosen by itself.
BACKENDS = {
    "openvino": ("engine.openvino_engine", "OpenVinoEngine", "openvino"),
    "onnxruntime": ("engine.onnxruntime_engine", "OnnxRuntimeEngine", "onnxruntime"),
    "torch": ("engine.torch_engine", "TorchEngine", "torch"),
}
AUTO = ("openvino", "onnxruntime")


def open_engine(model: Path | str | None = None, backend: str = "auto", precision: str = "auto", threads: int = 0) -> Engine:
    """Load a model file into a backend.

    Args:
        model: the ONNX file; None takes the one that ships with the package.
        backend: a key of `BACKENDS`, or ``auto``: the first of `AUTO` that is installed.
        precision: ``fp32``; ``bf16`` where the backend offers it; ``auto`` takes bf16 with backend ``auto`` on a processor
            that computes in it natively (AMX, AVX512-BF16), else fp32.
        threads: CPU threads for the network, 0 for the backend's own choice.

    Raises:
        ModelError: the model breaks the contract, or the backend is unknown, not installed, or cannot do the precision.
    """
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    reason = "as asked"
    if backend == "auto":
        backend, reason = choose_backend(precision)
        if precision == "auto" and backend == "openvino" and native_bf16():
            precision, reason = "bf16", f"{reason}, and this processor computes in bf16"
    precision = "fp32" if precision == "auto" else precision
    if backend not in BACKENDS:
        raise ModelError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if not installed(backend):
        raise ModelError(f"backend {backend} needs a package that is not installed; pip install {BACKENDS[backend][2]}")
    module, name, _ = BACKENDS[backend]
    engine: Engine = getattr(import_module(module), name)(contract, precision, threads)
    engine.reason = reason
    return engine


def choose_backend(precision: str) -> tuple[str, str]:
    """(backend, reason): the fastest installed one that can compute in ``precision``. Raises `ModelError` where none can."""
    candidates = ("openvino",) if precision == "bf16" else AUTO
    for name in candidates:
        if installed(name):
            return name, "auto: the fastest that is installed"
    packages = " or ".join(BACKENDS[name][2] for name in candidates)
    raise ModelError(f"no backend for {precision} is installed; pip install {packages}")


def native_bf16() -> bool:
    """Whether OpenVINO finds bf16 arithmetic in this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def installed(backend: str) -> bool:
    return find_spec(BACKENDS[backend][2]) is not None
