"""Prometheus metrics: times of every result as histograms, everything else as it is at the moment of asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from perception import __version__
from perception.causes import Code, encodable
from perception.errors import tell
from perception.freespace import Freespace, Ground, State
from perception.sinks.base import Output, Sink
from perception.sinks.server import Server
from perception.status import Status

# Seconds; 1/60, 1/30, 1/15 and 1/10 of a second are the periods of common frame rates.
BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 1 / 60, 1 / 30, 0.05, 1 / 15, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics(Collector):
    """What there is to scrape, in a registry of its own.

    ==============================================  =======================================================
    ``freespace_frames_total``                      results so far
    ``freespace_invalid_total``                     results and reports that were not valid
    ``freespace_dropped_total{place}``              frames lost: ``source``, ``slot``
    ``freespace_sink_dropped_total{sink}``          outputs that a sink had no time for
    ``freespace_reconnections_total``               how often the source was opened again
    ``freespace_valid``                             1 while the newest result may be used
    ``freespace_state{state}``                      1 for the present state, 0 for the others
    ``freespace_cause{code}``                       1 for what is wrong now, 0 for all else that could be
    ``freespace_fps``                               results a second
    ``freespace_age_seconds``                       of the newest result; absent before the first
    ``freespace_ahead_metres``                      free way ahead of the bumper; absent unless it is known now
    ``freespace_area_square_metres``                free ground within range, likewise
    ``freespace_uptime_seconds``                    since the run began
    ``freespace_latency_seconds{stage}``            histogram
    ``freespace_build_info{version,model,backend}`` 1
    ``process_*``                                   memory, processor time, file descriptors (Linux)
    ==============================================  =======================================================

    Args:
        status: asked at each scrape, from another thread.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "freespace_latency_seconds", "Time taken by each stage.", ["stage"], registry=self._registry, buckets=BUCKETS
        )
        self._stages: dict[str, Histogram] = {}
        self._ground: Ground | None = None  # of the newest result
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observe(self, result: Freespace) -> None:
        """Take a result, with or without a frame: count its times, and know its ground."""
        self._ground = result.ground
        for stage, milliseconds in result.latency_ms.items():
            histogram = self._stages.get(stage)
            if histogram is None:
                histogram = self._stages[stage] = self._latency.labels(stage)
            histogram.observe(milliseconds / 1e3)

    def collect(self) -> Iterator[Metric]:
        """The status as it is now."""
        status = self._status()
        present = {cause.code for cause in status.causes}
        yield CounterMetricFamily("freespace_frames", "Results.", status.frames)
        yield CounterMetricFamily("freespace_invalid", "Results and reports that were not valid.", status.invalid)
        yield counts("freespace_dropped", "Frames lost.", "place", status.dropped)
        yield counts("freespace_sink_dropped", "Outputs that a sink had no time for.", "sink", status.sink_dropped)
        yield CounterMetricFamily("freespace_reconnections", "How often the source was opened again.", status.reconnections)
        yield GaugeMetricFamily("freespace_valid", "Whether the newest result may be used.", status.valid)
        yield flags("freespace_state", "The present state.", "state", {s: s == status.state for s in get_args(State)})
        yield flags("freespace_cause", "What is wrong now.", "code", {code.value: code in present for code in Code})
        yield GaugeMetricFamily("freespace_fps", "Results a second.", status.fps)
        if status.age_ms is not None:
            yield GaugeMetricFamily("freespace_age_seconds", "Since the newest result's frame.", status.age_ms / 1e3)
        if (ground := self._ground) and status.valid:
            yield GaugeMetricFamily("freespace_area_square_metres", "Free ground within range.", ground.area_m2)
            if ground.ahead:
                yield GaugeMetricFamily("freespace_ahead_metres", "Free way ahead of the bumper.", ground.ahead.m)
        yield GaugeMetricFamily("freespace_uptime_seconds", "Since the run began.", status.uptime_s)
        build = {"version": __version__, "model": encodable(status.model), "backend": encodable(status.backend)}
        yield InfoMetricFamily("freespace_build", "What runs.", build)

    def answer(self, request: Request) -> Response:
        """The text that Prometheus reads, or OpenMetrics where it asks for that."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), media_type=media_type)


def counts(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([encodable(key)], value)
    return family


def flags(name: str, help_text: str, label: str, values: dict[str, bool]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class MetricsSink(Sink):
    """Answers ``/metrics`` at ``address``; see `perception.sinks.server.Server` for the arguments and what is raised."""

    lossless = False

    def __init__(self, address: str, token: str | None, status: Callable[[], Status]) -> None:
        self._metrics = Metrics(status)
        self.server = Server("--metrics", address, token, [Route("/metrics", self._metrics.answer)])
        self.target = Path(self.server.address)
        tell(f"metrics at {self.server.url}metrics")

    def write(self, output: Output) -> None:
        self._metrics.observe(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        self._metrics.observe(result)

    def close(self) -> None:
        self.server.close()
