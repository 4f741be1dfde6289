"""What every engine is: named tensors in, named tensors out, and errors that say what to do.

EngineError (RuntimeError)
├── EngineLoadError           the graph or its runtime cannot be used here
├── EngineRunError            a call with the wrong tensors, or a call that failed
│   └── EngineOutOfMemory     a call that needs more device memory than there is
└── ArtifactError             the model folder is incomplete, damaged or foreign (raised by engines.artifact)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

ENGINE_NAMES: Final = ("auto", "tensorrt", "tensorrt-rtx", "torch", "openvino", "onnx")
"""Values of `--engine`. `auto` takes the best one that works on this machine."""

Precision = Literal["auto", "float32", "float16", "bfloat16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
"""Values of `--precision`. `auto` is what the engine finds best on its device."""

DEVICE_PATTERN: Final = re.compile(r"cpu|cuda(:\d{1,3})?")
"""Values of `--device`."""

_PROGRESS_LINE_S: Final = 10.0

Tensor: TypeAlias = Any
"""A `torch.Tensor`; written so, because this file is used without torch."""


Progress: TypeAlias = Callable[[float, str], None]
"""Told again and again how much is done, 0..1, and what is being done. An exception in it ends the work."""

Announce: TypeAlias = Callable[[str], AbstractContextManager[Progress]]
"""Shows a person that something long goes on, from entering to leaving; the text says what."""


class EngineError(RuntimeError):
    """Something between a model folder and its result tensors went wrong."""


class EngineLoadError(EngineError):
    """The graph, or the library that should run it, cannot be used on this machine."""


class EngineRunError(EngineError):
    """A call with wrong tensors, a call on a closed engine, or a call that failed inside the runtime."""


class EngineOutOfMemory(EngineRunError):
    """The device has too little free memory for this call; a smaller batch may fit. The engine stays usable."""


class ArtifactError(EngineError):
    """The model folder is incomplete, damaged, or not one of ours."""


@contextlib.contextmanager
def announce_in_log(text: str) -> Iterator[Progress]:
    """Plain log lines: what begins, how far it is every ten seconds, and how long it took."""
    _log.info("%s ...", text)
    started = told = time.monotonic()

    def progress(share: float, phase: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _PROGRESS_LINE_S:
            told = time.monotonic()
            _log.info("%s: %.0f %% (%s)", text, 100 * share, phase)

    yield progress
    _log.info("%s: done in %.1f s", text, time.monotonic() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine should run a graph; each engine uses what applies to it.

    Args:
        threads: cores that one call may use, >= 1; None takes every core this process may run on.
        device: "cpu", "cuda" or "cuda:N"; None is what the engine prefers.
        precision: one of `PRECISIONS`.
        max_batch: largest B of a call on a device, in images. Larger batches are split by the caller.
        max_people: largest N of a call on a device, in people. Larger numbers are split by the caller.
        long_side: long side of the image that plans are tuned for, in px.
        cache_folder: where plans are kept; None is the user's cache folder (`engines.plan_cache`).

    Raises:
        ValueError: a value that no engine could use.
    """

    threads: int | None = None
    device: str | None = None
    precision: Precision = "auto"
    max_batch: int = 8
    max_people: int = 32
    long_side: int = 512
    cache_folder: Path | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, or None for all cores; got {self.threads}")
        if self.device is not None and not DEVICE_PATTERN.fullmatch(self.device):
            raise ValueError(f"device must be cpu, cuda or cuda:N, or None for the best one; got {self.device!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        for name in ("max_batch", "max_people", "long_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}")


DEFAULT_OPTIONS: Final = EngineOptions()


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


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that also works on tensors which stay on its device."""

    @property
    def device(self) -> str:
        """Where the tensors of `run_on_device` live: "cpu" or "cuda:N"."""

    @property
    def limits(self) -> Mapping[str, int]:
        """Largest sizes of one call by name, such as {"B": 8, "N": 32}; callers split what is larger."""

    def run_on_device(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs without leaving the device.

        The work is enqueued on `torch.cuda.current_stream()` and not waited for.

        Args:
            feeds: one contiguous torch tensor on `device` per input, of its dtype and shape; no size may be 0.

        Returns:
            One new torch tensor on `device` per output; the caller owns them.

        Raises:
            EngineOutOfMemory: the device has too little free memory.
            EngineRunError: as in `run`, or a size above `limits`.
        """


