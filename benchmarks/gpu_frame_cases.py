"""Cases of `benchmarks.bench_gpu_kernels` on whole frames: letterbox, and masks pasted and blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.coordinates import F32, U8, compose, invert
from kernels.device_frames import plan_paste
from kernels.device_frames.launch_shapes import PASTE_TILE_PX, TILE_WIDTH_PX
from kernels.device_frames.torch_op import letterbox_nv12_frames, rgb_of_nv12
from kernels.letterbox import Letterbox, letterbox, plan_letterbox
from kernels.mask_paste import PastedMask, paste_masks

Case = TypeVar("Case")

LONG_SIDE_PX = 512
ROI_SIZE = 64
FRAMES = {"720p": (720, 1280), "1080p": (1080, 1920)}
PEOPLE = (1, 5, 20)
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
GREY = 90
OURS = "ours"
UPLOADED = "on the CPU, then upload"


def letterbox_cases(make: Callable[..., Case], device: torch.device) -> Iterator[Case]:
    """`letterbox_rgb` and `letterbox_nv12` against PyTorch's own operators, and against the CPU with an upload."""
    for shape, (height, width) in FRAMES.items():
        plan = plan_letterbox(height, width, long_side=LONG_SIDE_PX)
        luma, chroma = _yuv_picture(height, width)
        planes = luma.to(device), chroma.to(device)
        picture = rgb_of_nv12(luma, chroma).numpy()
        frame = torch.from_numpy(picture).to(device)
        for source in ("rgb", "nv12"):
            for output in ("u8", "f32"):
                out = _network_input(plan, output, device)
                unit = 1.0 if output == "u8" else min(DEVIATION)
                levels = torch.from_numpy(letterbox(picture, plan))[None]
                yield make(
                    name=f"letterbox_{source}",
                    settings={"shape": shape, "input": f"{plan.input_height}x{plan.input_width}", "output": output},
                    contestants={
                        OURS: partial(_ours, source, frame, planes, plan, out),
                        "interpolate, sub, div": partial(_composed, source, frame, planes, plan, output),
                        UPLOADED: partial(_uploaded, picture, plan, output, device),
                    },
                    expected=levels.double() if output == "u8" else _normalised(levels.double()),
                    # One level of rounding. PyTorch's "area" takes whole px only, so at other ratios it is another
                    # filter.
                    max_error={OURS: 1 / unit, "others": 12 / unit},
                    eager=frozenset({UPLOADED}),
                    minimum_bytes=frame.numel() // (1 if source == "rgb" else 2) + out.numel() * out.element_size(),
                )


