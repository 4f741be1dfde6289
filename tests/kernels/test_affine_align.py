"""Affine-Align: known windows, the twins in NumPy and PyTorch, gradients, borders and broken matrices."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.affine_align import affine_align, affine_align_reference
from kernels.coordinates import IDENTITY
from tests.tolerances import FLOAT32_BILINEAR, GRID_SAMPLE


def scene(people: int, channels: int = 3, height: int = 19, width: int = 31, images: int = 2) -> tuple:
    rng = np.random.default_rng(people + 10 * channels + 100 * height)
    features = rng.uniform(-1, 1, (images, channels, height, width)).astype(np.float32)
    angle, scale = rng.uniform(-np.pi, np.pi, people), rng.uniform(0.1, 3.0, people)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    shift_x, shift_y = rng.uniform(-5, width, people), rng.uniform(-5, height, people)
    matrices = np.stack((np.stack((a, b, shift_x), -1), np.stack((-b, a, shift_y), -1)), 1).astype(np.float32)
    return features, matrices, rng.integers(0, images, people).astype(np.int32)


def test_the_identity_copies_and_pads_with_zeros() -> None:
    features = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4) + 1
    window = affine_align(features, IDENTITY[None], np.zeros(1, np.int32), 5)
    expected = np.zeros((5, 5), np.float32)
    expected[:3, :4] = features[0, 0]
    np.testing.assert_array_equal(window[0, 0], expected)


def test_half_a_px_beyond_the_border_is_half_of_the_border() -> None:
    features = np.full((1, 1, 2, 2), 8.0, np.float32)
    shift = np.array([[[1.0, 0, -0.5], [0, 1, 0]]])
    np.testing.assert_array_equal(affine_align(features, shift, np.zeros(1, np.int32), 2)[0, 0], [[4, 8], [4, 8]])


@pytest.mark.parametrize("people", [0, 1, 7, 20])
@pytest.mark.parametrize("size", [1, 9, 16])
@pytest.mark.parametrize("extent", [(1, 1), (19, 31)], ids=["one px map", "odd map"])
def test_twin(people: int, size: int, extent: tuple[int, int]) -> None:
    arguments = scene(people, 3, *extent)
    fast, slow = affine_align(*arguments, size), affine_align_reference(*arguments, size)
    assert fast.shape == (people, 3, size, size)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, slow, **FLOAT32_BILINEAR)


def test_strided_input_gives_the_same() -> None:
    features, matrices, images = scene(7)
    strided = np.ascontiguousarray(features.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    expected = affine_align(features, matrices, images, 16)
    np.testing.assert_array_equal(
        affine_align(strided, matrices.astype(np.float64), images.astype(np.int64), 16), expected
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_broken_or_far_matrix_gives_zeros_and_leaves_the_others_alone(bad: float) -> None:
    features, matrices, images = scene(3)
    expected = affine_align(features, matrices, images, 16)
    matrices[1, 0, 2] = bad
    windows = affine_align(features, matrices, images, 16)
    assert not windows[1].any()
    np.testing.assert_array_equal(windows[[0, 2]], expected[[0, 2]])
    np.testing.assert_allclose(windows, affine_align_reference(features, matrices, images, 16), **FLOAT32_BILINEAR)


def test_people_are_independent_of_their_order() -> None:
    features, matrices, images = scene(6)
    order = np.array([3, 1, 5, 0, 2, 4])
    straight = affine_align(features, matrices, images, 16)
    np.testing.assert_array_equal(affine_align(features, matrices[order], images[order], 16), straight[order])


@pytest.mark.parametrize("people", [0, 1, 7])
def test_torch_twin(people: int) -> None:
    torch = pytest.importorskip("torch")
    from kernels.affine_align.torch_op import affine_align as torch_affine_align

    features, matrices, images = scene(people)
    if people:
        matrices[-1, 0, 0] = np.nan
    windows = torch_affine_align(*(torch.from_numpy(a) for a in (features, matrices, images)), 16)
    np.testing.assert_allclose(windows.numpy(), affine_align(features, matrices, images, 16), **GRID_SAMPLE)


def test_torch_gradient_reaches_the_features() -> None:
    torch = pytest.importorskip("torch")
    from kernels.affine_align.torch_op import affine_align as torch_affine_align

    features, matrices, images = (torch.from_numpy(a) for a in scene(3, 2, 5, 6))
    features = features.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch_affine_align(x, matrices.double(), images, 7), (features,))


def test_errors_say_what_came() -> None:
    features, matrices, images = scene(3)
    with pytest.raises(ValueError, match=r"features must be \(B, C, h, w\)"):
        affine_align(features[0], matrices, images)
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(3,\)"):
        affine_align(features, matrices[:, 0], images)
    with pytest.raises(ValueError, match=r"roi_image must be in 0\.\.1, got 0\.\.2"):
        affine_align(features, matrices, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="size must be at least 1 px, got 0"):
        affine_align(features, matrices, images, 0)
