"""The window of live runs, drawn by SDL without a screen."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.live.command import main
from pipeline.live.run import LiveRun
from pipeline.live.settings import LiveSettings
from pipeline.live.show import grid_of, open_window, run_in_window
from pipeline.selftest.servers import Camera, CameraServer
from tests.clips import write_video
from tests.fakes import fake_model
from tests.magenta_model import write_magenta_model

pygame = pytest.importorskip("pygame")
pytestmark = pytest.mark.timeout(120)


def test_without_a_display_the_run_goes_on_with_one_line(monkeypatch, tmp_path, caplog, capsys) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    clip = write_video(tmp_path / "in.mp4", 10)
    model = write_magenta_model(tmp_path / "model")
    assert main([str(clip), "--show", "--json", "-", "--model", str(model)]) == 0
    said = [record.getMessage() for record in caplog.records if "window" in record.getMessage()]
    assert len(said) == 1
    assert "needs a display" in said[0] and "goes on" in said[0] and "--output" not in said[0]


def test_every_source_is_shown_and_closing_the_window_stops_the_run(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    camera = Camera(height=144, width=256, fps=20)
    shown: list[np.ndarray] = []
    window = open_window("test")
    show = window.show_picture

    def watched(picture) -> bool:
        shown.append(picture)
        live = (picture[:144, :256].any(), picture[:144, 256:].any())
        if all(live):  # both sources are there: the user has seen enough
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        return show(picture)

    monkeypatch.setattr(window, "show_picture", watched)
    with CameraServer(camera) as first, CameraServer(camera) as second:
        sources = tuple(f"tcp://127.0.0.1:{server.port}" for server in (first, second))
        run = LiveRun(LiveSettings(sources=sources), model=fake_model())
        run_in_window(run, window)
    assert shown[-1].shape == (144, 512, 3)
    assert not pygame.display.get_init()


@pytest.mark.parametrize(("count", "shape"), [(1, (90, 160)), (2, (90, 320)), (3, (180, 320)), (5, (180, 480))])
def test_tiles(count, shape) -> None:
    pictures = [np.full((90 + 10 * n, 160, 3), 40 * (n + 1), np.uint8) for n in range(count)]
    grid = grid_of(pictures)
    assert grid.shape == (*shape, 3)
    for n in range(count):
        row, column = divmod(n, shape[1] // 160)
        assert grid[row * 90 + 45, column * 160 + 80, 0] == 40 * (n + 1)


def test_many_large_pictures_become_one_of_a_screen_s_size() -> None:
    grid = grid_of([np.zeros((2160, 3840, 3), np.uint8)] * 4)
    assert grid.shape[0] * grid.shape[1] <= 1920 * 1080 + 4000
