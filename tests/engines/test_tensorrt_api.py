"""Everything that our files call in TensorRT exists in the real 10.16, 11.4 and RTX 1.7, with the arguments we give.

tensorrt_api.json was read off their bindings (regenerate_tensorrt_api.py). Two of them are installed for this suite, so
the file is compared with those; 10.16 cannot lie beside 11.4, and stands in the file alone.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.fake_tensorrt import FakeMemory, World
from tests.engines.regenerate_tensorrt_api import TARGET, read
from tests.engines.tensorrt_bindings import COMPILER

ROOT = Path(__file__).resolve().parents[2]
API: dict[str, dict[str, dict[str, Any]]] = json.loads(TARGET.read_text())
TENSORRT, RTX = ("10.16", "11.4"), "rtx-1.7"
EVERYWHERE = (*TENSORRT, RTX)

# What a variable of our source holds.
CLASS_OF = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "context": "IExecutionContext",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "cache": "IRuntimeCache",
    "self._kernel_cache": "IRuntimeCache",
}
CONFIG_OF = {"tensorrt_build.py": "IBuilderConfig", "tensorrt_engine.py": "IRuntimeConfig"}
ONLY_RTX = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "EngineValidity",
    "IRuntimeCache",
    "Runtime.get_engine_validity",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
ONLY_TENSORRT = {"NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS", "QuickPluginCreationRequest"}
NOT_CLASSES = {
    "__name__",
    "__version__",
    "get_plugin_registry",
    "DimsExprs",
    "PluginFieldCollection",
}  # functions, lists


def uses() -> list[tuple[str, str, str | None, int]]:
    """(file, class, member, line) of what our sources take from the library."""
    found: list[tuple[str, str, str | None, int]] = []
    for name in ("tensorrt_build.py", "tensorrt_engine.py", "tensorrt_plugin.py", "tensorrt_library.py"):
        tree = ast.parse((ROOT / "engines" / name).read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = (
                ast.unparse(node.value).replace("slot.context", "context").replace("self._shared_context", "context")
            )
            if owner in {"trt", "self._trt"} and node.attr not in NOT_CLASSES:
                found.append((name, node.attr, None, node.lineno))
            elif owner == "trt.get_plugin_registry()":
                found.append((name, "IPluginRegistry", node.attr, node.lineno))
            elif owner.startswith(("trt.", "self._trt.")):
                found.append((name, owner.rpartition(".")[2], node.attr, node.lineno))
            elif owner == "config" and name in CONFIG_OF:
                found.append((name, CONFIG_OF[name], node.attr, node.lineno))
            elif owner == "flag" and name == "tensorrt_build.py":
                found.append((name, "NetworkDefinitionCreationFlag", node.attr, node.lineno))
            elif owner in CLASS_OF and name in CONFIG_OF:
                found.append((name, CLASS_OF[owner], node.attr, node.lineno))
    return found


def libraries_for(owner: str, member: str | None) -> tuple[str, ...]:
    if owner in ONLY_RTX or f"{owner}.{member}" in ONLY_RTX:
        return (RTX,)
    if owner in ONLY_TENSORRT or f"{owner}.{member}" in ONLY_TENSORRT:
        return TENSORRT
    return EVERYWHERE


def test_every_class_and_member_that_we_use_exists():
    seen = uses()
    assert len(seen) > 60
    for file, owner, member, line in seen:
        for library in libraries_for(owner, member):
            where = f"{file}:{line}: {owner}.{member} in {library}"
            assert owner in API[library], where
            if member is not None and not member.startswith("__"):
                assert member in API[library][owner], where


def test_every_method_is_called_with_as_many_arguments_as_it_takes():
    checked = 0
    for name, config in CONFIG_OF.items():
        for node in ast.walk(ast.parse((ROOT / "engines" / name).read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value).replace("slot.context", "context")
            kind = config if owner == "config" else CLASS_OF.get(owner)
            if kind is None or any(isinstance(one, ast.Starred) for one in node.args):
                continue
            for library in libraries_for(kind, node.func.attr):
                overloads = API[library][kind][node.func.attr]
                assert any(len(node.args) <= len(arguments) for arguments in overloads), ast.unparse(node)
                checked += 1
    assert checked > 40


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_the_fake_library_has_nothing_that_the_real_ones_lack(name):
    module = World(FakeMemory(), lambda feeds: {}, name=name).module
    libraries = (RTX,) if name == "tensorrt_rtx" else TENSORRT
    compared = 0
    for owner, kind in vars(module).items():
        if (
            not isinstance(kind, type)
            or owner not in API[RTX]
            or owner.startswith(("PluginField", "IPluginV3", "IPluginC"))
        ):
            continue
        for member, value in vars(kind).items():
            if member.startswith("_") or member == "dtype":  # a helper of the fake
                continue
            for library in libraries:
                real = API[library][owner]
                assert member in real, f"{owner}.{member} in {library}"
                if inspect.isfunction(value):
                    arguments = list(inspect.signature(value).parameters)[1:]
                    assert any(arguments == one[: len(arguments)] for one in real[member]), (
                        owner,
                        member,
                        real[member],
                    )
                    compared += 1
    assert compared >= 20


@pytest.mark.parametrize(("label", "package"), [("11.4", "tensorrt_bindings"), ("rtx-1.7", "tensorrt_rtx_bindings")])
def test_the_file_is_what_the_installed_library_says(label, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if COMPILER is None:
        pytest.skip("no C++ compiler for the stubs under the bindings")
    assert read(label, "-") == API[label]
