"""Where a hiding layer must cover the frame: a little more than people are, and for some time where they were.

Whatever is not certain counts as somebody: a person who is not found in a frame stays covered where they were, in a
region that grows as fast as they moved; a mask that collapses keeps the region of before; a person without a mask is
covered by the box of their joints, and the head always is. What was never found is never covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, U8
from kernels.mask_paste import PastedAlpha
from kernels.skeleton import LIMBS
from pipeline.layers.alpha import AlphaMaker, PersonAlpha, box_of, crop_of, enlarged
from pipeline.layers.options import ChosenPeople
from pipeline.messages import FrameResult
from pipeline.person import Person

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
NEWCOMER_SHARE = 0.5  # of the long side: how far somebody may have come before they were found
GROWTH_MAX_SHARE = (
    1.0  # of the long side, all frames together: half of it lost people after 15 frames, see docs/layers.md
)


@dataclass(slots=True)
class _Seen:
    region: PastedAlpha  # hard: 0 or 255
    joints: F32  # (17, 3) as found
    joint_visible: NDArray[np.bool_]
    long_side: float
    speed_px: float = 0.0  # per frame
    missed: int = 0
    grown_px: float = 0.0
    whole: PastedAlpha | None = None  # the region before the mask collapsed, covered for some time more
    whole_frames: int = 0


class CoverMemory:
    """Regions of the chosen people over time. Asked again about the newest frame, it gives what it made."""

    def __init__(self, maker: AlphaMaker, chosen: ChosenPeople, *, frames: int) -> None:
        """Set up.

        Args:
            maker: of the run's alphas.
            chosen: who is covered.
            frames: how many frames a person who is not found stays covered.
        """
        self._maker = maker
        self._chosen = chosen
        self._frames = frames
        self._seen: dict[int, _Seen] = {}
        self._result: FrameResult | None = None
        self._covers: list[PastedAlpha] = []
        self._newcomers: list[PastedAlpha] = []

    def of(self, result: FrameResult) -> Sequence[PastedAlpha]:
        """What must be covered, with a soft rim outside of what is certain."""
        if result is not self._result:
            self._covers = self._made(result)
            self._result = result
        return self._covers

    def newcomers(self, result: FrameResult) -> Sequence[PastedAlpha]:
        """Where people are who are found for the first time, and where they may have been before, widely."""
        self.of(result)
        return self._newcomers

    def _made(self, result: FrameResult) -> list[PastedAlpha]:
        frame = result.frame
        size = (frame.height, frame.width)
        before = self._result.frame if self._result is not None else None
        if before is None or (before.clip, before.height, before.width) != (frame.clip, *size):
            self._seen.clear()
        here = {one.person.id: one for one in self._maker.of(result) if one.person.id in self._chosen}
        self._newcomers = []
        for person_id, one in here.items():
            known = person_id in self._seen
            self._seen[person_id] = _updated(self._seen.get(person_id), one, self._frames, *size)
            if not known:
                new = self._seen[person_id]
                self._newcomers.append(widened(new.region, round(NEWCOMER_SHARE * new.long_side), *size))
        for person_id in [person_id for person_id in self._seen if person_id not in here]:
            lost = self._seen[person_id]
            lost.missed += 1
            if lost.missed > self._frames:
                del self._seen[person_id]
            else:
                _grow(lost, *size)
        return [
            soft_cover(region, _margin_px(seen.long_side), *size)
            for seen in self._seen.values()
            for region in (seen.region, seen.whole)
            if region is not None
        ]


def _updated(before: _Seen | None, one: PersonAlpha, frames: int, height: int, width: int) -> _Seen:
    person = one.person
    _, _, box_width, box_height = person.bbox
    now = _Seen(
        region=_region(one, height, width),
        joints=person.keypoints,
        joint_visible=person.joint_visible,
        long_side=max(box_width, box_height),
    )
    if before is None:
        return now
    if not box_width and not box_height:  # neither mask nor joints: somebody is named, nothing says where
        now.region, now.long_side = before.region, before.long_side
        return now
    now.speed_px = max(_speed_px(before, now), SPEED_DECAY * before.speed_px)
    whole = before.region if before.whole is None else before.whole
    if cv2.countNonZero(now.region.alpha) < COLLAPSED_SHARE * cv2.countNonZero(whole.alpha):
        now.whole_frames = before.whole_frames + 1
        if now.whole_frames <= frames:
            now.whole = whole
            now.long_side = max(now.long_side, before.long_side)
    return now


def _speed_px(before: _Seen, now: _Seen) -> float:
    """Per frame, from joints seen in both: the box of a mask jumps when somebody steps in front."""
    both = before.joint_visible & now.joint_visible
    if before.missed or both.sum() < 3:
        return before.speed_px
    steps = np.linalg.norm(now.joints[both, :2] - before.joints[both, :2], axis=1)
    return min(float(np.median(steps)), SPEED_MAX_SHARE * now.long_side)


def _region(one: PersonAlpha, height: int, width: int) -> PastedAlpha:
    """The mask, or the joints' box where there is none, and the limbs and the head."""
    person = one.person
    _, _, box_width, box_height = person.bbox
    long_side = max(box_width, box_height)
    head = round(HEAD_SHARE * long_side)
    # The mask as the network gave it, too: refining or steadying an edge must not uncover anything.
    mask = PastedAlpha(x0=person.crop.x0, y0=person.crop.y0, alpha=person.crop.mask.view(np.uint8) * np.uint8(255))
    certain = _union(PastedAlpha(x0=one.alpha.x0, y0=one.alpha.y0, alpha=_at_least(one.alpha.alpha, FAINT)), mask)
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


def _margin_px(long_side: float) -> int:
    return max(MARGIN_MIN_PX, round(MARGIN_SHARE * long_side))


def _grow(lost: _Seen, height: int, width: int) -> None:
    """A frame more without the person: they may have gone on in any direction."""
    wanted = min(
        lost.missed * (SPEED_FACTOR * lost.speed_px + GROWTH_SHARE * lost.long_side), GROWTH_MAX_SHARE * lost.long_side
    )
    step = int(np.ceil(wanted - lost.grown_px))
    if step > 0:
        lost.region = widened(lost.region, step, height, width)
        lost.grown_px += step


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
