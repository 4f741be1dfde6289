"""Poses as the default model reports them, drawn at random around the truth: hundreds of sequences in a minute.

Every figure was measured on what the default model said about the tuning scenes (seeds 0 to 59 of
`benchmarks.crossing_scenes`, 6,474 frames): how often somebody of whom so much is seen is found, with which score, how
far each joint is off and for how long, where hidden joints go, how many phantoms there are. What is not known is drawn
independently, which flatters nobody: all trackers get the same poses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from benchmarks.crossing_scenes import JOINTS, Scene, Truth, render
from kernels.coordinates import F32, F64

# Share of the body that is seen -> share of frames in which it is found, covered by people or by anything else.
FOUND_SEEN = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.95, 1.0)
FOUND_COVERED = (0.0, 0.05, 0.08, 0.12, 0.27, 0.43, 0.68, 0.86, 0.96, 0.95, 0.95)
FOUND_ALONE = (0.0, 0.01, 0.15, 0.5, 0.73, 0.85, 0.94, 0.97, 0.98, 0.995, 0.992)
SCORE_SEEN = (0.0, 0.25, 0.45, 0.65, 0.85, 1.0)
SCORE = (0.14, 0.2, 0.36, 0.44, 0.53, 0.64)
SCORE_SPREAD = 0.09
# Per joint: median distance from the truth over body height, and share of joints that are off by more than 8 % of it.
OFF = (8, 8, 7, 9, 7, 13, 14, 18, 16, 20, 17, 19, 20, 19, 20, 22, 23)  # in thousandths
FAR_OFF = (8, 5, 5, 7, 6, 9, 22, 31, 38, 94, 60, 30, 49, 49, 56, 111, 121)  # in thousandths
MEDIAN_OF_RAYLEIGH = 1.1774  # median distance over the deviation of each coordinate
FAR_OFF_BY, HIDDEN_OFF_BY = 0.12, 0.09  # of the body height
LASTING_SHARE = 0.6  # of a joint's error (variance) that stays with a person; the rest changes within `CHANGES_S`
CHANGES_S, MISSES_LAST_S = 0.1, 0.15
HIDDEN_SHOWN = 0.84  # share of hidden joints that are reported as if seen
DRAWN_TO_FRONT = 0.4  # share of hidden joints that are put where the one in front has that joint
PHANTOMS_PER_SCENE, PHANTOM_SHOWN, PHANTOM_SCORE = 0.6, 0.25, 0.27
DOUBLES = 0.005  # share of people reported twice, the second time weakly
LEAST_SCORE = 0.125  # the pipeline drops what is below half its person threshold


@dataclass(frozen=True, kw_only=True, eq=False)
class FramePoses:
    """What a keypoint network said about one frame, beside the truth.

    Attributes:
        keypoints: (N, 17, 3) x, y in frame px, confidence.
        scores: (N,) falling.
        truth: of the same frame.
        owners: (N,) whose pose it is, place in the truth; -1 nobody's or not known.
    """

    keypoints: F32
    scores: F32
    truth: Truth
    owners: np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class _Wander:
    """Numbers with mean 0 and variance 1 that forget themselves within a time."""

    def __init__(self, rng: Generator, shape: tuple[int, ...], memory_s: float) -> None:
        self._rng = rng
        self._memory_s = memory_s
        self._now = rng.normal(size=shape)

    def after(self, elapsed_s: float) -> F64:
        kept = float(np.exp(-elapsed_s / self._memory_s))
        self._now = kept * self._now + np.sqrt(1.0 - kept * kept) * self._rng.normal(size=self._now.shape)
        return self._now


def simulate(scene: Scene) -> Iterator[FramePoses]:
    """Poses of all frames of a scene, in order; the scene's seed decides everything."""
    rng = np.random.default_rng([scene.seed, 11])
    people, step_s = len(scene.walkers), 1.0 / scene.fps
    lasting = rng.normal(size=(people, JOINTS, 2))
    changing = _Wander(rng, (people, JOINTS, 2), CHANGES_S)
    stray = _Wander(rng, (people, JOINTS, 3), CHANGES_S)
    luck = _Wander(rng, (people, 2), MISSES_LAST_S)
    phantoms = [
        (rng.uniform((0, 0), (scene.width, scene.height)), scene.height * rng.uniform(0.1, 0.5))
        for _ in range(rng.poisson(PHANTOMS_PER_SCENE))
    ]
    phantom_luck = _Wander(rng, (len(phantoms), 2), MISSES_LAST_S)
    for _, truth in render(scene, pictures=False):
        errors = np.sqrt(LASTING_SHARE) * lasting + np.sqrt(1.0 - LASTING_SHARE) * changing.after(step_s)
        poses, scores, owners = [], [], []
        strays, lucks = stray.after(step_s), luck.after(step_s)
        for n in range(people):
            found, score = _chance_and_score(truth, n)
            score += SCORE_SPREAD * lucks[n, 1]
            if _uniform(lucks[n, 0]) >= found or score < LEAST_SCORE:
                continue
            poses.append(_pose(rng, truth, n, errors[n], strays[n]))
            scores.append(score)
            owners.append(n)
            if rng.random() < DOUBLES:
                double = poses[-1].copy()
                double[:, :2] += rng.normal(0, 0.02, (JOINTS, 2)) * _height(truth.keypoints[n])
                poses.append(double)
                scores.append(0.5 * score)
                owners.append(-1)
        for (place, height), phantom in zip(phantoms, phantom_luck.after(step_s), strict=True):
            if _uniform(phantom[0]) < PHANTOM_SHOWN:
                shape = truth.keypoints[0, :, :2] - truth.keypoints[0, :, :2].mean(axis=0)
                moved = place + shape * height / _height(truth.keypoints[0])
                moved += rng.normal(0, 0.05 * height, moved.shape)
                poses.append(np.concatenate((moved, rng.uniform(0.1, 0.5, (JOINTS, 1))), axis=1))
                scores.append(PHANTOM_SCORE + SCORE_SPREAD * float(phantom[1]))
                owners.append(-1)
        order = [int(i) for i in np.argsort([-s for s in scores], kind="stable") if scores[i] >= LEAST_SCORE]
        yield FramePoses(
            keypoints=np.array([poses[i] for i in order], np.float32).reshape(-1, JOINTS, 3),
            scores=np.array([scores[i] for i in order], np.float32),
            truth=truth,
            owners=np.array([owners[i] for i in order], np.int64),
        )


