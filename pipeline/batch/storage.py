"""Inputs and outputs of a batch in object storage and on web servers, through fsspec (extra ``cloud``).

An input is copied to OUT/.pose2seg/inputs while it is worked on, block after block, so that a connection that is cut
costs a block; it is removed when its file is done or has failed. So the disk holds at most one input per file in work.
Its time of change is made of what the storage says of its version: an input that was replaced is noticed as on a disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import ipaddress
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

from pipeline.batch.file import Interrupted
from pipeline.batch.plan import ADDRESS_SCHEMES, BatchInput, shown_name
from pipeline.batch.state import JobFolder, SizeAndTime
from pipeline.errors import PipelineError, SettingsError, SinkError, SourceError
from pipeline.redaction import redact

log = logging.getLogger(__name__)

INPUTS: Final = "inputs"
BLOCK_BYTES: Final = 8 << 20
TRIES: Final = 5
_FIRST_WAIT_S: Final = 0.5  # doubles with each try of the same block
_TIMEOUT_S: Final = 30.0
_ROOM_BYTES: Final = 1 << 30  # that must stay free on the disk beside an input
_MAX_URL: Final = 2048
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


@dataclass(frozen=True, slots=True)
class Version:
    """See `pipeline.batch.state.SizeAndTime`."""

    st_size: int
    st_mtime_ns: int


def check_address(address: str) -> None:
    """Refuse an address that is not what it should be; nothing is opened.

    Raises:
        SettingsError: another scheme, a place no input can be, or text that could mean something else to somebody.
    """
    shown = redact(shown_name(address[:200]))
    of_keys = address.startswith(("s3://", "gs://"))  # whose names may hold spaces
    if len(address) > _MAX_URL or any(
        not char.isprintable() or (char.isspace() and not (of_keys and char == " ")) for char in address
    ):
        raise SettingsError(f"{shown}: expected an address without spaces, of {_MAX_URL} characters at most")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise SettingsError(f"{shown}: no address ({error})") from error
    if parts.scheme not in ADDRESS_SCHEMES:
        raise SettingsError(f"{shown}: expected {', '.join(f'{name}://' for name in ADDRESS_SCHEMES)}")
    if parts.scheme in {"s3", "gs"}:
        plain = not (parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc)
        if not plain or not _BUCKET.fullmatch(parts.netloc) or ".." in parts.path.split("/"):
            raise SettingsError(
                f"{shown}: expected {parts.scheme}://BUCKET/KEY and nothing else; keys to it come from the environment"
            )
    elif not host:
        raise SettingsError(f"{shown}: expected a host")


def _require_harmless_host(address: str) -> None:
    """A list from elsewhere must not make this machine ask the cloud for its own credentials, or itself for anything
    that listens on no network.

    Raises:
        SourceError: the address leads to a link-local, unspecified or multicast place.
    """
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"}:
        return
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        places = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{redact(address)}: {host} is not known ({error}): check the address") from error
    for place in places:
        found = ipaddress.ip_address(str(place).partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        if found.is_link_local or found.is_unspecified or found.is_multicast:
            raise SourceError(f"{redact(address)}: leads to {found}, where no video is looked for: check the address")


def _storage_of(address: str) -> tuple[Any, str]:
    """File system and path in it.

    Raises:
        SettingsError: a library is missing.
        SourceError: see `_require_harmless_host`.
    """
    check_address(address)
    _require_harmless_host(address)
    scheme = urlsplit(address).scheme
    for package in ("fsspec", _PACKAGES[scheme]):
        if importlib.util.find_spec(package) is None:
            more = " gcsfs" if scheme == "gs" else ""
            raise SettingsError(
                f'{scheme}:// needs {package}, which is not installed: pip install "pose2seg-live[cloud]"{more}'
            )
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        config = {"connect_timeout": 10, "read_timeout": _TIMEOUT_S, "retries": {"mode": "standard", "max_attempts": 2}}
        options |= {"config_kwargs": config, "default_block_size": BLOCK_BYTES}
    elif scheme in {"http", "https"}:
        # A redirect may lead where the address itself must not.
        options |= {"allow_redirects": False}
    try:
        system = fsspec.filesystem(scheme, **options)
        return system, str(system._strip_protocol(address))  # noqa: SLF001  what fsspec.core.url_to_fs itself does
    except Exception as error:
        raise SourceError(f"{redact(address)}: {_reason(error)}") from error


def find_videos(address: str, is_video: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Addresses below a folder (``s3://bucket/day/``) or fitting a glob, each with its relative name, in order.

    Args:
        address: of ``s3`` or ``gs``.
        is_video: told the last part of a name.

    Raises:
        SettingsError: it cannot be listed.
    """
    scheme = urlsplit(address).scheme
    is_glob = any(sign in address for sign in "*?[")
    check_address(re.sub(r"[*?\[\]]", "x", address))
    try:
        system, _ = _storage_of(f"{scheme}://{urlsplit(address).netloc}")
        pattern = address.split("://", 1)[1]
        found = sorted(system.glob(pattern) if is_glob else system.find(pattern))
    except PipelineError:
        raise
    except Exception as error:
        raise SettingsError(f"{redact(address)}: cannot be listed ({_reason(error)}): check name and rights") from error
    fixed = pattern.split("/")
    if is_glob:
        fixed = fixed[: next(i for i, part in enumerate(fixed) if any(sign in part for sign in "*?["))]
    root = "/".join(part for part in fixed if part)
    for path in found:
        name = str(path)
        if is_video(name.rsplit("/", 1)[-1]):
            yield f"{scheme}://{name}", name[len(root) :].lstrip("/")


