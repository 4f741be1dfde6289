from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import EngineLoadError, default_artifact
from engines.graph_cost import graph_cost
from kernels.neighbours import BODY_POINTS, CHANNELS


def save(path, nodes, inputs, weights):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize(
    ("node", "shape", "weight", "macs"),
    [
        # out 8 channels of 10 x 20, each from 3 x 3 x 5
        (helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), (1, 5, 10, 20), (8, 5, 3, 3), 8 * 200 * 45),
        # depthwise: each from 3 x 3 of its own
        (
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=6),
            *((2, 6, 4, 4), (6, 1, 3, 3), 2 * 6 * 16 * 9),
        ),
        # every input px of 5 channels gives 2 x 2 in 8 channels
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            *((1, 5, 10, 20), (5, 8, 2, 2), 5 * 200 * 8 * 4),
        ),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 7, 11), (11, 13), 3 * 7 * 11 * 13),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (7, 11), (11, 13), 7 * 11 * 13),
    ],
)
def test_multiplications_of_one_node(tmp_path, node, shape, weight, macs) -> None:
    path = save(tmp_path / "g.onnx", [node], {"x": [None] * len(shape)}, {"w": weight})
    cost = graph_cost(path, {"x": shape})
    assert cost.macs == macs
    assert cost.weight_bytes == 4 * np.prod(weight)
    assert cost.tensor_bytes > 4 * np.prod(shape)


def test_the_default_model_grows_with_px_and_people() -> None:
    folder = default_artifact()
    small = graph_cost(folder / "keypoints.onnx", {"image": (1, 192, 384, 3)})
    large = graph_cost(folder / "keypoints.onnx", {"image": (2, 384, 384, 3)})
    assert large.macs == 4 * small.macs  # all of it is convolutions over the image
    assert 0.5e9 < small.macs < 2e9

    def segment(people: int):
        shapes = {"features": (1, 64, 48, 96), "feature_from_roi": (people, 2, 3), "roi_image": (people,)}
        return graph_cost(folder / "segment.onnx", {**shapes, "roi_keypoints": (people, 17, 3)})

    one, two, five = segment(1).macs, segment(2).macs, segment(5).macs
    pair = CHANNELS * len(BODY_POINTS) * 64 * 64  # a neighbour drawn into a window, which our kernel does on CPUs
    assert five - two == pytest.approx(3 * (two - one) + 12 * pair, rel=1e-9)
    assert pair < 0.002 * one


def test_what_cannot_be_counted(tmp_path) -> None:
    folder = default_artifact()
    with pytest.raises(EngineLoadError, match="shapes are needed for"):
        graph_cost(folder / "keypoints.onnx", {"picture": (1, 64, 64, 3)})
    with pytest.raises(EngineLoadError, match="has 4 dimensions"):
        graph_cost(folder / "keypoints.onnx", {"image": (64, 64, 3)})
    (tmp_path / "a.onnx").write_text("no graph")
    with pytest.raises(EngineLoadError, match="expected an ONNX file"):
        graph_cost(tmp_path / "a.onnx", {})
