"""The other people in a window: hand-worked px, the twins in NumPy and PyTorch, people anywhere and of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.neighbours import BODY_POINTS, OWN_ONLY, draw_neighbours, neighbour_features, neighbour_features_reference
from kernels.skeleton import JOINTS
from tests.strategies import crowds
from tests.tolerances import FLOAT32_COORDINATES, SKELETON

People = tuple[np.ndarray, np.ndarray, np.ndarray]
EYE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)


def crowd(people: int, *, images: int = 1, size: int = 64, seed: int = 0) -> People:
    """Windows of all sizes, turned, in pictures of some 60 cells; joints in and around their own window."""
    rng = np.random.default_rng(1000 * people + 10 * images + size + seed)
    angle, scale = rng.uniform(-0.6, 0.6, people), rng.uniform(0.15, 1.2, people) * 64 / size
    matrices = np.empty((people, 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = -scale * np.sin(angle), scale * np.sin(angle)
    matrices[:, :, 2] = rng.uniform(-20, 60, (people, 2))
    poses = np.empty((people, JOINTS, 3))
    poses[..., :2] = rng.uniform(-0.1 * size, 1.1 * size, (people, JOINTS, 2))
    poses[..., 2] = rng.integers(0, 3, (people, JOINTS))
    return matrices.astype(np.float32), rng.integers(0, images, people).astype(np.int32), poses.astype(np.float32)


def two_people(*, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> People:
    """Nobody's joints are there yet; a px of the second one's window is ``scale`` px of the first one's, 8 px there lie
    on ``shift`` + 8 ``scale``.
    """
    matrices = np.stack((EYE, EYE * scale))
    matrices[1, :, 2] = shift
    return matrices, np.zeros(2, np.int32), np.zeros((2, JOINTS, 3), np.float32)


def by_torch(people: People, size: int = 64) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from kernels.torch_neighbours import neighbour_features as torch_neighbour_features

    return torch_neighbour_features(*(torch.from_numpy(part) for part in people), size).numpy()


def far_away(people: People) -> People:
    people[0][::3, :, 2] += 3000
    people[2][1::3, ::2, :2] -= 500
    return people


def no_numbers(people: People) -> People:
    """Joints and matrices that are none, or beyond all bounds."""
    matrices, _, poses = people
    poses[0, 5, 0], poses[1, 6, 1], poses[2, 7, 2] = np.nan, np.inf, np.nan
    poses[3, 0] = (1e30, -1e30, 2)
    poses[3, 11, 2] = np.inf
    matrices[4, 0, 1], matrices[5, 1, 2] = np.nan, -np.inf
    matrices[6], matrices[7] = 0, np.array([[1, 2, 3], [2, 4, 5]])
    matrices[8, :, 2] = 1e30
    return people


def coinciding(people: People) -> People:
    """The second is the first, found again; the fourth has all joints in one place; the fifth none."""
    matrices, images, poses = people
    matrices[1], images[1] = matrices[0], images[0]
    poses[1] = poses[0] + np.array([0.9, -0.9, 0.0], np.float32)
    poses[3, :, :2] = poses[3, :1, :2]
    poses[4, :, 2] = 0
    return people


def of_all_sizes(people: People) -> People:
    people[0][::4, :, :2] *= 40
    people[0][1::4, :, :2] /= 40
    return people


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("people", [0, 1, 2, 20])
@pytest.mark.parametrize("size", [1, 33, 64])
def test_twin(people: int, size: int, images: int) -> None:
    scene = crowd(people, images=images, size=size)
    fast, slow = neighbour_features(*scene, size), neighbour_features_reference(*scene, size)
    assert fast.shape == (people, 2, size, size)
    assert fast.dtype == np.float32
    if people == 20 and size > 1:
        assert all(0.02 < np.mean(slow[:, channel] > 0.1) < 0.98 for channel in (0, 1))
    np.testing.assert_allclose(fast, slow, **SKELETON)


@pytest.mark.parametrize("change", [far_away, no_numbers, coinciding, of_all_sizes])
def test_twins_agree_on_hard_people(change: Any) -> None:
    scene = change(crowd(20, images=2))
    fast = neighbour_features(*scene)
    assert np.isfinite(fast).all()
    assert fast.max() > 0.5
    np.testing.assert_allclose(fast, neighbour_features_reference(*scene), **SKELETON)
    np.testing.assert_allclose(fast, by_torch(scene), **FLOAT32_COORDINATES)


@pytest.mark.parametrize("people", [0, 1, 2, 9, 20])
def test_torch_twin(people: int) -> None:
    scene = crowd(people, images=2)
    np.testing.assert_allclose(by_torch(scene), neighbour_features(*scene), **FLOAT32_COORDINATES)


@pytest.mark.parametrize(("v", "channel"), [(2, 0), (1, 1)])
@pytest.mark.parametrize(("scale", "sigma"), [(1.0, 3.0), (2.0, 6.0), (0.1, 1.0), (8.0, 10.0)])
def test_a_joint_is_a_gaussian_as_wide_as_the_other_is_large(v: int, channel: int, scale: float, sigma: float) -> None:
    scene = two_people(scale=scale, shift=(30 - 8 * scale, 20 - 8 * scale))
    scene[2][1, 0] = (8, 8, v)
    maps = neighbour_features(*scene)
    assert maps[0, channel, 20, 30] == pytest.approx(1, abs=1e-5)
    for dx, dy in ((3, 0), (0, -2), (-4, 5)):
        expected = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        assert maps[0, channel, 20 + dy, 30 + dx] == pytest.approx(expected, abs=1e-5)
    assert not maps[0, 1 - channel].any()
    assert not maps[1].any()


def test_a_point_of_a_limb_is_there_with_both_ends_and_hidden_with_one() -> None:
    scene = two_people()
    shoulder, elbow = 5, 7
    assert (shoulder, elbow, 0.5) in BODY_POINTS
    scene[2][1, shoulder] = (10, 10, 2)
    without = neighbour_features(*scene)[0]
    assert without[0, 30, 30] < 1e-6
    scene[2][1, elbow] = (50, 50, 1)
    seen, hidden = neighbour_features(*scene)[0]
    assert (seen[10, 10], hidden[50, 50], hidden[30, 30]) == pytest.approx((1, 1, 1), abs=1e-5)
    assert seen[30, 30] < 1e-6


def test_a_sum_ends_at_one() -> None:
    scene = two_people()
    scene[2][1, :2] = (20, 20, 2)
    maps = neighbour_features(*scene)
    assert maps.max() == 1
    assert maps[0, 0, 20, 23] == pytest.approx(1)  # twice 0.61
    assert maps[0, 0, 20, 25] == pytest.approx(2 * np.exp(-25 / 18), abs=1e-6)


@pytest.mark.parametrize(("apart_px", "is_drawn"), [(0.0, False), (1.9, False), (2.1, True)])
def test_the_same_person_found_twice_is_not_another(apart_px: float, is_drawn: bool) -> None:
    scene = crowd(2)
    scene[0][1] = scene[0][0]
    scene[2][1] = scene[2][0] + np.array([apart_px, 0, 0], np.float32)
    for maps in (neighbour_features(*scene), neighbour_features_reference(*scene), by_torch(scene)):
        assert (maps.max((1, 2, 3)) > 0.5).tolist() == [is_drawn] * 2


def test_poses_without_a_joint_in_common_are_two_people() -> None:
    scene = two_people()
    scene[2][0, 0], scene[2][1, 1] = (20, 20, 2), (20, 20, 2)
    for maps in (neighbour_features(*scene), neighbour_features_reference(*scene), by_torch(scene)):
        assert maps[:, 0, 20, 20] == pytest.approx([1, 1])


def test_somebody_alone_sees_nobody() -> None:
    alone = crowd(5, images=1)[0], np.arange(5), crowd(5)[2]
    assert not neighbour_features(*alone).any()
    assert not neighbour_features(*crowd(1)).any()
    assert not by_torch(crowd(1)).any()


def test_people_of_another_picture_never_show() -> None:
    matrices, images, poses = crowd(12, images=3)
    together = neighbour_features(matrices, images, poses)
    for image in range(3):
        rows = images == image
        apart = neighbour_features(matrices[rows], images[rows], poses[rows])
        np.testing.assert_array_equal(together[rows], apart)


def test_another_order_of_people_gives_the_same_maps_in_that_order() -> None:
    scene = crowd(12, images=2)
    order = np.random.default_rng(0).permutation(12)
    moved = neighbour_features(*(part[order] for part in scene))
    np.testing.assert_allclose(moved, neighbour_features(*scene)[order], **SKELETON)


def test_a_mirrored_picture_gives_mirrored_maps() -> None:
    """Picture and windows are mirrored, so that windows are turned but not mirrored again; joints keep their names."""
    matrices, images, poses = crowd(8, images=2)
    picture_px, size = 60, 64
    mirrored = matrices * np.array([[-1, 1, -1], [1, -1, 1]], np.float32)
    mirrored[:, 0] = matrices[:, 0] * (1, -1, -1)
    mirrored[:, 1] = matrices[:, 1] * (-1, 1, 1)
    mirrored[:, 0, 2] += picture_px - 1 - (size - 1) * matrices[:, 0, 0]
    mirrored[:, 1, 2] += (size - 1) * matrices[:, 1, 0]
    flipped = poses.copy()
    flipped[..., 0] = size - 1 - poses[..., 0]
    maps = neighbour_features(mirrored, images, flipped)
    assert maps.max() > 0.5
    np.testing.assert_allclose(maps[..., ::-1], neighbour_features(matrices, images, poses), **FLOAT32_COORDINATES)


def test_a_matrix_that_is_none_concerns_its_owner_alone() -> None:
    scene = crowd(6)
    without = neighbour_features(*(np.delete(part, 2, axis=0) for part in scene))
    for broken in (np.nan, np.inf, 0.0, 1e30):
        scene[0][2] = broken
        for maps in (neighbour_features(*scene), by_torch(scene)):
            assert not maps[2].any()
            np.testing.assert_allclose(np.delete(maps, 2, axis=0), without, **FLOAT32_COORDINATES)


def test_some_windows_of_a_crowd_and_no_channel_but_two() -> None:
    scene = crowd(9, images=2)
    windows = np.full((4, 7, 64, 64), 7.5, np.float32)
    arrays = scene[0].astype(np.float64), scene[1].astype(np.int64), scene[2]
    draw_neighbours(windows, *arrays, 3, 4)
    np.testing.assert_array_equal(windows[:, 4:6], neighbour_features(*scene)[3:7])
    assert (windows[:, [0, 1, 2, 3, 6]] == 7.5).all()


@given(crowds(max_people=4, side_px=80), st.data())
def test_any_people_give_finite_maps_of_both_twins(poses: np.ndarray, data: st.DataObject) -> None:
    people = len(poses)
    numbers = st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1.0, 1e-4, np.nan, np.inf])
    matrices = np.array(data.draw(st.lists(numbers, min_size=6 * people, max_size=6 * people)), np.float32)
    matrices = matrices.reshape(people, 2, 3)
    with np.errstate(invalid="ignore"):
        area = np.abs(matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0])
    matrices[area < 1e-3] = EYE  # whether it is a window is a matter of rounding then
    images = np.array(data.draw(st.lists(st.integers(0, 1), min_size=people, max_size=people)), np.int32)
    maps = neighbour_features(matrices, images, poses, 24)
    assert ((maps >= 0) & (maps <= 1)).all()
    np.testing.assert_allclose(maps, neighbour_features_reference(matrices, images, poses, 24), **SKELETON)


def test_strided_input_gives_the_same() -> None:
    scene = crowd(5)
    strided = tuple(np.repeat(part, 2, axis=0)[::2] for part in scene)
    np.testing.assert_array_equal(neighbour_features(*strided), neighbour_features(*scene))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_keypoints": np.zeros((2, 16, 3))}, r"roi_keypoints must be \(N, 17, 3\), got \(2, 16, 3\)"),
        ({"feature_from_roi": np.zeros((3, 2, 3))}, r"feature_from_roi must be \(N=2, 2, 3\)"),
        ({"roi_image": np.zeros((2, 1), np.int32)}, r"roi_image \(N,\), got \(2, 2, 3\) and \(2, 1\)"),
        ({"size": 0}, "size must be at least 1 px, got 0"),
    ],
)
def test_errors_say_what_came(change: dict[str, Any], message: str) -> None:
    names = ("feature_from_roi", "roi_image", "roi_keypoints")
    arguments: dict[str, Any] = {**dict(zip(names, crowd(2), strict=True)), **change}
    for draw in (neighbour_features, neighbour_features_reference):
        with pytest.raises(ValueError, match=message):
            draw(**arguments)


def test_who_is_for_themselves_only_sees_others_and_is_not_seen() -> None:
    scene = crowd(6)
    matrices, images, poses = scene
    shy = poses.copy()
    shy[2, poses[2, :, 2] > 1.5, 2] = OWN_ONLY
    without = poses.copy()
    without[2, poses[2, :, 2] > 1.5] = 0
    maps, expected = neighbour_features(matrices, images, shy), neighbour_features(matrices, images, without)
    others = [n for n in range(6) if n != 2]
    np.testing.assert_array_equal(maps[others, 0], expected[others, 0])
    np.testing.assert_array_equal(maps[2], neighbour_features(matrices, images, poses)[2])
    np.testing.assert_allclose(maps, neighbour_features_reference(matrices, images, shy), **SKELETON)
    found = by_torch((matrices, images, shy))
    np.testing.assert_allclose(maps, found, **SKELETON)
