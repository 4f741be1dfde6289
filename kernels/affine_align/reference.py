"""The slow twin of Affine-Align: one px at a time, in float64, as the definition reads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32


def check_arguments(
    features: F32, feature_from_roi: NDArray[np.floating], roi_image: NDArray[np.integer], size: int
) -> None:
    """Raise ValueError where the arguments of `affine_align` do not fit together."""
    people = len(feature_from_roi)
    if features.ndim != 4 or min(features.shape[2:]) < 1:
        raise ValueError(f"features must be (B, C, h, w) with h, w at least 1, got {features.shape}")
    if feature_from_roi.shape != (people, 2, 3) or roi_image.shape != (people,):
        raise ValueError(
            f"feature_from_roi must be (N, 2, 3) and roi_image (N,), got {feature_from_roi.shape} and {roi_image.shape}"
        )
    if size < 1:
        raise ValueError(f"size must be at least 1 px, got {size}")
    if people and not 0 <= roi_image.min() <= roi_image.max() < len(features):
        raise ValueError(f"roi_image must be in 0..{len(features) - 1}, got {roi_image.min()}..{roi_image.max()}")


def affine_align_reference(
    features: F32, feature_from_roi: NDArray[np.floating], roi_image: NDArray[np.integer], size: int = 64
) -> F32:
    """Same contract as `kernels.affine_align.affine_align`."""
    check_arguments(features, feature_from_roi, roi_image, size)
    _, channels, height, width = features.shape
    windows = np.zeros((len(feature_from_roi), channels, size, size), np.float32)
    for n, matrix in enumerate(feature_from_roi.astype(np.float64)):
        if not np.isfinite(matrix).all():
            continue
        image = features[roi_image[n]].astype(np.float64)
        for v in range(size):
            for u in range(size):
                x, y = matrix @ (u, v, 1.0)
                for column in (math.floor(x), math.floor(x) + 1):
                    for row in (math.floor(y), math.floor(y) + 1):
                        if 0 <= column < width and 0 <= row < height:
                            weight = (1 - abs(x - column)) * (1 - abs(y - row))
                            windows[n, :, v, u] += (weight * image[:, row, column]).astype(np.float32)
    return windows
