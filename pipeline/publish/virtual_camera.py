"""Pictures with people drawn as a camera that other programs can choose (``pyvirtualcam``, extra ``virtual-camera``).

On Linux it needs a v4l2loopback device (``modprobe v4l2loopback``), on macOS and Windows that of OBS.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from pipeline.errors import SettingsError, SinkError
from pipeline.live.outputs import NotTaken
from pipeline.messages import FrameResult
from pipeline.video_output import fit_into

AUTO: Final = "auto"
FPS: Final = 30.0  # what the device says; pictures go there as they come
RETRY_S: Final = 5.0


class VirtualCameraSink:
    """One device; it keeps the size of its first picture, others are fitted into it."""

    def __init__(self, device: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is opened yet.

        Args:
            device: such as /dev/video10, or ``auto`` for the first that is free.
            clock: monotonic, s.
        """
        self.name = f"virtual camera {device}"
        self._device = None if device == AUTO else device
        self._camera: Any = None
        self._clock = clock
        self._not_before_s = 0.0

    @property
    def away(self) -> bool:
        """No device is open."""
        return self._camera is None

    def write(self, result: FrameResult) -> None:
        """Show one frame.

        Raises:
            NotTaken: there is no device now; it is looked for again.
            SinkError: the device refused this picture, or there was none at the first look.
        """
        picture = result.drawn if result.drawn is not None else result.overlay()
        if self._camera is None:
            now = self._clock()
            if now < self._not_before_s:
                raise NotTaken("no device", self.name)
            self._not_before_s = now + RETRY_S
            height, width = picture.shape[:2]
            try:
                self._camera = require_pyvirtualcam().Camera(
                    width=width + width % 2, height=height + height % 2, fps=FPS, device=self._device
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise NotTaken("no device", f"{self.name} ({error})") from error
        try:
            self._camera.send(fit_into(picture, self._camera.height, self._camera.width))
        except (RuntimeError, ValueError, OSError) as error:
            self.close()
            raise SinkError(f"{self.name}: {error}") from error

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()


def require_pyvirtualcam() -> Any:
    """The library.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import pyvirtualcam
    except ImportError as error:
        raise SettingsError(
            "--virtual-camera needs pyvirtualcam: pip install 'pose2seg-live[virtual-camera]'"
        ) from error
    return pyvirtualcam
