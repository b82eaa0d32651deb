"""What differs between TensorRT's releases and flavours, in one place: how to import it, and how to hear what it says.

``tensorrt`` 10.x and 11.x and TensorRT for RTX share the interface used here: strongly typed networks, tensors by name. In 10.x
strong typing is a flag, later it is the only way.
"""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from engine.contract import ModelError

FLAVOURS = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}  # name -> modules, first wins
OLDEST = 10
MESSAGES_KEPT = 4


def module_name(flavour: str) -> str | None:
    """The installed module of a flavour, or None."""
    return next((name for name in FLAVOURS[flavour] if find_spec(name)), None)


def load(flavour: str = "tensorrt") -> ModuleType:
    """Import TensorRT.

    Raises:
        ModelError: it is not installed, does not load, or is older than 10.
    """
    name = module_name(flavour)
    if name is None:
        raise ModelError(f"backend {flavour} needs a package that is not installed; 'freespace doctor' names it")
    try:
        trt = import_module(name)
    except Exception as error:  # a missing library shows as ImportError, OSError, RuntimeError or AttributeError
        raise ModelError(f"{name} is installed but does not load: {error}; see 'freespace doctor'") from error
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) < OLDEST:
        raise ModelError(f"TensorRT {trt.__version__} is too old, {OLDEST}.0 or newer is needed; see docs/tensorrt.md")
    return trt


@functools.cache  # TensorRT wants the same one for all it makes in a process
def make_logger(trt: ModuleType) -> Any:
    """The ``ILogger`` of this process: keeps the last errors, and ``said()`` gives them up as the text of an exception."""

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors = [*self.errors, message.strip()][-MESSAGES_KEPT:]

        def said(self) -> str:
            errors, self.errors = self.errors, []
            return "; ".join(errors) or "TensorRT gave no reason"

    return Listener()


def network_flags(trt: ModuleType) -> int:
    """Flags for a strongly typed network in this release."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def keeps_timings(trt: ModuleType) -> bool:
    """Whether builds learn from one another; TensorRT for RTX times kernels when a plan is loaded, not when it is built."""
    return trt.__name__ not in FLAVOURS["tensorrt_rtx"]