def open_engine(
    path: str | Path,
    *,
    engine: str = "auto",
    options: EngineOptions = DEFAULT_OPTIONS,
    announce: Announce = announce_in_log,
) -> Engine:
    """Load one graph with the named engine. A model of several graphs is opened by `engines.artifact.open_graphs`.

    Args:
        path: the graph, an `.onnx` file.
        engine: one of `ENGINE_NAMES`. A named engine that does not load is an error, never another engine; `auto`
            takes the best one that works and says in one log line which and why.
        options: threads, device, precision, sizes.
        announce: shows a person that a plan is being built, which takes minutes; log lines by default.

    Raises:
        EngineLoadError: unknown engine, library missing, file missing or not a graph this library can run.
    """
    from engines.selection import open_selected

    path = Path(path)
    return open_selected(
        engine,
        options,
        lambda name, settled: open_named(path, name, settled, announce=announce),
        name_of=lambda opened: opened.name,
    )


def open_named(path: Path, name: str, options: EngineOptions, *, announce: Announce = announce_in_log) -> Engine:
    """Load one graph with one engine; what `engines.selection` found out about the machine is not asked again.

    Args:
        path: the graph.
        name: one of `ENGINE_NAMES` but "auto".
        options: with the device settled.
        announce: see `open_engine`.

    Raises:
        EngineLoadError: library missing, file missing or not a graph this library can run.
    """
    if not path.is_file():
        raise EngineLoadError(f"{path}: expected an ONNX file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        return _OPENERS[name](path, options, announce)
    except ImportError as error:
        from engines.selection import INSTALL

        raise EngineLoadError(f"engine {name} cannot be imported ({error}): {INSTALL[name]}") from error


# A runtime library is loaded only when its engine is opened.


def _open_onnx(path: Path, options: EngineOptions, _announce: Announce) -> Engine:
    from engines.onnx_engine import OnnxEngine

    def open_content(content: bytes) -> Engine:
        return OnnxEngine(path, threads=options.threads, content=content)

    whole = OnnxEngine(path, threads=options.threads)
    return _cut_if_possible(path, whole, open_content, open_content)


def _open_openvino(path: Path, options: EngineOptions, _announce: Announce) -> Engine:
    from engines.openvino_engine import OpenVinoEngine

    exact = dataclasses.replace(options, precision="float32")
    return _cut_if_possible(
        path,
        OpenVinoEngine(path, options),
        lambda content: OpenVinoEngine(path, options, content=content),
        lambda content: OpenVinoEngine(path, exact, content=content),
    )


def _cut_if_possible(
    path: Path, whole: Engine, open_content: Callable[[bytes], Engine], open_exactly: Callable[[bytes], Engine]
) -> Engine:
    """A segment graph with our kernel in place of what stands before its SegModule; any other graph as it is."""
    if {"feature_from_roi", "roi_keypoints"} - {spec.name for spec in whole.inputs}:
        return whole
    from engines.segment_cut import open_segment_or_whole

    engine, what = open_segment_or_whole(path, open_content, open_exactly, whole)
    _log.debug("%s: %s", path.name, what)
    return engine


def _open_torch(path: Path, options: EngineOptions, _announce: Announce) -> Engine:
    from engines.torch_engine import TorchEngine

    return TorchEngine(path, options)


def _open_planned(library: str, path: Path, options: EngineOptions, announce: Announce) -> Engine:
    from engines.planned_engine import open_planned_engine

    return open_planned_engine(path, library, options, announce=announce)


_OPENERS: Final[Mapping[str, Callable[[Path, EngineOptions, Announce], Engine]]] = {
    "tensorrt": functools.partial(_open_planned, "tensorrt"),
    "tensorrt-rtx": functools.partial(_open_planned, "tensorrt-rtx"),
    "torch": _open_torch,
    "openvino": _open_openvino,
    "onnx": _open_onnx,
}


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