def paste_cases(make: Callable[..., Case], device: torch.device) -> Iterator[Case]:
    """`paste_and_blend` against a grid_sample over the whole frame for each person, as the published pipeline
    pastes, and against the kernels that paste on the CPU.

    With opacity 1, so that painting again changes nothing. The error is the share of px that differ: some lie at the
    threshold.
    """
    for shape, (height, width) in FRAMES.items():
        for people in PEOPLE:
            probabilities, matrices = _people(people, height, width)
            colors = np.random.default_rng(people).integers(0, 256, (people, 3), dtype=np.uint8)
            plan = plan_paste(matrices, ROI_SIZE, height, width, colors=colors)
            crops = paste_masks(probabilities, matrices, height, width)
            expected = np.full((height, width, 3), GREY, np.uint8)
            _paint(expected, crops, colors)
            covered = np.any([crop.in_frame(height, width) for crop in crops], axis=0)
            maps = torch.from_numpy(probabilities).to(device)
            fixed = maps.numel() * maps.element_size() + plan.records.nbytes
            yield make(
                name="paste_and_blend",
                settings={
                    "shape": shape,
                    "people": people,
                    "size": ROI_SIZE,
                    "moved_MB": round((fixed + 4 * plan.words + 2 * _tile_bytes(covered)) / 1e6, 2),
                },
                contestants={
                    OURS: _pasting(maps, plan.records, plan.words, height, width),
                    "grid_sample and where per person": _published(maps, matrices, colors, height, width),
                    UPLOADED: _pasting_on_the_cpu(maps, matrices, colors, height, width),
                },
                eager=frozenset({UPLOADED}),
                expected=torch.from_numpy(expected).double(),
                max_error={OURS: 1e-4, "others": 2e-3},
                error=share_of_differing,
                minimum_bytes=fixed + sum(-(-crop.mask.size // 8) for crop in crops) + 2 * 3 * int(covered.sum()),
            )


def share_of_differing(result: Tensor, expected: Tensor) -> float:
    """Part of the values that are not the same."""
    return float((result != expected).double().mean())


# ----------------------------------------------------------------------------------------------------------- letterbox


def _yuv_picture(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Luma and chroma of a smooth picture with some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    luma = 120 + 60 * np.sin(x / 37) * np.cos(y / 23) + rng.normal(0, 8, (height, width))
    chroma = np.stack((128 + 30 * np.sin(x / 51 + 1), 128 + 30 * np.cos(y / 43)), axis=-1)[::2, ::2]
    return tuple(torch.from_numpy(np.clip(plane, 0, 255).astype(np.uint8)) for plane in (luma, chroma))  # type: ignore[return-value]


def _network_input(plan: Letterbox, output: str, device: torch.device) -> Tensor:
    sides = (plan.input_height, plan.input_width)
    shape, dtype = ((1, *sides, 3), torch.uint8) if output == "u8" else ((1, 3, *sides), torch.float32)
    return torch.empty(shape, dtype=dtype, device=device)


def _ours(source: str, frame: Tensor, planes: tuple[Tensor, Tensor], plan: Letterbox, out: Tensor) -> Tensor:
    sizes = (0, plan.content_height, plan.content_width)
    if source == "rgb":
        torch.ops.pose2seg.letterbox_rgb([frame], out, *sizes, list(MEAN), list(DEVIATION))
    elif out.dtype == torch.uint8:
        letterbox_nv12_frames([planes[0]], [planes[1]], plan, out)
    else:
        torch.ops.pose2seg.letterbox_nv12(
            [planes[0]], [planes[1]], out, *sizes, "bt601", False, list(MEAN), list(DEVIATION)
        )
    return out


@cache  # a graph that is captured may not upload them
def _mean_and_deviation(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, dtype=dtype, device=device), torch.tensor(DEVIATION, dtype=dtype, device=device)


def _normalised(levels: Tensor) -> Tensor:
    """(B, H, W, 3) levels to (B, 3, H, W)."""
    mean, deviation = _mean_and_deviation(levels.device, levels.dtype)
    return ((levels - mean) / deviation).permute(0, 3, 1, 2)


def _composed(source: str, frame: Tensor, planes: tuple[Tensor, Tensor], plan: Letterbox, output: str) -> Tensor:
    """With PyTorch's operators."""
    if source == "rgb":
        picture = frame.permute(2, 0, 1)[None].float()
    else:
        y = (planes[0].float() - 16) * (255 / 219)
        u, v = (
            one.repeat_interleave(2, 0).repeat_interleave(2, 1)
            for one in ((planes[1].float() - 128) * (255 / 224)).unbind(-1)
        )
        picture = torch.stack((y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u))[None].clamp(0, 255)
    content = F.interpolate(picture, (plan.content_height, plan.content_width), mode="area")
    padding = (0, plan.input_width - plan.content_width, 0, plan.input_height - plan.content_height)
    levels = F.pad(content.round(), padding)
    if output == "u8":
        return levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    return _normalised(levels.permute(0, 2, 3, 1)).contiguous()


def _uploaded(picture: U8, plan: Letterbox, output: str, device: torch.device) -> Tensor:
    levels = torch.from_numpy(letterbox(picture, plan))[None].to(device)
    return levels if output == "u8" else _normalised(levels.float()).contiguous()


# --------------------------------------------------------------------------------------------------------------- paste


def _people(people: int, height: int, width: int) -> tuple[F32, F32]:
    """Upright ellipses in ROIs all over the frame: 400 px high at 720p, 250 px where there are many."""
    rng = np.random.default_rng(people)
    y, x = np.mgrid[:ROI_SIZE, :ROI_SIZE] / ROI_SIZE
    one = 1 / (1 + np.exp(20 * (np.hypot((x - 0.5) / 0.25, (y - 0.5) / 0.42) - 1)))
    probabilities = np.tile(one.astype(np.float32), (people, 1, 1))
    scale = ROI_SIZE / ((250 if people > 5 else 400) * height / 720 * rng.uniform(0.8, 1.2, people))
    angle = rng.uniform(-0.3, 0.3, people)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    centre_x, centre_y = rng.uniform(0.1, 0.9, people) * width, rng.uniform(0.1, 0.9, people) * height
    shift_x, shift_y = ROI_SIZE / 2 - a * centre_x - b * centre_y, ROI_SIZE / 2 + b * centre_x - a * centre_y
    matrices = np.stack((np.stack((a, b, shift_x), -1), np.stack((-b, a, shift_y), -1)), 1)
    return probabilities, matrices.astype(np.float32)


def _tile_bytes(covered: np.ndarray) -> int:
    """Bytes of RGB in the warps' tiles that hold any person."""
    rows, columns = PASTE_TILE_PX[0], TILE_WIDTH_PX
    height, width = (-(-side // tile) * tile for side, tile in zip(covered.shape, (rows, columns), strict=True))
    padded = np.zeros((height, width), bool)
    padded[: covered.shape[0], : covered.shape[1]] = covered
    tiles = padded.reshape(height // rows, rows, width // columns, columns).any(axis=(1, 3))
    return int(tiles.sum()) * rows * columns * 3


def _pasting(maps: Tensor, records: np.ndarray, words: int, height: int, width: int) -> Callable[[], Tensor]:
    table = torch.from_numpy(records).to(maps.device)
    bits = torch.empty(words, dtype=torch.int32, device=maps.device)
    frame = torch.full((height, width, 3), GREY, dtype=torch.uint8, device=maps.device)

    def call() -> Tensor:
        torch.ops.pose2seg.paste_and_blend(maps, table, bits, frame, None, 0.5, 1.0, height, width)
        return frame

    return call


def _paint(picture: U8, crops: Sequence[PastedMask], colors: U8) -> None:
    for crop, color in zip(crops, colors, strict=True):
        region = picture[crop.y0 : crop.y0 + crop.mask.shape[0], crop.x0 : crop.x0 + crop.mask.shape[1]]
        cv2.copyTo(np.broadcast_to(color, region.shape).copy(), crop.mask.view(np.uint8), region)


def _pasting_on_the_cpu(maps: Tensor, matrices: F32, colors: U8, height: int, width: int) -> Callable[[], Tensor]:
    """Probabilities down, masks and colours by the CPU's kernels, the frame up."""
    frame = np.full((height, width, 3), GREY, np.uint8)

    def call() -> Tensor:
        _paint(frame, paste_masks(maps.cpu().numpy(), matrices, height, width), colors)
        return torch.from_numpy(frame).to(maps.device)

    return call


def _published(maps: Tensor, matrices: F32, colors: U8, height: int, width: int) -> Callable[[], Tensor]:
    # Normalised coordinates of frame and ROI, align_corners=False: x = (n + 1) W / 2 - 1 / 2.
    frame_from_grid = np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2]])
    roi_from_grid = np.array([[ROI_SIZE / 2, 0, (ROI_SIZE - 1) / 2], [0, ROI_SIZE / 2, (ROI_SIZE - 1) / 2]])
    thetas = torch.from_numpy(compose(invert(roi_from_grid), compose(matrices, frame_from_grid))).to(maps)
    paints = torch.from_numpy(colors).to(maps.device)
    frame = torch.full((height, width, 3), GREY, dtype=torch.uint8, device=maps.device)

    def call() -> Tensor:
        painted = frame
        for one, theta, paint in zip(maps, thetas, paints, strict=True):
            grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
            inside = F.grid_sample(one[None, None], grid, align_corners=False)[0, 0] > 0.5
            painted = torch.where(inside[..., None], paint, painted)
        return painted

    return call
