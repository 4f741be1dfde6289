"""Scale a frame into a network input: aspect kept, top-left aligned, zeros to the right and below.

Convention: integer coordinates are pixel centres and pixel edges stay in place, x' = s x + (s - 1) / 2, which is what
OpenCV's resize does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from kernels.coordinates import F32, F64, U8, half_pixel_scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Letterbox:
    """Geometry of one frame size: the frame fills the top-left ``content`` of the ``input``. All sizes in px."""

    frame_height: int
    frame_width: int
    input_height: int
    input_width: int
    content_height: int
    content_width: int
    input_from_frame: F32
    """(2, 3): frame px to input px, with the scale that rounding to whole px really gave on each axis."""


def plan_letterbox(frame_height: int, frame_width: int, *, long_side: int, multiple: int = 32) -> Letterbox:
    """Decide how a frame is scaled and padded.

    Args:
        frame_height: px.
        frame_width: px.
        long_side: length the longer side is scaled to, up or down, px.
        multiple: the input's sides are rounded up to it, as the network's strides ask.

    Raises:
        ValueError: a size below 1 px.
    """
    if min(frame_height, frame_width, long_side, multiple) < 1:
        raise ValueError(
            f"sizes must be at least 1 px, got frame {frame_height} x {frame_width}, "
            f"long side {long_side}, multiple {multiple}"
        )
    scale = long_side / max(frame_height, frame_width)
    content_height, content_width = (max(1, math.floor(side * scale + 0.5)) for side in (frame_height, frame_width))
    matrix = half_pixel_scale(content_width / frame_width, content_height / frame_height).astype(np.float32)
    return Letterbox(
        frame_height=frame_height,
        frame_width=frame_width,
        input_height=-(-content_height // multiple) * multiple,
        input_width=-(-content_width // multiple) * multiple,
        content_height=content_height,
        content_width=content_width,
        input_from_frame=matrix,
    )


def letterbox(image: U8, plan: Letterbox, out: U8 | None = None) -> U8:
    """Fill a network input from a frame.

    Args:
        image: (H, W, 3) uint8 of the size the plan was made for; any strides.
        plan: from `plan_letterbox`.
        out: (input_height, input_width, 3) uint8, C-contiguous, to be reused; every px of it is written.

    Returns:
        ``out``, or a new array. Area average when the frame shrinks, bilinear when it grows.

    Raises:
        ValueError: image or out do not fit the plan.
    """
    out = _checked(image, plan, out)
    content = out[: plan.content_height, : plan.content_width]
    if (plan.content_height, plan.content_width) == (plan.frame_height, plan.frame_width):
        content[...] = image
    else:
        shrinks = plan.content_height <= plan.frame_height and plan.content_width <= plan.frame_width
        cv2.resize(
            np.ascontiguousarray(image),
            (plan.content_width, plan.content_height),
            dst=content,
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
    out[plan.content_height :] = 0
    out[: plan.content_height, plan.content_width :] = 0
    return out


def _checked(image: U8, plan: Letterbox, out: U8 | None) -> U8:
    expected = (plan.frame_height, plan.frame_width, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 {expected} as planned, got {image.dtype} {image.shape}")
    shape = (plan.input_height, plan.input_width, 3)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous uint8 {shape}, got {out.dtype} {out.shape}")
    return out


def letterbox_reference(image: U8, plan: Letterbox) -> U8:
    """`letterbox` written as two small matrix products, one per axis; equal but for rounding, at most one level."""
    out = _checked(image, plan, None)
    out[...] = 0
    shrinks = plan.content_height <= plan.frame_height and plan.content_width <= plan.frame_width
    weights = _area_weights if shrinks else _linear_weights
    rows = weights(plan.content_height, plan.frame_height)
    columns = weights(plan.content_width, plan.frame_width)
    content = np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64), optimize=True)
    out[: plan.content_height, : plan.content_width] = np.clip(np.rint(content), 0, 255)
    return out


def _area_weights(targets: int, sources: int) -> F64:
    """(targets, sources): share of each source px in the stretch of line that a target px covers."""
    weights = np.zeros((targets, sources))
    step = sources / targets
    for target in range(targets):
        low, high = target * step, (target + 1) * step
        for source in range(sources):
            weights[target, source] = max(0.0, min(high, source + 1) - max(low, source)) / step
    return weights


def _linear_weights(targets: int, sources: int) -> F64:
    """(targets, sources): the two px beside each target centre; beyond the border the border px."""
    weights = np.zeros((targets, sources))
    for target in range(targets):
        position = (target + 0.5) * sources / targets - 0.5
        low = math.floor(position)
        for source, weight in ((low, low + 1 - position), (low + 1, position - low)):
            weights[target, min(max(source, 0), sources - 1)] += weight
    return weights
