"""Plans that were built on this machine, kept between runs.

A plan is a graph compiled for one GPU, one driver and one library version; building one takes seconds to minutes.

    plans/
      KEY.plan     what the library made
      KEY.json     its manifest: everything that went into KEY, length and SHA-256 of the plan
      KEY.lock     held while it is being built; holds the process id

A plan is executable content. It is therefore taken from this folder only, and only where nobody but the owner can have
written it: folder and files belong to this user, others may not write them, none is a symbolic link. The manifest is
written last, so what a killed process leaves behind is no entry. An entry that does not fit - another driver, a changed
or truncated file - is a log line and a new build, never a failed run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Protocol

from engines.engine import Announce, EngineError, EngineLoadError, Progress, announce_in_log
from kernels.native.cache import CacheFolderError, cache_folder

_log = logging.getLogger(__name__)

SCHEMA: Final = "pose2seg-live/plan"
SCHEMA_VERSION: Final = 1
FOLDER_NAME: Final = "plans"
LIMIT_BYTES: Final = 4 << 30
"""What all plans together may take; the ones that were not used for longest go first."""
WAIT_LIMIT_S: Final = 900.0
"""How long to wait for another process that builds the same plan."""

_POLL_S: Final = 0.1
_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_PLAN_BYTES: Final = 8 << 30
_NAME: Final = re.compile(r"([0-9a-f]{64})\.(plan|json|lock)")
_PARTIAL: Final = re.compile(r"\.([0-9a-f]{64})\.[0-9a-f]{16}\.partial")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OWN_FOLDER: Final = "set POSE2SEG_CACHE to a folder of your own"


class PlanCacheError(EngineError):
    """Somebody else could put plans into the cache folder, so nothing is loaded from it."""


class BuiltPlan(Protocol):
    """What a builder gives."""

    @property
    def plan(self) -> bytes:
        """The plan as the library serialises it."""

    @property
    def layers(self) -> list[str]:
        """Kinds of its layers, in network order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """Everything that a plan depends on. Two equal keys mean that one plan serves both.

    Attributes:
        graph_sha256: of the graph's file.
        gpu: name of the GPU; "none" for a plan that was built without one.
        capability: compute capability of the GPU, "9.0".
        driver: version of the NVIDIA driver.
        library: engine name, "tensorrt" or "tensorrt-rtx".
        library_version: as its package says.
        precision: one of `engines.PRECISIONS`.
        max_batch, max_people, long_side: the shapes that the plan is made for, see `engines.EngineOptions`.
        converter: what read the graph, "onnx" or "torch2trt".
        builder: fingerprint of our own building code.
    """

    graph_sha256: str
    gpu: str
    capability: str
    driver: str
    library: str
    library_version: str
    precision: str
    max_batch: int
    max_people: int
    long_side: int
    converter: str
    builder: str

    @property
    def digest(self) -> str:
        """SHA-256 of the key; the name of its files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: PlanKey) -> list[str]:
        """What differs, for people: "driver was 570.86, is 580.95" where `other` is the older key."""
        return [
            f"{field.name} was {_short(getattr(other, field.name))}, is {_short(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(other, field.name) != getattr(self, field.name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPlan:
    """A plan and where it came from.

    Attributes:
        plan: as the library serialises it.
        layers: kinds of its layers, in network order.
        from_cache: whether it was found; else it was built by this call.
        stored: whether it lies in the cache now.
    """

    plan: bytes
    layers: tuple[str, ...]
    from_cache: bool
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the cache, for people.

    Attributes:
        digest: name of its files without the ending.
        key: None where the manifest cannot be read.
        graph: file name of the graph; "" without a manifest.
        size_bytes: of plan and manifest.
        created_s, used_s: Unix time of building and of the last use; 0 without a manifest.
        problem: why it cannot be used by anybody; "" when it is whole.
    """

    digest: str
    key: PlanKey | None
    graph: str
    size_bytes: int
    created_s: float
    used_s: float
    problem: str


