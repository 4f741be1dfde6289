"""The torch engine on a GPU: the numbers of ONNX Runtime, eager and from CUDA graphs, and memory that is given back.

The logic of sizes, padding and graphs is tested in `test_torch_engine` without a GPU.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the pictures are frames of the demo clip: extra 'demo'")

from engines import Artifact, default_artifact, load_artifact
from engines.engine import EngineOptions, EngineOutOfMemory
from engines.onnx_engine import OnnxEngine
from engines.torch_engine import TorchEngine
from tests.engines.torch_feeds import keypoint_differences, people, pictures
from tests.tolerances import TORCH_CUDA_NETWORK, TORCH_CUDA_POSITION_PX

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(default_artifact())


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(**{"device": "cuda:0", **changes})


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 288, 512), (2, 192, 320), (5, 96, 160), (8, 288, 512)])
def test_keypoints_in_float32(artifact: Artifact, batch: int, height: int, width: int) -> None:
    image = pictures(batch, height, width)
    expected = OnnxEngine(artifact.keypoints_path).run({"image": image})
    engine = TorchEngine(artifact.keypoints_path, options(precision="float32"))
    for _ in range(4):  # eager, recorded, replayed, replayed
        found = engine.run({"image": image})
        np.testing.assert_allclose(found["features"], expected["features"], **TORCH_CUDA_NETWORK)
        differences = keypoint_differences(found, expected, above=0.05)
        assert differences.unmatched == 0
        assert differences.scores < TORCH_CUDA_NETWORK["atol"]
        assert differences.positions_px.max() < TORCH_CUDA_POSITION_PX
    assert engine._graphs is not None
    assert len(engine._graphs.recorded) == 1


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_segment_for_changing_numbers_of_people(artifact: Artifact, precision: str) -> None:
    found = OnnxEngine(artifact.keypoints_path).run({"image": pictures(2, 192, 320)})
    baseline = OnnxEngine(artifact.segment_path)
    engine = TorchEngine(artifact.segment_path, options(precision=precision))
    bound = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.3}[precision]
    for count in (1, 2, 7, 7, 2, 1, 33, 32, 20, 7):
        feeds = people(found, artifact, count)
        expected = baseline.run(feeds)
        feeds["features"] = feeds["features"].astype(engine.inputs[0].dtype)
        results = engine.run(feeds)
        for name, value in expected.items():
            assert results[name].dtype == np.float32
            assert np.abs(results[name] - value).max() < bound, (name, count)
    assert engine._graphs is not None
    assert {key[1][0] for key in engine._graphs.recorded} == {1, 2, 8, 32}


def test_half_precision_keypoints(artifact: Artifact) -> None:
    image = pictures(2, 288, 512)
    expected = OnnxEngine(artifact.keypoints_path).run({"image": image})
    found = TorchEngine(artifact.keypoints_path, options()).run({"image": image})
    differences = keypoint_differences(found, expected, above=0.2)
    near, far = np.quantile(differences.positions_px, (0.8, 1.0))
    print(f"float16: scores {differences.scores:.4f}, joints {near:.3f} px, at most {far:.2f} px")
    assert found["features"].dtype == np.float16
    assert differences.scores < 0.01
    assert near < 0.15


def test_tensors_stay_on_the_device(artifact: Artifact) -> None:
    """From one graph to the other on streams of the caller's; results stay what they were when a graph runs again."""
    keypoints, segment = (TorchEngine(path, options()) for path in (artifact.keypoints_path, artifact.segment_path))
    image = torch.from_numpy(pictures(2, 192, 320)).cuda()
    host = OnnxEngine(artifact.keypoints_path).run({"image": image.cpu().numpy()})
    feeds = {name: torch.from_numpy(array).cuda() for name, array in people(host, artifact, 3).items()}
    kept = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.current_stream()):
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            found = keypoints.run_on_device({"image": image})
            masks = segment.run_on_device({**feeds, "features": found["features"]})
            kept.append((masks, masks["probabilities"].clone()))
    torch.cuda.synchronize()
    for masks, copy in kept:
        assert masks["probabilities"].device == torch.device("cuda:0")
        assert torch.equal(masks["probabilities"], copy)
        torch.testing.assert_close(copy, kept[0][1], rtol=0, atol=0.02)


def test_two_engines_in_two_threads(artifact: Artifact) -> None:
    """As two stages do: one records while the other replays."""
    image = pictures(1, 96, 160)
    expected = OnnxEngine(artifact.keypoints_path).run({"image": image})
    errors: list[BaseException] = []

    def work() -> None:
        try:
            engine = TorchEngine(artifact.keypoints_path, options(precision="float32"))
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    found = engine.run({"image": image})
                    np.testing.assert_allclose(found["features"], expected["features"], **TORCH_CUDA_NETWORK)
        except BaseException as error:  # shown by the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []


def test_steady_state_allocates_nothing_new(artifact: Artifact) -> None:
    engine = TorchEngine(artifact.keypoints_path, options())
    image = torch.from_numpy(pictures(1, 288, 512)).cuda()
    for _ in range(3):
        engine.run_on_device({"image": image})
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    for _ in range(20):
        engine.run_on_device({"image": image})
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["num_device_alloc"] == before


def test_too_little_memory_is_said_and_survived(artifact: Artifact) -> None:
    engine = TorchEngine(artifact.keypoints_path, options(precision="float32", max_batch=64))
    small = {"image": torch.zeros(1, 96, 160, 3, dtype=torch.uint8, device="cuda:0")}
    engine.run_on_device(small)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (96 << 20)) / total)
    try:
        with pytest.raises(EngineOutOfMemory, match="too little memory on cuda:0 for image uint8"):
            engine.run_on_device({"image": torch.zeros(32, 512, 512, 3, dtype=torch.uint8, device="cuda:0")})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    engine.run_on_device(small)
    torch.cuda.synchronize()
