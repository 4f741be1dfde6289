"""The 17 COCO joints, their limbs, and the skeleton drawn as feature maps in ROI space."""

from __future__ import annotations

import numpy as np

from kernels.compilation import compiled
from kernels.coordinates import F32, I32

JOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
JOINTS = len(JOINT_NAMES)

#: (17,) a permutation, its own inverse: ``pose[FLIPPED_JOINTS]`` has left and right exchanged, as a mirrored picture
#: needs it. The nose stays.
FLIPPED_JOINTS: I32 = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15], np.int32)

#: (19, 2) joint indices of each limb, in the channel order of the published network (not the order of COCO's file).
LIMBS: I32 = np.array(
    [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
        (5, 6),
        (5, 7),
        (5, 11),
        (6, 8),
        (6, 12),
        (7, 9),
        (8, 10),
        (11, 12),
        (11, 13),
        (12, 14),
        (13, 15),
        (14, 16),
    ],
    np.int32,
)
CHANNELS = JOINTS + 2 * len(LIMBS)

HEATMAP_SIGMA_PX = 3.0
HEATMAP_CUTOFF = 4.6025  # exponent beyond which the map is zero: a radius of 9.1 px, a floor of 0.01
LIMB_HALF_WIDTH_PX = 1.0


def skeleton_features(roi_keypoints: F32, size: int = 64) -> F32:
    """Draw 17 joint maps and 19 limb vector fields for each person.

    Args:
        roi_keypoints: (N, 17, 3): x, y in ROI px; third value 0 absent, 1 labelled but hidden, 2 visible. NaN or
            infinity counts as absent.
        size: side S of the ROI, px.

    Returns:
        (N, 55, S, S) float32 in -1..1. Channels 0..16: a Gaussian around each joint, negative for hidden ones. Channels
        17 + 2k and 18 + 2k: x and y of limb k's direction, within 1 px of the line between its joints. A joint outside
        the ROI may leave a partial blob.

    Raises:
        ValueError: the shape.

    Source: Pose2Seg section 3.3 (17 + 38 channels); sigma, width and signs from the released code.
    """
    _check(roi_keypoints, size)
    maps = np.empty((len(roi_keypoints), CHANNELS, size, size), np.float32)
    draw_skeletons(maps, np.ascontiguousarray(roi_keypoints, np.float32), LIMBS, 0)
    return maps


def _check(roi_keypoints: F32, size: int) -> None:
    if roi_keypoints.ndim != 3 or roi_keypoints.shape[1:] != (JOINTS, 3):
        raise ValueError(f"roi_keypoints must be (N, {JOINTS}, 3), got {roi_keypoints.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1 px, got {size}")


@compiled
def draw_skeletons(windows: F32, roi_keypoints: F32, limbs: I32, first_channel: int) -> None:
    """`skeleton_features` into the channels of ``windows`` (N, C, S, S) from ``first_channel`` on; nothing is checked.

    Every px of those channels is written, the others are left alone. ``limbs`` is `LIMBS`.
    """
    people, joints, size = roi_keypoints.shape[0], roi_keypoints.shape[1], windows.shape[3]
    maps = windows[:, first_channel : first_channel + joints + 2 * len(limbs)]
    maps[...] = 0.0
    variance2 = 2.0 * HEATMAP_SIGMA_PX**2
    radius = np.sqrt(variance2 * HEATMAP_CUTOFF)
    fall_x = np.empty(size, np.float64)
    present = np.empty(joints, np.bool_)
    for n in range(people):
        for k in range(joints):
            x, y, v = np.float64(roi_keypoints[n, k, 0]), np.float64(roi_keypoints[n, k, 1]), roi_keypoints[n, k, 2]
            present[k] = v > 0.5 and np.isfinite(x) and np.isfinite(y) and np.isfinite(v)
            if not present[k]:
                continue
            sign = 1.0 if v > 1.5 else -1.0
            first, last = _inside(x - radius, x + radius + 1.0, size)
            for column in range(first, last):
                fall_x[column] = np.exp(-((column - x) ** 2) / variance2)
            top, bottom = _inside(y - radius, y + radius + 1.0, size)
            for row in range(top, bottom):
                dy2 = (row - y) ** 2
                fall_y = sign * np.exp(-dy2 / variance2)
                for column in range(first, last):
                    if ((column - x) ** 2 + dy2) / variance2 < HEATMAP_CUTOFF:
                        maps[n, k, row, column] = fall_y * fall_x[column]
        for limb in range(len(limbs)):
            i, j = limbs[limb]
            # Not float(): Numba leaves float32 as it is.
            x1, y1 = np.float64(roi_keypoints[n, i, 0]), np.float64(roi_keypoints[n, i, 1])
            x2, y2 = np.float64(roi_keypoints[n, j, 0]), np.float64(roi_keypoints[n, j, 1])
            length = np.sqrt((x2 - x1) ** 2 + (y2 - y1) ** 2)
            if not (present[i] and present[j] and length > 0):
                continue
            ex, ey = (x2 - x1) / length, (y2 - y1) / length
            first, last = _inside(
                np.rint(min(x1, x2) - LIMB_HALF_WIDTH_PX), np.rint(max(x1, x2) + LIMB_HALF_WIDTH_PX), size
            )
            top, bottom = _inside(
                np.rint(min(y1, y2) - LIMB_HALF_WIDTH_PX), np.rint(max(y1, y2) + LIMB_HALF_WIDTH_PX), size
            )
            for row in range(top, bottom):
                for column in range(first, last):
                    if abs((column - x1) * ey - (row - y1) * ex) < LIMB_HALF_WIDTH_PX:
                        maps[n, joints + 2 * limb, row, column] = ex
                        maps[n, joints + 2 * limb + 1, row, column] = ey


