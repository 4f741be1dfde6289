"""InstanceMasks -> FrameResult: masks into the frame, and the picture of it all where somebody wants one."""

from __future__ import annotations

import numpy as np

from kernels.mask_paste import paste_masks
from pipeline.messages import FrameResult, InstanceMasks
from pipeline.overlay import draw_people
from pipeline.person import Person


class ComposeStage:
    """Pastes masks inside each person's box only, and draws."""

    name = "compose"

    def __init__(self, *, mask_threshold: float, draw: bool) -> None:
        """Set up.

        Args:
            mask_threshold: pixels above this probability are person.
            draw: make `FrameResult.drawn`; needless when no output shows pictures.
        """
        self._mask_threshold = mask_threshold
        self._draw = draw

    def open(self) -> None:
        paste_masks(  # compiles
            np.zeros((1, 8, 8), np.float32), np.array([[[1, 0, 0], [0, 1, 0]]], np.float32), 8, 8, threshold=0.5
        )

    def process(self, masks: InstanceMasks) -> FrameResult:
        rois = masks.rois
        poses = rois.poses
        frame = poses.frame
        crops = paste_masks(
            masks.probabilities, rois.roi_from_frame, frame.height, frame.width, threshold=self._mask_threshold
        )
        scores = poses.scores * masks.scores  # ranks masks better than either factor: docs/experiments.md
        people = [
            Person(
                id=int(rois.ids[n]),
                score=float(scores[n]),
                keypoints=poses.keypoints[n],
                joint_visible=rois.joint_visible[n],
                crop=crops[n],
                frame_height=frame.height,
                frame_width=frame.width,
            )
            for n in np.argsort(-scores, kind="stable")
        ]
        drawn = None
        if self._draw:
            drawn = frame.image.copy()
            draw_people(drawn, people)
        return FrameResult(masks=masks, people=tuple(people), drawn=drawn)

    def close(self) -> None:
        """Nothing is held."""
