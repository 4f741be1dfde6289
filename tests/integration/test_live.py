"""The live run against servers that are cut off, fall silent, damage packets and change: pictures carry numbers."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Self

import pytest

from pipeline.channel import END
from pipeline.errors import SettingsError, SinkError
from pipeline.live.run import LiveRun
from pipeline.live.settings import LiveSettings
from pipeline.live.source import SourceState
from pipeline.metrics import percentile
from pipeline.selftest.servers import Camera, CameraServer, HttpCameraServer, RtspCameraServer, number_of
from tests.clips import read_video
from tests.fakes import FakeKeypointEngine, fake_model

pytestmark = pytest.mark.timeout(180)
WAIT_S = 40


class Watched:
    """A live run on a thread, and the numbers of the pictures that came out."""

    def __init__(self, *sources: str, camera: Camera, delay_s: float = 0.0, **options) -> None:
        options = {"stall_timeout": 1.5} | options
        self.engine = FakeKeypointEngine(delay_s=delay_s)
        self.camera = camera
        self.run = LiveRun(LiveSettings(sources=sources, **options), model=fake_model(keypoint_engine=self.engine))
        self.numbers: list[list[int]] = [[] for _ in sources]
        self.ages_s: list[list[float]] = [[] for _ in sources]
        self.results: list[list] = [[] for _ in sources]
        self.readers = [
            threading.Thread(target=self._read, args=(stream, self.run.subscribe(stream)), daemon=True)
            for stream in range(len(sources))
        ]
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.run.run()
        except BaseException as error:
            self.error = error

    def _read(self, stream: int, channel) -> None:
        while (result := channel.get()) is not END:
            number = number_of(result.frame.image)
            self.ages_s[stream].append(time.monotonic() - self.camera.made_s(number))
            self.numbers[stream].append(number)
            self.results[stream].append(result)

    def __enter__(self) -> Self:
        for reader in self.readers:
            reader.start()
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        started = time.monotonic()
        self.run.request_stop()
        self.thread.join(10)
        self.stopped_after_s = time.monotonic() - started
        assert not self.thread.is_alive()
        assert self.error is None

    def wait(self, condition, said: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.02)
        pytest.fail(f"not within {WAIT_S} s: {said}; {self.run.sources()}")

    def more(self, stream: int = 0, count: int = 10) -> None:
        """Wait until pictures come that are made from now on."""
        now = int((time.monotonic() - self.camera.started_s) * self.camera.fps)
        self.wait(lambda: sum(n > now for n in self.numbers[stream][-count:]) >= count, f"{count} new pictures")

    def report(self, stream: int = 0):
        return self.run.sources()[stream]


def urls(server: CameraServer) -> str:
    if isinstance(server, RtspCameraServer):
        return f"rtsp://user:secret@127.0.0.1:{server.port}/cam"
    if isinstance(server, HttpCameraServer):
        return f"http://127.0.0.1:{server.port}/stream.ts"
    return f"tcp://127.0.0.1:{server.port}"


@pytest.fixture
def camera() -> Camera:
    return Camera(height=144, width=256, fps=20)


@pytest.mark.parametrize("kind", [RtspCameraServer, HttpCameraServer, CameraServer])
def test_pictures_arrive_in_order_each_once_and_young(camera, kind) -> None:
    with kind(camera) as server, Watched(urls(server), camera=camera) as watched:
        watched.more(count=20)
        watched.more(count=20)
    numbers = watched.numbers[0]
    assert numbers == sorted(set(numbers))
    ages = sorted(watched.ages_s[0][-20:])
    print(f"{kind.__name__}: glass to result p50 {percentile(ages, 0.5) * 1e3:.0f} ms, most {ages[-1] * 1e3:.0f} ms")
    assert percentile(ages, 0.5) < 2.0
    times = [result.frame.pts_s for result in watched.results[0]]
    span = (numbers[-1] - numbers[0]) / camera.fps
    assert times[-1] - times[0] == pytest.approx(span, abs=0.1)
    assert watched.stopped_after_s < 5


def test_mjpeg_over_http(camera) -> None:
    with (
        HttpCameraServer(camera) as server,
        Watched(f"http://127.0.0.1:{server.port}/stream.mjpeg", camera=camera) as watched,
    ):
        watched.more(count=10)
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))


@pytest.mark.parametrize("kind", [RtspCameraServer, HttpCameraServer])
def test_a_server_that_is_killed_three_times(camera, kind) -> None:
    with kind(camera) as server, Watched(urls(server), camera=camera) as watched:
        for _ in range(3):
            watched.more(count=5)
            server.kill()
            watched.wait(
                lambda: watched.report().source.state is SourceState.RECONNECTING, "notices that it is cut off"
            )
            server.start()
            watched.more(count=5)
    report = watched.report().source
    assert report.connects == 4 + report.reconnects.get("stalled", 0)  # a busy machine may make a camera late
    assert sum(report.reconnects.values()) >= 3
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))
    times = [result.frame.pts for result in watched.results[0]]
    assert times == sorted(set(times))
    assert {result.frame.clip for result in watched.results[0]} == {0}


def test_a_server_that_falls_silent(camera) -> None:
    with RtspCameraServer(camera) as server, Watched(urls(server), camera=camera, stall_timeout=1.0) as watched:
        watched.more(count=5)
        camera.silent.set()
        watched.wait(lambda: watched.report().source.state is SourceState.STALLED, "is shown as stalled")
        watched.wait(lambda: watched.report().source.reconnects.get("stalled", 0) == 1, "is given up")
        camera.silent.clear()
        watched.more(count=5)
    assert server.accepted >= 2


def test_a_server_that_never_answers_keeps_nobody_from_stopping(camera) -> None:
    with CameraServer(camera) as server:
        server.mute = True
        with Watched(urls(server), camera=camera, stall_timeout=1.0) as watched:
            watched.wait(lambda: sum(watched.report().source.reconnects.values()) >= 1, "is given up")
        assert watched.stopped_after_s < 5
        assert watched.numbers[0] == []


def test_damaged_packets(camera) -> None:
    with CameraServer(camera) as server:
        server.corrupt_share = 0.02
        with Watched(urls(server), camera=camera) as watched:
            watched.wait(lambda: len(watched.results[0]) >= 60, "pictures all the same")
    report = watched.report()
    print(report.dropped, report.source.reconnects)
    assert report.results >= 60
    assert watched.error is None


def test_another_size_in_the_middle(camera) -> None:
    with RtspCameraServer(camera) as server, Watched(urls(server), camera=camera) as watched:
        watched.more(count=5)
        camera.size = (240, 320)
        watched.wait(lambda: watched.results[0][-1].frame.height == 240, "the new size")
        camera.size = (144, 256)
        watched.wait(lambda: watched.results[0][-1].frame.height == 144, "the old size again")
        watched.more(count=5)
    assert watched.report().source.size_changes == 2
    assert watched.report().source.connects == 1


def test_a_dead_camera_stops_no_other(camera) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(kind(camera)) for kind in (RtspCameraServer, HttpCameraServer, CameraServer)]
        dead = stack.enter_context(CameraServer(camera))
        dead.kill()
        watched = stack.enter_context(Watched(*map(urls, [*servers, dead]), camera=camera))
        for stream in range(3):
            watched.more(stream, count=10)
        servers[1].kill()
        for stream in (0, 2):
            watched.more(stream, count=10)
        servers[1].start()
        watched.more(1, count=5)
    reports = watched.run.sources()
    assert reports[3].source.connects == 0
    assert sum(reports[3].source.reconnects.values()) >= 1
    assert [report.source.reconnects for report in (reports[0], reports[2])] == [{}, {}]


def test_a_slow_model_makes_no_old_results(camera) -> None:
    """Ten pictures a second go through, forty are made: the rest is dropped, not queued."""
    camera.fps = 40
    with CameraServer(camera) as server, Watched(urls(server), camera=camera, delay_s=0.1) as watched:
        watched.wait(lambda: len(watched.results[0]) >= 30, "results")
        watched.wait(lambda: len(watched.results[0]) >= 60, "results")
        report = watched.report()
    ages = [result.frame.captured_s for result in watched.results[0]]
    assert ages == sorted(ages)
    assert report.dropped["newer frame"] > 30
    assert report.p95_ms < 1500  # two network calls of 100 ms on a busy machine, not the length of a queue


def test_streams_share_calls_and_none_waits_twice(camera) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(CameraServer(camera)) for _ in range(3)]
        watched = stack.enter_context(Watched(*map(urls, servers), camera=camera, delay_s=0.1, batch=4))
        for stream in range(3):
            watched.more(stream, count=10)
    assert max(watched.engine.batches) == 3  # one frame of each stream, never two of one
    results = [snapshot.results for snapshot in watched.run.sources()]
    assert min(results) >= 0.5 * max(results)


def test_too_large_pictures_are_refused(camera) -> None:
    with CameraServer(camera) as server, Watched(urls(server), camera=camera, max_pixels=128 * 128) as watched:
        watched.wait(lambda: "--max-pixels" in watched.report().source.trouble, "the refusal")
        assert watched.numbers[0] == []


@pytest.mark.parametrize("record", ["off", "plain", "drawn"])
def test_recording_starts_and_stops_while_the_run_goes_on(tmp_path, record) -> None:
    camera = Camera(height=144, width=256)
    with CameraServer(camera) as server:
        address = f"tcp://127.0.0.1:{server.port}"
        with Watched(address, camera=camera, output_dir=tmp_path, record=record, keep_free_gb=0) as watched:
            run = watched.run
            watched.more()
            assert run.is_recording(0) is (record != "off")
            run.stop_recording(0)
            before = len(list(tmp_path.rglob("*.mp4")))
            assert before == (record != "off")
            assert run.is_recording(0) is False
            run.start_recording(0)
            run.start_recording(0)
            assert run.sources()[0].recording is True
            watched.more()
            run.stop_recording(0)
            assert len(list(tmp_path.rglob("*.mp4"))) == before + 1
            for path in tmp_path.rglob("*.mp4"):  # whole while the run goes on
                shown = [number_of(image) for image in read_video(path)[0]]
                assert len(shown) > 0
                assert shown == sorted(set(shown))
            watched.more()
    with pytest.raises(SinkError, match="the run is over"):
        run.start_recording(0)


def test_recording_needs_a_folder() -> None:
    camera = Camera(height=144, width=256)
    with CameraServer(camera) as server, Watched(f"tcp://127.0.0.1:{server.port}", camera=camera) as watched:
        assert watched.run.is_recording(0) is None
        watched.run.stop_recording(0)
        with pytest.raises(SettingsError, match="start the run with --output-dir"):
            watched.run.start_recording(0)
