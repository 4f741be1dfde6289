"""ONNX operators that move, choose and reduce elements, as torch calls, for the table in `engines.torch_operation`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engines.engine import EngineLoadError
from engines.torch_operation import MAX_FOLDED_ELEMENTS, OPERATORS, Builder, Function, Operation, operator

# --- shapes ---------------------------------------------------------------------------------------------------------


@operator("Identity")
def _identity(_: Operation) -> None:
    return None


@operator("Constant")
def _constant(op: Operation) -> Function:
    dtypes = {"float": torch.float32, "int": torch.int64}
    ((name, value),) = op.node.attributes.items()
    if name == "value":
        tensor = op.attribute(name)
    elif name.removeprefix("value_").removesuffix("s") in dtypes:
        tensor = torch.tensor(op.attribute(name), dtype=dtypes[name.removeprefix("value_").removesuffix("s")])
    else:
        raise op.unsupported(f"{name}={value!r}")
    return lambda: tensor


@operator("Shape")
def _shape(op: Operation) -> Function:
    shape = op.shape(0)
    op.arguments.remove(0)
    part = torch.tensor(shape[op.attribute("start", 0) : op.attribute("end", len(shape))], dtype=torch.int64)
    return lambda: part


@operator("Size")
def _size(op: Operation) -> Function:
    count = torch.tensor(math.prod(op.shape(0)), dtype=torch.int64)
    op.arguments.remove(0)
    return lambda: count


@operator("Range")
def _range(op: Operation) -> Function:
    dtype = op.dtype(0)
    start, stop, step = (op.number(index) for index in range(3))
    count = max(math.ceil((stop - start) / step), 0)
    if count > MAX_FOLDED_ELEMENTS:
        raise op.unsupported(f"a range of {count} numbers")
    # ONNX adds steps up; torch.arange's rounding of the last element differs for floats.
    return lambda: (torch.arange(count, dtype=torch.float64) * step + start).to(dtype)


@operator("ConstantOfShape")
def _constant_of_shape(op: Operation) -> Function:
    value = op.attribute("value", torch.zeros(1))
    shape = op.ints(0)
    return lambda: value.reshape([1] * len(shape)).expand(shape)


@operator("Reshape")
def _reshape(op: Operation) -> Function | None:
    shape, keep_zero = op.ints(1), bool(op.attribute("allowzero", 0))
    before = op.shape(0)
    after = [before[axis] if size == 0 and not keep_zero else size for axis, size in enumerate(shape)]
    if -1 in after:
        rest = math.prod(size for size in after if size != -1)
        after[after.index(-1)] = math.prod(before) // rest if rest else 0
    return None if tuple(after) == before else lambda x: x.reshape(after)


@operator("Flatten")
def _flatten(op: Operation) -> Function | None:
    axis = op.attribute("axis", 1)
    axis = axis + op.rank(0) if axis < 0 else axis
    shape = [math.prod(op.shape(0)[:axis]), math.prod(op.shape(0)[axis:])]
    return None if tuple(shape) == op.shape(0) else lambda x: x.reshape(shape)


@operator("Transpose")
def _transpose(op: Operation) -> Function | None:
    order = tuple(op.attribute("perm", range(op.rank(0))[::-1]))
    return None if order == tuple(range(op.rank(0))) else lambda x: x.permute(order)


@operator("Squeeze")
def _squeeze(op: Operation) -> Function | None:
    shape = op.shape(0)
    axes = op.ints(1) if op.has(1) else [axis for axis, size in enumerate(shape) if size == 1]
    axes = [op.axis(axis, len(shape)) for axis in axes]
    if any(shape[axis] != 1 for axis in axes):
        raise EngineLoadError(f"{op.node}: axes {axes} of shape {shape} have more than one element")
    after = [size for axis, size in enumerate(shape) if axis not in axes]
    return (lambda x: x.reshape(after)) if axes else None


@operator("Unsqueeze")
def _unsqueeze(op: Operation) -> Function | None:
    axes = op.ints(1)
    rank = op.rank(0) + len(axes)
    axes = sorted(op.axis(axis, rank) for axis in axes)

    def unsqueeze(x: Tensor) -> Tensor:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return unsqueeze if axes else None


@operator("Expand")
def _expand(op: Operation) -> Function | None:
    shape = np.broadcast_shapes(op.shape(0), tuple(op.ints(1)))
    return None if tuple(shape) == op.shape(0) else lambda x: x.expand(shape)


@operator("Tile")
def _tile(op: Operation) -> Function | None:
    repeats = op.ints(1)
    return None if set(repeats) <= {1} else lambda x: x.repeat(repeats)


@operator("Concat")
def _concat(op: Operation) -> Function:
    axis = op.axis(op.attribute("axis"), op.rank(0))
    return lambda *parts: torch.cat(parts, axis)


@operator("Split")
def _split(op: Operation) -> Function:
    axis = op.axis(op.attribute("axis", 0), op.rank(0))
    length, count = op.shape(0)[axis], op.attribute("num_outputs", len(op.node.outputs))
    sizes = op.ints(1) if op.has(1) else [-(-length // count)] * count
    if not op.has(1):
        sizes[-1] = length - sum(sizes[:-1])
    return lambda x: torch.split(x, sizes, axis)


@operator("Slice")
def _slice(op: Operation) -> Function:
    shape = op.shape(0)
    starts, ends = op.ints(1), op.ints(2)
    axes = op.ints(3) if op.has(3) else list(range(len(starts)))
    steps = op.ints(4) if op.has(4) else [1] * len(starts)
    cuts, flips = [slice(None)] * len(shape), []
    for start, end, given_axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = op.axis(given_axis, len(shape))
        picked = range(*slice(start, _slice_end(end, shape[axis], step), step).indices(shape[axis]))
        if step < 0:  # torch has no negative steps: read forwards, then turn round
            flips.append(axis)
            picked = picked[::-1]
        cuts[axis] = slice(picked.start, picked.stop, picked.step)
    where = tuple(cuts)
    if not flips:
        return lambda x: x[where]
    return lambda x: x[where].flip(flips)


def _slice_end(end: int, length: int, step: int) -> int | None:
    """Python's end of a slice. ONNX clamps what lies below the first element; in Python -1 would be the last."""
    return None if step < 0 and end < -length else end


