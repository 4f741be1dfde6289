"""Polygons along px edges give back every mask exactly, as pycocotools draws them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.pixel_outlines import covers_exactly, pixel_outlines


def test_a_rectangle_is_four_corners_on_px_edges() -> None:
    mask = np.zeros((6, 9), np.uint8)
    mask[2:4, 3:8] = 1
    outer, inner = pixel_outlines(mask)
    assert inner == []
    (flat,) = outer
    assert {tuple(flat[i : i + 2]) for i in range(0, 8, 2)} == {(3, 2), (8, 2), (8, 4), (3, 4)} and len(flat) == 8


def test_a_ring_has_an_inner_polygon_and_px_that_touch_at_a_corner_stay_apart() -> None:
    ring = np.ones((5, 5), np.uint8)
    ring[2, 2] = 0
    outer, inner = pixel_outlines(ring)
    assert (len(outer), len(inner)) == (1, 1) and covers_exactly(outer, inner, ring)
    diagonal = np.eye(4, dtype=np.uint8)
    outer, inner = pixel_outlines(diagonal)
    assert (len(outer), len(inner)) == (4, 0) and covers_exactly(outer, inner, diagonal)


def test_an_island_in_a_hole_survives() -> None:
    mask = np.ones((9, 9), np.uint8)
    mask[2:7, 2:7] = 0
    mask[4, 4] = 1
    outer, inner = pixel_outlines(mask)
    assert covers_exactly(outer, inner, mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (0, 4), (33, 65)])
@pytest.mark.parametrize("value", [0, 1])
def test_empty_full_thin_and_odd(shape: tuple[int, int], value: int) -> None:
    mask = np.full(shape, value, np.uint8)
    outer, inner = pixel_outlines(mask)
    assert (outer == []) == (not mask.any()) and inner == []
    if mask.size:
        assert covers_exactly(outer, inner, mask)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=13), elements=st.integers(0, 1)))
@settings(max_examples=200)
def test_every_mask_comes_back(mask: np.ndarray) -> None:
    outer, inner = pixel_outlines(mask)
    assert covers_exactly(outer, inner, mask)
    assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in (*outer, *inner))
