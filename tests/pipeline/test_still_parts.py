"""--skip-still: what changes is looked at, nobody is lost or made of two halves, what stands still costs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import EngineOptions, default_artifact, load_artifact, open_graph
from engines.device import HostDevice
from pipeline.build import Model, build, model_stages
from pipeline.errors import SettingsError
from pipeline.messages import Frame, InstanceMasks
from pipeline.settings import Settings
from pipeline.still_parts import WHOLE_EVERY
from tests.fakes import FakeKeypointEngine, FakeSegmentEngine, ListSource, fake_model, frame, picture

SIDE = 256  # frame px = input px: what moves by whole cells moves by whole cells in the input


ROWS_OF_ROIS = ("ids", "joint_visible", "roi_from_frame", "template_index", "fit_scores")


class CountingEngine(FakeKeypointEngine):
    """Remembers how large the pictures were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.sizes.append(feeds["image"].shape[1:3])
        return super().run(feeds)


class Stages:
    """Keypoints, ids and masks, one frame after the other."""

    def __init__(self, *, skip_still: bool, model: Model | None = None, neighbours: bool = False) -> None:
        self.keypoint_engine, self.segment_engine = CountingEngine(), FakeSegmentEngine(neighbours=neighbours)
        if model is None:
            model = fake_model(
                keypoint_engine=self.keypoint_engine,
                segment_engine=self.segment_engine,
                long_side=SIDE,
                neighbours=neighbours,
            )
        self._stages = model_stages(Settings(source="x", skip_still=skip_still), model, HostDevice())

    def close(self) -> None:
        for stage in self._stages:
            stage.close()

    def __call__(self, item: Any) -> InstanceMasks:
        for stage in self._stages:
            item = stage.process(item)
        assert isinstance(item, InstanceMasks)
        return item


def shown(index: int, *boxes: tuple[int, int, int, int], stream: int = 0, clip: int = 0) -> Frame:
    return replace(frame(index, image=picture(SIDE, SIDE, *boxes), clip=clip), stream=stream)


def in_order(masks: InstanceMasks) -> tuple[np.ndarray, np.ndarray]:
    """Joints and probabilities, from left to right, then from top to bottom."""
    keypoints = masks.rois.poses.keypoints
    order = np.lexsort((keypoints[:, 0, 1], keypoints[:, 0, 0]))
    return keypoints[order], masks.probabilities[order]


cells = st.integers(0, SIDE // 4)
people = st.lists(st.tuples(cells, cells, st.integers(3, 8), st.integers(8, 20)), max_size=3)


@given(st.lists(people, min_size=2, max_size=6))
@settings(max_examples=60)
def test_the_same_people_as_from_whole_pictures(frames: list[list[tuple[int, int, int, int]]]) -> None:
    """Whoever comes, goes, moves and hides others: a network that sees no further than its px cannot tell."""
    whole, still = Stages(skip_still=False), Stages(skip_still=True)
    for index, boxes in enumerate(frames):
        item = shown(index, *[(4 * x, 4 * y, 4 * (x + w), 4 * (y + h)) for x, y, w, h in boxes])
        expected, found = in_order(whole(item)), in_order(still(item))
        assert len(found[0]) == len(expected[0])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-3)


def test_who_stands_still_gets_a_new_mask_when_a_neighbour_passes() -> None:
    whole, still = (Stages(skip_still=on, neighbours=True) for on in (False, True))
    passing = [(40, 40, 80, 200), (200, 40, 240, 200)], [(40, 40, 80, 200), (92, 40, 132, 200)]
    for index, boxes in enumerate((*passing, passing[1], passing[0], passing[0])):
        expected, found = (in_order(stages(shown(index, *boxes))) for stages in (whole, still))
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    assert still.segment_engine.batches == [2, 2, 2]
    assert np.abs(in_order(whole(shown(6, *passing[1])))[1][0] - expected[1][0]).max() > 0.1


