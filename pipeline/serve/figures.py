"""The run in figures, as the page shows them: now, and each second of the last two minutes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from pipeline.channel import Channel
from pipeline.live.outputs import SinkReport
from pipeline.live.run import SourceSnapshot
from pipeline.live.source import SourceState
from pipeline.messages import FrameResult
from pipeline.metrics import StageStats
from pipeline.redaction import redact

HISTORY: Final = 120  # samples, one a second


class Run(Protocol):
    """What the server needs of a live run; `pipeline.live.run.LiveRun` is one."""

    def sources(self) -> list[SourceSnapshot]: ...

    def stages(self) -> list[StageStats]: ...

    def shared_sinks(self) -> list[SinkReport]: ...

    def subscribe(self, stream: int) -> Channel[FrameResult]: ...

    def start_recording(self, stream: int) -> None: ...

    def stop_recording(self, stream: int) -> None: ...


class History:
    """FPS and latency of each source, second by second."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._fps: list[deque[float]] = []
        self._latency_ms: list[deque[float | None]] = []
        self._before: list[tuple[int, int, float]] = []  # results, frames and ms of the histogram
        self._before_s = clock()

    def sample(self) -> None:
        """Call once a second."""
        now = self._clock()
        seconds = max(now - self._before_s, 1e-3)
        self._before_s = now
        for snapshot in self._run.sources():
            stream, latency = snapshot.stream, snapshot.latency
            if stream == len(self._fps):
                self._fps.append(deque(maxlen=HISTORY))
                self._latency_ms.append(deque(maxlen=HISTORY))
                self._before.append((0, 0, 0.0))
            results, count, sum_ms = self._before[stream]
            self._before[stream] = (snapshot.results, latency.count, latency.sum_ms)
            new = latency.count - count
            self._fps[stream].append(round((snapshot.results - results) / seconds, 1))
            self._latency_ms[stream].append(round((latency.sum_ms - sum_ms) / new, 1) if new else None)

    def of(self, stream: int) -> dict[str, list[float] | list[float | None]]:
        """Oldest first; a second without a result has no latency."""
        if stream >= len(self._fps):
            return {"fps": [], "latency_ms": []}
        return {"fps": list(self._fps[stream]), "latency_ms": list(self._latency_ms[stream])}


def stream_figures(snapshot: SourceSnapshot, history: History) -> dict[str, Any]:
    """One source as JSON; docs: the schema ``Stream`` in `pipeline.serve.openapi`."""
    source = snapshot.source
    past = history.of(snapshot.stream)
    recording = next((sink for sink in snapshot.sinks if sink.name.startswith("recording")), None)
    return {
        "stream": snapshot.stream,
        "name": redact(source.name),
        "state": source.state.value,
        "trouble": redact(source.trouble) if source.state is not SourceState.LIVE else "",
        "next_try_s": None if source.next_try_s is None else round(source.next_try_s, 1),
        "width": source.width,
        "height": source.height,
        "fps": past["fps"][-1] if past["fps"] else 0.0,
        "source_fps": _finite(source.fps),
        "people": snapshot.people if source.state is SourceState.LIVE else 0,
        "p50_ms": _finite(snapshot.p50_ms),
        "p95_ms": _finite(snapshot.p95_ms),
        "frames": source.frames,
        "results": snapshot.results,
        "dropped": snapshot.dropped,
        "reconnects": source.reconnects,
        "recording": {
            "possible": snapshot.recording is not None,
            "on": bool(snapshot.recording),
            "frames": 0 if recording is None else recording.written,
            "lost": {} if recording is None else recording.dropped,
        },
        "history": past,
    }


def is_ready(snapshots: Sequence[SourceSnapshot]) -> bool:
    """Whether at least one source gives pictures that come out at the end."""
    return any(snapshot.source.state is SourceState.LIVE and snapshot.results for snapshot in snapshots)


def _finite(value: float) -> float:
    return round(value, 1) if math.isfinite(value) else 0.0
