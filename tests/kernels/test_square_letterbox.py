"""The square letterbox: its matrix by hand, px against the slow twin, and the window of a person whom nothing fits."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.coordinates import transform_points
from kernels.square_letterbox import (
    plan_square_letterbox,
    square_letterbox,
    square_letterbox_reference,
    whole_input_roi,
)
from tests.tolerances import OPENCV_WARP_STEP_PX


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_wide_frame_is_centred() -> None:
    plan = plan_square_letterbox(480, 640)
    np.testing.assert_allclose(plan.input_from_frame, [[0.8, 0, 0], [0, 0.8, 64]], atol=1e-5)
    filled = square_letterbox(np.full((480, 640, 3), 255, np.uint8), plan)
    assert filled.shape == (512, 512, 3)
    assert not filled[:63].any() and not filled[449:].any()
    assert (filled[64:447] == 255).all()


def test_a_tall_frame_grows_to_the_side() -> None:
    plan = plan_square_letterbox(100, 50, side=200)
    np.testing.assert_allclose(plan.input_from_frame, [[2, 0, 50], [0, 2, 0]], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (1, 7), (48, 64), (65, 33), (97, 130), (5, 300)])
@pytest.mark.parametrize("side", [16, 64, 97])
def test_twin(height: int, width: int, side: int) -> None:
    image, plan = picture(height, width), plan_square_letterbox(height, width, side=side)
    fast, slow = square_letterbox(image, plan), square_letterbox_reference(image, plan)
    assert fast.shape == slow.shape == (side, side, 3)
    # One px further along, noise changes by up to 255 levels on each axis.
    assert np.abs(fast.astype(int) - slow).max() <= 2 * 255 * OPENCV_WARP_STEP_PX + 1


def test_a_frame_of_the_right_size_is_copied() -> None:
    image, plan = picture(64, 64), plan_square_letterbox(64, 64, side=64)
    np.testing.assert_array_equal(square_letterbox(image, plan), image)


def test_a_reused_output_is_overwritten_and_any_strides_will_do() -> None:
    image = picture(50, 64)
    plan = plan_square_letterbox(50, 64, side=64)
    out = np.full((64, 64, 3), 255, np.uint8)
    assert square_letterbox(image[:, ::-1], plan, out) is out
    np.testing.assert_array_equal(out, square_letterbox(np.ascontiguousarray(image[:, ::-1]), plan))
    assert not out[:6].any() and not out[58:].any()


def test_the_whole_input_is_the_window_of_last_resort() -> None:
    plan = plan_square_letterbox(480, 640)
    matrix = whole_input_roi(plan, 64)
    # input px (0, 64) is frame px (0, 0); an eighth of it is ROI px
    np.testing.assert_allclose(transform_points(matrix, [[0, 0], [640, 480]]), [[0, 8], [64, 56]], atol=1e-4)


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match="sizes must be at least 1 px, got frame 0 x 5, side 8"):
        plan_square_letterbox(0, 5, side=8)
    plan = plan_square_letterbox(4, 5, side=8)
    with pytest.raises(ValueError, match=r"image must be uint8 \(4, 5, 3\) as planned, got uint8 \(5, 4, 3\)"):
        square_letterbox(picture(5, 4), plan)
    with pytest.raises(ValueError, match=r"out must be C-contiguous uint8 \(8, 8, 3\)"):
        square_letterbox(picture(4, 5), plan, np.zeros((8, 9, 3), np.uint8))
