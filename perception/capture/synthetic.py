"""The rendered drive as a source of frames."""

from __future__ import annotations

import time
from collections.abc import Iterator

from perception.capture.base import Selection, Source
from perception.errors import BadInput
from perception.frame import Frame
from perception.synthetic import render, scene_from_uri


class SyntheticSource(Source):
    """Frames of a scene, for example of ``synthetic://curve?size=640x360&seconds=4``; see `perception.synthetic`.

    ``seq`` is the frame's index in the scene: ``render(source.scene, frame.seq)`` gives the truth that belongs to it.

    Attributes:
        scene: what the URI names.

    Raises:
        BadInput: the URI names no scene, or the selection begins after its end.
    """

    def __init__(self, uri: str, selection: Selection | None = None) -> None:
        selection = selection or Selection()
        self.scene = scene_from_uri(uri)
        fps, count = self.scene.fps, self.scene.frame_count
        first = _first_frame_at(selection.start_s, fps)
        if first >= count:
            raise BadInput(f"{uri}: starts after its end: it is {count / fps:.2f} s long, asked for {selection.start_s:g} s")
        if selection.duration_s is not None:
            # As with any recording, even the shortest stretch holds one frame.
            count = min(count, max(_first_frame_at(selection.start_s + selection.duration_s, fps), first + 1))
        self._indices = range(first, count, selection.every)
        super().__init__(uri, fps / selection.every, len(self._indices))

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that were asked for, as fast as they can be rendered."""
        for index in self._indices:
            begun = time.perf_counter_ns()
            image = render(self.scene, index).image
            yield Frame(
                image=image,
                seq=index,
                stamp_ns=round(index / self.scene.fps * 1e9),
                clock="media",
                source=self.uri,
                name=f"{index:06d}",
                decode_ms=(time.perf_counter_ns() - begun) / 1e6,
            )


def _first_frame_at(seconds: float, fps: float) -> int:
    """Index of the first frame whose time is not before ``seconds``."""
    index = max(seconds, 0.0) * fps
    # 0.28 s * 25 is 7.000000000000001 in floating point and means frame 7.
    return round(index) if abs(index - round(index)) < 1e-6 else int(index) + 1
