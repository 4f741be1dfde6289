"""Blending, steadying and refining alpha: hand-worked px, twins, and what each promises."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.alpha_edges import (
    MOVED_LEVELS,
    blend_over,
    blend_over_reference,
    change_between,
    refine_alpha,
    refine_alpha_reference,
    steady_alpha,
    steady_alpha_reference,
)


def random_levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (17, 5), (40, 61)])
def test_blend_twin(size: tuple[int, int]) -> None:
    target, source, alpha = random_levels(64, 80, 3), random_levels(*size, 3, seed=1), random_levels(*size, seed=2)
    slow = target.copy()
    blend_over(target, source, alpha, 11, 7)
    blend_over_reference(slow, source, alpha, 11, 7)
    np.testing.assert_array_equal(target, slow)


@given(st.integers(0, 2**32 - 1))
def test_a_cutout_over_its_own_background_is_the_frame(seed: int) -> None:
    frame, alpha = random_levels(12, 9, 3, seed=seed), random_levels(12, 9, seed=seed + 1)
    before = frame.copy()
    blend_over(frame, before, alpha, 0, 0)
    np.testing.assert_array_equal(frame, before)


def test_blend_at_both_ends_is_exact() -> None:
    target, source = random_levels(6, 8, 3), random_levels(2, 2, 3, seed=1)
    before = target.copy()
    blend_over(target, source, np.array([[0, 255], [255, 0]], np.uint8), 3, 1)
    np.testing.assert_array_equal(target[1, 4], source[0, 1])
    np.testing.assert_array_equal(target[2, 3], source[1, 0])
    target[1, 4], target[2, 3] = before[1, 4], before[2, 3]
    np.testing.assert_array_equal(target, before)


@pytest.mark.parametrize(("x0", "y0"), [(-1, 0), (0, -1), (5, 0), (0, 5)])
def test_blend_refuses_what_does_not_fit(x0: int, y0: int) -> None:
    with pytest.raises(ValueError, match="outside of"):
        blend_over(random_levels(8, 8, 3), random_levels(4, 4, 3), random_levels(4, 4), x0, y0)
    with pytest.raises(ValueError, match="expected a target"):
        blend_over(random_levels(8, 8, 3), random_levels(4, 4, 3), random_levels(4, 5), 0, 0)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (33, 50)])
def test_steady_twin(size: tuple[int, int]) -> None:
    arrays = [random_levels(*size, seed=seed) for seed in range(2)]
    change = random_levels(*size, seed=3) // 32
    np.testing.assert_array_equal(steady_alpha(*arrays, change), steady_alpha_reference(*arrays, change))


def test_still_places_hold_and_moved_places_follow_at_once() -> None:
    old, new = np.zeros((1, 3), np.uint8), np.full((1, 3), 200, np.uint8)
    change = np.array([[1, 3, round(MOVED_LEVELS)]], np.uint8)
    first, second, third = steady_alpha(new, old, change)[0].tolist()
    assert first == 40
    assert 40 < second < 200
    assert third == 200


@pytest.mark.parametrize(("old", "new"), [(0, 1), (255, 254), (0, 255), (255, 0), (7, 7)])
def test_a_change_that_lasts_arrives_exactly(old: int, new: int) -> None:
    alpha, target = np.full((1, 1), old, np.uint8), np.full((1, 1), new, np.uint8)
    for _ in range(25):
        alpha = steady_alpha(target, alpha, np.zeros((1, 1), np.uint8))
    assert alpha[0, 0] == new


def test_change_is_averaged_over_a_neighbourhood() -> None:
    before, after = np.full((9, 9), 100, np.uint8), np.full((9, 9), 100, np.uint8)
    after[4, 4] = 150
    change = change_between(after, before)
    assert change[4, 4] == change[2, 6] == 2
    assert change[0, 0] == 0


@pytest.mark.parametrize("radius", [1, 2, 7, 13])
@pytest.mark.parametrize("size", [(1, 1), (31, 20), (60, 77)])
def test_refine_twin(size: tuple[int, int], radius: int) -> None:
    """float32 against float64: the slope divides by a small variance, contrast times four; 255 levels."""
    gray = cv2.GaussianBlur(random_levels(*size), (0, 0), 2).reshape(size)
    alpha = (cv2.GaussianBlur(random_levels(*size, seed=1), (0, 0), 4).reshape(size) > 127).astype(np.uint8) * 255
    difference = np.abs(refine_alpha(alpha, gray, radius).astype(int) - refine_alpha_reference(alpha, gray, radius))
    assert difference.max() <= 1


def test_refining_moves_an_edge_onto_the_pictures_edge() -> None:
    """The person is brighter than the wall and ends at column 40; the mask ends four columns too early."""
    gray, alpha, truth = np.full((60, 80), 60, np.uint8), np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    gray[:, :40], truth[:, :40], alpha[:, :36] = 190, 255, 255
    refined = refine_alpha(alpha, gray, 8)
    assert np.abs(alpha.astype(int) - truth)[10:50].mean() > 10
    assert np.abs(refined.astype(int) - truth)[10:50].mean() < 5
    np.testing.assert_array_equal(refined[:, :15], 255)
    np.testing.assert_array_equal(refined[:, 65:], 0)


def test_refining_leaves_whole_and_empty_alpha_alone() -> None:
    for level in (0, 255):
        alpha = np.full((20, 30), level, np.uint8)
        np.testing.assert_array_equal(refine_alpha(alpha, random_levels(20, 30), 3), alpha)


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match="three arrays of one shape"):
        steady_alpha(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        refine_alpha(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="1 px or more, got 0"):
        refine_alpha(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 0)