def name_of(address: str) -> str:
    """What an input is called: the last part of its path."""
    return unquote(urlsplit(address).path).rstrip("/").rsplit("/", 1)[-1]


def version_of(item: BatchInput) -> SizeAndTime:
    """Size and time of change of an input.

    Raises:
        OSError: it is not there.
    """
    if not item.address:
        return Path(item.path).stat()
    return _version(item.address)


def _version(address: str) -> Version:
    system, path = _storage_of(address)
    info = _patiently(lambda: system.info(path), address)
    size = info.get("size")
    if not isinstance(size, int) or isinstance(size, bool):
        raise SourceError(f"{redact(address)}: the server does not say how long it is: copy it to the disk")
    if info.get("type") == "directory":
        raise SourceError(f"{redact(address)}: expected a file, this is a folder: end it with /")
    marks = [str(info.get(name, "")) for name in ("ETag", "etag", "LastModified", "Last-Modified", "updated")]
    digest = hashlib.sha256("\n".join([str(size), *marks]).encode()).digest()
    seconds = int.from_bytes(digest[:4], "big")  # a time, because that is what a disk keeps of a file
    return Version(st_size=size, st_mtime_ns=seconds * 1_000_000_000)


def _patiently(call: Callable[[], Any], address: str) -> Any:
    """A few tries, with growing waits between them.

    Raises:
        SourceError: it is not there, may not be read, or cannot be reached.
    """
    wait_s = _FIRST_WAIT_S
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except FileNotFoundError as error:
            raise SourceError(f"{redact(address)}: is not there: check the address") from error
        except PermissionError as error:
            raise SourceError(
                f"{redact(address)}: may not be read ({_reason(error)}): check the keys in the environment"
            ) from error
        except Exception as error:
            if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
                raise SourceError(f"{redact(address)}: no keys in the environment, or not all of them") from error
            if tried == TRIES:
                raise SourceError(
                    f"{redact(address)}: cannot be reached ({_reason(error)}): tried {TRIES} times"
                ) from None
            log.info("%s: %s: tried again in %.1f s", redact(address), _reason(error), wait_s)
            time.sleep(wait_s)
            wait_s *= 2
    raise AssertionError


def staged(item: BatchInput, job: JobFolder, *, stop: Callable[[], bool] = bool) -> BatchInput:
    """The input with a copy on the disk; itself where it lies there anyway.

    Args:
        item: an input.
        job: where copies go.
        stop: asked between blocks.

    Raises:
        Interrupted: ``stop`` said so.
        SourceError: it cannot be read.
        SinkError: there is no room for it.
    """
    if not item.address:
        return item
    target = job.folder / INPUTS / (item.key + Path(item.name).suffix.lower()[:10])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = _version(item.address)
            if not _is_copy(target, version):
                _download(item.address, target, version, stop)
    except OSError as error:
        if isinstance(error, PipelineError):
            raise
        raise SinkError(f"{target}: {error.strerror or error}: {redact(item.address)} cannot be copied here") from error
    return replace(item, local=str(target))


def unstage(item: BatchInput, job: JobFolder) -> None:
    """Remove the copy of an input."""
    if item.address:
        for path in (job.folder / INPUTS).glob(f"{item.key}*"):
            path.unlink(missing_ok=True)


def _is_copy(path: Path, version: Version) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (version.st_size, version.st_mtime_ns)


def _download(address: str, target: Path, version: Version, stop: Callable[[], bool]) -> None:
    room = shutil.disk_usage(target.parent).free
    if room < version.st_size + _ROOM_BYTES:
        raise SinkError(
            f"{target.parent}: {redact(address)} takes {version.st_size / 1e9:.1f} GB, {room / 1e9:.1f} GB are free, "
            f"{_ROOM_BYTES / 1e9:.1f} GB must stay: make room, or use fewer --workers"
        )
    system, path = _storage_of(address)
    part = target.with_suffix(".part")
    with part.open("wb") as file:  # what a killed worker left may be of another version
        while (done := file.tell()) < version.st_size:
            if stop():
                raise Interrupted
            end = min(done + BLOCK_BYTES, version.st_size)
            file.write(_patiently(functools.partial(_block, system, path, done, end), address))
        file.flush()
        os.fsync(file.fileno())
    if _version(address) != version:
        part.unlink()
        raise SourceError(f"{redact(address)}: was changed while it was copied: start again with --retry-failed")
    os.utime(part, ns=(version.st_mtime_ns, version.st_mtime_ns))
    os.replace(part, target)


def _block(system: Any, path: str, start: int, end: int) -> bytes:
    block = system.cat_file(path, start=start, end=end)
    if len(block) != end - start:
        raise OSError(f"asked for {end - start} bytes at {start}, got {len(block)}")
    return bytes(block)


@contextlib.contextmanager
def opened(item: BatchInput) -> Iterator[BinaryIO | None]:
    """To read the head of an input that is not on the disk; None for one that is."""
    if not item.address or item.local:
        yield None
        return
    system, path = _storage_of(item.address)
    with system.open(path, "rb", block_size=1 << 20) as file:
        yield file


def upload(path: Path, address: str) -> None:
    """Copy a file into object storage; what is there already is replaced as a whole.

    Args:
        path: file.
        address: where it goes.

    Raises:
        SinkError: it cannot be written, or has another length there.
    """
    try:
        system, key = _storage_of(address)
        size = path.stat().st_size

        def put() -> None:
            system.put_file(str(path), key)
            found = system.info(key).get("size")
            if found != size:
                raise OSError(f"has {found} bytes there, {size} here")

        _patiently(put, address)
    except (SourceError, OSError) as error:
        raise SinkError(f"{redact(str(error))} (upload)") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text)[:300]
