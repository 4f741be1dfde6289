"""ONNX operators that compute, as torch calls: exactly those that our exported graphs need, by the letter of the ONNX
text. Those that move and reduce are in `engines.torch_shape_operators`.
"""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import engines.torch_shape_operators  # noqa: F401  registers its operators
import kernels.affine_align.torch_op  # noqa: F401  registers pose2seg::affine_align
from engines.engine import EngineLoadError
from engines.torch_graph import TORCH_DTYPE
from engines.torch_operation import (
    CHANNELS_LAST,
    OPERATORS,
    Builder,
    Convolution,
    Function,
    Operand,
    Operation,
    operator,
    same,
)

# --- convolutions and pooling ---------------------------------------------------------------------------------------


def _window_pads(op: Operation, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """[top, left, bottom, right] of a window operator, whichever way the node states them."""
    dilations = op.attribute("dilations", [1, 1])
    mode = op.attribute("auto_pad", "NOTSET")
    pads = list(op.attribute("pads", [0, 0, 0, 0]))
    if mode == "NOTSET":
        return pads
    if mode == "VALID":
        return [0, 0, 0, 0]
    if mode not in {"SAME_UPPER", "SAME_LOWER"}:
        raise op.unsupported(f"auto_pad={mode!r}")
    begin, end = [], []
    for length, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // s) - 1) * s + (k - 1) * d + 1 - length)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return [*begin, *end]


def _is_symmetric(pads: Sequence[int]) -> bool:
    return pads[:2] == pads[2:]


def _pad_2d(pads: Sequence[int]) -> tuple[int, int, int, int]:
    """ONNX [top, left, bottom, right] -> `F.pad`'s (left, right, top, bottom)."""
    top, left, bottom, right = pads
    return left, right, top, bottom


def _images(op: Operation, index: int = 0) -> tuple[int, int, int, int]:
    shape = op.shape(index)
    if len(shape) != 4:
        raise op.unsupported(f"an input with {len(shape)} dimensions")
    return shape


@operator("Conv")
def _conv(op: Operation) -> Function:
    size = _images(op)[2:]
    kernel = _images(op, 1)[2:]
    if tuple(op.attribute("kernel_shape", kernel)) != tuple(kernel):
        raise EngineLoadError(f"{op.node}: kernel_shape differs from the weight's: export the model again")
    strides, dilations = op.attribute("strides", [1, 1]), op.attribute("dilations", [1, 1])
    groups, pads = op.attribute("group", 1), _window_pads(op, size, kernel, strides)
    op.channels_last.add(1)
    symmetric = _is_symmetric(pads)
    padding = (pads[0], pads[1]) if symmetric else (0, 0)
    border = None if symmetric else _pad_2d(pads)
    op.convolution = Convolution(tuple(strides), padding, tuple(dilations), groups, border)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=CHANNELS_LAST)
        if border is not None:
            x = F.pad(x, border)
        return torch.conv2d(x, weight, bias, strides, padding, dilations, groups)

    return conv


@operator("ConvTranspose")
def _conv_transpose(op: Operation) -> Function:
    _images(op)
    kernel = _images(op, 1)[2:]
    if tuple(op.attribute("kernel_shape", kernel)) != tuple(kernel):
        raise EngineLoadError(f"{op.node}: kernel_shape differs from the weight's: export the model again")
    op.only("auto_pad", "NOTSET")
    if op.attribute("output_shape") is not None:
        raise op.unsupported("output_shape")
    strides, dilations = op.attribute("strides", [1, 1]), op.attribute("dilations", [1, 1])
    groups, pads = op.attribute("group", 1), list(op.attribute("pads", [0, 0, 0, 0]))
    extra = op.attribute("output_padding", [0, 0])
    op.channels_last.add(1)
    if _is_symmetric(pads):

        def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            x = x.contiguous(memory_format=CHANNELS_LAST)
            return F.conv_transpose2d(x, weight, bias, strides, pads[:2], extra, groups, dilations)

        return conv_transpose

    top, left, bottom, right = pads

    def conv_transpose_cut(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=CHANNELS_LAST)
        whole = F.conv_transpose2d(x, weight, bias, strides, 0, extra, groups, dilations)
        return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]

    return conv_transpose_cut


