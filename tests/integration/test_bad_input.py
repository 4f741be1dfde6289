"""What users get wrong: one clear line, the right exit code, and what was written stays readable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from run_stream import main
from tests.clips import number_of, read_video, write_empty_video, write_images, write_video

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and the error lines of one run."""
    code = main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err.splitlines()
    assert not [line for line in errors if "Traceback" in line]
    return code, [line for line in errors if line.startswith("pose2seg: error:")]


@pytest.fixture
def video(tmp_path) -> Path:
    return write_video(tmp_path / "in.mp4", 10)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file or folder: check the path"),
        ("notes.mp4", b"just some text\n" * 50, "expected a video, found something else"),
        ("empty.mp4", b"", "expected a video, found something else"),
        ("broken.png", b"not a picture", "expected an image, found something else"),
    ],
)
def test_sources_that_are_none(tmp_path, model_folder, capsys, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outputs = ("--json", tmp_path / "out.jsonl", "--output", tmp_path / "out.mp4")
    code, (line,) = run(capsys, tmp_path / name, "--model", model_folder, *outputs)
    assert code == 3
    assert message in line
    assert not list(tmp_path.glob("out.*"))


def test_a_video_without_frames(tmp_path, model_folder, capsys) -> None:
    source = write_empty_video(tmp_path / "in.avi")
    code, (line,) = run(capsys, source, "--model", model_folder, "--output", tmp_path / "out.mp4")
    assert code == 3
    assert "expected at least one video frame" in line
    assert not (tmp_path / "out.mp4").exists()


def test_a_folder_without_images(tmp_path, model_folder, capsys) -> None:
    (tmp_path / "in").mkdir()
    code, (line,) = run(capsys, tmp_path / "in", "--model", model_folder)
    assert code == 3
    assert "expected images or videos in this folder" in line


def test_a_cut_video_is_processed_as_far_as_it_goes(tmp_path, model_folder, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", 100)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    code = main(
        [
            str(source),
            "--model",
            str(model_folder),
            "--output",
            str(tmp_path / "o.mp4"),
            "--json",
            str(tmp_path / "o.jsonl"),
        ]
    )
    captured = capsys.readouterr()
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert 30 < len(lines) < 80
    assert f"WARNING {source}: {100 - len(lines)} frames lost, {len(lines)} decoded" in captured.err
    assert f"{100 - len(lines)} lost" in captured.out.replace("\n", " ")
    frames, _ = read_video(tmp_path / "o.mp4")
    assert [number_of(frame) for frame in frames] == list(range(len(lines)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "SOURCE"),
        (("--engine", "gpu"), "choose from"),
        (("--threads", "x"), "must be a whole number"),
        (("--max-frames", "0"), "--max-frames must be 1 or more, got 0"),
        (("--outptu", "x"), "unrecognized arguments: --outptu"),
        (("--coco-images", "x.json"), "add --coco"),
        (("--output", "out.txt"), "expects a name ending in .mp4"),
    ],
)
def test_flags_that_cannot_be(video, capsys, arguments, message) -> None:
    source = (video,) if arguments else ()
    code, (line,) = run(capsys, *source, *arguments)
    assert code == 2
    assert message in line


def test_a_video_gives_no_coco_results(video, tmp_path, model_folder, capsys) -> None:
    code, (line,) = run(capsys, video, "--model", model_folder, "--coco", tmp_path / "o.json")
    assert code == 2
    assert "use --json" in line


def test_model_folders_that_are_none(video, tmp_path, model_folder, capsys) -> None:
    code, (line,) = run(capsys, video, "--model", tmp_path / "nowhere")
    assert (code, "expected a model folder" in line) == (4, True)
    code, (line,) = run(capsys, video, "--model", tmp_path)
    assert (code, "model.json" in line) == (4, True)


def test_a_changed_model_file(video, tmp_path, model_folder, capsys) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    graph = bytearray((copy / "keypoints.onnx").read_bytes())
    graph[-1] ^= 255
    (copy / "keypoints.onnx").write_bytes(graph)
    code, (line,) = run(capsys, video, "--model", copy, "--json", tmp_path / "o.jsonl")
    assert code == 4
    assert "expected SHA-256" in line
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("name", ["o.mp4", "o.jsonl", "o.png"])
def test_outputs_that_cannot_be(video, tmp_path, model_folder, capsys, name) -> None:
    flag = {"o.mp4": "--output", "o.jsonl": "--json", "o.png": "--sheet"}[name]
    code, (line,) = run(capsys, video, "--model", model_folder, flag, tmp_path / "missing" / name)
    assert (code, "its folder does not exist" in line) == (5, True)
    (tmp_path / name).write_text("precious")
    code, (line,) = run(capsys, video, "--model", model_folder, flag, tmp_path / name)
    assert (code, "exists already" in line) == (5, True)
    assert (tmp_path / name).read_text() == "precious"
    if Path("/proc/self").exists():
        code, (line,) = run(capsys, video, "--model", model_folder, flag, Path("/proc") / name)
        assert code == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["o.mp4", "o.jsonl"])
def test_a_full_disk_ends_the_run_and_the_other_output_is_finished(tmp_path, model_folder, capsys, full) -> None:
    source = write_video(tmp_path / "in.mp4", 120)
    (tmp_path / full).symlink_to("/dev/full")
    outputs = ("--output", tmp_path / "o.mp4", "--json", tmp_path / "o.jsonl", "--overwrite")
    code, (line,) = run(capsys, source, "--model", model_folder, *outputs)
    assert code == 5
    assert "No space left on device" in line
    if full == "o.mp4":
        lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        assert [line["frame"] for line in lines] == list(range(len(lines)))
        assert lines


def test_the_disk_fills_up_in_the_middle(tmp_path, model_folder) -> None:
    """A limit on the size of files stands in for the disk: the run ends with code 5, what fitted is readable."""
    source = write_video(tmp_path / "in.mp4", 400, height=240, width=320)
    command = [sys.executable, ROOT / "run_stream.py", source, "--model", model_folder, "--json", tmp_path / "o.jsonl"]
    code = (
        "import resource, signal, subprocess, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)); "
        "import os; os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "o.jsonl: cannot be written (File too large)" in done.stderr
    whole = (tmp_path / "o.jsonl").read_text().splitlines()[:-1]
    assert [json.loads(line)["frame"] for line in whole] == list(range(len(whole)))
    assert len(whole) > 20


def test_one_bad_image_of_many(tmp_path, model_folder, capsys) -> None:
    folder = write_images(tmp_path / "in", ["a.png", "c.png"])
    (folder / "b.png").write_text("no picture")
    code = main([str(folder), "--model", str(model_folder), "--json", str(tmp_path / "o.jsonl")])
    captured = capsys.readouterr()
    assert code == 0
    assert "left out:" in captured.err
    assert "1 lost" in captured.out.replace("\n", " ")
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_no_password_is_printed(capsys, model_folder, debug) -> None:
    code = main(["rtsp://admin:hunter2@127.0.0.1:1/x", "--model", str(model_folder), "--timeout-s", "2", *debug])
    captured = capsys.readouterr()
    assert code == 3
    assert "hunter2" not in captured.err + captured.out
    assert "rtsp://***@127.0.0.1:1/x" in captured.err


def test_debug_shows_the_traceback(tmp_path, capsys) -> None:
    assert main([str(tmp_path / "missing.mp4"), "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 finished or asked to stop" in capsys.readouterr().out
