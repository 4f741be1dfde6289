"""The plugin for TensorRT: its declaration against TensorRT's own Python layer, and the classes that run it for RTX.

Proven here: what the decorators accept, shapes, types, launch sizes, order of arguments. Not here: that a TensorRT with
a GPU builds it, and that the kernel runs; that is for benchmarks/gpu_check.sh.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineLoadError, tensorrt_library, tensorrt_plugin
from kernels.affine_align.launch_shapes import CHANNELS_PER_THREAD, THREADS
from kernels.native.compile import NativeBuildError
from tests.engines.tensorrt_bindings import COMPILER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def aot_report() -> dict[str, Any]:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    if COMPILER is None:
        pytest.skip("no C++ compiler for the stubs under the bindings")
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.aot_plugin_report"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_tensorrt_accepts_the_declaration(aot_report):
    assert aot_report["registered"] == ["pose2seg", "AffineAlign"]
    assert aot_report["fields"] == {"size": "INT32"}
    assert aot_report["aot"]


@pytest.mark.parametrize(("features", "element"), [("FLOAT", "f32"), ("HALF", "f16")])
def test_ahead_of_time_launch(aot_report, features, element):
    launch = aot_report["launches"][features]
    assert launch["output_type"] == features
    assert launch["output_shape"] == ["N", "C", 64, 64]
    assert launch["combinations"] == [["FLOAT", "FLOAT", "INT32", "FLOAT"], ["HALF", "FLOAT", "INT32", "HALF"]]
    assert launch["formats"] == ["LINEAR"]
    assert (launch["kernel"], launch["image_is_ours"]) == (f"affine_align_nchw_{element}", True)
    sizes = {name: value[1] for name, value in launch["launch"].items()}
    assert sizes == {
        "grid_x": 64 * 64 // THREADS,
        "grid_y": ["CEIL_DIV", "C", CHANNELS_PER_THREAD],
        "grid_z": "N",
        "block_x": THREADS,
        "block_y": 1,
        "block_z": 1,
        "shared_mem": 0,
    }
    assert launch["arguments"] == [["SymInt32", size] for size in ("B", "C", "h", "w", 64)]


def test_the_kernel_takes_what_is_passed_in_that_order():
    """Ahead-of-time plugins pass inputs, whole numbers, outputs; nobody else would notice two that changed places."""
    declared = re.search(r"affine_align_##LAYOUT##_##DTYPE\((.*?)\)", tensorrt_plugin.SOURCE.read_text(), re.DOTALL)
    assert declared is not None
    arguments = [one.replace("\\", " ").split()[-1].lstrip("*") for one in declared[1].split(",")]
    assert arguments == ["features", "theta", "roi_image", "B", "C", "H", "W", "S", "out"]


# ------------------------------------------------------------------------------------------------- the classes for RTX


class Part:
    def __init__(self) -> None:
        pass


class Field:
    def __init__(self, name: str, data: Any, type: Any) -> None:  # noqa: A002  the real name
        self.name, self.data, self.type = name, data, type


def library() -> Any:
    """What the Python plugin takes of the library, by names alone."""
    made = ModuleType("tensorrt_rtx")
    for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One"):
        setattr(made, name, type(name, (Part,), {}))
    made.__dict__.update(
        PluginField=Field,
        PluginFieldCollection=list,
        PluginFieldType=SimpleNamespace(INT32="int32"),
        DataType=SimpleNamespace(FLOAT="f32", HALF="f16", INT32="i32"),
        TensorFormat=SimpleNamespace(LINEAR="linear"),
        DimsExprs=lambda n: [None] * n,
    )
    return made


class Launches:
    """In place of DeviceModule."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.calls: list[tuple[Any, ...]] = []
        made.append(self)

    def launch(self, *arguments: Any) -> None:
        self.calls.append(arguments)


made: list[Launches] = []


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    made.clear()
    monkeypatch.setattr(tensorrt_plugin, "DeviceModule", Launches)
    creator = tensorrt_plugin.make_plugin_creator(library(), lambda: b"image")
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("AffineAlign", "1", "pose2seg")
    assert [field.name for field in creator.field_names] == ["size"]
    return creator.create_plugin("any", [Field("size", np.array([20], np.int32), "int32")], None)


def test_shapes_and_types(plugin):
    expressions = SimpleNamespace(constant=lambda value: f"={value}")
    (shape,) = plugin.get_output_shapes([["B", "C", "h", "w"], ["N", 2, 3], ["N"]], [], expressions)
    assert shape == ["N", "C", "=20", "=20"]
    assert plugin.get_output_data_types(["f16", "f32", "i32"]) == ["f16"]
    (field,) = plugin.get_fields_to_serialize()
    assert (field.name, field.data.tolist(), field.type) == ("size", [20], "int32")


