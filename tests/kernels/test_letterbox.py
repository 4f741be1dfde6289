"""Letterbox: geometry by hand, px against the slow twin, odd and extreme sizes."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.coordinates import transform_points
from kernels.letterbox import letterbox, letterbox_reference, plan_letterbox
from tests.tolerances import OPENCV_RESIZE_LEVELS

SIZES = [(1, 1), (3, 5), (1, 7), (48, 64), (65, 33), (97, 130), (130, 20), (5, 800)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_wide_frame_fills_the_width_and_is_padded_below() -> None:
    plan = plan_letterbox(270, 480, long_side=384)
    assert (plan.content_height, plan.content_width) == (216, 384)
    assert (plan.input_height, plan.input_width) == (224, 384)
    # s = 0.8, x' = 0.8 x - 0.1
    np.testing.assert_allclose(plan.input_from_frame, [[0.8, 0, -0.1], [0, 0.8, -0.1]], atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (7680, 3), (2160, 3840)])
@pytest.mark.parametrize("long_side", [32, 100, 384])
def test_edges_of_the_frame_lie_on_edges_of_the_content(height: int, width: int, long_side: int) -> None:
    plan = plan_letterbox(height, width, long_side=long_side)
    assert max(plan.content_height, plan.content_width) == long_side
    assert min(plan.content_height, plan.content_width) >= 1
    assert plan.input_height % 32 == plan.input_width % 32 == 0
    assert 0 <= plan.input_height - plan.content_height < 32
    corners = transform_points(plan.input_from_frame, [[-0.5, -0.5], [width - 0.5, height - 0.5]])
    np.testing.assert_allclose(
        corners, [[-0.5, -0.5], [plan.content_width - 0.5, plan.content_height - 0.5]], atol=1e-3
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("long_side", [16, 64, 96])
def test_twin(height: int, width: int, long_side: int) -> None:
    image, plan = picture(height, width), plan_letterbox(height, width, long_side=long_side)
    fast, slow = letterbox(image, plan), letterbox_reference(image, plan)
    assert fast.shape == (plan.input_height, plan.input_width, 3)
    assert np.abs(fast.astype(int) - slow).max() <= OPENCV_RESIZE_LEVELS


def test_a_frame_of_the_right_size_is_copied() -> None:
    image, plan = picture(64, 96), plan_letterbox(64, 96, long_side=96)
    np.testing.assert_array_equal(letterbox(image, plan), image)


def test_a_reused_output_is_overwritten_to_the_last_px() -> None:
    image, plan = picture(50, 64), plan_letterbox(50, 64, long_side=64)
    out = np.full((plan.input_height, plan.input_width, 3), 255, np.uint8)
    assert letterbox(image, plan, out) is out
    np.testing.assert_array_equal(out, letterbox(image, plan))
    assert not out[50:].any()


@pytest.mark.parametrize("long_side", [32, 64, 100])
def test_strided_input_gives_the_same(long_side: int) -> None:
    image, plan = picture(40, 64), plan_letterbox(40, 64, long_side=long_side)
    strided = np.ascontiguousarray(image[:, ::-1, ::-1])[:, ::-1, ::-1]
    np.testing.assert_array_equal(letterbox(strided, plan), letterbox(image, plan))


def test_errors_say_what_came() -> None:
    plan = plan_letterbox(40, 64, long_side=64)
    with pytest.raises(ValueError, match=r"image must be uint8 \(40, 64, 3\) as planned, got uint8 \(41, 64, 3\)"):
        letterbox(picture(41, 64), plan)
    with pytest.raises(ValueError, match="got float32"):
        letterbox(picture(40, 64).astype(np.float32), plan)
    with pytest.raises(ValueError, match=r"out must be C-contiguous uint8 \(64, 64, 3\)"):
        letterbox(picture(40, 64), plan, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="frame 0 x 5"):
        plan_letterbox(0, 5, long_side=64)
