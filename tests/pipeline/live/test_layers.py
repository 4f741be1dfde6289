"""Layers of a live source: recorded side by side, rotated, whole after a kill; covers hold over all that goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import SettingsError, SinkError
from pipeline.live import layers as live_layers
from pipeline.live.layers import LiveLayers
from pipeline.live.recording import DiskSpace, RecordingOptions
from pipeline.live.settings import LiveSettings, read_live_layers
from tests.clips import read_video
from tests.layer_results import Box, result_of

pytestmark = pytest.mark.timeout(60)
PERSON: Box = (40.0, 30.0, 70.0, 100.0)
KINDS = ("blur", "cutout=webm", "matte=mkv", "cutout=mov", "heatmap")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def layers_in(folder: Path, *kinds: str, rotate_s: float = 1e6, clock: Clock | None = None, **options) -> LiveLayers:
    settings = LiveSettings(sources=("x",), output_dir=folder, layer=kinds, **options)
    return LiveLayers(
        settings.run_settings(),
        read_live_layers(settings.layer),
        folder / "stream-00",
        DiskSpace(folder, 0),
        RecordingOptions(rotate_s=rotate_s, rotate_bytes=10**9),
        clock=clock or Clock(),
    )


def result(number: int, *, found: bool = True, **options):
    image = np.full((120, 160, 3), 60, np.uint8)
    image[30:100, 40:70:2] = 255
    return result_of({1: PERSON} if found else {}, number=number, image=image, **options)


def names(folder: Path, ending: str) -> list[Path]:
    return sorted((folder / "stream-00").glob(f"*.{ending}"))


def shows_somebody(picture: np.ndarray) -> bool:
    return bool((picture[35:95, 45:65].max(axis=2) > 200).any())


def test_all_layers_are_recorded_and_rotated_together(tmp_path) -> None:
    clock = Clock()
    sink = layers_in(tmp_path, *KINDS, rotate_s=10.0, clock=clock)
    for number in range(20):
        clock.now_s += 1.0
        sink.write(result(number))
    sink.close()
    for ending in ("blur.mp4", "cutout.webm", "matte.mkv", "cutout.mov", "heatmap.png"):
        assert len(names(tmp_path, ending)) == 2, ending
    counts = [len(read_video(path)[0]) for path in names(tmp_path, "blur.mp4")]
    assert counts == [10, 10]
    for path in names(tmp_path, "heatmap.png"):
        assert cv2.imread(str(path)).shape == (120, 160, 3)
    assert not list((tmp_path / "stream-00").glob(".*"))


def test_a_lost_person_stays_covered_over_rotation_and_frames_that_were_left_out(tmp_path) -> None:
    clock = Clock()
    sink = layers_in(tmp_path, "blur", rotate_s=5.0, clock=clock)
    index = 0
    for number in range(30):
        clock.now_s += 1.0
        index += 1 + 7 * (number % 6 == 5)  # the queue was full: seven frames are missing
        sink.write(result(index, found=number < 10))
    sink.close()
    pictures = [picture for path in names(tmp_path, "blur.mp4") for picture in read_video(path)[0]]
    assert len(pictures) == 30
    assert not any(shows_somebody(picture) for picture in pictures)


def test_frames_that_are_held_back_are_written_at_the_end(tmp_path) -> None:
    sink = layers_in(tmp_path, "pixelate", hide_ahead=6)
    for number in range(10):
        sink.write(result(number, found=number >= 5))
    sink.close()
    (path,) = names(tmp_path, "pixelate.mp4")
    pictures, _ = read_video(path)
    assert len(pictures) == 10
    assert not any(shows_somebody(picture) for picture in pictures)


def test_a_layer_that_cannot_be_written_costs_itself_only(tmp_path, caplog) -> None:
    sink = layers_in(tmp_path, "matte", "blur")
    folder = tmp_path / "stream-00"
    folder.mkdir()
    failing, good = 0, 0
    real = live_layers.writer_of

    class Full:
        def write_picture(self, picture, frame, *, at_start: bool = False) -> None:
            raise SinkError("no space")

        def close(self) -> None:
            """Nothing was opened."""

    def writer_of(layer, path, *arguments, **options):
        return Full() if layer.kind == "matte" else real(layer, path, *arguments, **options)

    live_layers.writer_of = writer_of
    try:
        for number in range(8):
            try:
                sink.write(result(number))
                good += 1
            except SinkError:
                failing += 1
        sink.close()
    finally:
        live_layers.writer_of = real
    assert failing == 8
    (path,) = names(tmp_path, "blur.mp4")
    assert len(read_video(path)[0]) == 8
    assert sum("recording stopped" in record.message for record in caplog.records) == 1


def test_the_oldest_layers_make_room_too(tmp_path) -> None:
    folder = tmp_path / "stream-00"
    folder.mkdir()
    ours = [
        *("20260101-000000-0000.blur.mp4", "20260101-000001-0000.mp4", "20260101-000002-0001.cutout.webm"),
        "20260101-000003-0001.heatmap.png",
    ]
    others = ["20260101-000000-0000.jsonl", "precious.mp4", "20260101-000000-0000.blur.mp4.txt"]
    for name in (*ours, *others):
        (folder / name).write_bytes(b"x")
    space = DiskSpace(tmp_path, 1, free=lambda _: 0)
    assert not space.make_room()
    assert space.removed == 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ("blur",)}, "records into a folder: add --output-dir"),
        ({"layer": ("cutout=png",), "output_dir": Path("x")}, "expects a video format, such as mov"),
        ({"layer": ("matte={id}.mkv",), "output_dir": Path("x")}, "expects a video format"),
        ({"layer": ("blurred",), "output_dir": Path("x")}, "KIND one of"),
        ({"hide": "blur", "cover_frames": 0}, "--cover-frames must be 1 or more"),
        ({"hide_ahead": 3}, "add --layer blur"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LiveSettings(sources=("x",), **options)


KILL_WHILE_WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pipeline.live.test_layers import KINDS, Clock, layers_in, result
clock = Clock()
sink = layers_in(Path({folder!r}), *KINDS, clock=clock)
for number in range(100):
    clock.now_s += 1.0
    sink.write(result(number))
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_readable_layers(tmp_path) -> None:
    code = KILL_WHILE_WRITING.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -9, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stream-00"]
    for ending in ("blur.mp4", "cutout.webm", "matte.mkv", "cutout.mov"):
        (path,) = names(tmp_path, ending)
        with av.open(str(path)) as container:
            count = sum(1 for _ in container.decode(video=0))
        assert count >= 100 - 2 * 25 - 10, ending
    (path,) = names(tmp_path, "heatmap.png")  # of the first minute
    assert cv2.imread(str(path)).shape == (120, 160, 3)
