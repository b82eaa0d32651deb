"""The loops that people run today to find drivable area, written from their published descriptions.

Each takes a BGR frame and paints it: prepare, network, interpret, draw, one after the other in the caller's thread, with the
runtimes' own defaults. Networks are none of this project's and are given by path; float weights too small to be normal numbers
are set to zero first, since a processor takes many times as long for them and any deployment would.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.errors import BadInput

if TYPE_CHECKING:
    import onnx

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Tensor = NDArray[Any]
Size = tuple[int, int]  # (width, height), pixels

GREEN, RED = (0, 255, 0), (0, 0, 255)  # BGR
PADDING_GREY = 114
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of R, G, B
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIMPLIFY_SHARE, SIMPLIFY_STEP_PX = 0.75, 0.05  # points to leave out, and by what the tolerance grows until they are
LEAST_AREA = 5e-4  # of the frame: smaller polygons are left out, as Freespace does by default
ROAD_CLASSES = np.array(
    [(40, 40, 40), (128, 64, 128), (232, 35, 244), (255, 255, 255)], np.uint8
)  # background, road, curb, mark
ROAD, ROAD_MARK = 1, 3

T = TypeVar("T")


class NotHere(Exception):
    """A loop cannot run here; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a loop finds in a frame, in the form in which it goes on with it.

    Attributes:
        masks: bool ``(H, W)`` for each class, drivable first.
        polygons: int ``(n, 2)`` in pixels, for each class those of its mask.
        classes: uint8 ``(H, W)``, indices into `ROAD_CLASSES`.
    """

    masks: Sequence[Mask] = ()
    polygons: Sequence[Sequence[NDArray[np.int32]]] = ()
    classes: Image | None = None

    @property
    def drivable(self) -> Mask | None:
        """Bool ``(H, W)``; None where the loop knows no such class."""
        if self.classes is not None:
            return np.asarray((self.classes == ROAD) | (self.classes == ROAD_MARK))
        return self.masks[0] if self.masks else None


@dataclass(frozen=True)
class Done:
    """One frame's painted copy, what was found in it, and milliseconds by stage, named as Freespace's are."""

    picture: Image
    found: Found
    stages: dict[str, float]


# -- Networks ----------------------------------------------------------------------------------------------------------


class Network(ABC):
    """A network with one float32 input ``(1, 3, h, w)``.

    Attributes:
        file: its path.
        runtime: what runs it, for a name.
        version: package and version of that.
        input_size: (width, height).
        flushed: share of its weights that were denormal and are zero now.
    """

    file: Path
    runtime: str
    version: str
    input_size: Size
    flushed: float = 0.0

    @abstractmethod
    def run(self, blob: NDArray[np.float32]) -> list[Tensor]:
        """Its outputs, in the file's order."""

    def close(self) -> None:  # noqa: B027 - most hold nothing that outlives them
        """Free the device. Safe to call twice."""


class OnnxRuntimeNetwork(Network):
    """An ONNX file on ONNX Runtime's CPU provider, its options as they come. Raises BadInput: it is none."""

    runtime = "ONNX Runtime"

    def __init__(self, file: Path) -> None:
        import onnxruntime

        model, self.flushed = read_clean(file)
        self.file, self.version = file, f"onnxruntime {onnxruntime.__version__}"
        self._session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.input_size = input_size(model, file)

    def run(self, blob: NDArray[np.float32]) -> list[Tensor]:
        return list(self._session.run(None, {self._input: blob}))


class OpenVinoNetwork(Network):
    """An OpenVINO ``.xml`` or ONNX file on the CPU, compiled for latency. Raises BadInput: it is none."""

    runtime = "OpenVINO"

    def __init__(self, file: Path) -> None:
        import openvino

        self.file, self.version = file, f"openvino {openvino.__version__.partition('-')[0]}"
        core = openvino.Core()
        try:
            if file.suffix == ".onnx":
                clean, self.flushed = read_clean(file)
                model = core.read_model(clean.SerializeToString())
            else:
                model = core.read_model(str(file))
            self._compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        except RuntimeError as error:
            raise BadInput(f"{file}: OpenVINO cannot load it: {str(error).strip().splitlines()[-1]}") from error
        self._request = self._compiled.create_infer_request()
        _, _, height, width = (int(n) for n in self._compiled.input(0).shape)
        self.input_size = (width, height)

    def run(self, blob: NDArray[np.float32]) -> list[Tensor]:
        outputs = self._request.infer([blob], share_inputs=True)
        return [np.asarray(outputs[i]) for i in range(len(self._compiled.outputs))]


