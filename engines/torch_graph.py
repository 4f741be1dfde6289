"""An ONNX file as plain data for PyTorch: its nodes in order, its constants as tensors, its inputs and outputs.

The file may come from anywhere, so it is read as foreign input: bounded in size, no data outside the file, no nested
graphs. Nothing in it can name code to run; an operator that `engines.torch_operators` does not have is refused.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from engines.engine import EngineLoadError, TensorSpec

OPSETS: Final = range(13, 24)
"""Versions of the ONNX operator set whose rules the operators follow."""

_MAX_FILE_BYTES = (1 << 31) - 1  # a protobuf message ends at 2 GiB
_MAX_NODES = 50_000
_STANDARD_DOMAINS = ("", "ai.onnx")
_REDO = "export the model again with python -m training.export_onnx, or restore the folder from its source"

TORCH_DTYPE: Final[Mapping[int, torch.dtype]] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
"""ONNX element type -> torch type, for all that tensors inside a graph may have."""

_SPEC_DTYPE: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.BOOL: np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One operator call.

    Attributes:
        operator: ONNX name; operators of other domains have the domain in front, ``pose2seg::AffineAlign``.
        name: for error messages.
        inputs: names of values; "" where an optional input is left out.
        outputs: names of values; "" where nobody wants one.
        attributes: as Python values; tensors are torch tensors.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} {self.name!r}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A whole file. `constants` are CPU tensors by name; `nodes` stand in an order in which they can be computed."""

    path: Path
    opset: int
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, once for each time they do."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found


def read_graph(path: Path) -> Graph:
    """Parse and check a file.

    Raises:
        EngineLoadError: missing, too large, damaged, data outside the file, nested graphs, or an operator set or
            element type that is not handled.
    """
    model = _parse(path)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = max((versions.get(domain, 0) for domain in _STANDARD_DOMAINS), default=0)
    if opset not in OPSETS:
        raise EngineLoadError(
            f"{path}: operator set {opset} is not handled, only {OPSETS[0]} to {OPSETS[-1]}: "
            "export the model with opset_version=18"
        )
    if len(model.graph.node) > _MAX_NODES:
        raise EngineLoadError(f"{path}: expected at most {_MAX_NODES} nodes, got {len(model.graph.node)}: {_REDO}")
    if model.graph.sparse_initializer:
        raise EngineLoadError(f"{path}: sparse tensors are not handled: store them dense")
    constants = {tensor.name: _tensor(path, tensor) for tensor in model.graph.initializer}
    return Graph(
        path=path,
        opset=opset,
        nodes=tuple(_node(path, node, index) for index, node in enumerate(model.graph.node)),
        constants=constants,
        inputs=tuple(_spec(path, value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_spec(path, value) for value in model.graph.output),
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise EngineLoadError(f"{path}: expected an ONNX file, got a folder or a device")
        if status.st_size > _MAX_FILE_BYTES:
            raise EngineLoadError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes, got {status.st_size}")
        content = path.read_bytes()
    except OSError as error:
        raise EngineLoadError(f"{path}: cannot be read ({error.strerror}): check the path and its rights") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has several implementations, each with exceptions of its own
        raise EngineLoadError(f"{path}: not an ONNX file, or damaged ({_first_line(error)}): {_REDO}") from error
    attributes = (attribute.t for node in model.graph.node for attribute in node.attribute)
    for tensor in (*model.graph.initializer, *attributes):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise EngineLoadError(
                f"{path}: tensor {tensor.name!r} lies in another file; only data inside the file is read: "
                "save the model without external data"
            )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # as above
        raise EngineLoadError(f"{path}: not a valid ONNX graph ({_first_line(error)}): {_REDO}") from error
    return model


def _tensor(path: Path, proto: TensorProto) -> Tensor:
    dtype = TORCH_DTYPE.get(proto.data_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(proto.data_type)
        raise EngineLoadError(f"{path}: tensor {proto.name!r} has element type {kind}, which is not handled")
    try:
        array = np.array(numpy_helper.to_array(proto))  # a copy: torch wants to own what it may write to
    except Exception as error:
        raise EngineLoadError(f"{path}: tensor {proto.name!r} is damaged ({_first_line(error)}): {_REDO}") from error
    if dtype == torch.bfloat16:  # numpy has no type of that name
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _node(path: Path, node: onnx.NodeProto, index: int) -> Node:
    operator = node.op_type if node.domain in _STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"
    name = node.name or (node.output[0] if node.output else f"node {index}")
    attributes = {}
    for attribute in node.attribute:
        if attribute.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS}:
            raise EngineLoadError(f"{path}: {operator} {name!r} holds a nested graph, which is not handled")
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            value = _tensor(path, value)
        attributes[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return Node(
        operator=operator, name=name, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes
    )


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = _SPEC_DTYPE.get(kind.elem_type) if value.type.WhichOneof("value") == "tensor_type" else None
    if dtype is None:
        raise EngineLoadError(
            f"{path}: tensor {value.name!r} has element type {TensorProto.DataType.Name(kind.elem_type)}; "
            f"engines handle {', '.join(str(known) for known in _SPEC_DTYPE.values())}"
        )
    # A nameless dynamic size gets a name of its own, so that two of them are not compared.
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or f"{value.name}:{axis}"
        for axis, size in enumerate(kind.shape.dim)
    )
    return TensorSpec(value.name, dtype, shape)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
