"""Affine-Align: sample an aligned square window for each person out of the feature map of that person's image.

Convention: ``feature_from_roi`` maps ROI px (u, v) to feature *indices* (x, y), the sampling direction; bilinear
between exact indices, zeros outside the map. The PyTorch operator with the same numbers is
`kernels.affine_align.torch_op`, imported by name.

Source: Pose2Seg section 3.2. Differs: the released code's normalisation slips by up to 1/128 of the shift, this does
not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.affine_align.reference import affine_align_reference, check_arguments
from kernels.compilation import compiled
from kernels.coordinates import F32, F64

__all__ = ["affine_align", "affine_align_reference"]


def affine_align(
    features: F32, feature_from_roi: NDArray[np.floating], roi_image: NDArray[np.integer], size: int = 64
) -> F32:
    """Sample the windows of all people.

    Args:
        features: (B, C, h, w) float32.
        feature_from_roi: (N, 2, 3), ROI px to feature indices. A matrix with NaN or infinity gives zeros.
        roi_image: (N,) integer in 0..B-1: the image of each person.
        size: side S of the window, px.

    Returns:
        (N, C, S, S) float32. N may be 0.

    Raises:
        ValueError: shapes, or an image index outside 0..B-1.
    """
    check_arguments(features, feature_from_roi, roi_image, size)
    return _affine_align(
        np.ascontiguousarray(features, np.float32),
        np.ascontiguousarray(feature_from_roi, np.float64),
        np.ascontiguousarray(roi_image, np.int64),
        size,
    )


@compiled
def _affine_align(features: F32, feature_from_roi: F64, roi_image: NDArray[np.int64], size: int) -> F32:
    _, channels, height, width = features.shape
    people, pixels = len(feature_from_roi), size * size
    windows = np.zeros((people, channels, pixels), np.float32)
    flat = features.reshape(features.shape[0], channels, height * width)
    # Where to read and with what weight is the same for every channel: worked out once per person.
    targets = np.empty(pixels, np.int64)
    taps = np.empty((pixels, 4), np.int64)
    weights = np.empty((pixels, 4), np.float32)
    for n in range(people):
        matrix = feature_from_roi[n]
        if not np.all(np.isfinite(matrix)):
            continue
        count = 0
        for v in range(size):
            for u in range(size):
                x = matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2]
                y = matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2]
                if not (-1.0 < x < width and -1.0 < y < height):
                    continue
                x0, y0 = int(np.floor(x)), int(np.floor(y))
                fx, fy = x - x0, y - y0
                targets[count] = v * size + u
                for corner in range(4):
                    dx, dy = corner % 2, corner // 2
                    inside = 0 <= x0 + dx < width and 0 <= y0 + dy < height
                    weight = (fx if dx else 1.0 - fx) * (fy if dy else 1.0 - fy)
                    taps[count, corner] = (y0 + dy) * width + x0 + dx if inside else 0
                    weights[count, corner] = weight if inside else 0.0
                count += 1
        for channel in range(channels):
            source = flat[roi_image[n], channel]
            window = windows[n, channel]
            for i in range(count):
                window[targets[i]] = (
                    weights[i, 0] * source[taps[i, 0]]
                    + weights[i, 1] * source[taps[i, 1]]
                    + weights[i, 2] * source[taps[i, 2]]
                    + weights[i, 3] * source[taps[i, 3]]
                )
    return windows.reshape(people, channels, size, size)
