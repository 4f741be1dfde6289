"""Kernels on frames: OpenCV, PyAV, Numba and the overlay as twins, hostile input, and the device's own side emulated.

What runs here is the C++ build of device_frames.cuh. Tests marked ``gpu`` repeat the sweep on a device; the emulated
GPU runs the code that only the device takes (shuffles, ballots, staging by many threads) and must give the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import data

from examples.make_demo_clip import render
from kernels.device_frames import PASTE_RECORD_WORDS, bits_capacity, pasted_masks, plan_paste, torch_op
from kernels.device_frames.launch_shapes import (
    MAX_STAGE_BYTES,
    FramePointers,
    LetterboxParameters,
    PasteParameters,
    letterbox_tile,
    yuv_coefficients,
)
from kernels.device_frames.reference import paste_and_blend_reference, rgb_of_yuv420_reference
from kernels.device_frames.torch_op import (
    DEVICE_SOURCE,
    HOST_FLAGS,
    HOST_SOURCE,
    letterbox_frames,
    letterbox_nv12_frames,
    paste_and_blend,
    planes_of_yuv420p,
    rgb_of_nv12,
)
from kernels.letterbox import letterbox, plan_letterbox
from kernels.mask_paste import PastedMask, paste_masks
from kernels.native.compile import CUDA_ARCHITECTURES, device_image, host_library, resource_report
from pipeline.overlay import MASK_OPACITY, _tint_table, color_of
from tests.emulated_gpu import EmulatedGpu
from tests.tolerances import (
    NEAR_THRESHOLD,
    OPENCV_RESIZE_LEVELS,
    SWSCALE_INTERPOLATED_CHROMA_LEVELS,
    SWSCALE_LEVELS,
)

UNIT = np.array([[1.0, 0, 0], [0, 1, 0]], np.float32)
SIZES = [(1, 1), (3, 5), (1, 7), (48, 64), (65, 33), (97, 130), (130, 20), (5, 800), (333, 77), (200, 333)]
LONG_SIDES = [16, 64, 96, 100]
#: frame height, width to content height, width
RATIOS = [
    *((64, 96, 32, 48), (90, 120, 30, 40), (64, 64, 8, 8), (16, 24, 32, 48), (10, 15, 40, 60)),  # integer
    *((64, 96, 63, 96), (64, 96, 64, 95), (64, 96, 65, 96), (64, 96, 64, 97), (64, 96, 65, 95)),  # one px on one axis
    *((100, 10, 7, 9), (10, 100, 9, 7), (37, 61, 101, 77), (51, 1, 17, 1), (1, 51, 1, 90), (300, 3, 2, 3)),
]


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width + seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def natural(height: int, width: int) -> np.ndarray:
    return cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_CUBIC)


def on(device: str, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def rois(people: int, side: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random probabilities (N, S, S) and similarities (N, 2, 3), all over a frame and somewhat beyond."""
    rng = np.random.default_rng(seed + people * 100 + side)
    coarse = rng.uniform(0, 1, (people, 5, 5)).astype(np.float32)
    probabilities = np.array([cv2.resize(one, (side, side)) for one in coarse], np.float32).reshape(people, side, side)
    angle = rng.uniform(-np.pi, np.pi, people)
    scale = side / (max(height, width) * rng.uniform(0.2, 1.2, people))
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    x, y = rng.uniform(-0.2, 1.2, people) * width, rng.uniform(-0.2, 1.2, people) * height
    shift_x, shift_y = side / 2 - a * x - b * y, side / 2 + b * x - a * y
    matrices = np.stack((np.stack((a, b, shift_x), -1), np.stack((-b, a, shift_y), -1)), 1)
    return probabilities, matrices.astype(np.float32)


def run_paste(device: str, probabilities: np.ndarray, matrices: np.ndarray, height: int, width: int, **options):
    """Masks of the kernel as full pictures, and the frame and alpha as they are afterwards."""
    tensors = {
        name: on(device, options.pop(name).copy()) if options.get(name) is not None else options.pop(name, None)
        for name in ("frame", "alpha")
    }
    bits, plan = paste_and_blend(on(device, probabilities), matrices, height, width, **tensors, **options)
    masks = pasted_masks(bits.cpu().numpy(), plan.boxes)
    return masks, *(None if tensor is None else tensor.cpu().numpy() for tensor in tensors.values())


def full(masks: list[PastedMask], height: int, width: int) -> np.ndarray:
    return np.array([mask.in_frame(height, width) for mask in masks]).reshape(len(masks), height, width)


