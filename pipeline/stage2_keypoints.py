"""Frame -> Poses: the keypoint network on the letterboxed frame, its candidates grouped into people."""

from __future__ import annotations

import numpy as np

from engines import Engine
from kernels.coordinates import F32, U8, invert, transform_points
from kernels.letterbox import Letterbox, letterbox, plan_letterbox
from kernels.pose_decoding import DecodeParameters, decode_people
from pipeline.messages import Frame, Poses

KEPT_SHARE = 0.5  # of the person threshold: what somebody who is tracked may sink to


class KeypointStage:
    """Owns the keypoint engine."""

    name = "keypoints"

    def __init__(
        self,
        engine: Engine,
        *,
        long_side: int,
        input_multiple: int,
        person_threshold: float,
        parameters: DecodeParameters,
    ) -> None:
        """Keep what the model and the run prescribe.

        Args:
            engine: of the keypoint graph; closed with the stage.
            long_side: long side of the network input, px.
            input_multiple: both sides of the input are multiples of it.
            person_threshold: people below this score are left out here; `KEPT_SHARE` of it is enough, since those who
                are known already may go on with less than it takes to appear.
            parameters: of the grouping.
        """
        self._engine = engine
        self._long_side = long_side
        self._multiple = input_multiple
        self._kept_from = KEPT_SHARE * person_threshold
        self._parameters = parameters
        self._plan: Letterbox | None = None
        self._input: U8 = np.zeros((0, 0, 3), np.uint8)

    def open(self) -> None:
        decode_people(  # compiles
            np.ones(1, np.float32),
            np.zeros((1, 17, 3), np.float32),
            np.zeros((17, 1, 4), np.float32),
            parameters=self._parameters,
        )

    def process(self, frame: Frame) -> Poses:
        plan = self._plan_for(frame)
        letterbox(frame.image, plan, out=self._input)
        outputs = self._engine.run({"image": self._input[None]})
        keypoints, scores = decode_people(
            outputs["person_scores"][0],
            outputs["person_keypoints"][0],
            outputs["joint_candidates"][0],
            parameters=self._parameters,
        )
        wanted = scores >= self._kept_from
        keypoints, scores = keypoints[wanted], scores[wanted]
        frame_keypoints: F32 = keypoints.copy()
        if len(keypoints):
            frame_from_input = invert(plan.input_from_frame)
            frame_keypoints[:, :, :2] = transform_points(frame_from_input, keypoints[:, :, :2])
        return Poses(
            frame=frame, keypoints=frame_keypoints, scores=scores, letterbox=plan, features=outputs["features"]
        )

    def close(self) -> None:
        self._engine.close()

    def _plan_for(self, frame: Frame) -> Letterbox:
        """The plan of this frame's size; a stream may change its size at any time."""
        plan = self._plan
        if plan is None or (plan.frame_height, plan.frame_width) != (frame.height, frame.width):
            plan = plan_letterbox(frame.height, frame.width, long_side=self._long_side, multiple=self._multiple)
            self._plan = plan
            self._input = np.empty((plan.input_height, plan.input_width, 3), np.uint8)
        return plan
