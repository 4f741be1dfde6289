"""The keypoint network on those parts of a picture that have changed, for cameras that stand still.

What was found in the other parts stays: people with their joints, and the features that masks are made from. A part
that changes is looked at with a margin around it, and together with everybody whom it touches, so that nobody is ever
put together from an old half and a new one.

    letterboxed picture -> kernels.changed_blocks against what was last looked at there
                        -> kernels.renewal: crops -> network, one call each -> joints and features of their cores
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.changed_blocks import BLOCK_PX, changed_blocks
from kernels.coordinates import F32, U8
from kernels.pose_decoding import suppress
from kernels.renewal import CALL_PX, Boxes, Renewal, plan_renewal, pose_boxes

THRESHOLD = 10.0  # levels that the mean of 4 x 4 px must differ by: several times a webcam's noise
MARGIN_PX = 32  # how much a crop shows beyond what is taken from it (docs/experiments.md)
WHOLE_SHARE = 0.8  # of the px: the whole picture is looked at where the crops would come to more
WHOLE_EVERY = 50  # frames: whoever was missed is found then at the latest
PERSON_GROWTH = 0.15  # of the size of the joints' box: hands, feet and hair lie outside of it

Looked = tuple[F32, F32, F32]
"""keypoints (N, 17, 3) in input px, scores (N,), features (1, C, h, w)"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sight:
    """What is known of one picture.

    Attributes:
        keypoints: (N, 17, 3) x, y in input px, confidence.
        scores: (N,).
        features: (1, C, h, w); of several pictures in a row it may be the same array.
        renewed: (ceil(H / 16), ceil(W / 16)) the number of the picture in which a block of the input was last looked
            at.
    """

    keypoints: F32
    scores: F32
    features: F32
    renewed: NDArray[np.int64]


class StillParts:
    """Memory of one stream."""

    def __init__(self, look: Callable[[U8], Looked], *, grid: int, stride: int, max_oks: float) -> None:
        """Start without memory.

        Args:
            look: runs the network on a picture (H, W, 3) whose sides are multiples of ``grid``.
            grid: largest stride of the network, px.
            stride: of its features, px; divides ``grid``.
            max_oks: people of two crops more alike than this are one.
        """
        self._look = look
        self._grid = grid
        self._stride = stride
        self._max_oks = max_oks
        self._margin = -(-MARGIN_PX // grid) * grid
        self._seen: U8 = np.empty((0, 0, 3), np.uint8)
        self._sight: Sight | None = None
        self._clip = -1
        self._number = 0
        self._since_whole = 0
        self.px_shown = 0
        self.px_looked_at = 0

    def see(self, picture: U8, *, clip: int) -> Sight:
        """Look at what has changed.

        Args:
            picture: (H, W, 3) uint8, letterboxed; may be overwritten afterwards.
            clip: of the stream; a new one begins without memory.
        """
        self._number += 1
        self._since_whole += 1
        height, width, _ = picture.shape
        self.px_shown += height * width
        sight = self._sight
        known = sight is not None and clip == self._clip and picture.shape == self._seen.shape
        if sight is None or not known or self._since_whole >= WHOLE_EVERY:
            return self._whole(picture, clip)
        people = pose_boxes(sight.keypoints, grow=PERSON_GROWTH)
        changed = changed_blocks(picture, self._seen, threshold=THRESHOLD)
        plan = plan_renewal(changed, people, height=height, width=width, grid=self._grid, margin=self._margin)
        if plan is None or _cost_px(plan.crops) > WHOLE_SHARE * height * width:
            return self._whole(picture, clip)
        if len(plan.crops):
            self._sight = self._parts(picture, sight, plan)
        return self._sight or sight

    def _whole(self, picture: U8, clip: int) -> Sight:
        self.px_looked_at += picture.shape[0] * picture.shape[1]
        keypoints, scores, features = self._look(picture)
        blocks = (-(-picture.shape[0] // BLOCK_PX), -(-picture.shape[1] // BLOCK_PX))
        self._sight = Sight(
            keypoints=keypoints, scores=scores, features=features, renewed=np.full(blocks, self._number, np.int64)
        )
        self._seen, self._clip, self._since_whole = picture.copy(), clip, 0
        return self._sight

    def _parts(self, picture: U8, sight: Sight, plan: Renewal) -> Sight:
        features, renewed = sight.features.copy(), sight.renewed.copy()
        keypoints, scores = [sight.keypoints[plan.kept]], [sight.scores[plan.kept]]
        for crop, core in zip(plan.crops.tolist(), plan.cores.tolist(), strict=True):
            (x0, y0, x1, y1), (left, top, right, bottom) = crop, core
            self.px_looked_at += (x1 - x0) * (y1 - y0)
            found, found_scores, found_features = self._look(np.ascontiguousarray(picture[y0:y1, x0:x1]))
            found = found.copy()
            found[..., :2] += (x0, y0)
            inside = _in_core(found, core)
            keypoints.append(found[inside])
            scores.append(found_scores[inside])
            columns, rows = self._strides(left, right), self._strides(top, bottom)
            of_columns, of_rows = self._strides(left - x0, right - x0), self._strides(top - y0, bottom - y0)
            features[..., rows, columns] = found_features[..., of_rows, of_columns]
            self._seen[top:bottom, left:right] = picture[top:bottom, left:right]
            renewed[top // BLOCK_PX : -(-bottom // BLOCK_PX), left // BLOCK_PX : -(-right // BLOCK_PX)] = self._number
        all_keypoints, all_scores = np.concatenate(keypoints), np.concatenate(scores)
        best = suppress(all_keypoints, all_scores, max_oks=self._max_oks)  # two crops may overlap
        return Sight(keypoints=all_keypoints[best], scores=all_scores[best], features=features, renewed=renewed)

    def _strides(self, begin: int, end: int) -> slice:
        """Features that belong to px from ``begin`` to ``end``."""
        return slice(begin // self._stride, end // self._stride)


def compile_kernels() -> None:
    """Pay what the first call costs."""
    side = BLOCK_PX
    changed = changed_blocks(np.zeros((side, side, 3), np.uint8), np.ones((side, side, 3), np.uint8), threshold=0)
    plan_renewal(changed, np.zeros((1, 4), np.int64), height=side, width=side, grid=side, margin=0)
    suppress(np.zeros((1, 17, 3), np.float32), np.zeros(1, np.float32))


def _cost_px(crops: Boxes) -> int:
    sides = crops[:, 2:] - crops[:, :2]
    return int(sides.prod(1).sum()) + CALL_PX * len(crops)


def _in_core(keypoints: F32, core: list[int]) -> NDArray[np.bool_]:
    """(N,) whether the middle of a person lies in the core: who stands in the margin only is somebody else's."""
    boxes = pose_boxes(keypoints, grow=0.0)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((middle >= core[:2]) & (middle <= core[2:])).all(1), np.bool_)
