"""Fetch a large file over HTTP so that an interruption costs nothing.

What came so far waits in ``NAME.part`` beside the target, with a note of which version of the file it belongs to. The
next attempt asks for the rest (`Range` with `If-Range`, RFC 9110); a server that does not know ranges sends everything
again. The file gets its name when it is complete and its checksum, where one is known, is right.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
ATTEMPTS = 6  # in a row without a byte
PAUSE_S = 1.0  # before the second attempt; doubles
SPARE_BYTES = 64 << 20  # left free on the disk

Progress = Callable[[int, int | None], None]  # bytes there, bytes in all where known


class FetchError(OSError):
    """A file could not be fetched; says from where, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """What a file's bytes must hash to, and who says so."""

    algorithm: str  # of hashlib
    digest: str  # lower-case hex
    source: str


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a server says about the bytes that it is going to send."""

    start: int
    total: int | None
    version: str | None  # ETag or Last-Modified, for If-Range


def shown_url(url: str) -> str:
    """An address without user name, password and query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return urllib.parse.urlunsplit((parts.scheme, host + port, parts.path, "", ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted to a plain connection or to another protocol."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if after not in {"http", "https"} or (before, after) == ("https", "http"):
            fp.close()
            raise FetchError(f"{shown_url(req.full_url)} redirects to {shown_url(newurl)}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only, through the proxy of the environment if there is one; no file: and no ftp: addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def digest_of(path: Path, algorithm: str) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `FetchError` unless a folder's disk takes that many bytes more."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise FetchError(
            f"{what} needs {needed / 1e9:.2f} GB on the disk of {folder}, {free / 1e9:.2f} GB are free: make room or "
            "choose another --output"
        )


def fetch(
    url: str,
    target: Path,
    *,
    checksum: Checksum | None = None,
    progress: Progress | None = None,
    attempts: int = ATTEMPTS,
    timeout_s: float = TIMEOUT_S,
    pause_s: float = PAUSE_S,
) -> Path:
    """Fetch an address into a file, going on from what an earlier call left; a file that is there is only checked.

    Args:
        url: http or https.
        target: where the file goes; its folder is made.
        checksum: what the bytes must be; None: only their number is checked.
        progress: called with the bytes that are there and the bytes in all.
        attempts: how many attempts in a row may bring nothing.
        timeout_s: that a connection may be silent.
        pause_s: before the second attempt; doubles with each, up to 30 s.

    Raises:
        FetchError: the address is none, the server refuses, the disk is full, the checksum is wrong (the bytes are
            thrown away then; otherwise they stay for the next call).
    """
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and not parts.username and not parts.password
        shown = shown_url(url)
    except ValueError:
        usable, shown = False, "something else"
    if not usable:
        raise FetchError(f"expected an http or https address without a user name or password in it, got {shown}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        _require_checksum(target, checksum, f"{target} is there, but")
        return target
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    silent = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            done = _attempt(url, part, note, progress, timeout_s)
        except FetchError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in {408, 429}:
                raise FetchError(f"{shown_url(url)}: the server answers {error.code} {error.reason}") from error
            reason: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise FetchError(
                    f"{part}: the disk is full ({error.strerror}). What came stays; make room and start again"
                ) from error
            reason = error
        else:
            if done:
                break
            reason = ConnectionError("the connection ended early")
        came = (part.stat().st_size if part.exists() else 0) > before
        silent = 0 if came else silent + 1
        if silent >= attempts:
            raise FetchError(
                f"{shown_url(url)}: {attempts} attempts in a row brought nothing, the last one: "
                f"{getattr(reason, 'reason', reason)}. What came stays; start again to go on"
            ) from reason
        time.sleep(min(pause_s * 2 ** max(silent - 1, 0), 30.0))
    try:
        _require_checksum(part, checksum, f"{shown_url(url)}:")
    except FetchError:
        part.unlink()
        note.unlink(missing_ok=True)
        raise
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)
    note.unlink(missing_ok=True)
    return target


def _require_checksum(path: Path, checksum: Checksum | None, what: str) -> None:
    if checksum is None:
        return
    digest = digest_of(path, checksum.algorithm)
    if digest != checksum.digest:
        raise FetchError(
            f"{what} its {checksum.algorithm} is {digest}, expected {checksum.digest} ({checksum.source}): the file "
            "was damaged or changed; remove it and fetch it again, or check the source"
        )


def _answer(response: Any, offset: int, url: str) -> _Answer:
    headers = response.headers
    try:
        length = None if headers.get("Content-Length") is None else int(headers["Content-Length"])
    except ValueError:
        raise FetchError(f"{shown_url(url)}: the server says a length of {headers['Content-Length']!r}") from None
    version = headers.get("ETag")
    if version is None or version.startswith("W/"):  # a weak tag does not promise equal bytes
        version = headers.get("Last-Modified")
    if response.status != http.client.PARTIAL_CONTENT:
        return _Answer(start=0, total=length, version=version)
    said = headers.get("Content-Range", "")
    try:
        unit, _, rest = said.partition(" ")
        span, _, total = rest.partition("/")
        start = int(span.partition("-")[0])
        if unit != "bytes" or start != offset:
            raise ValueError
        return _Answer(start=start, total=None if total == "*" else int(total), version=version)
    except ValueError:
        raise FetchError(f"{shown_url(url)}: asked for bytes from {offset}, the server sends {said!r}") from None


def _attempt(url: str, part: Path, note: Path, progress: Progress | None, timeout_s: float) -> bool:
    """One connection; True when the file is complete as far as the server says."""
    offset = part.stat().st_size if part.exists() else 0
    known: dict[str, Any] = {}
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        offset = 0  # whose bytes these are is not known
    headers = {"User-Agent": "pose2seg-live", "Accept-Encoding": "identity"}
    if known.get("url") != url or not known.get("version"):
        offset = 0
    elif offset:
        headers.update({"Range": f"bytes={offset}-", "If-Range": known["version"]})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the opener knows http and https only
    try:
        response = _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if known.get("total") == offset:
                return True
            part.unlink()
            return False
        raise
    with response:
        answer = _answer(response, offset, url)
        require_space(part.parent, (answer.total or 0) - answer.start, part.name.removesuffix(".part"))
        note.write_text(json.dumps({"url": url, "version": answer.version, "total": answer.total}))
        with part.open("r+b" if part.exists() else "wb") as stream:
            stream.truncate(answer.start)
            stream.seek(answer.start)
            there = answer.start
            while data := response.read(CHUNK_BYTES):
                stream.write(data)
                there += len(data)
                if progress is not None:
                    progress(there, answer.total)
    if answer.total is not None and there > answer.total:
        part.unlink()
        raise FetchError(f"{shown_url(url)}: {there} bytes came, the server had said {answer.total}")
    return answer.total is None or there == answer.total
