"""What makes the edges of alpha look right: blend, hold still what stands still, follow the picture's edges.

Convention: frame px. Alpha is uint8, 0 none of a px to 255 all of it; pictures are uint8 RGB. All of it works on crops.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import U8

STILL_LEVELS = 1.0  # mean change of a px and its neighbours that is noise of camera and codec
MOVED_LEVELS = 5.0  # from here on it is movement, and the new alpha counts alone
STILL_SHARE = 0.2  # of the new alpha where nothing moves: 90 % of a lasting change within ten frames
CHANGE_SIDE_PX = 5  # of the square over which change is averaged
EDGE_CONTRAST = 4.0  # how much of the filter's soft edge is taken back
EDGE_NOISE = 1e-3  # variance of levels 0..1 below which a window has no edge of its own


def blend_over(target: U8, source: U8, alpha: U8, x0: int, y0: int) -> None:
    """Lay ``source`` over ``target`` in place, rounded to the nearest level.

    Alpha 0 leaves the px as it is, 255 replaces it, and a source equal to the target changes nothing: all exactly.

    Args:
        target: (H, W, 3) uint8, C-contiguous.
        source: (h, w, 3) uint8, C-contiguous.
        alpha: (h, w) uint8, C-contiguous.
        x0: column of the target under the first column of the crop.
        y0: row of the target under its first row.

    Raises:
        ValueError: shapes that do not fit, or a crop that is not inside the target.
    """
    _check_blend(target, source, alpha, x0, y0)
    _blend(target, source, alpha, x0, y0)


def _check_blend(target: U8, source: U8, alpha: U8, x0: int, y0: int) -> None:
    height, width = alpha.shape
    if source.shape != (height, width, 3) or target.ndim != 3 or target.shape[2] != 3:
        raise ValueError(
            f"expected a target (H, W, 3), a source (h, w, 3) and alpha (h, w), "
            f"got {target.shape}, {source.shape} and {alpha.shape}"
        )
    if min(x0, y0) < 0 or y0 + height > target.shape[0] or x0 + width > target.shape[1]:
        raise ValueError(f"a crop of {height} x {width} px at x {x0}, y {y0} is outside of {target.shape[:2]}")


@compiled
def _blend(target: U8, source: U8, alpha: U8, x0: int, y0: int) -> None:
    for row in range(alpha.shape[0]):
        for column in range(alpha.shape[1]):
            a = np.int32(alpha[row, column])
            if a == 255:
                for c in range(3):
                    target[y0 + row, x0 + column, c] = source[row, column, c]
            elif a > 0:
                for c in range(3):
                    under, over = np.int32(target[y0 + row, x0 + column, c]), np.int32(source[row, column, c])
                    target[y0 + row, x0 + column, c] = (over * a + under * (255 - a) + 127) // 255


def blend_over_reference(target: U8, source: U8, alpha: U8, x0: int, y0: int) -> None:
    """`blend_over` in float64."""
    _check_blend(target, source, alpha, x0, y0)
    height, width = alpha.shape
    under = target[y0 : y0 + height, x0 : x0 + width]
    share = alpha[:, :, None].astype(np.float64) / 255.0
    under[...] = np.floor(source * share + under * (1.0 - share) + 0.5 - 1e-9)


def change_between(gray: U8, gray_before: U8) -> U8:
    """How much each px changed together with its neighbours: the mean difference over a small square, in levels.

    Args:
        gray: (h, w) uint8.
        gray_before: (h, w) uint8, the same place one frame earlier.
    """
    side = (CHANGE_SIDE_PX, CHANGE_SIDE_PX)
    mean = cv2.blur(cv2.absdiff(gray, gray_before), side, borderType=cv2.BORDER_REPLICATE)
    return mean.astype(np.uint8, copy=False)


def steady_alpha(alpha: U8, alpha_before: U8, change: U8) -> U8:
    """Hold alpha still where the picture stands still.

    Where the picture changed by `STILL_LEVELS` or less, alpha goes only a part of the way from the old value to the new
    one; where it changed by `MOVED_LEVELS` or more, the new alpha is taken as it is, so nothing is left behind where
    somebody moves. Each step is at least one level: a change that lasts arrives exactly.

    Args:
        alpha: (h, w) uint8 of this frame, C-contiguous.
        alpha_before: (h, w) uint8, what this function gave for the frame before, at the same place.
        change: (h, w) uint8, see `change_between`.

    Returns:
        (h, w) uint8, a new array.

    Raises:
        ValueError: shapes differ.
    """
    _check_steady(alpha, alpha_before, change)
    steady = np.empty_like(alpha)
    _steady(alpha, alpha_before, change, steady)
    return steady


def _check_steady(alpha: U8, alpha_before: U8, change: U8) -> None:
    if not alpha.shape == alpha_before.shape == change.shape:
        raise ValueError(f"expected three arrays of one shape, got {alpha.shape}, {alpha_before.shape}, {change.shape}")


@compiled
def _steady(alpha: U8, alpha_before: U8, change: U8, steady: U8) -> None:
    for row in range(alpha.shape[0]):
        for column in range(alpha.shape[1]):
            old, new = np.float64(alpha_before[row, column]), np.float64(alpha[row, column])
            moved = (change[row, column] - STILL_LEVELS) / (MOVED_LEVELS - STILL_LEVELS)
            share = STILL_SHARE + (1.0 - STILL_SHARE) * min(max(moved, 0.0), 1.0)
            step = (new - old) * share
            steady[row, column] = int(old + (np.ceil(step) if step > 0 else np.floor(step)))


def steady_alpha_reference(alpha: U8, alpha_before: U8, change: U8) -> U8:
    """`steady_alpha` with whole arrays."""
    _check_steady(alpha, alpha_before, change)
    moved = (change.astype(np.float64) - STILL_LEVELS) / (MOVED_LEVELS - STILL_LEVELS)
    share = STILL_SHARE + (1.0 - STILL_SHARE) * np.clip(moved, 0.0, 1.0)
    step = (alpha.astype(np.float64) - alpha_before) * share
    steady: U8 = (alpha_before + np.where(step > 0, np.ceil(step), np.floor(step))).astype(np.uint8)
    return steady


def refine_alpha(alpha: U8, gray: U8, radius_px: int) -> U8:
    """Move the edges of alpha onto edges of the picture nearby.

    In every window alpha is explained as a straight line of the brightness; where the window holds an edge of the
    picture, alpha steps there. Px whose windows are all person or all background keep their value. Slopes and offsets
    change slowly, so with larger windows they are computed on a smaller picture.

    Args:
        alpha: (h, w) uint8.
        gray: (h, w) uint8, brightness of the same px.
        radius_px: of the windows, 1 or more: how far from its place the edge may be.

    Returns:
        (h, w) uint8, a new array.

    Raises:
        ValueError: shapes differ, or the radius is no radius.

    Source: He, Sun, Tang, Guided Image Filtering, ECCV 2010, eq. 5, 6 and 8; He, Sun, Fast Guided Filter, 2015.
        Differs: contrast is put back afterwards.
    """
    _check_refine(alpha, gray, radius_px)
    height, width = alpha.shape
    small, radius = _smaller(height, width, radius_px)
    guide = cv2.resize(gray, small, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    p = cv2.resize(alpha, small, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    mean_guide, mean_p = _mean(guide, radius), _mean(p, radius)
    variance = _mean(guide * guide, radius) - mean_guide * mean_guide
    small_slope = (_mean(guide * p, radius) - mean_guide * mean_p) / (variance + np.float32(EDGE_NOISE))
    small_offset = mean_p - small_slope * mean_guide
    slope = _full(_mean(small_slope, radius), height, width)
    offset = _full(_mean(small_offset, radius), height, width)
    filtered = slope * (gray / np.float32(255)) + offset
    return _contrasted(alpha, filtered, _full(mean_p, height, width))


def _full(values: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _check_refine(alpha: U8, gray: U8, radius_px: int) -> None:
    if alpha.shape != gray.shape or alpha.ndim != 2 or not alpha.size:
        raise ValueError(f"expected alpha and gray of one shape (h, w), got {alpha.shape} and {gray.shape}")
    if radius_px < 1:
        raise ValueError(f"expected a radius of 1 px or more, got {radius_px}")


def _smaller(height: int, width: int, radius_px: int) -> tuple[tuple[int, int], int]:
    """Width and height of the smaller picture and the radius there: about 3 px, which is what an edge needs."""
    step = max(1, radius_px // 3)
    return (max(1, -(-width // step)), max(1, -(-height // step))), max(1, round(radius_px / step))


def _mean(values: NDArray[Any], radius: int) -> NDArray[np.float32]:
    side = 2 * radius + 1
    return cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REPLICATE).astype(np.float32, copy=False)


def _contrasted(alpha: U8, filtered: NDArray[Any], mean_p: NDArray[Any]) -> U8:
    near_edge = (mean_p > 0.004) & (mean_p < 0.996)
    sharp = np.clip((filtered - 0.5) * EDGE_CONTRAST + 0.5, 0.0, 1.0) * 255.0 + 0.5
    refined: U8 = np.where(near_edge, sharp.astype(np.uint8), alpha)
    return refined


def refine_alpha_reference(alpha: U8, gray: U8, radius_px: int) -> U8:
    """`refine_alpha` in float64, window by window, on the same smaller picture."""
    _check_refine(alpha, gray, radius_px)
    height, width = alpha.shape
    small, radius = _smaller(height, width, radius_px)
    guide, p = (
        np.asarray(cv2.resize(values, small, interpolation=cv2.INTER_AREA), np.float64) / 255.0
        for values in (gray, alpha)
    )

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, radius, mode="edge"), (2 * radius + 1,) * 2)
        return np.asarray(windows.mean(axis=(2, 3)))

    def full(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR))

    mean_guide, mean_p = mean(guide), mean(p)
    slope = (mean(guide * p) - mean_guide * mean_p) / (mean(guide * guide) - mean_guide**2 + EDGE_NOISE)
    filtered = full(mean(slope)) * gray / 255.0 + full(mean(mean_p - slope * mean_guide))
    return _contrasted(alpha, filtered, full(mean_p))
