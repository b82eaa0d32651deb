"""One YAML file, one typed tree. Every command-line option has a key here; unknown keys and wrong types are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.settings import Section, read_settings
from perception.errors import BadInput

LONGEST_S = 1e9

Fraction = Annotated[float, Field(ge=0, le=1)]


class CaptureConfig(Section):
    """What is taken from the source."""

    start_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0
    duration_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    every: Annotated[int, Field(ge=1)] = 1
    image_fps: Annotated[float, Field(gt=0)] = 10.0  # rate at which a folder of images is played


class EngineConfig(Section):
    """The network and what runs it."""

    model: str | None = None  # None: the model that ships with the package
    backend: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"  # as `engine.open_engine`
    threads: Annotated[int, Field(ge=0)] = 0  # 0: the backend's choice
    input_size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = (
        None  # such as 640x384; None: the model file's own
    )


class PolygonConfig(Section):
    """How scores become polygons."""

    plane: Literal["freespace", "ego"] = "freespace"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    tolerance_px: Annotated[float, Field(ge=0)] = 0.5  # how far a simplified outline may lie off, source pixels
    min_region: Fraction = 5e-4  # smaller regions are left out, as a fraction of the image's area
    min_hole: Fraction = 5e-5  # smaller holes are filled, likewise


class OutputConfig(Section):
    """What is written. Paths; None writes nothing."""

    video: str | None = None
    polygons: str | None = None
    masks: str | None = None
    contact_sheet: str | None = None
    overwrite: bool = False
    show: bool = False


class Config(Section):
    """Everything that can be set."""

    capture: CaptureConfig = CaptureConfig()
    engine: EngineConfig = EngineConfig()
    polygons: PolygonConfig = PolygonConfig()
    output: OutputConfig = OutputConfig()


def load_config(path: Path | None, overrides: dict[str, Any]) -> Config:
    """The defaults, then the YAML file, then ``overrides`` (``"engine.backend": "openvino"``; None means not given).

    Raises:
        BadInput: the file is missing or no YAML, or a key is unknown or has a value of the wrong type or range; the
            message names the key by its path.
    """
    try:
        return read_settings(Config, path, {key: value for key, value in overrides.items() if value is not None})
    except ValueError as error:
        raise BadInput(str(error)) from error
