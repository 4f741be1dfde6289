"""The other people in a person's window, drawn from their joints as two feature maps: where somebody else's body is.

Ours, not the paper's: its SegModule sees its own person's skeleton only (section 3.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F32, F64
from kernels.skeleton import JOINTS, sample_poses

SIGMA_PX = 3.0  # how far a body reaches around its joints and limbs in its own window
MIN_SIGMA_PX, MAX_SIGMA_PX = 1.0, 10.0
SAME_PERSON_PX = 2.0  # two poses whose common joints lie closer than this on average are one person, found twice
CHANNELS = 2
OWN_ONLY = 3.0
"""Third value of the joints of somebody whom the others must not see: visible for the own skeleton, no neighbour's."""
FAR = 1e6  # joints and matrices whose magnitudes add up to this or more, infinity or NaN are not there
MIN_AREA = 1e-12  # square cells of a px of a window; what has less is no window

#: (joint, joint, share of the way between them): the 17 joints themselves and points inside of the body.
BODY_POINTS: tuple[tuple[int, int, float], ...] = (
    *((joint, joint, 0.0) for joint in range(17)),
    (5, 6, 0.5),
    (11, 12, 0.5),
    (5, 12, 0.5),
    (5, 11, 1 / 3),
    (5, 11, 2 / 3),
    (6, 12, 1 / 3),
    (6, 12, 2 / 3),
    (5, 7, 0.5),
    (6, 8, 0.5),
    (7, 9, 0.5),
    (8, 10, 0.5),
    (11, 13, 1 / 3),
    (11, 13, 2 / 3),
    (12, 14, 1 / 3),
    (12, 14, 2 / 3),
    (13, 15, 1 / 3),
    (13, 15, 2 / 3),
    (14, 16, 1 / 3),
    (14, 16, 2 / 3),
)

_FIRST, _SECOND = (np.array([point[end] for point in BODY_POINTS], np.int64) for end in (0, 1))
_SHARE = np.array([point[2] for point in BODY_POINTS], np.float64)
_REACH = 5.7  # sigmas, beyond which a Gaussian is below 1e-7 and left out


def neighbour_features(
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
    size: int = 64,
) -> F32:
    """Draw where the bodies of all other people of the same picture are seen, and where they are hidden.

    Args:
        feature_from_roi: (N, 2, 3), ROI px to feature cells. Somebody whose matrix has NaN, infinity or no area sees
            nobody and is not drawn.
        roi_image: (N,) integer: which picture each person is in.
        roi_keypoints: (N, 17, 3): x, y in the person's own ROI px; third value 0 absent, 1 hidden, 2 visible,
            `OWN_ONLY` visible but not drawn for others. NaN or infinity counts as absent.
        size: side S of the ROI, px.

    Returns:
        (N, 2, S, S) float32 in 0..1, in each person's window. Channel 0: the sum of a Gaussian around each of the
        others' `BODY_POINTS` whose joints are visible, 1 at most. Channel 1: the same of points with a hidden joint.
        Sigma is `SIGMA_PX` of the other's own window, so that a larger body reaches farther, from `MIN_SIGMA_PX` to
        `MAX_SIGMA_PX` as drawn. A pose of the same person (`SAME_PERSON_PX`) is not drawn.

    Raises:
        ValueError: the shapes.
    """
    _check(feature_from_roi, roi_image, roi_keypoints, size)
    maps = np.empty((len(roi_keypoints), CHANNELS, size, size), np.float32)
    draw_neighbours(
        maps,
        np.ascontiguousarray(feature_from_roi, np.float64),
        np.ascontiguousarray(roi_image, np.int64),
        np.ascontiguousarray(roi_keypoints, np.float32),
        0,
        0,
    )
    return maps


def _check(
    feature_from_roi: NDArray[np.floating], roi_image: NDArray[np.integer], roi_keypoints: F32, size: int
) -> None:
    people = len(roi_keypoints)
    if roi_keypoints.shape != (people, JOINTS, 3):
        raise ValueError(f"roi_keypoints must be (N, {JOINTS}, 3), got {roi_keypoints.shape}")
    if feature_from_roi.shape != (people, 2, 3) or roi_image.shape != (people,):
        raise ValueError(
            f"feature_from_roi must be (N={people}, 2, 3) and roi_image (N,), got {feature_from_roi.shape} and "
            f"{roi_image.shape}"
        )
    if size < 1:
        raise ValueError(f"size must be at least 1 px, got {size}")


