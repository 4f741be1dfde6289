"""The engine around a plan, with a TensorRT that runs on the CPU (fake_tensorrt.py): slots, graphs, limits, errors."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import DeviceEngine, EngineLoadError, EngineOptions, EngineOutOfMemory, EngineRunError
from engines import tensorrt_library as library
from engines.nvidia_driver import NvidiaDriver
from engines.tensorrt_engine import TensorRTEngine, bucket_of
from tests.engines.fake_tensorrt import (
    CudaGraphStrategy,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    FakeMemory,
    World,
    plan_of,
)

SEGMENT = plan_of(
    ("features", "INPUT", "HALF", (-1, 2, -1, -1), ((1, 2, 2, 2), (1, 2, 4, 4), (4, 2, 8, 8))),
    ("feature_from_roi", "INPUT", "FLOAT", (-1, 2, 3), ((1, 2, 3), (4, 2, 3), (12, 2, 3))),
    ("roi_image", "INPUT", "INT32", (-1,), ((1,), (4,), (12,))),
    ("roi_keypoints", "INPUT", "FLOAT", (-1, 17, 3), ((1, 17, 3), (4, 17, 3), (12, 17, 3))),
    ("probabilities", "OUTPUT", "FLOAT", (-1, 4, 4), ()),
    ("scores", "OUTPUT", "FLOAT", (-1,), ()),
)
KEYPOINTS = plan_of(
    ("image", "INPUT", "UINT8", (-1, -1, -1, 3), ((1, 32, 32, 3), (1, 64, 64, 3), (4, 128, 128, 3))),
    ("person_scores", "OUTPUT", "FLOAT", (-1, 32), ()),
    ("features", "OUTPUT", "HALF", (-1, 2, -1, -1), ()),
)


def segment(feeds: Any) -> dict[str, Any]:
    """Each person's row depends on its own inputs and its own picture only."""
    picture = feeds["features"].astype(np.float32).mean((1, 2, 3))[feeds["roi_image"]]
    score = picture + feeds["feature_from_roi"].sum((1, 2)) + feeds["roi_keypoints"][:, 3, 1]
    maps = np.broadcast_to(score[:, None, None], (len(score), 4, 4)) + np.arange(16, dtype=np.float32).reshape(4, 4)
    return {"probabilities": maps.astype(np.float32), "scores": score.astype(np.float32)}


