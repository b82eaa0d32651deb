"""One YAML file for a camera: what ROS's ``camera_calibration_parsers`` reads and writes, and beside it, under keys that ROS
passes over, the mount on the vehicle and how sure each number is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator

from calibration.camera import COEFFICIENTS, PARAMETERS, POSE, Camera, DistortionModel, Intrinsics, Mount
from calibration.covariance import Covariance
from engine.files import write_whole
from engine.settings import Section, parse_yaml, read_settings

Matrix3 = Annotated[list[float], Field(min_length=9, max_length=9)]
Deviation = Annotated[float, Field(ge=0)]
MountKey = Literal["height_m", "pitch", "roll", "yaw", "x_m", "y_m"]


class Matrix(Section):
    """A matrix as OpenCV and ROS write it: row by row."""

    rows: Annotated[int, Field(ge=1)]
    cols: Annotated[int, Field(ge=1)]
    data: list[float]

    @model_validator(mode="after")
    def check(self) -> Matrix:
        if len(self.data) != self.rows * self.cols:
            raise ValueError(f"data has {len(self.data)} numbers, and rows times cols is {self.rows * self.cols}")
        return self


class CovarianceSection(Section):
    """`calibration.covariance.Covariance`: names, and the matrix row by row."""

    names: list[str]
    data: list[float]

    @model_validator(mode="after")
    def check(self) -> CovarianceSection:
        self.value  # noqa: B018 - raises what is wrong
        return self

    @property
    def value(self) -> Covariance:
        count = len(self.names)
        if len(self.data) != count**2:
            raise ValueError(f"{count} names need {count**2} numbers in data, got {len(self.data)}")
        return Covariance(tuple(self.names), tuple(tuple(self.data[i * count : (i + 1) * count]) for i in range(count)))


class MountSection(Section):
    """`calibration.camera.Mount`."""

    frame_id: str = "base_link"
    height_m: Annotated[float, Field(gt=0)]
    pitch: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0
    x_m: float = 0.0
    y_m: float = 0.0
    sigma: dict[MountKey, Deviation] = Field(default_factory=dict)
    covariance: CovarianceSection | None = None


class CameraFile(Section):
    """The file's keys; others at this level are other programs' business."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    image_width: Annotated[int, Field(gt=0)]
    image_height: Annotated[int, Field(gt=0)]
    camera_name: str = "camera"
    camera_matrix: Matrix
    distortion_model: Literal["plumb_bob", "rational_polynomial", "equidistant"]
    distortion_coefficients: Matrix
    mount: MountSection | None = None
    sigma: dict[str, Deviation] = Field(default_factory=dict)
    covariance: CovarianceSection | None = None


def read_camera(path: Path) -> tuple[Intrinsics, Mount | None]:
    """The camera in a YAML file, and its mount where there is one.

    Raises:
        ValueError: the file cannot be read, is no YAML, a key is missing or holds something else than it should; the
            sentence names the file and the key by its path.
    """
    tree = read_settings(CameraFile, path, {})
    model: DistortionModel = tree.distortion_model
    matrix, coefficients = tree.camera_matrix, tree.distortion_coefficients.data
    if (matrix.rows, matrix.cols) != (3, 3):
        raise ValueError(f"{path}: camera_matrix: wanted 3 rows and 3 cols, got {matrix.rows} and {matrix.cols}")
    fx, skew, cx, zero, fy, cy, *last = matrix.data
    if (skew, zero, *last) != (0, 0, 0, 0, 1):
        raise ValueError(f"{path}: camera_matrix.data: wanted fx 0 cx 0 fy cy 0 0 1, got {matrix.data}")
    if len(coefficients) > COEFFICIENTS[model]:
        raise ValueError(
            f"{path}: distortion_coefficients.data: {model} has {COEFFICIENTS[model]} coefficients, got {len(coefficients)}"
        )
    known = covariance_of(tree.covariance, PARAMETERS[model], f"{path}: covariance.names")
    try:
        intrinsics = Intrinsics(
            fx, fy, cx, cy, tree.image_width, tree.image_height, model, tuple(coefficients), tree.camera_name, tree.sigma, known
        )
    except ValueError as error:
        raise ValueError(f"{path}: camera_matrix.data: {error}") from error
    if tree.mount is None:
        return intrinsics, None
    known = covariance_of(tree.mount.covariance, (*POSE, *PARAMETERS[model]), f"{path}: mount.covariance.names")
    try:
        return intrinsics, Mount(**tree.mount.model_dump(exclude={"covariance"}), covariance=known)
    except ValueError as error:
        raise ValueError(f"{path}: mount: {error}") from error


