"""FrameResult -> the same with a layer as its drawn picture: what recordings, viewers and published streams show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from kernels.coordinates import U8
from pipeline.layers.pictures import Paint
from pipeline.messages import FrameResult


class DrawStage:
    """Paints `FrameResult.drawn`; each stream has a paint of its own, because paints remember frames."""

    name = "draw"

    def __init__(self, make_paint: Callable[[], Paint]) -> None:
        """Set up.

        Args:
            make_paint: called once for each stream; its pictures are RGB or grey.
        """
        self._make_paint = make_paint
        self._paints: dict[int, Paint] = {}

    def open(self) -> None:
        """Paints compile with their first frame."""

    def process(self, result: FrameResult) -> FrameResult:
        stream = result.frame.stream
        if stream not in self._paints:
            self._paints[stream] = self._make_paint()
        picture = self._paints[stream](result)
        rgb: U8 = picture if picture.ndim == 3 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB), np.uint8)
        return replace(result, drawn=rgb)

    def close(self) -> None:
        """Nothing is held."""
