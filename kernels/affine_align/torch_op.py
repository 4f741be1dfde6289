"""Affine-Align as PyTorch operators, differentiable, one node each in traced and exported graphs.

``pose2seg::affine_align``, its adjoint ``pose2seg::affine_align_backward``, and ``pose2seg::align_with_skeleton``,
which also draws the skeleton maps behind the aligned features. Each has three implementations with the same numbers:

    CUDA    one launch of affine_align.cu on the current stream
    CPU     the same arithmetic, built by the C++ compiler at the first call (affine_align_host.cpp); half precision
            is widened before and rounded after
    other   PyTorch's own operators, one grid_sample per image; also the CPU's where there is no compiler (logged)

Channels-last features give channels-last windows. Gradients flow to the features; poses are constants of the loss.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.affine_align.launch_shapes import (
    MAX_PEOPLE,
    Kernel,
    LaunchShape,
    Layout,
    check_sizes,
    launch_shape,
)
from kernels.native.compile import NativeBuildError, host_library
from kernels.native.torch_launch import ELEMENT_NAMES, aligned, launch, pointer
from kernels.skeleton import CHANNELS as SKELETON_CHANNELS
from kernels.skeleton import JOINTS
from kernels.torch_skeleton import skeleton_features

_log = logging.getLogger(__name__)

DEVICE_SOURCE = Path(__file__).with_name("affine_align.cu")
HOST_SOURCE = Path(__file__).with_name("affine_align_host.cpp")

FAR_OUTSIDE = -4.0  # normalised coordinate that every tap of a non-finite matrix is sent to: it samples zeros

_VALUES_PER_THREAD = 1 << 20  # about a millisecond of work: what a second thread must have to be worth its start


# ------------------------------------------------------------------------------------------------------- the operators


@torch.library.custom_op("pose2seg::affine_align", mutates_args=())
def affine_align(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    """Sample an aligned window for each person out of its own image's feature map.

    Args:
        features: (B, C, h, w) float; float16 and bfloat16 are summed in float32.
        feature_from_roi: (N, 2, 3) float; maps ROI pixel (u, v) to feature index (x, y).
        roi_image: (N,) integer; which image each person belongs to.
        size: side S of the window.

    Returns:
        (N, C, S, S), bilinear, zeros outside the map, channels-last where the features are. A matrix with NaN or
        infinity gives zeros, and so does an image index outside 0..B-1. N may be 0.

    Raises:
        ValueError: shapes, types or devices that do not fit together.
        NativeBuildError: CUDA tensors, and no compiler for CUDA code.

    Source: Pose2Seg section 3.2 (Affine-Align), with exact pixel-index sampling.
    """
    _check(features, feature_from_roi, roi_image, size)
    return _composed_align(features, feature_from_roi, roi_image, size)


@torch.library.custom_op("pose2seg::affine_align_backward", mutates_args=())
def affine_align_backward(
    gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, images: int, height: int, width: int
) -> Tensor:
    """Adjoint of `affine_align`: gradients of windows (N, C, S, S) to those of the features (B, C, h, w).

    Channels-last where the gradient is. Sums of several people at one px come in any order, so on a GPU the last bit
    may differ between runs.
    """
    return _composed_backward(gradient, feature_from_roi, roi_image, (images, height, width))


@torch.library.custom_op("pose2seg::align_with_skeleton", mutates_args=())
def align_with_skeleton(
    features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int
) -> Tensor:
    """Input of the mask network in one pass: the aligned features and behind them the 55 skeleton maps.

    Args:
        features: (B, C, h, w) float.
        feature_from_roi: (N, 2, 3) float; maps ROI pixel (u, v) to feature index (x, y).
        roi_image: (N,) integer; which image each person belongs to.
        roi_keypoints: (N, 17, 3) float; x, y in ROI px, third value 0 absent, 1 labelled but hidden, 2 visible. NaN or
            infinity counts as absent.
        size: side S of the window.

    Returns:
        (N, C + 55, S, S) like the features in type and layout: `affine_align`, then `kernels.skeleton`.

    Raises:
        ValueError, NativeBuildError: as `affine_align`.
    """
    _check(features, feature_from_roi, roi_image, size, roi_keypoints)
    return _composed_skeleton(features, feature_from_roi, roi_image, roi_keypoints, size)


def _format(tensor: Tensor) -> torch.memory_format:
    """How the outputs of an operator on this tensor are laid out; NCHW where it is both, as with one channel."""
    last = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=_format(like))


@affine_align.register_fake
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    return _empty((feature_from_roi.shape[0], features.shape[1], size, size), features)


@affine_align_backward.register_fake
def _(gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, images: int, height: int, width: int) -> Tensor:
    return _empty((images, gradient.shape[1], height, width), gradient)


@align_with_skeleton.register_fake
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int) -> Tensor:
    return _empty((feature_from_roi.shape[0], features.shape[1] + SKELETON_CHANNELS, size, size), features)


# ------------------------------------------------------------------------------------------------------------ gradients


def _keep_poses(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, feature_from_roi, roi_image = inputs[:3]
    ctx.save_for_backward(feature_from_roi, roi_image)
    ctx.images, ctx.channels, ctx.height, ctx.width = features.shape


def _affine_align_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return affine_align_backward(gradient, *ctx.saved_tensors, ctx.images, ctx.height, ctx.width), None, None, None


def _align_with_skeleton_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    windows = gradient[:, : ctx.channels].contiguous(memory_format=_format(gradient))
    return (
        affine_align_backward(windows, *ctx.saved_tensors, ctx.images, ctx.height, ctx.width),
        *(None, None, None, None),
    )


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, feature_from_roi, roi_image = inputs[:3]
    ctx.save_for_backward(feature_from_roi, roi_image)
    ctx.size = gradient.shape[-1]


def _adjoint_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return affine_align(gradient, *ctx.saved_tensors, ctx.size), None, None, None, None, None


affine_align.register_autograd(_affine_align_gradient, setup_context=_keep_poses)
align_with_skeleton.register_autograd(_align_with_skeleton_gradient, setup_context=_keep_poses)
affine_align_backward.register_autograd(_adjoint_gradient, setup_context=_keep_size)


# --------------------------------------------------------------------------------- composed of PyTorch's own operators


def _composed_align(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    b, c, h, w = features.shape
    # Not in half precision: the grid would be rounded to it, up to a px; and PyTorch's CPU build reads beside
    # channels-last arrays of float16 and bfloat16 (seen in 2.13).
    source = features.to(_sum_type(features)).contiguous()
    grid = _sampling_grid(feature_from_roi.to(source.dtype), size, h, w)
    out = source.new_zeros((len(feature_from_roi), c, size, size))
    for image, rows in _people_by_image(roi_image, b):
        crops = F.grid_sample(source[image : image + 1], grid[rows].reshape(1, -1, size, 2), align_corners=False)
        out[rows] = crops.reshape(c, len(rows), size, size).transpose(0, 1)
    return out.to(features.dtype).contiguous(memory_format=_format(features))


def _composed_backward(
    gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, maps: tuple[int, int, int]
) -> Tensor:
    _, c, size, _ = gradient.shape
    images, h, w = maps
    source = gradient.to(_sum_type(gradient)).contiguous()
    grid = _sampling_grid(feature_from_roi.to(source.dtype), size, h, w)
    out = source.new_zeros((images, c, h, w))
    for image, rows in _people_by_image(roi_image, images):
        stacked = source[rows].transpose(0, 1).reshape(1, c, -1, size)
        out[image] = torch.ops.aten.grid_sampler_2d_backward(
            stacked, out[image : image + 1], grid[rows].reshape(1, -1, size, 2), 0, 0, False, [True, False]
        )[0][0]
    return out.to(gradient.dtype).contiguous(memory_format=_format(gradient))


def _composed_skeleton(
    features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int
) -> Tensor:
    windows = affine_align(features, feature_from_roi, roi_image, size)
    joints = roi_keypoints.to(torch.promote_types(features.dtype, torch.float32))
    present = torch.isfinite(joints).all(-1) & (joints[..., 2] > 0.5)
    skeleton = skeleton_features(torch.where(present[..., None], joints, 0.0), size).to(windows.dtype)
    return torch.cat((windows, skeleton), dim=1).contiguous(memory_format=_format(features))


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
    """Grouped by image, so that a feature map is never copied per person."""
    for image in range(images):
        rows = torch.nonzero(roi_image == image).flatten()
        if len(rows):
            yield image, rows


# -------------------------------------------------------------------------------------------------- our own arithmetic


class KernelCall(NamedTuple):
    """One call of a kernel, arrays laid out as it wants them; `arrays` but the first have a row for each person."""

    kernel: Kernel
    arrays: tuple[Tensor, ...]
    """Features or gradient, matrices, images, and for the skeleton joints."""
    numbers: tuple[int, int, int, int, int]
    """B, C, H, W, S."""
    out: Tensor

    @property
    def element(self) -> str:
        """How the kernel's name ends."""
        return ELEMENT_NAMES[self.arrays[0].dtype]

    def parts(self) -> Iterator[tuple[LaunchShape, list[Any]]]:
        """Launches on a device: one, unless there are more people than a grid has layers."""
        _, c, _, _, size = self.numbers
        layout: Layout = "nhwc" if _format(self.arrays[0]) == torch.channels_last else "nchw"
        people = len(self.arrays[1])
        for first in range(0, people, MAX_PEOPLE):
            rows = slice(first, first + MAX_PEOPLE)
            shape = launch_shape(
                self.kernel, layout, self.element, people=min(people - first, MAX_PEOPLE), channels=c, size=size
            )
            adjoint = self.kernel == "affine_align_backward"
            arrays = [self.arrays[0][rows] if adjoint else self.arrays[0], *(one[rows] for one in self.arrays[1:])]
            out = self.out if adjoint else self.out[rows]
            yield shape, [*map(pointer, arrays), *map(ctypes.c_int, self.numbers), pointer(out)]


