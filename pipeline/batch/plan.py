"""Which files a batch reads, and what their outputs are called: names can never leave the output folder."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.errors import SettingsError, SinkError, SourceError
from pipeline.redaction import redact
from pipeline.stage1_decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES

STATE_FOLDER: Final = ".pose2seg"
OUTPUT_SUFFIXES: Final = {
    "video": ".people.mp4",
    "json": ".jsonl",
    "coco": ".coco.json",
    "sheet": ".sheet.png",
    "parquet": ".parquet",
    "srt": ".srt",
    "vtt": ".vtt",
}
"""What ``--write`` may name -> what is put behind the whole name of the input, so that a.mp4 and a.mov stay two."""
ADDRESS_SCHEMES: Final = ("s3", "gs", "http", "https")
"""Of inputs that are not on a disk, see `pipeline.batch.storage`."""
_PLAYLISTS: Final = (".m3u8", ".mpd", ".sdp")
_MAX_NAME_BYTES: Final = 200  # of 255 that file systems take; a suffix and a temporary mark follow
_LIST_SUFFIX: Final = ".txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """One file to process.

    Attributes:
        path: absolute; links are not followed, so that two links to one file are two inputs. Of an input elsewhere its
            address without what is secret in it, so that a newly signed one is the same input.
        name: mirrored name below the output folder, with ``/``; also what results call their source.
        address: of an input in object storage or on a web server, with all that is secret in it; empty for a file.
        local: its copy on the disk, while there is one (`pipeline.batch.storage.staged`).
    """

    path: str
    name: str
    address: str = field(default="", repr=False)
    local: str = ""

    @property
    def file(self) -> str:
        """What is opened."""
        return self.local or self.path

    @property
    def key(self) -> str:
        """Name of its state folder."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:20]

    def output(self, folder: Path, kind: str) -> Path:
        """Where its output of one kind goes."""
        return folder / (self.name + OUTPUT_SUFFIXES[kind])


def plan_inputs(
    arguments: Sequence[str], out: Path, *, stdin: Iterable[str] | None = None, known: dict[str, str] | None = None
) -> list[BatchInput]:
    """Inputs in a stable order, each once.

    Args:
        arguments: files, folders (with all below them), globs, lists of these (``@list`` or ``list.txt``), ``-`` for a
            list on standard input.
        out: the output folder; what lies in it is no input.
        stdin: lines for ``-``; standard input by default.
        known: path -> name of a run before, which stays.

    Raises:
        SettingsError: nothing is found, a list cannot be read, or outputs would lie among inputs.
    """
    real_out = os.path.realpath(out)
    entries = list(_unfolded(arguments, sys.stdin if stdin is None else stdin))
    folders = [entry for entry in entries if os.path.isdir(entry)]
    found: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for entry in entries:
        for path, relative in _files_of(entry, real_out, several=len(folders) > 1):
            place = os.path.abspath(path)
            if _is_address(path):
                place = _without_secrets(path)
                addresses.setdefault(place, path)
            found.setdefault(place, safe_name(relative))
    if not found:
        raise SettingsError(
            f"batch expects videos, found none in {', '.join(map(shown_name, arguments)) or 'an empty list'}: "
            f"names must end in {', '.join(VIDEO_SUFFIXES)}"
        )
    given = {path: (known or {}).get(path, name) for path, name in found.items()}
    uses = Counter(name.casefold() for name in given.values())  # some disks do not tell A from a
    inputs = []
    for path, name in given.items():
        taken = uses[name.casefold()] > 1 and path not in (known or {})
        own = _distinguished(name, path) if taken else name
        inputs.append(BatchInput(path=path, name=own, address=addresses.get(path, "")))
    return inputs


def safe_name(relative: str) -> str:
    """A relative path of harmless parts: no root, no ``..``, no control characters, no part that is too long."""
    parts = [_safe_part(part) for part in relative.split("/") if part not in {"", ".", ".."}]
    if not parts:
        parts = ["_"]
    if parts[0].casefold() == STATE_FOLDER:
        parts[0] = "_" + parts[0]
    return "/".join(parts)


