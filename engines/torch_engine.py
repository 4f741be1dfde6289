"""PyTorch runs the ONNX file of a model folder, on a GPU or on the CPU. No model class, no pickle: the file is data.

On a GPU the convolutions run in float16 (unless told otherwise) and channels-last, pose2seg::AffineAlign is our CUDA
kernel, and calls are recorded as CUDA graphs. On the CPU it computes the same and serves to test that.

Numbers: with `precision` float32 everything is IEEE float32; TF32 is switched off for cuDNN while our calls are made.
With float16 and bfloat16 there is no float32 product left that it could apply to. PyTorch's flags are process-wide:
they are set only while calls are enqueued or recorded, and put back. Matrix products of float32 follow the process's
own setting; our graphs have none.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.engine import (
    DEFAULT_OPTIONS,
    EngineLoadError,
    EngineOptions,
    EngineOutOfMemory,
    EngineRunError,
    TensorSpec,
    check_feeds,
)
from engines.torch_convolution_fusion import Chooser, FasterOfBoth
from engines.torch_cuda_graphs import CudaRecorder, GraphCache, Recorder, fits, ieee_float32
from engines.torch_graph import read_graph
from engines.torch_operation import Unsupported
from engines.torch_program import PreparedGraph, Program, StepFailed, compile_program, try_program
from engines.torch_skeleton_fusion import with_fused_skeleton

_log = logging.getLogger(__name__)

HALF_TYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_PROGRAMS: Final = 128
"""Programs, one for each set of input shapes, that are kept; the one not used for longest goes first."""

_TRIAL_SIZE = 64  # for sizes without a limit, when a graph is tried at load; a multiple of what networks want
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|CUDA error: out of memory|CU(DNN|BLAS)_STATUS\w*_ALLOC"
)  # in errors that are plain RuntimeErrors


class TorchEngine:
    """A graph in PyTorch. See `engines.engine.DeviceEngine` for the contract.

    Tensors that come back may be channels-last; `features` are float16 where `precision` is. Sizes above `limits` are
    computed, too, without a recorded graph.
    """

    def __init__(
        self,
        path: str | Path,
        options: EngineOptions = DEFAULT_OPTIONS,
        *,
        recorder: Recorder | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """Load the graph.

        Args:
            path: an `.onnx` file.
            options: `device` None is the first GPU; `precision` "auto" is float16 on a GPU and float32 on the CPU.
                On the CPU `threads` is set for the time of each call: PyTorch's number of threads belongs to the
                whole process, so other PyTorch work beside a call sees it, too.
            recorder: records the calls; None is CUDA graphs on a GPU and none on the CPU.
            chooser: how convolutions with an activation are computed in calls that are recorded; None is what measures
                faster on a GPU, and in parts on the CPU.

        Raises:
            EngineLoadError: no such device, a file that is damaged or not ours to read, or an operator that is
                unknown.
        """
        self._path = Path(path)
        self._device = _device(options.device)
        self._threads = options.threads
        on_gpu = self._device.type == "cuda"
        precision = ("float16" if on_gpu else "float32") if options.precision == "auto" else options.precision
        if precision == "int8":
            raise EngineLoadError(
                "the torch engine computes INT8 models in float32 or float16: "
                "give such a model with --precision float32, or choose --engine tensorrt or openvino"
            )
        self._precision = precision
        self._prepared: PreparedGraph | None = PreparedGraph(
            with_fused_skeleton(read_graph(self._path)), self._device, HALF_TYPES.get(precision)
        )
        self._inputs, self._outputs = self._prepared.inputs, self._prepared.outputs
        named = {name for spec in self._inputs for name in spec.shape}
        self._limits = {
            name: size for name, size in (("B", options.max_batch), ("N", options.max_people)) if name in named
        }
        self._programs: OrderedDict[tuple[bool, tuple[tuple[int, ...], ...]], Program] = OrderedDict()
        if recorder is None and on_gpu:
            recorder = CudaRecorder(self._device)
        self._chooser = FasterOfBoth(self._device) if chooser is None and on_gpu else chooser
        self._graphs = (
            None
            if recorder is None
            else GraphCache(recorder, self._inputs, self._outputs, max_people=options.max_people)
        )
        self._largest_image = options.long_side**2
        self._try_shapes(self._prepared)

    @property
    def name(self) -> str:
        if self._device.type == "cpu":
            threads = self._threads if self._threads is not None else torch.get_num_threads()
            return f"torch {torch.__version__} cpu, {self._precision}, threads={threads}"
        device = f"{self._device} {torch.cuda.get_device_name(self._device)}"
        return f"torch {torch.__version__} {device}, {self._precision}, CUDA graphs"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def limits(self) -> Mapping[str, int]:
        return dict(self._limits)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._require_open()
        check_feeds(self._inputs, feeds)
        with self._errors(feeds):
            tensors = [_from_numpy(feeds[spec.name]).to(self._device) for spec in self._inputs]
            results = self._compute(tensors)
            return {
                spec.name: result.contiguous().cpu().numpy()
                for spec, result in zip(self._outputs, results, strict=True)
            }

    def run_on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._require_open()
        check_tensors(self._inputs, feeds, self._device)
        with self._errors(feeds):
            results = self._compute([feeds[spec.name] for spec in self._inputs])
        return {spec.name: result for spec, result in zip(self._outputs, results, strict=True)}

    def prepare(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Do all that the first calls with these shapes would do: compile, choose algorithms, record.

        Args:
            shapes: shape of every input, {"image": (1, 288, 512, 3)}.

        Raises:
            EngineRunError: as `run`.
        """
        self._require_open()
        types = {spec.name: _torch_dtype(spec.dtype) for spec in self._inputs}
        feeds = {
            name: torch.zeros(tuple(shape), dtype=types.get(name), device=self._device)
            for name, shape in shapes.items()
        }
        check_tensors(self._inputs, feeds, self._device)
        with self._errors(feeds):
            self._compute([feeds[spec.name] for spec in self._inputs], capture_now=True)

    def close(self) -> None:
        self._forget()
        self._prepared = None

    def _compute(self, tensors: Sequence[Tensor], *, capture_now: bool = False) -> list[Tensor]:
        with torch.no_grad(), self._limited_threads():
            if self._graphs is not None and self._is_recordable(tensors):
                return self._graphs.run(tensors, self._eager, self._tuned, capture_now=capture_now)
            return self._eager(tensors)

    def _eager(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        with ieee_float32(search=False) if self._device.type == "cuda" else nullcontext():
            return self._program(tensors, tuned=False).run(tensors)

    def _tuned(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is recorded: the choice between ways to compute takes time, and pays from the second call on."""
        return self._program(tensors, tuned=self._chooser is not None).run(tensors)

    def _program(self, tensors: Sequence[Tensor], *, tuned: bool) -> Program:
        assert self._prepared is not None  # noqa: S101  run checks it
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        key = (tuned, shapes)
        program = self._programs.get(key)
        if program is None:
            named = dict(zip((spec.name for spec in self._inputs), shapes, strict=True))
            program = compile_program(self._prepared, named, self._chooser if tuned else None)
            while len(self._programs) >= MAX_PROGRAMS:
                self._programs.popitem(last=False)
            self._programs[key] = program
        self._programs.move_to_end(key)
        return program

    def _is_recordable(self, tensors: Sequence[Tensor]) -> bool:
        images = (tensor for tensor in tensors if tensor.ndim == 4 and tensor.dtype == torch.uint8)
        return fits(self._inputs, tensors, self._limits) and all(
            math.prod(image.shape[1:3]) <= self._largest_image for image in images
        )

    def _try_shapes(self, prepared: PreparedGraph) -> None:
        """Find nodes that are not handled now and not in the first call."""
        sizes = {name: min(limit, 2) for name, limit in self._limits.items()}
        shapes = {
            spec.name: [sizes.get(size, _TRIAL_SIZE) if isinstance(size, str) else size for size in spec.shape]
            for spec in self._inputs
        }
        try:
            try_program(prepared, shapes)
        except Unsupported as error:
            raise Unsupported(f"{self._path}: {error}") from error
        except (EngineLoadError, StepFailed) as error:  # these sizes need not suit the graph; the caller's will
            _log.debug("graph=%s not tried with %s: %s", self._path.name, shapes, error)

    def _require_open(self) -> None:
        if self._prepared is None:
            raise EngineRunError(f"{self._path}: the engine is closed; open it again")

    def _forget(self) -> None:
        self._programs.clear()
        if self._graphs is not None:
            self._graphs.clear()
        if self._prepared is not None:
            self._prepared.free()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _errors(self, feeds: Mapping[str, Any]) -> Iterator[None]:
        """Whatever torch raises becomes an `EngineRunError` that names the graph, the shapes and the node."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise self._out_of_memory(feeds, error) from error
        except (StepFailed, EngineLoadError, RuntimeError) as error:
            if isinstance(error, EngineRunError):
                raise
            if _OUT_OF_MEMORY.search(str(error)):
                raise self._out_of_memory(feeds, error) from error
            raise EngineRunError(f"{self._path.name} failed on {_shapes(feeds)}: {_first_line(error)}") from error

    def _out_of_memory(self, feeds: Mapping[str, Any], error: BaseException) -> EngineOutOfMemory:
        cause: BaseException | None = error
        while cause is not None:  # the frames that the error remembers still hold the tensors of the call
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__
        self._forget()
        return EngineOutOfMemory(
            f"{self._path.name}: too little memory on {self._device} for {_shapes(feeds)}: "
            "use a smaller batch or long side, or free the device"
        )

    @contextmanager
    def _limited_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        wanted = self._threads if self._threads is not None and self._device.type == "cpu" else before
        if wanted == before:
            yield
            return
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _device(wanted: str | None) -> torch.device:
    """Raises EngineLoadError where the device does not exist; a named or preferred GPU is never replaced by the CPU."""
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "was built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        raise EngineLoadError(
            f"PyTorch {torch.__version__} {reason}: install a driver and a CUDA build of torch, "
            "or give --device cpu to run it on the CPU"
        )
    device = torch.device(wanted if wanted not in {None, "cuda"} else f"cuda:{torch.cuda.current_device()}")
    if device.index >= torch.cuda.device_count():
        raise EngineLoadError(f"{device}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def check_tensors(inputs: Sequence[TensorSpec], feeds: Mapping[str, Any], device: torch.device) -> None:
    """As `engines.engine.check_feeds` for tensors on a device.

    Raises:
        EngineRunError: the first difference, with what was expected and what came.
    """
    stand_ins = {}
    for name, tensor in feeds.items():
        stand_ins[name] = tensor
        if isinstance(tensor, Tensor):
            if tensor.device != device:
                raise EngineRunError(f"input {name!r}: expected a tensor on {device}, got one on {tensor.device}")
            dtype = _NUMPY_DTYPE.get(tensor.dtype)
            if dtype is None:
                raise EngineRunError(f"input {name!r}: got {tensor.dtype}, which no graph takes")
            # An array of this shape that takes up no memory: the rules are written once, for arrays.
            stand_ins[name] = np.broadcast_to(np.empty((), dtype), tuple(tensor.shape))
        elif name in {spec.name for spec in inputs}:
            raise EngineRunError(f"input {name!r}: expected a torch tensor, got {type(tensor).__name__}")
    check_feeds(inputs, stand_ins)


_NUMPY_DTYPE: dict[torch.dtype, np.dtype[Any]] = {
    torch.from_numpy(np.empty(0, dtype)).dtype: np.dtype(dtype)
    for dtype in (np.float16, np.float32, np.float64, np.uint8, np.int8, np.int32, np.int64, np.bool_)
}


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """Torch wants memory that it may write to, with strides that are not negative."""
    ready = array if array.flags.writeable and array.flags.c_contiguous else np.array(array)
    return torch.from_numpy(ready)


def _shapes(feeds: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for name, value in feeds.items()
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
