"""The CUDA kernels, run as host code: what they compute, how they are launched, how they are compiled and cached."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from cuda_host import HostModule, host_compiler, host_kernels, kernel_names, pack
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.contract import ModelError
from engine.cuda import compile as compiling
from engine.cuda import launch
from engine.cuda.launch import BT601, BT601_FULL, BT709, BT709_FULL, DeviceTables
from engine.cuda.resampling import Axis, Tables, halving_tables, resampling_tables
from engine.preprocess import PADDING_GREY, fit, resample

Image = NDArray[np.uint8]

needs_compiler = pytest.mark.skipif(host_compiler() is None, reason="no C++ compiler to run the kernels on the CPU")
# Noise has no simpler form: to look for one takes minutes.
few = settings(max_examples=40, deadline=None, phases=(Phase.reuse, Phase.generate))
modes = st.sampled_from(["stretch", "letterbox"])
seeds = st.integers(0, 2**32 - 1)
frames = st.tuples(st.integers(1, 300), st.integers(1, 300))
even_frames = st.tuples(st.integers(1, 120), st.integers(1, 120)).map(lambda size: (2 * size[0], 2 * size[1]))
inputs = st.tuples(st.integers(1, 90), st.integers(1, 70))
LARGE = [
    ((3840, 2160), (640, 360)),
    ((2160, 3840), (640, 360)),
    ((4001, 2999), (640, 360)),
    ((1921, 1083), (320, 180)),
    ((2048, 2048), (128, 128)),
    ((320, 180), (640, 360)),
]


class Guarded:
    """An array for a kernel to write to, between bytes that it must not touch."""

    MARGIN = 256

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> None:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._memory = np.full(nbytes + 2 * self.MARGIN, 0xA5, np.uint8)
        self.array = self._memory[self.MARGIN : self.MARGIN + nbytes].view(dtype).reshape(shape)
        self.address = self.array.ctypes.data

    def checked(self) -> NDArray[np.generic]:
        assert np.all(self._memory[: self.MARGIN] == 0xA5)
        assert np.all(self._memory[-self.MARGIN :] == 0xA5)
        return self.array


def noise(rng: np.random.Generator, *shape: int) -> Image:
    return rng.integers(0, 256, shape, np.uint8)


def pitched(rng: np.random.Generator, plane: Image, margin: int) -> tuple[Image, int]:
    """Memory with the rows of ``plane`` spread ``margin`` bytes apart, noise between them, and its pitch."""
    rows = plane.reshape(len(plane), -1)
    memory = noise(rng, len(rows), rows.shape[1] + margin)
    memory[:, : rows.shape[1]] = rows
    return memory, memory.shape[1]


def expected_input(image: Image, size: tuple[int, int], mode: str) -> Image:
    out = np.zeros((size[1], size[0], 3), np.uint8)
    resample(image, fit((image.shape[1], image.shape[0]), size, mode), out)
    return out


def run_resampling(tables: Tables, start: Callable[[DeviceTables, int], None]) -> Image:
    """What a launcher writes that is called with uploaded tables and the address of the output."""
    block = tables.block()
    out = Guarded((tables.size[1], tables.size[0], 3))
    start(DeviceTables.at(block.ctypes.data, tables), out.address)
    return out.checked()


def run_bgr(image: Image, tables: Tables, pitch: int | None = None) -> Image:
    def start(uploaded: DeviceTables, out: int) -> None:
        launch.resample_bgr(host_kernels(), image.ctypes.data, pitch or image.strides[0], uploaded, out)

    return run_resampling(tables, start)


def difference(a: Image, b: Image) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


# The tables


@given(frame=frames, size=inputs, mode=modes)
@few
def test_tables_stay_inside_the_frame_and_keep_brightness(frame, size, mode) -> None:
    for tables in (resampling_tables(fit(frame, size, mode)), halving_tables(frame, size)):
        assert (len(tables.columns.first), len(tables.rows.first)) == tables.content[2:]
        for axis, length in ((tables.columns, frame[0]), (tables.rows, frame[1])):
            assert axis.first.dtype == np.int32
            assert axis.weights.dtype == np.float32
            assert axis.first.min() >= 0
            assert axis.first.max() + axis.taps <= length
            assert axis.weights.min() >= 0
            assert axis.weights.sum(axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "net", "expected"),
    [
        (3, 3, np.eye(3)),
        (4, 2, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
        (2, 4, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]),
        (5, 2, [[0.45, 0.35, 0.15, 0.05, 0], [0, 0.05, 0.15, 0.35, 0.45]]),
        (6, 1, [[1 / 6] * 6]),
    ],
)
def test_tables_by_hand(length, net, expected) -> None:
    """Copy; between two pixels; enlarge; 5 to 3 by area and to 2 between; 6 to 3 to 2 by area and to 1 between."""
    tables = resampling_tables(fit((length, length), (net, net), "stretch"))
    for axis in (tables.columns, tables.rows):
        assert dense(axis, length) == pytest.approx(np.array(expected), abs=1e-6)


def dense(axis: Axis, length: int) -> NDArray[np.float64]:
    """The axis as a matrix ``(n, length)``."""
    matrix = np.zeros((len(axis.first), length))
    for row, first, weights in zip(matrix, axis.first, axis.weights, strict=True):
        row[first : first + axis.taps] = weights
    return matrix


# BGR frames


@needs_compiler
@given(frame=frames, size=inputs, mode=modes, margin=st.integers(0, 70), seed=seeds)
@few
def test_resample_bgr_agrees_with_the_cpu(frame, size, mode, margin, seed) -> None:
    rng = np.random.default_rng(seed)
    image = noise(rng, frame[1], frame[0], 3)
    memory, pitch = pitched(rng, image, margin)
    made = run_bgr(memory, resampling_tables(fit(frame, size, mode)), pitch)
    assert difference(made, expected_input(image, size, mode)) <= 1


@needs_compiler
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize(("frame", "size"), LARGE)
def test_resample_bgr_of_large_frames(frame, size, mode) -> None:
    image = noise(np.random.default_rng(0), frame[1], frame[0], 3)
    made = run_bgr(image, resampling_tables(fit(frame, size, mode)))
    assert difference(made, expected_input(image, size, mode)) <= 1


@needs_compiler
@pytest.mark.parametrize("grey", [0, 1, 127, 254, 255])
def test_an_even_surface_keeps_its_grey(grey) -> None:
    image = np.full((720, 1280, 3), grey, np.uint8)
    for size in [(640, 360), (100, 60), (5, 3), (1, 1)]:
        assert np.all(run_bgr(image, resampling_tables(fit((1280, 720), size, "stretch"))) == grey)


@needs_compiler
@pytest.mark.parametrize(("frame", "size"), [((1280, 720), (60, 40)), ((1280, 720), (120, 100)), ((721, 1281), (60, 40))])
def test_roundings_leave_little_bias(frame, size) -> None:
    """OpenCV's mean roundings over four halvings alone would make 0.4 of a grey level."""
    image = noise(np.random.default_rng(1), frame[1], frame[0], 3)
    made = run_bgr(image, resampling_tables(fit(frame, size, "stretch")))
    assert made.mean() == pytest.approx(expected_input(image, size, "stretch").mean(), abs=0.15)


