"""A TensorRT plan as an engine: tensors in and out on the device; in the long run no allocation, one launch per call.

For each combination of sizes that occurs there is a slot: input and output buffers, an execution context whose
addresses never change, and a CUDA graph of it. People are rounded up to 1, 2, 4, 8, 16, 32, ... so that few slots are
made; rows beyond the people that were asked for are computed and dropped. A captured graph forbids changing its
context, hence a context per slot; all of them share one piece of scratch memory. TensorRT for RTX captures by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.engine import (
    DEFAULT_OPTIONS,
    EngineLoadError,
    EngineOptions,
    EngineOutOfMemory,
    EngineRunError,
    Tensor,
    TensorSpec,
    check_feeds,
)
from engines.nvidia_driver import find_nvidia_driver
from engines.signatures import KEYPOINT_OUTPUTS, SIGNATURES
from engines.tensorrt_library import (
    driver_problem,
    is_rtx,
    load_library,
    logger_of,
    python_plugins_are_safe,
    reason_in,
    speaks_of_memory,
    title_of,
)
from engines.tensorrt_plugin import kernel_image, register_python_plugin
from kernels.native.cache import CacheFolderError, cache_folder, refuse_foreign, write_atomically

__all__ = ["DeviceMemory", "TensorRTEngine", "bucket_of", "load_library"]

_log = logging.getLogger(__name__)

_REBUILD: Final = "run 'python run_stream.py engines clean' and start again, so that it is built anew"
_MAX_SLOTS: Final = 24  # a stream of one size needs 1 + 6; more only while sizes keep changing
_DTYPE: Final[Mapping[str, np.dtype[Any]]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
}
"""Names of TensorRT's DataType."""


class DeviceMemory(Protocol):
    """What the engine needs of a tensor library; `engines.torch_memory.TorchMemory` says what each does."""

    out_of_memory: tuple[type[Exception], ...]

    @property
    def device(self) -> str: ...
    def session(self) -> contextlib.AbstractContextManager[int]: ...
    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor: ...
    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor: ...
    def address(self, tensor: Tensor) -> int: ...
    def copy(self, target: Tensor, source: Tensor) -> None: ...
    def clear(self, target: Tensor) -> None: ...
    def concatenate(self, parts: Sequence[Tensor]) -> Tensor: ...
    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...], str] | None: ...
    def upload(self, array: NDArray[Any]) -> Tensor: ...
    def download(self, tensor: Tensor) -> NDArray[Any]: ...
    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]: ...
    def wait(self) -> None: ...
    def free(self) -> None: ...


@dataclass(slots=True)
class _Slot:
    """Buffers and context of one combination of sizes."""

    context: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    replay: Callable[[], None] | None = None
    ran: bool = False


def bucket_of(count: int, limit: int) -> int:
    """The power of two that `count` is rounded up to, `limit` at most."""
    return min(1 << (count - 1).bit_length(), limit)


