"""What a SegModule looks at: each person's window of the features and the drawing of their skeleton, channel upon
channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.affine_align import affine_align_reference, sample_windows
from kernels.affine_align.reference import check_arguments
from kernels.coordinates import F32
from kernels.skeleton import CHANNELS, JOINTS, LIMBS, draw_skeletons, skeleton_features_reference


def fill_segment_windows(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
) -> None:
    """Sample and draw straight into the input of a SegModule.

    Args:
        windows: (N, C + 55 or more, S, S) float32, C-contiguous; channels beyond C + 55 are left as they are.
        features: (B, C, h, w) float32.
        feature_from_roi: (N, 2, 3), see `kernels.affine_align.affine_align`.
        roi_image: (N,) integer in 0..B-1.
        roi_keypoints: (N, 17, 3), see `kernels.skeleton.skeleton_features`.

    Raises:
        ValueError: shapes, or an image index outside 0..B-1.
    """
    people, channels = _check(windows, features, feature_from_roi, roi_image, roi_keypoints)
    if not people:
        return
    sample_windows(
        windows,
        np.ascontiguousarray(features, np.float32),
        np.ascontiguousarray(feature_from_roi, np.float64),
        np.ascontiguousarray(roi_image, np.int64),
    )
    draw_skeletons(windows, np.ascontiguousarray(roi_keypoints, np.float32), LIMBS, channels)


def fill_segment_windows_reference(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
) -> None:
    """`fill_segment_windows` by the twins of its two parts."""
    _, channels = _check(windows, features, feature_from_roi, roi_image, roi_keypoints)
    size = windows.shape[2]
    windows[:, :channels] = affine_align_reference(features, feature_from_roi, roi_image, size)
    windows[:, channels : channels + CHANNELS] = skeleton_features_reference(roi_keypoints, size)


def _check(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
) -> tuple[int, int]:
    if windows.ndim != 4 or windows.dtype != np.float32 or not windows.flags.c_contiguous:
        raise ValueError(f"windows must be C-contiguous float32 (N, C, S, S), got {windows.dtype} {windows.shape}")
    people, depth, size, other = windows.shape
    check_arguments(features, feature_from_roi, roi_image, size)
    channels = features.shape[1]
    if len(feature_from_roi) != people or size != other or depth < channels + CHANNELS:
        raise ValueError(
            f"windows must be (N={len(feature_from_roi)}, at least {channels} + {CHANNELS}, S, S), got {windows.shape}"
        )
    if roi_keypoints.shape != (people, JOINTS, 3):
        raise ValueError(f"roi_keypoints must be (N={people}, {JOINTS}, 3), got {roi_keypoints.shape}")
    return people, channels
