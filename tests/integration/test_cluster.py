"""``pose2seg batch --cluster``: a real Ray cluster of two nodes; one is lost in the middle, and nobody can tell."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from pipeline.batch.cluster import RayCluster, RayCrew, check_address, describe_machine
from pipeline.batch.file import FileOptions
from pipeline.batch.worker import WorkerOptions
from pipeline.errors import PipelineError, SettingsError
from pipeline.settings import Settings
from run_stream import main
from tests.clips import read_video, write_video

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
START_S = 150


@dataclass(slots=True)
class Nodes:
    """A running cluster."""

    process: subprocess.Popen
    address: str
    session: str

    def lose_one(self) -> None:
        self.process.stdin.write("lose\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "lost\n"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    said = tmp_path_factory.mktemp("ray") / "stderr"
    with said.open("w") as errors:
        for _ in range(5):  # Ray gives up soon where a machine is busy with something else
            found = started(errors)
            if found is not None:
                break
    assert found is not None, said.read_text()
    try:
        yield found
    finally:
        end(found.process)
    assert not wait_for_nobody(found.session), "processes of Ray are left"


def started(errors: IO[str]) -> Nodes | None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "ray_nodes.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    line = next((line for line in process.stdout if line.startswith("address ")), "")
    if not line:
        end(process)
        return None
    _, address, session = line.split()
    return Nodes(process, address, session)


def end(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_nobody(session: str, name: str = "") -> list[int]:
    """Processes of a session that are still there after a while."""
    deadline = time.monotonic() + 60
    while (left := processes_of(session, name)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def processes_of(session: str, name: str = "") -> list[int]:
    """Processes that Ray started for a session and that are called so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            logs = str((folder / "fd" / "1").readlink())  # a worker's own line of arguments says only what it runs
        except OSError:
            continue
        if (session in line or logs.startswith(session)) and name in line:
            found.append(int(folder.name))
    return found


