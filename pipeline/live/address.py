"""What a SOURCE of the live command means, and which addresses may be opened.

The grammar, first match wins:

    -                   standard input: MPEG-TS, Matroska or a bare H.264 stream
    SCHEME://...        a network stream, SCHEME one of `LIVE_SCHEMES`
    NUMBER              a camera, where no file is called so
    /dev/videoNUMBER    a camera
    NAME.streams        a text file: a source on each line; empty lines and those that begin with # say nothing
    anything else       a video file
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

import av

from pipeline.errors import SettingsError, SourceError
from pipeline.live.srt import program_for_srt
from pipeline.redaction import redact

LIVE_SCHEMES: Final = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "srt", "udp", "tcp")
LISTENING_SCHEMES: Final = ("udp", "srt")  # the host may be left out: udp://:5000, srt://:5000?mode=listener
MAX_ADDRESS_LENGTH: Final = 4096
MAX_SOURCES: Final = 64
MAX_LIST_BYTES: Final = 1_000_000
MAX_SHOWN: Final = 200

_DEVICE = re.compile(r"/dev/video[0-9]{1,4}")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")  # no part of an address; what a parser of another opinion may stumble over
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_DEFAULT_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935, "rtmps": 443}

Kind = Literal["stdin", "url", "camera", "device", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One source.

    Attributes:
        kind: what it is.
        text: as it is opened; may hold a password.
        name: the same for people.
    """

    kind: Kind
    text: str = field(repr=False)
    name: str

    @property
    def url(self) -> SplitResult:
        """Parts of an address of kind ``url``."""
        return urlsplit(self.text)


@dataclass(frozen=True, slots=True)
class AllowedUrls:
    """The patterns of ``--allow-url``; without any, all addresses that the user names are allowed.

    A pattern is ``SCHEME://HOST[:PORT][/PATH]`` with * and ? in each part; a * of the host does not reach into the
    path. Without a port every port is meant, without a path every path.
    """

    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            if "://" not in pattern or _UNSAFE.search(pattern):
                raise SettingsError(
                    f"--allow-url expects a pattern such as rtsp://10.0.0.*:554/*, got {redact(pattern)!r}"
                )

    def allows(self, url: str) -> bool:
        """Whether a pattern matches; False without patterns."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme.lower())
        except ValueError:
            return False
        for pattern in self.patterns:
            scheme, _, rest = pattern.partition("://")
            authority, slash, path = rest.partition("/")
            host_pattern, port_pattern = _host_and_port(authority)
            if (
                fnmatchcase(parts.scheme.lower(), scheme.lower())
                and fnmatchcase(host, host_pattern.lower())
                and (not port_pattern or fnmatchcase(str(port), port_pattern))
                and (not slash or fnmatchcase(parts.path or "/", "/" + path))
            ):
                return True
        return False

    def check(self, address: Address) -> None:
        """Refuse an address that no pattern matches.

        Raises:
            SettingsError: there are patterns, and none fits.
        """
        if self.patterns and address.kind == "url" and not self.allows(address.text):
            raise SettingsError(f"{address.name}: no --allow-url pattern allows this address: add one or leave it out")

    def check_redirect(self, origin: str, target: str) -> None:
        """Refuse a redirect that leads from the outside into a private network, or to what no pattern allows.

        Raises:
            SourceError: it does.
        """
        scheme = urlsplit(target).scheme.lower()
        if scheme not in {"http", "https"}:
            raise SourceError(f"{redact(origin)}: redirects to {scheme}://: only http and https are followed")
        if self.allows(target):
            return
        if self.patterns:
            raise SourceError(f"{redact(origin)}: redirects to {redact(target)}, which no --allow-url pattern allows")
        if is_private(urlsplit(target).hostname) and not is_private(urlsplit(origin).hostname):
            raise SourceError(
                f"{redact(origin)}: redirects to {redact(target)} in a private network: "
                "refused; allow it with --allow-url if that is wanted"
            )


def is_private(host: str | None) -> bool:
    """Whether any address of a host is not a public one; an unknown host counts as private."""
    if not host:
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)}
    except (OSError, UnicodeError):
        return True
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not address.is_global:
            return True
    return not found


def read_addresses(sources: Sequence[str], allowed: AllowedUrls) -> list[Address]:
    """What the SOURCE arguments mean, ``.streams`` files replaced by what they hold.

    Raises:
        SettingsError: one cannot be meant, is not allowed, or there are too many.
        SourceError: a file or camera is not there.
    """
    found: list[Address] = []
    for source in sources:
        if source.lower().endswith(".streams") and not _URL.match(source):
            found += read_list(Path(source))
        else:
            found.append(parse_address(source))
        if len(found) > MAX_SOURCES:
            raise SettingsError(f"expected at most {MAX_SOURCES} sources, got more: start another process for them")
    if sum(address.kind == "stdin" for address in found) > 1:
        raise SettingsError("standard input (-) can be read by one source only")
    for address in found:
        allowed.check(address)
        check_exists(address)
    return found


def read_list(path: Path) -> list[Address]:
    """The sources of a ``.streams`` file.

    Raises:
        SettingsError: it cannot be read, is too long, holds none, or a line is no source.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{path}: cannot be read ({reason}): expected a text file of sources") from error
    if len(data) > MAX_LIST_BYTES:
        raise SettingsError(f"{path}: expected at most {MAX_LIST_BYTES} bytes of sources, the file is longer")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected text in UTF-8, found byte {error.start} that is none") from error
    found: list[Address] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if len(found) == MAX_SOURCES:
            raise SettingsError(f"{path}: expected at most {MAX_SOURCES} sources, line {number} is one more")
        if text.lower().endswith(".streams") and not _URL.match(text):
            raise SettingsError(f"{path}, line {number}: a list of sources cannot name another list")
        try:
            found.append(parse_address(text))
        except SettingsError as error:
            raise SettingsError(f"{path}, line {number}: {error}") from None
    if not found:
        raise SettingsError(f"{path}: expected a source on a line, found none")
    return found


