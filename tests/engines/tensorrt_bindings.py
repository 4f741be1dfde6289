"""The Python layer of TensorRT without TensorRT: its bindings wheel loads once three libraries of stubs lie beneath it.

Classes, enums, signatures and the package `tensorrt.plugin` are the real ones; whatever would call the library gives
nothing. Use it in a process of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

STUBBED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What the bindings import by name; the rest they reach through what these return."""

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def load_bindings(folder: Path | None = None) -> ModuleType:
    """Import the bindings as `tensorrt`.

    Args:
        folder: an unpacked wheel of tensorrt-cu13-bindings; None takes the installed one.
    """
    if folder is not None:
        sys.path.insert(0, str(folder))
    found = importlib.util.find_spec("tensorrt_bindings")
    package = Path(next(iter(found.submodule_search_locations)))
    major = re.search(r"libnvinfer\.so\.(\d+)", (package / "tensorrt.so").read_bytes().decode("latin-1"))
    assert major is not None
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "stub.cpp")
        source.write_text("".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in STUBBED))
        for library in LIBRARIES:
            name = f"lib{library}.so.{major[1]}"
            made = Path(scratch, name)
            subprocess.run(
                [COMPILER, "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(made)], check=True
            )
            ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)  # found by its name from now on
    module = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = module
    return module


def interface(module: ModuleType) -> dict[str, dict[str, Any]]:
    """Class -> member -> "property", "property readonly", "value", or the argument names of each overload."""
    return {
        name: {
            member: _described(member, value)
            for member, value in sorted(vars(owner).items())
            if not member.startswith("_")
        }
        for name, owner in sorted(vars(module).items())
        if isinstance(owner, type) and not name.startswith("_") and owner.__module__ != "builtins"
    }


def _described(name: str, value: Any) -> Any:
    if isinstance(value, property):
        return "property" if value.fset is not None else "property readonly"
    if not callable(value):
        return "value"
    overloads = re.findall(rf"(?:^|\n)(?:\d+\. )?{name}\((.*?)\) -> ", value.__doc__ or "")
    return [_arguments(text) for text in overloads if text != "*args, **kwargs"]


def _arguments(text: str) -> list[str]:
    """Names of "self: A, name: B[C, D] = <E: 0>, other: F" without self."""
    depth, names, start = 0, [], True
    word = ""
    for letter in text:
        depth += (letter in "[<(") - (letter in "]>)")
        if depth == 0 and letter == ",":
            start, word = True, ""
        elif start and letter == ":":
            names.append(word.strip())
            start = False
        elif start:
            word += letter
    return [name for name in names if name != "self"]
