"""What a SegModule looks at: each person's window of the features, the drawing of their skeleton and, in some networks,
of the others, channel upon channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.affine_align import affine_align_reference, sample_windows
from kernels.affine_align.reference import check_arguments
from kernels.coordinates import F32
from kernels.neighbours import CHANNELS as NEIGHBOUR_CHANNELS
from kernels.neighbours import draw_neighbours, neighbour_features_reference
from kernels.skeleton import CHANNELS, JOINTS, LIMBS, draw_skeletons, skeleton_features_reference


def fill_segment_windows(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
    *,
    neighbours: bool = False,
    first_person: int = 0,
) -> None:
    """Sample and draw straight into the input of a SegModule.

    Args:
        windows: (M, C + 55 or more, S, S) float32, C-contiguous, of M of the N people; channels beyond C + 55, or
            C + 57 with neighbours, are left as they are.
        features: (B, C, h, w) float32.
        feature_from_roi: (N, 2, 3), see `kernels.affine_align.affine_align`.
        roi_image: (N,) integer in 0..B-1.
        roi_keypoints: (N, 17, 3), see `kernels.skeleton.skeleton_features`.
        neighbours: draw the others, too, see `kernels.neighbours.neighbour_features`. All N people are seen in the M
            windows.
        first_person: whose window is the first; the others follow in order.

    Raises:
        ValueError: shapes, or an image index outside 0..B-1.
    """
    rows, channels = _check(windows, features, feature_from_roi, roi_image, roi_keypoints, neighbours, first_person)
    if not len(windows):
        return
    matrices = np.ascontiguousarray(feature_from_roi, np.float64)
    images = np.ascontiguousarray(roi_image, np.int64)
    poses = np.ascontiguousarray(roi_keypoints, np.float32)
    sample_windows(windows, np.ascontiguousarray(features, np.float32), matrices[rows], images[rows])
    draw_skeletons(windows, poses[rows], LIMBS, channels)
    if neighbours:
        draw_neighbours(windows, matrices, images, poses, first_person, channels + CHANNELS)


def fill_segment_windows_reference(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
    *,
    neighbours: bool = False,
    first_person: int = 0,
) -> None:
    """`fill_segment_windows` by the twins of its parts, everybody's first and those that are wanted out of them."""
    rows, channels = _check(windows, features, feature_from_roi, roi_image, roi_keypoints, neighbours, first_person)
    size = windows.shape[2]
    windows[:, :channels] = affine_align_reference(features, feature_from_roi, roi_image, size)[rows]
    windows[:, channels : channels + CHANNELS] = skeleton_features_reference(roi_keypoints, size)[rows]
    if neighbours:
        drawn = neighbour_features_reference(feature_from_roi, roi_image, roi_keypoints, size)[rows]
        windows[:, channels + CHANNELS : channels + CHANNELS + NEIGHBOUR_CHANNELS] = drawn


def _check(
    windows: F32,
    features: F32,
    feature_from_roi: NDArray[np.floating],
    roi_image: NDArray[np.integer],
    roi_keypoints: F32,
    neighbours: bool,
    first_person: int,
) -> tuple[slice, int]:
    """Which people the windows are of, and C."""
    if windows.ndim != 4 or windows.dtype != np.float32 or not windows.flags.c_contiguous:
        raise ValueError(f"windows must be C-contiguous float32 (M, C, S, S), got {windows.dtype} {windows.shape}")
    wanted, depth, size, other = windows.shape
    check_arguments(features, feature_from_roi, roi_image, size)
    people, channels = len(feature_from_roi), features.shape[1]
    drawn = CHANNELS + NEIGHBOUR_CHANNELS * neighbours
    if first_person < 0 or first_person + wanted > people or size != other or depth < channels + drawn:
        raise ValueError(
            f"windows must be (at most N={people} from person {first_person} on, at least {channels} + {drawn}, S, S), "
            f"got {windows.shape}"
        )
    if roi_keypoints.shape != (people, JOINTS, 3):
        raise ValueError(f"roi_keypoints must be (N={people}, {JOINTS}, 3), got {roi_keypoints.shape}")
    return slice(first_person, first_person + wanted), channels