class PlanCache:
    """The folder of plans."""

    def __init__(
        self, root: Path | None = None, *, limit_bytes: int = LIMIT_BYTES, wait_limit_s: float = WAIT_LIMIT_S
    ) -> None:
        """Nothing is touched before the first use.

        Args:
            root: cache folder in place of the user's; the plans lie in `plans/` in it.
            limit_bytes: what all plans together may take.
            wait_limit_s: how long to wait for another process that builds the same plan.
        """
        self._root = root
        self._limit_bytes = limit_bytes
        self._wait_limit_s = wait_limit_s

    def folder(self) -> Path:
        """The folder, made if need be.

        Raises:
            PlanCacheError: others could write there.
            OSError: it cannot be made.
        """
        if self._root is None:
            try:
                path = cache_folder(FOLDER_NAME)
            except CacheFolderError as error:
                if error.__cause__ is not None:  # it cannot be made; every other cause is an unsafe folder
                    raise OSError(str(error)) from error
                raise PlanCacheError(str(error)) from error
        else:
            path = self._root / FOLDER_NAME
            for made in (self._root, path):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_shared(self._root, self._root.lstat(), stat.S_ISDIR)
        _refuse_shared(path, path.lstat(), stat.S_ISDIR)
        return path

    def get_or_build(
        self,
        key: PlanKey,
        graph: str,
        build: Callable[[Progress], BuiltPlan],
        *,
        announce: Announce = announce_in_log,
        accept: Callable[[bytes], None] | None = None,
    ) -> CachedPlan:
        """The plan of a key, from the cache or built now; of several processes that ask, one builds.

        Args:
            key: what the plan depends on.
            graph: file name of the graph, for people.
            build: makes the plan and tells how far it is; may take minutes.
            announce: wraps building, and waiting for another process that builds.
            accept: tries a plan that came from the cache; where it raises `EngineLoadError` the plan is built again.

        Raises:
            PlanCacheError: others could write to the folder.
            EngineLoadError: another process has been building for too long, or building failed.
        """
        try:
            opened = _open_folder(self.folder())
        except OSError as error:
            _log.warning("%s", _cannot_keep(graph, error))
            with announce(_building_text(key, graph)) as progress:
                made = build(progress)
            return CachedPlan(plan=made.plan, layers=tuple(made.layers), from_cache=False, stored=False)
        with opened as folder:
            found = self._usable(folder, key, graph, accept, log_level=logging.DEBUG)
            if found is not None:
                return found
            with self._lock(folder, key, graph, announce):
                # again, because the process that was waited for may have built it
                found = self._usable(folder, key, graph, accept, log_level=logging.WARNING)
                if found is not None:
                    return found
                self._say_what_changed(folder, key, graph)
                _remove_partials(folder, key.digest)
                started = time.monotonic()
                with announce(_building_text(key, graph)) as progress:
                    made = build(progress)
                seconds = time.monotonic() - started
                stored = self._store(folder, key, graph, made, seconds)
        return CachedPlan(plan=made.plan, layers=tuple(made.layers), from_cache=False, stored=stored)

    def entries(self) -> list[Entry]:
        """All entries, the last used first; empty where there is no folder.

        Raises:
            PlanCacheError: others could write to the folder.
        """
        try:
            with _open_folder(self.folder()) as folder:
                found = [_entry(folder, digest) for digest in sorted(_digests(folder))]
        except OSError:
            return []
        return sorted(found, key=lambda entry: -entry.used_s)

    def remove(self, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        """Remove entries, and what killed processes left; what another process is building now stays.

        Returns:
            What was removed.

        Raises:
            PlanCacheError: others could write to the folder.
            OSError: a file cannot be removed.
        """
        removed = []
        with _open_folder(self.folder()) as folder:
            for digest in sorted(_digests(folder) | _leftovers(folder)):
                with _try_lock(folder, digest) as locked:
                    if not locked:
                        continue
                    _remove_partials(folder, digest)
                    entry = _entry(folder, digest)
                    if entry.size_bytes and unwanted(entry):
                        _remove_entry(folder, digest)
                        removed.append(entry)
                    if not _exists(folder, f"{digest}.json"):
                        _unlink(folder, f"{digest}.lock")  # whoever waits for it notices and makes a new one
        return removed

    def _usable(
        self, folder: int, key: PlanKey, graph: str, accept: Callable[[bytes], None] | None, *, log_level: int
    ) -> CachedPlan | None:
        try:
            manifest = _read_manifest(folder, key.digest)
            if manifest is None:
                return None
            differences = key.differences(manifest.key)
            if differences:
                raise _Unusable("; ".join(differences))
            plan = _read_plan(folder, key.digest, manifest)
            if accept is not None:
                accept(plan)
        except (_Unusable, EngineLoadError) as error:
            _log.log(log_level, "the cached plan of %s is not used (%s); it is built again", graph, error)
            return None
        with contextlib.suppress(OSError):  # time of last use
            os.utime(f"{key.digest}.json", dir_fd=folder, follow_symlinks=False)
        _log.debug("plan of %s from the cache: %s", graph, key.digest)
        return CachedPlan(plan=plan, layers=manifest.layers, from_cache=True, stored=True)

    @contextlib.contextmanager
    def _lock(self, folder: int, key: PlanKey, graph: str, announce: Announce) -> Iterator[None]:
        """Hold the right to build a key; wait for whoever has it."""
        with contextlib.ExitStack() as held, contextlib.ExitStack() as waiting:
            deadline = time.monotonic() + self._wait_limit_s
            said = False
            while True:
                try:
                    if held.enter_context(_try_lock(folder, key.digest)):
                        break
                except OSError as error:  # a folder that can only be read: then nobody else writes there either
                    _log.debug("plan cache: no lock (%s)", error)
                    break
                held.pop_all().close()
                owner = _lock_owner(folder, key.digest)
                if time.monotonic() >= deadline:
                    raise EngineLoadError(
                        f"{owner} has been building the plan of {graph} for more than {self._wait_limit_s:.0f} s: "
                        "wait for it or end it, then try again"
                    )
                if not said:
                    waiting.enter_context(
                        announce(
                            f"waiting for {owner}, which builds the plan of {graph}, "
                            f"for {self._wait_limit_s:.0f} s at most"
                        )
                    )
                    said = True
                time.sleep(_POLL_S)
            waiting.close()
            yield

    def _say_what_changed(self, folder: int, key: PlanKey, graph: str) -> None:
        """Tell why a graph whose plan was there yesterday is compiled again."""
        same_graph = []
        for digest in _digests(folder):
            entry = _entry(folder, digest, with_hash=False)
            if entry.key is None or entry.problem:
                continue
            if (entry.key.graph_sha256, entry.key.library) == (key.graph_sha256, key.library):
                same_graph.append((len(key.differences(entry.key)), -entry.used_s, entry.key))
        if same_graph:
            nearest = min(same_graph, key=lambda item: item[:2])[2]
            _log.info("the cached plan of %s does not fit: %s", graph, "; ".join(key.differences(nearest)))

    def _store(self, folder: int, key: PlanKey, graph: str, made: BuiltPlan, seconds: float) -> bool:
        manifest = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "key": asdict(key),
            "graph": graph,
            "bytes": len(made.plan),
            "sha256": hashlib.sha256(made.plan).hexdigest(),
            "layers": list(made.layers),
            "created_s": time.time(),
            "build_s": round(seconds, 3),
        }
        text = json.dumps(manifest, indent=1) + "\n"
        try:
            _unlink(folder, f"{key.digest}.json")  # no manifest, no entry: never an old manifest beside a new plan
            _write(folder, key.digest, "plan", made.plan)
            _write(folder, key.digest, "json", text.encode())
        except OSError as error:
            _log.warning("%s", _cannot_keep(graph, error))
            with contextlib.suppress(OSError):
                _remove_entry(folder, key.digest)
            return False
        self._evict(folder, keep=key.digest)
        return True

    def _evict(self, folder: int, keep: str) -> None:
        """Keep the last used plans within the limit; the newest stays whatever its size."""
        entries = sorted(
            (_entry(folder, digest, with_hash=False) for digest in _digests(folder)),
            key=lambda entry: (entry.digest != keep, -entry.used_s),
        )
        total = 0
        for entry in entries:
            total += entry.size_bytes
            if total <= self._limit_bytes or entry.digest == keep:
                continue
            with contextlib.suppress(OSError), _try_lock(folder, entry.digest) as locked:
                if locked:
                    _log.info("plan cache: %s of %s goes to make room", entry.digest[:12], entry.graph or "a plan")
                    _remove_entry(folder, entry.digest)


