"""Fetching against a real server: every way to be interrupted, refused and lied to."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.file_server import Behaviour, serving
from training import fetch as module
from training.fetch import Checksum, FetchError, digest_of, fetch, shown_url

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).integers(0, 256, 600_000, np.uint8).tobytes()
QUICK = {"timeout_s": 20.0, "pause_s": 0.01}


def sha1(content: bytes) -> Checksum:
    return Checksum(algorithm="sha1", digest=hashlib.sha1(content).hexdigest(), source="the test")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_again(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT)
    told: list[tuple[int, int | None]] = []
    with serving(behaviour) as url:
        target = fetch(
            url, tmp_path / "a" / "file.zip", checksum=sha1(CONTENT), progress=lambda *t: told.append(t), **QUICK
        )
        fetch(url, target, checksum=sha1(CONTENT), **QUICK)
    assert target.read_bytes() == CONTENT and leftovers(target.parent) == ["file.zip"]
    assert len(behaviour.requests) == 1 and behaviour.requests[0]["range"] is None
    assert told[-1] == (len(CONTENT), len(CONTENT)) and told == sorted(told)


def test_a_cut_connection_goes_on_where_it_was(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, cut_after=170_000)
    with serving(behaviour) as url:
        target = fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
    assert target.read_bytes() == CONTENT and leftovers(tmp_path) == ["file.zip"]
    starts = [request["range"] for request in behaviour.requests]
    assert starts == [None, "bytes=170000-", "bytes=340000-", "bytes=510000-"]
    assert all(request["if_range"] for request in behaviour.requests[1:])


def test_the_next_call_goes_on_after_an_interruption(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, cut_after=200_000)

    def interrupt(there: int, _total: int | None) -> None:
        if there >= 150_000:
            raise KeyboardInterrupt

    with serving(behaviour) as url:
        with pytest.raises(KeyboardInterrupt):
            fetch(url, tmp_path / "file.zip", progress=interrupt, **QUICK)
        assert leftovers(tmp_path) == ["file.zip.part", "file.zip.part.json"]
        behaviour.cut_after = None
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
    assert behaviour.requests[-1]["range"].startswith("bytes=") and len(behaviour.requests) == 2
    assert leftovers(tmp_path) == ["file.zip"]


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": False}])
def test_a_server_without_ranges_or_versions_sends_all_of_it_again(change: dict[str, Any], tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, cut_after=250_000, **change)
    with serving(behaviour) as url:
        with pytest.raises(FetchError, match=r"3 attempts in a row brought nothing.*What came stays; start again"):
            fetch(url, tmp_path / "file.zip", attempts=3, **QUICK)
        behaviour.cut_after = None
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and leftovers(tmp_path) == ["file.zip"]


def test_another_version_of_the_file_is_not_glued_to_the_old_one(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, cut_after=250_000)
    other = CONTENT[::-1]
    with serving(behaviour) as url:

        def swap(there: int, _total: int | None) -> None:
            if there == 250_000:
                behaviour.content, behaviour.cut_after = other, None

        fetch(url, tmp_path / "file.zip", progress=swap, **QUICK)
    assert (tmp_path / "file.zip").read_bytes() == other


def test_bytes_of_unknown_origin_are_not_built_upon(tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"something else")
    (tmp_path / "file.zip.part.json").write_text("{broken")
    behaviour = Behaviour(content=CONTENT)
    with serving(behaviour) as url:
        fetch(url, tmp_path / "file.zip", **QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and behaviour.requests[0]["range"] is None


def test_a_part_that_is_complete_is_taken_and_one_that_is_too_long_is_not(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT)
    tag = f'"{hashlib.sha256(CONTENT).hexdigest()[:16]}"'
    for more in (b"", b"more"):
        with serving(behaviour) as url:
            (tmp_path / "file.zip.part").write_bytes(CONTENT + more)
            note = {"url": url, "version": tag, "total": len(CONTENT)}
            (tmp_path / "file.zip.part.json").write_text(json.dumps(note))
            fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
        assert (tmp_path / "file.zip").read_bytes() == CONTENT and leftovers(tmp_path) == ["file.zip"]
        (tmp_path / "file.zip").unlink()


def test_a_wrong_checksum_throws_the_bytes_away_and_names_both(tmp_path: Path) -> None:
    expected = sha1(b"other")
    with serving(Behaviour(content=CONTENT)) as url:
        with pytest.raises(
            FetchError, match=rf"sha1 is {sha1(CONTENT).digest}, expected {expected.digest} \(the test\)"
        ):
            fetch(url, tmp_path / "file.zip", checksum=expected, **QUICK)
        assert leftovers(tmp_path) == []
        (tmp_path / "file.zip").write_bytes(b"mine")
        with pytest.raises(FetchError, match=r"file\.zip is there, but its sha1 is"):
            fetch(url, tmp_path / "file.zip", checksum=expected, **QUICK)
    assert (tmp_path / "file.zip").read_bytes() == b"mine"


def test_a_redirect_is_followed_but_no_loop_and_no_other_protocol(tmp_path: Path) -> None:
    behaviour, elsewhere = Behaviour(), Behaviour(content=CONTENT)
    with serving(behaviour) as url, serving(elsewhere) as place:
        behaviour.redirect = place
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
        behaviour.redirect = url
        with pytest.raises(FetchError, match=r"the server answers 302.*infinite loop"):
            fetch(url, tmp_path / "loop.zip", **QUICK)
        assert len(behaviour.requests) < 20
        secret = tmp_path / "secret"
        secret.write_text("secret")
        for target in (secret.as_uri(), "ftp://127.0.0.1/x"):
            behaviour.redirect = target
            with pytest.raises(FetchError, match=r"which is not followed|is not allowed"):
                fetch(url, tmp_path / "file2.zip", **QUICK)
    assert leftovers(tmp_path) == ["file.zip", "secret"]


def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, statuses=[503, 429, 500])
    with serving(behaviour) as url:
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
        assert len(behaviour.requests) == 4
        behaviour.statuses = [404]
        with pytest.raises(FetchError, match=r"file\.zip: the server answers 404"):
            fetch(url, tmp_path / "other.zip", **QUICK)
        assert len(behaviour.requests) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wrong_start": True}, "asked for bytes from 100000, the server sends 'bytes 100001-"),
        ({"says_length": "many"}, "the server says a length of 'many'"),
    ],
)
def test_an_answer_that_makes_no_sense_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT, cut_after=100_000, **change)
    with serving(behaviour) as url, pytest.raises(FetchError, match=said):
        fetch(url, tmp_path / "file.zip", **QUICK)


def test_a_silent_server_and_no_server_do_not_hang(tmp_path: Path) -> None:
    silent = threading.Event()
    with serving(Behaviour(silent=silent)) as url:
        with pytest.raises(FetchError, match=r"2 attempts in a row brought nothing, the last one: .*timed out"):
            fetch(url, tmp_path / "file.zip", attempts=2, timeout_s=0.3, pause_s=0.01)
        silent.set()
    with pytest.raises(FetchError, match=r"2 attempts in a row brought nothing, the last one: .*refused"):
        fetch(url, tmp_path / "file.zip", attempts=2, **QUICK)


def test_a_file_of_unknown_length_arrives(tmp_path: Path) -> None:
    with serving(Behaviour(content=CONTENT, length=False)) as url:
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=module.SPARE_BYTES + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    said = r"file\.zip needs 0\.00 GB on the disk of .* are free: make room"
    with serving(Behaviour(content=CONTENT)) as url, pytest.raises(FetchError, match=said):
        fetch(url, tmp_path / "file.zip", **QUICK)
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_came(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses the write in the middle."""
    code = (
        "import resource, sys, pathlib; from training.fetch import fetch, FetchError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n    fetch(sys.argv[1], pathlib.Path(sys.argv[2]), pause_s=0.01)\n"
        "except FetchError as error:\n    print(error); sys.exit(7)\n"
    )
    behaviour = Behaviour(content=CONTENT)
    with serving(behaviour) as url:
        command = [sys.executable, "-c", code, url, str(tmp_path / "file.zip")]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 7, done.stderr
        assert "the disk is full" in done.stdout and "What came stays; make room and start again" in done.stdout
        assert 0 < (tmp_path / "file.zip.part").stat().st_size <= 300_000
        fetch(url, tmp_path / "file.zip", checksum=sha1(CONTENT), **QUICK)
    assert behaviour.requests[-1]["range"] is not None
    assert leftovers(tmp_path) == ["file.zip"]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "no address", "http://user:secret@host/x", "http:///x", "http://[x"]
)
def test_other_addresses_are_refused_without_showing_secrets(url: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="expected an http or https address without a user name") as caught:
        fetch(url, tmp_path / "x")
    assert "secret" not in str(caught.value)
    assert shown_url("https://user:secret@host:8/a?token=secret#secret") == "https://host:8/a"


@given(st.binary(max_size=3000), st.lists(st.integers(0, 1500), max_size=6))
@settings(max_examples=25)
def test_cut_anywhere_the_same_bytes_arrive(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    """However often the connection ends early, with or without bytes, the file is whole in the end."""
    folder = tmp_path_factory.mktemp("cut")
    left = list(cuts)

    class Cuts(Behaviour):
        @property
        def cut_after(self) -> int | None:  # type: ignore[override]
            return left.pop() if left else None

        @cut_after.setter
        def cut_after(self, _value: int | None) -> None:
            pass

    behaviour = Cuts(content=content)
    with serving(behaviour) as url:
        target = fetch(url, folder / "file", attempts=9, **QUICK)
    assert target.read_bytes() == content and digest_of(target, "sha256") == hashlib.sha256(content).hexdigest()
