from __future__ import annotations

import itertools
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backoff import BACKOFF_S, JITTER, Backoff
from pipeline.errors import SourceError
from pipeline.live.source import TIME_BASE, LiveSource, SourceState, Timeline
from pipeline.video_input import Picture

pytestmark = pytest.mark.timeout(60)


class FakeInput:
    """Gives pictures from a list of (pts in s, height), then ends, fails, or is silent until it is given up."""

    def __init__(self, pictures, *, then="end", endless=True, broken=0) -> None:
        self._pictures = pictures
        self._then = then
        self.endless = endless
        self.packets_broken = broken
        self.closed = 0
        self.hang = threading.Event()

    def pictures(self, given_up):
        for index, (pts_s, height) in enumerate(self._pictures):
            yield Picture(index, np.zeros((height, 64, 3), np.uint8), round(pts_s * 1000), Fraction(1, 1000))
        if isinstance(self._then, Exception):
            raise self._then
        while self._then == "silence" and not given_up():
            time.sleep(0.002)
        if self._then == "hang":
            self.hang.wait(30)

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Monotonic time that moves when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds


def source_of(inputs, clock=None, **options):
    """A source whose connections are those of the list; an exception in it is a failure to open."""
    waiting = list(inputs)

    def opener():
        if not waiting:
            source.stop()
            raise SourceError("no more")
        opened = waiting.pop(0)
        if isinstance(opened, Exception):
            raise opened
        return opened

    clock = clock or Clock()
    wait = getattr(clock, "wait", None)
    options = {
        "backoff": Backoff(seed=1),
        "lossless": True,
        "open_timeout_s": 0.0,
        "wait": wait,
        "clock": clock,
    } | options
    source = LiveSource("rtsp://user:secret@cam/1", opener, **options)
    return source


def test_it_opens_again_and_times_and_numbers_go_on() -> None:
    inputs = [FakeInput([(5.0, 48), (5.04, 48)]), FakeInput([(100.0, 48), (100.04, 48)])]
    source = source_of(inputs)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert {frame.clip for frame in frames} == {0}
    assert {frame.time_base for frame in frames} == {TIME_BASE}
    times = [frame.pts_s for frame in frames]
    assert times[:2] == pytest.approx([5.0, 5.04])
    waited_s = frames[2].captured_s - frames[1].captured_s
    assert waited_s >= 0.75
    assert times[2] - times[1] == pytest.approx(waited_s, abs=1e-4)
    assert times[3] - times[2] == pytest.approx(0.04)
    report = source.report()
    assert report.state is SourceState.ENDED
    assert report.connects == 2
    assert report.reconnects["closed"] == 2
    assert [item.closed for item in inputs] == [1, 1]


def test_waits_grow_to_a_minute_and_start_anew_after_a_good_connection() -> None:
    clock = Clock()
    failures = [SourceError("refused")] * 8
    source = source_of([*failures, FakeInput([(0.0, 48)]), SourceError("x")], clock)
    list(source.frames())
    steps = [*BACKOFF_S, 60.0, 60.0, 60.0]
    assert len(clock.waits) >= 9
    assert all(abs(wait / step - 1) <= JITTER for wait, step in zip(clock.waits, steps, strict=False))
    assert source.report().reconnects["cannot open"] == 9
    backoff = Backoff(seed=3)
    waits = [backoff.next_s(worked_s=worked) for worked in (0, 0, 0, 100.0, 0, 0.1)]
    assert [round(wait / step) for wait, step in zip(waits, (1, 2, 5, 1, 2, 5), strict=True)] == [1] * 6


def test_two_seeds_wait_differently() -> None:
    first, second = Backoff(seed=1), Backoff(seed=2)
    assert [first.next_s() for _ in range(3)] != [second.next_s() for _ in range(3)]


def test_silence_ends_a_connection() -> None:
    silent = FakeInput([(0.0, 48)], then="silence")
    source = source_of(
        [silent, FakeInput([(0.0, 48)])], clock=time.monotonic, wait=lambda _s: None, stall_timeout_s=0.2
    )
    frames = list(source.frames())
    assert len(frames) == 2
    assert source.report().reconnects["stalled"] == 1
    deadline = time.monotonic() + 5
    while not silent.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert silent.closed == 1


def test_a_library_that_hangs_is_left_behind_and_not_without_end() -> None:
    hanging = [FakeInput([(0.0, 48)], then="hang") for _ in range(5)]
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) > 8:
            source.stop()

    source = source_of(hanging, clock=time.monotonic, wait=wait, stall_timeout_s=0.05)
    frames = list(source.frames())
    assert len(frames) == 3  # the fourth connection waits for one of the three before it
    assert "hang" in source.report().trouble
    for item in hanging:
        item.hang.set()


def test_hundreds_of_reconnects_leave_no_thread() -> None:
    before = threading.active_count()
    source = source_of([FakeInput([(0.0, 48)]) for _ in range(300)])
    assert len(list(source.frames())) == 300
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert source.report().connects == 300