@operator("MaxPool")
def _max_pool(op: Operation) -> Function:
    size = _images(op)[2:]
    if len(op.node.outputs) > 1 and op.node.outputs[1]:
        raise op.unsupported("the output of indices")
    op.only("storage_order", 0)
    kernel = op.attribute("kernel_shape")
    strides, dilations = op.attribute("strides", [1, 1]), op.attribute("dilations", [1, 1])
    ceil_mode, pads = bool(op.attribute("ceil_mode", 0)), _window_pads(op, size, kernel, strides)
    fits = all(2 * pad <= k for pad, k in zip(pads, [*kernel, *kernel], strict=True))  # torch's own condition
    if _is_symmetric(pads) and fits:
        return lambda x: F.max_pool2d(x, kernel, strides, pads[:2], dilations, ceil_mode)
    border = _pad_2d(pads)
    lowest = -math.inf if op.dtype(0).is_floating_point else torch.iinfo(op.dtype(0)).min
    return lambda x: F.max_pool2d(F.pad(x, border, value=lowest), kernel, strides, 0, dilations, ceil_mode)


@operator("GlobalAveragePool")
def _global_average_pool(op: Operation) -> Function:
    axes = list(range(2, op.rank(0)))
    return lambda x: x.mean(axes, keepdim=True)


@operator("BatchNormalization")
def _batch_normalization(op: Operation) -> Function:
    op.only("training_mode", 0)
    op.attribute("momentum")  # of training only
    scale, shift, mean, variance = (op.fixed(index).double() for index in (1, 2, 3, 4))
    shape = [1, -1] + [1] * (op.rank(0) - 2)
    factor = scale / torch.sqrt(variance + op.attribute("epsilon", 1e-5))
    dtype = op.dtype(0)
    op.replace(1, factor.reshape(shape).to(dtype))
    op.replace(2, (shift - mean * factor).reshape(shape).to(dtype))
    op.arguments += [1, 2]
    return lambda x, factor, offset: torch.addcmul(offset, x, factor)


# --- resizing -------------------------------------------------------------------------------------------------------