class TensorRtNetwork(Network):
    """An ONNX file as a TensorRT plan in fp16 on the first GPU, built when it is opened.

    Input and outputs lie in page-locked memory and are copied on the stream that computes, as the runtime's samples do.

    Raises:
        ModelError: TensorRT, PyCUDA or a GPU is missing, or the network cannot be compiled.
        EngineError: the device fails.
        BadInput: the file is no network.
    """

    runtime = "TensorRT"

    def __init__(self, file: Path) -> None:
        from engine import tensorrt_api
        from engine.build import PlanOptions, build_plan
        from engine.contract import EngineError
        from engine.cuda.driver import Gpu

        trt = tensorrt_api.load()
        self.file, self.version = file, f"tensorrt {trt.__version__} fp16"
        model, self.flushed = read_clean(file)
        self.input_size = input_size(model, file)
        self._held: list[Any] = []  # device memory and the stream
        self._input: Any = None
        self._outputs: list[Any] = []
        self._gpu: Gpu | None = Gpu()
        try:
            with self._gpu.current():
                plan, _ = build_plan(trt, in_half(model).SerializeToString(), PlanOptions("fp16"))
                self._runtime = trt.Runtime(tensorrt_api.make_logger(trt))
                self._engine = self._runtime.deserialize_cuda_engine(plan)
                if self._engine is None:
                    raise EngineError(f"{file}: TensorRT cannot load the plan")
                self._context = self._engine.create_execution_context()
                self._stream = self._gpu.stream()
                self._held.append(self._stream)
                tensors = {}
                for index in range(self._engine.num_io_tensors):
                    name = self._engine.get_tensor_name(index)
                    kind = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
                    host = self._gpu.pinned(tuple(self._engine.get_tensor_shape(name)), kind)
                    tensors[name] = (host, self._gpu.allocate(host.nbytes))
                    self._held.append(tensors[name][1])
                    self._context.set_tensor_address(name, tensors[name][1].address)
            self._input = tensors[model.graph.input[0].name]
            self._outputs = [tensors[output.name] for output in model.graph.output]
        except BaseException:
            self.close()
            raise

    def run(self, blob: NDArray[np.float32]) -> list[Tensor]:
        from engine.contract import EngineError

        if self._gpu is None:
            raise EngineError("the network is closed")
        with self._gpu.current():
            np.copyto(self._input[0], blob)
            self._stream.upload(self._input[1].address, self._input[0])
            if not self._context.execute_async_v3(self._stream.handle):
                raise EngineError(f"{self.file}: TensorRT cannot run the plan")
            for host, device in self._outputs:
                self._stream.download(host, device.address)
            self._stream.synchronize()
        return [host.astype(np.float32) for host, _ in self._outputs]

    def close(self) -> None:
        if self._gpu is None:
            return
        gpu, self._gpu = self._gpu, None
        try:
            with gpu.current():
                self._input, self._outputs = None, []
                self._context = self._engine = self._runtime = None
                for part in reversed(self._held):
                    part.free() if hasattr(part, "free") else part.close()
                self._held.clear()
        finally:
            gpu.close()


def read_clean(file: Path) -> tuple[onnx.ModelProto, float]:
    """The model with denormal weights set to zero, and the share of weights these were. Raises BadInput: it is none."""
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and ONNX's own types
        raise BadInput(f"{file}: is no ONNX file that can be read: {str(error).strip().partition(chr(10))[0]}") from error
    small = total = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            denormal = (values != 0) & (np.abs(values) < np.finfo(np.float32).tiny)
            small, total = small + int(denormal.sum()), total + values.size
            tensor.CopyFrom(numpy_helper.from_array(np.where(denormal, np.float32(0), values), tensor.name))
    return model, small / max(total, 1)


