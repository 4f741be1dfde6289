"""Half graphs: what becomes half and what does not, and how far the shipped model's results move."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from skimage import data

from engines import EngineLoadError, default_artifact, load_artifact
from engines.half_precision import fold_batch_normalisation, to_half
from kernels.letterbox import letterbox, plan_letterbox
from tests.engines.graphs import tensor
from tests.engines.half_emulation import in_float32_with_rounding

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

#: Half has 11 bits. On three photographs: up to 2.9e-3, 0.18 px and 6.3e-3; the borders are about twice that.
LARGEST = {"score": 6e-3, "px": 0.4, "probability": 0.015}


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    artifact = load_artifact(default_artifact())
    assert artifact.keypoints_path is not None
    return {"keypoints": onnx.load(artifact.keypoints_path), "segment": onnx.load(artifact.segment_path)}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor; the checker has no rule for our own node, so it gets the type of its features."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "AffineAlign":
            node.domain, node.op_type = "", "Identity"
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=False)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        constant.name: constant.data_type for constant in inferred.graph.initializer
    }


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("name", ["keypoints", "segment"])
def test_all_convolutions_are_half_and_everything_that_decides_is_not(models, name):
    model = to_half(models[name])
    types = types_of(model)
    for node in model.graph.node:
        inputs = {types[used] for used in node.input if used and used in types}
        if node.op_type == "Conv":
            assert inputs == {HALF}, node.name
        elif node.op_type in {"Sigmoid", "TopK", "GatherElements", "Exp", "Sqrt", "Round", "Floor", "Where", "Div"}:
            assert HALF not in inputs, node.name
        elif node.op_type == "AffineAlign":
            assert [types[used] for used in node.input] == [HALF, FLOAT, TensorProto.INT32]
    sides = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert sides.pop("features") == HALF
    assert HALF not in sides.values()
    assert sides.get("image", TensorProto.UINT8) == TensorProto.UINT8


def test_features_stay_float32_on_request(models):
    for model in models.values():
        half = to_half(model, half_features=False)
        assert {v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)} <= {
            FLOAT,
            TensorProto.UINT8,
            TensorProto.INT32,
        }


def test_the_given_model_is_left_alone(models):
    before = models["segment"].SerializeToString(deterministic=True)
    to_half(models["segment"])
    assert models["segment"].SerializeToString(deterministic=True) == before


def test_half_file_is_about_half(models):
    assert to_half(models["keypoints"]).ByteSize() < 0.55 * models["keypoints"].ByteSize()


def test_results_of_the_shipped_model_on_a_photograph(models):
    """The whole chain, features in half in between; errors are printed, so that a document can quote them."""
    photo = np.ascontiguousarray(data.astronaut()[:288])
    plan = plan_letterbox(*photo.shape[:2], long_side=512, multiple=32)
    image = letterbox(photo, plan)[None]
    half = {name: in_float32_with_rounding(to_half(model)) for name, model in models.items()}
    exact, rounded = run(models["keypoints"], {"image": image}), run(half["keypoints"], {"image": image})
    people = exact["person_scores"][0] > 0.25
    assert people.any()
    score = np.abs(exact["person_scores"] - rounded["person_scores"])[0][people].max()
    px = np.abs(exact["person_keypoints"] - rounded["person_keypoints"])[0][people][..., :2].max()

    joints = exact["person_keypoints"][0][people]
    low, high = joints[..., :2].min(1), joints[..., :2].max(1)
    scale = (high - low).max(1) / 64  # input px per ROI px
    matrix = np.zeros((len(joints), 2, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale / 4
    matrix[:, :, 2] = (low + 0.5) / 4 - 0.5
    in_roi = np.concatenate((((joints[..., :2] - low[:, None]) / scale[:, None, None]), joints[..., 2:] * 0 + 2), -1)
    rest = {
        "feature_from_roi": matrix,
        "roi_image": np.zeros(len(joints), np.int32),
        "roi_keypoints": in_roi.astype(np.float32),
    }
    masks = run(models["segment"], {"features": exact["features"], **rest})
    masks_half = run(half["segment"], {"features": rounded["features"], **rest})
    probability = np.abs(masks["probabilities"] - masks_half["probabilities"]).max()
    mask_score = np.abs(masks["scores"] - masks_half["scores"]).max()
    flips = np.mean((masks["probabilities"] > 0.5) != (masks_half["probabilities"] > 0.5))
    print(
        f"half against float32, {people.sum()} people: person score {score:.2g}, joints {px:.2g} px, "
        f"features {np.abs(exact['features'] - rounded['features']).max():.2g}, probability {probability:.2g}, "
        f"mask score {mask_score:.2g}, mask px that flip {flips:.2g}"
    )
    assert 1e-6 < score < LARGEST["score"]  # zero would mean that nothing was rounded
    assert 1e-4 < px < LARGEST["px"]
    assert 1e-6 < probability < LARGEST["probability"]
    assert mask_score < LARGEST["probability"]
    assert flips < 2e-3


def conv_graph(weight: np.ndarray, *after: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y" if after else "z"]), *after],
        "test",
        [tensor("x", FLOAT, 1, 2, "h", "w")],
        [tensor("z", FLOAT, 1, 2, "h", "w")],
        [numpy_helper.from_array(v, k) for k, v in {"w": weight, **(constants or {})}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_weight_beyond_half_is_an_error():
    weight = np.full((2, 2, 1, 1), 7e4, np.float32)
    with pytest.raises(EngineLoadError, match=r"weight 'w' reaches 70000, half precision ends at 65504: use --prec"):
        to_half(conv_graph(weight))


def test_normalisation_becomes_a_factor_and_a_summand():
    rng = np.random.default_rng(0)
    parts = {"a": rng.normal(size=2), "b": rng.normal(size=2), "m": rng.normal(size=2), "v": rng.uniform(1e-3, 9, 2)}
    constants = {name: value.astype(np.float32) for name, value in parts.items()}
    norm = helper.make_node("BatchNormalization", ["y", "a", "b", "m", "v"], ["z"], epsilon=1e-5)
    model = conv_graph(rng.normal(size=(2, 2, 1, 1)).astype(np.float32), norm, constants=constants)
    x = rng.normal(size=(1, 2, 3, 5)).astype(np.float32)
    expected = run(model, {"x": x})["z"]
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    fold_batch_normalisation(folded)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Mul", "Add"]
    np.testing.assert_allclose(run(folded, {"x": x})["z"], expected, rtol=1e-5, atol=1e-5)
    half = run(in_float32_with_rounding(to_half(model)), {"x": x})["z"]
    np.testing.assert_allclose(half, expected, rtol=4e-3, atol=4e-3)


def test_emulation_rounds_as_half_does():
    """The stand-in for a GPU: one product, against NumPy's own half."""
    weight = np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
    x = np.random.default_rng(0).normal(size=(1, 2, 40, 50)).astype(np.float32) * 100
    rounded = run(in_float32_with_rounding(to_half(conv_graph(weight))), {"x": x})["z"]
    np.testing.assert_array_equal(rounded, x.astype(np.float16).astype(np.float32))
