"""A folder for what was compiled on this machine, which nobody else may write to: its files are executed."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


class CacheFolderError(RuntimeError):
    """The cache folder cannot be made, or somebody else could put files into it."""


def cache_folder(name: str) -> Path:
    """Folder ``name`` in the user's cache, made if need be, readable and writable by its owner alone.

    The cache is ``$POSE2SEG_CACHE``, else ``$XDG_CACHE_HOME/pose2seg``, else ``~/.cache/pose2seg``.

    Raises:
        CacheFolderError: it cannot be made, belongs to somebody else, or others may write there.
    """
    chosen = os.environ.get("POSE2SEG_CACHE")
    try:
        cache = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pose2seg")
        cache = cache.expanduser().absolute()
        folder = cache / name
        for made in (cache, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as cause:
        raise CacheFolderError(
            f"cannot make the cache folder for {name}: {cause}; set POSE2SEG_CACHE to a folder of your own"
        ) from cause
    for checked in (cache, folder):
        refuse_foreign(checked)
    for above in cache.resolve().parents:
        rights = above.stat().st_mode
        if rights & stat.S_IWOTH and not rights & stat.S_ISVTX:
            raise CacheFolderError(
                f"{above} may be written by everybody, so files in {folder} could be exchanged; "
                "set POSE2SEG_CACHE to a folder of your own"
            )
    return folder


def refuse_foreign(path: Path) -> None:
    """Raise CacheFolderError where ``path`` is not ours alone to write."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise CacheFolderError(
            f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}: files there are not trusted; "
            "set POSE2SEG_CACHE to a folder of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheFolderError(f"{path} may be written by others: chmod go-w {path}, or set POSE2SEG_CACHE")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file with owner-only rights that others see whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108  beside os.replace, on the same plain string
        raise
