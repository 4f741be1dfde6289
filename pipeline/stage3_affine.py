"""Poses -> AlignedRois: where each person's upright window lies, by a fit of the pose to the model's templates."""

from __future__ import annotations

import numpy as np

from kernels.coordinates import F32
from kernels.pose_fit import fit_poses, whole_frame_roi
from pipeline.messages import AlignedRois, Poses


class AffineStage:
    """Fits all people of a frame in one call."""

    name = "affine"

    def __init__(self, templates: F32, *, roi_size: int, joint_threshold: float) -> None:
        """Keep what the model prescribes.

        Args:
            templates: (T, 17, 3), see `kernels.pose_fit.fit_poses`.
            roi_size: side of the window, ROI px.
            joint_threshold: joints below this confidence are not fitted.
        """
        self._templates = templates
        self._roi_size = roi_size
        self._joint_threshold = joint_threshold

    def open(self) -> None:
        fit_poses(  # compiles
            np.ones((1, 17, 3), np.float32),
            self._templates,
            whole_frame_roi(8, 8, self._roi_size),
            roi_size=self._roi_size,
        )

    def process(self, poses: Poses) -> AlignedRois:
        visible = poses.keypoints[:, :, 2] >= self._joint_threshold
        visible &= poses.keypoints[:, :, 2] > 0
        usable = poses.keypoints.copy()
        usable[~visible] = 0.0
        frame = poses.frame
        fit = fit_poses(
            usable,
            self._templates,
            whole_frame_roi(frame.height, frame.width, self._roi_size),
            roi_size=self._roi_size,
        )
        return AlignedRois(
            poses=poses,
            joint_visible=visible,
            roi_from_frame=fit.roi_from_frame,
            template_index=fit.template_index,
            fit_scores=fit.fit_scores,
        )

    def close(self) -> None:
        """Nothing is held."""
