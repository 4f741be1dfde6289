"""Layers of a batch: whatever a file's segments are and wherever a run was interrupted, they are those of one pass."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.batch.file import FileOptions, Interrupted, process_file
from pipeline.batch.layers import outputs_of
from pipeline.batch.plan import plan_inputs
from pipeline.batch.settings import BatchSettings
from pipeline.batch.state import JobFolder, Segment
from pipeline.build import Model, open_model
from pipeline.errors import SettingsError, SinkError
from pipeline.layers.options import read_named_layer, read_named_layers
from pipeline.settings import Settings
from run_stream import main
from tests.clips import number_of, read_video, write_video
from tests.magenta_model import write_magenta_model

pytestmark = pytest.mark.timeout(200)
FRAMES = 60
EXACT = ("blur", "remove", "pixelate=mov", "cutout=mov", "cutout=png", "matte=mkv", "matte={id}.mkv", "heatmap")
"""Nothing in these files depends on where an encoder began anew (with --video-crf 0)."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = write_magenta_model(tmp_path_factory.mktemp("model"))
    opened = open_model(Settings(source="x", model=folder, threads=1, engine="onnx"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "in.mp4", FRAMES, keyframe_every=5)


def layers_of(
    source: Path,
    out: Path,
    model: Model,
    segment_s: float,
    *,
    layers=EXACT,
    stops=(),
    ahead: int = 0,
) -> dict[str, object]:
    """All outputs as they decode; ``stops``: interrupted after so many frames of each start."""
    job = JobFolder(out)
    job.create()
    (item,) = plan_inputs([str(source)], out)
    made = BatchSettings(inputs=("x",), out=out, layer=layers, hide_ahead=ahead, engine="onnx", video_crf=0)
    options = FileOptions(settings=made.of_files(), write=(), segment_s=segment_s)
    for most in stops:
        seen: list[int] = []

        def is_enough(most: int = most, seen: list[int] = seen) -> bool:
            return len(seen) >= most

        try:
            process_file(item, job, model, options, report=lambda progress, seen=seen: seen.append(1), stop=is_enough)
        except Interrupted:
            continue
    assert process_file(item, job, model, options, report=lambda progress: None).status == "done"
    assert sorted(path.name for path in job.folder_of(item.key).iterdir()) == ["lock", "picture.jpg", "state.json"]
    return {path.name: decoded(path) for path in sorted(out.iterdir()) if path.name != ".pose2seg"}


def decoded(path: Path) -> object:
    if path.is_dir():
        return {picture.name: picture.read_bytes() for picture in path.iterdir()}
    if path.suffix == ".png":
        return path.read_bytes()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = av.CodecContext.create("libvpx-vp9", "r") if path.suffix == ".webm" else None
        frames = [
            frame
            for packet in container.demux(stream)
            for frame in (packet.decode() if context is None else context.decode(packet))
        ]
        times = [float(frame.pts * stream.time_base) for frame in frames]
        return times, frames[0].format.name, [[plane_of(plane, frame) for plane in frame.planes] for frame in frames]


def plane_of(plane, frame) -> bytes:
    """Without what lies behind the rows."""
    wide = 2 if "10" in frame.format.name else 1
    return np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width * wide].tobytes()


@pytest.fixture(scope="module")
def one_pass(clip, model, tmp_path_factory) -> dict[int, dict[str, object]]:
    return {ahead: layers_of(clip, tmp_path_factory.mktemp("whole"), model, 1e4, ahead=ahead) for ahead in (0, 7)}


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segment_s=st.floats(0.1, 2.0), stops=st.lists(st.integers(1, 40), max_size=3), ahead=st.sampled_from([0, 7]))
def test_any_split_and_any_interruption_give_the_same(
    clip, one_pass, model, tmp_path_factory, segment_s, stops, ahead
) -> None:
    found = layers_of(clip, tmp_path_factory.mktemp("split"), model, segment_s, stops=tuple(stops), ahead=ahead)
    assert sorted(found) == sorted(one_pass[ahead])
    for name, content in one_pass[ahead].items():
        assert found[name] == content, name


