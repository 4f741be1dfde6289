"""InstanceMasks -> FrameResult: masks into the frame, and the picture of it all where somebody wants one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engines.device import Device, Paint
from kernels.coordinates import I32
from kernels.mask_paste import paste_masks
from pipeline.messages import FrameResult, InstanceMasks
from pipeline.overlay import MASK_OPACITY, color_of, draw_people
from pipeline.person import Person
from pipeline.smoothing import JointSmoother


class ComposeStage:
    """Pastes masks inside each person's box only, and draws."""

    name = "compose"

    def __init__(
        self,
        device: Device,
        *,
        mask_threshold: float,
        draw: bool,
        exclusive_masks: bool = True,
        smooth_joints: bool = False,
    ) -> None:
        """Set up.

        Args:
            device: where the probabilities lie.
            mask_threshold: pixels above this probability are person.
            draw: make `FrameResult.drawn`; needless when no output shows pictures.
            exclusive_masks: a px that several people claim is in the mask of the surest alone.
            smooth_joints: people get the joints of `pipeline.smoothing`; the masks message keeps those found.
        """
        self._device = device
        self._mask_threshold = mask_threshold
        self._draw = draw
        self._exclusive_masks = exclusive_masks
        self._smooth_joints = smooth_joints
        self._smoothers: defaultdict[int, JointSmoother] = defaultdict(JointSmoother)  # one for each stream

    def smoother_of(self, stream: int) -> JointSmoother:
        """Everybody's smoothed joints in one stream; to be touched only while no frame is in work."""
        return self._smoothers[stream]

    def open(self) -> None:
        windows = np.repeat(np.array([[[1, 0, 0], [0, 1, 0]]], np.float32), 2, axis=0)
        paste_masks(np.ones((2, 8, 8), np.float32), windows, 8, 8, exclusive=self._exclusive_masks)  # compiles

    def process(self, masks: InstanceMasks) -> FrameResult:
        rois = masks.rois
        poses = rois.poses
        frame = poses.frame
        scores = poses.scores * masks.scores  # ranks masks better than either factor: docs/experiments.md
        best_first = np.argsort(-scores, kind="stable")
        picture = None if poses.features is None else poses.features.picture
        pasted = self._device.paste(
            picture,
            masks.probabilities if masks.on_device is None else masks.on_device,
            rois.roi_from_frame,
            frame.height,
            frame.width,
            threshold=self._mask_threshold,
            exclusive=self._exclusive_masks,
            paint=_paint(rois.ids, best_first) if self._draw and picture is not None else None,
        )
        bare = replace(masks, rois=replace(rois, poses=replace(poses, features=None)), on_device=None)
        keypoints = poses.keypoints
        if self._smooth_joints:
            keypoints = self._smoothers[frame.stream].smooth(
                rois.ids, keypoints, rois.joint_visible, clip=frame.clip, time_s=frame.pts_s
            )
        people = [
            Person(
                id=int(rois.ids[n]),
                score=float(scores[n]),
                keypoints=keypoints[n],
                joint_visible=rois.joint_visible[n],
                crop=pasted.crops[n],
                frame_height=frame.height,
                frame_width=frame.width,
            )
            for n in best_first
        ]
        drawn = None
        if self._draw:
            drawn = frame.image.copy() if pasted.painted is None else pasted.painted
            draw_people(drawn, people, tinted=pasted.painted is not None)
        return FrameResult(masks=bare, people=tuple(people), drawn=drawn)

    def close(self) -> None:
        """Nothing is held."""


def _paint(ids: I32, best_first: NDArray[np.intp]) -> Paint:
    """Each person's colour; better people on top."""
    colors = np.array([color_of(int(person_id)) for person_id in ids], np.uint8).reshape(-1, 3)
    return Paint(colors=colors, opacity=MASK_OPACITY, order=best_first[::-1].astype(np.int32))
