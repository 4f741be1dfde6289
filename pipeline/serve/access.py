"""Who may ask for what: token and sessions, attempts, foreign pages, and the headers that bind a browser.

    loopback          no token; but only under this machine's own names, and only from the page itself
    any other host    the token, as ``Authorization: Bearer`` or once for a session cookie

A request that changes something needs the session's CSRF token in a header, too; with ``Bearer`` it does not, because
no browser sends that by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from pipeline.errors import SettingsError
from pipeline.serve.listen import AllowedNames

COOKIE: Final = "pose2seg_session"
CSRF_HEADER: Final = "X-CSRF-Token"
SESSION_S: Final = 12 * 3600.0
MAX_SESSIONS: Final = 64
ATTEMPTS: Final = 5  # wrong tokens from one address ...
ATTEMPTS_S: Final = 60.0  # ... in so many seconds
MAX_ADDRESSES: Final = 1024
MIN_TOKEN: Final = 16
MAX_TOKEN: Final = 512
OPEN_PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/api/session"})
OPEN_FOLDER: Final = "/static/"
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), display-capture=()",
}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def read_token(path: Path) -> str:
    """The token in a file: one line.

    Raises:
        SettingsError: it cannot be read, others may read it, or it is too short to be one.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not a text"
        raise SettingsError(f"--serve-token-file {path}: cannot be read ({said})") from error
    if mode & 0o077:
        raise SettingsError(f"--serve-token-file {path}: other users may read it: chmod 600 {path}")
    if not MIN_TOKEN <= len(text) <= MAX_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(
            f"--serve-token-file {path}: expected one line of {MIN_TOKEN} to {MAX_TOKEN} letters and digits, got "
            f"{len(text)} characters: python -c 'import secrets; print(secrets.token_urlsafe())' > {path}"
        )
    return text


def new_token() -> str:
    """256 bits that nobody guesses."""
    return secrets.token_urlsafe(32)


@dataclass(slots=True)
class _Session:
    csrf: str
    ends_s: float


class Sessions:
    """Who gave the token. Only hashes of what the browsers hold are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self) -> tuple[str, str]:
        """A new session: its cookie and its CSRF token. The oldest of too many ends."""
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = _Session(csrf, self._clock() + SESSION_S)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return cookie, csrf

    def csrf_of(self, cookie: str) -> str | None:
        """None: there is no such session, or it is over."""
        key = _digest(cookie)
        session = self._sessions.get(key)
        if session is None:
            return None
        if session.ends_s < self._clock():
            del self._sessions[key]
            return None
        return session.csrf

    def end(self, cookie: str) -> None:
        self._sessions.pop(_digest(cookie), None)


class Attempts:
    """Counts wrong tokens by address; IPv6 by network, because a host has as many addresses there as it likes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """How long this address has to wait; 0: it may try."""
        now = self._clock()
        recent = [at for at in self._failed.get(_network(address), []) if at > now - ATTEMPTS_S]
        return recent[-ATTEMPTS] + ATTEMPTS_S - now if len(recent) >= ATTEMPTS else 0.0

    def failed(self, address: str) -> None:
        key = _network(address)
        times = self._failed.pop(key, [])
        self._failed[key] = [*times, self._clock()][-ATTEMPTS:]
        while len(self._failed) > MAX_ADDRESSES:
            self._failed.popitem(last=False)


