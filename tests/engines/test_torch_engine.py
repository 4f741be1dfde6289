"""The torch engine on the CPU: the default model on real pictures as ONNX Runtime computes it, half precision, the
rules for CUDA graphs with a recorder that replays by hand, and every wrong file or call answered in plain words.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("skimage", reason="the pictures are frames of the demo clip: extra 'demo'")

from engines import Artifact, DeviceEngine, default_artifact, load_artifact
from engines.engine import EngineLoadError, EngineOptions, EngineOutOfMemory, EngineRunError, TensorSpec
from engines.onnx_engine import OnnxEngine
from engines.torch_cuda_graphs import MAX_GRAPHS, CudaRecorder, GraphCache, buckets, ieee_float32
from engines.torch_engine import TorchEngine
from engines.torch_graph import read_graph
from engines.torch_program import PreparedGraph, compile_program
from engines.torch_skeleton_fusion import with_fused_skeleton
from tests.engines.graphs import add_graph, keypoints_graph, model, segment_graph, tensor
from tests.engines.recorder_by_hand import ByHand
from tests.engines.torch_feeds import keypoint_differences, people, pictures
from tests.tolerances import TORCH_NETWORK, TORCH_POSITION_PX

ON_CPU = EngineOptions(device="cpu", threads=1)
Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(**{"device": "cpu", "threads": 1, **changes})


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(default_artifact())


@pytest.fixture(scope="module")
def onnx_keypoints(artifact: Artifact) -> OnnxEngine:
    return OnnxEngine(artifact.keypoints_path, threads=1)


@pytest.fixture(scope="module")
def onnx_segment(artifact: Artifact) -> OnnxEngine:
    return OnnxEngine(artifact.segment_path, threads=1)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 288, 512), (2, 192, 320), (5, 96, 160), (1, 512, 288)])
def test_keypoints_as_onnx_runtime(
    artifact: Artifact, onnx_keypoints: OnnxEngine, batch: int, height: int, width: int
) -> None:
    image = pictures(batch, height, width)
    expected = onnx_keypoints.run({"image": image})
    found = TorchEngine(artifact.keypoints_path, ON_CPU).run({"image": image})
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in expected.items()
    }
    assert expected["person_scores"].max() > 0.25, "the picture shows nobody: nothing was compared"
    np.testing.assert_allclose(found["features"], expected["features"], **TORCH_NETWORK)
    differences = keypoint_differences(found, expected, above=0.05)
    assert differences.unmatched == 0
    assert differences.scores < TORCH_NETWORK["atol"]
    assert differences.probabilities < TORCH_NETWORK["atol"]
    assert differences.positions_px.max() < TORCH_POSITION_PX


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 2), (2, 7), (3, 33)])
def test_segment_as_onnx_runtime(
    artifact: Artifact, onnx_keypoints: OnnxEngine, onnx_segment: OnnxEngine, batch: int, count: int
) -> None:
    feeds = people(onnx_keypoints.run({"image": pictures(batch, 192, 320)}), artifact, count)
    expected = onnx_segment.run(feeds)
    found = TorchEngine(artifact.segment_path, ON_CPU).run(feeds)
    assert (expected["probabilities"] > 0.5).mean() > 0.02, "nobody in the windows: nothing was compared"
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], **TORCH_NETWORK)


@dataclass(frozen=True)
class Bounds:
    """Of half precision on these pictures. Eight in ten joints are as near as `position_px`; a cell is 4 px."""

    score: float
    position_px: float
    mask_share: float
    probability: float


@pytest.mark.parametrize(
    ("precision", "bounds"),
    [("float16", Bounds(0.01, 0.1, 0.001, 0.03)), ("bfloat16", Bounds(0.05, 1.5, 0.01, 0.3))],
)
def test_half_precision_stays_close(
    artifact: Artifact, onnx_keypoints: OnnxEngine, onnx_segment: OnnxEngine, precision: str, bounds: Bounds
) -> None:
    image = pictures(2, 192, 320)
    expected = onnx_keypoints.run({"image": image})
    found = TorchEngine(artifact.keypoints_path, options(precision=precision)).run({"image": image})
    assert found["features"].dtype == (np.float16 if precision == "float16" else np.float32)
    differences = keypoint_differences(found, expected, above=0.2)
    feeds = people(expected, artifact, 4)
    masks = onnx_segment.run(feeds)
    feeds["features"] = found["features"]
    half_masks = TorchEngine(artifact.segment_path, options(precision=precision)).run(feeds)
    difference = np.abs(half_masks["probabilities"] - masks["probabilities"])
    changed = float(((half_masks["probabilities"] > 0.5) != (masks["probabilities"] > 0.5)).mean())
    near, far = np.quantile(differences.positions_px, (0.8, 1.0))
    print(
        f"{precision}: scores {differences.scores:.4f}, joints {near:.3f} px, at most {far:.2f} px, "
        f"{differences.unmatched} of {len(differences.positions_px)} lost; "
        f"probabilities {difference.max():.4f}, {changed:.5f} of the px change sides"
    )
    assert len(differences.positions_px) > 30
    assert differences.unmatched <= 1
    assert differences.scores < bounds.score
    assert near < bounds.position_px
    assert changed < bounds.mask_share
    assert difference.max() < bounds.probability


def test_only_features_change_their_type(artifact: Artifact) -> None:
    for path in (artifact.keypoints_path, artifact.segment_path):
        whole, half, brain = (TorchEngine(path, options(precision=p)) for p in ("float32", "float16", "bfloat16"))
        assert brain.inputs == whole.inputs
        assert brain.outputs == whole.outputs
        changed = [
            (a.name, str(b.dtype))
            for a, b in zip((*whole.inputs, *whole.outputs), (*half.inputs, *half.outputs), strict=True)
            if a != b
        ]
        assert changed == [("features", "float16")]


def test_same_declared_tensors_as_onnx_runtime(
    artifact: Artifact, onnx_keypoints: OnnxEngine, onnx_segment: OnnxEngine
) -> None:
    for path, other in ((artifact.keypoints_path, onnx_keypoints), (artifact.segment_path, onnx_segment)):
        engine = TorchEngine(path, ON_CPU)
        assert (engine.inputs, engine.outputs) == (other.inputs, other.outputs)


def test_is_a_device_engine(artifact: Artifact) -> None:
    engine = TorchEngine(artifact.segment_path, options(max_batch=3, max_people=20))
    assert isinstance(engine, DeviceEngine)
    assert engine.device == "cpu"
    assert engine.limits == {"B": 3, "N": 20}
    assert TorchEngine(artifact.keypoints_path, options(max_batch=3)).limits == {"B": 3}


@pytest.mark.parametrize("picture_first", [True, False], ids=["strided", "contiguous"])
def test_device_tensors_go_from_graph_to_graph(artifact: Artifact, picture_first: bool) -> None:
    """As the pipeline does it: features stay where they are, channels-last as they come."""
    image = pictures(2, 96, 160)
    keypoints, segment = (TorchEngine(path, ON_CPU) for path in (artifact.keypoints_path, artifact.segment_path))
    found = keypoints.run_on_device({"image": torch.from_numpy(image)})
    arrays = {name: value.numpy() for name, value in found.items()}
    feeds = people(arrays, artifact, 3)
    expected = segment.run(feeds)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    tensors["features"] = found["features"] if picture_first else found["features"].contiguous()
    result = segment.run_on_device(tensors)
    for name, array in expected.items():
        np.testing.assert_allclose(result[name].numpy(), array, **TORCH_NETWORK)


# --- what the optimisation does ---------------------------------------------------------------------------------------


def step_labels(path: Path, shapes: dict[str, Sequence[int]], half: torch.dtype | None = None) -> list[str]:
    prepared = PreparedGraph(with_fused_skeleton(read_graph(path)), torch.device("cpu"), half)
    return [step.label.split()[0] for step in compile_program(prepared, shapes).steps]


def test_no_shape_arithmetic_is_left(artifact: Artifact) -> None:
    labels = step_labels(artifact.keypoints_path, {"image": (1, 96, 160, 3)})
    assert not {"Shape", "Identity", "Constant"} & set(labels)
    assert "cast" not in labels
    assert len(labels) < 260


def test_each_type_is_changed_where_it_must_be(artifact: Artifact) -> None:
    """Into half before the first convolution, out of it behind the heads: few casts, and none forth and back."""
    labels = step_labels(artifact.keypoints_path, {"image": (1, 96, 160, 3)}, torch.float16)
    assert labels.count("cast") <= 6


def test_skeleton_becomes_one_call(artifact: Artifact) -> None:
    labels = step_labels(artifact.segment_path, segment_shapes(1, 2))
    assert labels.count("pose2seg::AlignWithSkeleton") == 1
    assert "pose2seg::AffineAlign" not in labels
    assert labels.count("Exp") == 2  # of the neighbours, along x and y
    assert len(labels) < 260


def test_skeleton_that_differs_is_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    """Another drawing with the same tensors and shapes - joints twice as wide - stays what the file says."""
    graph = onnx.load(artifact.segment_path)
    for initializer in graph.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.size == 1 and array == 18.0:
            initializer.CopyFrom(numpy_helper.from_array(np.float32(36.0).reshape(array.shape), initializer.name))
    path = tmp_path / "other.onnx"
    onnx.save(graph, str(path))
    rng = np.random.default_rng(0)
    feeds = {
        "features": rng.normal(size=(1, 48, 24, 40)).astype(np.float32),
        "feature_from_roi": np.array([[[0.5, 0, 3], [0, 0.5, 1]]], np.float32),
        "roi_image": np.zeros(1, np.int32),
        "roi_keypoints": np.append(rng.uniform(0, 64, (1, 17, 2)), np.full((1, 17, 1), 2), 2).astype(np.float32),
    }
    labels = step_labels(path, {name: array.shape for name, array in feeds.items()})
    assert "pose2seg::AffineAlign" in labels
    found, expected = TorchEngine(path, ON_CPU).run(feeds), OnnxEngine(path, threads=1).run(feeds)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], **TORCH_NETWORK)


def quantized(path: Path) -> None:
    """Weights and activations of two convolutions through eight bits, as a quantiser writes it (QDQ)."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 127, (6, 3, 3, 3), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bq", "bs"], ["b"], axis=0),
        helper.make_node("Conv", ["xd", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "rs", "xz"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "rs", "xz"], ["rd"]),
        helper.make_node("Conv", ["rd", "v"], ["y"]),
    ]
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(0),
        "wq": weight,
        "ws": rng.uniform(0.005, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "bq": rng.integers(-999, 999, 6, np.int32),
        "bs": np.full(6, 1e-3, np.float32),
        "rs": np.float32(0.05),
        "v": rng.normal(size=(2, 6, 1, 1)).astype(np.float32),
    }
    f = TensorProto.FLOAT
    path.write_bytes(model(nodes, [tensor("x", f, "B", 3, "H", "W")], [tensor("y", f, "B", 2, "H", "W")], constants))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 0.05)])