class TensorRTEngine:
    """A plan, loaded and ready. See `engines.engine.DeviceEngine` for the contract. Not thread-safe."""

    def __init__(
        self,
        plan: bytes,
        *,
        library: str | ModuleType,
        options: EngineOptions = DEFAULT_OPTIONS,
        cuda_graphs: bool = True,
        memory: DeviceMemory | None = None,
    ) -> None:
        """Load a plan. It is executable content: take it from our own cache only.

        Args:
            plan: of `engines.tensorrt_build.build_plan`, for this GPU and library version.
            library: "tensorrt" or "tensorrt-rtx", or the loaded module.
            options: `device`, and `cache_folder` for the kernels that TensorRT for RTX compiles at run time.
            cuda_graphs: capture each combination of sizes after its first call. Off only to look for errors.
            memory: None takes PyTorch's.

        Raises:
            EngineLoadError: library, driver or torch missing, or a plan that does not fit: truncated, of another
                version, for another GPU.
        """
        self._trt: Any = load_library(library) if isinstance(library, str) else library
        self._title = title_of(self._trt)
        self._rtx = is_rtx(self._trt)
        self._logger = logger_of(self._trt)
        self._cuda_graphs = cuda_graphs
        self._memory: DeviceMemory = memory if memory is not None else self._open_memory(options)
        self._slots: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], _Slot] = OrderedDict()
        self._scratch: Tensor = None
        self._shared_context: Any = None
        self._kernel_cache: Any = None
        self._kernel_cache_path: Path | None = None
        self._kernels_kept = b""
        with self._memory.session():  # TensorRT loads to the current device
            self._runtime = self._trt.Runtime(self._logger)
            self._engine: Any = self._deserialise(plan)
            self._inputs, self._outputs = self._read_specs()
            self._ranges = self._read_ranges()
            if self._rtx:
                self._open_kernel_cache(plan, options)

    # ------------------------------------------------------------------------------------------------------- contract

    @property
    def name(self) -> str:
        return f"{self._title} {self._memory.device}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def device(self) -> str:
        return self._memory.device

    @property
    def limits(self) -> Mapping[str, int]:
        """Largest B and N of the plan.

        More people than N are split here, too, and none is dropped; those of one part are no neighbours of another's.
        """
        return MappingProxyType({name: self._ranges[name][1] for name in ("B", "N") if name in self._ranges})

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._require_open()
        check_feeds(self._inputs, feeds)
        with self._reporting_memory():
            uploaded = {name: self._memory.upload(array) for name, array in feeds.items()}
        results = self.run_on_device(uploaded)
        return {name: self._memory.download(tensor) for name, tensor in results.items()}

    def run_on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._require_open()
        sizes = self._check(feeds)
        with self._reporting_memory(), self._memory.session() as stream:
            rows = self._rows_symbol()
            if rows is None or sizes[rows] <= self._ranges[rows][1]:
                return self._call(feeds, sizes, stream)
            parts = []
            limit = self._ranges[rows][1]
            for first in range(0, sizes[rows], limit):
                some = slice(first, first + limit)
                chunk = {
                    spec.name: feeds[spec.name][some] if spec.shape[0] == rows else feeds[spec.name]
                    for spec in self._inputs
                }
                count = min(limit, sizes[rows] - first)
                parts.append(self._call(chunk, {**sizes, rows: count}, stream))
            return {name: self._memory.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        if self._engine is None:
            return
        self._keep_kernels()
        self._drop_slots()
        self._engine = self._runtime = self._kernel_cache = None

    # -------------------------------------------------------------------------------------------------------- running

    def _call(self, feeds: Mapping[str, Tensor], sizes: Mapping[str, int], stream: int) -> dict[str, Tensor]:
        """One call within the limits."""
        padded = {**sizes}
        if "N" in sizes:
            padded["N"] = bucket_of(sizes["N"], self._ranges["N"][1])
        shapes = {spec.name: _shape(spec, padded) for spec in self._inputs}
        slot = self._slot(shapes)
        for spec in self._inputs:
            target = slot.inputs[spec.name]
            if spec.shape[0] != "N":
                self._memory.copy(target, feeds[spec.name])
                continue
            self._memory.copy(target[: sizes["N"]], feeds[spec.name])
            if sizes["N"] < padded["N"]:  # people of an earlier call would be the neighbours of this one's
                self._memory.clear(target[sizes["N"] :])
        self._execute(slot, stream)
        results = {}
        for spec in self._outputs:
            buffer = slot.outputs[spec.name]
            computed = buffer[: sizes["N"]] if spec.shape[0] == "N" else buffer
            results[spec.name] = self._memory.empty(tuple(computed.shape), spec.dtype)
            self._memory.copy(results[spec.name], computed)
        return results

    def _execute(self, slot: _Slot, stream: int) -> None:
        if slot.replay is not None:
            slot.replay()
            return
        first = not slot.ran
        self._enqueue(slot, stream)
        slot.ran = True
        # The first call of a context also sets things up, which cannot be captured; its results are this call's.
        if first and self._cuda_graphs and not self._rtx:
            try:
                slot.replay = self._memory.capture(lambda capturing: self._enqueue(slot, capturing))
            except EngineOutOfMemory:
                raise
            except (EngineRunError, RuntimeError) as error:
                if isinstance(error, self._memory.out_of_memory):
                    raise
                self._cuda_graphs = False
                _log.warning("%s: no CUDA graph, every layer is launched on its own (%s)", self.name, error)

    def _enqueue(self, slot: _Slot, stream: int) -> None:
        if not slot.context.execute_async_v3(stream):
            raise self._failure("a call failed")

    def _slot(self, shapes: Mapping[str, tuple[int, ...]]) -> _Slot:
        key = tuple(shapes.items())
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _MAX_SLOTS:
                self._memory.wait()  # a context must not go while its work is under way
                self._slots.popitem(last=False)
            slot = self._slots[key] = self._make_slot(shapes)
        elif self._rtx:  # the one context may have had other sizes in between
            self._bind(slot)
        self._slots.move_to_end(key)
        return slot

    def _make_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> _Slot:
        slot = _Slot(context=self._context(), inputs={}, outputs={})
        for spec in self._inputs:
            slot.inputs[spec.name] = self._memory.zeros(shapes[spec.name], spec.dtype)
        self._bind(slot)
        return slot

    def _bind(self, slot: _Slot) -> None:
        """Shapes and addresses to the slot's context; makes the output buffers the first time."""
        context = slot.context
        for name, buffer in slot.inputs.items():
            shape = tuple(buffer.shape)
            if not context.set_input_shape(name, shape):
                raise self._failure(f"input {name!r} cannot be {list(shape)}")
            if not context.set_tensor_address(name, self._memory.address(buffer)):
                raise self._failure(f"the address of input {name!r} is refused")
        missing = context.infer_shapes()
        if missing:
            raise self._failure(f"the sizes of {', '.join(missing)} are not known")
        for spec in self._outputs:
            if spec.name not in slot.outputs:
                shape = tuple(context.get_tensor_shape(spec.name))
                if min(shape, default=1) < 0:
                    raise self._failure(f"output {spec.name!r} has no size before the call: {list(shape)}")
                slot.outputs[spec.name] = self._memory.zeros(shape, spec.dtype)
            if not context.set_tensor_address(spec.name, self._memory.address(slot.outputs[spec.name])):
                raise self._failure(f"the address of output {spec.name!r} is refused")

    def _context(self) -> Any:
        if self._rtx:
            if self._shared_context is None:
                config = self._engine.create_runtime_config()
                if self._cuda_graphs:
                    config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._attach_kernel_cache(config)
                self._shared_context = self._require_context(self._engine.create_execution_context(config))
            return self._shared_context
        size = max(int(self._engine.device_memory_size_v2), 1)
        if self._scratch is None:
            self._scratch = self._memory.zeros((size,), np.dtype(np.uint8))
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._require_context(self._engine.create_execution_context(strategy))
        context.set_device_memory(self._memory.address(self._scratch), size)
        return context

    def _require_context(self, context: Any) -> Any:
        if context is None:
            raise self._failure("no execution context can be made")
        return context

    # -------------------------------------------------------------------------------------------------------- checking

    def _check(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        """Names, types and sizes of a call on the device; gives size by symbol."""
        names = [spec.name for spec in self._inputs]
        if set(feeds) != set(names):
            missing, unknown = sorted(set(names) - set(feeds)), sorted(set(feeds) - set(names))
            raise EngineRunError(f"inputs must be {names}; missing {missing}, unknown {unknown}")
        sizes: dict[str, int] = {}
        for spec in self._inputs:
            found = self._memory.describe(feeds[spec.name])
            if found is None:
                raise EngineRunError(f"input {spec}: expected a torch tensor, got {type(feeds[spec.name]).__name__}")
            dtype, shape, device = found
            if device != self.device:
                raise EngineRunError(f"input {spec}: expected a tensor on {self.device}, got one on {device}")
            if dtype != spec.dtype or len(shape) != len(spec.shape):
                raise EngineRunError(f"input {spec}: got {dtype}{list(shape)}")
            for axis, (want, have) in enumerate(zip(spec.shape, shape, strict=True)):
                if have == 0:
                    raise EngineRunError(f"input {spec}: got shape {list(shape)} without elements; skip the call")
                known = want if isinstance(want, int) else sizes.setdefault(want, have)
                if known != have:
                    raise EngineRunError(f"input {spec}: expected size {known} on axis {axis}, got shape {list(shape)}")
        splittable = self._rows_symbol()
        for symbol, size in sizes.items():
            low, high = self._ranges.get(symbol, (size, size))
            if size < low or (size > high and symbol != splittable):
                raise EngineRunError(
                    f"{symbol} is {size}, this plan was built for {low}..{high}: split the call, or build with other "
                    "limits (EngineOptions)"
                )
        return sizes

    def _rows_symbol(self) -> str | None:
        """The size whose rows are independent, so that a call can be split: people, else pictures."""
        symbols = {spec.shape[0] for spec in self._inputs}
        if "N" in symbols:
            return "N"
        return "B" if symbols == {"B"} else None

    def _require_open(self) -> None:
        if self._engine is None:
            raise EngineRunError(f"{self._title}: the engine is closed; open it again")

    def _failure(self, what: str) -> EngineRunError:
        """The exception for something that TensorRT refused, with the reason out of its log."""
        errors = self._logger.take_errors()
        message = f"{self.name}: {what} ({reason_in(errors)})"
        if speaks_of_memory(errors):
            return EngineOutOfMemory(f"{message}: device memory is full; run fewer people or pictures at once")
        return EngineRunError(message)

    @contextlib.contextmanager
    def _reporting_memory(self) -> Iterator[None]:
        """Out of memory in any form: give back what can be given back, then say so."""
        try:
            yield
        except self._memory.out_of_memory as error:
            self._drop_slots()
            raise EngineOutOfMemory(
                f"{self.name}: device memory is full; run fewer people or pictures at once, or close other programs"
            ) from error
        except EngineOutOfMemory:
            self._drop_slots()
            raise

    def _drop_slots(self) -> None:
        self._memory.wait()
        self._slots.clear()
        self._shared_context = self._scratch = None
        self._memory.free()

    # -------------------------------------------------------------------------------------------------------- loading

    def _open_memory(self, options: EngineOptions) -> DeviceMemory:
        problem = driver_problem("tensorrt-rtx" if self._rtx else "tensorrt")
        if problem is not None:
            raise EngineLoadError(problem)
        if options.device == "cpu":
            raise EngineLoadError(f"{self._title} runs on an NVIDIA GPU only: choose --device cuda, or --engine onnx")
        try:
            from engines.torch_memory import TorchMemory

            return TorchMemory(options.device)
        except ImportError as error:
            raise EngineLoadError(f"{self._title} needs torch ({error}): pip install 'pose2seg-live[gpu]'") from error
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise EngineLoadError(
                f"{self._title} needs a CUDA build of torch and the device {options.device or 'cuda'} ({error})"
            ) from error

    def _deserialise(self, plan: bytes) -> Any:
        self._logger.take_errors()
        if self._rtx and python_plugins_are_safe(self._trt):
            # Costs nothing where the plan holds no plugin; one that does cannot be read without it.
            register_python_plugin(self._trt, lambda: kernel_image(_capability_of(self._memory.device)))
        if self._rtx:
            validity, diagnostics = self._runtime.get_engine_validity(plan)
            if validity == self._trt.EngineValidity.INVALID:
                raise EngineLoadError(
                    f"{self._title} says this plan is not valid on {self._memory.device} (diagnostics {diagnostics}; "
                    f"{reason_in(self._logger.take_errors())}): {_REBUILD}"
                )
            if validity == self._trt.EngineValidity.SUBOPTIMAL:
                _log.info("%s: the plan was built for another GPU and may be slower than one built here", self._title)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            errors = self._logger.take_errors()
            if speaks_of_memory(errors):
                raise EngineLoadError(f"{self._title}: device memory is full; close other programs, then start again")
            raise EngineLoadError(
                f"{self._title} cannot load this plan of {len(plan)} bytes ({reason_in(errors)}): it is truncated, or "
                f"was built by another version or for another GPU; {_REBUILD}"
            )
        return engine

    def _read_specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        sides = [*(side for pair in SIGNATURES.values() for side in pair), *KEYPOINT_OUTPUTS.values()]
        known = {spec.name: spec.shape for side in sides for spec in side}
        found: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _DTYPE:
                raise EngineLoadError(f"tensor {name!r} of this plan is {kind}; engines handle {', '.join(_DTYPE)}")
            shape = tuple(self._engine.get_tensor_shape(name))
            symbols = known.get(name, ())
            named = tuple(
                size if size >= 0 else (symbols[axis] if len(symbols) == len(shape) else f"{name}:{axis}")
                for axis, size in enumerate(shape)
            )
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            found[is_input].append(TensorSpec(name, _DTYPE[kind], named))
        return tuple(found[True]), tuple(found[False])

    def _read_ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest value of each dynamic size."""
        ranges: dict[str, tuple[int, int]] = {}
        for spec in self._inputs:
            low, _, high = self._engine.get_tensor_profile_shape(spec.name, 0)
            for axis, symbol in enumerate(spec.shape):
                if isinstance(symbol, str):
                    before = ranges.get(symbol, (low[axis], high[axis]))
                    ranges[symbol] = (max(before[0], low[axis]), min(before[1], high[axis]))
        return ranges

    # ------------------------------------------------------------------------------- kernels that RTX makes at run time

    def _open_kernel_cache(self, plan: bytes, options: EngineOptions) -> None:
        """Name the file of compiled kernels. They are executed, so it must be ours alone to write."""
        try:
            folder = options.cache_folder / "kernels" if options.cache_folder is not None else cache_folder("kernels")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_foreign(folder)
        except (CacheFolderError, OSError) as error:
            _log.warning("%s compiles its kernels at every start: %s", self._title, error)
            return
        driver = find_nvidia_driver()
        gpu = ", ".join(one.name for one in driver.gpus)
        key = hashlib.sha256(f"{self._title}|{driver.version}|{gpu}|".encode() + plan).hexdigest()[:32]
        self._kernel_cache_path = folder / f"{key}.kernels"

    def _attach_kernel_cache(self, config: Any) -> None:
        path = self._kernel_cache_path
        if path is None:
            return
        cache = config.create_runtime_cache()
        try:
            if path.exists():
                refuse_foreign(path)
                self._kernels_kept = path.read_bytes()
                if not cache.deserialize(self._kernels_kept):
                    _log.info("%s: kept kernels do not fit (%s)", self._title, reason_in(self._logger.take_errors()))
                    cache.reset()
        except (CacheFolderError, OSError) as error:
            _log.warning("%s: kept kernels are not used: %s", self._title, error)
        if config.set_runtime_cache(cache):
            self._kernel_cache = cache

    def _keep_kernels(self) -> None:
        if self._kernel_cache is None or self._kernel_cache_path is None:
            return
        made = self._kernel_cache.serialize()
        content = b"" if made is None else bytes(made)
        if content and content != self._kernels_kept:
            try:
                write_atomically(self._kernel_cache_path, content)
            except OSError as error:
                _log.warning("%s: compiled kernels cannot be kept: %s", self._title, error)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)


def _capability_of(device: str) -> tuple[int, int] | None:
    index = int(device.partition(":")[2] or 0)
    return next((gpu.capability for gpu in find_nvidia_driver().gpus if gpu.index == index), None)
