from __future__ import annotations

import json
import resource
import threading
import time

import pytest

from pipeline.channel import END
from pipeline.errors import SinkError
from pipeline.live import recording as live_recording
from pipeline.live.outputs import DispatchStage, SinkWorker
from pipeline.live.recording import DiskSpace, LiveJsonSink, RecordingOptions, RecordingSink
from pipeline.messages import FrameResult
from pipeline.metrics import HISTOGRAM_MS
from pipeline.video_input import VideoInput
from tests.clips import number_of, numbered_picture, read_video
from tests.fakes import frame, masks_of

pytestmark = pytest.mark.timeout(60)


def result(index: int = 0, *, stream: int = 0, height: int = 96, width: int = 128) -> FrameResult:
    of = frame(index, image=numbered_picture(index, height, width))
    object.__setattr__(of, "stream", stream)
    return FrameResult(masks=masks_of(of), people=(), drawn=None)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def recorder(folder, *, rotate_s=60.0, rotate_bytes=10**9, space=None, clock=None) -> RecordingSink:
    return RecordingSink(
        folder / "stream-00",
        space or DiskSpace(folder, 0),
        RecordingOptions(rotate_s=rotate_s, rotate_bytes=rotate_bytes),
        clock=clock or Clock(),
    )


def recordings(folder):
    return sorted(path for path in (folder / "stream-00").iterdir() if path.suffix == ".mp4")


def numbers_in(paths) -> list[int]:
    """Of all frames that a player shows; the last packet of a file that could not be finished may be cut."""
    videos = [VideoInput(str(path), timeout_s=1) for path in paths]
    return [number_of(picture.pixels) for video in videos for picture in video.pictures()]


def test_rotation_by_time_loses_no_frame(tmp_path) -> None:
    clock = Clock()
    sink = recorder(tmp_path, rotate_s=1.0, clock=clock)
    for index in range(30):
        clock.now_s += 0.1
        sink.write(result(index))
    sink.close()
    assert len(recordings(tmp_path)) == 3
    assert numbers_in(recordings(tmp_path)) == list(range(30))


def test_rotation_by_size_and_by_another_picture_size(tmp_path) -> None:
    sink = recorder(tmp_path, rotate_bytes=20_000)
    for index in range(200):
        sink.write(result(index))
    for index in range(200, 210):
        sink.write(result(index, height=160, width=192))
    sink.close()
    paths = recordings(tmp_path)
    assert len(paths) >= 3
    assert numbers_in(paths) == list(range(210))
    assert read_video(paths[-1])[0][0].shape == (160, 192, 3)
    assert max(path.stat().st_size for path in paths) < 60_000


def test_the_oldest_recordings_of_ours_go_first_and_nothing_else(tmp_path) -> None:
    folder = tmp_path / "stream-00"
    (tmp_path / "stream-01").mkdir(parents=True)
    folder.mkdir()
    old = [folder / f"2024010{day}-000000-0000.mp4" for day in (1, 2, 3)]
    other = [
        *(folder / name for name in ("holiday.mp4", "20240101-000000-0000.mp4.bak", "20240101-000000.jsonl")),
        tmp_path / "20240101-000000-0000.mp4",
        tmp_path / "stream-01" / "notes.txt",
    ]
    outside = tmp_path.parent / f"{tmp_path.name}-outside.mp4"
    for path in (*old, *other, outside):
        path.write_bytes(b"x" * 100)
    (folder / "20230101-000000-0000.mp4").symlink_to(outside)
    (tmp_path / "stream-02").symlink_to(tmp_path.parent)
    free = [0, 0, 10**9]
    space = DiskSpace(tmp_path, 1000, free=lambda _path: free.pop(0) if len(free) > 1 else free[0])
    assert space.make_room()
    assert [path.exists() for path in old] == [False, False, True]
    assert all(path.exists() for path in (*other, outside))
    space = DiskSpace(tmp_path, 1000, free=lambda _path: 0)
    space.opened(old[2])
    assert not space.make_room()
    assert old[2].exists()
    space.closed(old[2])
    assert not space.make_room()
    assert not old[2].exists()
    assert (folder / "20230101-000000-0000.mp4").is_symlink()
    outside.unlink()


def test_a_clock_that_was_set_back_does_not_make_the_newest_recordings_the_oldest(tmp_path) -> None:
    folder = tmp_path / "stream-00"
    folder.mkdir()
    before = folder / "20400101-000000-0000.mp4"  # of another run, whose clock was wrong
    ours = [folder / f"{day}-000000-0000.mp4" for day in ("20300105", "20300106", "20300101", "20300102")]
    for path in (before, *ours):
        path.write_bytes(b"x")
    space = DiskSpace(tmp_path, 1000, free=lambda _path: 0)
    for path in ours:
        space.opened(path)
        space.closed(path)
    gone = []
    free = [0]
    space._free = lambda _path: free.pop() if free else 10**9
    for _ in range(4):
        free.append(0)
        assert space.make_room()
        gone.append(next(path for path in (before, *ours) if not path.exists() and path not in gone))
    assert gone == [before, *ours[:3]]


def test_too_little_space_stops_the_recording_and_it_comes_back(tmp_path, caplog) -> None:
    clock, free = Clock(), [10**9]
    sink = recorder(tmp_path, space=DiskSpace(tmp_path, 1000, free=lambda _path: free[0]), clock=clock)
    sink.write(result(0))
    free[0] = 0
    clock.now_s += 3
    with pytest.raises(SinkError, match="--keep-free-gb"):
        sink.write(result(1))
    with pytest.raises(SinkError, match="waits for room"):
        sink.write(result(2))
    clock.now_s += 6
    with pytest.raises(SinkError, match="--keep-free-gb"):
        sink.write(result(3))
    free[0] = 10**9
    clock.now_s += 6
    sink.write(result(4))
    sink.close()
    assert numbers_in(recordings(tmp_path)) == [4]  # the first one was the oldest of ours
    assert caplog.text.count("recording stopped") == 1


