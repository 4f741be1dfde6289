"""How long each stage works and waits."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from pipeline.channel import ChannelStats

RECENT_FRAMES = 4096  # percentiles look at these many last frames: memory stays flat on endless streams
HISTOGRAM_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Durations of all frames since the start.

    Attributes:
        counts: per bound of `HISTOGRAM_MS` the frames that took no longer, and more than the bound before; at the end
            those that took longer than the last bound.
        sum_ms: of all.
    """

    counts: tuple[int, ...]
    sum_ms: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class HistogramMeter:
    """Collects a `Histogram`; the caller guards it."""

    def __init__(self) -> None:
        self._counts = [0] * (len(HISTOGRAM_MS) + 1)
        self._sum_ms = 0.0

    def record(self, ms: float, *, frames: int = 1) -> None:
        """Count ``frames`` that took ``ms`` each."""
        self._counts[bisect_left(HISTOGRAM_MS, ms)] += frames
        self._sum_ms += ms * frames

    def histogram(self) -> Histogram:
        return Histogram(counts=tuple(self._counts), sum_ms=self._sum_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStats:
    """One stage so far.

    Attributes:
        name: of the stage.
        frames: how many it finished.
        busy_s: time spent working, all frames together.
        p50_ms: middle service time of the recent frames, ms.
        p95_ms: 95 of 100 recent frames took no longer, ms.
        histogram: service times of all frames.
        input: the channel it reads from; None for the source.
    """

    name: str
    frames: int
    busy_s: float
    p50_ms: float
    p95_ms: float
    histogram: Histogram
    input: ChannelStats | None


class ServiceMeter:
    """Service times of one stage; written by its thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent_ms: deque[float] = deque(maxlen=RECENT_FRAMES)
        self._histogram = HistogramMeter()
        self._frames = 0
        self._busy_s = 0.0

    def record(self, seconds: float, *, frames: int = 1) -> None:
        """Count frames that took ``seconds`` together; each counts with its share."""
        with self._lock:
            self._recent_ms.extend([seconds * 1000.0 / frames] * frames)
            self._histogram.record(seconds * 1000.0 / frames, frames=frames)
            self._frames += frames
            self._busy_s += seconds

    def stats(self, name: str, channel: ChannelStats | None) -> StageStats:
        """A consistent snapshot."""
        with self._lock:
            recent, frames, busy_s = sorted(self._recent_ms), self._frames, self._busy_s
            histogram = self._histogram.histogram()
        return StageStats(
            name=name,
            frames=frames,
            busy_s=busy_s,
            p50_ms=percentile(recent, 0.50),
            p95_ms=percentile(recent, 0.95),
            histogram=histogram,
            input=channel,
        )


def percentile(ordered: list[float], share: float) -> float:
    """Nearest-rank percentile of ascending values; 0.0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
