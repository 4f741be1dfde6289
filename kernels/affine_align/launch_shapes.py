"""How the kernels of affine_align.cu are launched: name, grid and block for a call's sizes; no CUDA needed to ask."""

from __future__ import annotations

from typing import Literal, NamedTuple

from kernels.skeleton import CHANNELS as SKELETON_CHANNELS
from kernels.skeleton import JOINTS, LIMBS

Kernel = Literal["affine_align", "align_with_skeleton", "affine_align_backward"]
Layout = Literal["nchw", "nhwc"]

#: Element types by the end of a kernel's name, with their size in bytes.
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}

#: People of one launch: the grid's z.
MAX_PEOPLE = 65535

#: The numbers at the top of affine_align.cu.
THREADS = 128
CHANNELS_PER_THREAD = 8
PIXELS_PER_THREAD = 2
FUSED_PIXELS_PER_THREAD = 4
LIMBS_PER_THREAD = 4

_MAX_OFFSET = 2**31 - 1


class LaunchShape(NamedTuple):
    """What `kernels.native.launch.DeviceModule.launch` is told besides the arguments."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


def launch_shape(kernel: Kernel, layout: Layout, element: str, *, people: int, channels: int, size: int) -> LaunchShape:
    """The launch that covers every output (for the gradient: every input) once.

    Args:
        kernel: first part of the name.
        layout: "nchw", or "nhwc" for channels-last features and windows.
        element: a key of `ELEMENT_BYTES`.
        people: N, 1..`MAX_PEOPLE`.
        channels: C of the feature map.
        size: side S of the window, px.
    """
    area = size * size
    if layout == "nchw":
        rows = _shares(channels, CHANNELS_PER_THREAD)
        if kernel == "align_with_skeleton":
            rows += _shares(JOINTS, CHANNELS_PER_THREAD) + _shares(len(LIMBS), LIMBS_PER_THREAD)
        grid = (_shares(area, THREADS), rows, people)
    else:
        if kernel == "affine_align":
            threads = _shares(area, PIXELS_PER_THREAD) * _shares(channels, 16 // ELEMENT_BYTES[element])
        elif kernel == "align_with_skeleton":
            threads = _shares(area, FUSED_PIXELS_PER_THREAD) * (channels + SKELETON_CHANNELS)
        else:
            threads = area * channels
        grid = (_shares(threads, THREADS), 1, people)
    return LaunchShape(f"{kernel}_{layout}_{element}", grid, (THREADS, 1, 1))


def check_sizes(height: int, width: int, size: int) -> None:
    """Raise ValueError where an offset within one map or window would not fit the kernels' 32 bits."""
    if height < 1 or width < 1:
        raise ValueError(f"features must be (B, C, h, w) with h, w at least 1, got h={height}, w={width}")
    if size < 1:
        raise ValueError(f"size must be at least 1 px, got {size}")
    # Beyond 2^23 the coordinates themselves are no longer exact in float32.
    if max(height, width) > 2**23 or height * width > _MAX_OFFSET or size * size > _MAX_OFFSET - THREADS:
        raise ValueError(
            f"feature maps and windows hold at most {_MAX_OFFSET} px and 2^23 on a side, "
            f"got maps of {height} x {width} and windows of {size} x {size}"
        )


def _shares(whole: int, part: int) -> int:
    return -(-whole // part)
