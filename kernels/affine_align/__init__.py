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

__all__ = ["affine_align", "affine_align_reference", "sample_windows"]


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
    channels = features.shape[1]
    windows = np.empty((len(feature_from_roi), channels, size, size), np.float32)
    sample_windows(
        windows,
        np.ascontiguousarray(features, np.float32),
        np.ascontiguousarray(feature_from_roi, np.float64),
        np.ascontiguousarray(roi_image, np.int64),
    )
    return windows


@compiled
def sample_windows(windows: F32, features: F32, feature_from_roi: F64, roi_image: NDArray[np.int64]) -> None:
    """`affine_align` into the first C channels of ``windows`` (N, C or more, S, S); nothing is checked.

    Every px of those channels is written, the others are left alone. All arrays must be C-contiguous.
    """
    _, channels, height, width = features.shape
    people, size = len(feature_from_roi), windows.shape[3]
    pixels = size * size
    flat = features.reshape(features.shape[0], channels, height * width)
    # Where to read and with what weight is the same for every channel: worked out once per person. An array for each
    # corner, unsigned, so that the loop over px becomes vector instructions.
    upper_left, upper_right = np.zeros(pixels, np.uint32), np.zeros(pixels, np.uint32)
    lower_left, lower_right = np.zeros(pixels, np.uint32), np.zeros(pixels, np.uint32)
    weights = np.zeros((4, pixels), np.float32)
    for n in range(people):
        matrix = feature_from_roi[n]
        touched = False
        weights[:] = 0.0
        if np.all(np.isfinite(matrix)):
            for v in range(size):
                for u in range(size):
                    x = matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2]
                    y = matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2]
                    if not (-1.0 < x < width and -1.0 < y < height):
                        continue
                    touched = True
                    x0, y0 = int(np.floor(x)), int(np.floor(y))
                    fx, fy = x - x0, y - y0
                    left, right = x0 >= 0, x0 + 1 < width
                    upper, lower = y0 >= 0, y0 + 1 < height
                    i = v * size + u
                    # A corner outside the map weighs nothing and reads px 0.
                    upper_left[i] = y0 * width + x0 if upper and left else 0
                    upper_right[i] = y0 * width + x0 + 1 if upper and right else 0
                    lower_left[i] = (y0 + 1) * width + x0 if lower and left else 0
                    lower_right[i] = (y0 + 1) * width + x0 + 1 if lower and right else 0
                    weights[0, i] = (1.0 - fx) * (1.0 - fy) if upper and left else 0.0
                    weights[1, i] = fx * (1.0 - fy) if upper and right else 0.0
                    weights[2, i] = (1.0 - fx) * fy if lower and left else 0.0
                    weights[3, i] = fx * fy if lower and right else 0.0
        for channel in range(channels):
            window = windows[n, channel].reshape(pixels)
            if not touched:
                window[:] = 0.0
                continue
            source = flat[roi_image[n], channel]
            for i in range(pixels):
                window[i] = (
                    weights[0, i] * source[upper_left[i]]
                    + weights[1, i] * source[upper_right[i]]
                    + weights[2, i] * source[lower_left[i]]
                    + weights[3, i] * source[lower_right[i]]
                )
