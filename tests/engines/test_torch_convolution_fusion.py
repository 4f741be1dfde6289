"""Convolution, sum and activation as one call: which are joined, that the result stays the same, and that a fused call
is taken only where it works, agrees and is faster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from engines import default_artifact, load_artifact
from engines.engine import EngineOptions
from engines.onnx_engine import OnnxEngine
from engines.torch_convolution_fusion import ActivatedConvolution, FasterOfBoth, by_cudnn, in_parts
from engines.torch_engine import TorchEngine
from engines.torch_graph import read_graph
from engines.torch_operation import Convolution, Function
from engines.torch_program import PreparedGraph, compile_program
from tests.engines.graphs import model, tensor
from tests.engines.recorder_by_hand import ByHand
from tests.tolerances import TORCH_NETWORK

F = TensorProto.FLOAT


class Recording:
    """Computes in parts and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[ActivatedConvolution] = []

    def __call__(self, wanted: ActivatedConvolution, arguments: Sequence[Tensor]) -> Function:
        assert len(arguments) == 2 + wanted.has_bias + wanted.has_sum
        self.asked.append(wanted)
        return in_parts(wanted)


def random(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CONSTANTS = {
    "w": random(3, 3, 3, 3),
    "b": random(3, seed=1),
    "zero": np.float32(0),
    "six": np.float32(6),
    "low": np.float32(-1),
    "row": random(1, 3, 1, 1, seed=2),
}
SAME = {"pads": [1, 1, 1, 1]}


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


CHAINS: dict[str, tuple[list[Any], list[tuple[bool, bool, float | None]]]] = {
    "relu": ([node("Conv", "x w b", "a", **SAME), node("Relu", "a", "y")], [(True, False, None)]),
    "no bias": ([node("Conv", "x w", "a", **SAME), node("Relu", "a", "y")], [(False, False, None)]),
    "clip": ([node("Conv", "x w b", "a", **SAME), node("Clip", "a zero six", "y")], [(True, False, 6.0)]),
    "asymmetric": ([node("Conv", "x w b", "a", pads=[0, 2, 2, 0]), node("Relu", "a", "y")], [(True, False, None)]),
    "sum": (
        [node("Conv", "x w b", "a", **SAME), node("Add", "x a", "s"), node("Relu", "s", "y")],
        [(True, True, None)],
    ),
    "sum the other way": (
        [node("Conv", "x w b", "a", **SAME), node("Add", "a x", "s"), node("Clip", "s zero six", "y")],
        [(True, True, 6.0)],
    ),
    "two of them": (  # one takes the sum, the other one's result is its z
        [
            node("Conv", "x w b", "a", **SAME),
            node("Conv", "x w", "c", **SAME),
            node("Add", "a c", "s"),
            node("Relu", "s", "y"),
        ],
        [(True, True, None)],
    ),
    "other limits": ([node("Conv", "x w b", "a", **SAME), node("Clip", "a low six", "y")], []),
    "no activation": ([node("Conv", "x w b", "a", **SAME), node("Add", "x a", "y")], []),
    "read twice": (
        [node("Conv", "x w b", "a", **SAME), node("Relu", "a", "r"), node("Add", "a r", "y")],
        [],
    ),
    "sum that is spread": (
        [node("Conv", "x w b", "a", **SAME), node("Add", "a row", "s"), node("Relu", "s", "y")],
        [],
    ),
    "sum with itself": (
        [node("Conv", "x w b", "a", **SAME), node("Add", "a a", "s"), node("Relu", "s", "y")],
        [],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_joined(tmp_path: Path, name: str) -> None:
    nodes, expected = CHAINS[name]
    path = tmp_path / "chain.onnx"
    path.write_bytes(model(nodes, [tensor("x", F, "B", 3, "H", "W")], [tensor("y", F, "B", 3, "H", "W")], CONSTANTS))
    feeds = {"x": random(2, 3, 6, 5)}
    prepared = PreparedGraph(read_graph(path), torch.device("cpu"), None)
    chooser = Recording()
    program = compile_program(prepared, {"x": (2, 3, 6, 5)}, chooser)
    assert [(asked.has_bias, asked.has_sum, asked.upper) for asked in chooser.asked] == expected
    (found,) = program.run([torch.from_numpy(feeds["x"])])
    np.testing.assert_allclose(found.numpy(), OnnxEngine(path, threads=1).run(feeds)["y"], **TORCH_NETWORK)
    assert len(program.steps) <= len(nodes)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_default_model_stays_the_same(precision: str) -> None:
    artifact = load_artifact(default_artifact())
    options = EngineOptions(device="cpu", threads=1, precision=precision)  # type: ignore[arg-type]
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8))
    rng = np.random.default_rng(1)
    for path, feeds, joined in (
        (artifact.keypoints_path, {"image": image}, 44),
        (
            artifact.segment_path,
            {
                "features": torch.from_numpy(random(1, 48, 16, 24)),
                "feature_from_roi": torch.tensor([[[0.3, 0, 1], [0, 0.2, 1]]] * 2),
                "roi_image": torch.zeros(2, dtype=torch.int32),
                "roi_keypoints": torch.from_numpy(rng.uniform(0, 64, (2, 17, 3)).astype(np.float32)),
            },
            15,
        ),
    ):
        chooser = Recording()
        joining, plain = TorchEngine(path, options, recorder=ByHand(), chooser=chooser), TorchEngine(path, options)
        expected = plain.run_on_device(feeds)
        for _ in range(3):  # eager in parts, recorded, replayed
            for name, value in joining.run_on_device(feeds).items():
                if name not in {"person_keypoints", "joint_candidates"}:  # empty rows lie anywhere
                    torch.testing.assert_close(value, expected[name], **TORCH_NETWORK)
        assert len(chooser.asked) >= joined


WANTED = ActivatedConvolution(Convolution((1, 1), (1, 1), (1, 1), 1, None), True, True, 6.0)
METAS = [torch.empty(shape, device="meta") for shape in ((2, 4, 8, 8), (4, 4, 3, 3), (4,), (2, 4, 8, 8))]


def fails(wanted: ActivatedConvolution) -> Function:
    def call(*tensors: Tensor) -> Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    return call


def wrong(wanted: ActivatedConvolution) -> Function:
    return lambda *tensors: in_parts(wanted)(*tensors) * 1.01


def right(wanted: ActivatedConvolution) -> Function:
    return in_parts(wanted)


def choice(way: Callable[[ActivatedConvolution], Function], times_ms: list[float]) -> tuple[bool, FasterOfBoth]:
    """Whether this way is taken where the trusted one and it take these times, and who chose."""
    made: list[Function] = []

    def noted(wanted: ActivatedConvolution) -> Function:
        made.append(way(wanted))
        return made[-1]

    chooser = FasterOfBoth(torch.device("cpu"), (in_parts, noted), lambda call: times_ms.pop(0))
    return chooser(WANTED, METAS) is made[0], chooser


def test_the_faster_one_is_taken() -> None:
    assert choice(right, [2.0, 1.0])[0]
    assert not choice(right, [1.0, 2.0])[0]


def test_one_that_fails_is_not_taken() -> None:
    assert not choice(fails, [])[0]


def test_one_that_differs_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="engines.torch_convolution_fusion"):
        assert not choice(wrong, [])[0]
    assert "computes something else" in caplog.text


