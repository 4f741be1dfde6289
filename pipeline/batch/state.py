"""What a batch remembers: one folder per job, one state file per input, always whole on the disk.

    OUT/.pose2seg/job.json             what decides results; another set of options is refused
    OUT/.pose2seg/lock                 held by the running batch
    OUT/.pose2seg/files/KEY/state.json how far one input is, see `FileState`
    OUT/.pose2seg/files/KEY/N.*        outputs of segment N, until the input is done
    OUT/.pose2seg/inputs/KEY.*         an input that is not on a disk, while it is worked on

A file that is replaced is written beside, brought to the disk, and renamed; then its folder is brought to the disk. So
after a power cut there is the old or the new one. A state never names a part that is not on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pipeline.batch.plan import STATE_FOLDER, BatchInput
from pipeline.errors import SettingsError, SinkError
from pipeline.stage6_sinks import sink_error, write_whole

VERSION: Final = 1
Status = Literal["running", "publishing", "done", "failed"]
_LOCK_WAIT_S: Final = 30.0  # for a worker of a killed batch to notice that it is alone


class SizeAndTime(Protocol):
    """What of `os.stat_result` tells one content of a file from another."""

    @property
    def st_size(self) -> int: ...

    @property
    def st_mtime_ns(self) -> int: ...


@dataclass(slots=True, kw_only=True)
class Segment:
    """One finished segment.

    Attributes:
        frames: how many.
        people: people of all frames added up.
        seconds: how long it took.
        first_pts: of its first frame, in units of ``time_base`` (numerator, denominator) seconds.
        time_base: see ``first_pts``.
        parts: name of a part -> its length in bytes.
        starts: parts that do not begin with the segment's first frame -> pts of their own.
    """

    frames: int
    people: int
    seconds: float
    first_pts: int
    time_base: tuple[int, int]
    parts: dict[str, int]
    starts: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FileState:
    """How far one input is.

    Attributes:
        path: of the input.
        name: see `pipeline.batch.plan.BatchInput`.
        size: bytes; another size or time of change means another file, which starts anew.
        mtime_ns: see ``size``.
        status: ``publishing``: all segments are done and outputs are being put into place.
        segments: the finished ones, in order.
        resume: where and with whom the next segment starts (`pipeline.batch.file`).
        ended: no segment is left.
        lost: frames that could not be decoded.
        warnings: for the report.
        error: why it failed.
        replaces: outputs that exist may be replaced: they are of this job, or --overwrite said so.
        uploaded: its outputs lie where --upload said, and not here.
    """

    path: str
    name: str
    size: int
    mtime_ns: int
    status: Status = "running"
    segments: list[Segment] = field(default_factory=list)
    resume: dict[str, Any] | None = None
    ended: bool = False
    lost: int = 0
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    replaces: bool = False
    uploaded: bool = False

    @property
    def frames(self) -> int:
        return sum(segment.frames for segment in self.segments)

    @property
    def people(self) -> int:
        return sum(segment.people for segment in self.segments)

    @property
    def seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    def is_past(self, number: int) -> bool:
        """Whether a segment is finished, or can be none any more: nothing is wanted of it."""
        return self.ended or number < len(self.segments)

    def is_of(self, stat: SizeAndTime) -> bool:
        """Whether the input is still the file that this is about."""
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


class JobFolder:
    """The state of one batch."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / STATE_FOLDER

    def create(self) -> None:
        """Make the folders.

        Raises:
            SinkError: they cannot be.
        """
        try:
            (self.folder / "files").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise sink_error(self.folder, error) from error

    def folder_of(self, key: str) -> Path:
        return self.folder / "files" / key

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs a batch in this folder meanwhile; the system gives the lock back when the process dies.

        Raises:
            SettingsError: somebody does.
        """
        with _lock(self.folder / "lock", 0.0, f"another batch is writing to {self.out}: wait or choose another --out"):
            yield

    @contextmanager
    def file_locked(self, key: str) -> Iterator[None]:
        """Nobody else works on this input meanwhile."""
        self.folder_of(key).mkdir(parents=True, exist_ok=True)
        path = self.folder_of(key) / "lock"
        with _lock(path, _LOCK_WAIT_S, f"{path}: a process of another batch does not let go: end it"):
            yield

    def settle(self, options: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
        """Take the options of the run before, or note these.

        Args:
            options: plain values that decide results. ``threads`` is taken from the run before, because the number of
                threads may change the last bit of a sum; all others must be equal.
            overwrite: forget the run before.

        Returns:
            The options in force.

        Raises:
            SettingsError: other options, or a state of another version.
        """
        path = self.folder / "job.json"
        before = None if overwrite else _read(path)
        if before is not None:
            if before.get("version") != VERSION:
                raise SettingsError(f"{path}: written by another version: choose another --out or add --overwrite")
            old = before["options"]
            other = [
                f"{name} was {old.get(name)}, is {value}"
                for name, value in options.items()
                if name != "threads" and old.get(name) != value
            ]
            if other:
                raise SettingsError(
                    f"{self.out} holds a batch with other options ({'; '.join(other)}): use the same ones to continue, "
                    "choose another --out, or add --overwrite to start anew"
                )
            return {**options, "threads": old.get("threads")}
        replace_file(path, json.dumps({"version": VERSION, "options": options}, indent=1).encode())
        return options

    def forget(self, key: str) -> None:
        """Remove the state and the parts of one input."""
        folder = self.folder_of(key)
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.name != "lock":
                    entry.unlink(missing_ok=True)

    def load(self, key: str) -> FileState | None:
        """The state of one input; None where there is none."""
        found = _read(self.folder_of(key) / "state.json")
        if found is None:
            return None
        try:
            segments = [Segment(**{**part, "time_base": tuple(part["time_base"])}) for part in found["segments"]]
            return FileState(**{**found, "segments": segments})
        except (KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.folder_of(key)}: written by another version ({error}): remove it, or add --overwrite"
            ) from error

    def save(self, key: str, state: FileState) -> None:
        """Bring the state to the disk.

        Raises:
            SinkError: there is no room.
        """
        self.folder_of(key).mkdir(parents=True, exist_ok=True)
        replace_file(self.folder_of(key) / "state.json", json.dumps(asdict(state)).encode())

    def names(self) -> dict[str, str]:
        """Path -> name of all inputs of runs before whose state can be read."""
        names = {}
        for entry in sorted((self.folder / "files").iterdir()):
            try:
                state = self.load(entry.name)
            except SettingsError:  # told when it is its turn, if nobody asks for a new start
                continue
            if state is not None:
                names[state.path] = state.name
        return names

    def fresh(self, item: BatchInput, stat: SizeAndTime) -> FileState:
        return FileState(path=item.path, name=item.name, size=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def parts_are_whole(self, key: str, state: FileState) -> bool:
        """Whether all parts that the state names have their length."""
        folder = self.folder_of(key)
        return all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for segment in state.segments
            for name, size in segment.parts.items()
        )

    def remove_parts(self, key: str) -> None:
        """When the outputs are in place."""
        keep = {"state.json", "lock", "picture.jpg"}
        for entry in self.folder_of(key).iterdir():
            if entry.name not in keep:
                entry.unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def artifact_digest(folder: Path) -> str:
    """The manifest holds the SHA-256 of every file of a model, so its own stands for all."""
    return hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that after a crash there is the old or the new one.

    One process at a time writes a file (jobs and inputs are locked): what a killed one left beside it is written over.

    Raises:
        SinkError: there is no room, or it may not be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb", buffering=0) as file:
            write_whole(file, data, path)
            os.fsync(file.fileno())
        os.replace(beside, path)
        bring_to_disk(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise error if isinstance(error, SinkError) else sink_error(path, error) from error


def bring_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, survive a power cut.

    Raises:
        OSError: they do not.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}): remove it, or add --overwrite to start anew") from error
    return found if isinstance(found, dict) else None


@contextmanager
def _lock(path: Path, wait_s: float, message: str) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    try:
        file = path.open("a")
    except OSError as error:
        raise sink_error(path, error) from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SettingsError(message) from None
                time.sleep(0.05)
        yield
