"""TensorRT 10.8+, TensorRT 11 and TensorRT for RTX behind one door: loading, versions, the one Logger, the driver.

Both libraries have nearly the same Python interface. What differs is asked of the library itself (`has_aot_plugins`,
`is_rtx`), never of its version number, where that is possible.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import re
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from engines.engine import EngineLoadError
from engines.nvidia_driver import NvidiaDriver, find_nvidia_driver

_log = logging.getLogger(__name__)

LIBRARIES: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Engine name -> Python module."""

_MINIMUM: Final = {"tensorrt": (10, 8), "tensorrt-rtx": (1, 7)}
_BROKEN: Final = {"tensorrt": ((10, 14),)}  # its quick plugins are broken, as torch-tensorrt found out
_TITLE: Final = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_INSTALL: Final = {
    "tensorrt": "pip install tensorrt-cu13 (its libraries come from NVIDIA's package index, see docs/tensorrt.md)",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13",
}
_RTX_LIBRARIES: Final = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
_KEPT_ERRORS = 20

_lock = threading.Lock()
_loggers: dict[str, Any] = {}
_preloaded_by_us: set[str] = set()


def load_library(name: str) -> ModuleType:
    """Import TensorRT or TensorRT for RTX and check that our code can use it.

    Args:
        name: "tensorrt" or "tensorrt-rtx".

    Raises:
        EngineLoadError: unknown name, not installed, its shared libraries missing, too old, or a version that is known
            to be broken.
    """
    if name not in LIBRARIES:
        raise EngineLoadError(f"unknown TensorRT library {name!r}: choose one of {', '.join(LIBRARIES)}")
    module_name, title = LIBRARIES[name], _TITLE[name]
    with _lock:
        try:
            if name == "tensorrt-rtx":
                _preload_rtx()
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise EngineLoadError(f"{title} is not installed ({error}): {_INSTALL[name]}") from error
        except (ImportError, OSError) as error:
            raise EngineLoadError(
                f"{title} is installed, but its shared libraries do not load ({_first_line(error)}): {_INSTALL[name]}"
            ) from error
    _check_version(name, str(getattr(module, "__version__", "")))
    return module


def is_rtx(trt: ModuleType) -> bool:
    """Whether this is TensorRT for RTX: compute capabilities instead of a GPU, a runtime cache, no AOT plugins."""
    return hasattr(trt, "ComputeCapability")


def has_aot_plugins(trt: ModuleType) -> bool:
    """Whether quick plugins with the kernel inside the plan exist (TensorRT from 10.8 on)."""
    return hasattr(trt, "QuickPluginCreationRequest") and hasattr(trt, "IPluginV3QuickAOTBuild")


def python_plugins_are_safe(trt: ModuleType) -> bool:
    """Whether a plugin node can be parsed: RTX ends the process there unless its libraries were found our way."""
    return not is_rtx(trt) or sys.platform != "linux" or trt.__name__ in _preloaded_by_us


def title_of(trt: ModuleType) -> str:
    """Name and version for people: "TensorRT 11.4.0", "TensorRT for RTX 1.7.1"."""
    name = "tensorrt-rtx" if is_rtx(trt) else "tensorrt"
    return f"{_TITLE[name]} {'.'.join(str(trt.__version__).split('.')[:3])}"


def logger_of(trt: ModuleType) -> Any:
    """The process's one Logger of this library; later ones would be ignored by it.

    It is an `ILogger` with `take_errors() -> list[str]`: what went wrong since the last call. TensorRT returns None or
    False and says why only there.
    """
    with _lock:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _make_logger(trt)
        return _loggers[trt.__name__]


