"""The work of a frame, counted and not timed: a change that makes it dearer fails here on every machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from benchmarks.hot_path_counts import (
    BUDGET,
    Counts,
    count_all,
    count_graph,
    count_segment,
    keypoint_feeds,
    total,
)
from engines import default_artifact, load_artifact
from engines.artifact import Artifact
from engines.onnx_engine import OnnxEngine
from engines.segment_cut import cut_segment_graph
from tests.engines.graphs import model, tensor


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(default_artifact())


def test_counts_of_a_graph_that_fits_on_a_napkin(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(
        model(
            [
                helper.make_node("Conv", ["x", "backbone.weight"], ["y"], pads=[1, 1, 1, 1]),
                helper.make_node("Relu", ["y"], ["z"]),
            ],
            [tensor("x", TensorProto.FLOAT, 1, 2, "h", 4)],
            [tensor("z", TensorProto.FLOAT, 1, 3, "h", 4)],
            {"backbone.weight": np.ones((3, 2, 3, 3), np.float32)},
        )
    )
    counts = count_graph(path, {"x": np.ones((1, 2, 5, 4), np.float32)})
    convolution = 4 * (2 * 5 * 4 + 3 * 2 * 9 + 3 * 5 * 4)  # bytes: input, weight, output
    assert counts == {"backbone": Counts(3 * 5 * 4 * 2 * 9, 60, convolution + 4 * 2 * 60, 2)}


def test_default_model_stays_within_its_budget(artifact: Artifact) -> None:
    budget = json.loads(BUDGET.read_text())
    assert budget["long_side"] == artifact.long_side
    counts = {call: asdict(total(parts)) for call, parts in count_all(artifact, artifact.long_side).items()}
    assert set(counts) == set(budget["calls"])
    renew = "python -m benchmarks.hot_path_counts --budget writes a new one; say why in docs/experiments.md"
    for call, allowed in budget["calls"].items():
        for what, most in allowed.items():
            assert counts[call][what] <= most, f"{call}: {counts[call][what]} {what}, budget {most}: {renew}"
            assert counts[call][what] >= 0.95 * most, f"{call}: {what} fell to {counts[call][what]} of {most}: {renew}"


def test_work_grows_linearly_in_people(artifact: Artifact) -> None:
    """What one more person costs is the same for the second and for the tenth."""
    cut = cut_segment_graph(
        artifact.segment_path.read_bytes(), lambda content: OnnxEngine("part", threads=1, content=content)
    )
    one, three, ten = (total(count_segment(cut, people, (40, 64))) for people in (1, 3, 10))
    for what in ("multiply_adds", "operations", "bytes_moved"):
        slope = (getattr(ten, what) - getattr(one, what)) / 9
        assert slope > 0
        assert (getattr(three, what) - getattr(one, what)) / 2 == pytest.approx(slope, rel=0.01)


def test_work_grows_linearly_in_pixels(artifact: Artifact) -> None:
    small, large = (
        total(count_graph(artifact.graph_path("keypoints"), keypoint_feeds(artifact, 512, 512, side)))
        for side in (256, 512)
    )
    assert large.multiply_adds == pytest.approx(4 * small.multiply_adds, rel=0.01)
    assert large.bytes_moved < 4 * small.bytes_moved  # weights are read once
