"""The benchmarks of speed and accuracy run end to end on small things and count what they say they count."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import accuracy, bench_pipeline
from engines import write_artifact
from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates
from tests.clips import write_video
from tests.engines.graphs import features_graph, segment_graph
from tests.magenta_model import write_magenta_model
from tests.training.drawn_people import write_people


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def test_pipeline_benchmark(tmp_path, monkeypatch, capsys) -> None:
    model = write_magenta_model(tmp_path / "model")
    clip = tmp_path / "clip.mp4"
    write_video(clip, 12)
    arguments = [str(clip), "--model", str(model), "--repeat", "2", "--long-side", "64", "128", "--threads", "1"]
    arguments += ["--skip-still", "--max-frames", "10"]
    monkeypatch.setattr(sys, "argv", ["bench_pipeline", *arguments])
    bench_pipeline.main()
    document = last_json(capsys.readouterr().out)
    totals = [row for row in document["rows"] if row["name"] == "whole run, per frame"]
    assert [row["settings"]["long_side"] for row in totals] == [64, 128, "model"]
    assert [row["settings"].get("skip_still", False) for row in totals] == [False, False, True]
    for row in totals:
        assert row["settings"]["people"] == pytest.approx(1.0)
        assert row["settings"]["fps"] > 0
        assert row["timings"]["pose2seg"]["samples"] == 2
        assert row["timings"]["copy only"]["samples"] == 20
    stages = [row["name"].strip() for row in document["rows"] if row["name"].startswith("  ")]
    assert stages[: len(stages) // 3] == ["decode", "keypoints", "affine", "segment", "compose", "write"]
    assert all(row["timings"]["service"]["samples"] == 10 for row in document["rows"] if "service" in row["timings"])


def test_accuracy_benchmark(tmp_path, monkeypatch, capsys) -> None:
    model = write_magenta_model(tmp_path / "model")
    folder = write_people(tmp_path / "people")
    found = tmp_path / "found.json"
    truth = json.loads((folder / "annotations.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": a["keypoints"]}
        for a in truth["annotations"]
        if np.any(a.get("keypoints") or 0)
    ]
    found.write_text(json.dumps(results))
    where = ["--annotations", str(folder / "annotations.json"), "--images", str(folder / "images")]
    monkeypatch.setattr(sys, "argv", ["accuracy", *where, "--model", str(model), "--poses", f"perfect={found}"])
    accuracy.main()
    rows = {(row["poses"], row["masks"]): row for row in last_json(capsys.readouterr().out)["rows"]}
    assert set(rows) == {
        (poses, masks) for poses in ("annotations", "ours", "perfect") for masks in ("exclusive", "limbs")
    }
    assert rows["annotations", "exclusive"]["keypoints"] is None
    assert rows["perfect", "limbs"]["keypoints"]["AP"] > 0.9
    assert rows["perfect", "limbs"]["mean_iou"] == pytest.approx(rows["annotations", "limbs"]["mean_iou"], abs=0.02)


def test_accuracy_of_a_model_that_finds_nobody(tmp_path, monkeypatch, capsys) -> None:
    manifest = {
        "family": "paper",
        "long_side": 128,
        "input_multiple": 32,
        "feature_from_input": [[0.25, 0, 0], [0, 0.25, 0]],
        "roi_size": 8,
        "templates": prepare_templates(PAPER_TEMPLATES),
        "person_threshold": 0.3,
        "joint_threshold": 0.2,
        "decode": {},
        "trained_on": [],
        "measured": {},
        "provenance": {},
    }
    write_artifact(tmp_path / "model", manifest, {"features": features_graph(), "segment": segment_graph()})
    folder = write_people(tmp_path / "people", pictures=2)
    where = ["--annotations", str(folder / "annotations.json"), "--images", str(folder / "images")]
    monkeypatch.setattr(sys, "argv", ["accuracy", *where, "--model", str(tmp_path / "model"), "--engine", "onnx"])
    accuracy.main()
    rows = last_json(capsys.readouterr().out)["rows"]
    assert [(row["poses"], row["masks"]) for row in rows] == [("annotations", "exclusive"), ("annotations", "limbs")]
    assert rows[0]["people_with_mask"] == 2 and rows[1]["mean_iou"] > 0.5
