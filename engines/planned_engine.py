"""From a graph to an engine of TensorRT or TensorRT for RTX: its plan out of the cache where one fits, else built."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from engines.engine import Announce, Engine, EngineLoadError, EngineOptions, Progress, announce_in_log
from engines.plan_cache import BuiltPlan, CachedPlan, PlanCache, PlanKey
from engines.selection import INSTALL, Machine, ThisMachine

Converter = Literal["onnx", "torch2trt"]
CONVERTERS: Final[tuple[Converter, ...]] = ("onnx", "torch2trt")
"""What reads a graph: the parser that comes with the library, or torch2trt."""

NO_GPU: Final = "none"
"""In place of the GPU and driver in the key of a plan that was built without."""

# What decides how a plan comes out; their content is part of its key.
_BUILDER_SOURCES: Final = (
    "engines/tensorrt_*.py",
    "engines/torch2trt_converter.py",
    "engines/half_precision.py",
    "kernels/affine_align/*.cu*",
    "kernels/native/*.cuh",
)

Build = Callable[[Path, str, EngineOptions, Converter, Progress], BuiltPlan]
Load = Callable[[bytes, str, EngineOptions], Engine]


def open_planned_engine(
    path: Path,
    library: str,
    options: EngineOptions,
    *,
    announce: Announce = announce_in_log,
    machine: Machine | None = None,
    build: Build | None = None,
    load: Load | None = None,
) -> Engine:
    """Open a graph with TensorRT or TensorRT for RTX.

    A plan from the cache that does not load is built again, once.

    Args:
        path: an `.onnx` file.
        library: "tensorrt" or "tensorrt-rtx".
        options: precision, sizes, cache folder, and a settled device.
        announce: shows that building, or waiting for another process that builds, goes on.
        machine: whose GPU, driver and library the plan must fit; this machine by default.
        build, load: make a plan, make an engine of a plan; TensorRT by default.

    Raises:
        EngineLoadError: the library does not load, the plan cannot be built, or it does not run on this GPU.
        PlanCacheError: others could put plans into the cache folder.
    """
    load = load if load is not None else load_plan
    opened: list[Engine] = []
    found = plan_of(
        path,
        library,
        options,
        announce=announce,
        machine=machine,
        build=build,
        accept=lambda plan: opened.append(load(plan, library, options)),
    )
    return opened[0] if found.from_cache else load(found.plan, library, options)


def plan_of(
    path: Path,
    library: str,
    options: EngineOptions,
    *,
    converter: Converter = "onnx",
    announce: Announce = announce_in_log,
    machine: Machine | None = None,
    build: Build | None = None,
    accept: Callable[[bytes], None] | None = None,
) -> CachedPlan:
    """The plan of a graph that fits a machine, from the cache or built now. See `open_planned_engine`.

    Args:
        path, library, options, announce, machine, build: as there.
        converter: what reads the graph.
        accept: tries a plan from the cache, see `PlanCache.get_or_build`.

    Raises:
        EngineLoadError: the library does not load or the plan cannot be built.
        PlanCacheError: others could put plans into the cache folder.
    """
    build = build if build is not None else build_plan
    key = plan_key(path, library, options, converter=converter, machine=machine)
    return PlanCache(options.cache_folder).get_or_build(
        key,
        path.name,
        functools.partial(build, path, library, options, converter),
        announce=announce,
        accept=accept,
    )


def plan_key(
    path: Path,
    library: str,
    options: EngineOptions,
    *,
    converter: Converter = "onnx",
    machine: Machine | None = None,
) -> PlanKey:
    """What a plan of this graph depends on.

    Raises:
        EngineLoadError: the graph cannot be read, the library is not installed, or there is no such GPU.
    """
    machine = machine if machine is not None else ThisMachine()
    installed = machine.library(library)
    if installed is None:
        raise EngineLoadError(f"engine {library} is not installed: {INSTALL[library]}")
    try:
        with path.open("rb") as file:
            graph_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineLoadError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    gpu, capability, driver = gpu_of_key(options.device, machine)
    return PlanKey(
        graph_sha256=graph_sha256,
        gpu=gpu,
        capability=capability,
        driver=driver,
        library=library,
        library_version=installed.version,
        precision=options.precision,
        max_batch=options.max_batch,
        max_people=options.max_people,
        long_side=options.long_side,
        converter=converter,
        builder=builder_fingerprint(),
    )


def gpu_of_key(device: str | None, machine: Machine) -> tuple[str, str, str]:
    """Name, compute capability and driver that a plan for a device depends on; `NO_GPU` without one.

    Raises:
        EngineLoadError: there are GPUs, but not that one.
    """
    gpus = machine.driver.gpus
    if not gpus:
        return NO_GPU, NO_GPU, NO_GPU
    index = int((device or "cuda").partition(":")[2] or 0)
    if index >= len(gpus):
        raise EngineLoadError(f"there is no cuda:{index}: this machine has {len(gpus)} GPUs, counted from 0")
    return gpus[index].name, ".".join(map(str, gpus[index].capability)), machine.driver.version


def staleness(key: PlanKey, machine: Machine) -> str:
    """Why a plan of this key will not be used on a machine, whatever the model; "" where it may be."""
    installed = machine.library(key.library)
    if installed is None:
        return f"{key.library} is not installed"
    for name, made_with, here in (
        (key.library, key.library_version, installed.version),
        ("our builder", key.builder, builder_fingerprint()),
    ):
        if made_with != here:
            return f"{name} was {made_with}, is {here}"
    gpus = {gpu_of_key(f"cuda:{gpu.index}", machine) for gpu in machine.driver.gpus} or {(NO_GPU, NO_GPU, NO_GPU)}
    if (key.gpu, key.capability, key.driver) in gpus:
        return ""
    if key.gpu not in {name for name, _, _ in gpus}:
        return f"made for GPU {key.gpu}"
    return f"driver was {key.driver}, is {machine.driver.version}"


@functools.cache
def builder_fingerprint() -> str:
    """Short SHA-256 of the code that makes plans: after an update of it, plans are built again."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for pattern in _BUILDER_SOURCES:
        for source in sorted(root.glob(pattern)):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def build_plan(path: Path, library: str, options: EngineOptions, converter: Converter, progress: Progress) -> BuiltPlan:
    """Have TensorRT build a plan.

    Raises:
        EngineLoadError: see `engines.tensorrt_build.build_plan`, or the converter is not installed.
    """
    if converter == "onnx":
        from engines.tensorrt_build import build_plan as build_with_parser

        return build_with_parser(library, path, options, progress=progress)
    try:
        from engines.torch2trt_converter import build_plan as build_with_torch2trt
    except ImportError as error:
        raise EngineLoadError(f"--converter torch2trt needs torch ({error}): {INSTALL['torch']}") from error
    return build_with_torch2trt(library, path, options, progress=progress)


def load_plan(plan: bytes, library: str, options: EngineOptions) -> Engine:
    """Make an engine of a plan.

    Raises:
        EngineLoadError: the library does not load, or the plan does not run on this GPU.
    """
    from engines.tensorrt_engine import TensorRTEngine

    return TensorRTEngine(plan, library=library, options=options)
