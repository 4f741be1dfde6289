from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from engines.device import HostDevice
from pipeline.contact_sheet import TILE_WIDTH, ContactSheetSink
from pipeline.errors import SettingsError, SinkError
from pipeline.messages import Frame, FrameResult
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import CocoSink, JsonLinesSink, WriteStage, image_id_of, read_image_ids
from pipeline.video_input import VideoInput
from pipeline.video_output import VideoSink, fit_into
from tests.clips import number_of, numbered_picture, read_video
from tests.fakes import CollectingSink, masks_of

pytestmark = pytest.mark.timeout(60)


def result(
    number: int,
    *,
    height: int = 96,
    width: int = 128,
    pts: int | None = None,
    time_base: Fraction = Fraction(1, 25),
    clip: int = 0,
    source: str = "a.mp4",
    people: int = 1,
) -> FrameResult:
    frame = Frame(
        index=number,
        source=source,
        clip=clip,
        pts=number if pts is None else pts,
        time_base=time_base,
        captured_s=0.0,
        pixels=numbered_picture(number, height, width, person=False),
    )
    boxes = [(60.0, 20.0, 90.0, 80.0)] * people
    return ComposeStage(HostDevice(), mask_threshold=0.5, draw=True).process(masks_of(frame, *boxes))


def video_sink(path: Path, **options) -> VideoSink:
    return VideoSink(path, **{"overwrite": False, "crf": 10, "preset": "ultrafast", **options})


SINKS = {
    "out.jsonl": lambda path, overwrite: JsonLinesSink(path, overwrite=overwrite),
    "out.json": lambda path, overwrite: CocoSink(path, overwrite=overwrite, image_ids=None),
    "out.mp4": lambda path, overwrite: video_sink(path, overwrite=overwrite),
    "out.png": lambda path, overwrite: ContactSheetSink(path, overwrite=overwrite),
}
each_sink = pytest.mark.parametrize("name", SINKS)


@each_sink
def test_outputs_that_cannot_be(tmp_path, name) -> None:
    make = SINKS[name]
    with pytest.raises(SinkError, match="its folder does not exist: create"):
        make(tmp_path / "missing" / name, False).check()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkError, match="this is a folder"):
        make(tmp_path / "folder", True).check()
    existing = tmp_path / name
    existing.write_bytes(b"precious")
    with pytest.raises(SinkError, match="exists already: choose another name or add --overwrite"):
        make(existing, False).check()
    make(existing, True).check()
    assert existing.read_bytes() == b"precious"  # checking touches nothing


@each_sink
@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written(tmp_path, name) -> None:
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o555)
    with pytest.raises(SinkError) as caught:
        sink = SINKS[name](folder / name, False)
        sink.check()
        sink.write(result(0))
        sink.close()
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@each_sink
def test_a_file_that_appears_during_the_run_is_not_replaced(tmp_path, name) -> None:
    sink = SINKS[name](tmp_path / name, False)
    sink.check()
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(SinkError, match="exists already"):
        sink.write(result(0))
        sink.close()
    assert (tmp_path / name).read_bytes() == b"precious"


@each_sink
def test_overwriting_leaves_nothing_of_the_old_file(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"old" * 1_000_000)
    sink = SINKS[name](tmp_path / name, True)
    sink.check()
    for number in range(3):
        sink.write(result(number))
    sink.close()
    assert (tmp_path / name).stat().st_size < 300_000


@each_sink
def test_no_frames_no_file(tmp_path, name) -> None:
    sink = SINKS[name](tmp_path / name, False)
    sink.check()
    sink.close()
    assert list(tmp_path.iterdir()) == []


@each_sink
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, name) -> None:
    """/dev/full accepts to be opened and refuses every byte."""
    path = tmp_path / name
    path.symlink_to("/dev/full")
    sink = SINKS[name](path, True)
    with pytest.raises(SinkError, match=r"cannot be written \(No space left on device\)"):
        try:
            for number in range(100):
                sink.write(result(number))
        finally:
            sink.close()


