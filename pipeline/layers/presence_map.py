"""One picture of where people were during the run: the scene in grey, and the time spent at each place in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernels.coordinates import F32, U8
from pipeline.errors import SinkError
from pipeline.layers.alpha import AlphaMaker, together
from pipeline.layers.options import ChosenPeople
from pipeline.messages import FrameResult
from pipeline.overlay import draw_text
from pipeline.stage6_sinks import check_output, close_output, create_output, write_whole
from pipeline.video_output import fit_into

SCENE_OPACITY = 0.45  # of the grey scene under the colours
FULL_COLOR_SHARE = 0.25  # of the longest stay: from here on colour covers the scene as far as it ever does


class PresenceMapSink:
    """Adds up alphas; the picture is written at the end. Frames of other sizes are fitted into the first one's."""

    def __init__(
        self, path: Path, maker: AlphaMaker, chosen: ChosenPeople, *, overwrite: bool, at_end: bool = True
    ) -> None:
        self._path = path
        self._maker = maker
        self._chosen = chosen
        self._overwrite = overwrite
        self._at_end = at_end
        self._frames = 0
        self._sum: F32 = np.zeros((0, 0), np.float32)
        self._scene: U8 = np.zeros((0, 0, 3), np.uint8)

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        frame = result.frame
        if not self._frames:
            self._scene = frame.image.copy()
            self._sum = np.zeros((frame.height, frame.width), np.float32)
        alphas = [one.alpha for one in self._maker.of(result) if one.person.id in self._chosen]
        presence = fit_into(together(alphas, frame.height, frame.width), *self._sum.shape)
        cv2.accumulate(presence, self._sum)
        self._frames += 1

    def to_state(self) -> dict[str, Any]:
        """What is added up so far; see `pipeline.layers.state`."""
        return {"frames": self._frames, "sum": self._sum, "scene": self._scene}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._frames, self._sum, self._scene = state["frames"], state["sum"].copy(), state["scene"]

    def close(self) -> None:
        if self._at_end:
            self.save()

    def start_anew(self) -> None:
        """Forget all frames so far."""
        self._frames = 0

    def save(self, path: Path | None = None) -> None:
        """Write the map of all frames so far; of none nothing is written.

        Args:
            path: in place of the sink's own, which is replaced if it exists.

        Raises:
            SinkError: it cannot be written.
        """
        if not self._frames:
            return
        target = self._path if path is None else path
        ok, data = cv2.imencode(
            target.suffix, cv2.cvtColor(presence_map(self._scene, self._sum, self._frames), cv2.COLOR_RGB2BGR)
        )
        if not ok:
            raise SinkError(f"{target}: the heat map could not be encoded: choose a name ending in .png or .jpg")
        file = create_output(target, overwrite=self._overwrite or path is not None)
        try:
            write_whole(file, data.tobytes(), target)
        finally:
            close_output(file, target)


def presence_map(scene: U8, alpha_sum: F32, frames: int) -> U8:
    """Draw the map.

    Args:
        scene: (H, W, 3) uint8 RGB.
        alpha_sum: (H, W) float32, alphas (0..255) of all frames added up.
        frames: how many.

    Returns:
        (H, W, 3) uint8 RGB: dark to bright is short to long, scaled to the longest stay, which is written on it.
    """
    gray = np.asarray(cv2.cvtColor(cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    picture = (gray * SCENE_OPACITY).astype(np.uint8)
    longest = float(alpha_sum.max())
    if longest > 0:
        level = np.sqrt(alpha_sum / longest)  # short stays are seen, too
        colors = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)
        share = np.clip(alpha_sum / (FULL_COLOR_SHARE * longest), 0.0, 1.0)[:, :, None] * 0.85
        mixed = picture * (1.0 - share) + cv2.cvtColor(colors, cv2.COLOR_BGR2RGB) * share
        picture = np.ascontiguousarray(mixed + 0.5, np.float32).astype(np.uint8)
    text = f"brightest: {100 * min(1.0, longest / (255.0 * frames)):.0f} % of {frames} frames"
    height = max(9, round(min(scene.shape[:2]) / 45))
    draw_text(picture, text, 6, picture.shape[0] - 6, height=height, color=(255, 255, 255), background=(18, 18, 18))
    return picture