def shown_name(text: str) -> str:
    """A name for a message or a document: bytes that are no text, and control characters, are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def require_inside(path: Path, out: Path) -> None:
    """A folder that is a link must not lead outputs out of the output folder.

    Raises:
        SinkError: it does.
    """
    real, root = os.path.realpath(path), os.path.realpath(out)
    if real != root and not real.startswith(root.rstrip("/") + "/"):
        raise SinkError(f"{path}: lies outside of {out} (a link leads to {real}): remove the link")


def require_plain_file(name: str, mode: int) -> None:
    """A pipe or a device would be waited for, for ever.

    Args:
        name: of the input, for people.
        mode: ``st_mode`` of what it leads to.

    Raises:
        SourceError: it is none.
    """
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise SourceError(f"{shown_name(name)}: expected a file, this is a {kind}: give the path of a video")


def _safe_part(part: str) -> str:
    text = part.encode("utf-8", "replace").decode()
    text = "".join("_" if char == "\\" or unicodedata.category(char).startswith("C") else char for char in text)
    if text != part or len(text.encode()) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(part)).hexdigest()[:8]
        text = text.encode()[: _MAX_NAME_BYTES - 9].decode("utf-8", "ignore") + "~" + digest
    return text


def _distinguished(name: str, path: str) -> str:
    return f"{name}~{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def _unfolded(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from _lines(stdin)
        elif argument.startswith("@") and not os.path.exists(argument):
            yield from _list_file(argument[1:])
        elif argument.lower().endswith(_LIST_SUFFIX) and not os.path.isdir(argument):
            yield from _list_file(argument)
        else:
            yield argument


def _list_file(name: str) -> list[str]:
    try:
        text = Path(name).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise SettingsError(
            f"{shown_name(name)}: the list cannot be read ({error.strerror}): check the path"
        ) from error
    folder = os.path.dirname(name)
    return [line if "://" in line else os.path.join(folder, line) for line in _lines(text.splitlines())]


def _lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        text = line.rstrip("\r\n")
        if text.strip() and not text.startswith("#"):
            yield text


def _files_of(entry: str, real_out: str, *, several: bool) -> Iterator[tuple[str, str]]:
    """Paths, each with what it is called below the output folder."""
    if _is_address(entry):
        yield from _addresses_of(entry)
    elif os.path.isdir(entry):
        root = os.path.realpath(entry)
        if root == real_out or root.startswith(real_out.rstrip("/") + "/"):
            raise SettingsError(
                f"--out {shown_name(real_out)} holds the input {shown_name(entry)}: choose a folder elsewhere or below"
            )
        prefix = os.path.basename(os.path.abspath(entry)) if several else ""
        for path in _walk(entry, real_out):
            yield path, os.path.join(prefix, os.path.relpath(path, entry))
    elif os.path.lexists(entry):
        yield entry, os.path.basename(entry)
    elif any(sign in entry for sign in "*?["):
        root = glob_root(entry)
        for path in sorted(glob.glob(entry, recursive=True)):
            inside = os.path.realpath(path).startswith(real_out.rstrip("/") + "/")
            if os.path.isfile(path) and _is_video(path) and not inside:
                yield path, os.path.relpath(path, root)
    else:
        yield entry, os.path.basename(entry)  # missing: it becomes a line of the report, not the end of the batch


def _is_address(entry: str) -> bool:
    return "://" in entry and not os.path.lexists(entry)


def _without_secrets(address: str) -> str:
    """What stays the same when an address is signed anew: nothing of a query that holds a secret."""
    shown = redact(address)
    head, _, query = shown.partition("?")
    return f"{head}?***" if "***" in query else shown


def _addresses_of(entry: str) -> Iterator[tuple[str, str]]:
    scheme = entry.partition("://")[0]
    if scheme not in ADDRESS_SCHEMES or entry.partition("?")[0].lower().endswith(_PLAYLISTS):
        allowed = ", ".join(f"{name}://" for name in ADDRESS_SCHEMES)
        raise SettingsError(
            f"{redact(shown_name(entry))}: a batch reads files, also of {allowed}: for streams use pose2seg SOURCE, or "
            "pose2seg live"
        )
    from pipeline.batch.storage import check_address, find_videos, name_of

    if scheme in {"s3", "gs"} and (entry.endswith("/") or any(sign in entry for sign in "*?[")):
        yield from find_videos(entry, _is_video)
        return
    check_address(entry)
    yield entry, name_of(entry) or "input"


def glob_root(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")


def _walk(folder: str, real_out: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(here, name)) != real_out
        )
        for name in sorted(files):
            path = os.path.join(here, name)
            if _is_video(name) and os.path.isfile(path):
                yield path


def _is_video(name: str) -> bool:
    return not os.path.basename(name).startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)


def is_image(name: str) -> bool:
    """Pictures are no work for a batch of videos."""
    return name.lower().endswith(IMAGE_SUFFIXES)
