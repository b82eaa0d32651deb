"""One YAML file, one typed tree. Every command-line option has a key here; unknown keys and wrong types are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perception.errors import BadInput

LONGEST_S = 1e9

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    tree = read_yaml(path) if path else {}
    for key, value in overrides.items():
        if value is not None:
            section, name = key.split(".")
            branch = tree.setdefault(section, {})
            if not isinstance(branch, dict):
                raise BadInput(f"{path}: {section}: wanted a section with keys, got {branch!r}")
            branch[name] = value
    try:
        return Config.model_validate(tree, strict=True)
    except ValidationError as error:
        where = f"{path}: " if path else ""
        raise BadInput("; ".join(where + describe(e) for e in error.errors())) from error


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read the configuration: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: wanted sections {', '.join(Config.model_fields)}, got a {type(tree).__name__}")
    return tree


def describe(error: Any) -> str:
    """One phrase for one validation error: the key's path, what is wrong, what would be right."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"{key}: unknown key; known here: {', '.join(section.model_fields)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{key}: wanted WIDTHxHEIGHT such as 640x384, got {error['input']!r}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}, got {error['input']!r}"
