"""The segment graph's inputs against a point-by-point calculation."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.coordinates import compose, half_pixel_scale, invert
from kernels.roi_inputs import segment_feeds

FEATURE_FROM_INPUT = half_pixel_scale(0.25, 0.25)
INPUT_FROM_FRAME = half_pixel_scale(0.8, 0.75)


def windows(people: int) -> np.ndarray:
    rng = np.random.default_rng(people)
    angle, scale = rng.uniform(-3, 3, people), rng.uniform(0.05, 3, people)
    matrices = np.zeros((people, 2, 3), np.float32)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = scale * np.sin(angle), -scale * np.sin(angle)
    matrices[:, :, 2] = rng.uniform(-100, 100, (people, 2))
    return matrices


@pytest.mark.parametrize("people", [0, 1, 7, 60])
def test_every_joint_and_every_corner_lands_where_the_matrices_say(people: int) -> None:
    rng = np.random.default_rng(3)
    keypoints = rng.uniform(0, 500, (people, 17, 3)).astype(np.float32)
    visibility = rng.integers(0, 3, (people, 17))
    roi_from_frame = windows(people)
    feeds = segment_feeds(keypoints, visibility, roi_from_frame, INPUT_FROM_FRAME, FEATURE_FROM_INPUT)
    assert feeds["roi_keypoints"].shape == (people, 17, 3)
    assert feeds["feature_from_roi"].shape == (people, 2, 3)
    assert feeds["roi_image"].tolist() == [0] * people
    for n in range(people):
        for j in range(17):
            got = feeds["roi_keypoints"][n, j]
            if not visibility[n, j]:
                assert not got.any()
                continue
            expected = roi_from_frame[n].astype(np.float64) @ [*keypoints[n, j, :2], 1.0]
            np.testing.assert_allclose(got[:2], expected, rtol=1e-5, atol=1e-3)
            assert got[2] == visibility[n, j]
        corner = np.array([63.0, 5.0, 1.0])
        in_frame = invert(roi_from_frame[n]) @ corner
        in_feature = compose(FEATURE_FROM_INPUT, INPUT_FROM_FRAME) @ [*in_frame, 1.0]
        np.testing.assert_allclose(feeds["feature_from_roi"][n] @ corner, in_feature, rtol=1e-4, atol=1e-2)


def test_a_window_without_inverse_is_an_error() -> None:
    flat = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match="singular"):
        segment_feeds(np.ones((1, 17, 3), np.float32), np.ones((1, 17)), flat, INPUT_FROM_FRAME, FEATURE_FROM_INPUT)
