"""Inputs and outputs in object storage and on web servers: a real S3 server, and a server that cuts connections."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.batch import storage
from pipeline.batch.file import Interrupted
from pipeline.batch.plan import BatchInput, plan_inputs
from pipeline.batch.state import JobFolder
from pipeline.batch.storage import check_address, staged, unstage, upload, version_of
from pipeline.errors import SettingsError, SinkError, SourceError
from run_stream import main
from tests.clips import write_video

pytestmark = pytest.mark.timeout(300)
SECRET = "wJalrXUtnFEMI-not-a-key"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a server; keys are in the environment, as users have them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def bucket(s3) -> str:
    import boto3

    client = boto3.client("s3")
    name = "footage"
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=name)
    for entry in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=entry["Key"])
    client.close()
    return name


def put(bucket: str, key: str, path: Path) -> None:
    upload(path, f"s3://{bucket}/{key}")


def content(bucket: str) -> dict[str, bytes]:
    import boto3

    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    found = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
    client.close()
    return found


def options(model: Path, out: Path) -> list[str]:
    return ["--out", str(out), "--model", str(model), "--engine", "onnx", "--write", "json,coco", "--workers", "1"]


def test_from_a_bucket_and_into_one(bucket, model_folder, tmp_path, capsys) -> None:
    """A folder of a bucket, one key of a list, and one that is not there; all outputs are as from the disk."""
    video = write_video(tmp_path / "a.mp4", 30)
    put(bucket, "day/a.mp4", video)
    put(bucket, "day/sub/b b.mp4", video)
    put(bucket, "day/notes.csv", video)
    put(bucket, "other/c.mp4", video)
    (tmp_path / "more.txt").write_text(f"s3://{bucket}/other/c.mp4\ns3://{bucket}/other/missing.mp4\na.mp4\n")
    out = tmp_path / "out"
    arguments = ["batch", f"s3://{bucket}/day/", f"@{tmp_path / 'more.txt'}", *options(model_folder, out)]
    arguments += ["--upload", f"s3://{bucket}/results"]
    assert main(arguments) == 10
    said = capsys.readouterr()
    assert "failed missing.mp4" in said.err
    assert "is not there" in said.err
    assert SECRET not in said.err + said.out
    found = content(bucket)
    results = {key.removeprefix("results/"): data for key, data in found.items() if key.startswith("results/")}
    local = next(name for name in results if name.startswith("a.mp4~") and name.endswith("jsonl"))
    names = {re.sub(r"~[0-9a-f]{8}", "", name) for name in results}
    assert {"a.mp4.jsonl", "a.mp4.coco.json", "sub/b b.mp4.jsonl", "c.mp4.jsonl", "report.html", "report.csv"} <= names
    nameless = results["sub/b b.mp4.jsonl"].replace(b"sub/b b.mp4", b"X")
    assert nameless == results[local].replace(local.removesuffix(".jsonl").encode(), b"X")
    assert len(results["c.mp4.jsonl"].splitlines()) == 30
    kept = [path for path in out.rglob("*") if path.is_file() and ".pose2seg" not in path.parts]
    assert sorted(path.name for path in kept) == ["report.csv", "report.html"]
    assert not [path for path in (out / ".pose2seg" / "inputs").glob("*") if path.suffix != ".lock"]
    rows = {row["path"]: row for row in csv.DictReader((out / "report.csv").read_text().splitlines())}
    assert rows[f"s3://{bucket}/day/sub/b b.mp4"]["result"] == "done"
    assert rows[f"s3://{bucket}/other/missing.mp4"]["result"] == "failed"

    put(bucket, "other/missing.mp4", video)
    assert main([*arguments, "--retry-failed"]) == 0  # what is uploaded is not done again
    said = capsys.readouterr()
    assert said.err.count("INFO done") == 1
    assert len(content(bucket)["results/missing.mp4.jsonl"].splitlines()) == 30


def test_an_input_that_was_replaced_is_done_anew(bucket, model_folder, tmp_path) -> None:
    put(bucket, "a.mp4", write_video(tmp_path / "a.mp4", 10))
    arguments = ["batch", f"s3://{bucket}/*.mp4", *options(model_folder, tmp_path / "out")]
    assert main(arguments) == 0
    assert len((tmp_path / "out" / "a.mp4.jsonl").read_text().splitlines()) == 10
    put(bucket, "a.mp4", write_video(tmp_path / "a.mp4", 17))
    assert main(arguments) == 0
    assert len((tmp_path / "out" / "a.mp4.jsonl").read_text().splitlines()) == 17


def test_an_upload_that_fails_is_tried_again(bucket, model_folder, tmp_path, capsys) -> None:
    video = write_video(tmp_path / "a.mp4", 10)
    out = tmp_path / "out"
    arguments = ["batch", str(video), *options(model_folder, out), "--upload", "s3://no-such-bucket/results"]
    assert main(arguments) == 10
    said = capsys.readouterr().err
    assert "failed a.mp4" in said
    assert "(upload)" in said
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="no-such-bucket")
    client.close()
    assert main([*arguments, "--retry-failed"]) == 0
    assert len(content("no-such-bucket")["results/a.mp4.jsonl"].splitlines()) == 10


def test_a_dry_run_reads_heads_only(bucket, model_folder, tmp_path, capsys) -> None:
    put(bucket, "a.mp4", write_video(tmp_path / "a.mp4", 30))
    assert main(["batch", f"s3://{bucket}/a.mp4", *options(model_folder, tmp_path / "out"), "--dry-run"]) == 0
    assert "30 frames" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


class Flaky(BaseHTTPRequestHandler):
    """Serves ranges of one file, and cuts the connection now and then."""

    protocol_version = "HTTP/1.1"
    data = b""
    cuts = 0
    silent = False
    etag = '"1"'

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        server = type(self)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        start, end = 0, len(server.data)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(server.data))
        part = server.data[start:end]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", server.etag)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(server.data)}")
        self.end_headers()
        if not body:
            return
        if wanted and server.cuts:
            server.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *arguments) -> None:
        """Quiet."""


@pytest.fixture
def flaky() -> Iterator[tuple[type[Flaky], str]]:
    handler = type("Handler", (Flaky,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def quick(monkeypatch) -> None:
    """Small blocks and short waits."""
    monkeypatch.setattr(storage, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(storage, "_FIRST_WAIT_S", 0.01)


def remote(address: str) -> BatchInput:
    (item,) = plan_inputs([address], Path("nowhere"))
    return item


def test_a_cut_connection_costs_a_block(flaky, quick, tmp_path) -> None:
    handler, address = flaky
    handler.data = os.urandom(95_000)
    handler.cuts = storage.TRIES - 1
    job = JobFolder(tmp_path)
    job.create()
    item = staged(remote(f"{address}/dir/a.mp4?token=hunter2"), job)
    assert handler.cuts == 0
    assert Path(item.file).read_bytes() == handler.data
    assert item.path == f"{address}/dir/a.mp4?***"
    signed = [remote(f"{address}/dir/a.mp4?X-Amz-Date={day}&X-Amz-Signature=abc{day}") for day in (1, 2)]
    assert signed[0].key == signed[1].key == item.key  # the same input, signed on another day
    assert remote(f"{address}/dir/a.mp4?page=2").key != item.key
    assert "hunter2" not in repr(item)
    assert Path(item.local).stat().st_mtime_ns == version_of(remote(f"{address}/dir/a.mp4?token=other")).st_mtime_ns
    handler.cuts = 10**6
    assert staged(remote(f"{address}/dir/a.mp4?token=new"), job).file == item.file  # is there: nothing is read again
    unstage(item, job)
    assert not Path(item.file).exists()


def test_a_server_that_cuts_for_ever(flaky, quick, tmp_path) -> None:
    handler, address = flaky
    handler.data, handler.cuts = os.urandom(30_000), 10**6
    with pytest.raises(SourceError, match=r"cannot be reached .*tried 5 times"):
        staged(remote(f"{address}/a.mp4?sig=hunter2"), JobFolder(tmp_path))
    assert not list((tmp_path / ".pose2seg" / "inputs").glob("*.mp4"))


def test_an_input_that_changes_while_it_is_copied(flaky, quick, tmp_path, monkeypatch) -> None:
    handler, address = flaky
    handler.data = os.urandom(30_000)

    def stop() -> bool:
        handler.etag = '"2"'
        return False

    with pytest.raises(SourceError, match="was changed while it was copied"):
        staged(remote(f"{address}/a.mp4"), JobFolder(tmp_path), stop=stop)


def test_an_interrupted_copy_is_no_failure(flaky, quick, tmp_path) -> None:
    handler, address = flaky
    handler.data = os.urandom(30_000)
    with pytest.raises(Interrupted):
        staged(remote(f"{address}/a.mp4"), JobFolder(tmp_path), stop=lambda: True)


def test_no_room_on_the_disk(flaky, quick, tmp_path, monkeypatch) -> None:
    handler, address = flaky
    handler.data = b"x" * 30_000
    monkeypatch.setattr(storage, "_ROOM_BYTES", 1 << 60)
    with pytest.raises(SinkError, match=r"are free, .* must stay: make room"):
        staged(remote(f"{address}/a.mp4"), JobFolder(tmp_path))


def test_a_redirect_to_somewhere_else_is_not_followed(flaky, quick, model_folder, tmp_path, capsys) -> None:
    _, address = flaky
    assert main(["batch", f"{address}/moved.mp4", *options(model_folder, tmp_path / "out")]) == 10
    assert "failed moved.mp4" in capsys.readouterr().err


def test_http_inputs(flaky, model_folder, tmp_path, capsys) -> None:
    handler, address = flaky
    handler.data = write_video(tmp_path / "in.mp4", 20).read_bytes()
    arguments = ["batch", f"{address}/x/a%20b.mp4?signature=hunter2", *options(model_folder, tmp_path / "out")]
    assert main(arguments) == 0
    assert len((tmp_path / "out" / "a b.mp4.jsonl").read_text().splitlines()) == 20
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    said = capsys.readouterr()
    assert not any(b"hunter2" in text for text in [*texts, said.out.encode(), said.err.encode()])


@pytest.mark.parametrize(
    "address",
    [
        "s3://Bucket/a.mp4",
        "s3:///a.mp4",
        "s3://key:secret@bucket/a.mp4",
        "s3://bucket/../other/a.mp4",
        "s3://bucket/a.mp4?x=1",
        "gs://b/a",
        "http:///a.mp4",
        "http://host:99999/a.mp4",
        "http://host/a b.mp4",
        "http://host/a\n.mp4",
        "https://" + "h" * 3000,
        "file:///etc/passwd",
        "ftp://host/a.mp4",
        "memory://a.mp4",
    ],
)
def test_hostile_addresses(address) -> None:
    with pytest.raises(SettingsError) as caught:
        check_address(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest/meta-data/x.mp4", "http://[fe80::1]/a.mp4", "http://0.0.0.0/a.mp4"]
)
def test_places_where_no_video_is(address, tmp_path) -> None:
    with pytest.raises(SourceError, match="where no video is looked for"):
        staged(remote(address), JobFolder(tmp_path))


@pytest.mark.parametrize("address", ["rtsp://cam/1", "http://host/live.m3u8", "https://host/x.mpd?token=1"])
def test_streams_are_for_live(address, tmp_path) -> None:
    with pytest.raises(SettingsError, match="for streams use pose2seg"):
        plan_inputs([address], tmp_path)


def test_what_is_not_installed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "pose2seg-live\[cloud\]"'):
        staged(remote("s3://bucket/a.mp4"), JobFolder(tmp_path))
