"""Where a hiding layer must cover the frame: a little more than people are, and for some time where they were.

Whatever is not certain counts as somebody: a person who is not found in a frame stays covered where they were, in a
region that grows as fast as they moved; a mask that collapses keeps the region of before; a person without a mask is
covered by the box of their joints, and the head always is. What was never found is never covered, but somebody who is
found later may be covered in the frames before: `pipeline.layers.covered_frames`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, U8
from kernels.mask_paste import PastedAlpha, PastedMask
from kernels.skeleton import LIMBS
from pipeline.layers.alpha import (
    AlphaMaker,
    PersonAlpha,
    alpha_of_state,
    alpha_state,
    box_of,
    crop_of,
    enlarged,
    trimmed,
)
from pipeline.layers.options import ChosenPeople
from pipeline.messages import Frame, FrameResult
from pipeline.person import Person

HALF = 128  # alpha of a px whose probability is above the threshold
FAINT = 32  # alpha from which a px is taken for a part of the person
MARGIN_SHARE = 0.04  # of the person's long side, around the mask
MARGIN_MIN_PX = 4
BOX_MARGIN_SHARE = 0.2  # around the joints of a person without a mask
COLLAPSED_SHARE = 0.6  # of the area before: below it the old region stays covered, too, as long as a lost person
FACE_JOINTS = 5  # nose, eyes, ears come first in COCO
HEAD_SHARE = 0.12  # radius of the covered head, of the person's long side
LIMB_SHARE = 0.06  # thickness of the covered limbs: masks leave out an arm that is stretched away
SPEED_DECAY = 0.9  # per frame: who stops may go on
SPEED_MAX_SHARE = 0.15  # of the long side per frame: a sprint at 25 frames a second
SPEED_FACTOR = 1.5  # a lost region grows by this times the speed of the person, and by 1 % of their size per frame
GROWTH_SHARE = 0.01
# Of the long side, all frames together: half of it lost people after 15 frames, see docs/layers.md
GROWTH_MAX_SHARE = 1.0
USUAL_OF = 15  # distances between frames that say which one is usual
USUAL_SHARE = 0.25  # of them are shorter: a stream may begin with gaps, and a gap must not pass for the usual distance


@dataclass(slots=True)
class _Seen:
    region: PastedAlpha  # hard: 0 or 255
    joints: F32  # (17, 3) as found
    joint_visible: NDArray[np.bool_]
    long_side: float
    speed_px: float | None = None  # per step; None: found once so far
    missed: int = 0  # frames
    steps: int = 0  # as `missed`, with the frames that were left out in between
    grown_px: float = 0.0
    whole: PastedAlpha | None = None  # the region before the mask collapsed, covered for some time more
    whole_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """Somebody who is found for the first time: where (0 or 255), and their long side in px."""

    person_id: int
    region: PastedAlpha
    long_side: float


class CoverMemory:
    """Regions of the chosen people over time. Asked again about the newest frame, it gives what it made."""

    def __init__(self, maker: AlphaMaker, chosen: ChosenPeople, *, frames: int) -> None:
        """Set up.

        Args:
            maker: of alphas that may lie over one another: whoever is covered is covered where somebody else is surer.
            chosen: who is covered.
            frames: how many frames a person who is not found stays covered.
        """
        self._maker = maker
        self._chosen = chosen
        self._frames = frames
        self._seen: dict[int, _Seen] = {}
        self._result: FrameResult | None = None
        self._covers: list[PastedAlpha] = []
        self._newcomers: list[Newcomer] = []
        self._scene: tuple[int, int, int] | None = None  # clip, height and width of the frame before
        self._time_s = 0.0
        self._distances_s: deque[float] = deque(maxlen=USUAL_OF)
        self.steps = 1

    def of(self, result: FrameResult) -> Sequence[PastedAlpha]:
        """What must be covered, with a soft rim outside of what is certain."""
        if result is not self._result:
            self._covers = self._made(result)
            self._result = result
        return self._covers

    def newcomers(self, result: FrameResult) -> Sequence[Newcomer]:
        """People who are found for the first time."""
        self.of(result)
        return self._newcomers

    def speed_of(self, person_id: int) -> float | None:
        """In px per step; None where it is not known."""
        return self._seen[person_id].speed_px if person_id in self._seen else None

    def to_state(self) -> dict[str, Any]:
        """What the next frame needs; see `pipeline.layers.state`."""
        people = [[person_id, _seen_state(seen)] for person_id, seen in self._seen.items()]
        distances_s = list(self._distances_s)
        return {"people": people, "scene": self._scene, "time_s": self._time_s, "distances_s": distances_s}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._seen = {person_id: _seen_of_state(seen) for person_id, seen in state["people"]}
        scene = state["scene"]
        self._scene = None if scene is None else (scene[0], scene[1], scene[2])
        self._time_s = state["time_s"]
        self._distances_s.extend(state["distances_s"])

    def _made(self, result: FrameResult) -> list[PastedAlpha]:
        frame = result.frame
        size = (frame.height, frame.width)
        self._follow(frame)
        here = {one.person.id: one for one in self._maker.of(result) if one.person.id in self._chosen}
        self._newcomers = []
        for person_id, one in here.items():
            known = person_id in self._seen
            self._seen[person_id] = _updated(self._seen.get(person_id), one, self._frames, self.steps, *size)
            if not known:
                new = self._seen[person_id]
                self._newcomers.append(Newcomer(person_id=person_id, region=new.region, long_side=new.long_side))
        for person_id in [person_id for person_id in self._seen if person_id not in here]:
            lost = self._seen[person_id]
            lost.missed += 1  # frames that were looked at: whoever comes after a gap is not given up before that
            lost.steps += self.steps
            if lost.missed > self._frames:
                del self._seen[person_id]
            else:
                _grow(lost, *size)
        return [
            soft_cover(region, margin_px(seen.long_side), *size)
            for seen in self._seen.values()
            for region in (seen.region, seen.whole)
            if region is not None
        ]

    def _follow(self, frame: Frame) -> None:
        """How many usual distances the frame lies behind the one before; regions of another picture size are scaled."""
        before, self._scene = self._scene, (frame.clip, frame.height, frame.width)
        if before is None or before[0] != frame.clip:
            self._seen.clear()
            self._distances_s.clear()
            self.steps = 1
        else:
            distance_s = frame.pts_s - self._time_s
            if distance_s > 0:
                self._distances_s.append(distance_s)
            usual_s = float(np.quantile(self._distances_s, USUAL_SHARE, method="lower")) if self._distances_s else 0.0
            self.steps = max(1, round(distance_s / usual_s)) if usual_s > 0 else 1
            if before != self._scene:
                scale = (frame.width / before[2], frame.height / before[1])
                self._seen = {person_id: _scaled(seen, scale, frame) for person_id, seen in self._seen.items()}
        self._time_s = frame.pts_s


def _scaled(seen: _Seen, scale: tuple[float, float], frame: Frame) -> _Seen:
    """The same person in a picture of another size: a source that changes its resolution shows the same scene."""
    larger = max(scale)
    joints = seen.joints.copy()
    joints[:, :2] *= np.array(scale, np.float32)
    return replace(
        seen,
        region=_scaled_region(seen.region, scale, frame),
        whole=None if seen.whole is None else _scaled_region(seen.whole, scale, frame),
        joints=joints,
        long_side=seen.long_side * larger,
        speed_px=None if seen.speed_px is None else seen.speed_px * larger,
        grown_px=seen.grown_px * larger,
    )


def _scaled_region(region: PastedAlpha, scale: tuple[float, float], frame: Frame) -> PastedAlpha:
    if not region.alpha.size:
        return region
    x0, y0, x1, y1 = box_of(region)
    x0, y0 = min(frame.width - 1, int(x0 * scale[0])), min(frame.height - 1, int(y0 * scale[1]))
    x1, y1 = min(frame.width, int(np.ceil(x1 * scale[0]))), min(frame.height, int(np.ceil(y1 * scale[1])))
    size = (max(1, x1 - x0), max(1, y1 - y0))
    scaled = np.asarray(cv2.resize(region.alpha, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return PastedAlpha(x0=x0, y0=y0, alpha=(scaled > 0).view(np.uint8) * np.uint8(255))


def _seen_state(seen: _Seen) -> dict[str, Any]:
    return {
        "region": alpha_state(seen.region),
        "joints": seen.joints,
        "joint_visible": seen.joint_visible,
        "long_side": seen.long_side,
        "speed_px": seen.speed_px,
        "missed": seen.missed,
        "steps": seen.steps,
        "grown_px": seen.grown_px,
        "whole": None if seen.whole is None else alpha_state(seen.whole),
        "whole_frames": seen.whole_frames,
    }


def _seen_of_state(state: dict[str, Any]) -> _Seen:
    whole = None if state["whole"] is None else alpha_of_state(state["whole"])
    return _Seen(**{**state, "region": alpha_of_state(state["region"]), "whole": whole})


def _updated(before: _Seen | None, one: PersonAlpha, frames: int, steps: int, height: int, width: int) -> _Seen:
    person = _with_all_px(one)
    _, _, box_width, box_height = person.bbox
    now = _Seen(
        region=_region(person, one.alpha, height, width),
        joints=person.keypoints,
        joint_visible=person.joint_visible,
        long_side=max(box_width, box_height),
    )
    if before is None:
        return now
    if not box_width and not box_height:  # neither mask nor joints: somebody is named, nothing says where
        now.region, now.long_side = before.region, before.long_side
        return now
    speed_px = _speed_px(before, now, steps)
    if speed_px is not None:
        now.speed_px = max(speed_px, SPEED_DECAY * (before.speed_px or 0.0))
    whole = before.region if before.whole is None else before.whole
    if cv2.countNonZero(now.region.alpha) < COLLAPSED_SHARE * cv2.countNonZero(whole.alpha):
        now.whole_frames = before.whole_frames + 1
        if now.whole_frames <= frames:
            now.whole = whole
            now.long_side = max(now.long_side, before.long_side)
    return now


def _speed_px(before: _Seen, now: _Seen, frame_steps: int) -> float | None:
    """Per step, from joints seen in both: the box of a mask jumps when somebody steps in front."""
    both = before.joint_visible & now.joint_visible
    if before.missed or both.sum() < 3:
        return before.speed_px
    ways = np.linalg.norm(now.joints[both, :2] - before.joints[both, :2], axis=1)
    return min(float(np.median(ways)) / frame_steps, SPEED_MAX_SHARE * now.long_side)


def _with_all_px(one: PersonAlpha) -> Person:
    """The person with the mask that the network gave, with the px that somebody else was surer of."""
    claimed = trimmed(replace(one.pasted, alpha=_at_least(one.pasted.alpha, HALF)))
    return replace(one.person, crop=PastedMask(x0=claimed.x0, y0=claimed.y0, mask=claimed.alpha > 0))


def _region(person: Person, alpha: PastedAlpha, height: int, width: int) -> PastedAlpha:
    """The mask, or the joints' box where there is none, and the limbs and the head."""
    _, _, box_width, box_height = person.bbox
    long_side = max(box_width, box_height)
    head = round(HEAD_SHARE * long_side)
    # The mask as the network gave it, too: refining or steadying an edge must not uncover anything.
    mask = PastedAlpha(x0=person.crop.x0, y0=person.crop.y0, alpha=person.crop.mask.view(np.uint8) * np.uint8(255))
    certain = _union(replace(alpha, alpha=_at_least(alpha.alpha, FAINT)), mask)
    if not certain.alpha.any():
        return _box_of_joints(person, round(BOX_MARGIN_SHARE * long_side), height, width)
    if not head or not person.joint_visible.any():
        return certain
    limits = (width - 1, height - 1)
    joints = np.rint(np.clip(np.nan_to_num(person.keypoints[:, :2]), 0, limits)).astype(np.int64)
    seen = joints[person.joint_visible]
    x0, y0, x1, y1 = box_of(certain)
    (left, top), (right, bottom) = seen.min(axis=0) - head, seen.max(axis=0) + head + 1
    x0, y0 = max(0, min(x0, int(left))), max(0, min(y0, int(top)))
    x1, y1 = min(width, max(x1, int(right))), min(height, max(y1, int(bottom)))
    crop = crop_of(certain, x0, y0, x1, y1)
    shifted = [(int(x) - x0, int(y) - y0) for x, y in joints]
    thickness = max(1, round(LIMB_SHARE * long_side))
    for a, b in LIMBS:
        if person.joint_visible[a] and person.joint_visible[b]:
            cv2.line(crop, shifted[int(a)], shifted[int(b)], 255, thickness)
    face = person.joint_visible[:FACE_JOINTS]
    if face.any():
        x, y = (round(float(value)) for value in joints[:FACE_JOINTS][face].mean(axis=0))
        cv2.circle(crop, (x - x0, y - y0), head, 255, cv2.FILLED)
    return PastedAlpha(x0=x0, y0=y0, alpha=crop)


