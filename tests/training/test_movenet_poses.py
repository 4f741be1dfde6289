"""Poses of the published network: its rows become COCO results in px of the picture; other networks are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.movenet_poses import ROW_LENGTH, decode_rows, main
from kernels.letterbox import plan_letterbox
from tests.training.drawn_people import annotation, background, drawn_mask, drawn_pose, write_coco

HEIGHT, WIDTH, LONG_SIDE = 96, 128, 64


def row(pose: np.ndarray, score: float) -> np.ndarray:
    """What the network would say about a pose of the picture: shares of the input of 64 x 64 that holds 48 x 64."""
    values = np.zeros(ROW_LENGTH, np.float32)
    values[0 : 3 * 17 : 3] = (pose[:, 1] + 0.5) * 0.5 / 64
    values[1 : 3 * 17 : 3] = (pose[:, 0] + 0.5) * 0.5 / 64
    values[2 : 3 * 17 : 3] = 0.7
    values[-1] = score
    return values


def constant_network(path: Path, rows: np.ndarray, *, kind: int = TensorProto.INT32, channels: int = 3) -> Path:
    """A network that always finds these people."""
    nodes = [
        helper.make_node("Cast", ["input"], ["picture"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["picture"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "zero"], ["nothing"]),
        helper.make_node("Add", ["rows", "nothing"], ["output_0"]),
    ]
    constants = [numpy_helper.from_array(rows[None], "rows"), numpy_helper.from_array(np.float32(0), "zero")]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("input", kind, [1, "height", "width", channels])],
        [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, [1, len(rows), rows.shape[1]])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_rows_become_px_and_repeated_and_weak_people_go() -> None:
    left, right = drawn_pose(5, 2, 80), drawn_pose(45, 2, 80)
    rows = np.stack([row(right, 0.3), row(left, 0.9), row(left + np.float32([0.5, 0.5, 0]), 0.4), row(left, 0.019)])
    keypoints, scores = decode_rows(rows, plan_letterbox(HEIGHT, WIDTH, long_side=LONG_SIDE))
    np.testing.assert_allclose(scores, [0.9, 0.3])
    np.testing.assert_allclose(keypoints[:, :, :2], np.stack([left, right])[..., :2], atol=1e-3)
    np.testing.assert_allclose(keypoints[..., 2], 0.7)
    nobody, none = decode_rows(rows[3:], plan_letterbox(HEIGHT, WIDTH, long_side=LONG_SIDE))
    assert nobody.shape == (0, 17, 3) and none.shape == (0,)


def write_set(folder: Path) -> Path:
    pose = drawn_pose(30, 2, 80)
    return write_coco(folder, {4: background(4)}, [annotation(1, 4, pose, drawn_mask(pose))])


def test_the_command_writes_results_that_evaluate_reads(tmp_path: Path, capsys) -> None:
    from training.average_precision import average_precision
    from training.dataset import CocoFolder
    from training.evaluate import truth_for

    pose = drawn_pose(30, 2, 80)
    model = constant_network(tmp_path / "net.onnx", np.stack([row(pose, 0.8), row(pose, 0.0)]))
    folder = write_set(tmp_path / "set")
    where = ["--annotations", str(folder / "annotations.json"), "--images", str(folder / "images")]
    output = tmp_path / "poses.json"
    flags = ["--model", str(model), *where, "--long-side", str(LONG_SIDE), "--output", str(output)]
    assert main(flags) == 0
    assert "1 pictures, 1 people at long side 64" in capsys.readouterr().out
    (result,) = json.loads(output.read_text())
    assert (result["image_id"], result["score"]) == (4, 0.8)
    np.testing.assert_allclose(np.reshape(result["keypoints"], (17, 3))[:, :2], pose[:, :2], atol=0.01)
    truth, _ = truth_for(CocoFolder(folder / "annotations.json", folder / "images").photos)
    assert average_precision(truth, [result], "keypoints")["AP"] == 1.0


@pytest.mark.parametrize("case", ["float input", "other rows", "no file", "no pictures"])
def test_bad_input_is_one_line_and_code_two(tmp_path: Path, capsys, case: str) -> None:
    rows = np.zeros((6, 30 if case == "other rows" else ROW_LENGTH), np.float32)
    kind = TensorProto.FLOAT if case == "float input" else TensorProto.INT32
    model = constant_network(tmp_path / "net.onnx", rows, kind=kind)
    folder = write_set(tmp_path / "set")
    flags = ["--model", str(tmp_path / "none.onnx" if case == "no file" else model)]
    flags += ["--annotations", str(folder / "annotations.json"), "--output", str(tmp_path / "poses.json")]
    assert main([*flags, "--images", str(folder / ("nowhere" if case == "no pictures" else "images"))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "poses.json").exists()
