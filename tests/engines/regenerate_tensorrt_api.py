"""Writes tests/engines/tensorrt_api.json, the part of three real libraries' Python interface that we use.

pip download --no-deps -d W tensorrt-cu13-bindings==10.16.1.11   (and 11.4.0.106); unzip each wheel to a folder
python -m tests.engines.regenerate_tensorrt_api 10.16=FOLDER 11.4=FOLDER rtx-1.7=-     ("-" is the installed one)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("tensorrt_api.json")

#: Classes whose objects our files handle.
CLASSES = [
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "EngineValidity",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginCreatorV3One",
    "IPluginRegistry",
    "IPluginV3",
    "IPluginV3OneBuild",
    "IPluginV3OneCore",
    "IPluginV3OneRuntime",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "LayerType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "PluginField",
    "PluginFieldType",
    "QuickPluginCreationRequest",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
]

_ONE = """
import json, sys
from pathlib import Path
from tests.engines.tensorrt_bindings import interface, load_bindings
label, folder = sys.argv[1:]
if label.startswith("rtx"):
    from engines.tensorrt_library import load_library
    module = load_library("tensorrt-rtx")
else:
    module = load_bindings(None if folder == "-" else Path(folder))
print(json.dumps(interface(module)))
"""


def read(label: str, folder: str) -> dict[str, dict[str, object]]:
    """Interface of one library, read in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _ONE, label, folder], cwd=root, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[name] for name in CLASSES if name in found}


def main() -> None:
    wanted = dict(argument.split("=", 1) for argument in sys.argv[1:])
    libraries = {label: read(label, folder) for label, folder in wanted.items()}
    TARGET.write_text(json.dumps(libraries, indent=None, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
