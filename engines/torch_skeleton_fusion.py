"""One kernel in place of some 120 small ones: Affine-Align and the drawing of the skeleton become
pose2seg::align_with_skeleton. What a network draws beside the two (`kernels.torch_neighbours`) follows behind them.

How the exporter spells the drawing is its own business and changes with its version, so the pattern is not compared
node by node: what stands behind the aligned features and follows from the poses alone is run on a few poses, and
replaced only if it draws what our kernel draws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from engines.engine import EngineLoadError, TensorSpec
from engines.torch_graph import Graph, Node
from engines.torch_program import ALIGN, ALIGN_WITH_SKELETON, PreparedGraph, StepFailed, compile_program
from kernels.skeleton import CHANNELS as SKELETON_CHANNELS
from kernels.skeleton import JOINTS, draws_alike, sample_poses
from kernels.torch_skeleton import skeleton_features


def with_fused_skeleton(graph: Graph) -> Graph:
    """The graph with every such pair replaced; the same graph where there is none."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    readers = graph.consumers()
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.operator != "Concat" or node.attributes.get("axis") != 1 or len(node.inputs) < 2:
            continue
        aligned, drawn, *others = node.inputs
        align = makers.get(aligned)
        if align is None or align.operator != ALIGN or len(readers[aligned]) > 1:
            continue
        poses = _only_source(graph, makers, drawn)
        if poses is None or not _draws_skeletons(graph, drawn, poses, align.attributes.get("size", 0)):
            continue
        windows = (f"{node.outputs[0]}__with_skeleton",) if others else node.outputs
        nodes[-1] = Node(
            operator=ALIGN_WITH_SKELETON,
            name=node.name,
            inputs=(*align.inputs, poses.name),
            outputs=windows,
            attributes=align.attributes,
        )
        if others:
            nodes.append(replace(node, inputs=(*windows, *others)))
    return replace(graph, nodes=tuple(nodes))


def _only_source(graph: Graph, makers: dict[str, Node], name: str) -> TensorSpec | None:
    """The one graph input that a value follows from, if it has the shape of poses."""
    inputs = {spec.name: spec for spec in graph.inputs}
    seen, todo, sources = set(), [name], set()
    while todo:
        value = todo.pop()
        if value in seen or not value or value in graph.constants:
            continue
        seen.add(value)
        if value in inputs:
            sources.add(value)
        elif value in makers:
            todo += makers[value].inputs
    if len(sources) != 1:
        return None
    spec = inputs[sources.pop()]
    return spec if spec.dtype == np.float32 and spec.shape[1:] == (JOINTS, 3) else None


def _draws_skeletons(graph: Graph, drawn: str, poses: TensorSpec, size: int) -> bool:
    output = TensorSpec(drawn, np.dtype(np.float32), ("N", SKELETON_CHANNELS, size, size))
    part = replace(graph, inputs=(poses,), outputs=(output,))
    samples = torch.from_numpy(sample_poses(size))
    try:
        prepared = PreparedGraph(part, torch.device("cpu"), None)
        (found,) = compile_program(prepared, {poses.name: samples.shape}).run([samples])
    except (EngineLoadError, StepFailed):
        return False
    return draws_alike(found.numpy(), skeleton_features(samples, size).numpy())
