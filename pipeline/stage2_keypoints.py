"""Frame -> Poses: the keypoint network on the letterboxed frame, its candidates grouped into people."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from engines import Engine, EngineOutOfMemory
from engines.device import Device
from kernels.coordinates import F32, U8, invert, transform_points
from kernels.groupings import READS, GroupingParameters, group_people, warm_up
from kernels.letterbox import Letterbox, plan_letterbox
from kernels.pose_decoding import DecodeParameters
from pipeline.messages import Features, Frame, Poses
from pipeline.still_parts import StillParts, compile_kernels

log = logging.getLogger(__name__)

KEPT_SHARE = 0.5  # of the person threshold: what somebody who is tracked may sink to


class KeypointStage:
    """Owns the keypoint engine. Frames that wait share a call of it, as many as the device gains from."""

    name = "keypoints"

    def __init__(
        self,
        engine: Engine,
        device: Device,
        *,
        long_side: int,
        input_multiple: int,
        person_threshold: float,
        parameters: GroupingParameters,
        skip_still: int | None = None,
    ) -> None:
        """Keep what the model and the run prescribe.

        Args:
            engine: of the keypoint graph; closed with the stage.
            device: where the engine works.
            long_side: long side of the network input, px.
            input_multiple: both sides of the input are multiples of it.
            person_threshold: people below this score are left out here; `KEPT_SHARE` of it is enough, since those who
                are known already may go on with less than it takes to appear.
            parameters: of the grouping; they say which it is.
            skip_still: look only at what changed, see `pipeline.still_parts`: stride of the features in input px, which
                divides ``input_multiple``; None looks at every frame as a whole. For the host device and the grouping
                `centre` only.
        """
        self._engine = engine
        self._device = device
        self._long_side = long_side
        self._multiple = input_multiple
        self._kept_from = KEPT_SHARE * person_threshold
        self._parameters = parameters
        self._reads = READS[type(parameters)]
        self._plan: Letterbox | None = None
        self._limit = max(1, device.frames_per_call)
        if skip_still is not None and not isinstance(parameters, DecodeParameters):
            raise ValueError(f"skip_still needs the grouping centre, got {type(parameters).__name__}")
        self._stride = skip_still
        self._max_oks = parameters.max_oks if isinstance(parameters, DecodeParameters) else 1.0
        self._still: dict[int, StillParts] = {}  # one for each stream

    @property
    def batch_limit(self) -> int:
        """Frames of one call; becomes smaller when the device's memory is too small for more."""
        return self._limit

    def open(self) -> None:
        warm_up(self._parameters)
        if self._stride is not None:
            compile_kernels()

    def process(self, frame: Frame) -> Poses:
        return self.process_batch([frame])[0]

    def process_batch(self, frames: Sequence[Frame]) -> list[Poses]:
        """Poses of frames that may differ in size: neighbours of one size share a call."""
        if self._stride is not None:
            return [self._changed_parts(frame, self._stride) for frame in frames]
        poses: list[Poses] = []
        while len(poses) < len(frames):
            rest = frames[len(poses) :]
            size = (rest[0].height, rest[0].width)
            count = 1
            while count < min(len(rest), self._limit) and (rest[count].height, rest[count].width) == size:
                count += 1
            try:
                poses += self._one_call(rest[:count])
            except EngineOutOfMemory as error:
                self._device.free_memory()
                if count == 1:
                    raise
                self._limit = count // 2
                log.warning("%s: %s: going on with %d frames a call", self._device.name, error, self._limit)
        return poses

    @property
    def looked_at(self) -> float:
        """Share of the px that the network has looked at so far, 0..1; less than 1 where still parts are skipped."""
        shown = sum(still.px_shown for still in self._still.values())
        return sum(still.px_looked_at for still in self._still.values()) / shown if shown else 1.0

    def close(self) -> None:
        if self._still:
            log.info("keypoints: the network looked at %.0f %% of the px, the rest stood still", 100 * self.looked_at)
        self._engine.close()

    def _one_call(self, frames: Sequence[Frame]) -> list[Poses]:
        plan = self._plan_for(frames[0])
        pictures = self._device.pictures([frame.pixels for frame in frames])
        outputs = self._device.run(self._engine, {"image": self._device.network_input(pictures, plan)})
        candidates = self._device.to_host({name: outputs[name] for name in self._reads})
        return [
            _in_frame(
                frame,
                plan,
                *self._people(candidates, row),
                Features(maps=outputs["features"], row=row, picture=picture),
            )
            for row, (frame, picture) in enumerate(zip(frames, pictures, strict=True))
        ]

    def _changed_parts(self, frame: Frame, stride: int) -> Poses:
        """As `_one_call`, for what is not known from the frames before."""
        plan = self._plan_for(frame)
        (picture,) = self._device.pictures([frame.pixels])
        still = self._still.get(frame.stream)
        if still is None:
            still = self._still[frame.stream] = StillParts(
                self._look, grid=self._multiple, stride=stride, max_oks=self._max_oks
            )
        sight = still.see(self._device.network_input([picture], plan)[0], clip=frame.clip)
        features = Features(maps=sight.features, row=0, picture=picture, renewed=sight.renewed)
        return _in_frame(frame, plan, sight.keypoints, sight.scores, features)

    def _look(self, picture: U8) -> tuple[F32, F32, F32]:
        outputs = self._device.run(self._engine, {"image": picture[None]})
        return (*self._people(outputs, 0), outputs["features"])

    def _people(self, candidates: Mapping[str, NDArray[Any]], row: int) -> tuple[F32, F32]:
        """Joints in input px, and scores."""
        keypoints, scores = group_people({name: candidates[name][row] for name in self._reads}, self._parameters)
        wanted = scores >= self._kept_from
        return keypoints[wanted], scores[wanted]

    def _plan_for(self, frame: Frame) -> Letterbox:
        """The plan of this frame's size; a stream may change its size at any time."""
        plan = self._plan
        if plan is None or (plan.frame_height, plan.frame_width) != (frame.height, frame.width):
            plan = plan_letterbox(frame.height, frame.width, long_side=self._long_side, multiple=self._multiple)
            self._plan = plan
        return plan


def _in_frame(frame: Frame, plan: Letterbox, keypoints: F32, scores: F32, features: Features) -> Poses:
    """The message, with joints in frame px."""
    frame_keypoints: F32 = keypoints.copy()
    if len(keypoints):
        frame_from_input = invert(plan.input_from_frame)
        frame_keypoints[:, :, :2] = transform_points(frame_from_input, keypoints[:, :, :2])
    return Poses(frame=frame, keypoints=frame_keypoints, scores=scores, letterbox=plan, features=features)
