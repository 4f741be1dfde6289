"""Outlines of masks: drawn again they give the mask; parts, holes, borders and single px."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from kernels.mask_paste import PastedMask
from kernels.mask_polygons import mask_polygons, one_polygon


def pasted(mask: np.ndarray, x0: int = 0, y0: int = 0) -> PastedMask:
    return PastedMask(x0=x0, y0=y0, mask=np.ascontiguousarray(mask, np.bool_))


def drawn(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """As pycocotools reads them."""
    rles = coco_mask.frPyObjects([part.ravel().astype(float).tolist() for part in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def disc(height: int, width: int, cy: float, cx: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - cy) ** 2 + (x - cx) ** 2 <= radius**2


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_nothing_for_an_empty_mask() -> None:
    assert mask_polygons(pasted(np.zeros((0, 0)))) == []
    assert mask_polygons(pasted(np.zeros((4, 5)))) == []


def test_a_rectangle_by_hand() -> None:
    (part,) = mask_polygons(pasted(np.ones((3, 4)), x0=10, y0=20))
    assert sorted(map(tuple, part.tolist())) == [(10.25, 20.25), (10.25, 22.75), (13.75, 20.25), (13.75, 22.75)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_small_masks_have_three_corners_or_more(shape: tuple[int, int]) -> None:
    (part,) = mask_polygons(pasted(np.ones(shape), 3, 5))
    assert len(part) >= 3
    assert part.min() >= 3
    assert drawn([part], 20, 20)[5 : 5 + shape[0], 3 : 3 + shape[1]].any()


@given(
    cx=st.floats(-5, 85), cy=st.floats(-5, 65), radius=st.floats(8, 30), x0=st.integers(0, 40), y0=st.integers(0, 30)
)
def test_drawn_again_they_give_the_mask(cx: float, cy: float, radius: float, x0: int, y0: int) -> None:
    mask = disc(60, 80, cy, cx, radius)
    if mask.sum() < 150:
        return
    full = np.zeros((100, 130), np.bool_)
    full[y0 : y0 + 60, x0 : x0 + 80] = mask
    parts = mask_polygons(pasted(mask, x0, y0))
    assert iou(drawn(parts, 100, 130), full) > 0.95
    for part in parts:
        assert part.min() >= 0 and part[:, 0].max() <= 130 and part[:, 1].max() <= 100


def test_parts_come_in_falling_order_and_specks_are_left_out() -> None:
    mask = disc(100, 200, 50, 40, 20) | disc(100, 200, 50, 150, 35)
    mask[2, 2] = True
    parts = mask_polygons(pasted(mask))
    assert len(parts) == 2
    assert parts[0][:, 0].min() > 100 > parts[1][:, 0].max()
    assert iou(drawn(parts, 100, 200), mask) > 0.97
    joined = one_polygon(parts)
    assert iou(drawn([joined], 100, 200), mask) > 0.95
    assert {tuple(point) for part in parts for point in part.tolist()} == set(map(tuple, joined.tolist()))


def test_holes_are_filled() -> None:
    mask = disc(80, 80, 40, 40, 30) & ~disc(80, 80, 40, 40, 8)
    (part,) = mask_polygons(pasted(mask))
    assert iou(drawn([part], 80, 80), disc(80, 80, 40, 40, 30)) > 0.97
