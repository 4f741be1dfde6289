"""`pose2seg live --hide` and `--layer`: a server that dies, a network that misses people, another picture size."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.channel import END
from pipeline.live.run import LiveRun
from pipeline.live.settings import LiveSettings
from pipeline.selftest.servers import Camera, RtspCameraServer
from tests.clips import read_video, write_video
from tests.fakes import MAGENTA, FakeKeypointEngine, fake_model

pytestmark = pytest.mark.timeout(180)
WAIT_S = 60


class CameraWithPerson(Camera):
    """A magenta person walks to and fro."""

    def pictures(self, ended) -> Iterator[tuple[int, np.ndarray]]:
        for number, picture in super().pictures(ended):
            height, width = picture.shape[:2]
            place = abs(number % 80 - 40) / 40
            left = round((0.1 + 0.5 * place) * width)
            picture[round(0.3 * height) : round(0.9 * height), left : left + round(0.15 * width)] = MAGENTA
            yield number, picture


class MissingEngine(FakeKeypointEngine):
    """Finds nobody while it is told so, and in two of seven calls anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.blind = threading.Event()

    def run(self, feeds):
        outputs = super().run(feeds)
        if self.blind.is_set() or self.calls % 7 in {3, 4}:
            outputs["person_scores"][:] = 0
        return outputs


def magenta_px(picture: np.ndarray) -> int:
    return int((np.abs(picture.astype(int) - MAGENTA) < 70).all(axis=2).sum())


def test_a_recording_shows_a_layer(tmp_path) -> None:
    """A green screen is what recordings, viewers and published streams get; the frame itself stays."""
    clip = write_video(tmp_path / "in.mp4", 20, height=96, width=128)
    settings = LiveSettings(
        sources=(str(clip),),
        output_dir=tmp_path / "out",
        draw="background",
        layer_background="#00b140",
        keep_free_gb=0.0,
    )
    run = LiveRun(settings, model=fake_model())
    assert run.run() == 20
    (path,) = (tmp_path / "out" / "stream-00").glob("*.mp4")
    pictures, _ = read_video(path)
    assert len(pictures) >= 10  # its queue may leave frames out
    for picture in pictures[1:]:
        assert np.abs(picture[90, 120].astype(int) - (0, 0xB1, 0x40)).max() < 20
        assert magenta_px(picture) > 300


def test_what_was_covered_stays_covered(tmp_path) -> None:
    camera = CameraWithPerson(height=144, width=256, fps=20)
    engine = MissingEngine()
    with RtspCameraServer(camera) as server:
        settings = LiveSettings(
            sources=(f"rtsp://127.0.0.1:{server.port}/cam",),
            output_dir=tmp_path,
            hide="remove",
            hide_ahead=3,
            record="plain",
            layer=("blur", "outline"),
            stall_timeout=1.5,
            keep_free_gb=0.0,
        )
        run = LiveRun(settings, model=fake_model(keypoint_engine=engine))
        seen: list[tuple[int, tuple[int, int]]] = []
        channel = run.subscribe(0)

        def read() -> None:
            while (result := channel.get()) is not END:
                seen.append((magenta_px(result.frame.image), result.frame.image.shape[:2]))

        def wait(condition, said: str) -> None:
            deadline = time.monotonic() + WAIT_S
            while not condition():
                assert time.monotonic() < deadline, f"not within {WAIT_S} s: {said}; {run.sources()}"
                time.sleep(0.02)

        def more(count: int) -> None:
            wanted = len(seen) + count
            wait(lambda: len(seen) >= wanted, f"{count} more results")

        threads = [threading.Thread(target=read, daemon=True), threading.Thread(target=run.run, daemon=True)]
        for thread in threads:
            thread.start()
        try:
            wait(lambda: run.sources()[0].people > 0, "the person is found")
            more(20)
            engine.blind.set()
            more(5)
            server.kill()
            reconnects = sum(run.sources()[0].source.reconnects.values())
            wait(lambda: sum(run.sources()[0].source.reconnects.values()) > reconnects, "the server is gone")
            server.start()
            more(5)  # nobody is found yet after the reconnect
            engine.blind.clear()
            more(10)
            camera.size = (180, 320)
            wait(lambda: seen[-1][1] == (180, 320), "the new size")
            more(10)
        finally:
            run.request_stop()
            for thread in reversed(threads):
                thread.join(15)
    assert not any(thread.is_alive() for thread in threads)
    assert len(seen) > 50
    leaked = [number for number, (px, _) in enumerate(seen) if px > 8]
    assert not leaked, [seen[number] for number in leaked]
    written = [path for path in (tmp_path / "stream-00").iterdir() if path.suffix == ".mp4"]
    assert {path.name.partition(".")[2] for path in written} == {"mp4", "blur.mp4", "outline.mp4"}
    for path in written:  # people are hidden before any of them gets a picture
        assert max(magenta_px(picture) for picture in read_video(path)[0]) <= 8, path.name
