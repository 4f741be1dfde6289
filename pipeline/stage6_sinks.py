"""FrameResult -> outputs: the write stage and the sinks of data; `video_output`, `contact_sheet` write pictures."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.errors import SettingsError, SinkError
from pipeline.messages import FrameResult
from pipeline.protocols import Sink

log = logging.getLogger(__name__)


class WriteStage:
    """Gives each result to all sinks and passes it on. One failing sink ends the run; the others are still finished."""

    name = "write"

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def open(self) -> None:
        """Sinks create their files with the first frame: a source that gives none leaves no empty outputs."""

    def process(self, result: FrameResult) -> FrameResult:
        for sink in self._sinks:
            sink.write(result)
        return result

    def close(self) -> None:
        first: Exception | None = None
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                if first is None:
                    first = error
                else:
                    first.add_note(f"and: {error}")
        if first is not None:
            raise first


class JsonLinesSink:
    """A self-contained line of JSON per frame, written at once: readers may follow, a killed run leaves whole lines."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite
        self._file: IO[bytes] | None = None

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        line = (result.to_json() + "\n").encode()
        if self._file is None:
            self._file = create_output(self._path, overwrite=self._overwrite)
        write_whole(self._file, line, self._path)

    def close(self) -> None:
        close_output(self._file, self._path)


class CocoSink:
    """COCO results, one list in one file: complete after every frame, so a killed run leaves valid JSON."""

    def __init__(self, path: Path, *, overwrite: bool, image_ids: dict[str, int] | None) -> None:
        """Write to ``path``.

        Args:
            path: the file.
            overwrite: replace it when it exists.
            image_ids: file name -> image id, from `read_image_ids`; None derives ids, see `image_id_of`.
        """
        self._path = path
        self._overwrite = overwrite
        self._image_ids = image_ids
        self._file: IO[bytes] | None = None
        self._entries = 0
        self._unknown: list[str] = []
        self._end = 0

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        if self._file is None:
            self._file = create_output(self._path, overwrite=self._overwrite)
            write_whole(self._file, b"[\n]\n", self._path)
            self._end = 1
        image_id = self._id_of(result)
        entries = [] if image_id is None else result.to_coco(image_id)
        if not entries:
            return
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries).encode()
        text = (b",\n" if self._entries else b"\n") + lines
        self._file.seek(self._end)
        write_whole(self._file, text + b"\n]\n", self._path)
        self._end += len(text)
        self._entries += len(entries)

    def close(self) -> None:
        if self._unknown:
            log.warning(
                "%s: %d images are not in the annotation file and were left out, the first is %s",
                self._path,
                len(self._unknown),
                self._unknown[0],
            )
        close_output(self._file, self._path)

    def _id_of(self, result: FrameResult) -> int | None:
        source = result.frame.source
        if self._image_ids is None:
            return image_id_of(source, result.frame.index)
        for name in _names_of(source):
            if name in self._image_ids:
                return self._image_ids[name]
        self._unknown.append(source)
        return None


def read_image_ids(path: Path) -> dict[str, int]:
    """File name -> image id of a COCO annotation file.

    Raises:
        SettingsError: the file cannot be read or has no ``images`` with ``file_name`` and ``id``.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        ids = {str(image["file_name"]): int(image["id"]) for image in document["images"]}
    except OSError as error:
        raise SettingsError(f"--coco-images {path}: cannot be read ({error.strerror}): check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--coco-images {path}: expected a COCO annotation file with images that have file_name and id"
        ) from error
    if not ids:
        raise SettingsError(f"--coco-images {path}: expected images in it, found none")
    return ids


def image_id_of(source: str, index: int) -> int:
    """Image id without annotations: the number in the file name (COCO's ``000000397133.jpg``), else position from 1."""
    stem = Path(source).stem
    return int(stem) if stem.isascii() and stem.isdecimal() else index + 1


def _names_of(source: str) -> list[str]:
    """The path and all its tails: an annotation file may name ``a/b.jpg`` or ``b.jpg``."""
    parts = Path(source).as_posix().split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be, without touching anything.

    Raises:
        SinkError: it exists and must not be replaced, is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise SinkError(f"{path}: expected a file name for the output, this is a folder")
    if path.exists():
        if not overwrite:
            raise SinkError(f"{path}: exists already: choose another name or add --overwrite")
        if not os.access(path, os.W_OK):
            raise SinkError(f"{path}: may not be written: check its permissions")
    elif not path.parent.is_dir():
        raise SinkError(f"{path}: its folder does not exist: create {path.parent} first")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise SinkError(f"{path}: its folder may not be written: check the permissions of {path.parent}")


def create_output(path: Path, *, overwrite: bool) -> IO[bytes]:
    """Open an output for writing without a buffer, so that what is written is in the file.

    Raises:
        SinkError: see `check_output`; the world may have changed since.
    """
    try:
        return path.open("wb" if overwrite else "xb", buffering=0)
    except OSError as error:
        raise sink_error(path, error) from error


def write_whole(file: IO[bytes], data: bytes, path: Path) -> None:
    """Write all bytes.

    Raises:
        SinkError: they do not fit, or the file is gone.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise sink_error(path, error) from error


def close_output(file: IO[bytes] | None, path: Path) -> None:
    """Close what `create_output` opened, if it did.

    Raises:
        SinkError: the system could not keep what was written.
    """
    if file is not None:
        try:
            file.close()
        except OSError as error:
            raise sink_error(path, error) from error


def sink_error(path: Path, error: OSError) -> SinkError:
    """One line about an output that failed."""
    if isinstance(error, FileExistsError):
        return SinkError(f"{path}: exists already: choose another name or add --overwrite")
    return SinkError(f"{path}: cannot be written ({error.strerror or error}): free space or choose another place")
