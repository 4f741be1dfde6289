"""The optional converter. torch2trt is in no package index, so its part is played by stand_ins/torch2trt.py, which
says what that proves; TensorRT for RTX, which builds the plan, is the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engines import EngineLoadError, EngineOptions, default_artifact, load_artifact, open_engine
from engines import torch2trt_converter as converter
from tests.engines.graphs import tensor

ROOT = Path(__file__).resolve().parents[2]
ARTIFACT = load_artifact(default_artifact())
FLOAT = TensorProto.FLOAT


def align_and_convolve(path: Path) -> Path:
    """A small segment graph of operators that torch2trt has: align, convolve twice, add, sigmoid."""
    rng = np.random.default_rng(0)
    shipped = onnx.load(ARTIFACT.segment_path)
    weights = {"w1": (6, 4, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3)}
    nodes = [
        helper.make_node(
            "AffineAlign",
            ["features", "feature_from_roi", "roi_image"],
            ["aligned"],
            domain="pose2seg",
            size=16,
            plugin_namespace="pose2seg",
            plugin_version="1",
        ),
        helper.make_node("Conv", ["aligned", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            tensor("features", FLOAT, "B", 4, "h", "w"),
            tensor("feature_from_roi", FLOAT, "N", 2, 3),
            tensor("roi_image", TensorProto.INT32, "N"),
        ],
        [tensor("probabilities", FLOAT, "N", 6, 16, 16)],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) * 0.3, n) for n, s in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pose2seg", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(shipped.functions))
    onnx.save(made, path)
    return path


def run_python(code: str, *path: Path) -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx_libs")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_a_plan_by_way_of_the_stand_in(tmp_path):
    path = align_and_convolve(tmp_path / "small.onnx")
    report = run_python(
        f"""
import json
from engines import EngineOptions
from engines.torch2trt_converter import build_plan
told = []
options = EngineOptions(max_people=5, long_side=256)
built = build_plan("tensorrt-rtx", {str(path)!r}, options, progress=lambda share, phase: told.append(share))
print(json.dumps({{"bytes": len(built.plan), "layers": built.layers, "profile": dict(built.profile),
                  "form": built.affine_align, "precision": built.precision, "last": told[-1]}}))
""",
        ROOT / "tests" / "engines" / "stand_ins",
    )
    assert report["bytes"] > 1000
    assert report["layers"].count("CONVOLUTION") == 2
    assert report["layers"].count("GRID_SAMPLE") == 1
    assert (report["form"], report["precision"], report["last"]) == ("function", "float32", 1.0)
    assert report["profile"]["features"][2] == [1, 4, 40, 64]
    assert report["profile"]["roi_image"] == [[5], [5], [5]]


def test_the_module_computes_what_the_graph_does(tmp_path):
    path = align_and_convolve(tmp_path / "small.onnx")
    rng = np.random.default_rng(1)
    feeds = {
        "features": rng.normal(size=(2, 4, 20, 24)).astype(np.float32),
        "feature_from_roi": np.array([[[0.8, 0.1, 2], [-0.1, 0.9, 3]], [[1.5, 0, -3], [0, 1.2, 5]]], np.float32),
        "roi_image": np.array([1, 0], np.int32),
    }
    expected = open_engine(path, engine="onnx").run(feeds)["probabilities"]
    with torch.no_grad():
        (result,) = converter.GraphModule(path)(*map(torch.from_numpy, feeds.values()))
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2e-5)


def test_torch2trt_is_missing(tmp_path):
    report = run_python(f"""
import json
from engines import EngineLoadError, EngineOptions
from engines.torch2trt_converter import build_plan
try:
    build_plan("tensorrt-rtx", {str(align_and_convolve(tmp_path / "small.onnx"))!r}, EngineOptions())
except EngineLoadError as error:
    print(json.dumps({{"message": str(error)}}))
""")
    assert "torch2trt is not installed: pip install" in report["message"]
    assert "github.com/NVIDIA-AI-IOT/torch2trt" in report["message"]


def test_shipped_graphs_are_refused_with_the_operators_that_are_missing():
    with pytest.raises(EngineLoadError, match=r"has no converter for .*GatherElements.*TopK.*leave --converter"):
        converter.GraphModule(ARTIFACT.graph_path("keypoints"))
    with pytest.raises(EngineLoadError, match=r"has no converter for .*Where"):
        converter.GraphModule(ARTIFACT.segment_path)


def test_uint8_input_is_refused(tmp_path):
    path = tmp_path / "bytes.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["out"])],
        "test",
        [tensor("image", TensorProto.UINT8, 1, 4, 4, 3)],
        [tensor("out", TensorProto.UINT8, 1, 4, 4, 3)],
    )
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(EngineLoadError, match="takes no uint8 input such as 'image'"):
        converter.GraphModule(path)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions_are_refused(monkeypatch, precision):
    monkeypatch.setattr(converter, "load_torch2trt", lambda trt: None)
    monkeypatch.setattr(converter, "require_machine", lambda trt, capabilities: None)
    with pytest.raises(EngineLoadError, match=f"makes float32 plans, not {precision}"):
        converter.build_plan(SimpleNamespace(), "any.onnx", EngineOptions(precision=precision))


def test_shim_leaves_tensorrt_10_alone(monkeypatch):
    ten = SimpleNamespace(__name__="tensorrt", __version__="10.16.1")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    converter.install_shim(ten)
    assert sys.modules["tensorrt"] is ten


def test_the_library_stays_as_it_was_for_everybody_else():
    """The stand-in module is for torch2trt alone; a second user of TensorRT must not meet it by `import tensorrt`."""
    report = run_python(
        """
import json, sys, types
mine = sys.modules["tensorrt"] = types.ModuleType("tensorrt")
from engines.tensorrt_library import load_library
from engines.torch2trt_converter import load_torch2trt
module = load_torch2trt(load_library("tensorrt-rtx"))
print(json.dumps({"back": sys.modules["tensorrt"] is mine, "version": module.trt.__version__}))
""",
        ROOT / "tests" / "engines" / "stand_ins",
    )
    assert report == {"back": True, "version": "11.0"}
