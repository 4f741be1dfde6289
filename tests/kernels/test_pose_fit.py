"""The pose fit: hand-worked cases, the twin, and what must hold for any pose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.coordinates import compose, invert, transform_points
from kernels.pose_fit import (
    PAPER_TEMPLATES,
    fit_poses,
    fit_poses_reference,
    prepare_templates,
    whole_frame_roi,
)
from kernels.skeleton import FLIPPED_JOINTS
from tests.strategies import crowds, similarities
from tests.tolerances import CLOSED_FORM_AGAINST_SVD

TEMPLATES = prepare_templates(PAPER_TEMPLATES)
FALLBACK = whole_frame_roi(480, 640, 64)
KNEES_AND_ANKLES = [13, 14, 15, 16]
NOSE_AND_EYES = [0, 1, 2]


def posed(template: int, frame_from_unit: np.ndarray) -> np.ndarray:
    """(1, 17, 3) a person who stands exactly like a template."""
    pose = TEMPLATES[template].astype(np.float64)
    pose[:, :2] = transform_points(frame_from_unit, pose[:, :2])
    pose[pose[:, 2] == 0] = 0
    return pose[None].astype(np.float32)


def person(template: int = 0, scale: float = 200.0, x: float = 100.0, y: float = 50.0) -> np.ndarray:
    return posed(template, np.array([[scale, 0, x], [0, scale, y]]))


def crowd(people: int, seed: int = 0) -> np.ndarray:
    """(N, 17, 3) noisy, rotated, incomplete people, with a few NaN."""
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((people, 17, 3), np.float32)
    for n in range(people):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(20, 900)
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[a, b, rng.uniform(0, 600)], [-b, a, rng.uniform(0, 400)]])
        keypoints[n] = posed(int(rng.integers(6)), matrix)[0]
        keypoints[n, :, :2] += rng.normal(0, 0.03 * scale, (17, 2))
    keypoints[rng.random((people, 17)) < 0.15, 2] = 0
    keypoints[rng.random((people, 17)) < 0.03, 0] = np.nan
    return keypoints


def test_a_person_like_a_template_fills_the_roi_as_the_template_fills_the_square() -> None:
    fit = fit_poses(person(scale=200, x=100, y=50), TEMPLATES, FALLBACK)
    # unit = (frame - (100, 50)) / 200 and ROI = 64 unit
    np.testing.assert_allclose(fit.roi_from_frame[0], [[0.32, 0, -32], [0, 0.32, -16]], atol=1e-4)
    assert fit.template_index.tolist() == [0]
    assert fit.fit_scores[0] == pytest.approx(1.0, abs=1e-6)


def test_paper_templates_have_the_published_joints_and_symmetry() -> None:
    assert PAPER_TEMPLATES.shape == (3, 17, 3)
    assert (TEMPLATES[:, :, 2] > 0).sum(axis=1).tolist() == [17, 14, 13, 17, 14, 13]
    assert not (TEMPLATES[1, NOSE_AND_EYES, 2]).any()
    assert not (TEMPLATES[2, KNEES_AND_ANKLES, 2]).any()
    mirrored = PAPER_TEMPLATES[:, FLIPPED_JOINTS].copy()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    np.testing.assert_allclose(mirrored, PAPER_TEMPLATES, atol=1e-6)


def test_prepared_templates_scale_about_the_middle_and_swap_labels_for_the_mirror_image() -> None:
    larger = prepare_templates(PAPER_TEMPLATES, factor=1.2)
    np.testing.assert_allclose(larger[0, :, :2] - 0.5, (TEMPLATES[0, :, :2] - 0.5) * 1.2, atol=1e-6)
    np.testing.assert_array_equal(TEMPLATES[3:], TEMPLATES[:3, FLIPPED_JOINTS])
    assert not TEMPLATES[TEMPLATES[..., 2] == 0].any()


def test_the_set_of_joints_chooses_the_template() -> None:
    whole, half, behind = person(0), person(0), person(0)
    half[:, KNEES_AND_ANKLES] = 0
    behind[:, NOSE_AND_EYES] = 0
    fit = fit_poses(np.concatenate((whole, half, behind)), TEMPLATES, FALLBACK)
    assert (fit.template_index % 3).tolist() == [0, 2, 1]


def test_a_mirrored_person_takes_the_mirrored_template_and_stays_upright() -> None:
    mirrored = person(0)
    mirrored[:, :, 0] = 400 - mirrored[:, :, 0]
    fit = fit_poses(mirrored, TEMPLATES, FALLBACK)
    assert fit.template_index.tolist() == [3]
    assert np.linalg.det(fit.roi_from_frame[0, :, :2]) > 0
    assert fit.roi_from_frame[0, 0, 0] == pytest.approx(0.32, abs=1e-4)


@pytest.mark.parametrize("people", [0, 1, 7, 100])
@pytest.mark.parametrize(
    "options",
    [{}, {"hard_rule": False}, {"min_scale_rule": False}, {"roi_size": 48}, {"printed_score": True}],
    ids=["default", "soft", "any scale", "48 px", "printed score"],
)
def test_twin(people: int, options: dict) -> None:
    keypoints = crowd(people, seed=people)
    fast = fit_poses(keypoints, TEMPLATES, FALLBACK, **options)
    slow = fit_poses_reference(keypoints, TEMPLATES, FALLBACK, **options)
    np.testing.assert_array_equal(fast.template_index, slow.template_index)
    np.testing.assert_allclose(fast.fit_scores, slow.fit_scores, **CLOSED_FORM_AGAINST_SVD)
    np.testing.assert_allclose(fast.roi_from_frame, slow.roi_from_frame, **CLOSED_FORM_AGAINST_SVD)
    assert fast.roi_from_frame.shape == (people, 2, 3)
    assert (fast.roi_from_frame.dtype, fast.template_index.dtype) == (np.float32, np.int32)


def test_strided_float64_input_gives_the_same() -> None:
    keypoints = crowd(9)
    strided = np.repeat(keypoints.astype(np.float64), 2, axis=0)[::2, :, ::-1][:, :, ::-1]
    assert not strided.flags.c_contiguous
    fast, slow = fit_poses(strided, TEMPLATES[:, :, :], FALLBACK), fit_poses(keypoints, TEMPLATES, FALLBACK)
    np.testing.assert_array_equal(fast.roi_from_frame, slow.roi_from_frame)


@given(similarities(min_scale=30, max_scale=500), st.integers(0, 5))
def test_recovers_a_random_similarity(frame_from_unit: np.ndarray, template: int) -> None:
    fit = fit_poses(posed(template, frame_from_unit), TEMPLATES, FALLBACK)
    assert fit.template_index[0] == template
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = transform_points(compose(fit.roi_from_frame[0], frame_from_unit), corners)
    np.testing.assert_allclose(found, corners * 64, atol=0.02)  # joints are float32 px
    assert fit.fit_scores[0] == pytest.approx(1.0, abs=1e-5)


@given(similarities(min_scale=0.5, max_scale=2))
def test_moves_with_a_moved_pose(motion: np.ndarray) -> None:
    still = crowd(4, seed=3)
    moved = still.copy()
    moved[:, :, :2] = transform_points(motion, still[:, :, :2])
    moved[~np.isfinite(still)] = np.nan
    before = fit_poses(still, TEMPLATES, FALLBACK, min_scale_rule=False)
    after = fit_poses(moved, TEMPLATES, FALLBACK, min_scale_rule=False)
    np.testing.assert_array_equal(before.template_index, after.template_index)
    expected = compose(before.roi_from_frame, invert(motion))
    middle = transform_points(motion, [[320.0, 240.0]])
    np.testing.assert_allclose(
        transform_points(after.roi_from_frame, middle), transform_points(expected, middle), rtol=1e-3, atol=0.02
    )


@given(crowds(), st.randoms(use_true_random=False))
def test_permuting_people_permutes_fits(keypoints: np.ndarray, random) -> None:
    order = list(range(len(keypoints)))
    random.shuffle(order)
    straight, shuffled = fit_poses(keypoints, TEMPLATES, FALLBACK), fit_poses(keypoints[order], TEMPLATES, FALLBACK)
    np.testing.assert_array_equal(straight.roi_from_frame[order], shuffled.roi_from_frame)
    np.testing.assert_array_equal(straight.template_index[order], shuffled.template_index)


@given(crowds())
def test_every_fit_is_finite_and_can_be_inverted(keypoints: np.ndarray) -> None:
    fit = fit_poses(keypoints, TEMPLATES, FALLBACK)
    invert(fit.roi_from_frame)
    assert ((fit.fit_scores >= 0) & (fit.fit_scores <= 1 + 1e-6)).all()
    fallen = fit.template_index == -1
    assert not fit.fit_scores[fallen].any()
    np.testing.assert_array_equal(fit.roi_from_frame[fallen], np.broadcast_to(FALLBACK, (fallen.sum(), 2, 3)))


def only(joints: list[int]) -> np.ndarray:
    pose = person(0)
    absent = [j for j in range(17) if j not in joints]
    pose[:, absent] = 0
    return pose


def coinciding() -> np.ndarray:
    pose = person(0)
    pose[:, :, :2] = 77.0
    return pose


def far_away() -> np.ndarray:
    pose = person(0)
    pose[:, 1::2, :2] = 1e30
    return pose


@pytest.mark.parametrize(
    "pose",
    [
        only([]),
        only([5]),
        only([5, 6]),
        coinciding(),
        np.full((1, 17, 3), np.nan, np.float32),
        far_away(),
        person(scale=800),
    ],
    ids=["no joint", "one", "two", "all on one point", "NaN", "beyond all measure", "larger than the frame"],
)
def test_falls_back_to_the_whole_frame(pose: np.ndarray) -> None:
    for fit in (fit_poses(pose, TEMPLATES, FALLBACK), fit_poses_reference(pose, TEMPLATES, FALLBACK)):
        assert fit.template_index.tolist() == [-1]
        assert fit.fit_scores.tolist() == [0.0]
        np.testing.assert_array_equal(fit.roi_from_frame[0], FALLBACK)


def test_a_large_person_is_fitted_without_the_scale_rule() -> None:
    fit = fit_poses(person(scale=800), TEMPLATES, FALLBACK, min_scale_rule=False)
    assert fit.template_index.tolist() == [0]
    assert fit.roi_from_frame[0, 0, 0] == pytest.approx(64 / 800, rel=1e-5)


def test_the_printed_score_is_of_the_residual_alone() -> None:
    """Half a body fits the whole-body template without a residual: the release minds the joints it lacks, Eq. 5 not."""
    upper = person()
    upper[0, KNEES_AND_ANKLES] = 0
    released, printed = (fit_poses(upper, TEMPLATES, FALLBACK, printed_score=printed) for printed in (False, True))
    assert released.template_index.tolist() == [2] and printed.template_index.tolist() == [0]
    assert printed.fit_scores[0] == pytest.approx(1.0, abs=1e-5)
    moved = person(scale=200)
    moved[0, 9, 0] += 20  # a tenth of the square, most of which the fit cannot take back
    fit = fit_poses(moved, TEMPLATES[:1], FALLBACK, printed_score=True)
    residual = transform_points(fit.roi_from_frame[0] / 64, moved[0, :, :2]) - TEMPLATES[0, :, :2]
    assert fit.fit_scores[0] == pytest.approx(np.exp(-np.linalg.norm(residual)), abs=1e-5)


def test_three_joints_on_a_line_are_enough() -> None:
    pose = only([5, 6, 11])
    pose[0, 11, :2] = pose[0, [5, 6], :2].mean(axis=0)
    assert fit_poses(pose, TEMPLATES, FALLBACK).template_index[0] >= 0


def test_one_absent_joint_among_infinities_is_still_that_persons_pose() -> None:
    clean, spoiled = person(0), person(0)
    clean[0, 9] = 0
    spoiled[0, 9] = (np.inf, 10.0, 2.0)
    np.testing.assert_array_equal(
        fit_poses(spoiled, TEMPLATES, FALLBACK).roi_from_frame, fit_poses(clean, TEMPLATES, FALLBACK).roi_from_frame
    )


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1, 1), (3, 5), (7680, 100)])
def test_whole_frame_roi_puts_the_frames_edges_on_the_rois(height: int, width: int) -> None:
    matrix = whole_frame_roi(height, width, 64)
    corners = transform_points(matrix, [[-0.5, -0.5], [max(height, width) - 0.5] * 2])
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [63.5, 63.5]], atol=1e-3)


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"keypoints must be \(N, K, 3\), got \(17, 3\)"):
        fit_poses(person()[0], TEMPLATES, FALLBACK)
    with pytest.raises(ValueError, match=r"templates must be \(T, K=17, 3\) like the keypoints, got \(6, 16, 3\)"):
        fit_poses(person(), TEMPLATES[:, :16], FALLBACK)
    with pytest.raises(ValueError, match=r"fallback_roi_from_frame must be \(2, 3\), got \(3, 3\)"):
        fit_poses(person(), TEMPLATES, np.eye(3))
    with pytest.raises(ValueError, match=r"must be \(k, 17, 3\), got \(17, 3\)"):
        prepare_templates(PAPER_TEMPLATES[0])
    with pytest.raises(ValueError, match="frame 0 x 640"):
        whole_frame_roi(0, 640, 64)
