"""What the segment graph is fed with: poses and their fitted windows, moved from the frame to the network's own
grids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels.coordinates import F32, I32, compose, invert, transform_points


def segment_feeds(
    keypoints: F32,
    visibility: ArrayLike,
    roi_from_frame: ArrayLike,
    input_from_frame: ArrayLike,
    feature_from_input: ArrayLike,
) -> dict[str, NDArray[np.float32] | I32]:
    """Tensors of the segment graph for N people of one picture, all but `features`.

    Args:
        keypoints: (N, 17, 3) x, y in frame px; the third value is not read.
        visibility: (N, 17) 0 absent, 1 labelled but hidden, 2 visible.
        roi_from_frame: (N, 2, 3), see `kernels.pose_fit.fit_poses`.
        input_from_frame: (2, 3), see `kernels.letterbox.plan_letterbox`.
        feature_from_input: (2, 3), a property of the network.

    Returns:
        feature_from_roi (N, 2, 3) float32, roi_image (N,) int32 of zeros, roi_keypoints (N, 17, 3) float32 in ROI px,
        absent joints all zero.

    Raises:
        ValueError: a window cannot be inverted.
    """
    v = np.asarray(visibility, np.float32)
    feature_from_frame = compose(feature_from_input, input_from_frame)
    roi_keypoints = np.zeros((len(keypoints), keypoints.shape[1], 3), np.float32)
    roi_keypoints[..., :2] = transform_points(roi_from_frame, keypoints[..., :2])
    roi_keypoints[..., 2] = v
    roi_keypoints[~(v > 0)] = 0.0
    return {
        "feature_from_roi": compose(feature_from_frame, invert(roi_from_frame)).astype(np.float32),
        "roi_image": np.zeros(len(keypoints), np.int32),
        "roi_keypoints": roi_keypoints,
    }
