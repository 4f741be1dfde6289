"""Masks as polygons that give back every px: for formats that hold nothing but polygons.

Outlines run along the edges between px, so that drawing them with pycocotools returns the mask exactly. An outline
through the centres of the outer px, as most tools make it, loses half a px all around.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from kernels.coordinates import U8

Polygon = list[float]
Corner = tuple[int, int]


def _loops(mask: U8) -> list[list[Corner]]:
    """Closed paths along px edges with the mask on the right hand; px that touch at a corner stay apart."""
    padded = np.pad(mask > 0, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[Corner, list[Corner]] = {}
    for rows, columns, start, end in (
        (*np.nonzero(inside & ~padded[:-2, 1:-1]), (0, 0), (1, 0)),  # top edge, to the right
        (*np.nonzero(inside & ~padded[1:-1, 2:]), (1, 0), (1, 1)),  # right edge, down
        (*np.nonzero(inside & ~padded[2:, 1:-1]), (1, 1), (0, 1)),  # bottom edge, to the left
        (*np.nonzero(inside & ~padded[1:-1, :-2]), (0, 1), (0, 0)),  # left edge, up
    ):
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while following:
        first = here = next(iter(following))
        came: Corner = (0, 0)
        loop: list[Corner] = []
        while True:
            choices = following[here]
            right = (here[0] - came[1], here[1] + came[0])
            there = right if right in choices else choices[0]
            choices.remove(there)
            if not choices:
                del following[here]
            step = (there[0] - here[0], there[1] - here[1])
            if step != came:
                loop.append(here)
            here, came = there, step
            if here == first:
                break
        loops.append(loop)
    return loops


def _signed_area(loop: list[Corner]) -> float:
    x, y = np.array(loop, np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def filled(polygons: Iterable[Polygon], height: int, width: int) -> U8:
    """Union of polygons as pycocotools draws them, (height, width) of 0 and 1."""
    polygons = list(polygons)
    if not polygons:
        return np.zeros((height, width), np.uint8)
    drawn: U8 = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    return drawn


def pixel_outlines(mask: U8) -> tuple[list[Polygon], list[Polygon]]:
    """Outer and inner polygons: the union of the outer without the union of the inner is the mask, px for px.

    Args:
        mask: (H, W), 0 or not.

    Returns:
        Two lists of flat x, y lists, px edges. A mask with an island in a hole is cut into upright strips until no
        strip has one, since islands could not be told from their holes.
    """
    height, width = mask.shape
    mask = (mask > 0).astype(np.uint8)
    columns = np.flatnonzero(mask.any(0))
    if not len(columns):
        return [], []
    outer, inner = [], []
    for loop in _loops(mask):
        flat = [float(value) for corner in loop for value in corner]
        (outer if _signed_area(loop) > 0 else inner).append(flat)
    if np.array_equal(filled(outer, height, width) * (1 - filled(inner, height, width)), mask):
        return outer, inner
    if len(columns) == 1:
        raise AssertionError("pycocotools does not draw px rectangles as expected")
    middle = int(columns[len(columns) // 2])
    left, right = mask.copy(), mask.copy()
    left[:, middle:] = 0
    right[:, :middle] = 0
    (outer, inner), (more_outer, more_inner) = pixel_outlines(left), pixel_outlines(right)
    return outer + more_outer, inner + more_inner


def covers_exactly(outer: list[Polygon], inner: list[Polygon], mask: NDArray[np.bool_] | U8) -> bool:
    """Whether the polygons give back the mask."""
    height, width = mask.shape
    return np.array_equal(filled(outer, height, width) * (1 - filled(inner, height, width)), mask > 0)
