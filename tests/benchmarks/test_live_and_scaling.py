"""The paced source keeps its rate and drops for nobody; the line under a plot is the right one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from benchmarks.bench_live import PacedClip, live_latency
from benchmarks.bench_scaling import Scene, plot, processor_ms, straight_line
from pipeline.settings import Settings
from tests.clips import number_of, write_video


def test_frames_come_when_they_are_due_and_the_clip_starts_again(tmp_path: Path) -> None:
    source = PacedClip(write_video(tmp_path / "clip.mp4", 4), fps=50.0, seconds=0.2)
    started = time.monotonic()
    frames = [*source.frames()]
    assert time.monotonic() - started >= 0.19
    assert [frame.index for frame in frames] == [*range(11)]
    assert [number_of(frame.image) for frame in frames][:6] == [0, 1, 2, 3, 0, 1]
    steps = np.diff([frame.captured_s for frame in frames])
    np.testing.assert_allclose(steps, 0.02, atol=1e-6)


def test_own_rate_of_the_clip(tmp_path: Path) -> None:
    source = PacedClip(write_video(tmp_path / "clip.mp4", 6, fps=20), fps=None, seconds=0.1)
    assert [round(frame.captured_s, 3) for frame in source.frames()][1] > 0
    assert source.sent == 3


def test_a_stopped_source_ends(tmp_path: Path) -> None:
    source = PacedClip(write_video(tmp_path / "clip.mp4", 4), fps=100.0, seconds=60.0)
    for frame in source.frames():
        if frame.index == 3:
            source.stop()
    assert source.sent == 4


def test_latency_of_what_was_not_dropped(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 4)
    settings = Settings(source="0", engine="onnx", device="cpu", long_side=128)
    latency_ms, sent, dropped = live_latency(clip, fps=20.0, seconds=1.0, settings=settings)
    assert sent == 21
    assert 0 < len(latency_ms) <= sent - dropped
    assert min(latency_ms) > 0


def test_straight_line() -> None:
    slope, start, r2 = straight_line(np.array([1.0, 2.0, 4.0]), np.array([5.0, 7.0, 11.0]))
    assert (slope, start, r2) == pytest.approx((2.0, 3.0, 1.0))
    assert straight_line(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]))[2] < 0.1


def test_steps_of_a_scene_run_and_the_plot_is_written(tmp_path: Path) -> None:
    calls = Scene(astronaut(), 256).people(2)
    assert set(calls) == {"fit", "segment network", "paste", "draw"}
    times = [processor_ms(call, 0.01).median_ms for call in calls.values()]
    assert all(value >= 0 for value in times)
    plot(tmp_path / "plot.png", [("title", "people", np.array([1.0, 2.0]), {"a": [1.0, 2.0], "b": [0.5, 0.6]})])
    assert (tmp_path / "plot.png").stat().st_size > 1000
