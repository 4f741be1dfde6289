"""A stream that changes in the middle: frame rate and codec; and an RTMP source from a server that others wrote."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from pipeline.selftest.servers import Camera, CameraServer, Muxed
from tests.integration.test_live import Watched, urls
from tests.live_servers import NginxRtmp

pytestmark = pytest.mark.timeout(180)


class ChangingServer(CameraServer):
    """MPEG-TS whose codec is changed by `codec`; the tables of the stream say so, the connection stays."""

    codec = "libx264"

    def serve(self, client: socket.socket, down: threading.Event) -> None:
        codec, muxed = "", None
        for number, image in self.camera.pictures(down.is_set):
            if codec != self.codec:
                if muxed is not None:
                    muxed.finish()
                codec = self.codec
                muxed = MpegMuxed(client.sendall, container="mpegts", codec=codec, fps=self.camera.fps)
            muxed.add(number, image)


class MpegMuxed(Muxed):
    """Also MPEG-2."""

    def _set_up(self, context: Any, image) -> None:
        super()._set_up(context, image)
        if self._codec == "mpeg2video":
            context.pix_fmt = "yuv420p"


def in_order(numbers: list[int]) -> bool:
    return numbers == sorted(set(numbers))


def test_another_frame_rate() -> None:
    """From 20 to 5 pictures a second and back: the same connection, and times that keep their distances."""
    camera = Camera(height=144, width=256, fps=20)
    slow = threading.Event()

    class Rated(Camera):
        def pictures(self, ended):
            for number, image in camera.pictures(ended):
                if not slow.is_set() or number % 4 == 0:
                    yield number, image

    rated = Rated(height=144, width=256, fps=20)
    rated.started_s = camera.started_s
    with CameraServer(rated) as server, Watched(urls(server), camera=camera) as watched:
        watched.more(count=10)
        slow.set()
        watched.wait(lambda: watched.report().source.fps < 8, "the lower rate is seen")
        slow.clear()
        watched.wait(lambda: watched.report().source.fps > 12, "the higher rate is seen")
        watched.more(count=5)
    assert watched.report().source.connects == 1
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))
    times = [result.frame.pts_s for result in watched.results[0]]
    span = (watched.numbers[0][-1] - watched.numbers[0][0]) / camera.fps
    assert times[-1] - times[0] == pytest.approx(span, abs=0.2)


def test_another_codec() -> None:
    """H.264 becomes MPEG-2 and H.264 again; no restart of the run, and the other source does not notice."""
    camera = Camera(height=144, width=256, fps=20)
    with (
        ChangingServer(camera) as server,
        CameraServer(camera) as other,
        # more silence than a busy machine makes by itself: the other source must not be opened again for that
        Watched(urls(server), urls(other), camera=camera, stall_timeout=6.0) as watched,
    ):
        watched.more(count=10)
        for codec in ("mpeg2video", "libx264"):
            server.codec = codec
            watched.more(count=10)
            # at first the decoder may make pictures of what it does not understand
            watched.wait(lambda: in_order(watched.numbers[0][-10:]), "ten pictures in their order")
            watched.more(1, count=5)
        print(watched.report().source)
    assert in_order(watched.numbers[1])
    assert watched.report(1).source.reconnects == {}
    assert 1 < watched.report().source.connects <= 6


@pytest.mark.rtmp_server
def test_an_rtmp_source(tmp_path) -> None:
    """What one run pushes, another one reads."""
    camera = Camera(height=144, width=256, fps=20)
    with CameraServer(camera) as server, NginxRtmp(tmp_path) as nginx:
        address = f"rtmp://127.0.0.1:{nginx.port}/live/x"
        with (
            Watched(urls(server), camera=camera, push=(address,)) as pushing,
            Watched(address, camera=camera, stall_timeout=3.0) as watched,
        ):
            pushing.more(count=5)
            watched.more(count=20)
    assert watched.numbers[0] == sorted(watched.numbers[0])
    assert min(watched.ages_s[0][-10:]) < 5.0