def test_each_size_is_measured_once() -> None:
    times = [2.0, 1.0, 1.0, 2.0]
    taken, chooser = choice(right, times)
    assert taken
    assert len(times) == 2
    first = chooser(WANTED, METAS)
    assert len(times) == 2
    larger = [torch.empty(3, *meta.shape[1:], device="meta") if meta.ndim == 4 else meta for meta in METAS]
    larger[1] = METAS[1]
    assert chooser(WANTED, larger) is not first
    assert times == []


def test_too_little_memory_is_no_choice() -> None:
    def full(wanted: ActivatedConvolution) -> Function:
        def call(*tensors: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    with pytest.raises(torch.OutOfMemoryError):
        choice(full, [])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("has_sum", [False, True])
@pytest.mark.parametrize("upper", [None, 6.0])
@pytest.mark.parametrize("groups", [1, 32])
def test_fused_calls_of_this_gpu(dtype: torch.dtype, has_sum: bool, upper: float | None, groups: int) -> None:
    """Not that they exist, only that what exists agrees and that the choice works."""
    convolution = Convolution((1, 1), (1, 1), (1, 1), groups, None)
    wanted = ActivatedConvolution(convolution, True, has_sum, upper)
    shapes = [(2, 32, 24, 40), (32, 32 // groups, 3, 3), (32,)] + [(2, 32, 24, 40)] * has_sum
    metas = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    expected = in_parts(wanted)(*tensors).float()
    chosen = FasterOfBoth(torch.device("cuda:0"))(wanted, metas)
    try:
        fused = by_cudnn(wanted)(*tensors).float()
        print(f"fused: {float((fused - expected).abs().max()):.2g} off")
    except RuntimeError as error:
        print(f"no fused call: {error}")
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(chosen(*tensors).float(), expected, rtol=tolerance, atol=tolerance)
