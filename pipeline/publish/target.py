"""Where results may go: the grammar of ``--publish``, ``--push`` and ``--webhook``.

    SCHEME://[USER:PASSWORD@]HOST[:PORT][/PATH][?QUERY]     SCHEME one of those of the flag
    @FILE                                                   the same, on the first line of a file

Passwords, secret query parameters and - where a path is a secret by custom, as in stream keys and webhooks - paths are
not part of `Target.name`, which is what people see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import SettingsError
from pipeline.redaction import redact

PUBLISH_PORTS: Final = {"tcp": 0, "ws": 80, "wss": 443, "mqtt": 1883, "mqtts": 8883}  # 0: must be given
PUSH_PORTS: Final = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "srt": 0}
WEBHOOK_PORTS: Final = {"http": 80, "https": 443}
SECRET_PATHS: Final = ("rtmp", "rtmps", "http", "https")  # stream keys, webhooks
STREAM: Final = "{stream}"
MAX_LENGTH: Final = 4096

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place that results go to.

    Attributes:
        text: the address as it is opened; may hold a password.
        name: the same for people.
        scheme: lower case.
        port: the given one, or that of the scheme.
    """

    text: str = field(repr=False)
    name: str
    scheme: str
    port: int

    @property
    def url(self) -> SplitResult:
        """Parts of the address."""
        return urlsplit(self.text)

    @property
    def host(self) -> str:
        """Name or address, without brackets."""
        return self.url.hostname or ""

    @property
    def user(self) -> str | None:
        """User name, unquoted."""
        return None if self.url.username is None else unquote(self.url.username)

    @property
    def password(self) -> str | None:
        """Password, unquoted."""
        return None if self.url.password is None else unquote(self.url.password)

    @property
    def several(self) -> bool:
        """Whether each stream has an address of its own."""
        return STREAM in self.text

    def of_stream(self, stream: int) -> Target:
        """The address of one stream."""
        number = str(stream)
        return replace(self, text=self.text.replace(STREAM, number), name=self.name.replace(STREAM, number))

    def hidden_in(self, text: str) -> str:
        """What a library said, without this address's secrets."""
        said = text.replace(self.text, self.name)
        for secret in (self.url.password, self.password, *self._secret_parts()):
            if secret and len(secret) > 2:
                said = said.replace(secret, "***")
        return redact(said)

    def _secret_parts(self) -> tuple[str, ...]:
        path = (self.url.path.rpartition("/")[2],) if self.scheme in SECRET_PATHS else ()
        parameters = [part for part in self.url.query.split("&") if redact(f"?{part}") != f"?{part}"]
        return (*path, *(part.partition("=")[2] for part in parameters))


def parse_target(text: str, *, flag: str, ports: Mapping[str, int]) -> Target:
    """What one value of a flag means; nothing is opened but a file named with @.

    Args:
        text: the value.
        flag: for messages.
        ports: the schemes that may be used, each with its usual port; 0: the port must be given.

    Raises:
        SettingsError: it is no such address. The message holds no secret.
    """
    if text.startswith("@"):
        text = _first_line(Path(text[1:]), flag)
    schemes = ", ".join(f"{name}://" for name in ports)
    match = _URL.match(text[:MAX_LENGTH])
    if match is None or match[1].lower() not in ports:
        got = f"{match[1][:20]}://" if match else "no address"
        raise SettingsError(f"{flag} expects {schemes} or @FILE with such an address in it, got {got}")
    scheme = match[1].lower()
    if len(text) > MAX_LENGTH or _UNSAFE.search(text) or not text.isprintable():
        raise SettingsError(
            f"{flag} {scheme}://: an address has at most {MAX_LENGTH} characters, and no spaces, control characters or "
            "backslashes: write them as %20"
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may quote the password
        host, port = None, None
    if not host:
        raise SettingsError(
            f"{flag} {scheme}://: expected {scheme}://[USER:PASSWORD@]HOST[:PORT]/..., host or port is none"
        )
    port = port or ports[scheme]
    if not port:
        raise SettingsError(f"{flag} {_name_of(parts, scheme)}: expected a port behind the host")
    return Target(text=text, name=_name_of(parts, scheme), scheme=scheme, port=port)


def _name_of(parts: SplitResult, scheme: str) -> str:
    """Host and port are shown; of a path that is a secret only that there is one."""
    authority = parts.netloc.rpartition("@")[2]
    shown = f"{scheme}://{'***@' if '@' in parts.netloc else ''}{authority}"
    if scheme in SECRET_PATHS:
        folders, _, last = parts.path.rpartition("/")
        folders = folders if scheme.startswith("rtmp") else ""
        return shown + folders + ("/***" if last or folders or parts.query else "") + (STREAM if STREAM in last else "")
    query = f"?{parts.query}" if parts.query else ""
    return redact(shown + parts.path + query)


def _first_line(path: Path, flag: str) -> str:
    try:
        with path.open("rb") as file:
            return file.readline(MAX_LENGTH + 2).decode().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"{flag} @{path}: cannot be read ({reason}): expected a file with an address") from None
