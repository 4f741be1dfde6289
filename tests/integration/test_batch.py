"""``pose2seg batch``: real clips, real processes, real kills; what comes out is what an uninterrupted run gives."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from run_stream import main
from tests.clips import number_of, read_video, write_empty_video, write_video

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
ALL = "video,json,coco,sheet"


def command(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "run_stream.py"), "batch", str(source), "--out", str(out), "--model", str(model)),
        *("--write", ALL, "--segment-seconds", "1", "--engine", "onnx", *more),
    ]


def outputs(out: Path) -> dict[str, bytes]:
    """Name -> content of all results; videos as they decode."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith((".pose2seg", "report.")):
            if path.suffix == ".mp4":
                frames, times = read_video(path)
                found[name] = repr(times).encode() + b"".join(frame.tobytes() for frame in frames)
            else:
                found[name] = path.read_bytes()
    return found


def segments_done(out: Path) -> int:
    states = [json.loads(path.read_text()) for path in out.glob(".pose2seg/files/*/state.json")]
    return sum(len(state["segments"]) for state in states)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "a.mp4", 400)
    (folder / "sub").mkdir()
    write_video(folder / "sub" / "a.mkv", 250)
    return folder


@pytest.fixture(scope="module")
def expected(clips, model_folder, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out"
    done = subprocess.run(command(clips, out, model_folder), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return outputs(out)


def test_all_outputs(clips, expected, model_folder, tmp_path) -> None:
    assert sorted(expected) == [
        *(f"a.mp4.{kind}" for kind in ("coco.json", "jsonl", "people.mp4", "sheet.png")),
        *(f"sub/a.mkv.{kind}" for kind in ("coco.json", "jsonl", "people.mp4", "sheet.png")),
    ]
    lines = [json.loads(line) for line in expected["a.mp4.jsonl"].splitlines()]
    assert [line["frame"] for line in lines] == list(range(400))
    assert {person["id"] for line in lines for person in line["people"]} == {1, 2, 3, 4, 5, 6}  # jumps back each time
    entries = json.loads(expected["a.mp4.coco.json"])
    assert [entry["image_id"] for entry in entries] == list(range(1, 401))
    code = main(
        [
            *(str(clips / "a.mp4"), "--model", str(model_folder), "--engine", "onnx"),
            *("--json", str(tmp_path / "one.jsonl"), "--threads", "1"),
        ]
    )
    assert code == 0
    alone = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [line["people"] for line in alone] == [line["people"] for line in lines]  # a plain run says the same


def kill_at_random(clips: Path, model: Path, folder: Path, expected: dict[str, bytes], kills: int, seed: int) -> None:
    """Start and kill -9 in the middle of the work, so often; whatever is finished on the way must be right."""
    moments = random.Random(seed)
    killed = resumed = 0
    out = folder / "out0"
    while killed < kills:
        before = segments_done(out)
        process = subprocess.Popen(command(clips, out, model), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = before + moments.randint(0, 3)
        while process.poll() is None and segments_done(out) < wanted:
            time.sleep(0.01)
        time.sleep(moments.random())
        if process.poll() is None:
            process.kill()
            process.wait()
            killed += 1
            resumed += before > 0
        else:
            assert process.returncode == 0
            assert outputs(out) == expected
            out = folder / f"out{killed}"
    finish(clips, model, out)
    assert outputs(out) == expected
    assert resumed > 0


def finish(clips: Path, model: Path, out: Path, *more: str) -> None:
    done = subprocess.run(command(clips, out, model, *more), capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


def test_killed_at_random_moments(clips, expected, model_folder, tmp_path) -> None:
    kill_at_random(clips, model_folder, tmp_path, expected, 4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_thirty_random_moments(clips, expected, model_folder, tmp_path) -> None:
    kill_at_random(clips, model_folder, tmp_path, expected, 30, seed=2)


def test_ctrl_c_and_go_on(clips, expected, model_folder, tmp_path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(clips, out, model_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while segments_done(out) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 10
    assert "goes on where it stopped" in errors
    assert "Traceback" not in errors
    before = segments_done(out)
    assert before >= 3
    finish(clips, model_folder, out)
    assert outputs(out) == expected


def test_broken_files_among_good_ones(tmp_path, model_folder, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "good.mp4", 20)
    (folder / "text.mp4").write_text("just some text\n" * 50)
    (folder / "empty.mp4").write_bytes(b"")
    write_empty_video(folder / "frameless.avi")
    data = write_video(folder / "cut.mp4", 100).read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    data = write_video(folder / "no-index.mp4", 30, faststart=False).read_bytes()
    (folder / "no-index.mp4").write_bytes(data[: len(data) // 2])
    (folder / "noise.ts").write_bytes(random.Random(7).randbytes(200_000))
    write_sound(folder / "sound.mp4")
    (folder / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "picture.png").write_bytes(b"not a picture")
    write_video(folder / "z.mp4", 20)
    for number in range(50):
        shutil.copy(folder / "z.mp4", folder / f"many{number:02d}.mp4")
    others = [str(tmp_path / name) for name in ("missing.mp4", "pipe.mp4", "picture.png")]
    others.append(str(folder / "nowhere.mp4"))  # a folder leaves out links that lead nowhere
    bad = {
        *("empty.mp4", "frameless.avi", "text.mp4", "no-index.mp4", "noise.ts", "sound.mp4"),
        *("nowhere.mp4", "missing.mp4", "pipe.mp4", "picture.png"),
    }
    arguments = ["batch", str(folder), *others, "--out", str(tmp_path / "out"), "--model", str(model_folder)]
    arguments += ["--write", ALL]
    assert main(arguments) == 10
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for name in bad:
        assert f"failed {name}" in captured.err
        assert not list((tmp_path / "out").glob(f"{name}.*"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    assert {row["file"] for row in rows if row["result"] == "failed"} == bad
    assert all(row["error"] for row in rows[: len(bad)])
    assert "expected a video stream, found audio" in next(row["error"] for row in rows if row["file"] == "sound.mp4")
    assert "expected a file" in next(row["error"] for row in rows if row["file"] == "pipe.mp4")
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in bad)
    assert sum(row["result"] == "done" for row in rows) == 53
    for name in ("good.mp4", "z.mp4", "many49.mp4"):
        frames, _ = read_video(tmp_path / "out" / f"{name}.people.mp4")
        assert [number_of(frame) for frame in frames] == list(range(20))
    lines = (tmp_path / "out" / "cut.mp4.jsonl").read_text().splitlines()
    assert 30 < len(lines) < 80
    assert f"{100 - len(lines)} frames lost" in captured.out.replace("\n", " ") or "frames lost" in captured.err
    assert not list((tmp_path / "out").rglob("*.part*"))

    assert main(arguments) == 10  # what failed is left, what is done is not done again
    assert "done good.mp4" not in capsys.readouterr().err
    write_video(folder / "text.mp4", 20)
    assert main([*arguments, "--retry-failed"]) == 10
    assert (tmp_path / "out" / "text.mp4.jsonl").exists()


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_other_options_do_not_mix(tmp_path, model_folder, capsys) -> None:
    video = write_video(tmp_path / "in.mp4", 10)
    arguments = ["batch", str(video), "--out", str(tmp_path / "out"), "--model", str(model_folder)]
    assert main(arguments) == 0
    assert main([*arguments, "--person-threshold", "0.5"]) == 2
    assert "person_threshold was None, is 0.5" in capsys.readouterr().err
    assert main([*arguments, "--person-threshold", "0.5", "--overwrite"]) == 0


def test_foreign_outputs_are_not_replaced(tmp_path, model_folder, capsys) -> None:
    video = write_video(tmp_path / "in.mp4", 10)
    (tmp_path / "out").mkdir()
    precious = tmp_path / "out" / "in.mp4.jsonl"
    precious.write_text("precious")
    arguments = ["batch", str(video), "--out", str(tmp_path / "out"), "--model", str(model_folder), "--write", "json"]
    assert main(arguments) == 10
    assert "exists already and is not of this batch" in capsys.readouterr().err
    assert precious.read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(precious.read_text().splitlines()) == 10
    precious.unlink()
    assert main(arguments) == 0  # an output that is gone is made again
    assert len(precious.read_text().splitlines()) == 10


def children(process: subprocess.Popen) -> list[int]:
    """The worker processes of a batch."""
    try:
        pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except OSError:
        return []


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_dies_costs_its_segment(clips, expected, model_folder, tmp_path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(clips, out, model_folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_segments(out, 2, process)
    kill(children(process)[0])
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "its worker died by signal 9 (SIGKILL)" in errors
    assert "tried once more" in errors
    assert outputs(out) == expected


def test_a_file_whose_worker_always_dies(clips, model_folder, tmp_path) -> None:
    process = subprocess.Popen(
        command(clips / "a.mp4", tmp_path / "out", model_folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        for pid in children(process):
            kill(pid)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 10, errors
    assert "died twice in segment 0 by signal 9" in errors
    finish(clips / "a.mp4", model_folder, tmp_path / "out", "--retry-failed")


def wait_for_segments(out: Path, count: int, process: subprocess.Popen) -> None:
    wait_for(lambda: segments_done(out) >= count, process)


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Until something holds; the process must not end before."""
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_closed_terminal_and_a_reader_that_leaves(clips, expected, model_folder, tmp_path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(clips, out, model_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_segments(out, 1, process)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=200) == 0
    assert outputs(out) == expected
    assert "2 done" in (out / "report.html").read_text()


def test_on_a_terminal(clips, model_folder, tmp_path) -> None:
    """A live table while somebody looks; then the terminal is closed, and the work goes on."""
    ours, theirs = pty.openpty()
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(clips, out, model_folder),
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while b"files done" not in seen:
        seen += os.read(ours, 65536)
    assert b"people" in seen
    os.close(ours)
    assert process.wait(timeout=200) == 0
    assert len(outputs(out)) == 8


def test_a_disk_that_is_full(tmp_path, model_folder) -> None:
    """A limit on the size of files stands in for the disk: the file that does not fit fails, the others do not."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "long.mp4", 300)
    write_video(folder / "short.mp4", 4)
    arguments = command(folder, tmp_path / "out", model_folder)
    code = (
        "import resource, signal, os, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    arguments[arguments.index(ALL)] = "json"
    arguments[arguments.index("--segment-seconds") + 1] = "60"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 10, done.stderr
    assert "failed long.mp4" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "out" / "short.mp4.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "out" / "long.mp4.jsonl").exists()
    assert subprocess.run([*arguments, "--retry-failed"], capture_output=True, timeout=200, check=False).returncode == 0
    assert len((tmp_path / "out" / "long.mp4.jsonl").read_text().splitlines()) == 300


def test_a_dry_run_writes_nothing(clips, model_folder, tmp_path, capsys) -> None:
    arguments = ["batch", str(clips), str(tmp_path / "missing.mp4"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(model_folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "3 files to do, 1 cannot be read" in out
    assert "650 frames" in out
    assert "FPS each: about" in out
    assert not (tmp_path / "out").exists()


def test_two_batches_do_not_fight(clips, model_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(clips, out, model_folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_segments(out, 1, process)
    assert main(command(clips, out, model_folder)[2:]) == 2
    assert "another batch is writing" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 10


def test_no_model_ends_the_batch(clips, model_folder, tmp_path, capsys) -> None:
    assert main(command(clips, tmp_path / "out", tmp_path / "nowhere")[2:]) == 4
    arguments = command(clips, tmp_path / "out", model_folder)[2:]
    arguments[arguments.index("onnx")] = "tensorrt"
    assert main(arguments) == 4
    assert "tensorrt" in capsys.readouterr().err


def test_another_number_of_workers_gives_the_same(clips, expected, model_folder, tmp_path) -> None:
    finish(clips, model_folder, tmp_path / "out", "--workers", "1", "--threads", "1")
    assert outputs(tmp_path / "out") == expected


def test_workers_that_share_files_give_the_same(clips, expected, model_folder, tmp_path) -> None:
    """Also when one of them dies, and when the batch is killed and goes on with nobody sharing."""
    shared = ("--workers", "2", "--threads", "1", "--split", "always")
    process = subprocess.Popen(
        command(clips, tmp_path / "out", model_folder, *shared),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list((tmp_path / "out").glob(".pose2seg/files/*/people-*.found")), process)
    kill(children(process)[0])
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "tried once more" in errors
    assert outputs(tmp_path / "out") == expected

    process = subprocess.Popen(
        command(clips, tmp_path / "other", model_folder, *shared), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: segments_done(tmp_path / "other") > 0, process)
    process.kill()
    process.wait(timeout=30)
    finish(clips, model_folder, tmp_path / "other", "--split", "never")
    assert outputs(tmp_path / "other") == expected


def test_layers_and_tables_of_a_shared_file(model_folder, tmp_path) -> None:
    """What remembers longest: the background behind people, covers, the map of presence."""
    video = write_video(tmp_path / "in.mp4", 120)
    found = {}
    for split in ("never", "always"):
        out = tmp_path / split
        arguments = command(video, out, model_folder, "--workers", "2", "--threads", "1", "--split", split)
        arguments[arguments.index(ALL)] = "json,parquet,srt"
        arguments += ["--layer", "remove", "--layer", "blur", "--layer", "heatmap", "--layer", "cutout=webm"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr
        found[split] = outputs(out)
    assert len(found["always"]) == 7
    assert found["always"] == found["never"]


def test_sharing_needs_networks_that_treat_each_person_alone(clips, model_folder, tmp_path, capsys) -> None:
    arguments = [*command(clips, tmp_path / "out", model_folder)[2:], "--split", "always", "--engine", "openvino"]
    assert main(arguments) == 2
    assert "--split always needs the networks in ONNX Runtime on the CPU" in capsys.readouterr().err


def test_a_damaged_state(tmp_path, model_folder, capsys) -> None:
    video = write_video(tmp_path / "in.mp4", 10)
    arguments = ["batch", str(video), "--out", str(tmp_path / "out"), "--model", str(model_folder), "--write", "json"]
    assert main(arguments) == 0
    (state,) = (tmp_path / "out").glob(".pose2seg/files/*/state.json")
    state.write_text('{"path": "x"}')
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_an_input_that_was_changed_is_done_anew(tmp_path, model_folder) -> None:
    video = write_video(tmp_path / "in.mp4", 10)
    arguments = ["batch", str(video), "--out", str(tmp_path / "out"), "--model", str(model_folder), "--write", "json"]
    assert main(arguments) == 0
    write_video(video, 25)
    assert main(arguments) == 0
    assert len((tmp_path / "out" / "in.mp4.jsonl").read_text().splitlines()) == 25