def test_formats(plugin):
    def ask(types: list[str], position: int, layout: str = "linear") -> bool:
        described = [SimpleNamespace(desc=SimpleNamespace(type=one, format=layout)) for one in types]
        answer = plugin.supports_format_combination(position, described, 3)
        assert isinstance(answer, bool)
        return answer

    for features in ("f32", "f16"):
        good = [features, "f32", "i32", features]
        assert all(ask(good, position) for position in range(4))
        assert not any(ask(good, position, "channels_last") for position in range(4))
    assert not ask(["i32", "f32", "i32", "i32"], 0)
    assert not ask(["f16", "f16", "i32", "f16"], 1)  # half matrices would misplace people
    assert not ask(["f16", "f32", "f32", "f16"], 2)
    assert not ask(["f16", "f32", "i32", "f32"], 3)


@pytest.mark.parametrize(("kind", "kernel"), [("f32", "affine_align_nchw_f32"), ("f16", "affine_align_nchw_f16")])
def test_launch(plugin, kind, kernel):
    described = [
        SimpleNamespace(dims=dims, type=one) for dims, one in (((2, 13, 7, 9), kind), ((5, 2, 3), "f32"), ((5,), "i32"))
    ]
    copy = plugin.clone().attach_to_context(None)
    copy.enqueue(described, [], [11, 12, 13], [14], None, 77)
    copy.enqueue(described, [], [11, 12, 13], [14], None, 77)
    (launches,) = made  # the image is loaded once, whatever copies TensorRT makes
    assert launches.image == b"image"
    name, grid, block, stream, *arguments = launches.calls[0]
    assert (name, stream) == (kernel, 77)
    assert block == (THREADS, 1, 1)
    assert grid == (-(-400 // THREADS), -(-13 // CHANNELS_PER_THREAD), 5)
    assert [argument.value for argument in arguments] == [11, 12, 13, 2, 13, 7, 9, 20, 14]
    assert [type(argument) for argument in arguments] == [ctypes.c_void_p] * 3 + [ctypes.c_int] * 5 + [ctypes.c_void_p]


def test_nobody_is_no_launch(plugin):
    described = [SimpleNamespace(dims=dims, type="f32") for dims in ((2, 13, 7, 9), (0, 2, 3), (0,))]
    plugin.enqueue(described, [], [1, 2, 3], [4], None, 7)
    assert made == []


def test_missing_size(plugin):
    creator = tensorrt_plugin.make_plugin_creator(library(), lambda: b"image")
    with pytest.raises(ValueError, match="needs the attribute size"):
        creator.create_plugin("any", [], None)


def test_library_without_ahead_of_time_plugins():
    rtx = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1", ComputeCapability=object())
    with pytest.raises(EngineLoadError, match=r"TensorRT for RTX 1\.7\.1 has no ahead-of-time plugins"):
        tensorrt_plugin.register_aot_plugin(rtx, lambda: b"")


@pytest.mark.skipif(sys.platform != "linux", reason="the wheel's fault is one of Linux")
def test_rtx_that_somebody_else_imported_first(monkeypatch):
    """Its parser would end the process at our node."""
    monkeypatch.setattr(tensorrt_library, "_preloaded_by_us", set())
    rtx = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1", ComputeCapability=object())
    with pytest.raises(EngineLoadError, match="import pose2seg first, or build with the function body"):
        tensorrt_plugin.register_python_plugin(rtx, lambda: b"")


# ---------------------------------------------------------------------------------------------------------- the kernel


def test_kernel_for_a_known_gpu_is_its_machine_code_and_for_others_ptx(monkeypatch):
    asked = []
    monkeypatch.setattr(
        tensorrt_plugin,
        "device_image",
        lambda source, *, architecture, kind: asked.append((architecture, kind)) or b"i",
    )
    for capability in ((9, 0), (8, 9), (13, 7), None):
        assert tensorrt_plugin.kernel_image(capability) == b"i"
    assert asked == [("90", "cubin"), ("89", "cubin"), ("75", "ptx"), ("75", "ptx")]
    asked.clear()
    for capability in ((9, 0), (13, 7), None):
        tensorrt_plugin.kernel_image(capability, as_ptx=True)
    assert asked == [("90", "ptx"), ("75", "ptx"), ("75", "ptx")]


def test_no_compiler_is_a_load_error(monkeypatch):
    def fail(*_: Any, **__: Any) -> bytes:
        raise NativeBuildError("neither nvcc nor libnvrtc was found")

    monkeypatch.setattr(tensorrt_plugin, "device_image", fail)
    with pytest.raises(EngineLoadError, match="plugin cannot be compiled: neither nvcc nor libnvrtc"):
        tensorrt_plugin.kernel_image((9, 0))
