"""The camera's YAML file: what is written is read, what ROS writes is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import parts_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.camera import COEFFICIENTS, Intrinsics, Mount
from calibration.camera_file import other_keys, read_camera, read_mounted, to_yaml, write_camera
from calibration.covariance import Covariance
from engine.settings import parse_yaml

finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e6)
deviations = st.floats(0, 1e6)
models = st.sampled_from(sorted(COEFFICIENTS))
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)

cameras = models.flatmap(
    lambda model: st.builds(
        Intrinsics,
        fx=positive,
        fy=positive,
        cx=finite,
        cy=finite,
        width=st.integers(1, 100_000),
        height=st.integers(1, 100_000),
        distortion_model=st.just(model),
        distortion=st.lists(finite, max_size=COEFFICIENTS[model]).map(tuple),
        name=names,
        sigma=st.dictionaries(st.sampled_from(["fx", "fy", "cx", "cy", "k1", "k6", "reprojection_px"]), deviations),
    )
)
mounts = st.builds(
    Mount,
    height_m=positive,
    pitch=st.floats(-1.57, 1.57),
    roll=finite,
    yaw=finite,
    x_m=finite,
    y_m=finite,
    frame_id=names,
    sigma=st.dictionaries(st.sampled_from(["height_m", "pitch", "roll", "yaw"]), deviations),
)

# As ROS's camera_calibration writes it (its layout, our numbers).
ROS = """\
image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [ 612.5,   0.0, 319.5,
            0. , 613.25, 239.5,
            0. ,   0. ,   1. ]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.25, 0.0625, 1e-3, -0.0005, 0.]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: [600.0, 0.0, 319.5, 0.0, 0.0, 600.0, 239.5, 0.0, 0.0, 0.0, 1.0, 0.0]
binning: of another program
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "camera.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestRoundTrip:
    """Nothing is lost, not the last bit."""

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cameras, st.none() | mounts)
    def test_written_is_read(self, tmp_path: Path, camera: Intrinsics, mount: Mount | None) -> None:
        write_camera(tmp_path / "camera.yaml", camera, mount)
        assert read_camera(tmp_path / "camera.yaml") == (camera, mount)
        assert parts_in(tmp_path) == []

    @given(cameras, mounts)
    def test_the_text_is_plain_yaml_with_ros_keys(self, camera: Intrinsics, mount: Mount) -> None:
        tree = yaml.safe_load(to_yaml(camera, mount))
        k = camera
        assert (tree["image_width"], tree["image_height"], tree["camera_name"]) == (k.width, k.height, k.name)
        assert tree["camera_matrix"] == {"rows": 3, "cols": 3, "data": [k.fx, 0, k.cx, 0, k.fy, k.cy, 0, 0, 1]}
        assert tree["distortion_model"] == k.distortion_model
        count = COEFFICIENTS[k.distortion_model]
        assert tree["distortion_coefficients"] == {"rows": 1, "cols": count, "data": list(k.distortion)}
        for key, rows, cols in (("rectification_matrix", 3, 3), ("projection_matrix", 3, 4)):
            assert (tree[key]["rows"], tree[key]["cols"], len(tree[key]["data"])) == (rows, cols, rows * cols)

    def test_a_mount_makes_a_camera(self, tmp_path: Path) -> None:
        camera, mount = Intrinsics(500, 510, 320, 240, 640, 480), Mount(1.4, 0.02, sigma={"pitch": 0.001})
        write_camera(tmp_path / "camera.yaml", camera, mount)
        both = read_mounted(tmp_path / "camera.yaml")
        assert (both.intrinsics, both.mount) == (camera, mount)
        write_camera(tmp_path / "camera.yaml", camera)
        with pytest.raises(ValueError, match="mount: missing"):
            read_mounted(tmp_path / "camera.yaml")

    def test_covariances_are_read_as_written(self, tmp_path: Path) -> None:
        lens = Covariance.of(("fx", "k1"), [[9.0, -0.01], [-0.01, 0.04]])
        camera = Intrinsics(500, 510, 320, 240, 640, 480, covariance=lens)
        joint = lens.beside(Covariance.independent({"pitch": 0.01, "height_m": 0.1}))
        mount = Mount(1.4, 0.02, covariance=joint.measured(("pitch",), ("fx",), [[1 / 3]], [[1e-7]]))
        write_camera(tmp_path / "camera.yaml", camera, mount)
        assert read_camera(tmp_path / "camera.yaml") == (camera, mount)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="nowhere"):
            write_camera(tmp_path / "nowhere/camera.yaml", Intrinsics(500, 510, 320, 240, 640, 480))


class TestRos:
    """Files of ROS's tools."""

    def test_numbers(self, tmp_path: Path) -> None:
        camera, mount = read_camera(write(tmp_path, ROS))
        assert mount is None
        assert camera == Intrinsics(
            612.5, 613.25, 319.5, 239.5, 640, 480, "plumb_bob", (-0.25, 0.0625, 0.001, -0.0005, 0.0), "narrow_stereo"
        )

    def test_what_else_it_holds_is_kept(self, tmp_path: Path) -> None:
        file = write(tmp_path, ROS.replace("[1, 0, 0, 0, 1, 0, 0, 0, 1]", "[0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1]"))
        before, (camera, _) = parse_yaml(file.read_text()), read_camera(file)
        write_camera(tmp_path / "car.yaml", camera, Mount(1.4), other_keys(file))
        after = yaml.safe_load((tmp_path / "car.yaml").read_text())
        assert after.pop("mount")["height_m"] == 1.4
        assert after == before
        assert after["rectification_matrix"]["data"][0] == 0.8

    def test_fewer_coefficients_and_a_column_of_them(self, tmp_path: Path) -> None:
        text = ROS.replace(
            "  rows: 1\n  cols: 5\n  data: [-0.25, 0.0625, 1e-3, -0.0005, 0.]", "  rows: 2\n  cols: 1\n  data: [-0.25, 0]"
        )
        assert read_camera(write(tmp_path, text))[0].distortion == (-0.25, 0, 0, 0, 0)


