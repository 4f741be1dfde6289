"""`pose2seg live` as a process: files, standard input and output, a reader that does not read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.selftest.servers import Camera, CameraServer, RtspCameraServer
from tests.clips import number_of, read_video, write_video

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


def start(model: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_stream.py"), "live", *arguments, "--model", str(model)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


def test_a_file_is_read_to_its_end_without_a_gap(tmp_path, model_folder) -> None:
    clip = write_video(tmp_path / "in.mp4", 60)
    process = start(model_folder, str(clip), "--output-dir", str(tmp_path / "out"), "--keep-free-gb", "0")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    (lines,) = (tmp_path / "out" / "stream-00").glob("*.jsonl")
    (video,) = (tmp_path / "out" / "stream-00").glob("*.mp4")
    indices = [json.loads(line)["frame"] for line in lines.read_text().splitlines()]
    assert indices == list(range(60))
    shown = [number_of(image) for image in read_video(video)[0]]
    assert shown == sorted(set(shown))
    assert "60" in out
    assert "Traceback" not in err


def test_realtime_takes_as_long_as_the_file(tmp_path, model_folder) -> None:
    clip = write_video(tmp_path / "in.mp4", 50)
    process = start(model_folder, str(clip), "--realtime", "--json", "-")
    lines, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    frames = [json.loads(line) for line in lines.splitlines()]
    assert {frame["stream"] for frame in frames} == {0}
    assert frames[-1]["frame"] == 49
    assert "live run" in err  # the table goes where it does not disturb the lines


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".h264"])
def test_standard_input(tmp_path, model_folder, suffix) -> None:
    clip = write_video(tmp_path / f"in{suffix}", 40)
    with clip.open("rb") as file:
        process = start(model_folder, "-", "--json", "-", "--buffer", "all", stdin=file)
        lines, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert [json.loads(line)["frame"] for line in lines.splitlines()] == list(range(40))


def test_a_reader_that_does_not_read_stops_nothing(tmp_path, model_folder) -> None:
    with CameraServer(Camera(height=144, width=256)) as server:
        process = start(
            model_folder,
            *(f"tcp://127.0.0.1:{server.port}", "--json", "-", "--output-dir", str(tmp_path), "--record", "off"),
            *("--seconds", "20", "--stats-every-s", "1"),
        )
        time.sleep(0.1)
        assert process.wait(timeout=100) == 0  # nobody reads its stdout
        lines = next(tmp_path.rglob("*.jsonl")).read_text().splitlines()
        assert len(lines) > 50
        process.communicate()


def test_a_bad_source_is_said_before_anything_starts(tmp_path, model_folder) -> None:
    for arguments, code, said in (
        (["nothing.mp4"], 3, "no such file"),
        (["file:///etc/passwd"], 2, "expected an address starting with"),
        (["rtsp://u:secret@h/1", "--allow-url", "rtsp://other"], 2, "no --allow-url pattern"),
        ([], 2, "required"),
        (["0", "--json", "x.jsonl"], 2, "files go to --output-dir"),
        (["0", "--max-pixels", "1"], 2, "--max-pixels must be from 4096"),
        (["0", "--output-dir", "/proc/nothing"], 5, "--output-dir /proc/nothing: cannot be written"),
    ):
        process = start(model_folder, *arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, (arguments, err)
        assert said in err
        assert "secret" not in out + err
        assert "Traceback" not in err


def test_no_password_in_anything_that_is_written(tmp_path, model_folder) -> None:
    with RtspCameraServer(Camera(height=144, width=256)) as server:
        process = start(
            model_folder,
            *(f"rtsp://admin:hunter2@127.0.0.1:{server.port}/cam?token=abc123", "rtsp://admin:hunter2@127.0.0.1:1/"),
            *("--output-dir", str(tmp_path), "--seconds", "10", "--stats-every-s", "1", "--debug", "--json", "-"),
        )
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    written = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert written
    for secret in ("hunter2", "abc123"):
        assert secret not in out + err + written
        assert not any(secret in str(path) for path in tmp_path.rglob("*"))
