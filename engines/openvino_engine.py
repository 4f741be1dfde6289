"""OpenVINO on the CPU. The only file that imports openvino; install it with `pip install openvino`.

It runs the same `.onnx` files as ONNX Runtime. Two things differ. Its ONNX reader takes no local functions, so
`pose2seg::AffineAlign` is put together here from OpenVINO's own operators. And on CPUs with bfloat16 instructions it
can compute with them: see `OpenVinoEngine` for where that is done.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import DEFAULT_OPTIONS, EngineLoadError, EngineOptions, EngineRunError, TensorSpec, check_feeds
from engines.onnx_engine import declared_tensors, usable_cores

if TYPE_CHECKING:
    import openvino

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_one_core: openvino.Core | None = None
_one_core_lock = threading.Lock()
_FAR = 1e6  # feature index that a matrix with NaN or infinity samples at: outside of every map, so zeros


class OpenVinoEngine:
    """A graph in OpenVINO's CPU plug-in. See `engines.engine.Engine` for the contract.

    Precision ``auto`` is float32. ``bfloat16`` is much faster on CPUs that multiply in it and costs a little accuracy
    (docs/experiments.md); a graph that works out where to sample (AffineAlign and the skeleton drawn beside it) stays
    in float32 all the same, since positions would be off by whole px. A graph with quantised weights keeps its 8 bits
    under either.
    """

    def __init__(
        self, path: str | Path, options: EngineOptions = DEFAULT_OPTIONS, *, content: bytes | None = None
    ) -> None:
        """Load the graph and compile it for this CPU.

        Args:
            path: an `.onnx` file.
            options: threads and precision are used; device must be the CPU.
            content: a serialised graph to load in place of the file's, which then only names it.

        Raises:
            ImportError: OpenVINO is not installed.
            EngineLoadError: not a graph, one that this version cannot run, or options that it has no answer to.
        """
        import openvino

        self._path = Path(path)
        self._threads = options.threads if options.threads is not None else usable_cores()
        if options.device not in {None, "cpu"}:
            raise EngineLoadError(f"the openvino engine runs on the CPU: expected device cpu, got {options.device}")
        if options.precision not in {"auto", *_HINTS}:
            raise EngineLoadError(
                f"the openvino engine computes in auto, {', '.join(_HINTS)}; got precision {options.precision}"
            )
        # OpenVINO forgets which sizes must be equal and computes with those that differ: they are checked before.
        self._inputs, self._outputs = declared_tensors(self._path, content)
        core = _core_of_this_process()
        try:
            model = core.read_model(str(self._path) if content is None else content)
            self.precision = _precision_for(options.precision, core, model)
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": self._threads,
                    "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
                },
            )
        except RuntimeError as error:
            raise EngineLoadError(
                f"{self._path}: OpenVINO {openvino.__version__} cannot load this graph ({_last_line(error)}): "
                "check that the file is complete, or update openvino"
            ) from error
        self._request: Any = compiled.create_infer_request()
        self._version = openvino.__version__.partition("-")[0]

    @property
    def name(self) -> str:
        return f"openvino {self._version} CPU, {self.precision}, threads={self._threads}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._request is None:
            raise EngineRunError(f"{self._path}: the engine is closed; open it again")
        check_feeds(self._inputs, feeds)
        shared = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            # Inputs are read where they lie; outputs are copied, since the next call overwrites the plug-in's own.
            results = self._request.infer(shared, share_inputs=True, share_outputs=False)
            found = {spec.name: results[spec.name] for spec in self._outputs}
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise EngineRunError(f"{self._path.name} failed on {shapes}: {_last_line(error)}") from error
        return found

    def close(self) -> None:
        self._request = None


def _core_of_this_process() -> openvino.Core:
    """OpenVINO with our operator, loaded once and kept to the end.

    The CPU plug-in of each `Core` gives the thread that loads it a stack for signal handlers, and unmaps that stack
    when it goes (`SigAltStackSetup`, openvinotoolkit/openvino#11894). If the plug-ins of two cores do not go in reverse
    order, or one goes in another thread, a thread is left with a stack that is unmapped, and the next signal that
    Python handles there (Ctrl-C, SIGTERM, SIGCHLD, a timer) is a segmentation fault. The plug-in of this core never
    goes.
    """
    import openvino

    global _one_core  # noqa: PLW0603  one for the process
    with _one_core_lock:
        if _one_core is None:
            core = openvino.Core()
            core.add_extension(_affine_align_extension())
            _one_core = core
        return _one_core


def _precision_for(wanted: str, core: openvino.Core, model: openvino.Model) -> str:
    """What this graph is computed in.

    Raises:
        EngineLoadError: the CPU has no bfloat16; emulating it would be slow and no more exact.
    """
    if wanted != "bfloat16":
        return "float32"
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineLoadError(
            "precision bfloat16 needs a CPU with such instructions (AVX512-BF16 or AMX), this one has none: "
            "use precision float32"
        )
    samples = any(operation.get_type_name() == "GridSample" for operation in model.get_ops())
    return "float32" if samples else "bfloat16"


def _affine_align_extension() -> Any:
    """What OpenVINO's ONNX reader puts in the place of a `pose2seg::AffineAlign` node."""
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("AffineAlign", "pose2seg", _affine_align)


def _affine_align(context: Any) -> list[Any]:
    """Affine-Align in OpenVINO's operators; `kernels.affine_align` is the contract.

    The images are stacked along the height with a row of zeros above and below each, so that one GridSample serves the
    whole batch. Positions x = a u + b v + c are sums of a row and a column of S numbers.
    """
    from openvino import opset15 as op

    def numbers(*values: float) -> Any:
        return op.constant(np.array(values, np.float32))

    def integers(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    features, matrix, image = (context.get_input(index) for index in range(3))
    size = int(context.get_attribute("size"))
    axis = np.arange(size, dtype=np.float32)
    u, v = op.constant(axis.reshape(1, 1, size)), op.constant(axis.reshape(1, size, 1))

    extent = op.convert(op.shape_of(features), "f32")
    images, height, width = (op.gather(extent, integers(index), integers(0)) for index in (0, 2, 3))
    # 0 * value is 0 for finite values only.
    finite = op.equal(op.reduce_sum(op.multiply(matrix, numbers(0.0)), integers(1, 2), True), numbers(0.0))
    matrix = op.select(finite, matrix, numbers(_FAR))

    def coefficient(row: int, column: int) -> Any:  # (N, 1, 1)
        return op.gather(op.gather(matrix, integers(row), integers(1)), integers(column), integers(2))

    def positions(row: int) -> Any:  # (N, S, S)
        along_v = op.add(op.multiply(coefficient(row, 1), v), coefficient(row, 2))
        return op.add(op.multiply(coefficient(row, 0), u), along_v)

    tall = op.add(height, numbers(2.0))
    first_row = op.add(op.multiply(op.unsqueeze(op.convert(image, "f32"), integers(1, 2)), tall), numbers(1.0))
    x = op.clamp(positions(0), -_FAR, _FAR)
    y = op.add(op.maximum(op.minimum(positions(1), height), numbers(-1.0)), first_row)

    def normalised(index: Any, length: Any) -> Any:  # feature index -> GridSample's -1..1
        return op.subtract(op.divide(op.add(op.multiply(index, numbers(2.0)), numbers(1.0)), length), numbers(1.0))

    grid = op.concat(
        [
            op.unsqueeze(normalised(x, width), integers(3)),
            op.unsqueeze(normalised(y, op.multiply(images, tall)), integers(3)),
        ],
        3,
    )
    padded = op.pad(features, integers(0, 0, 1, 0), integers(0, 0, 1, 0), "constant", op.constant(np.float32(0)))
    sizes = op.shape_of(padded)
    channels, columns = (op.gather(sizes, integers(index), integers(0)) for index in (1, 3))
    stacked = op.reshape(
        op.transpose(padded, integers(1, 0, 2, 3)),
        op.concat([integers(1), channels, integers(-1), columns], 0),
        False,
    )
    flat_grid = op.reshape(grid, integers(1, -1, size, 2), False)
    sampled = op.grid_sample(stacked, flat_grid, {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"})
    rows = op.reshape(sampled, op.concat([channels, integers(-1, size, size)], 0), False)
    return op.transpose(rows, integers(1, 0, 2, 3)).outputs()  # type: ignore[no-any-return]


def _last_line(error: Exception) -> str:
    """What OpenVINO says last: the lines before name places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