@needs_compiler
@given(frame=frames, size=inputs, seed=seeds)
@few
def test_halving_tables_halve_as_the_cpu_does(frame, size, seed) -> None:
    image = noise(np.random.default_rng(seed), frame[1], frame[0], 3)
    made = run_bgr(image, halving_tables(frame, size))
    expected = image
    while expected.shape[1] > 2 * size[0] and expected.shape[0] > 2 * size[1]:
        half = ((expected.shape[1] + 1) // 2, (expected.shape[0] + 1) // 2)
        expected = cv2.resize(expected, half, interpolation=cv2.INTER_AREA)
    assert difference(made, expected) <= 1
    if expected is image:
        assert np.array_equal(made, image)


# NV12 and YUYV frames


def nv12_launcher(luma: Image, chroma: Image, pitches: tuple[int, int], coefficients: launch.YuvCoefficients):
    def start(tables: DeviceTables, out: int) -> None:
        addresses = luma.ctypes.data, pitches[0], chroma.ctypes.data, pitches[1]
        launch.resample_nv12(host_kernels(), *addresses, coefficients, tables, out)

    return start


def yuyv_launcher(packed: Image, pitch: int, coefficients: launch.YuvCoefficients):
    def start(tables: DeviceTables, out: int) -> None:
        launch.resample_yuyv(host_kernels(), packed.ctypes.data, pitch, coefficients, tables, out)

    return start


@needs_compiler
@given(frame=even_frames, size=inputs, mode=modes, margins=st.tuples(st.integers(0, 40), st.integers(0, 40)), seed=seeds)
@few
def test_resample_nv12_agrees_with_the_cpu(frame, size, mode, margins, seed) -> None:
    rng = np.random.default_rng(seed)
    planes = noise(rng, frame[1] * 3 // 2, frame[0])
    luma, luma_pitch = pitched(rng, planes[: frame[1]], margins[0])
    chroma, chroma_pitch = pitched(rng, planes[frame[1] :], margins[1])
    start = nv12_launcher(luma, chroma, (luma_pitch, chroma_pitch), BT601)
    bgr = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)
    assert np.array_equal(run_resampling(halving_tables(frame, frame), start), bgr)
    made = run_resampling(resampling_tables(fit(frame, size, mode)), start)
    assert difference(made, expected_input(bgr, size, mode)) <= 1


@needs_compiler
@given(frame=even_frames, size=inputs, mode=modes, margin=st.integers(0, 40), seed=seeds)
@few
def test_resample_yuyv_agrees_with_the_cpu(frame, size, mode, margin, seed) -> None:
    rng = np.random.default_rng(seed)
    image = noise(rng, frame[1], frame[0], 2)
    start = yuyv_launcher(*pitched(rng, image, margin), BT601)
    bgr = cv2.cvtColor(image, cv2.COLOR_YUV2BGR_YUY2)
    assert np.array_equal(run_resampling(halving_tables(frame, frame), start), bgr)
    made = run_resampling(resampling_tables(fit(frame, size, mode)), start)
    assert difference(made, expected_input(bgr, size, mode)) <= 1


@needs_compiler
def test_resample_nv12_of_a_large_frame() -> None:
    planes = noise(np.random.default_rng(2), 2160 * 3 // 2, 3840)
    made = run_resampling(
        resampling_tables(fit((3840, 2160), (640, 360), "stretch")),
        nv12_launcher(planes[:2160], planes[2160:], (3840, 3840), BT601),
    )
    bgr = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)
    assert difference(made, expected_input(bgr, (640, 360), "stretch")) <= 1


@needs_compiler
@pytest.mark.parametrize("odd", [(1, 1), (7, 5), (9, 4), (4, 9)])
def test_yuv_frames_of_odd_sizes_have_chroma_for_their_last_pixels(odd) -> None:
    width, height = odd
    even = (width + width % 2, height + height % 2)
    rng = np.random.default_rng(3)
    planes = noise(rng, even[1] * 3 // 2, even[0])
    start = nv12_launcher(planes[: even[1]], planes[even[1] :], (even[0], even[0]), BT601)
    expected = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)[:height, :width]
    assert np.array_equal(run_resampling(halving_tables(odd, odd), start), expected)
    packed = noise(rng, height, even[0], 2)
    expected = cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_YUY2)[:, :width]
    made = run_resampling(halving_tables(odd, odd), yuyv_launcher(packed, packed.strides[0], BT601))
    assert np.array_equal(made, expected)


