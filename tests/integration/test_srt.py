"""SRT in both directions, the other side played by the program ffmpeg itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from typing import Self

import pytest

from pipeline.live.source import SourceState
from pipeline.live.srt import program_for_srt
from pipeline.selftest.servers import Camera, CameraServer, Muxed, number_of
from pipeline.video_input import LiveAccess, VideoInput
from tests.integration.test_live import Watched, urls

pytestmark = [pytest.mark.timeout(180), pytest.mark.srt_program]


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def camera() -> Camera:
    return Camera(height=144, width=256, fps=20)


class SrtCamera:
    """ffmpeg as a camera that waits for callers."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.port = free_udp_port()
        self.ended = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.kill()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def kill(self) -> None:
        process = self.process
        if process is not None:
            process.kill()

    def _play(self) -> None:
        """One caller after the other: the program ends with its caller."""
        while not self.ended.is_set():
            address = f"srt://127.0.0.1:{self.port}?mode=listener&passphrase=hunter2hunter2"
            command = [program_for_srt("test"), "-loglevel", "error", "-f", "mpegts", "-i", "pipe:0", "-c", "copy"]
            self.process = process = subprocess.Popen(
                [*command, "-f", "mpegts", address], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            with contextlib.suppress(OSError), process.stdin:
                muxed = Muxed(process.stdin.write, container="mpegts", codec="libx264", fps=self.camera.fps)
                for number, image in self.camera.pictures(
                    lambda p=process: p.poll() is not None or self.ended.is_set()
                ):
                    muxed.add(number, image)
                    process.stdin.flush()
            process.kill()
            process.wait(10)


def test_a_source_that_is_killed_and_comes_back(camera, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    with (
        SrtCamera(camera) as sender,
        Watched(
            f"srt://127.0.0.1:{sender.port}?passphrase=hunter2hunter2",
            f"srt://127.0.0.1:{free_udp_port()}?connect_timeout=1000",
            camera=camera,
        ) as watched,
    ):
        watched.more(count=10)
        sender.kill()
        watched.wait(lambda: watched.report().source.state is not SourceState.LIVE, "the loss is noticed")
        watched.more(count=10)
        watched.wait(lambda: watched.report(1).source.reconnects, "nobody answers the other")
    assert watched.stopped_after_s < 5
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))
    assert watched.report(1).source.connects == 0
    assert "hunter2" not in caplog.text


def test_a_push(camera) -> None:
    port, numbers = free_udp_port(), []
    command = [program_for_srt("test"), "-loglevel", "error", "-i", f"srt://127.0.0.1:{port}?mode=listener"]
    receiver = subprocess.Popen([*command, "-c", "copy", "-f", "mpegts", "pipe:1"], stdout=subprocess.PIPE, bufsize=0)

    def read() -> None:
        video = VideoInput("srt", timeout_s=60, live=LiveAccess(options={"probesize": "50000"}), file=receiver.stdout)
        numbers.extend(number_of(picture.pixels) for picture in video.pictures())
        video.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        with (
            CameraServer(camera) as server,
            Watched(urls(server), camera=camera, push=(f"srt://127.0.0.1:{port}",)) as watched,
        ):
            watched.wait(lambda: watched.report().sinks[0].written > 60, "pictures go out")
        reader.join(20)
        assert not reader.is_alive()
    finally:
        receiver.kill()
        receiver.wait(10)
        receiver.stdout.close()
    seen = numbers
    assert len(set(seen)) > 30
    assert seen == sorted(seen)
    assert len(set(seen) & set(watched.numbers[0])) > 0.5 * len(set(seen))  # who listens there gets the newest only
