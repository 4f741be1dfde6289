"""Start the live network from the published weights of MoveNet MultiPose Lightning (Apache-2.0, Google).

The published graph stores one convolution after another in the order of its dataflow; our modules are walked in the
same order and each convolution is compared in shape, stride and groups before it is copied. The two box heads have no
counterpart here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.model import LiveNetwork

# Names the published graph gives to its heads, in graph order; None marks a head that is skipped.
HEADS_IN_GRAPH_ORDER = (
    ("kpt_regress", "regression"),
    ("kpt_offset", "offsets"),
    ("kpt_heatmap", "heatmaps"),
    ("center", "centre"),
    ("box_scale", None),
    ("box_offset", None),
)
CONVOLUTIONS_PER_HEAD = 3


def _body_convolutions(network: LiveNetwork) -> Iterator[tuple[str, nn.Conv2d]]:
    for prefix, module in (("backbone", network.backbone), ("top_down", network.top_down)):
        for name, child in module.named_modules():
            if isinstance(child, nn.Conv2d):
                yield f"{prefix}.{name}", child


def _copy(target: nn.Conv2d, where: str, node: object, constants: dict[str, np.ndarray]) -> None:
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}  # type: ignore[attr-defined]
    source = [torch.from_numpy(constants[name].copy()) for name in node.input[1:]]  # type: ignore[attr-defined]
    ours = [target.weight] if target.bias is None else [target.weight, target.bias]
    found = (tuple(attributes["strides"]), attributes["group"], [tuple(t.shape) for t in source])
    expected = (target.stride, target.groups, [tuple(t.shape) for t in ours])
    if found != expected:
        raise ValueError(f"{where}: expected (stride, groups, shapes) {expected}, the file has {found}")
    with torch.no_grad():
        for parameter, value in zip(ours, source, strict=True):
            parameter.copy_(value)


def load_movenet(network: LiveNetwork, path: str | Path) -> LiveNetwork:
    """Copy backbone, top-down path and keypoint heads out of the ONNX file of MoveNet MultiPose Lightning.

    Raises:
        ValueError: the file is another network (count, shape, stride, groups or head name disagree).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    body = list(_body_convolutions(network))
    expected = len(body) + CONVOLUTIONS_PER_HEAD * len(HEADS_IN_GRAPH_ORDER)
    if len(nodes) != expected:
        raise ValueError(
            f"{path} holds {len(nodes)} convolutions, MoveNet MultiPose has {expected}: is it another model?"
        )
    for (name, conv), node in zip(body, nodes, strict=False):
        _copy(conv, name, node, constants)
    rest = nodes[len(body) :]
    for index, (graph_name, ours) in enumerate(HEADS_IN_GRAPH_ORDER):
        head_nodes = rest[CONVOLUTIONS_PER_HEAD * index : CONVOLUTIONS_PER_HEAD * (index + 1)]
        if ours is None or ours not in network.keypoint_heads.head:
            continue
        convs = [m for m in network.keypoint_heads.head[ours].modules() if isinstance(m, nn.Conv2d)]
        for conv, node in zip(convs, head_nodes, strict=True):
            if f"/{graph_name}_0/" not in node.output[0]:
                raise ValueError(f"{path}: expected a convolution of {graph_name!r}, found {node.output[0]!r}")
            _copy(conv, f"keypoint_heads.{ours}", node, constants)
    return network