@needs_compiler
def test_every_colour_converts_as_in_opencv() -> None:
    """All 2^24 of them, an eighth at a time."""
    tables = halving_tables((2048, 1024), (2048, 1024))
    for v in np.split(np.arange(256, dtype=np.uint8), 8):
        frame = every_colour(v).reshape(1024, 2048, 2)
        made = run_resampling(tables, yuyv_launcher(frame, frame.strides[0], BT601))
        assert np.array_equal(made, cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_YUY2))


def every_colour(v: Image, y: Image | None = None) -> Image:
    """Pairs (y0, u, y1, v) with these ``v``, all u, and these ``y`` (by default all)."""
    y = np.arange(256, dtype=np.uint8) if y is None else y
    pairs = np.empty((len(v), 256, len(y) // 2, 4), np.uint8)
    pairs[..., 0], pairs[..., 2] = y[0::2], y[1::2]
    pairs[..., 1] = np.arange(256, dtype=np.uint8)[:, None]
    pairs[..., 3] = v[:, None, None]
    return pairs


@needs_compiler
@pytest.mark.parametrize(
    ("coefficients", "red", "blue", "full"),
    [
        (BT601, 0.299, 0.114, False),
        (BT709, 0.2126, 0.0722, False),
        (BT601_FULL, 0.299, 0.114, True),
        (BT709_FULL, 0.2126, 0.0722, True),
    ],
)
def test_coefficients_are_those_of_the_standards(coefficients, red, blue, full) -> None:
    """Against the definition: luma is a weighted sum of r, g, b, chroma a scaled difference to b and r."""
    frame = every_colour(np.arange(0, 256, 15, dtype=np.uint8)).reshape(18 * 256, 256, 2)
    made = run_resampling(halving_tables((256, 18 * 256), (256, 18 * 256)), yuyv_launcher(frame, 512, coefficients))
    y = frame[..., 0].astype(float)
    u, v = (np.repeat(frame[:, first::2, 1], 2, axis=1).astype(float) - 128 for first in (0, 1))
    y, u, v = (y / 255, u / 255, v / 255) if full else ((np.maximum(y, 16) - 16) / 219, u / 224, v / 224)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    expected = np.clip(255 * np.stack([b, g, r], axis=-1), 0, 255)
    assert np.abs(made - expected).max() <= 1


# Maps


def remapped(image: Image, coordinates: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bilinear with a constant border, in floating point (``cv2.remap`` rounds coordinates to 1/32 pixel)."""
    height, width = image.shape[:2]
    bordered = np.full((height + 2, width + 2, 3), PADDING_GREY, float)
    bordered[1:-1, 1:-1] = image
    x, y = np.moveaxis(coordinates.astype(float), -1, 0)
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = np.where(inside, x, 0), np.where(inside, y, 0)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - x0)[..., None], (y - y0)[..., None]
    above = bordered[y0 + 1, x0 + 1] * (1 - right) + bordered[y0 + 1, x0 + 2] * right
    below = bordered[y0 + 2, x0 + 1] * (1 - right) + bordered[y0 + 2, x0 + 2] * right
    return np.where(inside[..., None], above * (1 - down) + below * down, PADDING_GREY)


def run_remap(image: Image, coordinates: NDArray[np.float32], pitch: int = 0, **options: object) -> Image:
    height, width = coordinates.shape[:2]
    size = options.pop("frame_size", (image.shape[1], image.shape[0]))
    out = Guarded((height, width, 3))
    launch.remap_bgr(
        host_kernels(),
        image.ctypes.data,
        pitch or image.strides[0],
        size,
        coordinates.ctypes.data,
        out.address,
        (width, height),
        **options,
    )
    return out.checked()


@needs_compiler
@given(frame=frames, size=inputs, margin=st.integers(0, 40), seed=seeds)
@few
def test_remap_bgr_agrees_with_numpy(frame, size, margin, seed) -> None:
    rng = np.random.default_rng(seed)
    image = noise(rng, frame[1], frame[0], 3)
    coordinates = rng.uniform(-3, np.array(frame) + 2, (size[1], size[0], 2)).astype(np.float32)
    whole = rng.random(coordinates.shape) < 0.2
    coordinates[whole] = np.round(coordinates[whole])
    memory, pitch = pitched(rng, image, margin)
    made = run_remap(memory, coordinates, pitch, frame_size=frame)
    assert np.abs(made - remapped(image, coordinates)).max() <= 0.51


@needs_compiler
def test_remap_bgr_agrees_with_opencv_where_it_is_exact() -> None:
    """Coordinates in whole 1/32 pixels."""
    rng = np.random.default_rng(4)
    image = noise(rng, 90, 160, 3)
    coordinates = (rng.integers(-64, 165 * 32, (100, 120, 2)) / 32).astype(np.float32)
    border = (PADDING_GREY,) * 3
    expected = cv2.remap(image, coordinates, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
    assert difference(run_remap(image, coordinates), expected) <= 1


@needs_compiler
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, -1.0, 40.0])
def test_remap_bgr_takes_any_coordinate(value) -> None:
    coordinates = np.full((3, 4, 2), 5, np.float32)
    coordinates[1, 2, 0] = value
    coordinates[2, 3, 1] = value
    made = run_remap(np.full((40, 40, 3), 200, np.uint8), coordinates)
    expected = np.full((3, 4, 3), 200)
    expected[1, 2] = expected[2, 3] = PADDING_GREY
    assert np.array_equal(made, expected)


@needs_compiler
@pytest.mark.parametrize("frame", [(1280, 720), (1001, 701), (4000, 300)])
def test_remap_bgr_halves_large_frames_first(frame) -> None:
    """As the CPU would: halve, scale the map by areas, interpolate. The halved frame is rounded to grey levels in between."""
    rng = np.random.default_rng(5)
    image = noise(rng, frame[1], frame[0], 3)
    size = (160, 90)
    coordinates = rng.uniform(-3, np.array(frame) + 2, (size[1], size[0], 2)).astype(np.float32)
    tables = halving_tables(frame, size)
    assert tables.size != frame
    block, halved = tables.block(), Guarded((tables.size[1], tables.size[0], 3))
    uploaded = DeviceTables.at(block.ctypes.data, tables)
    made = run_remap(image, coordinates, halvings=uploaded, halved=halved.address)
    small = halved.checked()
    assert difference(small, run_bgr(image, tables)) == 0
    scale = np.array(tables.size) / frame
    scaled = (coordinates + 0.5) * scale - 0.5
    assert np.abs(made - remapped(small, scaled)).max() <= 0.6
    # The same frame, halved before by somebody else.
    again = run_remap(small, coordinates, map_size=frame)
    assert np.array_equal(again, made)


@needs_compiler
def test_a_map_that_only_resizes_is_the_plain_resampling() -> None:
    """1920x1080 to 640x360, once by tables and once by a map of `Resampling.frame_from_input`."""
    image = cv2.GaussianBlur(noise(np.random.default_rng(6), 1080, 1920, 3), (0, 0), 2)
    resampling = fit((1920, 1080), (640, 360), "letterbox")
    x, y = np.meshgrid(np.arange(640.0), np.arange(360.0))
    points = resampling.frame_from_input(np.stack([x, y], axis=-1).reshape(-1, 2))
    coordinates = points.reshape(360, 640, 2).astype(np.float32)
    tables = halving_tables((1920, 1080), (640, 360))
    block, halved = tables.block(), Guarded((tables.size[1], tables.size[0], 3))
    made = run_remap(image, coordinates, halvings=DeviceTables.at(block.ctypes.data, tables), halved=halved.address)
    assert difference(made, expected_input(image, (640, 360), "letterbox")) <= 1


# Time and masks


@needs_compiler
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(1, 90)),
    alpha=st.floats(2**-6, 1, width=32),
    seed=seeds,
)
@few
def test_blend_scores_agrees_with_numpy(shape, alpha, seed) -> None:
    rng = np.random.default_rng(seed)
    state, out = Guarded(shape, np.float32), Guarded(shape)
    state.array[...] = np.nan  # what reset must not read
    expected = None
    for number in range(4):
        scores = noise(rng, *shape)
        reset = number in (0, 2)
        addresses = state.address, scores.ctypes.data, out.address
        launch.blend_scores(host_kernels(), *addresses, shape, alpha, reset=reset)
        new = scores.astype(np.float32)
        expected = new if reset else expected + np.float32(alpha) * (new - expected)
        assert np.abs(state.checked() - expected).max() < 1e-4
        assert np.array_equal(out.checked(), np.rint(state.array))


@needs_compiler
def test_blend_scores_in_place() -> None:
    state, scores = np.full((1, 2, 3), 100, np.float32), np.full((1, 2, 3), 200, np.uint8)
    launch.blend_scores(host_kernels(), state.ctypes.data, scores.ctypes.data, scores.ctypes.data, (1, 2, 3), 0.25)
    assert np.all(state == 125)
    assert np.all(scores == 125)


@needs_compiler
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 300)),
    thresholds=st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
    in_place=st.booleans(),
    seed=seeds,
)
@few
def test_pack_mask_agrees_with_numpy(shape, thresholds, in_place, seed) -> None:
    rng = np.random.default_rng(seed)
    low, high = thresholds
    packed_shape = (*shape[:2], (shape[2] + 7) // 8)
    mask, previous = np.zeros(shape, bool), None
    for _ in range(3):
        scores = noise(rng, *shape)
        out = previous if in_place and previous else Guarded(packed_shape)
        before = previous.address if previous else None
        launch.pack_mask(host_kernels(), scores.ctypes.data, before, out.address, shape, low, high)
        mask = (scores >= high) | (mask & (scores >= low))
        assert np.array_equal(out.checked(), np.packbits(mask, axis=-1, bitorder="little"))
        previous = out


# Launches


class Recorder:
    """A module that runs nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, launch.Dim3, launch.Dim3, list[np.generic], object]] = []

    def launch(self, kernel, grid, block, args, stream, /) -> None:
        self.launches.append((kernel, grid, block, list(args), stream))


def test_the_grid_covers_the_output_and_the_stream_is_passed_on() -> None:
    tables = resampling_tables(fit((1280, 720), (641, 359), "stretch"))
    recorder, stream = Recorder(), object()
    launch.resample_bgr(recorder, 1 << 40, 3840, DeviceTables.at(1 << 33, tables), 1 << 35, stream)
    launch.pack_mask(recorder, 1, None, 2, (2, 359, 641), 100, 128, stream)
    (kernel, grid, block, args, given_stream), (_, pack_grid, *_) = recorder.launches
    assert (kernel, grid, block) == ("resample_bgr", (21, 45, 1), (32, 8, 1))
    assert pack_grid == (3, 90, 1)
    assert args[0] == np.uint64(1 << 40)
    assert given_stream is stream


def test_launchers_refuse_what_a_kernel_would_not_notice() -> None:
    tables = DeviceTables.at(0, resampling_tables(fit((11, 7), (4, 4), "stretch")))
    recorder = Recorder()
    with pytest.raises(ValueError, match="rows of 33 bytes cannot lie 32 bytes apart"):
        launch.resample_bgr(recorder, 0, 32, tables, 0)
    with pytest.raises(ValueError, match="luma: rows of 11"):
        launch.resample_nv12(recorder, 0, 10, 0, 12, BT601, tables, 0)
    with pytest.raises(ValueError, match="chroma: rows of 12"):
        launch.resample_nv12(recorder, 0, 11, 0, 11, BT601, tables, 0)
    with pytest.raises(ValueError, match="rows of 24"):
        launch.resample_yuyv(recorder, 0, 22, BT601, tables, 0)
    with pytest.raises(ValueError, match="rows of 30"):
        launch.remap_bgr(recorder, 0, 29, (10, 10), 0, 0, (5, 5))
    with pytest.raises(ValueError, match="halvings of"):
        launch.remap_bgr(recorder, 0, 30, (10, 10), 0, 0, (5, 5), halvings=tables, halved=1)
    with pytest.raises(ValueError, match="halvings of"):
        launch.remap_bgr(recorder, 0, 33, (11, 7), 0, 0, (5, 5), halvings=tables)
    for alpha in (0.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            launch.blend_scores(recorder, 0, 0, 0, (1, 1, 1), alpha)
    with pytest.raises(ValueError, match="threshold"):
        launch.pack_mask(recorder, 0, None, 0, (1, 1, 1), 9, 8)
    assert recorder.launches == []


@needs_compiler
def test_the_host_module_notices_wrong_arguments() -> None:
    module = host_kernels()
    assert isinstance(module, HostModule)
    assert set(module.names) == {"resample_bgr", "resample_nv12", "resample_yuyv", "remap_bgr", "blend_scores", "pack_mask"}
    assert module.parameters("pack_mask") == "pppiiii"
    args = [np.uint64(0)] * 3 + [np.int32(0)] * 4
    module.launch("pack_mask", (1, 1, 1), (1, 1, 1), args)
    for wrong in (args[:-1], [*args, args[-1]], [*args[:-1], np.float32(0)], [np.int32(0), *args[1:]]):
        with pytest.raises(TypeError, match="pppiiii"):
            module.launch("pack_mask", (1, 1, 1), (1, 1, 1), wrong)
    with pytest.raises(KeyError):
        module.launch("sort", (1, 1, 1), (1, 1, 1), [])


def test_arguments_are_packed_by_their_own_alignment() -> None:
    packed = pack([np.uint64(1), np.int32(2), np.uint64(3), np.float32(1)])
    assert packed.hex(" ", 4) == "01000000 00000000 02000000 00000000 03000000 00000000 0000803f"


# Compiling


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder and, on purpose, no compiler."""
    monkeypatch.setattr(compiling, "user_cache_path", lambda name: tmp_path / "cache" / name)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "freespace" / "cubins"


def fake_nvcc(home: Path, body: str) -> Path:
    """A compiler in ``home``/bin that notes its arguments in ``home``/calls; ``body`` may use $out."""
    path = home / "bin" / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    find_out = 'for a; do [ "$last" = -o ] && out=$a; last=$a; done'
    path.write_text(f'#!/bin/sh\necho "$@" >> "{home}/calls"\n{find_out}\n{body}\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text(encoding="utf-8").splitlines() if (home / "calls").exists() else []


def test_a_cubin_is_compiled_once(cache, tmp_path, monkeypatch) -> None:
    fake_nvcc(tmp_path, 'printf machine-code > "$out"')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert compiling.cubin("sm_87") == b"machine-code"
    assert compiling.cubin("sm_87") == b"machine-code"
    (call,) = calls(tmp_path)
    assert "-arch=sm_87" in call
    assert call.endswith("kernels/module.cu")
    assert compiling.cubin("sm_90") == b"machine-code"
    assert len(calls(tmp_path)) == 2
    assert sorted(path.name[:6] for path in cache.iterdir()) == ["sm_87-", "sm_90-"]
    (tmp_path / "bin" / "nvcc").unlink()
    assert compiling.cubin("sm_87") == b"machine-code"


@pytest.mark.parametrize("name", ["temporal.cu", "common.cuh"])
def test_a_changed_source_is_compiled_again(cache, tmp_path, monkeypatch, name) -> None:
    fake_nvcc(tmp_path, 'printf machine-code > "$out"')
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    sources = shutil.copytree(compiling.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(compiling, "KERNELS", sources)
    compiling.cubin("sm_87")
    with open(sources / name, "a", encoding="utf-8") as file:
        file.write("// changed\n")
    compiling.cubin("sm_87")
    assert len(calls(tmp_path)) == len(list(cache.iterdir())) == 2


def test_other_flags_are_another_file(cache, tmp_path, monkeypatch) -> None:
    fake_nvcc(tmp_path, 'printf machine-code > "$out"')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    compiling.cubin("sm_87")
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-lineinfo"))
    compiling.cubin("sm_87")
    assert len(calls(tmp_path)) == len(list(cache.iterdir())) == 2


def test_a_failing_compiler_is_quoted_and_leaves_nothing(cache, tmp_path, monkeypatch) -> None:
    fake_nvcc(tmp_path, 'printf half > "$out"; echo "remap.cu(9): error: no such thing" >&2; exit 2')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"kernels for sm_87:\nremap.cu\(9\): error: no such thing"):
        compiling.cubin("sm_87")
    assert not cache.exists() or list(cache.iterdir()) == []
    fake_nvcc(tmp_path, "exit 3")
    with pytest.raises(ModelError, match="exit code 3"):
        compiling.cubin("sm_87")


def test_a_compiler_that_cannot_start_is_said_so(cache, tmp_path, monkeypatch) -> None:
    nvcc = fake_nvcc(tmp_path, "")
    nvcc.write_text("#!/no/such/shell\n", encoding="utf-8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="nvcc: cannot be run"):
        compiling.cubin("sm_87")


def test_without_a_compiler_it_is_said_what_to_install(cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(compiling, "DEFAULT_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"install the CUDA toolkit .* or set CUDA_HOME"):
        compiling.cubin("sm_87")
    assert not cache.exists()


def test_the_compiler_is_looked_for_in_order(tmp_path, monkeypatch) -> None:
    made = {name: fake_nvcc(tmp_path / name, "") for name in ("home", "path", "search", "default")}
    monkeypatch.setattr(compiling, "DEFAULT_HOME", str(tmp_path / "default"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PATH", str(tmp_path / "search" / "bin"))
    for name in ("home", "path", "search", "default"):
        assert compiling.find_nvcc() == str(made[name])
        made[name].unlink()


def test_supported_architectures_are_those_of_both(tmp_path) -> None:
    nvcc = fake_nvcc(tmp_path, "echo sm_120; echo sm_87; echo sm_88; echo sm_5")
    assert compiling.supported(str(nvcc)) == ["sm_87", "sm_120"]
    assert calls(tmp_path) == ["--list-gpu-code"]


@pytest.fixture
def nvcc() -> str:
    try:
        return compiling.find_nvcc()
    except ModelError as error:
        pytest.skip(str(error))


def test_the_kernels_compile_for_every_architecture(nvcc, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "user_cache_path", lambda name: tmp_path / name)
    architectures = compiling.supported(nvcc)
    assert architectures
    with ThreadPoolExecutor(2) as pool:
        for arch, code in zip(architectures, pool.map(compiling.cubin, architectures), strict=True):
            assert code.startswith(b"\x7fELF"), arch
            for name in kernel_names():
                assert f".text.{name}\0".encode() in code, (arch, name)
    assert len(list((tmp_path / "freespace" / "cubins").iterdir())) == len(architectures)


def test_an_unknown_architecture_is_refused_in_the_words_of_the_compiler(nvcc, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "user_cache_path", lambda name: tmp_path / name)
    with pytest.raises(ModelError, match="sm_1"):
        compiling.cubin("sm_1")
    assert list(tmp_path.rglob("*.cubin")) == []
