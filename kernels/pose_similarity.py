"""How much poses look like one person a moment later: what ids are given by.

Half object keypoint similarity (OKS) over the joints both poses show, with spreads made wider for motion, half the
overlap of the boxes around their joints. Convention: x, y in px of any one frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F64
from kernels.pose_decoding import OKS_SPREADS

MOTION_SLACK = 4.0  # OKS spreads are made for annotation noise; between two frames people move more than that
SLACK_PER_S = 4.0  # the longer unseen, the less is known about where somebody is
BOX_WEIGHT = 0.5
MIN_SHARED_JOINTS = 3
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
            similarity = BOX_WEIGHT * overlap / (area + other_area - overlap)
            slack = MOTION_SLACK * (1.0 + SLACK_PER_S * max(unseen_s[m], 0.0))
            shared, total = 0, 0.0
            for j in range(points.shape[1]):
                if visible[n, j] and other_visible[m, j]:
                    dx, dy = points[n, j, 0] - other_points[m, j, 0], points[n, j, 1] - other_points[m, j, 1]
                    variance = (area + other_area) / 2.0 * (slack * OKS_SPREADS[j] / 2.0) ** 2
                    total += np.exp(-(dx * dx + dy * dy) / (2.0 * variance))
                    shared += 1
            if shared >= MIN_SHARED_JOINTS:
                similarity += (1.0 - BOX_WEIGHT) * total / shared
            result[n, m] = similarity
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
        result[n, m] = BOX_WEIGHT * overlap / (area + other_area - overlap)
        if shared.sum() >= MIN_SHARED_JOINTS:
            slack = MOTION_SLACK * (1.0 + SLACK_PER_S * max(float(unseen_s[m]), 0.0))
            variances = (area + other_area) / 2.0 * (slack * OKS_SPREADS[shared] / 2.0) ** 2
            distances2 = ((points[n, shared] - other_points[m, shared]) ** 2).sum(axis=1)
            result[n, m] += (1.0 - BOX_WEIGHT) * float(np.exp(-distances2 / (2.0 * variances)).mean())
    return result


def _box_reference(points: F64, visible: Visible) -> tuple[F64, F64]:
    chosen = points[visible] if visible.any() else points
    return chosen.min(axis=0) - 0.5, chosen.max(axis=0) + 0.5
