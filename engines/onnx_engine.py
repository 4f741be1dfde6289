"""ONNX Runtime on the CPU. The only file that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.engine import EngineLoadError, EngineRunError, TensorSpec, check_feeds

_DTYPE_OF_ONNX_TYPE: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
_ONLY_ERRORS = 3  # onnxruntime severity; its warnings about the host go to stderr and would tear the progress bar


class OnnxEngine:
    """A graph in ONNX Runtime's CPU provider. See `engines.engine.Engine` for the contract."""

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        allow_spinning: bool = False,
        content: bytes | None = None,
    ) -> None:
        """Load the graph.

        Args:
            path: an `.onnx` file.
            threads: cores one call may use; None takes every core this process may run on.
            allow_spinning: let idle workers burn their core between calls. Decoding, drawing and encoding run beside
                the networks and need those cores, so it is off; alone on a machine it saves some latency.
            content: a serialised graph to load in place of the file's, which then only names it.

        Raises:
            EngineLoadError: not a graph, or one that this version of ONNX Runtime cannot run.
        """
        self._path = Path(path)
        self._threads = threads if threads is not None else usable_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ONLY_ERRORS
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
        session: Any
        try:
            session = onnxruntime.InferenceSession(
                str(self._path) if content is None else content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception classes share no base of their own
            raise EngineLoadError(
                f"{self._path}: ONNX Runtime {onnxruntime.__version__} cannot load this graph ({_first_line(error)}): "
                "check that the file is complete, or update onnxruntime"
            ) from error
        self._session: Any = session
        self._inputs, self._outputs = _specs(self._path, session)
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__} CPU, threads={self._threads}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise EngineRunError(f"{self._path}: the engine is closed; open it again")
        check_feeds(self._inputs, feeds)
        try:
            results = self._session.run(self._output_names, dict(feeds))
        except Exception as error:  # see __init__
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise EngineRunError(f"{self._path.name} failed on {shapes}: {_first_line(error)}") from error
        return dict(zip(self._output_names, results, strict=True))

    def close(self) -> None:
        self._session = None


def declared_tensors(
    path: str | Path, content: bytes | None = None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs that a graph declares, for engines whose library forgets the names of sizes.

    Args:
        path: of the graph.
        content: see `OnnxEngine`.

    Raises:
        EngineLoadError: not a graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is never run
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(path) if content is None else content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # see OnnxEngine
        raise EngineLoadError(f"{path}: expected an ONNX graph ({_first_line(error)})") from error
    return _specs(Path(path), session)


def _specs(path: Path, session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    def spec(node: Any) -> TensorSpec:
        dtype = _DTYPE_OF_ONNX_TYPE.get(node.type)
        if dtype is None:
            raise EngineLoadError(
                f"{path}: tensor {node.name!r} has type {node.type}; engines handle {', '.join(_DTYPE_OF_ONNX_TYPE)}"
            )
        # A nameless dynamic size arrives as None; its own name keeps two of them from being compared.
        shape = tuple(f"{node.name}:{axis}" if size is None else size for axis, size in enumerate(node.shape))
        return TensorSpec(node.name, dtype, shape)

    return tuple(map(spec, session.get_inputs())), tuple(map(spec, session.get_outputs()))


def usable_cores() -> int:
    """Cores this process may run on (a container often has fewer than the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