def input_size(model: onnx.ModelProto, file: Path) -> Size:
    """(width, height) of the input ``(1, 3, h, w)``. Raises BadInput: it has another shape."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[:2] != [1, 3] or 0 in shape:
        raise BadInput(f"{file}: the input has the shape {shape}; wanted is a fixed (1, 3, h, w)")
    return shape[3], shape[2]


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16, from its float32 input to float16 outputs. Raises `ModelError`: it cannot become one."""
    import onnx
    from onnx import TensorProto, helper

    from engine.graph import as_fp16

    half = onnx.ModelProto()
    half.CopyFrom(model)
    name = half.graph.input[0].name
    for node in half.graph.node:
        node.input[:] = [f"{name}/half" if used == name else used for used in node.input]
    half.graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}/half"], to=TensorProto.FLOAT))  # which `as_fp16` turns
    for output in half.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT16
    return as_fp16(half)


# -- Loops -------------------------------------------------------------------------------------------------------------


class Loop(ABC):
    """What a demo does with each frame.

    Attributes:
        name: of the loop and its runtime.
        about: what it does, where that is published, and what is different here.
    """

    name: str
    about: str

    @abstractmethod
    def process(self, frame: Image) -> Done:
        """Find drivable area in a BGR frame uint8 ``(H, W, 3)``, which stays as it is."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Versions, hashes and sizes."""

    def close(self) -> None:  # noqa: B027 - most hold nothing that outlives them
        """Free what it holds."""


@dataclass
class StepwiseLoop(Loop):
    """A network between functions: ``prepare(frame) -> blob``, ``interpret(outputs, frame size)``, ``draw(frame, found)``."""

    name: str
    about: str
    network: Network
    prepare: Callable[[Image], NDArray[np.float32]]
    interpret: Callable[[list[Tensor], Size], Found]
    draw: Callable[[Image, Found], Image]

    def process(self, frame: Image) -> Done:
        stages: dict[str, float] = {}
        blob = timed(stages, "preprocess", lambda: self.prepare(frame))
        outputs = timed(stages, "infer", lambda: self.network.run(blob))
        found = timed(stages, "postprocess", lambda: self.interpret(outputs, (frame.shape[1], frame.shape[0])))
        return Done(timed(stages, "draw", lambda: self.draw(frame, found)), found, stages)

    def facts(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "runtime": self.network.version,
            "network": self.network.file.name,
            "sha256": sha256(self.network.file),
            "input_size": list(self.network.input_size),
            "denormal_weights_set_to_zero": round(self.network.flushed, 4),
        }

    def close(self) -> None:
        self.network.close()


