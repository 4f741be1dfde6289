"""Poses -> AlignedRois: who each person is, and the upright window that the pose's fit to the templates gives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, I32
from kernels.pose_fit import fit_poses, whole_frame_roi
from kernels.pose_similarity import pose_similarities, pose_sizes, return_chances
from pipeline.messages import AlignedRois, Poses
from pipeline.tracking import PersonTracker


class AffineStage:
    """Names all people of a frame, drops weak poses that continue nobody, and fits the rest in one call."""

    name = "affine"

    def __init__(self, templates: F32, *, roi_size: int, joint_threshold: float, person_threshold: float) -> None:
        """Keep what the model prescribes.

        Args:
            templates: (T, 17, 3), see `kernels.pose_fit.fit_poses`.
            roi_size: side of the window, ROI px.
            joint_threshold: joints below this confidence are not fitted.
            person_threshold: score that it takes to appear; see `pipeline.tracking`.
        """
        self._templates = templates
        self._roi_size = roi_size
        self._joint_threshold = joint_threshold
        self._person_threshold = person_threshold
        self._trackers: defaultdict[int, PersonTracker] = defaultdict(PersonTracker)  # one for each stream

    def tracker_of(self, stream: int) -> PersonTracker:
        """Who is known in one stream; to be touched only while no frame is in work."""
        return self._trackers[stream]

    def open(self) -> None:
        one = np.zeros((1, 17, 2)), np.ones((1, 17), np.bool_)
        pose_similarities(*one, *one, np.zeros(1))  # compiles, as the other calls here
        return_chances(*one, one[0], *one, pose_sizes(*one), np.zeros(1))
        fit_poses(
            np.ones((1, 17, 3), np.float32),
            self._templates,
            whole_frame_roi(8, 8, self._roi_size),
            roi_size=self._roi_size,
        )

    def process(self, poses: Poses) -> AlignedRois:
        frame = poses.frame
        ids = self._trackers[frame.stream].assign(
            poses.keypoints,
            self._visible(poses),
            poses.scores >= self._person_threshold,
            clip=frame.clip,
            time_s=frame.pts_s,
        )
        return self.align(poses, ids)

    def align(self, poses: Poses, ids: I32) -> AlignedRois:
        """The windows of people who have their names already.

        Args:
            poses: the people.
            ids: (N,); people with 0 are left out.
        """
        frame = poses.frame
        named = ids > 0
        poses = replace(poses, keypoints=poses.keypoints[named], scores=poses.scores[named])
        visible = self._visible(poses)
        usable = poses.keypoints.copy()
        usable[~visible] = 0.0
        fit = fit_poses(
            usable,
            self._templates,
            whole_frame_roi(frame.height, frame.width, self._roi_size),
            roi_size=self._roi_size,
        )
        return AlignedRois(
            poses=poses,
            ids=ids[named],
            joint_visible=visible,
            roi_from_frame=fit.roi_from_frame,
            template_index=fit.template_index,
            fit_scores=fit.fit_scores,
        )

    def close(self) -> None:
        """Nothing is held."""

    def _visible(self, poses: Poses) -> NDArray[np.bool_]:
        confidence = poses.keypoints[:, :, 2]
        visible: NDArray[np.bool_] = (confidence >= self._joint_threshold) & (confidence > 0)
        return visible