def parse_address(text: str) -> Address:
    """What one source means; nothing is opened.

    Raises:
        SettingsError: it is empty, too long, or an address that cannot be.
    """
    shown = shown_as(text)
    if not text or len(text) > MAX_ADDRESS_LENGTH or "\0" in text:
        raise SettingsError(
            f"expected a source of 1 to {MAX_ADDRESS_LENGTH} characters, got {shown} of {len(text)} characters"
        )
    if text == "-":
        return Address(kind="stdin", text=text, name="standard input")
    if match := _URL.match(text):
        _check_url(text, match["scheme"].lower(), shown)
        return Address(kind="url", text=text, name=shown)
    if text.isascii() and text.isdecimal() and not os.path.lexists(text):
        if len(text) > 4:
            raise SettingsError(f"expected a camera number of at most 4 digits, got {shown}")
        return Address(kind="camera", text=str(int(text)), name=f"camera {int(text)}")
    if _DEVICE.fullmatch(text):
        return Address(kind="device", text=text, name=text)
    return Address(kind="file", text=text, name=shown)


def shown_as(text: str) -> str:
    """A source for people: no password, no line ends or other signs that could forge a line of a log, not endless."""
    shown = redact(text)
    shown = shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)


def _check_url(text: str, scheme: str, shown: str) -> None:
    if scheme not in LIVE_SCHEMES:
        names = ", ".join(f"{name}://" for name in LIVE_SCHEMES)
        raise SettingsError(f"{shown}: expected an address starting with {names}, got {scheme}://")
    if _UNSAFE.search(text):
        raise SettingsError(
            f"{shown}: an address holds no spaces, control characters or backslashes: write them as %20"
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its text may quote the password
        raise SettingsError(
            f"{shown}: expected SCHEME://[USER:PASSWORD@]HOST[:PORT]/..., host or port is none"
        ) from None
    if not host and scheme not in LISTENING_SCHEMES:
        raise SettingsError(f"{shown}: expected a host behind {scheme}://")
    if not is_known_to_ffmpeg(scheme):
        program_for_srt(shown)


def is_known_to_ffmpeg(scheme: str) -> bool:
    """Whether PyAV's FFmpeg has a protocol; asked once for srt, the one its wheels leave out."""
    if scheme != "srt":
        return True
    try:
        av.open("srt://", "r", timeout=(0.001, 0.001)).close()
    except av.error.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, OSError, ValueError):
        return True
    return True


def check_exists(address: Address) -> None:
    """Refuse a file or a camera that is not there: nobody waits for it to appear.

    Raises:
        SourceError: it is not there.
    """
    if address.kind == "file" and not os.path.isfile(address.text):
        raise SourceError(f"{address.name}: no such file, and no address or camera: check it")


def _host_and_port(authority: str) -> tuple[str, str]:
    """Of a pattern; an IPv6 address stands in brackets."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = authority.partition(":")
    return host, port