def timed(stages: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    started = time.perf_counter_ns()
    result = work()
    stages[stage] = (time.perf_counter_ns() - started) / 1e6
    return result


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def twinlitenet(network: Network) -> Loop:
    """TwinLiteNet's demo (Che et al. 2023, arXiv 2307.10705).

    Resized to the network's size, RGB, divided by 255; argmax of both outputs; the masks resized to the frame and painted.
    """
    return StepwiseLoop(
        f"TwinLiteNet's demo, {network.runtime}",
        "TwinLiteNet (arXiv 2307.10705): resize, network, argmax, masks resized to the frame and painted",
        network,
        partial(planar_rgb, size=network.input_size),
        twin_masks,
        paint_masks,
    )


def supervision(network: Network) -> Loop:
    """A mask-to-polygons demo as Roboflow's supervision documents its parts, around TwinLiteNet's network.

    Contours of each class's mask at the frame's size, those of less than `LEAST_AREA` left out, Douglas-Peucker with a
    tolerance that grows until a quarter of the points is left, drawn as closed lines.
    """
    return StepwiseLoop(
        f"supervision-style polygons, {network.runtime}",
        "masks to polygons as supervision documents it (mask_to_polygons, filter_polygons_by_area, approximate_polygon, "
        "PolygonAnnotator), around TwinLiteNet's network and preparation",
        network,
        partial(planar_rgb, size=network.input_size),
        twin_polygons,
        paint_polygons,
    )


def yolop(network: Network, own: bool) -> Loop:
    """YOLOP's drawing demo (Wu et al. 2021, arXiv 2108.11250), less its boxes.

    Letterboxed with grey, RGB, normalised; the scores without the padding brought to the frame's size, argmax there; classes as
    colours, mixed with the frame through a boolean mask.

    Args:
        own: whether ``network`` is YOLOP; else its loop runs around another one, which takes plain RGB / 255.
    """
    mean, deviation = IMAGENET if own else PLAIN
    what = "its own network" if own else "TwinLiteNet's network, a much smaller one than its own, which flatters it"
    return StepwiseLoop(
        f"YOLOP-style drawing, {network.runtime}",
        "YOLOP (arXiv 2108.11250): letterbox, normalise, network, argmax at the frame's size, overlay through a boolean mask; "
        f"without its boxes; around {what}",
        network,
        partial(letterboxed, size=network.input_size, mean=mean, deviation=deviation),
        partial(full_size_masks, size=network.input_size),
        mix_masks,
    )


def road_segmentation(network: Network) -> Loop:
    """Intel's road-segmentation-adas-0001 as the Open Model Zoo documents it and demonstrates it.

    BGR at the network's size, not scaled; argmax over background, road, curb and mark; classes resized to the frame as
    colours, half and half with it.
    """
    return StepwiseLoop(
        f"Intel road-segmentation-adas-0001, {network.runtime}",
        "Open Model Zoo's road-segmentation-adas-0001: resize, network, argmax over four classes, coloured, half and half",
        network,
        partial(planar_bgr, size=network.input_size),
        class_masks,
        mix_classes,
    )


# -- Prepare -----------------------------------------------------------------------------------------------------------


def planar_rgb(frame: Image, size: Size) -> NDArray[np.float32]:
    small = cv2.resize(frame, size)
    planar = np.ascontiguousarray(small[:, :, ::-1].transpose(2, 0, 1), np.float32)[None]
    return np.asarray(planar / np.float32(255), np.float32)


def planar_bgr(frame: Image, size: Size) -> NDArray[np.float32]:
    return np.ascontiguousarray(cv2.resize(frame, size).transpose(2, 0, 1), np.float32)[None]


def letterboxed(frame: Image, size: Size, mean: Sequence[float], deviation: Sequence[float]) -> NDArray[np.float32]:
    left, top, width, height = content(frame.shape[1::-1], size)
    canvas = np.full((size[1], size[0], 3), PADDING_GREY, np.uint8)
    canvas[top : top + height, left : left + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    scaled = cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)
    scaled = (scaled - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]


def content(frame_size: Sequence[int], size: Size) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the frame within a letterbox of ``size``."""
    scale = min(size[0] / frame_size[0], size[1] / frame_size[1])
    width, height = round(frame_size[0] * scale), round(frame_size[1] * scale)
    return (size[0] - width) // 2, (size[1] - height) // 2, width, height


# -- Interpret ---------------------------------------------------------------------------------------------------------


def pairs(outputs: list[Tensor]) -> list[Tensor]:
    """The outputs that score a class against the rest, ``(1, 2, h, w)``: drivable area first, then lane lines."""
    return [output for output in outputs if output.ndim == 4 and output.shape[1] == 2]


def twin_masks(outputs: list[Tensor], frame_size: Size) -> Found:
    small = [np.argmax(scores, axis=1)[0].astype(np.uint8) * 255 for scores in pairs(outputs)]
    return Found([cv2.resize(mask, frame_size) > 100 for mask in small])


def twin_polygons(outputs: list[Tensor], frame_size: Size) -> Found:
    masks = twin_masks(outputs, frame_size).masks
    least = LEAST_AREA * frame_size[0] * frame_size[1]
    return Found(masks, [[fewer_points(p) for p in mask_polygons(mask) if cv2.contourArea(p) >= least] for mask in masks])


def mask_polygons(mask: Mask) -> list[NDArray[np.int32]]:
    """Outlines of a mask, those of holes too, int ``(n, 2)`` each with at least three points."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(outline[:, 0, :], np.int32) for outline in outlines if len(outline) >= 3]


def fewer_points(polygon: NDArray[np.int32]) -> NDArray[np.int32]:
    """At most ``1 - SIMPLIFY_SHARE`` of the points, at least three, by a tolerance that grows until there are no more."""
    wanted, tolerance, simple = max(int(len(polygon) * (1 - SIMPLIFY_SHARE)), 3), 0.0, polygon
    while len(simple) > wanted:
        tolerance += SIMPLIFY_STEP_PX
        closer = np.asarray(cv2.approxPolyDP(polygon, tolerance, True)[:, 0, :], np.int32)
        if len(closer) < 3:
            break
        simple = closer
    return simple


def full_size_masks(outputs: list[Tensor], frame_size: Size, size: Size) -> Found:
    left, top, width, height = content(frame_size, size)
    masks = []
    for scores in pairs(outputs):
        inner = scores[0, :, top : top + height, left : left + width].transpose(1, 2, 0)
        masks.append(np.argmax(cv2.resize(np.ascontiguousarray(inner), frame_size), axis=2) == 1)
    return Found(masks)


def class_masks(outputs: list[Tensor], frame_size: Size) -> Found:
    classes = np.argmax(outputs[0], axis=1)[0].astype(np.uint8)
    return Found(classes=np.asarray(cv2.resize(classes, frame_size, interpolation=cv2.INTER_NEAREST), np.uint8))


# -- Draw --------------------------------------------------------------------------------------------------------------


def paint_masks(frame: Image, found: Found) -> Image:
    painted: Image = frame.copy()
    for mask, colour in zip(found.masks, (RED, GREEN), strict=False):
        painted[mask] = colour
    return painted


def paint_polygons(frame: Image, found: Found) -> Image:
    painted: Image = frame.copy()
    for polygons, colour in zip(found.polygons, (GREEN, RED), strict=False):
        for polygon in polygons:
            cv2.polylines(painted, [polygon], True, colour, 2)
    return painted


def mix_masks(frame: Image, found: Found) -> Image:
    colours: Image = np.zeros_like(frame)
    painted: Image = frame.copy()
    for mask, colour in zip(found.masks, (GREEN, RED), strict=False):
        colours[mask] = colour
    coloured = colours.mean(axis=2) != 0
    painted[coloured] = (painted[coloured] * 0.5 + colours[coloured] * 0.5).astype(np.uint8)
    return painted


def mix_classes(frame: Image, found: Found) -> Image:
    return np.asarray(cv2.addWeighted(frame, 0.5, ROAD_CLASSES[found.classes], 0.5, 0), np.uint8)


# -- Ultralytics -------------------------------------------------------------------------------------------------------


@dataclass
class UltralyticsLoop(Loop):
    """``YOLO(weights)(frame)`` and ``plot()``; its own times by stage. Its classes are objects, none of them drivable area.

    Raises:
        NotHere: the package is not installed.
    """

    file: Path
    name: str = "Ultralytics segmentation"
    about: str = "Ultralytics segmentation: YOLO(weights)(frame)[0].plot(), as its documentation begins"

    def __post_init__(self) -> None:
        try:
            import ultralytics  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise NotHere("the package ultralytics is not installed") from error
        self._version = ultralytics.__version__
        self._model: Any = ultralytics.YOLO(str(self.file))

    def process(self, frame: Image) -> Done:
        result = self._model(frame, verbose=False)[0]
        stages = {stage: float(result.speed[their]) for their, stage in SPEEDS.items()}
        picture = timed(stages, "draw", result.plot)
        return Done(np.asarray(picture, np.uint8), Found(), stages)

    def facts(self) -> dict[str, Any]:
        runtime = f"ultralytics {self._version}"
        return {"about": self.about, "runtime": runtime, "network": self.file.name, "sha256": sha256(self.file)}


SPEEDS = {"preprocess": "preprocess", "inference": "infer", "postprocess": "postprocess"}  # theirs -> ours