@pytest.mark.parametrize(("neighbours", "calls"), [(True, [2, 1]), (False, [2])])
def test_a_neighbour_who_is_gone_is_in_no_mask_any_more(neighbours: bool, calls: list[int]) -> None:
    """Nothing has changed in the window of the one who stays, and nobody is new."""
    model = fake_model(segment_engine=FakeSegmentEngine(neighbours=neighbours), long_side=SIDE, neighbours=neighbours)
    stages = model_stages(Settings(source="x", skip_still=True), model, HostDevice())
    poses = stages[0].process(shown(0, (40, 40, 80, 200), (92, 40, 132, 200)))
    both = stages[1].process(poses)
    first = int(poses.keypoints[:, 0, 0].argmin())
    kept = {name: getattr(both, name)[[first]] for name in ROWS_OF_ROIS}
    alone = replace(
        both, **kept, poses=replace(poses, keypoints=poses.keypoints[[first]], scores=poses.scores[[first]])
    )
    before, after = stages[2].process(both).probabilities[first], stages[2].process(alone).probabilities[0]
    assert model.segment_engine.batches == calls
    assert (np.abs(after - before).max() > 0.1) == neighbours


@pytest.mark.parametrize("neighbours", [False, True])
def test_what_stands_still_is_looked_at_once(neighbours: bool) -> None:
    stages = Stages(skip_still=True, neighbours=neighbours)
    first = stages(shown(0, (40, 40, 80, 200)))
    for index in range(1, 10):
        again = stages(shown(index, (40, 40, 80, 200)))
        np.testing.assert_array_equal(again.probabilities, first.probabilities)
        np.testing.assert_array_equal(again.rois.ids, first.rois.ids)
    assert stages.keypoint_engine.sizes == [(SIDE, SIDE)]
    assert stages.segment_engine.batches == [1]


def test_who_moves_is_looked_at_alone_and_the_other_keeps_the_mask() -> None:
    stages = Stages(skip_still=True)
    for index in range(5):
        masks = stages(shown(index, (20, 40, 52, 140), (180 + 4 * index, 100, 212 + 4 * index, 220)))
        assert sorted(masks.rois.ids.tolist()) == [1, 2]
    assert stages.keypoint_engine.sizes[0] == (SIDE, SIDE)
    assert len(stages.keypoint_engine.sizes) == 5
    assert all(height * width < 0.6 * SIDE**2 for height, width in stages.keypoint_engine.sizes[1:])
    assert stages.segment_engine.batches == [2, 1, 1, 1, 1]


def test_a_newcomer_is_found_at_once() -> None:
    stages = Stages(skip_still=True)
    stages(shown(0))
    assert len(stages(shown(1, (200, 60, 232, 180))).rois.ids) == 1
    assert len(stages(shown(2)).rois.ids) == 0
    assert [size != (SIDE, SIDE) for size in stages.keypoint_engine.sizes] == [False, True, True]


def test_the_whole_picture_is_looked_at_now_and_then_and_when_it_changes() -> None:
    stages = Stages(skip_still=True)
    for index in range(2 * WHOLE_EVERY + 1):
        stages(shown(index, (40, 40, 80, 200)))
    assert stages.keypoint_engine.sizes == [(SIDE, SIDE)] * 3
    stages(frame(0, image=255 - picture(SIDE, SIDE, (40, 40, 80, 200))))  # the light goes on
    assert stages.keypoint_engine.sizes[3:] == [(SIDE, SIDE)]


def test_streams_clips_and_sizes_do_not_share_a_memory() -> None:
    stages = Stages(skip_still=True)
    box = (40, 40, 80, 200)
    stages(shown(0, box))
    stages(shown(0, stream=1))
    assert len(stages(shown(1, box)).rois.ids) == 1
    assert len(stages(shown(1, stream=1)).rois.ids) == 0
    assert stages.keypoint_engine.sizes == [(SIDE, SIDE)] * 2
    stages(shown(2, box, clip=1))
    stages(frame(3, image=picture(128, SIDE, (40, 40, 60, 100)), clip=1))
    assert stages.keypoint_engine.sizes[2:] == [(SIDE, SIDE), (128, SIDE)]


