"""Real pictures and people for tests of the torch engine, and how far outputs are apart. Needs scikit-image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from engines import Artifact
from examples.make_demo_clip import render

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]


def pictures(count: int, height: int, width: int) -> Array:
    """(B, H, W, 3) frames of the demo clip, one second apart: a person, then two who hide each other."""
    frames = [render(25 + 25 * index)[0] for index in range(count)]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def people(found: Feeds, artifact: Artifact, count: int) -> Feeds:
    """Feeds of the segment graph: windows around the people that a keypoint graph found, moved and turned a little."""
    rng = np.random.default_rng(count)
    side = artifact.roi_size
    feature_from_input = np.vstack((artifact.feature_from_input, (0, 0, 1)))
    matrices, images, poses = [], [], []
    for index in range(count):
        image = index % len(found["features"])
        pose = found["person_keypoints"][image, index % 2]
        scale = 1.3 * np.ptp(pose[:, :2], axis=0).max() / side
        angle, centre = rng.uniform(-0.4, 0.4), pose[:, :2].mean(0) + rng.uniform(-9, 9, 2)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        input_from_roi = np.vstack((np.column_stack((turn, centre - turn @ np.full(2, side / 2))), (0, 0, 1)))
        joints = (pose[:, :2] - input_from_roi[:2, 2]) @ np.linalg.inv(turn).T
        matrices.append((feature_from_input @ input_from_roi)[:2])
        poses.append(np.column_stack((joints, np.where(pose[:, 2] > 0.2, 2, rng.integers(0, 2, 17)))))
        images.append(image)
    return {
        "features": np.ascontiguousarray(found["features"], np.float32),
        "feature_from_roi": np.array(matrices, np.float32),
        "roi_image": np.array(images, np.int32),
        "roi_keypoints": np.array(poses, np.float32),
    }


@dataclass(frozen=True)
class Differences:
    """How far keypoint outputs are apart, over what the network sees with some confidence.

    Attributes:
        scores: largest difference of person_scores.
        probabilities: largest difference of the third value of joints.
        positions_px: distances of joints, px.
        unmatched: rows that no row comes near to.
    """

    scores: float
    probabilities: float
    positions_px: Array
    unmatched: int


def keypoint_differences(found: Feeds, expected: Feeds, *, above: float) -> Differences:
    """Rows of people and of joint candidates with a score above this. Each is compared with the nearest row: equal
    scores may change places.
    """
    probabilities, positions, unmatched = 0.0, [], 0
    for image in range(len(expected["person_scores"])):
        keypoints = [outputs["person_keypoints"][image] for outputs in (found, expected)]  # (P, 17, 3)
        candidates = [outputs["joint_candidates"][image][:, :, None] for outputs in (found, expected)]  # (17, M, 1, 4)
        lists = [(*keypoints, expected["person_scores"][image])]
        lists += [(ours, theirs, theirs[:, 0, 2]) for ours, theirs in zip(*candidates, strict=True)]
        for ours, theirs, scores in lists:
            for row in theirs[scores > above]:
                distance = np.abs(ours[..., :2] - row[..., :2]).max((1, 2))
                nearest = distance.argmin()
                if distance[nearest] > 4:  # px, the size of a cell: another peak
                    unmatched += 1
                    continue
                positions.append(distance[nearest])
                probabilities = max(probabilities, np.abs(ours[nearest, :, 2] - row[:, 2]).max())
    scores = np.abs(found["person_scores"] - expected["person_scores"]).max()
    return Differences(float(scores), float(probabilities), np.array(positions), unmatched)
