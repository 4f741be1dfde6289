"""What the kernels on frames are called with: parameter structures, grids, and how a block's share is chosen.

The structures are those of device_frames.cuh, field for field. No torch here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

YuvMatrix = Literal["bt601", "bt709"]

FRAMES_PER_LAUNCH = 8
MAX_SIDE_PX = 32767  # products of two sides fit 32 bits
LETTERBOX_BLOCK = (256, 1, 1)
PASTE_BLOCK = (128, 1, 1)
PASTE_TILE_PX = (8, 128)  # height, width of a block
TILE_WIDTH_PX = 32
MAX_STAGE_BYTES = 32 * 1024  # six blocks of 256 threads then fit a multiprocessor of compute capability 8.0 and 9.0

# ITU-T H.273 in units of 1/65536, as FFmpeg has them (libswscale/yuv2rgb.c): V in red, U in blue, U and V in green.
_CHROMA_SHARES = {"bt601": (104597, 132201, 25675, 53279), "bt709": (117489, 138438, 13975, 34925)}
YUV_MATRICES = tuple(_CHROMA_SHARES)


class FramePointers(ctypes.Structure):
    """Where the frames of one launch start."""

    _fields_ = (
        ("pixels", ctypes.c_void_p * FRAMES_PER_LAUNCH),
        ("chroma", ctypes.c_void_p * FRAMES_PER_LAUNCH),
    )


class LetterboxParameters(ctypes.Structure):
    """``LetterboxPlan`` of device_frames.cuh."""

    _fields_ = (
        ("frame_height", ctypes.c_int),
        ("frame_width", ctypes.c_int),
        ("content_height", ctypes.c_int),
        ("content_width", ctypes.c_int),
        ("input_height", ctypes.c_int),
        ("input_width", ctypes.c_int),
        ("tile_height", ctypes.c_int),
        ("stage_bytes", ctypes.c_int),
        ("row_stride", ctypes.c_longlong),
        ("chroma_row_stride", ctypes.c_longlong),
        ("chroma_pixel_stride", ctypes.c_longlong),
        ("chroma_channel_stride", ctypes.c_longlong),
        ("yuv", ctypes.c_int * 6),
        ("mean", ctypes.c_float * 3),
        ("inverse_deviation", ctypes.c_float * 3),
        ("frames", ctypes.c_int),
    )


class PasteParameters(ctypes.Structure):
    """``PastePlan`` of device_frames.cuh."""

    _fields_ = (
        ("people", ctypes.c_int),
        ("size", ctypes.c_int),
        ("records", ctypes.c_int),
        ("frame_height", ctypes.c_int),
        ("frame_width", ctypes.c_int),
        ("threshold", ctypes.c_float),
        ("opacity", ctypes.c_uint),
        ("frame_row_stride", ctypes.c_longlong),
        ("alpha_plane_stride", ctypes.c_longlong),
        ("alpha_row_stride", ctypes.c_longlong),
        ("words", ctypes.c_longlong),
        ("alpha_planes", ctypes.c_int),
        ("exclusive", ctypes.c_int),
    )


def yuv_coefficients(matrix: str, *, full_range: bool) -> tuple[int, int, int, int, int, int]:
    """Integers of the conversion to RGB: 8 x luma offset, then luma, V in red, U in blue, U and V in green in 1/8192.

    Raises:
        ValueError: an unknown matrix.
    """
    if matrix not in _CHROMA_SHARES:
        raise ValueError(f"matrix must be one of {', '.join(YUV_MATRICES)}, got {matrix!r}")
    luma, offset = (65536, 0) if full_range else (65536 * 255 // 219, 16)
    shares = [share * 224 // 255 if full_range else share for share in _CHROMA_SHARES[matrix]]
    luma, red_v, blue_u, green_u, green_v = ((value * 8192 + 32768) >> 16 for value in (luma, *shares))
    return 8 * offset, luma, red_v, blue_u, -green_u, -green_v


@lru_cache(maxsize=64)
def letterbox_tile(frame: tuple[int, int], content: tuple[int, int], *, yuv: bool) -> tuple[int, int]:
    """Rows of the input that a block makes, and bytes of scratch it needs for the frame px below them.

    As many rows, up to 8, as fit `MAX_STAGE_BYTES`. Where not even one row does, a block reads the frame directly:
    8 rows, no scratch. ``frame`` and ``content`` are (height, width), px.
    """

    def sources(targets: int, axis: int) -> int:
        """Most frame px that so many neighbouring px of the content are made from."""
        most = targets * frame[axis] // content[axis] + 3  # a part of a px at both ends, or the px right of a centre
        return min(most, frame[axis])

    for rows in (8, 4, 2, 1):
        columns = sources(TILE_WIDTH_PX, 1)
        stride = 12 * ((columns + 6) // 4) if yuv else (3 * columns + 30) // 16 * 16
        if sources(rows, 0) * stride <= MAX_STAGE_BYTES:
            return rows, sources(rows, 0) * stride
    return 8, 0


def letterbox_parameters(
    frame: tuple[int, int],
    content: tuple[int, int],
    network_input: tuple[int, int],
    *,
    row_stride: int,
    chroma_strides: tuple[int, int, int] | None = None,
    yuv: tuple[int, ...] = (0,) * 6,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    deviation: Sequence[float] = (1.0, 1.0, 1.0),
) -> LetterboxParameters:
    """The structure for frames of one size; ``frames`` is left for the caller, launch by launch.

    Args:
        frame: height, width, px.
        content: height, width of the scaled frame, px.
        network_input: height, width, px; at least those of the content.
        row_stride: bytes from a row of RGB or luma to the next.
        chroma_strides: bytes from a row of chroma to the next, from a px to the next, from U to V; None for RGB.
        yuv: from `yuv_coefficients`.
        mean: of R, G, B in levels; for normalised outputs.
        deviation: of R, G, B in levels.

    Raises:
        ValueError: sides outside 1..32767 px, content larger than the input, a deviation that is not above 0.
    """
    for what, sides in (("frame", frame), ("content", content), ("input", network_input)):
        if not all(1 <= side <= MAX_SIDE_PX for side in sides):
            raise ValueError(f"{what} must have sides of 1..{MAX_SIDE_PX} px, got {sides[0]} x {sides[1]}")
    if content[0] > network_input[0] or content[1] > network_input[1]:
        raise ValueError(
            f"content of {content[0]} x {content[1]} px does not fit an input of "
            f"{network_input[0]} x {network_input[1]} px"
        )
    if len(mean) != 3 or len(deviation) != 3 or not all(value > 0 for value in deviation):
        raise ValueError(f"mean and deviation must be three levels, deviations above 0, got {mean} and {deviation}")
    tile_height, stage_bytes = letterbox_tile(frame, content, yuv=chroma_strides is not None)
    return LetterboxParameters(
        *frame,
        *content,
        *network_input,
        tile_height,
        stage_bytes,
        row_stride,
        *(chroma_strides or (0, 0, 0)),
        yuv,
        tuple(mean),
        tuple(1.0 / value for value in deviation),
    )


def letterbox_grid(parameters: LetterboxParameters) -> tuple[int, int, int]:
    """Blocks along x and y of the input, and frames."""
    return (
        -(-parameters.input_width // TILE_WIDTH_PX),
        -(-parameters.input_height // parameters.tile_height),
        parameters.frames,
    )


def paste_grid(frame_height: int, frame_width: int) -> tuple[int, int, int]:
    """Blocks along x and y of the frame."""
    return -(-frame_width // PASTE_TILE_PX[1]), -(-frame_height // PASTE_TILE_PX[0]), 1