def test_stop_is_at_once_even_while_nothing_comes() -> None:
    source = source_of([FakeInput([(0.0, 48)], then="hang")], clock=time.monotonic)
    frames = source.frames()
    next(frames)
    threading.Timer(0.05, source.stop).start()
    started = time.monotonic()
    assert list(frames) == []
    assert time.monotonic() - started < 2


def test_stop_during_a_wait_between_tries() -> None:
    source = LiveSource("x", lambda: (_ for _ in ()).throw(SourceError("no")))
    threading.Timer(0.1, source.stop).start()
    started = time.monotonic()
    assert list(source.frames()) == []
    assert time.monotonic() - started < 1


def test_states_as_they_are_seen() -> None:
    clock = Clock()
    source = source_of([FakeInput([(0.0, 48)], then="silence")], clock, stall_timeout_s=10.0)
    assert source.report().state is SourceState.CONNECTING
    frames = source.frames()
    next(frames)
    assert source.report().state is SourceState.LIVE
    clock.now_s += 3
    assert source.report().state is SourceState.STALLED
    assert source.report().age_s == pytest.approx(3)
    frames.close()
    assert source.report().state is SourceState.ENDED


def test_another_size_flows_on() -> None:
    source = source_of([FakeInput([(0.0, 48), (0.04, 96), (0.08, 96)])])
    assert [frame.height for frame in source.frames()] == [48, 96, 96]
    assert source.report().size_changes == 1


def test_broken_packets_are_counted_over_all_connections() -> None:
    source = source_of([FakeInput([(0.0, 48)], broken=2), FakeInput([(0.0, 48)], broken=3)])
    list(source.frames())
    assert source.report().dropped == {"broken packet": 5}
    assert source.frames_lost == 5


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    source = source_of([FakeInput([(0.04 * n, 48) for n in range(500)])], lossless=False)
    frames = []
    for frame in source.frames():
        frames.append(frame)
        time.sleep(0.001)
    assert frames[-1].index == 499
    assert len(frames) + source.report().dropped.get("newer frame", 0) == 500


def test_a_finite_stream_ends_and_does_not_begin_again() -> None:
    source = source_of([FakeInput([(0.0, 48)], endless=False), FakeInput([(0.0, 48)])])
    assert len(list(source.frames())) == 1
    assert source.report().reconnects == {}


def test_without_reconnect_the_first_end_is_an_error() -> None:
    source = source_of([FakeInput([(0.0, 48)], then=SourceError("reading stopped"))], reconnect=False)
    frames = source.frames()
    next(frames)
    with pytest.raises(SourceError, match="failed: reading stopped"):
        next(frames)


def test_no_password_in_what_is_said(caplog) -> None:
    said = SourceError("cannot open rtsp://user:secret@cam/1?token=abc: refused")
    source = source_of([said, ValueError("rtsp://user:secret@cam/1")])
    list(source.frames())
    assert "***" in source.report().trouble or source.report().trouble == "no more"
    everything = caplog.text + repr(source.report()) + source.name
    assert "secret" not in everything
    assert "abc" not in everything
    assert "rtsp://***@cam/1" in everything


class TestTimeline:
    def test_the_first_connection_keeps_its_times(self) -> None:
        line = Timeline()
        placed = [line.place(Fraction(n, 30), 50 + n / 30, new_connection=n == 0) for n in range(10)]
        assert placed == [n * 3000 for n in range(10)]

    def test_a_stream_clock_that_runs_through_a_reconnect_is_kept(self) -> None:
        line = Timeline()
        line.place(Fraction(10), 100.0, new_connection=True)
        assert line.place(Fraction(13), 103.1, new_connection=True) == 13 * 90_000

    def test_a_jump_ahead_or_back_becomes_the_time_that_passed(self) -> None:
        line = Timeline()
        line.place(Fraction(10), 100.0, new_connection=True)
        assert line.place(Fraction(5000), 100.5, new_connection=False) == round(10.5 * 90_000)
        assert line.place(Fraction(2), 101.0, new_connection=False) == round(11.0 * 90_000)
        assert line.place(Fraction(3), 101.1, new_connection=False) == round(12.0 * 90_000)
        assert line.jumps == 2

    def test_frames_that_were_held_up_keep_their_distances(self) -> None:
        line = Timeline()
        line.place(Fraction(10), 100.0, new_connection=True)
        placed = [line.place(Fraction(10) + Fraction(n, 25), 108.0 + n / 1000, new_connection=False) for n in (1, 2)]
        assert placed == [900_000 + 3600, 900_000 + 7200]
        assert line.jumps == 0

    @given(
        st.lists(
            st.tuples(
                st.fractions(min_value=-1000, max_value=100_000, max_denominator=90_000),
                st.floats(0, 100),
                st.booleans(),
            ),
            min_size=1,
        )
    )
    def test_times_always_rise(self, steps) -> None:
        line = Timeline()
        now_s, placed = 10.0, []
        for given_s, passed_s, new in steps:
            now_s += passed_s
            placed.append(line.place(given_s, now_s, new_connection=new))
        assert all(later > earlier for earlier, later in itertools.pairwise(placed))
