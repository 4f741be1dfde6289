"""Against a stand-in with the library's own signature; and for real where there is a device."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace

import pytest
import pyvirtualcam

from pipeline.errors import SettingsError, SinkError
from pipeline.live.outputs import NotTaken
from pipeline.publish.virtual_camera import RETRY_S, VirtualCameraSink, require_pyvirtualcam
from tests.live_results import result


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def cameras(monkeypatch):
    made = []

    class Camera:
        def __init__(self, **options) -> None:
            inspect.signature(pyvirtualcam.Camera.__init__).bind(self, **options)
            if made and made[-1].broken:
                raise RuntimeError("no device")
            self.height, self.width = options["height"], options["width"]
            self.options, self.shown, self.closed, self.broken = options, [], 0, False
            made.append(self)

        def send(self, picture) -> None:
            if self.broken:
                raise RuntimeError("the device went away")
            assert picture.shape == (self.height, self.width, 3)
            self.shown.append(picture)

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Camera))
    return made


def test_pictures_keep_the_first_size_and_a_lost_device_is_looked_for_again(cameras) -> None:
    clock = Clock()
    sink = VirtualCameraSink("/dev/video10", clock=clock)
    sink.write(result(0, height=95, width=127))
    sink.write(result(1, height=240, width=320))
    (camera,) = cameras
    assert camera.options["device"] == "/dev/video10"
    assert [picture.shape for picture in camera.shown] == [(96, 128, 3)] * 2
    camera.broken = True
    with pytest.raises(SinkError, match="went away"):
        sink.write(result(2))
    assert sink.away and camera.closed == 1
    clock.now_s += RETRY_S
    with pytest.raises(NotTaken, match="no device"):
        sink.write(result(3))
    with pytest.raises(NotTaken):
        sink.write(result(4))
    camera.broken = False
    clock.now_s += RETRY_S
    sink.write(result(5))
    sink.close()
    assert cameras[1].closed == 1


def test_the_extra_is_named_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(SettingsError, match=r"pose2seg-live\[virtual-camera\]"):
        require_pyvirtualcam()


def test_the_real_library_without_or_with_a_device() -> None:
    """Where the machine has a v4l2loopback device the picture goes there; elsewhere the library says so in one line."""
    sink = VirtualCameraSink("auto")
    said, reason = "", ""
    try:
        sink.write(result(0, height=480, width=640))
    except NotTaken as error:
        said, reason = str(error), error.reason
    assert sink.away is bool(said)
    assert reason in {"", "no device"}
    assert not said or "virtual camera auto (" in said
    sink.close()
