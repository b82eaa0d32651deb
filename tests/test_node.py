"""The loop between source, engine and sinks, and the slots between its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import road_image, write_model

from engine import ModelError, open_engine
from engine.base import Engine
from perception.capture import Source
from perception.config import Config, HealthConfig, PolygonConfig
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame
from perception.freespace import Freespace
from perception.node import run
from perception.sinks.base import Output, Sink
from perception.slot import Closed, Slot

ROAD = Config(health=HealthConfig(enabled=False))
SOON_S = 5.0  # longer than anything here takes; only a hanging test waits for it


class ListSource(Source):
    """``count`` frames of the road; ``error`` is raised in place of frame ``fails_at``."""

    def __init__(self, count: int, error: BaseException | None = None, fails_at: int | None = None) -> None:
        super().__init__("list", 10.0, count)
        self.count, self.error, self.fails_at = count, error, fails_at

    def frames(self) -> Iterator[Frame]:
        for number in range(self.count):
            if number == self.fails_at and self.error:
                raise self.error
            yield Frame(road_image(), number, number * 100_000_000, "media", "list", frame_id="front", name=str(number))


class ListSink(Sink):
    """Remembers what it gets; raises ``error`` at the output ``fails_at``, and ``closing_error`` when it is closed."""

    def __init__(
        self,
        error: BaseException | None = None,
        fails_at: int | None = None,
        delay_s: float = 0.0,
        closing_error: BaseException | None = None,
    ) -> None:
        self.target = Path("list")
        self.outputs: list[Output] = []
        self.closed = 0
        self.error, self.fails_at, self.delay_s, self.closing_error = error, fails_at, delay_s, closing_error

    @property
    def numbers(self) -> list[int]:
        return [o.result.seq for o in self.outputs]

    def write(self, output: Output) -> None:
        time.sleep(self.delay_s)
        if len(self.outputs) == self.fails_at and self.error:
            raise self.error
        self.outputs.append(output)

    def close(self) -> None:
        self.closed += 1
        if self.closing_error:
            raise self.closing_error


def no_threads_left() -> bool:
    return not any(t.name in ("capture", "list") for t in threading.enumerate())


def test_every_frame_reaches_every_sink_in_order(tiny_engine: Engine) -> None:
    sinks, seen = [ListSink(), ListSink()], []
    summary = run(ListSource(50), tiny_engine, sinks, ROAD, on_result=lambda r: seen.append(r.seq))
    assert sinks[0].numbers == sinks[1].numbers == seen == list(range(50))
    assert [s.closed for s in sinks] == [1, 1]
    assert (summary.frames, summary.dropped, summary.interrupted, summary.problems) == (50, 0, False, [])
    assert summary.fps == pytest.approx(50 / summary.wall_s)
    assert no_threads_left()


def test_result_carries_what_came_with_the_frame(tiny_engine: Engine) -> None:
    sink = ListSink()
    run(ListSource(3), tiny_engine, [sink], ROAD)
    result = sink.outputs[2].result
    assert (result.seq, result.stamp_ns, result.clock) == (2, 200_000_000, "media")
    assert (result.source, result.frame_id) == ("list", "front")
    assert (result.size, result.valid, result.state, result.backend) == ((128, 64), True, "running", "onnxruntime")
    assert result.model == tiny_engine.contract.sha256


@pytest.mark.parametrize(("plane", "left"), [("freespace", -0.5), ("ego", 63.5)])
def test_polygons_are_where_the_road_is(tiny_engine: Engine, plane: str, left: float) -> None:
    """The lower half for the whole road, its right half for the own carriageway; both borders lie between pixels."""
    sink = ListSink()
    run(ListSource(1), tiny_engine, [sink], Config(polygons=PolygonConfig(plane=plane), health=HealthConfig(enabled=False)))
    (polygon,) = sink.outputs[0].result.polygons
    assert polygon.plane == plane
    assert polygon.exterior.min(axis=0) == pytest.approx([left, 31.5], abs=0.1)
    assert polygon.exterior.max(axis=0) == pytest.approx([127.5, 63.5], abs=0.1)
    assert polygon.area_px == pytest.approx((127.5 - left) * 32, rel=0.01)
    assert polygon.confidence > 0.98
    assert polygon.ego


def test_latencies_are_there_and_add_up(tiny_engine: Engine) -> None:
    sink = ListSink()
    summary = run(ListSource(5), tiny_engine, [sink], ROAD)
    stages = ["decode", "preprocess", "infer", "postprocess"]
    for output in sink.outputs:
        latency = output.result.latency_ms
        assert list(latency) == [*stages, "total"]
        assert all(v >= 0 for v in latency.values())
        assert sum(latency[s] for s in stages) <= latency["total"] + 1e-6
    assert list(summary.stages.percentiles())[:5] == [*stages, "total"]
    assert "list" in summary.stages.percentiles(), "the sink's own time"


def test_slow_sink_loses_nothing(tiny_engine: Engine) -> None:
    slow, quick = ListSink(delay_s=0.01), ListSink()
    run(ListSource(40), tiny_engine, [slow, quick], ROAD)
    assert slow.numbers == quick.numbers == list(range(40))


def test_failing_sink_stops_the_run_and_closes_the_others(tiny_engine: Engine) -> None:
    bad, good = ListSink(ValueError("ink is out"), fails_at=5), ListSink()
    with pytest.raises(ValueError, match="ink is out"):
        run(ListSource(1000), tiny_engine, [bad, good], ROAD)
    assert (bad.closed, good.closed) == (1, 1)
    assert 5 <= len(good.numbers) < 100, "it stops soon"
    assert good.numbers == list(range(len(good.numbers)))
    assert no_threads_left()


@pytest.mark.parametrize("moment", ["write", "close"])
def test_full_disk_becomes_one_sentence(tiny_engine: Engine, moment: str) -> None:
    full = OSError(28, "No space left on device")
    sink = ListSink(full, fails_at=0) if moment == "write" else ListSink(closing_error=full)
    with pytest.raises(FreespaceError, match=r"^list: cannot be written: No space left on device$") as caught:
        run(ListSource(3), tiny_engine, [sink], ROAD)
    assert not isinstance(caught.value, BadInput)
    assert sink.closed == 1


def test_failing_source_keeps_what_was_written(tiny_engine: Engine) -> None:
    sink = ListSink()
    with pytest.raises(FreespaceError, match="cable pulled"):
        run(ListSource(20, FreespaceError("cable pulled"), fails_at=7), tiny_engine, [sink], ROAD)
    assert sink.numbers == list(range(7))
    assert sink.closed == 1
    assert no_threads_left()


def test_failing_listener_closes_the_sinks(tiny_engine: Engine) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no more")

    sink = ListSink()
    with pytest.raises(RuntimeError, match="no more"):
        run(ListSource(20), tiny_engine, [sink], ROAD, on_result=fail)
    assert sink.closed == 1
    assert no_threads_left()


def test_failing_engine_closes_the_sinks(tiny_engine: Engine) -> None:
    class Bad(ListSource):
        def frames(self) -> Iterator[Frame]:
            yield from super().frames()
            yield Frame(np.zeros((4, 4), np.uint8), self.count, 0, "media", "list")

    sink = ListSink()
    with pytest.raises(ValueError, match="uint8"):
        run(Bad(4), tiny_engine, [sink], ROAD)
    assert sink.numbers == [0, 1, 2, 3]
    assert sink.closed == 1


def test_stop_ends_the_run_with_everything_closed(tiny_engine: Engine) -> None:
    stop, sink = threading.Event(), ListSink()
    summary = run(ListSource(100_000), tiny_engine, [sink], ROAD, stop, lambda r: stop.set() if r.seq == 9 else None)
    assert summary.interrupted
    assert summary.frames == 10
    assert sink.numbers == list(range(10))
    assert sink.closed == 1
    assert no_threads_left()


def test_an_engine_can_be_used_again_after_a_stop(tiny_model: Path) -> None:
    stop = threading.Event()
    with open_engine(tiny_model, "openvino", threads=1, throughput=True) as engine:
        assert engine.depth > 1
        run(ListSource(100_000), engine, [], ROAD, stop, lambda r: stop.set() if r.seq == 9 else None)
        assert run(ListSource(4), engine, [], ROAD).frames == 4


def test_stop_before_the_first_frame(tiny_engine: Engine) -> None:
    stop, sink = threading.Event(), ListSink()
    stop.set()
    summary = run(ListSource(10), tiny_engine, [sink], ROAD, stop)
    assert (summary.interrupted, summary.frames, sink.closed) == (True, 0, 1)


def test_stop_is_heard_while_the_source_is_silent(tiny_engine: Engine) -> None:
    released = threading.Event()

    class Silent(ListSource):
        def frames(self) -> Iterator[Frame]:
            yield from super().frames()
            released.wait(SOON_S)

    stop, sink = threading.Event(), ListSink()
    threading.Timer(0.2, stop.set).start()
    threading.Timer(0.4, released.set).start()
    began = time.monotonic()
    summary = run(Silent(2), tiny_engine, [sink], ROAD, stop)
    assert time.monotonic() - began < SOON_S - 1
    assert summary.interrupted
    assert sink.numbers == [0, 1]


def test_losses_are_counted_up_to_the_frame_they_precede(tiny_engine: Engine) -> None:
    """The source reads ahead: what it loses later is no business of an earlier frame."""
    first_done, exhausted = threading.Event(), threading.Event()

    class Lossy(ListSource):
        def frames(self) -> Iterator[Frame]:
            for frame in super().frames():
                if frame.seq == 2:
                    self.lost("frame 2 is broken")
                    continue
                yield replace(frame, dropped=self.dropped)
                if frame.seq == 0:
                    first_done.wait(SOON_S)
            exhausted.set()

    def let_it_read_ahead(result: Freespace) -> None:
        if result.seq == 0:
            first_done.set()
            assert exhausted.wait(SOON_S)

    sink = ListSink()
    summary = run(Lossy(4), tiny_engine, [sink], ROAD, on_result=let_it_read_ahead)
    assert summary.dropped == 1
    assert summary.problems == ["frame 2 is broken"]
    assert [(o.result.seq, o.result.dropped) for o in sink.outputs] == [(0, 0), (1, 0), (3, 1)]


def test_plane_that_the_model_lacks_is_refused_and_the_sinks_are_closed(tmp_path: Path) -> None:
    sink = ListSink()
    with (
        open_engine(write_model(tmp_path / "one.onnx", ("freespace",)), "onnxruntime", threads=1) as engine,
        pytest.raises(ModelError, match="has no plane 'ego'; it has freespace"),
    ):
        run(ListSource(3), engine, [sink], Config(polygons=PolygonConfig(plane="ego")))
    assert sink.closed == 1


# -- The slot ----------------------------------------------------------------------------------------------------------


def in_thread(action: object, *arguments: object) -> tuple[threading.Thread, list[object]]:
    """Start ``action``; the list gets its result or the exception it ended with."""
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(action(*arguments))  # type: ignore[operator]
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, ended


def test_slot_keeps_the_order() -> None:
    slot: Slot[int] = Slot(3)
    for item in (1, 2, 3):
        slot.put(item)
    assert [slot.get(), slot.get(), slot.get()] == [1, 2, 3]


def test_full_slot_makes_the_giver_wait() -> None:
    slot: Slot[int] = Slot(2)
    slot.put(1)
    slot.put(2)
    thread, ended = in_thread(slot.put, 3)
    thread.join(0.1)
    assert thread.is_alive()
    assert slot.get() == 1
    thread.join(SOON_S)
    assert ended == [None]
    assert [slot.get(), slot.get()] == [2, 3]


def test_empty_slot_times_out() -> None:
    slot: Slot[int] = Slot(1)
    with pytest.raises(TimeoutError):
        slot.get(0.01)
    slot.put(1)
    assert slot.get(0.01) == 1


def test_empty_slot_makes_the_taker_wait() -> None:
    slot: Slot[int] = Slot(1)
    thread, ended = in_thread(slot.get)
    thread.join(0.1)
    assert thread.is_alive()
    slot.put(7)
    thread.join(SOON_S)
    assert ended == [7]


def test_finished_slot_hands_out_the_rest() -> None:
    slot: Slot[int] = Slot(3)
    slot.put(1)
    slot.put(2)
    slot.finish()
    assert [slot.get(), slot.get(0.01)] == [1, 2]
    with pytest.raises(Closed):
        slot.get()


def test_finish_wakes_a_waiting_taker() -> None:
    slot: Slot[int] = Slot(1)
    thread, ended = in_thread(slot.get)
    slot.finish()
    thread.join(SOON_S)
    assert [type(e) for e in ended] == [Closed]


def test_abort_wakes_both_sides_and_drops_the_rest() -> None:
    slot: Slot[int] = Slot(1)
    slot.put(1)
    thread, ended = in_thread(slot.put, 2)
    slot.abort()
    thread.join(SOON_S)
    assert [type(e) for e in ended] == [Closed]
    with pytest.raises(Closed):
        slot.get()
    with pytest.raises(Closed):
        slot.put(3)


def test_slot_between_two_threads_loses_nothing() -> None:
    slot: Slot[int] = Slot(2)

    def give() -> None:
        for item in range(2000):
            slot.put(item)
        slot.finish()

    in_thread(give)
    taken = []
    while True:
        try:
            taken.append(slot.get(SOON_S))
        except Closed:
            break
    assert taken == list(range(2000))


def test_full_slot_where_the_newest_wins_drops_the_oldest() -> None:
    slot: Slot[int] = Slot(2, newest_wins=True)
    for item in range(5):
        slot.put(item)
    assert slot.dropped == 3
    assert [slot.get(), slot.get()] == [3, 4]
    assert slot.dropped_before == 3


def test_newest_item_is_never_older_than_what_was_given() -> None:
    """A giver that does not wait and a taker that does: what is taken rises, and is counted with what was lost."""
    slot: Slot[int] = Slot(1, newest_wins=True)

    def give() -> None:
        for item in range(5000):
            slot.put(item)
        slot.finish()

    in_thread(give)
    taken, lost = [], []
    while True:
        try:
            taken.append(slot.get(SOON_S))
            lost.append(slot.dropped_before)
        except Closed:
            break
    assert taken == sorted(set(taken))
    assert taken[-1] == 4999
    assert len(taken) + slot.dropped == 5000
    assert all(item == count + lost_before for count, (item, lost_before) in enumerate(zip(taken, lost, strict=True)))
