"""Layers as files: what was written is decoded and compared; files that cannot be; what remains after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import SettingsError, SinkError
from pipeline.layers.per_person import CLOSE_AFTER_S, PEOPLE_AT_ONCE
from pipeline.layers.sinks import make_layer_sinks
from pipeline.settings import Settings
from pipeline.stage6_sinks import WriteStage
from tests.layer_results import result_of

pytestmark = pytest.mark.timeout(60)

LEFT = (20.0, 30.0, 50.0, 100.0)
RIGHT = (100.0, 25.0, 135.0, 105.0)
ORANGE, GREY = (230, 120, 40), (60, 70, 80)
ALL_KINDS = (
    *("cutout=c.mov", "cutout=c.webm", "cutout=c", "matte=m.mp4", "matte=m.mkv", "matte=m", "outline=o.mp4"),
    *("outline=o.webm", "background=g.mp4", "blur=b.mp4", "pixelate=x.mov", "remove=r.m4v", "heatmap=h.png"),
)


def sinks_in(folder: Path, *layers: str, **options):
    named = tuple("=".join((text.partition("=")[0], str(folder / text.partition("=")[2]))) for text in layers)
    return make_layer_sinks(Settings(source="in.mp4", layer=named, video_crf=10, **options))


def scene(*boxes) -> np.ndarray:
    image = np.empty((120, 160, 3), np.uint8)
    image[...] = GREY
    for x0, y0, x1, y1 in boxes:
        image[round(y0) : round(y1), round(x0) : round(x1)] = ORANGE
    return image


def result(number: int, people=None, **options):
    people = {1: LEFT, 2: RIGHT} if people is None else people
    return result_of(people, number=number, image=scene(*people.values()), **options)


def write(sinks, results) -> None:
    stage = WriteStage(sinks)
    try:
        for one in results:
            stage.process(one)
    finally:
        stage.close()


def read(path: Path, *, decoder: str | None = None) -> tuple[list[np.ndarray], list[float], str]:
    """RGBA pictures, times in s, the codec's pixel format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if decoder is None:
            frames = list(container.decode(stream))
        else:  # FFmpeg's own VP9 decoder leaves the alpha out
            context = av.CodecContext.create(decoder, "r")
            frames = [frame for packet in container.demux(stream) for frame in context.decode(packet)]
        pictures = [frame.to_ndarray(format="rgba") for frame in frames]
        return pictures, [float(frame.pts * stream.time_base) for frame in frames], frames[0].format.name


@pytest.mark.parametrize(
    ("name", "decoder", "color_levels"), [("c.mov", None, 3), ("c.webm", "libvpx-vp9", 8)], ids=["ProRes", "VP9"]
)
def test_alpha_colours_and_times_of_cutouts_are_in_the_file(tmp_path, name, decoder, color_levels) -> None:
    times = [0, 1, 2, 5, 6, 20]
    write(sinks_in(tmp_path, f"cutout={name}"), [result(number, pts=pts) for number, pts in enumerate(times)])
    frames, times_s, pixel_format = read(tmp_path / name, decoder=decoder)
    assert "a" in pixel_format.replace("gray", "")
    assert [round(25 * time) for time in times_s] == times
    for frame in frames:
        assert frame.shape == (120, 160, 4)
        assert (frame[35:95, 25:45, 3] >= 252).all() and (frame[40:90, 105:130, 3] >= 252).all()
        assert frame[:, 60:90, 3].max() <= 3
        assert np.abs(frame[40:90, 28:42, :3].astype(int) - ORANGE).max() <= color_levels