@operator("Gather")
def _gather(op: Operation) -> Function:
    shape = op.shape(0)
    axis = op.axis(op.attribute("axis", 0), len(shape))
    length, picked = shape[axis], op.operand(1)
    result = [*shape[:axis], *picked.tensor.shape, *shape[axis + 1 :]]
    if picked.known:
        indices = _checked_indices(op, picked.tensor, length)
        if indices.ndim == 0:
            op.fixed(1)
            index = int(indices)
            return lambda x: x.select(axis, index)
        op.replace(1, indices.reshape(-1))
        return lambda x, index: x.index_select(axis, index).reshape(result)
    count = _from_the_end(op, length)
    return lambda x, index: x.index_select(axis, count(index).reshape(-1)).reshape(result)


@operator("GatherElements")
def _gather_elements(op: Operation) -> Function:
    axis = op.axis(op.attribute("axis", 0), op.rank(0))
    length = op.shape(0)[axis]
    if op.operand(1).known:
        op.replace(1, _checked_indices(op, op.operand(1).tensor, length))
        return lambda x, index: x.gather(axis, index)
    count = _from_the_end(op, length)
    return lambda x, index: x.gather(axis, count(index))


def _checked_indices(op: Operation, indices: Tensor, length: int) -> Tensor:
    indices = torch.where(indices < 0, indices + length, indices).to(torch.int64)
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < length:
        raise EngineLoadError(f"{op.node}: an index outside 0..{length - 1}: export the model again")
    return indices


def _from_the_end(op: Operation, length: int) -> Callable[[Tensor], Tensor]:
    """Indices as torch wants them: int64, those below zero counted from the end."""
    if op.operand(1).non_negative:
        return lambda index: index.long()
    return lambda index: torch.where(index < 0, index + length, index).long()


@operator("TopK")
def _top_k(op: Operation) -> Function:
    axis = op.axis(op.attribute("axis", -1), op.rank(0))
    largest, in_order = bool(op.attribute("largest", 1)), bool(op.attribute("sorted", 1))
    (count,) = op.ints(1)
    if count > op.shape(0)[axis]:
        raise EngineLoadError(f"{op.node}: the best {count} of {op.shape(0)[axis]}: give a larger picture")
    return lambda x: tuple(torch.topk(x, count, axis, largest, in_order))


@operator("Pad")
def _pad(op: Operation) -> Function | None:
    mode, rank = op.attribute("mode", "constant"), op.rank(0)
    pads = op.ints(1)
    value = op.number(2) if op.has(2) else 0
    axes = [op.axis(axis, rank) for axis in op.ints(3)] if op.has(3) else list(range(rank))
    amounts = [[0, 0] for _ in range(rank)]
    for position, axis in enumerate(axes):
        amounts[axis] = [pads[position], pads[position + len(axes)]]
    if not any(map(any, amounts)):
        return None
    border = [amount for pair in reversed(amounts) for amount in pair]
    if mode == "constant":
        return lambda x: F.pad(x, border, value=value)
    if mode not in {"edge", "reflect"} or rank != 4 or any(border[4:]):
        raise op.unsupported(f"mode={mode!r} on these axes")
    return lambda x: F.pad(x, border[:4], mode="replicate" if mode == "edge" else "reflect")


# --- reductions -----------------------------------------------------------------------------------------------------


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Builder:
    def build_reduction(op: Operation) -> Function | None:
        rank, keep = op.rank(0), bool(op.attribute("keepdims", 1))
        axes = op.attribute("axes") or (op.ints(1) if op.has(1) else [])
        does_nothing = bool(op.attribute("noop_with_empty_axes", 0))
        if not axes and does_nothing:
            return None
        axes = [op.axis(axis, rank) for axis in axes] or list(range(rank))
        return lambda x: function(x, axes, keep)

    return build_reduction


OPERATORS.update(
    {
        "ReduceMax": _reduction(torch.amax),
        "ReduceMean": _reduction(torch.mean),
        "ReduceMin": _reduction(torch.amin),
        "ReduceSum": _reduction(torch.sum),
    }
)


@operator("Softmax")
def _softmax(op: Operation) -> Function:
    axis = op.axis(op.attribute("axis", -1), op.rank(0))
    return lambda x: torch.softmax(x, axis)


@operator("ArgMax")
def _arg_max(op: Operation) -> Function:
    op.only("select_last_index", 0)
    axis, keep = op.axis(op.attribute("axis", 0), op.rank(0)), bool(op.attribute("keepdims", 1))
    return lambda x: x.argmax(axis, keep)
