"""Masks as polygons, for the formats of annotation tools and trainers that want outlines.

Convention: corner coordinates, as COCO's and YOLO's polygons have them: the px in row y and column x covers the square
from (x, y) to (x + 1, y + 1). A corner of a polygon lies a quarter of a px inside the border of the mask.
"""

from __future__ import annotations

import cv2
import numpy as np

from kernels.coordinates import F32, U8
from kernels.mask_paste import PastedMask

TOLERANCE_PX = 0.35  # corners that move the outline by less are left out
SMALLEST_AREA_PX = 4.0  # of a part beside the largest one


def mask_polygons(mask: PastedMask) -> list[F32]:
    """Outlines of all parts of a mask; holes are filled.

    Returns:
        (K, 2) float32 each, K >= 3, x and y in frame px (corner coordinates), the largest part first; parts of less
        than `SMALLEST_AREA_PX` are left out, but for the largest. Empty for an empty mask.
    """
    if not mask.mask.any():
        return []
    # Twice as large, a contour along px centres comes half as near to the px borders; a single px gets an area.
    twice: U8 = np.repeat(np.repeat(np.pad(mask.mask, 1).view(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found: list[tuple[float, F32]] = []
    for contour in contours:
        simpler = cv2.approxPolyDP(contour, 2 * TOLERANCE_PX, True)
        if len(simpler) < 3:
            simpler = contour
        points: F32 = (simpler.reshape(-1, 2).astype(np.float32) + np.float32(0.5)) / np.float32(2) - np.float32(1)
        area = float(cv2.contourArea(points))
        found.append((area, points + np.array([mask.x0, mask.y0], np.float32)))
    found.sort(key=lambda entry: -entry[0])
    return [points for n, (area, points) in enumerate(found) if n == 0 or area >= SMALLEST_AREA_PX]


def one_polygon(parts: list[F32]) -> F32:
    """All parts as a single outline, for formats with one polygon per object: joined by lines without an area.

    Args:
        parts: of `mask_polygons`, at least one.

    Returns:
        (K, 2) float32.
    """
    joined = parts[0]
    for part in parts[1:]:
        distances = np.linalg.norm(joined[:, None] - part[None], axis=2)
        here, there = (int(i) for i in np.unravel_index(int(distances.argmin()), distances.shape))
        round_trip = np.concatenate((part[there:], part[: there + 1]))
        joined = np.concatenate((joined[: here + 1], round_trip, joined[here:]))
    return joined