@compiled
def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    """Integer range low <= i < high cut to 0..size; cut as floats, since far joints exceed every integer."""
    return int(max(np.ceil(low), 0.0)) if low < size else size, int(min(np.ceil(high), float(size))) if high > 0 else 0


def sample_poses(size: int, people: int = 12) -> F32:
    """(N, 17, 3) poses on which a drawing is compared with ours, see `draws_alike`.

    They lie all over a window of side ``size`` and beyond it, with absent, hidden and coinciding joints.
    """
    rng = np.random.default_rng(0)
    poses = np.empty((people, JOINTS, 3), np.float32)
    poses[:, :, :2] = rng.uniform(-0.2 * size, 1.2 * size, (people, JOINTS, 2))
    poses[:, :, 2] = rng.integers(0, 3, (people, JOINTS))
    poses[-2, :, :2] = poses[-2, :1, :2]
    poses[-1, :, 2] = 0
    return poses


def draws_alike(found: F32, expected: F32) -> bool:
    """Whether two drawings of the same poses are one and the same but for rounding.

    Rounding may also decide whether a limb covers a px at its edge.
    """
    if found.shape != expected.shape:
        return False
    return bool((~(np.abs(found - expected) <= 1e-4)).mean() <= 1e-4)  # NaN differs from everything


def skeleton_features_reference(roi_keypoints: F32, size: int = 64) -> F32:
    """`skeleton_features` as the formulas read, every map evaluated on the whole grid."""
    _check(roi_keypoints, size)
    maps = np.zeros((len(roi_keypoints), CHANNELS, size, size), np.float32)
    grid_y, grid_x = np.mgrid[:size, :size].astype(np.float64)
    for n, person in enumerate(roi_keypoints.astype(np.float64)):
        present = [bool(np.isfinite(joint).all() and joint[2] > 0.5) for joint in person]
        for k, (x, y, v) in enumerate(person):
            if present[k]:
                exponent = ((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2.0 * HEATMAP_SIGMA_PX**2)
                blob = np.where(exponent < HEATMAP_CUTOFF, np.exp(-exponent), 0.0)
                maps[n, k] = blob if v > 1.5 else -blob
        for limb, (i, j) in enumerate(LIMBS):
            if not (present[i] and present[j]):
                continue
            (x1, y1), (x2, y2) = person[i, :2], person[j, :2]
            length = np.hypot(x2 - x1, y2 - y1)
            if length == 0:
                continue
            ex, ey = (x2 - x1) / length, (y2 - y1) / length
            drawn = np.abs((grid_x - x1) * ey - (grid_y - y1) * ex) < LIMB_HALF_WIDTH_PX
            for grid, a, b in ((grid_x, x1, x2), (grid_y, y1, y2)):
                drawn &= (grid >= np.rint(min(a, b) - LIMB_HALF_WIDTH_PX)) & (
                    grid < np.rint(max(a, b) + LIMB_HALF_WIDTH_PX)
                )
            maps[n, JOINTS + 2 * limb] = ex * drawn
            maps[n, JOINTS + 2 * limb + 1] = ey * drawn
    return maps
