"""A model folder of real ONNX graphs that see one magenta person: commands are tested with it, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines import write_artifact
from kernels.coordinates import half_pixel_scale
from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates
from tests.fakes import STANDING, STRIDE

ROI_SIZE = 64


def write_magenta_model(folder: Path, *, long_side: int = 128) -> Path:
    """Write the folder; it is a normal artifact with a manifest and hashes."""
    write_artifact(
        folder,
        {
            "family": "live",
            "long_side": long_side,
            "input_multiple": 32,
            "feature_from_input": half_pixel_scale(1 / STRIDE, 1 / STRIDE),
            "roi_size": ROI_SIZE,
            "templates": prepare_templates(PAPER_TEMPLATES),
            "person_threshold": 0.3,
            "joint_threshold": 0.2,
            "decode": {},
            "trained_on": [],
            "measured": {},
            "provenance": {},
        },
        {"keypoints": keypoints_graph(), "segment": segment_graph()},
    )
    return folder


def keypoints_graph() -> bytes:
    """The box of all magenta px holds one standing person; the feature channel is how magenta a cell is."""
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["rgb"], to=TensorProto.FLOAT),
        node("Split", ["rgb"], ["red", "green", "blue"], axis=3, num_outputs=3),
        node("Greater", ["red", "high"], ["red_high"]),
        node("Greater", ["blue", "high"], ["blue_high"]),
        node("Less", ["green", "low"], ["green_low"]),
        node("And", ["red_high", "blue_high"], ["both_high"]),
        node("And", ["both_high", "green_low"], ["is_magenta"]),
        node("Cast", ["is_magenta"], ["magenta"], to=TensorProto.FLOAT),
        node("Transpose", ["magenta"], ["map"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["map"], ["features"], kernel_shape=[STRIDE, STRIDE], strides=[STRIDE, STRIDE]),
        node("ReduceMax", ["map", "rows"], ["columns_hit"], keepdims=0),  # [1, W]
        node("ReduceMax", ["map", "columns"], ["rows_hit"], keepdims=0),  # [1, H]
        node("ReduceMax", ["map", "all_axes"], ["any_hit"], keepdims=0),
        *(
            node("ArgMax", [hit], [name], axis=1, keepdims=1, select_last_index=last)
            for hit, name, last in (
                ("columns_hit", "x0i", 0),
                ("columns_hit", "x1i", 1),
                ("rows_hit", "y0i", 0),
                ("rows_hit", "y1i", 1),
            )
        ),
        *(node("Cast", [f"{name}i"], [name], to=TensorProto.FLOAT) for name in ("x0", "x1", "y0", "y1")),
        node("Sub", ["x1", "x0"], ["last_x"]),
        node("Sub", ["y1", "y0"], ["last_y"]),
        node("Add", ["last_x", "one"], ["width"]),
        node("Add", ["last_y", "one"], ["height"]),
        node("Mul", ["standing_x", "width"], ["from_left"]),
        node("Mul", ["standing_y", "height"], ["from_top"]),
        node("Add", ["from_left", "x0"], ["edge_x"]),
        node("Add", ["from_top", "y0"], ["edge_y"]),
        node("Sub", ["edge_x", "half"], ["x"]),
        node("Sub", ["edge_y", "half"], ["y"]),
        node("Concat", ["x", "y", "sure"], ["joints"], axis=1),  # [17, 3]
        node("Unsqueeze", ["joints", "front"], ["person_keypoints"]),
        node("Concat", ["joints", "no_group"], ["grouped"], axis=1),
        node("Unsqueeze", ["grouped", "candidate_axes"], ["joint_candidates"]),
        node("Mul", ["any_hit", "person_score"], ["score"]),
        node("Unsqueeze", ["score", "first_axis"], ["person_scores"]),
    ]
    constants = {
        "high": np.float32(150),
        "low": np.float32(110),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "rows": np.array([1, 2], np.int64),
        "columns": np.array([1, 3], np.int64),
        "all_axes": np.array([1, 2, 3], np.int64),
        "standing_x": STANDING[:, :1],
        "standing_y": STANDING[:, 1:],
        "sure": np.full((17, 1), 0.9, np.float32),
        "no_group": np.zeros((17, 1), np.float32),
        "front": np.array([0, 1], np.int64),
        "candidate_axes": np.array([0, 2], np.int64),
        "person_score": np.float32(0.9),
        "first_axis": np.array([1], np.int64),
    }
    return _model(
        nodes,
        constants,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", "H", "W", 3])],
        {
            "person_scores": ["B", 1],
            "person_keypoints": [1, 1, 17, 3],
            "joint_candidates": [1, 17, 1, 4],
            "features": ["B", 1, "h", "w"],
        },
    )


def segment_graph() -> bytes:
    """The feature channel, seen through each window."""
    node = helper.make_node
    v, u = np.mgrid[:ROI_SIZE, :ROI_SIZE].astype(np.float32)
    constants = {
        "grid": np.stack((u.ravel(), v.ravel(), np.ones(ROI_SIZE**2, np.float32))),
        "window_shape": np.array([0, ROI_SIZE, ROI_SIZE, 2], np.int64),
        "width_height": np.array([3, 2], np.int64),
        "two": np.float32(2),
        "one": np.float32(1),
        "channel": np.array([1], np.int64),
        "both": np.array([1, 2], np.int64),
        "joint_axes": np.array([1, 2], np.int64),
        "nothing": np.float32(0),
    }
    nodes = [
        node("MatMul", ["feature_from_roi", "grid"], ["xy_rows"]),
        node("Transpose", ["xy_rows"], ["xy_flat"], perm=[0, 2, 1]),
        node("Reshape", ["xy_flat", "window_shape"], ["xy"]),
        node("Shape", ["features"], ["shape"]),
        node("Gather", ["shape", "width_height"], ["sides_i"], axis=0),
        node("Cast", ["sides_i"], ["sides"], to=TensorProto.FLOAT),
        node("Mul", ["xy", "two"], ["xy2"]),
        node("Add", ["xy2", "one"], ["xy21"]),
        node("Div", ["xy21", "sides"], ["shares"]),
        node("Sub", ["shares", "one"], ["places"]),
        node("Gather", ["features", "roi_image"], ["maps"], axis=0),
        node("GridSample", ["maps", "places"], ["sampled"], mode="linear", padding_mode="zeros", align_corners=0),
        node("Squeeze", ["sampled", "channel"], ["probabilities"]),
        node("ReduceMax", ["probabilities", "both"], ["best"], keepdims=0),
        node("ReduceSum", ["roi_keypoints", "joint_axes"], ["joint_sum"], keepdims=0),
        node("Mul", ["joint_sum", "nothing"], ["joint_nothing"]),  # every input of the real graph is an input here
        node("Add", ["best", "joint_nothing"], ["scores"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("features", TensorProto.FLOAT, ["B", 1, "h", "w"]),
        value("feature_from_roi", TensorProto.FLOAT, ["N", 2, 3]),
        value("roi_image", TensorProto.INT32, ["N"]),
        value("roi_keypoints", TensorProto.FLOAT, ["N", 17, 3]),
    ]
    return _model(nodes, constants, inputs, {"probabilities": ["N", ROI_SIZE, ROI_SIZE], "scores": ["N"]})


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], inputs: list[Any], outputs: dict[str, list[int | str]]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "magenta",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content