def broken(**changes: Any) -> str:
    """A file with a mount in which values, by their path, are others, or gone where None."""
    mount = Mount(1.4, 0.02, sigma={"pitch": 0.001})
    tree = yaml.safe_load(to_yaml(Intrinsics(500, 510, 320, 240, 640, 480, sigma={"fx": 1.0}), mount))
    for path, value in changes.items():
        *sections, key = path.split("__")
        branch = tree
        for section in sections:
            branch = branch[section]
        if value is None:
            del branch[key]
        else:
            branch[key] = value
    return yaml.safe_dump(tree)


class TestMistakes:
    """Each is refused with the file and the key's path."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"image_width": None}, "image_width: missing$"),
            ({"image_width": 0}, "image_width"),
            ({"image_height": "480"}, "image_height"),
            ({"image_height": 480.5}, "image_height"),
            ({"camera_name": 7}, "camera_name"),
            ({"camera_matrix": None}, "camera_matrix"),
            ({"camera_matrix": [1, 2, 3]}, "camera_matrix"),
            ({"camera_matrix__rows": 2}, "camera_matrix: .*6"),
            ({"camera_matrix__extra": 2}, r"camera_matrix\.extra"),
            (
                {"camera_matrix": {"rows": 1, "cols": 9, "data": [500, 0, 1, 0, 500, 1, 0, 0, 1]}},
                "camera_matrix: wanted 3 rows",
            ),
            ({"camera_matrix__data": [500, 0, 1, 0, 500, 1, 0, 0]}, "camera_matrix"),
            ({"camera_matrix__data": [500, 0, 1, 0, 500, 1, 0, 0, 2]}, r"camera_matrix\.data"),
            ({"camera_matrix__data": [500, 3, 1, 0, 500, 1, 0, 0, 1]}, r"camera_matrix\.data"),
            ({"camera_matrix__data": [-500, 0, 1, 0, 500, 1, 0, 0, 1]}, r"camera_matrix\.data: camera fx"),
            ({"camera_matrix__data": [500, 0, float("nan"), 0, 500, 1, 0, 0, 1]}, r"camera_matrix\.data\.2"),
            ({"camera_matrix__data": [500, 0, "x", 0, 500, 1, 0, 0, 1]}, r"camera_matrix\.data\.2"),
            ({"distortion_model": "fisheye"}, "distortion_model"),
            ({"distortion_model": None}, "distortion_model"),
            (
                {"distortion_coefficients": {"rows": 1, "cols": 8, "data": [0.0] * 8}},
                r"distortion_coefficients\.data: plumb_bob has 5",
            ),
            ({"distortion_coefficients__data": [0.0] * 4}, "distortion_coefficients"),
            ({"sigma__fx": -1.0}, r"sigma\.fx"),
            ({"sigma__fx": "wide"}, r"sigma\.fx"),
            ({"covariance": {"names": ["fx", "fy"], "data": [1.0, 0.0, 0.0]}}, "covariance: .*4 numbers"),
            ({"covariance": {"names": ["fx", "fy"], "data": [1.0, 2.0, 2.0, 1.0]}}, "covariance: .*no covariance"),
            ({"covariance": {"names": ["pitch"], "data": [1.0]}}, r"covariance\.names: 'pitch'"),
            ({"covariance": {"names": ["fx"], "data": [float("nan")]}}, r"covariance\.data\.0"),
            (
                {"mount__covariance": {"names": ["pitch", "k4"], "data": [1.0, 0.0, 0.0, 1.0]}},
                r"mount\.covariance\.names: 'k4'",
            ),
            ({"mount": 3}, "mount"),
            ({"mount__height_m": None}, r"mount\.height_m"),
            ({"mount__height_m": -1.4}, r"mount\.height_m"),
            ({"mount__height": 1.4}, r"mount\.height: unknown key"),
            ({"mount__pitch": 2.0}, "mount: camera pitch"),
            ({"mount__pitch": float("inf")}, r"mount\.pitch"),
            ({"mount__sigma": {"pitch": -1.0}}, r"mount\.sigma\.pitch"),
            ({"mount__sigma": {"pitsch": 0.1}}, r"mount\.sigma\.pitsch"),  # else the pitch would pass for exact
        ],
    )
    def test_key(self, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=rf"camera\.yaml: .*{said}"):
            read_camera(write(tmp_path, broken(**changes)))

    @pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "a: [1", "!!python/object/apply:os.getcwd []", "\ttabs: 1"])
    def test_no_such_tree(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ValueError, match=r"camera\.yaml"):
            read_camera(write(tmp_path, text))

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "camera.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"camera\.yaml"):
            read_camera(tmp_path / "camera.yaml")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"nowhere\.yaml: cannot be read"):
            read_camera(tmp_path / "nowhere.yaml")
