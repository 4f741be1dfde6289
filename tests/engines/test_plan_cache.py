"""The plan cache with real files and processes: one build for many askers, nothing foreign is ever loaded, no crash."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest

from engines.engine import EngineLoadError, Progress
from engines.plan_cache import CachedPlan, PlanCache, PlanCacheError, PlanKey

ROOT = Path(__file__).resolve().parents[2]
KEY = PlanKey(
    graph_sha256="ab" * 32,
    gpu="NVIDIA Test 9000",
    capability="9.0",
    driver="580.95.05",
    library="tensorrt",
    library_version="11.4.0",
    precision="auto",
    max_batch=8,
    max_people=32,
    long_side=512,
    converter="onnx",
    builder="0123456789ab",
)
PLAN = bytes(range(256)) * 40


@dataclass
class Built:
    plan: bytes = PLAN
    layers: list[str] = field(default_factory=lambda: ["CONVOLUTION", "PLUGIN_V3"])


class Builder:
    """Makes a plan at once and counts."""

    def __init__(self, plan: bytes = PLAN) -> None:
        self.calls = 0
        self._plan = plan

    def __call__(self, progress: Progress) -> Built:
        self.calls += 1
        progress(0.5, "half")
        return Built(self._plan)


def ask(root: Path, builder: Builder | None = None, key: PlanKey = KEY, **options) -> CachedPlan:
    return PlanCache(root).get_or_build(key, "keypoints.onnx", builder or Builder(), **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(root: Path, ending: str) -> list[Path]:
    return sorted(path for path in (root / "plans").iterdir() if path.name.endswith(ending))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_built_once_then_found(root: Path) -> None:
    builder = Builder()
    first = ask(root, builder)
    second = ask(root, builder)
    assert builder.calls == 1
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.plan == second.plan == PLAN
    assert first.layers == second.layers == ("CONVOLUTION", "PLUGIN_V3")
    assert first.stored
    assert second.stored


def test_folder_and_files_belong_to_the_owner_alone(root: Path) -> None:
    before = os.umask(0)
    try:
        ask(root)
    finally:
        os.umask(before)
    assert mode(root) == mode(root / "plans") == 0o700
    assert {mode(path) for path in (root / "plans").iterdir()} == {0o600}
    assert len(list((root / "plans").iterdir())) == 3  # plan, manifest, lock


@pytest.mark.parametrize("name", [option.name for option in fields(PlanKey)])
def test_every_part_of_the_key_counts(root: Path, name: str) -> None:
    old = getattr(KEY, name)
    other = replace(KEY, **{name: old + 1 if isinstance(old, int) else old + "x"})
    builder = Builder()
    ask(root, builder)
    ask(root, builder, other)
    assert builder.calls == 2
    (difference,) = other.differences(KEY)
    assert difference.startswith(f"{name} was ")


def test_another_driver_is_a_new_build_that_says_why(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    ask(root, key=replace(KEY, driver="570.86.10", gpu="other"))
    ask(root, key=replace(KEY, driver="570.86.10"))
    with caplog.at_level(logging.INFO):
        assert not ask(root).from_cache
    assert "the cached plan of keypoints.onnx does not fit: driver was 570.86.10, is 580.95.05" in caplog.messages


def edit_manifest(root: Path, **changes) -> None:
    (path,) = files(root, ".json")
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def flip_byte(root: Path) -> None:
    (path,) = files(root, ".plan")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def swap_plans(root: Path) -> None:
    """Another valid plan of ours under this key's name."""
    (mine,) = files(root, ".plan")
    ask(root, Builder(b"another plan" * 900), replace(KEY, precision="float16"))
    (other,) = (path for path in files(root, ".plan") if path != mine)
    mine.write_bytes(other.read_bytes())


def swap_entries(root: Path) -> None:
    """Another valid entry of ours, plan and manifest, under this key's name."""
    (mine,) = files(root, ".plan")
    ask(root, Builder(b"another plan" * 900), replace(KEY, precision="float16"))
    (other,) = (path for path in files(root, ".plan") if path != mine)
    mine.write_bytes(other.read_bytes())
    mine.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())


def as_link(root: Path, ending: str) -> None:
    (path,) = files(root, ending)
    elsewhere = root.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_pipe(root: Path) -> None:
    (path,) = files(root, ".plan")
    path.unlink()
    os.mkfifo(path, 0o600)


def rewritten_key(root: Path, **changes) -> None:
    (path,) = files(root, ".json")
    edit_manifest(root, key={**json.loads(path.read_text())["key"], **changes})


