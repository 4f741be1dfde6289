"""The segment graph cut before its SegModule: the same masks, and run whole where it has another form."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import EngineOptions, EngineRunError, default_artifact, load_artifact, open_graph
from engines.engine import Engine, open_engine
from engines.onnx_engine import OnnxEngine
from engines.openvino_engine import OpenVinoEngine
from engines.segment_cut import (
    WINDOWS,
    CutGraph,
    CutSegmentEngine,
    GraphNotCut,
    cut_segment_graph,
    how_segment_runs,
)
from tests.engines.graphs import add_graph, segment_graph
from tests.engines.test_openvino_engine import HAS_BFLOAT16, segment_feeds
from tests.tolerances import CUT_GRAPH

ONE_THREAD = EngineOptions(threads=1, device="cpu")
SEGMENT = load_artifact(default_artifact()).segment_path


def open_content(content: bytes) -> Engine:
    return OnnxEngine("part", threads=1, content=content)


@pytest.fixture(scope="module")
def whole() -> Engine:
    return OnnxEngine(SEGMENT, threads=1)


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def cut(request: pytest.FixtureRequest) -> Engine:
    return open_engine(SEGMENT, engine=request.param, options=ONE_THREAD)


@pytest.mark.parametrize(("images", "people"), [(1, 1), (1, 3), (2, 8), (3, 9), (2, 33)])
def test_masks_are_those_of_the_whole_graph(cut: Engine, whole: Engine, images: int, people: int) -> None:
    feeds = segment_feeds(images, people, seed=people)
    if people > 3:
        feeds["feature_from_roi"][2, 1, 1] = np.nan
        feeds["feature_from_roi"][3, 0, 1] = np.inf
    assert isinstance(cut, CutSegmentEngine)
    assert cut.name.endswith("windows by our kernel")
    assert (cut.inputs, cut.outputs) == (whole.inputs, whole.outputs)
    ours, reference = cut.run(feeds), whole.run(feeds)
    assert reference["probabilities"].std() > 0.005
    assert list(ours) == list(reference)
    for name, found in ours.items():
        assert found.shape == reference[name].shape
        np.testing.assert_allclose(found, reference[name], **CUT_GRAPH)


def test_calls_leave_nothing_behind_for_each_other(cut: Engine) -> None:
    """The windows are filled again, not made again: many people, then one, give what one alone gave."""
    one = segment_feeds(1, 1)
    first = cut.run(one)
    kept = first["probabilities"].copy()
    cut.run(segment_feeds(2, 11, seed=5))
    np.testing.assert_array_equal(first["probabilities"], kept)
    np.testing.assert_array_equal(cut.run(one)["probabilities"], kept)


def test_wrong_calls_are_explained(whole: Engine) -> None:
    engine = open_engine(SEGMENT, engine="onnx", options=ONE_THREAD)
    feeds = segment_feeds(1, 2)
    with pytest.raises(EngineRunError, match=r"missing \['features'\]"):
        engine.run({name: feed for name, feed in feeds.items() if name != "features"})
    with pytest.raises(EngineRunError, match=r"roi_image must be in 0\.\.0, got 0\.\.1"):
        engine.run({**feeds, "roi_image": np.array([0, 1], np.int32)})
    assert engine.run(feeds)["scores"].shape == (2,)
    engine.close()
    engine.close()
    with pytest.raises(EngineRunError, match="closed; open it again"):
        engine.run(feeds)


def test_channels_are_whole_blocks_and_the_file_stays_as_it_is() -> None:
    before = SEGMENT.read_bytes()
    made = cut_segment_graph(before, open_content)
    assert (made.feature_channels, made.window_channels, made.size) == (48, 112, 64)
    graph = onnx.load_model_from_string(made.content).graph
    assert [value.name for value in graph.input] == [WINDOWS]
    assert len(graph.node) < 60
    assert SEGMENT.read_bytes() == before


def test_openvino_computes_the_seg_module_in_bfloat16() -> None:
    """Positions are worked out by our kernel, so nothing keeps it in float32."""
    if not HAS_BFLOAT16:
        pytest.skip("this CPU has no bfloat16")
    options = EngineOptions(threads=1, device="cpu", precision="bfloat16")
    engine = open_engine(SEGMENT, engine="openvino", options=options)
    assert "bfloat16" in engine.name
    exact = OpenVinoEngine(SEGMENT, ONE_THREAD).run(segment_feeds(1, 3))["probabilities"]
    difference = np.abs(engine.run(segment_feeds(1, 3))["probabilities"] - exact)
    assert 0 < difference.mean() < 0.01


Change = Callable[[onnx.GraphProto], None]


def node_of(graph: onnx.GraphProto, kind: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == kind)


def swap_channels(graph: onnx.GraphProto) -> None:
    joined = next(node for node in graph.node if node.op_type == "Concat" and "affine_align" in node.input)
    joined.input[:] = reversed(joined.input)


def read_windows_twice(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("ReduceMean", ["affine_align"], ["mean"]))
    graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))


def read_joints_late(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("ReduceMean", ["roi_keypoints"], ["mean"]))
    graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))


def draw_wider(graph: onnx.GraphProto) -> None:
    """Twice the sigma of the joints."""
    name = node_of(graph, "Div").input[1]
    (constant,) = (tensor for tensor in graph.initializer if tensor.name == name)
    constant.CopyFrom(numpy_helper.from_array(4 * numpy_helper.to_array(constant), name))


def free_channels(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"


def other_operator(graph: onnx.GraphProto) -> None:
    node_of(graph, "AffineAlign").domain = "elsewhere"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_channels, "not the first channels"),
        (read_windows_twice, "read by nothing else"),
        (read_joints_late, "the SegModule reads roi_keypoints beside the windows"),
        (draw_wider, "does not draw 17 joints"),
        (free_channels, "fixed number of channels"),
        (other_operator, "not one AffineAlign node"),
    ],
)
def test_a_graph_of_another_form_is_not_cut(change: Change, reason: str) -> None:
    model = onnx.load(SEGMENT)
    change(model.graph)
    with pytest.raises(GraphNotCut, match=reason):
        cut_segment_graph(model.SerializeToString(), open_content)


@pytest.mark.parametrize("content", [b"", b"AffineAlign", add_graph(), segment_graph()])
def test_what_is_no_such_graph_is_not_cut(content: bytes) -> None:
    with pytest.raises(GraphNotCut):
        cut_segment_graph(content, open_content)


def test_it_runs_whole_then_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: Engine) -> None:
    model = onnx.load(SEGMENT)
    draw_wider(model.graph)
    path = tmp_path / "segment.onnx"
    onnx.save(model, str(path))
    with caplog.at_level(logging.DEBUG, logger="engines"):
        engine = open_engine(path, engine="onnx", options=ONE_THREAD)
    assert not isinstance(engine, CutSegmentEngine)
    assert "segment.onnx: runs whole: it does not draw 17 joints" in caplog.text
    feeds = segment_feeds(1, 2)
    ours = engine.run(feeds)["probabilities"]
    np.testing.assert_array_equal(ours, OnnxEngine(path, threads=1).run(feeds)["probabilities"])
    assert np.abs(ours - whole.run(feeds)["probabilities"]).max() > 0.01  # it did draw wider
    assert how_segment_runs(path).startswith("runs whole: it does not draw")


def test_the_default_model_is_cut() -> None:
    assert how_segment_runs(SEGMENT) == "windows by our kernel, 112 channels of 64 x 64"
    keypoints = open_graph(load_artifact(default_artifact()), "keypoints", options=ONE_THREAD)
    assert isinstance(keypoints, OnnxEngine)  # other graphs are left alone


def test_weights_that_somebody_else_reads_are_not_padded() -> None:
    model = onnx.load(SEGMENT)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    model.graph.node.append(helper.make_node("ReduceMean", [name], ["mean"]))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    made: CutGraph = cut_segment_graph(model.SerializeToString(), open_content)
    assert made.window_channels == 48 + 55 + 2
    windows: Any = np.random.default_rng(0).normal(size=(2, 105, 64, 64)).astype(np.float32)
    assert open_content(made.content).run({WINDOWS: windows})["probabilities"].shape == (2, 64, 64)