@operator("Resize")
def _resize(op: Operation) -> Function | None:
    size = _images(op)
    sizes, scales = _resize_target(op, size)
    for name, only in (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch")):
        op.only(name, only)
    for name in ("cubic_coeff_a", "extrapolation_value"):  # of modes that are refused
        op.attribute(name)
    transform = op.attribute("coordinate_transformation_mode", "half_pixel")
    mode, rounding = op.attribute("mode", "nearest"), op.attribute("nearest_mode", "round_prefer_floor")
    if sizes[:2] != size[:2]:
        raise op.unsupported("a change of the first two dimensions", of_these_sizes=True)
    target = sizes[2:]
    if mode == "nearest":
        return _nearest(op, size[2:], target, scales[2:], transform, rounding)
    if mode != "linear":
        raise op.unsupported(f"mode={mode!r}")
    if transform == "align_corners":
        return lambda x: F.interpolate(x, target, mode="bilinear", align_corners=True)
    one_px = transform == "pytorch_half_pixel" and 1 in target  # then that axis reads index 0
    if transform not in {"half_pixel", "pytorch_half_pixel"} or one_px:
        what = f"mode='linear' with coordinate_transformation_mode={transform!r} to {target}"
        raise op.unsupported(what, of_these_sizes=one_px)
    if target == size[2:]:
        return None
    return lambda x: torch.ops.aten.upsample_bilinear2d(x, target, False, *scales[2:])


def _resize_target(op: Operation, size: tuple[int, ...]) -> tuple[tuple[int, ...], list[float]]:
    """Output shape, and output px for each input px of every axis."""
    axes = [op.axis(axis, len(size)) for axis in op.attribute("axes", range(len(size)))]
    if op.has(1):
        op.fixed(1)  # the region of interest of a mode that is refused
    sizes, scales = list(size), [1.0] * len(size)
    if op.has(3):
        for axis, target in zip(axes, op.ints(3), strict=True):
            sizes[axis], scales[axis] = target, target / size[axis]
        if op.has(2):
            op.fixed(2)  # empty, as ONNX asks
    else:
        for axis, scale in zip(axes, op.fixed(2).reshape(-1).tolist(), strict=True):
            # in float32, as everybody does: 5 * 2.6 is 13 then
            sizes[axis], scales[axis] = math.floor(np.float32(size[axis]) * np.float32(scale)), float(scale)
    return tuple(sizes), scales


def _nearest(
    op: Operation,
    size: tuple[int, ...],
    target: tuple[int, ...],
    scales: Sequence[float],
    transform: str,
    rounding: str,
) -> Function | None:
    rows, columns = (
        _nearest_indices(op, *axis, transform, rounding) for axis in zip(size, target, scales, strict=True)
    )
    if target == size and rows == list(range(size[0])) and columns == list(range(size[1])):
        return None
    if [rows, columns] == [[i * n // m for i in range(m)] for n, m in zip(size, target, strict=True)]:
        return lambda x: F.interpolate(x, target, mode="nearest")
    op.operands = [op.operands[0], *(Operand(tensor=torch.tensor(index), known=True) for index in (rows, columns))]
    op.arguments = [0, 1, 2]
    return lambda x, rows, columns: x.index_select(2, rows).index_select(3, columns)


def _nearest_indices(op: Operation, size: int, target: int, scale: float, transform: str, rounding: str) -> list[int]:
    half, one, factor = np.float32(0.5), np.float32(1), np.float32(scale)
    coordinate: dict[str, Callable[[np.float32], np.float32]] = {
        "half_pixel": lambda i: (i + half) / factor - half,
        "pytorch_half_pixel": lambda i: (i + half) / factor - half if target > 1 else np.float32(0),
        "asymmetric": lambda i: i / factor,
        "align_corners": lambda i: i * np.float32(size - 1) / max(np.float32(target - 1), one),
    }
    nearest: dict[str, Callable[[np.float32], int]] = {
        "round_prefer_floor": lambda x: math.ceil(x - half),
        "round_prefer_ceil": lambda x: math.floor(x + half),
        "floor": math.floor,
        "ceil": math.ceil,
    }
    if transform not in coordinate or rounding not in nearest:
        raise op.unsupported(f"mode='nearest' with {transform!r} and {rounding!r}")
    return [min(max(nearest[rounding](coordinate[transform](np.float32(i))), 0), size - 1) for i in range(target)]


@operator("DepthToSpace")
def _depth_to_space(op: Operation) -> Function:
    n, c, h, w = _images(op)
    block, mode = op.attribute("blocksize"), op.attribute("mode", "DCR")
    depth = c // (block * block)
    # (n, h, w, c, i, j) or (n, h, w, i, j, c), to (n, h, i, w, j, c): one copy, and its result is channels-last.
    split = (n, h, w, depth, block, block) if mode == "CRD" else (n, h, w, block, block, depth)
    order = (0, 1, 4, 2, 5, 3) if mode == "CRD" else (0, 1, 3, 2, 4, 5)
    joined = (n, h * block, w * block, depth)
    return lambda x: x.permute(0, 2, 3, 1).reshape(split).permute(order).reshape(joined).permute(0, 3, 1, 2)


# --- products -------------------------------------------------------------------------------------------------------


OPERATORS["MatMul"] = same(torch.matmul)


@operator("Gemm")
def _gemm(op: Operation) -> Function:
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    left, right = bool(op.attribute("transA", 0)), bool(op.attribute("transB", 0))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        return torch.addmm(c, a, b, beta=beta, alpha=alpha) if c is not None else alpha * (a @ b)

    return gemm


@operator("pose2seg::AffineAlign")
def _affine_align(op: Operation) -> Function:
    op.only("plugin_namespace", "pose2seg")
    op.only("plugin_version", "1")
    size = op.attribute("size")
    return lambda features, matrices, images: torch.ops.pose2seg.affine_align(features, matrices, images, size)


@operator("pose2seg::AlignWithSkeleton")
def _align_with_skeleton(op: Operation) -> Function:
    """Not in files: `engines.torch_skeleton_fusion` puts it there."""
    op.only("plugin_namespace", "pose2seg")
    op.only("plugin_version", "1")
    size = op.attribute("size")
    return lambda features, matrices, images, poses: torch.ops.pose2seg.align_with_skeleton(
        features, matrices, images, poses, size
    )


# --- element by element ---------------------------------------------------------------------------------------------


def _binary(function: Function) -> Builder:
    def build_binary(op: Operation) -> Function:
        right = op.small_number(1, op.rank(0)) if not op.operand(0).known else None
        if right is not None:
            return lambda x: function(x, right)
        left = op.small_number(0, op.rank(1)) if not op.operand(1).known else None
        if left is not None:
            return lambda x: function(left, x)
        return function

    return build_binary


def _divide(a: Any, b: Any) -> Any:
    """ONNX divides integers towards zero."""
    if any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in (a, b)):
        return a / b
    return torch.div(a if isinstance(a, Tensor) else torch.full_like(b, a), b, rounding_mode="trunc")


OPERATORS.update(
    {
        "Add": _binary(python.add),
        "Sub": _binary(python.sub),
        "Mul": _binary(python.mul),
        "Div": _binary(_divide),
        "Equal": _binary(python.eq),
        "Greater": _binary(python.gt),
        "GreaterOrEqual": _binary(python.ge),
        "Less": _binary(python.lt),
        "LessOrEqual": _binary(python.le),
    }
)


OPERATORS.update(
    {
        "Abs": same(torch.abs),
        "And": same(torch.logical_and),
        "Ceil": same(torch.ceil),
        "Exp": same(torch.exp),
        "Floor": same(torch.floor),
        "IsNaN": same(torch.isnan),
        "Log": same(torch.log),
        "Neg": same(torch.neg),
        "Not": same(torch.logical_not),
        "Or": same(torch.logical_or),
        "Reciprocal": same(torch.reciprocal),
        "Round": same(torch.round),  # to even at one half, as ONNX wants
        "Sigmoid": same(torch.sigmoid),
        "Sign": same(torch.sign),
        "Sqrt": same(torch.sqrt),
        "Tanh": same(torch.tanh),
        "Where": same(torch.where),
        "Xor": same(torch.logical_xor),
    }
)


@operator("Relu")
def _relu(op: Operation) -> Function:
    op.in_place, op.clamp = torch.relu_, (0, None)
    return torch.relu


@operator("Pow")
def _pow(op: Operation) -> Function:
    exponent = op.small_number(1, op.rank(0))
    if exponent is None:
        return torch.pow
    return (lambda x: x * x) if exponent == 2 else (lambda x: torch.pow(x, exponent))


@operator("Mod")
def _mod(op: Operation) -> Function:
    return torch.fmod if op.attribute("fmod", 0) else torch.remainder


def _extreme(function: Function) -> Builder:
    def build_extreme(_: Operation) -> Function:
        def extreme(first: Tensor, *others: Tensor) -> Tensor:
            for other in others:
                first = function(first, other)
            return first

        return extreme

    return build_extreme


OPERATORS.update({"Max": _extreme(torch.maximum), "Min": _extreme(torch.minimum)})


@operator("Clip")
def _clip(op: Operation) -> Function | None:
    limits = []
    for index in (1, 2):
        limit = op.small_number(index, op.rank(0)) if op.has(index) else None
        limits.append(limit)
    low, high = limits
    dynamic = [index for index in (1, 2) if index in op.arguments]
    if not dynamic and low is None and high is None:
        return None
    if not dynamic:
        op.in_place, op.clamp = (lambda x: torch.clamp_(x, low, high)), (low, high)
        return lambda x: torch.clamp(x, low, high)

    def clip(x: Tensor, *given: Tensor) -> Tensor:
        bounds = dict(zip(dynamic, given, strict=True))
        x = torch.maximum(x, bounds[1]) if 1 in bounds else x if low is None else x.clamp(min=low)
        return torch.minimum(x, bounds[2]) if 2 in bounds else x if high is None else x.clamp(max=high)

    return clip


@operator("Cast")
def _cast(op: Operation) -> Function | None:
    op.only("saturate", 1)
    dtype = TORCH_DTYPE.get(op.attribute("to"))
    if dtype is None:
        raise op.unsupported(f"a cast to type {op.attribute('to')}")
    return None if dtype == op.dtype(0) else lambda x: x.to(dtype)


@operator("CastLike")
def _cast_like(op: Operation) -> Function | None:
    op.only("saturate", 1)
    dtype = op.dtype(1)
    op.arguments.remove(1)
    return None if dtype == op.dtype(0) else lambda x: x.to(dtype)


# --- eight bits -----------------------------------------------------------------------------------------------------


def _along_axis(op: Operation, index: int, dtype: torch.dtype) -> Tensor:
    """A scale or zero point that varies along the node's axis, shaped to broadcast."""
    rank, value = op.rank(0), op.fixed(index)
    axis = op.attribute("axis", 1)
    op.only("block_size", 0)
    if value.numel() == 1:
        return value.reshape(()).to(dtype)
    if value.ndim != 1:
        raise op.unsupported("a scale of several dimensions")
    shape = [1] * rank
    shape[op.axis(axis, rank)] = -1
    return value.to(dtype).reshape(shape)


def _with_scale_and_zero(op: Operation, dtype: torch.dtype) -> None:
    """Give the function the scale and the zero point, float32, as its second and third argument."""
    zero = _along_axis(op, 2, dtype) if op.has(2) else torch.zeros((), dtype=dtype)
    scale = _along_axis(op, 1, torch.float32)
    op.operands = [op.operands[0], Operand(tensor=scale, known=True), Operand(tensor=zero, known=True)]
    op.arguments = [0, 1, 2]


@operator("QuantizeLinear")
def _quantize(op: Operation) -> Function:
    op.only("saturate", 1)
    stated = TORCH_DTYPE.get(op.attribute("output_dtype", 0), torch.uint8)
    dtype = op.dtype(2) if op.has(2) else stated
    if dtype not in {torch.int8, torch.uint8, torch.int16}:
        raise op.unsupported(f"the type {dtype}")
    limits = torch.iinfo(dtype)
    _with_scale_and_zero(op, torch.float32)

    def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (torch.round(x / scale) + zero).clamp(limits.min, limits.max).to(dtype)

    return quantize


@operator("DequantizeLinear")
def _dequantize(op: Operation) -> Function:
    _with_scale_and_zero(op, torch.int32)
    return lambda x, scale, zero: (x.to(torch.int32) - zero).to(torch.float32) * scale


def build(op: Operation) -> Function | None:
    """The function of a node for these operands; None where it is the first operand itself.

    Raises:
        EngineLoadError: unknown operator, or a feature of it that is not handled.
    """
    builder = OPERATORS.get(op.node.operator)
    if builder is None:
        raise EngineLoadError(f"{op.node}: the torch engine has no such operator: run the graph with --engine onnx")
    function = builder(op)
    op.finish()
    return function
