"""Ctrl-C and its kin on a real process: exit code 0, a playable video, whole lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clips import number_of, read_video, write_video

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]
START_S = 60


def start(source: Path, folder: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "run_stream.py"), str(source), "--model", str(model)),
            *("--output", str(folder / "o.mp4"), "--json", str(folder / "o.jsonl"), "--sheet", str(folder / "o.png")),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no {count} lines after {START_S} s: {process.communicate()}")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """Long enough that the run is in the middle when the signal comes."""
    return write_video(tmp_path_factory.mktemp("clip") / "in.mp4", 1000, height=720, width=1280, keyframe_every=50)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(tmp_path, model_folder, long_video, number) -> None:
    process = start(long_video, tmp_path, model_folder)
    wait_for_lines(tmp_path / "o.jsonl", 10, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert 10 <= len(lines) < 1000
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    frames, _ = read_video(tmp_path / "o.mp4")
    assert [number_of(frame) for frame in frames] == list(range(len(lines)))
    assert (tmp_path / "o.png").exists()
    assert f"stopped on request after {len(lines)} frames" in err
    assert f"{len(lines)} frames" in out
    assert "Traceback" not in err


def test_two_signals_end_at_once(tmp_path, model_folder, long_video) -> None:
    process = start(long_video, tmp_path, model_folder)
    wait_for_lines(tmp_path / "o.jsonl", 5, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))
    assert len(read_video(tmp_path / "o.mp4")[0]) == len(lines)


def test_a_killed_run_leaves_readable_outputs(tmp_path, model_folder, long_video) -> None:
    process = start(long_video, tmp_path, model_folder)
    wait_for_lines(tmp_path / "o.jsonl", 90, process)
    process.kill()
    process.communicate(timeout=30)
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    for line in lines[:-1]:
        json.loads(line)
    frames, _ = read_video(tmp_path / "o.mp4")
    assert [number_of(frame) for frame in frames] == list(range(len(frames)))
    assert len(frames) > 20


def test_a_line_now_and_then_when_nobody_watches(tmp_path, model_folder, long_video) -> None:
    process = start(long_video, tmp_path, model_folder, "--max-frames", "60", "--stats-every-s", "0.05")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0
    stats = [line for line in err.splitlines() if line.startswith("INFO frame=")]
    assert len(stats) >= 2
    assert all("fps=" in line and "decode_ms=" in line for line in stats)