def _uniform(normal: float) -> float:
    """0..1 from a normal number, about uniform (logistic approximation of the normal distribution)."""
    return float(1.0 / (1.0 + np.exp(-1.702 * normal)))


def _height(pose: F64) -> float:
    return max(1.0, float(np.ptp(pose[pose[:, 2] > 0, 1])))


def _chance_and_score(truth: Truth, n: int) -> tuple[float, float]:
    """How likely person n is found in this frame, and the middle of the score then."""
    seen = float(truth.visible_share[n])
    hips = truth.keypoints[:, 11, 0]
    beside = np.abs(hips - hips[n]) < 0.25 * _height(truth.keypoints[n])
    covered = bool((beside & (truth.visible_share > 0.1) & (np.arange(len(hips)) != n)).any())
    found = np.interp(seen, FOUND_SEEN, FOUND_COVERED if covered else FOUND_ALONE)
    return float(found), float(np.interp(seen, SCORE_SEEN, SCORE))


def _pose(rng: Generator, truth: Truth, n: int, errors: F64, strays: F64) -> F64:
    true = truth.keypoints[n]
    height = _height(true)
    pose = np.zeros((JOINTS, 3))
    pose[:, :2] = true[:, :2] + errors * (np.array(OFF)[:, None] / 1000 / MEDIAN_OF_RAYLEIGH * height)
    far = np.array([_uniform(value) for value in strays[:, 2]]) < np.array(FAR_OFF) / 1000
    pose[far, :2] += strays[far, :2] * FAR_OFF_BY * height
    pose[:, 2] = np.clip(rng.normal(0.6, 0.15, JOINTS), 0.05, 0.98)
    for joint in np.flatnonzero(true[:, 2] == 1):
        shown = rng.random() < HIDDEN_SHOWN
        pose[joint, 2] = rng.uniform(0.2, 0.5) if shown else rng.uniform(0.02, 0.2)
        pose[joint, :2] += strays[joint, :2] * HIDDEN_OFF_BY * height
        if n + 1 < len(truth.keypoints) and rng.random() < DRAWN_TO_FRONT:
            front = truth.keypoints[n + 1 :, joint]
            distances = np.hypot(*(front[:, :2] - true[joint, :2]).T) + 1e9 * (front[:, 2] < 2)
            if distances.min() < 0.3 * height:
                pose[joint, :2] = front[int(distances.argmin()), :2] + errors[joint] * 0.02 * height
    unlabelled = true[:, 2] == 0
    pose[unlabelled, :2] = true[~unlabelled, :2].mean(axis=0)
    pose[unlabelled, 2] = 0.02
    return pose
