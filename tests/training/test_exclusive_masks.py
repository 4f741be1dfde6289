"""Masks that share no px: against the px-by-px twin, and what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.coordinates import F32, F64
from training.exclusive_masks import exclusive_masks, exclusive_masks_reference


def random_case(seed: int, people: int, size: int) -> tuple[F32, F64]:
    """Smooth probabilities, and similarities that spread the windows over a frame of about 20 px."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((people, size, size), np.float32)
    angle, scale = rng.uniform(-1, 1, people), rng.uniform(0.4, 1.5, people) * size / 16
    matrices = np.zeros((people, 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = scale * np.sin(angle), -scale * np.sin(angle)
    matrices[:, :, 2] = rng.uniform(-size / 2, size / 2, (people, 2))
    return probabilities, matrices


@pytest.mark.parametrize("people", [0, 1, 2, 5])
@pytest.mark.parametrize(("size", "height", "width"), [(8, 17, 23), (9, 1, 30), (64, 24, 19)])
def test_equals_the_twin_but_for_px_on_the_edge(people: int, size: int, height: int, width: int) -> None:
    """OpenCV rounds places to 1/32 px: px where two masks, or mask and threshold, are nearly equal may differ."""
    differing = total = 0
    for seed in range(4):
        case = random_case(seed, people, size)
        fast, slow = exclusive_masks(*case, height, width), exclusive_masks_reference(*case, height, width)
        assert fast.shape == slow.shape == (people, height, width)
        differing, total = differing + int((fast != slow).sum()), total + max(int(slow.sum()), 1)
    assert differing <= 0.12 * total


@given(st.integers(0, 10**6), st.integers(0, 6))
def test_nobody_shares_a_px_and_order_does_not_matter(seed: int, people: int) -> None:
    probabilities, matrices = random_case(seed, people, 12)
    masks = exclusive_masks(probabilities, matrices, 20, 20)
    assert (masks.sum(0) <= 1).all()
    alone = [exclusive_masks(p[None], m[None], 20, 20)[0] for p, m in zip(probabilities, matrices, strict=True)]
    if people:
        np.testing.assert_array_equal(masks.any(0), np.any(alone, axis=0))  # no px is lost
        assert all(not (mask & ~own).any() for mask, own in zip(masks, alone, strict=True))
    order = np.random.default_rng(seed).permutation(people)
    np.testing.assert_array_equal(exclusive_masks(probabilities[order], matrices[order], 20, 20), masks[order])


def test_by_hand() -> None:
    """Two windows on the same frame: the surer keeps each px, of equal ones the first; weak px are nobody's."""
    probabilities = np.array([[[0.9, 0.6], [0.7, 0.2]], [[0.8, 0.7], [0.7, 0.4]]], np.float32)
    matrices = np.tile(np.eye(2, 3), (2, 1, 1))
    masks = exclusive_masks(probabilities, matrices, 2, 2)
    assert masks[0].tolist() == [[True, False], [True, False]]
    assert masks[1].tolist() == [[False, True], [False, False]]
    np.testing.assert_array_equal(exclusive_masks_reference(probabilities, matrices, 2, 2), masks)