def forward_call(
    features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int, roi_keypoints: Tensor | None = None
) -> KernelCall:
    """The call that computes `affine_align` or, with joints, `align_with_skeleton`; `out` is not yet written."""
    b, c, h, w = features.shape
    laid = aligned(features.contiguous(memory_format=_format(features)))
    arrays = (laid, *_people(features, feature_from_roi, roi_image))
    if roi_keypoints is None:
        return KernelCall("affine_align", arrays, (b, c, h, w, size), _empty((len(roi_image), c, size, size), features))
    joints = roi_keypoints.to(torch.float32).contiguous()
    out = _empty((len(roi_image), c + SKELETON_CHANNELS, size, size), features)
    return KernelCall("align_with_skeleton", (*arrays, joints), (b, c, h, w, size), out)


def backward_call(
    gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, maps: tuple[int, int, int]
) -> KernelCall:
    """The call that computes `affine_align_backward`; `out` is zeros in the type that sums are done in."""
    _, c, size, _ = gradient.shape
    images, h, w = maps
    laid = aligned(gradient.contiguous(memory_format=_format(gradient)))
    out = _empty((images, c, h, w), gradient, _sum_type(gradient)).zero_()
    arrays = (laid, *_people(gradient, feature_from_roi, roi_image))
    return KernelCall("affine_align_backward", arrays, (images, c, h, w, size), out)


