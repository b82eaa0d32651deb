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

from engine.contract import ModelContract, ModelError, read_contract

if TYPE_CHECKING:
    from engine.base import Engine

__all__ = ["BACKENDS", "DEFAULT_MODEL", "ModelContract", "ModelError", "installed", "open_engine", "read_contract", "usable"]

DEFAULT_MODEL = Path(__file__).parent / "zoo" / "freespace.onnx"
DEFAULT_INT8 = Path(__file__).parent / "zoo" / "freespace.int8.onnx"  # the fastest on x86 processors
DEFAULT_SYMMETRIC = Path(__file__).parent / "zoo" / "freespace.int8-symmetric.onnx"  # as TensorRT takes it; runs everywhere


@dataclass(frozen=True)
class Backend:
    """Where a backend is found and what it needs.

    Attributes:
        module: that holds ``engine_class``.
        packages: all are needed; of alternatives, divided by a bar, any.
        precisions: what it computes in.
        gpu: whether it needs an NVIDIA GPU.
        depth: how many frames it takes at once where throughput counts.
    """

    module: str
    engine_class: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    gpu: bool = False
    depth: int = 1


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
    "openvino": Backend("engine.openvino_engine", "OpenVinoEngine", ("openvino",), ("fp32", "bf16", "int8"), depth=3),
    "onnxruntime": Backend("engine.onnxruntime_engine", "OnnxRuntimeEngine", ("onnxruntime",), ("fp32", "int8")),
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
    throughput: bool = False,
    say: Say = lambda line: None,
) -> Engine:
    """Load a model file into a backend.

    Args:
        model: the ONNX file; None takes one that ships with the package: for ``int8`` a quantised one.
        backend: a key of `BACKENDS`, or ``auto``: the first of `AUTO` that is installed and works.
        precision: as the backend offers it. ``auto`` is int8 for a quantised model and else fp16 on a GPU, fp32 on a
            processor; but with backend ``auto`` what this processor is made for: the shipped model in int8 with VNNI, any
            model in bf16 with AMX or AVX512-BF16.
        threads: CPU threads for the network, 0 for the backend's own choice.
        input_size: (width, height) of the network's input, where not the file's own.
        throughput: on a processor, more frames a second at more latency for each (`Engine.depth`): for recordings.
        say: gets a line when something is worth one: a plan is built, a backend fails and another takes its place.

    Raises:
        ModelError: the model breaks the contract, or the backend is unknown, not installed, or cannot do the precision.
        EngineError: the device failed.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ModelError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    if backend != "auto" and not installed(backend):
        needed = " and ".join(missing(backend))
        raise ModelError(f"backend {backend} needs {needed}, which is not installed; see 'freespace doctor'")
    failed: list[str] = []
    names = candidates(precision, say) if backend == "auto" else [backend]
    for name in names:
        try:
            if backend == "auto":
                contract, wanted, reason = for_this_machine(name, model, precision)
            else:
                contract, wanted, reason = choose_model(model, name, precision), precision, "as asked"
            if input_size:
                from engine.graph import at_size

                contract = at_size(contract, input_size)
            engine = open_backend(contract, name, wanted, threads, throughput, say)
        except Exception as error:  # whatever a library of a broken installation throws
            if name == names[-1] or (isinstance(error, ModelError) and not BACKENDS[name].gpu):
                raise
            failed.append(f"{name} failed")
            say(f"backend {name} does not work, trying the next one: {error}")
            continue
        engine.reason = "; ".join([reason, *failed])
        return engine
    raise nothing_for(precision)


def for_this_machine(backend: str, model: Path | str | None, precision: str) -> tuple[ModelContract, str, str]:
    """(model, precision, reason): what ``auto`` makes of ``auto`` on this machine. Raises as `choose_model`."""
    if precision == "auto" and backend == "openvino":
        from engine.openvino_engine import native_bf16

        if model is None and fast_int8():
            return choose_model(None, backend, "int8"), "int8", f"{REASON}, and this processor is made for int8"
        contract = choose_model(model, backend, precision)
        if not contract.quantised and native_bf16():
            return contract, "bf16", f"{REASON}, and this processor computes in bf16"
        return contract, precision, REASON
    return choose_model(model, backend, precision), precision, REASON


def choose_model(model: Path | str | None, backend: str, precision: str) -> ModelContract:
    """The model asked for, or the shipped one that fits. Raises `ModelError`: it breaks the contract."""
    if model is None and precision == "int8":
        return read_contract(DEFAULT_SYMMETRIC if BACKENDS[backend].gpu else DEFAULT_INT8)
    return read_contract(Path(model) if model else DEFAULT_MODEL)


def open_backend(contract: ModelContract, name: str, precision: str, threads: int, throughput: bool, say: Say) -> Engine:
    """Load a checked model into one backend. Raises as `open_engine`."""
    from engine.contract import Mismatch

    backend = BACKENDS[name]
    if precision == "auto" and not backend.gpu:
        precision = "int8" if contract.quantised else "fp32"
    if precision not in ("auto", *backend.precisions):
        raise Mismatch(f"backend {name} computes in {' or '.join(backend.precisions)}, not {precision}")
    if contract.quantised and precision not in ("auto", "int8"):
        raise Mismatch(f"{contract.path}: quantised, so it computes in int8 and not in {precision}")
    if precision == "int8" and not contract.quantised:
        raise Mismatch(f"{contract.path}: int8 takes a model with Q/DQ nodes; 'freespace calibrate quantize' makes one")
    more: dict[str, object] = {"say": say} if backend.gpu else {}
    if throughput and backend.depth > 1:
        more["depth"] = backend.depth
    engine: Engine = getattr(import_module(backend.module), backend.engine_class)(contract, precision, threads, **more)
    return engine


def choose_backend(precision: str = "auto") -> tuple[str, str]:
    """(backend, reason): what ``auto`` tries first here. Raises `ModelError` where nothing can compute in ``precision``."""
    names = candidates(precision)
    if not names:
        raise nothing_for(precision)
    return names[0], REASON


def candidates(precision: str, say: Say = lambda line: None) -> list[str]:
    """The backends that ``auto`` tries, best first."""
    names: list[str] = []
    for name in AUTO:
        if precision not in ("auto", *BACKENDS[name].precisions):
            continue
        if installed(name):
            if problem := usable(name):
                say(f"backend {name} is installed and cannot be used: {problem}")
            else:
                names.append(name)
    return names


def nothing_for(precision: str) -> ModelError:
    able = [name for name in AUTO if precision in ("auto", *BACKENDS[name].precisions)]
    if not able:
        return ModelError(f"no backend computes in {precision!r}; known: auto, fp32, bf16, fp16, int8")
    return ModelError(f"no backend for {precision} works here; install one of {', '.join(able)}, see 'freespace doctor'")


def fast_int8() -> bool:
    """Whether this processor multiplies bytes faster than floats, and exactly: x86 with VNNI."""
    return bool({"avx512_vnni", "avx_vnni"} & cpu_flags())


def cpu_flags() -> set[str]:
    """What Linux says that this x86 processor can do; nothing elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return set()


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
