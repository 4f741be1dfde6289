"""Joints of each person smoothed from frame to frame, for outputs that are looked at; off by default.

Masks are made from the joints as they were found, so this changes what is drawn and written, not what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.coordinates import F32, F64, I32
from kernels.joint_smoothing import DEFAULT_SMOOTHING, SmoothingParameters, Visible, smooth_joints
from kernels.pose_similarity import pose_sizes

FORGOTTEN_AFTER_S = 0.5  # who was away that long starts afresh where they are found


@dataclass(slots=True, eq=False)
class _Smoothed:
    points: F64  # (17, 2)
    speeds_px_s: F64  # (17, 2)
    seen: Visible  # (17,)
    time_s: float


class JointSmoother:
    """Remembers everybody's joints by id; one per source, like the tracker whose ids it goes by."""

    def __init__(self, parameters: SmoothingParameters = DEFAULT_SMOOTHING) -> None:
        self._parameters = parameters
        self._people: dict[int, _Smoothed] = {}
        self._clip: int | None = None

    def smooth(self, ids: I32, keypoints: F32, joint_visible: Visible, *, clip: int, time_s: float) -> F32:
        """The same people with stiller joints.

        Args:
            ids: (N,) from the tracker, all different.
            keypoints: (N, 17, 3) x, y in frame px, confidence; not changed.
            joint_visible: (N, 17): the joints that are smoothed; the others pass through.
            clip: number of the source file; another one starts anew.
            time_s: presentation time, s; may jump.

        Returns:
            (N, 17, 3) float32, confidences as they were.
        """
        if clip != self._clip:
            self._clip, self._people = clip, {}
        self._people = {
            person_id: person
            for person_id, person in self._people.items()
            if 0 <= time_s - person.time_s <= FORGOTTEN_AFTER_S
        }
        if not len(ids):
            return keypoints
        points = keypoints[:, :, :2].astype(np.float64)
        nothing = _Smoothed(np.zeros((17, 2)), np.zeros((17, 2)), np.zeros(17, np.bool_), time_s)
        before = [self._people.get(person_id, nothing) for person_id in ids.tolist()]
        smoothed, speeds = smooth_joints(
            points,
            joint_visible,
            np.stack([person.points for person in before]),
            np.stack([person.speeds_px_s for person in before]),
            np.stack([person.seen for person in before]),
            pose_sizes(points, joint_visible),
            np.array([time_s - person.time_s for person in before]),
            parameters=self._parameters,
        )
        for n, person_id in enumerate(ids.tolist()):
            self._people[person_id] = _Smoothed(smoothed[n], speeds[n], joint_visible[n].copy(), time_s)
        result = keypoints.copy()
        result[:, :, :2] = smoothed
        return result

    def to_state(self) -> dict[str, Any]:
        """All that is remembered, as plain JSON values; the numbers come back exactly."""
        return {
            "clip": self._clip,
            "people": [
                {
                    "id": person_id,
                    "points": person.points.tolist(),
                    "speeds_px_s": person.speeds_px_s.tolist(),
                    "seen": person.seen.tolist(),
                    "time_s": person.time_s,
                }
                for person_id, person in self._people.items()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._clip = state["clip"]
        self._people = {
            person["id"]: _Smoothed(
                np.array(person["points"], np.float64),
                np.array(person["speeds_px_s"], np.float64),
                np.array(person["seen"], np.bool_),
                person["time_s"],
            )
            for person in state["people"]
        }
