"""Consumers of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from perception.config import Config, OutputConfig
from perception.errors import BadInput
from perception.sinks.base import Output, Sink, check_output, make_folder, part_of
from perception.sinks.jsonl import check_series
from perception.status import Status

__all__ = ["Output", "Sink", "check_output", "check_outputs", "open_sinks"]


def check_outputs(output: OutputConfig, source: str, state: str | None = None) -> None:
    """Make sure before any work that every output, ``state`` among them, can be written and none would replace the source.

    Raises:
        BadInput: an output exists already and neither ``overwrite`` nor ``append`` is on, cannot be written, or is the source.
    """
    names = (output.video, output.polygons, output.contact_sheet, output.mcap, output.rerun, state)
    files = [Path(name) for name in names if name is not None]
    origin = Path(source)
    for file in files:
        if not file.name or file.is_dir():
            raise BadInput(f"{file}: is a folder; give a file name")
        for written in (file, part_of(file)):
            if same(written, origin) or (written.exists() and same(written.parent, origin)):
                raise BadInput(f"{written}: is the source itself or one of its images; choose another output")
    if len({file.absolute() for file in files}) < len(files):
        raise BadInput(f"{files[0]}: two outputs cannot share a file; give each its own name")
    rotated = output.rotate_mb is not None
    for name, numbered in (
        (output.polygons, rotated),
        (output.mcap, rotated or output.append),
        (output.rerun, output.append),
    ):
        if name:
            check_series(Path(name), output.overwrite, output.append, numbered)
    for name in (output.video, output.contact_sheet):
        if name and output.append:
            raise BadInput(f"{name}: --append cannot go on with it; leave it out")
        if name:
            check_output(Path(name), output.overwrite)
    if output.bag:
        from perception.sinks.bag import check_bag

        check_bag(Path(output.bag), output.overwrite)
        if same(Path(output.bag), origin) or same(Path(output.bag), origin.parent):
            raise BadInput(f"{output.bag}: is the source itself; choose another output")
        if output.append:
            raise BadInput(f"{output.bag}: --append cannot go on with it; leave it out")
    if (output.append or rotated) and not (output.polygons or output.mcap or output.rerun):
        raise BadInput("--append and --rotate-mb are about --polygons, --mcap and --rerun, and there is none of these")
    if state:
        make_folder(Path(state).parent)
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
        BadInput: a name does not fit the kind of output, an address or a package is missing, or there is no screen. What was
            opened until then is closed.
    """
    sinks: list[Sink] = []
    try:
        for sink in begin_sinks(config, fps, status):
            sinks.append(sink)
    except ModuleNotFoundError as error:
        close_all(sinks)
        needed = str(error.name).partition(".")[0]
        how = "pip install '.[web]' in the project's folder"
        raise BadInput(f"--serve and --metrics need {needed}, which is not installed; {how}") from error
    except OSError as error:
        close_all(sinks)
        raise BadInput(f"{error.filename}: cannot be written: {error.strerror}") from error
    except BaseException:
        close_all(sinks)
        raise
    return sinks


def begin_sinks(config: Config, fps: float | None, status: Callable[[], Status]) -> Iterator[Sink]:
    """What fails for want of something comes first, what makes files last. Raises as `open_sinks`, and ModuleNotFoundError."""
    output = config.output
    if output.serve:
        from perception.sinks.web import WebSink

        yield WebSink(output.serve, output.token, status)
    if output.metrics and output.metrics != output.serve:  # the page has them, too
        from perception.sinks.metrics import MetricsSink

        yield MetricsSink(output.metrics, output.token, status)
    if output.show:
        from perception.sinks.window import WindowSink

        yield WindowSink()
    if output.view:
        from perception.sinks.rerun_view import RerunSink

        yield RerunSink(None, output.image_width, output.image_quality)
    if config.loop.state:
        from perception.service import Memory

        yield Memory(Path(config.loop.state))
    if output.video:
        from perception.sinks.video import VideoSink

        yield VideoSink(Path(output.video), fps)
    if output.masks:
        from perception.sinks.masks import MaskSink

        yield MaskSink(Path(output.masks), output.overwrite)
    if output.contact_sheet:
        from perception.sinks.contact_sheet import ContactSheetSink

        yield ContactSheetSink(Path(output.contact_sheet))
    if output.rerun:
        from perception.sinks.rerun_view import RerunSink

        yield RerunSink(Path(output.rerun), output.image_width, output.image_quality, output.append)
    if output.bag:
        from perception.sinks.bag import BagSink

        yield BagSink(Path(output.bag), output.bag_topics, output.overwrite, status)
    if output.mcap:
        from perception.sinks.recording import McapSink

        yield McapSink(
            Path(output.mcap), output.image_width, output.image_quality, output.rotate_mb, output.append, output.overwrite
        )
    if output.polygons:
        from perception.sinks.jsonl import JsonlSink

        yield JsonlSink(Path(output.polygons), output.rotate_mb, output.append, output.overwrite)


def close_all(sinks: list[Sink]) -> None:
    for sink in sinks:
        with suppress(OSError):
            sink.close()
