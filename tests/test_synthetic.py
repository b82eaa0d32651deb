"""The rendered drive: its truth agrees with itself, with the calibration and with what is painted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.ground import ground_from_pixels, horizon, pixels_from_ground
from perception.capture.base import Selection
from perception.capture.synthetic import SyntheticSource
from perception.errors import BadInput
from perception.synthetic import LIGHTS, PLANES, ROADS, Rendered, Scene, render, scene_from_uri

SMALL = {"width": 320, "height": 180}


def rasterised(polygons: list[shapely.Polygon], width: int, height: int) -> np.ndarray:
    """bool ``(H, W)``: pixel centres within the polygons."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    shape = shapely.union_all(polygons)
    shapely.prepare(shape)
    return shapely.contains_xy(shape, u, v)


def assert_consistent(frame: Rendered) -> None:
    """Masks and polygons are two accounts of the same thing."""
    scene = frame.scene
    bounds = shapely.box(-0.5, -0.5, scene.width - 0.5, scene.height - 0.5).buffer(1e-6)
    for plane in PLANES:
        mask, polygons = frame.masks[plane] > 0, frame.polygons[plane]
        drawn = rasterised(polygons, scene.width, scene.height)
        union = (mask | drawn).sum()
        assert (mask & drawn).sum() >= 0.995 * union
        for i, polygon in enumerate(polygons):
            assert polygon.is_valid
            assert bounds.contains(polygon)
            assert not shapely.is_ccw(polygon.exterior)  # in the eyes of shapely, for which v would point up
            assert all(shapely.is_ccw(hole) for hole in polygon.interiors)
            assert all(shapely.Polygon(polygon.exterior).covers(hole) for hole in polygon.interiors)
            assert all(polygon.intersection(other).area < 1e-6 for other in polygons[:i])
    assert not (frame.masks["ego"] & ~frame.masks["freespace"]).any()


class TestUri:
    """A URI names a scene."""

    def test_every_key_is_understood(self) -> None:
        scene = scene_from_uri("synthetic://curve?size=640x360&fps=30&seconds=4&seed=3&light=dusk&cars=2")
        assert scene == Scene("curve", 640, 360, 30.0, 4.0, 3, "dusk", 2)
        assert scene_from_uri("synthetic://") == Scene("drive")
        assert scene_from_uri("synthetic://cut-in/").name == "cut-in"

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("synthetic://moon", "moon.*drive, straight"),
            ("synthetic://drive?speed=3", "speed.*size, fps"),
            ("synthetic://drive?size=640", "size.*'640'"),
            ("synthetic://drive?size=8x8", "size.*16x16"),
            ("synthetic://drive?size=7681x100", "size.*7680x4320"),
            ("synthetic://drive?fps=0", "fps.*'0'"),
            ("synthetic://drive?fps=nan", "fps.*'nan'"),
            ("synthetic://drive?seconds=-1", "seconds.*'-1'"),
            ("synthetic://drive?seed=1.5", "seed.*'1.5'"),
            ("synthetic://drive?cars=many", "cars.*'many'"),
            ("synthetic://drive?light=", "light.*day, dusk, night"),
            ("synthetic://[?light=day", "there is no"),
            ("file://drive", "synthetic://NAME"),
        ],
    )
    def test_a_bad_uri_is_refused_in_one_sentence(self, uri: str, said: str) -> None:
        with pytest.raises(BadInput, match=said) as caught:
            scene_from_uri(uri)
        assert "\n" not in str(caught.value)


