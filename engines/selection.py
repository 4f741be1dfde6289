"""Which engine runs a model on this machine, and why no better one does.

`--engine auto` goes through `AUTO_ORDER` and takes the first engine that can run here. Looking costs next to nothing: a
library is looked for, not imported, and where there is no NVIDIA driver no library that needs one is looked for.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from engines.engine import ENGINE_NAMES, EngineLoadError, EngineOptions, Precision
from engines.nvidia_driver import Gpu, NvidiaDriver, find_nvidia_driver

_log = logging.getLogger(__name__)

Opened = TypeVar("Opened")

AUTO_ORDER: Final = ("tensorrt", "tensorrt-rtx", "torch", "onnx", "openvino")
"""What `auto` tries, best first. OpenVINO comes last: it is taken where a precision asks for it, until it is measured
to be faster than ONNX Runtime on CPUs of many kinds.
"""

GPU_ENGINES: Final = ("tensorrt", "tensorrt-rtx", "torch")
PLAN_ENGINES: Final = ("tensorrt", "tensorrt-rtx")
"""Engines whose graphs are compiled to plans first."""

OLDEST_CAPABILITY: Final = (7, 5)  # Turing: what CUDA 13, TensorRT and our kernels start with
_DRIVER_OF_CUDA: Final = {12: "525", 13: "580"}  # first NVIDIA driver of each CUDA major version
_PRECISIONS: Final[dict[str, tuple[Precision, ...]]] = {
    "tensorrt": ("auto", "float32", "float16", "int8"),
    "tensorrt-rtx": ("auto", "float32", "float16", "int8"),
    "torch": ("auto", "float32", "float16", "bfloat16"),
    "openvino": ("auto", "float32", "bfloat16"),
    "onnx": ("auto", "float32"),
}

INSTALL: Final = {
    "tensorrt": "pip install tensorrt-cu13 --extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13",
    "torch": "pip install 'pose2seg-live[gpu]'",
    "openvino": "pip install openvino",
    "onnx": "pip install onnxruntime",
}
"""What to do where an engine's library is missing."""

# engine -> the module that is imported, and the distributions that may have brought it, best known first
_MODULES: Final = {
    "tensorrt": ("tensorrt", ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")),
    "tensorrt-rtx": ("tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")),
    "torch": ("torch", ("torch",)),
    "openvino": ("openvino", ("openvino",)),
    "onnx": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
}


@dataclass(frozen=True, slots=True)
class Library:
    """An installed runtime library.

    Attributes:
        version: as its package says; "unknown" where it does not.
        cuda: major version of CUDA that it was built for; 0 is none at all, None is not known.
    """

    version: str
    cuda: int | None = None


class Machine(Protocol):
    """What selection asks about a machine."""

    @property
    def driver(self) -> NvidiaDriver:
        """The NVIDIA driver and its GPUs."""

    def library(self, engine: str) -> Library | None:
        """The runtime library of an engine, None where it is not installed."""


