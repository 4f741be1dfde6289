"""Frames that stay in device memory: letterbox from RGB or YUV 4:2:0, and masks pasted and blended by one kernel.

The kernels and their PyTorch operators are in `kernels.device_frames.torch_op`, imported by name. What stands here runs
on the host and needs neither a compiler nor torch: where each person's mask bits lie, and how they become masks.

Convention: as `kernels.mask_paste`; frame px and ROI px, integer coordinates are pixel centres.

Layout of the bits: one array of 32-bit words, people one after the other in the order of the arguments. A person's
box is (x0, y0, x1, y1) in frame px, end exclusive. Its words hold 32 px of a row each, cut at multiples of 32 *of the
frame*, the leftmost px in bit 0; there are (x1 + 31) // 32 - x0 // 32 columns of words, one after the other, y1 - y0
words down each. A box depends on the person's matrix alone and lies in the frame, so `bits_capacity` bounds the array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F64, I32, U8
from kernels.mask_paste import I64, PastedMask

__all__ = ["PASTE_RECORD_WORDS", "WORD_PX", "PastePlan", "bits_capacity", "pasted_masks", "plan_paste"]

U32 = NDArray[np.uint32]

WORD_PX = 32
PASTE_RECORD_WORDS = 16  # of 32 bits: PersonRecord of device_frames.cuh
_MAX_WORDS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastePlan:
    """Where the people of one frame may be, and what the kernel needs to know of each."""

    frame_height: int
    frame_width: int
    boxes: I32
    """(N, 4) x0, y0, x1, y1 in frame px, end exclusive: holds all that a ROI can reach; zeros where that is nothing."""
    words: int
    """Length of the array of mask bits."""
    records: I32
    """(N, 16): one `PersonRecord` of device_frames.cuh each, in the order in which people are painted."""


def plan_paste(
    roi_from_frame: NDArray[np.floating],
    size: int,
    frame_height: int,
    frame_width: int,
    *,
    colors: U8 | None = None,
    order: Sequence[int] | NDArray[np.integer] | None = None,
    planes: Sequence[int] | NDArray[np.integer] | None = None,
) -> PastePlan:
    """Box of each person's ROI in the frame, and the kernel's table of people.

    Args:
        roi_from_frame: (N, 2, 3), frame px to ROI px; used as float32. One that cannot be inverted, or holds NaN or
            infinity, gives an empty box.
        size: side S of the ROI, px.
        frame_height: px.
        frame_width: px.
        colors: (N, 3) uint8 RGB to blend with; black when not given.
        order: people from bottom to top, a permutation of 0..N-1; that of the arguments when not given.
        planes: alpha plane that each person is written to; 0 when not given.

    Raises:
        ValueError: shapes, sizes, an order that is no permutation, or more bits than 2^31 words hold.
    """
    people = len(roi_from_frame)
    if roi_from_frame.shape != (people, 2, 3):
        raise ValueError(f"roi_from_frame must be (N, 2, 3), got {roi_from_frame.shape}")
    if min(size, frame_height, frame_width) < 1:
        raise ValueError(f"sizes must be at least 1 px, got ROI {size}, frame {frame_height} x {frame_width}")
    if colors is not None and (colors.shape != (people, 3) or colors.dtype != np.uint8):
        raise ValueError(f"colors must be uint8 ({people}, 3), got {colors.dtype} {colors.shape}")
    positions = np.arange(people) if order is None else np.asarray(order, np.int64).reshape(-1)
    if not np.array_equal(np.sort(positions), np.arange(people)):
        raise ValueError(f"order must hold each of 0..{people - 1} once, got {positions.tolist()}")
    alpha = np.zeros(people, np.int64) if planes is None else np.asarray(planes, np.int64).reshape(-1)
    if alpha.shape != (people,) or (alpha < 0).any():
        raise ValueError(f"planes must be {people} numbers from 0 on, got {alpha.tolist()}")

    matrices = np.ascontiguousarray(roi_from_frame, np.float32)
    boxes = _boxes(matrices.astype(np.float64), size, frame_height, frame_width)
    first = _first_words(boxes)
    if first[-1] > _MAX_WORDS:
        raise ValueError(f"{people} masks take {first[-1]} words, more than {_MAX_WORDS}: paste fewer people at once")
    records = np.zeros((people, PASTE_RECORD_WORDS), np.int32)
    records[:, :6] = matrices.reshape(people, 6).view(np.int32)
    records[:, 6:10] = boxes
    records[:, 10] = first[:-1]
    records[:, 11] = np.arange(people)
    if colors is not None:
        records[:, 12] = colors.astype(np.int32) @ np.array((1, 1 << 8, 1 << 16), np.int32)
    records[:, 13] = alpha
    return PastePlan(
        frame_height=frame_height,
        frame_width=frame_width,
        boxes=boxes,
        words=int(first[-1]),
        records=np.ascontiguousarray(records[positions]),
    )


def bits_capacity(people: int, frame_height: int, frame_width: int) -> int:
    """Words that suffice for so many people in a frame of this size, wherever they are."""
    return people * frame_height * -(-frame_width // WORD_PX)


def pasted_masks(bits: NDArray[np.integer], boxes: I32) -> list[PastedMask]:
    """Mask bits, as the kernel leaves them, to the smallest crop of each person.

    Args:
        bits: (at least all boxes' words,) of 32 bits each.
        boxes: (N, 4), as in the plan that the bits were made with.

    Returns:
        One PastedMask per person; empty where no bit is set. Equal to `kernels.mask_paste.paste_masks` except at px
        whose interpolated probability is within 1e-4 of the threshold or, with ``exclusive``, of another person's.

    Raises:
        ValueError: shapes, or fewer words than the boxes need.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {boxes.shape}")
    if bits.ndim != 1 or bits.dtype.itemsize != 4:
        raise ValueError(f"bits must be one-dimensional words of 32 bits, got {bits.dtype} {bits.shape}")
    boxes = np.ascontiguousarray(boxes, np.int32)
    first = _first_words(boxes)
    if len(bits) < first[-1]:
        raise ValueError(f"bits must hold the {first[-1]} words of these boxes, got {len(bits)}")
    words = np.ascontiguousarray(bits).view(np.uint32)
    tight = _tight(words, boxes, first)
    sizes = tight[:, 2:] - tight[:, :2]
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    pixels = np.empty(int(ends[-1]) if len(ends) else 0, np.bool_)
    _unpack(words, boxes, first, tight, pixels)
    masks = []
    for (x0, y0, x1, y1), end in zip(tight.tolist(), ends.tolist(), strict=True):
        width, height = x1 - x0, y1 - y0
        masks.append(PastedMask(x0=x0, y0=y0, mask=pixels[end - width * height : end].reshape(height, width)))
    return masks


def _first_words(boxes: I32) -> I64:
    """(N + 1,) where each person's words start, and where the last ones end."""
    wide = boxes.astype(np.int64)
    columns = -(-wide[:, 2] // WORD_PX) - wide[:, 0] // WORD_PX
    first = np.zeros(len(boxes) + 1, np.int64)
    np.cumsum(np.maximum(columns, 0) * np.maximum(wide[:, 3] - wide[:, 1], 0), out=first[1:])
    return first


@compiled
def _boxes(matrices: F64, size: int, frame_height: int, frame_width: int) -> I32:
    """(N, 4) where in the frame a ROI lies together with the one px around it that still interpolates with it."""
    boxes = np.zeros((len(matrices), 4), np.int32)
    for n in range(len(matrices)):
        a, b, tx = matrices[n, 0, 0], matrices[n, 0, 1], matrices[n, 0, 2]
        c, d, ty = matrices[n, 1, 0], matrices[n, 1, 1], matrices[n, 1, 2]
        determinant = a * d - b * c
        if determinant == 0 or not np.isfinite(determinant) or not np.isfinite(tx) or not np.isfinite(ty):
            continue
        x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
        for corner in range(4):
            u = (-1.0 if corner % 2 == 0 else float(size)) - tx
            v = (-1.0 if corner < 2 else float(size)) - ty
            x, y = (d * u - b * v) / determinant, (a * v - c * u) / determinant
            x_low, y_low, x_high, y_high = min(x_low, x), min(y_low, y), max(x_high, x), max(y_high, y)
        # Clipped as floats: a tiny determinant gives numbers that no integer holds.
        x0, x1 = max(np.floor(x_low), 0.0), min(np.ceil(x_high) + 1.0, float(frame_width))
        y0, y1 = max(np.floor(y_low), 0.0), min(np.ceil(y_high) + 1.0, float(frame_height))
        if x0 < x1 and y0 < y1:
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = int(x0), int(y0), int(x1), int(y1)
    return boxes


@compiled
def _tight(words: U32, boxes: I32, first: I64) -> I64:
    """(N, 4) the smallest box in the frame that holds a person's bits, end exclusive; zeros without any."""
    tight = np.zeros((len(boxes), 4), np.int64)
    for n in range(len(boxes)):
        height = boxes[n, 3] - boxes[n, 1]
        if height <= 0 or first[n + 1] == first[n]:
            continue
        columns = (first[n + 1] - first[n]) // height
        left, right, top, bottom = -1, -1, height, -1
        for column in range(columns):
            start = first[n] + column * height
            union = np.uint32(0)
            for row in range(height):
                union |= words[start + row]
            if union == 0:
                continue
            row = 0
            while words[start + row] == 0:
                row += 1
            top = min(top, row)
            row = height - 1
            while words[start + row] == 0:
                row -= 1
            bottom = max(bottom, row)
            x = (boxes[n, 0] // WORD_PX + column) * WORD_PX
            for bit in range(WORD_PX):
                if union >> np.uint32(bit) & np.uint32(1):
                    if left < 0:
                        left = x + bit
                    right = x + bit
        if right >= 0:
            tight[n, 0], tight[n, 1] = left, boxes[n, 1] + top
            tight[n, 2], tight[n, 3] = right + 1, boxes[n, 1] + bottom + 1
    return tight


@compiled
def _unpack(words: U32, boxes: I32, first: I64, tight: I64, pixels: NDArray[np.bool_]) -> None:
    """Write the crops of all people one after the other, row by row."""
    place = 0
    for n in range(len(boxes)):
        height = boxes[n, 3] - boxes[n, 1]
        x0, y0, x1, y1 = tight[n, 0], tight[n, 1], tight[n, 2], tight[n, 3]
        width = x1 - x0
        first_column = boxes[n, 0] // WORD_PX
        for column in range(x0 // WORD_PX, (x1 + WORD_PX - 1) // WORD_PX if x1 > x0 else 0):
            start = first[n] + (column - first_column) * height - boxes[n, 1]
            from_x, to_x = max(x0, column * WORD_PX), min(x1, (column + 1) * WORD_PX)
            for y in range(y0, y1):
                word = words[start + y] >> np.uint32(from_x - column * WORD_PX)
                line = place + (y - y0) * width + from_x - x0
                for k in range(to_x - from_x):
                    pixels[line + k] = (word >> np.uint32(k)) & np.uint32(1) != 0
        place += width * (y1 - y0)