DAMAGE = {
    "truncated": (lambda root: os.truncate(files(root, ".plan")[0], 1000), "it has 1000 bytes, 10240 were written"),
    "empty": (lambda root: os.truncate(files(root, ".plan")[0], 0), "it has 0 bytes"),
    "longer": (lambda root: os.truncate(files(root, ".plan")[0], 20000), "it has 20000 bytes"),
    "changed": (flip_byte, "SHA-256 is not that of its manifest"),
    "swapped": (swap_plans, "it has 10800 bytes"),
    "swapped with manifest": (swap_entries, "precision was float16, is auto"),
    "gone": (lambda root: files(root, ".plan")[0].unlink(), "its plan is missing"),
    "plan is a link": (lambda root: as_link(root, ".plan"), "a symbolic link"),
    "manifest is a link": (lambda root: as_link(root, ".json"), "a symbolic link"),
    "plan for everybody": (lambda root: files(root, ".plan")[0].chmod(0o666), "may be written by others"),
    "manifest for the group": (lambda root: files(root, ".json")[0].chmod(0o620), "may be written by others"),
    "plan is a pipe": (as_pipe, "is no plain file"),
    "no manifest": (lambda root: files(root, ".json")[0].write_bytes(b""), "its manifest is damaged"),
    "binary manifest": (lambda root: files(root, ".json")[0].write_bytes(b"\xff\xfe\x00"), "its manifest is damaged"),
    "deep manifest": (lambda root: files(root, ".json")[0].write_text("[" * 9999), "its manifest is damaged"),
    "huge manifest": (lambda root: os.truncate(files(root, ".json")[0], 2 << 20), "has 2097152 bytes"),
    "list as manifest": (lambda root: files(root, ".json")[0].write_text("[]"), "its manifest is damaged"),
    "newer manifest": (lambda root: edit_manifest(root, version=2), "its manifest is pose2seg-live/plan 2"),
    "no hash": (lambda root: edit_manifest(root, sha256=None), "SHA-256 is not that"),
    "endless length": (lambda root: edit_manifest(root, bytes=float("inf")), "its manifest is damaged"),
    "other driver": (lambda root: rewritten_key(root, driver="1.0"), "driver was 1.0, is 580.95.05"),
    "key of other types": (lambda root: rewritten_key(root, max_batch="8"), "its manifest has other fields"),
    "key of other fields": (lambda root: rewritten_key(root, more=1), "its manifest has other fields"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_is_built_again(root: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    damage, reason = DAMAGE[name]
    ask(root)
    damage(root)
    caplog.clear()
    builder = Builder()
    again = ask(root, builder)
    assert builder.calls == 1
    assert again.plan == PLAN
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reason in warning
    assert "keypoints.onnx" in warning
    assert "built again" in warning
    assert ask(root, builder).from_cache  # and it is whole now
    assert builder.calls == 1


def test_a_link_is_replaced_and_what_it_led_to_is_left_alone(root: Path) -> None:
    ask(root)
    as_link(root, ".plan")
    target = root.parent / "elsewhere"
    target.write_bytes(b"somebody's file")
    ask(root)
    assert target.read_bytes() == b"somebody's file"
    assert not files(root, ".plan")[0].is_symlink()


def test_a_plan_that_the_library_refuses_is_built_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    ask(root, Builder(b"old"))

    def accept(plan: bytes) -> None:
        if plan == b"old":
            raise EngineLoadError("made by another version")

    builder = Builder(b"new")
    assert ask(root, builder, accept=accept).plan == b"new"
    assert "made by another version" in caplog.text
    assert ask(root, builder, accept=accept).from_cache
    assert builder.calls == 1


@pytest.mark.parametrize("which", [".", "plans"])
@pytest.mark.parametrize("rights", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_is_refused(root: Path, which: str, rights: int) -> None:
    ask(root)
    (root / which).chmod(rights)
    builder = Builder()
    with pytest.raises(PlanCacheError, match=r"may be written by others .*chmod go-w"):
        ask(root, builder)
    with pytest.raises(PlanCacheError):
        PlanCache(root).entries()
    with pytest.raises(PlanCacheError):
        PlanCache(root).remove(lambda _entry: True)
    assert builder.calls == 0


def test_a_folder_that_others_may_read_is_fine(root: Path) -> None:
    ask(root)
    (root / "plans").chmod(0o755)
    assert ask(root).from_cache


@pytest.mark.parametrize("which", ["cache", "cache/plans"])
def test_a_linked_folder_is_refused(tmp_path: Path, which: str) -> None:
    ask(tmp_path / "cache")
    (tmp_path / which).rename(tmp_path / "moved")
    (tmp_path / which).symlink_to(tmp_path / "moved")
    with pytest.raises(PlanCacheError, match="found a symbolic link"):
        ask(tmp_path / "cache")


def test_a_folder_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(root)
    owner = os.geteuid()
    monkeypatch.setattr(
        os, "geteuid", lambda: owner + 1
    )  # giving files away takes root; being another user is the same
    with pytest.raises(PlanCacheError, match=f"belongs to user {owner}, this process is user {owner + 1}"):
        ask(root)


def test_files_of_another_user_are_built_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask(root)
    owner = os.geteuid()
    answers = iter([owner] * 3)  # for the two folders, and the folder's handle; then come the files
    monkeypatch.setattr(os, "geteuid", lambda: next(answers, owner + 1))
    builder = Builder()
    assert not ask(root, builder).from_cache
    assert builder.calls == 1
    assert f"json belongs to user {owner}" in caplog.text


def test_the_users_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "chosen"))
    ask(None)  # type: ignore[arg-type]
    assert len(files(tmp_path / "chosen", ".plan")) == 1
    (tmp_path / "chosen").chmod(0o777)
    with pytest.raises(PlanCacheError, match="may be written by others"):
        ask(None)  # type: ignore[arg-type]


def test_without_a_folder_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A home that does not exist, a file where the folder should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "file" / "below"))
    for root in (None, tmp_path / "file"):
        caplog.clear()
        made = ask(root)
        assert made.plan == PLAN
        assert not made.stored
        assert "goes on with it in memory" in caplog.text
        assert "set POSE2SEG_CACHE" in caplog.text
        assert PlanCache(root).entries() == []