class ThisMachine:
    """The machine that this runs on."""

    @property
    def driver(self) -> NvidiaDriver:
        return find_nvidia_driver()

    def library(self, engine: str) -> Library | None:
        return _find_library(engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One engine, seen from one machine and one set of options.

    Attributes:
        name: one of `ENGINE_NAMES`.
        problem: why it cannot run here, in a few words; "" if it can.
        remedy: what to do about the problem; "" where nothing helps.
        library: its runtime library, None where it is missing or was not looked for.
        device: where it would run: "cuda:N" or "cpu".
        gpu: the GPU of that device.
    """

    name: str
    problem: str = ""
    remedy: str = ""
    library: Library | None = None
    device: str = "cpu"
    gpu: Gpu | None = None

    @property
    def refusal(self) -> str:
        """Problem and remedy as one line."""
        return f"{self.problem}: {self.remedy}" if self.remedy else self.problem


def candidate(name: str, options: EngineOptions, machine: Machine, *, may_be_slow: bool = False) -> Candidate:
    """Whether one engine can run with these options on this machine.

    Args:
        name: one of `ENGINE_NAMES` but "auto".
        options: how it would run.
        machine: where.
        may_be_slow: torch may also run on the CPU.
    """
    if options.precision not in _PRECISIONS.get(name, (options.precision,)):
        known = "|".join(_PRECISIONS[name])
        return Candidate(name=name, problem=f"it has no {options.precision}", remedy=f"--precision {known}")
    wants_gpu = options.device is not None and options.device.startswith("cuda")
    if name not in GPU_ENGINES:
        if wants_gpu:
            return Candidate(name=name, problem=f"it runs on the CPU, not on {options.device}")
        return _with_library(Candidate(name=name), machine)
    if options.device == "cpu":
        if name == "torch" and may_be_slow:
            return _with_library(Candidate(name=name), machine)
        return Candidate(name=name, problem="it needs a GPU, not --device cpu")
    found = _on_gpu(name, options, machine)
    if not found.problem:
        found = _fitting_the_driver(_with_library(found, machine), machine)
    if found.problem or name == "torch":
        return found
    memory = candidate("torch", replace(options, precision="auto"), machine)  # holds the tensors of plans
    if memory.problem:
        return replace(found, problem=f"torch, which holds its tensors: {memory.problem}", remedy=memory.remedy)
    return found


def candidates(options: EngineOptions, machine: Machine) -> list[Candidate]:
    """What `auto` sees, in its order; the first without a problem is what it takes."""
    return [candidate(name, options, machine) for name in AUTO_ORDER]


def open_selected(
    engine: str,
    options: EngineOptions,
    open_one: Callable[[str, EngineOptions], Opened],
    *,
    name_of: Callable[[Opened], str],
    machine: Machine | None = None,
) -> Opened:
    """Open something with the engine that is asked for, or with the best that works; log in one line which and why.

    Args:
        engine: one of `ENGINE_NAMES`. One that is asked for by name and does not work is an error, never another one.
        options: how to run it.
        open_one: opens it with an engine, never "auto", and options whose device is settled for GPU engines.
        name_of: what to call the result in the log.
        machine: where to look; this machine by default.

    Raises:
        EngineLoadError: the engine is unknown or cannot be used, or none can.
    """
    if engine not in ENGINE_NAMES:
        raise EngineLoadError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINE_NAMES)}")
    machine = machine if machine is not None else ThisMachine()
    if engine != "auto":
        return _open_named(engine, options, open_one, name_of, machine)
    refused: list[tuple[str, str]] = []
    failed: EngineLoadError | None = None
    for name in AUTO_ORDER:
        found = candidate(name, options, machine)
        if found.problem:
            _log.debug("engine %s is not taken: %s", name, found.refusal)
            refused.append((name, found.problem))
            continue
        if failed is not None:
            _log.warning("engine %s does not load, %s is tried next: %s", refused[-1][0], name, failed)
        try:
            opened = open_one(name, _settled(found, options))
        except EngineLoadError as error:
            failed = error
            refused.append((name, "it does not load"))
            if name not in GPU_ENGINES:
                break  # no GPU is to blame, so the graph is: another engine on the CPU would only say so again
            continue
        _log.info("engine %s: %s (%s)", name, name_of(opened), _reason(refused))
        return opened
    if failed is not None:
        raise failed
    reasons = "; ".join(f"{', '.join(names)}: {problem}" for problem, names in _by_problem(refused).items())
    raise EngineLoadError(f"no engine can run here ({reasons}): change --device or --precision, or install a library")


def _open_named(
    engine: str,
    options: EngineOptions,
    open_one: Callable[[str, EngineOptions], Opened],
    name_of: Callable[[Opened], str],
    machine: Machine,
) -> Opened:
    if engine == "torch" and (options.device == "cpu" or (options.device is None and machine.driver.problem)):
        # `auto` does not take torch on the CPU, where others are faster; who names it may have it
        found = candidate(engine, replace(options, device="cpu"), machine, may_be_slow=True)
    else:
        found = candidate(engine, options, machine)
    if found.problem:
        missing = found.remedy != INSTALL[engine] and machine.library(engine) is None
        also = f"; then {INSTALL[engine]}" if missing else ""
        raise EngineLoadError(f"engine {engine} cannot be used: {found.refusal}{also}")
    opened = open_one(engine, _settled(found, options))
    _log.info("engine %s: %s (asked for by name)", engine, name_of(opened))
    return opened


def _settled(found: Candidate, options: EngineOptions) -> EngineOptions:
    return replace(options, device=found.device)


def _reason(refused: Sequence[tuple[str, str]]) -> str:
    if not refused:
        return "auto: the first choice works here"
    return "auto; " + "; ".join(f"not {', '.join(names)}: {problem}" for problem, names in _by_problem(refused).items())


def _by_problem(refused: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, problem in refused:
        names.setdefault(problem, []).append(name)
    return names


def _on_gpu(name: str, options: EngineOptions, machine: Machine) -> Candidate:
    """The candidate with its GPU, or why there is none for it."""
    driver = machine.driver
    if driver.problem:
        return Candidate(name=name, problem=driver.problem, remedy="install the NVIDIA driver, or use a CPU engine")
    index = int((options.device or "cuda").partition(":")[2] or 0)
    device = f"cuda:{index}"
    if index >= len(driver.gpus):
        known = ", ".join(f"cuda:{gpu.index} {gpu.name}" for gpu in driver.gpus)
        return Candidate(name=name, problem=f"there is no {device}", remedy=f"choose one of {known}", device=device)
    gpu = driver.gpus[index]
    if gpu.capability < OLDEST_CAPABILITY:
        has, needs = (".".join(map(str, pair)) for pair in (gpu.capability, OLDEST_CAPABILITY))
        return Candidate(
            name=name,
            problem=f"{gpu.name} has compute capability {has}, {needs} is needed",
            remedy="use a CPU engine or a GPU of the Turing generation or later",
            device=device,
            gpu=gpu,
        )
    return Candidate(name=name, device=device, gpu=gpu)


def _with_library(found: Candidate, machine: Machine) -> Candidate:
    library = machine.library(found.name)
    if library is None:
        return replace(found, problem="it is not installed", remedy=INSTALL[found.name])
    return replace(found, library=library)


def _fitting_the_driver(found: Candidate, machine: Machine) -> Candidate:
    """Refuse a library that was built without CUDA, or for a newer CUDA than the driver has."""
    library, driver = found.library, machine.driver
    if found.problem or library is None or library.cuda is None:
        return found
    if library.cuda == 0:
        return replace(
            found,
            problem=f"{found.name} {library.version} is built without CUDA",
            remedy="install the build for CUDA (https://pytorch.org/get-started/locally)",
        )
    if library.cuda > driver.cuda[0]:
        wanted = _DRIVER_OF_CUDA.get(library.cuda)
        return replace(
            found,
            problem=f"driver {driver.version} ends at CUDA {driver.cuda[0]}.{driver.cuda[1]}, "
            f"{found.name} {library.version} is built for CUDA {library.cuda}",
            remedy="update the NVIDIA driver" + (f" to {wanted} or later" if wanted else ""),
        )
    return found


@functools.cache
def _find_library(engine: str) -> Library | None:
    from importlib import metadata  # takes as long as all else here

    module, distributions = _MODULES[engine]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # blocked, or half-way removed
        return None
    if spec is None:
        return None
    cuda: int | None = None
    if engine == "torch":
        cuda = _cuda_of_torch(Path(spec.origin) if spec.origin else None)
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found = re.search(r"-cu(\d+)$", name)
        return Library(version, int(found[1]) if found else cuda)
    return Library("unknown", cuda)


def _cuda_of_torch(origin: Path | None) -> int | None:
    """CUDA version that torch was built for, read from a file of it, since importing torch takes seconds."""
    try:
        text = (origin.parent / "version.py").read_text(encoding="utf-8") if origin is not None else ""
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*(?:['\"](\d+)\.|None)", text, re.MULTILINE)
    return None if found is None else int(found[1] or 0)
