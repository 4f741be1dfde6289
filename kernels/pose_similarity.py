"""How much poses look like one person a moment later: what ids are given by.

Object keypoint similarity (OKS) over the joints both poses show, with spreads made wider for motion, and for a tenth
the overlap of the boxes around their joints; the boxes alone where there are too few joints. Whoever comes back from
behind somebody is not quite where expected: for them there is a measure of distance and size. Convention: x, y in px
of any one frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F64
from kernels.pose_decoding import OKS_SPREADS

MOTION_SLACK = 4.0  # OKS spreads are made for annotation noise; between two frames people move more than that
SLACK_PER_S = 4.0  # the longer unseen, the less is known about where somebody is
BOX_WEIGHT = 0.1
LONE_BOX_WEIGHT = 0.5  # where fewer than three joints can be compared
AREA_OF_SIZE = 0.4  # body area over squared body size: somebody seen from the side is narrow, not small
MIN_SHARED_JOINTS = 3
RETURN_REACH_S = 0.3  # somebody lost is looked for within (this + the time unseen, s) x their size
MAX_SIZE_RATIO = 1.6  # between the size remembered and that of who comes back
LEAST_CHANCE = 0.1  # of a return at the very edge of the reach
Visible = NDArray[np.bool_]


def pose_similarities(points: F64, visible: Visible, other_points: F64, other_visible: Visible, unseen_s: F64) -> F64:
    """Compare every pose with every other.

    Args:
        points: (N, 17, 2) x, y in px.
        visible: (N, 17) joints that count; where none does the box is that of all joints.
        other_points: (M, 17, 2), where the others are expected.
        other_visible: (M, 17).
        unseen_s: (M,) how long ago each other pose was seen, s; 0 within one frame.

    Returns:
        (N, M), 0..1. With fewer than three joints in common the boxes alone speak, for half at most.
    """
    result: F64 = _similarities(points, visible, other_points, other_visible, unseen_s)
    return result


def return_chances(
    points: F64, visible: Visible, expected: F64, last: F64, other_visible: Visible, sizes: F64, unseen_s: F64
) -> F64:
    """How well poses that nobody known explains fit people who were lost.

    Measured is the middle shift of the joints in common (of the boxes' middles with fewer than three), from where the
    person is expected or from where they were seen last, whichever is nearer: some walk on behind the one who hides
    them, some turn back.

    Args:
        points: (N, 17, 2) x, y in px.
        visible: (N, 17) joints that count; where none does all do.
        expected: (M, 17, 2) where the lost are expected.
        last: (M, 17, 2) where they were seen last.
        other_visible: (M, 17).
        sizes: (M,) longer side of the box around a whole person's joints, px.
        unseen_s: (M,) how long ago each was seen, s.

    Returns:
        (N, M): 0 out of reach or of another size, else from 1 (no shift) down to `LEAST_CHANCE` at the reach's edge.
    """
    result: F64 = _return_chances(points, visible, expected, last, other_visible, sizes, unseen_s)
    return result


@compiled
def _boxes(points: F64, visible: Visible) -> F64:
    boxes = np.empty((len(points), 4))
    for n in range(len(points)):
        any_visible = visible[n].any()
        x0, y0, x1, y1 = np.inf, np.inf, -np.inf, -np.inf
        for j in range(points.shape[1]):
            if visible[n, j] or not any_visible:
                x0, x1 = min(x0, points[n, j, 0]), max(x1, points[n, j, 0])
                y0, y1 = min(y0, points[n, j, 1]), max(y1, points[n, j, 1])
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5
    return boxes


@compiled
def _side(box: F64) -> float:
    """Longer side of x0, y0, x1, y1."""
    side: float = max(box[2] - box[0], box[3] - box[1])
    return side


@compiled
def _similarities(points: F64, visible: Visible, other_points: F64, other_visible: Visible, unseen_s: F64) -> F64:
    boxes, others = _boxes(points, visible), _boxes(other_points, other_visible)
    result = np.zeros((len(points), len(other_points)))
    for n in range(len(points)):
        area = (boxes[n, 2] - boxes[n, 0]) * (boxes[n, 3] - boxes[n, 1])
        for m in range(len(other_points)):
            other_area = (others[m, 2] - others[m, 0]) * (others[m, 3] - others[m, 1])
            width = min(boxes[n, 2], others[m, 2]) - max(boxes[n, 0], others[m, 0])
            height = min(boxes[n, 3], others[m, 3]) - max(boxes[n, 1], others[m, 1])
            overlap = max(0.0, width) * max(0.0, height)
            box_overlap = overlap / (area + other_area - overlap)
            size = (_side(boxes[n]) + _side(others[m])) / 2.0
            slack = MOTION_SLACK * (1.0 + SLACK_PER_S * max(unseen_s[m], 0.0))
            shared, total = 0, 0.0
            for j in range(points.shape[1]):
                if visible[n, j] and other_visible[m, j]:
                    dx, dy = points[n, j, 0] - other_points[m, j, 0], points[n, j, 1] - other_points[m, j, 1]
                    variance = AREA_OF_SIZE * size * size * (slack * OKS_SPREADS[j] / 2.0) ** 2
                    total += np.exp(-(dx * dx + dy * dy) / (2.0 * variance))
                    shared += 1
            if shared >= MIN_SHARED_JOINTS:
                result[n, m] = BOX_WEIGHT * box_overlap + (1.0 - BOX_WEIGHT) * total / shared
            else:
                result[n, m] = LONE_BOX_WEIGHT * box_overlap
    return result


@compiled
def _return_chances(
    points: F64, visible: Visible, expected: F64, last: F64, other_visible: Visible, sizes: F64, unseen_s: F64
) -> F64:
    boxes, expected_boxes, last_boxes = (
        _boxes(points, visible),
        _boxes(expected, other_visible),
        _boxes(last, other_visible),
    )
    result = np.zeros((len(points), len(expected)))
    shifts = np.empty((2, 2, points.shape[1]))  # from expected, from last; x, y
    for n in range(len(points)):
        size = _side(boxes[n])
        for m in range(len(expected)):
            if max(size / sizes[m], sizes[m] / size) > MAX_SIZE_RATIO:
                continue
            shared = 0
            for j in range(points.shape[1]):
                if visible[n, j] and other_visible[m, j]:
                    for axis in range(2):
                        shifts[0, axis, shared] = points[n, j, axis] - expected[m, j, axis]
                        shifts[1, axis, shared] = points[n, j, axis] - last[m, j, axis]
                    shared += 1
            nearest = np.inf
            for place in range(2):
                other = expected_boxes[m] if place == 0 else last_boxes[m]
                if shared >= MIN_SHARED_JOINTS:
                    dx, dy = np.median(shifts[place, 0, :shared]), np.median(shifts[place, 1, :shared])
                else:
                    dx = (boxes[n, 0] + boxes[n, 2] - other[0] - other[2]) / 2.0
                    dy = (boxes[n, 1] + boxes[n, 3] - other[1] - other[3]) / 2.0
                nearest = min(nearest, np.sqrt(dx * dx + dy * dy))
            reach = sizes[m] * (RETURN_REACH_S + max(unseen_s[m], 0.0))
            if nearest < reach:
                result[n, m] = 1.0 - (1.0 - LEAST_CHANCE) * nearest / reach
    return result


def pose_similarities_reference(
    points: F64, visible: Visible, other_points: F64, other_visible: Visible, unseen_s: F64
) -> F64:
    """`pose_similarities`, one pair at a time."""
    result = np.zeros((len(points), len(other_points)))
    for n, m in np.ndindex(result.shape):
        shared = visible[n] & other_visible[m]
        low, high = _box_reference(points[n], visible[n])
        other_low, other_high = _box_reference(other_points[m], other_visible[m])
        area, other_area = float(np.prod(high - low)), float(np.prod(other_high - other_low))
        sides = np.minimum(high, other_high) - np.maximum(low, other_low)
        overlap = float(np.prod(np.maximum(sides, 0.0)))
        box_overlap = overlap / (area + other_area - overlap)
        result[n, m] = LONE_BOX_WEIGHT * box_overlap
        if shared.sum() >= MIN_SHARED_JOINTS:
            slack = MOTION_SLACK * (1.0 + SLACK_PER_S * max(float(unseen_s[m]), 0.0))
            size = (float((high - low).max()) + float((other_high - other_low).max())) / 2
            variances = AREA_OF_SIZE * size**2 * (slack * OKS_SPREADS[shared] / 2.0) ** 2
            distances2 = ((points[n, shared] - other_points[m, shared]) ** 2).sum(axis=1)
            oks = float(np.exp(-distances2 / (2.0 * variances)).mean())
            result[n, m] = BOX_WEIGHT * box_overlap + (1.0 - BOX_WEIGHT) * oks
    return result


def _box_reference(points: F64, visible: Visible) -> tuple[F64, F64]:
    chosen = points[visible] if visible.any() else points
    return chosen.min(axis=0) - 0.5, chosen.max(axis=0) + 0.5


def return_chances_reference(
    points: F64, visible: Visible, expected: F64, last: F64, other_visible: Visible, sizes: F64, unseen_s: F64
) -> F64:
    """`return_chances`, one pair at a time."""
    result = np.zeros((len(points), len(expected)))
    for n, m in np.ndindex(result.shape):
        low, high = _box_reference(points[n], visible[n])
        size = float((high - low).max())
        shared = visible[n] & other_visible[m]
        shifts = []
        for place in (expected[m], last[m]):
            other_low, other_high = _box_reference(place, other_visible[m])
            middle = np.median(points[n, shared] - place[shared], axis=0) if shared.sum() >= MIN_SHARED_JOINTS else None
            shifts.append((low + high - other_low - other_high) / 2 if middle is None else middle)
        distance = min(float(np.hypot(*shift)) for shift in shifts)
        reach = sizes[m] * (RETURN_REACH_S + max(float(unseen_s[m]), 0.0))
        if distance < reach and max(size / sizes[m], sizes[m] / size) <= MAX_SIZE_RATIO:
            result[n, m] = 1.0 - (1.0 - LEAST_CHANCE) * distance / reach
    return result


def pose_sizes(points: F64, visible: Visible) -> F64:
    """(N,) longer side of the box around each pose's (N, 17, 2) joints that count, px; of all where none does."""
    boxes = _boxes(points, visible)
    result: F64 = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return result
