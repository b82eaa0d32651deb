"""Image in, score planes out.

>>> from engine import open_engine
>>> with open_engine() as engine:                      # doctest: +SKIP
...     scores = engine.segment([image]).values        # uint8 (1, planes, h, w)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract import EngineError, ModelContract, ModelError, read_contract

if TYPE_CHECKING:
    from engine.base import Engine

__all__ = ["BACKENDS", "DEFAULT_MODEL", "ModelContract", "ModelError", "installed", "open_engine", "read_contract", "usable"]

DEFAULT_MODEL = Path(__file__).parent / "zoo" / "freespace.onnx"


@dataclass(frozen=True)
class Backend:
    """Where a backend is found and what it needs.

    Attributes:
        module: that holds ``engine_class``.
        packages: all are needed; of alternatives, divided by a bar, any.
        precisions: what it computes in.
        gpu: whether it needs an NVIDIA GPU.
    """

    module: str
    engine_class: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    gpu: bool = False


TENSORRT_PRECISIONS = ("fp32", "fp16", "int8")

# CPU backends in the order of their measured speed; see benchmarks/results. The torch reference is never chosen by itself.
BACKENDS = {
    "tensorrt": Backend("engine.tensorrt_engine", "TensorRtEngine", ("tensorrt", "pycuda"), TENSORRT_PRECISIONS, gpu=True),
    "tensorrt_rtx": Backend(
        "engine.tensorrt_engine",
        "TensorRtRtxEngine",
        ("tensorrt_rtx|tensorrt_rtx_bindings", "pycuda"),
        TENSORRT_PRECISIONS,
        gpu=True,
    ),
    "openvino": Backend("engine.openvino_engine", "OpenVinoEngine", ("openvino",), ("fp32", "bf16")),
    "onnxruntime": Backend("engine.onnxruntime_engine", "OnnxRuntimeEngine", ("onnxruntime",)),
    "torch": Backend("engine.torch_engine", "TorchEngine", ("torch",)),
}
AUTO = ("tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")

REASON = "auto: the fastest that works here"

Say = Callable[[str], None]


def open_engine(
    model: Path | str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    input_size: tuple[int, int] | None = None,
    say: Say = lambda line: None,
) -> Engine:
    """Load a model file into a backend.

    Args:
        model: the ONNX file; None takes the one that ships with the package.
        backend: a key of `BACKENDS`, or ``auto``: the first of `AUTO` that is installed and works.
        precision: as the backend offers it. ``auto``: on a GPU int8 for a quantised model, else fp16; on a processor bf16
            with backend ``auto`` where it computes in it natively (AMX, AVX512-BF16), else fp32.
        threads: CPU threads for the network, 0 for the backend's own choice.
        input_size: (width, height) of the network's input, where not the file's own.
        say: gets a line when something is worth one: a plan is built, a backend fails and another takes its place.

    Raises:
        ModelError: the model breaks the contract, or the backend is unknown, not installed, or cannot do the precision.
        EngineError: the device failed.
    """
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    if input_size:
        from engine.graph import at_size

        contract = at_size(contract, input_size)
    if backend == "auto":
        return open_first(contract, precision, threads, say)
    if backend not in BACKENDS:
        raise ModelError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if not installed(backend):
        raise ModelError(
            f"backend {backend} needs {' and '.join(missing(backend))}, which is not installed; see 'freespace doctor'"
        )
    return open_backend(contract, backend, precision, threads, say, "as asked")


def open_first(contract: ModelContract, precision: str, threads: int, say: Say) -> Engine:
    """The fastest backend that works here. Raises `ModelError` where none can compute in ``precision``."""
    failed: list[str] = []
    for name in candidates(precision):
        wanted, reason = precision, REASON
        if precision == "auto" and name == "openvino" and native_bf16():
            wanted, reason = "bf16", f"{REASON}, and this processor computes in bf16"
        try:
            return open_backend(contract, name, wanted, threads, say, "; ".join([reason, *failed]))
        except (ModelError, EngineError) as error:
            if not BACKENDS[name].gpu:
                raise
            failed.append(f"{name} failed")
            say(f"backend {name} does not work, trying the next one: {error}")
    raise nothing_for(precision)


def choose_backend(precision: str = "auto") -> tuple[str, str]:
    """(backend, reason): what ``auto`` tries first here. Raises `ModelError` where nothing can compute in ``precision``."""
    names = candidates(precision)
    if not names:
        raise nothing_for(precision)
    return names[0], REASON


def candidates(precision: str) -> list[str]:
    """The backends that ``auto`` tries, best first."""
    able = [name for name in AUTO if precision in ("auto", *BACKENDS[name].precisions)]
    return [name for name in able if installed(name) and not usable(name)]


def nothing_for(precision: str) -> ModelError:
    able = [name for name in AUTO if precision in ("auto", *BACKENDS[name].precisions)]
    if not able:
        return ModelError(f"no backend computes in {precision!r}; known: auto, fp32, bf16, fp16, int8")
    return ModelError(f"no backend for {precision} works here; install one of {', '.join(able)}, see 'freespace doctor'")


def open_backend(contract: ModelContract, name: str, precision: str, threads: int, say: Say, reason: str) -> Engine:
    backend = BACKENDS[name]
    if precision == "auto" and not backend.gpu:
        precision = "fp32"
    if precision not in ("auto", *backend.precisions):
        raise ModelError(f"backend {name} computes in {' or '.join(backend.precisions)}, not {precision}")
    engine_class = getattr(import_module(backend.module), backend.engine_class)
    engine: Engine = (
        engine_class(contract, precision, threads, say) if backend.gpu else engine_class(contract, precision, threads)
    )
    engine.reason = reason
    return engine


def native_bf16() -> bool:
    """Whether OpenVINO finds bf16 arithmetic in this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def missing(backend: str) -> list[str]:
    """The packages a backend needs and does not find."""
    return [p.split("|")[0] for p in BACKENDS[backend].packages if not any(map(find_spec, p.split("|")))]


def installed(backend: str) -> bool:
    return not missing(backend)


def usable(backend: str) -> str:
    """Why an installed backend cannot work on this machine, in one sentence; empty where nothing speaks against it."""
    if not BACKENDS[backend].gpu:
        return ""
    from engine.cuda.driver import import_driver

    try:
        import_driver()
    except ModelError as error:
        return str(error)
    return ""
