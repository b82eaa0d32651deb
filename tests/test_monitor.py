"""What a run's monitor makes of ages, troubles and losses, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import road_image
from hypothesis import given
from hypothesis import strategies as st

from perception.capture import Source
from perception.causes import Cause, Code
from perception.config import LoopConfig
from perception.frame import Frame
from perception.freespace import Freespace
from perception.monitor import ALIVE_S, MS, RECENT_S, Monitor, Verdict

IMAGE = road_image()
BUDGET_MS = 200


class Idle(Source):
    def __init__(self) -> None:
        super().__init__("rtsp://camera", live=True)

    def frames(self) -> Iterator[Frame]:
        yield from ()


class Stage:
    """A monitor, its source, and the time."""

    def __init__(self, live: bool = True) -> None:
        self.now_ms = 0.0
        self.source = Idle()
        self.monitor = Monitor(
            self.source, LoopConfig(budget_ms=BUDGET_MS), live, "abc", "torch", lambda: round(self.now_ms * MS)
        )

    def frame(self, seq: int = 0, grabbed_ms: float | None = None) -> Frame:
        grabbed = self.now_ms if grabbed_ms is None else grabbed_ms
        return Frame(IMAGE, seq, 7, "system", "rtsp://camera", grabbed_ns=round(grabbed * MS))

    def publish(self, frame: Frame, seen: list[Cause] | None = None) -> Verdict:
        verdict = self.monitor.judge(frame, seen or [])
        self.monitor.published(result_of(frame, verdict), frame)
        return verdict


def result_of(frame: Frame, verdict: Verdict) -> Freespace:
    return Freespace(
        frame.seq, frame.source, "camera", frame.stamp_ns, "system", frame.size, verdict.valid, verdict.state,
        "abc", "torch", 0, [], {"total": 5.0}, list(verdict.causes),
    )  # fmt: skip


def codes(verdict: Verdict | None) -> list[Code]:
    assert verdict
    return [cause.code for cause in verdict.causes]


def test_a_fresh_result_runs() -> None:
    stage = Stage()
    frame = stage.frame()
    stage.now_ms = 20
    assert stage.publish(frame) == Verdict("running", True)
    status = stage.monitor.status()
    assert (status.state, status.valid, status.frames, status.invalid) == ("running", True, 1, 0)
    assert status.age_ms == pytest.approx(20)
    assert (status.source, status.model, status.backend) == ("rtsp://camera", "abc", "torch")


@given(st.floats(0, 1000))
def test_no_result_older_than_the_budget_is_valid(age_ms: float) -> None:
    stage = Stage()
    frame = stage.frame()
    stage.now_ms = age_ms
    verdict = stage.monitor.judge(frame, [])
    assert verdict.valid == (round(age_ms * MS) <= BUDGET_MS * MS)
    if not verdict.valid:
        assert (verdict.state, codes(verdict)) == ("stale", [Code.LATE])
        assert f"{age_ms:.0f} ms old" in verdict.causes[0].text


def test_a_recording_never_grows_old() -> None:
    stage = Stage(live=False)
    frame = stage.frame()
    stage.now_ms = 1e6
    assert stage.publish(frame) == Verdict("running", True)
    stage.now_ms = 2e6
    assert stage.monitor.silence() is None
    assert stage.monitor.status().age_ms is None


@pytest.mark.parametrize("code", [Code.DARK, Code.COVERED, Code.OVEREXPOSED, Code.DEFOCUSED, Code.FROZEN])
@pytest.mark.parametrize("live", [True, False])
def test_a_picture_that_cannot_be_trusted_is_blind(code: Code, live: bool) -> None:
    cause = Cause(code, "The lens is covered.")
    stage = Stage(live)
    verdict = stage.publish(stage.frame(), [cause])
    assert verdict == Verdict("blind", False, (cause,))
    assert stage.monitor.status().invalid == 1


def test_a_cut_degrades_but_does_not_blind() -> None:
    cause = Cause(Code.SCENE_CUT, "Another scene.")
    stage = Stage()
    assert stage.publish(stage.frame(), [cause]) == Verdict("degraded", True, (cause,))


def test_before_the_first_frame_it_is_starting() -> None:
    stage = Stage()
    stage.now_ms = BUDGET_MS
    assert stage.monitor.silence() is None, "not yet"
    assert stage.monitor.silent_from() == BUDGET_MS * MS
    stage.now_ms = BUDGET_MS + 1
    verdict = stage.monitor.silence()
    assert verdict
    assert (verdict.state, verdict.valid, codes(verdict)) == ("starting", False, [Code.STARTING])
    stage.source.trouble = Cause(Code.UNREACHABLE, "No route.")
    verdict = stage.monitor.silence()
    assert verdict
    assert (verdict.state, codes(verdict)) == ("starting", [Code.UNREACHABLE])


def test_silence_after_a_result_is_stale_from_the_budget_on() -> None:
    stage = Stage()
    stage.now_ms = 1000
    stage.publish(stage.frame(grabbed_ms=990))
    assert stage.monitor.silent_from() == (990 + BUDGET_MS) * MS
    stage.now_ms = 990 + BUDGET_MS
    assert stage.monitor.silence() is None
    stage.now_ms += 1
    verdict = stage.monitor.silence()
    assert verdict
    assert (verdict.state, verdict.valid, codes(verdict)) == ("stale", False, [Code.STALLED])
    assert not stage.monitor.status().valid, "the snapshot does not wait for the report"
    assert stage.monitor.status().state == "stale"


def test_a_stuck_network_and_a_lost_source_are_both_named() -> None:
    stage = Stage()
    stage.publish(stage.frame())
    stage.monitor.begin()
    stage.now_ms = 1500
    stage.source.trouble = Cause(Code.DISCONNECTED, "The cable is out.")
    verdict = stage.monitor.silence()
    assert codes(verdict) == [Code.STUCK, Code.DISCONNECTED]
    assert verdict
    assert "1.5 s" in verdict.causes[0].text
    stage.monitor.idle()
    assert codes(stage.monitor.silence()) == [Code.DISCONNECTED]


def test_a_loop_that_hangs_is_not_alive() -> None:
    stage = Stage()
    stage.monitor.turn()
    stage.now_ms = ALIVE_S * 1e3 - 1
    assert stage.monitor.alive
    stage.now_ms += 1
    assert not stage.monitor.alive
    stage.monitor.turn()
    assert stage.monitor.alive


def test_a_failure_is_an_error_at_once() -> None:
    stage = Stage()
    stage.publish(stage.frame())
    stage.monitor.failed(RuntimeError("the device is gone"))
    verdict = stage.monitor.silence()
    assert verdict
    assert (verdict.state, verdict.valid, codes(verdict)) == ("error", False, [Code.FAILED])
    assert "the device is gone" in verdict.causes[0].text
    assert stage.monitor.status().state == "error"


def test_more_frames_dropped_than_done_degrade() -> None:
    stage = Stage()
    for seq in range(60):
        stage.now_ms += 100
        stage.monitor.lost(seq // 2)  # one lost for two done
        verdict = stage.publish(stage.frame(seq))
    assert verdict.state == "running"
    for seq in range(60, 120):
        stage.now_ms += 100
        stage.monitor.lost(30 + 2 * (seq - 60))  # two lost for one done
        verdict = stage.publish(stage.frame(seq))
    assert (verdict.state, verdict.valid, codes(verdict)) == ("degraded", True, [Code.DROPPING])
    assert stage.monitor.status().fps == pytest.approx(10)
    assert stage.monitor.status().dropped == {"source": 0, "slot": 148}


def test_slow_results_are_said_to_be_slow() -> None:
    stage = Stage()
    frame = stage.frame()
    stage.now_ms = 0.8 * BUDGET_MS
    verdict = stage.monitor.judge(frame, [])
    assert (verdict.state, verdict.valid, codes(verdict)) == ("degraded", True, [Code.SLOW])


def test_a_dropping_sink_is_forgiven_and_a_failed_one_is_not() -> None:
    stage = Stage()
    stage.monitor.sink_trouble("video", Cause(Code.SINK_DROPPING, "slow"))
    stage.monitor.sink_trouble("jsonl", Cause(Code.SINK_FAILED, "full"))
    assert set(codes(stage.monitor.judge(stage.frame(), []))) == {Code.SINK_DROPPING, Code.SINK_FAILED}
    stage.now_ms = RECENT_S * 1e3 + 1
    assert codes(stage.monitor.judge(stage.frame(), [])) == [Code.SINK_FAILED]


def test_every_cause_survives_the_file() -> None:
    stage = Stage()
    for code in Code:
        cause = Cause(code, "Größe – why")
        result = result_of(stage.frame(), Verdict("stale", False, (cause,)))
        assert Freespace.from_json(result.to_json()).causes == [cause]
