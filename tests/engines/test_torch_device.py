"""The device of torch tensors, on the CPU through the same code: the pipeline gives there what it gives on the host."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from engines import EngineRunError
from engines.device import HostDevice, Paint, device_of
from engines.torch_device import TorchDevice, TorchSurface
from kernels.letterbox import letterbox, plan_letterbox
from pipeline.build import model_stages
from pipeline.messages import Frame
from pipeline.overlay import MASK_OPACITY, color_of, draw_people
from pipeline.settings import Settings
from pipeline.stage5_compose import ComposeStage
from tests.fakes import FakeKeypointEngine, FakeSegmentEngine, fake_model, frame, picture

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the kernels' host build needs a C++ compiler"),
]


class OnTensors:
    """A fake engine as one of a device: tensors in, tensors out."""

    device = "cpu"

    def __init__(self, inner, limits) -> None:
        self.inner = inner
        self.limits = limits
        self.name, self.inputs, self.outputs = inner.name, inner.inputs, inner.outputs

    def run(self, feeds):
        return self.inner.run(feeds)

    def run_on_device(self, feeds):
        assert all(isinstance(feed, torch.Tensor) and feed.is_contiguous() for feed in feeds.values())
        outputs = self.inner.run({name: feed.numpy() for name, feed in feeds.items()})
        return {name: torch.from_numpy(np.ascontiguousarray(output)) for name, output in outputs.items()}

    def close(self) -> None:
        self.inner.close()


def tensor_model(**limits):
    return fake_model(
        keypoint_engine=OnTensors(FakeKeypointEngine(), limits), segment_engine=OnTensors(FakeSegmentEngine(), limits)
    )


def run(frames, model, device, *, draw: bool = True, exclusive: bool = False):
    """The fake network gives everybody all people of their window alike, so whose a px is would be up to rounding."""
    stages = model_stages(Settings(source="x"), model, device)
    compose = ComposeStage(device, mask_threshold=0.5, draw=draw, exclusive_masks=exclusive)
    poses = stages[0].process_batch(frames)
    masks = stages[2].process_batch([stages[1].process(item) for item in poses])
    return [compose.process(item) for item in masks]


def crowd(count: int) -> list[np.ndarray]:
    return [
        picture(120, 200, *((10 + 40 * n + index, 20, 45 + 40 * n + index, 100) for n in range(index % 4)))
        for index in range(count)
    ]


def frames_of(images) -> list[Frame]:
    return [frame(index, image=image, clip=index) for index, image in enumerate(images)]


def test_the_engines_decide_the_device() -> None:
    assert isinstance(device_of(FakeKeypointEngine(), FakeSegmentEngine()), HostDevice)
    model = tensor_model(B=4, N=32)
    device = device_of(model.keypoint_engine, model.segment_engine)
    assert isinstance(device, TorchDevice)
    assert device.frames_per_call == 4
    assert device_of(model.keypoint_engine, model.segment_engine, frames_per_call=2).frames_per_call == 2
    assert device.decoder is None  # no NVDEC beside the CPU
    with pytest.raises(ValueError, match="one device"):
        device_of(model.keypoint_engine, FakeSegmentEngine())


@pytest.mark.parametrize(("frames_per_call", "limits"), [(1, {}), (3, {}), (8, {"B": 8, "N": 2})])
def test_results_are_those_of_the_host(frames_per_call, limits) -> None:
    images = [*crowd(9), picture(97, 131, (20, 10, 60, 90))]
    expected = run(frames_of(images), fake_model(), HostDevice())
    results = run(frames_of(images), tensor_model(**limits), TorchDevice("cpu", frames_per_call=frames_per_call))
    for result, wanted in zip(results, expected, strict=True):
        assert len(result.people) == len(wanted.people)
        for person, twin in zip(result.people, wanted.people, strict=True):
            assert person.id == twin.id
            np.testing.assert_allclose(person.keypoints, twin.keypoints, atol=1.0)  # a level of the letterbox
            differing = np.count_nonzero(person.mask != twin.mask)
            assert differing <= 0.02 * np.count_nonzero(twin.mask)
        assert result.masks.rois.poses.features is None and result.masks.on_device is None
        assert isinstance(result.masks.probabilities, np.ndarray)
        assert result.drawn is not result.frame.image


def test_masks_that_do_not_overlap_are_together_those_that_do() -> None:
    images = crowd(8)
    for exclusive, whole in zip(
        run(frames_of(images), tensor_model(), TorchDevice("cpu", frames_per_call=3), exclusive=True),
        run(frames_of(images), tensor_model(), TorchDevice("cpu", frames_per_call=3)),
        strict=True,
    ):
        masks, claimed = (sum(one.mask.astype(int) for one in result.people) for result in (exclusive, whole))
        if whole.people:
            assert masks.max() == 1
            np.testing.assert_array_equal(masks > 0, claimed > 0)
            assert (len(whole.people) < 2) == (claimed.max() == 1)


def test_painting_is_the_tint_of_the_overlay() -> None:
    images = crowd(4)
    device = TorchDevice("cpu", frames_per_call=1)
    for result in run(frames_of(images), tensor_model(), device):
        twin = result.frame.image.copy()
        draw_people(twin, result.people)
        assert np.abs(result.drawn.astype(int) - twin.astype(int)).max() <= 1
        assert (result.frame.image == images[result.frame.index]).all()  # the frame itself stays as it was


@pytest.mark.parametrize("exclusive", [False, True])
def test_people_over_people_are_painted_in_order(exclusive: bool) -> None:
    device = TorchDevice("cpu", frames_per_call=1)
    image = np.full((64, 64, 3), 100, np.uint8)
    matrices = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (2, 1, 1))
    colors = np.array([color_of(1), color_of(2)], np.uint8)
    for order in ([0, 1], [1, 0]):
        pasted = device.paste(
            device.pictures([image])[0],
            torch.ones(2, 64, 64),
            matrices,
            64,
            64,
            threshold=0.5,
            exclusive=exclusive,
            paint=Paint(colors=colors, opacity=MASK_OPACITY, order=np.array(order, np.int32)),
        )
        expected = np.full(3, 100.0)
        for person in [0] if exclusive else order:  # both are as sure
            expected = np.rint((1 - MASK_OPACITY) * expected + MASK_OPACITY * colors[person])
        np.testing.assert_allclose(pasted.painted[32, 32], expected, atol=1)
        assert all(crop.mask.all() for crop in pasted.crops)
        assert [crop.mask.size > 0 for crop in pasted.crops] == [True, not exclusive]


def test_nobody_in_the_frame() -> None:
    device = TorchDevice("cpu", frames_per_call=1)
    image = picture(40, 60)
    nobody = np.zeros((0, 2, 3), np.float32)
    paint = Paint(colors=np.zeros((0, 3), np.uint8), opacity=0.4, order=np.zeros(0, np.int32))
    masks = np.zeros((0, 64, 64), np.float32)
    pasted = device.paste(
        device.pictures([image])[0], masks, nobody, 40, 60, threshold=0.5, exclusive=True, paint=paint
    )
    assert pasted.crops == []
    np.testing.assert_array_equal(pasted.painted, image)
    pasted.painted[:] = 0  # it is the caller's own
    assert image.any()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (97, 131), (720, 1280), (33, 20)])
def test_network_input_is_the_letterbox(height, width) -> None:
    generator = np.random.default_rng(height)
    images = [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(3)]
    images[1].setflags(write=False)
    plan = plan_letterbox(height, width, long_side=64)
    device = TorchDevice("cpu", frames_per_call=8)
    batch = device.network_input(device.pictures(images), plan)
    assert batch.shape == (3, plan.input_height, plan.input_width, 3)
    for row, image in zip(batch.numpy(), images, strict=True):
        assert np.abs(row.astype(int) - letterbox(image, plan).astype(int)).max() <= 1


@pytest.mark.parametrize("bt709", [False, True])
@pytest.mark.parametrize("full_range", [False, True])
def test_a_decoded_surface_is_the_picture_that_the_host_decodes(bt709, full_range) -> None:
    """Planes through DLPack, as a hardware decoder hands them over."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    image = np.stack((x * 2, y * 3, 255 - x - y), -1).astype(np.uint8)
    matrix, levels = (1 if bt709 else 5), (2 if full_range else 1)
    decoded = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format="nv12", dst_colorspace=matrix, dst_color_range=levels
    )
    decoded.time_base = Fraction(1, 25)
    surface = TorchDevice("cpu", frames_per_call=1).surface_of(
        decoded.planes[0], decoded.planes[1], full_range=full_range, bt709=bt709
    )
    assert surface.shape == (64, 96, 3)
    assert np.abs(surface.rgb().astype(int) - image.astype(int)).mean() < 3  # chroma is stored at half the size
    assert surface.rgb() is surface.rgb()


