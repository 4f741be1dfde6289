"""A server for real, of a run that the test holds in its hands."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from engines.device import HostDevice
from pipeline.channel import Channel, ChannelClosed
from pipeline.errors import SettingsError
from pipeline.live.outputs import SinkReport
from pipeline.live.run import SourceSnapshot
from pipeline.live.source import SourceReport, SourceState
from pipeline.messages import FrameResult
from pipeline.metrics import HistogramMeter, StageStats
from pipeline.serve.listen import ListenAddress
from pipeline.serve.server import PageOptions, PageServer
from pipeline.stage5_compose import ComposeStage
from tests.fakes import frame, masks_of, picture

TOKEN = "a-token-that-nobody-guesses-0123456789"
WAIT_S = 120.0  # on a busy machine


def result_of(index: int, *boxes: tuple[int, int, int, int], stream: int = 0, size=(120, 160)) -> FrameResult:
    """A frame with people in boxes (x0, y0, x1, y1)."""
    of = replace(frame(index, image=picture(*size, *boxes)), stream=stream)
    return ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks_of(of, *boxes))


class HeldRun:
    """Everything the server asks of a run; what happens, the test says."""

    def __init__(self, streams: int = 2) -> None:
        self.lock = threading.Lock()
        self.channels: list[tuple[int, Channel[FrameResult]]] = []
        self.recording: list[bool | None] = [False] * streams
        self.states = [SourceState.LIVE] * streams
        self.results = [0] * streams
        self.trouble = ""
        self.latency = [HistogramMeter() for _ in range(streams)]

    def subscribe(self, stream: int) -> Channel[FrameResult]:
        channel: Channel[FrameResult] = Channel("held", 1, "drop_oldest")
        with self.lock:
            self.channels.append((stream, channel))
        return channel

    def push(self, result: FrameResult) -> None:
        with self.lock:
            self.results[result.frame.stream] += 1
            self.latency[result.frame.stream].record(12.0)
            for entry in list(self.channels):
                stream, channel = entry
                if stream == result.frame.stream:
                    try:
                        channel.put(result)
                    except ChannelClosed:
                        self.channels.remove(entry)

    def end(self) -> None:
        with self.lock:
            for _, channel in self.channels:
                channel.finish()

    @property
    def watched(self) -> int:
        """Channels that somebody reads; those that were hung up go with the next frame."""
        with self.lock:
            return len(self.channels)

    def sources(self) -> list[SourceSnapshot]:
        report = SourceReport(
            name="rtsp://user:hunter2@cam/1",
            state=SourceState.LIVE,
            width=160,
            height=120,
            frames=10,
            fps=25.0,
            age_s=0.1,
            connects=1,
            reconnects={"stalled": 2},
            dropped={"broken packet": 3},
            size_changes=0,
            time_jumps=0,
            trouble=self.trouble,
            next_try_s=None,
        )
        with self.lock:
            return [
                SourceSnapshot(
                    stream=stream,
                    source=replace(report, state=state),
                    results=self.results[stream],
                    people=1,
                    waiting_dropped=4,
                    p50_ms=12.0,
                    p95_ms=20.0,
                    sinks=(SinkReport(name=f"recording of stream {stream}", written=7, dropped={"sink too slow": 1}),),
                    latency=self.latency[stream].histogram(),
                    recording=self.recording[stream],
                )
                for stream, state in enumerate(self.states)
            ]

    def stages(self) -> list[StageStats]:
        meter = HistogramMeter()
        meter.record(3.0, frames=2)
        histogram = meter.histogram()
        channel = Channel("x", 2)
        channel.put(1)
        return [
            StageStats(
                name="keypoints",
                frames=2,
                busy_s=0.006,
                p50_ms=3.0,
                p95_ms=3.0,
                histogram=histogram,
                input=channel.stats(),
            )
        ]

    def shared_sinks(self) -> list[SinkReport]:
        return [SinkReport(name="json on stdout", written=3, dropped={})]

    def start_recording(self, stream: int) -> None:
        if self.recording[stream] is None:
            raise SettingsError("recordings need a folder: start the run with --output-dir")
        self.recording[stream] = True

    def stop_recording(self, stream: int) -> None:
        if self.recording[stream] is not None:
            self.recording[stream] = False


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


class Client:
    """One browser or program: asks the server over a real socket, with the headers that it is told to send."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self.headers: dict[str, str] = {}

    def __call__(self, method: str, path: str, body=None, headers=None, *, raw: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=WAIT_S)
        try:
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            kinds = {} if data is None else {"Content-Type": "application/json"}
            connection.request(method, path, data, kinds | self.headers | (headers or {}))
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def with_csrf(self) -> Client:
        self.headers["X-CSRF-Token"] = self("GET", "/api/session").json["csrf"]
        return self


class Held:
    """A server and its run."""

    def __init__(self, **options) -> None:
        streams = options.pop("streams", 2)
        host = options.pop("host", "127.0.0.1")
        self.run = HeldRun(streams)
        self.server = PageServer(self.run, PageOptions(listen=ListenAddress(host=host, port=0), **options))
        self.server.start()
        self._feeding: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return self.server.port

    def client(self) -> Client:
        return Client(self.port)

    def feed(self, make: Callable[[int], FrameResult], fps: float = 50.0) -> None:
        """Results from now on, on a thread, until the end of the test."""
        ended = self._feeding = threading.Event()

        def work() -> None:
            for index in itertools.count():
                if ended.wait(1.0 / fps):
                    return
                self.run.push(make(index))

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._feeding is not None and self._thread is not None:
            self._feeding.set()
            self._thread.join(WAIT_S)
        self.server.stop()
        assert not self.server._thread.is_alive()


def wait_for(condition: Callable[[], bool], said: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {WAIT_S:.0f} s: {said}")
        time.sleep(0.02)
