"""A real HTTP server on the loopback that serves one file and breaks in the ways that servers break."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What the server does; tests change it between requests, requests are recorded."""

    content: bytes = b""
    ranges: bool = True
    etag: bool = True
    length: bool = True
    cut_after: int | None = None  # bytes of each answer, then the connection is closed
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    redirect: str | None = None  # every request is sent there
    wrong_start: bool = False  # 206 that begins elsewhere
    says_length: str | None = None
    silent: threading.Event | None = None  # nothing is answered until it is set
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Serve until the end of the block; gives the address of the file."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            said = {"path": self.path, "range": self.headers.get("Range"), "if_range": self.headers.get("If-Range")}
            behaviour.requests.append(said)
            self.close_connection = True
            if behaviour.silent is not None:
                behaviour.silent.wait(30)
                return
            if behaviour.redirect is not None:
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            content, start, status = behaviour.content, 0, 200
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            wanted = said["range"]
            if wanted and behaviour.ranges and said["if_range"] in {None, tag}:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(status)
            if behaviour.etag:
                self.send_header("ETag", tag)
            if status == 206:
                first = start + 1 if behaviour.wrong_start else start
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            if behaviour.length:
                self.send_header("Content-Length", behaviour.says_length or str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            self.wfile.write(rest if behaviour.cut_after is None else rest[: behaviour.cut_after])

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/sets/file.zip"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
        assert not thread.is_alive()
