"""Stable ids: who in this frame is who in the frames before.

Association by pose: every known person is moved on by their last speed, compared with every new person by object
keypoint similarity (OKS) and by the overlap of the joint boxes, and the best pairs are taken first. A person who is
not seen is remembered for about a second. Appearance is not looked at, so two people who hide each other completely
may come out exchanged.

Whoever is known may go on with a lower score than it takes to appear: a person who is half hidden for a moment keeps
mask and id, while a weak pose that fits nobody known stays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.coordinates import F32, F64, I32
from kernels.pose_decoding import OKS_SPREADS

MEMORY_S = 1.0
MIN_SIMILARITY = (
    0.15  # of the better of OKS and box overlap, after both are discounted; below it a person is somebody new
)
MIN_SIMILARITY_OF_WEAK = 0.3  # a pose too weak to be somebody new must look more like the one it continues
MAX_REPETITION = 0.4  # a weak pose more similar than this to a sure one repeats it; it would drag hidden people along
MOTION_SLACK = 4.0  # OKS spreads are made for annotation noise; between two frames people move more than that
SLACK_PER_S = 4.0  # the longer unseen, the less is known about where somebody is
SPEED_SMOOTHING = 0.5  # share of the old speed that is kept
BOX_WEIGHT = 0.5
MIN_SHARED_JOINTS = 3


@dataclass(slots=True, eq=False)
class _Track:
    id: int
    keypoints: F64  # (17, 2), x, y in frame px
    visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    speed_px_s: F64  # (2,)
    seen_s: float
    clip: int


class PersonTracker:
    """Gives ids for one frame after the other. Ids start at 1 in every clip and are not used twice in it."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._clip: int | None = None
        self._next_id = 1

    def assign(
        self,
        keypoints: F32,
        joint_visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
        may_be_new: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
        *,
        clip: int,
        time_s: float,
    ) -> I32:
        """Name the people of one frame.

        Args:
            keypoints: (N, 17, 3): x, y in frame px, confidence.
            joint_visible: (N, 17) bool: joints to compare.
            may_be_new: (N,) bool: poses sure enough to be somebody who was not there before.
            clip: number of the source file; another one starts anew.
            time_s: presentation time, s.

        Returns:
            (N,) int32 ids, all different but for 0: a weak pose that continues nobody.
        """
        if clip != self._clip:
            self._clip, self._tracks, self._next_id = clip, [], 1
        self._tracks = [track for track in self._tracks if abs(time_s - track.seen_s) <= MEMORY_S]
        points = keypoints[:, :, :2].astype(np.float64)
        ids = np.zeros(len(points), np.int32)
        similarity = np.zeros((len(points), len(self._tracks)))
        for column, track in enumerate(self._tracks):
            expected = track.keypoints + track.speed_px_s * (time_s - track.seen_s)
            for row in range(len(points)):
                value = pose_similarity(
                    points[row], joint_visible[row], expected, track.visible, unseen_s=time_s - track.seen_s
                )
                enough = MIN_SIMILARITY if may_be_new[row] else MIN_SIMILARITY_OF_WEAK
                similarity[row, column] = value if value >= enough else 0.0
        for row in np.flatnonzero(~may_be_new).tolist():
            if any(
                pose_similarity(points[row], joint_visible[row], points[other], joint_visible[other]) > MAX_REPETITION
                for other in np.flatnonzero(may_be_new).tolist()
            ):
                similarity[row] = 0.0
        while similarity.size and similarity.max() >= MIN_SIMILARITY:
            row, column = (int(i) for i in np.unravel_index(similarity.argmax(), similarity.shape))
            self._move(self._tracks[column], points[row], joint_visible[row], time_s, sure=bool(may_be_new[row]))
            ids[row] = self._tracks[column].id
            similarity[row, :] = similarity[:, column] = 0.0
        for row in np.flatnonzero((ids == 0) & may_be_new).tolist():
            ids[row] = self._next_id
            self._next_id += 1
            self._tracks.append(
                _Track(int(ids[row]), points[row], joint_visible[row].copy(), np.zeros(2), time_s, clip)
            )
        return ids

    @staticmethod
    def _move(
        track: _Track,
        points: F64,
        visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
        time_s: float,
        *,
        sure: bool,
    ) -> None:
        elapsed_s = time_s - track.seen_s
        shared = track.visible & visible
        if (
            sure and elapsed_s > 0 and shared.sum() >= MIN_SHARED_JOINTS
        ):  # half hidden, the joints seen move by themselves
            speed = np.median(points[shared] - track.keypoints[shared], axis=0) / elapsed_s
            track.speed_px_s = SPEED_SMOOTHING * track.speed_px_s + (1.0 - SPEED_SMOOTHING) * speed
        track.keypoints, track.visible, track.seen_s = points, visible.copy(), time_s


def pose_similarity(
    points: F64,
    visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    other_points: F64,
    other_visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    *,
    unseen_s: float = 0.0,
) -> float:
    """How much two poses (17, 2) look like one person a moment later, 0..1, by the joints both show and by boxes.

    ``unseen_s`` is how long ago the other pose was seen if that is longer than a frame.
    """
    shared = visible & other_visible
    x0, y0, x1, y1 = _box(points, visible)
    ox0, oy0, ox1, oy1 = _box(other_points, other_visible)
    area, other_area = (x1 - x0) * (y1 - y0), (ox1 - ox0) * (oy1 - oy0)
    overlap = max(0.0, min(x1, ox1) - max(x0, ox0)) * max(0.0, min(y1, oy1) - max(y0, oy0))
    iou = overlap / (area + other_area - overlap)
    if shared.sum() < MIN_SHARED_JOINTS:
        return BOX_WEIGHT * iou
    distance2 = ((points[shared] - other_points[shared]) ** 2).sum(axis=1)
    slack = MOTION_SLACK * (1.0 + SLACK_PER_S * max(unseen_s, 0.0))
    variances = (area + other_area) / 2.0 * (slack * OKS_SPREADS[shared] / 2.0) ** 2
    oks = float(np.exp(-distance2 / (2.0 * variances)).mean())
    return (1.0 - BOX_WEIGHT) * oks + BOX_WEIGHT * iou


def _box(points: F64, visible: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 of the visible joints (of all where none is), at least a pixel wide."""
    chosen = points[visible] if visible.any() else points
    (x0, y0), (x1, y1) = chosen.min(axis=0), chosen.max(axis=0)
    return float(x0) - 0.5, float(y0) - 0.5, float(x1) + 0.5, float(y1) + 0.5
