"""The node's parameters: settings of `perception.config.Config` by their paths, and a few of ROS alone.

Types, ranges and defaults come from the settings themselves. ``python -m perception.ros.parameters`` prints the table of
docs/ros2.md, with ``--yaml`` launch/params.yaml.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import Field

from engine.settings import Section, read_settings
from perception.config import Config
from perception.errors import BadInput

NODE = "freespace"  # the node's name, unless it is given another
CHANGEABLE = ("polygons", "health", "stabilise")  # sections that `perception.node.run` takes while it runs

Kind = Literal["bool", "integer", "double", "string", "double_array"]
KINDS: dict[str, Kind] = {
    "boolean": "bool",
    "integer": "integer",
    "number": "double",
    "string": "string",
    "array": "double_array",
}
EMPTY: dict[Kind, Any] = {"integer": 0, "double": 0.0, "string": ""}  # stand for null, which ROS parameters do not know


class NodeConfig(Section):
    """What only the node needs to be told."""

    autostart: bool = Field(
        default=True, description="configure and activate at the start; false waits for a lifecycle manager"
    )
    image_transport: Literal["raw", "compressed"] = Field(
        default="raw", description="compressed subscribes image_raw/compressed"
    )
    reliability: Literal["best_effort", "reliable"] = Field(
        default="best_effort", description="asked of the images' publisher; best_effort matches every publisher"
    )
    snapshot_folder: str = Field(default="snapshots", description="folder that ~/snapshot writes to")
    occupancy_resolution_m: float = Field(default=0.2, gt=0, le=10, description="side of a cell of ~/occupancy, metres")


# The settings that a node has; what is captured and what is written are topics here.
DESCRIPTIONS = {
    "engine.model": "model file; empty for the one that ships with the package",
    "engine.backend": "auto, tensorrt, tensorrt_rtx, openvino, onnxruntime or torch",
    "engine.precision": "of the arithmetic; auto takes what suits the machine",
    "engine.threads": "CPU threads of the network; 0 leaves it to the backend",
    "engine.input_size": "of the network, such as 640x384; empty for the model file's own",
    "polygons.plane": "the whole road surface, or the part the ego vehicle may use",
    "polygons.threshold": "a pixel is drivable where its score exceeds this",
    "polygons.tolerance_px": "how far a simplified outline may lie off, source pixels",
    "polygons.min_region": "smaller regions are left out, fraction of the image's area",
    "polygons.min_hole": "smaller holes are filled, fraction of the image's area",
    "loop.budget_ms": "an older result is not valid, milliseconds since its image came",
    "loop.invalid_hz": "while there is no valid result, say so at this rate",
    "health.enabled": "look whether pictures can be trusted",
    "health.dark_level": "grey level of 255 that the brightest hundredth must reach",
    "health.bright_fraction": "of the picture that may be saturated",
    "health.covered_fraction": "of the picture that may show nothing",
    "health.least_sharpness": "finest details relative to coarse contrast; by day about 0.9",
    "health.defocus_fraction": "of the sharpness the camera used to have",
    "health.blind_after": "pictures in a row that are less sharp than that",
    "health.frozen_s": "identical pictures for so long, seconds; 0: never",
    "health.clear_s": "good pictures for so long before they are trusted again, seconds",
    "stabilise.enabled": "steady results over time",
    "stabilise.hold_drivable": "a drivable pixel is held while its score is less than this below the threshold, fraction of it",
    "stabilise.hold_blocked": "one that is not, while its score is less than this above it, fraction of the rest",
    "stabilise.settle_s": "time constant with which what is held is let go, seconds",
    "stabilise.gap_s": "begin anew after so long without an image, seconds",
    "ground.calibration": "file of the camera with its mount, from 'freespace calibrate'; empty: pixels only",
    "ground.max_range_m": "from base_link's origin, metres",
    "ground.min_range_m": "nearer ground is not looked at: a bonnet may hide it, metres",
    "ground.scan_step": "between the ranges of ~/scan, radians",
    "ground.vehicle_width_m": "metres",
    "ground.bumper_m": "how far the front bumper is ahead of base_link's origin, metres",
    "ground.widths_at_m": "forward distances at which the free width is measured, metres",
    "ground.pixel_sigma": "standard deviation of an outline, fraction of the image's height",
    "ground.pitch_sigma": "standard deviation of pitch and roll against the road, radians",
    "ground.refine_pitch": "correct the calibrated pitch slowly, by the direction in which the vehicle moves",
}
DEFAULTS = {"stabilise.enabled": True}  # where the setting's own is null and not said by `EMPTY`: images of a topic are a video


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: path of the setting, ``polygons.threshold``.
        default: of the type that ``kind`` says.
        choices: the texts that are allowed; () where any is.
        least, most: the range; infinite where it is no number.
        above, below: whether its ends are left out.
        nullable: whether its empty value (`EMPTY`) stands for null.
        change: when a new value takes effect: ``at once`` while it runs, ``at configure``, or ``never`` after the start.
    """

    name: str
    kind: Kind
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    nullable: bool = False
    change: Literal["at once", "at configure", "never"] = "at configure"

    @property
    def bounded(self) -> bool:
        """Whether it is a number: each has a range."""
        return self.most < math.inf


