"""Augmentation stays in its ranges and keeps what it must not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.coordinates import transform_points
from tests.training.drawn_people import background, drawn_pose
from training.augment import jitter_pose, photometric, roi_augmentation

SEEDS = st.integers(0, 100_000)


@given(SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_photometric_keeps_shape_and_type_and_its_input(seed: int, height: int, width: int) -> None:
    image = background(seed, height, width)
    before = image.copy()
    changed = photometric(np.random.default_rng(seed), image)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(changed, photometric(np.random.default_rng(seed), image))


def test_photometric_changes_the_light_but_not_the_place() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = 180
    for seed in range(50):
        changed = photometric(np.random.default_rng(seed), image).astype(float).mean(-1)
        assert changed[14:26, 24:36].mean() > changed[:6, :14].mean() + 60


@given(SEEDS)
def test_roi_augmentation_is_a_similarity_in_range_about_the_middle(seed: int) -> None:
    matrix = roi_augmentation(np.random.default_rng(seed), 64)
    (a, b), (c, d) = matrix[:, :2]
    assert a == pytest.approx(d) and b == pytest.approx(-c)
    assert 0.8 - 1e-9 <= np.hypot(a, c) <= 1.2 + 1e-9
    assert abs(np.rad2deg(np.arctan2(c, a))) <= 30 + 1e-9
    moved = transform_points(matrix, np.array([[32.0, 32.0]]))[0]
    assert (np.abs(moved - 32) <= 6.4 + 1e-9).all()


def test_roi_augmentation_reaches_the_ends_of_its_ranges() -> None:
    rng = np.random.default_rng(0)
    matrices = np.stack([roi_augmentation(rng, 64) for _ in range(400)])
    angle = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    scale = np.hypot(matrices[:, 1, 0], matrices[:, 0, 0])
    middle = transform_points(matrices, np.full((1, 2), 32.0))[:, 0]
    for values, low, high in (
        (angle, -30, 30),
        (scale, 0.8, 1.2),
        (middle[:, 0], 25.6, 38.4),
        (middle[:, 1], 25.6, 38.4),
    ):
        assert values.min() < low + 0.03 * (high - low)
        assert values.max() > high - 0.03 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.06 * (high - low)


def test_nothing_asked_is_the_identity() -> None:
    still = roi_augmentation(np.random.default_rng(1), 48, rotation_deg=0, scale=0, shift=0)
    np.testing.assert_allclose(still, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@given(SEEDS, st.integers(0, 17))
def test_jitter_moves_a_little_and_leaves_a_pose(seed: int, present: int) -> None:
    rng = np.random.default_rng(seed)
    pose = drawn_pose(10, 20, 200)
    pose[:, 2] = rng.integers(1, 3, 17)
    pose[rng.permutation(17)[present:]] = 0
    before = pose.copy()
    jittered = jitter_pose(rng, pose)
    np.testing.assert_array_equal(pose, before)
    assert jittered.shape == (17, 3) and jittered.dtype == np.float32
    assert set(np.unique(jittered[:, 2])) <= {0.0, 1.0, 2.0}
    assert not jittered[jittered[:, 2] == 0].any()
    assert not jittered[before[:, 2] == 0].any()  # never invents a joint
    both = jittered[:, 2] > 0
    assert np.abs(jittered[both, :2] - before[both, :2]).max(initial=0) < 0.035 * 200 * 5


def test_jitter_does_each_of_its_errors() -> None:
    pose = drawn_pose(10, 20, 200)
    pose[9:11, 2] = 1
    results = [jitter_pose(np.random.default_rng(seed), pose) for seed in range(200)]
    moved = [bool((r[:9, :2] != pose[:9, :2])[r[:9, 2] > 0].any()) for r in results]
    assert 0.45 < np.mean(moved) < 0.75
    assert 0.2 < np.mean([(r[:9, 2] == 0).any() for r in results]) < 0.45  # dropped
    assert 0.1 < np.mean([(r[9:11, 2] == 2).all() for r in results]) < 0.4  # hidden joints believed
    assert 0.05 < np.mean([(r[9:11, 2] == 0).all() for r in results]) < 0.4  # or given up
