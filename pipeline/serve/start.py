"""From the flags of ``pose2seg live`` to a page that is served, and what is said about it."""

from __future__ import annotations

import logging
import socket

from rich.console import Console
from rich.text import Text

from pipeline.live.run import LiveRun
from pipeline.live.settings import LiveSettings
from pipeline.serve import webrtc
from pipeline.serve.access import new_token, read_token
from pipeline.serve.listen import ip_address_of, read_listen_address, read_origin
from pipeline.serve.server import PageOptions, PageServer

log = logging.getLogger(__name__)


def start_page(run: LiveRun, settings: LiveSettings, console: Console) -> PageServer:
    """Serve a run. The token is printed here, once, and goes to no log.

    Raises:
        SettingsError: an address that cannot be had, or a token that is none.
    """
    listen = read_listen_address(settings.serve or "")
    origins = tuple(read_origin(origin) for origin in settings.serve_origin)
    token = None
    if settings.serve_token_file is not None:
        token = read_token(settings.serve_token_file)
    elif origins or not listen.is_loopback:
        token = new_token()
    server = PageServer(
        run,
        PageOptions(
            listen=listen,
            origins=origins,
            token=token,
            viewers=settings.serve_viewers,
            mask_threshold=settings.mask_threshold,
        ),
    )
    for library in ("aioice", "aiortc"):  # a line for each try of each address
        logging.getLogger(library).setLevel(logging.WARNING)
    server.start()
    url = origins[0] + "/" if origins else f"http://{_reachable(listen.url_host)}:{server.port}/"
    if token is not None and settings.serve_token_file is None:
        console.print(Text(f"page: {url}#token={token}"), soft_wrap=True)
        console.print("      the token is not shown again; whoever has it sees the pictures and starts recordings")
    else:
        console.print(Text(f"page: {url}"), soft_wrap=True)
    if not listen.is_loopback:
        log.warning("the page is not encrypted: outside of a network that you trust put a proxy with TLS in front")
    reason = webrtc.missing()
    if reason is not None:
        log.info("page: pictures as MJPEG: %s", reason)
    return server


def _reachable(host: str) -> str:
    """An address of this machine in place of "any"."""
    address = ip_address_of(host.strip("[]"))
    if address is None or not address.is_unspecified:
        return host
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks only by which address one would leave
            return str(probe.getsockname()[0])
    except OSError:
        return "localhost"
