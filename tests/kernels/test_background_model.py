"""The learned scene: its twin, what a missed frame teaches (nothing), holes that keep nothing of what was there."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.background_model import (
    FREE_FRAMES,
    learn_background,
    learn_background_reference,
    spread_into_holes,
)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (30, 41)])
def test_twin(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    fast, slow = (np.zeros((*size, 3), np.uint8) for _ in range(2))
    free_fast, free_slow = (np.zeros(size, np.uint8) for _ in range(2))
    for _ in range(40):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        covered = (rng.random(size) < 0.1) * rng.integers(0, 256, size, np.uint8)
        learn_background(fast, free_fast, image, covered)
        learn_background_reference(slow, free_slow, image, covered)
        np.testing.assert_array_equal(fast, slow)
        np.testing.assert_array_equal(free_fast, free_slow)
    assert free_fast.max() == FREE_FRAMES


def test_a_person_missed_for_one_frame_is_not_learned() -> None:
    background, free = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    person, wall = np.full((1, 1, 3), 200, np.uint8), np.full((1, 1, 3), 60, np.uint8)
    hidden, seen = np.full((1, 1), 255, np.uint8), np.zeros((1, 1), np.uint8)
    learn_background(background, free, person, seen)  # missed
    assert free[0, 0] < FREE_FRAMES
    learn_background(background, free, person, hidden)
    for _ in range(FREE_FRAMES):
        assert free[0, 0] < FREE_FRAMES
        learn_background(background, free, wall, seen)
    assert free[0, 0] == FREE_FRAMES and background[0, 0, 0] == 60
    learn_background(background, free, person, hidden)
    assert background[0, 0, 0] == 60 and free[0, 0] == FREE_FRAMES


def test_light_that_changes_is_followed_to_the_end() -> None:
    background, free = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    for level in (100,) * FREE_FRAMES + (130,) * 40:
        learn_background(background, free, np.full((1, 1, 3), level, np.uint8), np.zeros((1, 1), np.uint8))
    assert background[0, 0].tolist() == [130] * 3


@pytest.mark.parametrize("scale", [1, 4, 7])
def test_holes_are_filled_from_around_and_hold_nothing_of_what_was_there(scale: int) -> None:
    image = np.full((40 * scale, 60 * scale, 3), 90, np.uint8)
    hole = np.zeros(image.shape[:2], np.uint8)
    rows, columns = slice(10 * scale + 1, 30 * scale), slice(20 * scale, 40 * scale + 1)
    image[rows, columns], hole[rows, columns] = 255, 1
    filled = spread_into_holes(image, hole)
    assert np.abs(filled[hole > 0].astype(int) - 90).max() <= 1
    other = image.copy()
    other[rows, columns] = 0
    np.testing.assert_array_equal(filled, spread_into_holes(other, hole))
    assert spread_into_holes(image, np.ones_like(hole)).std() == 0
    assert spread_into_holes(image[:1, :1], np.ones((1, 1), np.uint8)).shape == (1, 1, 3)


def test_sizes_must_agree() -> None:
    small, large = np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        learn_background(np.zeros((2, 2, 3), np.uint8), small, np.zeros((2, 2, 3), np.uint8), large)
