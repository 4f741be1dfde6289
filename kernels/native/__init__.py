"""How C++ and CUDA sources are built and launched; no torch here.

`compile`: sources to host libraries and device images, kept in the user's cache. `launch`: device images to running
kernels through the CUDA driver. ``half.cuh``: what every .cuh file starts with. ``python -m kernels.native`` compiles
everything for all architectures and says what each kernel needs.
"""

from __future__ import annotations

from kernels.native.compile import CUDA_ARCHITECTURES, NativeBuildError, device_image, fatbin, host_library
from kernels.native.launch import CudaDriverError, DeviceModule

__all__ = [
    "CUDA_ARCHITECTURES",
    "CudaDriverError",
    "DeviceModule",
    "NativeBuildError",
    "device_image",
    "fatbin",
    "host_library",
]
