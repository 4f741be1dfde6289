"""A network that sees the picture's other people, from its settings to every engine: the same numbers everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper, shape_inference

from benchmarks.hot_path_counts import count_segment
from engines import EngineOptions, default_artifact, load_artifact
from engines.engine import Engine, open_engine
from engines.graph_cost import graph_cost
from engines.half_precision import to_half
from engines.onnx_engine import OnnxEngine
from engines.openvino_engine import OpenVinoEngine
from engines.segment_cut import CutGraph, CutSegmentEngine, GraphNotCut, cut_segment_graph
from engines.torch_engine import TorchEngine
from engines.torch_graph import read_graph
from engines.torch_program import ALIGN_WITH_SKELETON
from engines.torch_skeleton_fusion import with_fused_skeleton
from kernels.neighbours import BODY_POINTS, neighbour_features
from kernels.skeleton import skeleton_features
from tests.engines.half_emulation import in_float32_with_rounding
from tests.engines.recorder_by_hand import ByHand
from tests.tolerances import CUT_GRAPH, FLOAT32_COORDINATES, TORCH_NETWORK
from tests.training.drawn_people import TINY_MODEL
from training import export_onnx
from training.export_onnx import export_segment, random_network
from training.graphs import SegmentGraph
from training.model import LiveNetwork
from training.model_settings import SkeletonSettings, model_settings_from_json
from training.windows import seg_channels, seg_inputs

SETTINGS = replace(TINY_MODEL, roi_size=64, skeleton=SkeletonSettings(neighbours=True))
ON_CPU = EngineOptions(threads=1, device="cpu")
ROOT = Path(__file__).resolve().parents[2]

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def network() -> LiveNetwork:
    made = random_network(SETTINGS)
    assert isinstance(made, LiveNetwork)
    return made


@pytest.fixture(scope="module")
def segment(network: LiveNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neighbours") / "segment.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter speaks of its own future
        onnx.save(export_segment(network), str(path))
    return path


@pytest.fixture(scope="module")
def whole(segment: Path) -> Engine:
    return OnnxEngine(segment, threads=1)


def feeds(people: int, images: int = 1, seed: int = 0) -> Feeds:
    """People who overlap, of sizes between 1 and 6."""
    rng = np.random.default_rng(100 * people + seed)
    angle, scale = rng.uniform(-0.4, 0.4, people), rng.uniform(0.1, 0.6, people)
    matrices = np.empty((people, 2, 3), np.float32)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = -scale * np.sin(angle), scale * np.sin(angle)
    matrices[:, :, 2] = rng.uniform(-5, 15, (people, 2))
    joints = np.concatenate((rng.uniform(5, 60, (people, 17, 2)), rng.integers(0, 3, (people, 17, 1))), -1)
    return {
        "features": rng.normal(size=(images, SETTINGS.feature_channels, 24, 36)).astype(np.float32),
        "feature_from_roi": matrices,
        "roi_image": rng.integers(0, images, people).astype(np.int32),
        "roi_keypoints": joints.astype(np.float32),
    }


def eager(network: LiveNetwork, given: Feeds) -> np.ndarray:
    with torch.no_grad():
        return SegmentGraph(network)(*(torch.from_numpy(value) for value in given.values()))[0].numpy()


def open_content(content: bytes) -> Engine:
    return OnnxEngine("part", threads=1, content=content)


def cut_of(segment: Path) -> CutGraph:
    return cut_segment_graph(segment.read_bytes(), open_content)


def test_two_channels_more_than_without_and_those_of_the_kernel() -> None:
    given = feeds(5)
    tensors = [torch.from_numpy(value) for value in given.values()]
    inputs = seg_inputs(SETTINGS, *tensors).numpy()
    depth = SETTINGS.feature_channels + 55
    assert inputs.shape[1] == seg_channels(SETTINGS) == depth + 2
    people = (given["feature_from_roi"], given["roi_image"], given["roi_keypoints"])
    np.testing.assert_allclose(inputs[:, depth:], neighbour_features(*people), **FLOAT32_COORDINATES)
    np.testing.assert_allclose(
        inputs[:, depth - 55 : depth], skeleton_features(given["roi_keypoints"]), **FLOAT32_COORDINATES
    )
    without = replace(SETTINGS, skeleton=SkeletonSettings())
    np.testing.assert_array_equal(seg_inputs(without, *tensors).numpy(), inputs[:, :depth])


def test_without_negative_blobs_a_hidden_neighbour_is_seen() -> None:
    settings = replace(SETTINGS, skeleton=SkeletonSettings(neighbours=True, negative_occluded=False))
    given = feeds(5)
    drawn = seg_inputs(settings, *(torch.from_numpy(value) for value in given.values())).numpy()[:, -2:]
    given["roi_keypoints"][..., 2] = np.minimum(given["roi_keypoints"][..., 2] * 2, 2)
    people = (given["feature_from_roi"], given["roi_image"], given["roi_keypoints"])
    np.testing.assert_allclose(drawn, neighbour_features(*people), **FLOAT32_COORDINATES)
    assert not drawn[:, 1].any()


def test_it_is_a_setting_of_a_recipe_and_needs_the_skeleton() -> None:
    made = model_settings_from_json({"skeleton": {"neighbours": True}})
    assert made.skeleton.neighbours
    assert not model_settings_from_json({}).skeleton.neighbours
    with pytest.raises(ValueError, match=r"skeleton\.neighbours needs skeleton\.enabled"):
        SkeletonSettings(enabled=False, neighbours=True)
    with pytest.raises(ValueError, match=r"skeleton\.neighbours must be true or false, got 1"):
        SkeletonSettings(neighbours=1)  # type: ignore[arg-type]


def test_the_folder_says_that_masks_depend_on_neighbours(
    network: LiveNetwork, segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keypoints = onnx.load(default_artifact() / "keypoints.onnx")
    monkeypatch.setattr(export_onnx, "export_keypoints", lambda _: keypoints)
    monkeypatch.setattr(export_onnx, "export_segment", lambda _: onnx.load(segment))
    monkeypatch.setattr(export_onnx, "compare", lambda *_: 0.0)  # the keypoints are another network's
    export_onnx.export(network, tmp_path / "model", trained_on=[], measured={}, provenance={})
    assert json.loads((tmp_path / "model" / "model.json").read_text())["neighbours"] is True
    assert load_artifact(tmp_path / "model").neighbours
    assert load_artifact(default_artifact()).neighbours


@pytest.mark.parametrize(("people", "images"), [(1, 1), (2, 1), (7, 2), (20, 1)])
def test_every_engine_computes_what_the_network_does(
    network: LiveNetwork, segment: Path, people: int, images: int
) -> None:
    given = feeds(people, images)
    expected = eager(network, given)
    engines = {
        "onnx": OnnxEngine(segment, threads=1),
        "onnx, cut": open_engine(segment, engine="onnx", options=ON_CPU),
        "openvino": OpenVinoEngine(segment, ON_CPU),
        "openvino, cut": open_engine(segment, engine="openvino", options=ON_CPU),
        "torch": open_engine(segment, engine="torch", options=ON_CPU),
    }
    for name, engine in engines.items():
        assert isinstance(engine, CutSegmentEngine) == name.endswith("cut")
        np.testing.assert_allclose(engine.run(given)["probabilities"], expected, **CUT_GRAPH, err_msg=name)
        engine.close()


def test_others_change_a_mask_and_those_of_another_picture_do_not(whole: Engine) -> None:
    together = feeds(6)
    together["features"] = np.repeat(together["features"], 6, axis=0)
    apart = {**together, "roi_image": np.arange(6, dtype=np.int32)}
    masks, alone = whole.run(together)["probabilities"], whole.run(apart)["probabilities"]
    assert np.abs(masks - alone).max((1, 2)).min() > 0.01
    for row in range(6):
        one = {name: value[[row]] if name != "features" else value for name, value in apart.items()}
        np.testing.assert_allclose(whole.run(one)["probabilities"], alone[[row]], **CUT_GRAPH)


def test_somebody_without_a_window_leaves_the_others_masks_alone(segment: Path, whole: Engine) -> None:
    given = feeds(9, 2)
    given["feature_from_roi"][2, 1, 1], given["feature_from_roi"][3, 0, 1] = np.nan, np.inf
    expected = whole.run(given)["probabilities"]
    assert np.isfinite(expected).all()
    for name in ("onnx", "openvino", "torch"):
        found = open_engine(segment, engine=name, options=ON_CPU).run(given)["probabilities"]
        np.testing.assert_allclose(found, expected, **CUT_GRAPH)


def test_the_cut_graph_is_the_seg_module(segment: Path) -> None:
    cut = cut_of(segment)
    assert (cut.feature_channels, cut.window_channels, cut.size, cut.neighbours) == (8, 80, 64, True)  # 8 + 55 + 2
    assert len(onnx.load_model_from_string(cut.content).graph.node) < 40


Change = Callable[[onnx.GraphProto], None]


def draw_thinner(graph: onnx.GraphProto) -> None:
    """Half the sigma of the others: the factor before it is their 3 px."""
    (name,) = (t.name for t in graph.initializer if t.dims == [] and numpy_helper.to_array(t) == np.float32(-0.5))
    set_constant(graph, name, -2.0)


def see_other_pictures(graph: onnx.GraphProto) -> None:
    """Everybody is in one picture."""
    node = next(n for n in graph.node if n.op_type == "Equal")
    graph.node.insert(0, onnx.helper.make_node("Mul", ["roi_image", "nought"], ["one_picture"]))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "nought"))
    for reader in graph.node:
        if reader.op_type == "Unsqueeze" and set(reader.output) & set(node.input):
            reader.input[0] = "one_picture"


def read_features(graph: onnx.GraphProto) -> None:
    """The drawing of the others depends on the picture."""
    joined = next(n for n in graph.node if n.op_type == "Concat" and n.input[0] == "affine_align")
    position = next(i for i, n in enumerate(graph.node) if n is joined or n.name == joined.name)
    graph.node.insert(position, onnx.helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0))
    graph.node.insert(position + 1, onnx.helper.make_node("Min", [joined.input[2], "most"], ["bounded"]))
    joined.input[2] = "bounded"


def set_constant(graph: onnx.GraphProto, name: str, value: float) -> None:
    (constant,) = (tensor for tensor in graph.initializer if tensor.name == name)
    constant.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (draw_thinner, "it does not draw the other people as our kernel does"),
        (see_other_pictures, "it does not draw the other people as our kernel does"),
        (read_features, "what should draw the other people follows from feature_from_roi, features, roi_image"),
    ],
)
def test_another_drawing_of_the_others_is_not_cut_off(segment: Path, change: Change, reason: str) -> None:
    model = onnx.load(segment)
    change(model.graph)
    with pytest.raises(GraphNotCut, match=reason):
        cut_segment_graph(model.SerializeToString(), open_content)


def test_the_torch_engine_draws_skeletons_by_our_kernel_and_the_others_behind(segment: Path) -> None:
    nodes = with_fused_skeleton(read_graph(segment)).nodes
    (fused,) = (node for node in nodes if node.operator == ALIGN_WITH_SKELETON)
    (joined,) = (node for node in nodes if fused.outputs[0] in node.inputs)
    assert (joined.operator, len(joined.inputs)) == ("Concat", 2)
    assert joined.outputs == ("cat_1",)


def test_people_of_an_earlier_recorded_call_are_nobodys_neighbours(segment: Path) -> None:
    """Recorded sizes are padded: rows that held others before must not be seen."""
    engine = TorchEngine(segment, EngineOptions(threads=1, device="cpu", max_people=8), recorder=ByHand())
    plain = TorchEngine(segment, ON_CPU)
    for seed, count in enumerate((8, 8, 8, 5, 7, 5)):
        given = {name: torch.from_numpy(value) for name, value in feeds(count, seed=seed).items()}
        found, expected = engine.run_on_device(given), plain.run_on_device(given)
        torch.testing.assert_close(found["probabilities"], expected["probabilities"], **TORCH_NETWORK)
    assert engine._graphs is not None
    assert [key[1][0] for key in engine._graphs.recorded] == [8]


def test_in_half_precision_positions_stay_float32(segment: Path, whole: Engine, tmp_path: Path) -> None:
    model = to_half(onnx.load(segment))
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in shape_inference.infer_shapes(model).graph.value_info
    }
    of_kind = {
        node.op_type for node in model.graph.node if any(kinds.get(n) == TensorProto.FLOAT16 for n in node.output)
    }
    assert of_kind <= {"AffineAlign", "Add", "Cast", "Clip", "Concat", "Conv", "DepthToSpace", "MatMul", "Relu"}
    path = tmp_path / "half.onnx"
    onnx.save(in_float32_with_rounding(model), str(path))
    for people in (1, 7):
        given = feeds(people)
        found = OnnxEngine(path, threads=1).run(given)["probabilities"]
        np.testing.assert_allclose(found, whole.run(given)["probabilities"], atol=0.02)


def test_the_torch_engine_in_half_precision(segment: Path, whole: Engine) -> None:
    options = EngineOptions(threads=1, device="cpu", precision="bfloat16")
    given = feeds(7)
    found = open_engine(segment, engine="torch", options=options).run(given)["probabilities"]
    difference = np.abs(found - whole.run(given)["probabilities"])
    assert 0 < difference.mean() < 0.02


def test_what_a_call_costs_is_counted(segment: Path) -> None:
    def cost(people: int) -> int:
        return graph_cost(segment, {name: value.shape for name, value in feeds(people).items()}).macs

    pairs = 2 * len(BODY_POINTS) * 64**2  # for somebody and each of the others, themselves included
    assert [cost(n) - n * (cost(1) - pairs) for n in (2, 7)] == [n**2 * pairs for n in (2, 7)]
    parts = count_segment(cut_of(segment), 3, (24, 36))
    assert parts["align and skeleton (kernel)"].operations == 3 * (8 + 55 + 2) * 64**2


@pytest.mark.parametrize("capability", ["SM75", "SM89"])
def test_tensorrt_for_rtx_builds_a_plan(segment: Path, capability: str) -> None:
    """Turing has no float32 matrix products there."""
    pytest.importorskip("tensorrt_rtx_libs")
    wish = {"graph": str(segment), "capabilities": [capability]}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.tensorrt_build_report", json.dumps(wish)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["precision"] == "float16", report
    assert report["layers"]["MATRIX_MULTIPLY"] == 1
    assert report["profile"]["roi_keypoints"] == [[1, 17, 3], [4, 17, 3], [32, 17, 3]]