def test_what_comes_out(one_pass) -> None:
    found = one_pass[0]
    assert sorted(found) == [
        *("in.mp4.blur.mp4", "in.mp4.cutout", "in.mp4.cutout.mov", "in.mp4.heatmap.png", "in.mp4.matte-1.mkv"),
        *("in.mp4.matte.mkv", "in.mp4.pixelate.mov", "in.mp4.remove.mp4"),
    ]
    for name, content in found.items():
        if name.endswith((".mp4", ".mov", ".mkv")):
            times, _, frames = content
            assert times == pytest.approx([number / 25 for number in range(FRAMES)], abs=1e-3), name
            assert len(frames) == FRAMES
    assert sorted(found["in.mp4.cutout"]) == [f"{number:06d}.png" for number in range(FRAMES)]
    assert "a" in found["in.mp4.cutout.mov"][1]
    assert one_pass[7]["in.mp4.cutout.mov"] == found["in.mp4.cutout.mov"]  # holding back is for hiding layers only


def test_a_plain_run_makes_the_same_layers(clip, one_pass, tmp_path) -> None:
    folder = write_magenta_model(tmp_path / "model")
    flags = ["--layer", f"blur={tmp_path / 'b.mp4'}", "--layer", f"remove={tmp_path / 'r.mp4'}"]
    flags += ["--layer", f"cutout={tmp_path / 'c'}", "--layer", f"matte={tmp_path / 'm_{id}.mkv'}"]
    arguments = [str(clip), "--model", str(folder), "--engine", "onnx", "--threads", "1", "--video-crf", "0", *flags]
    assert main(arguments) == 0
    for name, other in (("b.mp4", "blur.mp4"), ("r.mp4", "remove.mp4"), ("c", "cutout"), ("m_1.mkv", "matte-1.mkv")):
        assert decoded(tmp_path / name) == one_pass[0][f"in.mp4.{other}"], name


def test_alpha_survives_being_joined(clip, model, tmp_path) -> None:
    """VP9 keeps its alpha beside the picture: joining must not lose it."""
    found = layers_of(clip, tmp_path / "out", model, 0.5, layers=("cutout=webm", "cutout={id}.webm"))
    assert sorted(found) == ["in.mp4.cutout-1.webm", "in.mp4.cutout.webm"]
    interrupted = layers_of(
        clip, tmp_path / "again", model, 0.5, layers=("cutout=webm", "cutout={id}.webm"), stops=(10, 17)
    )
    assert interrupted == found
    times, pixel_format, frames = found["in.mp4.cutout.webm"]
    assert pixel_format == "yuva420p"
    assert len(frames) == FRAMES and times == pytest.approx([n / 25 for n in range(FRAMES)], abs=2e-3)
    alpha = np.frombuffer(frames[40][3], np.uint8)
    assert 0.1 < (alpha > 200).mean() < 0.5 and (alpha < 20).mean() > 0.4


