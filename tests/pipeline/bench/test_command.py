"""The bench command, with the default model on small inputs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import default_artifact
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, prepare_templates, whole_frame_roi
from pipeline.bench import command as bench
from pipeline.bench.measure import standing_people
from pipeline.errors import SettingsError, SourceError
from tests.clips import write_video

pytestmark = pytest.mark.timeout(120)


@given(st.integers(0, 100), st.integers(40, 2000), st.integers(40, 2000))
def test_given_people_stand_in_the_frame(count, height, width) -> None:
    people = standing_people(count, height, width)
    assert people.shape == (count, 17, 3)
    assert (people[..., 0] >= -0.5).all() and (people[..., 0] <= width).all()
    assert (people[..., 1] >= -0.5).all() and (people[..., 1] <= height).all()


def test_given_people_are_fitted_by_a_template() -> None:
    people = standing_people(5, 720, 1280)
    fit = fit_poses(people, prepare_templates(PAPER_TEMPLATES), whole_frame_roi(720, 1280, 64))
    assert (fit.template_index >= 0).all()


def test_figures_of_frames_in_memory(tmp_path, capsys) -> None:
    figures, picture = tmp_path / "new" / "bench.json", tmp_path / "bench.png"
    code = bench.main(
        [
            *("--seconds", "0.5", "--people", "2", "--batch", "1,2", "--long-side", "96", "--engine", "onnx"),
            *("--json", str(figures), "--picture", str(picture)),
        ]
    )
    assert code == 0
    document = json.loads(figures.read_text())
    assert [(case["people"], case["batch"]) for case in document["outcomes"]] == [(2, 1), (2, 2)]
    for outcome in document["outcomes"]:
        assert outcome["people_mean"] == 2.0
        assert outcome["frames"] > 2
        assert outcome["fps"] > 0
        assert outcome["queued_ms"]["p50"] <= outcome["queued_ms"]["p95"] <= outcome["queued_ms"]["p99"]
        assert {"decode", "keypoints", "affine", "segment", "compose", "write"} == set(outcome["stages"])
    assert document["outcomes"][0]["alone_ms"]["p50"] > 0
    assert document["outcomes"][1]["alone_ms"] is None
    (compared,) = document["segment"]
    assert compared["people"] == 2
    assert compared["ratio"] == pytest.approx(compared["one_by_one_ms"] / compared["together_ms"])
    assert document["roofline"]["person_macs"] > 1e8
    drawn = cv2.imread(str(picture))
    assert drawn is not None and drawn.shape[1] == 1280 and len(np.unique(drawn)) > 10
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed and "memory, 2 people, batch 1" in printed


def test_a_video_is_measured_with_its_outputs(tmp_path) -> None:
    video, figures = write_video(tmp_path / "a.mp4", 12), tmp_path / "bench.json"
    arguments = ["--source", str(video), "--seconds", "0.5", "--long-side", "96", "--json", str(figures)]
    assert bench.main(arguments) == 0
    outcome = json.loads(figures.read_text())["outcomes"][0]
    assert outcome["clip"] == "a.mp4"
    assert outcome["people"] is None
    assert outcome["frames"] == 12  # every frame of the file, whatever --seconds says
    assert outcome["stages"]["write"]["p50_ms"] > 0


def test_the_papers_own_measure(tmp_path, capsys) -> None:
    figures = tmp_path / "bench.json"
    arguments = ["--seconds", "0.3", "--people", "3", "--long-side", "96", "--engine", "onnx", "--json", str(figures)]
    assert bench.main([*arguments, "--paper", str(default_artifact())]) == 0
    (measured,) = json.loads(figures.read_text())["paper"]
    assert (measured["people"], measured["batch"], measured["weights"]) == (3, 1, "trained weights")
    assert measured["fps"] == pytest.approx(1e3 / measured["p50"], rel=1.0)
    assert "keypoints given, 3 people" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--people", "0"], "numbers from 1 to 256"),
        (["--people", "two"], "whole numbers with commas"),
        (["--batch", "1,,2"], "whole numbers"),
        (["--seconds", "0"], "from 0.1 to 3600"),
        (["--seconds", "soon"], "a number of seconds"),
        (["--picture", "a.txt"], "expects a name ending in"),
        (["--fast"], "unrecognized"),
    ],
)
def test_bad_flags(arguments, message) -> None:
    with pytest.raises(SettingsError, match=message):
        bench.main(arguments)


def test_a_missing_video(tmp_path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        bench.main(["--source", str(tmp_path / "none.mp4"), "--seconds", "0.2"])
