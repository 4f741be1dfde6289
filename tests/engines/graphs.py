"""Tiny ONNX graphs, built on the fly: same names and types as the real ones, arithmetic that fits on a napkin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Size = int | str | None


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any], constants: dict[str, Any]
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def tensor(name: str, kind: int, *shape: Size) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def add_graph(
    *, kind: int = TensorProto.FLOAT, left: Sequence[Size] = ("N", 3), right: Sequence[Size] = ("N", 3)
) -> bytes:
    """total = left + right"""
    return model(
        [helper.make_node("Add", ["left", "right"], ["total"])],
        [tensor("left", kind, *left), tensor("right", kind, *right)],
        [tensor("total", kind, *left)],
        {},
    )


def keypoints_graph(*, score_kind: int = TensorProto.FLOAT, features_name: str = "features") -> bytes:
    """One person with constant joints; `features` is the image moved to channels first, as floats."""
    f = TensorProto.FLOAT
    score = np.full((1, 1), 0.5, dtype=helper.tensor_dtype_to_np_dtype(score_kind))
    return model(
        [
            helper.make_node("Cast", ["image"], ["as_float"], to=f),
            helper.make_node("Transpose", ["as_float"], [features_name], perm=[0, 3, 1, 2]),
            helper.make_node("Identity", ["score"], ["person_scores"]),
            helper.make_node("Identity", ["keypoints"], ["person_keypoints"]),
            helper.make_node("Identity", ["candidates"], ["joint_candidates"]),
        ],
        [tensor("image", TensorProto.UINT8, "B", "H", "W", 3)],
        [
            tensor("person_scores", score_kind, 1, 1),
            tensor("person_keypoints", f, 1, 1, 17, 3),
            tensor("joint_candidates", f, 1, 17, 2, 4),
            tensor(features_name, f, "B", 3, "H", "W"),
        ],
        {
            "score": score,
            "keypoints": np.zeros((1, 1, 17, 3), np.float32),
            "candidates": np.zeros((1, 17, 2, 4), np.float32),
        },
    )


def features_graph() -> bytes:
    """`features` is the image moved to channels first, as floats."""
    return model(
        [
            helper.make_node("Cast", ["image"], ["as_float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["as_float"], ["features"], perm=[0, 3, 1, 2]),
        ],
        [tensor("image", TensorProto.UINT8, "B", "H", "W", 3)],
        [tensor("features", TensorProto.FLOAT, "B", 3, "H", "W")],
        {},
    )


def segment_graph() -> bytes:
    """Probabilities are 0.5 everywhere, one 4x4 map per person; scores are the mean x of the joints."""
    f, i = TensorProto.FLOAT, TensorProto.INT32
    return model(
        [
            helper.make_node("ReduceMean", ["roi_keypoints", "xyv_axes"], ["mean_xyv"], keepdims=0),
            helper.make_node("Gather", ["mean_xyv", "zero"], ["scores"], axis=1),
            helper.make_node("Shape", ["roi_image"], ["people"]),
            helper.make_node("Concat", ["people", "side"], ["map_shape"], axis=0),
            helper.make_node("Expand", ["half", "map_shape"], ["all_half"]),
            helper.make_node("ReduceMean", ["features"], ["features_mean"], keepdims=0),
            helper.make_node("ReduceMean", ["feature_from_roi"], ["matrix_mean"], keepdims=0),
            helper.make_node("Add", ["features_mean", "matrix_mean"], ["unused"]),
            helper.make_node("Mul", ["unused", "nothing"], ["still_nothing"]),
            helper.make_node("Add", ["all_half", "still_nothing"], ["probabilities"]),
        ],
        [
            tensor("features", f, "B", 3, "h", "w"),
            tensor("feature_from_roi", f, "N", 2, 3),
            tensor("roi_image", i, "N"),
            tensor("roi_keypoints", f, "N", 17, 3),
        ],
        [tensor("probabilities", f, "N", 4, 4), tensor("scores", f, "N")],
        {
            "xyv_axes": np.array([1], np.int64),
            "zero": np.array(0, np.int64),
            "side": np.array([4, 4], np.int64),
            "half": np.array(0.5, np.float32),
            "nothing": np.array(0, np.float32),
        },
    )
