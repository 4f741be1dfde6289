"""The stages between decoding and composing: every matrix on the way is proven by the fake networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import ArtifactError, EngineOutOfMemory, EngineRunError
from engines.device import HostDevice
from kernels.neighbours import OWN_ONLY
from kernels.personlab_decoding import PersonLabParameters
from kernels.pose_decoding import DecodeParameters
from pipeline.build import compose_stages, decode_parameters, model_stages
from pipeline.errors import SettingsError
from pipeline.messages import FrameResult
from pipeline.settings import Settings
from pipeline.stage2_keypoints import KeypointStage
from pipeline.stage3_affine import AffineStage
from pipeline.stage5_compose import ComposeStage
from tests.fakes import STANDING, FakeKeypointEngine, FakeSegmentEngine, fake_model, frame, masks_of, picture, poses_of

ROWS_OF_ROIS = ("ids", "joint_visible", "roi_from_frame", "template_index", "fit_scores")


def run(image: np.ndarray, **options) -> FrameResult:
    """One picture through all stages with the fake networks."""
    item = frame(image=image)
    for stage in (
        *model_stages(Settings(source="x"), fake_model(**options), HostDevice()),
        ComposeStage(HostDevice(), mask_threshold=0.5, draw=True),
    ):
        stage.open()
        item = stage.process(item)
        stage.close()
    return item


def iou(mask: np.ndarray, box: tuple[int, int, int, int]) -> float:
    x0, y0, x1, y1 = box
    expected = np.zeros_like(mask)
    expected[y0:y1, x0:x1] = True
    return float((mask & expected).sum() / (mask | expected).sum())


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (97, 131), (480, 853), (2160, 3840)])
def test_joints_come_back_in_frame_px(height, width) -> None:
    """Frame -> letterbox -> network -> frame; exact up to the rounding of the blob to whole input px."""
    box = (width // 4, height // 6, width // 2, height * 5 // 6)
    person = run(picture(height, width, box)).people[0]
    expected = np.array(box[:2]) + STANDING * (np.array(box[2:]) - box[:2]) - 0.5
    input_px = max(height, width) / 128
    assert np.abs(person.keypoints[:, :2] - expected).max() <= 1.0 * input_px
    np.testing.assert_allclose(person.keypoints[:, 2], 0.9, atol=1e-3)
    assert person.joint_visible.all()


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (240, 426)])
def test_the_mask_lies_on_the_person(height, width) -> None:
    box = (width // 4, height // 6, width // 2, height * 5 // 6)
    person = run(picture(height, width, box), long_side=256).people[0]
    assert iou(person.mask, box) > 0.85
    x, y, box_width, box_height = person.bbox
    assert np.abs(np.array([x, y, x + box_width, y + box_height]) - box).max() <= 2.5 * max(height, width) / 64


def test_a_shifted_person_has_a_shifted_mask() -> None:
    """No half-pixel drifts: the middle of the mask moves exactly with the person."""
    middles = []
    for shift in (0, 40):
        mask = run(picture(160, 256, (60 + shift, 40, 100 + shift, 140)), long_side=256).people[0].mask
        middles.append(np.argwhere(mask).mean(axis=0))
    np.testing.assert_allclose(middles[1] - middles[0], (0, 40), atol=0.6)
    np.testing.assert_allclose(middles[0], (89.5, 79.5), atol=1.5)


def test_two_people() -> None:
    boxes = [(20, 30, 60, 130), (120, 30, 160, 130)]
    result = run(picture(160, 256, *boxes), long_side=256)
    assert [person.id for person in result.people] == [1, 2]
    assert [person.score for person in result.people] == sorted((p.score for p in result.people), reverse=True)
    for person, box in zip(result.people, boxes, strict=True):
        own = person.mask
        assert iou(own[:, box[0] - 15 : box[2] + 15], (15, 30, 55, 130)) > 0.75


def test_nobody_flows_through() -> None:
    segment = FakeSegmentEngine()
    result = run(picture(48, 64), segment_engine=segment)
    assert result.people == ()
    assert segment.calls == 0  # no empty tensors reach a network
    assert result.drawn is not None
    np.testing.assert_array_equal(result.drawn, result.frame.image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (1, 500), (500, 1)])
def test_tiny_pictures(height, width) -> None:
    assert run(picture(height, width)).people == ()
    whole = run(picture(height, width, (0, 0, width, height)))
    assert all(person.mask.shape == (height, width) for person in whole.people)


def test_results_do_not_keep_the_features() -> None:
    result = run(picture(120, 200, (50, 20, 100, 100)))
    assert result.masks.rois.poses.features is None


def test_what_the_segment_network_is_given() -> None:
    segment = FakeSegmentEngine()
    result = run(picture(120, 200, (50, 20, 100, 100)), segment_engine=segment)
    rois = result.masks.rois
    joints = segment.feeds["roi_keypoints"][0]
    moved = rois.poses.keypoints[0, :, :2] @ rois.roi_from_frame[0, :, :2].T + rois.roi_from_frame[0, :, 2]
    np.testing.assert_allclose(joints[:, :2], moved, atol=1e-3)
    assert set(joints[:, 2]) == {2.0}
    assert segment.feeds["roi_image"].tolist() == [0]


def test_joints_below_the_threshold_guide_nothing() -> None:
    of = frame(height=120, width=200)
    poses = poses_of(of, (50, 20, 100, 100))
    poses.keypoints[0, 9:, 2] = 0.1
    stage = AffineStage(fake_model().artifact.templates, roi_size=64, joint_threshold=0.2, person_threshold=0.3)
    stage.open()
    rois = stage.process(poses)
    assert rois.joint_visible[0].tolist() == [True] * 9 + [False] * 8
    unaffected = poses_of(of, (50, 20, 100, 100))
    unaffected.keypoints[0, 9:] = (1e6, -1e6, 0.1)  # wherever they lie
    np.testing.assert_array_equal(stage.process(unaffected).roi_from_frame, rois.roi_from_frame)
    assert poses.keypoints[0, 9, 2] == np.float32(0.1)  # the message was not changed


def test_a_threshold_of_zero_believes_no_joint_without_confidence() -> None:
    poses = poses_of(frame(), (5, 5, 30, 40))
    poses.keypoints[0, 3, 2] = 0.0
    stage = AffineStage(fake_model().artifact.templates, roi_size=64, joint_threshold=0.0, person_threshold=0.3)
    assert not stage.process(poses).joint_visible[0, 3]


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4))
def test_a_stream_may_change_its_size(sizes) -> None:
    engine = FakeKeypointEngine()
    stage = KeypointStage(
        engine, HostDevice(), long_side=64, input_multiple=32, person_threshold=0.3, parameters=DecodeParameters()
    )
    for height, width in sizes:
        poses = stage.process(frame(height=height, width=width))
        assert (poses.letterbox.frame_height, poses.letterbox.frame_width) == (height, width)
        assert poses.features is not None
        assert poses.features.maps.shape[2:] == (poses.letterbox.input_height // 4, poses.letterbox.input_width // 4)
    assert engine.calls == len(sizes)


def test_the_person_threshold() -> None:
    image = picture(160, 256, (20, 30, 60, 130), (120, 30, 150, 130))
    scores = [person.score for person in run(image, long_side=256).people]
    assert len(scores) == 2
    between = sum(scores) / 2
    stages = model_stages(Settings(source="x", person_threshold=between), fake_model(long_side=256), HostDevice())
    found = stages[0].process(frame(image=image))
    assert len(found.scores) == 2  # both may be somebody known
    assert len(stages[1].process(found).ids) == 1  # nobody is: it takes the threshold to appear
    assert len(stages[1].process(found).ids) == 1
    half = KeypointStage(
        FakeKeypointEngine(),
        HostDevice(),
        long_side=256,
        input_multiple=32,
        person_threshold=2 * between,
        parameters=DecodeParameters(),
    )
    assert len(half.process(frame(image=image)).scores) == 1  # below half of the threshold: not even looked at


def test_engines_are_closed_with_their_stages() -> None:
    keypoints, segment = FakeKeypointEngine(), FakeSegmentEngine()
    run(picture(48, 64), keypoint_engine=keypoints, segment_engine=segment)
    assert (keypoints.closed, segment.closed) == (1, 1)


def test_engine_errors_pass() -> None:
    with pytest.raises(EngineRunError):
        run(picture(48, 64), keypoint_engine=FakeKeypointEngine(fail_at=0))


def test_decode_parameters_come_from_the_manifest() -> None:
    assert decode_parameters(fake_model().artifact) == DecodeParameters()
    model = fake_model(decode={"spread": 0.3, "max_oks": 0.6})
    assert decode_parameters(model.artifact) == DecodeParameters(spread=0.3, max_oks=0.6)
    with pytest.raises(ArtifactError, match=r"expected decode parameters among .*spread.* got beam"):
        decode_parameters(fake_model(decode={"beam": 1.0}).artifact)
    with pytest.raises(ArtifactError, match="spread must be greater than 0"):
        decode_parameters(fake_model(decode={"spread": 0.0}).artifact)


def test_the_grouping_comes_from_the_manifest() -> None:
    model = fake_model(decode={"min_seed": 0.05})
    model = replace(model, artifact=replace(model.artifact, grouping="personlab"))
    assert decode_parameters(model.artifact) == PersonLabParameters(min_seed=0.05)
    with pytest.raises(SettingsError, match=r"--skip-still needs a model .* by centre, .* by personlab"):
        model_stages(Settings(source="x", skip_still=True), model, HostDevice())
    foreign = replace(model.artifact, decode={"spread": 0.3})
    with pytest.raises(ArtifactError, match=r"expected decode parameters among .*radius_px.* got spread"):
        decode_parameters(foreign)


def test_compose_pastes_each_mask_where_its_window_is() -> None:
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False)
    stage.open()
    result = stage.process(masks_of(frame(height=60, width=80), (10, 5, 30, 50), (40, 10, 60, 55)))
    assert result.drawn is None
    assert iou(result.people[0].mask, (10, 5, 30, 50)) == 1.0
    assert iou(result.people[1].mask, (40, 10, 60, 55)) == 1.0


def test_a_px_is_in_the_mask_of_the_surest_person_alone() -> None:
    of = frame(height=60, width=80)
    masks = masks_of(of, (10, 5, 50, 50), (30, 5, 70, 50), (60, 5, 75, 50))
    sure = np.array([0.8, 0.9, 0.9], np.float32)[:, None, None]
    masks = replace(masks, probabilities=masks.probabilities * sure)
    for overlapping in (False, True):
        settings = Settings(source="x", overlapping_masks=overlapping)
        (stage,) = compose_stages(settings, HostDevice(), draw=False)
        stage.open()
        found = {person.id: person.mask for person in stage.process(masks).people}
        assert iou(found[1], (10, 5, 50 if overlapping else 30, 50)) == 1.0
        assert iou(found[2], (30, 5, 70, 50)) == 1.0  # as sure as the third, and the first of the two
        assert iou(found[3], (60 if overlapping else 70, 5, 75, 50)) == 1.0


@pytest.mark.parametrize("smooth", [False, True])
def test_smoothed_joints_reach_people_and_nobody_else(smooth) -> None:
    """Two streams and one id: each remembers its own person."""
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False, smooth_joints=smooth)
    stage.open()
    boxes, moved = (10, 5, 30, 50), (11, 5, 31, 50)
    first = stage.process(masks_of(frame(0, height=60, width=80), boxes))
    other = stage.process(masks_of(replace(frame(0, height=60, width=80), stream=1), (40, 10, 60, 55)))
    masks = masks_of(frame(1, height=60, width=80), moved)
    second = stage.process(masks)
    start, raw = first.masks.rois.poses.keypoints[0], masks.rois.poses.keypoints[0]
    np.testing.assert_array_equal(first.people[0].keypoints, start)
    np.testing.assert_array_equal(other.people[0].keypoints, other.masks.rois.poses.keypoints[0])
    np.testing.assert_array_equal(second.masks.rois.poses.keypoints[0], raw)
    between = (second.people[0].keypoints[:, 0] > start[:, 0]) & (second.people[0].keypoints[:, 0] < raw[:, 0])
    assert between.all() == smooth
    assert (second.people[0].keypoints == raw).all() != smooth
    assert iou(second.people[0].mask, moved) == 1.0


def test_a_score_is_person_times_mask_and_people_come_in_its_falling_order() -> None:
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False)
    stage.open()
    masks = masks_of(frame(height=60, width=80), (10, 5, 30, 50), (40, 10, 60, 55))
    poses = replace(masks.rois.poses, scores=np.array([0.9, 0.8], np.float32))
    masks = replace(masks, rois=replace(masks.rois, poses=poses), scores=np.array([0.5, 1.0], np.float32))
    result = stage.process(masks)
    np.testing.assert_allclose([person.score for person in result.people], [0.8, 0.45], rtol=1e-6)
    assert iou(result.people[0].mask, (40, 10, 60, 55)) == 1.0


class BatchingHost(HostDevice):
    """The host, playing a device that gains from batches."""

    def __init__(self, frames_per_call: int) -> None:
        super().__init__(frames_per_call=frames_per_call)
        self.freed = 0

    def network_input(self, pictures, plan):
        return super().network_input(pictures, plan).copy()

    def free_memory(self) -> None:
        super().free_memory()
        self.freed += 1


def crowd(count: int) -> list[np.ndarray]:
    """Pictures with 0, 1, 2, 3, 0, ... people at other places each."""
    return [
        picture(120, 200, *((10 + 55 * n + index, 20, 45 + 55 * n + index, 100) for n in range(index % 4)))
        for index in range(count)
    ]


def results_of(images, device, **options) -> tuple[list[FrameResult], FakeKeypointEngine, FakeSegmentEngine]:
    keypoints = FakeKeypointEngine(memory=options.get("frames_in_memory", 1000))
    segment = FakeSegmentEngine(memory=options.get("people_in_memory", 1000))
    model = fake_model(keypoint_engine=keypoints, segment_engine=segment)
    stages = model_stages(Settings(source="x"), model, device)
    compose = ComposeStage(device, mask_threshold=0.5, draw=True)
    frames = [frame(index, image=image, clip=index) for index, image in enumerate(images)]
    poses = stages[0].process_batch(frames)
    masks = stages[2].process_batch([stages[1].process(item) for item in poses])
    return [compose.process(item) for item in masks], keypoints, segment


@pytest.mark.parametrize("frames_per_call", [1, 2, 3, 8, 20])
def test_a_batch_gives_what_single_frames_give(frames_per_call) -> None:
    images = crowd(9)
    images[4] = picture(97, 131, (20, 10, 60, 90))  # another size in the middle of a batch
    device = BatchingHost(frames_per_call)
    batched, keypoints, segment = results_of(images, device)
    assert max(keypoints.batches) <= frames_per_call
    assert sum(keypoints.batches) == 9
    assert sum(segment.batches) == sum(len(result.people) for result in batched)
    single = [results_of([image], HostDevice())[0][0] for image in images]
    for index, result in enumerate(batched):
        assert [person.score for person in result.people] == [person.score for person in single[index].people]
        np.testing.assert_array_equal(result.drawn, single[index].drawn)
        assert result.masks.rois.poses.features is None and result.masks.on_device is None


def test_too_little_memory_makes_batches_smaller_and_loses_nothing() -> None:
    images = crowd(8)
    device = BatchingHost(8)
    tight, keypoints, segment = results_of(images, device, frames_in_memory=3, people_in_memory=2)
    assert max(keypoints.batches) <= 3 and max(segment.batches) <= 2
    assert device.freed >= 2
    plenty, *_ = results_of(images, BatchingHost(8))
    for one, other in zip(tight, plenty, strict=True):
        np.testing.assert_array_equal(one.drawn, other.drawn)


def test_too_little_memory_for_one_frame_is_an_error() -> None:
    with pytest.raises(EngineOutOfMemory):
        results_of(crowd(2), BatchingHost(2), frames_in_memory=0)
    with pytest.raises(EngineOutOfMemory):
        results_of(crowd(4), BatchingHost(4), people_in_memory=0)


@pytest.mark.parametrize(("most", "calls"), [(2, [1, 2, 2, 2, 2, 2, 1]), (4, [3, 4, 2, 3]), (100, [12])])
def test_neighbours_stay_together_where_the_engine_takes_few_people(most: int, calls: list[int]) -> None:
    """People of pictures: 0, 1, 2, 3, 0, 1, 2, 3; three do not fit into a call for two."""
    segment = FakeSegmentEngine(neighbours=True)
    segment.limits = {"N": most}
    stages = model_stages(Settings(source="x"), fake_model(segment_engine=segment, neighbours=True), BatchingHost(8))
    frames = [frame(index, image=image, clip=index) for index, image in enumerate(crowd(8))]
    masks = stages[2].process_batch([stages[1].process(item) for item in stages[0].process_batch(frames)])
    assert segment.batches == calls
    assert [len(item.scores) for item in masks] == [index % 4 for index in range(8)]
    for index, item in enumerate(masks):
        if index % 4 <= most:
            single = model_stages(Settings(source="x"), fake_model(neighbours=True), HostDevice())
            alone = single[2].process(single[1].process(single[0].process(frames[index])))
            np.testing.assert_allclose(item.probabilities, alone.probabilities, atol=1e-5)


def test_weak_poses_are_nobodys_neighbours() -> None:
    """Who scores less than it takes to appear changes no other mask, and gets one beside the others."""
    segment = FakeSegmentEngine(neighbours=True)
    stages = model_stages(Settings(source="x"), fake_model(segment_engine=segment, neighbours=True), HostDevice())
    image = picture(240, 320, (40, 40, 80, 200), (92, 40, 132, 200))
    rois = stages[1].process(stages[0].process(frame(0, image=image)))
    assert len(rois.ids) == 2
    both = stages[2].process(rois).probabilities
    weak = replace(rois, poses=replace(rois.poses, scores=np.array([0.9, 0.2], np.float32)))
    masks = stages[2].process(weak).probabilities
    assert segment.feeds["roi_keypoints"][:, :, 2].max(1).tolist() == [2, OWN_ONLY]
    rows = {name: getattr(rois, name)[:1] for name in ROWS_OF_ROIS}
    alone = replace(
        rois, **rows, poses=replace(rois.poses, keypoints=rois.poses.keypoints[:1], scores=rois.poses.scores[:1])
    )
    np.testing.assert_array_equal(masks[0], stages[2].process(alone).probabilities[0])
    np.testing.assert_array_equal(masks[1], both[1])
    assert np.abs(masks[0] - both[0]).max() > 0.1


def test_more_people_than_the_engine_takes_are_several_calls() -> None:
    segment = FakeSegmentEngine()
    segment.limits = {"N": 2}
    device = BatchingHost(8)
    stages = model_stages(Settings(source="x"), fake_model(segment_engine=segment), device)
    frames = [frame(index, image=image, clip=index) for index, image in enumerate(crowd(8))]
    masks = stages[2].process_batch([stages[1].process(item) for item in stages[0].process_batch(frames)])
    assert segment.batches == [2, 2, 2, 2, 2, 2]
    assert [len(item.scores) for item in masks] == [index % 4 for index in range(8)]
