"""Scale a frame into a square network input, centred, zeros around it: what the `paper` family was published with.

Convention: integer coordinates are pixel centres; a frame px passes by x' = s x + (side - s W) / 2 with the scale
s = side / max(W, H), the same on both axes. The shift is the published one: px edges move by up to half a px, which
every matrix made from it knows of.

Source: Pose2Seg as released (matrix M1): bilinear without anti-aliasing, zeros before normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from kernels.coordinates import F32, U8, compose, invert


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SquareLetterbox:
    """Geometry of one frame size in a square input. All sizes in px."""

    frame_height: int
    frame_width: int
    side: int
    input_from_frame: F32
    """(2, 3): frame px to input px."""


def plan_square_letterbox(frame_height: int, frame_width: int, *, side: int = 512) -> SquareLetterbox:
    """Decide how a frame is scaled and padded.

    Args:
        frame_height: px.
        frame_width: px.
        side: of the input; the longer side of the frame is scaled to it, up or down, px.

    Raises:
        ValueError: a size below 1 px.
    """
    if min(frame_height, frame_width, side) < 1:
        raise ValueError(f"sizes must be at least 1 px, got frame {frame_height} x {frame_width}, side {side}")
    scale = side / max(frame_height, frame_width)
    shift_x, shift_y = (side - scale * frame_width) / 2, (side - scale * frame_height) / 2
    return SquareLetterbox(
        frame_height=frame_height,
        frame_width=frame_width,
        side=side,
        input_from_frame=np.array([[scale, 0, shift_x], [0, scale, shift_y]], np.float32),
    )


def square_letterbox(image: U8, plan: SquareLetterbox, out: U8 | None = None) -> U8:
    """Fill a square network input from a frame.

    Args:
        image: (H, W, 3) uint8 of the size the plan was made for; any strides.
        plan: from `plan_square_letterbox`.
        out: (side, side, 3) uint8, C-contiguous, to be reused; every px of it is written.

    Returns:
        ``out``, or a new array.

    Raises:
        ValueError: image or out do not fit the plan.
    """
    out = _checked(image, plan, out)
    matrix = plan.input_from_frame.astype(np.float64)
    cv2.warpAffine(np.ascontiguousarray(image), matrix, (plan.side, plan.side), dst=out, flags=cv2.INTER_LINEAR)
    return out


def whole_input_roi(plan: SquareLetterbox, roi_size: int) -> F32:
    """Matrix (2, 3) that takes the whole square input into the ROI, upright; frame px to ROI px.

    The ROI of a person whom no template fits. Scale roi_size / side of input px, first px on first px.
    """
    scale = roi_size / plan.side
    return compose([[scale, 0, 0], [0, scale, 0]], plan.input_from_frame).astype(np.float32)


def _checked(image: U8, plan: SquareLetterbox, out: U8 | None) -> U8:
    expected = (plan.frame_height, plan.frame_width, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 {expected} as planned, got {image.dtype} {image.shape}")
    shape = (plan.side, plan.side, 3)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous uint8 {shape}, got {out.dtype} {out.shape}")
    return out


def square_letterbox_reference(image: U8, plan: SquareLetterbox) -> U8:
    """`square_letterbox` as the definition reads: each input px looks up its frame px, bilinear, zeros outside."""
    out = _checked(image, plan, None)
    frame_from_input = invert(plan.input_from_frame)
    height, width = image.shape[:2]
    padded = np.zeros((height + 2, width + 2, 3))
    padded[1:-1, 1:-1] = image
    index = np.arange(plan.side)
    x = np.clip(frame_from_input[0, 0] * index + frame_from_input[0, 2], -1, width)
    y = np.clip(frame_from_input[1, 1] * index + frame_from_input[1, 2], -1, height)
    x0, y0 = np.minimum(np.floor(x), width - 1).astype(int), np.minimum(np.floor(y), height - 1).astype(int)
    fx, fy = (x - x0)[None, :, None], (y - y0)[:, None, None]
    rows, columns = y0[:, None] + 1, x0[None] + 1
    top = padded[rows, columns] * (1 - fx) + padded[rows, columns + 1] * fx
    bottom = padded[rows + 1, columns] * (1 - fx) + padded[rows + 1, columns + 1] * fx
    out[...] = np.rint(top * (1 - fy) + bottom * fy)
    return out