FILL_A_SMALL_DISK = """
import resource, signal, sys
sys.path.insert(0, {root!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from pathlib import Path
from tests.pipeline.test_sinks import SINKS, result
from pipeline.errors import SinkError
sink = SINKS[{name!r}](Path({path!r}), False)
written = 0
try:
    for number in range(400):
        sink.write(result(number % 1000))
        written += 1
    sink.close()
    print("no error", written)
except SinkError as error:
    print(written, "|", error)
    try:
        sink.close()
    except SinkError:
        pass
"""


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.mp4"])
def test_what_was_written_before_the_disk_was_full_is_readable(tmp_path, name) -> None:
    path = tmp_path / name
    code = FILL_A_SMALL_DISK.format(root=str(Path(__file__).parents[2]), limit=40_000, name=name, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    count, _, message = done.stdout.partition("|")
    assert "File too large" in message, done.stdout + done.stderr
    written = int(count)
    assert written > 20
    if name == "out.jsonl":
        lines = path.read_text().splitlines()
        assert [json.loads(line)["frame"] for line in lines[:written]] == list(range(written))
    elif name == "out.json":
        text = path.read_text()
        entries = json.loads(text[: text.rindex("},\n") + 1] + "]") if not text.endswith("]\n") else json.loads(text)
        assert len(entries) >= written - 1
    else:
        pictures = list(VideoInput(str(path), timeout_s=1).pictures())  # the last packet may be cut
        assert [number_of(picture.pixels) for picture in pictures] == list(range(len(pictures)))
        assert len(pictures) > 20


def test_json_lines_are_in_the_file_at_once(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, overwrite=False)
    for number in range(3):
        sink.write(result(number, people=number))
        lines = path.read_text().splitlines()
        assert [json.loads(line)["frame"] for line in lines] == list(range(number + 1))
    assert [len(json.loads(line)["people"]) for line in lines] == [0, 1, 2]
    sink.close()


def test_the_coco_file_is_a_whole_list_after_every_image(tmp_path) -> None:
    path = tmp_path / "out.json"
    sink = CocoSink(path, overwrite=False, image_ids=None)
    for number, people in enumerate((0, 2, 0, 1)):
        sink.write(result(number, source=f"in/{number + 100:012d}.jpg", people=people))
        entries = json.loads(path.read_text())
        assert len(entries) == (0, 2, 2, 3)[number]
    sink.close()
    assert [entry["image_id"] for entry in json.loads(path.read_text())] == [101, 101, 103]


def test_image_ids_of_an_annotation_file(tmp_path, caplog) -> None:
    annotations = tmp_path / "truth.json"
    images = [{"id": 9, "file_name": "a.jpg"}, {"id": 5, "file_name": "sub/b.jpg"}]
    annotations.write_text(json.dumps({"images": images}))
    ids = read_image_ids(annotations)
    assert ids == {"a.jpg": 9, "sub/b.jpg": 5}
    sink = CocoSink(tmp_path / "out.json", overwrite=False, image_ids=ids)
    for number, source in enumerate(("in/a.jpg", "in/sub/b.jpg", "in/c.jpg")):
        sink.write(result(number, source=source))
    with caplog.at_level(logging.WARNING):
        sink.close()
    assert [entry["image_id"] for entry in json.loads((tmp_path / "out.json").read_text())] == [9, 5]
    assert "1 images are not in the annotation file and were left out, the first is in/c.jpg" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": []}', '{"images": [{"id": 1}]}', '{"images": 3}'])
def test_annotation_files_that_are_none(tmp_path, text) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="--coco-images"):
        read_image_ids(path)


