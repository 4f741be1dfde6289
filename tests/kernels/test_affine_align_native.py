"""The C++ of affine-align: conversions, the CPU build against the slow twin, the laws, and the kernels of the GPU:
thread by thread on the CPU, and on a GPU where there is one.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.affine_align import affine_align as numba_affine_align
from kernels.affine_align import launch_shapes
from kernels.affine_align.launch_shapes import ELEMENT_BYTES, check_sizes, launch_shape
from kernels.affine_align.torch_op import (
    DEVICE_SOURCE,
    HOST_SOURCE,
    KernelCall,
    affine_align,
    affine_align_backward,
    align_with_skeleton,
    backward_call,
    forward_call,
)
from kernels.native import DeviceModule, host_library
from kernels.skeleton import CHANNELS as SKELETON_CHANNELS
from kernels.skeleton import LIMBS, skeleton_features
from tests.fake_cuda import build_fake_driver, load_fake_driver
from tests.strategies import crowds, similarities
from tests.tolerances import FLOAT32_COORDINATES, SKELETON, STORED_AS_BFLOAT16, STORED_AS_FLOAT16

TOLERANCE = {
    torch.float64: FLOAT32_COORDINATES,
    torch.float32: FLOAT32_COORDINATES,
    torch.float16: STORED_AS_FLOAT16,
    torch.bfloat16: STORED_AS_BFLOAT16,
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# images, channels, map height and width, window, people
#: Names hold "small" where few values are computed: what the memory checker of a GPU has time for.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (1, 3, 1, 9, 2, 2),
    (2, 8, 7, 5, 7, 3),
    (3, 64, 19, 31, 33, 7),
    (1, 65, 9, 14, 16, 2),
    (2, 256, 11, 8, 12, 4),
    (2, 9, 36, 64, 64, 5),
    (1, 16, 5, 3, 63, 1),
]


def named(sizes: tuple[int, ...]) -> str:
    """As the parameter of a test: small-B-C-h-w-S-N."""
    _, channels, _, _, size, people = sizes
    return "-".join([*(["small"] if channels * size**2 * people < 50_000 else []), *map(str, sizes)])


class Scene(NamedTuple):
    """Arguments of the operators, on the CPU."""

    features: Any
    matrices: Any
    images: Any
    keypoints: Any
    size: int


def scene(sizes: tuple[int, ...], dtype: Any = torch.float32, layout: Any = torch.contiguous_format) -> Scene:
    """People all over a map that lies in the middle of NaN: reading beside it would show."""
    images, channels, height, width, size, people = sizes
    rng = np.random.default_rng(sum(sizes))
    values = torch.from_numpy(rng.uniform(-1, 1, (images, channels, height, width))).to(dtype)
    around = 64 * 16
    storage = torch.full((values.numel() + 2 * around,), torch.nan, dtype=dtype)
    inner = storage[around : around + values.numel()]
    if layout == torch.channels_last:
        features = inner.view(images, height, width, channels).permute(0, 3, 1, 2)
    else:
        features = inner.view(images, channels, height, width)
    features.copy_(values)
    angle, scale = rng.uniform(-np.pi, np.pi, people), rng.uniform(0.1, 2.0, people)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    centre = rng.uniform(0, (width, height), (people, 2))
    x, y = centre[:, 0] - (a + b) * size / 2, centre[:, 1] - (a - b) * size / 2
    matrices = np.stack((np.stack((a, b, x), -1), np.stack((-b, a, y), -1)), 1).astype(np.float32)
    keypoints = rng.uniform(-0.3 * size, 1.3 * size, (people, 17, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (people, 17))
    rows = torch.from_numpy(rng.integers(0, images, people).astype(np.int32))
    return Scene(features, torch.from_numpy(matrices), rows, torch.from_numpy(keypoints), size)


def expected_windows(one: Scene) -> np.ndarray:
    return numba_affine_align(
        one.features.float().numpy(), one.matrices.numpy().astype(np.float64), one.images.numpy(), one.size
    )


def assert_layout(result: Any, features: Any) -> None:
    kept = torch.contiguous_format if features.is_contiguous() else torch.channels_last
    assert result.is_contiguous(memory_format=kept)
    assert result.dtype == features.dtype


# --------------------------------------------------------------------------------------------------------- conversions


def converted(name: str, values: np.ndarray, result: np.dtype) -> np.ndarray:
    values, out = np.ascontiguousarray(values), np.empty(len(values), result)
    getattr(host_library(HOST_SOURCE), name)(
        ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(values)
    )
    return out


def test_every_float16_reads_and_writes_as_numpy_says() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    read = converted("half_to_float", patterns, np.float32)
    np.testing.assert_array_equal(read, patterns.view(np.float16).astype(np.float32))
    nan = np.isnan(read)
    assert nan.sum() == 2 * 1023
    np.testing.assert_array_equal(converted("float_to_half", read, np.uint16)[~nan], patterns[~nan])
    assert np.isnan(converted("float_to_half", read[nan], np.uint16).view(np.float16)).all()


def test_float32_is_rounded_to_the_nearest_float16_and_ties_to_even() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2  # exact in float32: every tie there is
    drawn = np.random.default_rng(0).uniform(-70000, 70000, 50_000).astype(np.float32)
    values = np.concatenate([between, np.nextafter(between, 0), np.nextafter(between, 1e9), drawn, drawn * 1e-9])
    values = np.concatenate([values, -values, np.float32([65519.996, 65520, 1e30, np.inf, 2.0**-25, 2.0**-26])])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(converted("float_to_half", values, np.uint16), expected.view(np.uint16))


def test_every_bfloat16_reads_and_writes_as_torch_says() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    theirs = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)
    read = converted("bfloat16_to_float", patterns, np.float32)
    np.testing.assert_array_equal(read, theirs.float().numpy())
    drawn = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    drawn = drawn[~np.isnan(drawn)]
    written = converted("float_to_bfloat16", drawn, np.uint16)
    np.testing.assert_array_equal(written, torch.from_numpy(drawn).bfloat16().view(torch.int16).numpy().view(np.uint16))
    assert np.isnan(read[np.isnan(read)]).all()


def test_the_limbs_are_those_of_the_slow_twin() -> None:
    table = np.empty((len(LIMBS), 2), np.int32)
    host_library(HOST_SOURCE).limb_table(ctypes.c_void_p(table.ctypes.data))
    np.testing.assert_array_equal(table, LIMBS)


# ----------------------------------------------------------------------------------- the operators on the CPU: the twin


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=named)
def test_windows_and_skeleton_of_the_twins(sizes: tuple[int, ...], dtype: Any, layout: Any) -> None:
    one = scene(sizes, dtype, layout)
    expected = expected_windows(one)
    windows = affine_align(one.features, one.matrices, one.images, one.size)
    assert_layout(windows, one.features)
    np.testing.assert_allclose(windows.float().numpy(), expected, **TOLERANCE[dtype])

    both = align_with_skeleton(one.features, one.matrices, one.images, one.keypoints, one.size)
    assert_layout(both, one.features)
    channels = sizes[1]
    assert torch.equal(both[:, :channels], windows)
    skeleton = torch.from_numpy(skeleton_features(one.keypoints.numpy(), one.size)).to(dtype).float()
    tolerance = SKELETON if dtype == torch.float32 else TOLERANCE[dtype]
    np.testing.assert_allclose(both[:, channels:].float().numpy(), skeleton.numpy(), **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_threads_compute_what_one_does(dtype: Any, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene((2, 65, 19, 31, 33, 5), dtype, layout)
    calls: list[Callable[[], Any]] = [
        lambda: affine_align(one.features, one.matrices, one.images, one.size),
        lambda: align_with_skeleton(one.features, one.matrices, one.images, one.keypoints, one.size),
        lambda: affine_align_backward(
            affine_align(one.features, one.matrices, one.images, one.size), one.matrices, one.images, 2, 19, 31
        ),
    ]
    alone = [call() for call in calls]
    monkeypatch.setattr("kernels.affine_align.torch_op._VALUES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for before, call in zip(alone, calls, strict=True):
        assert torch.equal(call(), before)


def test_strided_and_shifted_features_give_the_same() -> None:
    one = scene((2, 8, 7, 5, 7, 3))
    expected = affine_align(one.features, one.matrices, one.images, one.size)
    wide = torch.zeros(2, 16, 7, 11)
    wide[:, ::2, :, 1::2] = one.features
    everything = torch.zeros(one.features.numel() + 1)
    shifted = everything[1:].view(2, 7, 5, 8).permute(0, 3, 1, 2)  # channels-last, 4 bytes off a vector's boundary
    shifted.copy_(one.features)
    for strided in (wide[:, ::2, :, 1::2], shifted, one.features.transpose(2, 3).contiguous().transpose(2, 3)):
        result = affine_align(strided, one.matrices.double(), one.images.long(), one.size)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    repeated = one.features[:1].expand(3, -1, -1, -1)
    everywhere = affine_align(repeated, one.matrices, torch.tensor([0, 1, 2]), one.size)
    torch.testing.assert_close(everywhere, affine_align(repeated, one.matrices, torch.zeros(3).int(), one.size))


BROKEN = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("entry", range(6))
@pytest.mark.parametrize("bad", BROKEN)
def test_a_broken_matrix_gives_zeros_and_leaves_the_others_alone(bad: float, entry: int, layout: Any) -> None:
    one = scene((2, 9, 6, 7, 8, 3), torch.float16, layout)
    expected = affine_align(one.features, one.matrices, one.images, one.size)
    one.matrices.view(3, 6)[1, entry] = bad
    windows = affine_align(one.features, one.matrices, one.images, one.size)
    broken = windows[1]
    if np.isfinite(bad) and entry % 3 != 2:  # a far slope still meets the map where u or v is zero
        column = entry % 3 == 0
        broken = broken[:, :, 1:] if column else broken[:, 1:]
    assert not broken.any()
    assert torch.equal(windows[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("image", [-1, 2, 2**31 - 1, -(2**31)])
def test_an_image_that_is_not_there_gives_zeros(image: int) -> None:
    one = scene((2, 9, 6, 7, 8, 3))
    one.images[1] = image
    windows = affine_align(one.features, one.matrices, one.images, one.size)
    assert not windows[1].any() and windows[[0, 2]].any()
    back = affine_align_backward(torch.ones_like(windows), one.matrices, one.images, 2, 6, 7)
    assert torch.isfinite(back).all()
    assert torch.equal(
        back, affine_align_backward(torch.ones_like(windows[[0, 2]]), one.matrices[[0, 2]], one.images[[0, 2]], 2, 6, 7)
    )


@pytest.mark.parametrize("value", BROKEN)
def test_joints_out_of_this_world_leave_finite_maps(value: float) -> None:
    one = scene((1, 3, 6, 7, 16, 2))
    for joint in range(17):
        one.keypoints[0, joint, joint % 3] = value
    skeleton = align_with_skeleton(*one)[:, 3:]
    assert torch.isfinite(skeleton).all()
    assert not skeleton[0, :17][torch.arange(17) % 3 != 2].any()


@pytest.mark.parametrize("empty", ["people", "channels", "images"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_nothing_in_is_nothing_out(empty: str, layout: Any) -> None:
    one = scene((2, 8, 6, 7, 8, 3))
    features = one.features[:0] if empty == "images" else one.features[:, :0] if empty == "channels" else one.features
    features = features.contiguous(memory_format=layout)
    rows = slice(0) if empty == "people" else slice(None)
    windows = affine_align(features, one.matrices[rows], one.images[rows], 8)
    assert windows.shape == (len(one.images[rows]), features.shape[1], 8, 8)
    assert not windows.any()
    both = align_with_skeleton(features, one.matrices[rows], one.images[rows], one.keypoints[rows], 8)
    assert both.shape == (len(windows), features.shape[1] + SKELETON_CHANNELS, 8, 8)
    back = affine_align_backward(windows, one.matrices[rows], one.images[rows], len(features), 6, 7)
    assert back.shape == features.shape
    assert not back.any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_without_a_compiler_the_same_numbers_come_from_grid_sample(
    dtype: Any, layout: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from kernels.affine_align import torch_op

    one = scene((3, 9, 12, 15, 16, 6), dtype, layout)
    one.matrices[3, 0, 0] = torch.nan

    def everything() -> list[Any]:
        windows = affine_align(*one[:3], 16)
        gradient = (
            torch.cos(torch.arange(windows.numel())).view(windows.shape).to(dtype).contiguous(memory_format=layout)
        )
        back = affine_align_backward(gradient, one.matrices, one.images, 3, 12, 15)
        return [windows, align_with_skeleton(*one), back]

    ours = everything()
    torch_op._host.cache_clear()
    with monkeypatch.context() as patched:
        patched.setenv("CXX", str(tmp_path / "no-compiler"))
        theirs = everything()
    torch_op._host.cache_clear()
    (record,) = caplog.records  # once, not at every call
    assert "runs on PyTorch's grid_sample, which is slower: affine_align_host.cpp needs a C++ compiler" in (
        record.getMessage()
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.stride(), a.dtype) == (b.stride(), b.dtype)
        scale = max(1.0, float(a.abs().max()))
        rounded_twice = {name: 2 * value for name, value in TOLERANCE[dtype].items()}  # each from sums of its own
        torch.testing.assert_close(a / scale, b / scale, **rounded_twice)


def test_errors_say_what_came() -> None:
    one = scene((2, 9, 6, 7, 8, 3))
    with pytest.raises(ValueError, match=r"features must be \(B, C, h, w\), got \(9, 6, 7\)"):
        affine_align(one.features[0], one.matrices, one.images, 8)
    with pytest.raises(ValueError, match=r"features must be one of .*torch.float16.*, got torch.int32"):
        affine_align(one.features.int(), one.matrices, one.images, 8)
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(3,\)"):
        affine_align(one.features, one.matrices[:, 0], one.images, 8)
    with pytest.raises(ValueError, match=r"roi_image must hold integers, got torch.float32"):
        affine_align(one.features, one.matrices, one.images.float(), 8)
    with pytest.raises(ValueError, match="size must be at least 1 px, got 0"):
        affine_align(one.features, one.matrices, one.images, 0)
    with pytest.raises(ValueError, match=r"roi_keypoints must be \(3, 17, 3\), got \(2, 17, 3\)"):
        align_with_skeleton(one.features, one.matrices, one.images, one.keypoints[:2], 8)
    with pytest.raises(ValueError, match="at most 2147483647 px"):
        check_sizes(2**16, 2**16, 64)
    with pytest.raises(ValueError, match="h=0, w=5"):
        check_sizes(0, 5, 64)


# ------------------------------------------------------------------------------------------------------------ the laws

maps = st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 8]), st.integers(1, 9), st.integers(1, 9))


@given(maps, st.integers(1, 12), st.integers(-3, 3), st.integers(-3, 3), st.sampled_from(LAYOUTS))
def test_a_shift_by_whole_px_copies(shape: tuple[int, ...], size: int, dx: int, dy: int, layout: Any) -> None:
    """(0, 0) is the identity: the map itself, zeros beside it."""
    features = torch.randn(shape, generator=torch.Generator().manual_seed(size)).contiguous(memory_format=layout)
    images = torch.arange(shape[0], dtype=torch.int32)
    matrices = torch.tensor([[1.0, 0, dx], [0, 1, dy]]).repeat(shape[0], 1, 1)
    padded = torch.zeros(*shape[:2], 40, 40)
    padded[:, :, 10 : 10 + shape[2], 10 : 10 + shape[3]] = features
    expected = padded[:, :, 10 + dy : 10 + dy + size, 10 + dx : 10 + dx + size]
    assert torch.equal(affine_align(features, matrices, images, size), expected)


@given(crowds(max_people=3, side_px=80), st.sampled_from(LAYOUTS))
def test_any_pose_is_drawn_as_the_slow_twin_draws_it(keypoints: np.ndarray, layout: Any) -> None:
    features = torch.zeros(1, 3, 4, 5).contiguous(memory_format=layout)
    matrices, images = torch.eye(2, 3).repeat(len(keypoints), 1, 1), torch.zeros(len(keypoints)).int()
    drawn = align_with_skeleton(features, matrices, images, torch.from_numpy(keypoints), 40)[:, 3:].numpy()
    # A px exactly on the rim of a blob or a limb may fall to either side after rounding.
    assert (np.abs(drawn - skeleton_features(keypoints, 40)) > SKELETON["atol"]).sum() <= 4


@st.composite
def people_on_maps(draw: st.DrawFn) -> tuple[Any, Any, tuple[int, ...], int]:
    shape = draw(maps)
    people = draw(st.integers(1, 4))
    matrices = np.stack([draw(similarities(min_scale=0.1, max_scale=3.0, max_shift=12.0)) for _ in range(people)])
    images = draw(st.lists(st.integers(0, shape[0] - 1), min_size=people, max_size=people))
    return torch.from_numpy(matrices), torch.tensor(images), shape, draw(st.integers(1, 9))


@given(people_on_maps(), st.sampled_from(LAYOUTS))
def test_linear_in_the_features_and_the_gradient_is_the_adjoint(people: tuple[Any, ...], layout: Any) -> None:
    matrices, images, shape, size = people
    generator = torch.Generator().manual_seed(size)
    f, g = (torch.randn(shape, generator=generator, dtype=torch.float64).contiguous(memory_format=layout) for _ in "fg")
    window_f, window_g = (affine_align(one, matrices, images, size) for one in (f, g))
    torch.testing.assert_close(affine_align(2 * f - 3 * g, matrices, images, size), 2 * window_f - 3 * window_g)
    h = torch.randn(window_f.shape, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    back = affine_align_backward(h, matrices, images, shape[0], *shape[2:])
    torch.testing.assert_close((window_f * h).sum(), (f * back).sum())


# ------------------------------------------------------------------ the GPU's kernels, run by a stand-in for the driver


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return load_fake_driver(build_fake_driver(DEVICE_SOURCE, tmp_path_factory.mktemp("driver")))


@pytest.fixture
def run_kernel(fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Callable[[KernelCall], Any]:
    """Launches as on a GPU; nothing is written beside the result, and everything of a forward result is."""
    monkeypatch.setattr("kernels.native.launch._driver", lambda: fake_driver)
    module = DeviceModule(b"the image is not looked at here")

    def run(call: KernelCall) -> Any:
        around = 64
        storage = torch.full((call.out.numel() + 2 * around,), 777.0, dtype=call.out.dtype)
        inner = storage[around : around + call.out.numel()].as_strided(call.out.size(), call.out.stride())
        inner.copy_(call.out if "backward" in call.kernel else torch.full_like(call.out, torch.nan))
        for shape, arguments in call._replace(out=inner).parts():
            module.launch(*shape, 0, *arguments)
        assert (storage[:around] == 777).all() and (storage[-around:] == 777).all()
        return inner.clone()

    return run


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=named)
def test_every_thread_of_the_kernels_does_its_share(
    sizes: tuple[int, ...], dtype: Any, layout: Any, run_kernel: Callable[[KernelCall], Any]
) -> None:
    one = scene(sizes, dtype, layout)
    if len(one.images) > 2:
        one.images[1] = sizes[0]
        one.matrices[2, 1, 2] = torch.nan
    windows = affine_align(one.features, one.matrices, one.images, one.size)
    forward = run_kernel(forward_call(one.features, one.matrices, one.images, one.size))
    torch.testing.assert_close(forward, windows, rtol=0, atol=1e-6)

    gradient = torch.randn(windows.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradient = gradient.contiguous(memory_format=layout)
    maps = (sizes[0], *sizes[2:4])
    back = run_kernel(backward_call(gradient, one.matrices, one.images, maps))
    expected = affine_align_backward(gradient, one.matrices, one.images, *maps)
    torch.testing.assert_close(back.to(dtype), expected, rtol=max(1e-5, TOLERANCE[dtype]["rtol"]), atol=1e-5)

    if dtype != torch.float64:
        both = run_kernel(forward_call(one.features, one.matrices, one.images, one.size, one.keypoints))
        torch.testing.assert_close(both, align_with_skeleton(*one), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_plugins_kernel_is_the_operators_without_the_number_of_images(
    dtype: Any, fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs, C, H, W, S, output; grid of ceil(S*S / 128) x ceil(C / 8) x N blocks of 128: engines rely on it."""
    monkeypatch.setattr("kernels.native.launch._driver", lambda: fake_driver)
    one = scene((2, 13, 19, 31, 33, 5), dtype)
    one.images[2] = -1
    out = torch.full((5, 13, 33, 33), torch.nan, dtype=dtype)
    arrays = [ctypes.c_void_p(tensor.data_ptr()) for tensor in one[:3]]
    numbers = [ctypes.c_int(number) for number in (13, 19, 31, 33)]
    name = "affine_align_f32" if dtype == torch.float32 else "affine_align_f16"
    grid = (-(-33 * 33 // 128), -(-13 // 8), 5)
    DeviceModule(b"image").launch(name, grid, (128, 1, 1), 0, *arrays, *numbers, ctypes.c_void_p(out.data_ptr()))
    torch.testing.assert_close(out, affine_align(*one[:3], 33), rtol=0, atol=1e-6)


def test_launches_count_with_the_numbers_of_the_source() -> None:
    """Too few would show as px that are not written; too many would only be slow."""
    told = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", DEVICE_SOURCE.read_text())}
    assert told == {
        "THREADS": launch_shapes.THREADS,
        "CHANNELS": launch_shapes.CHANNELS_PER_THREAD,
        "PIXELS": launch_shapes.PIXELS_PER_THREAD,
        "FUSED_PIXELS": launch_shapes.FUSED_PIXELS_PER_THREAD,
        "LIMBS_PER_THREAD": launch_shapes.LIMBS_PER_THREAD,
    }


def test_more_people_than_a_grid_has_layers_are_several_launches(
    run_kernel: Callable[[KernelCall], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.affine_align.torch_op.MAX_PEOPLE", 3)
    for layout in LAYOUTS:
        one = scene((2, 5, 6, 7, 4, 8), layout=layout)
        call = forward_call(one.features, one.matrices, one.images, 4, one.keypoints)
        assert [shape.grid[2] for shape, _ in call.parts()] == [3, 3, 2]
        torch.testing.assert_close(run_kernel(call), align_with_skeleton(*one), rtol=0, atol=1e-6)
        windows = affine_align(*one[:3], 4)
        back = run_kernel(backward_call(windows, one.matrices, one.images, (2, 6, 7)))
        torch.testing.assert_close(back, affine_align_backward(windows, one.matrices, one.images, 2, 6, 7))


@given(
    st.sampled_from(["affine_align", "align_with_skeleton", "affine_align_backward"]),
    st.sampled_from(["nchw", "nhwc"]),
    st.sampled_from(sorted(ELEMENT_BYTES)),
    st.integers(1, 65535),
    st.integers(1, 4096),
    st.integers(1, 512),
)
def test_launches_stay_within_what_cuda_allows(
    kernel: Any, layout: Any, element: str, people: int, channels: int, size: int
) -> None:
    shape = launch_shape(kernel, layout, element, people=people, channels=channels, size=size)
    assert all(1 <= one <= most for one, most in zip(shape.grid, (2**31 - 1, 65535, 65535), strict=True))
    assert shape.name == f"{kernel}_{layout}_{element}"


# ------------------------------------------------------------------------------------------------------- on a real GPU


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=named)
def test_gpu_equals_cpu(sizes: tuple[int, ...], dtype: Any, layout: Any) -> None:
    one = scene(sizes, dtype, layout)
    if len(one.images) > 2:
        one.images[1] = sizes[0]
        one.matrices[2, 1, 2] = torch.nan
    there = Scene(*(tensor.cuda() for tensor in one[:4]), one.size)
    tolerance = TOLERANCE[dtype]
    windows = affine_align(*one[:3], one.size)
    aligned = affine_align(*there[:3], one.size)
    assert_layout(aligned, there.features)
    torch.testing.assert_close(aligned.cpu().double(), windows.double(), **tolerance)
    both = align_with_skeleton(*there)
    assert_layout(both, there.features)
    expected = align_with_skeleton(*one).double()
    different = ~torch.isclose(both.cpu().double(), expected, **tolerance)
    assert different.sum() <= 4  # a px exactly on the rim of a blob or a limb may fall to either side after rounding
    assert not different[:, : sizes[1]].any()
    maps = (sizes[0], *sizes[2:4])
    back = affine_align_backward(windows.cuda(), there.matrices, there.images, *maps)
    expected = affine_align_backward(windows, one.matrices, one.images, *maps)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(back.cpu().double() / scale, expected.double() / scale, **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("bad", BROKEN)
def test_gpu_small_survives_broken_matrices_and_images(bad: float) -> None:
    one = scene((2, 9, 6, 7, 8, 3), torch.float16)
    one.matrices[1, 0, 2], one.images[2] = bad, 2**31 - 1
    windows = affine_align(*(tensor.cuda() for tensor in one[:3]), 8).cpu()
    assert not windows[1:].any()
    torch.testing.assert_close(windows, affine_align(*one[:3], 8))


@pytest.mark.gpu
def test_gpu_graph_replays_and_other_streams_work() -> None:
    one = scene((2, 64, 36, 64, 64, 5), torch.float16, torch.channels_last)
    there = [tensor.cuda() for tensor in one[:4]]
    expected = align_with_skeleton(*there, 64)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        aside = align_with_skeleton(*there, 64)
    side.synchronize()
    assert torch.equal(aside, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = align_with_skeleton(*there, 64)
    there[1].copy_(there[1].flip(0))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, align_with_skeleton(*there, 64))
    assert not torch.equal(captured, expected)


@pytest.mark.gpu
def test_gpu_small_gradients_in_double() -> None:
    one = scene((2, 3, 5, 6, 7, 3), torch.float64)
    features = one.features.cuda().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: affine_align(x, one.matrices.cuda(), one.images.cuda(), 7), (features,), nondet_tol=1e-10
    )
