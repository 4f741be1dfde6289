"""Kernels on frames as PyTorch operators that write into given tensors.

    pose2seg::letterbox_rgb      RGB frames into rows of a batch of network inputs
    pose2seg::letterbox_nv12     the same from YUV 4:2:0, NV12 or planar
    pose2seg::paste_and_blend    masks of all people of a frame: bits out, colours or alpha written

On CUDA tensors each is one launch of device_frames.cu on the current stream (one per eight frames of a letterbox);
nothing is allocated, nothing waits. On CPU tensors the same arithmetic runs in the C++ compiler's build. The functions
below the operators are what callers usually want.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.coordinates import U8
from kernels.device_frames import PASTE_RECORD_WORDS, PastePlan, bits_capacity, plan_paste
from kernels.device_frames.launch_shapes import (
    FRAMES_PER_LAUNCH,
    LETTERBOX_BLOCK,
    PASTE_BLOCK,
    FramePointers,
    LetterboxParameters,
    PasteParameters,
    letterbox_grid,
    letterbox_parameters,
    paste_grid,
    yuv_coefficients,
)
from kernels.letterbox import Letterbox
from kernels.native.compile import host_library
from kernels.native.torch_launch import ELEMENT_NAMES, launch, pointer

DEVICE_SOURCE = Path(__file__).with_name("device_frames.cu")
HOST_SOURCE = Path(__file__).with_name("device_frames_host.cpp")
# Sums that the device does not fuse must not be fused here either (g++ does by default on ARM).
HOST_FLAGS = ("-ffp-contract=off",)

_INPUT_NAMES = {torch.uint8: "u8", torch.float32: "f32", torch.float16: "f16"}


# ------------------------------------------------------------------------------------------------------------ operators

torch.library.define(
    "pose2seg::letterbox_rgb",
    "(Tensor[] frames, Tensor(a!) out, int first_row, int content_height, int content_width, "
    "float[] mean, float[] deviation) -> ()",
)
torch.library.define(
    "pose2seg::letterbox_nv12",
    "(Tensor[] luma, Tensor[] chroma, Tensor(a!) out, int first_row, int content_height, int content_width, "
    "str matrix, bool full_range, float[] mean, float[] deviation) -> ()",
)
torch.library.define(
    "pose2seg::paste_and_blend",
    "(Tensor probabilities, Tensor records, Tensor(a!) bits, Tensor(b!)? frame, Tensor(c!)? alpha, "
    "float threshold, float opacity, int frame_height, int frame_width, bool exclusive=False) -> ()",
)


@torch.library.impl("pose2seg::letterbox_rgb", ("CPU", "CUDA"))
def _letterbox_rgb(
    frames: list[Tensor],
    out: Tensor,
    first_row: int,
    content_height: int,
    content_width: int,
    mean: list[float],
    deviation: list[float],
) -> None:
    for frame in frames:
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 (H, W, 3), got {_said(frame)}")
        _expect_alike("frames", frame, frames[0])
        if frame.stride()[1:] != (3, 1):
            raise ValueError(f"px of a frame must lie side by side, three bytes each, got strides {frame.stride()}")
    _check_out(out, frames, first_row)
    if not frames:
        return
    height, width, _ = frames[0].shape
    parameters = letterbox_parameters(
        (height, width),
        (content_height, content_width),
        _input_sides(out),
        row_stride=frames[0].stride(0),
        mean=mean,
        deviation=deviation,
    )
    _letterbox("letterbox_rgb", frames, [], out, first_row, parameters)


@torch.library.impl("pose2seg::letterbox_nv12", ("CPU", "CUDA"))
def _letterbox_nv12(
    luma: list[Tensor],
    chroma: list[Tensor],
    out: Tensor,
    first_row: int,
    content_height: int,
    content_width: int,
    matrix: str,
    full_range: bool,
    mean: list[float],
    deviation: list[float],
) -> None:
    if len(luma) != len(chroma):
        raise ValueError(f"each luma plane needs its chroma, got {len(luma)} and {len(chroma)}")
    for y, uv in zip(luma, chroma, strict=True):
        if y.dtype != torch.uint8 or y.ndim != 2:
            raise ValueError(f"luma must be uint8 (H, W), got {_said(y)}")
        expected = ((y.shape[0] + 1) // 2, (y.shape[1] + 1) // 2, 2)
        if uv.dtype != torch.uint8 or tuple(uv.shape) != expected:
            raise ValueError(f"chroma must be uint8 {expected} for luma {tuple(y.shape)}, got {_said(uv)}")
        _expect_alike("luma planes", y, luma[0])
        _expect_alike("chroma planes", uv, chroma[0])
        if y.stride(1) != 1:
            raise ValueError(f"px of a luma row must lie side by side, got strides {y.stride()}")
    _check_out(out, [*luma, *chroma], first_row, count=len(luma))
    if not luma:
        return
    height, width = luma[0].shape
    parameters = letterbox_parameters(
        (height, width),
        (content_height, content_width),
        _input_sides(out),
        row_stride=luma[0].stride(0),
        chroma_strides=chroma[0].stride(),  # type: ignore[arg-type]  # of three dimensions, checked
        yuv=yuv_coefficients(matrix, full_range=full_range),
        mean=mean,
        deviation=deviation,
    )
    _letterbox("letterbox_yuv", luma, chroma, out, first_row, parameters)


@torch.library.impl("pose2seg::paste_and_blend", ("CPU", "CUDA"))
def _paste_and_blend(
    probabilities: Tensor,
    records: Tensor,
    bits: Tensor,
    frame: Tensor | None,
    alpha: Tensor | None,
    threshold: float,
    opacity: float,
    frame_height: int,
    frame_width: int,
    exclusive: bool = False,
) -> None:
    _check_paste(probabilities, records, bits, frame, alpha, threshold, opacity, (frame_height, frame_width))
    if not len(records) or not len(probabilities):
        return
    planes = None if alpha is None else alpha.reshape(-1, *alpha.shape[-2:]) if alpha.ndim == 3 else alpha[None]
    parameters = PasteParameters(
        len(probabilities),
        probabilities.shape[1],
        len(records),
        frame_height,
        frame_width,
        threshold,
        round(opacity * 2**24),
        0 if frame is None else frame.stride(0),
        *((0, 0) if planes is None else planes.stride()[:2]),
        len(bits),
        0 if planes is None else len(planes),
        int(exclusive),
    )
    outputs = [ctypes.c_void_p() if tensor is None else pointer(tensor) for tensor in (frame, alpha, bits)]
    _run(
        probabilities.device,
        f"paste_and_blend_{ELEMENT_NAMES[probabilities.dtype]}",
        paste_grid(frame_height, frame_width),
        PASTE_BLOCK,
        *(pointer(records), pointer(probabilities), parameters, *outputs),
    )


def _writes_only(*_: object) -> None:
    """All three return nothing."""


for _name in ("letterbox_rgb", "letterbox_nv12", "paste_and_blend"):
    torch.library.register_fake(f"pose2seg::{_name}", _writes_only)


def _letterbox(
    name: str,
    pixels: Sequence[Tensor],
    chroma: Sequence[Tensor],
    out: Tensor,
    first_row: int,
    parameters: LetterboxParameters,
) -> None:
    name = f"{name}_{_INPUT_NAMES[out.dtype]}"
    for first in range(0, len(pixels), FRAMES_PER_LAUNCH):
        frames = FramePointers()
        count = min(len(pixels) - first, FRAMES_PER_LAUNCH)
        for i in range(count):
            frames.pixels[i] = pixels[first + i].data_ptr()
            frames.chroma[i] = chroma[first + i].data_ptr() if chroma else None
        parameters.frames = count
        _run(
            out.device,
            name,
            letterbox_grid(parameters),
            LETTERBOX_BLOCK,
            *(frames, parameters, pointer(out[first_row + first])),
            shared_bytes=parameters.stage_bytes,
        )


def _run(
    device: torch.device,
    name: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    *args: Any,
    shared_bytes: int = 0,
) -> None:
    if device.type == "cuda":
        launch(DEVICE_SOURCE, device, name, grid, block, *args, shared_bytes=shared_bytes)
    else:
        function = getattr(host_library(HOST_SOURCE, flags=HOST_FLAGS), name)
        function.restype = None
        function(*args)


# --------------------------------------------------------------------------------------------------------------- checks


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _expect_alike(what: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.shape != first.shape or tensor.stride() != first.stride():
        raise ValueError(
            f"{what} of one call must be alike, got shape {tuple(first.shape)} with strides {first.stride()} "
            f"and {tuple(tensor.shape)} with {tensor.stride()}: call once for each size"
        )
    if min(tensor.stride()) < 0 or tensor.numel() == 0:
        raise ValueError(f"{what} must have at least 1 px, got {tuple(tensor.shape)}")


def _check_out(out: Tensor, sources: Sequence[Tensor], first_row: int, *, count: int | None = None) -> None:
    count = len(sources) if count is None else count
    if out.dtype not in _INPUT_NAMES or out.ndim != 4 or out.shape[3 if out.dtype == torch.uint8 else 1] != 3:
        raise ValueError(f"out must be uint8 (B, H, W, 3), or float32 or float16 (B, 3, H, W), got {_said(out)}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()} for {tuple(out.shape)}")
    if not 0 <= first_row <= first_row + count <= len(out):
        raise ValueError(f"{count} frames from row {first_row} on do not fit a batch of {len(out)}")
    _expect_device(out, sources)


def _input_sides(out: Tensor) -> tuple[int, int]:
    return (out.shape[1], out.shape[2]) if out.dtype == torch.uint8 else (out.shape[2], out.shape[3])


def _expect_device(first: Tensor, others: Sequence[Tensor | None]) -> None:
    for tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"all tensors must be on one device, got {first.device} and {tensor.device}")


def _check_paste(
    probabilities: Tensor,
    records: Tensor,
    bits: Tensor,
    frame: Tensor | None,
    alpha: Tensor | None,
    threshold: float,
    opacity: float,
    sides: tuple[int, int],
) -> None:
    if (
        probabilities.dtype not in {torch.float32, torch.float16}
        or probabilities.ndim != 3
        or probabilities.shape[1] != probabilities.shape[2]
        or probabilities.shape[1] < 1
    ):
        raise ValueError(f"probabilities must be float32 or float16 (N, S, S), got {_said(probabilities)}")
    if records.dtype != torch.int32 or records.ndim != 2 or records.shape[1] != PASTE_RECORD_WORDS:
        raise ValueError(f"records must be int32 (N, {PASTE_RECORD_WORDS}) from plan_paste, got {_said(records)}")
    if bits.dtype != torch.int32 or bits.ndim != 1:
        raise ValueError(f"bits must be int32 with one dimension, got {_said(bits)}")
    for name, tensor in (("probabilities", probabilities), ("records", records), ("bits", bits)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()} for {tuple(tensor.shape)}")
    if records.data_ptr() % 16:
        raise ValueError("records must start at a multiple of 16 bytes: pass a tensor of their own")
    if not all(side >= 1 for side in sides):
        raise ValueError(f"frame must be at least 1 x 1 px, got {sides[0]} x {sides[1]}")
    if frame is not None and (
        frame.dtype != torch.uint8 or tuple(frame.shape) != (*sides, 3) or frame.stride()[1:] != (3, 1)
    ):
        raise ValueError(
            f"frame must be uint8 {(*sides, 3)} with px side by side, got {_said(frame)} with strides {frame.stride()}"
        )
    if alpha is not None and (
        alpha.dtype != torch.uint8
        or alpha.ndim not in {2, 3}
        or tuple(alpha.shape[-2:]) != sides
        or alpha.stride(-1) != 1
    ):
        raise ValueError(
            f"alpha must be uint8 {sides} or (planes, {sides[0]}, {sides[1]}) with px side by side, got {_said(alpha)}"
        )
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must be in 0 <= threshold < 1, got {threshold}")
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity must be in 0..1, got {opacity}")
    _expect_device(probabilities, (records, bits, frame, alpha))


# ------------------------------------------------------------------------------------------------------ what is called


def letterbox_frames(
    frames: Sequence[Tensor], plan: Letterbox, out: Tensor | None = None, *, first_row: int = 0
) -> Tensor:
    """`kernels.letterbox.letterbox` of frames that lie on a device, within one level.

    Args:
        frames: (H, W, 3) uint8 each, of the size the plan was made for, on one device; rows may be padded.
        plan: from `kernels.letterbox.plan_letterbox`.
        out: batch whose rows ``first_row`` on are written: (B, input_height, input_width, 3) uint8, contiguous.
        first_row: of the batch.

    Returns:
        ``out``, or a new batch of just these frames.

    Raises:
        ValueError: frames or out do not fit the plan or one another.
        NativeBuildError: there is no compiler for the device's code.
    """
    _expect_planned(frames, plan, (plan.frame_height, plan.frame_width, 3))
    if out is None:
        out = _new_batch(frames, plan)
    _expect_input(out, plan)
    torch.ops.pose2seg.letterbox_rgb(
        list(frames), out, first_row, plan.content_height, plan.content_width, [0.0] * 3, [1.0] * 3
    )
    return out


def letterbox_nv12_frames(
    luma: Sequence[Tensor],
    chroma: Sequence[Tensor],
    plan: Letterbox,
    out: Tensor | None = None,
    *,
    first_row: int = 0,
    matrix: str = "bt601",
    full_range: bool = False,
) -> Tensor:
    """`letterbox_frames` of frames as decoders leave them, YUV 4:2:0.

    The levels are those of swscale's fast conversion, which is what `pipeline` gets from PyAV on the host: each chroma
    px stands for its two by two px.

    Args:
        luma: (H, W) uint8 each; rows may be padded.
        chroma: (ceil(H / 2), ceil(W / 2), 2) uint8 each, U and V, with any strides; see `planes_of_yuv420p`.
        plan: from `kernels.letterbox.plan_letterbox`.
        out: as in `letterbox_frames`.
        first_row: of the batch.
        matrix: "bt601", as swscale assumes for streams that name none, or "bt709".
        full_range: levels 0..255 stand for black to white, not 16..235.

    Raises:
        ValueError: planes or out do not fit the plan or one another; an unknown matrix.
        NativeBuildError: there is no compiler for the device's code.
    """
    _expect_planned(luma, plan, (plan.frame_height, plan.frame_width))
    if out is None:
        out = _new_batch(luma, plan)
    _expect_input(out, plan)
    torch.ops.pose2seg.letterbox_nv12(
        list(luma),
        list(chroma),
        out,
        first_row,
        plan.content_height,
        plan.content_width,
        matrix,
        full_range,
        [0.0] * 3,
        [1.0] * 3,
    )
    return out


def rgb_of_nv12(
    luma: Tensor, chroma: Tensor, out: Tensor | None = None, *, matrix: str = "bt601", full_range: bool = False
) -> Tensor:
    """(H, W, 3) uint8 RGB of one frame; arguments as in `letterbox_nv12_frames`, nothing is scaled."""
    height, width = luma.shape
    if out is None:
        out = torch.empty((height, width, 3), dtype=torch.uint8, device=luma.device)
    torch.ops.pose2seg.letterbox_nv12(
        [luma], [chroma], out[None], 0, height, width, matrix, full_range, [0.0] * 3, [1.0] * 3
    )
    return out


def planes_of_yuv420p(buffer: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Luma (H, W) and chroma (H / 2, W / 2, 2) of a planar frame, as views: what a software decoder's frame becomes.

    Args:
        buffer: contiguous uint8 of 1.5 H W bytes in any shape: Y, then U, then V without padding, as
            ``frame.to_ndarray(format="yuv420p")`` gives them.
        height: even, px.
        width: even, px.

    Raises:
        ValueError: odd sides, or a buffer of another size.
    """
    if height % 2 or width % 2 or buffer.dtype != torch.uint8 or buffer.numel() != height * width * 3 // 2:
        raise ValueError(f"expected even sides and uint8 of 1.5 x {height} x {width} bytes, got {_said(buffer)}")
    flat = buffer.reshape(-1)
    half = (height // 2, width // 2)
    chroma = flat[height * width :].view(2, *half).permute(1, 2, 0)
    return flat[: height * width].view(height, width), chroma


def paste_and_blend(
    probabilities: Tensor,
    roi_from_frame: NDArray[np.floating],
    frame_height: int,
    frame_width: int,
    *,
    threshold: float = 0.5,
    exclusive: bool = False,
    frame: Tensor | None = None,
    colors: U8 | None = None,
    opacity: float = 1.0,
    order: Sequence[int] | NDArray[np.integer] | None = None,
    alpha: Tensor | None = None,
    planes: Sequence[int] | NDArray[np.integer] | None = None,
    bits: Tensor | None = None,
) -> tuple[Tensor, PastePlan]:
    """`kernels.mask_paste.paste_masks` on a device, and what is to be drawn with the masks, in one launch.

    Args:
        probabilities: (N, S, S) float32 or float16 in ROI px. NaN is never person.
        roi_from_frame: (N, 2, 3) on the host, frame px to ROI px; used as float32.
        frame_height: px.
        frame_width: px.
        threshold: a px is person where the interpolated probability is greater; 0 <= threshold < 1.
        exclusive: a px that several people claim goes to the surest of them alone, of equally sure ones to the first.
        frame: (H, W, 3) uint8, changed in place: px of a person move towards that person's colour by ``opacity``, one
            person after the other; each result is rounded. Within a level of the tint of `pipeline.overlay`.
        colors: (N, 3) uint8 RGB.
        opacity: 0..1.
        order: people from bottom to top; that of the arguments when not given.
        alpha: (H, W) or (planes, H, W) uint8: px of a person become 255, the others stay as they are.
        planes: alpha plane of each person; the first when not given.
        bits: int32 array to be used again, of `bits_capacity` words or more; new when not given.

    Returns:
        The mask bits, of which ``plan.words`` count, and the plan. Download those words, then call
        ``kernels.device_frames.pasted_masks(bits, plan.boxes)``.

    Raises:
        ValueError: shapes, types, devices or ranges; too few bits.
        NativeBuildError: there is no compiler for the device's code.
    """
    if len(probabilities) != len(roi_from_frame):
        raise ValueError(f"got {len(probabilities)} probability maps and {len(roi_from_frame)} matrices")
    plan = plan_paste(
        np.asarray(roi_from_frame),
        int(probabilities.shape[-1]) if probabilities.ndim else 0,
        frame_height,
        frame_width,
        colors=colors,
        order=order,
        planes=planes,
    )
    if (
        alpha is not None
        and planes is not None
        and len(planes)
        and max(planes) >= (len(alpha) if alpha.ndim == 3 else 1)
    ):
        raise ValueError(f"alpha has {len(alpha) if alpha.ndim == 3 else 1} planes, got plane {max(planes)}")
    if bits is None:
        bits = torch.empty(plan.words, dtype=torch.int32, device=probabilities.device)
    elif len(bits) < plan.words:
        raise ValueError(
            f"bits has {len(bits)} words, these people need {plan.words}; "
            f"{bits_capacity(len(probabilities), frame_height, frame_width)} always suffice"
        )
    records = torch.from_numpy(plan.records).to(probabilities.device, non_blocking=True)
    torch.ops.pose2seg.paste_and_blend(
        probabilities, records, bits, frame, alpha, threshold, opacity, frame_height, frame_width, exclusive
    )
    return bits, plan


def _expect_planned(frames: Sequence[Tensor], plan: Letterbox, shape: tuple[int, ...]) -> None:
    for frame in frames:
        if tuple(frame.shape) != shape:
            raise ValueError(
                f"the plan is for frames of {plan.frame_height} x {plan.frame_width} px, expected {shape}, "
                f"got {tuple(frame.shape)}"
            )


def _expect_input(out: Tensor, plan: Letterbox) -> None:
    if out.ndim != 4 or tuple(out.shape[1:]) != (plan.input_height, plan.input_width, 3) or out.dtype != torch.uint8:
        raise ValueError(
            f"out must be uint8 (B, {plan.input_height}, {plan.input_width}, 3) as planned, got {_said(out)}"
        )


def _new_batch(frames: Sequence[Tensor], plan: Letterbox) -> Tensor:
    shape = (len(frames), plan.input_height, plan.input_width, 3)
    return torch.empty(shape, dtype=torch.uint8, device=frames[0].device if frames else None)
