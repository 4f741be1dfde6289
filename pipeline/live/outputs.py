"""Results to their sinks, each behind a queue of its own: a slow or dead sink costs its own frames and nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pipeline.channel import END, Channel, ChannelClosed
from pipeline.errors import SinkError
from pipeline.messages import FrameResult
from pipeline.metrics import RECENT_FRAMES, Histogram, HistogramMeter, percentile
from pipeline.redaction import redact

log = logging.getLogger(__name__)

CLOSE_S: Final = 3.0  # all sinks together, when the run ends
DROPS_SHOWN_EVERY_S: Final = 10.0


class NotTaken(SinkError):
    """A sink has no way to take this frame; ``reason`` is what the loss is counted under."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class LiveSink(Protocol):
    """Where results go; used on one thread.

    A sink may have an attribute ``away``, asked from other threads: True while it has no connection; and a method
    ``stop``, called from another thread: the run ends, and there is no time for waits between tries.
    """

    @property
    def name(self) -> str: ...

    def write(self, result: FrameResult) -> None:
        """Take one frame.

        Raises:
            SinkError: not this one; it may take later ones. `NotTaken` says what the loss is called.
        """

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReport:
    """One sink so far: frames written, and lost by reason; ``away``: it has no connection now."""

    name: str
    written: int
    dropped: dict[str, int]
    away: bool = False

    def __add__(self, other: SinkReport) -> SinkReport:
        """Of a sink that was closed and opened anew."""
        dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        return SinkReport(name=self.name, written=self.written + other.written, dropped=dropped, away=other.away)


