"""Affine-Align as the PyTorch operator ``pose2seg::affine_align``: one node in traced and exported graphs,
differentiable.

The implementation groups people by image, so that a feature map is never copied per person: one `grid_sample` per image
over the stacked sampling grids of its people. Gradients flow to the features; poses are constants of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FAR_OUTSIDE = -4.0  # normalised coordinate that every tap of a non-finite matrix is sent to: it samples zeros


def _sampling_grid(feature_from_roi: Tensor, size: int, height: int, width: int) -> Tensor:
    """(N, S, S, 2) normalised coordinates for `grid_sample(align_corners=False)` that hit exact feature indices."""
    index = torch.arange(size, device=feature_from_roi.device, dtype=feature_from_roi.dtype)
    v, u = torch.meshgrid(index, index, indexing="ij")
    roi = torch.stack((u, v, torch.ones_like(u)), dim=-1).reshape(-1, 3)
    extent = torch.tensor([width, height], device=roi.device, dtype=roi.dtype)
    grid = ((roi @ feature_from_roi.transpose(1, 2)) * 2 + 1) / extent - 1
    grid = torch.where(torch.isfinite(grid), grid, FAR_OUTSIDE).clamp(-4.0, 4.0)
    return grid.reshape(-1, size, size, 2)


def _people_by_image(roi_image: Tensor, images: int) -> Iterator[tuple[int, Tensor]]:
    for image in range(images):
        rows = torch.nonzero(roi_image == image).flatten()
        if len(rows):
            yield image, rows


@torch.library.custom_op("pose2seg::affine_align", mutates_args=())
def affine_align(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    """Sample an aligned window for each person out of its own image's feature map.

    Args:
        features: (B, C, h, w) float.
        feature_from_roi: (N, 2, 3) float; maps ROI pixel (u, v) to feature index (x, y).
        roi_image: (N,) integer; which image each person belongs to.
        size: side S of the window.

    Returns:
        (N, C, S, S), bilinear, zeros outside the map; a matrix with NaN or infinity gives zeros.

    Source: Pose2Seg section 3.2 (Affine-Align), with exact pixel-index sampling.
    """
    b, c, h, w = features.shape
    grid = _sampling_grid(feature_from_roi.to(features.dtype), size, h, w)
    out = features.new_zeros((len(feature_from_roi), c, size, size))
    for image, rows in _people_by_image(roi_image, b):
        crops = F.grid_sample(features[image : image + 1], grid[rows].reshape(1, -1, size, 2), align_corners=False)
        out[rows] = crops.reshape(c, len(rows), size, size).transpose(0, 1)
    return out


@affine_align.register_fake
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    return features.new_empty((feature_from_roi.shape[0], features.shape[1], size, size))


@torch.library.custom_op("pose2seg::affine_align_backward", mutates_args=())
def affine_align_backward(gradient: Tensor, features: Tensor, feature_from_roi: Tensor, roi_image: Tensor) -> Tensor:
    """Gradient of `affine_align` with respect to ``features``: (N, C, S, S) back to (B, C, h, w)."""
    b, c, h, w = features.shape
    size = gradient.shape[-1]
    grid = _sampling_grid(feature_from_roi.to(features.dtype), size, h, w)
    out = torch.zeros_like(features, memory_format=torch.contiguous_format)
    for image, rows in _people_by_image(roi_image, b):
        stacked = gradient[rows].transpose(0, 1).reshape(1, c, -1, size)
        out[image] = torch.ops.aten.grid_sampler_2d_backward(
            stacked, features[image : image + 1], grid[rows].reshape(1, -1, size, 2), 0, 0, False, [True, False]
        )[0][0]
    return out


@affine_align_backward.register_fake
def _(gradient: Tensor, features: Tensor, feature_from_roi: Tensor, roi_image: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return affine_align_backward(gradient, *ctx.saved_tensors), None, None, None


affine_align.register_autograd(_backward, setup_context=_setup_context)
