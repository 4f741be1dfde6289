"""Matrices: hand-worked cases and the laws of composing and inverting."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given

from kernels.coordinates import IDENTITY, compose, half_pixel_scale, invert, scale_of, transform_points
from tests.strategies import similarities
from tests.tolerances import GEOMETRY_PX


def test_compose_applies_the_inner_matrix_first() -> None:
    double = np.array([[2.0, 0, 0], [0, 2, 0]])
    shift = np.array([[1.0, 0, 10], [0, 1, 20]])
    np.testing.assert_array_equal(transform_points(compose(double, shift), [[1.0, 2.0]]), [[22.0, 44.0]])
    np.testing.assert_array_equal(transform_points(compose(shift, double), [[1.0, 2.0]]), [[12.0, 24.0]])


def test_compose_and_transform_broadcast_over_people() -> None:
    many = np.stack([IDENTITY, half_pixel_scale(2, 2), half_pixel_scale(0.5, 0.25)])
    assert compose(many, IDENTITY).shape == (3, 2, 3)
    np.testing.assert_array_equal(compose(many, IDENTITY), many)
    points = np.arange(12.0).reshape(3, 2, 2)
    moved = transform_points(many, points)
    for matrix, given_points, got in zip(many, points, moved, strict=True):
        np.testing.assert_array_equal(transform_points(matrix, given_points), got)


@given(similarities(), similarities())
def test_inverse_undoes_and_reverses_order(a: np.ndarray, b: np.ndarray) -> None:
    points = np.array([[0.0, 0.0], [300.0, -20.0], [-7.5, 411.0]])
    np.testing.assert_allclose(compose(invert(a), a), IDENTITY, atol=GEOMETRY_PX)
    back = transform_points(invert(a), transform_points(a, points))
    np.testing.assert_allclose(back, points, atol=GEOMETRY_PX)
    reversed_order = transform_points(compose(invert(b), invert(a)), points)
    # A shift of 500 px is magnified by both inverses, 20 times each.
    np.testing.assert_allclose(transform_points(invert(compose(a, b)), points), reversed_order, rtol=1e-9, atol=1e-5)


@given(similarities())
def test_scale_of_a_similarity_is_its_magnification(matrix: np.ndarray) -> None:
    ends = transform_points(matrix, [[0.0, 0.0], [3.0, 4.0]])
    assert scale_of(matrix) == pytest.approx(np.linalg.norm(ends[1] - ends[0]) / 5.0, rel=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.full((2, 3), np.nan), np.array([[1.0, 2, 0], [2, 4, 0]])])
def test_a_singular_matrix_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert(bad)


def test_half_pixel_scale_is_what_opencv_resizes_by() -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32), (4, 1))  # value = x
    resized = cv2.resize(ramp, (100, 4), interpolation=cv2.INTER_LINEAR)
    source = transform_points(invert(half_pixel_scale(2.5, 1.0)), np.stack((np.arange(100), np.zeros(100)), axis=-1))
    inside = (source[:, 0] > 0) & (source[:, 0] < 39)
    np.testing.assert_allclose(resized[0, inside], source[inside, 0], atol=1e-3)