def test_eight_bit_graph(tmp_path: Path, precision: str, tolerance: float) -> None:
    path = tmp_path / "quantized.onnx"
    quantized(path)
    feeds = {"x": np.random.default_rng(1).uniform(0, 5, (2, 3, 8, 9)).astype(np.float32)}
    expected = OnnxEngine(path, threads=1).run(feeds)["y"]
    found = TorchEngine(path, options(precision=precision)).run(feeds)["y"]
    # A value at the border of two levels may take the other one: one step of 0.05 times a weight.
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.95) < tolerance
    assert difference.max() < 0.3


def test_eight_bits_are_not_promised(artifact: Artifact) -> None:
    with pytest.raises(EngineLoadError, match="choose --engine tensorrt or openvino"):
        TorchEngine(artifact.segment_path, options(precision="int8"))


def test_results_are_the_callers_own(tmp_path: Path) -> None:
    """Outputs that are an input, a constant, the same tensor twice, or an expanded view are copied."""
    f = TensorProto.FLOAT
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["c"], ["constant"]),
        helper.make_node("Reshape", ["x", "flat"], ["view"]),
        helper.make_node("Relu", ["x"], ["once"]),
        helper.make_node("Identity", ["once"], ["twice"]),
        helper.make_node("Expand", ["once", "wide"], ["expanded"]),
    ]
    outputs = [tensor(name, f, None, None) for name in ("same", "once", "twice")]
    outputs += [tensor("view", f, None), tensor("constant", f, 2), tensor("expanded", f, 3, None, None)]
    constants = {"c": np.ones(2, np.float32), "flat": np.array([-1]), "wide": np.array([3, 1, 1])}
    path = tmp_path / "own.onnx"
    path.write_bytes(model(nodes, [tensor("x", f, "A", "C")], outputs, constants))
    engine = TorchEngine(path, ON_CPU)
    x = torch.ones(2, 3)
    for _ in range(2):
        results = engine.run_on_device({"x": x})
        for result in results.values():
            before = {name: value.clone() for name, value in results.items() if value is not result}
            result.mul_(7)
            assert all(torch.equal(results[name], value) for name, value in before.items())
        assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(results["expanded"], torch.full((3, 2, 3), 7.0))


