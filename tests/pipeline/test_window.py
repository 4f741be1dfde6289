from __future__ import annotations

import builtins

import pytest

from engines.device import HostDevice
from pipeline.errors import SettingsError
from pipeline.stage5_compose import ComposeStage
from pipeline.window import ResultWindow
from tests.fakes import frame, masks_of


def result(height: int = 96, width: int = 128):
    return ComposeStage(HostDevice(), mask_threshold=0.5, draw=True).process(
        masks_of(frame(height=height, width=width), (20, 20, 60, 90))
    )


@pytest.fixture
def pygame(monkeypatch):
    module = pytest.importorskip("pygame", reason="the extra `window` is not installed")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # SDL's display without a screen
    yield module
    module.display.quit()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frames_are_shown_until_the_user_closes(pygame) -> None:
    window = ResultWindow("title")
    assert window.show(result())
    assert window.show(result(48, 64))  # another size is scaled in
    assert window._screen.get_size() == (128, 96)
    shown = pygame.surfarray.array3d(window._screen)
    assert shown.max() > 0
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
    assert not window.show(result())
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert not window.show(result())
    window.close()
    window.close()


def test_pygame_is_not_installed(monkeypatch) -> None:
    real_import = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "pygame":
            raise ImportError("no pygame here")
        return real_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SettingsError, match=r"--show needs pygame: pip install 'pose2seg-live\[window\]'"):
        ResultWindow("title")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_there_is_no_display(pygame, monkeypatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(SettingsError, match="--show needs a display"):
        ResultWindow("title")
