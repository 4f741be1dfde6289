"""An ONNX file in the order of the published network, made of the weights of any network of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper, numpy_helper
from torch import nn

from training.model import HEAD_HIDDEN, TRUNK_CHANNELS, LiveNetwork
from training.movenet_weights import HEADS_IN_GRAPH_ORDER, _body_convolutions


class GraphOfConvolutions:
    """The part of an ONNX file that the loader reads: one Conv node after another."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, conv: nn.Conv2d, output: str) -> None:
        names = [f"w{len(self.nodes)}"]
        self.constants.append(numpy_helper.from_array(conv.weight.detach().numpy(), names[0]))
        if conv.bias is not None:
            names.append(f"b{len(self.nodes)}")
            self.constants.append(numpy_helper.from_array(conv.bias.detach().numpy(), names[1]))
        attributes = {"strides": list(conv.stride), "group": conv.groups}
        self.nodes.append(helper.make_node("Conv", ["x", *names], [output], **attributes))

    def write(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, "published", [], [], self.constants)
        onnx.save(helper.make_model(graph), str(path))
        return path


def published(
    network: LiveNetwork, spoil: Callable[[GraphOfConvolutions], None] = lambda _: None
) -> GraphOfConvolutions:
    """A graph in the published order that holds this network's weights, and two box heads of its own."""
    graph = GraphOfConvolutions()
    for name, conv in _body_convolutions(network):
        graph.add(conv, f"body/{name}/Conv2D")
    for graph_name, ours in HEADS_IN_GRAPH_ORDER:
        if ours is not None:
            convs = [m for m in network.keypoint_heads.head[ours].modules() if isinstance(m, nn.Conv2d)]
        else:
            shapes = ((TRUNK_CHANNELS, TRUNK_CHANNELS, 3), (TRUNK_CHANNELS, HEAD_HIDDEN, 1), (HEAD_HIDDEN, 2, 1))
            convs = [nn.Conv2d(a, b, k) for a, b, k in shapes]
        for index, conv in enumerate(convs):
            graph.add(conv, f"model/{graph_name}_0/conv{index}")
    spoil(graph)
    return graph