def test_strided_and_read_only_inputs_give_the_same_result(tmp_path: Path) -> None:
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    wide = np.arange(30, dtype=np.float32).reshape(5, 6)
    strided = wide[::-1, ::2]
    strided.setflags(write=False)
    result = TorchEngine(path, ON_CPU).run({"left": strided, "right": strided})
    np.testing.assert_array_equal(result["total"], 2 * strided)


@pytest.mark.parametrize("content", [keypoints_graph(), segment_graph()], ids=["keypoints", "segment"])
def test_other_graphs_with_the_same_tensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    other = OnnxEngine(path, threads=1)
    sizes = {"N": 3, "B": 2}
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.integers(0, 9, [sizes.get(s, 17) if isinstance(s, str) else s for s in spec.shape]).astype(
            spec.dtype
        )
        for spec in other.inputs
    }
    if "feature_from_roi" in feeds:  # the graph adds means of both, so their last sizes must agree
        feeds["features"] = feeds["features"][:, :, :2, :3]
    expected, found = other.run(feeds), TorchEngine(path, ON_CPU).run(feeds)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], **TORCH_NETWORK)


def test_least_used_programs_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.torch_engine.MAX_PROGRAMS", 2)
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    engine = TorchEngine(path, ON_CPU)
    for n in (1, 2, 1, 3):
        engine.run({"left": np.ones((n, 3), np.float32), "right": np.ones((n, 3), np.float32)})
    assert [shapes[0][0] for _, shapes in engine._programs] == [1, 3]