def interpolated(probability: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probability that each frame px looks up, float64, zeros outside."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    u, v = (np.clip(row[0] * x + row[1] * y + row[2], -2, len(probability) + 1) for row in matrix.astype(np.float64))
    padded = np.pad(probability.astype(np.float64), 3)
    u0, v0 = np.floor(u).astype(int), np.floor(v).astype(int)
    fu, fv = u - u0, v - v0
    rows = [padded[v0 + 3 + k, u0 + 3] * (1 - fu) + padded[v0 + 3 + k, u0 + 4] * fu for k in range(2)]
    return rows[0] * (1 - fv) + rows[1] * fv


def check_masks(
    masks: list[PastedMask],
    probabilities: np.ndarray,
    matrices: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    exclusive: bool = False,
) -> int:
    """Compare with paste_masks; return how many px differ, all of them near the threshold or as near to another's."""
    expected = paste_masks(
        probabilities.astype(np.float32), matrices, height, width, threshold=threshold, exclusive=exclusive
    )
    differing = full(masks, height, width) != full(expected, height, width)
    everybodys = [interpolated(*one, height, width) for one in zip(probabilities, matrices, strict=True)]
    for n in np.flatnonzero(differing.any(axis=(1, 2))):
        values = everybodys[n][differing[n]]
        away = np.abs(values - threshold)
        for k in range(len(everybodys) if exclusive else 0):
            away = np.minimum(away, np.abs(values - everybodys[k][differing[n]])) if k != n else away
        assert away.max() < NEAR_THRESHOLD
    for mask in masks:
        if mask.mask.size:
            assert mask.mask.flags.c_contiguous
            assert mask.mask[0].any() and mask.mask[-1].any() and mask.mask[:, 0].any() and mask.mask[:, -1].any()
        else:
            assert (mask.x0, mask.y0, mask.mask.shape) == (0, 0, (0, 0))
    return int(differing.sum())


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


# ------------------------------------------------------------------------------------------------------------ letterbox


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("picture", [noise, natural])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("long_side", LONG_SIDES)
def test_letterbox_is_that_of_the_host(device: str, picture, height: int, width: int, long_side: int) -> None:
    image, plan = picture(height, width), plan_letterbox(height, width, long_side=long_side)
    (got,) = letterbox_frames([on(device, image)], plan).cpu().numpy()
    assert np.abs(got.astype(int) - letterbox(image, plan)).max() <= OPENCV_RESIZE_LEVELS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_any_ratio_on_either_axis(device: str, ratio: tuple[int, int, int, int]) -> None:
    height, width, content_height, content_width = ratio
    image = noise(height, width)
    out = on(device, np.full((1, content_height + 3, content_width + 5, 3), 77, np.uint8))
    torch.ops.pose2seg.letterbox_rgb([on(device, image)], out, 0, content_height, content_width, [0.0] * 3, [1.0] * 3)
    shrinks = content_height <= height and content_width <= width
    expected = np.zeros(out.shape[1:], np.uint8)
    expected[:content_height, :content_width] = cv2.resize(
        image, (content_width, content_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    assert np.abs(out[0].cpu().numpy().astype(int) - expected).max() <= OPENCV_RESIZE_LEVELS


@given(*[st.integers(1, 90)] * 2, st.integers(1, 120), st.sampled_from([1, 5, 32]))
@example(90, 1, 1, 1)
@example(1, 90, 89, 32)
def test_letterbox_of_any_size(height: int, width: int, long_side: int, multiple: int) -> None:
    image, plan = noise(height, width), plan_letterbox(height, width, long_side=long_side, multiple=multiple)
    (got,) = letterbox_frames([torch.from_numpy(image)], plan).numpy()
    assert np.abs(got.astype(int) - letterbox(image, plan)).max() <= OPENCV_RESIZE_LEVELS


@pytest.mark.parametrize("device", DEVICES)
def test_large_frames(device: str) -> None:
    """Tiles of fewer rows, and at last none that fits a block's scratch."""
    for (height, width, long_side), rows in zip(
        [(270, 480, 384), (2160, 3840, 512), (4320, 7680, 512), (60, 20000, 64)], (8, 4, 1, 8), strict=True
    ):
        plan = plan_letterbox(height, width, long_side=long_side)
        tile = letterbox_tile((height, width), (plan.content_height, plan.content_width), yuv=False)
        assert tile[0] == rows
        assert tile[1] <= MAX_STAGE_BYTES
        image = np.tile(noise(min(height, 360), min(width, 2000)), (12, 10, 1))[:height, :width]
        (got,) = letterbox_frames([on(device, image)], plan).cpu().numpy()
        assert np.abs(got.astype(int) - letterbox(image, plan)).max() <= OPENCV_RESIZE_LEVELS


@pytest.mark.parametrize("device", DEVICES)
def test_frames_go_to_their_rows_of_a_batch(device: str) -> None:
    """More frames than a launch takes, padded rows, frames that start anywhere in memory; other rows stay."""
    plan = plan_letterbox(37, 50, long_side=32)
    images = [noise(37, 50, seed=k) for k in range(11)]
    frames = []
    for k, image in enumerate(images):
        buffer = torch.zeros(64 + 37 * 171, dtype=torch.uint8, device=device)
        frame = buffer[k : k + 37 * 171].view(37, 171)[:, :150].unflatten(1, (50, 3))
        frame.copy_(torch.from_numpy(image))
        frames.append(frame)
    out = torch.full((14, plan.input_height, plan.input_width, 3), 9, dtype=torch.uint8, device=device)
    assert letterbox_frames(frames, plan, out, first_row=2) is out
    for k, image in enumerate(images):
        assert np.abs(out[2 + k].cpu().numpy().astype(int) - letterbox(image, plan)).max() <= OPENCV_RESIZE_LEVELS
    assert bool((out[[0, 1, 13]] == 9).all())


@pytest.mark.parametrize("device", DEVICES)
def test_no_frames_change_nothing(device: str) -> None:
    plan = plan_letterbox(37, 50, long_side=32)
    out = torch.full((1, plan.input_height, plan.input_width, 3), 9, dtype=torch.uint8, device=device)
    letterbox_frames([], plan, out)
    assert bool((out == 9).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_normalised_planes_hold_the_same_levels(device: str, dtype: torch.dtype) -> None:
    image, plan = natural(60, 90), plan_letterbox(60, 90, long_side=64)
    levels = letterbox_frames([on(device, image)], plan)
    mean, deviation = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    out = torch.full((2, 3, plan.input_height, plan.input_width), 9.0, dtype=dtype, device=device)
    torch.ops.pose2seg.letterbox_rgb(
        [on(device, image)], out, 1, plan.content_height, plan.content_width, mean, deviation
    )
    expected = (levels[0].cpu().float() - torch.tensor(mean)) / torch.tensor(deviation)
    rounding = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(out[1].cpu().float(), expected.permute(2, 0, 1), **rounding)
    assert bool((out[0] == 9).all())


# ------------------------------------------------------------------------------------------------------------------ YUV


def yuv_frame(luma: np.ndarray, chroma: np.ndarray, *, colorspace: int, color_range: int) -> av.VideoFrame:
    planes = np.concatenate((luma.ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()))
    frame = av.VideoFrame.from_ndarray(planes.reshape(-1, luma.shape[1]), format="yuv420p")
    frame.colorspace, frame.color_range = colorspace, color_range
    return frame


def yuv_noise(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height + width)
    half = (-(-height // 2), -(-width // 2), 2)
    return rng.integers(0, 256, (height, width), dtype=np.uint8), rng.integers(0, 256, half, dtype=np.uint8)


def decoded(frames: int) -> Iterator[av.VideoFrame]:
    """Frames of the demo clip, encoded and decoded again: yuv420p of natural texture."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 1280, 720, "yuv420p", Fraction(1, 25)
    codec.options = {"crf": "18", "preset": "ultrafast", "tune": "zerolatency"}
    decoder = av.CodecContext.create("h264", "r")
    for k in range(frames):
        picture = av.VideoFrame.from_ndarray(render(k * 20)[0], format="rgb24")
        picture.pts = k
        for packet in codec.encode(picture):
            yield from decoder.decode(packet)
    yield from decoder.decode(None)


def planes_of(frame: av.VideoFrame) -> tuple[torch.Tensor, torch.Tensor]:
    return planes_of_yuv420p(torch.from_numpy(frame.to_ndarray(format="yuv420p")), frame.height, frame.width)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("matrix", "colorspace"), [("bt601", 5), ("bt601", 2), ("bt709", 1)])
@pytest.mark.parametrize(("full_range", "color_range"), [(False, 0), (False, 1), (True, 2)])
def test_colours_are_those_of_pyav(
    device: str, matrix: str, colorspace: int, full_range: bool, color_range: int
) -> None:
    """To the last level, for the conversion that swscale runs on x86; its others may differ by SWSCALE_LEVELS."""
    luma, chroma = yuv_noise(256, 256)
    frame = yuv_frame(luma, chroma, colorspace=colorspace, color_range=color_range)
    expected = frame.to_ndarray(format="rgb24")
    got = rgb_of_nv12(on(device, luma), on(device, chroma), matrix=matrix, full_range=full_range).cpu().numpy()
    np.testing.assert_array_equal(got, expected)
    reference = rgb_of_yuv420_reference(luma, chroma, matrix=matrix, full_range=full_range)
    assert np.abs(got.astype(int) - reference).max() <= SWSCALE_LEVELS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (64, 64), (33, 130), (130, 34), (5, 800), (201, 333)])
@pytest.mark.parametrize("long_side", [16, 64, 100])
def test_letterbox_of_yuv_is_that_of_its_rgb(device: str, height: int, width: int, long_side: int) -> None:
    """Odd sizes, too; both layouts of chroma; and the levels are those of the RGB frame letterboxed, exactly."""
    luma, chroma = yuv_noise(height, width)
    planar = np.ascontiguousarray(chroma.transpose(2, 0, 1)).transpose(1, 2, 0)
    plan = plan_letterbox(height, width, long_side=long_side)
    rgb = rgb_of_nv12(on(device, luma), on(device, chroma))
    expected = letterbox_frames([rgb], plan).cpu().numpy()
    for layout in (chroma, planar):
        tensor = torch.from_numpy(layout).to(device)
        got = letterbox_nv12_frames([on(device, luma)], [tensor], plan).cpu().numpy()
        np.testing.assert_array_equal(got, expected)
    reference = letterbox(rgb_of_yuv420_reference(luma, chroma), plan)
    assert np.abs(expected[0].astype(int) - reference).max() <= SWSCALE_LEVELS + OPENCV_RESIZE_LEVELS


def test_padded_and_misaligned_planes() -> None:
    luma, chroma = yuv_noise(40, 60)
    plan = plan_letterbox(40, 60, long_side=32)
    expected = letterbox_nv12_frames([torch.from_numpy(luma)], [torch.from_numpy(chroma)], plan)
    for pitch, start in ((64, 0), (64, 1), (61, 2), (96, 3)):
        memory = torch.zeros(start + 40 * pitch + 20 * pitch, dtype=torch.uint8)
        wide = memory[start : start + 40 * pitch].view(40, pitch)[:, :60]
        pairs = memory[start + 40 * pitch :].view(20, pitch)[:, :60].unflatten(1, (30, 2))
        wide.copy_(torch.from_numpy(luma))
        pairs.copy_(torch.from_numpy(chroma))
        assert torch.equal(letterbox_nv12_frames([wide], [pairs], plan), expected)


@pytest.mark.parametrize("long_side", [384, 512])
def test_real_frames_come_out_as_on_the_host(long_side: int) -> None:
    """Decoded H.264: the same levels as PyAV's RGB through our letterbox, within one; NV12 by swscale within more,
    because swscale interpolates the chroma of that layout and not of planar frames.
    """
    count = 0
    for frame in decoded(3):
        plan = plan_letterbox(frame.height, frame.width, long_side=long_side)
        luma, chroma = planes_of(frame)
        (got,) = letterbox_nv12_frames([luma], [chroma.contiguous()], plan).numpy().astype(int)
        assert np.abs(got - letterbox(frame.to_ndarray(format="rgb24"), plan)).max() <= OPENCV_RESIZE_LEVELS
        nv12 = frame.reformat(format="nv12").to_ndarray(format="rgb24")
        difference = np.abs(got - letterbox(nv12, plan))
        print(f"nv12 by swscale: max {difference.max()}, mean {difference.mean():.2f} levels")
        assert difference.max() <= SWSCALE_INTERPOLATED_CHROMA_LEVELS
        count += 1
    assert count == 3


# ---------------------------------------------------------------------------------------------------------------- paste


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("people", [0, 1, 7, 40])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (97, 61), (80, 120), (33, 130), (64, 256)])
@pytest.mark.parametrize("exclusive", [False, True])
def test_masks_are_those_of_the_host(
    device: str, dtype: type, people: int, height: int, width: int, exclusive: bool
) -> None:
    for side in (8, 33, 64, 96):
        probabilities, matrices = rois(people, side, height, width)
        probabilities = probabilities.astype(dtype)
        masks, _, _ = run_paste(device, probabilities, matrices, height, width, exclusive=exclusive)
        differing = check_masks(masks, probabilities, matrices, height, width, exclusive=exclusive)
        print(f"{people} people, S {side}: {differing} px near the threshold differ")
        assert differing <= 2 + 1e-4 * people * height * width


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("exclusive", [False, True])
def test_large_people_whose_tiles_are_mostly_all_or_nothing(device: str, threshold: float, exclusive: bool) -> None:
    """Tiles inside a person and away from everybody are decided at one look; thresholds near 0 and 1 find a wrong px
    in what is looked at.
    """
    height, width = 220, 330
    probabilities, matrices = rois(12, 32, height, width, seed=3)
    probabilities = (probabilities > 0.5).astype(np.float32)
    probabilities[0] = 1
    if exclusive:  # where two say 1 exactly, nothing but rounding is left to decide
        probabilities *= np.linspace(1, 0.9925, 12, dtype=np.float32)[:, None, None]
    masks, _, _ = run_paste(device, probabilities, matrices, height, width, threshold=threshold, exclusive=exclusive)
    differing = check_masks(masks, probabilities, matrices, height, width, threshold, exclusive)
    assert differing <= 1e-3 * height * width


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(st.integers(0, 9), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_a_px_has_one_owner_and_none_is_lost(
    device: str, dtype: type, people: int, seed: int, threshold: float
) -> None:
    """To the bit on the host, where two implementations differ near the threshold."""
    height, width = 41, 70
    probabilities, matrices = rois(people, 16, height, width, seed=seed)
    probabilities = probabilities.astype(dtype)
    order = np.random.default_rng(seed).permutation(people)
    options = {"threshold": threshold, "order": order}
    masks = full(run_paste(device, probabilities, matrices, height, width, exclusive=True, **options)[0], height, width)
    whole = full(run_paste(device, probabilities, matrices, height, width, **options)[0], height, width)
    assert masks.sum(axis=0).max(initial=0) <= 1
    # A device may fuse a sum in one place and not in another: then a px at the threshold itself may differ.
    differing = (masks.any(axis=0) != whole.any(axis=0)).sum() + (masks > whole).sum()
    assert differing <= (0 if device == "cpu" else 2)
    shuffled = run_paste(
        device, probabilities[order], matrices[order], height, width, threshold=threshold, exclusive=True
    )
    np.testing.assert_array_equal(full(shuffled[0], height, width), masks[order])


@pytest.mark.parametrize("device", DEVICES)
def test_of_equally_sure_people_the_first_has_the_px(device: str) -> None:
    """Whatever the order of painting, and among more people than are staged at once."""
    probabilities = np.full((40, 8, 8), 0.7, np.float32)
    probabilities[35, :, 4:] = 0.75
    matrices = np.repeat(UNIT[None], 40, axis=0)
    for order in (np.arange(40), np.arange(40)[::-1]):
        masks, painted, _ = run_paste(
            device,
            probabilities,
            matrices,
            8,
            8,
            exclusive=True,
            order=order,
            frame=np.zeros((8, 8, 3), np.uint8),
            colors=np.arange(1, 121, dtype=np.uint8).reshape(40, 3),
            opacity=1.0,
        )
        assert [n for n in range(40) if masks[n].mask.size] == [0, 35]
        assert masks[0].in_frame(8, 8)[:, :4].all() and masks[35].in_frame(8, 8)[:, 4:].all()
        assert masks[0].mask.sum() == masks[35].mask.sum() == 32
        assert painted[3, 3].tolist() == [1, 2, 3] and painted[3, 4].tolist() == [106, 107, 108]


def test_the_threshold_is_strict() -> None:
    probabilities = np.full((1, 8, 8), 0.5, np.float32)
    for threshold, expected in ((0.5, 0), (np.nextafter(np.float32(0.5), np.float32(0)), 64)):
        masks, _, _ = run_paste("cpu", probabilities, UNIT[None], 8, 8, threshold=float(threshold))
        assert masks[0].mask.sum() == expected


@given(
    hnp.arrays(
        np.float32, st.tuples(*[st.integers(1, 20)] * 1).map(lambda n: (1, *n, *n)), elements=st.floats(0, 1, width=32)
    ),
    st.integers(0, 40),
    st.integers(0, 12),
)
def test_the_identity_pastes_the_thresholded_map(probabilities: np.ndarray, x: int, y: int) -> None:
    side = probabilities.shape[1]
    shifted = np.array([[[1.0, 0, -x], [0, 1, -y]]], np.float32)
    (mask,), _, _ = run_paste("cpu", probabilities, shifted, 40, 50)
    expected = np.zeros((40, 50), bool)
    expected[y : y + side, x : x + side] = probabilities[0, : 40 - y, : 50 - x] > 0.5
    np.testing.assert_array_equal(mask.in_frame(40, 50), expected)


def painted_people(people: int) -> tuple[np.ndarray, ...]:
    height, width = 70, 110
    frame = natural(height, width)
    probabilities, matrices = rois(people, 32, height, width, seed=5)
    colors = np.array([color_of(k + 1) for k in range(people)], np.uint8).reshape(people, 3)
    return frame, probabilities, matrices, colors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("people", [0, 1, 5, 70])
def test_the_blend_is_the_overlays_tint(device: str, people: int) -> None:
    frame, probabilities, matrices, colors = painted_people(people)
    order = np.random.default_rng(people).permutation(people)
    masks, blended, _ = run_paste(
        device, probabilities, matrices, *frame.shape[:2], frame=frame, colors=colors, opacity=MASK_OPACITY, order=order
    )
    expected = frame.copy()
    for n in order:
        crop = masks[n]
        region = expected[crop.y0 : crop.y0 + crop.mask.shape[0], crop.x0 : crop.x0 + crop.mask.shape[1]]
        if crop.mask.size:
            tinted = cv2.LUT(region, _tint_table(color_of(int(n) + 1)))
            region[crop.mask] = tinted[crop.mask]
    assert np.abs(blended.astype(int) - expected).max(initial=0) <= 1
    untouched = ~full(masks, *frame.shape[:2]).any(axis=0)
    np.testing.assert_array_equal(blended[untouched], frame[untouched])


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_blend_is_that_of_the_definition(exclusive: bool) -> None:
    frame, probabilities, matrices, colors = painted_people(9)
    for opacity in (0.0, 0.25, 0.7, 1.0):
        options = {"colors": colors, "opacity": opacity, "exclusive": exclusive}
        _, blended, _ = run_paste("cpu", probabilities, matrices, *frame.shape[:2], frame=frame, **options)
        expected, _ = paste_and_blend_reference(frame, probabilities, matrices, threshold=0.5, **options)
        assert np.abs(blended.astype(int) - expected).max() <= 1


@given(st.floats(0, 1), st.integers(0, 8))
def test_blending_twice_gives_the_same_bits(opacity: float, people: int) -> None:
    frame, probabilities, matrices, colors = painted_people(people)
    options = {"colors": colors, "opacity": opacity}
    first, once, _ = run_paste("cpu", probabilities, matrices, 70, 110, frame=frame, **options)
    second, _, _ = run_paste("cpu", probabilities, matrices, 70, 110, frame=once, **options)
    bare, _, _ = run_paste("cpu", probabilities, matrices, 70, 110)
    np.testing.assert_array_equal(full(first, 70, 110), full(second, 70, 110))
    np.testing.assert_array_equal(full(first, 70, 110), full(bare, 70, 110))


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_decides_where_people_overlap(device: str) -> None:
    probabilities = np.ones((2, 8, 8), np.float32)
    matrices = np.array([UNIT, [[1, 0, -4], [0, 1, 0]]], np.float32)
    colors = np.array([[200, 0, 0], [0, 0, 100]], np.uint8)
    black = np.zeros((8, 16, 3), np.uint8)
    for order, shared in (([0, 1], (0, 0, 100)), ([1, 0], (200, 0, 0))):
        _, painted, _ = run_paste(
            device, probabilities, matrices, 8, 16, frame=black, colors=colors, opacity=1.0, order=order
        )
        assert painted[3, 2].tolist() == [200, 0, 0]
        assert painted[3, 5].tolist() == list(shared)
        assert painted[3, 10].tolist() == [0, 0, 100]
        assert not painted[3, 12].any()


@pytest.mark.parametrize("device", DEVICES)
def test_alpha_planes(device: str) -> None:
    probabilities, matrices = rois(5, 32, 60, 90)
    alpha = np.zeros((3, 60, 90), np.uint8)
    planes = [2, 0, 0, 2, 0]
    masks, _, written = run_paste(device, probabilities, matrices, 60, 90, alpha=alpha, planes=planes)
    pictures = full(masks, 60, 90)
    for plane in range(3):
        expected = pictures[[n for n in range(5) if planes[n] == plane]].any(axis=0)
        np.testing.assert_array_equal(written[plane], np.where(expected, 255, 0))
    _, _, single = run_paste(device, probabilities, matrices, 60, 90, alpha=alpha[0])
    np.testing.assert_array_equal(single, np.where(pictures.any(axis=0), 255, 0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_frame_with_padded_rows_that_starts_anywhere(device: str) -> None:
    frame, probabilities, matrices, colors = painted_people(4)
    options = {"colors": colors, "opacity": 0.5}
    _, expected, _ = run_paste(device, probabilities, matrices, 70, 110, frame=frame, **options)
    for start, pitch in ((0, 336), (3, 331), (1, 332)):
        memory = torch.full((start + 70 * pitch,), 7, dtype=torch.uint8, device=device)
        rows = memory[start:].view(70, pitch)
        view = rows[:, :330].unflatten(1, (110, 3))
        view.copy_(torch.from_numpy(frame))
        paste_and_blend(on(device, probabilities), matrices, 70, 110, frame=view, **options)
        np.testing.assert_array_equal(view.cpu().numpy(), expected)
        assert bool((rows[:, 330:] == 7).all())


@pytest.mark.parametrize("device", DEVICES)
def test_the_bits_of_a_reused_array_are_overwritten(device: str) -> None:
    probabilities, matrices = rois(6, 32, 60, 90)
    bits = torch.full((bits_capacity(6, 60, 90),), -1, dtype=torch.int32, device=device)
    got, plan = paste_and_blend(on(device, probabilities), matrices, 60, 90, bits=bits)
    assert got is bits
    assert plan.words <= len(bits)
    assert bool((bits[plan.words :] == -1).all())
    check_masks(pasted_masks(bits.cpu().numpy(), plan.boxes), probabilities, matrices, 60, 90)


def test_a_whole_frame_for_everybody_fills_the_bound() -> None:
    everywhere = np.tile(np.array([[0.1, 0, 0], [0, 0.1, 0]], np.float32), (3, 1, 1))
    plan = plan_paste(everywhere, 64, 33, 70)
    assert plan.words == bits_capacity(3, 33, 70) == 3 * 33 * 3


@pytest.mark.parametrize("device", DEVICES)
def test_impossible_matrices_give_empty_masks_and_leave_the_others_alone(device: str) -> None:
    broken = [
        np.zeros((2, 3)),
        np.full((2, 3), np.nan),
        np.array([[1.0, 0, 1e30], [0, 1, 0]]),
        np.array([[np.inf, 0, 0], [0, 1, 0]]),
        np.array([[1e-30, 0, 0], [0, 1e-30, 0]]),
        np.array([[1e30, 0, 0], [0, 1e30, 0]]),
        np.array([[1.0, 0, 500], [0, 1, 0]]),
        np.array([[1.0, 2, 0], [2, 4, 0]]),
    ]
    matrices = np.stack([*broken, UNIT]).astype(np.float32)
    probabilities = np.ones((len(matrices), 8, 8), np.float32)
    frame = noise(20, 20)
    masks, blended, _ = run_paste(
        device, probabilities, matrices, 20, 20, frame=frame, colors=np.zeros((9, 3), np.uint8), opacity=1.0
    )
    expected = paste_masks(probabilities, matrices, 20, 20)
    np.testing.assert_array_equal(full(masks, 20, 20), full(expected, 20, 20))
    assert masks[-1].mask.shape == (8, 8)
    covered = full(masks, 20, 20).any(axis=0)
    assert not blended[covered].any()
    np.testing.assert_array_equal(blended[~covered], frame[~covered])


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_not_person(device: str) -> None:
    probabilities = np.ones((1, 4, 4), np.float32)
    probabilities[0, 1, 2] = np.nan
    (mask,), _, _ = run_paste(device, probabilities, UNIT[None], 6, 6)
    np.testing.assert_array_equal(mask.in_frame(6, 6), paste_masks(probabilities, UNIT[None], 6, 6)[0].in_frame(6, 6))
    probabilities[:] = np.nan
    (mask,), _, _ = run_paste(device, probabilities, UNIT[None], 6, 6)
    assert mask.mask.shape == (0, 0)
    probabilities[:] = np.inf
    run_paste(device, probabilities, UNIT[None], 6, 6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_hundred_people(device: str) -> None:
    probabilities, matrices = rois(100, 24, 90, 140)
    colors = np.random.default_rng(0).integers(0, 256, (100, 3), dtype=np.uint8)
    frame = natural(90, 140)
    masks, blended, _ = run_paste(device, probabilities, matrices, 90, 140, frame=frame, colors=colors, opacity=0.3)
    check_masks(masks, probabilities, matrices, 90, 140)
    expected = frame.astype(float)
    for n in range(100):
        inside = masks[n].in_frame(90, 140)
        expected[inside] = np.rint(0.7 * expected[inside] + 0.3 * colors[n])
    assert np.abs(blended - expected).max() <= 1


def test_records_that_lie_write_nothing_outside() -> None:
    """The operator's own table, spoilt: wrong people, boxes beyond the frame, words beyond the array."""
    probabilities, matrices = rois(3, 16, 40, 60)
    plan = plan_paste(matrices, 16, 40, 60)
    rng = np.random.default_rng(0)
    for number in range(100):
        records = plan.records.copy()
        records[:, 6:14] = rng.integers(-200, 200, (3, 8))
        memory = torch.full((1000 + 40 * 180 + 1000,), 5, dtype=torch.uint8)
        frame = memory[1000:-1000].view(40, 60, 3)
        words = torch.full((300,), 3, dtype=torch.int32)
        torch.ops.pose2seg.paste_and_blend(
            torch.from_numpy(probabilities),
            torch.from_numpy(records),
            words[100:200],
            frame,
            frame[..., 0].clone(),
            0.5,
            0.5,
            40,
            60,
            number % 2 == 1,
        )
        assert bool((memory[:1000] == 5).all() and (memory[-1000:] == 5).all())
        assert bool((words[:100] == 3).all() and (words[200:] == 3).all())


@pytest.mark.parametrize("device", DEVICES)
def test_equally_sure_people_with_other_windows_are_still_equally_sure(device: str) -> None:
    """As float16 says it of whoever is sure; rounding decides nothing where both maps are flat."""
    probabilities = np.full((2, 16, 16), 0.9995, np.float16)
    matrices = np.array(
        [[[0.31, 0.12, -1.3], [-0.12, 0.31, 4.1]], [[0.27, -0.05, 1.7], [0.05, 0.27, -2.2]]], np.float32
    )
    masks, _, _ = run_paste(device, probabilities, matrices, 60, 60, exclusive=True)
    first, second = full(masks, 60, 60)[:, 10:30, 15:35]
    assert first.all() and not second.any()


# ------------------------------------------------------------------------------------------------------------ operators


def test_operators_say_what_they_write() -> None:
    image = torch.from_numpy(noise(20, 30))
    out = torch.zeros((2, 32, 32, 3), dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.pose2seg.letterbox_rgb.default, ([image, image], out, 0, 20, 30, [0.0] * 3, [1.0] * 3)
    )
    luma, chroma = map(torch.from_numpy, yuv_noise(20, 30))
    torch.library.opcheck(
        torch.ops.pose2seg.letterbox_nv12.default,
        ([luma], [chroma], out, 1, 20, 30, "bt709", True, [0.0] * 3, [1.0] * 3),
    )
    probabilities, matrices = rois(3, 16, 20, 30)
    plan = plan_paste(matrices, 16, 20, 30)
    for frame, alpha in ((image.clone(), None), (None, torch.zeros((20, 30), dtype=torch.uint8)), (None, None)):
        bits = torch.zeros(plan.words, dtype=torch.int32)
        torch.library.opcheck(
            torch.ops.pose2seg.paste_and_blend.default,
            (
                torch.from_numpy(probabilities),
                torch.from_numpy(plan.records),
                bits,
                frame,
                alpha,
                0.5,
                0.4,
                20,
                30,
                True,
            ),
        )


def test_structures_are_laid_out_alike() -> None:
    library = host_library(HOST_SOURCE, flags=HOST_FLAGS)
    expected = [
        *(ctypes.sizeof(one) for one in (FramePointers, LetterboxParameters)),
        *(4 * PASTE_RECORD_WORDS, ctypes.sizeof(PasteParameters)),
    ]
    assert [library.size_of(k) for k in range(4)] == expected


def test_letterbox_errors_say_what_came() -> None:
    plan = plan_letterbox(40, 64, long_side=64)
    image = torch.from_numpy(noise(40, 64))
    batch = torch.zeros((2, 64, 64, 3), dtype=torch.uint8)
    op = torch.ops.pose2seg.letterbox_rgb
    unit = ([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match=r"plan is for frames of 40 x 64 px.*got \(41, 64, 3\)"):
        letterbox_frames([torch.from_numpy(noise(41, 64))], plan)
    with pytest.raises(ValueError, match=r"out must be uint8 \(B, 64, 64, 3\) as planned, got float32"):
        letterbox_frames([image], plan, batch.float())
    with pytest.raises(ValueError, match="2 frames from row 1 on do not fit a batch of 2"):
        letterbox_frames([image, image], plan, batch, first_row=1)
    with pytest.raises(ValueError, match=r"a frame must be uint8 \(H, W, 3\), got float32"):
        op([image.float()], batch, 0, 40, 64, *unit)
    with pytest.raises(ValueError, match="px of a frame must lie side by side"):
        op([image.flip(2).permute(1, 0, 2)], batch, 0, 40, 64, *unit)
    with pytest.raises(ValueError, match=r"must be alike, got shape \(40, 64, 3\)"):
        op([image, image[:20]], batch, 0, 40, 64, *unit)
    with pytest.raises(ValueError, match="at least 1 px"):
        op([image[:0]], batch, 0, 40, 64, *unit)
    with pytest.raises(ValueError, match=r"out must be uint8 \(B, H, W, 3\).*got int32"):
        op([image], batch.int(), 0, 40, 64, *unit)
    with pytest.raises(ValueError, match="out must be contiguous"):
        op([image], batch[:, :, ::2], 0, 40, 32, *unit)
    with pytest.raises(ValueError, match="content of 65 x 64 px does not fit an input of 64 x 64 px"):
        op([image], batch, 0, 65, 64, *unit)
    with pytest.raises(ValueError, match=r"sides of 1\.\.32767 px, got 0 x 64"):
        op([image], batch, 0, 0, 64, *unit)
    with pytest.raises(ValueError, match="deviations above 0"):
        op([image], batch, 0, 40, 64, [0.0] * 3, [1.0, 0.0, 1.0])
    luma, chroma = map(torch.from_numpy, yuv_noise(40, 64))
    with pytest.raises(ValueError, match=r"chroma must be uint8 \(20, 32, 2\)"):
        letterbox_nv12_frames([luma], [chroma[:10]], plan)
    with pytest.raises(ValueError, match="each luma plane needs its chroma, got 1 and 0"):
        letterbox_nv12_frames([luma], [], plan)
    with pytest.raises(ValueError, match="matrix must be one of bt601, bt709, got 'bt2020'"):
        yuv_coefficients("bt2020", full_range=False)
    with pytest.raises(ValueError, match="even sides"):
        planes_of_yuv420p(torch.zeros(15, dtype=torch.uint8), 3, 3)


def test_paste_errors_say_what_came() -> None:
    probabilities, matrices = rois(3, 16, 40, 60)
    maps = torch.from_numpy(probabilities)
    frame = torch.from_numpy(noise(40, 60))
    with pytest.raises(ValueError, match="got 3 probability maps and 2 matrices"):
        paste_and_blend(maps, matrices[:2], 40, 60)
    with pytest.raises(ValueError, match=r"float16 \(N, S, S\), got float64"):
        paste_and_blend(maps.double(), matrices, 40, 60)
    with pytest.raises(ValueError, match=r"0 <= threshold < 1, got nan"):
        paste_and_blend(maps, matrices, 40, 60, threshold=float("nan"))
    with pytest.raises(ValueError, match=r"opacity must be in 0\.\.1, got 1\.5"):
        paste_and_blend(maps, matrices, 40, 60, opacity=1.5)
    with pytest.raises(ValueError, match=r"frame must be uint8 \(40, 61, 3\)"):
        paste_and_blend(maps, matrices, 40, 61, frame=frame)
    with pytest.raises(ValueError, match=r"alpha must be uint8 \(40, 60\)"):
        paste_and_blend(maps, matrices, 40, 60, alpha=frame)
    with pytest.raises(ValueError, match="alpha has 1 planes, got plane 1"):
        paste_and_blend(maps, matrices, 40, 60, alpha=torch.zeros((40, 60), dtype=torch.uint8), planes=[0, 0, 1])
    with pytest.raises(ValueError, match=r"bits has 1 words.*720 always suffice|bits has 1 words.*240 always suffice"):
        paste_and_blend(maps, matrices, 40, 60, bits=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"order must hold each of 0\.\.2 once, got \[0, 1, 1\]"):
        paste_and_blend(maps, matrices, 40, 60, order=[0, 1, 1])
    with pytest.raises(ValueError, match=r"colors must be uint8 \(3, 3\)"):
        paste_and_blend(maps, matrices, 40, 60, colors=np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="probabilities must be contiguous"):
        paste_and_blend(maps.transpose(1, 2), matrices, 40, 60)
    with pytest.raises(ValueError, match=r"records must be int32 \(N, 16\)"):
        torch.ops.pose2seg.paste_and_blend(
            maps, torch.zeros((3, 8), dtype=torch.int32), torch.zeros(9, dtype=torch.int32), None, None, 0.5, 0.5, 4, 4
        )
    with pytest.raises(ValueError, match="sizes must be at least 1 px"):
        plan_paste(matrices, 16, 0, 60)
    with pytest.raises(ValueError, match="bits must hold the"):
        pasted_masks(np.zeros(1, np.int32), plan_paste(matrices, 16, 40, 60).boxes)
    with pytest.raises(ValueError, match=r"boxes must be \(N, 4\)"):
        pasted_masks(np.zeros(1, np.int32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="words of 32 bits, got uint8"):
        pasted_masks(np.zeros(1, np.uint8), np.zeros((1, 4), np.int32))


# ------------------------------------------------------------------------------------------------ the device's own side


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    return EmulatedGpu(DEVICE_SOURCE, tmp_path_factory.mktemp("emulated_gpu"))


@pytest.fixture(params=[False, True], ids=["threads upward", "threads downward"])
def emulated(gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> EmulatedGpu:
    """The operators run on the emulated GPU."""
    gpu.reversed = request.param
    gpu.launches = 0
    monkeypatch.setattr(torch_op, "_run", lambda _, *args, **options: gpu.launch(*args, **options))
    return gpu


@pytest.mark.parametrize(
    ("height", "width", "long_side"),
    [(40, 64, 32), (40, 64, 64), (24, 32, 70), (1, 1, 32), (5, 80, 38), (33, 77, 30), (108, 192, 16), (60, 3000, 8)],
)
def test_letterbox_on_an_emulated_gpu(emulated: EmulatedGpu, height: int, width: int, long_side: int) -> None:
    images = [noise(height, width, seed=k) for k in range(2)]
    plan = plan_letterbox(height, width, long_side=long_side)
    got = letterbox_frames([torch.from_numpy(image) for image in images], plan).numpy()
    assert emulated.launches == 1
    for k, image in enumerate(images):
        assert np.abs(got[k].astype(int) - letterbox(image, plan)).max() <= OPENCV_RESIZE_LEVELS


def test_other_inputs_and_outputs_on_an_emulated_gpu(emulated: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    luma, chroma = map(torch.from_numpy, yuv_noise(41, 77))
    planar = chroma.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    unit = ([0.0] * 3, [1.0] * 3)
    for long_side, dtype in ((20, torch.uint8), (33, torch.float32), (90, torch.float16)):
        plan = plan_letterbox(41, 77, long_side=long_side, multiple=1)
        sides = (plan.input_height, plan.input_width)
        results = []
        for where in ("device", "host"):
            for uv in (chroma, planar):
                out = torch.zeros((1, *sides, 3) if dtype == torch.uint8 else (1, 3, *sides), dtype=dtype)
                with monkeypatch.context() as patch:
                    if where == "host":
                        patch.setattr(torch_op, "_run", run_on_host)
                    torch.ops.pose2seg.letterbox_nv12(
                        [luma], [uv], out, 0, plan.content_height, plan.content_width, "bt709", False, *unit
                    )
                results.append(out)
        assert all(torch.equal(results[0], other) for other in results[1:])
    assert emulated.launches == 6


run_on_host = torch_op._run


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("people", "height", "width"), [(1, 1, 1), (5, 19, 50), (6, 24, 130), (40, 20, 64), (3, 60, 250)]
)
@pytest.mark.parametrize("exclusive", [False, True])
def test_paste_on_an_emulated_gpu(
    emulated: EmulatedGpu,
    monkeypatch: pytest.MonkeyPatch,
    dtype: type,
    people: int,
    height: int,
    width: int,
    exclusive: bool,
) -> None:
    """The same bits, levels and alpha as the host's build, one launch, with people beyond the 32 of a round."""
    probabilities, matrices = rois(people, 16, height, width)
    probabilities = probabilities.astype(dtype)
    colors = np.random.default_rng(0).integers(0, 256, (people, 3), dtype=np.uint8)
    options = {"frame": noise(height, width), "alpha": np.zeros((height, width), np.uint8)}
    options |= {"colors": colors, "opacity": 0.42, "order": np.arange(people)[::-1], "exclusive": exclusive}
    device = run_paste("cpu", probabilities, matrices, height, width, **options)
    assert emulated.launches == 1
    monkeypatch.setattr(torch_op, "_run", run_on_host)
    host = run_paste("cpu", probabilities, matrices, height, width, **options)
    np.testing.assert_array_equal(full(device[0], height, width), full(host[0], height, width))
    np.testing.assert_array_equal(device[1], host[1])
    np.testing.assert_array_equal(device[2], host[2])


# ------------------------------------------------------------------------------------------------------------ compilers


@pytest.mark.nvcc
@pytest.mark.slow
def test_compiles_for_all_architectures_without_spilling() -> None:
    rows = resource_report(DEVICE_SOURCE)
    assert {row["architecture"] for row in rows} == set(CUDA_ARCHITECTURES)
    assert len({row["kernel"] for row in rows}) == 8
    assert not [row for row in rows if row["spill_store_bytes"] or row["stack_bytes"]]
    assert max(int(row["registers"]) for row in rows) <= 96


@pytest.mark.nvcc
def test_ptx_names_the_kernels() -> None:
    text = device_image(DEVICE_SOURCE, architecture="75", kind="ptx").decode()
    for name in ("letterbox_rgb_u8", "letterbox_yuv_f16", "paste_and_blend_f32"):
        assert f".entry {name}(" in text


@pytest.mark.gpu
def test_device_and_host_give_the_same_bits() -> None:
    cases = [(97, 61, 7), (720, 1280, 20), (1080, 1920, 5)]
    for (height, width, people), exclusive in itertools.product(cases, (False, True)):
        probabilities, matrices = rois(people, 64, height, width)
        colors = np.random.default_rng(0).integers(0, 256, (people, 3), dtype=np.uint8)
        results = [
            run_paste(
                *(device, probabilities, matrices, height, width),
                exclusive=exclusive,
                frame=noise(height, width),
                colors=colors,
                opacity=0.42,
            )
            for device in ("cpu", "cuda")
        ]
        differing = full(results[0][0], height, width) != full(results[1][0], height, width)
        assert differing.sum() <= 2 + 1e-5 * differing.size  # sums fused on the device: near the threshold or a tie
        same = ~differing.any(axis=0)
        np.testing.assert_array_equal(results[0][1][same], results[1][1][same])
        for long_side in (384, 512, 2000):
            image, plan = noise(height, width), plan_letterbox(height, width, long_side=long_side)
            host, device = (letterbox_frames([on(where, image)], plan).cpu() for where in ("cpu", "cuda"))
            assert torch.equal(host, device)


def test_sources_are_where_the_operators_look() -> None:
    assert all(Path(path).is_file() for path in (DEVICE_SOURCE, HOST_SOURCE))
