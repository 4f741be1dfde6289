"""Masks that share no px: where several people's masks meet, the surest keeps the px.

The paper lets masks overlap, and so do the masks that are served. For an evaluation of how much of the identity
confusion is two masks claiming one px.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32


def exclusive_masks(
    probabilities: F32, roi_from_frame: NDArray[np.floating], height: int, width: int, *, threshold: float = 0.5
) -> NDArray[np.bool_]:
    """Each person's px: where the probability is above the threshold and the greatest of all people's.

    Args:
        probabilities: (N, S, S) in ROI px, 0..1; N may be 0.
        roi_from_frame: (N, 2, 3), frame px to ROI px.
        height: of the frame, px.
        width: of the frame, px.
        threshold: a px below it is nobody's.

    Returns:
        (N, height, width); at most one person a px, of equally sure ones the first. OpenCV places samples to 1/32 px.
    """
    result = np.zeros((len(probabilities), height, width), np.bool_)
    if not len(probabilities):
        return result
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    full = np.zeros(result.shape, np.float32)
    for number, (probability, matrix) in enumerate(zip(probabilities, roi_from_frame, strict=True)):
        full[number] = cv2.warpAffine(probability, np.asarray(matrix, np.float64), (width, height), flags=flags)
    surest = full.argmax(0)
    np.put_along_axis(result, surest[None], np.take_along_axis(full, surest[None], 0) > threshold, 0)
    return result


def exclusive_masks_reference(
    probabilities: F32, roi_from_frame: NDArray[np.floating], height: int, width: int, *, threshold: float = 0.5
) -> NDArray[np.bool_]:
    """`exclusive_masks`, px by px, with samples in their exact places."""
    result = np.zeros((len(probabilities), height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            best, owner = threshold, -1
            for number, (probability, matrix) in enumerate(zip(probabilities, roi_from_frame, strict=True)):
                u, v = np.asarray(matrix, np.float64) @ (x, y, 1.0)
                value = _bilinear(probability, u, v)
                if value > best:
                    best, owner = value, number
            if owner >= 0:
                result[owner, y, x] = True
    return result


def _bilinear(image: F32, u: float, v: float) -> float:
    """Value at column u and row v; zero outside."""
    total = 0.0
    left, top = int(np.floor(u)), int(np.floor(v))
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += float(image[row, column]) * (1 - abs(u - column)) * (1 - abs(v - row))
    return total
