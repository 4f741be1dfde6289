"""The PyTorch operator of affine-align as training uses it: registration, gradients, borders, the slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.affine_align import affine_align_reference
from kernels.affine_align.torch_op import affine_align
from tests.tolerances import GRID_SAMPLE


def arguments(people: int, *, dtype: torch.dtype = torch.float32, images: int = 2):
    generator = torch.Generator().manual_seed(people)
    features = torch.randn(images, 3, 7, 9, generator=generator, dtype=dtype)
    matrices = torch.randn(people, 2, 3, generator=generator, dtype=dtype) * torch.tensor([1.0, 1.0, 4.0], dtype=dtype)
    return features, matrices, torch.randint(0, images, (people,), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("people", [0, 1, 5])
def test_the_operator_is_registered_as_torch_wants_it(people: int) -> None:
    features, matrices, images = arguments(people)
    checked = torch.library.opcheck(affine_align, (features.requires_grad_(), matrices, images, 6))
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("people", [1, 4])
def test_gradcheck_in_double(people: int) -> None:
    features, matrices, images = arguments(people, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: affine_align(x, matrices, images, 5), (features.requires_grad_(),))


def test_gradients_add_up_over_people_and_stay_in_their_picture() -> None:
    features, matrices, _ = arguments(3, images=3)
    features.requires_grad_()
    images = torch.tensor([0, 2, 2], dtype=torch.int32)
    affine_align(features, matrices, images, 6).sum().backward()
    assert features.grad is not None
    assert not features.grad[1].any()
    singles = torch.zeros_like(features)
    for person in range(3):
        alone = features.detach().clone().requires_grad_()
        affine_align(alone, matrices[person : person + 1], images[person : person + 1], 6).sum().backward()
        singles += alone.grad
    torch.testing.assert_close(features.grad, singles)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_matrix_gives_zeros_and_no_gradient(bad: float) -> None:
    features, matrices, images = arguments(2)
    matrices[0, 1, 2] = bad
    features.requires_grad_()
    windows = affine_align(features, matrices, images, 6)
    windows.sum().backward()
    assert not windows[0].any()
    assert features.grad is not None and torch.isfinite(features.grad).all()
    expected = affine_align_reference(features.detach().numpy(), matrices.numpy(), images.numpy(), 6)
    np.testing.assert_allclose(windows.detach(), expected, **GRID_SAMPLE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_does_not_matter(layout: torch.memory_format) -> None:
    features, matrices, images = arguments(4)
    laid = features.contiguous(memory_format=layout)
    torch.testing.assert_close(affine_align(laid, matrices, images, 6), affine_align(features, matrices, images, 6))
