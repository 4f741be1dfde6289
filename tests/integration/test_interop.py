"""`--output -`, `--table`, `--export` as a process: real readers at the other end of the pipe, who also leave early."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from run_stream import main
from tests.clips import number_of, write_video

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]
COUNT, SIZE = 40, (96, 128)


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_video(tmp_path / "in.mp4", COUNT, height=SIZE[0], width=SIZE[1])


def command(clip: Path, model: Path, *more: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_stream.py"), str(clip), "--model", str(model), *map(str, more)]


def frames_in(data: bytes) -> tuple[list[np.ndarray], list[float]]:
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time) for frame in frames]


def test_matroska_on_standard_output(clip, model_folder) -> None:
    done = subprocess.run(
        command(clip, model_folder, "--output", "-", "--video-crf", 8), capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    frames, times = frames_in(done.stdout)
    assert [number_of(frame) for frame in frames] == list(range(COUNT))
    assert times == pytest.approx([number / 25 for number in range(COUNT)], abs=2e-3)
    assert b"people per frame" in done.stderr  # the table goes where it does not disturb the video


def test_raw_px_on_standard_output(clip, model_folder) -> None:
    done = subprocess.run(
        command(clip, model_folder, "--output", "-", "--pipe", "rawvideo", "--max-frames", 7),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, *SIZE, 3)
    assert [number_of(frame) for frame in frames] == list(range(7))


@pytest.mark.ffmpeg
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([], []),
        (["--pipe", "rawvideo"], ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "25"]),
    ],
    ids=["matroska", "rawvideo"],
)
def test_ffmpeg_reads_it(tmp_path, clip, model_folder, ours, theirs) -> None:
    ourselves = subprocess.Popen(
        command(clip, model_folder, "--output", "-", "--video-crf", 8, *ours),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    target = tmp_path / "out.mkv"
    ffmpeg = subprocess.run(
        ["ffmpeg", "-v", "error", *theirs, "-i", "-", "-c:v", "ffv1", str(target)],
        stdin=ourselves.stdout,
        capture_output=True,
        timeout=100,
        check=False,
    )
    ourselves.stdout.close()
    assert ourselves.wait(30) == 0, ourselves.stderr.read()
    assert ffmpeg.returncode == 0 and not ffmpeg.stderr, ffmpeg.stderr
    frames, _ = frames_in(target.read_bytes())
    assert [number_of(frame) for frame in frames] == list(range(COUNT))
    ourselves.stderr.close()


@pytest.mark.parametrize("form", ["matroska", "rawvideo"])
def test_a_reader_that_leaves_ends_the_run_cleanly(tmp_path, model_folder, form) -> None:
    clip = write_video(tmp_path / "long.mp4", 400, height=240, width=320)
    lines = tmp_path / "lines.jsonl"
    process = subprocess.Popen(
        command(clip, model_folder, "--output", "-", "--pipe", form, "--json", lines),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(5000)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 0, errors
    process.stderr.close()
    assert "the reader of standard output left" in errors
    assert "Traceback" not in errors
    written = [json.loads(line) for line in lines.read_text().splitlines()]  # the other outputs are whole
    assert 0 < len(written) < 400


def test_everything_at_once(tmp_path, clip, model_folder) -> None:
    flags = [
        part for kind in ("coco", "cvat", "yolo-pose", "yolo-seg") for part in ("--export", f"{kind}={tmp_path / kind}")
    ]
    flags += ["--export", f"srt={tmp_path / 'a.srt'}", "--export", f"vtt={tmp_path / 'a.vtt'}"]
    arguments = [
        str(clip),
        "--model",
        str(model_folder),
        "--table",
        str(tmp_path / "t.parquet"),
        "--export-every",
        "10",
    ]
    assert main([*arguments, *flags]) == 0
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("frame").to_pylist() == list(range(COUNT))
    assert set(table.column("id").to_pylist()) == {1}
    assert len(COCO(str(tmp_path / "coco" / "labels.json")).getAnnIds()) == 4
    assert len(list((tmp_path / "yolo-pose" / "labels" / "train").iterdir())) == 4
    assert (tmp_path / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,600\n1 person\n\n"
    assert main([*arguments, *flags]) == 5  # nothing is replaced unasked


def test_a_batch_writes_tables_and_subtitles(tmp_path, clip, model_folder) -> None:
    out = tmp_path / "out"
    arguments = ["batch", str(clip), "--out", str(out), "--model", str(model_folder), "--segment-seconds", "0.4"]
    assert main([*arguments, "--write", "parquet,srt,vtt,json"]) == 0
    table = pq.read_table(out / "in.mp4.parquet")
    lines = [json.loads(line) for line in (out / "in.mp4.jsonl").read_text().splitlines()]
    people = [(line["frame"], person) for line in lines for person in line["people"]]
    assert table.column("frame").to_pylist() == [frame for frame, _ in people]
    assert table.column("mask_rle").to_pylist() == [person["mask"]["counts"] for _, person in people]
    assert (out / "in.mp4.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,600\n1 person\n\n"
    assert (out / "in.mp4.vtt").read_text().startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.600")
