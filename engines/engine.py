"""What every engine is: named tensors in, named tensors out, and errors that say what to do.

EngineError (RuntimeError)
├── EngineLoadError    the graph or its runtime cannot be used here
├── EngineRunError     a call with the wrong tensors, or a call that failed
└── ArtifactError      the model folder is incomplete, damaged or foreign (raised by engines.artifact)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

ENGINE_NAMES = ("auto", "onnx")
"""Values of `--engine`. `auto` takes the best one that works on this machine."""


class EngineError(RuntimeError):
    """Something between a model folder and its result tensors went wrong."""


class EngineLoadError(EngineError):
    """The graph, or the library that should run it, cannot be used on this machine."""


class EngineRunError(EngineError):
    """A call with wrong tensors, a call on a closed engine, or a call that failed inside the runtime."""


class ArtifactError(EngineError):
    """The model folder is incomplete, damaged, or not one of ours."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of one tensor of a graph.

    Args:
        name: as in the graph.
        dtype: numpy dtype of the elements.
        shape: an int is a fixed size, a str the name of a size that may differ from call to call. Within one call the
            same name means the same size in every input.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


class Engine(Protocol):
    """One graph, loaded and ready. Not thread-safe: a stage owns its engine."""

    @property
    def name(self) -> str:
        """Which runtime runs the graph, for people: library, version, device, threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors `run` wants, in graph order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors `run` gives, in graph order."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: exactly one array per input, of its dtype and shape; no size may be 0 (skip the call instead).

        Returns:
            One new array per output; the caller owns them.

        Raises:
            EngineRunError: names, dtypes or shapes differ from `inputs`, the engine is closed, or the runtime failed.
        """

    def close(self) -> None:
        """Free what the engine holds. A second call does nothing; `run` afterwards is an error."""


def open_engine(path: str | Path, *, engine: str = "auto", threads: int | None = None) -> Engine:
    """Load one graph with the named engine.

    Args:
        path: the graph, an `.onnx` file.
        engine: one of `ENGINE_NAMES`. A named engine that does not load is an error, never another engine.
        threads: cores one call may use, >= 1; None takes every core this process may run on.

    Raises:
        EngineLoadError: unknown engine, library missing, file missing or not a graph this library can run.
        ValueError: `threads` below 1.
    """
    if engine not in ENGINE_NAMES:
        raise EngineLoadError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINE_NAMES)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, or None for all cores; got {threads}")
    path = Path(path)
    if not path.is_file():
        raise EngineLoadError(f"{path}: expected an ONNX file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        from engines.onnx_engine import OnnxEngine  # the runtime is loaded only when it is used
    except ImportError as error:
        raise EngineLoadError(f"ONNX Runtime cannot be imported ({error}): pip install onnxruntime") from error
    opened = OnnxEngine(path, threads=threads)
    reason = "the only engine that runs on this machine" if engine == "auto" else "asked for by name"
    _log.info("engine=%s graph=%s reason=%r", opened.name, path.name, reason)
    return opened


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Compare the tensors of a call with what the graph declares; used by every engine before its runtime is called.

    Raises:
        EngineRunError: the first difference, with what was expected and what came.
    """
    expected_names = [spec.name for spec in inputs]
    if set(feeds) != set(expected_names):
        missing = sorted(set(expected_names) - set(feeds))
        unknown = sorted(set(feeds) - set(expected_names))
        raise EngineRunError(f"inputs must be {expected_names}; missing {missing}, unknown {unknown}")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise EngineRunError(f"input {spec}: expected a numpy array, got {type(array).__name__}")
        if array.dtype != spec.dtype:
            raise EngineRunError(f"input {spec}: expected {spec.dtype}, got {array.dtype}")
        if array.ndim != len(spec.shape):
            raise EngineRunError(f"input {spec}: expected {len(spec.shape)} dimensions, got shape {array.shape}")
        if array.size == 0:
            raise EngineRunError(f"input {spec}: got shape {array.shape} without elements; skip the call instead")
        for axis, (want, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
            if isinstance(want, int):
                if want != got:
                    raise EngineRunError(f"input {spec}: expected size {want} on axis {axis}, got shape {array.shape}")
                continue
            known, owner = sizes.setdefault(want, (got, spec.name))
            if known != got:
                raise EngineRunError(
                    f"input {spec}: {want} is {got} on axis {axis}, but {want} is {known} in input {owner!r}"
                )
