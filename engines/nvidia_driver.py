"""What the NVIDIA driver of this machine says of itself and its GPUs, asked by ctypes and without any other library.

On a machine without the driver the answer takes a fraction of a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAJOR_ATTRIBUTE: Final = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of cuda.h
_MINOR_ATTRIBUTE: Final = 76
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_TEXT_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as CUDA numbers them; those that CUDA_VISIBLE_DEVICES hides are not counted.

    Attributes:
        index: N of "cuda:N".
        name: as the driver has it, "NVIDIA H100 80GB HBM3".
        capability: compute capability, (major, minor).
        memory_bytes: all of its memory.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDriver:
    """The driver, or why there is none.

    Attributes:
        version: "580.95.05"; "" without a driver, "unknown" where it does not tell.
        cuda: the newest CUDA that it supports, (major, minor); (0, 0) without a driver.
        gpus: in the order of their index.
        problem: why no GPU can be used, in a few words; "" where one can.
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@functools.cache
def find_nvidia_driver() -> NvidiaDriver:
    """Ask the driver of this machine; never raises. The answer is kept for the life of the process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)")
    version = _driver_version()
    try:
        return _ask(cuda, version)
    except AttributeError as error:  # something else that bears the library's name
        return NvidiaDriver(version=version, problem=f"libcuda.so.1 is not an NVIDIA driver ({error})")


def _ask(cuda: ctypes.CDLL, version: str) -> NvidiaDriver:
    newest = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(newest))
    supported = (newest.value // 1000, newest.value % 1000 // 10)
    code = cuda.cuInit(0)
    if code:
        text = "no GPU" if code == _NO_DEVICE else f"the NVIDIA driver does not start ({_error_text(cuda, code)})"
        return NvidiaDriver(version=version, cuda=supported, problem=text)
    count = ctypes.c_int(0)
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or count.value == 0:
        return NvidiaDriver(version=version, cuda=supported, problem="no GPU")
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        name, memory = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.c_size_t(0)
        codes = (
            cuda.cuDeviceGet(ctypes.byref(device), index),
            cuda.cuDeviceGetName(name, _TEXT_BYTES, device),
            cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR_ATTRIBUTE, device),
            cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR_ATTRIBUTE, device),
            cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        )
        if any(codes):
            text = f"GPU {index} does not answer ({_error_text(cuda, next(filter(None, codes)))})"
            return NvidiaDriver(version=version, cuda=supported, problem=text)
        gpus.append(Gpu(index, name.value.decode(errors="replace"), (major.value, minor.value), memory.value))
    return NvidiaDriver(version=version, cuda=supported, gpus=tuple(gpus))


def _error_text(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        cuda.cuGetErrorString(code, ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else f"CUDA driver error {code}"


def _driver_version() -> str:
    with contextlib.suppress(OSError, AttributeError):
        management = ctypes.CDLL("libnvidia-ml.so.1")
        if management.nvmlInit_v2() == 0:
            text = ctypes.create_string_buffer(_TEXT_BYTES)
            code = management.nvmlSystemGetDriverVersion(text, _TEXT_BYTES)
            management.nvmlShutdown()
            if code == 0:
                return text.value.decode(errors="replace")
    with contextlib.suppress(OSError):
        found = re.search(r"\b(\d{3,}(?:\.\d+)+)\b", Path("/proc/driver/nvidia/version").read_text())
        if found:
            return found[1]
    return "unknown"
