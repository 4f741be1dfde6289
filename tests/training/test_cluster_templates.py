"""Templates: normalisation by hand, planted clusters are found again, left and right stay mirror images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates
from tests.training.drawn_people import annotation, drawn_pose, write_coco
from training.cluster_templates import (
    Clusters,
    cluster,
    first_centres,
    lloyd,
    main,
    mean_sides,
    mirror,
    normalise_pose,
    read_poses,
    table,
)
from training.dataset import DataError


def planted(counts: tuple[int, int, int], noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """Poses scattered around the three published templates, with the joints that the template has."""
    rng = np.random.default_rng(seed)
    poses = []
    for template, count in zip(PAPER_TEMPLATES, counts, strict=True):
        for _ in range(count):
            pose = template.astype(np.float64)
            pose[:, :2] += rng.normal(0, noise, (17, 2))
            pose[:, 2] = np.where(template[:, 2] > 0.4, 2.0, 0.0)
            pose[pose[:, 2] == 0] = (0.5, 0.5, 0.0)
            poses.append(pose)
    return np.array(poses)


def test_normalisation_by_hand() -> None:
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[0], keypoints[5] = (20, 10, 2), (29, 49, 1)
    # Box x 20..29, y 10..49 (width 10, height 40): the long side is 39 px, the short one is centred.
    pose = normalise_pose(keypoints, (20, 10, 10, 40), 100, 100)
    np.testing.assert_allclose(pose[0], [0.5 - 4.5 / 39, 0.0, 2])
    np.testing.assert_allclose(pose[5], [0.5 + 4.5 / 39, 1.0, 1])
    np.testing.assert_array_equal(pose[1:5], np.tile((0.5, 0.5, 0.0), (4, 1)))
    clipped = normalise_pose(keypoints, (-30, 10, 60, 40), 100, 100)  # what counts is the part in the picture
    np.testing.assert_allclose(clipped[0, :2], [0.5 + 5.5 / 39, 0.0])
    with pytest.raises(ValueError, match=r"has no extent inside a picture of 100x100"):
        normalise_pose(keypoints, (120, 120, 10, 10), 100, 100)


@given(st.integers(0, 10_000), st.floats(0.2, 5.0), st.floats(0, 300))
def test_size_and_place_of_a_person_do_not_matter(seed: int, scale: float, shift: float) -> None:
    pose = drawn_pose(0, 0, 100).astype(np.float64)
    pose[:, :2] += np.random.default_rng(seed).normal(0, 3, (17, 2))
    low, high = pose[:, :2].min(0), pose[:, :2].max(0)
    moved = pose.copy()
    moved[:, :2] = moved[:, :2] * scale + shift + 20
    start, extent = low * scale + shift + 20, (high - low) * scale
    frame = np.ceil(start + extent).max() + 10
    one = normalise_pose(moved, (*start, *(extent + 1)), frame, frame)
    two = normalise_pose(pose + np.array((20, 20, 0)), (*(low + 20), *(high - low + 1)), 400, 400)
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_mirroring_twice_is_nothing_and_once_swaps_sides() -> None:
    poses = planted((2, 2, 2), noise=0.1)
    np.testing.assert_allclose(mirror(mirror(poses)), poses)
    once = mirror(poses)
    np.testing.assert_allclose(once[:, 5, 0], 1 - poses[:, 6, 0])
    np.testing.assert_array_equal(once[:, 5, 1:], poses[:, 6, 1:])


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found_with_their_joints_and_sizes(seed: int) -> None:
    found = cluster(planted((60, 25, 40)), 3, seed=seed)
    assert found.sizes.tolist() == [120, 80, 50]  # with mirrored copies, the largest first
    for centre, template, joints in zip(found.centres, PAPER_TEMPLATES[[0, 2, 1]], (17, 13, 14), strict=True):
        defined = centre[:, 2] > 0.4
        assert defined.sum() == joints
        np.testing.assert_array_equal(defined, template[:, 2] > 0.4)
        np.testing.assert_allclose(centre[defined, :2], template[defined, :2], atol=0.008)
        np.testing.assert_allclose(centre[~defined], np.tile((0.5, 0.5, 0), ((~defined).sum(), 1)), atol=1e-9)
    assert prepare_templates(found.centres).shape == (6, 17, 3)


def test_centres_of_mirrored_data_are_symmetric() -> None:
    """The law of the published templates: the right joint is the left one with x -> 1 - x."""
    found = cluster(planted((30, 20, 25), noise=0.05), 3)
    np.testing.assert_allclose(mirror(found.centres), found.centres, atol=1e-9)
    np.testing.assert_allclose(mean_sides(found.centres[0]), found.centres[0], atol=1e-9)


def test_the_seed_alone_decides() -> None:
    poses = planted((20, 10, 10), noise=0.2)
    one, again = cluster(poses, 5, seed=3), cluster(poses, 5, seed=3)
    np.testing.assert_array_equal(one.centres, again.centres)
    assert cluster(poses, 6).spread < cluster(poses, 3).spread < cluster(poses, 1).spread


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_lloyd_ends_where_every_point_has_its_nearest_centre(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(40, 3)) + rng.integers(0, 3, (40, 1)) * 4
    centres, labels = lloyd(points, first_centres(rng, points, k), 200)
    distances = ((points[:, None] - centres[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), labels)
    for index in range(k):
        np.testing.assert_allclose(centres[index], points[labels == index].mean(0))


def test_a_centre_without_points_moves_to_where_it_is_missed() -> None:
    points = np.array([[0.0], [0.1], [5.0], [9.0]])
    centres, labels = lloyd(points, np.array([[0.0], [100.0], [200.0]]), 50)
    assert sorted(np.bincount(labels, minlength=3).tolist()) == [1, 1, 2]
    np.testing.assert_allclose(np.sort(centres[:, 0]), [0.05, 5.0, 9.0])


def test_only_poses_that_count_are_read(tmp_path: Path) -> None:
    whole = drawn_pose(2, 2, 90)
    eight, seven = whole.copy(), whole.copy()
    eight[8:], seven[7:] = 0, 0
    entries = [
        annotation(1, 1, whole, None),
        annotation(2, 1, eight, None, bbox=[2, 2, 90, 90]),
        annotation(3, 1, seven, None, bbox=[2, 2, 90, 90]),
        annotation(4, 1, whole, None, iscrowd=1),
        annotation(5, 1, whole, None, ignore=True),
        annotation(6, 1, whole, None, bbox=[2, 2, 1, 90]),
        {"id": 7, "image_id": 1, "bbox": [0, 0, 5, 5]},
    ]
    path = write_coco(tmp_path / "set", {1: np.zeros((96, 128, 3), np.uint8)}, entries) / "annotations.json"
    poses = read_poses(path)
    assert [(pose[:, 2] > 0).sum() for pose in poses] == [17, 8]
    assert (poses[..., :2] >= -0.05).all() and (poses[..., :2] <= 1.05).all()
    assert len(read_poses(path, min_joints=7)) == 3


def test_the_table_has_the_nose_and_the_left_joints() -> None:
    clusters = Clusters(centres=PAPER_TEMPLATES.astype(np.float64), sizes=np.array([5, 3, 2]), spread=0.0)
    lines = table(clusters).splitlines()
    assert len(lines) == 3 * 10
    assert lines[0] == "T1: 5 poses (50%), 17 valid joints"
    assert lines[1].split() == ["nose", "0.5000", "0.1474", "1.9604"]
    assert [line.split()[0] for line in lines[2:10]] == [
        f"left_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    ]
    assert lines[11].split() == ["nose", "0.5000", "0.4668", "0.1224", "-"]  # not valid from behind
    assert "14 valid joints" in lines[10] and "13 valid joints" in lines[20]


def test_the_command(tmp_path: Path, capsys) -> None:
    entries = []
    for number, pose in enumerate(planted((9, 6, 4)), 1):
        pixels = pose.copy()
        pixels[:, :2] = pixels[:, :2] * 90
        pixels[pixels[:, 2] == 0] = 0
        entries.append(annotation(number, 1, pixels, None, bbox=[0, 0, 91, 91]))
    folder = write_coco(tmp_path / "set", {1: np.zeros((96, 128, 3), np.uint8)}, entries)
    output, drawing = tmp_path / "templates.json", tmp_path / "templates.png"
    flags = ["--annotations", str(folder / "annotations.json"), "--k", "3", "--output", str(output)]
    assert main([*flags, "--picture", str(drawing)]) == 0
    text = capsys.readouterr().out
    assert "19 poses with at least 8 joints (set/annotations.json 19)" in text
    content = json.loads(output.read_text())
    assert content["cluster_sizes"] == [18, 12, 8] and content["valid_joints"] == [17, 14, 13]
    assert prepare_templates(content["centres"]).shape == (6, 17, 3)
    height, width, _ = cv2.imread(str(drawing)).shape
    assert width > 2 * height > 400


@pytest.mark.parametrize("case", ["missing", "not coco", "too few", "unknown suffix"])
def test_bad_input_is_one_line_and_code_two(tmp_path: Path, capsys, case: str) -> None:
    pose = drawn_pose(2, 2, 90)
    folder = write_coco(tmp_path / "set", {1: np.zeros((96, 128, 3), np.uint8)}, [annotation(1, 1, pose, None)])
    path = folder / "annotations.json"
    if case == "missing":
        path = tmp_path / "none.json"
    elif case == "not coco":
        path.write_text("[]")
    flags = ["--annotations", str(path), "--k", "9" if case == "too few" else "1", "--output", str(tmp_path / "t.json")]
    assert main([*flags, "--picture", str(tmp_path / ("t.what" if case == "unknown suffix" else "t.png"))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1


def test_data_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 9, 9], "keypoints": [1, 2]}]}')
    with pytest.raises(DataError, match=r"broken\.json is not a COCO keypoint file: ValueError"):
        read_poses(path)
