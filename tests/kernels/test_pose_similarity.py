"""Similarity of poses: the fast form against the slow one, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.pose_fit import PAPER_TEMPLATES
from kernels.pose_similarity import (
    LEAST_CHANCE,
    pose_similarities,
    pose_similarities_reference,
    pose_sizes,
    return_chances,
    return_chances_reference,
)

STANDING = PAPER_TEMPLATES[0, :, :2].astype(np.float64) * (50, 160)


def people(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = STANDING * rng.uniform(0.2, 2, (count, 1, 1)) + rng.uniform(0, 200, (count, 1, 2))
    return points + rng.normal(0, 3, points.shape), rng.random((count, 17)) < rng.choice([0.0, 0.15, 0.8], (count, 1))


@pytest.mark.parametrize(("count", "others"), [(0, 0), (0, 3), (3, 0), (1, 1), (7, 5), (40, 33)])
def test_twin(count: int, others: int) -> None:
    arguments = (*people(count, 1), *people(others, 2), np.random.default_rng(3).uniform(-1, 1, others))
    fast = pose_similarities(*arguments)
    assert fast.shape == (count, others)
    np.testing.assert_allclose(fast, pose_similarities_reference(*arguments), rtol=1e-12, atol=1e-15)


def test_strided_input_gives_the_same() -> None:
    points, visible = people(6, 4)
    wide = np.concatenate((points, points), axis=2)[:, :, :2]
    unseen = np.zeros(6)
    np.testing.assert_array_equal(
        pose_similarities(wide, visible, wide, visible, unseen),
        pose_similarities(points, visible, points, visible, unseen),
    )


def test_by_hand() -> None:
    seen = np.ones((1, 17), np.bool_)

    def similarity(shift: float, *, other: np.ndarray = seen, unseen_s: float = 0.0) -> float:
        here, there = STANDING[None], STANDING[None] + (shift, 0)
        return float(pose_similarities(here, seen, there, other, np.array([unseen_s]))[0, 0])

    assert similarity(0) == pytest.approx(1.0)
    assert similarity(1000) == pytest.approx(0.0, abs=1e-6)
    assert 0 < similarity(25) < similarity(5) < 1
    assert similarity(25, unseen_s=0.5) > similarity(25)  # less is known about who was not seen
    assert similarity(0, other=np.zeros((1, 17), np.bool_)) <= 0.5  # boxes alone


@pytest.mark.parametrize(("count", "others"), [(0, 0), (0, 3), (3, 0), (1, 1), (7, 5), (40, 33)])
def test_twin_of_returns(count: int, others: int) -> None:
    expected, other_visible = people(others, 5)
    last = expected + np.random.default_rng(6).normal(0, 40, (others, 1, 2))
    arguments = (
        *(*people(count, 1), expected, last, other_visible),
        *(pose_sizes(expected, other_visible) * 1.2, np.random.default_rng(3).uniform(-1, 2, others)),
    )
    fast = return_chances(*arguments)
    assert fast.shape == (count, others)
    assert count * others < 20 or (fast > 0).mean() > 0.02
    np.testing.assert_allclose(fast, return_chances_reference(*arguments), rtol=1e-12, atol=1e-15)


def test_returns_by_hand() -> None:
    seen = np.ones((1, 17), np.bool_)

    def chance(shift: float, *, unseen_s: float = 0.7, size: float = 1.0, walked: float = 0.0) -> float:
        last, expected = STANDING[None], STANDING[None] + (walked, 0)
        here = size * STANDING[None] + (shift, 0)
        return float(
            return_chances(here, seen, expected, last, seen, pose_sizes(last, seen), np.array([unseen_s]))[0, 0]
        )

    side = float(pose_sizes(STANDING[None], seen)[0])  # within 1 s x size: 0.7 unseen and 0.3 at once
    assert chance(0) == pytest.approx(1.0)
    assert chance(0, walked=5 * side) == pytest.approx(1.0)  # turned back where nobody saw it
    assert chance(5 * side, walked=5 * side) == pytest.approx(1.0)  # or went on
    assert chance(0.99 * side) == pytest.approx(LEAST_CHANCE, abs=0.01)
    assert chance(1.01 * side) == 0.0
    assert chance(1.01 * side, unseen_s=0.8) > 0
    assert chance(0, size=1.5) > 0
    assert chance(0, size=1.7) == 0.0


def test_size_is_the_longer_side() -> None:
    points, visible = STANDING[None].copy(), np.zeros((1, 17), np.bool_)
    assert pose_sizes(points, visible)[0] == pytest.approx(1.0 + np.ptp(STANDING, axis=0).max())
    visible[0, :2] = True
    assert pose_sizes(points, visible)[0] == pytest.approx(1.0 + np.ptp(STANDING[:2], axis=0).max())
