"""What a half graph computes on a GPU, as a float32 graph that ONNX Runtime runs on a CPU.

ONNX Runtime's CPU provider has no half convolution: it puts casts around each and then removes them in pairs, so a
half graph is computed in float32 there and its errors look like nothing. Here every tensor that the half graph stores
in half is rounded to half's 11 significant bits by arithmetic that no optimiser takes for a cast: Dekker's splitting,
r = (c x) - (c x - x) with c = 2^13 + 1. Sums inside an operator stay float32, as on a tensor core. Exponents are not
limited: numbers under 6e-5 keep bits that half loses.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SPLIT = np.array(2.0**13 + 1, np.float32)


def in_float32_with_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the same names, all float32, that rounds where `model` is half."""
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    half_constants = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.name in half_constants:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    half = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        kind = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        made_half = kind == TensorProto.FLOAT16
        if kind is None and node.op_type not in {"Shape", "TopK"}:
            made_half = any(name in half or name in half_constants for name in node.input)
        if kind == TensorProto.FLOAT16:
            node.op_type = "Identity"
            del node.attribute[:]
        if made_half:
            name = node.output[0]
            half.add(name)
            node.output[0] = f"{name}__exact"
            nodes += [node, *_rounding(f"{name}__exact", name)]
        else:
            nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(SPLIT, "split"))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(emulated)
    return emulated


def _rounding(source: str, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Mul", [source, "split"], [f"{name}__spread"]),
        helper.make_node("Sub", [f"{name}__spread", source], [f"{name}__low"]),
        helper.make_node("Sub", [f"{name}__spread", f"{name}__low"], [name]),
    ]
