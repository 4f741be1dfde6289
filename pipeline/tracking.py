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
from kernels.pose_similarity import MIN_SHARED_JOINTS, pose_similarities

MEMORY_S = 1.0
MIN_SIMILARITY = 0.15  # see kernels/pose_similarity.py; below it a person is somebody new
MIN_SIMILARITY_OF_WEAK = 0.3  # a pose too weak to be somebody new must look more like the one it continues
MAX_REPETITION = 0.4  # a weak pose more similar than this to a sure one repeats it; it would drag hidden people along
SPEED_SMOOTHING = 0.5  # share of the old speed that is kept


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
        unseen_s = np.array([time_s - track.seen_s for track in self._tracks], np.float64)
        expected = np.empty((len(self._tracks), *points.shape[1:]))
        known_visible = np.empty((len(self._tracks), points.shape[1]), np.bool_)
        for column, track in enumerate(self._tracks):
            expected[column] = track.keypoints + track.speed_px_s * unseen_s[column]
            known_visible[column] = track.visible
        similarity = pose_similarities(points, joint_visible, expected, known_visible, unseen_s)
        enough = np.where(may_be_new, MIN_SIMILARITY, MIN_SIMILARITY_OF_WEAK)
        similarity[similarity < enough[:, None]] = 0.0
        if may_be_new.any() and not may_be_new.all():
            sure = points[may_be_new], joint_visible[may_be_new], np.zeros(int(may_be_new.sum()))
            repetition = pose_similarities(points, joint_visible, *sure).max(axis=1)
            similarity[~may_be_new & (repetition > MAX_REPETITION)] = 0.0
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