def _at_least(alpha: U8, level: int) -> U8:
    hard: U8 = (alpha >= level).view(np.uint8) * np.uint8(255)
    return hard


def _union(first: PastedAlpha, second: PastedAlpha) -> PastedAlpha:
    parts = [one for one in (first, second) if one.alpha.size]
    if len(parts) < 2:
        return parts[0] if parts else first
    boxes = [box_of(one) for one in parts]
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return PastedAlpha(x0=x0, y0=y0, alpha=np.maximum(*(crop_of(one, x0, y0, x1, y1) for one in parts)))


def _box_of_joints(person: Person, margin_px: int, height: int, width: int) -> PastedAlpha:
    x, y, box_width, box_height = person.bbox
    if not box_width and not box_height:
        return PastedAlpha(x0=0, y0=0, alpha=np.zeros((0, 0), np.uint8))
    x0, y0 = max(0, int(x) - margin_px), max(0, int(y) - margin_px)
    x1 = min(width, int(np.ceil(x + box_width)) + margin_px + 1)
    y1 = min(height, int(np.ceil(y + box_height)) + margin_px + 1)
    return PastedAlpha(x0=x0, y0=y0, alpha=np.full((max(0, y1 - y0), max(0, x1 - x0)), 255, np.uint8))


def margin_px(long_side: float) -> int:
    """Rim around a covered region."""
    return max(MARGIN_MIN_PX, round(MARGIN_SHARE * long_side))


