"""The segment graph cut before its SegModule, in memory, so that our own kernel fills what the SegModule looks at.

    features, poses -> AffineAlign, some 120 nodes that draw the skeleton -> Concat -> SegModule -> masks
                       `------------- kernels.segment_windows ------------'   `- what is left of the graph

In some networks the other people of the picture follow as a third part (`kernels.neighbours`); they are cut off, too.

A CPU runtime takes a third of the segment call for the part before the SegModule, our kernel a tenth of that. The file
stays as it is and was checked by its SHA-256: the cut is made from its content when the engine is opened. Nothing is
taken on trust: the part that is left out must be the operator `pose2seg::AffineAlign`, and drawings that our kernels
repeat on sample poses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine, EngineError, EngineLoadError, EngineRunError, TensorSpec, check_feeds
from kernels.coordinates import F32
from kernels.neighbours import CHANNELS as NEIGHBOUR_CHANNELS
from kernels.neighbours import neighbour_features, sample_crowd
from kernels.segment_windows import fill_segment_windows
from kernels.skeleton import CHANNELS as SKELETON_CHANNELS
from kernels.skeleton import JOINTS, draws_alike, sample_poses, skeleton_features

if TYPE_CHECKING:
    import onnx

WINDOWS: Final = "windows"
"""Input of what is left: (N, C, S, S)."""

_INPUTS: Final = ("features", "feature_from_roi", "roi_image", "roi_keypoints")
_OF_PEOPLE: Final = _INPUTS[1:]
_BLOCK: Final = 16  # channels of ONNX Runtime's blocked layout with AVX-512; others cost a slower convolution
_PEOPLE_PER_CALL: Final = 8  # bounds the memory for windows, 1.8 MB each; more in one call gain nothing

OpenContent = Callable[[bytes], Engine]
"""Opens a serialised graph with the runtime at hand."""


class GraphNotCut(Exception):
    """The graph has not the form that can be cut and runs whole: an answer, not a fault. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutGraph:
    """What is left of a segment graph.

    Attributes:
        content: the serialised graph; its one input is `WINDOWS`.
        feature_channels: C of the features.
        window_channels: those of features and drawings, and zeros up to a number that the runtime multiplies fast.
        size: side S of the windows, px.
        neighbours: whether the other people are drawn, too.
    """

    content: bytes
    feature_channels: int
    window_channels: int
    size: int
    neighbours: bool

    @property
    def drawn_channels(self) -> int:
        """Of the skeleton, and of the others where they are drawn."""
        return SKELETON_CHANNELS + NEIGHBOUR_CHANNELS * self.neighbours


def cut_segment_graph(content: bytes, open_content: OpenContent) -> CutGraph:
    """Cut a segment graph before its SegModule.

    Args:
        content: a serialised graph that takes the tensors of a segment graph.
        open_content: runs each drawing once, to compare it with our own.

    Raises:
        GraphNotCut: it has another form, or draws something else.
    """
    if b"AffineAlign" not in content:
        raise GraphNotCut("no AffineAlign node")
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has several implementations, each with exceptions of its own
        raise GraphNotCut(f"not an ONNX graph ({error})") from error
    graph = model.graph
    align, joined, drawings = _find_seam(graph)
    channels, size = _feature_channels(graph), _size_of(align)
    for drawn, drawing in zip(drawings, (_skeletons(size), _neighbours(size)), strict=False):
        _check_drawing(model, drawn, drawing, open_content)
    _keep_what_follows(model, joined)
    neighbours = len(drawings) > 1
    depth = channels + SKELETON_CHANNELS + NEIGHBOUR_CHANNELS * neighbours
    padded = _pad_weights(graph, joined, depth)
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(joined, onnx.TensorProto.FLOAT, ["N", padded, size, size]))
    _rename(graph, joined, WINDOWS)
    return CutGraph(
        content=model.SerializeToString(),
        feature_channels=channels,
        window_channels=padded,
        size=size,
        neighbours=neighbours,
    )