def test_results_that_were_handed_on_stay_as_they_are() -> None:
    """Another thread makes masks from them meanwhile."""
    stage = model_stages(Settings(source="x", skip_still=True), fake_model(long_side=SIDE), HostDevice())[0]
    first = stage.process(shown(0, (40, 40, 80, 200)))
    assert first.features is not None
    kept = first.features.maps.copy(), first.keypoints.copy()
    second = stage.process(shown(1, (44, 40, 84, 200)))
    np.testing.assert_array_equal(first.features.maps, kept[0])
    np.testing.assert_array_equal(first.keypoints, kept[1])
    assert second.features is not None
    assert (second.features.maps != first.features.maps).any()


def test_what_it_cannot_work_with_is_refused() -> None:
    class Elsewhere(HostDevice):
        pass

    class Gpu:
        name = "cuda:0"

    wanted = Settings(source="x", skip_still=True)
    model_stages(wanted, fake_model(), Elsewhere())
    with pytest.raises(SettingsError, match="here they run on cuda:0: leave it out, or choose --engine onnx"):
        model_stages(wanted, fake_model(), Gpu())  # type: ignore[arg-type]
    odd = fake_model()
    for change in (
        {"feature_from_input": np.array([[0.3, 0, 0], [0, 0.3, 0]], np.float32)},
        {"feature_from_input": np.array([[0.25, 0.1, 0], [0, 0.25, 0]], np.float32)},
        {"input_multiple": 8},
    ):
        with pytest.raises(SettingsError, match="needs a model whose features and input lie on one grid"):
            model_stages(wanted, replace(odd, artifact=replace(odd.artifact, **change)), HostDevice())


def test_a_whole_run_says_how_much_was_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource([shown(index, (40, 40, 80, 200)) for index in range(20)])
    with caplog.at_level("INFO", logger="pipeline"):
        pipeline = build(Settings(source="x", skip_still=True), model=fake_model(long_side=SIDE), source=source)
        assert [len(result.people) for result in pipeline.results()] == [1] * 20
    assert "the network looked at 5 % of the px" in caplog.text


@pytest.mark.slow
def test_the_default_model_sees_in_parts_what_it_sees_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Two people before a wall, one of whom moves, filmed from a tripod by a sensor with noise."""
    pytest.importorskip("skimage", reason="they are a portrait that scikit-image ships: extra 'demo'")
    from examples.make_demo_clip import cut_out

    artifact = load_artifact(default_artifact())
    options = EngineOptions(threads=2, device="cpu")

    def model() -> Model:
        return Model(
            artifact=artifact,
            keypoint_engine=open_graph(artifact, "keypoints", options=options),
            segment_engine=open_graph(artifact, "segment", options=options),
        )

    person = cut_out()
    portrait = cv2.resize(person.colour, (192, 192), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(person.alpha, (192, 192), interpolation=cv2.INTER_AREA)[..., None]
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.uniform(60, 160, (9, 16, 3)), (640, 360), interpolation=cv2.INTER_CUBIC)
    whole, still = (Stages(skip_still=on, model=model()) for on in (False, True))
    differences, shares = [], []
    for index in range(5):
        image = wall.copy()
        for x in (40, 300 + 12 * index):
            place = image[168:, x : x + 192]
            place[...] = portrait + (1 - alpha) * place
        image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        expected, found = (in_order(stages(frame(index, image=image))) for stages in (whole, still))
        assert len(found[0]) == len(expected[0]) == 2
        sure = expected[0][..., 2] > 0.3
        differences.append(np.abs(found[0] - expected[0])[sure][:, :2].max())
        inside = (found[1] > 0.5) & (expected[1] > 0.5)
        shares.append(inside.sum() / ((found[1] > 0.5) | (expected[1] > 0.5)).sum())
    with caplog.at_level("INFO", logger="pipeline"):
        still.close()
    (looked_at,) = re.findall(r"looked at (\d+) % of the px", caplog.text)
    assert int(looked_at) < 85
    assert 0 < max(differences) < 8  # px of 640
    assert min(shares) > 0.85