def test_a_missing_annotation_file(tmp_path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_image_ids(tmp_path / "truth.json")


@pytest.mark.parametrize(
    ("source", "index", "expected"),
    [("in/000000397133.jpg", 4, 397133), ("in/photo.jpg", 4, 5), ("in/2024-1.jpg", 0, 1), ("7.png", 3, 7)],
)
def test_image_ids_without_annotations(source, index, expected) -> None:
    assert image_id_of(source, index) == expected


def test_a_video_keeps_every_frame_and_its_time(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    times_ms = [500, 510, 550, 800, 810, 1500, 1501, 1600]
    sink = video_sink(path)
    for number, time_ms in enumerate(times_ms):
        sink.write(result(number, pts=time_ms, time_base=Fraction(1, 1000)))
    sink.close()
    frames, times_s = read_video(path)
    assert [number_of(frame) for frame in frames] == list(range(8))
    assert [round(time * 1000) for time in times_s] == [time - 500 for time in times_ms]
    assert path.read_bytes()[4:8] == b"ftyp"


def test_the_gpu_encoder_is_only_taken_where_it_works(tmp_path, monkeypatch, caplog) -> None:
    """Without a driver FFmpeg refuses NVENC, for real: ``auto`` goes on with libx264, a wish by name is an error."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has the driver whose absence is tested")
    monkeypatch.setattr("pipeline.video_output._NVIDIA_DRIVER", tmp_path)  # let it be tried
    path = tmp_path / "out.mp4"
    with caplog.at_level("DEBUG"):
        sink = VideoSink(path, overwrite=False, crf=20, preset="veryfast", encoder="auto")
        for number in range(4):
            sink.write(result(number))
        sink.close()
    assert [number_of(frame) for frame in read_video(path)[0]] == [0, 1, 2, 3]
    assert "encoder libx264 (NVENC: " in caplog.text
    sink = VideoSink(tmp_path / "b.mp4", overwrite=False, crf=20, preset="veryfast", encoder="h264_nvenc")
    with pytest.raises(SinkError, match=r"h264_nvenc cannot be used here .*choose --video-encoder libx264"):
        sink.write(result(0))
    sink.close()


def test_a_finished_video_is_a_plain_mp4(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    sink = video_sink(path)
    for number in range(60):
        sink.write(result(number))
    sink.close()
    assert boxes_of(path.read_bytes()) == ["ftyp", "free", "mdat", "moov"]

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames) == ("h264", "yuv420p", 60)
        assert stream.average_rate == 25


def boxes_of(data: bytes) -> list[str]:
    """Names of an mp4's outermost boxes; a fragmented one has ``moof`` among them."""
    names, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        names.append(data[at + 4 : at + 8].decode())
        assert size >= 8
        at += size
    return names


KILL_WHILE_WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pipeline.test_sinks import SINKS, result
sinks = [SINKS[name](Path({folder!r}) / name, False) for name in ("out.mp4", "out.jsonl", "out.json")]
for number in range(200):
    for sink in sinks:
        sink.write(result(number))
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_readable_files(tmp_path) -> None:
    code = KILL_WHILE_WRITING.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -9, done.stderr
    frames, _ = read_video(tmp_path / "out.mp4")
    assert [number_of(frame) for frame in frames] == list(range(len(frames)))
    assert len(frames) >= 200 - 2 * 25 - 10  # at most the open fragment and what waits in the encoder
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(200))
    assert len(json.loads((tmp_path / "out.json").read_text())) == 200


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (5, 3), (97, 131), (2, 2), (64, 7680)], ids=str)
def test_a_video_of_any_size(tmp_path, height, width) -> None:
    path = tmp_path / "out.mp4"
    sink = video_sink(path)
    for number in range(3):
        sink.write(result(number, height=height, width=width, people=0))
    sink.close()
    frames, _ = read_video(path)
    assert [frame.shape for frame in frames] == [(height + height % 2, width + width % 2, 3)] * 3


