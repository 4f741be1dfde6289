"""Associative embedding: joints with like tags are one person.

The network gives heatmaps, and for each joint a map of tags: numbers without a meaning of their own, alike on the
joints of one person and unlike on those of another.

    1. Joints are taken in a fixed order, head first. The candidates of a joint are given to the people found so far by
       the optimal assignment; the cost of a pair is its distance in tags (to the mean tag of that person), rounded, and
       of equal ones the candidate with the higher probability goes first.
    2. A pair further apart than `max_tag_distance` is none: its candidate starts somebody new.
    3. Adjust: each joint moves a quarter of a cell towards the higher of its two neighbours, in x and in y.
    4. Refine: a joint that nobody gave to a person is looked for in the whole map: the cell where probability less
       rounded distance in tags is highest.

There are no boxes and nothing is suppressed: a candidate belongs to one person.

Source: Newell, Huang, Deng, "Associative Embedding", NIPS 2017, section 3.3, and its published code for order,
rounding, adjust and refine. Differs: pairs that are equal after rounding are told apart by their true distance, where
the published code leaves them to its assignment library; neighbours of equal height move a joint nowhere; beyond
`max_people` nobody new is started; two candidates of the same tag are not merged by that alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.assignment import assign_reference, assign_rows
from kernels.compilation import compiled
from kernels.coordinates import F32, F64
from kernels.keypoint_maps import MAP_STRIDE, cell_of, check_candidates, check_maps, check_range, px_of
from kernels.skeleton import JOINTS

#: (17,) the published order of joints: head, shoulders, hips, then outwards.
JOINT_ORDER: NDArray[np.int64] = np.array([0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16])
NO_PEAK = -1
_FAR = 100.0  # tags further apart are equally far; keeps the costs within what the assignment can tell apart
_TIE = 1e-3  # weight of the true distance against the rounded one; squared, since in one dimension plain ones tie again


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParameters:
    """How tags become people; the published values."""

    min_joint: float = 0.1
    """Candidates below this probability are not looked at."""
    max_tag_distance: float = 1.0
    """Tags further apart belong to different people."""
    max_people: float = 30
    refine: float = 1
    """0 leaves joints away that the grouping did not find."""
    stride: float = MAP_STRIDE
    """Input px for each cell of the maps."""

    def __post_init__(self) -> None:
        check_range(
            self, min_joint=(0, 1), max_tag_distance=(1e-6, 1e6), max_people=(1, 256), refine=(0, 1), stride=(1, 64)
        )


DEFAULT_EMBEDDING = EmbeddingParameters()


def group_by_tags(
    joint_candidates: F32, heatmaps: F32, tags: F32, *, parameters: EmbeddingParameters = DEFAULT_EMBEDDING
) -> tuple[F32, F32]:
    """People of one image.

    Args:
        joint_candidates: (17, M, 4): x, y in input px, probability, tag: cells of the maps that are peaks.
        heatmaps: (17, h, w) probability of each joint.
        tags: (17, h, w).
        parameters: see there.

    Returns:
        keypoints (N, 17, 3) float32: x, y in input px and probability; a joint that was not found is (0, 0, 0).
        scores (N,) float32, falling: mean probability of all 17 joints before refinement. N may be 0. Candidates with
        NaN or infinity are left out.

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(joint_candidates, heatmaps, tags)
    keypoints, scores = _group(
        np.ascontiguousarray(joint_candidates, np.float32),
        np.ascontiguousarray(heatmaps, np.float32),
        np.ascontiguousarray(tags, np.float32),
        JOINT_ORDER,
        parameters.min_joint,
        parameters.max_tag_distance,
        int(parameters.max_people),
        parameters.refine >= 0.5,
        parameters.stride,
    )
    return keypoints, scores


def _check(joint_candidates: F32, heatmaps: F32, tags: F32) -> None:
    check_candidates(joint_candidates, JOINTS)
    check_maps("heatmaps", heatmaps, JOINTS)
    check_maps("tags", tags, JOINTS, heatmaps.shape[1:])