def covariance_of(section: CovarianceSection | None, names: Sequence[str], where: str) -> Covariance | None:
    """Raises ValueError: it speaks of something else than ``names``."""
    if section is None:
        return None
    if others := [name for name in section.names if name not in names]:
        raise ValueError(f"{where}: {others[0]!r} is none of {', '.join(names)}")
    return section.value


def read_mounted(path: Path) -> Camera:
    """The camera in a YAML file with its mount. Raises ValueError as `read_camera`, and where there is no mount."""
    intrinsics, mount = read_camera(path)
    if mount is None:
        raise ValueError(f"{path}: mount: missing, so that nothing has a place on the ground; 'calibrate ground' writes it")
    return Camera(intrinsics, mount)


def write_camera(
    path: Path, intrinsics: Intrinsics, mount: Mount | None = None, others: Mapping[str, Any] | None = None
) -> None:
    """Write the file, whole or not at all; `read_camera` reads the same numbers. ``others`` as `to_yaml`. Raises OSError."""
    write_whole(path, to_yaml(intrinsics, mount, others).encode())


def other_keys(path: Path) -> dict[str, Any]:
    """What a camera file that `read_camera` reads holds beside: rectification and projection, and other programs' keys."""
    tree = parse_yaml(path.read_text(encoding="utf-8"))
    return {key: value for key, value in tree.items() if key not in CameraFile.model_fields}


def to_yaml(intrinsics: Intrinsics, mount: Mount | None = None, others: Mapping[str, Any] | None = None) -> str:
    """The file's text, with ``others`` (`other_keys`) as they were; without them no rectification is said."""
    k = intrinsics
    tree: dict[str, Any] = {
        "image_width": k.width,
        "image_height": k.height,
        "camera_name": k.name,
        "camera_matrix": matrix(3, 3, [k.fx, 0.0, k.cx, 0.0, k.fy, k.cy, 0.0, 0.0, 1.0]),
        "distortion_model": k.distortion_model,
        "distortion_coefficients": matrix(1, len(k.distortion), list(k.distortion)),
        "rectification_matrix": matrix(3, 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        "projection_matrix": matrix(3, 4, [k.fx, 0.0, k.cx, 0.0, 0.0, k.fy, k.cy, 0.0, 0.0, 0.0, 1.0, 0.0]),
    }
    tree |= others or {}
    if k.sigma:
        tree["sigma"] = {name: float(value) for name, value in k.sigma.items()}
    if k.covariance:
        tree["covariance"] = covariance_tree(k.covariance)
    if mount:
        tree["mount"] = {
            "frame_id": mount.frame_id,
            **{name: float(getattr(mount, name)) for name in POSE},
            "sigma": {name: float(value) for name, value in mount.sigma.items()},
        }
        if mount.covariance:
            tree["mount"]["covariance"] = covariance_tree(mount.covariance)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def covariance_tree(known: Covariance) -> dict[str, Any]:
    return {"names": list(known.names), "data": [value for row in known.rows for value in row]}


def matrix(rows: int, cols: int, data: list[float]) -> dict[str, Any]:
    return {"rows": rows, "cols": cols, "data": [float(value) for value in data]}