def _people(like: Tensor, feature_from_roi: Tensor, roi_image: Tensor) -> tuple[Tensor, Tensor]:
    return feature_from_roi.to(_sum_type(like)).contiguous(), roi_image.to(torch.int32).contiguous()


def _sum_type(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


@functools.cache
def _host() -> ctypes.CDLL | None:
    """The compiled arithmetic; None, and one line in the log, where it cannot be had."""
    try:
        return host_library(HOST_SOURCE)
    except NativeBuildError as cause:
        _log.warning("affine-align on the CPU runs on PyTorch's grid_sample, which is slower: %s", cause)
        return None


def _run_on_host(host: ctypes.CDLL, call: KernelCall) -> None:
    layout = "nhwc" if _format(call.arrays[0]) == torch.channels_last else "nchw"
    call.out.zero_()  # px outside the map are left alone
    threads = min(torch.get_num_threads(), 1 + call.out.numel() // _VALUES_PER_THREAD)
    getattr(host, f"{call.kernel}_{layout}_{call.element}")(
        *map(pointer, call.arrays), len(call.arrays[1]), *call.numbers, pointer(call.out), threads
    )


def _run_on_cuda(call: KernelCall) -> None:
    for shape, arguments in call.parts():
        launch(DEVICE_SOURCE, call.out.device, *shape, *arguments)


def _computed(call: KernelCall, run: Callable[[KernelCall], None], like: Tensor) -> Tensor:
    # No person, no channel: an empty grid is a launch error. No map at all: nothing to read from.
    if call.arrays[0].numel() and call.arrays[1].numel():
        run(call)
    else:
        call.out.zero_()
    return call.out.to(like.dtype)


@affine_align.register_kernel("cpu")
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    _check(features, feature_from_roi, roi_image, size)
    host = _host()
    if host is None:
        return _composed_align(features, feature_from_roi, roi_image, size)
    call = forward_call(features.to(_sum_type(features)), feature_from_roi, roi_image, size)
    return _computed(call, partial(_run_on_host, host), features)


@affine_align.register_kernel("cuda")
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    _check(features, feature_from_roi, roi_image, size)
    return _computed(forward_call(features, feature_from_roi, roi_image, size), _run_on_cuda, features)


@affine_align_backward.register_kernel("cpu")
def _(gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, images: int, height: int, width: int) -> Tensor:
    host, maps = _host(), (images, height, width)
    if host is None:
        return _composed_backward(gradient, feature_from_roi, roi_image, maps)
    call = backward_call(gradient.to(_sum_type(gradient)), feature_from_roi, roi_image, maps)
    return _computed(call, partial(_run_on_host, host), gradient)


@affine_align_backward.register_kernel("cuda")
def _(gradient: Tensor, feature_from_roi: Tensor, roi_image: Tensor, images: int, height: int, width: int) -> Tensor:
    return _computed(
        backward_call(gradient, feature_from_roi, roi_image, (images, height, width)), _run_on_cuda, gradient
    )


@align_with_skeleton.register_kernel("cpu")
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int) -> Tensor:
    _check(features, feature_from_roi, roi_image, size, roi_keypoints)
    host = _host()
    if host is None or features.dtype == torch.float64:
        return _composed_skeleton(features, feature_from_roi, roi_image, roi_keypoints, size)
    call = forward_call(features.to(_sum_type(features)), feature_from_roi, roi_image, size, roi_keypoints)
    return _computed(call, partial(_run_on_host, host), features)


@align_with_skeleton.register_kernel("cuda")
def _(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int) -> Tensor:
    _check(features, feature_from_roi, roi_image, size, roi_keypoints)
    if features.dtype == torch.float64:  # gradient checks only
        return _composed_skeleton(features, feature_from_roi, roi_image, roi_keypoints, size)
    return _computed(forward_call(features, feature_from_roi, roi_image, size, roi_keypoints), _run_on_cuda, features)


def _check(
    features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int, roi_keypoints: Tensor | None = None
) -> None:
    if features.ndim != 4:
        raise ValueError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    if features.dtype not in ELEMENT_NAMES:
        raise ValueError(f"features must be one of {', '.join(map(str, ELEMENT_NAMES))}, got {features.dtype}")
    _, _, h, w = features.shape
    check_sizes(h, w, size)
    people = len(feature_from_roi)
    if feature_from_roi.shape != (people, 2, 3) or roi_image.shape != (people,):
        raise ValueError(
            "feature_from_roi must be (N, 2, 3) and roi_image (N,), "
            f"got {tuple(feature_from_roi.shape)} and {tuple(roi_image.shape)}"
        )
    if roi_image.is_floating_point() or roi_image.dtype == torch.bool:
        raise ValueError(f"roi_image must hold integers, got {roi_image.dtype}")
    others = [feature_from_roi, roi_image]
    if roi_keypoints is not None:
        if roi_keypoints.shape != (people, JOINTS, 3):
            raise ValueError(f"roi_keypoints must be ({people}, {JOINTS}, 3), got {tuple(roi_keypoints.shape)}")
        others.append(roi_keypoints)
    if any(one.device != features.device for one in others):
        raise ValueError(f"all tensors must be on {features.device}, got {[str(one.device) for one in others]}")
