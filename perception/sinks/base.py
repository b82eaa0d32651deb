"""What every consumer of results offers, and how its files come to be whole."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.preprocess import Resampling
from perception.config import PolygonConfig
from perception.errors import BadInput
from perception.frame import Frame
from perception.freespace import Freespace

if TYPE_CHECKING:
    from perception.metres import Metres

DEFAULTS = PolygonConfig()


@dataclass(frozen=True)
class Output:
    """One frame with its result.

    Attributes:
        scores: uint8 ``(h, w)`` of the chosen plane, at the network's size.
        resampling: how the frame was brought to that size.
        polygons: how the result's polygons came from the scores.
        metres: of the camera, for frames of this size; None where it is not calibrated.
    """

    frame: Frame
    result: Freespace
    scores: NDArray[np.uint8]
    resampling: Resampling
    polygons: PolygonConfig = DEFAULTS
    metres: Metres | None = None


class Sink(ABC):
    """Takes outputs in order, from one thread. An `OSError` from its methods is taken to be about ``target``.

    Attributes:
        target: the file, folder or device it writes to.
        made: what there is to tell the user once it is closed, e.g. the file's path.
        lossless: whether a recording waits for it; viewers are not waited for. Of a live source nothing is.
        listened: whether somebody listens to it; without one such output that works, a live run is over.
    """

    target: Path
    made: str = ""
    lossless: bool = True
    listened: bool = True

    def write_without_frame(self, result: Freespace) -> None:  # noqa: B027 - most have nothing to draw then
        """Take a result that says only why there is none: ``valid`` is False, ``seq`` that of the newest result before it."""

    @abstractmethod
    def write(self, output: Output) -> None:
        """Take one output."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun: whole files under their final names. Called once, also after an error in `write`."""


def part_of(final: Path) -> Path:
    """The name under which ``final`` is written until it is whole: hidden, so that no image is called so."""
    return final.with_name(f".{final.stem}.part{final.suffix}")


def write_whole(final: Path, data: bytes) -> None:
    """Write ``final`` at once, or leave nothing of it. Raises OSError where it cannot be written."""
    part = part_of(final)
    try:
        part.write_bytes(data)
        part.replace(final)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def check_output(final: Path, overwrite: bool) -> None:
    """Make sure before any work that the file ``final`` can be written, making its folder.

    Raises:
        BadInput: it exists and ``overwrite`` is off, or its folder cannot be made or written.
    """
    if final.is_dir():
        raise BadInput(f"{final}: is a folder; give a file name")
    if final.exists() and not overwrite:
        raise BadInput(f"{final}: exists already; give --overwrite to replace it")
    if part_of(final).exists() and not overwrite:
        raise BadInput(f"{part_of(final)}: left by a run that did not finish; look at it, or give --overwrite to replace it")
    make_folder(final.parent)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot make this folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder}: this folder cannot be written")