def test_frames_of_other_sizes_are_fitted_in(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    sink = video_sink(path)
    sink.write(result(0))
    sink.write(result(1, height=200, width=60, people=0))
    sink.write(result(2, height=48, width=64, people=0))
    sink.close()
    frames, _ = read_video(path)
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 3
    assert frames[1][:, :20].max() < 40 and frames[1][48, 64].min() > 60  # upright, black on both sides


def test_clips_follow_each_other_and_times_never_stand_still(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    sink = video_sink(path)
    for clip, pts in ((0, 0), (0, 1), (0, 1), (0, 0), (1, 100), (1, 101)):
        sink.write(result(0, clip=clip, pts=pts))
    sink.close()
    _, times_s = read_video(path)
    assert [round(time * 25) for time in times_s] == [0, 1, 2, 3, 4, 5]


def test_colors_survive(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    sink = video_sink(path, crf=1)
    base = result(0, people=0)
    picture = np.zeros((96, 128, 3), np.uint8)
    colors = [(255, 0, 0), (0, 200, 0), (30, 60, 220), (250, 250, 250)]
    for i, color in enumerate(colors):
        picture[:, 32 * i : 32 * i + 32] = color
    sink.write(FrameResult(masks=base.masks, people=(), drawn=picture))
    sink.close()
    frames, _ = read_video(path)
    for i, color in enumerate(colors):
        np.testing.assert_allclose(frames[0][48, 32 * i + 16], color, atol=8)


def test_fit_into() -> None:
    image = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    padded = fit_into(image, 6, 4)
    np.testing.assert_array_equal(padded[:5, :3], image)
    np.testing.assert_array_equal(padded[5, :3], image[4])
    np.testing.assert_array_equal(padded[:5, 3], image[:, 2])
    assert fit_into(image, 50, 100).shape == (50, 100, 3)
    assert fit_into(np.zeros((1, 5000, 3), np.uint8), 90, 160).shape == (90, 160, 3)


@pytest.mark.parametrize("count", [1, 2, 12, 13, 500])
def test_the_contact_sheet_shows_the_whole_run(tmp_path, count) -> None:
    path = tmp_path / "out.png"
    sink = ContactSheetSink(path, overwrite=False)
    for number in range(count):
        sink.write(result(number, people=0))
    sink.close()
    sheet = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    tile_height = TILE_WIDTH * 96 // 128
    shown = []
    for top in range(6, sheet.shape[0] - 6, tile_height + 6):
        for left in range(6, sheet.shape[1] - 6, TILE_WIDTH + 6):
            tile = cv2.resize(sheet[top : top + tile_height, left : left + TILE_WIDTH], (128, 96))
            if tile[:8].max() > 18:
                shown.append(number_of(tile))
    assert len(shown) == min(12, count)
    assert shown == sorted(set(shown))
    assert shown[0] == 0
    assert shown[-1] >= count * 0.9 - 1
    if count > 100:
        gaps = np.diff(shown)
        assert gaps.max() <= 1.5 * gaps.min()


def test_the_write_stage_finishes_all_sinks_when_one_fails() -> None:
    good, bad, last = CollectingSink(), CollectingSink(error=SinkError("full"), fail_at=1), CollectingSink()
    stage = WriteStage([good, bad, last])
    stage.process(result(0))
    with pytest.raises(SinkError, match="full"):
        stage.process(result(1))
    stage.close()
    assert [sink.closed for sink in (good, bad, last)] == [1, 1, 1]
    assert len(good.results) == 2


def test_errors_at_the_end_are_told_together() -> None:
    class FailingSink(CollectingSink):
        def close(self) -> None:
            super().close()
            raise SinkError("cannot close")

    sinks = [FailingSink(), CollectingSink(), FailingSink()]
    with pytest.raises(SinkError, match="cannot close") as caught:
        WriteStage(sinks).close()
    assert [sink.closed for sink in sinks] == [1, 1, 1]
    assert caught.value.__notes__ == ["and: cannot close"]
