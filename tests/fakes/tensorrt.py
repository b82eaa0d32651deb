"""A ``tensorrt`` of a given release without its libraries: the real names and signatures, ONNX Runtime as the GPU's code.

A plan is `MAGIC`, a header in JSON (release, GPU, options) and the ONNX bytes. Executing one queues an operation on the fake
stream that reads its inputs at the tensors' addresses, when its turn comes, and writes its outputs there.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .gpu import CudaError, Gpu
from .surface import Meta, build_module, read_surface

SURFACES = {
    "10.3": "tensorrt_10_3",
    "10.13": "tensorrt_10_13",
    "11.4": "tensorrt_11_4",
    "rtx-1.7": "tensorrt_rtx_1_7",
}
MAGIC = b"fakeplan"
CACHE_MAGIC = b"faketimings"
PHASES = (("Building engine", None, 3), ("Timing tactics", "Building engine", 2))
ONNX_TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16"}
MAX_DIMS = 8


@dataclass
class Knobs:
    """What a test can make TensorRT do, and what it can read of what was done.

    Knobs:
        fail_parse, fail_build, fail_deserialize, fail_execute: a message: the call fails and logs it as an error.
        no_context: ``create_execution_context`` gives None.
        no_runtime: ``Runtime`` and ``Builder`` raise as they do where no driver is loaded.
        fail_infer_at_run: a message: executing is accepted and fails later on the stream, which loses the device.
        uncapturable: executing on a stream that captures fails, as with a layer that cannot be in a graph.
        dla_cores: how many deep learning accelerators there are.
        device_memory: bytes of activations that an engine tells of.

    To be read:
        builds: one dict per build: ``flags``, ``workspace``, ``device_type``, ``DLA_core``, ``strongly_typed`` and
            ``timing_cache``, the entries it began with.
        deserialized, executed: how often.
        live: objects by class that exist now.
        destroyed: classes in the order in which their objects went.
        violations: sentences about what works by chance at best: an engine that went before its contexts, a runtime before
            its engines (the real bindings keep the parent alive, these do not), an engine or a context given up or used
            without a current CUDA context.
    """

    fail_parse: str = ""
    fail_build: str = ""
    fail_deserialize: str = ""
    fail_execute: str = ""
    fail_infer_at_run: str = ""
    no_context: bool = False
    no_runtime: bool = False
    uncapturable: bool = False
    dla_cores: int = 0
    device_memory: int = 1 << 20
    builds: list[dict[str, Any]] = field(default_factory=list)
    deserialized: int = 0
    executed: int = 0
    live: dict[str, int] = field(default_factory=dict)
    destroyed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


@dataclass(eq=False)
class Graph:
    """A parsed ONNX file."""

    data: bytes
    tensors: list[Tensor]
    layers: int


@functools.lru_cache(maxsize=8)
def read_graph(data: bytes) -> Graph:
    """Raises ValueError: no ONNX model, or one that ONNX's checker refuses."""
    import onnx

    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:
        raise ValueError(str(error)) from error
    weights = {i.name for i in model.graph.initializer}
    tensors = []
    for value in [*(v for v in model.graph.input if v.name not in weights), *model.graph.output]:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value or -1 for d in kind.shape.dim)
        tensors.append(Tensor(value.name, ONNX_TYPES[kind.elem_type], shape, value in model.graph.input))
    return Graph(data, tensors, len(model.graph.node))