def test_a_full_disk_stops_the_recording_in_one_line_and_what_was_written_plays(tmp_path, caplog) -> None:
    clock = Clock()
    sink = recorder(tmp_path, clock=clock)
    lines = LiveJsonSink(tmp_path / "lines.jsonl", clock=clock)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lost = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        for index in range(300):
            clock.now_s += 0.001
            for target in (sink, lines):
                try:
                    target.write(result(index))
                except SinkError:
                    lost += target is sink
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lost > 100
    assert caplog.text.count("recording stopped") == 1
    assert caplog.text.count("JSON lines stopped") == 1
    clock.now_s += live_recording.RETRY_S + 1
    sink.write(result(999))
    lines.write(result(999))
    sink.close()
    lines.close()
    paths = recordings(tmp_path)
    first = numbers_in(paths[:1])
    assert first == list(range(len(first)))
    assert len(first) > 20
    assert numbers_in(paths[1:]) == [999]
    indices = [json.loads(line)["frame"] for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert indices[-1] == 999
    assert indices[:-1] == list(range(len(indices) - 1))


class SlowSink:
    name = "slow"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.seen: list[int] = []
        self.closed = 0

    def write(self, result) -> None:
        self.go_on.wait(30)
        self.seen.append(result.frame.index)

    def close(self) -> None:
        self.closed += 1


class QuickSink(SlowSink):
    name = "quick"

    def write(self, result) -> None:
        self.seen.append(result.frame.index)


class DeadSink(QuickSink):
    name = "dead"

    def write(self, result) -> None:
        raise ZeroDivisionError("a bug in the sink")


def test_a_slow_and_a_dead_sink_cost_their_own_frames_only(caplog) -> None:
    slow, quick, dead = SlowSink(), QuickSink(), DeadSink()
    workers = [SinkWorker(sink, sink.name, capacity=4) for sink in (slow, quick, dead)]
    stage = DispatchStage([workers, []])
    newest = stage.subscribe(1)
    started = time.monotonic()
    for index in range(100):
        stage.process(result(index))
        stage.process(result(index, stream=1))
        deadline = time.monotonic() + 5
        while len(quick.seen) <= index and time.monotonic() < deadline:
            time.sleep(0.0005)
    assert time.monotonic() - started < 20
    assert quick.seen == list(range(100))
    slow.go_on.set()
    stage.close()
    assert slow.seen[-4:] == [96, 97, 98, 99]
    reports = {report.name: report for report in stage.sinks(0)}
    assert reports["slow"].written + reports["slow"].dropped["sink too slow"] == 100
    assert reports["quick"].dropped == {}
    assert reports["dead"].dropped["closed"] >= 50  # how soon its thread gets to fail is the machine's business
    assert "a bug in the sink" in caplog.text
    assert newest.get().frame.index == 99
    results, people, p50_ms, p95_ms = stage.figures(1)
    assert (results, people) == (100, 0)
    assert 0 <= p50_ms <= p95_ms


def test_a_sink_that_hangs_does_not_hold_up_the_end(monkeypatch, caplog) -> None:
    monkeypatch.setattr("pipeline.live.outputs.CLOSE_S", 0.2)
    slow, quick = SlowSink(), QuickSink()
    stage = DispatchStage([[SinkWorker(slow, "slow", capacity=4), SinkWorker(quick, "quick", capacity=4)]])
    for index in range(3):
        stage.process(result(index))
    started = time.monotonic()
    stage.close()
    assert time.monotonic() - started < 2
    assert quick.seen == [0, 1, 2]
    assert quick.closed == 1
    assert "slow: did not take its last frames" in caplog.text
    slow.go_on.set()


def test_a_sink_that_comes_and_goes_counts_on(caplog) -> None:
    first, second = QuickSink(), QuickSink()
    stage = DispatchStage([[], []])
    stage.process(result(0))
    assert stage.attach(0, SinkWorker(first, "recording", capacity=100))
    assert stage.has_sink(0, "recording") and not stage.has_sink(1, "recording")
    for index in range(1, 4):
        stage.process(result(index))
    worker = stage.detach(0, "recording")
    assert stage.detach(0, "recording") is None
    worker.join(time.monotonic() + 10)
    stage.keep_report(0, worker.report())
    stage.process(result(4))
    assert stage.attach(0, SinkWorker(second, "recording", capacity=100))
    stage.process(result(5))
    stage.close()
    assert (first.seen, second.seen, first.closed, second.closed) == ([1, 2, 3], [5], 1, 1)
    assert [(report.name, report.written) for report in stage.sinks(0)] == [("recording", 4)]
    late = QuickSink()
    worker = SinkWorker(late, "late", capacity=1)
    assert not stage.attach(0, worker)
    worker.join(time.monotonic() + 10)
    assert late.closed == 1
    assert stage.subscribe(0).get() is END


def test_latency_of_all_frames_is_counted_in_steps() -> None:
    now = [0.0]
    stage = DispatchStage([[]], clock=lambda: now[0])
    for age_ms in (0.5, 1.0, 1.1, 80.0, 99_000.0):
        one = result(0)
        now[0] = one.frame.captured_s + age_ms / 1e3
        stage.process(one)
    histogram = stage.latency(0)
    assert histogram.count == 5
    assert histogram.sum_ms == pytest.approx(99_082.6, abs=0.01)
    assert histogram.counts[-1] == 1
    assert sum(histogram.counts[: HISTOGRAM_MS.index(2.0) + 1]) == 3
