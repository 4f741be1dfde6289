"""How much work a frame is: multiply-adds and bytes of the networks, counted from the graphs and the shapes that flow.

    python -m benchmarks.hot_path_counts [--model DIR] [--long-side 512] [--budget]

No clock is involved, so the figures are the same on every machine and under any load. Each graph is run once with all
its inner tensors as outputs; a convolution counts one multiply-add per weight and output px, other operators count one
operation per output element. Bytes are those that every operator reads and writes if nothing is fused or kept in a
cache: an upper bound of the traffic, good for comparing versions of a graph. ``--budget`` writes the counts to
hot_path_budget.json, which tests/benchmarks/test_hot_path.py holds the graphs to.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner
from rich.console import Console
from rich.table import Table

from engines import default_artifact, load_artifact
from engines.artifact import Artifact
from engines.onnx_engine import OnnxEngine
from engines.segment_cut import WINDOWS, CutGraph, cut_segment_graph
from kernels.letterbox import plan_letterbox

BUDGET = Path(__file__).parent / "hot_path_budget.json"
FRAMES = {"480p": (480, 854), "720p": (720, 1280)}
PEOPLE = (1, 3, 10)
PARTS = (  # a word in a weight's name -> part of the network
    ("backbone", "backbone"),
    ("top_down", "top-down path"),
    ("keypoint_heads", "keypoint heads"),
    ("mask_laterals", "mask laterals"),
    ("seg_module", "SegModule"),
)
REST = {"keypoints": "normalisation and candidates", "segment": "masks and scores"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Work of one call.

    Attributes:
        multiply_adds: of convolutions and matrix products.
        operations: elements written by all other operators.
        bytes_moved: read and written by all operators, one by one.
        nodes: operators in the graph.
    """

    multiply_adds: int = 0
    operations: int = 0
    bytes_moved: int = 0
    nodes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def count_graph(graph_file: Path | bytes, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Counts]:
    """Counts of one call by part of the network; local functions are written out first.

    Args:
        graph_file: an `.onnx` file, or its content.
        feeds: inputs of the call; their values do not matter, but shapes may depend on them.
    """
    content = graph_file if isinstance(graph_file, bytes) else graph_file.read_bytes()
    model = inliner.inline_local_functions(onnx.load_model_from_string(content))
    graph = model.graph
    constants: dict[str, NDArray[Any]] = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    shapes = {name: (array.shape, array.dtype.itemsize) for name, array in (*constants.items(), *feeds.items())}
    shapes |= _inner_shapes(model, feeds)
    parts: dict[str, Counts] = defaultdict(Counts)
    part_of: dict[str, str] = {}
    for node in graph.node:
        part = next((named for name in node.input for word, named in PARTS if word in name), None)
        if part is None:  # an activation or a sum belongs to the part that wrote its input
            part = next((part_of[name] for name in node.input if name in part_of), "")
        for name in node.output:
            part_of[name] = part
        parts[part] += _count_node(node, shapes)
    return dict(parts)


def _count_node(node: onnx.NodeProto, shapes: Mapping[str, tuple[tuple[int, ...], int]]) -> Counts:
    moved = sum(int(np.prod(shape)) * size for shape, size in (shapes[n] for n in (*node.input, *node.output) if n))
    elements = sum(int(np.prod(shapes[name][0])) for name in node.output if name)
    if node.op_type == "Conv":
        return Counts(elements * int(np.prod(shapes[node.input[1]][0][1:])), 0, moved, 1)
    if node.op_type in {"MatMul", "Gemm"}:
        return Counts(elements * shapes[node.input[0]][0][-1], 0, moved, 1)
    return Counts(0, elements, moved, 1)


def _inner_shapes(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes per element of every tensor that a node writes, from one run."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    declared = {value.name for value in shown.graph.output}
    names = [name for node in shown.graph.node for name in node.output if name and name not in declared]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.onnx"
        onnx.save(shown, str(path))
        found = OnnxEngine(path, threads=1).run(feeds)
    return {name: (array.shape, array.dtype.itemsize) for name, array in found.items()}


def keypoint_feeds(artifact: Artifact, height: int, width: int, long_side: int) -> dict[str, NDArray[Any]]:
    """A grey picture as large as the network's input for such a frame."""
    plan = plan_letterbox(height, width, long_side=long_side, multiple=artifact.input_multiple)
    return {"image": np.full((1, plan.input_height, plan.input_width, 3), 127, np.uint8)}


def count_all(artifact: Artifact, long_side: int) -> dict[str, dict[str, Counts]]:
    """Name of a call, such as `segment 720p, 3 people`, to the counts of each part."""
    counts: dict[str, dict[str, Counts]] = {}
    for name, (height, width) in FRAMES.items():
        feeds = keypoint_feeds(artifact, height, width, long_side)
        counts[f"keypoints {name}"] = _named(count_graph(artifact.graph_path("keypoints"), feeds), "keypoints")
        cut = cut_segment_graph(
            artifact.segment_path.read_bytes(), lambda content: OnnxEngine("part", threads=1, content=content)
        )
        for people in PEOPLE:
            counts[f"segment {name}, {people} people"] = count_segment(cut, people, _feature_size(artifact, feeds))
    return counts


def count_segment(cut: CutGraph, people: int, feature_size: tuple[int, int]) -> dict[str, Counts]:
    """The segment call as CPU engines run it: our kernel fills the windows, a runtime has the SegModule."""
    height, width = feature_size
    written = people * (cut.feature_channels + cut.drawn_channels) * cut.size**2
    kernel = Counts(0, written, 4 * (written + cut.feature_channels * height * width), 1)
    windows = np.zeros((people, cut.window_channels, cut.size, cut.size), np.float32)
    return {**_named(count_graph(cut.content, {WINDOWS: windows}), "segment"), "align and skeleton (kernel)": kernel}


def _feature_size(artifact: Artifact, feeds: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    stride = 1.0 / float(artifact.feature_from_input[0, 0])
    _, height, width, _ = feeds["image"].shape
    return round(height / stride), round(width / stride)


def _named(parts: Mapping[str, Counts], graph: str) -> dict[str, Counts]:
    return {part or REST[graph]: counts for part, counts in parts.items()}


def total(parts: Mapping[str, Counts]) -> Counts:
    """All parts together."""
    return sum(parts.values(), Counts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_artifact())
    parser.add_argument("--long-side", type=int, help="the model's own by default")
    parser.add_argument("--budget", action="store_true", help="write the counts as the new budget")
    options = parser.parse_args()
    artifact = load_artifact(options.model)
    long_side = options.long_side or artifact.long_side
    counts = count_all(artifact, long_side)
    table = Table(title=f"work of a frame, long side {long_side}")
    for heading in ("call", "part", "million multiply-adds", "million other operations", "MB moved", "operators"):
        table.add_column(heading, justify="left" if heading in {"call", "part"} else "right")
    for call, parts in counts.items():
        for part, found in (*parts.items(), ("all", total(parts))):
            table.add_row(
                call if part == next(iter(parts)) else "",
                part,
                f"{found.multiply_adds / 1e6:.1f}",
                f"{found.operations / 1e6:.1f}",
                f"{found.bytes_moved / 1e6:.1f}",
                str(found.nodes),
            )
        table.add_section()
    Console(width=120).print(table)
    totals = {call: asdict(total(parts)) for call, parts in counts.items()}
    if options.budget:
        document = {"schema": 1, "long_side": long_side, "calls": totals}
        BUDGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"long_side": long_side, "calls": totals}))


if __name__ == "__main__":
    main()
