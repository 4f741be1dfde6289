"""Segments of one file: wherever they lie, and wherever a run went on, the results are those of one pass."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.batch.file import FileOptions, Interrupted, process_file
from pipeline.batch.plan import plan_inputs
from pipeline.batch.state import JobFolder
from pipeline.batch.video import Position, SegmentedVideo
from pipeline.build import Model, open_model
from pipeline.errors import SourceError
from pipeline.settings import Settings
from tests.clips import number_of, numbered_picture, read_video, write_everything, write_video
from tests.magenta_model import write_magenta_model

pytestmark = pytest.mark.timeout(200)
FRAMES = 90


def write_coded(path: Path, options: dict[str, str], *, codec: str = "libx264", b_frames: int = 3) -> Path:
    """Numbered frames with reordering, open groups and what else an encoder can do to whoever seeks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "veryfast", "crf": "12", **options})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = b_frames
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_with_sound(path: Path, *, seconds: float = 4.0) -> Path:
    """A video of uneven times with a tone."""
    times_ms = np.cumsum(np.random.default_rng(3).integers(15, 90, round(seconds * 20))).tolist()
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.gop_size = 7
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        tone = (8000 * np.sin(np.arange(int(16000 * seconds)) * 0.1)).astype(np.int16)
        for start in range(0, len(tone) - 1023, 1024):
            block = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, start, Fraction(1, 16000)
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return path


