"""INT8 graphs: which convolutions are quantised, that it runs, and that TensorRT for RTX builds a plan of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from skimage import data

from engines import default_artifact, load_artifact, open_engine
from training import quantize

ROOT = Path(__file__).resolve().parents[2]
ARTIFACT = load_artifact(default_artifact())
KEYPOINTS = ARTIFACT.graph_path("keypoints")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    photo = data.astronaut()
    for index in range(3):
        cut = np.ascontiguousarray(photo[20 * index : 400 + 20 * index, :: -1 if index % 2 else 1])
        cv2.imwrite(str(folder / f"{index}.png"), cut[..., ::-1])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def quantised(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "keypoints_int8.onnx"
    quantize.quantise(KEYPOINTS, path, list(quantize.network_inputs(frames, long_side=160, multiple=32)))
    return path


def test_frames_are_what_the_pipeline_hands_over(frames):
    images = list(quantize.network_inputs(frames, long_side=160, multiple=32))
    assert len(images) == 3
    assert {image.shape[0] for image in images} == {1}
    assert all(image.dtype == np.uint8 and image.shape[1] % 32 == image.shape[2] % 32 == 0 for image in images)
    assert max(images[0].shape) == 160
    assert images[0].mean(axis=(0, 1, 2))[0] > images[0].mean(axis=(0, 1, 2))[2]  # the suit is orange: RGB, not BGR
    assert len(list(quantize.network_inputs(frames, long_side=160, multiple=32, limit=2))) == 2


def test_what_makes_scores_and_coordinates_is_left_alone(quantised):
    exact, model = onnx.load(KEYPOINTS), onnx.load(quantised)
    last = set(quantize.last_convolutions(exact))
    assert len(last) == 4  # centre, joints, regression, offsets
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            quantises = {made_by.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
            assert quantises == (node.name not in last), node.name
    scales = [
        len(tensor.dims) == 1 and tensor.dims[0] > 1
        for tensor in model.graph.initializer
        if "weight_scale" in tensor.name
    ]
    assert any(scales)  # per channel


def test_zero_points_are_zero(quantised):
    """TensorRT takes symmetric quantisation only."""
    model = onnx.load(quantised)
    zeros = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if "zero_point" in one.name]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_the_graph_runs_and_is_compared(quantised, frames):
    images = list(quantize.network_inputs(frames, long_side=160, multiple=32))
    result = open_engine(quantised, engine="onnx").run({"image": images[0]})
    assert result["features"].shape[1] == 48
    moved = quantize.differences(KEYPOINTS, quantised, images, threshold=0.05)
    assert moved["people"] >= 1
    assert moved["score_max"] > 0
    assert quantize.differences(KEYPOINTS, KEYPOINTS, images, threshold=0.05)["px_max"] == 0


def test_tensorrt_builds_an_int8_plan(quantised):
    pytest.importorskip("tensorrt_rtx_libs")
    wish = {"graph": str(quantised), "options": {"precision": "int8"}}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.tensorrt_build_report", json.dumps(wish)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["precision"] == "int8"
    assert report["layers"]["CONVOLUTION"] == 82
    assert report["layers"]["QUANTIZE"] > 78  # activations and weights of all but the last
    assert report["profile"]["image"][2] == [8, 512, 512, 3]


def test_command(frames, tmp_path, capsys):
    output = tmp_path / "int8.onnx"
    command = ["--artifact", str(default_artifact()), "--frames", str(frames), "--output", str(output), "--limit", "1"]
    assert quantize.main(command) == 0
    assert output.is_file()
    assert "calibrated on 1 pictures" in capsys.readouterr().out
    assert quantize.main([*command[:2], "--frames", str(tmp_path / "none"), *command[4:]]) == 2
    assert "found none" in capsys.readouterr().err
