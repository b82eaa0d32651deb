"""Looks at the pictures while the network is at work on them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import NamedTuple

from perception.causes import Cause, Code
from perception.config import HealthConfig
from perception.frame import Frame
from perception.pictures import PictureCheck


class Sight(NamedTuple):
    """What is to be said of a picture.

    Attributes:
        causes: as of `perception.pictures.PictureCheck.look`.
        scene: pictures of one number go on from each other; after a cut, or in another stretch, there is another one.
    """

    causes: tuple[Cause, ...]
    scene: int


class Sighted(NamedTuple):
    """A frame, and what will be said of its picture."""

    frame: Frame
    sight: Future[Sight]


class Lookout:
    """Looks at every frame of a source, also at those that the network has no time for."""

    def __init__(self, config: HealthConfig, live: bool, continuous: bool) -> None:
        self._check = PictureCheck(config, live and continuous)  # of separate images two may be the same
        self._continuous = continuous
        self._stretch: int | None = None
        self._scene = 0

    def configure(self, config: HealthConfig) -> None:
        """Go on with other limits; from any thread."""
        self._check.configure(config)

    def look(self, frame: Frame) -> Sight:
        """Look at the next frame."""
        if not self._continuous or frame.stretch != self._stretch:
            self._stretch = frame.stretch
            self._scene += 1
            self._check.reset()
        causes = tuple(self._check.look(frame))
        self._scene += any(cause.code is Code.SCENE_CUT for cause in causes)
        return Sight(causes, self._scene)

    def fulfil(self, sighted: Sighted) -> None:
        """Look at the next frame for whoever waits to hear of it."""
        try:
            sighted.sight.set_result(self.look(sighted.frame))
        except BaseException as error:
            sighted.sight.set_exception(error)
            raise