@pytest.mark.parametrize(
    "time_base", [Fraction(1, 10), Fraction(1), Fraction(1001, 30000), Fraction(1, 90000)], ids=str
)
@pytest.mark.parametrize(("name", "decoder"), [("c.mov", None), ("c.webm", "libvpx-vp9")])
def test_any_time_base(tmp_path, name, decoder, time_base) -> None:
    step = max(1, round(Fraction(1, 25) / time_base))
    results = []
    for number in range(4):
        one = result(number, pts=number * step)
        frame = replace(one.frame, time_base=time_base)
        poses = replace(one.masks.rois.poses, frame=frame)
        results.append(replace(one, masks=replace(one.masks, rois=replace(one.masks.rois, poses=poses))))
    write(sinks_in(tmp_path, f"cutout={name}"), results)
    _, times_s, _ = read(tmp_path / name, decoder=decoder)
    assert times_s == pytest.approx([float(number * step * time_base) for number in range(4)], abs=6e-4)


def test_png_sequences_are_exact(tmp_path) -> None:
    write(sinks_in(tmp_path, "cutout=c", "matte=m"), [result(number) for number in range(3)])
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [f"{number:06d}.png" for number in range(3)]
    cut = cv2.imread(str(tmp_path / "c" / "000001.png"), cv2.IMREAD_UNCHANGED)
    matte = cv2.imread(str(tmp_path / "m" / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert matte.ndim == 2
    np.testing.assert_array_equal(cut[:, :, 3], matte)
    assert cut[60, 30].tolist() == [*reversed(ORANGE), 255]
    assert not cut[60, 75].any()


@pytest.mark.parametrize(("name", "levels"), [("m.mp4", 4), ("m.mov", 4), ("m.mkv", 0)])
def test_mattes_are_grey_and_cover_the_whole_range(tmp_path, name, levels) -> None:
    write(sinks_in(tmp_path, f"matte={name}"), [result(number) for number in range(4)])
    frames, times_s, _ = read(tmp_path / name)
    assert [round(25 * time) for time in times_s] == [0, 1, 2, 3]
    assert frames[2][40:90, 28:42, :3].min() >= 255 - levels
    assert frames[2][:, 62:88, :3].max() <= levels


def test_a_file_per_person_lies_on_the_time_line_of_the_run(tmp_path) -> None:
    """Person 2 comes with frame 3, is away in 5 and 6, and is back in 7."""
    shown = [{1: LEFT}] * 3 + [{1: LEFT, 2: RIGHT}] * 2 + [{1: LEFT}] * 2 + [{1: LEFT, 2: RIGHT}] * 2
    write(
        sinks_in(tmp_path, "cutout=p_{id}.mov", "matte=q_{id}", "cutout=w_{id}.webm"),
        [result(number, people) for number, people in enumerate(shown)],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("p_1.mov", "p_2.mov", "q_1", "q_2", "w_1.webm", "w_2.webm")
    ]
    for name, decoder in (("p_{}.mov", None), ("w_{}.webm", "libvpx-vp9")):
        frames, times_s, _ = read(tmp_path / name.format(1), decoder=decoder)
        assert [round(25 * time) for time in times_s] == list(range(9))
        assert not any((frame[:, 90:, 3] > 3).any() for frame in frames)  # nobody else in it
        frames, times_s, _ = read(tmp_path / name.format(2), decoder=decoder)
        assert [round(25 * time) for time in times_s] == [0, 3, 4, 5, 7, 8]
        assert [bool(frame[60, 115, 3] > 250) for frame in frames] == [False, True, True, False, True, True]
    assert sorted(path.name for path in (tmp_path / "q_2").iterdir()) == [
        f"{number:06d}.png" for number in (3, 4, 5, 7, 8)
    ]


def test_layers_of_single_people_end_where_somebody_is_surer_and_hiding_ones_do_not(tmp_path) -> None:
    people = {1: (20.0, 10.0, 90.0, 110.0), 2: (50.0, 40.0, 120.0, 100.0)}
    mattes, hidden = {}, {}
    for overlapping in (False, True):
        folder = tmp_path / str(overlapping)
        folder.mkdir()
        options = {"overlapping_masks": overlapping, "layer_ids": "not:7", "refine_edges": True}
        sinks = sinks_in(folder, "matte=m_{id}", "blur=b.mp4", "remove=r.mp4", **options)
        write(sinks, [result(n, people, sure=0.9, exclusive=not overlapping) for n in range(3)])
        names = [folder / f"m_{n}" / "000000.png" for n in (1, 2)]
        mattes[overlapping] = np.array([cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names])
        hidden[overlapping] = [(folder / name).read_bytes() for name in ("b.mp4", "r.mp4")]
    inside = np.s_[50:90, 55:85]
    assert (mattes[True][:, *inside] == 255).all()
    assert (mattes[False][0, *inside] == 255).all() and not mattes[False][1, *inside].any()
    assert hidden[False] == hidden[True]


def test_ids_of_another_clip_get_files_of_their_own(tmp_path) -> None:
    write(
        sinks_in(tmp_path, "cutout=p_{id}.mov"),
        [result(number % 3, {1: LEFT}, clip=number // 3) for number in range(6)],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p_1-2.mov", "p_1.mov"]
    assert len(read(tmp_path / "p_1.mov")[0]) == 3


def test_files_of_people_who_left_are_closed_and_too_many_at_once_are_refused(tmp_path) -> None:
    (sink,) = sinks_in(tmp_path, "matte=p_{id}")
    one_by_one = [result(0, {number: LEFT}, pts=number * 25 * 10) for number in range(1, PEOPLE_AT_ONCE + 10)]
    for one in one_by_one:
        sink.write(one)
    assert len(sink._writers) <= 1 + CLOSE_AFTER_S
    crowd = {number: (2.0 + number, 5.0, 30.0 + number, 80.0) for number in range(100, 101 + PEOPLE_AT_ONCE)}
    with pytest.raises(SinkError, match="more than 32 people at once would each need a file: choose some with --layer"):
        sink.write(result(0, crowd, pts=100_000))
    sink.close()


@pytest.mark.parametrize("layer", [text for text in ALL_KINDS if "." in text] + ["matte=p_{id}.mp4"])
def test_layers_that_cannot_be(tmp_path, layer) -> None:
    with pytest.raises(SinkError, match="its folder does not exist: create"):
        sinks_in(tmp_path / "missing", layer)[0].check()
    (sink,) = sinks_in(tmp_path, layer)
    sink.check()
    assert not list(tmp_path.iterdir())
    existing = tmp_path / layer.partition("=")[2].replace("{id}", "7")
    existing.write_bytes(b"precious")
    with pytest.raises(SinkError, match="exists already: choose another name or add --overwrite"):
        sink.check()
    sinks_in(tmp_path, layer, overwrite=True)[0].check()
    assert existing.read_bytes() == b"precious"
    if "{id}" not in layer:
        with pytest.raises(SinkError, match="exists already"):
            try:
                sink.write(result(0))
            finally:
                sink.close()
        assert existing.read_bytes() == b"precious"


def test_folders_that_cannot_be(tmp_path) -> None:
    with pytest.raises(SinkError, match="its folder does not exist"):
        sinks_in(tmp_path / "missing", "cutout=c")[0].check()
    (tmp_path / "c").write_bytes(b"precious")
    with pytest.raises(SinkError, match="expected a folder for PNG files, this is a file"):
        sinks_in(tmp_path, "cutout=c", overwrite=True)[0].check()
    (tmp_path / "d").mkdir()
    sinks_in(tmp_path, "cutout=d")[0].check()
    (tmp_path / "d" / "notes.txt").write_text("precious")
    with pytest.raises(SinkError, match="has files in it already: choose another folder or add --overwrite"):
        sinks_in(tmp_path, "cutout=d")[0].check()
    (tmp_path / "d" / "000123.png").write_bytes(b"old")
    write(sinks_in(tmp_path, "cutout=d", overwrite=True), [result(0)])
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["000000.png", "notes.txt"]


def test_no_frames_no_files(tmp_path) -> None:
    sinks = sinks_in(tmp_path, *ALL_KINDS, "cutout=p_{id}.mov")
    for sink in sinks:
        sink.check()
    write(sinks, [])
    assert not list(tmp_path.iterdir())


def test_one_layer_that_fails_leaves_the_others_whole(tmp_path) -> None:
    sinks = sinks_in(tmp_path, "matte=m.mkv", "cutout=c", "blur=b.mp4")
    stage = WriteStage(sinks)
    for number in range(4):
        stage.process(result(number))
    for path in (tmp_path / "c").iterdir():
        path.unlink()
    (tmp_path / "c").rmdir()
    with pytest.raises(SinkError, match="cannot be written"):
        stage.process(result(4))
    stage.close()
    assert len(read(tmp_path / "m.mkv")[0]) == 5
    assert len(read(tmp_path / "b.mp4")[0]) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["cutout=c.mov", "cutout=c.webm", "matte=m.mkv", "blur=b.mp4", "heatmap=h.png"])
def test_a_full_disk(tmp_path, name) -> None:
    (tmp_path / name.partition("=")[2]).symlink_to("/dev/full")
    with pytest.raises(SinkError, match="No space left on device"):
        write(sinks_in(tmp_path, name, overwrite=True), [result(number) for number in range(60)])


@pytest.mark.parametrize("layer", [*ALL_KINDS, "matte=p_{id}.mp4"])
def test_a_folder_that_cannot_be_written(tmp_path, layer) -> None:
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"  # root may write anywhere else
    if os.geteuid() != 0:
        folder.mkdir(mode=0o555)
    (sink,) = sinks_in(folder, layer)
    with pytest.raises(SinkError, match=str(folder)):
        try:
            sink.check()
            sink.write(result(0))
        finally:
            sink.close()


KILL_WHILE_WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pipeline.layers.test_sinks import result, sinks_in
sinks = sinks_in(Path({folder!r}), "cutout=c.mov", "cutout=c.webm", "matte=m.mkv", "blur=b.mp4", "cutout=c")
for number in range(100):
    for sink in sinks:
        sink.write(result(number))
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_readable_layers(tmp_path) -> None:
    code = KILL_WHILE_WRITING.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -9, done.stderr
    for name, decoder in (("c.mov", None), ("c.webm", "libvpx-vp9"), ("m.mkv", None), ("b.mp4", None)):
        frames, _, _ = read(tmp_path / name, decoder=decoder)
        assert len(frames) >= 100 - 2 * 25 - 10, name
    assert len(list((tmp_path / "c").glob("*.png"))) == 100


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (97, 131)], ids=str)
def test_frames_of_any_size(tmp_path, size) -> None:
    height, width = size
    write(sinks_in(tmp_path, *ALL_KINDS), [result_of({}, number=n, height=height, width=width) for n in range(3)])
    frames, _, _ = read(tmp_path / "c.mov")
    assert [frame.shape[:2] for frame in frames] == [(height + height % 2, width + width % 2)] * 3
    assert cv2.imread(str(tmp_path / "c" / "000002.png"), cv2.IMREAD_UNCHANGED).shape == (height, width, 4)
    assert cv2.imread(str(tmp_path / "h.png")).shape == (height, width, 3)


def test_frames_of_other_sizes_are_fitted_in(tmp_path) -> None:
    sizes = [(120, 160), (240, 160), (60, 80)]
    write(
        sinks_in(tmp_path, *ALL_KINDS, "cutout=p_{id}.mov"),
        [
            result_of({1: (20, 10, 50, 50)}, number=number, height=height, width=width, clip=number)
            for number, (height, width) in enumerate(sizes)
        ],
    )
    for name in ("c.mov", "b.mp4", "m.mkv"):
        frames, _, _ = read(tmp_path / name)
        assert [frame.shape[:2] for frame in frames] == [(120, 160)] * 3


def test_a_background_that_is_no_picture_is_found_before_the_run(tmp_path) -> None:
    with pytest.raises(SettingsError, match="--layer-background"):
        sinks_in(tmp_path, "background=g.mp4", layer_background=str(tmp_path / "missing.jpg"))
