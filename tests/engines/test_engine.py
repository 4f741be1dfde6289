"""The contract of engines: options are checked when made, a named engine never becomes another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import DeviceEngine, Engine, EngineLoadError, EngineOptions, EngineOutOfMemory, EngineRunError, open_engine
from engines.engine import Tensor, TensorSpec, open_named
from tests.engines.graphs import add_graph


@pytest.fixture
def add_path(tmp_path: Path) -> Path:
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": 0}, "threads must be 1 or more"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "got 'cuda:x'"),
        ({"device": "cuda:0\n"}, "device must be"),
        ({"precision": "half"}, "precision must be one of auto, float32, float16, bfloat16, int8; got 'half'"),
        ({"max_batch": 0}, "max_batch must be 1 or more; got 0"),
        ({"max_people": -1}, "max_people must be 1 or more"),
        ({"long_side": 0}, "long_side must be 1 or more"),
    ],
)
def test_options_that_no_engine_could_use(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        EngineOptions(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str | None) -> None:
    assert EngineOptions(device=device).device == device


@pytest.mark.parametrize(("engine", "install"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_library_that_cannot_be_imported_says_what_to_install(
    add_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, f"engines.{engine}_engine", None)  # what an import finds when it was blocked
    with pytest.raises(EngineLoadError, match=f"pip install {install}"):
        open_named(add_path, engine, EngineOptions())


class OnDevice:
    """The smallest engine that keeps its tensors on a device."""

    name = "fake"
    device = "cuda:0"
    limits = {"B": 8}  # noqa: RUF012
    inputs = outputs = (TensorSpec("x", np.dtype(np.float32), ("B",)),)

    def run(self, feeds):
        return dict(feeds)

    def run_on_device(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(feeds)

    def close(self) -> None: ...


def test_device_engines_can_be_told_apart(add_path: Path) -> None:
    engine: Engine = OnDevice()
    assert isinstance(engine, DeviceEngine)
    assert not isinstance(open_engine(add_path, engine="onnx"), DeviceEngine)


def test_out_of_memory_is_a_failed_call() -> None:
    assert issubclass(EngineOutOfMemory, EngineRunError)