class TestRender:
    """A frame follows from the scene and the index alone."""

    @pytest.mark.parametrize("name", ROADS)
    def test_nothing_else_matters(self, name: str) -> None:
        scene = Scene(name, **SMALL)
        first = render(scene, 31)
        render(scene, 7)
        again = render(dataclasses.replace(scene), 31)
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.masks["freespace"], again.masks["freespace"])
        assert (first.image != render(scene, 32).image).any()
        assert (first.image != render(dataclasses.replace(scene, seed=1), 31).image).any()

    def test_a_negative_index_is_refused(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            render(Scene(**SMALL), -1)


class TestMasksAndPolygons:
    """They are two accounts of the same planes."""

    @pytest.mark.parametrize("name", ROADS)
    def test_they_agree_in_every_scene(self, name: str) -> None:
        for index in (0, 57, 140):
            frame = render(Scene(name, **SMALL), index)
            assert frame.image.shape == (180, 320, 3)
            assert frame.image.dtype == np.uint8
            assert set(frame.masks) == set(frame.polygons) == set(PLANES)
            assert set(np.unique(frame.masks["freespace"])) == {0, 255}
            assert_consistent(frame)

    @settings(max_examples=20, deadline=None)
    @given(
        st.sampled_from(sorted(ROADS)),
        st.sampled_from([(320, 180), (200, 150), (90, 160), (300, 60), (16, 16)]),
        st.integers(0, 1),
        st.integers(0, 2000),
        st.integers(0, 12),
    )
    def test_they_agree_for_any_size_seed_and_traffic(
        self, name: str, size: tuple[int, int], seed: int, index: int, cars: int
    ) -> None:
        frame = render(Scene(name, *size, seed=seed, cars=cars), index)
        union = frame.masks["freespace"].astype(bool).sum()
        if union > 2000:
            assert_consistent(frame)
        for plane in PLANES:
            assert all(polygon.is_valid for polygon in frame.polygons[plane])

    def test_own_carriageway_ends_at_the_centre_line(self) -> None:
        frame = render(Scene("straight", **SMALL, cars=0), 0)
        y = frame.ground[..., 1][frame.masks["ego"] > 0]
        assert y.max() < 1.75 + 0.2
        one_way = render(Scene("cut-in", **SMALL, cars=0), 0)
        np.testing.assert_array_equal(one_way.masks["ego"], one_way.masks["freespace"])

    def test_a_vehicle_that_cuts_in_takes_the_lane_ahead(self) -> None:
        scene = Scene("cut-in", **SMALL, cars=1)
        before, after = render(scene, 10), render(scene, 170)
        ((u, v),) = np.round(pixels_from_ground(before.camera, [[30.0, 0.0]])).astype(int)
        assert before.masks["ego"][v, u] == 255
        assert after.masks["ego"][v, u] == 0
        outline = shapely.Point(u, v)
        assert any(polygon.contains(outline) for polygon in before.polygons["ego"])
        assert not any(polygon.contains(outline) for polygon in after.polygons["ego"])
        assert after.masks["ego"].sum() < before.masks["ego"].sum()


class TestMetres:
    """Pixels come with their place on the ground."""

    def test_a_flat_road_is_what_the_calibration_says(self) -> None:
        frame = render(Scene("straight", **SMALL, cars=0), 20)
        rows, columns = np.nonzero(frame.masks["freespace"])
        near = rows > horizon(frame.camera, [0])[0] + 2
        pixels = np.stack([columns, rows], axis=1)[near]
        expected = ground_from_pixels(frame.camera, pixels)
        np.testing.assert_allclose(frame.metres(pixels), np.column_stack([expected, 0 * expected[:, 0]]), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(frame.ground[rows[near], columns[near]], expected, rtol=1e-5, atol=1e-5)
        # One lane each way of 3.5 m with 0.35 m beyond the edge lines, and the ego vehicle in the middle of the right one.
        across = expected[np.abs(expected[:, 0] - 14) < 0.5, 1]
        assert across.min() == pytest.approx(-1.75 - 0.35, abs=0.2)
        assert across.max() == pytest.approx(1.75 + 3.5 + 0.35, abs=0.2)
        area = sum(polygon.intersection(shapely.box(5, -20, 40, 20)).area for polygon in frame.ground_polygons["freespace"])
        # Near the camera the image cuts the road off: 5 m ahead it shows 6.4 m of 7.7 m.
        assert area == pytest.approx(7.7 * 35, rel=0.02)

    def test_a_hilly_road_is_not_flat(self) -> None:
        frames = [render(Scene("hills", **SMALL), index) for index in range(0, 250, 25)]
        heights = [frame.metres(np.array([[160.0, 85.0]]))[0, 2] for frame in frames]
        assert np.nanmax(np.abs(heights)) > 0.3

    @pytest.mark.parametrize("name", ["hills", "drive", "curve"])
    def test_metres_project_back_onto_their_pixels(self, name: str) -> None:
        frame = render(Scene(name, **SMALL), 60)
        rows, columns = np.nonzero(np.isfinite(frame.ground[..., 0]))
        pixels = np.stack([columns, rows], axis=1)
        metres = frame.metres(pixels)
        np.testing.assert_allclose(frame.camera.project(metres), pixels, atol=1e-6)
        np.testing.assert_allclose(frame.ground[rows, columns], metres[:, :2], rtol=1e-5, atol=1e-4)
        assert np.isnan(frame.metres(np.array([[100.0, 0.0]]))).all()

    def test_ground_polygons_have_a_vertex_for_each_pixel_vertex(self) -> None:
        frame = render(Scene("drive", **SMALL), 40)
        for plane in PLANES:
            for pixels, metres in zip(frame.polygons[plane], frame.ground_polygons[plane], strict=True):
                points = shapely.get_coordinates(metres)
                assert points.shape == shapely.get_coordinates(pixels).shape
                assert np.isfinite(points).all()
                assert (points[:, 0] > 0).all()


class TestPicture:
    """What is painted is where the truth says it is."""

    @pytest.mark.parametrize("name", ROADS)
    def test_the_road_is_grey_and_the_sky_is_blue(self, name: str) -> None:
        frame = render(Scene(name, **SMALL, light="day", cars=0), 12)
        road = frame.image[frame.masks["freespace"] > 0].mean(axis=0)
        assert np.ptp(road) < 12
        assert 70 < road.mean() < 160
        blue, _, red = frame.image[:30].reshape(-1, 3).mean(axis=0)
        assert blue > red

    def test_dashes_come_nearer_as_fast_as_the_vehicle_drives(self) -> None:
        # 0.28 s at 19 m/s is 5.32 m; the same dash of the centre line is that much nearer.
        scene = Scene("straight", width=640, height=360, cars=0)

        def brightness(frame: Rendered, x: np.ndarray) -> np.ndarray:
            y = frame.ground[..., 1][frame.masks["ego"] > 0].max()  # the centre line's offset at this moment
            pixels = np.round(pixels_from_ground(frame.camera, np.stack([x, np.full_like(x, y)], axis=1))).astype(int)
            return frame.image[pixels[:, 1], pixels[:, 0]].mean(axis=1)

        x = np.arange(5.5, 18, 0.1)
        earlier, later = brightness(render(scene, 0), x + 19 * 7 / 25), brightness(render(scene, 7), x)
        assert np.corrcoef(earlier, later)[0, 1] > 0.85

    def test_night_is_darker_than_dusk_than_day(self) -> None:
        day, dusk, night = (render(Scene("drive", **SMALL, light=light), 5).image.mean() for light in LIGHTS)
        assert day > 1.4 * dusk > 2 * night


class TestSource:
    """The drive as a source of frames."""

    def test_frames_carry_index_time_and_name(self) -> None:
        uri = "synthetic://straight?size=64x36&fps=30&seconds=0.2"
        with SyntheticSource(uri) as source:
            frames = list(source.frames())
        assert source.total == len(frames) == 6
        assert source.fps == 30
        assert [frame.seq for frame in frames] == list(range(6))
        assert [frame.stamp_ns for frame in frames] == [round(i / 30 * 1e9) for i in range(6)]
        assert {frame.clock for frame in frames} == {"media"}
        assert frames[3].name == "000003"
        assert frames[3].source == uri
        assert frames[3].size == (64, 36)
        assert frames[3].decode_ms > 0
        np.testing.assert_array_equal(frames[3].image, render(source.scene, 3).image)

    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            (Selection(start_s=0.28), list(range(7, 25))),
            (Selection(start_s=0.3), list(range(8, 25))),
            (Selection(start_s=0.2, duration_s=0.2), [5, 6, 7, 8, 9]),
            (Selection(every=10), [0, 10, 20]),
            (Selection(start_s=0.9, duration_s=9.0, every=2), [23]),
        ],
    )
    def test_only_the_part_asked_for_is_rendered(self, selection: Selection, expected: list[int]) -> None:
        source = SyntheticSource("synthetic://straight?size=32x32&seconds=1", selection)
        assert source.total == len(expected)
        assert source.fps == 25 / selection.every
        assert [frame.seq for frame in source.frames()] == expected

    def test_a_part_after_the_end_is_refused(self) -> None:
        with pytest.raises(BadInput, match=r"1\.00 s"):
            SyntheticSource("synthetic://drive?seconds=1", Selection(start_s=1.0))
