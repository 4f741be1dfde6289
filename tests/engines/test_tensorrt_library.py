"""The loader of TensorRT: what is missing, too old or broken is said with what to do; one Logger for the process."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines import EngineLoadError, tensorrt_library
from engines.nvidia_driver import Gpu, NvidiaDriver
from engines.tensorrt_library import driver_problem, load_library, logger_of, reason_in, speaks_of_memory, title_of

ROOT = Path(__file__).resolve().parents[2]
H100 = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30)


def install(monkeypatch: pytest.MonkeyPatch, name: str, version: str, **members: Any) -> ModuleType:
    """Put a module in place of the library."""
    module = ModuleType(name)
    module.__dict__.update(members, __version__=version)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_unknown_name():
    with pytest.raises(EngineLoadError, match="unknown TensorRT library 'trt': choose one of tensorrt, tensorrt-rtx"):
        load_library("trt")


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [("tensorrt", "tensorrt", "pip install tensorrt-cu13"), ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu13")],
)
def test_not_installed(monkeypatch, name, module, advice):
    class Refuse:
        def find_spec(self, wanted: str, path: object = None, target: object = None) -> None:
            if wanted.partition(".")[0].removesuffix("_libs") == module:
                raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(EngineLoadError, match=f"is not installed .*{advice}"):
        load_library(name)


def test_installed_without_its_shared_libraries(monkeypatch):
    def fail(name: str) -> ModuleType:
        raise ImportError("libnvinfer.so.11: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(EngineLoadError, match=r"shared libraries do not load \(libnvinfer\.so\.11: cannot open"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("10.7.0", r"TensorRT 10\.7\.0 is too old, 10\.8 or newer is needed"),
        ("8.6.1", "is too old"),
        ("", "TensorRT of unknown version is too old"),
        ("10.14.1.48", r"10\.14\.1\.48 cannot build our plugin .*take an older or a newer release"),
    ],
)
def test_versions_that_do_not_do(monkeypatch, version, message):
    install(monkeypatch, "tensorrt", version)
    with pytest.raises(EngineLoadError, match=message):
        load_library("tensorrt")


@pytest.mark.parametrize("version", ["10.8.0.43", "10.13.3", "10.15.1", "10.16.1.11", "11.0.0", "11.4.0.106"])
def test_versions_that_do(monkeypatch, version):
    module = install(monkeypatch, "tensorrt", version)
    assert load_library("tensorrt") is module
    assert title_of(module) == f"TensorRT {'.'.join(version.split('.')[:3])}"


def test_rtx_too_old(monkeypatch):
    install(monkeypatch, "tensorrt_rtx", "1.2.0.54")
    with pytest.raises(EngineLoadError, match=r"TensorRT for RTX 1\.2\.0\.54 is too old, 1\.7 or newer"):
        load_library("tensorrt-rtx")


def test_one_logger_for_the_process_that_remembers_errors(monkeypatch, caplog):
    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    monkeypatch.setattr(tensorrt_library, "_loggers", {})
    module = SimpleNamespace(__name__="tensorrt", ILogger=ILogger)
    caplog.set_level(logging.DEBUG)
    logger = logger_of(module)
    assert logger_of(module) is logger
    logger.log(ILogger.ERROR, "first")
    logger.log(ILogger.INTERNAL_ERROR, "second")
    logger.log(ILogger.WARNING, "careful")
    logger.log(ILogger.VERBOSE, "chatter")
    assert logger.take_errors() == ["first", "second"]
    assert logger.take_errors() == []
    # An error becomes an exception, so it is no log line of its own.
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG", "INFO", "DEBUG"]


def test_reason():
    assert reason_in([]) == "it gave no reason"
    assert reason_in(["--- Begin node ---", "ModelImporter.cpp:140: While parsing", "really\n  this"]) == "really this"
    assert speaks_of_memory(["Error Code 2: OutOfMemory (Requested size was 4096 bytes.)"])
    assert speaks_of_memory(["CUDA error: out of memory"])
    assert not speaks_of_memory(["Error Code 1: Cuda Runtime (cudaError 209)"])


# --------------------------------------------------------------------------------------------------------- driver


@pytest.mark.parametrize(
    ("driver", "cuda", "message"),
    [
        (NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)"), 13, "needs an NVIDIA GPU: no NVIDIA"),
        (NvidiaDriver(version="580.1", cuda=(13, 0), problem="no GPU"), 13, "needs an NVIDIA GPU: no GPU"),
        (
            NvidiaDriver(version="550.54", cuda=(12, 4), gpus=(H100,)),
            13,
            r"was made for CUDA 13, driver 550\.54 knows CUDA 12\.4 at most: install a newer driver \(580 or later\)",
        ),
    ],
)
def test_driver_that_does_not_do(driver, cuda, message):
    problem = driver_problem("tensorrt", driver, cuda_of_library=cuda)
    assert problem is not None
    with pytest.raises(EngineLoadError, match=message):
        raise EngineLoadError(problem)


def test_driver_that_does():
    driver = NvidiaDriver(version="580.95", cuda=(13, 0), gpus=(H100,))
    assert driver_problem("tensorrt", driver, cuda_of_library=13) is None
    assert driver_problem("tensorrt-rtx", driver, cuda_of_library=12) is None


# ------------------------------------------------------------------------------------------------------- the real RTX


def run_python(code: str) -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx_libs")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_the_real_wheel_loads_our_way():
    report = run_python("""
import json
from engines.tensorrt_library import *
from engines.tensorrt_library import has_aot_plugins, is_rtx, python_plugins_are_safe
trt = load_library("tensorrt-rtx")
print(json.dumps({"again": load_library("tensorrt-rtx") is trt, "safe": python_plugins_are_safe(trt),
                  "rtx": is_rtx(trt), "aot": has_aot_plugins(trt), "title": title_of(trt)}))
""")
    assert report["again"] and report["safe"] and report["rtx"]
    assert not report["aot"]
    assert report["title"].startswith("TensorRT for RTX 1.")


def test_rtx_imported_by_somebody_else_is_told_apart():
    report = run_python("""
import json
import tensorrt_rtx
from engines.tensorrt_library import load_library, python_plugins_are_safe
trt = load_library("tensorrt-rtx")
print(json.dumps({"safe": python_plugins_are_safe(trt)}))
""")
    assert report == {"safe": False}


def test_deserialising_without_a_driver_is_an_error_and_not_a_crash():
    """No driver here, or a plan that is none: TensorRT returns None and says why in its log only."""
    report = run_python("""
import json
from engines.tensorrt_library import load_library, logger_of, reason_in
trt = load_library("tensorrt-rtx")
logger = logger_of(trt)
engine = trt.Runtime(logger).deserialize_cuda_engine(b"not a plan" * 100)
print(json.dumps({"none": engine is None, "reason": reason_in(logger.take_errors())}))
""")
    assert report["none"]
    assert report["reason"] != "it gave no reason"
