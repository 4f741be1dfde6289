"""The scene without people, learned while they move: what `remove` shows where somebody was.

A px is learned only while nobody is near it, and counts as known after it was free in `FREE_FRAMES` frames in a row:
some frames in which a person was missed teach nothing. The camera has to stand still.

Convention: frame px, pictures are uint8 RGB.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import U8

FREE_FRAMES = 10  # of somebody who walks by without being found, little is learned in that time
FILL_STEP = 4  # holes are filled on a picture this much smaller: what is smooth needs no more
FILL_STEP_FROM_PX = 64
LEARNING_STEPS = 32  # a px moves by this part of the difference per frame, by one level at least


def learn_background(background: U8, free_frames: U8, image: U8, covered: U8) -> None:
    """Learn from one frame, in place.

    Args:
        background: (H, W, 3) uint8, what is known so far.
        free_frames: (H, W) uint8: how many frames in a row the px was free, up to `FREE_FRAMES`; from there on it is
            known, and stays so.
        image: (H, W, 3) uint8, the frame.
        covered: (H, W) uint8: not 0 where somebody is or may be.

    Raises:
        ValueError: shapes differ.
    """
    _check(background, free_frames, image, covered)
    _learn(background, free_frames, image, covered)


def _check(background: U8, free_frames: U8, image: U8, covered: U8) -> None:
    size = free_frames.shape
    if background.shape != (*size, 3) or image.shape != (*size, 3) or covered.shape != size:
        raise ValueError(
            "expected pictures (H, W, 3) and maps (H, W) of one size, "
            f"got {background.shape}, {free_frames.shape}, {image.shape} and {covered.shape}"
        )


@compiled
def _learn(background: U8, free_frames: U8, image: U8, covered: U8) -> None:
    for y in range(free_frames.shape[0]):
        for x in range(free_frames.shape[1]):
            known = free_frames[y, x] >= FREE_FRAMES
            if covered[y, x] != 0:
                if not known:
                    free_frames[y, x] = 0
                continue
            if not known:
                free_frames[y, x] += 1
                for c in range(3):
                    background[y, x, c] = image[y, x, c]
                continue
            for c in range(3):
                old, new = np.int32(background[y, x, c]), np.int32(image[y, x, c])
                if new > old:
                    background[y, x, c] = old + (new - old + LEARNING_STEPS - 1) // LEARNING_STEPS
                elif new < old:
                    background[y, x, c] = old - (old - new + LEARNING_STEPS - 1) // LEARNING_STEPS


def learn_background_reference(background: U8, free_frames: U8, image: U8, covered: U8) -> None:
    """`learn_background` with whole arrays."""
    _check(background, free_frames, image, covered)
    known, free = free_frames >= FREE_FRAMES, covered == 0
    difference = image.astype(np.int32) - background
    step = np.sign(difference) * -(-np.abs(difference) // LEARNING_STEPS)
    moved = (background + step).astype(np.uint8)
    background[free & known] = moved[free & known]
    background[free & ~known] = image[free & ~known]
    free_frames[free & ~known] += 1
    free_frames[~free & ~known] = 0


def spread_into_holes(image: U8, hole: U8) -> U8:
    """Fill holes smoothly with the colours around them: nothing of what was in a hole remains.

    Args:
        image: (h, w, 3) uint8, C-contiguous.
        hole: (h, w) uint8, not 0 where px are missing.

    Returns:
        (h, w, 3) uint8, blurred everywhere: only the holes are of use. Grey where all is hole.

    Source: Gortler et al., The Lumigraph, SIGGRAPH 1996, pull-push.
    """
    height, width = hole.shape
    step = FILL_STEP if min(hole.shape) >= FILL_STEP_FROM_PX else 1
    size = (-(-width // step), -(-height // step))
    free = (hole == 0).view(np.uint8)
    values = _resized(cv2.copyTo(image, free, np.zeros_like(image)), size)
    weight = _resized(free, size)
    levels: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    while min(weight.shape) > 1 and not weight.all():
        levels.append((values, weight))
        size = (-(-weight.shape[1] // 2), -(-weight.shape[0] // 2))
        values, weight = _resized(values, size), _resized(weight, size)
    filled = np.where(weight[:, :, None] > 0, values / np.maximum(weight, 1e-6)[:, :, None], 128.0)
    for values, weight in reversed(levels):
        size = (weight.shape[1], weight.shape[0])
        coarse = np.asarray(cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR)).reshape(*weight.shape, 3)
        filled = values + coarse * (1.0 - weight)[:, :, None]
    coarse_levels = np.clip(filled + 0.5, 0, 255).astype(np.uint8)
    whole = cv2.resize(coarse_levels, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole, np.uint8).reshape(height, width, 3)


def _resized(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Area means; ``size`` is width, height."""
    return np.asarray(cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_AREA))
