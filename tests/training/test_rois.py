"""ROIs of a batch: windows, joints and targets against a slow twin, who is chosen, and whose pose is learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernels.coordinates import compose, invert, transform_points
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, prepare_templates, whole_frame_roi
from kernels.torch_neighbours import neighbour_features
from tests.training.drawn_people import drawn_mask, drawn_pose, rle
from training.dataset import LABEL_COVERED, PhotoMasks, Scene
from training.model import FEATURE_FROM_INPUT
from training.model_settings import AlignSettings
from training.rois import MISSED_SHARE, build_rois, oks, strangers_mask, target_mask
from training.windows import roi_from_boxes, roi_from_people

TEMPLATES = prepare_templates(PAPER_TEMPLATES)
SIZE = 48


def scene(*lefts: int, side: int = 60, masks: bool = True, height: int = 96, width: int = 160) -> Scene:
    """Standing people of ``side`` px, the later ones in front."""
    labels = np.zeros((height, width), np.uint8)
    poses = [drawn_pose(left, 20, side) for left in lefts]
    for index, pose in enumerate(poses):
        labels[drawn_mask(pose, height, width) > 0] = (index + 1) if masks else 0
    return Scene(
        image=np.zeros((height, width, 3), np.uint8),
        labels=labels,
        keypoints=np.stack(poses) if poses else np.zeros((0, 17, 3), np.float32),
        has_mask=np.full(len(poses), masks, np.uint8),
        complete=True,
        max_iou=np.zeros(len(poses), np.float32),
    )


def plain(scenes: list[Scene], **changes):
    chosen = {"size": SIZE, "max_rois": 100, "predicted_share": 0.0, "augmented": False, **changes}
    return build_rois(np.random.default_rng(0), scenes, changes.pop("predicted", None), TEMPLATES, **chosen)


def slow_target(mask: np.ndarray, roi_from_input: np.ndarray, size: int) -> np.ndarray:
    """(size, size): bilinear value of the mask under each ROI px, written as the definition reads."""
    input_from_roi = invert(roi_from_input)
    value = np.zeros((size, size))
    for v in range(size):
        for u in range(size):
            x, y = transform_points(input_from_roi, np.array([[float(u), float(v)]]))[0]
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                    if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]:
                        value[v, u] += (1 - abs(x - column)) * (1 - abs(y - row)) * mask[row, column]
    return value


def test_windows_joints_and_targets_equal_the_slow_twin() -> None:
    scenes = [scene(10, 40), scene(60)]
    rois = plain(scenes)
    assert rois is not None
    assert rois.roi_image.tolist() == [0, 0, 1]
    people = [(scenes[0], 0), (scenes[0], 1), (scenes[1], 0)]
    fallback = whole_frame_roi(96, 160, SIZE)
    for index, (where, person) in enumerate(people):
        pose = where.keypoints[person]
        fitted = fit_poses(pose[None], TEMPLATES, fallback, roi_size=SIZE)
        assert fitted.template_index[0] == 0
        roi_from_input = fitted.roi_from_frame[0].astype(np.float64)
        expected = compose(np.array(FEATURE_FROM_INPUT), invert(roi_from_input))
        np.testing.assert_allclose(rois.feature_from_roi[index], expected, rtol=1e-5, atol=1e-4)
        moved = transform_points(roi_from_input, pose[:, :2])
        np.testing.assert_allclose(rois.roi_keypoints[index, :, :2], moved, atol=1e-3)
        assert (rois.roi_keypoints[index, :, 2] == 2).all()
        slow = slow_target((where.labels == person + 1).astype(float), roi_from_input, SIZE)
        target = rois.targets[index].numpy()
        assert set(np.unique(target)) == {0.0, 1.0}
        # OpenCV places samples on a grid of 1/32 px: only values next to one half may fall to the other side.
        clear = np.abs(slow - 0.5) > 0.1
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(target[clear], slow[clear] > 0.5)


def test_augmented_windows_still_agree_with_their_targets() -> None:
    """Whatever was drawn, feature_from_roi tells where the target was cut from: targets come back onto the person."""
    where = scene(50)
    visible = where.labels == 1
    for seed in range(20):
        rois = build_rois(
            np.random.default_rng(seed), [where], None, TEMPLATES, size=SIZE, max_rois=4, predicted_share=0.0
        )
        assert rois is not None
        input_from_roi = compose(invert(np.array(FEATURE_FROM_INPUT)), rois.feature_from_roi[0].numpy())
        slow = slow_target(visible.astype(float), invert(input_from_roi), SIZE)
        clear = np.abs(slow - 0.5) > 0.15
        np.testing.assert_array_equal(rois.targets[0].numpy()[clear], slow[clear] > 0.5)


def test_absent_joints_stay_zero_in_the_window() -> None:
    where = scene(50)
    where.keypoints[0, [0, 9, 16]] = 0
    rois = plain([where])
    assert rois is not None
    assert not rois.roi_keypoints[0, [0, 9, 16]].any()
    assert (rois.roi_keypoints[0, 1:9, :2] != 0).all()


def test_a_target_is_the_visible_part_only() -> None:
    front, behind = plain([scene(30, 36)]), plain([scene(36, 30)])
    assert front is not None and behind is not None
    hidden_here, whole_here = front.targets[0].sum(), behind.targets[1].sum()  # the same person, behind and in front
    assert 0.2 * whole_here < hidden_here < 0.95 * whole_here


def test_nobody_with_a_mask_gives_none() -> None:
    assert plain([scene(), scene(10, masks=False)]) is None


def test_no_more_people_than_asked_in_the_order_of_the_batch() -> None:
    scenes = [scene(5, 40, 80), scene(10), scene(), scene(20, 60)]
    rois = plain(scenes, max_rois=4)
    assert rois is not None
    assert len(rois.targets) == 4
    assert rois.roi_image.tolist() == sorted(rois.roi_image.tolist())
    chosen = set()
    for seed in range(30):
        some = build_rois(
            np.random.default_rng(seed),
            scenes,
            None,
            TEMPLATES,
            size=16,
            max_rois=2,
            predicted_share=0,
            augmented=False,
        )
        assert some is not None
        assert len(some.targets) == 2
        places = some.feature_from_roi[:, :, 2].round(decimals=2).tolist()
        chosen |= {(image, *place) for image, place in zip(some.roi_image.tolist(), places, strict=True)}
    assert len(chosen) == 6  # everybody has a chance


def test_a_person_the_network_found_is_learned_from_the_found_pose() -> None:
    where = scene(20, 90)
    found = where.keypoints[:1].copy()
    found[0, :, :2] += 1.5
    found[0, 9:11] = 0
    batch = [np.concatenate((found, found + np.float32([400, 0, 0]))).astype(np.float32)]
    rois = build_rois(np.random.default_rng(0), [where], batch, TEMPLATES, size=SIZE, max_rois=9, predicted_share=1.0)
    assert rois is not None
    assert not rois.roi_keypoints[0, 9:11].any()
    assert (rois.roi_keypoints[0, :9, 2] == 2).all()
    unused = build_rois(
        np.random.default_rng(0), [where], batch, TEMPLATES, size=SIZE, max_rois=9, predicted_share=1.0, augmented=False
    )
    assert unused is not None
    assert (unused.roi_keypoints[..., 2] == 2).all()  # validation windows: true poses only


def test_an_empty_list_of_found_poses_is_fine() -> None:
    nothing = [np.zeros((0, 17, 3), np.float32)]
    rois = build_rois(
        np.random.default_rng(0), [scene(20)], nothing, TEMPLATES, size=16, max_rois=9, predicted_share=1.0
    )
    assert rois is not None and len(rois.targets) == 1


def test_oks_by_hand() -> None:
    truth = np.zeros((2, 17, 3), np.float32)
    truth[0, 0], truth[0, 5] = (10, 10, 2), (29, 19, 1)  # extent 19 x 9, area 20 x 10 = 200
    found = truth[:1].copy()
    found[0, 0, 0] += 1.0
    found[0, 16] = (99, 99, 2)  # not labelled: does not count
    similarity = oks(truth, np.concatenate((truth[:1], found)))
    assert similarity.shape == (2, 2)
    expected = (np.exp(-1.0 / (2 * 200 * (2 * 0.026) ** 2)) + 1) / 2
    np.testing.assert_allclose(similarity[0], [1.0, expected], rtol=1e-6)
    assert not similarity[1].any()  # nobody labelled


def test_a_pose_without_template_sees_the_whole_picture() -> None:
    pose = np.zeros((1, 17, 3), np.float32)
    pose[0, 0] = (5, 5, 2)
    whole = whole_frame_roi(96, 160, 32)
    fitted = roi_from_people(pose, None, whole, TEMPLATES, AlignSettings(), 32)
    np.testing.assert_allclose(fitted[0], whole, rtol=1e-6)


def test_types_are_those_of_the_segment_graph() -> None:
    import torch

    rois = plain([scene(20)])
    assert rois is not None
    moved = rois.to(torch.device("cpu"))
    assert moved.roi_image.dtype == torch.int32
    assert all(getattr(moved, name).dtype == torch.float32 for name in ("feature_from_roi", "roi_keypoints", "targets"))


def test_boxes_are_the_annotated_ones_or_those_of_the_visible_px() -> None:
    where = scene(50)
    ys, xs = np.nonzero(where.labels == 1)
    roi = AlignSettings(mode="roi")
    around = roi_from_boxes(np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]), np.eye(2, 3), SIZE)
    annotated = np.array([[40.0, 10, 120, 90]])
    for given, expected in ((None, around), (annotated, roi_from_boxes(annotated, np.eye(2, 3), SIZE))):
        rois = plain([replace(where, boxes=given)], align=roi)
        assert rois is not None
        matrix = compose(np.array(FEATURE_FROM_INPUT), invert(expected))
        np.testing.assert_allclose(rois.feature_from_roi.numpy(), matrix, rtol=1e-5, atol=1e-5)


def test_the_networks_grid_and_window_of_last_resort_are_the_given_ones() -> None:
    where = scene(50)
    where.keypoints[0, 2:] = 0  # two joints: no template
    grid, whole = np.array([[0.25, 0, 0], [0, 0.25, 0]]), np.array([[0.3, 0, 0], [0, 0.3, 0]])
    rois = plain([where], fallback=whole, feature_from_input=grid)
    assert rois is not None
    np.testing.assert_allclose(rois.feature_from_roi[0], [[0.25 / 0.3, 0, 0], [0, 0.25 / 0.3, 0]], atol=1e-6)


def test_without_jitter_poses_are_true_and_every_window_moves() -> None:
    where = scene(50)
    for seed in range(8):
        rois = build_rois(
            np.random.default_rng(seed),
            [where],
            None,
            TEMPLATES,
            size=SIZE,
            max_rois=4,
            predicted_share=0.0,
            augmented_share=1.0,
            jitter=False,
        )
        still = plain([where])
        assert rois is not None and still is not None
        assert (rois.feature_from_roi - still.feature_from_roi).abs().max() > 1e-3
        roi_from_input = invert(compose(invert(np.array(FEATURE_FROM_INPUT)), rois.feature_from_roi[0].numpy()))
        moved = transform_points(roi_from_input, where.keypoints[0, :, :2])
        np.testing.assert_allclose(rois.roi_keypoints[0, :, :2], moved, atol=1e-3)


def test_a_target_comes_out_of_the_photographs_own_mask_where_it_is_kept() -> None:
    """A mask in front hides nothing of the paper's targets, and the photograph's px are sampled once."""
    where = scene(30, 36)
    whole = drawn_mask(where.keypoints[0], 96, 160)
    photo = PhotoMasks(
        segmentations=tuple(rle(drawn_mask(pose, 96, 160)) for pose in where.keypoints),
        height=96,
        width=160,
        canvas_from_photo=np.eye(2, 3),
    )
    kept = replace(where, photo_masks=photo)
    whole_picture = whole_frame_roi(96, 160, SIZE)
    matrix = roi_from_people(where.keypoints[:1], None, whole_picture, TEMPLATES, AlignSettings(), SIZE)[0]
    slow = slow_target(whole.astype(float), matrix, SIZE)
    clear = np.abs(slow - 0.5) > 0.1
    np.testing.assert_array_equal(target_mask(kept, 0, matrix, SIZE)[clear], slow[clear] > 0.5)
    assert target_mask(where, 0, matrix, SIZE).sum() < 0.95 * target_mask(kept, 0, matrix, SIZE).sum()
    twice = replace(photo, canvas_from_photo=np.array([[2.0, 0, 5], [0, 2, -3]]))
    larger = compose(matrix, invert(twice.canvas_from_photo))
    np.testing.assert_array_equal(
        target_mask(replace(where, photo_masks=twice), 0, larger, SIZE), target_mask(kept, 0, matrix, SIZE)
    )


def test_strangers_are_the_other_listed_people_only() -> None:
    where = scene(20, 40, 60)
    where.labels[:8] = LABEL_COVERED
    whole = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    for person in range(3):
        others = (where.labels > 0) & (where.labels != person + 1) & (where.labels < LABEL_COVERED)
        np.testing.assert_array_equal(strangers_mask(where, person, whole, 160)[:96], others)
    rois = plain([where])
    assert rois is not None
    assert not (rois.strangers * rois.targets).any()
    assert rois.strangers.sum(dim=(1, 2)).min() > 20


def places(rois, part) -> np.ndarray:
    """(M, 17, 2) joints of ``part`` of a batch in px of the picture."""
    matrices, _, keypoints = part
    input_from_feature = invert(np.array(FEATURE_FROM_INPUT))
    matrix = compose(input_from_feature, matrices.numpy().astype(np.float64))
    return transform_points(matrix, keypoints[..., :2].numpy().astype(np.float64))


def test_everybody_is_there_for_each_other() -> None:
    """Those without a mask, too, and who is not among the people chosen to be learned."""
    scenes = [replace(scene(20, 50, 90), has_mask=np.array([1, 0, 1], np.uint8)), scene(), scene(60)]
    rois = plain(scenes, neighbours=True, max_rois=1)
    assert rois is not None and rois.present is not None
    assert len(rois.targets) == 1
    assert rois.present[1].tolist() == [0, 0, 0, 2]
    expected = np.concatenate([where.keypoints[..., :2] for where in scenes])
    np.testing.assert_allclose(places(rois, rois.present), expected, atol=0.01)
    assert plain(scenes).present is None


def test_nobody_is_a_neighbour_of_themselves() -> None:
    """However a window was moved and a pose jittered: who stands alone has nobody beside them."""
    for seed in range(8):
        rois = build_rois(
            np.random.default_rng(seed),
            [scene(20), scene(90)],
            None,
            TEMPLATES,
            size=SIZE,
            max_rois=9,
            predicted_share=0.0,
            neighbours=True,
        )
        assert rois is not None
        maps = neighbour_features(rois.feature_from_roi, rois.roi_image, rois.roi_keypoints, SIZE, rois.present)
        assert not maps.any()


def test_found_people_are_there_phantoms_included_and_doubtful_ones_not() -> None:
    """One person found well, one badly (their own bad pose is no neighbour), and a phantom far away."""
    where = scene(10, 100)
    good, bad, phantom = where.keypoints[0] + (1.5, 0, 0), where.keypoints[1] + (5.0, 0, 0), drawn_pose(55, 10, 40)
    found = np.stack([good, bad, phantom]).astype(np.float32)
    similarity = oks(where.keypoints, found)
    assert similarity[0, 0] > 0.4 and 0.1 < similarity[1, 1] < 0.4 and similarity[:, 2].max() < 0.1
    counts = []
    for seed in range(60):
        rois = build_rois(
            np.random.default_rng(seed),
            [where],
            [found],
            TEMPLATES,
            size=SIZE,
            max_rois=9,
            predicted_share=1.0,
            neighbours=True,
        )
        assert rois is not None and rois.present is not None
        there = places(rois, rois.present)
        for pose in there:
            assert min(np.abs(pose - other[:, :2]).max() for other in (good, phantom)) < 0.01
        counts.append(len(there))
    assert max(counts) == 2 and 0 < np.mean(counts) / 2 < 1
    assert abs(1 - np.mean(counts) / 2 - MISSED_SHARE) < 0.08
