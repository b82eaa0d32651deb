"""What the tests share: a model whose answer is known from the pixels, and recordings whose content is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from engine import open_engine
from engine.base import Engine
from engine.preprocess import fit
from perception.frame import Frame
from perception.freespace import Freespace, Polygon
from perception.sinks.base import Output

# The same examples every time, so that a failure is of the change that shows it; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", derandomize=True, deadline=None)  # machines can be busy
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

Image = NDArray[np.uint8]

RED, GREEN, CYAN, BLUE = (0, 0, 200), (0, 200, 0), (200, 200, 0), (200, 0, 0)  # BGR
FPS = 10
STEP_MS = 1000 // FPS
VARIABLE_MS = [0, 100, 200, 300, 400, 1000, 2000, 3000, 3050, 3100, 3150, 3200]  # few frames, then many: no common rate
FASTSTART = {"movflags": "faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def write_model(path: Path, planes: tuple[str, ...] = ("freespace", "ego")) -> Path:
    """A model of the contract, 64x32 pixels, that decides by colour alone, pixel by pixel.

    ``freespace`` is ``sigmoid(0.2 * (green - red) - 8)`` and ``ego`` is ``sigmoid(0.2 * (green - red - blue) - 8)``, in grey
    levels: GREEN belongs to both planes, CYAN to ``freespace`` only, RED and BLUE to none, all with scores of 0 or 255 to
    within one level.
    """
    import onnx
    from onnx import TensorProto, helper

    weights = {"freespace": (0.0, 0.2, -0.2), "ego": (-0.2, 0.2, -0.2)}  # for blue, green, red
    initializers = [
        helper.make_tensor("weight", TensorProto.FLOAT, (len(planes), 3, 1, 1), [w for p in planes for w in weights[p]]),
        helper.make_tensor("bias", TensorProto.FLOAT, (len(planes),), [-8.0] * len(planes)),
        helper.make_tensor("levels", TensorProto.FLOAT, (), [255.0]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "weight", "bias"], ["logits"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
        helper.make_node("Mul", ["probability", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["scores"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 64, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.UINT8, ["N", len(planes), 32, 64])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(
        model, {"freespace.contract": "1", "freespace.planes": ",".join(planes), "freespace.resize": "stretch"}
    )
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of `write_model` with both planes."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture
def tiny_engine(tiny_model: Path) -> Iterator[Engine]:
    with open_engine(tiny_model, "onnxruntime", threads=1) as engine:
        yield engine


def road_image(width: int = 128, height: int = 64) -> Image:
    """Red above, road in the lower half: its left half cyan (freespace only), its right half green (freespace and ego).

    With the model of `write_model` and sides that are multiples of 64 and 32 both borders fall between network pixels, so
    the outlines are exact: freespace covers half of the image and ego a quarter.
    """
    image = np.empty((height, width, 3), np.uint8)
    image[:] = RED
    image[height // 2 :, : width // 2] = CYAN
    image[height // 2 :, width // 2 :] = GREEN
    # Grey on top changes no class: a picture without anything on it would be taken for a covered lens.
    things = np.random.default_rng(5).integers(0, 50, (height // 4 + 1, width // 4 + 1, 1), np.uint8)
    image += np.repeat(np.repeat(things, 4, 0), 4, 1)[:height, :width]
    return image


def numbered_image(number: int, width: int = 64, height: int = 32) -> Image:
    """Plain grey from which `number_of` reads ``number`` (0 to 23) back, also after lossy compression."""
    return np.full((height, width, 3), 16 + 9 * number, np.uint8)


def number_of(image: Image) -> int:
    return round((float(image.mean()) - 16) / 9)


def write_video(
    path: Path,
    pictures: Sequence[Image],
    stamps_ms: Sequence[int] | None = None,
    *,
    container: dict[str, str] | None = None,
    encoder: dict[str, str] | None = None,
) -> Path:
    """H.264 with a key frame every five pictures, shown at ``stamps_ms``, by default at a constant `FPS` from 0."""
    import av

    stamps_ms = stamps_ms or [i * STEP_MS for i in range(len(pictures))]
    with av.open(str(path.absolute()), "w", options=container or {}) as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"preset": "ultrafast", "crf": "4", "g": "5", "keyint_min": "5", **(encoder or {})}
        for picture, stamp in zip(pictures, stamps_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "bgr24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def numbered_video(path: Path, count: int = 20, stamps_ms: Sequence[int] | None = None, **options: dict[str, str]) -> Path:
    return write_video(path, [numbered_image(i) for i in range(count)], stamps_ms, **options)


def road_video(path: Path, count: int = 10) -> Path:
    return write_video(path, [road_image()] * count)


def stamps_of(path: Path) -> list[float]:
    """Presentation times of a video's frames in seconds, as a player sees them."""
    import av

    with av.open(str(path)) as file:
        return [float(f.pts * f.time_base) for f in file.decode(video=0)]


def cut(path: Path, fraction: float) -> Path:
    """Cut the end off the file, leaving ``fraction`` of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def write_image(path: Path, image: NDArray[np.generic]) -> Path:
    """``image`` as the suffix says; names that OpenCV cannot open itself are fine."""
    done, data = cv2.imencode(path.suffix.lower(), image)
    assert done
    path.write_bytes(data.tobytes())
    return path


def make_output(image: Image, number: int = 0, stamp_ms: int = 0, name: str = "", scores: Image | None = None) -> Output:
    """What a sink is given for ``image``: one square polygon, and ``scores`` (by default all drivable) of its size."""
    height, width = image.shape[:2]
    frame = Frame(image, number, stamp_ms * 1_000_000, "media", "clip.mp4", name=name or f"{number:06d}")
    square = np.array([[-0.5, height - 0.5], [width - 0.5, height - 0.5], [width - 0.5, -0.5], [-0.5, -0.5]])
    result = Freespace(
        seq=number,
        source=frame.source,
        frame_id="camera",
        stamp_ns=frame.stamp_ns,
        clock="media",
        size=frame.size,
        valid=True,
        state="running",
        model="0" * 64,
        backend="none",
        dropped=0,
        polygons=[Polygon("freespace", True, 0.9, float(width * height), square)],
        latency_ms={"total": 1.0},
    )
    scores = np.full((height, width), 255, np.uint8) if scores is None else scores
    return Output(frame, result, scores, fit(frame.size, (scores.shape[1], scores.shape[0]), "stretch"))


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs the command line in a process of its own, in ``tmp_path``, with no screen and its own cache folder."""

    def run(*arguments: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perception.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=cli_environment(tmp_path), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


def cli_environment(folder: Path) -> dict[str, str]:
    hidden = {"DISPLAY", "WAYLAND_DISPLAY"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {**kept, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def parts_in(folder: Path) -> list[str]:
    """Names of unfinished files anywhere below ``folder``."""
    return sorted(p.name for p in folder.rglob("*") if ".part" in p.name or ".plain" in p.name)
