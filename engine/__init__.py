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
    "onnxruntime": ("engine.onnxruntime_engine", "OnnxRuntimeEngine", "onnxruntime"),
    "openvino": ("engine.openvino_engine", "OpenVinoEngine", "openvino"),
    "torch": ("engine.torch_engine", "TorchEngine", "torch"),
}
AUTO = ("onnxruntime", "openvino")


def open_engine(model: Path | str | None = None, backend: str = "auto", precision: str = "fp32", threads: int = 0) -> Engine:
    """Load a model file into a backend.

    Args:
        model: the ONNX file; None takes the one that ships with the package.
        backend: a key of `BACKENDS`, or ``auto``: the first of `AUTO` that is installed.
        precision: ``fp32``, or ``bf16`` where the backend offers it.
        threads: CPU threads for the network, 0 for the backend's own choice.

    Raises:
        ModelError: the model breaks the contract, or the backend is unknown, not installed, or cannot do the precision.
    """
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    if backend == "auto":
        candidates = ("openvino",) if precision == "bf16" else AUTO
        backend = next((name for name in candidates if installed(name)), "")
        if not backend:
            raise ModelError(
                f"no backend is installed for {precision}; pip install {' or '.join(BACKENDS[n][2] for n in candidates)}"
            )
        reason = f"auto: first of {', '.join(candidates)} that is installed"
    else:
        reason = "as asked"
    if backend not in BACKENDS:
        raise ModelError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if not installed(backend):
        raise ModelError(f"backend {backend} needs a package that is not installed; pip install {BACKENDS[backend][2]}")
    module, name, _ = BACKENDS[backend]
    engine: Engine = getattr(import_module(module), name)(contract, precision, threads)
    engine.reason = reason
    return engine


def installed(backend: str) -> bool:
    return find_spec(BACKENDS[backend][2]) is not None
