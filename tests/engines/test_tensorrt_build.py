"""Plans of TensorRT for RTX, built on the CPU from the graphs that ship; each in a process that the library may end.

Nothing here runs a plan: that takes a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines import EngineLoadError, EngineOptions, default_artifact, load_artifact
from engines.nvidia_driver import Gpu, NvidiaDriver
from engines.tensorrt_build import _on_device, build_plan, cast_images_first, prepare_graph, profile_of
from tests.engines.graphs import keypoints_graph, model, tensor

ROOT = Path(__file__).resolve().parents[2]
ARTIFACT = load_artifact(default_artifact())
GRAPHS = {"keypoints": str(ARTIFACT.keypoints_path), "segment": str(ARTIFACT.segment_path)}


def build(graph: str | Path, **wish: Any) -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx_libs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.tensorrt_build_report", json.dumps({"graph": str(graph), **wish})],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_keypoints(precision):
    report = build(GRAPHS["keypoints"], options={"precision": precision})
    assert report["precision"] == precision
    assert report["affine_align"] is None
    assert report["layers"]["CONVOLUTION"] == 82
    assert report["layers"]["TOPK"] == 2
    assert report["profile"] == {"image": [[1, 32, 32, 3], [1, 288, 512, 3], [8, 512, 512, 3]]}
    weights = Path(GRAPHS["keypoints"]).stat().st_size
    assert (0.45 if precision == "float16" else 0.9) * weights < report["bytes"] < 1.3 * weights


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("form", ["function", "python"])
def test_segment_with_function_and_with_plugin(precision, form):
    report = build(GRAPHS["segment"], options={"precision": precision}, affine_align=form)
    assert report["affine_align"] == form
    if form == "python":
        assert report["layers"]["PLUGIN_V3"] == 1
        assert "GRID_SAMPLE" not in report["layers"]
    else:
        assert report["layers"]["GRID_SAMPLE"] == 1
        assert "PLUGIN_V3" not in report["layers"]
    assert report["profile"] == {
        "features": [[1, 48, 8, 8], [1, 48, 72, 128], [8, 48, 128, 128]],
        "feature_from_roi": [[1, 2, 3], [4, 2, 3], [32, 2, 3]],
        "roi_image": [[1], [4], [32]],
        "roi_keypoints": [[1, 17, 3], [4, 17, 3], [32, 17, 3]],
    }


def test_auto_on_rtx_is_the_function_body_and_half():
    report = build(GRAPHS["segment"])
    assert (report["affine_align"], report["precision"]) == ("function", "float16")


def test_other_limits_make_another_profile():
    options = {"max_people": 3, "max_batch": 2, "long_side": 640}
    assert build(GRAPHS["keypoints"], options=options)["profile"]["image"][2] == [2, 640, 640, 3]
    profile = build(GRAPHS["segment"], options=options)["profile"]
    assert profile["features"][2] == [2, 48, 160, 160]
    assert profile["roi_image"] == [[1], [3], [3]]


def test_progress_grows_to_one():
    progress = build(GRAPHS["segment"])["progress"]
    assert progress["calls"] > 20
    assert progress["grows"]
    assert progress["last"] == 1.0


@pytest.mark.parametrize("capabilities", [["SM75"], ["SM80", "SM89", "SM120"]])
@pytest.mark.parametrize("form", ["function", "python"])
def test_named_capabilities(capabilities, form):
    assert build(GRAPHS["segment"], capabilities=capabilities, affine_align=form)["bytes"] > 0


def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)")
    monkeypatch.setattr("engines.tensorrt_library.find_nvidia_driver", lambda: bare)


def test_current_capability_without_a_gpu_is_refused_before_the_library_ends_the_process(monkeypatch):
    without_driver(monkeypatch)
    library = SimpleNamespace(
        __name__="tensorrt_rtx", __version__="1.7.1", ComputeCapability=SimpleNamespace(CURRENT=1)
    )
    with pytest.raises(EngineLoadError, match="TensorRT for RTX needs an NVIDIA GPU: no NVIDIA driver"):
        build_plan(library, GRAPHS["segment"], EngineOptions(), capabilities=["CURRENT"])


def test_tensorrt_needs_a_gpu_to_build(monkeypatch):
    without_driver(monkeypatch)
    library = SimpleNamespace(__name__="tensorrt", __version__="11.4.0")
    with pytest.raises(EngineLoadError, match="TensorRT needs an NVIDIA GPU"):
        build_plan(library, GRAPHS["segment"], EngineOptions())


def test_unknown_capability():
    report = build(GRAPHS["segment"], capabilities=["SM90"])
    assert "unknown compute capabilities ['SM90']" in report["message"]
    assert "SM89" in report["message"]


def test_unknown_operator_is_named(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], name="odd_one", domain="elsewhere")],
        "test",
        [tensor("x", TensorProto.FLOAT, 1, 3)],
        [tensor("y", TensorProto.FLOAT, 1, 3)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    report = build(path, options={"precision": "float32"})
    assert report["error"] == "EngineLoadError"
    assert "does not know operator 'Frobnicate' (node 'odd_one')" in report["message"]
    assert "--engine onnx" in report["message"]


def test_our_node_without_its_function_body_is_an_unknown_operator(tmp_path):
    segment = onnx.load(GRAPHS["segment"])
    del segment.functions[:]
    path = tmp_path / "bare.onnx"
    onnx.save(segment, path)
    assert "does not know operator 'AffineAlign'" in build(path, affine_align="function")["message"]
    assert build(path, affine_align="python")["layers"]["PLUGIN_V3"] == 1


def test_plugin_attributes_missing_is_an_error_and_not_silently_the_function(tmp_path):
    segment = onnx.load(GRAPHS["segment"])
    for node in segment.graph.node:
        if node.op_type == "AffineAlign":
            kept = [one for one in node.attribute if one.name == "size"]
            del node.attribute[:]
            node.attribute.extend(kept)
    path = tmp_path / "anonymous.onnx"
    onnx.save(segment, path)
    report = build(path, affine_align="python")
    assert "took the function body instead of our plugin" in report["message"]


@pytest.mark.parametrize("content", [b"", b"no graph", Path(GRAPHS["segment"]).read_bytes()[:5000]])
def test_file_that_is_no_graph(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineLoadError, match=r"broken\.onnx: not a complete ONNX graph"):
        prepare_graph(path, "float32", keep_plugin=True)


def test_an_error_in_the_progress_callback_ends_the_build():
    code = f"""
