"""Kernels of a .cu file run on the CPU behind a stand-in for the CUDA driver; see fake_cuda_driver.hpp."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from kernels.native.compile import NativeBuildError, host_compiler, translation_unit

SHIM = Path(__file__).with_name("fake_cuda_driver.hpp")


class Launch(ctypes.Structure):
    """What the last `cuLaunchKernel` was told."""

    _fields_ = (
        ("name", ctypes.c_char * 128),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
    )


def build_fake_driver(source: Path, folder: Path) -> Path:
    """Compile ``folder``/libcuda.so.1 with the kernels of ``source``.

    Undefined behaviour (overflow, a misaligned vector) stops the process, which no test survives unnoticed.
    """
    compiler = host_compiler()
    if compiler is None:
        raise NativeBuildError("the stand-in for the CUDA driver needs a C++ compiler: install g++")
    shim, kernels = SHIM.read_text(encoding="utf-8"), translation_unit(source)
    found = subprocess.run(
        [compiler, "-E", "-P", "-D__global__=KERNEL_HERE", "-D__launch_bounds__(x)=", "-x", "c++", "-"],
        input=kernels,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(r'extern\s+"C"\s+KERNEL_HERE\s+void\s+(\w+)', found)
    if not names:
        raise NativeBuildError(f'{source} has no kernels that begin with: extern "C" __global__ void')
    table = ",\n".join(f'fake::unpacked<&{name}>::entry("{name}")' for name in names)
    unit, library = folder / "fake_cuda.cpp", folder / "libcuda.so.1"
    unit.write_text(f"{shim}\n{kernels}\nstatic fake::kernel fake_kernels[] = {{\n{table}\n}};\nDRIVER\n")
    subprocess.run(
        [
            *(compiler, "-O1", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas"),
            *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
            *("-o", str(library), str(unit)),
        ],
        check=True,
    )
    return library


def load_fake_driver(library: Path) -> ctypes.CDLL:
    """The stand-in, started; hand it to `kernels.native.launch` in place of its own `_driver`."""
    driver = ctypes.CDLL(str(library))
    driver.fake_last_launch.restype = ctypes.POINTER(Launch)
    driver.fake_image.restype = ctypes.c_char_p
    driver.cuInit(0)
    return driver
