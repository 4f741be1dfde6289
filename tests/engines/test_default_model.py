"""The model that ships: small enough, complete, runs, and carries nothing of the machine that made it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from engines import Artifact, EngineOptions, default_artifact, load_artifact, open_graph

PORTABLE_OPSET = 20  # what the oldest supported ONNX Runtime knows


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(default_artifact())


def test_size_suits_a_repository(artifact: Artifact) -> None:
    assert sum(path.stat().st_size for path in artifact.folder.iterdir()) < 25e6
    assert {path.name for path in artifact.folder.iterdir()} == {"model.json", "keypoints.onnx", "segment.onnx"}


@pytest.mark.parametrize("height", [32, 96])
def test_graphs_fit_together(artifact: Artifact, height: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, height, 160, 3), np.uint8)
    found = open_graph(artifact, "keypoints", options=EngineOptions(threads=1)).run({"image": image})
    assert np.all(np.diff(found["person_scores"][0]) <= 0)
    h, w = found["features"].shape[2:]
    stride = 1 / artifact.feature_from_input[0, 0]
    assert (h, w) == (height / stride, 160 / stride)
    side = artifact.roi_size
    feeds = {
        "features": found["features"],
        "feature_from_roi": np.array([[[w / side, 0, 0], [0, h / side, 0]]] * 3, np.float32),
        "roi_image": np.zeros(3, np.int32),
        "roi_keypoints": np.random.default_rng(0).uniform(0, side, (3, 17, 3)).astype(np.float32).round(),
    }
    masks = open_graph(artifact, "segment", options=EngineOptions(threads=1)).run(feeds)
    assert masks["probabilities"].shape == (3, side, side)
    assert masks["probabilities"].min() >= 0
    assert masks["probabilities"].max() <= 1
    assert masks["scores"].shape == (3,)


def test_affine_align_is_one_node_with_a_local_function(artifact: Artifact) -> None:
    model = onnx.load(artifact.segment_path)
    nodes = [node for node in model.graph.node if node.domain == "pose2seg"]
    assert [node.op_type for node in nodes] == ["AffineAlign"]
    assert [(function.domain, function.name) for function in model.functions] == [("pose2seg", "AffineAlign")]


@pytest.mark.parametrize("graph", ["keypoints", "segment"])
def test_graph_runs_in_old_runtimes_too(artifact: Artifact, graph: str) -> None:
    model = onnx.load(artifact.graph_path(graph))
    assert {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")} <= set(
        range(PORTABLE_OPSET + 1)
    )
    for function in model.functions:  # see the comment at Pad in training/export_onnx.py
        constants = {node.output[0]: node for node in function.node if node.op_type == "Constant"}
        for node in function.node:
            if node.op_type == "Pad":
                assert constants[node.input[1]].attribute[0].name == "value"


@pytest.mark.parametrize("name", ["model.json", "keypoints.onnx", "segment.onnx"])
def test_no_path_of_the_exporting_machine(artifact: Artifact, name: str) -> None:
    content = (artifact.folder / name).read_bytes()
    assert re.search(rb"(/home/|/root/|/tmp/|/Users/|site-packages|\.py\b)", content) is None


def test_origin_is_named(artifact: Artifact) -> None:
    assert artifact.trained_on
    assert "MoveNet" in str(dict(artifact.provenance))
    notice = (default_artifact().parents[2] / "NOTICE").read_text()
    assert "MoveNet MultiPose Lightning" in notice