def test_a_person_who_comes_late_lies_on_the_time_line(model, tmp_path) -> None:
    """The first half shows nobody; the person's file begins with one empty picture, whatever the segments are."""
    clip = write_video(tmp_path / "in.mp4", 30)
    frames, _ = read_video(clip)
    late = tmp_path / "late.mp4"
    with av.open(str(late), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.gop_size = 5
        for number, picture in enumerate(frames):
            image = np.full_like(picture, 90) if number < 14 else picture
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = {
        segment_s: layers_of(
            late, tmp_path / str(segment_s), model, segment_s, layers=("cutout={id}.mov", "cutout={id}.png")
        )
        for segment_s in (100.0, 0.4, 0.2)
    }
    times, _, _ = found[100.0]["late.mp4.cutout-1.mov"]
    assert [round(25 * time) for time in times] == [0, *range(14, 30)]
    assert sorted(found[0.2]["late.mp4.cutout-1"]) == [f"{number:06d}.png" for number in range(14, 30)]
    assert found[0.4] == found[100.0]
    assert found[0.2] == found[100.0]


def test_foreign_files_are_left_alone(clip, model, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    precious = out / "in.mp4.cutout-7.mov"
    precious.write_bytes(b"precious")
    with pytest.raises(SinkError, match="exists already and is not of this batch"):
        layers_of(clip, out, model, 1e4, layers=("cutout={id}.mov",))
    assert precious.read_bytes() == b"precious"
    precious.unlink()
    (out / "in.mp4.cutout").mkdir()
    (out / "in.mp4.cutout" / "notes.txt").write_text("precious")
    with pytest.raises(SinkError, match="exists already"):
        layers_of(clip, out, model, 1e4, layers=("cutout=png",))
    assert [path.name for path in (out / "in.mp4.cutout").iterdir()] == ["notes.txt"]


def test_a_done_file_without_a_layer_is_done_again(tmp_path, clip, model_folder, capsys) -> None:
    arguments = ["batch", str(clip), "--out", str(tmp_path / "out"), "--model", str(model_folder), "--write", "json"]
    arguments += ["--layer", "blur", "--layer", "cutout=png", "--layer", "matte={id}.mkv", "--layer", "heatmap=jpg"]
    assert main(arguments) == 0
    frames, _ = read_video(tmp_path / "out" / "in.mp4.blur.mp4")
    assert [number_of(frame) for frame in frames] == list(range(FRAMES))
    assert cv2.imread(str(tmp_path / "out" / "in.mp4.heatmap.jpg")).shape == (96, 128, 3)
    page = (tmp_path / "out" / "report.html").read_text()
    for link in ("in.mp4.blur.mp4", "in.mp4.cutout", "in.mp4.matte-1.mkv", "in.mp4.heatmap.jpg"):
        assert f'href="./{link}"' in page
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("in*")}
    assert main(arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("in*")} == before
    (tmp_path / "out" / "in.mp4.matte-1.mkv").unlink()
    (tmp_path / "out" / "in.mp4.cutout" / "notes.txt").write_text("mine")
    assert main(arguments) == 0
    assert (tmp_path / "out" / "in.mp4.matte-1.mkv").is_file()
    assert (tmp_path / "out" / "in.mp4.cutout" / "notes.txt").read_text() == "mine"
    capsys.readouterr()
    assert main([*arguments, "--layer-ids", "1"]) == 2
    assert "another --out" in capsys.readouterr().err
    assert main([*arguments, "--dry-run"]) == 0
    assert "FPS each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("blur", "blur.mp4"),
        ("cutout", "cutout.mov"),
        ("cutout=webm", "cutout.webm"),
        ("cutout=.MOV", "cutout.mov"),
        ("cutout=png", "cutout"),
        ("matte={id}.mkv", "matte-{id}.mkv"),
        ("matte={id}", "matte-{id}.mp4"),
        ("cutout={id}.png", "cutout-{id}"),
        ("heatmap", "heatmap.png"),
    ],
)
def test_layers_of_the_command_line(text: str, name: str) -> None:
    assert str(read_named_layer(text).path) == name


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["blurred"], "KIND one of cutout"),
        (["blur=out.mp4"], "outputs are named for their inputs"),
        (["blur=avi"], "one of mp4, m4v, mov, got 'avi'"),
        (["cutout=../x.mov"], "one of mov, webm, png"),
        (["blur={id}.mp4"], "a file per person of cutout and matte only"),
        (["blur", "blur=mp4"], "is given twice"),
    ],
)
def test_layers_that_are_none(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_named_layers(texts)


def test_parts_find_their_outputs() -> None:
    layers = read_named_layers(["matte={id}.mkv", "blur", "cutout={id}.png"])
    parts = ["000000-matte-1.mkv", "000000-blur.mp4", "000000.jsonl"]
    first = Segment(frames=1, people=1, seconds=1.0, first_pts=0, time_base=(1, 25), parts=dict.fromkeys(parts, 1))
    parts = ["000001-matte-12.mkv", "000001-before-matte-12.mkv", "000001-blur.mp4", "000001-cutout-3.zip"]
    second = Segment(frames=1, people=1, seconds=1.0, first_pts=9, time_base=(1, 25), parts=dict.fromkeys(parts, 1))
    assert outputs_of(layers, [first, second]) == {
        "matte-1.mkv": [(0, "000000-matte-1.mkv")],
        "matte-12.mkv": [(1, "000001-before-matte-12.mkv"), (1, "000001-matte-12.mkv")],
        "blur.mp4": [(0, "000000-blur.mp4"), (1, "000001-blur.mp4")],
        "cutout-3": [(1, "000001-cutout-3.zip")],
    }