@functools.lru_cache(maxsize=8)
def session_of(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def make_tensorrt(release: str, gpu: Gpu, knobs: Knobs) -> ModuleType:
    """The module ``tensorrt`` (``tensorrt_rtx`` for ``rtx-1.7``) of a release out of `SURFACES`.

    Names and arguments that the release lacks raise AttributeError and TypeError as there; names that it has and the fake
    does not act out raise NotImplementedError. A plan loads where release and compute capability are those it was built
    with; another GPU of the same compute capability is a warning, as in TensorRT. A version-compatible plan also loads in
    other releases of the same major version, where ``engine_host_code_allowed`` is set.
    """
    surface = read_surface(SURFACES[release])
    name = "tensorrt_rtx" if release.startswith("rtx") else "tensorrt"
    version = str(surface["version"])

    def make(kind: str, *args: Any) -> Any:
        """An object that Python code cannot construct itself."""
        made = getattr(module, kind).__new__(getattr(module, kind))
        made._setup(*args)
        return made

    def error(logger: Any, message: str) -> None:
        logger.log(module.ILogger.Severity.ERROR, message)

    class Tracked:
        """Counted while it lives, noted when it goes."""

        _label = ""

        def _born(self, parent: Any = None, on_gpu: bool = True) -> None:
            self._label, self._on_gpu, self._alive = type(self).__name__, on_gpu, [True]
            self._parent_alive: list[bool] = parent._alive if parent is not None else [True]
            self._parent_label: str = parent._label if parent is not None else ""
            knobs.live[self._label] = knobs.live.get(self._label, 0) + 1

        def __del__(self) -> None:
            if not self._label:
                return
            self._alive[0] = False
            knobs.live[self._label] -= 1
            knobs.destroyed.append(self._label)
            if not self._parent_alive[0]:
                knobs.violations.append(f"{self._parent_label} went before its {self._label}")
            if self._on_gpu and gpu.current() is None:
                knobs.violations.append(f"{self._label} went without a current CUDA context")

    class Dims:
        MAX_DIMS = MAX_DIMS

        def __init__(self, shape: Sequence[int] = ()) -> None:
            if len(shape) > MAX_DIMS:
                raise ValueError(f"at most {MAX_DIMS} dimensions")
            self._shape = tuple(int(n) for n in shape)

        def __len__(self) -> int:
            return len(self._shape)

        def __getitem__(self, index: Any) -> Any:
            return self._shape[index]

        def __eq__(self, other: object) -> bool:
            return tuple(other) == self._shape if hasattr(other, "__len__") else NotImplemented  # type: ignore[arg-type]

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return repr(self._shape)

    class ILogger:
        def log(self, severity: Any, msg: str) -> None:
            raise RuntimeError('Tried to call pure virtual function "ILogger::log"')

    class Logger:
        def __init__(self, min_severity: Any = None) -> None:
            self._min_severity = min_severity or module.ILogger.Severity.WARNING

        min_severity = property(lambda self: self._min_severity, lambda self, v: setattr(self, "_min_severity", v))

        def log(self, severity: Any, msg: str) -> None:
            if severity <= self._min_severity:
                print(f"[TRT] [{severity.name[0]}] {msg}")

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

        def step_complete(self, phase_name: str, step: int) -> bool:
            raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

        def phase_finish(self, phase_name: str) -> None:
            raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')

    class IHostMemory:
        nbytes = property(lambda self: ctypes.sizeof(self))
        dtype = property(lambda self: module.DataType.INT8)

    def host_memory(data: bytes) -> Any:
        """A buffer of ``data``; no ``len()``, no index, as there."""

        def refuse(self: Any, *_: Any) -> Any:
            raise TypeError("'IHostMemory' object is not a sequence")

        space = {"_type_": ctypes.c_ubyte, "_length_": len(data), "__len__": refuse, "__getitem__": refuse, "__iter__": refuse}
        mixed = type("BufferMeta", (type(ctypes.Array), Meta), {})
        kind = mixed("IHostMemory", (module.IHostMemory, ctypes.Array), space)
        kind._module_class = kind
        made = kind.__new__(kind)
        ctypes.memmove(ctypes.addressof(made), data, len(data))
        return made

    class ITimingCache(Tracked):
        def _setup(self, content: dict[str, Any]) -> None:
            self._content = content
            self._born(on_gpu=False)

        def serialize(self) -> Any:
            return host_memory(CACHE_MAGIC + json.dumps(self._content).encode())

        def reset(self) -> bool:
            self._content = {**self._content, "entries": 0}
            return True

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            self._content["entries"] += input_cache._content["entries"]
            return True

    class IOptimizationProfile:
        def _setup(self) -> None:
            self._shapes: dict[str, list[Any]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            low, middle, high = (tuple(s) for s in (min, opt, max))
            if not len(low) == len(middle) == len(high):
                raise ValueError("min, opt and max differ in rank")
            self._shapes[input] = [low, middle, high]

        def get_shape(self, input: str) -> list[Any]:
            return [module.Dims(s) for s in self._shapes[input]]

        def __bool__(self) -> bool:
            return all(a <= b <= c for low, mid, high in self._shapes.values() for a, b, c in zip(low, mid, high, strict=True))

    class ITensor:
        def _setup(self, tensor: Tensor) -> None:
            self._tensor, self._name, self._shape = tensor, tensor.name, tensor.shape

        name = property(lambda self: self._name, lambda self, v: setattr(self, "_name", v))
        shape = property(lambda self: module.Dims(self._shape), lambda self, v: setattr(self, "_shape", tuple(v)))
        dtype = property(lambda self: getattr(module.DataType, self._tensor.dtype))
        is_network_input = property(lambda self: self._tensor.is_input)
        is_network_output = property(lambda self: not self._tensor.is_input)
        is_shape_tensor = False
        is_execution_tensor = True

    class INetworkDefinition(Tracked):
        def _setup(self, flags: int) -> None:
            self._flags, self._graph = flags, Graph(b"", [], 0)
            self._born(on_gpu=False)

        def _tensors(self, inputs: bool) -> list[Tensor]:
            return [t for t in self._graph.tensors if t.is_input == inputs]

        num_inputs = property(lambda self: len(self._tensors(True)))
        num_outputs = property(lambda self: len(self._tensors(False)))
        num_layers = property(lambda self: self._graph.layers)
        flags = property(lambda self: self._flags)
        has_implicit_batch_dimension = False
        name = "network"

        def get_flag(self, flag: Any) -> bool:
            return bool(self._flags >> int(flag) & 1)

        def get_input(self, index: int) -> Any:
            return make("ITensor", self._tensors(True)[index])

        def get_output(self, index: int) -> Any:
            return make("ITensor", self._tensors(False)[index])

    class ParserError:
        def _setup(self, text: str, operator: str) -> None:
            self._text, self._operator = text, operator

        def code(self) -> Any:
            return getattr(module.ErrorCode, "MODEL_DESERIALIZE_FAILED", None)

        def desc(self) -> str:
            return self._text

        def line(self) -> int:
            return 1

        def node(self) -> int:
            return -1

        def file(self) -> str:
            return "ModelImporter.cpp"

        def func(self) -> str:
            return "parseGraph"

        def node_name(self) -> str:
            return ""

        def node_operator(self) -> str:
            return self._operator

        def local_function_stack(self) -> list[str]:
            return []

        def local_function_stack_size(self) -> int:
            return 0

    class OnnxParser(Tracked):
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._logger = network, logger
            self._errors: list[Any] = []
            self._born(on_gpu=False)

        num_errors = property(lambda self: len(self._errors))

        def parse(self, model: Any, path: str | None = None) -> bool:
            try:
                if knobs.fail_parse:
                    raise ValueError(knobs.fail_parse)
                self._network._graph = read_graph(bytes(model))
            except ValueError as reason:
                self._errors.append(make("ParserError", str(reason), ""))
                error(self._logger, f"ModelImporter.cpp: {reason}")
                return False
            return True

        def parse_from_file(self, model: str) -> bool:
            with open(model, "rb") as file:
                return self.parse(file.read())

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def clear_errors(self) -> None:
            self._errors = []

    class IBuilderConfig(Tracked):
        def _setup(self, logger: Any) -> None:
            self._logger = logger
            self._born(on_gpu=False)
            self.reset()

        def reset(self) -> None:
            self._flags, self._cache = 1 << int(module.BuilderFlag.TF32), None
            self._pools: dict[str, int] = {}
            self._profiles: list[Any] = []
            self._targets: list[Any] = []
            self._device_type, self._core = module.DeviceType.GPU, -1
            self._monitor = None

        flags = property(lambda self: self._flags, lambda self, v: setattr(self, "_flags", v))
        default_device_type = property(lambda self: self._device_type, lambda self, v: setattr(self, "_device_type", v))
        DLA_core = property(lambda self: self._core, lambda self, v: setattr(self, "_core", v))
        progress_monitor = property(lambda self: self._monitor, lambda self, v: setattr(self, "_monitor", v))
        num_optimization_profiles = property(lambda self: len(self._profiles))
        builder_optimization_level = 3
        avg_timing_iterations = 1
        max_aux_streams = -1
        max_num_tactics = -1
        profile_stream = 0
        profiling_verbosity = property(
            lambda self: getattr(self, "_verbosity", module.ProfilingVerbosity.LAYER_NAMES_ONLY),
            lambda self, v: setattr(self, "_verbosity", v),
        )
        hardware_compatibility_level = property(
            lambda self: getattr(self, "_hardware", module.HardwareCompatibilityLevel.NONE),
            lambda self, v: setattr(self, "_hardware", v),
        )

        def set_flag(self, flag: Any) -> None:
            self._flags |= 1 << int(flag)

        def clear_flag(self, flag: Any) -> None:
            self._flags &= ~(1 << int(flag))

        def get_flag(self, flag: Any) -> bool:
            return bool(self._flags >> int(flag) & 1)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[pool.name] = int(pool_size)

        def get_memory_pool_limit(self, pool: Any) -> int:
            return int(self._pools.get(pool.name, gpu.memory_limit))

        def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
            data = bytes(serialized_timing_cache)
            if not data:
                return make("ITimingCache", {"release": version, "gpu": gpu.name, "entries": 0})
            try:
                if not data.startswith(CACHE_MAGIC):
                    raise ValueError
                return make("ITimingCache", json.loads(data[len(CACHE_MAGIC) :]))
            except ValueError:
                error(self._logger, "createTimingCache: the serialized timing cache is corrupt")
                return None

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache._content["release"] != version or (cache._content["gpu"] != gpu.name and not ignore_mismatch):
                error(self._logger, "setTimingCache: the timing cache is of another device or release")
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1 if profile else -1

        def _grow(self, count: int) -> None:
            none = module.ComputeCapability.NONE
            self._targets = (self._targets + [none] * count)[:count]

        num_compute_capabilities = property(lambda self: len(self._targets), _grow)

        def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
            if not 0 <= index < len(self._targets):
                error(self._logger, "setComputeCapability: index out of range, set num_compute_capabilities first")
                return False
            self._targets[index] = compute_capability
            return True

        def get_compute_capability(self, index: int) -> Any:
            return self._targets[index]

    class Builder(Tracked):
        def __init__(self, logger: Any) -> None:
            if knobs.no_runtime:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self._born(on_gpu=False)

        logger = property(lambda self: self._logger)
        num_DLA_cores = property(lambda self: knobs.dla_cores)
        max_DLA_batch_size = 1
        max_threads = 1
        platform_has_fast_fp16 = True
        platform_has_fast_int8 = True
        platform_has_tf32 = True

        def create_network(self, flags: int = 0) -> Any:
            return make("INetworkDefinition", int(flags))

        def create_builder_config(self) -> Any:
            return make("IBuilderConfig", self._logger)

        def create_optimization_profile(self) -> Any:
            return make("IOptimizationProfile")

        def reset(self) -> None:
            pass

        def is_network_supported(self, network: Any, config: Any) -> bool:
            return bool(network._graph.data)

        def build_serialized_network(self, network: Any, config: Any, kernel_text: Any = None) -> Any:
            reason = self._refusal(network, config)
            if reason:
                error(self._logger, f"IBuilder::buildSerializedNetwork: Error Code 10: Internal Error ({reason})")
                return None
            if not report(config._monitor):
                error(self._logger, "IBuilder::buildSerializedNetwork: the build was cancelled by the progress monitor")
                return None
            typed = int(getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", 0))
            flags = [n for n, f in module.BuilderFlag.__members__.items() if config.get_flag(f)]
            knobs.builds.append(
                {
                    "flags": flags,
                    "workspace": config._pools.get("WORKSPACE"),
                    "device_type": config._device_type.name,
                    "DLA_core": config._core,
                    "strongly_typed": version[:2] != "10" or bool(network._flags >> typed & 1),
                    "timing_cache": config._cache is not None and config._cache._content["entries"],
                }
            )
            if config._cache is None and "DISABLE_TIMING_CACHE" not in flags:
                config._cache = config.create_timing_cache(b"")
            if config._cache is not None:
                config._cache._content["entries"] += network._graph.layers
            targets = [divmod(int(t), 10) for t in config._targets if int(t) >= 10] or [gpu.compute_capability]
            header = {
                "release": version,
                "gpu": gpu.name if not config._targets else "",
                "compute_capabilities": targets,
                "version_compatible": "VERSION_COMPATIBLE" in flags,
                "profiles": [p._shapes for p in config._profiles],
            }
            return host_memory(pack(header, network._graph.data))

        def _refusal(self, network: Any, config: Any) -> str:
            """Why the network cannot be built, or nothing."""
            if knobs.fail_build:
                return knobs.fail_build
            if not network._graph.data:
                return "the network has no layers"
            if config._device_type.name == "DLA" and not 0 <= config._core < knobs.dla_cores:
                return f"DLA core {config._core} is not available"
            free = [t.name for t in network._graph.tensors if t.is_input and -1 in t.shape]
            given = {n for p in config._profiles for n in p._shapes}
            if set(free) - given:
                return f"network has dynamic shape inputs ({', '.join(free)}), but no optimization profile has been defined"
            if config._targets and any(t.name == "NONE" for t in config._targets):
                return "a compute capability is not set"
            return ""

    def report(monitor: Any) -> bool:
        """Tell a progress monitor about a build, as nested phases. Whether the build may go on."""
        if monitor is None:
            return True
        going = True
        (outer, _, outer_steps), (inner, parent, inner_steps) = PHASES
        monitor.phase_start(outer, None, outer_steps)
        for step in range(outer_steps):
            if step == 1:
                monitor.phase_start(inner, parent, inner_steps)
                for small in range(inner_steps):
                    going = going and bool(monitor.step_complete(inner, small))
                monitor.phase_finish(inner)
            going = going and bool(monitor.step_complete(outer, step))
            if not going:
                break
        monitor.phase_finish(outer)
        return going

    class Runtime(Tracked):
        def __init__(self, logger: Any) -> None:
            if knobs.no_runtime:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self._born(on_gpu=False)

        logger = property(lambda self: self._logger)
        num_DLA_cores = property(lambda self: knobs.dla_cores)
        DLA_core = -1
        engine_host_code_allowed = False
        max_threads = 1

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            try:
                if knobs.fail_deserialize:
                    raise ValueError(knobs.fail_deserialize)
                header, data = unpack(bytes(serialized_engine))
                foreign = header["release"] != version
                same_major = header["release"].split(".")[0] == version.split(".")[0]
                allowed = header["version_compatible"] and same_major and self.engine_host_code_allowed
                if foreign and not allowed:
                    raise ValueError(
                        "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                        f"{header['release']} got {version}, please rebuild."
                    )
                built_for = [tuple(c) for c in header["compute_capabilities"]]
                if gpu.compute_capability not in built_for:
                    have, want = (".".join(map(str, c)) for c in (gpu.compute_capability, built_for[0]))
                    raise ValueError(
                        "The engine plan file is generated on an incompatible device, expecting compute "
                        f"{have} got compute {want}, please rebuild."
                    )
                if header["version_compatible"] and not self.engine_host_code_allowed:
                    raise ValueError("the plan contains host code and engine_host_code_allowed is not set")
            except ValueError as reason:
                error(self._logger, f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({reason})")
                return None
            if header["gpu"] not in ("", gpu.name):
                text = "Using an engine plan file across different models of devices is not recommended"
                self._logger.log(module.ILogger.Severity.WARNING, text)
            knobs.deserialized += 1
            return make("ICudaEngine", self, header, read_graph(data))

    class ICudaEngine(Tracked):
        def _setup(self, runtime: Any, header: dict[str, Any], graph: Graph) -> None:
            self._header, self._graph, self._logger = header, graph, runtime._logger
            self._born(runtime)

        name = "network"
        num_io_tensors = property(lambda self: len(self._graph.tensors))
        num_layers = property(lambda self: self._graph.layers)
        num_optimization_profiles = property(lambda self: max(1, len(self._header["profiles"])))
        num_aux_streams = 0
        refittable = False
        device_memory_size = property(lambda self: knobs.device_memory)
        device_memory_size_v2 = property(lambda self: knobs.device_memory)

        def _tensor(self, name: str) -> Tensor | None:
            found = next((t for t in self._graph.tensors if t.name == name), None)
            if found is None:
                error(self._logger, f"ICudaEngine: Error Code 3: API Usage Error (no tensor {name!r})")
            return found

        def get_tensor_name(self, index: int) -> Any:
            return self._graph.tensors[index].name if 0 <= index < len(self._graph.tensors) else None

        def get_tensor_mode(self, name: str) -> Any:
            tensor = self._tensor(name)
            return module.TensorIOMode.NONE if tensor is None else mode(tensor)

        def get_tensor_shape(self, name: str) -> Any:
            tensor = self._tensor(name)
            return module.Dims(tensor.shape if tensor else ())

        def get_tensor_dtype(self, name: str) -> Any:
            tensor = self._tensor(name)
            return getattr(module.DataType, tensor.dtype if tensor else "FLOAT")

        def get_tensor_location(self, name: str) -> Any:
            return module.TensorLocation.DEVICE

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            tensor = self._tensor(name)
            shapes = self._header["profiles"][profile_index].get(name) if self._header["profiles"] else None
            return [module.Dims(s) for s in shapes or [tensor.shape if tensor else ()] * 3]

        def serialize(self) -> Any:
            return host_memory(pack(self._header, self._graph.data))

        def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any:
            if knobs.no_context:
                error(
                    self._logger,
                    "ICudaEngine::createExecutionContext: Error Code 2: OutOfMemory (Requested size was too large.)",
                )
                return None
            return make("IExecutionContext", self)

    def mode(tensor: Tensor) -> Any:
        return module.TensorIOMode.INPUT if tensor.is_input else module.TensorIOMode.OUTPUT

    class IExecutionContext(Tracked):
        def _setup(self, engine: Any) -> None:
            self._graph, self._header, self._logger = engine._graph, engine._header, engine._logger
            self._shapes = {t.name: t.shape for t in self._graph.tensors if t.is_input}
            self._addresses: dict[str, int] = {}
            self._settled = False
            self._born(engine)

        name = "context"
        active_optimization_profile = 0
        all_binding_shapes_specified = property(lambda self: not any(-1 in s for s in self._shapes.values()))
        all_shape_inputs_specified = True

        def _find(self, name: str) -> Tensor | None:
            found = next((t for t in self._graph.tensors if t.name == name), None)
            if found is None:
                error(self._logger, f"IExecutionContext: Error Code 3: API Usage Error (no tensor {name!r})")
            return found

        def set_input_shape(self, name: str, shape: Any) -> bool:
            tensor = self._find(name)
            if tensor is None or not tensor.is_input:
                return False
            wanted = tuple(int(n) for n in shape)
            limits = self._header["profiles"][0].get(name) if self._header["profiles"] else None
            low, high = (limits[0], limits[2]) if limits else (tensor.shape, tensor.shape)
            if len(wanted) != len(tensor.shape) or not all(a <= n <= b for a, n, b in zip(low, wanted, high, strict=True)):
                error(
                    self._logger, f"setInputShape: {wanted} is outside of the profile [{tuple(low)}, {tuple(high)}] of {name}"
                )
                return False
            self._settled = self._settled and self._shapes[name] == wanted
            self._shapes[name] = wanted
            return True

        def get_tensor_shape(self, name: str) -> Any:
            tensor = self._find(name)
            return module.Dims(() if tensor is None else self._shape(tensor))

        def _shape(self, tensor: Tensor) -> tuple[int, ...]:
            """With the batch of the inputs where the file leaves it free; that is all that is inferred here."""
            if tensor.is_input:
                return tuple(self._shapes[tensor.name])
            batch = next(iter(self._shapes.values()))[0]
            return (batch if tensor.shape[0] == -1 else tensor.shape[0], *tensor.shape[1:])

        def infer_shapes(self) -> list[str]:
            return [n for n, s in self._shapes.items() if -1 in s]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if self._find(name) is None:
                return False
            self._addresses[name] = int(memory)
            return True

        def get_tensor_address(self, name: str) -> int:
            return self._addresses.get(name, 0)

        def update_device_memory_size_for_shapes(self) -> int:
            return knobs.device_memory

        def execute_async_v3(self, stream_handle: int) -> bool:
            if not self._parent_alive[0]:
                knobs.violations.append("IExecutionContext used after its ICudaEngine went")
            if gpu.current() is None:
                knobs.violations.append("execute_async_v3 without a current CUDA context")
            try:
                self._enqueue(int(stream_handle))
            except (ValueError, CudaError) as reason:
                error(self._logger, f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error ({reason})")
                return False
            return True

        def _enqueue(self, handle: int) -> None:
            with gpu.lock:
                capturing = gpu.capturing(handle)
                if capturing and (knobs.uncapturable or not self._settled):
                    gpu.break_captures()
                    raise ValueError(
                        "run once outside of the capture first" if not self._settled else "a layer cannot be captured"
                    )
                if knobs.fail_execute:
                    raise ValueError(knobs.fail_execute)
                unset = [t.name for t in self._graph.tensors if not self._addresses.get(t.name)]
                if unset or self.infer_shapes():
                    raise ValueError(f"address or shape not set: {unset} {self.infer_shapes()}")
                bound = [(t, self._shape(t), self._addresses[t.name]) for t in self._graph.tensors]
                self._settled, data = True, self._graph.data  # a graph must not keep the context alive
                gpu.enqueue(handle, "execute", lambda: run(data, bound), "enqueueV3")

    def run(data: bytes, bound: list[tuple[Tensor, tuple[int, ...], int]]) -> None:
        """What an engine does when its turn on the stream comes."""
        if knobs.fail_infer_at_run:
            raise RuntimeError(knobs.fail_infer_at_run)
        memory = {}
        for tensor, shape, address in bound:
            kind = np.dtype(module.nptype(getattr(module.DataType, tensor.dtype)))
            memory[tensor.name] = gpu.at(address, int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)
        session = session_of(data)
        outputs = [t.name for t, _, _ in bound if not t.is_input]
        results = session.run(outputs, {t.name: memory[t.name].copy() for t, _, _ in bound if t.is_input})
        for output, result in zip(outputs, results, strict=True):
            memory[output][...] = result
        knobs.executed += 1

    def volume(iterable: Any) -> int:
        return int(np.prod(list(iterable), dtype=np.int64))

    def nptype(trt_type: Any) -> Any:
        known = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64"}
        known |= {"BOOL": "bool", "UINT8": "uint8"}
        if trt_type.name not in known:
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return np.dtype(known[trt_type.name]).type

    def get_nv_onnx_parser_version() -> int:
        return int(version.split(".")[0]) * 10000

    skipped = ("surface", "version", "gpu", "knobs", "name", "make", "Tracked")
    module = build_module(name, surface, {n: b for n, b in locals().items() if n not in skipped}, {})
    module.__version__ = version  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sizes = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "INT4": 0.5, "FP4": 0.5}
    module.DataType.itemsize = property(lambda this: sizes.get(this.name, 1))
    return module


def pack(header: dict[str, Any], data: bytes) -> bytes:
    """A plan: magic, length and CRC of the rest, header, ONNX bytes."""
    text = json.dumps(header).encode()
    body = len(text).to_bytes(4, "little") + text + data
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unpack(plan: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and ONNX bytes. Raises ValueError: no plan, or a damaged one."""
    start = len(MAGIC)
    body = plan[start + 4 :]
    if plan[:start] != MAGIC or plan[start : start + 4] != zlib.crc32(body).to_bytes(4, "little"):
        raise ValueError("Serialization assertion stdArchiveReader.magic failed: the plan is corrupt")
    length = int.from_bytes(body[:4], "little")
    return json.loads(body[4 : 4 + length]), body[4 + length :]
