"""Windows in every way the paper compares, and that each setting of `align` and `templates` changes what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.coordinates import invert, transform_points
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, prepare_templates
from tests.training.drawn_people import drawn_pose
from training.model_settings import AlignSettings, TemplateSettings
from training.windows import boxes_around_joints, roi_from_boxes, roi_from_people

TEMPLATES = prepare_templates(PAPER_TEMPLATES)
FALLBACK = np.array([[0.125, 0, 0], [0, 0.125, 0]])
SIZE = 64


def windows(pose: np.ndarray, boxes: np.ndarray | None = None, **changes: Any) -> np.ndarray:
    return roi_from_people(pose[None], boxes, FALLBACK, TEMPLATES, AlignSettings(**changes), SIZE)[0]


def test_affine_is_the_fit_to_the_templates() -> None:
    pose = drawn_pose(100, 50, 200)
    expected = fit_poses(pose[None], TEMPLATES, FALLBACK, roi_size=SIZE).roi_from_frame[0]
    np.testing.assert_array_equal(windows(pose), expected)
    np.testing.assert_allclose(expected, [[0.32, 0, -32], [0, 0.32, -16]], atol=1e-4)


def test_a_box_has_its_edges_on_those_of_the_roi() -> None:
    matrix = roi_from_boxes(np.array([[10.0, 20, 30, 120]]), FALLBACK, SIZE)[0]
    np.testing.assert_allclose(
        transform_points(matrix, [[9.5, 19.5], [29.5, 119.5]]), [[-0.5, -0.5], [63.5, 63.5]], atol=1e-9
    )
    assert matrix[0, 1] == matrix[1, 0] == 0  # upright; the sides are stretched on their own
    assert (matrix[0, 0], matrix[1, 1]) == (64 / 20, 64 / 100)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 9, 8, 9), (8, 5, 5, 9), (np.nan, 0, 4, 4), (0, 0, np.inf, 4)])
def test_a_box_without_area_takes_the_whole_picture(box: tuple[float, ...]) -> None:
    matrices = roi_from_boxes(np.array([box, (0, 0, 10, 10)]), FALLBACK, SIZE)
    np.testing.assert_array_equal(matrices[0], FALLBACK)
    assert matrices[1, 0, 0] == 6.4
    assert roi_from_boxes(np.zeros((0, 4)), FALLBACK, SIZE).shape == (0, 2, 3)


def test_boxes_around_joints_grow_about_their_middle() -> None:
    pose = np.zeros((17, 3), np.float32)
    pose[3], pose[8], pose[9] = (10, 20, 2), (30, 60, 1), (500, 500, 0)
    np.testing.assert_array_equal(boxes_around_joints(pose[None], 0.0), [[10.5, 20.5, 30.5, 60.5]])
    np.testing.assert_array_equal(boxes_around_joints(pose[None], 0.5), [[5.5, 10.5, 35.5, 70.5]])
    np.testing.assert_array_equal(boxes_around_joints(np.zeros((1, 17, 3), np.float32), 0.5), np.zeros((1, 4)))


def test_roi_mode_uses_the_box_it_is_told_to() -> None:
    pose, boxes = drawn_pose(100, 50, 200), np.array([[90.0, 60, 290, 260]])
    np.testing.assert_array_equal(windows(pose, boxes, mode="roi"), roi_from_boxes(boxes, FALLBACK, SIZE)[0])
    around = boxes_around_joints(pose[None], 0.4)
    joints = windows(pose, boxes, mode="roi", box="joints", expand=0.4)
    np.testing.assert_array_equal(joints, roi_from_boxes(around, FALLBACK, SIZE)[0])
    np.testing.assert_array_equal(joints, windows(pose, None, mode="roi", box="joints", expand=0.4))
    scale = [windows(pose, None, mode="roi", box="joints", expand=alpha)[0, 0] for alpha in (0.0, 0.3, 1.0)]
    np.testing.assert_allclose(scale[0] / scale, [1.0, 1.3, 2.0])
    with pytest.raises(ValueError, match=r"align\.box gt needs annotated boxes"):
        windows(pose, None, mode="roi")


def test_boxes_do_not_matter_to_affine() -> None:
    pose = drawn_pose(100, 50, 200)
    np.testing.assert_array_equal(windows(pose), windows(pose, np.array([[0.0, 0, 9, 9]])))


def test_the_scale_rule_decides_about_large_people_only() -> None:
    large, small = drawn_pose(0, 0, 800), drawn_pose(0, 0, 200)
    np.testing.assert_array_equal(windows(large), FALLBACK)
    np.testing.assert_allclose(windows(large, min_scale_rule=False)[0, 0], 64 / 800, rtol=1e-4)
    np.testing.assert_array_equal(windows(small), windows(small, min_scale_rule=False))


def test_without_the_hard_rule_a_template_may_lack_a_joint() -> None:
    """Half a body and one knee: only the whole body has the knee, the half body has all the rest."""
    pose = drawn_pose(100, 50, 200)
    pose[[14, 15, 16]] = 0
    np.testing.assert_allclose(windows(pose), [[0.32, 0, -32], [0, 0.32, -16]], atol=1e-4)
    assert windows(pose, hard_rule=False)[0, 0] > 0.4


def test_the_score_of_the_paper_chooses_another_template() -> None:
    upper = drawn_pose(100, 50, 200)
    upper[[13, 14, 15, 16]] = 0
    np.testing.assert_allclose(windows(upper, score="paper"), [[0.32, 0, -32], [0, 0.32, -16]], atol=1e-4)
    assert windows(upper, score="ref")[0, 0] > 0.4  # the half-body template is larger


def test_templates_by_number_and_size() -> None:
    three, two, one = (TemplateSettings(k=k).prepared() for k in (3, 2, 1))
    np.testing.assert_array_equal(three, TEMPLATES)
    np.testing.assert_array_equal(two, TEMPLATES[[0, 2, 3, 5]])
    np.testing.assert_array_equal(one, TEMPLATES[[0, 3]])
    larger = TemplateSettings(factor=1.2).prepared()
    np.testing.assert_array_equal(larger, prepare_templates(PAPER_TEMPLATES, factor=1.2))
    pose = drawn_pose(100, 50, 200)[None]
    fits = [roi_from_people(pose, None, FALLBACK, t, AlignSettings(), SIZE)[0] for t in (three, larger)]
    assert fits[1][0, 0] == pytest.approx(1.2 * fits[0][0, 0], rel=1e-5)
    middle = invert(fits[0])[:, :2] @ [32, 32] + invert(fits[0])[:, 2]  # stays where it is
    np.testing.assert_allclose(fits[1][:, :2] @ middle + fits[1][:, 2], [32, 32], atol=0.1)