def write_still(path: Path) -> Path:
    """Frames that are all the same: no checksum tells them apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.gop_size = 10
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_picture(7), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CLIPS = {
    "plain.mp4": lambda path: write_video(path, FRAMES),
    "b-frames.mp4": lambda path: write_coded(path, {"x264-params": "open-gop=0:b-pyramid=normal"}),
    "open-gop.mkv": lambda path: write_coded(path, {"x264-params": "open-gop=1:bframes=3"}),
    "refresh.mp4": lambda path: write_coded(path, {"x264-params": "intra-refresh=1:keyint=30"}, b_frames=0),
    "transport.ts": lambda path: write_coded(path, {"x264-params": "open-gop=1"}),
    "no-times.h264": lambda path: write_video(path, FRAMES),
    "motion.avi": lambda path: write_video(path, FRAMES, codec="mpeg4"),
    "uneven.mp4": lambda path: write_video(path, FRAMES, times_ms=np.cumsum(np.arange(FRAMES) % 7 * 13 + 5).tolist()),
    "turned.mov": lambda path: write_video(path, FRAMES, rotation=90),
    "still.mp4": write_still,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, write in CLIPS.items():
        write(folder / name)
    return folder


def all_frames(path: Path) -> list[tuple[int, int, bytes]]:
    video = SegmentedVideo(str(path), shown="x", segment_s=1e4)
    found = [(frame.index, frame.pts, frame.image.tobytes()) for frame in video.segment()]
    assert not video.has_more()
    video.close()
    return found


@pytest.mark.parametrize("name", sorted(CLIPS))
@pytest.mark.parametrize("segment_s", [0.3, 1.1])
def test_every_border_is_found_again(clips, name, segment_s) -> None:
    whole = all_frames(clips / name)
    assert len(whole) == FRAMES
    position, seen, borders = None, [], 0
    while True:
        video = SegmentedVideo(str(clips / name), shown="x", segment_s=segment_s, position=position)
        if not video.has_more():
            break
        seen += [(frame.index, frame.pts, frame.image.tobytes()) for frame in video.segment()]
        position = Position.of_state(json.loads(json.dumps(video.position.to_state())))
        video.close()
        borders += 1
    video.close()
    assert [entry[:2] for entry in seen] == [entry[:2] for entry in whole]
    assert seen == whole
    assert borders >= 2


def test_a_seek_is_used_where_it_can_be_trusted(clips, monkeypatch) -> None:
    video = SegmentedVideo(str(clips / "b-frames.mp4"), shown="x", segment_s=2.0)
    list(video.segment())
    position = video.position
    video.close()
    assert position.seekable
    monkeypatch.setattr("pipeline.batch.video.VideoInput.pictures", counting(calls := []))
    SegmentedVideo(str(clips / "b-frames.mp4"), shown="x", segment_s=2.0, position=position).close()
    assert len(calls) < position.index  # not decoded from the start


def counting(calls: list[int]):
    from pipeline.video_input import VideoInput

    original = VideoInput.pictures

    def pictures(self, given_up=bool):
        for picture in original(self, given_up):
            calls.append(picture.pts)
            yield picture

    return pictures


def test_a_file_that_became_another_one(clips, tmp_path) -> None:
    video = SegmentedVideo(str(clips / "plain.mp4"), shown="x", segment_s=1.0)
    list(video.segment())
    other = write_still(tmp_path / "other.mp4")
    with pytest.raises(SourceError, match="other ones than before"):
        SegmentedVideo(str(other), shown="x", segment_s=1.0, position=video.position)
    short = write_video(tmp_path / "short.mp4", 10)
    with pytest.raises(SourceError, match="has only 10 frames"):
        SegmentedVideo(str(short), shown="x", segment_s=1.0, position=video.position)
    video.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = write_magenta_model(tmp_path_factory.mktemp("model"))
    opened = open_model(Settings(source="x", model=folder, threads=1, engine="onnx"))
    yield opened
    opened.close()


def results(
    source: Path, out: Path, model: Model, segment_s: float, *, stops: tuple[int, ...] = (), smooth: bool = False
) -> dict[str, object]:
    """All outputs of one file; ``stops``: interrupted after so many frames of each start."""
    job = JobFolder(out)
    job.create()
    (item,) = plan_inputs([str(source)], out)
    settings = Settings(source="x", engine="onnx", video_crf=0, smooth_joints=smooth)
    options = FileOptions(settings=settings, write=("video", "json", "coco", "sheet"), segment_s=segment_s)
    for most in stops:
        seen: list[int] = []

        def is_enough(most: int = most, seen: list[int] = seen) -> bool:
            return len(seen) >= most

        try:
            process_file(item, job, model, options, report=lambda progress, seen=seen: seen.append(1), stop=is_enough)
        except Interrupted:
            continue
    state = process_file(item, job, model, options, report=lambda progress: None)
    assert state.status == "done"
    frames, times = read_video(item.output(out, "video"))
    found: dict[str, object] = {kind: item.output(out, kind).read_bytes() for kind in ("json", "coco", "sheet")}
    return {**found, "times": times, "frames": [frame.tobytes() for frame in frames]}


@pytest.fixture(scope="module")
def one_pass(clips, model, tmp_path_factory) -> dict[str, dict[str, object]]:
    return {
        name: results(clips / name, tmp_path_factory.mktemp("whole"), model, 1e4, smooth=True)
        for name in ("plain.mp4", "open-gop.mkv", "uneven.mp4")
    }


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["plain.mp4", "open-gop.mkv", "uneven.mp4"]),
    segment_s=st.floats(0.1, 3.0),
    stops=st.lists(st.integers(1, 60), max_size=3),
)
def test_any_split_and_any_interruption_give_the_same(
    clips, one_pass, model, tmp_path_factory, name, segment_s, stops
) -> None:
    """Lossless video, so that pixels do not depend on where the encoder began anew."""
    out = tmp_path_factory.mktemp("split")
    assert results(clips / name, out, model, segment_s, stops=tuple(stops), smooth=True) == one_pass[name]


def test_sound_and_times_are_kept(tmp_path, model) -> None:
    source = write_with_sound(tmp_path / "in.mp4")
    results(source, tmp_path / "out", model, 1.0)
    frames, times = read_video(tmp_path / "out" / "in.mp4.people.mp4")
    _, before = read_video(source)
    assert times == pytest.approx([time - before[0] for time in before], abs=1e-4)
    assert [number_of(frame) for frame in frames] == list(range(len(before)))
    sounds = []
    for path in (source, tmp_path / "out" / "in.mp4.people.mp4"):
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
            sounds.append(([bytes(packet) for packet in packets], [float(p.pts * p.time_base) for p in packets]))
    assert sounds[1][0] == sounds[0][0]  # copied, not encoded again
    shift = np.array(sounds[0][1]) - np.array(sounds[1][1])
    assert shift == pytest.approx(np.full(len(shift), before[0]), abs=2e-3)


def test_sound_that_cannot_be_copied_does_not_cost_the_video(tmp_path, model, monkeypatch) -> None:
    def refuse(*arguments):
        raise av.error.ArgumentError(22, "Invalid argument")
        yield

    source = write_with_sound(tmp_path / "in.mp4", seconds=2.0)
    monkeypatch.setattr("pipeline.batch.video._audio_packets", refuse)
    results(source, tmp_path / "out", model, 1.0)
    with av.open(str(tmp_path / "out" / "in.mp4.people.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    (state,) = (tmp_path / "out").glob(".pose2seg/files/*/state.json")
    assert json.loads(state.read_text())["warnings"] == ["audio left out: it cannot be put into mp4 (Invalid argument)"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_everything_at_once(tmp_path, model) -> None:
    """Sound, uneven times, a rotation mark, reordered frames and open groups, interrupted five times."""
    source = write_everything(tmp_path / "long.mp4", seconds=600)
    whole = results(source, tmp_path / "whole", model, 1e4)
    split = results(source, tmp_path / "split", model, 30.0, stops=(700, 1500, 400, 2000, 1))
    assert split == whole
    assert len(whole["frames"]) == 6000


def test_rotation_and_colour_range(tmp_path, model) -> None:
    turned = write_video(tmp_path / "turned.mov", 30, rotation=90)
    results(turned, tmp_path / "a", model, 0.5)
    frames, _ = read_video(tmp_path / "a" / "turned.mov.people.mp4")
    assert frames[0].shape == (128, 96, 3)
    full = write_video(tmp_path / "full.mp4", 30, pixel_format="yuvj420p")
    results(full, tmp_path / "b", model, 0.5)
    (before, _), (after, _) = read_video(full), read_video(tmp_path / "b" / "full.mp4.people.mp4")
    assert np.abs(before[5][60:, :8].astype(int) - after[5][60:, :8].astype(int)).max() <= 3  # away from the person