def parameters() -> list[Parameter]:
    """Every parameter, those of ROS alone first."""
    own = NodeConfig.model_json_schema()["properties"]
    found = [read_schema(name, schema, schema["description"]) for name, schema in own.items()]
    sections = Config.model_json_schema()["$defs"]
    kinds = {name: type(section).__name__ for name, section in Config()}
    for path, description in DESCRIPTIONS.items():
        section, _, key = path.partition(".")
        found.append(read_schema(path, sections[kinds[section]]["properties"][key], description))
    return found


def read_schema(name: str, schema: Mapping[str, Any], description: str) -> Parameter:
    """The parameter of a setting with this JSON schema."""
    branches = schema.get("anyOf", [schema])
    value = next(branch for branch in branches if branch["type"] != "null")
    kind = KINDS[value["type"]]
    nullable = len(branches) > 1 and kind in EMPTY
    least = value.get("minimum", value.get("exclusiveMinimum", -math.inf))
    section, _, key = name.rpartition(".")
    default = getattr(getattr(Config(), section) if section else NodeConfig(), key)
    if default is None:
        default = DEFAULTS[name] if name in DEFAULTS else EMPTY[kind]
    change: Literal["at once", "at configure", "never"] = "at once" if section in CHANGEABLE else "at configure"
    return Parameter(
        name=name,
        kind=kind,
        default=float(default) if kind == "double" else default,
        description=description,
        choices=tuple(value.get("enum", ())),
        least=least,
        most=value.get("maximum", value.get("exclusiveMaximum", math.inf)),
        above="exclusiveMinimum" in value and not nullable,  # there 0 is allowed: it is null
        below="exclusiveMaximum" in value,
        nullable=nullable,
        change="never" if name == "autostart" else change,
    )


def settings(values: Mapping[str, Any]) -> tuple[Config, NodeConfig]:
    """The settings that these values of all parameters stand for.

    Raises:
        BadInput: a value is out of its range, or is none of the choices; the sentence names the parameter.
    """
    known = {p.name: p for p in parameters()}
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {"loop.policy": "latest"}
    for name, value in values.items():
        parameter = known[name]
        value = list(value) if parameter.kind == "double_array" else value
        given = None if parameter.nullable and value == EMPTY[parameter.kind] else value
        (shared if "." in name else own)[name] = given
    try:
        return read_settings(Config, None, shared), read_settings(NodeConfig, None, own)
    except ValueError as error:
        raise BadInput(str(error)) from error


# -- For people --------------------------------------------------------------------------------------------------------


def table() -> str:
    """All parameters as a table in Markdown."""
    rows = ["| parameter | type | default | range | takes effect | meaning |", "|---|---|---|---|---|---|"]
    for p in parameters():
        cells = (f"`{p.name}`", p.kind, shown(p.default), span(p), p.change, p.description)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def shown(value: Any) -> str:
    return f"`{value}`".lower() if isinstance(value, bool) else f"`{value}`" if value != "" else "empty"


def span(parameter: Parameter) -> str:
    """The range in words."""
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if not parameter.bounded:
        return ""
    least = f"{'above' if parameter.above else 'from'} {parameter.least:g}"
    return f"{least} to {'below ' if parameter.below else ''}{parameter.most:.7g}"


def example() -> str:
    """All parameters with their defaults, as a file for ``--params-file``."""
    return "\n".join(yaml_lines()) + "\n"


def yaml_lines() -> Iterator[str]:
    yield "# Every parameter of the node with its default; docs/ros2.md says what is allowed, and when changes take effect."
    yield "# A number of type double needs its point: 250.0. Empty texts, and 0 where it says so, stand for nothing."
    yield "/**:"
    yield "  ros__parameters:"
    section = ""
    for p in parameters():
        before, _, key = p.name.rpartition(".")
        if before != section:
            yield f"    {before}:"
            section = before
        value = yaml.safe_dump(p.default, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
        yield f"    {'  ' if section else ''}{key}: {value}  # {p.description}"


if __name__ == "__main__":
    print(example() if "--yaml" in sys.argv else table(), end="")
