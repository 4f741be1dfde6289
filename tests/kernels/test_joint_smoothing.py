"""The One Euro filter of joints: against its slow twin, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.joint_smoothing import SmoothingParameters, smooth_joints, smooth_joints_reference

SEEN = np.ones((1, 17), np.bool_)


def walk(points: np.ndarray, every_s: float, **parameters: float) -> np.ndarray:
    """(T, 17, 2) through the filter, person of size 100 px."""
    last, speeds = points[:1], np.zeros((1, 17, 2))
    out = [points[0]]
    for now in points[1:]:
        last, speeds = smooth_joints(
            *(now[None], SEEN, last, speeds, SEEN, np.array([100.0]), np.array([every_s])),
            parameters=SmoothingParameters(**parameters),
        )
        out.append(last[0])
    return np.stack(out)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_twin(count: int) -> None:
    rng = np.random.default_rng(count)
    points = rng.uniform(0, 500, (count, 17, 2))
    arguments = (
        *(points, rng.random((count, 17)) < 0.8, points + rng.normal(0, 5, points.shape)),
        *(rng.normal(0, 50, points.shape), rng.random((count, 17)) < 0.8),
        *(rng.uniform(20, 400, count), rng.choice([-0.1, 0.0, 0.02, 0.2], count)),
    )
    for fast, slow in zip(smooth_joints(*arguments), smooth_joints_reference(*arguments), strict=True):
        assert fast.shape == (count, 17, 2)
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)


def test_what_rests_trembles_less() -> None:
    noisy = np.random.default_rng(0).normal(0, 1.0, (400, 17, 2)) + 200
    still = walk(noisy, 1 / 30)
    assert still[30:].std() < 0.75 * noisy[30:].std()
    assert abs(still[30:].mean() - 200) < 0.1


def test_what_moves_is_hardly_late() -> None:
    """A body size a second to the right: less than a fiftieth of a second behind."""
    x = np.arange(90) / 30 * 100.0
    points = np.zeros((90, 17, 2))
    points[:, :, 0] = x[:, None]
    assert 0 < (x - walk(points, 1 / 30)[:, 0, 0])[60:].max() < 100.0 / 50


def test_near_and_far_people_are_treated_alike() -> None:
    points = np.cumsum(np.random.default_rng(1).normal(0, 2, (2, 17, 2)), axis=0) + 50
    before, speeds, size, step = points[:1], np.zeros((1, 17, 2)), np.array([80.0]), np.array([0.04])
    small, _ = smooth_joints(points[1:], SEEN, before, speeds, SEEN, size, step)
    large, _ = smooth_joints(8 * points[1:], SEEN, 8 * before, speeds, SEEN, 8 * size, step)
    np.testing.assert_allclose(large, 8 * small, rtol=1e-12)


@pytest.mark.parametrize("reason", ["hidden", "new", "no time"])
def test_nothing_is_smoothed_without_a_reason(reason: str) -> None:
    points, before = np.full((1, 17, 2), 60.0), np.full((1, 17, 2), 50.0)
    smoothed, speeds = smooth_joints(
        *(points, ~SEEN if reason == "hidden" else SEEN, before, np.ones_like(before)),
        *(~SEEN if reason == "new" else SEEN, np.array([100.0]), np.array([0.0 if reason == "no time" else 0.04])),
    )
    np.testing.assert_array_equal(smoothed, points)
    assert not speeds.any()
