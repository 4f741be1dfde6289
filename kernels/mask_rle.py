"""Masks in crops as COCO run lengths of the frame: down the columns, 0 and 1 in turns, in COCO's compressed letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import U8
from kernels.mask_paste import PastedMask

I64 = NDArray[np.int64]


class Rle(TypedDict):
    """COCO's compressed run lengths, the form that JSON files hold."""

    size: list[int]
    counts: str


def encode_rle(masks: Sequence[PastedMask], frame_height: int, frame_width: int) -> list[Rle]:
    """COCO run lengths of the full-frame masks, straight from the crops; the same strings that pycocotools writes.

    Raises:
        ValueError: a crop does not lie inside the frame.
    """
    encoded: list[Rle] = []
    for pasted in masks:
        height, width = pasted.mask.shape
        if min(pasted.x0, pasted.y0) < 0 or pasted.x0 + width > frame_width or pasted.y0 + height > frame_height:
            raise ValueError(
                f"a crop of {height} x {width} px at x {pasted.x0}, y {pasted.y0} "
                f"is outside a frame of {frame_height} x {frame_width} px"
            )
        runs = _run_lengths(
            np.ascontiguousarray(pasted.mask).view(np.uint8), pasted.x0, pasted.y0, frame_height, frame_width
        )
        encoded.append({"size": [frame_height, frame_width], "counts": _compressed(runs).tobytes().decode("ascii")})
    return encoded


@compiled
def _run_lengths(mask: U8, x0: int, y0: int, frame_height: int, frame_width: int) -> I64:
    """Lengths of the runs of 0, 1, 0, ... down the columns of the frame, starting with 0 (maybe of length 0)."""
    height, width = mask.shape
    runs = np.empty(width * (height + 1) + 2, np.int64)
    count, run_start, inside, expected = 0, 0, False, 0
    for column in range(width):
        for row in range(height):
            position = (x0 + column) * frame_height + y0 + row
            person = mask[row, column] != 0
            if row == 0 and inside and position > expected:
                # The column before ended as person; px outside the crop lie between.
                runs[count] = expected - run_start
                count += 1
                run_start, inside = expected, False
            if person != inside:
                runs[count] = position - run_start
                count += 1
                run_start, inside = position, person
            expected = position + 1
    end = frame_height * frame_width
    if inside and expected < end:
        runs[count] = expected - run_start
        count += 1
        run_start = expected
    runs[count] = end - run_start
    return runs[: count + 1]


@compiled
def _compressed(runs: I64) -> U8:
    """COCO's text form: differences to the run two before, in groups of five bits from the low end, as characters from
    '0' on.
    """
    characters = np.empty(len(runs) * 13, np.uint8)
    count = 0
    for index in range(len(runs)):
        value = runs[index] - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            characters[count] = group + (32 if more else 0) + 48
            count += 1
    return characters[:count]
