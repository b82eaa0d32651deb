"""The map between frame and network input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preprocess import PADDING_GREY, fit, resample

sizes = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


@given(frame=sizes, net=sizes, mode=st.sampled_from(["stretch", "letterbox"]), seed=st.integers(0, 1000))
def test_round_trip_is_exact(frame, net, mode, seed) -> None:
    resampling = fit(frame, net, mode)
    points = np.random.default_rng(seed).uniform(-0.5, np.array(frame) - 0.5, (20, 2))
    back = resampling.frame_from_input(resampling.input_from_frame(points))
    assert np.abs(back - points).max() < 1e-6


@given(frame=sizes, net=sizes, mode=st.sampled_from(["stretch", "letterbox"]))
def test_image_edges_map_to_content_edges(frame, net, mode) -> None:
    resampling = fit(frame, net, mode)
    left, top, width, height = resampling.content
    corners = resampling.input_from_frame(np.array([[-0.5, -0.5], [frame[0] - 0.5, frame[1] - 0.5]]))
    assert corners == pytest.approx(np.array([[left - 0.5, top - 0.5], [left + width - 0.5, top + height - 0.5]]), abs=1e-6)
    assert 0 <= left <= left + width <= net[0]
    assert 0 <= top <= top + height <= net[1]


def test_half_pixel_centres_by_hand() -> None:
    """1280 -> 320 is a factor 4: the first input pixel covers frame pixels 0 to 3, whose middle is 1.5."""
    resampling = fit((1280, 720), (320, 180), "stretch")
    assert resampling.frame_from_input(np.array([[0.0, 0.0]])) == pytest.approx(np.array([[1.5, 1.5]]))
    assert resampling.frame_from_input(np.array([[319.0, 179.0]])) == pytest.approx(np.array([[1277.5, 717.5]]))


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_pixels_go_where_the_map_says(mode) -> None:
    """A ramp image holds its own x coordinate: after resampling each pixel must hold the x that the map gives it."""
    width, height = 200, 120
    ramp = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None], height, axis=0).repeat(3, axis=2)
    resampling = fit((width, height), (96, 96), mode)
    out = np.zeros((96, 96, 3), np.uint8)
    resample(np.ascontiguousarray(ramp), resampling, out)
    left, top, content_width, content_height = resampling.content
    columns = np.arange(left + 1, left + content_width - 1)
    points = np.column_stack([columns, np.full(len(columns), top + content_height // 2)]).astype(float)
    expected = resampling.frame_from_input(points)[:, 0]
    assert np.abs(out[top + content_height // 2, columns, 0] - expected).max() < 1
    outside = np.ones((96, 96), bool)
    outside[top : top + content_height, left : left + content_width] = False
    assert np.all(out[outside] == PADDING_GREY)


@pytest.mark.parametrize("size", [(1280, 720), (1921, 1083), (3840, 2160)])
def test_shrinking_looks_at_every_pixel(size) -> None:
    """Thin white lines, one in eight columns, keep their mean brightness instead of being hit or missed."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[:, ::8] = 255
    out = np.zeros((180, 320, 3), np.uint8)
    resample(image, fit(size, (320, 180), "stretch"), out)
    assert out.mean() == pytest.approx(image.mean(), rel=0.03)
    coarse = out[:, : 320 // 8 * 8].reshape(180, -1, 8, 3).mean(axis=(0, 2, 3))
    assert coarse.std() < 4
