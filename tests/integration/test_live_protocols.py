"""Ways to a camera that need a server of their own: HLS, MPEG-TS over UDP."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from typing import Self

import pytest

from pipeline.selftest.servers import Camera, Muxed
from tests.integration.test_live import Watched

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def camera() -> Camera:
    return Camera(height=144, width=256, fps=20)


class HlsServer:
    """A live playlist of the last segments, a second each."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.segments: dict[int, bytes] = {}
        self.ended = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = outer.answer(self.path)
                self.send_response(200 if content is not None else 404)
                kind = "application/vnd.apple.mpegurl" if self.path.endswith(".m3u8") else "video/mp2t"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_arguments) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/live.m3u8"

    def answer(self, path: str) -> bytes | None:
        if path.endswith(".m3u8"):
            newest = sorted(self.segments)[-4:]
            head = (
                f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:{min(newest, default=0)}\n"
            )
            return (head + "".join(f"#EXTINF:1.0,\n{number}.ts\n" for number in newest)).encode()
        return self.segments.get(int(path.strip("/").removesuffix(".ts")))

    def _encode(self) -> None:
        parts: list[bytes] = []
        muxed, first = Muxed(parts.append, container="mpegts", codec="libx264", fps=self.camera.fps), None
        for number, image in self.camera.pictures(self.ended.is_set):
            second = number // self.camera.fps
            if first is not None and second != first:
                muxed.finish()
                self.segments[first] = b"".join(parts)
                parts = []
                muxed = Muxed(parts.append, container="mpegts", codec="libx264", fps=self.camera.fps)
            first = second
            muxed.add(number, image)

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self._encode, daemon=True).start()
        while len(self.segments) < 3 and not self.ended.wait(0.1):
            pass
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


def test_hls(camera) -> None:
    with HlsServer(camera) as server, Watched(server.url, camera=camera, stall_timeout=8.0) as watched:
        watched.more(count=10)
    numbers = watched.numbers[0]
    assert numbers == sorted(set(numbers))
    assert min(watched.ages_s[0]) < 10


def test_mpegts_over_udp(camera) -> None:
    ended = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(data: bytes) -> None:
        for start in range(0, len(data), 7 * 188):
            with contextlib.suppress(ConnectionRefusedError):  # nobody listens yet
                sender.sendto(data[start : start + 7 * 188], ("127.0.0.1", port))

    def play() -> None:
        muxed = Muxed(send, container="mpegts", codec="libx264", fps=camera.fps)
        for number, image in camera.pictures(ended.is_set):
            muxed.add(number, image)

    player = threading.Thread(target=play, daemon=True)
    player.start()
    try:
        with Watched(f"udp://127.0.0.1:{port}", camera=camera) as watched:
            watched.more(count=20)
    finally:
        ended.set()
        player.join(5)
        sender.close()
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))
    assert min(watched.ages_s[0][-10:]) < 2.0
