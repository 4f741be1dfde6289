"""Show results in a window. Needs the optional extra ``window`` (pygame): OpenCV's headless build has no windows."""

from __future__ import annotations

import os
import sys
from typing import Any

from kernels.coordinates import U8
from pipeline.errors import SettingsError, SinkError
from pipeline.messages import FrameResult

MAX_SHARE_OF_SCREEN = 0.9


class NoDisplay(SettingsError):
    """The library for windows is there, a display is not."""


class ResultWindow:
    """One window; used on the main thread, as the systems' event loops ask."""

    def __init__(self, title: str) -> None:
        """Load pygame and look for a display.

        Raises:
            SettingsError: pygame is not installed.
            NoDisplay: there is no display.
        """
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ImportError as error:
            raise SettingsError("--show needs pygame: pip install 'pose2seg-live[window]', or use --output") from error
        if sys.platform.startswith("linux") and not any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        ):
            raise NoDisplay("--show needs a display, and DISPLAY and WAYLAND_DISPLAY are not set: use --output F.mp4")
        self._pygame: Any = pygame
        self._title = title
        self._screen: Any = None
        try:
            pygame.display.init()
        except pygame.error as error:
            raise NoDisplay(f"--show: no display can be opened ({error}): use --output F.mp4") from error

    def show(self, result: FrameResult) -> bool:
        """Draw one frame; see `show_picture`."""
        return self.show_picture(result.drawn if result.drawn is not None else result.overlay())

    def show_picture(self, picture: U8) -> bool:
        """Draw one picture, scaled to the window.

        Args:
            picture: (H, W, 3) uint8 RGB.

        Returns:
            False when the user closed the window or pressed Esc or Q.

        Raises:
            SinkError: the window cannot be drawn.
        """
        try:
            if self._screen is None:
                self._screen = self._open(picture)
            surface = self._pygame.image.frombuffer(picture.tobytes(), picture.shape[1::-1], "RGB")
            width, height = self._screen.get_size()
            scale = min(width / picture.shape[1], height / picture.shape[0])
            size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
            self._screen.fill((0, 0, 0))
            position = ((width - size[0]) // 2, (height - size[1]) // 2)
            self._screen.blit(self._pygame.transform.smoothscale(surface, size), position)
            self._pygame.display.flip()
        except self._pygame.error as error:
            raise SinkError(f"the window cannot be drawn ({error}): use --output F.mp4") from error
        return not any(self._wants_to_quit(event) for event in self._pygame.event.get())

    def close(self) -> None:
        """Close the window. A second call does nothing."""
        self._pygame.display.quit()

    def _open(self, picture: U8) -> Any:
        screen = self._pygame.display.Info()
        scale = 1.0
        if screen.current_w > 0 and screen.current_h > 0:
            scale = min(
                1.0,
                MAX_SHARE_OF_SCREEN * screen.current_w / picture.shape[1],
                MAX_SHARE_OF_SCREEN * screen.current_h / picture.shape[0],
            )
        size = (max(64, round(picture.shape[1] * scale)), max(64, round(picture.shape[0] * scale)))
        self._pygame.display.set_caption(self._title)
        return self._pygame.display.set_mode(size, self._pygame.RESIZABLE)

    def _wants_to_quit(self, event: Any) -> bool:
        keys = (self._pygame.K_ESCAPE, self._pygame.K_q)
        return bool(event.type == self._pygame.QUIT or (event.type == self._pygame.KEYDOWN and event.key in keys))
