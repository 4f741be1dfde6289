"""Frame results with people where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np

from engines.device import HostDevice
from pipeline.layers.alpha import AlphaMaker
from pipeline.messages import Frame, FrameResult
from pipeline.stage5_compose import ComposeStage
from tests.fakes import masks_of

Box = tuple[float, float, float, float]


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture without two equal places."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def result_of(
    people: Mapping[int, Box],
    *,
    number: int = 0,
    height: int = 120,
    width: int = 160,
    image: np.ndarray | None = None,
    clip: int = 0,
    empty_masks: bool = False,
    sure: float = 1.0,
    exclusive: bool = True,
    pts: int | None = None,
) -> FrameResult:
    """People (id -> x0, y0, x1, y1) whose masks fill their boxes, or are empty; each is ``sure`` times as sure as the
    one before.
    """
    frame = Frame(
        index=number,
        source="a.mp4",
        clip=clip,
        pts=number if pts is None else pts,
        time_base=Fraction(1, 25),
        captured_s=0.0,
        pixels=textured(height, width) if image is None else image,
    )
    masks = masks_of(frame, *people.values())
    masks = replace(masks, rois=replace(masks.rois, ids=np.array(list(people), np.int32)))
    if empty_masks:
        masks = replace(masks, probabilities=np.zeros_like(masks.probabilities))
    shares = np.float32(sure) ** np.arange(len(masks.probabilities), dtype=np.float32)
    masks = replace(masks, probabilities=masks.probabilities * shares[:, None, None])
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False, exclusive_masks=exclusive)
    return stage.process(masks)


def plain_maker() -> AlphaMaker:
    """Alphas of each frame for itself."""
    return AlphaMaker(mask_threshold=0.5, exclusive=False, refine=False, steady=False)
