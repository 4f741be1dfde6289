"""Stable ids: who in this frame is who in the frames before.

Association by pose, without a look at appearance and without any frame of delay, in two rounds:

1. Every known person is moved on by their last speed (which fades while nobody sees them) and compared with every new
   pose by object keypoint similarity (OKS) and by the overlap of the joint boxes; the best pairs are taken first.
   Whoever has not been seen for a while is a less likely explanation of a pose than somebody seen just now: when two
   people become one pose, the id of the one in front stays.
2. Sure poses that are left over are compared with the people that are left over by distance and size alone: somebody
   who comes back into view is not quite where expected. Only what this round leaves is somebody new.

Whoever is known may go on with a lower score than it takes to appear: a person who is half hidden for a moment keeps
mask and id, while a weak pose that fits nobody known stays out.

What was measured, with what else was tried: docs/experiments.md, benchmarks/crossings.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.coordinates import F32, F64, I32
from kernels.pose_similarity import MIN_SHARED_JOINTS, pose_similarities, pose_sizes, return_chances

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

MEMORY_S = 2.0
MIN_SIMILARITY = 0.1  # see kernels/pose_similarity.py; below it a person is somebody new
MIN_SIMILARITY_OF_WEAK = 0.3  # a pose too weak to be somebody new must look more like the one it continues
MAX_REPETITION = 0.4  # a weak pose more similar than this to a sure one repeats it; it would drag hidden people along
UNSEEN_COST_PER_S = 0.4  # similarity that one second out of sight costs, at most this much
LEAST_SIMILARITY = 0.01  # what that leaves of a pair that is similar enough: nobody is ruled out by it
SPEED_MEMORY_S = 0.2  # the old speed's share falls to 1/e in this time
SPEED_FADES_S = 2.0  # likewise the speed of somebody unseen: people stop and turn where nobody sees them
SIZE_MEMORY = 0.8  # share of the old size that is kept when somebody seems smaller: half hidden people do
SIZE_GROWTH = 0.5  # and when larger


@dataclass(slots=True, eq=False)
class _Track:
    id: int
    keypoints: F64  # (17, 2), x, y in frame px
    visible: Bools
    speed_px_s: F64  # (2,)
    size_px: float  # longer side of the box around the joints
    seen_s: float


class PersonTracker:
    """Gives ids for one frame after the other. Ids start at 1 in every clip and are not used twice in it."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._clip: int | None = None
        self._next_id = 1

    def assign(self, keypoints: F32, joint_visible: Bools, may_be_new: Bools, *, clip: int, time_s: float) -> I32:
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
        sizes = pose_sizes(points, joint_visible)
        ids = np.zeros(len(points), np.int32)
        if self._tracks and len(points):
            for row, column, returned in self._continued(points, joint_visible, may_be_new, time_s):
                track = self._tracks[column]
                ids[row] = track.id
                _move(track, points[row], joint_visible[row], time_s, sure=bool(may_be_new[row]), returned=returned)
                old, new = track.size_px, float(sizes[row])
                share = SIZE_MEMORY if new < old else SIZE_GROWTH
                track.size_px = share * old + (1.0 - share) * new
        for row in np.flatnonzero((ids == 0) & may_be_new).tolist():
            ids[row] = self._next_id
            self._next_id += 1
            self._tracks.append(
                _Track(int(ids[row]), points[row], joint_visible[row].copy(), np.zeros(2), float(sizes[row]), time_s)
            )
        return ids

    def to_state(self) -> dict[str, Any]:
        """All that is remembered, as plain JSON values; the numbers come back exactly."""
        return {
            "clip": self._clip,
            "next_id": self._next_id,
            "tracks": [
                {
                    "id": track.id,
                    "keypoints": track.keypoints.tolist(),
                    "visible": track.visible.tolist(),
                    "speed_px_s": track.speed_px_s.tolist(),
                    "size_px": track.size_px,
                    "seen_s": track.seen_s,
                }
                for track in self._tracks
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._clip = state["clip"]
        self._next_id = state["next_id"]
        self._tracks = [
            _Track(
                track["id"],
                np.array(track["keypoints"], np.float64),
                np.array(track["visible"], np.bool_),
                np.array(track["speed_px_s"], np.float64),
                track["size_px"],
                track["seen_s"],
            )
            for track in state["tracks"]
        ]

    def _continued(self, points: F64, visible: Bools, may_be_new: Bools, time_s: float) -> list[tuple[int, int, bool]]:
        """Who goes on: rows of the frame, places in ``self._tracks``, and whether the second round found them."""
        tracks = self._tracks
        unseen_s = np.maximum(np.array([time_s - track.seen_s for track in tracks]), 0.0)
        last = np.stack([track.keypoints for track in tracks])
        known_visible = np.stack([track.visible for track in tracks])
        speeds = np.stack([track.speed_px_s for track in tracks])
        travel_s = SPEED_FADES_S * (1.0 - np.exp(-unseen_s / SPEED_FADES_S))
        expected = last + (speeds * travel_s[:, None])[:, None]

        similarity = pose_similarities(points, visible, expected, known_visible, unseen_s)
        enough = similarity >= np.where(may_be_new, MIN_SIMILARITY, MIN_SIMILARITY_OF_WEAK)[:, None]
        if may_be_new.any() and not may_be_new.all():
            sure = points[may_be_new], visible[may_be_new], np.zeros(int(may_be_new.sum()))
            repetition = pose_similarities(points, visible, *sure).max(axis=1)
            enough[~may_be_new & (repetition > MAX_REPETITION)] = False
        similarity -= UNSEEN_COST_PER_S * np.minimum(unseen_s, 1.0)
        found = self.pairs(np.where(enough, np.maximum(similarity, LEAST_SIMILARITY), 0.0))

        rows = np.setdiff1d(np.flatnonzero(may_be_new), [row for row, _ in found])
        lost = np.setdiff1d(np.flatnonzero(unseen_s > 0), [column for _, column in found])
        back: list[tuple[int, int]] = []
        if len(rows) and len(lost):
            sizes = np.array([tracks[column].size_px for column in lost.tolist()])
            chances = return_chances(
                points[rows], visible[rows], expected[lost], last[lost], known_visible[lost], sizes, unseen_s[lost]
            )
            back = [(int(rows[i]), int(lost[j])) for i, j in self.pairs(chances)]
        return [(*pair, False) for pair in found] + [(*pair, True) for pair in back]

    @staticmethod
    def pairs(values: F64) -> list[tuple[int, int]]:
        """Pairs of a row and a column of (N, M), the greatest value first, each row and column once; 0 is no pair.

        The pairs of the greatest sum (an assignment solver's) named the same people: docs/experiments.md.
        """
        left = values.copy()
        pairs = []
        while left.size and left.max() > 0:
            row, column = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
            pairs.append((row, column))
            left[row, :] = left[:, column] = 0.0
        return pairs


def _move(track: _Track, points: F64, visible: Bools, time_s: float, *, sure: bool, returned: bool) -> None:
    elapsed_s = time_s - track.seen_s
    shared = track.visible & visible
    if returned:  # from an unknown way
        track.speed_px_s = np.zeros(2)
    elif sure and elapsed_s > 0 and shared.sum() >= MIN_SHARED_JOINTS:
        # Only sure poses: of a half hidden one the joints seen move by themselves.
        speed = np.median(points[shared] - track.keypoints[shared], axis=0) / elapsed_s
        old_share = np.exp(-elapsed_s / SPEED_MEMORY_S)
        track.speed_px_s = old_share * track.speed_px_s + (1.0 - old_share) * speed
    track.keypoints, track.visible, track.seen_s = points, visible.copy(), time_s