@compiled
def _group(
    candidates: F32,
    heatmaps: F32,
    tags: F32,
    joint_order: NDArray[np.int64],
    min_joint: float,
    max_tag_distance: float,
    max_people: int,
    refine: bool,
    stride: float,
) -> tuple[F32, F32]:
    peaks = np.full((max_people, JOINTS), NO_PEAK, np.int64)
    tag_sums, tag_counts = np.zeros(max_people), np.zeros(max_people)
    people = 0
    rows = np.empty(candidates.shape[1], np.int64)
    for joint in joint_order:
        count = 0
        for m in range(candidates.shape[1]):
            if candidates[joint, m, 2] >= min_joint and np.isfinite(candidates[joint, m]).all():
                rows[count] = m
                count += 1
        distance = np.empty((count, people))
        cost = np.zeros((count, max(count, people)))  # who stays alone costs the same, however many do
        for r in range(count):
            for c in range(people):
                apart = abs(np.float64(candidates[joint, rows[r], 3]) - tag_sums[c] / tag_counts[c])
                distance[r, c] = apart
                apart = min(apart, _FAR)
                cost[r, c] = 100.0 * np.rint(apart) - np.float64(candidates[joint, rows[r], 2]) + _TIE * apart * apart
        columns = assign_rows(cost)
        before = people
        for r in range(count):
            c = columns[r]
            if not (c < before and distance[r, c] < max_tag_distance):
                if people == max_people:
                    continue
                c = people
                people += 1
            peaks[c, joint] = rows[r]
            tag_sums[c] += candidates[joint, rows[r], 3]
            tag_counts[c] += 1

    joints = np.zeros((people, JOINTS, 3))
    scores = np.zeros(people)
    for n in range(people):
        for k in range(JOINTS):
            if peaks[n, k] != NO_PEAK:
                x = cell_of(np.float64(candidates[k, peaks[n, k], 0]), stride)
                y = cell_of(np.float64(candidates[k, peaks[n, k], 1]), stride)
                _adjusted(joints[n, k], heatmaps[k], x, y, stride)
                joints[n, k, 2] = candidates[k, peaks[n, k], 2]
                scores[n] += joints[n, k, 2] / JOINTS
        if refine:
            for k in range(JOINTS):
                if peaks[n, k] == NO_PEAK:
                    _look_for(joints[n, k], heatmaps[k], tags[k], tag_sums[n] / tag_counts[n], stride)

    order = np.argsort(-scores, kind="mergesort")
    keypoints = np.empty((people, JOINTS, 3), np.float32)
    for n in range(people):
        keypoints[n] = joints[order[n]]
    return keypoints, scores[order].astype(np.float32)


@compiled
def _adjusted(joint: F64, heatmap: F32, x: float, y: float, stride: float) -> None:
    """Write the place in px: the cell's, moved a quarter of a cell towards the higher of two neighbours."""
    height, width = heatmap.shape
    column = int(min(max(np.rint(x), 0.0), width - 1.0))
    row = int(min(max(np.rint(y), 0.0), height - 1.0))
    right, left = heatmap[row, min(column + 1, width - 1)], heatmap[row, max(column - 1, 0)]
    below, above = heatmap[min(row + 1, height - 1), column], heatmap[max(row - 1, 0), column]
    joint[0] = px_of(x + 0.25 * ((right > left) - (right < left)), stride)
    joint[1] = px_of(y + 0.25 * ((below > above) - (below < above)), stride)