from engines import EngineOptions
from engines.tensorrt_build import build_plan
def stop(share, phase): raise KeyboardInterrupt("enough")
try:
    build_plan("tensorrt-rtx", {GRAPHS["segment"]!r}, EngineOptions(), progress=stop)
except KeyboardInterrupt as error:
    print("ended by", error)
"""
    pytest.importorskip("tensorrt_rtx_libs")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "ended by enough\n", done.stderr


def test_bfloat16_and_unquantised_int8_are_refused():
    with pytest.raises(EngineLoadError, match="float32, float16 or int8: choose --precision float16"):
        prepare_graph(Path(GRAPHS["segment"]), "bfloat16", keep_plugin=True)
    with pytest.raises(EngineLoadError, match="needs a graph with quantise and dequantise nodes"):
        prepare_graph(Path(GRAPHS["keypoints"]), "int8", keep_plugin=True)


def test_segment_beside_an_int8_keypoint_graph_takes_float32_features():
    made, precision = prepare_graph(Path(GRAPHS["segment"]), "int8", keep_plugin=True)
    assert precision == "float16"
    assert {value.name: value.type.tensor_type.elem_type for value in made.graph.input}["features"] == TensorProto.FLOAT


def test_uint8_images_are_read_by_a_cast_alone():
    prepared = onnx.load_from_string(keypoints_graph())
    cast_images_first(prepared)
    onnx.checker.check_model(prepared, full_check=True)
    readers = [node.op_type for node in prepared.graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_sizes_without_a_meaning_are_refused(tmp_path):
    path = tmp_path / "free.onnx"
    path.write_bytes(
        model(
            [helper.make_node("Relu", ["x"], ["y"])],
            [tensor("x", TensorProto.FLOAT, "K", 3)],
            [tensor("y", TensorProto.FLOAT, "K", 3)],
            {},
        )
    )
    report = build(path, options={"precision": "float32"})
    assert "input 'x' is (-1, 3) with a dynamic size on axis 0" in report["message"]


def test_function_body_without_a_matrix_product_computes_the_same():
    """Turing has no float32 matrix product in TensorRT for RTX; the body's one is written out."""
    rng = np.random.default_rng(0)
    n = 5
    matrix = rng.normal(size=(n, 2, 3)).astype(np.float32) * 0.3
    matrix[:, :, 2] = rng.uniform(0, 20, (n, 2))
    matrix[1, 0, 0] = np.nan
    feeds = {
        "features": rng.normal(size=(2, 48, 24, 32)).astype(np.float32),
        "feature_from_roi": matrix,
        "roi_image": rng.integers(0, 2, n).astype(np.int32),
        "roi_keypoints": rng.uniform(0, 64, (n, 17, 3)).astype(np.float32).round(),
    }
    prepared, _ = prepare_graph(Path(GRAPHS["segment"]), "float32", keep_plugin=False)
    assert all(node.op_type != "MatMul" for function in prepared.functions for node in function.node)
    results = []
    for graph in (onnx.load(GRAPHS["segment"]), prepared):
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_profile_rounds_the_long_side_up():
    low, best, high = profile_of("image", (-1, -1, -1, 3), EngineOptions(long_side=500, max_batch=4))
    assert (low, best, high) == ((1, 32, 32, 3), (1, 288, 512, 3), (4, 512, 512, 3))
    assert all(np.array(side) % 32 == 0 for shape in (low, best, high) for side in shape[1:3])


def test_the_plan_is_built_on_the_gpu_that_was_asked_for(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def on_device(index: int) -> Iterator[None]:
        entered.append(index)
        yield

    gpus = tuple(Gpu(index, "H100", (9, 0), 1 << 36) for index in range(2))
    driver = NvidiaDriver(version="580", cuda=(13, 0), gpus=gpus)
    monkeypatch.setattr("engines.tensorrt_build.find_nvidia_driver", lambda: driver)
    monkeypatch.setattr("engines.torch_memory.on_device", on_device)
    for device in (None, "cuda:0", "cuda:1"):
        with _on_device(device):
            pass
    assert entered == [1]
