"""The live run against an RTSP server that others wrote: Debian's GStreamer one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from pipeline.live.source import SourceState
from pipeline.selftest.servers import Camera, Muxed
from tests.integration.test_live import Watched

pytestmark = [pytest.mark.timeout(180), pytest.mark.rtsp_server]
SCRIPT = Path(__file__).parents[1] / "gstreamer_rtsp_server.py"


class GStreamerServer:
    """The server process, and the thread that feeds it with numbered pictures."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"rtsp://user:secret@127.0.0.1:{self.port}/camera"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["/usr/bin/python3", str(SCRIPT), str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline() == b"ready\n"
        threading.Thread(target=self._feed, args=(self.process,), daemon=True).start()

    def kill(self) -> None:
        process, self.process = self.process, None
        process.kill()
        process.wait(10)
        process.stdout.close()

    def _feed(self, process) -> None:
        def send(unit: bytes) -> None:
            process.stdin.write(len(unit).to_bytes(4, "big") + unit)
            process.stdin.flush()

        try:
            muxed = Muxed(send, container="h264", codec="libx264", fps=self.camera.fps)
            for number, image in self.camera.pictures(lambda: process.poll() is not None):
                muxed.add(number, image)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_pictures_arrive_in_order_and_young(transport) -> None:
    camera = Camera(height=144, width=256, fps=20)
    with (
        GStreamerServer(camera) as server,
        Watched(server.url, camera=camera, rtsp_transport=transport) as watched,
    ):
        watched.more(count=20)
        watched.more(count=20)
    numbers = watched.numbers[0]
    assert numbers == sorted(set(numbers))
    print(f"{transport}: glass to result, the last ten: {[f'{age * 1e3:.0f}' for age in watched.ages_s[0][-10:]]} ms")
    assert min(watched.ages_s[0][-20:]) < 2.0


def test_killed_and_restarted() -> None:
    camera = Camera(height=144, width=256, fps=20)
    with GStreamerServer(camera) as server, Watched(server.url, camera=camera) as watched:
        for _ in range(3):
            watched.more(count=5)
            server.kill()
            watched.wait(lambda: watched.report().source.state is SourceState.RECONNECTING, "notices it")
            time.sleep(0.2)
            server.start()
            watched.more(count=5)
    assert watched.report().source.connects >= 4
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))