# --- CUDA graphs, by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "expected"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (32, (1, 2, 4, 8, 16, 32)), (33, None)]
)
def test_buckets_cover_every_number(largest: int, expected: tuple[int, ...] | None) -> None:
    sizes = buckets(largest)
    assert expected is None or sizes == expected
    for n in range(1, largest + 1):
        assert n <= min(size for size in sizes if size >= n) < 2 * n or n == 1
    assert sizes[-1] == largest


def segment_tensors(artifact: Artifact, found: Feeds, count: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in people(found, artifact, count).items()}


def test_recorded_calls_give_the_same(artifact: Artifact, onnx_keypoints: OnnxEngine) -> None:
    """Numbers of people go up and down through the buckets, so that padded rows hold people of earlier calls."""
    recorder = ByHand()
    engine = TorchEngine(artifact.segment_path, options(max_people=8), recorder=recorder)
    plain = TorchEngine(artifact.segment_path, ON_CPU)
    found = onnx_keypoints.run({"image": pictures(2, 96, 160)})
    for count in (3, 4, 3, 1, 1, 8, 7, 3, 9):
        feeds = segment_tensors(artifact, found, count)
        expected, results = plain.run_on_device(feeds), engine.run_on_device(feeds)
        for name, value in expected.items():
            assert results[name].shape == value.shape
            torch.testing.assert_close(results[name], value, **TORCH_NETWORK)
    assert engine._graphs is not None
    assert [key[1][0] for key in engine._graphs.recorded] == [1, 8, 4]
    once = ["capture", "begin", "replay", "end"]
    # 3 eager; 4 records their bucket; 3; 1 eager; 1 records; 8 eager; 7 records; 3; 9 is above the limit
    assert recorder.log == [*once, *once[1:], *once, *once, *once[1:]]


def test_results_of_a_replay_are_not_written_again(artifact: Artifact) -> None:
    engine = TorchEngine(artifact.keypoints_path, ON_CPU, recorder=ByHand())
    pair = pictures(2, 96, 160)
    results = [engine.run_on_device({"image": torch.from_numpy(image[None])}) for image in (*pair, *pair)]
    for first, second in ((0, 2), (1, 3)):
        for name, value in results[first].items():
            torch.testing.assert_close(results[second][name], value, **TORCH_NETWORK)
    assert not torch.equal(results[2]["features"], results[3]["features"])


def test_one_graph_for_each_picture_size_and_batch(artifact: Artifact) -> None:
    recorder = ByHand()
    engine = TorchEngine(artifact.keypoints_path, options(max_batch=2, long_side=160), recorder=recorder)
    for batch, height, width in ((1, 96, 160), (1, 96, 160), (2, 96, 160), (2, 96, 160), (1, 96, 160)):
        engine.run({"image": np.zeros((batch, height, width, 3), np.uint8)})
    assert recorder.log.count("capture") == 2
    for batch, height, width in ((3, 96, 160), (1, 192, 160)):  # above the limits: never recorded
        for _ in range(3):
            engine.run({"image": np.zeros((batch, height, width, 3), np.uint8)})
    assert recorder.log.count("capture") == 2


