"""From a model file to a TensorRT plan: parse, check, compile. Where plans are kept is `engine.plans`'s business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engine.contract import EngineError, Mismatch, ModelContract, ModelError
from engine.graph import as_fp16, is_quantised, is_symmetric, load
from engine.tensorrt_api import keeps_timings, make_logger, network_flags

PRECISIONS = ("fp32", "fp16", "int8")

Progress = Callable[[str, int, int], bool]  # phase, steps done, steps in all -> whether to go on


@dataclass(frozen=True)
class PlanOptions:
    """How to compile.

    Attributes:
        precision: ``fp32`` and ``fp16`` are made from a float model; ``int8`` takes a model with Q/DQ nodes as it is.
        batch: images at a time.
        workspace_mib: most scratch memory a layer may take; 0 for TensorRT's own limit.
        dla_core: deep learning accelerator to run on, with the GPU for what it cannot do; -1 for the GPU alone.
        version_compatible: a plan that later TensorRT releases of the same major version load as well.
        compute_capabilities: TensorRT for RTX only: targets such as ``(8, 6)``; empty for the GPU at hand.
    """

    precision: str = "fp16"
    batch: int = 1
    workspace_mib: int = 0
    dla_core: int = -1
    version_compatible: bool = False
    compute_capabilities: tuple[tuple[int, int], ...] = ()


class BuildCancelled(EngineError):
    """The build was stopped from outside."""


def prepare_onnx(contract: ModelContract, options: PlanOptions) -> bytes:
    """The ONNX bytes to compile: the model in the wanted precision and batch, every dimension fixed.

    Raises:
        ModelError: the file cannot be had so.
    """
    if options.precision not in PRECISIONS:
        raise Mismatch(f"precision {options.precision!r}: wanted {', '.join(PRECISIONS)}")
    if options.batch < 1:
        raise ModelError(f"batch {options.batch}: wanted 1 or more")
    model = load(contract, options.batch)
    if (options.precision == "int8") != is_quantised(model):
        if options.precision == "int8":
            raise Mismatch(f"{contract.path}: int8 takes a model with Q/DQ nodes; 'freespace calibrate quantize' makes one")
        raise Mismatch(f"{contract.path}: a quantised model is built with --precision int8")
    if options.precision == "int8" and not is_symmetric(model):
        raise Mismatch(f"{contract.path}: TensorRT takes symmetric int8 only; quantise with --activations int8")
    if options.precision == "fp16":
        model = as_fp16(model)
    return bytes(model.SerializeToString())


def build_plan(
    trt: ModuleType,
    source: bytes,
    options: PlanOptions,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> tuple[bytes, bytes]:
    """Compile a model.

    Args:
        source: of `prepare_onnx`.
        timing_cache: what an earlier build on this machine learned, or nothing.
        progress: called now and then; False stops the build.

    Returns:
        the plan and the new timing cache (empty where TensorRT keeps none).

    Raises:
        ModelError: the model cannot be compiled as asked.
        EngineError: TensorRT failed.
        BuildCancelled: ``progress`` said so.
    """
    logger = make_logger(trt)
    logger.errors.clear()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EngineError(f"TensorRT does not start, is the driver new enough for it? {logger.said()}") from error
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source):
        errors = [describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ModelError(f"TensorRT cannot parse the model: {'; '.join(errors) or logger.said()}")
    config = builder.create_builder_config()
    configure(trt, builder, config, options)
    cache = keeps_timings(trt) and attach_timing_cache(config, timing_cache)
    monitor = make_monitor(trt, progress) if progress and hasattr(config, "progress_monitor") else None
    if monitor:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor and monitor.cancelled:
        raise BuildCancelled("the build was stopped")
    if plan is None:
        raise EngineError(f"TensorRT cannot build the model: {logger.said()}")
    learned = config.get_timing_cache() if cache else None
    return bytes(plan), bytes(learned.serialize()) if learned else b""


def describe(error: Any) -> str:
    """A parser's error with the node it is about."""
    node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    return f"{node}: {error.desc()}" if node else str(error.desc())


def configure(trt: ModuleType, builder: Any, config: Any, options: PlanOptions) -> None:
    """Raises ModelError: this TensorRT or this machine lacks what is asked for."""
    if options.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # its ten bits of mantissa are not what was asked for
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.dla_core >= 0:
        if options.dla_core >= builder.num_DLA_cores:
            raise ModelError(f"DLA core {options.dla_core}: this machine has {builder.num_DLA_cores}")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.compute_capabilities:
        if not hasattr(trt, "ComputeCapability"):
            raise ModelError("TensorRT builds for the GPU at hand only; other targets need TensorRT for RTX")
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, (major, minor) in enumerate(options.compute_capabilities):
            target = getattr(trt.ComputeCapability, f"SM{major}{minor}", None)
            if target is None:
                raise ModelError(f"TensorRT for RTX has no target SM{major}{minor}")
            config.set_compute_capability(target, index)


def attach_timing_cache(config: Any, data: bytes) -> bool:
    """Give the build what an earlier one learned, but for that of another GPU or release. Whether it keeps a cache now."""
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def make_monitor(trt: ModuleType, progress: Progress) -> Any:
    """An ``IProgressMonitor`` that reports the outermost phases and can stop the build. Called from TensorRT's threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self.steps and not progress(phase_name, step + 1, self.steps[phase_name]):
                    self.cancelled = True
            except BaseException:  # an exception must not go through TensorRT's frames
                self.cancelled = True
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
