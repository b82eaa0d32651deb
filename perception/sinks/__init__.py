"""Consumers of results."""

from __future__ import annotations

from pathlib import Path

from perception.config import Config, OutputConfig
from perception.errors import BadInput
from perception.sinks.base import Output, Sink, check_output, make_folder

__all__ = ["Output", "Sink", "check_output", "check_outputs", "open_sinks"]


def check_outputs(output: OutputConfig, source: str) -> None:
    """Make sure before any work that every output can be written and none would replace the source.

    Raises:
        BadInput: an output exists already and ``overwrite`` is off, cannot be written, or is the source itself.
    """
    for name in (output.video, output.polygons, output.contact_sheet):
        if name:
            check_output(Path(name), output.overwrite)
            refuse_source(Path(name), source)
    if output.masks:
        folder = Path(output.masks)
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder}: is a file; --masks wants a folder")
        refuse_source(folder, source)
        make_folder(folder)


def refuse_source(target: Path, source: str) -> None:
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise BadInput(f"{target}: is the source itself; choose another output")


def open_sinks(config: Config, fps: float | None) -> list[Sink]:
    """The sinks that ``config.output`` asks for; `check_outputs` comes first.

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
    return sinks