@compiled
def draw_neighbours(
    windows: F32,
    feature_from_roi: F64,
    roi_image: NDArray[np.int64],
    roi_keypoints: F32,
    first_person: int,
    first_channel: int,
) -> None:
    """`neighbour_features` into two channels of ``windows`` (M, C, S, S) from ``first_channel`` on; nothing is checked.

    Every px of the two is written, the others are left alone. ``windows[0]`` is that of ``first_person``; the arrays
    are of all N people, who see each other whether their own windows are wanted or not.
    """
    people, size = len(roi_keypoints), windows.shape[3]
    points = len(_SHARE)
    maps = windows[:, first_channel : first_channel + CHANNELS]
    maps[...] = 0.0
    seen = np.zeros((people, JOINTS), np.int64)  # 0 absent, 1 hidden, 2 visible, 3 visible and drawn for nobody
    area = np.zeros(people, np.float64)  # of a px, square cells; 0 where there is no window
    for n in range(people):
        matrix = feature_from_roi[n]
        determinant = abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])
        if np.abs(matrix).sum() < FAR and determinant > MIN_AREA:
            area[n] = determinant
        for joint in range(JOINTS):
            x, y, v = roi_keypoints[n, joint]
            if v > 0.5 and abs(np.float64(x)) + abs(np.float64(y)) + np.float64(v) < FAR:
                seen[n, joint] = 3 if v > 2.5 else 2 if v > 1.5 else 1
    along_x, along_y = np.empty(size, np.float32), np.empty(size, np.float32)
    for row in range(len(windows)):
        i = first_person + row
        if area[i] == 0.0:
            continue
        for j in range(people):
            if j == i or roi_image[j] != roi_image[i] or area[j] == 0.0:
                continue
            a, b, c, d, e, f = _roi_from_roi(feature_from_roi[i], feature_from_roi[j])
            common, apart = 0, 0.0
            for joint in range(JOINTS):
                if seen[i, joint] and seen[j, joint]:
                    x, y = np.float64(roi_keypoints[j, joint, 0]), np.float64(roi_keypoints[j, joint, 1])
                    common += 1
                    apart += np.hypot(
                        a * x + b * y + c - roi_keypoints[i, joint, 0], d * x + e * y + f - roi_keypoints[i, joint, 1]
                    )
            if common and apart / common < SAME_PERSON_PX:
                continue
            sigma = min(max(SIGMA_PX * np.sqrt(area[j] / area[i]), MIN_SIGMA_PX), MAX_SIGMA_PX)
            reach = _REACH * sigma
            for point in range(points):
                one, two, share = _FIRST[point], _SECOND[point], _SHARE[point]
                kind = min(seen[j, one], seen[j, two])
                if not 1 <= kind <= 2:
                    continue
                own_x = (1.0 - share) * roi_keypoints[j, one, 0] + share * roi_keypoints[j, two, 0]
                own_y = (1.0 - share) * roi_keypoints[j, one, 1] + share * roi_keypoints[j, two, 1]
                x, y = a * own_x + b * own_y + c, d * own_x + e * own_y + f
                if not (-reach < x < size - 1 + reach and -reach < y < size - 1 + reach):
                    continue
                left, right = _gaussian(along_x, x, sigma, reach)
                top, bottom = _gaussian(along_y, y, sigma, reach)
                drawn = maps[row, 2 - kind]
                for v in range(top, bottom):
                    weight = along_y[v]
                    for u in range(left, right):
                        drawn[v, u] += weight * along_x[u]
        for channel in range(CHANNELS):
            for v in range(size):
                for u in range(size):
                    maps[row, channel, v, u] = min(maps[row, channel, v, u], np.float32(1.0))


@compiled
def _roi_from_roi(mine: F64, other: F64) -> tuple[float, float, float, float, float, float]:
    """The two rows of the matrix from another person's window to mine."""
    determinant = mine[0, 0] * mine[1, 1] - mine[0, 1] * mine[1, 0]
    inverse_a, inverse_b = mine[1, 1] / determinant, -mine[0, 1] / determinant
    inverse_c, inverse_d = -mine[1, 0] / determinant, mine[0, 0] / determinant
    shift_x, shift_y = other[0, 2] - mine[0, 2], other[1, 2] - mine[1, 2]
    return (
        inverse_a * other[0, 0] + inverse_b * other[1, 0],
        inverse_a * other[0, 1] + inverse_b * other[1, 1],
        inverse_a * shift_x + inverse_b * shift_y,
        inverse_c * other[0, 0] + inverse_d * other[1, 0],
        inverse_c * other[0, 1] + inverse_d * other[1, 1],
        inverse_c * shift_x + inverse_d * shift_y,
    )


