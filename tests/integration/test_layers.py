"""Layers from the command line: real decoding, a real engine, real files."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest

from run_stream import main
from tests.clips import number_of, numbered_picture, read_video, write_video
from tests.fakes import MAGENTA

pytestmark = pytest.mark.timeout(120)

COUNT, SIZE = 20, (240, 320)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "in.mp4", COUNT, height=SIZE[0], width=SIZE[1])


def magenta(picture: np.ndarray) -> np.ndarray:
    return (np.abs(picture[:, :, :3].astype(int) - MAGENTA) < 60).all(axis=2)


def test_all_layers_of_one_run(tmp_path, clip, model_folder) -> None:
    layers = {
        "blur": "b.mp4",
        "pixelate": "x.mp4",
        "remove": "r.mp4",
        "background": "g.mp4",
        "matte": "m.mkv",
        "cutout": "c",
        "heatmap": "h.png",
    }
    flags = [part for kind, name in layers.items() for part in ("--layer", f"{kind}={tmp_path / name}")]
    code = run(
        *(clip, "--model", model_folder, "--long-side", 320, "--video-crf", 8, "--refine-edges", *flags),
        *("--layer", f"cutout={tmp_path / 'p_{id}.mov'}", "--layer-background", "#00b140"),
    )
    assert code == 0
    for name in ("b.mp4", "x.mp4", "r.mp4"):
        frames, times_s = read_video(tmp_path / name)
        assert [number_of(frame) for frame in frames] == list(range(COUNT))
        assert times_s == pytest.approx([number / 25 for number in range(COUNT)])
    frames, _ = read_video(tmp_path / "r.mp4")
    assert not magenta(frames[-1]).any()
    frames, _ = read_video(tmp_path / "g.mp4")
    truth = magenta(numbered_picture(9, *SIZE))
    found = magenta(frames[9])
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    assert np.abs(frames[9][200, 300].astype(int) - (0, 0xB1, 0x40)).max() < 12
    with av.open(str(tmp_path / "m.mkv")) as container:
        mattes = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(mattes) == COUNT
    cut = cv2.imread(str(tmp_path / "c" / "000009.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(cut[:, :, 3], mattes[9])
    with av.open(str(tmp_path / "p_1.mov")) as container:
        assert sum(1 for _ in container.decode(video=0)) == COUNT
    assert cv2.imread(str(tmp_path / "h.png")).shape == (*SIZE, 3)


def test_hidden_in_every_picture_of_a_run(tmp_path, clip, model_folder) -> None:
    arguments = (clip, "--model", model_folder, "--hide", "remove", "--hide-ahead", 3, "--video-crf", 8)
    outputs = (
        "--output",
        tmp_path / "o.mp4",
        "--layer",
        f"outline={tmp_path / 'l.mp4'}",
        "--json",
        tmp_path / "j.jsonl",
    )
    assert run(*arguments, *outputs) == 0
    for name in ("o.mp4", "l.mp4"):
        frames, _ = read_video(tmp_path / name)
        assert [number_of(frame) for frame in frames] == list(range(COUNT))
        assert not any(magenta(frame).any() for frame in frames)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == COUNT
    assert magenta(read_video(clip)[0][9]).any()


@pytest.mark.parametrize("kind", ["background", "matte", "outline", "remove"])
def test_a_layer_is_what_the_output_shows(tmp_path, clip, model_folder, kind) -> None:
    flags = ["--layer-background", "#00b140"] if kind == "background" else []
    flags += ["--hide-ahead", 2] if kind == "remove" else []
    arguments = (clip, "--model", model_folder, "--long-side", 320, "--video-crf", 8, "--draw", kind, *flags)
    assert run(*arguments, "--output", tmp_path / "o.mp4", "--layer", f"matte={tmp_path / 'm.mkv'}") == 0
    frames, times_s = read_video(tmp_path / "o.mp4")
    assert times_s == pytest.approx([number / 25 for number in range(COUNT)])
    assert magenta(read_video(tmp_path / "m.mkv")[0][9]).sum() == 0  # grey: layers are what they were
    truth = magenta(numbered_picture(9, *SIZE))
    found = magenta(frames[9])
    if kind == "background":
        assert (found & truth).sum() / (found | truth).sum() > 0.8
        assert np.abs(frames[9][200, 300].astype(int) - (0, 0xB1, 0x40)).max() < 12
    elif kind == "matte":
        assert frames[9][truth].mean() > 200 and frames[9][~truth].mean() < 20
    elif kind == "outline":
        assert (found & truth).sum() / truth.sum() > 0.7 and not np.array_equal(frames[9], read_video(clip)[0][9])
    else:
        assert not found.any()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--layer", "blurred=a.mp4"], 2, "KIND one of cutout"),
        (["--layer", "blur=a.avi"], 2, "expects a name ending in .mp4, .m4v, .mov"),
        (["--layer", "blur=a.mp4", "--layer", "remove=a.mp4"], 2, "both name"),
        (["--layer", "blur=a.mp4", "--layer-ids", "1,x"], 2, "--layer-ids expects ids"),
        (["--layer", "blur=missing/a.mp4"], 5, "its folder does not exist"),
        (["--layer", "blur=in.mp4", "--overwrite"], 2, "is also read by this run"),
        (["--layer", "background=a.mp4", "--layer-background", "in.mp4"], 2, "expected a picture"),
        (["--draw", "background", "--layer-background", "none.png", "--output", "a.mp4"], 2, "cannot be read"),
        (["--draw", "cutout"], 2, "invalid choice"),
        (["--layer-ids", "1"], 2, "--draw or --hide"),
        (["--layer", "background=a.mp4", "--layer-background", "none.png"], 2, "cannot be read"),
    ],
)
def test_what_cannot_be(tmp_path, clip, model_folder, monkeypatch, capsys, flags, code, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("in.mp4", "--model", model_folder, *flags) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
