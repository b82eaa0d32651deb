"""The metrics as Prometheus reads them, against numbers counted by hand."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from conftest import make_output
from test_birdseye import calibrated, grounded, invalid, measured

from perception import __version__
from perception.causes import Cause, Code
from perception.errors import BadInput
from perception.freespace import Distance, State
from perception.sinks import Output
from perception.status import Status

if TYPE_CHECKING:
    from perception.sinks.metrics import MetricsSink
    from perception.sinks.web import WebSink

MISSING = "the extra 'web' is not installed"
metrics = pytest.importorskip("perception.sinks.metrics", reason=MISSING)
web = pytest.importorskip("perception.sinks.web", reason=MISSING)
prometheus_client = pytest.importorskip("prometheus_client", reason=MISSING)
text_parser = pytest.importorskip("prometheus_client.parser", reason=MISSING)
openmetrics_parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason=MISSING)

STATUS = Status(
    state="degraded",
    causes=(Cause(Code.DROPPING, "Many."), Cause(Code.SLOW, "Late.")),
    valid=True,
    frames=120,
    invalid=4,
    dropped={"source": 2, "slot": 5},
    sink_dropped={"mcap": 7},
    reconnections=3,
    fps=29.5,
    age_ms=40.0,
    uptime_s=61.5,
    model="ab" * 32,
    backend="openvino",
)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREESPACE_TOKEN", raising=False)


@pytest.fixture
def sink() -> Iterator[MetricsSink]:
    with closing(metrics.MetricsSink("127.0.0.1:0", None, lambda: STATUS)) as made:
        yield made


def fetch(sink: MetricsSink | WebSink, **headers: str) -> tuple[str, str]:
    """Content type and text."""
    request = urllib.request.Request(f"{sink.server.url}metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def scrape(sink: MetricsSink | WebSink) -> dict[tuple[Any, ...], float]:
    """(name, label values in the order of their names) -> value."""
    families = text_parser.text_string_to_metric_families(fetch(sink)[1])
    return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def timed(**latency_ms: float) -> Output:
    output = make_output(np.zeros((8, 8, 3), np.uint8))
    return replace(output, result=replace(output.result, latency_ms=latency_ms))


def test_the_status_at_the_moment_of_asking(sink: MetricsSink) -> None:
    values = scrape(sink)
    assert values[("freespace_frames_total",)] == 120
    assert values[("freespace_invalid_total",)] == 4
    assert values[("freespace_dropped_total", "source")] == 2
    assert values[("freespace_dropped_total", "slot")] == 5
    assert values[("freespace_sink_dropped_total", "mcap")] == 7
    assert values[("freespace_reconnections_total",)] == 3
    assert values[("freespace_valid",)] == 1
    assert values[("freespace_fps",)] == 29.5
    assert values[("freespace_age_seconds",)] == 0.04
    assert values[("freespace_uptime_seconds",)] == 61.5
    assert values[("freespace_build_info", "openvino", "ab" * 32, __version__)] == 1


def test_one_state_and_the_causes_that_there_are(sink: MetricsSink) -> None:
    values = scrape(sink)
    assert {s: values[("freespace_state", s)] for s in get_args(State)} == {s: s == "degraded" for s in get_args(State)}
    present = {code.value for code in Code if values[("freespace_cause", code.value)] == 1}
    absent = {code.value for code in Code if values[("freespace_cause", code.value)] == 0}
    assert present == {"frames_dropped", "inference_slow"}
    assert len(absent) == len(Code) - 2


def test_times_are_counted_in_their_buckets(sink: MetricsSink) -> None:
    infer_ms = [0.4, 9.0, 9.0, 30.0, 33.0, 40.0, 4000.0]
    for time_ms in infer_ms:
        sink.write(timed(infer=time_ms, decode=1.0))
    values = scrape(sink)
    for bound in metrics.BUCKETS:
        le = next(
            k[1] for k in values if k[0] == "freespace_latency_seconds_bucket" and k[1] != "+Inf" and float(k[1]) == bound
        )
        assert values[("freespace_latency_seconds_bucket", le, "infer")] == sum(t <= bound * 1e3 for t in infer_ms)
    assert values[("freespace_latency_seconds_bucket", "+Inf", "infer")] == len(infer_ms)
    assert values[("freespace_latency_seconds_count", "decode")] == len(infer_ms)
    assert values[("freespace_latency_seconds_sum", "infer")] == pytest.approx(sum(infer_ms) / 1e3)


def test_the_ground_is_there_while_it_is_known() -> None:
    """Never the last value: what was free once says nothing of the road ahead now."""
    status = [STATUS]
    names = ("freespace_ahead_metres", "freespace_area_square_metres")
    with closing(metrics.MetricsSink("127.0.0.1:0", None, lambda: status[0])) as sink:

        def values() -> list[float | None]:
            found = scrape(sink)
            return [found.get((name,)) for name in names]

        assert values() == [None, None]
        sink.write(timed(total=1.0))  # of a camera that is not calibrated
        assert values() == [None, None]
        made = grounded(calibrated())
        near = replace(made, result=replace(made.result, ground=measured(Distance(7.25, 6.0, 9.0))))
        sink.write(near)
        assert values() == [7.25, 1.0]
        status[0] = replace(STATUS, valid=False, state="stale")  # as when the loop hangs
        assert values() == [None, None]
        status[0] = STATUS
        assert values() == [7.25, 1.0]
        sink.write_without_frame(invalid(near.result))
        assert values() == [None, None]
        sink.write(replace(near, result=replace(near.result, ground=measured())))  # not all of the way ahead is seen
        assert values() == [None, 1.0]
        sink.write(replace(near, result=invalid(near.result)))
        assert values() == [None, None]


def test_the_process_is_measured(sink: MetricsSink) -> None:
    assert scrape(sink)[("process_resident_memory_bytes",)] > 1e6


def test_openmetrics_where_it_is_asked_for(sink: MetricsSink) -> None:
    kind, text = fetch(sink, Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert "freespace_frames" in {family.name for family in openmetrics_parser.text_string_to_metric_families(text)}
    assert fetch(sink)[0].startswith("text/plain; version=")


def test_before_the_first_result() -> None:
    with closing(metrics.MetricsSink("127.0.0.1:0", None, Status)) as sink:
        values = scrape(sink)
    assert ("freespace_age_seconds",) not in values
    assert values[("freespace_valid",)] == 0
    assert values[("freespace_state", "starting")] == 1


def test_names_that_are_no_unicode_do_not_end_it() -> None:
    with closing(metrics.MetricsSink("127.0.0.1:0", None, lambda: replace(STATUS, model="caf\udce9.onnx"))) as sink:
        assert scrape(sink)[("freespace_build_info", "openvino", "caf\\udce9.onnx", __version__)] == 1


def test_two_runs_in_one_process_do_not_mix(sink: MetricsSink) -> None:
    with closing(metrics.MetricsSink("127.0.0.1:0", None, lambda: STATUS)) as other:
        other.write(timed(infer=1.0))
        assert ("freespace_latency_seconds_count", "infer") not in scrape(sink)
    assert not [metric for metric in prometheus_client.REGISTRY.collect() if metric.name.startswith("freespace")]


def test_the_web_page_has_the_same() -> None:
    with closing(web.WebSink("127.0.0.1:0", None, lambda: STATUS)) as page:
        page.write(timed(infer=1.0))
        made = grounded(calibrated())
        page.write(made)
        values = scrape(page)
        page.write_without_frame(invalid(made.result))
        assert ("freespace_area_square_metres",) not in scrape(page)
    assert values[("freespace_area_square_metres",)] == pytest.approx(made.result.ground.area_m2)
    assert values[("freespace_frames_total",)] == 120
    assert values[("freespace_latency_seconds_count", "infer")] == 1


def test_the_same_rules_about_who_may_ask() -> None:
    with pytest.raises(BadInput, match=r"--metrics.*needs a token"):
        metrics.MetricsSink("0.0.0.0:0", None, Status)
    token = "a-token-that-is-long-enough"
    with closing(metrics.MetricsSink("127.0.0.1:0", token, lambda: STATUS)) as sink:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(sink)
        assert "freespace_frames_total 120.0" in fetch(sink, Authorization=f"Bearer {token}")[1]
