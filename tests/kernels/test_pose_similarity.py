"""Similarity of poses: the fast form against the slow one, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.pose_fit import PAPER_TEMPLATES
from kernels.pose_similarity import pose_similarities, pose_similarities_reference

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
