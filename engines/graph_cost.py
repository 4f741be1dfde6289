"""What one call of a graph costs by its shapes alone: multiplications and the bytes that must move, for rooflines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.engine import EngineLoadError

_OF_SIZES: Final = frozenset({"Add", "Concat", "Gather", "Mul", "Range", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators between whole numbers that exporters work sizes out with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """One call.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products; a MAC is two FLOPs.
        weight_bytes: of all constants, as stored.
        tensor_bytes: of the graph's inputs, outputs and sampled windows. Weights and these must move at least once.
    """

    macs: int
    weight_bytes: int
    tensor_bytes: int


def graph_cost(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> GraphCost:
    """Count from the graph's nodes.

    Args:
        path: an `.onnx` file.
        shapes: of every input.

    Raises:
        EngineLoadError: the library ``onnx`` is missing, not a graph, other inputs, or shapes that do not determine all
            others.
    """
    try:
        import onnx
        from onnx import inliner, shape_inference
    except ImportError as error:
        raise EngineLoadError(f"counting what a graph costs needs onnx ({error}): pip install onnx") from error
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own classes
        raise EngineLoadError(f"{path}: expected an ONNX file ({error})") from error
    names = {graph_input.name for graph_input in model.graph.input}
    if names != set(shapes):
        raise EngineLoadError(f"{path}: shapes are needed for {sorted(names)}, got {sorted(shapes)}")
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) != len(shapes[value.name]):
            raise EngineLoadError(f"{path}: {value.name} has {len(sizes)} dimensions, got {shapes[value.name]}")
        for size, number in zip(sizes, shapes[value.name], strict=True):
            size.dim_value = number
    _take_windows_as_given(model, shapes)
    model = inliner.inline_local_functions(model)
    weight_bytes = sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in model.graph.initializer)
    _fold_sizes(model, shapes)
    del model.graph.value_info[:]  # names of dynamic sizes, which would stand in the way
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: _shape_of(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known.update(weights)
    macs = 0
    for node in graph.node:
        if node.op_type not in {"Conv", "ConvTranspose", "MatMul", "Gemm"}:
            continue
        out, first, second = (known.get(name) for name in (node.output[0], node.input[0], node.input[1]))
        if out is None or first is None or second is None:
            raise EngineLoadError(
                f"{path}: the size of {node.output[0]} ({node.op_type}) does not follow from {dict(shapes)}"
            )
        if node.op_type == "Conv":
            macs += math.prod(out) * math.prod(second[1:])
        elif node.op_type == "ConvTranspose":
            macs += math.prod(first) * math.prod(second[1:])
        else:
            macs += math.prod(out) * first[-1]
    return GraphCost(
        macs=macs,
        weight_bytes=weight_bytes,
        tensor_bytes=sum(_bytes_of(value) for value in (*graph.input, *graph.output)),
    )


def _take_windows_as_given(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Affine-Align multiplies next to nothing; its windows become inputs, since shapes do not pass through its body."""
    from onnx import TensorProto, helper

    for node in list(model.graph.node):
        if node.op_type != "AffineAlign":
            continue
        features, matrices, _ = (shapes[name] for name in node.input)
        size = next(attribute.i for attribute in node.attribute if attribute.name == "size")
        shape = (matrices[0], features[1], size, size)
        model.graph.node.remove(node)
        model.graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))


def _fold_sizes(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """What is worked out of the inputs' sizes becomes constants: shape inference follows few operators there."""
    from onnx import TensorProto, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    for node in list(graph.node):
        if node.op_type == "Shape" and node.input[0] in shapes:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
        elif node.op_type in _OF_SIZES and all(name in known for name in node.input if name):
            feeds = {name: known[name] for name in node.input if name}
        else:
            continue
        for name, value in zip(node.output, ReferenceEvaluator(node).run(None, feeds), strict=True):
            known[name] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(known[name], name))
        graph.node.remove(node)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    sizes = value.type.tensor_type.shape.dim
    if not value.type.tensor_type.HasField("shape") or any(not size.HasField("dim_value") for size in sizes):
        return None
    return tuple(size.dim_value for size in sizes)


def _bytes_of(value: Any) -> int:
    from onnx import helper

    shape = _shape_of(value)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return math.prod(shape) * dtype.itemsize if shape is not None else 0
