"""PersonLab's masks: every person pixel points to the joints of its own person, and goes to whom it points to best.

The network gives the probability that a cell belongs to any person, and for each joint the long offset from each such
cell to that joint of its person. A cell's distance to a person is the mean distance of the places it points to from the
person's joints, weighted by their probability, over the person's size. A cell belongs to everybody within
`MAX_DISTANCE`.

Source: Papandreou et al., "PersonLab", ECCV 2018, section 3.2, eq. 4.
"""

from __future__ import annotations

import numpy as np

from kernels.compilation import compiled
from kernels.coordinates import F32
from kernels.keypoint_maps import MAP_STRIDE, cell_of, check_maps, sample, sample_reference
from kernels.skeleton import JOINTS

MAX_DISTANCE = 0.25
MIN_JOINT = 0.1  # joints below this probability do not count for a person's size
REFINEMENTS = 2


def embedding_distances(
    person: F32,
    long_offsets: F32,
    short_offsets: F32,
    keypoints: F32,
    *,
    min_person: float = 0.5,
    stride: float = MAP_STRIDE,
) -> F32:
    """Distance of every cell to every person, eq. 4.

    Args:
        person: (h, w) probability that a cell belongs to a person.
        long_offsets: (34, h, w): y and x from a cell to each joint of its person, cells.
        short_offsets: (34, h, w): they refine the long ones, twice, as the middle ones.
        keypoints: (N, 17, 3): x, y in input px and probability; joints with NaN or infinity do not count.
        min_person: cells below it belong to nobody.
        stride: input px for each cell.

    Returns:
        (N, h, w) float32, a share of the person's size; infinity where nobody is, and for a person without joints.

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(person, long_offsets, short_offsets, keypoints)
    distances: F32 = _embedding_distances(
        np.ascontiguousarray(person, np.float32),
        np.ascontiguousarray(long_offsets, np.float32),
        np.ascontiguousarray(short_offsets, np.float32),
        np.ascontiguousarray(keypoints, np.float32),
        min_person,
        stride,
    )
    return distances


def _check(person: F32, long_offsets: F32, short_offsets: F32, keypoints: F32) -> None:
    if person.ndim != 2 or 0 in person.shape:
        raise ValueError(f"person must be (h, w), got {person.shape}")
    check_maps("long_offsets", long_offsets, 2 * JOINTS, person.shape)
    check_maps("short_offsets", short_offsets, 2 * JOINTS, person.shape)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (JOINTS, 3):
        raise ValueError(f"keypoints must be (N, {JOINTS}, 3), got {keypoints.shape}")


@compiled
def _embedding_distances(
    person: F32, long_offsets: F32, short_offsets: F32, keypoints: F32, min_person: float, stride: float
) -> F32:
    people, joints = keypoints.shape[0], keypoints.shape[1]
    height, width = person.shape
    places = np.zeros((people, joints, 2))
    weights = np.zeros((people, joints))
    scales = np.ones(people)
    for n in range(people):
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        total = 0.0
        for k in range(joints):
            p = np.float64(keypoints[n, k, 2])
            x = cell_of(np.float64(keypoints[n, k, 0]), stride)
            y = cell_of(np.float64(keypoints[n, k, 1]), stride)
            if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(p) and p > 0):
                continue
            places[n, k, 0], places[n, k, 1], weights[n, k] = x, y, p
            total += p
            if p >= MIN_JOINT:
                low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
        if high_x >= low_x:
            scales[n] = np.sqrt(max((high_x - low_x) * (high_y - low_y), 1.0))
        if total > 0:
            for k in range(joints):
                weights[n, k] /= total
    distances = np.full((people, height, width), np.inf, np.float32)
    pointed = np.empty((joints, 2))
    for row in range(height):
        for column in range(width):
            if not person[row, column] >= min_person:
                continue
            for k in range(joints):
                dx = np.float64(long_offsets[2 * k + 1, row, column])
                dy = np.float64(long_offsets[2 * k, row, column])
                x, y = float(column), float(row)
                if np.isfinite(dx) and np.isfinite(dy):
                    x, y = x + dx, y + dy
                for _ in range(REFINEMENTS):
                    x, y = x + sample(short_offsets[2 * k + 1], x, y), y + sample(short_offsets[2 * k], x, y)
                pointed[k, 0], pointed[k, 1] = x, y
            for n in range(people):
                distance, weight = 0.0, 0.0
                for k in range(joints):
                    if weights[n, k] > 0:
                        apart = np.hypot(pointed[k, 0] - places[n, k, 0], pointed[k, 1] - places[n, k, 1])
                        distance += weights[n, k] * apart
                        weight += weights[n, k]
                if weight > 0:
                    distances[n, row, column] = distance / scales[n]
    return distances


def embedding_distances_reference(
    person: F32,
    long_offsets: F32,
    short_offsets: F32,
    keypoints: F32,
    *,
    min_person: float = 0.5,
    stride: float = MAP_STRIDE,
) -> F32:
    """`embedding_distances` cell by cell and joint by joint."""
    _check(person, long_offsets, short_offsets, keypoints)
    distances = np.full((len(keypoints), *person.shape), np.inf, np.float32)
    for row, column in np.argwhere(person >= min_person).tolist():
        pointed = np.zeros((JOINTS, 2))
        for k in range(JOINTS):
            place = np.array([column, row], np.float64)
            offset = long_offsets[[2 * k + 1, 2 * k], row, column].astype(np.float64)
            place = place + offset if np.isfinite(offset).all() else place
            for _ in range(REFINEMENTS):
                shift = [sample_reference(short_offsets[2 * k + axis], *place) for axis in (1, 0)]
                place = place + shift
            pointed[k] = place
        for n, pose in enumerate(keypoints.astype(np.float64)):
            counted = np.isfinite(pose).all(axis=1) & (pose[:, 2] > 0)
            if not counted.any():
                continue
            cells = (pose[:, :2] + 0.5) / stride - 0.5
            sure = cells[counted & (np.where(counted, pose[:, 2], 0) >= MIN_JOINT)]
            scale = np.sqrt(max(float(np.prod(np.ptp(sure, axis=0))), 1.0)) if len(sure) else 1.0
            apart = np.linalg.norm(pointed - cells, axis=1)[counted]
            p = pose[counted, 2]
            distances[n, row, column] = (p * apart).sum() / p.sum() / scale
    return distances
