"""Consumers of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perception.config import Config, OutputConfig
from perception.errors import BadInput
from perception.sinks.base import Output, Sink, check_output, make_folder, part_of
from perception.status import Status

__all__ = ["Output", "Sink", "check_output", "check_outputs", "open_sinks"]


def check_outputs(output: OutputConfig, source: str) -> None:
    """Make sure before any work that every output can be written and none would replace the source.

    Raises:
        BadInput: an output exists already and ``overwrite`` is off, cannot be written, or is the source itself.
    """
    files = [Path(name) for name in (output.video, output.polygons, output.contact_sheet) if name]
    origin = Path(source)
    for file in files:
        for written in (file, part_of(file)):
            if same(written, origin) or (written.exists() and same(written.parent, origin)):
                raise BadInput(f"{written}: is the source itself or one of its images; choose another output")
        check_output(file, output.overwrite)
    if len({file.absolute() for file in files}) < len(files):
        raise BadInput(f"{files[0]}: two outputs cannot share a file; give each its own name")
    if output.masks:
        folder = Path(output.masks)
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder}: is a file; --masks wants a folder")
        if same(folder, origin) or same(folder / f"{origin.stem}.png", origin):
            raise BadInput(f"{folder}: holds the source, and masks are called as their images; choose another folder")
        make_folder(folder)


def same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def open_sinks(config: Config, fps: float | None, status: Callable[[], Status] = Status) -> list[Sink]:
    """The sinks that ``config.output`` asks for; `check_outputs` comes first.

    Args:
        fps: of the source.
        status: how the run is doing.

    Raises:
        BadInput: a name does not fit the kind of output, or there is no screen.
    """
    output = config.output
    sinks: list[Sink] = []
    if output.show:
        from perception.sinks.window import WindowSink

        sinks.append(WindowSink())
    if output.video:
        from perception.sinks.video import VideoSink

        sinks.append(VideoSink(Path(output.video), fps))
    if output.masks:
        from perception.sinks.masks import MaskSink

        sinks.append(MaskSink(Path(output.masks), config.polygons, output.overwrite))
    if output.contact_sheet:
        from perception.sinks.contact_sheet import ContactSheetSink

        sinks.append(ContactSheetSink(Path(output.contact_sheet)))
    if output.polygons:
        from perception.sinks.jsonl import JsonlSink

        sinks.append(JsonlSink(Path(output.polygons)))
    if config.loop.state:
        from perception.service import Memory

        sinks.append(Memory(Path(config.loop.state)))
    return sinks