def segment_shapes(batch: int, count: int) -> dict[str, tuple[int, ...]]:
    return {
        "features": (batch, 48, 24, 40),
        "feature_from_roi": (count, 2, 3),
        "roi_image": (count,),
        "roi_keypoints": (count, 17, 3),
    }


def test_prepare_records_at_once(artifact: Artifact) -> None:
    recorder = ByHand()
    engine = TorchEngine(artifact.segment_path, ON_CPU, recorder=recorder)
    engine.prepare(segment_shapes(1, 5))
    assert recorder.log == ["capture", "begin", "replay", "end"]
    engine.prepare(segment_shapes(1, 8))
    assert recorder.log.count("capture") == 1
    with pytest.raises(EngineRunError, match=r"missing \['roi_image', 'roi_keypoints'\]"):
        engine.prepare(dict(list(segment_shapes(1, 5).items())[:2]))


def add_engine(tmp_path: Path, recorder: ByHand, **changes: Any) -> TorchEngine:
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    return TorchEngine(path, options(**changes), recorder=recorder)


def add(engine: TorchEngine, n: int) -> Array:
    row = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    total = engine.run({"left": row, "right": row})["total"]
    np.testing.assert_array_equal(total, 2 * row)
    return total


def test_memory_of_recorded_inputs_is_laid_out_as_it_is_read(artifact: Artifact) -> None:
    for path, shapes, name, layout in (
        (artifact.keypoints_path, {"image": (2, 96, 160, 3)}, "image", torch.contiguous_format),
        (artifact.segment_path, segment_shapes(2, 3), "features", torch.channels_last),
    ):
        engine = TorchEngine(path, ON_CPU, recorder=ByHand())
        engine.prepare(shapes)
        assert engine._graphs is not None
        ((recorded),) = engine._graphs._graphs.values()
        position = [spec.name for spec in engine.inputs].index(name)
        assert recorded.inputs[position].is_contiguous(memory_format=layout)