class CutSegmentEngine:
    """A segment graph as our kernel and a runtime that holds the SegModule. See `engines.engine.Engine`."""

    def __init__(self, cut: CutGraph, seg_module: Engine, inputs: tuple[TensorSpec, ...]) -> None:
        """Take over an engine.

        Args:
            cut: of the graph.
            seg_module: runs `cut.content`; closed with this one.
            inputs: of the whole graph.
        """
        self._cut = cut
        self._seg_module: Engine | None = seg_module
        self._inputs = inputs
        self._outputs = seg_module.outputs
        self._name = f"{seg_module.name}, windows by our kernel"
        self._windows: F32 = np.empty((0, cut.window_channels, cut.size, cut.size), np.float32)
        fill_segment_windows(  # compiles
            np.zeros((1, 1 + cut.drawn_channels, 1, 1), np.float32),
            np.zeros((1, 1, 1, 1), np.float32),
            np.zeros((1, 2, 3)),
            np.zeros(1, np.int32),
            np.zeros((1, JOINTS, 3), np.float32),
            neighbours=cut.neighbours,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._seg_module is None:
            raise EngineRunError("the segment engine is closed; open it again")
        check_feeds(self._inputs, feeds)
        people = len(feeds["roi_image"])
        parts = [
            self._run_some(self._seg_module, feeds, slice(first, min(first + _PEOPLE_PER_CALL, people)))
            for first in range(0, people, _PEOPLE_PER_CALL)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        if self._seg_module is not None:
            self._seg_module.close()
        self._seg_module = None

    def _run_some(self, seg_module: Engine, feeds: Mapping[str, NDArray[Any]], rows: slice) -> dict[str, NDArray[Any]]:
        people = rows.stop - rows.start
        if len(self._windows) < people:
            self._windows = np.zeros((people, *self._windows.shape[1:]), np.float32)  # padding is never written
        windows = self._windows[:people]
        try:
            fill_segment_windows(
                windows,
                *(feeds[name] for name in _INPUTS),
                neighbours=self._cut.neighbours,
                first_person=rows.start,
            )
        except ValueError as error:
            raise EngineRunError(f"segment: {error}") from error
        return seg_module.run({WINDOWS: windows})


def open_segment_or_whole(
    path: Path, open_content: OpenContent, open_exactly: OpenContent, whole: Engine
) -> tuple[Engine, str]:
    """The cut graph where that can be made, else the graph as it is.

    Args:
        path: of the graph.
        open_content: opens what is left, in the precision wanted.
        open_exactly: opens the drawings, for `cut_segment_graph`, in float32: in fewer bits none is like ours.
        whole: an engine of the whole graph; closed if it is not given back.

    Returns:
        The engine, and in words what was done.
    """
    try:
        cut = cut_segment_graph(path.read_bytes(), open_exactly)
        engine = CutSegmentEngine(cut, open_content(cut.content), whole.inputs)
    except (GraphNotCut, EngineLoadError) as reason:
        return whole, f"runs whole: {reason}"
    whole.close()
    return engine, f"windows by our kernel, {cut.window_channels} channels of {cut.size} x {cut.size}"


def how_segment_runs(path: Path) -> str:
    """What the CPU engines do with a segment graph, in words.

    Raises:
        EngineLoadError: not a graph.
    """
    from engines.onnx_engine import OnnxEngine

    def open_content(content: bytes) -> Engine:
        return OnnxEngine(path, threads=1, content=content)

    engine, what = open_segment_or_whole(path, open_content, open_content, OnnxEngine(path, threads=1))
    engine.close()
    return what


def _find_seam(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, str, Sequence[str]]:
    """The AffineAlign node, the value where its windows and the drawings are joined, and the drawings."""
    if {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer} != set(_INPUTS):
        raise GraphNotCut(f"its inputs are not {', '.join(_INPUTS)}")
    aligns = [node for node in graph.node if node.op_type == "AffineAlign" and node.domain == "pose2seg"]
    if len(aligns) != 1 or tuple(aligns[0].input) != _INPUTS[:3]:
        raise GraphNotCut("not one AffineAlign node on the graph's own inputs")
    aligned = aligns[0].output[0]
    readers = [node for node in graph.node if aligned in node.input]
    if len(readers) != 1 or readers[0].op_type != "Concat" or len(readers[0].input) not in {2, 3}:
        raise GraphNotCut("the windows are not joined with a drawing or two, and read by nothing else")
    if readers[0].input[0] != aligned or _attribute(readers[0], "axis") != 1:
        raise GraphNotCut("the windows are not the first channels")
    return aligns[0], readers[0].output[0], readers[0].input[1:]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _size_of(align: onnx.NodeProto) -> int:
    size = _attribute(align, "size")
    if not 1 <= size <= 1024:
        raise GraphNotCut(f"windows of {size} px")
    return size


def _feature_channels(graph: onnx.GraphProto) -> int:
    import onnx

    (features,) = (value.type.tensor_type for value in graph.input if value.name == "features")
    channels = features.shape.dim[1].dim_value if len(features.shape.dim) == 4 else 0
    if features.elem_type != onnx.TensorProto.FLOAT or not 1 <= channels <= 4096:
        raise GraphNotCut("its features are not float32 with a fixed number of channels")
    return int(channels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Drawing:
    """What a part of the graph must draw."""

    what: str
    feeds: Mapping[str, NDArray[Any]]  # of all that it may follow from, and has to
    expected: F32  # (N, channels, S, S)


def _skeletons(size: int) -> _Drawing:
    samples = sample_poses(size)
    what = f"draw {JOINTS} joints and their limbs"
    return _Drawing(what=what, feeds={"roi_keypoints": samples}, expected=skeleton_features(samples, size))


def _neighbours(size: int) -> _Drawing:
    crowd = sample_crowd(size)
    feeds = dict(zip(_OF_PEOPLE, crowd, strict=True))
    return _Drawing(what="draw the other people", feeds=feeds, expected=neighbour_features(*crowd, size))


def _check_drawing(model: onnx.ModelProto, drawn: str, drawing: _Drawing, open_content: OpenContent) -> None:
    """Run a drawing alone on a few poses, and compare it with ours."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    shape: list[str | int | None] = ["N", *drawing.expected.shape[1:]]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(drawn, onnx.TensorProto.FLOAT, shape))
    sources = _prune(part, [drawn])
    if sources != set(drawing.feeds):
        raise GraphNotCut(
            f"what should {drawing.what} follows from {', '.join(sorted(sources)) or 'nothing'}, not from "
            f"{', '.join(sorted(drawing.feeds))}"
        )
    kept = [value for value in graph.input if value.name in sources]
    del graph.input[:]
    graph.input.extend(kept)
    try:
        engine = open_content(part.SerializeToString())
        try:
            found = engine.run(drawing.feeds)[drawn]
        finally:
            engine.close()
    except EngineError as error:
        raise GraphNotCut(f"what should {drawing.what} does not run alone ({error})") from error
    if not draws_alike(found, drawing.expected):
        raise GraphNotCut(f"it does not {drawing.what} as our kernel does")


def _keep_what_follows(model: onnx.ModelProto, joined: str) -> None:
    """Remove all that is not needed once ``joined`` is given."""
    graph = model.graph
    sources = _prune(model, [value.name for value in graph.output], given=joined)
    if sources:
        raise GraphNotCut(f"the SegModule reads {', '.join(sorted(sources))} beside the windows")
    del model.functions[:]


def _prune(model: onnx.ModelProto, wanted: Sequence[str], *, given: str = "") -> set[str]:
    """Keep the nodes and constants that ``wanted`` follow from; the graph inputs that they read."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    seen: set[str] = set()
    todo = [name for name in wanted if name != given]
    while todo:
        name = todo.pop()
        if name in seen or name in {"", given}:
            continue
        seen.add(name)
        if name in makers:
            todo += makers[name].input
    nodes = [node for node in graph.node if seen.intersection(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in seen]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return {value.name for value in graph.input if value.name in seen and value.name not in constants}


def _pad_weights(graph: onnx.GraphProto, joined: str, depth: int) -> int:
    """Zeros behind the weights of the convolutions that read the windows, up to whole blocks of channels.

    Returns:
        Channels of the windows; ``depth`` where somebody else reads them too.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if joined in node.input]
    names = set()
    for node in readers:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if (
            weight is None
            or len(weight.dims) != 4
            or weight.dims[1] != depth
            or _attribute(node, "group") not in {0, 1}
        ):
            return depth
        names.add(weight.name)
    if any(name in names and node not in readers for node in graph.node for name in node.input):
        return depth
    padded = -(-depth // _BLOCK) * _BLOCK
    for name in names:
        tensor = numpy_helper.to_array(weights[name])
        wide = np.zeros((tensor.shape[0], padded, *tensor.shape[2:]), tensor.dtype)
        wide[:, :depth] = tensor
        weights[name].CopyFrom(numpy_helper.from_array(wide, name))
    return padded


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
    for value in graph.input:
        if value.name == old:
            value.name = new
