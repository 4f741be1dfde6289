"""Composed scenes in which it is chosen how much people hide each other, with everything about it known.

`compose_occluded` paints cut-out people as training does (`training.compose`), but tries places until the greatest
MaxIoU of the scene lies in the wanted part: a person's MaxIoU is the greatest IoU of the box around its visible px with
somebody else's, the measure of OCHuman. Unlike in training everybody in the picture is listed: nobody is hidden almost
completely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kernels.coordinates import F32, F64, U8, transform_points
from kernels.skeleton import FLIPPED_JOINTS
from training.compose import (
    PEOPLE_SHARE,
    Cutout,
    Placement,
    at_offset,
    mark_hidden_joints,
    occluder_shape,
    paint,
    place,
    turned,
)
from training.dataset import LABEL_COVERED, DataError, greatest_iou, visible_box, warp_keypoints

MAX_IOU_PARTS = {"general": (0.0, 0.5), "moderate": (0.5, 0.75), "hard": (0.75, 1.0)}  # [low, high) of MaxIoU
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX, MIN_JOINTS = 0.15, 150, 4  # of everybody in a scene
MOST_BESIDE_A_PAIR = 2  # further people in moderate and hard scenes
THING_SHARE = 0.25  # of scenes with a thing in front of somebody
PAIR_TRIES, SCENE_TRIES = 60, 200
SHRINK = 4  # places are tried on masks of this fraction of the size

VISIBLE, HIDDEN, OUTSIDE, UNLABELLED = "visible", "occluded", "outside", "unlabelled"  # what is known of a joint

Draw = Callable[[], Cutout]


@dataclass(frozen=True, kw_only=True, eq=False)
class OccludedScene:
    """A picture of N people, px of the picture; people in the order of painting, the first is furthest back."""

    image: U8  # (H, W, 3) RGB
    labels: U8  # (H, W): 0 nobody, i + 1 person i visible, `LABEL_COVERED` a thing in front
    whole: NDArray[np.bool_]  # (N, H, W) each body as far as it lies in the picture, hidden parts too
    keypoints: F32  # (N, 17, 3) v 0 absent or outside, 1 hidden, 2 visible
    placed_keypoints: F32  # (N, 17, 3) the same, those outside of the picture too, with the v of the cut-out
    cutouts: tuple[Cutout, ...]
    part: str  # which of `MAX_IOU_PARTS` the scene was made for

    @property
    def visible(self) -> NDArray[np.bool_]:
        """(N, H, W) what is seen of each person."""
        return self.labels[None] == np.arange(1, len(self.keypoints) + 1, dtype=np.uint8)[:, None, None]

    def boxes(self) -> F64:
        """(N, 4) xyxy around what is seen of each person, px edges."""
        return np.stack([visible_box(self.labels, person + 1) for person in range(len(self.keypoints))])

    def whole_boxes(self) -> F64:
        """(N, 4) xyxy around each body, px edges."""
        return np.stack([visible_box(mask.astype(np.uint8), 1) for mask in self.whole])

    def joint_flags(self) -> list[list[str]]:
        """For each person what is known of each of the 17 joints."""
        flags = []
        for pose, placed in zip(self.keypoints, self.placed_keypoints, strict=True):
            of_v = {0: OUTSIDE, 1: HIDDEN, 2: VISIBLE}
            flags.append(
                [of_v[int(v)] if known > 0 else UNLABELLED for v, known in zip(pose[:, 2], placed[:, 2], strict=True)]
            )
        return flags


def _small_mask(placement: Placement, height: int, width: int) -> NDArray[np.bool_]:
    """The body of a placement on a canvas of 1 / `SHRINK` of the size, roughly."""
    matrix = placement.matrix / SHRINK
    matrix[:, 2] += (1 / SHRINK - 1) / 2
    size = (-(-width // SHRINK), -(-height // SHRINK))
    mask: NDArray[np.bool_] = cv2.warpAffine(placement.cutout.alpha, matrix, size, flags=cv2.INTER_LINEAR) > 127
    return mask


def _box_of(mask: NDArray[np.bool_]) -> F64:
    return visible_box(mask.astype(np.uint8), 1)


def _pair(rng: Generator, draw: Draw, drawn_height: float, part: str, height: int, width: int) -> list[Placement]:
    """Two people whose visible boxes have an IoU in the part, at like scale; empty if none was found."""
    low, high = MAX_IOU_PARTS[part]
    wanted = rng.uniform(low, 0.5 * (low + high) if part == "hard" else high)
    first = draw()
    behind = place(rng, first, drawn_height * (0.65 if first.cut_below else 1.0), None, height, width)
    behind_mask = _small_mask(behind, height, width)
    if behind_mask.sum() * SHRINK**2 < MIN_VISIBLE_PX:
        return []
    spread = 0.35 * (1 - wanted) + 0.03  # of the person's size; nearer places for a greater IoU
    best, best_error = [], 0.04
    for _ in range(PAIR_TRIES):
        cutout = draw()
        if cutout.cut_below != first.cut_below:
            continue
        scale = np.exp(rng.normal(0, 0.1))
        linear, mirrored, corner, far = turned(rng, cutout, drawn_height * scale * (0.65 if cutout.cut_below else 1.0))
        size = far - corner
        centre = (behind.box[:2] + behind.box[2:]) / 2 + rng.normal(0, spread, 2) * size * (1.6, 0.5)
        front = at_offset(cutout, linear, centre - size / 2 - corner, corner, far, mirrored=mirrored)
        if cutout.cut_below and front.box[3] < height:
            continue
        mask = _small_mask(front, height, width)
        seen = behind_mask & ~mask
        if seen.sum() < MIN_VISIBLE_SHARE * behind_mask.sum() or not mask.any():
            continue
        error = abs(float(greatest_iou(np.stack((_box_of(seen), _box_of(mask))))[0]) - wanted)
        if error < best_error:
            best, best_error = [behind, front], error
    return best


def _further(
    rng: Generator, draw: Draw, drawn_height: float, placements: list[Placement], height: int, width: int
) -> Placement:
    cutout = draw()
    drawn = drawn_height * np.exp(rng.normal(0, 0.16)) * (0.65 if cutout.cut_below else 1.0)
    near = placements[rng.integers(len(placements))] if placements and rng.random() < 0.7 else None
    return place(rng, cutout, float(np.clip(drawn, 16, 2.2 * height)), near, height, width)


def _by_depth(rng: Generator, placements: list[Placement]) -> list[Placement]:
    """Who stands lower is in front, as a camera at eye level sees it, in three scenes of five."""
    return sorted(placements, key=lambda p: float(p.box[3])) if rng.random() < 0.6 else placements


def _arranged(rng: Generator, draw: Draw, part: str, height: int, width: int) -> list[Placement]:
    """People in the order of painting; empty if this try gave nothing."""
    if part == "general":
        count = 1 + int(rng.choice(len(PEOPLE_SHARE), p=PEOPLE_SHARE))
        low, high = (0.25, 1.2) if count < 3 else (0.2, 0.9)
        drawn_height = height * np.exp(rng.uniform(np.log(low), np.log(high)))
        placements: list[Placement] = []
        for _ in range(count):
            placements.append(_further(rng, draw, drawn_height, placements, height, width))
        return _by_depth(rng, placements)
    drawn_height = height * np.exp(rng.uniform(np.log(0.4), np.log(1.1)))
    pair = _pair(rng, draw, drawn_height, part, height, width)
    if not pair:
        return []
    others: list[Placement] = []
    for _ in range(int(rng.integers(MOST_BESIDE_A_PAIR + 1))):
        others.append(_further(rng, draw, drawn_height, others or pair, height, width))
    before = int(rng.integers(len(others) + 1))
    return [*others[:before], *pair, *others[before:]]


def _placed(placement: Placement) -> F32:
    """(17, 3) joints on the canvas wherever they lie."""
    pose = placement.cutout.keypoints.copy()
    pose[:, :2] = transform_points(placement.matrix, pose[:, :2])
    if placement.mirrored:
        pose = pose[FLIPPED_JOINTS]
    pose[pose[:, 2] <= 0] = 0
    return pose


def _likely(placements: Sequence[Placement], part: str, height: int, width: int) -> bool:
    """Whether small masks give the wanted MaxIoU and leave enough of everybody: a cheap look before painting."""
    low, high = MAX_IOU_PARTS[part]
    masks = [_small_mask(placement, height, width) for placement in placements]
    labels = np.zeros(masks[0].shape, np.uint8)
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    boxes = []
    for number, mask in enumerate(masks, 1):
        seen = int((labels == number).sum())
        if seen < 0.9 * MIN_VISIBLE_SHARE * mask.sum() or seen * SHRINK**2 < 0.7 * MIN_VISIBLE_PX:
            return False
        boxes.append(visible_box(labels, number))
    greatest = float(greatest_iou(np.stack(boxes)).max())
    return low - 0.05 <= greatest < high + 0.05


def compose_occluded(
    rng: Generator, draw: Draw, background: Callable[[], U8], *, part: str, height: int, width: int
) -> OccludedScene:
    """One scene whose greatest MaxIoU lies in a part.

    Args:
        rng: draws everything; the same generator state gives the same bytes.
        draw: gives a random cut-out person.
        background: gives a random picture without people, (height, width, 3) RGB.
        part: a key of `MAX_IOU_PARTS`.
        height: of the scene, px.
        width: of the scene, px.

    Raises:
        DataError: these cut-outs could not be placed so.
    """
    low, high = MAX_IOU_PARTS[part]
    for _ in range(SCENE_TRIES):
        placements = _arranged(rng, draw, part, height, width)
        if not placements or not _likely(placements, part, height, width):
            continue
        image = background().astype(np.float32)
        labels = np.zeros((height, width), np.uint8)
        whole = np.stack(
            [paint(rng, image, labels, placement, number) for number, placement in enumerate(placements, 1)]
        )
        if rng.random() < THING_SHARE:
            thing = occluder_shape(rng, height, width, placements[rng.integers(len(placements))].box) > 0
            image[thing] = background()[thing]
            labels[thing] = LABEL_COVERED
        keypoints = np.concatenate(
            [warp_keypoints(p.matrix, p.cutout.keypoints[None], height, width, mirrored=p.mirrored) for p in placements]
        )
        mark_hidden_joints(keypoints, labels)
        scene = OccludedScene(
            image=np.clip(image, 0, 255).astype(np.uint8),
            labels=labels,
            whole=whole,
            keypoints=keypoints,
            placed_keypoints=np.stack([_placed(placement) for placement in placements]),
            cutouts=tuple(placement.cutout for placement in placements),
            part=part,
        )
        visible = scene.visible.sum((1, 2))
        enough = visible >= np.maximum(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * whole.sum((1, 2)))
        joints = (keypoints[..., 2] > 0).sum(1) >= MIN_JOINTS
        if enough.all() and joints.all() and low <= float(greatest_iou(scene.boxes()).max()) < high:
            return scene
    raise DataError(
        f"no {part} scene of {width}x{height} px in {SCENE_TRIES} tries: these cut-outs are too few or too thin for a "
        f"MaxIoU in {low:g} to {high:g}; leave that part out of --mix or give more people"
    )