def _make_logger(trt: ModuleType) -> Any:
    base: Any = trt.ILogger

    class ProcessLogger(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

        def log(self, severity: Any, msg: str) -> None:
            level = int(severity)
            if level <= int(trt.ILogger.ERROR):  # INTERNAL_ERROR is 0, ERROR 1, VERBOSE 4
                self._errors.append(msg.strip())
                _log.debug("%s error: %s", trt.__name__, msg)  # raised with an exception; not told twice
            elif level == int(trt.ILogger.WARNING):
                _log.info("%s: %s", trt.__name__, msg)
            else:
                _log.debug("%s: %s", trt.__name__, msg)

        def take_errors(self) -> list[str]:
            taken = list(self._errors)
            self._errors.clear()
            return taken

    return ProcessLogger()


def reason_in(errors: Iterable[str]) -> str:
    """The first error that says something, on one line."""
    for error in errors:
        line = " ".join(error.split())
        if line and not line.startswith(("ModelImporter.cpp:", "--- ")):
            return line[:400]
    return "it gave no reason"


def speaks_of_memory(errors: Iterable[str]) -> bool:
    """Whether an error of TensorRT means that device memory ran out."""
    return any(re.search(r"out of memory|OutOfMemory|MemoryAllocation|cudaError 2\b", error) for error in errors)


# ------------------------------------------------------------------------------------------------------ RTX's own wheel


def _preload_rtx() -> None:
    """Load RTX's two libraries from a folder where each also has its name without ".1".

    The wheel of 1.7.1 ships `libtensorrt_rtx.so.1` only, and its parser opens `libtensorrt_rtx.so` when it meets the
    first plugin node: not found, and the process is ended. The folder must live as long as the process.
    """
    name = LIBRARIES["tensorrt-rtx"]
    if name in sys.modules or sys.platform != "linux":
        return
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    for location in found.submodule_search_locations or () if found else ():
        wheel = Path(location)
        if not all((wheel / library).exists() for library in _RTX_LIBRARIES):
            continue
        folder = Path(tempfile.mkdtemp(prefix="pose2seg-tensorrt-rtx-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for library in _RTX_LIBRARIES:
            for link in (folder / library, folder / library.removesuffix(".1")):
                link.symlink_to((wheel / library).resolve())
        for library in _RTX_LIBRARIES:
            ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
        _preloaded_by_us.add(name)
        return


def _check_version(name: str, version: str) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    minimum = _MINIMUM[name]
    if numbers[: len(minimum)] < minimum:
        raise EngineLoadError(
            f"{_TITLE[name]} {version or 'of unknown version'} is too old, "
            f"{'.'.join(map(str, minimum))} or newer is needed: {_INSTALL[name]}"
        )
    for broken in _BROKEN.get(name, ()):
        if numbers[: len(broken)] == broken:
            raise EngineLoadError(
                f"{_TITLE[name]} {version} cannot build our plugin (its quick plugins are broken): take an older or a "
                f"newer release, {_INSTALL[name]}"
            )


# ------------------------------------------------------------------------------------------------------------- driver


def driver_problem(name: str, driver: NvidiaDriver | None = None, *, cuda_of_library: int | None = None) -> str | None:
    """Why no plan can run here: no driver, no GPU, a driver older than the library's CUDA; None when all is well.

    Args:
        name: "tensorrt" or "tensorrt-rtx".
        driver: None asks this machine's.
        cuda_of_library: CUDA's major version that the library was made for; None reads it off the installed package.
    """
    driver = driver or find_nvidia_driver()
    title = _TITLE[name]
    if driver.problem:
        return f"{title} needs an NVIDIA GPU: {driver.problem}; see nvidia-smi, or choose --engine onnx"
    needed = cuda_of_library or _cuda_of_library(name)
    if needed is not None and driver.cuda[0] < needed:
        newer = " (580 or later)" if needed == 13 else ""
        return (
            f"the installed {title} was made for CUDA {needed}, driver {driver.version} knows CUDA "
            f"{driver.cuda[0]}.{driver.cuda[1]} at most: install a newer driver{newer}, or the "
            f"-cu{driver.cuda[0]} packages of the library"
        )
    return None


def _cuda_of_library(name: str) -> int | None:
    stem = "tensorrt-rtx" if name == "tensorrt-rtx" else "tensorrt"
    for major in (13, 12):
        for suffix in ("libs", "bindings"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                importlib.metadata.version(f"{stem}-cu{major}-{suffix}")
                return major
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
