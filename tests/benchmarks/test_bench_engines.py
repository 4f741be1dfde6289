"""The benchmark of engines end to end on small sizes; an engine that computes something else gets no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_engines
from benchmarks.bench_engines import Contestant, Suite, time_case
from engines import default_artifact, load_artifact
from engines.onnx_engine import OnnxEngine


def test_all_engines_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "engines.json"
    flags = ["--engines=onnx,torch", "--sizes=64x96", "--batch=1,2", "--people=3", "--seconds=0.02", "--threads=1"]
    monkeypatch.setattr(sys, "argv", ["bench_engines", *flags, f"--json={figures}"])
    monkeypatch.setattr(bench_engines, "has_gpu", lambda: False)
    bench_engines.main()
    document = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(figures.read_text()) == document
    ways = ["onnx cpu float32", "torch cpu float32", "torch cpu bfloat16"]
    found = [(row["name"], next(iter(row["timings"])).partition(",")[0]) for row in document["rows"]]
    assert found[:9] == [*(("keypoints", way) for way in ways * 2), *(("segment", way) for way in ways)]
    assert [row["settings"] for row in document["rows"][::3]][:3] == [
        {"size": "64x96", "batch": 1},
        {"size": "64x96", "batch": 2},
        {"size": "64x96", "people": 3},
    ]
    assert all(row["speedup"] > 0 for row in document["rows"] if "onnx" not in next(iter(row["timings"])))
    assert len(document["notes"]["differences"]) == len(document["rows"])


class WrongEngine(OnnxEngine):
    """Its masks are a little too sure."""

    def run(self, feeds: Any) -> Any:
        found = super().run(feeds)
        return {**found, "probabilities": np.clip(found["probabilities"] * 1.2, 0, 1)}


def test_wrong_engine_gets_no_time() -> None:
    artifact = load_artifact(default_artifact())
    image, _ = bench_engines.picture(96, 160)
    keypoints = OnnxEngine(artifact.keypoints_path, threads=1)
    feeds = bench_engines.segment_feeds(artifact, keypoints.run({"image": image[None]}), 2)
    right, wrong = Contestant("onnx", "cpu", "float32"), Contestant("wrong", "cpu", "float32")
    engines = {
        right: OnnxEngine(artifact.segment_path, threads=1),
        wrong: WrongEngine(artifact.segment_path, threads=1),
    }
    suite = Suite()
    time_case(suite, "segment", engines, {"people": 2}, feeds, seconds=0.02)
    assert [list(row.timings) for row in suite.rows] == [["onnx cpu float32, from the host"]]
    ((case, reason),) = suite.left_out.items()
    assert case == "wrong cpu float32, segment people=2"
    assert reason.startswith("probabilities 0.")


def test_engine_that_does_not_open_is_named(tmp_path: Path) -> None:
    artifact = load_artifact(default_artifact())
    broken = tmp_path / "segment.onnx"
    broken.write_bytes(artifact.segment_path.read_bytes()[:999])
    suite = Suite()
    options = {Contestant("torch", "cpu", "float32"): bench_engines.EngineOptions(device="cpu")}
    bench_engines.time_graph(suite, broken, options, [], seconds=0.02, done=lambda: None)
    ((case, reason),) = suite.left_out.items()
    assert case == "torch cpu float32, segment"
    assert "segment.onnx" in reason
