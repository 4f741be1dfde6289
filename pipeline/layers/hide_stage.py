"""FrameResult -> the same with people hidden in its picture: behind this stage nothing of a run can show them.

Sinks, recordings, viewers and layers get pictures in which the people are covered already: none of them can forget it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kernels.alpha_edges import blend_over
from kernels.background_model import learn_background
from kernels.coordinates import U8
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.covered_frames import CoveredFrame, CoveredFrames
from pipeline.layers.options import ChosenPeople
from pipeline.layers.pictures import HidingPaint, Remover, blur, pixelate
from pipeline.messages import FrameResult
from pipeline.overlay import draw_people


class HideStage:
    """Holds results back for some frames if wanted; each stream has a memory of its own."""

    def __init__(
        self,
        kind: str,
        chosen: ChosenPeople,
        *,
        mask_threshold: float,
        frames: int,
        ahead: int,
        draw: bool,
        drawn_only: bool = False,
    ) -> None:
        """Set up.

        Args:
            kind: of `pipeline.layers.options.HIDING`.
            chosen: who is hidden.
            mask_threshold: see `AlphaMaker`.
            frames: how many frames a person who is not found stays covered.
            ahead: how many frames results are held back.
            draw: make `FrameResult.drawn`, on the picture with hidden people.
            drawn_only: the picture with hidden people is `FrameResult.drawn`, and the frame stays as it is.
        """
        self.name = "draw" if drawn_only else "hide"
        self._drawn_only = drawn_only
        self._kind = kind
        self._chosen = chosen
        self._mask_threshold = mask_threshold
        self._frames = frames
        self._ahead = ahead
        self._draw = draw
        self._streams: dict[int, tuple[CoveredFrames, HidingPaint]] = {}

    def open(self) -> None:
        picture = np.zeros((2, 2, 3), np.uint8)
        blend_over(picture, picture.copy(), np.full((2, 2), 9, np.uint8), 0, 0)  # compiles
        learn_background(picture, np.zeros((2, 2), np.uint8), picture.copy(), np.zeros((2, 2), np.uint8))

    def process(self, result: FrameResult) -> FrameResult:
        """Of a stage that holds nothing back."""
        (due,) = self.process_held(result)
        return due

    def process_held(self, result: FrameResult) -> Sequence[FrameResult]:
        stream = result.frame.stream
        if stream not in self._streams:
            maker = AlphaMaker(mask_threshold=self._mask_threshold, exclusive=False, refine=False, steady=False)
            covered = CoveredFrames(maker, self._chosen, frames=self._frames, ahead=self._ahead)
            paints: dict[str, HidingPaint] = {"blur": blur, "pixelate": pixelate, "remove": Remover()}
            self._streams[stream] = (covered, paints[self._kind])
        covered, paint = self._streams[stream]
        return [self._hidden(due, paint) for due in covered.of(result)]

    def rest(self) -> Sequence[FrameResult]:
        return [self._hidden(due, paint) for covered, paint in self._streams.values() for due in covered.rest()]

    def close(self) -> None:
        """Nothing is held."""

    def _hidden(self, due: CoveredFrame, paint: HidingPaint) -> FrameResult:
        if due.result is None:
            raise RuntimeError("a frame without its result")
        picture = paint(due)
        if self._drawn_only:
            return replace(due.result, drawn=picture)
        drawn: U8 | None = None
        if self._draw:
            drawn = picture.copy()
            draw_people(drawn, due.result.people)
        masks = due.result.masks
        rois = masks.rois
        poses = replace(rois.poses, frame=replace(due.frame, pixels=picture))
        return replace(due.result, masks=replace(masks, rois=replace(rois, poses=poses)), drawn=drawn)