class Gate:
    """All checks of a request, as a middleware in front of everything."""

    def __init__(
        self,
        names: AllowedNames,
        token: str | None,
        *,
        secure_cookie: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            names: of this server.
            token: None asks for none.
            secure_cookie: the browser sends the cookie over HTTPS only.
            clock: monotonic, s.
        """
        self._names = names
        self._token = None if token is None else _digest(token)
        self._secure_cookie = secure_cookie
        self._csrf_without_session = secrets.token_urlsafe(32)
        self.sessions = Sessions(clock)
        self.attempts = Attempts(clock)

    @property
    def needs_token(self) -> bool:
        return self._token is not None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        """Refuse, or hand on.

        Raises:
            HTTPException: 401, 403, 421 or 429, with what to do.
        """
        self._check_names(request)
        if request.path not in OPEN_PATHS and not request.path.startswith(OPEN_FOLDER):
            by_cookie = self._authenticate(request)
            if by_cookie and request.method not in SAFE_METHODS:
                self._check_csrf(request)
        return await handler(request)

    def _check_names(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if len(request.headers.getall("Host", [])) != 1 or not self._names.host_fits(host):
            raise web.HTTPMisdirectedRequest(
                text="this server does not go by that name: use the address that was printed at the start, or "
                "start it with --serve-origin"
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self._names.origin_fits(origin, host):
            raise web.HTTPForbidden(text="another site's page asks: refused")
        site = request.headers.get("Sec-Fetch-Site", "none")
        opens_page = request.method == "GET" and request.path == "/" and _is_navigation(request)
        if site not in {"same-origin", "none"} and not opens_page:
            raise web.HTTPForbidden(text="another site's page asks: refused")

    def _authenticate(self, request: web.Request) -> bool:
        """True: by cookie, or by being on this machine; False: by the token itself."""
        given = request.headers.get("Authorization", "")
        if given.startswith("Bearer "):
            self._check_token(request, given.removeprefix("Bearer ").strip())
            return False
        if self._token is not None and self.csrf_of(request) is None:
            raise web.HTTPUnauthorized(
                text="the token is needed: as Authorization: Bearer TOKEN, or log in on the page",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return True

    def csrf_of(self, request: web.Request) -> str | None:
        """The CSRF token of the browser that asks; None: it must log in."""
        if self._token is None:
            return self._csrf_without_session
        return self.sessions.csrf_of(request.cookies.get(COOKIE, ""))

    def _check_csrf(self, request: web.Request) -> None:
        expected, given = self.csrf_of(request), request.headers.get(CSRF_HEADER, "")
        if expected is None or not hmac.compare_digest(_digest(expected), _digest(given)):
            raise web.HTTPForbidden(text=f"the header {CSRF_HEADER} is needed, with the value that /api/session gives")

    def _check_token(self, request: web.Request, given: str) -> None:
        address = request.remote or ""
        wait_s = self.attempts.wait_s(address)
        if wait_s > 0:
            raise web.HTTPTooManyRequests(
                text=f"too many wrong tokens: wait {wait_s:.0f} s", headers={"Retry-After": str(int(wait_s) + 1)}
            )
        # Hashes have one length, so the comparison tells nothing of the token, not even how long it is.
        if self._token is None or not hmac.compare_digest(self._token, _digest(given)):
            self.attempts.failed(address)
            raise web.HTTPUnauthorized(text="wrong token", headers={"WWW-Authenticate": "Bearer"})

    def log_in(self, request: web.Request, given: str) -> web.Response:
        """Begin a session; the answer carries its cookie and its CSRF token.

        Raises:
            HTTPException: 400 where no token is needed, 401 at a wrong one, 429 after too many.
        """
        if self._token is None:
            raise web.HTTPBadRequest(text="no token is needed here")
        self._check_token(request, given)
        cookie, csrf = self.sessions.begin()
        response = web.json_response({"needs_token": True, "csrf": csrf})
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=int(SESSION_S),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=self._secure_cookie,
        )
        return response

    def log_out(self, request: web.Request) -> web.Response:
        """End the session of the browser that asks."""
        if self.csrf_of(request) is not None and self.needs_token:
            self._check_csrf(request)
            self.sessions.end(request.cookies.get(COOKIE, ""))
        response = web.Response(status=204)
        response.del_cookie(COOKIE, path="/")
        return response


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Onto every answer, errors and streams too."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "pose2seg"


def _is_navigation(request: web.Request) -> bool:
    return request.headers.get("Sec-Fetch-Mode") == "navigate" and request.headers.get("Sec-Fetch-Dest") == "document"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
