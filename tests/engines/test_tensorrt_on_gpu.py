"""What only a GPU can say: plans that run, against ONNX Runtime; device memory, streams and captured graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import EngineLoadError, EngineOptions, default_artifact, load_artifact, open_engine
from engines.tensorrt_build import build_plan
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_library import load_library

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

ARTIFACT = load_artifact(default_artifact())
#: Probabilities; half: the border of test_half_precision.py, and features of unit variance in place of real ones.
TOLERANCE = {"float32": 2e-3, "float16": 3e-2}


def engine_for(library: str, graph: Any, precision: Any, **more: Any) -> TensorRTEngine:
    """An engine of a plan built here; a library that is not there, or refuses this GPU, skips."""
    try:
        load_library(library)
    except EngineLoadError as error:
        pytest.skip(str(error))
    options = EngineOptions(precision=precision, max_people=12, max_batch=3)
    built = build_plan(library, graph, options, **more)
    try:
        return TensorRTEngine(built.plan, library=library, options=options)
    except EngineLoadError as error:
        if library == "tensorrt-rtx" and "not valid" in str(error):
            pytest.skip(str(error))  # benchmarks/tensorrt_rtx_on_this_gpu.py tells which plans this GPU takes
        raise


def segment_feeds(n: int, dtype: np.dtype[Any], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    matrix = np.zeros((n, 2, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = rng.uniform(0.3, 1.2, n)
    matrix[:, :, 2] = rng.uniform(-10, 60, (n, 2))
    joints = np.concatenate((rng.uniform(0, 64, (n, 17, 2)), rng.integers(0, 3, (n, 17, 1))), -1)
    return {
        "features": rng.normal(size=(2, 48, 72, 128)).astype(dtype),
        "feature_from_roi": matrix,
        "roi_image": rng.integers(0, 2, n).astype(np.int32),
        "roi_keypoints": joints.astype(np.float32),
    }


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    ("library", "form"),
    [("tensorrt", "aot"), ("tensorrt", "function"), ("tensorrt-rtx", "function"), ("tensorrt-rtx", "python")],
)
def test_segment_equals_onnx_runtime(library, form, precision):
    engine = engine_for(library, ARTIFACT.segment_path, precision, affine_align=form)
    exact = open_engine(ARTIFACT.segment_path, engine="onnx")
    dtype = engine.inputs[0].dtype
    for n in (1, 3, 3, 12, 15, 4):  # a bucket, its replay, the limit, beyond it
        feeds = segment_feeds(n, dtype, seed=n)
        result = engine.run(feeds)
        expected = exact.run({**feeds, "features": feeds["features"].astype(np.float32)})
        difference = np.abs(result["probabilities"] - expected["probabilities"]).max()
        print(f"{library} {form} {precision} N={n}: {difference:.2g}")
        assert difference < TOLERANCE[precision]
    engine.close()


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_keypoints_equal_onnx_runtime(library, precision):
    graph = ARTIFACT.graph_path("keypoints")
    engine = engine_for(library, graph, precision)
    data = pytest.importorskip("skimage").data
    photo = np.ascontiguousarray(data.astronaut()[:288])[None].repeat(4, 0)  # more than the plan takes at once
    result = engine.run({"image": photo})
    expected = open_engine(graph, engine="onnx").run({"image": photo[:1]})
    assert result["features"].dtype == (np.float16 if precision == "float16" else np.float32)
    people = expected["person_scores"][0] > 0.25
    score = np.abs(result["person_scores"][:, people] - expected["person_scores"][:, people]).max()
    px = np.abs(result["person_keypoints"][:, people, :, :2] - expected["person_keypoints"][:, people, :, :2]).max()
    print(f"{library} {precision}: score {score:.2g}, joints {px:.2g} px")
    assert score < (6e-3 if precision == "float16" else 1e-3)
    assert px < (0.5 if precision == "float16" else 0.05)
    engine.close()


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_steady_state_allocates_nothing_but_its_results(library):
    engine = engine_for(library, ARTIFACT.segment_path, "float16")
    tensors = {k: torch.from_numpy(v).to(engine.device) for k, v in segment_feeds(4, engine.inputs[0].dtype).items()}
    for _ in range(5):
        engine.run_on_device(tensors)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    for _ in range(20):
        engine.run_on_device(tensors)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    engine.close()


# --------------------------------------------------------------------------------------------- engines.torch_memory


@pytest.fixture
def memory() -> Any:
    from engines.torch_memory import TorchMemory

    return TorchMemory("cuda:0")


def slow_fill(tensor: Any, value: float) -> None:
    """Work that takes a while, so that whoever does not wait for it reads something else."""
    torch.cuda._sleep(20_000_000)
    tensor.fill_(value)


@pytest.mark.parametrize("own_stream", [False, True])
def test_small_session_waits_for_the_caller_and_the_caller_for_it(memory, own_stream):
    stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        source = torch.zeros(1000, device="cuda")
        slow_fill(source, 3.0)
        with memory.session() as handle:
            assert handle != 0
            assert (handle == stream.cuda_stream) == own_stream
            buffer = memory.zeros((1000,), np.dtype(np.float32))
            memory.copy(buffer, source)
            slow_fill(buffer[:500], 5.0)
            result = memory.empty((1000,), np.dtype(np.float32))
            memory.copy(result, buffer)
        total = float((result * 2).sum())
    assert total == 2 * (500 * 5.0 + 500 * 3.0)


def test_small_sessions_of_two_streams_are_in_order(memory):
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first), memory.session():
        buffer = memory.zeros((1000,), np.dtype(np.float32))
        slow_fill(buffer, 7.0)
    with torch.cuda.stream(second), memory.session():
        result = memory.empty((1000,), np.dtype(np.float32))
        memory.copy(result, buffer)
    second.synchronize()
    assert float(result.min()) == 7.0


def test_small_capture_and_replay(memory):
    with memory.session():
        buffer = memory.zeros((16,), np.dtype(np.float32))
        buffer.add_(1)
        replay = memory.capture(lambda stream: buffer.add_(1))
        for _ in range(3):
            replay()
    memory.wait()
    assert float(buffer.max()) == 4.0  # capturing itself runs nothing
    assert memory.address(buffer) % 256 == 0
