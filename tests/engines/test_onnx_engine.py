"""The ONNX Runtime engine: results, declared tensors, threads, and every wrong call answered in plain words."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.engine import EngineLoadError, EngineOptions, EngineRunError, TensorSpec, open_engine
from engines.onnx_engine import OnnxEngine, usable_cores
from tests.engines.graphs import add_graph, model, tensor


@pytest.fixture
def add_path(tmp_path: Path) -> Path:
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    return path


def ones(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("n", [1, 2, 129])
def test_run_adds_for_any_number_of_rows(add_path: Path, n: int) -> None:
    left = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    result = open_engine(add_path).run({"left": left, "right": 2 * left})
    assert list(result) == ["total"]
    assert result["total"].dtype == np.float32
    np.testing.assert_array_equal(result["total"], 3 * left)


def test_strided_and_read_only_inputs_give_the_same_result(add_path: Path) -> None:
    wide = np.arange(30, dtype=np.float32).reshape(5, 6)
    strided = wide[::-1, ::2]
    strided.setflags(write=False)
    result = open_engine(add_path).run({"left": strided, "right": strided})
    np.testing.assert_array_equal(result["total"], 2 * strided)


def test_result_belongs_to_the_caller(add_path: Path) -> None:
    engine = open_engine(add_path)
    first = engine.run({"left": ones(2, 3), "right": ones(2, 3)})["total"]
    engine.run({"left": 5 * ones(2, 3), "right": ones(2, 3)})
    np.testing.assert_array_equal(first, np.full((2, 3), 2.0))


def test_specs_name_types_and_sizes(add_path: Path) -> None:
    engine = open_engine(add_path)
    f32 = np.dtype(np.float32)
    assert engine.inputs == (TensorSpec("left", f32, ("N", 3)), TensorSpec("right", f32, ("N", 3)))
    assert engine.outputs == (TensorSpec("total", f32, ("N", 3)),)
    assert str(engine.inputs[0]) == "left float32[N, 3]"


def test_nameless_sizes_are_independent(tmp_path: Path) -> None:
    path = tmp_path / "broadcast.onnx"
    path.write_bytes(add_graph(left=(None, 3), right=(None, 3)))
    result = open_engine(path).run({"left": ones(4, 3), "right": ones(1, 3)})
    assert result["total"].shape == (4, 3)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.INT32, np.int32),
        (TensorProto.INT64, np.int64),
    ],
)
def test_other_element_types(tmp_path: Path, kind: int, dtype: type[np.generic]) -> None:
    path = tmp_path / "typed.onnx"
    path.write_bytes(add_graph(kind=kind))
    three = np.full((1, 3), 3, dtype)
    result = open_engine(path).run({"left": three, "right": three})["total"]
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.full((1, 3), 6))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"left": ones(2, 3)}, r"inputs must be \['left', 'right'\]; missing \['right'\], unknown \[\]"),
        ({"left": ones(2, 3), "rihgt": ones(2, 3)}, r"missing \['right'\], unknown \['rihgt'\]"),
        ({"left": ones(2, 3), "right": [[1, 2, 3]]}, "input right float32.*: expected a numpy array, got list"),
        ({"left": ones(2, 3).astype(np.float64), "right": ones(2, 3)}, "expected float32, got float64"),
        ({"left": ones(2, 3, 1), "right": ones(2, 3)}, r"expected 2 dimensions, got shape \(2, 3, 1\)"),
        ({"left": ones(2, 4), "right": ones(2, 3)}, r"expected size 3 on axis 1, got shape \(2, 4\)"),
        ({"left": ones(2, 3), "right": ones(4, 3)}, "N is 4 on axis 0, but N is 2 in input 'left'"),
        ({"left": ones(0, 3), "right": ones(0, 3)}, "without elements; skip the call instead"),
    ],
)
def test_wrong_feeds_are_explained(add_path: Path, feeds: dict[str, Any], message: str) -> None:
    engine = open_engine(add_path)
    with pytest.raises(EngineRunError, match=message):
        engine.run(feeds)
    engine.run({"left": ones(1, 3), "right": ones(1, 3)})  # a refused call leaves the engine usable


def test_failure_inside_the_runtime_names_graph_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "pick.onnx"
    path.write_bytes(
        model(
            [helper.make_node("Gather", ["values", "index"], ["picked"], axis=0)],
            [tensor("values", TensorProto.FLOAT, "N"), tensor("index", TensorProto.INT64, "M")],
            [tensor("picked", TensorProto.FLOAT, "M")],
            {},
        )
    )
    with pytest.raises(EngineRunError, match=r"pick\.onnx failed on values float32\[2\], index int64\[1\]"):
        open_engine(path).run({"values": ones(2), "index": np.array([7])})


def test_closed_engine_refuses(add_path: Path) -> None:
    engine = open_engine(add_path)
    engine.close()
    engine.close()
    with pytest.raises(EngineRunError, match="closed; open it again"):
        engine.run({"left": ones(1, 3), "right": ones(1, 3)})


def test_unknown_engine_lists_the_allowed_ones(add_path: Path) -> None:
    with pytest.raises(EngineLoadError, match="unknown engine 'tensorrtt': choose one of auto, tensorrt,"):
        open_engine(add_path, engine="tensorrtt")


def test_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match="expected an ONNX file, found nothing"):
        open_engine(tmp_path / "none.onnx")
    with pytest.raises(EngineLoadError, match="expected an ONNX file, found a folder"):
        open_engine(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a graph", add_graph()[:60]])
def test_file_that_is_not_a_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineLoadError, match=r"broken\.onnx: ONNX Runtime .* cannot load this graph"):
        open_engine(path)


def test_unsupported_tensor_type(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    text = TensorProto.STRING
    path.write_bytes(
        model([helper.make_node("Identity", ["a"], ["b"])], [tensor("a", text, 1)], [tensor("b", text, 1)], {})
    )
    with pytest.raises(EngineLoadError, match=re.escape("tensor 'a' has type tensor(string)")):
        open_engine(path)


def test_missing_runtime_is_a_load_error(add_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engines.onnx_engine", None)  # what an import finds when it was blocked
    with pytest.raises(EngineLoadError, match="pip install onnxruntime"):
        open_engine(add_path)


def test_threads(add_path: Path) -> None:
    assert open_engine(add_path, options=EngineOptions(threads=1)).name.endswith("CPU, threads=1")
    assert open_engine(add_path).name.endswith(f"CPU, threads={usable_cores()}")


@pytest.mark.parametrize("allow_spinning", [False, True])
def test_spinning_does_not_change_results(add_path: Path, allow_spinning: bool) -> None:
    engine = OnnxEngine(add_path, threads=2, allow_spinning=allow_spinning)
    result = engine.run({"left": ones(64, 3), "right": ones(64, 3)})
    np.testing.assert_array_equal(result["total"], np.full((64, 3), 2.0))


def test_opening_logs_which_engine_and_why(add_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="engines.selection"):
        open_engine(add_path, engine="auto")
        open_engine(add_path, engine="onnx")
    assert "onnxruntime" in caplog.messages[0]
    assert "engine onnx: onnxruntime" in caplog.messages[0]
    assert "(auto; not tensorrt, tensorrt-rtx, torch: " in caplog.messages[0]
    assert "(asked for by name)" in caplog.messages[1]