def test_a_full_disk_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # any longer file: OSError, as on a full disk
    try:
        made = ask(root, Builder(bytes(2 << 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(made.plan) == 2 << 20
    assert not made.stored
    assert "cannot be kept (File too large)" in caplog.text
    assert "free some space" in caplog.text
    assert [path.suffix for path in (root / "plans").iterdir()] == [".lock"]  # nothing half-written stays
    assert not ask(root).from_cache
    assert ask(root).from_cache


def test_a_read_only_folder_still_serves(root: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """As on a read-only file system: nothing can be opened for writing, not even a lock."""
    ask(root)
    real = os.open

    def read_only(path, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert ask(root).from_cache
    made = ask(root, key=replace(KEY, precision="float16"))
    assert (made.plan, made.stored) == (PLAN, False)
    assert "cannot be kept (Read-only file system)" in caplog.text


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_that_is_none_does_not_stop_a_run(root: Path, kind: str) -> None:
    ask(root, key=replace(KEY, precision="float16"))
    lock = root / "plans" / f"{KEY.digest}.lock"
    if kind == "link":
        lock.symlink_to(root / "elsewhere")
    else:
        lock.mkdir()
    assert ask(root).stored
    assert not (root / "elsewhere").exists()


# ------------------------------------------------------------------------------------------------- several processes

CHILD = """
import os, sys, time
from dataclasses import dataclass, field
from pathlib import Path
sys.path.insert(0, {root!r})
from engines.plan_cache import PlanCache, PlanKey
key = PlanKey(**{key!r})
@dataclass
class Built:
    plan: bytes
    layers: list = field(default_factory=list)
def build(_progress):
    Path({log!r}, str(os.getpid())).write_text("")
    print("building", flush=True)
    {body}
    return Built(b"p" * {size})
made = PlanCache(Path({cache!r})).get_or_build(key, "keypoints.onnx", build)
print("done", made.from_cache, len(made.plan), flush=True)
"""


def start(cache: Path, *, body: str = "pass", size: int = 1000) -> subprocess.Popen[str]:
    log = cache.parent / "builds"
    log.mkdir(exist_ok=True)
    key = {option.name: getattr(KEY, option.name) for option in fields(PlanKey)}
    code = textwrap.dedent(CHILD).format(root=str(ROOT), key=key, log=str(log), body=body, size=size, cache=str(cache))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_one_builds(root: Path) -> None:
    children = [start(root, body="time.sleep(1.5)") for _ in range(3)]
    answers = []
    for child in children:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        answers.append(out.splitlines()[-1])
    assert sorted(answers) == ["done False 1000", "done True 1000", "done True 1000"]
    assert len(list((root.parent / "builds").iterdir())) == 1


def test_waiting_is_announced_and_has_an_end(root: Path) -> None:
    child = start(root, body="time.sleep(120)")
    announced: list[str] = []

    @contextmanager
    def announce(text: str) -> Iterator[Progress]:
        announced.append(text)
        yield lambda _share, _phase: None

    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "building\n"
        cache = PlanCache(root, wait_limit_s=0.3)
        with pytest.raises(EngineLoadError, match=f"process {child.pid} has been building the plan of keypoints.onnx"):
            cache.get_or_build(KEY, "keypoints.onnx", Builder(), announce=announce)
    finally:
        child.kill()
        child.communicate()
    assert len(announced) == 1
    assert f"waiting for process {child.pid}, which builds" in announced[0]
    assert not ask(root).from_cache  # the lock ended with the process


def test_a_killed_builder_leaves_a_usable_cache(root: Path) -> None:
    """Killed while the plan is being written, at many different moments."""
    size = 40_000_000
    seen_partial = False
    for attempt in range(4):
        child = start(root, size=size)
        assert child.stdout is not None
        assert child.stdout.readline() == "building\n"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(
            path.name.endswith((".partial", ".json")) for path in (root / "plans").iterdir()
        ):
            time.sleep(0.0005)
        time.sleep(0.003 * attempt)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        seen_partial |= bool(files(root, ".partial"))
        made = ask(root, Builder(b"p" * size))  # either whole or built again, never half
        assert len(made.plan) == size
        assert files(root, ".partial") == [] or made.from_cache
        PlanCache(root).remove(lambda _entry: True)
    assert seen_partial
    assert list((root / "plans").iterdir()) == []


# ------------------------------------------------------------------------------------------------ limit, list, remove


def key_number(number: int) -> PlanKey:
    return replace(KEY, graph_sha256=f"{number:064x}")


def test_the_last_used_stay_within_the_limit(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PlanCache(root, limit_bytes=4 * len(PLAN))
    for number in range(3):
        cache.get_or_build(key_number(number), f"{number}.onnx", Builder())
        os.utime(root / "plans" / f"{key_number(number).digest}.json", (1000 + number, 1000 + number))
    assert cache.get_or_build(key_number(0), "0.onnx", Builder()).from_cache  # now the last used one
    with caplog.at_level(logging.INFO):
        cache.get_or_build(key_number(3), "3.onnx", Builder())
    kept = [entry.graph for entry in cache.entries()]
    assert kept == ["3.onnx", "0.onnx", "2.onnx"]
    assert "of 1.onnx goes to make room" in caplog.text


def test_a_plan_above_the_limit_is_kept_alone(root: Path) -> None:
    cache = PlanCache(root, limit_bytes=10)
    cache.get_or_build(key_number(0), "0.onnx", Builder())
    cache.get_or_build(key_number(1), "1.onnx", Builder())
    assert [entry.graph for entry in cache.entries()] == ["1.onnx"]


def test_entries_tell_what_is_whole(root: Path) -> None:
    cache = PlanCache(root)
    assert cache.entries() == []
    for number in range(3):
        cache.get_or_build(key_number(number), f"{number}.onnx", Builder())
    os.truncate(root / "plans" / f"{key_number(1).digest}.plan", 5)
    (root / "plans" / f"{key_number(2).digest}.json").unlink()
    (root / "plans" / "notes.txt").write_text("not ours")
    problems = {entry.digest: entry.problem for entry in cache.entries()}
    assert problems == {
        key_number(0).digest: "",
        key_number(1).digest: "it has 5 bytes, 10240 were written",
        key_number(2).digest: "it has no manifest",
    }
    (whole,) = (entry for entry in cache.entries() if not entry.problem)
    assert whole.key == key_number(0)
    assert whole.graph == "0.onnx"
    assert len(PLAN) < whole.size_bytes < len(PLAN) + 2000
    assert abs(whole.created_s - time.time()) < 60
    assert abs(whole.used_s - time.time()) < 60


def test_remove_takes_what_it_is_told_and_leftovers(root: Path) -> None:
    cache = PlanCache(root)
    for number in range(3):
        cache.get_or_build(key_number(number), f"{number}.onnx", Builder())
    partial = root / "plans" / f".{key_number(9).digest}.0123456789abcdef.partial"
    partial.write_bytes(b"half")
    (root / "plans" / "notes.txt").write_text("not ours")
    removed = cache.remove(lambda entry: entry.graph != "1.onnx")
    assert {entry.graph for entry in removed} == {"0.onnx", "2.onnx"}
    names = {path.name for path in (root / "plans").iterdir()}
    assert names == {"notes.txt", *(f"{key_number(1).digest}.{kind}" for kind in ("plan", "json", "lock"))}
    assert cache.get_or_build(key_number(1), "1.onnx", Builder()).from_cache


def test_remove_leaves_what_is_being_built(root: Path) -> None:
    child = start(root, body="time.sleep(120)")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "building\n"
        (root / "plans" / f".{KEY.digest}.0123456789abcdef.partial").write_bytes(b"half")
        assert PlanCache(root).remove(lambda _entry: True) == []
        assert len(list((root / "plans").iterdir())) == 2
    finally:
        child.kill()
        child.communicate()
