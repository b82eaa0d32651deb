"""Which cameras a run has, and the settings of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from engine.settings import Section
from perception.capture.uri import parse
from perception.config import CameraConfig, Config, OutputConfig, RigConfig
from perception.errors import BadInput

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # it becomes part of files' names
FILES = ("video", "polygons", "contact_sheet", "mcap", "bag", "rerun")  # outputs that get the camera's name
SERVERS = ("serve", "metrics")  # outputs that get a port for each camera

S = TypeVar("S", bound=Section)


def split_name(argument: str) -> tuple[str, str]:
    """(name, source) of ``NAME=SOURCE``; no name where there is none, or a file is called so."""
    named = re.fullmatch(f"({NAME})=(.+)", argument, re.DOTALL)
    return (named[1], named[2]) if named and not Path(argument).exists() else ("", argument)


def name_sources(arguments: Sequence[str]) -> dict[str, str]:
    """Sources by their cameras' names: given as ``NAME=SOURCE``, or made from the source, ``drive.mp4`` to ``drive``.

    Raises:
        BadInput: a name is given twice, or there can be no such source.
    """
    pairs = [split_name(argument) for argument in arguments]
    given = Counter(name for name, _ in pairs if name)
    if twice := [name for name, count in given.items() if count > 1]:
        raise BadInput(f"two cameras are called {twice[0]}; give each a name of its own, as in front=SOURCE")
    sources: dict[str, str] = {}
    for name, source in pairs:
        stem, number = name or name_of(source), 1
        wanted = stem
        while wanted in sources or (not name and wanted in given):
            number += 1
            wanted = f"{stem}-{number}"
        sources[wanted] = source
    return sources


def name_of(source: str) -> str:
    """A camera's name from where its frames come; without credentials. Raises BadInput: there can be no such source."""
    address = parse(source)
    if address.kind in ("file", "v4l2"):
        name = Path(address.target).stem
    elif address.kind in ("csi", "gstreamer"):
        name = f"csi{address.target}" if address.kind == "csi" else "gstreamer"
    else:
        parts = urlsplit(address.shown)
        name = Path(parts.path).stem or parts.hostname or ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "camera"


def camera_configs(rig: RigConfig, sources: Mapping[str, str], given: Collection[str]) -> dict[str, Config]:
    """The settings of each camera: those for all, and what it has of its own; ``capture.source`` is there.

    Args:
        sources: by the cameras' names, as `name_sources` gives them; where there are none, all cameras of ``rig``.
        given: keys that a camera cannot have of its own: they were given on the command line.

    Raises:
        BadInput: a camera has no source, a name that cannot be part of a file's, or one calibration is for all.
    """
    names = list(sources or rig.cameras)
    if odd := [name for name in names if not re.fullmatch(NAME, name)]:
        raise BadInput(f"cameras.{odd[0]}: a camera's name is made of letters, digits and . _ - alone")
    alone = [name for name in ("show", "view") if getattr(rig.output, name)]
    if len(names) > 1 and alone:
        raise BadInput(f"--{alone[0]} is for one camera; to see several give --serve HOST:PORT")
    configs: dict[str, Config] = {}
    for index, name in enumerate(names):
        own = rig.cameras.get(name, CameraConfig())
        ground = merged("ground", rig.ground, own.ground, given)
        if len(names) > 1 and ground.calibration and ground.calibration == rig.ground.calibration:
            raise BadInput(
                f"{ground.calibration}: one calibration cannot be of several cameras; give each its own as "
                f"cameras.{name}.ground.calibration in the --config file"
            )
        capture = merged("capture", rig.capture, own.capture, given)
        changes = {"source": sources.get(name) or capture.source}
        if "frame_id" not in own.capture.model_fields_set:
            changes["frame_id"] = name
        if not changes["source"]:
            raise BadInput(f"cameras.{name}.capture.source: is missing; say where the frames come from")
        state = rig.loop.state
        configs[name] = Config(
            capture=capture.model_copy(update=changes),
            engine=rig.engine,
            polygons=merged("polygons", rig.polygons, own.polygons, given),
            loop=rig.loop.model_copy(update={"state": state and named_path(state, name)}),
            health=merged("health", rig.health, own.health, given),
            stabilise=merged("stabilise", rig.stabilise, own.stabilise, given),
            ground=ground,
            output=named_outputs(rig.output, name, index),
        )
    return configs


def merged(section: str, shared: S, own: S, given: Collection[str]) -> S:
    """``shared`` with what was said in ``own``, but for what is ``given`` otherwise."""
    said = {key: getattr(own, key) for key in own.model_fields_set if f"{section}.{key}" not in given}
    return shared.model_copy(update=said)


def named_outputs(output: OutputConfig, name: str, index: int) -> OutputConfig:
    """The outputs of one camera: ``drive-NAME.jsonl``, ``masks/NAME/``, and the port that is ``index`` further on."""
    changes: dict[str, str] = {}
    for kind in (*FILES, *SERVERS, "masks"):
        wanted = getattr(output, kind)
        if wanted and kind in SERVERS:
            changes[kind] = next_port(wanted, index)
        elif wanted:
            changes[kind] = str(Path(wanted) / name) if kind == "masks" else named_path(wanted, name)
    return output.model_copy(update=changes)


def named_path(path: str, name: str) -> str:
    file = Path(path)
    return str(file.with_name(f"{file.stem}-{name}{file.suffix}")) if file.name else path


def next_port(address: str, index: int) -> str:
    """``HOST:PORT`` with the port ``index`` further on; port 0 takes any, and what is no address is refused later."""
    host, colon, port = address.rpartition(":")
    return f"{host}:{int(port) + index}" if colon and re.fullmatch("[0-9]{1,5}", port) and int(port) else address