class SinkWorker:
    """A sink, its queue and its thread."""

    def __init__(
        self,
        sink: LiveSink,
        label: str,
        *,
        capacity: int,
        wants: Callable[[FrameResult], bool] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            sink: closed by the thread.
            label: for people.
            capacity: frames that may wait; the oldest goes first.
            wants: which frames it is given at all; None: every one.
        """
        self._sink = sink
        self._wants = wants
        self._label = label
        self._queue: Channel[FrameResult] = Channel(label, capacity, "drop_oldest")
        self._written = 0
        self._failed: Counter[str] = Counter()
        self._shown_s = time.monotonic()
        self._shown = self._dropped = self._dropped_away = 0
        self._thread = threading.Thread(target=self._run, name=f"sink {label}", daemon=True)
        self._thread.start()

    @property
    def label(self) -> str:
        """For people."""
        return self._label

    def offer(self, result: FrameResult) -> None:
        """Never waits."""
        if self._wants is not None and not self._wants(result):
            return
        try:
            self._queue.put(result)
        except ChannelClosed:
            self._failed["closed"] += 1
            return
        dropped = self._queue.stats().dropped
        if dropped > self._dropped and self._is_away:
            self._dropped_away += dropped - self._dropped
        self._dropped = dropped
        slow = dropped - self._dropped_away
        now = time.monotonic()
        if now - self._shown_s >= DROPS_SHOWN_EVERY_S:
            self._shown_s = now
            if slow > self._shown:
                log.warning("%s: too slow, %d frames left out", self._label, slow - self._shown)
            self._shown = slow

    def report(self) -> SinkReport:
        """Counters; callable from any thread."""
        away = self._dropped_away
        queued = Counter({"sink too slow": self._queue.stats().dropped - away, "not connected": away})
        lost = self._failed + queued
        return SinkReport(name=self._label, written=self._written, dropped=dict(lost), away=self._is_away)

    @property
    def _is_away(self) -> bool:
        return bool(getattr(self._sink, "away", False))

    def finish(self) -> None:
        """No more frames come; what waits is still written, and a sink that can is told to hurry."""
        self._queue.finish()
        stop = getattr(self._sink, "stop", None)
        if stop is not None:
            stop()

    def join(self, deadline_s: float) -> None:
        """Wait until it is closed; a sink that hangs is left to its fate."""
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            self._failed["not closed in time"] += self._queue.stats().held
            self._queue.hang_up()
            log.warning("%s: did not take its last frames in time; they are lost", self._label)

    def _run(self) -> None:
        try:
            while (result := self._queue.get()) is not END:
                try:
                    self._sink.write(result)
                    self._written += 1
                except NotTaken as error:
                    self._failed[error.reason] += 1
                except SinkError as error:
                    self._failed["cannot be written"] += 1
                    if isinstance(error.__cause__, BrokenPipeError):
                        log.warning("%s: %s: no more frames go there", self._label, redact(str(error)))
                        self._queue.hang_up()
        except ChannelClosed:
            pass
        except Exception as error:
            log.error("%s: failed (%s: %s)", self._label, type(error).__name__, redact(str(error)))  # noqa: TRY400
            self._queue.hang_up()
        finally:
            try:
                self._sink.close()
            except Exception as error:
                log.error("%s: cannot be finished: %s", self._label, redact(str(error)))  # noqa: TRY400


class DispatchStage:
    """The last stage: hands each result to the sinks of its stream and to who subscribed, and measures its age."""

    name = "dispatch"

    def __init__(
        self,
        sinks_of: Sequence[Sequence[SinkWorker]],
        *,
        shared: Sequence[SinkWorker] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire.

        Args:
            sinks_of: one list for each stream.
            shared: get the results of all streams.
            clock: the one of `Frame.captured_s`.
        """
        self._sinks_of = [list(sinks) for sinks in sinks_of]
        self._past: list[dict[str, SinkReport]] = [{} for _ in sinks_of]  # of sinks that were detached, by label
        self._closed = False
        self._shared = shared
        self._clock = clock
        self._lock = threading.Lock()
        self._subscribers: list[tuple[int, Channel[FrameResult]]] = []
        self._latency_ms: list[deque[float]] = [deque(maxlen=RECENT_FRAMES) for _ in sinks_of]
        self._histograms = [HistogramMeter() for _ in sinks_of]
        self._results = [0] * len(sinks_of)
        self._people = [0] * len(sinks_of)

    def open(self) -> None:
        """Sinks open with their first frame."""

    def process(self, result: FrameResult) -> FrameResult:
        stream = result.frame.stream
        with self._lock:
            latency_ms = (self._clock() - result.frame.captured_s) * 1e3
            self._latency_ms[stream].append(latency_ms)
            self._histograms[stream].record(latency_ms)
            self._results[stream] += 1
            self._people[stream] = len(result.people)
            listeners = [channel for wanted, channel in self._subscribers if wanted == stream]
            workers = [*self._sinks_of[stream], *self._shared]
        for worker in workers:
            worker.offer(result)
        for channel in listeners:
            try:
                channel.put(result)
            except ChannelClosed:
                self.unsubscribe(channel)
        return result

    def close(self) -> None:
        """Finish all sinks at the same time."""
        with self._lock:
            self._closed = True
            workers = [worker for workers in (*self._sinks_of, self._shared) for worker in workers]
        for worker in workers:
            worker.finish()
        deadline_s = time.monotonic() + CLOSE_S
        for worker in workers:
            worker.join(deadline_s)
        with self._lock:
            for _, channel in self._subscribers:
                channel.finish()

    def attach(self, stream: int, worker: SinkWorker) -> bool:
        """One more sink of a stream, from the next frame on. False: the run is over, and the worker was finished."""
        with self._lock:
            if not self._closed:
                self._sinks_of[stream].append(worker)
                return True
        worker.finish()
        return False

    def detach(self, stream: int, label: str) -> SinkWorker | None:
        """Take a sink away and let it finish; `SinkWorker.join` waits for that. None: there is none of that label."""
        with self._lock:
            found = next((worker for worker in self._sinks_of[stream] if worker.label == label), None)
            if found is None or self._closed:
                return None
            self._sinks_of[stream].remove(found)
        found.finish()
        return found

    def keep_report(self, stream: int, report: SinkReport) -> None:
        """What a detached sink did counts on."""
        with self._lock:
            past = self._past[stream]
            past[report.name] = past[report.name] + report if report.name in past else report

    def has_sink(self, stream: int, label: str) -> bool:
        with self._lock:
            return any(worker.label == label for worker in self._sinks_of[stream])

    def subscribe(self, stream: int) -> Channel[FrameResult]:
        """A channel that always holds the newest result of a stream; `Channel.hang_up` ends it."""
        channel: Channel[FrameResult] = Channel(f"results of stream {stream}", 1, "drop_oldest")
        with self._lock:
            if self._closed:
                channel.finish()
            self._subscribers.append((stream, channel))
        return channel

    def unsubscribe(self, channel: Channel[FrameResult]) -> None:
        with self._lock:
            self._subscribers = [entry for entry in self._subscribers if entry[1] is not channel]

    def figures(self, stream: int) -> tuple[int, int, float, float]:
        """Results, people in the newest one, and p50 and p95 of capture-to-result of the recent ones in ms."""
        with self._lock:
            recent = sorted(self._latency_ms[stream])
            return self._results[stream], self._people[stream], percentile(recent, 0.5), percentile(recent, 0.95)

    def sinks(self, stream: int) -> list[SinkReport]:
        """Of one stream."""
        with self._lock:
            reports = dict(self._past[stream])
            workers = list(self._sinks_of[stream])
        for worker in workers:
            report = worker.report()
            reports[report.name] = reports[report.name] + report if report.name in reports else report
        return list(reports.values())

    def latency(self, stream: int) -> Histogram:
        """From the decoded frame to its result, all frames of one stream."""
        with self._lock:
            return self._histograms[stream].histogram()

    def shared_sinks(self) -> list[SinkReport]:
        return [worker.report() for worker in self._shared]
