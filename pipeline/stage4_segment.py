"""AlignedRois -> InstanceMasks: the segment network looks at the shared features through each person's window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines import Engine
from kernels.coordinates import F32, compose, invert, transform_points
from pipeline.messages import AlignedRois, InstanceMasks

JOINT_SEEN = 2.0  # the network's mark of a joint that is there and visible (COCO's v)


class SegmentStage:
    """Owns the segment engine; all people of a frame are one call."""

    name = "segment"

    def __init__(self, engine: Engine, *, feature_from_input: F32, roi_size: int) -> None:
        self._engine = engine
        self._feature_from_input = feature_from_input
        self._roi_size = roi_size

    def open(self) -> None:
        """The engine was loaded when the run was built, so that a bad model ends it before anything else starts."""

    def process(self, rois: AlignedRois) -> InstanceMasks:
        poses = rois.poses
        bare = replace(rois, poses=replace(poses, features=None))
        count = len(rois.roi_from_frame)
        if not count or poses.features is None:
            empty = np.zeros((0, self._roi_size, self._roi_size), np.float32)
            return InstanceMasks(rois=bare, probabilities=empty, scores=np.zeros(0, np.float32))
        feature_from_frame = compose(self._feature_from_input, poses.letterbox.input_from_frame)
        feature_from_roi = compose(feature_from_frame, invert(rois.roi_from_frame))
        roi_keypoints = np.zeros_like(poses.keypoints)
        roi_keypoints[:, :, :2] = transform_points(rois.roi_from_frame, poses.keypoints[:, :, :2])
        roi_keypoints[:, :, 2] = JOINT_SEEN
        roi_keypoints[~rois.joint_visible] = 0.0
        outputs = self._engine.run(
            {
                "features": poses.features,
                "feature_from_roi": feature_from_roi.astype(np.float32),
                "roi_image": np.zeros(count, np.int32),
                "roi_keypoints": roi_keypoints,
            }
        )
        return InstanceMasks(rois=bare, probabilities=outputs["probabilities"], scores=outputs["scores"])

    def close(self) -> None:
        self._engine.close()
