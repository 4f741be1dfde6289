"""The server: a thread with an event loop, its sockets and its limits."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from pipeline.errors import SettingsError
from pipeline.redaction import redact
from pipeline.serve.access import Gate, add_headers
from pipeline.serve.figures import Run
from pipeline.serve.listen import AllowedNames, ListenAddress
from pipeline.serve.openapi import ROUTES
from pipeline.serve.routes import Routes

log = logging.getLogger(__name__)

HEADER_S: Final = 15.0  # for a request to come, and for a connection without one to stay
MAX_BODY: Final = 64 * 1024  # bytes
MAX_LINE: Final = 4096
MAX_CONNECTIONS: Final = 128
START_S: Final = 60.0  # the first import of the libraries on a busy machine
STOP_S: Final = 4.0
SAMPLE_S: Final = 1.0
_KEPT_HEADERS: Final = ("WWW-Authenticate", "Retry-After", "Allow")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """How the page is served.

    Attributes:
        listen: where.
        origins: of reverse proxies that show it, see `pipeline.serve.listen.read_origin`.
        token: None asks for none; not allowed where others than this machine could ask.
        viewers: at most so many at once.
        mask_threshold: of the run.
        header_s: time for a request's header.
    """

    listen: ListenAddress
    origins: tuple[str, ...] = ()
    token: str | None = None
    viewers: int = 8
    mask_threshold: float = 0.5
    header_s: float = HEADER_S

    def __post_init__(self) -> None:
        if self.token is None and (self.origins or not self.listen.is_loopback):
            raise ValueError("whoever can be asked from elsewhere needs a token")


class PageServer:
    """Serves one run from `start` to `stop`. The run goes on whatever happens here."""

    def __init__(self, run: Run, options: PageOptions) -> None:
        """Take the port.

        Args:
            run: read and steered from the server's thread.
            options: how.

        Raises:
            SettingsError: the address cannot be had.
        """
        self._run = run
        self._options = options
        self._socket = _bound(options.listen)
        self.port: int = self._socket.getsockname()[1]
        self.url = options.listen.url(self.port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)

    def start(self) -> None:
        """Answer from now on.

        Raises:
            RuntimeError: it did not start.
        """
        self._thread.start()
        if not self._started.wait(START_S) or self._failed is not None:
            raise RuntimeError(f"the page's server did not start within {START_S:.0f} s") from self._failed

    def stop(self) -> None:
        """Let go of all viewers and end; takes `STOP_S` at most."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        if self._thread.is_alive():
            self._thread.join(STOP_S)
            if self._thread.is_alive():
                log.warning("the page's server did not end in time; it ends with the process")
        self._socket.close()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            log.error("the page's server failed: %s: %s", type(error).__name__, redact(str(error)))  # noqa: TRY400
        finally:
            self._started.set()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_stray_error)
        executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="page")
        loop.set_default_executor(executor)
        self._loop, self._stop = loop, asyncio.Event()
        options = self._options
        names = AllowedNames(options.listen, self.port, options.origins)
        https = bool(options.origins) and all(origin.startswith("https:") for origin in options.origins)
        gate = Gate(names, options.token, secure_cookie=https)
        routes = Routes(
            self._run,
            gate,
            streams=len(self._run.sources()),
            viewers=options.viewers,
            mask_threshold=options.mask_threshold,
            webrtc_addresses=_packet_addresses(self._socket),
        )
        app = web.Application(middlewares=[errors_as_json, gate.middleware], client_max_size=MAX_BODY)
        app.on_response_prepare.append(add_headers)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, getattr(routes, route.name), expect_handler=_on_expect)
        app.router.add_route("*", "/{rest:.*}", _no_such_route, expect_handler=_on_expect)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_quiet(),
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=options.header_s,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        sampler = loop.create_task(_sample(routes))
        server = await loop.create_server(lambda: _protocol(runner), sock=self._socket, backlog=64)
        try:
            self._started.set()
            await self._stop.wait()
        finally:
            server.close()
            sampler.cancel()
            await routes.close()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2.0):
                    await runner.cleanup()
            executor.shutdown(wait=False, cancel_futures=True)


async def _on_expect(request: web.Request) -> None:
    """``Expect``: the library's own answer repeats the header, and fails where that is no text."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="expected no other Expect than 100-continue")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _no_such_route(request: web.Request) -> web.StreamResponse:
    """What no route takes, the last one: 405 where another method would be taken, else 404."""
    allowed: set[str] = set()
    own = request.match_info.route.resource
    for resource in request.app.router.resources():
        if resource is not own:
            _, methods = await resource.resolve(request)
            allowed |= methods
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, sorted(allowed), text="no such method here")
    raise web.HTTPNotFound(text="no such address; /api describes all there are")


def _quiet() -> logging.Logger:
    """For what strangers send that is no HTTP: each gets 400, and a line each would let them fill the log."""
    quiet = logging.getLogger(f"{__name__}.requests")
    quiet.setLevel(logging.CRITICAL)
    return quiet


def _protocol(runner: web.AppRunner) -> asyncio.BaseProtocol:
    server = runner.server
    if server is None or len(server.connections) >= MAX_CONNECTIONS:
        return _Refusal()
    protocol: asyncio.BaseProtocol = server()
    return protocol


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            transport.close()


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal is ``{"error": what to do}``; what was not foreseen is logged and told to nobody."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {
            name: error.headers[name] for name in ("WWW-Authenticate", "Retry-After", "Allow") if name in error.headers
        }
        return web.json_response({"error": error.text or error.reason}, status=error.status, headers=kept)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("%s %s failed", request.method, redact(request.path[:200]))
        return web.json_response({"error": "a mistake of this program; its log says more"}, status=500)


async def _sample(routes: Routes) -> None:
    """Once a second: the figures' history, and viewers who left without a word."""
    while True:
        try:
            routes.history.sample()
            routes.viewers.forget_idle()
        except Exception:
            log.exception("the page's figures could not be taken")
        await asyncio.sleep(SAMPLE_S)


def _on_stray_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the libraries' own tasks end with, such as a peer that vanished, is nobody's concern but a developer's."""
    log.debug("page: %s: %s", context.get("message"), context.get("exception"))


def _bound(listen: ListenAddress) -> socket.socket:
    host = "127.0.0.1" if listen.host == "localhost" else listen.host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"--serve {listen.url_host}:{listen.port}: cannot listen there ({error.strerror}): choose another address "
            "or port"
        ) from error
    return bound


def _packet_addresses(bound: socket.socket) -> Sequence[str] | None:
    """Where WebRTC may take packets: there where the page is served; None: anywhere."""
    host = bound.getsockname()[0].partition("%")[0]
    return None if ipaddress.ip_address(host).is_unspecified else [host]