class FakeCuda:
    """`torch.cuda` as far as `CudaRecorder` uses it: writes down what happens on which stream."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stack = ["main"]

    def Stream(self, device: torch.device) -> Any:  # noqa: N802  torch's name
        return self.stream_named("side")

    def stream_named(self, name: str) -> Any:
        def waits(what: str) -> Callable[[Any], None]:
            return lambda other: self.log.append(f"{name} waits for {getattr(other, 'name', what)}")

        return SimpleNamespace(name=name, wait_stream=waits("stream"), wait_event=waits("event"))

    def current_stream(self, device: torch.device) -> Any:
        return self.stream_named(self.stack[-1])

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.stack.append(stream.name)
        yield
        self.stack.pop()

    def graph_pool_handle(self) -> str:
        return "pool"

    def Event(self) -> Any:  # noqa: N802
        return SimpleNamespace(record=lambda stream: self.log.append(f"event on {stream.name}"))

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: Any, pool: str, stream: Any, mode: str) -> Iterator[None]:
        self.log.append(f"capture on {stream.name} into {pool}, {mode}")
        with self.stream(stream):
            yield
        self.log.append("captured")


def test_order_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    for name in ("Stream", "current_stream", "stream", "graph_pool_handle", "Event", "CUDAGraph", "device", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    recorder = CudaRecorder(torch.device("cuda:0"))
    before = torch.backends.cudnn.benchmark

    def call() -> list[torch.Tensor]:
        cuda.log.append(f"call on {cuda.stack[-1]}, search={torch.backends.cudnn.benchmark}")
        return [torch.zeros(1)]

    results, replay = recorder.capture(call)
    replay()
    assert len(results) == 1
    warm_up = ["call on side, search=True"] * 3
    capture = ["capture on side into pool, thread_local", "call on side, search=True", "captured"]
    assert cuda.log == ["side waits for main", *warm_up, "main waits for side", *capture, "replay"]
    assert torch.backends.cudnn.benchmark == before


def test_calls_on_other_streams_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    for name in ("Stream", "current_stream", "graph_pool_handle", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    streams = {name: cuda.stream_named(name) for name in ("main", "other")}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[cuda.stack[-1]])
    recorder = CudaRecorder(torch.device("cuda:0"))
    for name in ("main", "main", "other", "other", "main"):
        cuda.stack.append(name)
        recorder.begin()
        recorder.end()
    on_main, on_other = "event on main", "event on other"
    assert cuda.log == [
        *(on_main, on_main),
        *("other waits for event", on_other, on_other),
        *("main waits for event", on_main),
    ]


def test_graphs_that_are_not_used_go_first() -> None:
    specs = (TensorSpec("x", np.dtype(np.float32), ("A",)),)
    cache = GraphCache(ByHand(), specs, specs, max_people=4, max_graphs=2)
    for size in (1, 2, 1, 3, 4):
        tensors = [torch.full((size,), 2.0)]
        (result,) = cache.run(tensors, list, lambda tensors: [tensors[0] * 3], capture_now=True)
        assert torch.equal(result, torch.full((size,), 6.0))
    assert cache.recorded == [((3,),), ((4,),)]
    assert MAX_GRAPHS >= 6 * 8  # every number of people with every batch of 8 fits


def test_sizes_that_come_once_record_nothing(tmp_path: Path) -> None:
    recorder = ByHand()
    engine = add_engine(tmp_path, recorder, max_people=1024)
    for n in (1, 2, 3, 5, 9, 17, 33):
        add(engine, n)
    assert recorder.log == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_too_little_memory_frees_and_says_so(tmp_path: Path, error: Exception) -> None:
    recorder = ByHand()
    engine = add_engine(tmp_path, recorder)
    add(engine, 1)
    add(engine, 1)
    add(engine, 5)
    recorder.fail = error
    with pytest.raises(
        EngineOutOfMemory, match=r"add\.onnx: too little memory on cpu for left float32\[7, 3\].*smaller"
    ):
        add(engine, 7)
    assert engine._graphs is not None
    assert engine._graphs.recorded == []
    recorder.fail = None
    for _ in range(3):
        add(engine, 7)  # stays usable
    assert recorder.log[-3:] == ["begin", "replay", "end"]


def test_memory_of_a_failed_call_is_free_while_the_error_is_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever catches the error tries a smaller batch at once; the error must not hold the larger one's tensors."""
    left_behind: list[weakref.ref[torch.Tensor]] = []

    def full(_: object, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        large = tensors[0] + 1
        left_behind.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = add_engine(tmp_path, ByHand())
    with monkeypatch.context() as patch:
        patch.setattr("engines.torch_program.Program.run", full)
        with pytest.raises(EngineOutOfMemory) as caught:
            add(engine, 2)
    assert caught.value.__cause__ is not None
    assert [tensor() for tensor in left_behind] == [None]
    add(engine, 2)


def test_failure_while_recording_is_an_engine_error(tmp_path: Path) -> None:
    recorder = ByHand(fail=RuntimeError("CUDA error: operation not permitted when stream is capturing"))
    engine = add_engine(tmp_path, recorder)
    add(engine, 2)
    with pytest.raises(EngineRunError, match=r"add\.onnx failed on .*: CUDA error: operation not permitted"):
        add(engine, 2)


# --- the calls and the file -----------------------------------------------------------------------------------------


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


WRONG_FEEDS: list[tuple[dict[str, Any], str]] = [
    ({"left": ones(2, 3)}, r"inputs must be \['left', 'right'\]; missing \['right'\], unknown \[\]"),
    ({"left": ones(2, 3), "rihgt": ones(2, 3)}, r"missing \['right'\], unknown \['rihgt'\]"),
    ({"left": ones(2, 3).astype(np.float64), "right": ones(2, 3)}, "expected float32, got float64"),
    ({"left": ones(2, 3, 1), "right": ones(2, 3)}, r"expected 2 dimensions, got shape \(2, 3, 1\)"),
    ({"left": ones(2, 4), "right": ones(2, 3)}, r"expected size 3 on axis 1, got shape \(2, 4\)"),
    ({"left": ones(2, 3), "right": ones(4, 3)}, "N is 4 on axis 0, but N is 2 in input 'left'"),
    ({"left": ones(0, 3), "right": ones(0, 3)}, "without elements; skip the call instead"),
]


@pytest.mark.parametrize(("feeds", "message"), WRONG_FEEDS)
@pytest.mark.parametrize("on_device", [False, True])
def test_wrong_feeds_are_explained(tmp_path: Path, feeds: dict[str, Any], message: str, on_device: bool) -> None:
    engine = add_engine(tmp_path, ByHand())
    with pytest.raises(EngineRunError, match=message):
        if on_device:
            engine.run_on_device({name: torch.from_numpy(array) for name, array in feeds.items()})
        else:
            engine.run(feeds)
    add(engine, 2)  # a refused call leaves the engine usable


def test_feeds_of_the_other_kind(tmp_path: Path) -> None:
    engine = add_engine(tmp_path, ByHand())
    tensor_feeds = {"left": torch.ones(2, 3), "right": torch.ones(2, 3)}
    with pytest.raises(EngineRunError, match=r"input left float32.*: expected a numpy array, got Tensor"):
        engine.run(tensor_feeds)  # type: ignore[arg-type]
    with pytest.raises(EngineRunError, match="input 'right': expected a torch tensor, got ndarray"):
        engine.run_on_device({**tensor_feeds, "right": ones(2, 3)})
    with pytest.raises(EngineRunError, match="input 'left': expected a tensor on cpu, got one on meta"):
        engine.run_on_device({**tensor_feeds, "left": torch.ones(2, 3, device="meta")})
    with pytest.raises(EngineRunError, match=r"input 'left': got torch\.bfloat16, which no graph takes"):
        engine.run_on_device({**tensor_feeds, "left": torch.ones(2, 3, dtype=torch.bfloat16)})


def test_closed_engine_refuses(tmp_path: Path) -> None:
    engine = add_engine(tmp_path, ByHand())
    add(engine, 1)
    engine.close()
    engine.close()
    with pytest.raises(EngineRunError, match="closed; open it again"):
        add(engine, 1)
    with pytest.raises(EngineRunError, match="closed; open it again"):
        engine.run_on_device({"left": torch.ones(1, 3), "right": torch.ones(1, 3)})
    with pytest.raises(EngineRunError, match="closed; open it again"):
        engine.prepare({"left": (1, 3), "right": (1, 3)})


def test_no_gpu_is_an_error_and_never_the_cpu(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in (None, "cuda", "cuda:1"):
        with pytest.raises(EngineLoadError, match="install a driver and a CUDA build of torch, or give --device cpu"):
            TorchEngine(artifact.segment_path, EngineOptions(device=device))


def test_gpu_that_does_not_exist(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineLoadError, match="cuda:2: this machine has 2 CUDA devices, counted from 0"):
        TorchEngine(artifact.segment_path, EngineOptions(device="cuda:2"))


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    engine = TorchEngine(path, options(threads=before + 3))
    assert engine.name.endswith(f"cpu, float32, threads={before + 3}")
    add(engine, 2)
    assert torch.get_num_threads() == before
    with pytest.raises(EngineRunError):
        engine.run({"left": ones(2, 3), "right": ones(3, 3)})
    assert torch.get_num_threads() == before


def test_gradients_are_not_recorded(tmp_path: Path) -> None:
    engine = add_engine(tmp_path, ByHand())
    leaf = torch.ones(2, 3, requires_grad=True)
    assert not engine.run_on_device({"left": leaf, "right": leaf})["total"].requires_grad


def test_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match="cannot be read"):
        TorchEngine(tmp_path / "none.onnx", ON_CPU)
    with pytest.raises(EngineLoadError, match="expected an ONNX file, got a folder or a device"):
        TorchEngine(tmp_path, ON_CPU)


@pytest.mark.parametrize("content", [b"", b"not a graph", add_graph()[:60], add_graph()[:-9] + b"\0" * 9])
def test_file_that_is_not_a_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineLoadError, match=r"broken\.onnx: (not an ONNX file, or damaged|not a valid ONNX graph)"):
        TorchEngine(path, ON_CPU)


