"""Launching our kernels on PyTorch's tensors and streams, and the element types' names in kernels."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.native.compile import image_for_capability
from kernels.native.launch import DeviceModule

#: How a kernel's name ends for tensors of this type.
ELEMENT_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Address of the first element; the tensor must outlive the enqueued work, as PyTorch's allocator sees to."""
    return ctypes.c_void_p(tensor.data_ptr())


def aligned(tensor: Tensor, alignment: int = 16) -> Tensor:
    """The tensor, or a copy of it where a view starts off the alignment that vector loads need."""
    return tensor if tensor.data_ptr() % alignment == 0 else tensor.clone()


def launch(
    source: Path,
    device: torch.device,
    name: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    *args: Any,
    shared_bytes: int = 0,
) -> None:
    """Enqueue a kernel of ``source`` on the device's current stream; compiles at the first call for its architecture.

    Raises:
        NativeBuildError: no compiler for CUDA code.
        CudaDriverError: the driver refuses the launch.
    """
    with torch.cuda.device(device):
        _module(source, *torch.cuda.get_device_capability(device)).launch(
            name, grid, block, torch.cuda.current_stream(device).cuda_stream, *args, shared_bytes=shared_bytes
        )


@functools.cache
def _module(source: Path, major: int, minor: int) -> DeviceModule:
    return DeviceModule(image_for_capability(source, major, minor))