def _grow(lost: _Seen, height: int, width: int) -> None:
    """A frame more without the person: they may have gone on in any direction."""
    step = int(np.ceil(grown_px(lost.steps, lost.speed_px or 0.0, lost.long_side) - lost.grown_px))
    if step > 0:
        lost.region = widened(lost.region, step, height, width)
        lost.grown_px += step


def grown_px(steps: int, speed_px: float, long_side: float) -> float:
    """How far a person may be, in any direction, from where they were found so many steps before or after."""
    return min(steps * (SPEED_FACTOR * speed_px + GROWTH_SHARE * long_side), GROWTH_MAX_SHARE * long_side)


def widened(region: PastedAlpha, by_px: int, height: int, width: int) -> PastedAlpha:
    """The region grown by ``by_px`` px to all sides, as far as the frame goes."""
    if not region.alpha.size:
        return region
    wide = enlarged(region, by_px, height, width)
    # A square is separable, and much faster than a disc.
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * by_px + 1, 2 * by_px + 1))
    return PastedAlpha(x0=wide.x0, y0=wide.y0, alpha=np.asarray(cv2.dilate(wide.alpha, kernel), np.uint8))


def soft_cover(region: PastedAlpha, margin_px: int, height: int, width: int) -> PastedAlpha:
    """The region whole, and a rim of ``margin_px`` around it of which the outer half fades out."""
    if not region.alpha.size:
        return region
    fade = margin_px // 2
    wide = enlarged(widened(region, margin_px, height, width), fade, height, width)
    side = 2 * fade + 1
    # Replicated at the frame's border, where the region may go on.
    faded = cv2.blur(wide.alpha, (side, side), borderType=cv2.BORDER_REPLICATE)
    return PastedAlpha(x0=wide.x0, y0=wide.y0, alpha=np.asarray(faded, np.uint8))