def test_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.torch_graph._MAX_FILE_BYTES", 100)
    path = tmp_path / "large.onnx"
    path.write_bytes(add_graph())
    with pytest.raises(EngineLoadError, match=r"expected at most 100 bytes, got \d+"):
        TorchEngine(path, ON_CPU)


def changed(tmp_path: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    made = onnx.load_model_from_string(
        model(
            [helper.make_node("Add", ["x", "c"], ["y"])],
            [tensor("x", TensorProto.FLOAT, "N", 3)],
            [tensor("y", TensorProto.FLOAT, "N", 3)],
            {"c": np.ones(3, np.float32)},
        )
    )
    change(made)
    path = tmp_path / "changed.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def move_outside(made: onnx.ModelProto) -> None:
    constant = made.graph.initializer[0]
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/passwd")


def hide_outside(made: onnx.ModelProto) -> None:
    """In an attribute, where loaders that look at initialisers only do not see it."""
    value = numpy_helper.from_array(np.ones(3, np.float32), "v")
    move_outside(helper.make_model(helper.make_graph([], "g", [], [], [value])))
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="weights.bin")
    made.graph.node.append(helper.make_node("Constant", [], ["d"], value=value))


def cut_short(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].raw_data = b"\0" * 5


def nest(made: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["inner"])], "b", [], [tensor("inner", TensorProto.FLOAT, "N", 3)]
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    made.graph.node.append(helper.make_node("If", ["yes"], ["z"], name="fork", then_branch=body, else_branch=body))