def keypoints(feeds: Any) -> dict[str, Any]:
    mean = feeds["image"].astype(np.float32).mean((1, 2, 3))
    b, h, w, _ = feeds["image"].shape
    features = np.broadcast_to(mean[:, None, None, None] / 256, (b, 2, h // 4, w // 4)).astype(np.float16)
    return {"person_scores": np.repeat(mean[:, None], 32, 1).astype(np.float32), "features": features}


def segment_feeds(n: int, *, b: int = 2, side: int = 4, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "features": rng.normal(size=(b, 2, side, side)).astype(np.float16),
        "feature_from_roi": rng.normal(size=(n, 2, 3)).astype(np.float32),
        "roi_image": rng.integers(0, b, n).astype(np.int32),
        "roi_keypoints": rng.normal(size=(n, 17, 3)).astype(np.float32),
    }


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers and plugins belong to a process and its library; each test brings another library."""
    monkeypatch.setattr(library, "_loggers", {})
    monkeypatch.setattr("engines.tensorrt_plugin._creators", {})
    monkeypatch.setattr(library, "_preloaded_by_us", {"tensorrt_rtx"})


def make(
    plan: bytes = SEGMENT,
    compute: Any = segment,
    *,
    name: str = "tensorrt",
    tmp_path: Path | None = None,
    **kwargs: Any,
) -> tuple[TensorRTEngine, World]:
    world = World(FakeMemory(), compute, name=name)
    options = EngineOptions(cache_folder=tmp_path) if tmp_path is not None else EngineOptions()
    return TensorRTEngine(plan, library=world.module, options=options, memory=world.memory, **kwargs), world


BOTH = pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])


def test_what_it_says_of_itself():
    engine, _ = make()
    assert isinstance(engine, DeviceEngine)
    assert engine.name == "TensorRT 11.4.0 cuda:0"
    assert engine.device == "cuda:0"
    assert dict(engine.limits) == {"B": 4, "N": 12}
    assert [str(spec) for spec in engine.inputs] == [
        "features float16[B, 2, h, w]",
        "feature_from_roi float32[N, 2, 3]",
        "roi_image int32[N]",
        "roi_keypoints float32[N, 17, 3]",
    ]
    assert [str(spec) for spec in engine.outputs] == ["probabilities float32[N, 4, 4]", "scores float32[N]"]


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11, 12, 13, 24, 25, 40])
def test_every_person_comes_back_right(name, n, tmp_path):
    """Padded to a bucket, or split above the plan's limit: nobody is dropped and nobody gets another one's row."""
    engine, _ = make(name=name, tmp_path=tmp_path)
    for seed in range(3):  # warm-up and capture, then two replays
        feeds = segment_feeds(n, seed=seed)
        before = {key: value.copy() for key, value in feeds.items()}
        result = engine.run(feeds)
        for key, expected in segment(feeds).items():
            np.testing.assert_array_equal(result[key], expected)
            assert result[key].shape[0] == n
        for key, value in feeds.items():
            np.testing.assert_array_equal(value, before[key])


@BOTH
def test_people_of_an_earlier_call_are_nobodys_neighbours(name, tmp_path):
    """A sum over everybody in a picture, as a drawing of the others is: the padding must not add to it."""

    def sum_of_all(feeds: Any) -> dict[str, Any]:
        together = feeds["roi_image"][:, None] == feeds["roi_image"]
        score = together.astype(np.float32) @ feeds["roi_keypoints"][:, 3, 2]
        return {"probabilities": np.zeros((len(score), 4, 4), np.float32), "scores": score}

    engine, _ = make(compute=sum_of_all, name=name, tmp_path=tmp_path)
    for seed, n in enumerate((8, 8, 5, 7, 5)):
        feeds = segment_feeds(n, seed=seed)
        np.testing.assert_allclose(engine.run(feeds)["scores"], sum_of_all(feeds)["scores"], rtol=1e-5, atol=1e-6)


@BOTH
def test_keypoints_of_more_pictures_than_the_plan_takes(name, tmp_path):
    engine, world = make(KEYPOINTS, keypoints, name=name, tmp_path=tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3), np.uint8)
    result = engine.run({"image": images})
    np.testing.assert_array_equal(result["features"], keypoints({"image": images})["features"])
    assert result["person_scores"].shape == (9, 32)
    assert world.memory.events.count("execute") >= 2


def test_results_of_one_call_are_not_overwritten_by_the_next():
    engine, world = make()
    with_ones = engine.run_on_device(segment_feeds(3, seed=1))
    kept = {name: value.copy() for name, value in with_ones.items()}
    engine.run_on_device(segment_feeds(3, seed=2))
    for name, value in with_ones.items():
        np.testing.assert_array_equal(value, kept[name])
        assert not any(np.shares_memory(value, buffer) for buffer in world.memory.buffers.values())


def test_buckets():
    assert [bucket_of(n, 32) for n in (1, 2, 3, 4, 5, 9, 17, 32)] == [1, 2, 4, 4, 8, 16, 32, 32]
    assert [bucket_of(n, 12) for n in (8, 9, 12)] == [8, 12, 12]


def test_one_graph_for_each_bucket_captured_after_one_real_call():
    engine, world = make()
    engine.run_on_device(segment_feeds(3))
    assert [event for event in world.memory.events if event in {"execute", "capture", "replay"}] == [
        "execute",
        "capture",
    ]
    for n in (4, 3, 4):  # same bucket
        engine.run_on_device(segment_feeds(n))
    assert world.memory.events.count("replay") == 3
    assert len(world.contexts) == 1
    engine.run_on_device(segment_feeds(5))
    assert len(world.contexts) == 2
    assert world.memory.events.count("capture") == 2
    engine.run_on_device(segment_feeds(3))  # the first graph still holds: its context was not touched
    assert world.memory.events.count("replay") == 4


def test_steady_state_makes_no_buffers_and_sets_nothing():
    engine, world = make()
    engine.run_on_device(segment_feeds(3))
    world.memory.events.clear()
    for seed in range(5):
        engine.run_on_device(segment_feeds(3, seed=seed))
    assert "zeros" not in world.memory.events
    assert "execute" not in world.memory.events
    assert world.memory.events.count("empty") == 5 * 2  # the two results, owned by the caller


def test_contexts_share_one_scratch():
    engine, world = make()
    for n in (1, 2, 4):
        engine.run_on_device(segment_feeds(n))
    assert len(world.contexts) == 3
    assert all(context.how is ExecutionContextAllocationStrategy.USER_MANAGED for context in world.contexts)
    assert len({context.scratch for context in world.contexts}) == 1


def test_old_sizes_go_when_sizes_keep_changing(monkeypatch):
    monkeypatch.setattr("engines.tensorrt_engine._MAX_SLOTS", 3)
    engine, world = make()
    for side in (2, 4, 6, 8, 2):
        feeds = segment_feeds(2, side=side)
        np.testing.assert_array_equal(engine.run(feeds)["scores"], segment(feeds)["scores"])
    assert len(engine._slots) == 3
    assert len(world.contexts) == 5
    assert "wait" in world.memory.events  # before a context goes


def test_without_graphs():
    engine, world = make(cuda_graphs=False)
    for seed in range(3):
        feeds = segment_feeds(3, seed=seed)
        np.testing.assert_array_equal(engine.run(feeds)["scores"], segment(feeds)["scores"])
    assert "capture" not in world.memory.events
    assert world.memory.events.count("execute") == 3


def test_a_graph_that_cannot_be_captured_costs_speed_only(caplog):
    engine, world = make()
    world.memory.can_capture = False
    for n in (3, 3, 5):
        feeds = segment_feeds(n)
        np.testing.assert_array_equal(engine.run(feeds)["scores"], segment(feeds)["scores"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no CUDA graph" in caplog.text


def test_rtx_has_one_context_that_captures_by_itself(tmp_path):
    engine, world = make(name="tensorrt_rtx", tmp_path=tmp_path)
    for n in (1, 4, 2, 4, 1):
        feeds = segment_feeds(n, seed=n)
        np.testing.assert_array_equal(engine.run(feeds)["scores"], segment(feeds)["scores"])
    assert len(world.contexts) == 1
    assert world.contexts[0].how.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert "capture" not in world.memory.events
    assert [namespace for _, namespace in world.creators] == ["pose2seg"]


# ------------------------------------------------------------------------------------------------- kernels kept by RTX


def test_rtx_keeps_its_kernels_for_the_next_start(tmp_path):
    engine, world = make(name="tensorrt_rtx", tmp_path=tmp_path)
    engine.run(segment_feeds(1))
    engine.close()
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.read_bytes() == b"kernels"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert world.accepted_kernels == []
    again, world = make(name="tensorrt_rtx", tmp_path=tmp_path)
    again.run(segment_feeds(1))
    assert world.accepted_kernels == [b"kernels"]
    other, world = make(KEYPOINTS, keypoints, name="tensorrt_rtx", tmp_path=tmp_path)
    other.run({"image": np.zeros((1, 32, 32, 3), np.uint8)})
    assert world.accepted_kernels == []  # another plan, other kernels


@pytest.mark.parametrize("spoil", ["content", "rights"])
def test_kernels_that_do_not_fit_or_are_not_ours_are_left_out(tmp_path, spoil, caplog):
    engine, _ = make(name="tensorrt_rtx", tmp_path=tmp_path)
    engine.run(segment_feeds(1))
    engine.close()
    (kept,) = (tmp_path / "kernels").iterdir()
    if spoil == "content":
        kept.write_bytes(b"something else")
    else:
        kept.chmod(0o666)
    caplog.set_level("INFO")
    again, world = make(name="tensorrt_rtx", tmp_path=tmp_path)
    again.run(segment_feeds(1))
    assert "kept kernels" in caplog.text
    assert world.accepted_kernels == ([b"something else"] if spoil == "content" else [])


# ------------------------------------------------------------------------------------------------------ what goes wrong


@BOTH
def test_truncated_or_foreign_plan(name, tmp_path):
    with pytest.raises(EngineLoadError, match=r"cannot load this plan of 50 bytes \(IRuntime::deserializeCudaEngine"):
        make(SEGMENT[:50], name=name, tmp_path=tmp_path)
    with pytest.raises(EngineLoadError, match="engines clean"):
        make(b"", name=name, tmp_path=tmp_path)


def test_rtx_says_that_a_plan_is_not_valid_here(tmp_path):
    world = World(FakeMemory(), segment, name="tensorrt_rtx")
    world.validity = EngineValidity.INVALID
    with pytest.raises(EngineLoadError, match=r"not valid on cuda:0 \(diagnostics 4.*engines clean"):
        TensorRTEngine(SEGMENT, library=world.module, options=EngineOptions(cache_folder=tmp_path), memory=world.memory)


def test_a_failed_call_says_why():
    engine, world = make()
    world.fail = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(EngineRunError, match=r"a call failed .*illegal memory access") as caught:
        engine.run(segment_feeds(2))
    assert not isinstance(caught.value, EngineOutOfMemory)


@pytest.mark.parametrize("where", ["library", "memory"])
def test_out_of_memory_frees_everything_and_the_next_call_works(where):
    engine, world = make()
    engine.run(segment_feeds(2))
    if where == "library":
        world.fail = "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)"
    else:
        world.memory.free_bytes = 100
    with pytest.raises(EngineOutOfMemory, match="run fewer people or pictures at once"):
        engine.run(segment_feeds(12))
    assert "free" in world.memory.events
    assert not engine._slots
    world.fail, world.memory.free_bytes = None, 1 << 40
    feeds = segment_feeds(2)
    np.testing.assert_array_equal(engine.run(feeds)["scores"], segment(feeds)["scores"])


def test_sizes_outside_the_plan():
    engine, _ = make()
    with pytest.raises(EngineRunError, match=r"B is 5, this plan was built for 1\.\.4: split the call"):
        engine.run_on_device(segment_feeds(2, b=5))
    with pytest.raises(EngineRunError, match=r"h is 16, this plan was built for 2\.\.8"):
        engine.run_on_device(segment_feeds(2, side=16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_image": None}, "missing \\['roi_image'\\]"),
        ({"extra": np.zeros(1)}, "unknown \\['extra'\\]"),
        ({"features": [1.0]}, "expected a torch tensor, got list"),
        ({"features": np.zeros((2, 2, 4, 4), np.float32)}, r"got float32\[2, 2, 4, 4\]"),
        ({"roi_image": np.zeros(4, np.int32)}, "expected size 3 on axis 0"),
        ({"roi_keypoints": np.zeros((3, 16, 3), np.float32)}, "expected size 17 on axis 1"),
        ({"feature_from_roi": np.zeros((0, 2, 3), np.float32)}, "without elements; skip the call"),
    ],
)
def test_wrong_tensors(change, message):
    engine, _ = make()
    feeds = {**segment_feeds(3), **change}
    with pytest.raises(EngineRunError, match=message):
        engine.run_on_device({name: value for name, value in feeds.items() if value is not None})


def test_tensor_of_another_device(monkeypatch):
    engine, world = make()
    monkeypatch.setattr(world.memory, "describe", lambda value: (value.dtype, value.shape, "cpu"))
    with pytest.raises(EngineRunError, match="expected a tensor on cuda:0, got one on cpu"):
        engine.run_on_device(segment_feeds(3))


def test_closed_engine():
    engine, _ = make()
    engine.close()
    engine.close()
    with pytest.raises(EngineRunError, match="closed; open it again"):
        engine.run(segment_feeds(1))


def test_tensor_type_that_engines_do_not_handle():
    plan = plan_of(("x", "INPUT", "BF16", (1,), ((1,), (1,), (1,))))
    with pytest.raises(EngineLoadError, match="tensor 'x' of this plan is BF16; engines handle FLOAT, HALF"):
        make(plan)


def test_no_driver(monkeypatch):
    world = World(FakeMemory(), segment)
    bare = NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)")
    monkeypatch.setattr(library, "find_nvidia_driver", lambda: bare)
    with pytest.raises(EngineLoadError, match="TensorRT needs an NVIDIA GPU: no NVIDIA driver"):
        TensorRTEngine(SEGMENT, library=world.module)


def test_torch_without_cuda(monkeypatch):
    """The driver is fine, but this torch is a CPU build, as in this suite; or there is no such device."""
    world = World(FakeMemory(), segment)
    monkeypatch.setattr("engines.tensorrt_engine.driver_problem", lambda name: None)
    with pytest.raises(EngineLoadError, match="needs a CUDA build of torch and the device cuda:99"):
        TensorRTEngine(SEGMENT, library=world.module, options=EngineOptions(device="cuda:99"))
    with pytest.raises(EngineLoadError, match="runs on an NVIDIA GPU only"):
        TensorRTEngine(SEGMENT, library=world.module, options=EngineOptions(device="cpu"))
