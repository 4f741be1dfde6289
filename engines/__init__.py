"""Run an artifact: named tensors in, named tensors out.

An artifact (`engines.artifact`) is the folder that crosses from training to serving: a manifest and ONNX graphs. An
engine (`engines.engine`) runs one graph of it. Nothing here knows what a person is, and nothing here imports a model
class. A runtime library is imported by its own engine file only, and only when that engine is opened.
"""

from __future__ import annotations

from engines.artifact import Artifact, default_artifact, load_artifact, open_graph, open_graphs, write_artifact
from engines.engine import (
    ENGINE_NAMES,
    PRECISIONS,
    Announce,
    ArtifactError,
    DeviceEngine,
    Engine,
    EngineError,
    EngineLoadError,
    EngineOptions,
    EngineOutOfMemory,
    EngineRunError,
    TensorSpec,
    announce_in_log,
    open_engine,
)

__all__ = [
    "ENGINE_NAMES",
    "PRECISIONS",
    "Announce",
    "Artifact",
    "ArtifactError",
    "DeviceEngine",
    "Engine",
    "EngineError",
    "EngineLoadError",
    "EngineOptions",
    "EngineOutOfMemory",
    "EngineRunError",
    "TensorSpec",
    "announce_in_log",
    "default_artifact",
    "load_artifact",
    "open_engine",
    "open_graph",
    "open_graphs",
    "write_artifact",
]
