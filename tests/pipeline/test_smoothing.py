"""Joints smoothed by id: who is remembered, and who starts afresh."""

from __future__ import annotations

import numpy as np

from pipeline.smoothing import FORGOTTEN_AFTER_S, JointSmoother
from tests.fakes import STANDING

EVERY_S = 1 / 25
HERE = STANDING * (60, 160) + (100, 40)


def people(*shifts: float) -> np.ndarray:
    keypoints = np.full((len(shifts), 17, 3), 0.7, np.float32)
    for n, shift in enumerate(shifts):
        keypoints[n, :, :2] = HERE + np.array([shift, 0.0])
    return keypoints


def smooth(smoother: JointSmoother, time_s: float, ids: list[int], *shifts: float, clip: int = 0) -> np.ndarray:
    """(N,) how far right of `HERE` everybody comes out."""
    given = people(*shifts)
    before = given.copy()
    result = smoother.smooth(
        np.array(ids, np.int32), given, np.ones((len(ids), 17), np.bool_), clip=clip, time_s=time_s
    )
    np.testing.assert_array_equal(given, before)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:, :, 2], given[:, :, 2])
    return (result[:, :, 0] - HERE[:, 0].astype(np.float32)).mean(axis=1)


def test_trembling_shrinks_and_ids_carry_it() -> None:
    smoother = JointSmoother()
    out = []
    for i in range(60):
        tremble = 1.0 if i % 2 else -1.0
        ids, shifts = ([1, 2], (tremble, 300.0)) if i % 3 else ([2, 1], (300.0, tremble))  # order means nothing
        result = dict(zip(ids, smooth(smoother, i * EVERY_S, ids, *shifts).tolist(), strict=True))
        assert abs(result[2] - 300) < 1e-3
        out.append(result[1])
    assert np.abs(out[20:]).max() < 0.7


def test_whoever_is_new_or_was_away_starts_where_they_are() -> None:
    smoother = JointSmoother()
    assert abs(smooth(smoother, 0.0, [1], 0.0)[0]) < 1e-4
    assert 0.1 < smooth(smoother, EVERY_S, [1], 10.0)[0] < 9.99  # somebody known is held back
    assert abs(smooth(smoother, 2 * EVERY_S, [2], 10.0)[0] - 10) < 1e-4
    assert abs(smooth(smoother, 2 * EVERY_S + 2 * FORGOTTEN_AFTER_S, [1], 30.0)[0] - 30) < 1e-4


def test_another_clip_and_a_jump_back_start_anew() -> None:
    smoother = JointSmoother()
    smooth(smoother, 5.0, [1], 0.0)
    assert abs(smooth(smoother, 5.0 + EVERY_S, [1], 20.0, clip=1)[0] - 20) < 1e-4
    assert abs(smooth(smoother, 1.0, [1], 50.0, clip=1)[0] - 50) < 1e-4


def test_nobody_is_no_trouble() -> None:
    smoother = JointSmoother()
    assert smooth(smoother, 0.0, []).shape == (0,)
