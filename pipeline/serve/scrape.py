"""The run for Prometheus: counters, gauges and histograms, read from the run when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.live.source import SourceState
from pipeline.metrics import HISTOGRAM_MS, Histogram
from pipeline.redaction import redact
from pipeline.serve.figures import Run

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class RunCollector(Collector):
    """Figures of a run as metric families. ``stream`` is a source's number; ``pose2seg_source_info`` has its name."""

    def __init__(self, run: Run, viewers: Callable[[], tuple[int, int]]) -> None:
        """Set up.

        Args:
            run: read at each scrape.
            viewers: how many there are, and threads that paint for them.
        """
        self._run = run
        self._viewers = viewers

    def collect(self) -> Iterable[Metric]:
        """All families, from one look at the run."""
        yield from self._of_sources()
        yield from self._of_stages()
        viewers, threads = self._viewers()
        yield GaugeMetricFamily("pose2seg_viewers", "Viewers of the page.", value=viewers)
        yield GaugeMetricFamily("pose2seg_view_threads", "Threads that paint for viewers.", value=threads)
        yield from _gpu_memory()

    def _of_sources(self) -> Iterator[Metric]:
        streams = ["stream"]
        info = GaugeMetricFamily("pose2seg_source_info", "Name of each source.", labels=["stream", "source"])
        state = GaugeMetricFamily(
            "pose2seg_source_state", "1 for the state a source is in.", labels=["stream", "state"]
        )
        frames_in = CounterMetricFamily("pose2seg_frames_in", "Frames decoded.", labels=streams)
        frames_out = CounterMetricFamily("pose2seg_frames_out", "Frames that came out with results.", labels=streams)
        dropped = CounterMetricFamily(
            "pose2seg_frames_dropped", "Frames and packets lost before the networks.", labels=["stream", "reason"]
        )
        reconnects = CounterMetricFamily(
            "pose2seg_reconnects", "Connections that were given up.", labels=["stream", "reason"]
        )
        people = GaugeMetricFamily("pose2seg_people", "People in the newest frame.", labels=streams)
        age = GaugeMetricFamily("pose2seg_frame_age_seconds", "Since the newest frame.", labels=streams)
        latency = HistogramMetricFamily(
            "pose2seg_latency_seconds", "From a decoded frame to its result.", labels=streams
        )
        written = CounterMetricFamily("pose2seg_sink_frames", "Frames written by a sink.", labels=["stream", "sink"])
        lost = CounterMetricFamily(
            "pose2seg_sink_frames_dropped", "Frames that a sink lost.", labels=["stream", "sink", "reason"]
        )
        for snapshot in self._run.sources():
            source, stream = snapshot.source, str(snapshot.stream)
            info.add_metric([stream, redact(source.name)], 1)
            for one in SourceState:
                state.add_metric([stream, one.value], float(source.state is one))
            frames_in.add_metric([stream], source.frames)
            frames_out.add_metric([stream], snapshot.results)
            for reason, count in snapshot.dropped.items():
                dropped.add_metric([stream, reason], count)
            for reason, count in source.reconnects.items():
                reconnects.add_metric([stream, reason], count)
            people.add_metric([stream], snapshot.people)
            if source.age_s is not None:
                age.add_metric([stream], source.age_s)
            _add_histogram(latency, [stream], snapshot.latency)
            for sink in snapshot.sinks:
                written.add_metric([stream, redact(sink.name)], sink.written)
                for reason, count in sink.dropped.items():
                    lost.add_metric([stream, redact(sink.name), reason], count)
        for sink in self._run.shared_sinks():
            written.add_metric(["all", redact(sink.name)], sink.written)
            for reason, count in sink.dropped.items():
                lost.add_metric(["all", redact(sink.name), reason], count)
        yield from (info, state, frames_in, frames_out, dropped, reconnects, people, age, latency, written, lost)

    def _of_stages(self) -> Iterator[Metric]:
        service = HistogramMetricFamily(
            "pose2seg_stage_seconds", "Service time of a frame in a stage.", labels=["stage"]
        )
        busy = CounterMetricFamily("pose2seg_stage_busy_seconds", "Time a stage worked.", labels=["stage"])
        depth = GaugeMetricFamily("pose2seg_queue_depth", "Frames that wait before a stage.", labels=["stage"])
        for stage in self._run.stages():
            if stage.frames:
                _add_histogram(service, [stage.name], stage.histogram)
                busy.add_metric([stage.name], stage.busy_s)
            if stage.input is not None:
                depth.add_metric([stage.name], stage.input.held)
        yield from (service, busy, depth)


def _add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    bounds = [*(f"{bound / 1e3:g}" for bound in HISTOGRAM_MS), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
    family.add_metric(labels, buckets, histogram.sum_ms / 1e3)


def _gpu_memory() -> Iterator[Metric]:
    """Of PyTorch's own allocations; nothing where it is not in use."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    memory = GaugeMetricFamily("pose2seg_gpu_memory_bytes", "GPU memory that PyTorch holds.", labels=["device"])
    for number in range(torch.cuda.device_count()):
        memory.add_metric([str(number)], torch.cuda.memory_reserved(number))
    yield memory


class Scrape:
    """The text of ``/metrics``."""

    def __init__(self, run: Run, viewers: Callable[[], tuple[int, int]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(RunCollector(run, viewers))
        ProcessCollector(registry=self._registry)  # CPU time, memory, handles of this process
        PlatformCollector(registry=self._registry)

    def text(self) -> bytes:
        """In the text format, see `CONTENT_TYPE`."""
        return generate_latest(self._registry)
