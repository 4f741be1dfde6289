"""Composed scenes: who is visible where, which joints are hidden, and the same laws over many random scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.drawn_people import (
    HEIGHT,
    WIDTH,
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    tiny_settings,
    write_backgrounds,
    write_coco,
)
from training.compose import (
    MAX_CUTOUT_HEIGHT_PX,
    CutoutLibrary,
    _listed_scene,
    compose_scene,
    occluder_shape,
)
from training.dataset import LABEL_COVERED, DataError, Scene, box_iou, open_source


@pytest.fixture(scope="module")
def library(data: Path) -> CutoutLibrary:
    chosen = tiny_settings(data, data)
    return CutoutLibrary({s: open_source(data, s) for s in chosen.sources}, chosen)


def square_people() -> tuple[np.ndarray, np.ndarray]:
    """Three people as squares of 20 px, each painted over the one before; joints on a diagonal grid inside each."""
    labels = np.zeros((60, 80), np.uint8)
    keypoints = np.zeros((3, 17, 3), np.float32)
    for index, left in enumerate((0, 10, 50)):
        labels[20:40, left : left + 20] = index + 1
        keypoints[index, :, 0] = left + np.linspace(1, 18, 17)
        keypoints[index, :, 1] = 30
        keypoints[index, :, 2] = 2
    return labels, keypoints


def test_joints_are_hidden_exactly_where_somebody_later_was_painted() -> None:
    labels, keypoints = square_people()
    labels[20:40, 60:63] = LABEL_COVERED  # a pole in front of the third
    scene = _listed_scene(np.zeros((60, 80, 3), np.uint8), labels, keypoints.copy(), np.full(3, 400))
    assert (scene.keypoints[0, :, 2] == np.where(keypoints[0, :, 0] >= 9.5, 1, 2)).all()
    assert (scene.keypoints[1, :, 2] == 2).all()
    behind_pole = (keypoints[2, :, 0] >= 59.5) & (keypoints[2, :, 0] < 62.5)
    assert behind_pole.any()
    assert (scene.keypoints[2, :, 2] == np.where(behind_pole, 1, 2)).all()
    np.testing.assert_array_equal(scene.labels, labels)
    np.testing.assert_array_equal(scene.keypoints[..., :2], keypoints[..., :2])
    assert scene.complete and scene.has_mask.tolist() == [1, 1, 1]
    assert scene.unlabelled is None  # everybody is listed; a pole is background


def test_max_iou_is_that_of_the_visible_boxes() -> None:
    labels, keypoints = square_people()
    scene = _listed_scene(np.zeros((60, 80, 3), np.uint8), labels, keypoints, np.full(3, 400))
    # of the first 10 x 20 px are left, the second has 20 x 20: they touch and do not overlap
    np.testing.assert_allclose(scene.max_iou, [0, 0, 0])
    labels[30:40, 0:30] = 1  # now the first is an L around the second, box 30 x 20, the second 20 x 10
    labels[20:30, 0:10] = 1
    scene = _listed_scene(np.zeros((60, 80, 3), np.uint8), labels, keypoints, np.full(3, 400))
    np.testing.assert_allclose(scene.max_iou, [200 / 600, 200 / 600, 0], rtol=1e-6)


def test_who_is_hardly_visible_is_covered_and_not_listed() -> None:
    labels, keypoints = square_people()
    labels[labels == 1] = 2
    labels[20:24, 0:10] = 1  # 40 px are left of the first: below the least number
    scene = _listed_scene(np.zeros((60, 80, 3), np.uint8), labels, keypoints.copy(), np.full(3, 400))
    assert len(scene.keypoints) == 2
    assert sorted(np.unique(scene.labels).tolist()) == [0, 1, 2, LABEL_COVERED]
    assert (scene.labels[20:24, 0:10] == LABEL_COVERED).all()
    np.testing.assert_array_equal(scene.keypoints[:, :, :2], keypoints[1:, :, :2])
    assert scene.unlabelled is not None
    assert np.argwhere(scene.unlabelled).tolist() == [[y, x] for y in range(20, 24) for x in range(10)]
    few_joints = keypoints.copy()
    few_joints[2, 2:] = 0
    labels, _ = square_people()
    scene = _listed_scene(np.zeros((60, 80, 3), np.uint8), labels, few_joints, np.full(3, 400))
    assert len(scene.keypoints) == 2 and scene.unlabelled is not None
    np.testing.assert_array_equal(scene.unlabelled, labels == 3)


def test_box_iou_by_hand() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 20]])
    iou = box_iou(boxes)
    np.testing.assert_allclose(np.diag(iou), 1)
    np.testing.assert_allclose(iou[0], [1, 50 / 150, 0, 0.5])
    np.testing.assert_allclose(iou, iou.T)
    assert box_iou(np.zeros((0, 4))).shape == (0, 0)


def check_scene(scene: Scene, height: int, width: int) -> None:
    n = len(scene.keypoints)
    assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == (height, width) and scene.labels.dtype == np.uint8
    assert n <= 6 and scene.keypoints.shape == (n, 17, 3) and scene.keypoints.dtype == np.float32
    assert scene.has_mask.tolist() == [1] * n and scene.max_iou.shape == (n,)
    assert set(np.unique(scene.labels)) - {0, LABEL_COVERED} == set(range(1, n + 1))
    assert ((scene.max_iou >= 0) & (scene.max_iou <= 1)).all()
    if scene.unlabelled is not None:
        assert scene.unlabelled.any() and (scene.labels[scene.unlabelled > 0] == LABEL_COVERED).all()
    for person, pose in enumerate(scene.keypoints, 1):
        assert set(np.unique(pose[:, 2])) <= {0.0, 1.0, 2.0}
        assert (pose[:, 2] > 0).sum() >= 3
        assert not pose[pose[:, 2] == 0].any()
        here = pose[pose[:, 2] > 0]
        assert (here[:, :2] > -0.5).all() and (here[:, :2] < (width - 0.5, height - 0.5)).all()
        columns, rows = (
            np.clip(np.round(here[:, axis]).astype(int), 0, limit - 1) for axis, limit in enumerate((width, height))
        )
        on_top = scene.labels[rows, columns]
        # The cut-outs have only visible joints, so hidden means covered: by somebody painted later or by a thing.
        assert (on_top[here[:, 2] == 1] > person).all()
        # A visible joint lies under nobody who was painted later. (COVERED may also be a barely visible person behind.)
        assert ((on_top[here[:, 2] == 2] <= person) | (on_top[here[:, 2] == 2] == LABEL_COVERED)).all()


@given(st.integers(0, 100_000))
@settings(max_examples=60)
def test_every_composed_scene_keeps_the_laws(library: CutoutLibrary, seed: int) -> None:
    check_scene(compose_scene(np.random.default_rng(seed), library, 96, 128), 96, 128)


def test_scenes_are_as_varied_as_the_module_says(library: CutoutLibrary) -> None:
    scenes = [compose_scene(np.random.default_rng(seed), library, 96, 128) for seed in range(150)]
    people = np.bincount([len(s.keypoints) for s in scenes], minlength=7)
    assert people.argmax() in {1, 2} and people[4:].sum() >= 5
    assert np.mean([(s.max_iou > 0.3).any() for s in scenes]) > 0.2  # people in front of each other are common
    assert np.mean([(s.labels == LABEL_COVERED).any() for s in scenes]) > 0.15
    hidden = np.concatenate([s.keypoints[s.keypoints[..., 2] > 0][:, 2] == 1 for s in scenes])
    assert 0.02 < hidden.mean() < 0.5


def test_a_scene_is_a_function_of_its_seed(library: CutoutLibrary) -> None:
    one, again, other = (compose_scene(np.random.default_rng(seed), library, 64, 96) for seed in (3, 3, 4))
    for name in ("image", "labels", "keypoints", "max_iou"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.image, other.image)


def test_labels_are_the_px_of_the_person(tmp_path: Path) -> None:
    """One white person before black backgrounds: what is labelled is what is bright."""
    pose = drawn_pose(16, 2, 90)
    mask = drawn_mask(pose)
    write_coco(tmp_path / "people", {1: np.full((HEIGHT, WIDTH, 3), 255, np.uint8)}, [annotation(1, 1, pose, mask)])
    chosen = tiny_settings(write_backgrounds(tmp_path / "backgrounds").parent, tmp_path)
    lib = CutoutLibrary({s: open_source(tmp_path, s) for s in chosen.sources}, chosen)
    lib.backgrounds = [np.zeros((200, 200, 3), np.uint8)]
    for seed in range(40):
        scene = compose_scene(np.random.default_rng(seed), lib, 96, 128)
        bright, labelled = scene.image.mean(-1) > 90, (scene.labels > 0) & (scene.labels != LABEL_COVERED)
        assert (bright != labelled).mean() < 0.06  # the soft fringe


def test_cutouts_keep_joints_on_the_person_and_shrink_to_the_limit(tmp_path: Path) -> None:
    height, width = 700, 620
    pose = drawn_pose(10, 20, 600)
    mask = drawn_mask(pose, height, width)
    write_coco(tmp_path / "people", {1: background(1, height, width)}, [annotation(1, 1, pose, mask)])
    chosen = tiny_settings(write_backgrounds(tmp_path / "backgrounds").parent, tmp_path)
    lib = CutoutLibrary({s: open_source(tmp_path, s) for s in chosen.sources}, chosen)
    (cutout,) = lib.groups[0]
    assert cutout.alpha.shape[0] == MAX_CUTOUT_HEIGHT_PX and cutout.image.shape[:2] == cutout.alpha.shape
    assert not cutout.cut_below
    for x, y, v in cutout.keypoints:
        assert v == 2 and cutout.alpha[round(float(y)), round(float(x))] > 127


def test_unusable_people_are_not_cut_out(tmp_path: Path) -> None:
    """Too small, in two pieces, a crowd, without joints: none of them can be pasted elsewhere."""
    pose = drawn_pose(16, 2, 90)
    mask = drawn_mask(pose)
    split = mask.copy()
    split[40:60] = 0
    small = np.zeros_like(mask)
    small[:20, :20] = 1
    entries = [
        annotation(1, 1, pose, mask, iscrowd=1),
        annotation(2, 1, pose, split),
        annotation(3, 1, pose, small),
        annotation(4, 1, None, mask),
    ]
    write_coco(tmp_path / "people", {1: background(1)}, entries)
    chosen = tiny_settings(write_backgrounds(tmp_path / "backgrounds").parent, tmp_path)
    sources = {s: open_source(tmp_path, s) for s in chosen.sources}
    with pytest.raises(DataError, match="composition needs a source with masks and keypoints and cutout_weight > 0"):
        CutoutLibrary(sources, chosen)


def test_composition_says_what_it_lacks(data: Path) -> None:
    chosen = tiny_settings(data, data)
    sources = {s: open_source(data, s) for s in chosen.sources}
    with pytest.raises(DataError, match="cutout_weight > 0; there is none"):
        CutoutLibrary({}, chosen)
    for folders in ((), ("people",), ("nowhere",)):
        with pytest.raises(DataError, match="set `backgrounds` to at least one folder"):
            CutoutLibrary(sources, replace(chosen, backgrounds=folders))


@given(st.integers(0, 10_000), st.integers(20, 90), st.integers(20, 90))
def test_occluders_stay_near_the_person(seed: int, height: int, width: int) -> None:
    box = np.array([0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height])
    shape = occluder_shape(np.random.default_rng(seed), height, width, box)
    assert shape.shape == (height, width) and set(np.unique(shape)) <= {0, 255}


def test_backgrounds_are_crops_of_the_right_size(library: CutoutLibrary) -> None:
    for seed in range(20):
        for height, width in ((32, 64), (320, 96), (1, 40)):
            crop = library.background(np.random.default_rng(seed), height, width)
            assert crop.shape == (height, width, 3) and crop.dtype == np.uint8


def test_close_people_hide_each_other_more(library: CutoutLibrary) -> None:
    def crowding(close_share: float) -> float:
        scenes = [
            compose_scene(np.random.default_rng(seed), library, 96, 128, close_share=close_share) for seed in range(120)
        ]
        return float(np.mean([scene.max_iou.max() for scene in scenes if len(scene.keypoints) > 1]))

    assert crowding(1.0) > 1.25 * crowding(0.0)