@compiled
def _gaussian(values: F32, centre: float, sigma: float, reach: float) -> tuple[int, int]:
    """Write a Gaussian where it is within ``reach`` of its centre; the range first <= i < last that was written.

    From one px to the next it grows by a factor, which itself shrinks by a constant factor: two exponentials in all.
    """
    first = int(max(np.ceil(centre - reach), 0.0))
    last = int(min(np.floor(centre + reach) + 1.0, float(len(values))))
    fall = 0.5 / sigma**2
    value = np.exp(-fall * (first - centre) ** 2)
    factor, shrink = np.exp(-fall * (2.0 * (first - centre) + 1.0)), np.exp(-2.0 * fall)
    for i in range(first, last):
        values[i] = value
        value *= factor
        factor *= shrink
    return first, last


def sample_crowd(size: int) -> tuple[F32, NDArray[np.int32], F32]:
    """``feature_from_roi``, ``roi_image`` and ``roi_keypoints`` of people on whom a drawing is compared with ours.

    They are of two pictures, overlap, are up to 30 times as large as each other, two of them are one person, and one is
    nobody's neighbour. See `kernels.skeleton.draws_alike`.
    """
    poses = sample_poses(size)
    people = len(poses)
    rng = np.random.default_rng(1)
    angle, scale = rng.uniform(-0.5, 0.5, people), np.geomspace(0.1, 3.0, people)
    middle = (size - 1) / 2
    matrices = np.empty((people, 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = -scale * np.sin(angle), scale * np.sin(angle)
    matrices[:, :, 2] = rng.uniform(0.3 * size, 0.7 * size, (people, 2)) - middle * matrices[:, :, :2].sum(2)
    images = (np.arange(people) // 2 % 2).astype(np.int32)
    matrices[5], poses[5] = matrices[4], poses[4] + np.array([0.5, -0.5, 0.0], np.float32)
    poses[7, poses[7, :, 2] == 2, 2] = OWN_ONLY
    return matrices.astype(np.float32), images, poses


def neighbour_features_reference(
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
    size: int = 64,
) -> F32:
    """`neighbour_features` as its words read: every Gaussian on the whole grid, matrices inverted by NumPy."""
    _check(feature_from_roi, roi_image, roi_keypoints, size)
    people = len(roi_keypoints)
    maps = np.zeros((people, CHANNELS, size, size), np.float64)
    grid_y, grid_x = np.mgrid[:size, :size].astype(np.float64)
    matrices = np.tile(np.eye(3), (people, 1, 1))
    matrices[:, :2] = feature_from_roi
    poses = roi_keypoints.astype(np.float64)
    areas = [abs(a * d - b * c) for (a, b, _), (c, d, _), _ in matrices.tolist()]
    has_window = [np.abs(m[:2]).sum() < FAR and area > MIN_AREA for m, area in zip(matrices, areas, strict=True)]
    there = (poses[..., 2] > 0.5) & (np.abs(poses).sum(-1) < FAR)

    def is_drawn(i: int, j: int) -> bool:
        return i != j and roi_image[i] == roi_image[j] and has_window[i] and has_window[j]

    for i, j in ((i, j) for i in range(people) for j in range(people) if is_drawn(i, j)):
        mine_from_other = np.linalg.inv(matrices[i]) @ matrices[j]
        placed = poses[j, :, :2] @ mine_from_other[:2, :2].T + mine_from_other[:2, 2]
        common = there[i] & there[j]
        if common.any():
            apart: F64 = np.linalg.norm(placed[common] - poses[i, common, :2], axis=1)
            if apart.mean() < SAME_PERSON_PX:
                continue
        sigma = np.clip(SIGMA_PX * np.sqrt(areas[j] / areas[i]), MIN_SIGMA_PX, MAX_SIGMA_PX)
        for one, two, share in BODY_POINTS:
            if not (there[j, one] and there[j, two]):
                continue
            x, y = (1 - share) * placed[one] + share * placed[two]
            lowest = min(poses[j, one, 2], poses[j, two, 2])
            if lowest > 2.5:
                continue
            maps[i, int(lowest < 1.5)] += np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * sigma**2))
    return np.minimum(maps, 1.0).astype(np.float32)