@compiled
def _look_for(joint: F64, heatmap: F32, tags: F32, tag: float, stride: float) -> None:
    """Write the place and probability of the cell that suits a tag best; nothing where the map is empty."""
    best, best_row, best_column = -np.inf, 0, 0
    for row in range(heatmap.shape[0]):
        for column in range(heatmap.shape[1]):
            worth = np.float64(heatmap[row, column]) - np.rint(abs(np.float64(tags[row, column]) - tag))
            if worth > best and worth < np.inf:
                best, best_row, best_column = worth, row, column
    if heatmap[best_row, best_column] > 0 and best > -np.inf:
        _adjusted(joint, heatmap, float(best_column), float(best_row), stride)
        joint[2] = heatmap[best_row, best_column]


def group_by_tags_reference(
    joint_candidates: F32, heatmaps: F32, tags: F32, *, parameters: EmbeddingParameters = DEFAULT_EMBEDDING
) -> tuple[F32, F32]:
    """`group_by_tags` in plain Python, the four steps of the module's text one after the other."""
    _check(joint_candidates, heatmaps, tags)
    people: list[dict[int, F64]] = []  # joint -> its candidate
    for joint in JOINT_ORDER.tolist():
        rows = [
            row.astype(np.float64)
            for row in joint_candidates[joint]
            if row[2] >= parameters.min_joint and np.isfinite(row).all()
        ]
        means = [float(np.mean([candidate[3] for candidate in person.values()])) for person in people]
        apart = np.abs(np.array([row[3] for row in rows])[:, None] - np.array(means)[None, :])
        cost = np.zeros((len(rows), max(len(rows), len(people))))
        near = np.minimum(apart, _FAR)
        cost[:, : len(people)] = 100 * np.rint(near) - np.array([row[2] for row in rows])[:, None] + _TIE * near**2
        for row, column, distances in zip(rows, assign_reference(cost), apart, strict=True):
            if column < len(means) and distances[column] < parameters.max_tag_distance:
                people[column][joint] = row
            elif len(people) < int(parameters.max_people):
                people.append({joint: row})

    found = []
    for person in people:
        joints = np.zeros((JOINTS, 3))
        tag = float(np.mean([candidate[3] for candidate in person.values()]))
        for k in range(JOINTS):
            if k in person:
                cells = (person[k][:2] + 0.5) / parameters.stride - 0.5
                joints[k] = (*_adjusted_reference(heatmaps[k], cells, parameters.stride), person[k][2])
        score = float(joints[:, 2].sum() / JOINTS)
        for k in range(JOINTS):
            if k not in person and parameters.refine >= 0.5:
                with np.errstate(invalid="ignore"):
                    worth = heatmaps[k].astype(np.float64) - np.rint(np.abs(tags[k].astype(np.float64) - tag))
                worth = np.where(np.isfinite(worth), worth, -np.inf)
                row, column = np.unravel_index(int(worth.argmax()), worth.shape)
                if worth[row, column] > -np.inf and heatmaps[k, row, column] > 0:
                    cells = np.array([column, row], np.float64)
                    place = _adjusted_reference(heatmaps[k], cells, parameters.stride)
                    joints[k] = (*place, heatmaps[k, row, column])
        found.append((score, joints))
    found.sort(key=lambda entry: -entry[0])
    keypoints = np.array([joints for _, joints in found], np.float32).reshape(-1, JOINTS, 3)
    return keypoints, np.array([score for score, _ in found], np.float32)


def _adjusted_reference(heatmap: F32, cells: F64, stride: float) -> F64:
    """(2,) x, y in px of a place in cells, moved a quarter of a cell towards the higher neighbours."""
    padded = np.pad(heatmap, 1, mode="edge")
    column, row = np.clip(np.rint(cells), 0, np.array(heatmap.shape[::-1]) - 1).astype(int) + 1
    with np.errstate(invalid="ignore"):
        slope = np.sign(
            [
                padded[row, column + 1].astype(float) - padded[row, column - 1],
                padded[row + 1, column].astype(float) - padded[row - 1, column],
            ]
        )
    place: F64 = (cells + 0.25 * np.nan_to_num(slope) + 0.5) * stride - 0.5
    return place