def age(made: onnx.ModelProto) -> None:
    made.opset_import[0].version = 11


def other_library(made: onnx.ModelProto) -> None:
    made.graph.node[0].op_type, made.graph.node[0].domain = "BiasGelu", "com.microsoft"
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def text(made: onnx.ModelProto) -> None:
    made.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"]))


def make_complex(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_outside, "tensor 'c' lies in another file; only data inside the file is read"),
        (hide_outside, "tensor 'v' lies in another file"),
        (cut_short, r"changed\.onnx: (tensor 'c' is damaged|not a valid ONNX graph)"),
        (nest, "If 'fork' holds a nested graph, which is not handled"),
        (age, "operator set 11 is not handled, only 13 to 23: export the model with opset_version=18"),
        (other_library, "the torch engine has no operator com.microsoft::BiasGelu"),
        (text, "tensor 't' has element type STRING, which is not handled"),
        (make_complex, "tensor 'x' has element type COMPLEX64; engines handle float32"),
    ],
)
def test_file_that_is_not_ours_to_run(tmp_path: Path, change: Callable[[onnx.ModelProto], Any], message: str) -> None:
    with pytest.raises(EngineLoadError, match=message):
        TorchEngine(changed(tmp_path, change), ON_CPU)


def test_no_file_beside_the_model_is_opened(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    with pytest.raises(EngineLoadError, match="lies in another file"):
        TorchEngine(changed(tmp_path, hide_outside), ON_CPU)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_never_crash(artifact: Artifact, tmp_path: Path, seed: int) -> None:
    """Whatever a flipped byte makes of the segment graph: it loads, or it is an engine error."""
    content = bytearray(artifact.segment_path.read_bytes())
    rng = np.random.default_rng(seed)
    starts = [match.start() for match in re.finditer(rb"node_|Conv|Slice|val_", bytes(content))]
    for _ in range(3):  # near the structure, not in the megabytes of weights
        content[int(rng.choice(starts)) + int(rng.integers(-6, 12))] = int(rng.integers(0, 256))
    path = tmp_path / "flipped.onnx"
    path.write_bytes(bytes(content))
    try:
        engine = TorchEngine(path, ON_CPU)
        feeds = {
            spec.name: np.zeros(
                [{"B": 1, "N": 1}.get(s, 8) if isinstance(s, str) else s for s in spec.shape], spec.dtype
            )
            for spec in engine.inputs
        }
        engine.run(feeds)
    except (EngineLoadError, EngineRunError) as error:
        message = str(error)
    else:
        message = path.name
    assert path.name in message


def test_trial_that_fails_is_no_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A graph that wants sizes which the trial at load does not guess still opens, and runs with the right ones."""
    f = TensorProto.FLOAT
    path = tmp_path / "join.onnx"
    path.write_bytes(
        model(
            [helper.make_node("MatMul", ["x", "c"], ["y"])],
            [tensor("x", f, "A", "C")],
            [tensor("y", f, "A", 2)],
            {"c": ones(5, 2)},
        )
    )
    with caplog.at_level(logging.DEBUG, logger="engines.torch_engine"):
        engine = TorchEngine(path, ON_CPU)
    assert "join.onnx not tried" in caplog.text
    np.testing.assert_array_equal(engine.run({"x": ones(3, 5)})["y"], np.full((3, 2), 5.0))


@pytest.mark.parametrize("search", [False, True])
def test_flags_are_put_back(search: bool) -> None:
    flags = torch.backends.cudnn

    def now() -> tuple[bool, bool, bool, bool]:
        return flags.enabled, flags.benchmark, flags.deterministic, flags.allow_tf32

    before = now()
    with ieee_float32(search=search):
        assert now() == (True, search, False, False)
    assert now() == before


def test_flags_are_put_back_by_the_last_thread() -> None:
    """One that came first and goes first leaves them as the other one wants them."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.allow_tf32
    inside, leave = threading.Event(), threading.Event()

    def search() -> None:
        with ieee_float32(search=True):
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=search)
    with ieee_float32(search=False):
        assert (flags.benchmark, flags.allow_tf32) == (False, False)
        other.start()
        assert inside.wait(10)
        assert flags.benchmark
    assert (flags.benchmark, flags.allow_tf32) == (True, False)
    leave.set()
    other.join(10)
    assert (flags.benchmark, flags.allow_tf32) == before
