"""Pictures pushed to servers that others wrote: nginx for RTMP, Debian's GStreamer server for RTSP."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.live.run import LiveRun
from pipeline.live.settings import LiveSettings
from pipeline.publish.push import _picture_of
from pipeline.selftest.servers import Camera, CameraServer, number_of
from pipeline.video_input import LiveAccess, VideoInput
from tests.fakes import MAGENTA, fake_model
from tests.integration.test_live import Watched, urls
from tests.live_servers import NginxRtmp, RtspRecordServer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def camera() -> Camera:
    return Camera(height=144, width=256, fps=20)


class NoisyCamera(Camera):
    """Pictures that do not compress: a system's buffers hold seconds of them, not minutes."""

    def pictures(self, ended):
        noise = np.random.default_rng(0).integers(0, 255, (self.size[0] - 40, self.size[1], 3), np.uint8)
        for number, image in super().pictures(ended):
            image[40:] = np.roll(noise, number * 7, axis=0)
            yield number, image


def sink(watched, word: str, stream: int = 0):
    (report,) = [report for report in watched.report(stream).sinks if word in report.name]
    return report


class Viewer:
    """Watches a stream on a server, connecting until there is one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.numbers: list[int] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        access = LiveAccess(options={"protocol_whitelist": "rtmp,tcp", "probesize": "100000"})
        while not self.ended.is_set():
            try:
                video = VideoInput(self.url, timeout_s=3, live=access)
            except SourceError:
                self.ended.wait(0.2)
                continue
            try:
                for picture in video.pictures(self.ended.is_set):
                    self.numbers.append(number_of(picture.pixels))
            except SourceError:
                pass
            finally:
                video.close()

    def close(self) -> None:
        self.ended.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.mark.rtmp_server
def test_rtmp_a_key_each_and_a_server_that_is_killed(camera, tmp_path, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    with CameraServer(camera) as server, NginxRtmp(tmp_path) as nginx:
        viewers = [Viewer(f"rtmp://127.0.0.1:{nginx.port}/live/hunter2-{stream}") for stream in (0, 1)]
        try:
            with Watched(
                *(urls(server), urls(server)),
                camera=camera,
                push=(f"rtmp://127.0.0.1:{nginx.port}/live/hunter2-{{stream}}",),
            ) as watched:
                for viewer in viewers:
                    watched.wait(lambda viewer=viewer: len(viewer.numbers) >= 20, "pictures at the server")
                nginx.kill()
                watched.wait(lambda: sink(watched, "push").dropped.get("not connected", 0) > 3, "it is counted")
                nginx.start()
                seen = [len(viewer.numbers) for viewer in viewers]
                for viewer, before in zip(viewers, seen, strict=True):
                    watched.wait(
                        lambda viewer=viewer, before=before: len(viewer.numbers) >= before + 20, "pictures again"
                    )
                watched.more(count=3)
            assert watched.stopped_after_s < 6
        finally:
            for viewer in viewers:
                viewer.close()
    for viewer in viewers:
        assert viewer.numbers == sorted(viewer.numbers)
        made = set(watched.numbers[0]) | set(watched.numbers[1])  # of those who listened; they get the newest only
        assert len(set(viewer.numbers) & made) > 0.5 * len(set(viewer.numbers))
    assert "hunter2" not in caplog.text
    assert all("hunter2" not in report.name for report in watched.report().sinks)


@pytest.mark.rtmp_server
def test_a_server_that_takes_nothing_is_noticed_and_stops_nothing(tmp_path, caplog) -> None:
    """It accepts and never answers, or falls asleep in the middle; the cameras go on, and it is left."""
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    camera = NoisyCamera(height=360, width=640, fps=20)
    with CameraServer(camera) as server, CameraServer(camera) as mute, NginxRtmp(tmp_path) as nginx:
        mute.mute = True
        with Watched(
            *(urls(server),),
            camera=camera,
            push=(f"rtmp://127.0.0.1:{mute.port}/live/a", f"rtmp://127.0.0.1:{nginx.port}/live/b"),
            video_crf=0,
        ) as watched:
            watched.wait(lambda: sink(watched, str(nginx.port)).written > 20, "the good one takes pictures")
            watched.more(count=10)
            watched.wait(lambda: "does not answer" in caplog.text or "did not take" in caplog.text, "it is told")
            nginx.process.send_signal(signal.SIGSTOP)
            watched.wait(lambda: sink(watched, str(nginx.port)).away, "the sleep is noticed")
            nginx.process.send_signal(signal.SIGCONT)
            before = sink(watched, str(nginx.port)).written
            watched.wait(lambda: sink(watched, str(nginx.port)).written > before + 10, "pictures again")
        assert watched.stopped_after_s < 6
    assert sink(watched, str(mute.port)).written == 0
    assert watched.numbers[0] == sorted(set(watched.numbers[0]))


@pytest.mark.rtsp_server
def test_rtsp_record_with_a_password(camera, tmp_path, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    with CameraServer(camera) as server, RtspRecordServer(tmp_path) as receiver:
        good = f"rtsp://camera:hunter2@127.0.0.1:{receiver.port}/camera"
        bad = f"rtsp://camera:wrongword@127.0.0.1:{receiver.port}/camera"
        with Watched(urls(server), camera=camera, push=(good, bad)) as watched:
            watched.wait(lambda: len(receiver.numbers) >= 20, "pictures")
            camera.size = (240, 320)  # the pushed picture keeps its size
            watched.wait(lambda: watched.results[0][-1].frame.height == 240, "the new size")
            before = len(receiver.numbers)
            watched.wait(lambda: len(receiver.numbers) >= before + 10, "pictures all the same")
            receiver.kill()
            watched.wait(lambda: all(report.away for report in watched.report().sinks), "the loss is noticed")
            receiver.start()
            before = len(receiver.numbers)
            watched.wait(lambda: len(receiver.numbers) >= before + 10, "pictures again")
    assert "401 Unauthorized" in caplog.text
    for secret in ("hunter2", "wrongword"):
        assert secret not in caplog.text


def test_a_parent_that_is_killed_leaves_no_process(camera) -> None:
    """The process of a push that hangs in a server's silence ends by its own alarm, whoever started it is gone."""
    code = (
        "import sys; from pipeline.publish.push import PushLink, PushOptions; "
        "from pipeline.publish.target import PUSH_PORTS, parse_target; from tests.live_results import result; "
        "PushLink(parse_target(sys.argv[1], flag='--push', ports=PUSH_PORTS), result(0), PushOptions())"
    )
    with CameraServer(camera) as mute:
        mute.mute = True
        parent = subprocess.Popen([sys.executable, "-c", code, f"rtmp://127.0.0.1:{mute.port}/live/x"], cwd=ROOT)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait(lambda: mute.accepted and children.read_text().split(), "the process of the push")
        (child,) = children.read_text().split()
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        assert b"remux.py" in command and b"rtmp" not in command
        parent.kill()
        parent.wait(10)
        wait(lambda: not is_running(child), "its end")


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_people_who_are_hidden_are_hidden_in_what_is_pushed(tmp_path) -> None:
    """`--hide` is in front of every output: the sink is handed pictures in which nobody is to be seen."""
    camera = Magenta(height=144, width=256, fps=20)
    pictures = []

    class Kept:
        name = "kept"

        def write(self, result) -> None:
            pictures.append(_picture_of(result))

        def close(self) -> None:
            """Nothing is held."""

    with CameraServer(camera) as server:
        run = LiveRun(
            LiveSettings(sources=(urls(server),), hide="pixelate", hide_ahead=0, seconds=None),
            model=fake_model(),
            extra_sinks=[Kept()],
        )
        thread = threading.Thread(target=run.run, daemon=True)
        thread.start()
        wait(lambda: len(pictures) > 20, "pictures")
        run.request_stop()
        thread.join(20)
        assert not thread.is_alive()
    for picture in pictures[5:]:
        magenta = (picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] > 200)
        assert magenta.mean() < 0.03  # of a person who is 11 % of the picture


class Magenta(Camera):
    """Somebody in magenta stands still."""

    def pictures(self, ended):
        for number, image in super().pictures(ended):
            image[40:140, 100:140] = MAGENTA
            yield number, image
