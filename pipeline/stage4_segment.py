"""AlignedRois -> InstanceMasks: the segment network looks at the shared features through each person's window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines import Engine
from kernels.coordinates import F32
from kernels.roi_inputs import segment_feeds
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
        feeds = segment_feeds(
            poses.keypoints,
            np.where(rois.joint_visible, JOINT_SEEN, 0.0),
            rois.roi_from_frame,
            poses.letterbox.input_from_frame,
            self._feature_from_input,
        )
        outputs = self._engine.run({"features": poses.features, **feeds})
        return InstanceMasks(rois=bare, probabilities=outputs["probabilities"], scores=outputs["scores"])

    def close(self) -> None:
        self._engine.close()