def test_a_surface_goes_through_the_pipeline_without_the_host() -> None:
    image = picture(120, 200, (60, 20, 100, 110))
    on_device = frame(image=image)
    surface = TorchSurface(torch.from_numpy(image.copy()))

    results = run(
        [replace(on_device, pixels=surface), on_device],
        tensor_model(),
        TorchDevice("cpu", frames_per_call=2),
        draw=False,
    )
    assert surface._host is None  # nobody asked for it
    np.testing.assert_array_equal(results[0].people[0].mask, results[1].people[0].mask)
    np.testing.assert_array_equal(results[0].frame.image, image)


def test_an_engine_of_the_host_is_refused() -> None:
    with pytest.raises(EngineRunError, match="does not work on cpu"):
        TorchDevice("cpu", frames_per_call=1).run(FakeKeypointEngine(), {})


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    images = [*crowd(9), picture(97, 131, (20, 10, 60, 90))]

    class OnGpu(OnTensors):
        device = "cuda:0"

        def run_on_device(self, feeds):
            assert all(feed.is_cuda for feed in feeds.values())
            outputs = super().run_on_device({name: feed.cpu() for name, feed in feeds.items()})
            return {name: output.cuda() for name, output in outputs.items()}

    model = fake_model(keypoint_engine=OnGpu(FakeKeypointEngine(), {}), segment_engine=OnGpu(FakeSegmentEngine(), {}))
    results = run(frames_of(images), model, TorchDevice("cuda:0", frames_per_call=3))
    expected = run(frames_of(images), tensor_model(), TorchDevice("cpu", frames_per_call=3))
    for result, wanted in zip(results, expected, strict=True):
        for person, twin in zip(result.people, wanted.people, strict=True):
            np.testing.assert_array_equal(person.mask, twin.mask)
        np.testing.assert_array_equal(result.drawn, wanted.drawn)
