"""The PyTorch operator of affine-align as training uses it: registration, gradients, borders, the slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.affine_align import affine_align_reference
from kernels.affine_align.torch_op import affine_align, affine_align_backward, align_with_skeleton
from kernels.torch_skeleton import skeleton_features
from tests.tolerances import GRID_SAMPLE


def arguments(people: int, *, dtype: torch.dtype = torch.float32, images: int = 2):
    generator = torch.Generator().manual_seed(people)
    features = torch.randn(images, 3, 7, 9, generator=generator, dtype=dtype)
    matrices = torch.randn(people, 2, 3, generator=generator, dtype=dtype) * torch.tensor([1.0, 1.0, 4.0], dtype=dtype)
    return features, matrices, torch.randint(0, images, (people,), generator=generator, dtype=torch.int32)


def keypoints(people: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(people + 100)
    joints = torch.rand(people, 17, 3, generator=generator, dtype=dtype) * 6
    joints[..., 2] = torch.randint(0, 3, (people, 17), generator=generator)
    return joints


def test_the_signatures_are_those_that_exported_graphs_and_engines_name() -> None:
    aligned, fused = (
        str(getattr(torch.ops.pose2seg, name).default._schema) for name in ("affine_align", "align_with_skeleton")
    )
    people = "Tensor features, Tensor feature_from_roi, Tensor roi_image"
    assert aligned == f"pose2seg::affine_align({people}, SymInt size) -> Tensor"
    assert fused == f"pose2seg::align_with_skeleton({people}, Tensor roi_keypoints, SymInt size) -> Tensor"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("people", [0, 1, 5])
def test_the_operators_are_registered_as_torch_wants_them(
    people: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    features, matrices, images = arguments(people)
    features = features.to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.ones(people, 3, 6, 6, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    for operator, inputs in (
        (affine_align, (features, matrices, images, 6)),
        (align_with_skeleton, (features, matrices, images, keypoints(people), 6)),
        (affine_align_backward, (gradient, matrices, images, 2, 7, 9)),
    ):
        checked = torch.library.opcheck(operator, inputs)
        assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("people", [1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gradcheck_of_the_skeleton_operator_and_of_the_gradient_itself(
    people: int, layout: torch.memory_format
) -> None:
    features, matrices, images = arguments(people, dtype=torch.float64)
    features = features.contiguous(memory_format=layout).requires_grad_()
    joints = keypoints(people, torch.float64)
    assert torch.autograd.gradcheck(lambda x: align_with_skeleton(x, matrices, images, joints, 5), (features,))
    assert torch.autograd.gradgradcheck(lambda x: affine_align(x, matrices, images, 5), (features,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_operator_does_what_training_composes(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """`training.model` aligns, draws and concatenates; values and gradients of the one call are the same."""
    features, matrices, images = arguments(4)
    features = features.to(dtype).contiguous(memory_format=layout).requires_grad_()
    joints = keypoints(4)
    composed = torch.cat((affine_align(features, matrices, images, 6), skeleton_features(joints.to(dtype), 6)), dim=1)
    fused = align_with_skeleton(features, matrices, images, joints, 6)
    assert fused.dtype == composed.dtype
    torch.testing.assert_close(fused[:, :3], composed[:, :3], rtol=0, atol=0)
    if dtype == torch.float32:  # otherwise the joints themselves are rounded first where training composes
        torch.testing.assert_close(fused, composed, rtol=0, atol=1e-5)
    weights = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = [torch.autograd.grad((result * weights).sum(), features)[0] for result in (composed, fused)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_hold_one_node_for_each_operator(dynamic: bool) -> None:
    nodes: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def both(features, matrices, images, joints):
        return affine_align(features * 2, matrices, images, 6), align_with_skeleton(
            features, matrices, images, joints, 6
        )

    for people in (5, 3):
        features, matrices, images = arguments(people)
        windows, skeleton = both(features, matrices, images, keypoints(people))
        torch.testing.assert_close(windows, affine_align(features * 2, matrices, images, 6))
        torch.testing.assert_close(skeleton, align_with_skeleton(features, matrices, images, keypoints(people), 6))
    assert {"pose2seg.affine_align.default", "pose2seg.align_with_skeleton.default"} <= set(nodes)


def test_training_steps_compile() -> None:
    """Forward and backward traced ahead of time, as torch.compile does for training."""
    features, matrices, images = arguments(4)
    joints = keypoints(4)

    def step(x: torch.Tensor) -> torch.Tensor:
        return align_with_skeleton(x.sin(), matrices, images, joints, 6)

    results = []
    for function in (torch.compile(step, backend="aot_eager", fullgraph=True), step):
        leaf = features.clone().requires_grad_()
        function(leaf).square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


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