class _Unusable(Exception):
    """Why one entry cannot be used, in a few words."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    key: PlanKey
    graph: str
    size_bytes: int
    sha256: str
    layers: tuple[str, ...]
    created_s: float


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if _SHA256.fullmatch(text) else text


def _building_text(key: PlanKey, graph: str) -> str:
    where = f" for {key.gpu}" if key.gpu != "none" else ""
    return f"building the {key.library} plan of {graph}{where} ({key.precision}), once"


def _cannot_keep(graph: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    todo = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else _OWN_FOLDER
    return (
        f"the plan of {graph} cannot be kept ({reason}): this run goes on with it in memory and the next one builds "
        f"it again; {todo}"
    )


def _refuse_shared(path: Path | str, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise PlanCacheError unless the thing is ours alone to write."""
    if not is_kind(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "something else"
        raise PlanCacheError(f"{path}: expected a folder of the plan cache, found {kind}: remove it, or {_OWN_FOLDER}")
    if found.st_uid != os.geteuid():
        raise PlanCacheError(
            f"{path} belongs to user {found.st_uid}, this process is user {os.geteuid()}: plans there are not "
            f"trusted; {_OWN_FOLDER}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PlanCacheError(
            f"{path} may be written by others (mode {stat.S_IMODE(found.st_mode):04o}), so plans there are not "
            f"trusted: chmod go-w {path}, or {_OWN_FOLDER}"
        )


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """A handle of the folder, checked again through the handle: whatever is renamed meanwhile, this one is ours."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_shared(path, os.fstat(handle), stat.S_ISDIR)
        yield handle
    finally:
        os.close(handle)


def _read_own(folder: int, name: str, max_bytes: int) -> bytes | None:
    """A file of ours, whole; None where there is none.

    Raises:
        _Unusable: others could have written it, it is a link, or it is too long.
    """
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        what = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise _Unusable(f"{name}: {what}") from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _Unusable(f"{name} is no plain file")
        if found.st_uid != os.geteuid():
            raise _Unusable(f"{name} belongs to user {found.st_uid}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _Unusable(f"{name} may be written by others")
        if found.st_size > max_bytes:
            raise _Unusable(f"{name} has {found.st_size} bytes")
        try:
            return file.read(max_bytes + 1)
        except OSError as error:
            raise _Unusable(f"{name} cannot be read ({error.strerror})") from error


def _read_manifest(folder: int, digest: str) -> _Manifest | None:
    content = _read_own(folder, f"{digest}.json", _MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        document = json.loads(content.decode("utf-8"))
        if (document["schema"], document["version"]) != (SCHEMA, SCHEMA_VERSION):
            raise _Unusable(f"its manifest is {document['schema']} {document['version']}")
        key = document["key"]
        types = {field.name: int if field.type == "int" else str for field in fields(PlanKey)}
        if set(key) != set(types) or not all(type(key[name]) is kind for name, kind in types.items()):
            raise _Unusable("its manifest has other fields")
        made = _Manifest(
            key=PlanKey(**key),
            graph=str(document["graph"])[:200],
            size_bytes=int(document["bytes"]),
            sha256=str(document["sha256"]),
            layers=tuple(str(layer) for layer in document["layers"]),
            created_s=float(document["created_s"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise _Unusable("its manifest is damaged") from error
    return made


def _read_plan(folder: int, digest: str, manifest: _Manifest) -> bytes:
    plan = _read_own(folder, f"{digest}.plan", _MAX_PLAN_BYTES)
    if plan is None:
        raise _Unusable("its plan is missing")
    if len(plan) != manifest.size_bytes:
        raise _Unusable(f"it has {len(plan)} bytes, {manifest.size_bytes} were written")
    if hashlib.sha256(plan).hexdigest() != manifest.sha256:
        raise _Unusable("its SHA-256 is not that of its manifest")
    return plan


def _entry(folder: int, digest: str, *, with_hash: bool = True) -> Entry:
    size = sum(_size(folder, f"{digest}.{kind}") for kind in ("plan", "json"))
    used = _modified(folder, f"{digest}.json")
    problem, manifest = "", None
    try:
        manifest = _read_manifest(folder, digest)
        if manifest is None:
            raise _Unusable("it has no manifest")
        if manifest.key.digest != digest:
            raise _Unusable("its manifest is that of another plan")
        if with_hash:
            _read_plan(folder, digest, manifest)
    except _Unusable as error:
        problem = str(error)
    return Entry(
        digest=digest,
        key=manifest.key if manifest is not None else None,
        graph=manifest.graph if manifest is not None else "",
        size_bytes=size,
        created_s=manifest.created_s if manifest is not None else 0.0,
        used_s=used,
        problem=problem,
    )


def _digests(folder: int) -> set[str]:
    """Everything that has a plan or a manifest."""
    found = (_NAME.fullmatch(name) for name in os.listdir(folder))
    return {match[1] for match in found if match is not None and match[2] != "lock"}


def _leftovers(folder: int) -> set[str]:
    """Keys that have a lock or a half-written file."""
    names = os.listdir(folder)
    locks = (match[1] for match in map(_NAME.fullmatch, names) if match is not None)
    return {*locks, *(match[1] for match in map(_PARTIAL.fullmatch, names) if match is not None)}


def _write(folder: int, digest: str, kind: str, content: bytes) -> None:
    """Write one file whole or not at all, readable and writable by its owner alone, on the disk when this returns."""
    partial = f".{digest}.{secrets.token_hex(8)}.partial"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(partial, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(partial, f"{digest}.{kind}", src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            _unlink(folder, partial)
        raise
    with contextlib.suppress(OSError):  # not every file system has it for folders
        os.fsync(folder)


@contextlib.contextmanager
def _try_lock(folder: int, digest: str) -> Iterator[bool]:
    """Take the lock of a key without waiting; it ends with the process that holds it, however that ends."""
    name = f"{digest}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:  # some network file systems have no locks: then two processes may build twice
            _log.debug("plan cache: no lock (%s)", error)
        try:
            current = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
        except FileNotFoundError:
            current = -1
        if current != os.fstat(handle).st_ino:  # removed between opening and locking
            yield False
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield True
    finally:
        os.close(handle)


def _lock_owner(folder: int, digest: str) -> str:
    try:
        content = _read_own(folder, f"{digest}.lock", 64)
    except _Unusable:
        content = None
    return f"process {int(content)}" if content and content.isdigit() else "another process"


def _remove_partials(folder: int, digest: str) -> None:
    """Remove what a killed process left; call it with the lock of the key."""
    for name in os.listdir(folder):
        found = _PARTIAL.fullmatch(name)
        if found is not None and found[1] == digest:
            _unlink(folder, name)


def _remove_entry(folder: int, digest: str) -> None:
    _unlink(folder, f"{digest}.json")  # first: a plan alone is no entry
    _unlink(folder, f"{digest}.plan")


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _size(folder: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except OSError:
        return 0


def _modified(folder: int, name: str) -> float:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