def command(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "run_stream.py"), "batch", str(source), "--out", str(out), "--model", str(model)),
        *("--write", "video,json,coco,sheet", "--segment-seconds", "1", "--engine", "onnx", "--threads", "1", *more),
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


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate(timeout=10)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_actor_that_dies_and_a_batch_that_is_interrupted(nodes, model_folder, tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, 100)
    out = tmp_path / "out"
    arguments = command(folder, out, model_folder, "--cluster", nodes.address, "--split", "never")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        wait_for(lambda: segments_done(out) >= 1, process)
        os.kill(processes_of(nodes.session, "ClusterWorker")[0], 9)
        wait_for(lambda: segments_done(out) >= 3, process)
        process.terminate()
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 10, errors
    assert "its worker died by the end of its process on" in errors
    assert "the same command goes on where it stopped" in errors
    before = segments_done(out)
    assert before >= 3
    alone = command(folder, out, model_folder, "--workers", "1")  # goes on without a cluster
    done = subprocess.run(alone, capture_output=True, text=True, timeout=400, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    reference = command(folder, tmp_path / "alone", model_folder, "--workers", "1")
    subprocess.run(reference, capture_output=True, timeout=400, check=True, env=ENVIRONMENT)
    assert outputs(out) == outputs(tmp_path / "alone")


def segments_done(out: Path) -> int:
    states = [json.loads(path.read_text()) for path in out.glob(".pose2seg/files/*/state.json")]
    return sum(len(state["segments"]) for state in states)


def test_no_room_for_a_worker(nodes, model_folder, tmp_path) -> None:
    video = write_video(tmp_path / "in.mp4", 5)
    arguments = command(video, tmp_path / "out", model_folder, "--cluster", nodes.address)
    arguments[arguments.index("--threads") + 1] = "64"
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=400, check=False, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "no node has 64 cores" in done.stderr
    assert "2 nodes, 2 cores, 0 GPUs" in done.stderr


def test_an_address_where_nobody_is(model_folder, tmp_path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # bound, and nobody listens
        arguments = command(write_video(tmp_path / "in.mp4", 5), tmp_path / "out", model_folder)[2:]
        assert main([*arguments, "--cluster", address]) == 1
    said = capsys.readouterr().err
    assert f"--cluster {address}: nobody answers there (Connection refused)" in said
    assert "ray status" in said


@pytest.mark.parametrize("text", ["", "ray://host:10001", "host", "host:0", "host:70000", "a b:1", "-x:6379", "h:1;ls"])
def test_what_is_no_address(text, model_folder, tmp_path) -> None:
    with pytest.raises(SettingsError, match=re.escape("must be auto or the HOST:PORT")):
        check_address(text)


@pytest.mark.parametrize("text", ["auto", "host:6379", "10.0.0.1:6379", "[::1]:6379", "head.example.org:1"])
def test_what_is_an_address(text) -> None:
    check_address(text)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        check_address("redis://me:secret@host:6379")
    assert "secret" not in str(caught.value)


def test_ray_is_missing(monkeypatch, model_folder, tmp_path, capsys) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    arguments = command(write_video(tmp_path / "in.mp4", 5), tmp_path / "out", model_folder)[2:]
    assert main([*arguments, "--cluster", "auto"]) == 2
    assert 'pip install "pose2seg-live[cluster]"' in capsys.readouterr().err


def test_ray_of_another_version_on_the_head(tmp_path) -> None:
    """Ray refuses by itself; its text becomes ours."""
    code = f"""
import ray, socket, sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline.batch.cluster import RayCluster
def refuse(**options):
    raise RuntimeError("Version mismatch: The cluster was started with:\\n    Ray: 1.0.0\\n    Python: 3.7.0")
ray.init = refuse
server = socket.create_server(("127.0.0.1", 0))
try:
    RayCluster(f"127.0.0.1:{{server.getsockname()[1]}}")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert "PipelineError --cluster 127.0.0.1:" in done.stdout, done.stderr
    assert "other versions of Ray or Python" in done.stdout
    assert "Ray: 1.0.0" in done.stdout


@pytest.fixture
def crew(tmp_path, model_folder) -> RayCrew:
    options = FileOptions(settings=Settings(source="x", model=model_folder), write=("json",), segment_s=1.0)
    return RayCrew(None, WorkerOptions(out=tmp_path, file=options), gpu=False)


def test_nodes_with_other_versions(crew, model_folder, caplog) -> None:
    mine = describe_machine(model_folder)
    assert mine["onnxruntime"][0].isdigit()
    crew._compare("n1", mine)
    with pytest.raises(
        PipelineError, match=r"node n2 has something else installed \(onnxruntime 1.0 there, 1\..* here\)"
    ):
        crew._compare("n2", {**mine, "onnxruntime": "1.0"})
    with pytest.raises(PipelineError, match="model 0000 there"):
        crew._compare("n3", {**mine, "model": "0000"})
    assert not caplog.records
    crew._compare("n4", {**mine, "processor": "abacus"})
    crew._compare("n5", {**mine, "processor": "abacus"})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    crew._compare_engines("n1", ["onnxruntime CPU"])
    with pytest.raises(PipelineError, match="name one with --engine"):
        crew._compare_engines("n6", ["openvino"])


def test_a_cluster_is_for_a_machine_with_ray(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="--cluster needs Ray"):
        RayCluster("auto")


def test_a_node_is_lost_in_the_middle(nodes, model_folder, tmp_path) -> None:  # the last one: one node is left
    """One long file that both nodes share, and a short one; the second node goes while its worker is at work."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "long.mp4", 220)
    write_video(folder / "short.mkv", 40)
    alone = subprocess.run(
        command(folder, tmp_path / "alone", model_folder, "--workers", "1"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=ENVIRONMENT,
    )
    assert alone.returncode == 0, alone.stderr
    expected = outputs(tmp_path / "alone")
    assert len(expected) == 8

    out = tmp_path / "out"
    process = subprocess.Popen(
        command(folder, out, model_folder, "--cluster", nodes.address, "--split", "always"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        # both workers have written something: the file of what was found carries their process id until it is whole
        wait_for(lambda: list(out.glob(".pose2seg/files/*/people-*.found")), process)
        wait_for(lambda: len(processes_of(nodes.session, "ClusterWorker")) == 2, process)
        wait_for(lambda: list(out.glob(".pose2seg/files/*/.people-*.new")), process)
        nodes.lose_one()
        printed, errors = process.communicate(timeout=500)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "2 nodes, 2 cores" in errors
    assert "its worker died by" in errors
    assert "tried once more" in errors
    assert "Traceback" not in errors
    assert outputs(out) == expected  # ids, times and pixels
    assert "long.mp4" in printed  # the same table
    with (out / "report.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert {name: (row["result"], row["frames"]) for name, row in rows.items()} == {
        "long.mp4": ("done", "220"),
        "short.mkv": ("done", "40"),
    }
    assert not list(out.rglob("*.new"))
    assert not (out / ".pose2seg" / "cluster").exists()
    assert not wait_for_nobody(nodes.session, "ClusterWorker")  # the batch takes its workers with it
