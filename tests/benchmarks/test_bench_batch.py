"""What the batch benchmark rests on: nobody begins before all are there, and who is pinned stays on that core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench_batch import ReadyFirst, pin, shorten
from tests.clips import number_of, read_video, write_video


class Script:
    """A crew that says what it is told to."""

    deaths_allowed = 0
    patient = True

    def __init__(self, heard: list[list[tuple[object, tuple]]]) -> None:
        self.heard = heard

    def start(self) -> object:
        return object()

    def listen(self, timeout_s: float) -> Iterator[tuple[object, tuple]]:
        yield from self.heard.pop(0)

    def end(self) -> None:
        """Nobody is there."""


def test_all_begin_together_and_the_last_end_counts() -> None:
    first, second = "first", "second"
    crew = ReadyFirst(
        Script(
            [
                [(first, ("log", 20, "opening")), (first, ("ready", {}))],
                [],
                [(second, ("ready", {}))],
                [(first, ("done",)), (second, ("progress", {}))],
                [(second, ("done",))],
            ]
        ),
        2,
        lambda link: 0,
        pin=False,
    )
    assert list(crew.listen(0.1)) == [(first, ("log", 20, "opening"))]
    assert list(crew.listen(0.1)) == []
    assert crew.began_s == 0.0
    assert list(crew.listen(0.1)) == [(first, ("ready", {})), (second, ("ready", {}))]
    assert crew.began_s > 0.0
    assert [message[0] for _, message in crew.listen(0.1)] == ["done", "progress"]
    before = crew.ended_s
    assert before >= crew.began_s
    assert len(list(crew.listen(0.1))) == 1
    assert crew.ended_s >= before


def test_a_pinned_process_stays_on_its_core() -> None:
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        pin(process.pid, core)
        assert os.sched_getaffinity(process.pid) == {core}
    finally:
        process.communicate(b"\n", timeout=60)


def test_shortened_clips_are_the_first_frames(tmp_path: Path) -> None:
    short = shorten(write_video(tmp_path / "in.mp4", 30), tmp_path / "short.mp4", 7)
    frames, _ = read_video(short)
    assert [number_of(frame) for frame in frames] == list(range(7))
