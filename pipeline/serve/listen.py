"""Where the page is served, and under which names it may be asked for."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pipeline.errors import SettingsError

DEFAULT_PORT: Final = 8080
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """A place to listen at.

    Attributes:
        host: a name or an IP address, without brackets.
        port: 0 takes a free one.
    """

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only programs of this machine can reach it."""
        if self.host == "localhost":
            return True
        address = ip_address_of(self.host)
        return address is not None and address.is_loopback

    @property
    def url_host(self) -> str:
        """The host as it stands in an address."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def url(self, port: int) -> str:
        """Address of the page, with the port that it really got."""
        return f"http://{self.url_host}:{port}/"


def ip_address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None: it is a name, or nothing."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def read_listen_address(text: str) -> ListenAddress:
    """``HOST:PORT``, ``HOST`` or ``PORT``; IPv6 in brackets.

    Raises:
        SettingsError: it is none of these.
    """
    expected = f"--serve expects HOST:PORT such as 127.0.0.1:{DEFAULT_PORT}, got {text!r}"
    if text.isascii() and text.isdigit():
        return ListenAddress(host="127.0.0.1", port=_port(text, expected))
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]/@?#\s]+)(?::(\d{1,5}))?", text, re.ASCII)
    if bracketed is not None and isinstance(ip_address_of(bracketed[1]), ipaddress.IPv6Address):
        host, port = bracketed[1], bracketed[2]
    elif plain is not None and len(plain[1]) < 254 and _HOST_NAME.fullmatch(plain[1]) and "/" not in text:
        host, port = plain[1], plain[2]
    else:
        raise SettingsError(expected)
    last = host.rpartition(".")[2]
    if ip_address_of(host) is None and last.isdigit():  # 127.1, 0177.0.0.1: nobody sees what these mean
        raise SettingsError(expected)
    return ListenAddress(host=host.lower(), port=DEFAULT_PORT if port is None else _port(port, expected))


def _port(text: str, expected: str) -> int:
    port = int(text) if len(text) <= 5 else 65536
    if port > 65535:
        raise SettingsError(f"{expected}: a port is from 0 to 65535")
    return port


def read_origin(text: str) -> str:
    """``https://Cams.example.org/`` -> ``https://cams.example.org``.

    Raises:
        SettingsError: it is no such address.
    """
    expected = f"--serve-origin expects an address such as https://cams.example.org, got {text!r}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SettingsError(expected) from error
    host = parts.hostname or ""
    right_host = _HOST_NAME.fullmatch(host) or isinstance(ip_address_of(host), ipaddress.IPv6Address)
    if parts.scheme not in {"http", "https"} or not right_host or parts.path not in {"", "/"} or "@" in parts.netloc:
        raise SettingsError(expected)
    if parts.query or parts.fragment:
        raise SettingsError(expected)
    usual = 443 if parts.scheme == "https" else 80
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port in {None, usual} else f":{port}")


class AllowedNames:
    """``Host`` headers and origins that are ours: a page of somebody else's must not speak for the user.

    A name that an attacker's DNS points at this machine (DNS rebinding) is not among them.
    """

    def __init__(self, listen: ListenAddress, port: int, origins: tuple[str, ...]) -> None:
        """Set up.

        Args:
            listen: what was asked for.
            port: the one it really got.
            origins: of reverse proxies, see `read_origin`.
        """
        names = {listen.url_host, *(_LOCAL_NAMES if listen.is_loopback else ())}
        self._port = port
        self._any_ip = not listen.is_loopback
        self._hosts = {f"{name}:{port}" for name in names} | {urlsplit(origin).netloc for origin in origins}
        if port == 80:
            self._hosts |= names
        self._origins = set(origins)

    def host_fits(self, host: str) -> bool:
        """Whether a ``Host`` header names this server."""
        host = host.lower()
        if host in self._hosts:
            return True
        # An address is no name that could be made to point here; which ones this machine has may change at any time.
        return self._any_ip and any(
            host == f"{shown}:{self._port}" or (self._port == 80 and host == shown) for shown in _shown_ip(host)
        )

    def origin_fits(self, origin: str, host: str) -> bool:
        """Whether an ``Origin`` header is this page's: that of the request's own host, or of a proxy."""
        return origin in self._origins or (self.host_fits(host) and origin == f"http://{host.lower()}")


def _shown_ip(host: str) -> list[str]:
    name = re.sub(r":\d{1,5}$", "", host, flags=re.ASCII) if not host.endswith("]") else host
    address = ip_address_of(name.strip("[]"))
    if address is None:
        return []
    return [f"[{address}]" if address.version == 6 else str(address)]
