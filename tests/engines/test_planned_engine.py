"""Plans of graphs: what they depend on, when they are built again, and one real build by TensorRT for RTX."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from engines import EngineLoadError, EngineOptions, TensorSpec, default_artifact, load_artifact
from engines import planned_engine as module
from engines.engine import Progress
from engines.nvidia_driver import Gpu, NvidiaDriver
from engines.plan_cache import PlanCache
from engines.planned_engine import NO_GPU, open_planned_engine, plan_key, plan_of, staleness
from engines.selection import Library

H100 = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30)
A10 = Gpu(1, "NVIDIA A10", (8, 6), 24 << 30)


class Machine:
    def __init__(self, *gpus: Gpu, driver: str = "580.95.05", version: str = "11.4.0") -> None:
        gpus = tuple(replace(gpu, index=index) for index, gpu in enumerate(gpus))
        self.driver = (
            NvidiaDriver(version=driver, cuda=(13, 0), gpus=gpus) if gpus else NvidiaDriver(problem="no NVIDIA driver")
        )
        self._version = version

    def library(self, engine: str) -> Library | None:
        return None if self._version == "none" else Library(self._version, 13)


@dataclass
class Built:
    plan: bytes
    layers: list[str] = field(default_factory=lambda: ["PLUGIN_V3"])


class Builder:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, path: Path, library: str, options: EngineOptions, converter: str, progress: Progress) -> Built:
        progress(1.0, "all")
        self.asked.append((path.name, library))
        return Built(f"plan {len(self.asked)}".encode())


class PlanEngine:
    """Takes every plan but those that it is told to refuse."""

    inputs = outputs = (TensorSpec("x", np.dtype(np.float32), ("N",)),)

    def __init__(self, plan: bytes) -> None:
        self.name = plan.decode()

    def run(self, feeds):
        return dict(feeds)

    def close(self) -> None: ...


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "keypoints.onnx"
    path.write_bytes(b"a graph")
    return path


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions(cache_folder=tmp_path / "cache", device="cuda:0")


def test_opened_twice_built_once(graph: Path, options: EngineOptions) -> None:
    builder = Builder()
    for _ in range(2):
        engine = open_planned_engine(
            graph, "tensorrt", options, machine=Machine(H100), build=builder, load=lambda plan, *_: PlanEngine(plan)
        )
        assert engine.name == "plan 1"
    assert builder.asked == [("keypoints.onnx", "tensorrt")]


def test_a_cached_plan_that_does_not_load_is_built_again(
    graph: Path, options: EngineOptions, caplog: pytest.LogCaptureFixture
) -> None:
    def load(plan: bytes, _library: str, _options: EngineOptions) -> PlanEngine:
        if refused and plan == refused:
            raise EngineLoadError("made by another build of the library")
        return PlanEngine(plan)

    builder = Builder()
    refused = b""
    assert open_planned_engine(graph, "tensorrt", options, machine=Machine(H100), build=builder, load=load).name
    refused = b"plan 1"
    again = open_planned_engine(graph, "tensorrt", options, machine=Machine(H100), build=builder, load=load)
    assert again.name == "plan 2"
    assert "made by another build of the library" in caplog.text


def test_a_new_plan_that_does_not_load_is_an_error(graph: Path, options: EngineOptions) -> None:
    def load(_plan: bytes, _library: str, _options: EngineOptions) -> PlanEngine:
        raise EngineLoadError("not for this GPU")

    builder = Builder()
    for attempt in (1, 2):
        with pytest.raises(EngineLoadError, match="not for this GPU"):
            open_planned_engine(graph, "tensorrt", options, machine=Machine(H100), build=builder, load=load)
        assert len(builder.asked) == attempt  # once for each try, not in circles


def test_the_key_holds_graph_machine_and_options(graph: Path, options: EngineOptions) -> None:
    both = Machine(H100, A10)
    key = plan_key(graph, "tensorrt", options, machine=both)
    assert (key.gpu, key.capability, key.driver) == ("NVIDIA H100", "9.0", "580.95.05")
    assert (key.library, key.library_version) == ("tensorrt", "11.4.0")
    assert plan_key(graph, "tensorrt", options, machine=both) == key
    others = [
        plan_key(graph, "tensorrt", replace(options, device="cuda:1"), machine=both),
        plan_key(graph, "tensorrt", replace(options, precision="int8"), machine=both),
        plan_key(graph, "tensorrt", replace(options, max_batch=1), machine=both),
        plan_key(graph, "tensorrt", replace(options, max_people=64), machine=both),
        plan_key(graph, "tensorrt", replace(options, long_side=320), machine=both),
        plan_key(graph, "tensorrt", options, machine=both, converter="torch2trt"),
        plan_key(graph, "tensorrt-rtx", options, machine=both),
        plan_key(graph, "tensorrt", options, machine=Machine(H100, driver="590.1")),
        plan_key(graph, "tensorrt", options, machine=Machine(H100, version="11.5.0")),
    ]
    graph.write_bytes(b"another graph")
    others.append(plan_key(graph, "tensorrt", options, machine=both))
    assert len({key.digest, *(other.digest for other in others)}) == 11


def test_our_own_builder_is_part_of_the_key(
    graph: Path, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan_key(graph, "tensorrt", options, machine=Machine(H100))
    monkeypatch.setattr(module, "_BUILDER_SOURCES", ("engines/tensorrt_build.py",))
    module.builder_fingerprint.cache_clear()
    try:
        after = plan_key(graph, "tensorrt", options, machine=Machine(H100))
    finally:
        module.builder_fingerprint.cache_clear()
    assert [text.partition(" ")[0] for text in after.differences(before)] == ["builder"]


def test_every_builder_source_exists() -> None:
    root = Path(module.__file__).parents[1]
    for pattern in module._BUILDER_SOURCES:
        assert list(root.glob(pattern)), pattern


def test_what_cannot_be_keyed_is_an_error(graph: Path, options: EngineOptions) -> None:
    with pytest.raises(EngineLoadError, match="tensorrt is not installed: pip install tensorrt"):
        plan_key(graph, "tensorrt", options, machine=Machine(H100, version="none"))
    with pytest.raises(EngineLoadError, match="there is no cuda:1: this machine has 1 GPUs"):
        plan_key(graph, "tensorrt", replace(options, device="cuda:1"), machine=Machine(H100))
    with pytest.raises(EngineLoadError, match=r"none\.onnx: cannot be read \(No such file"):
        plan_key(graph.with_name("none.onnx"), "tensorrt", options, machine=Machine(H100))


def test_what_makes_a_plan_stale(graph: Path, options: EngineOptions) -> None:
    key = plan_key(graph, "tensorrt", options, machine=Machine(H100))
    assert staleness(key, Machine(H100)) == ""
    assert staleness(key, Machine(A10, H100)) == ""
    assert staleness(key, Machine(A10)) == "made for GPU NVIDIA H100"
    assert staleness(key, Machine()) == "made for GPU NVIDIA H100"
    assert staleness(key, Machine(H100, driver="590.1")) == "driver was 580.95.05, is 590.1"
    assert staleness(key, Machine(H100, version="12.0")) == "tensorrt was 11.4.0, is 12.0"
    assert staleness(key, Machine(H100, version="none")) == "tensorrt is not installed"
    assert "our builder was older" in staleness(replace(key, builder="older"), Machine(H100))
    portable = plan_key(graph, "tensorrt-rtx", options, machine=Machine())
    assert portable.gpu == NO_GPU
    assert staleness(portable, Machine()) == ""
    assert staleness(portable, Machine(H100)) == "made for GPU none"


@pytest.mark.parametrize("graph_name", ["keypoints", "segment"])
def test_a_real_plan_of_the_model_that_ships(tmp_path: Path, graph_name: str, caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT for RTX builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    path = load_artifact(default_artifact()).graph_path(graph_name)
    options = EngineOptions(cache_folder=tmp_path, max_batch=2, max_people=4, long_side=256)
    shares: list[float] = []

    def announce(_text: str):
        return Recording(shares)

    made = plan_of(path, "tensorrt-rtx", options, announce=announce)
    assert not made.from_cache
    assert made.stored
    assert len(made.plan) > 100_000
    assert "CONVOLUTION" in made.layers
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    with caplog.at_level(logging.INFO):
        again = plan_of(path, "tensorrt-rtx", options)
    assert again.from_cache
    assert again.plan == made.plan
    assert again.layers == made.layers
    (entry,) = PlanCache(tmp_path).entries()
    assert (entry.problem, entry.graph) == ("", path.name)


class Recording:
    """Keeps the shares of the progress."""

    def __init__(self, shares: list[float]) -> None:
        self._shares = shares

    def __enter__(self) -> Progress:
        return lambda share, _phase: self._shares.append(share)

    def __exit__(self, *_error: object) -> None: ...
