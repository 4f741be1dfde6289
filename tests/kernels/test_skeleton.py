"""Skeleton features: hand-worked px, the twins in NumPy and PyTorch, joints anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from kernels.skeleton import (
    CHANNELS,
    FLIPPED_JOINTS,
    JOINT_NAMES,
    JOINTS,
    LIMBS,
    skeleton_features,
    skeleton_features_reference,
)
from tests.strategies import crowds
from tests.tolerances import SKELETON

LEFT_SHOULDER, LEFT_ELBOW = 5, 7


def one_joint(joint: int, x: float, y: float, v: float) -> np.ndarray:
    keypoints = np.zeros((1, JOINTS, 3), np.float32)
    keypoints[0, joint] = (x, y, v)
    return keypoints


def scattered(people: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(people * 100 + size)
    keypoints = rng.uniform(-0.3 * size, 1.3 * size, (people, JOINTS, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (people, JOINTS))
    return keypoints


def test_flipped_joints_swap_the_names() -> None:
    swapped = [name.replace("left", "L").replace("right", "left").replace("L", "right") for name in JOINT_NAMES]
    assert [JOINT_NAMES[j] for j in FLIPPED_JOINTS] == swapped
    assert FLIPPED_JOINTS[FLIPPED_JOINTS].tolist() == list(range(JOINTS))
    assert len({frozenset(limb) for limb in LIMBS.tolist()}) == len(LIMBS) == 19
    assert CHANNELS == 55


@pytest.mark.parametrize(("v", "sign"), [(2, 1.0), (1, -1.0), (0, 0.0)])
def test_a_joint_is_a_gaussian_of_three_px_whose_sign_tells_hidden(v: float, sign: float) -> None:
    maps = skeleton_features(one_joint(4, 20, 30, v))
    assert maps.shape == (1, 55, 64, 64)
    assert maps[0, 4, 30, 20] == pytest.approx(sign)
    assert maps[0, 4, 30, 23] == pytest.approx(sign * np.exp(-0.5), abs=1e-6)
    assert maps[0, 4, 39, 20] == pytest.approx(sign * np.exp(-4.5), abs=1e-6)
    assert maps[0, 4, 30, 30] == 0  # 10 px away: cut off
    assert not maps[0, [c for c in range(55) if c != 4]].any()


def test_a_limb_is_its_direction_along_a_line_of_half_width_one() -> None:
    keypoints = one_joint(LEFT_SHOULDER, 10, 20, 2)
    keypoints[0, LEFT_ELBOW] = (40, 20, 1)  # hidden joints draw ordinary limbs
    limb = LIMBS.tolist().index([LEFT_SHOULDER, LEFT_ELBOW])
    maps = skeleton_features(keypoints)
    along, across = maps[0, 17 + 2 * limb], maps[0, 18 + 2 * limb]
    assert not across.any()
    assert set(np.unique(along)) == {0.0, 1.0}
    rows, columns = np.nonzero(along)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 20, 9, 40)


def test_a_blob_reaches_in_from_outside() -> None:
    maps = skeleton_features(one_joint(0, -3, 10, 2))
    assert maps[0, 0, 10, 0] == pytest.approx(np.exp(-0.5), abs=1e-6)


@pytest.mark.parametrize("people", [0, 1, 7, 24])
@pytest.mark.parametrize("size", [1, 33, 64])
def test_twin(people: int, size: int) -> None:
    keypoints = scattered(people, size)
    fast, slow = skeleton_features(keypoints, size), skeleton_features_reference(keypoints, size)
    assert fast.shape == (people, CHANNELS, size, size)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, slow, **SKELETON)


@pytest.mark.parametrize("people", [0, 1, 5])
def test_torch_twin(people: int) -> None:
    torch = pytest.importorskip("torch")
    from kernels.torch_skeleton import skeleton_features as torch_skeleton_features

    keypoints = scattered(people, 64)
    drawn = torch_skeleton_features(torch.from_numpy(keypoints), 64).numpy()
    np.testing.assert_allclose(drawn, skeleton_features(keypoints, 64), **SKELETON)


@given(crowds(max_people=2, side_px=80))
def test_any_pose_gives_finite_maps_of_the_twin(keypoints: np.ndarray) -> None:
    maps = skeleton_features(keypoints, 40)
    assert np.abs(maps).max(initial=0) <= 1
    # A px exactly on the rim of a blob or a limb may fall to either side after rounding.
    different = np.abs(maps - skeleton_features_reference(keypoints, 40)) > SKELETON["atol"]
    assert different.sum() <= 4


@pytest.mark.parametrize("x", [1e30, -1e30, np.nan, np.inf])
def test_a_joint_out_of_this_world_is_absent(x: float) -> None:
    keypoints = one_joint(LEFT_SHOULDER, x, 20, 2)
    keypoints[0, LEFT_ELBOW] = (40, 20, 0)
    assert not skeleton_features(keypoints).any()


def test_strided_input_gives_the_same() -> None:
    keypoints = scattered(5, 64)
    strided = np.repeat(keypoints, 2, axis=0)[::2, ::-1][:, ::-1]
    np.testing.assert_array_equal(skeleton_features(strided), skeleton_features(keypoints))


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"roi_keypoints must be \(N, 17, 3\), got \(17, 3\)"):
        skeleton_features(np.zeros((17, 3), np.float32))
    with pytest.raises(ValueError, match="size must be at least 1 px, got 0"):
        skeleton_features(np.zeros((1, 17, 3), np.float32), 0)
