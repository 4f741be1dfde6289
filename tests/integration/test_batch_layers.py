"""Layers of ``pose2seg batch`` after kill -9 at random moments: what comes out is what an uninterrupted run gives."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from tests.clips import write_video
from tests.integration.test_batch import ROOT, segments_done

pytestmark = pytest.mark.timeout(400)
LAYERS = ("blur", "remove", "cutout=mov", "cutout=webm", "matte={id}.mkv", "cutout=png", "heatmap")
KILLS = 4


def command(source: Path, out: Path, model: Path) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "run_stream.py"), "batch", str(source), "--out", str(out), "--model", str(model)),
        *("--write", "json", "--segment-seconds", "1", "--engine", "onnx", "--hide-ahead", "5"),
        *(part for layer in LAYERS for part in ("--layer", layer)),
    ]


def outputs(out: Path) -> dict[str, object]:
    """Name -> content of all results; videos as they decode, with their alpha."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith((".pose2seg", "report.")):
            continue
        if path.suffix not in {".mp4", ".mov", ".webm", ".mkv"}:
            found[name] = path.read_bytes()
            continue
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            decoder = av.CodecContext.create("libvpx-vp9", "r") if path.suffix == ".webm" else stream.codec_context
            frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
            found[name] = [(frame.pts, [bytes(plane) for plane in frame.planes]) for frame in frames]
    return found


def test_killed_at_random_moments(tmp_path, model_folder) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write_video(folder / "a.mp4", 150)
    write_video(folder / "sub" / "b.mkv", 100)
    reference = tmp_path / "reference"
    done = subprocess.run(
        command(folder, reference, model_folder), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = outputs(reference)
    assert len(expected["a.mp4.blur.mp4"]) == 150
    assert sum(name.startswith("sub/b.mkv.cutout/") for name in expected) == 100
    assert {"a.mp4.matte-1.mkv", "sub/b.mkv.heatmap.png", "sub/b.mkv.cutout.webm"} <= set(expected)

    moments = random.Random(3)
    out = tmp_path / "out"
    resumed = 0
    for _ in range(KILLS):
        before = segments_done(out)
        process = subprocess.Popen(
            command(folder, out, model_folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = before + moments.randint(1, 2)
        while process.poll() is None and segments_done(out) < wanted:
            time.sleep(0.01)
        time.sleep(moments.random() / 2)
        resumed += process.poll() is None and before > 0
        process.kill()
        process.wait()
    done = subprocess.run(command(folder, out, model_folder), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert resumed > 0
    found = outputs(out)
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        assert found[name] == content, name
    assert not [path for path in out.rglob("*") if ".part" in path.name]
