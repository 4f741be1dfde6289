"""The trivial baseline of an evaluation: a thick drawing of the skeleton in place of a mask."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, U8
from kernels.skeleton import LIMBS


def limb_mask(keypoints: F32, visibility: NDArray[np.float32], height: int, width: int) -> U8:
    """The trivial baseline: limbs as thick lines, the torso filled, a disc for the head; (H, W) uint8 of 0 and 1."""
    mask = np.zeros((height, width), np.uint8)
    points = np.round(keypoints[:, :2]).astype(int)
    present = visibility > 0
    if not present.any():
        return mask
    extent = float(np.ptp(keypoints[present, :2], axis=0).max())
    thick = max(2, round(0.12 * extent))
    for a, b in LIMBS:
        if present[a] and present[b]:
            cv2.line(mask, tuple(map(int, points[a])), tuple(map(int, points[b])), 1, thick)
    torso = [j for j in (5, 6, 12, 11) if present[j]]
    if len(torso) >= 3:
        cv2.fillConvexPoly(mask, cv2.convexHull(points[torso].astype(np.int32)), 1)
    head = [j for j in range(5) if present[j]]
    if head:
        cv2.circle(mask, tuple(map(int, points[head].mean(0))), max(2, round(0.1 * extent)), 1, -1)
    return mask
