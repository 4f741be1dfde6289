"""A float32 ONNX graph of ours in half precision: the convolutions and what lies between them, nothing else.

What decides a result stays float32: sampling matrices, joints, scores, the sigmoid, peaks, top-k, and every size and
coordinate. A strongly typed runtime (TensorRT) then does exactly what the file says, and the error can be measured on a
CPU before a GPU has ever seen the graph.

The `onnx` package is needed here only (extra `gpu`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from engines.engine import EngineLoadError

if TYPE_CHECKING:
    import onnx

HALF_OPERATORS: Final = frozenset({"Conv", "AffineAlign", "BatchNormalization", "MatMul"})
"""What always computes in half: nearly all of the arithmetic of our graphs.

Their one matrix product sums values in 0..1 into a drawing (`kernels.torch_neighbours`); positions are never one.
"""

FOLLOWING_OPERATORS: Final = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "LeakyRelu", "MaxPool", "Relu", "Resize"}
)
"""What computes in half where one of its tensors comes from there; a residual sum, not a sum of coordinates."""

ONLY_DATA_INPUT: Final = frozenset({"AffineAlign", "Resize"})
"""Operators whose first input alone has the type of the output: matrices and scales stay float32."""

FEATURES: Final = "features"
_SUFFIX = "__half"
_LARGEST_HALF = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto, *, half_features: bool = True) -> onnx.ModelProto:
    """Convert a graph of a model folder.

    Args:
        model: float32 graph; left as it is.
        half_features: hand `features` over in half, too (half the bytes between the two graphs). False keeps every
            input and output float32.

    Returns:
        A new model with the same names. Integer and boolean tensors are untouched; a uint8 image stays uint8.

    Raises:
        EngineLoadError: a weight does not fit into half precision.
    """
    import onnx

    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    fold_batch_normalisation(converted)
    _Conversion(converted, half_features=half_features).run()
    onnx.checker.check_model(converted)
    return converted


def fold_batch_normalisation(model: onnx.ModelProto) -> None:
    """Write each BatchNormalization as one factor and one summand per channel: variances do not fit into half."""
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in constants for name in node.input[1:]):
            nodes.append(node)
            continue
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale, shift, mean, variance = (numpy_helper.to_array(constants[n]).astype(np.float64) for n in node.input[1:])
        factor = scale / np.sqrt(variance + epsilon)
        rank = (1, -1, 1, 1)
        for name, value in (("factor", factor), ("summand", shift - mean * factor)):
            graph.initializer.append(
                numpy_helper.from_array(value.reshape(rank).astype(np.float32), f"{node.output[0]}__{name}")
            )
        out = node.output[0]
        # Two depthwise 1 x 1 steps would cost a convolution; a product and a sum are fused into their neighbours.
        nodes.append(helper.make_node("Mul", [node.input[0], f"{out}__factor"], [f"{out}__scaled"], name=f"{out}__mul"))
        nodes.append(helper.make_node("Add", [f"{out}__scaled", f"{out}__summand"], [out], name=f"{out}__add"))
    del graph.node[:]
    graph.node.extend(nodes)


class _Conversion:
    """One pass over the nodes in their (topological) order; each tensor is float32, half, or neither."""

    def __init__(self, model: onnx.ModelProto, *, half_features: bool) -> None:
        import onnx
        from onnx import numpy_helper

        self._graph = model.graph
        self._half_features = half_features
        self._constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in self._graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
        self._floats = set(self._constants)
        self._half: set[str] = set()
        self._nodes: list[Any] = []
        self._made: set[str] = set()
        self._kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        }

    def run(self) -> None:
        from onnx import TensorProto

        for value in self._graph.input:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                self._floats.add(value.name)
                if value.name == FEATURES and self._half_features:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT16
                    self._half.add(value.name)
        nodes = list(self._graph.node)
        outputs = {value.name: value for value in self._graph.output}
        for node in nodes:
            self._convert(node)
        for name, value in outputs.items():
            if value.type.tensor_type.elem_type != TensorProto.FLOAT:
                continue
            wanted_half = name == FEATURES and self._half_features
            if wanted_half:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
            if wanted_half != (name in self._half):
                self._rename_output(name, half=wanted_half)
        used = {name for node in self._nodes for name in node.input} | set(outputs)
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        kept += self._half_constants(used)
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)

    def _convert(self, node: Any) -> None:
        """Append the node, with the casts it needs before it."""
        data = list(node.input[:1]) if node.op_type in ONLY_DATA_INPUT else list(node.input)
        comes_from_half = any(name in self._half for name in data)
        # The factor of a folded normalisation is our own Mul; other products are sizes and coordinates.
        follows = node.op_type in FOLLOWING_OPERATORS or node.name.endswith("__mul")
        half = node.op_type in HALF_OPERATORS or (follows and comes_from_half)
        for position, name in enumerate(node.input):
            if not name:
                continue
            if half and position < len(data) and self._is_float(name):
                node.input[position] = self._as_half(name)
            elif name in self._half:
                node.input[position] = self._as_float(name)
        if half:
            self._half.update(node.output[:1])
        self._nodes.append(node)

    def _is_float(self, name: str) -> bool:
        from onnx import TensorProto

        return name in self._floats or name in self._half or self._kinds.get(name) == TensorProto.FLOAT

    def _as_half(self, name: str) -> str:
        from onnx import TensorProto

        if name in self._half:
            return name
        if name in self._constants:
            if _overflows(self._constants[name]):
                raise EngineLoadError(
                    f"weight {name!r} reaches {np.abs(self._constants[name]).max():g}, half precision ends at "
                    f"{_LARGEST_HALF:g}: use --precision float32"
                )
            return name + _SUFFIX
        return self._cast(name, name + _SUFFIX, TensorProto.FLOAT16)

    def _as_float(self, name: str) -> str:
        from onnx import TensorProto

        return self._cast(name, name + "__float", TensorProto.FLOAT)

    def _cast(self, name: str, result: str, kind: int) -> str:
        from onnx import helper

        if result not in self._made:
            self._made.add(result)
            self._nodes.append(helper.make_node("Cast", [name], [result], name=f"cast_{result}", to=kind))
        return result

    def _rename_output(self, name: str, *, half: bool) -> None:
        """The graph's output keeps its name; what computes it gets another one, and a cast stands between."""
        from onnx import TensorProto, helper

        inner = name + "__inner"
        for node in self._nodes:
            for position, used in enumerate(node.input):
                if used == name:
                    node.input[position] = inner
            for position, made in enumerate(node.output):
                if made == name:
                    node.output[position] = inner
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self._nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast_{name}", to=kind))

    def _half_constants(self, used: Iterable[str]) -> list[Any]:
        from onnx import numpy_helper

        return [
            numpy_helper.from_array(value.astype(np.float16), name + _SUFFIX)
            for name, value in self._constants.items()
            if name + _SUFFIX in used
        ]


def _overflows(value: NDArray[Any]) -> bool:
    # A Clip without an upper end is written with float32's largest number: infinity means the same there.
    finite = value[np.isfinite(value) & (np.abs(value) < float(np.finfo(np.float32).max))]
    return bool(finite.size) and float(np.abs(finite).max()) > _LARGEST_HALF
