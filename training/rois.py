"""From scenes and poses to the ROIs the SegModule learns from: fit, augmentation, transformed joints, target masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kernels.coordinates import F32, F64, compose, invert, transform_points
from kernels.pose_fit import whole_frame_roi
from training.augment import jitter_pose, roi_augmentation
from training.dataset import LABEL_COVERED, Scene, decode_mask, visible_box
from training.model import FEATURE_FROM_INPUT
from training.model_settings import AlignSettings
from training.windows import roi_from_people

PLAIN_ALIGN = AlignSettings()
SAME_OKS = 0.4  # a found pose above it is the person's
DOUBTFUL_OKS = 0.1  # one above it may be
MISSED_SHARE = 0.1  # of the people beside somebody, whom the keypoint network would not have found
OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000.0  # COCO


@dataclass(frozen=True, kw_only=True)
class RoiBatch:
    """N people of a batch of scenes, ready for a network's `segment`."""

    feature_from_roi: Tensor  # (N, 2, 3) float32
    roi_image: Tensor  # (N,) int32
    roi_keypoints: Tensor  # (N, 17, 3) float32, ROI px
    targets: Tensor  # (N, S, S) float32, 0 or 1
    strangers: Tensor  # (N, S, S) float32, 1 where somebody else is seen
    present: tuple[Tensor, Tensor, Tensor] | None = None  # everybody in the pictures, where neighbours are drawn

    def to(self, device: torch.device) -> RoiBatch:
        return RoiBatch(
            **{
                name: getattr(self, name).to(device)
                for name in ("feature_from_roi", "roi_image", "roi_keypoints", "targets", "strangers")
            },
            present=None if self.present is None else tuple(part.to(device) for part in self.present),  # type: ignore[arg-type]
        )


def oks(truth: F32, found: F32) -> F64:
    """Object keypoint similarity (N, M) of (N, 17, 3) true and (M, 17, 3) found poses; scale: the true joints' box."""
    result = np.zeros((len(truth), len(found)))
    for n, pose in enumerate(truth):
        present = pose[:, 2] > 0
        if not present.any():
            continue
        area = max(float(np.prod(np.ptp(pose[present, :2], axis=0) + 1.0)), 1.0)
        d2 = ((found[:, present, :2] - pose[None, present, :2]) ** 2).sum(-1)
        result[n] = np.exp(-d2 / (2 * area * (2 * OKS_SIGMAS[present]) ** 2)).mean(-1)
    return result


def target_mask(scene: Scene, person: int, roi_from_input: F64, size: int) -> NDArray[np.bool_]:
    """(size, size) where a person is seen through a window: bilinear, at least one half.

    Out of the photograph's own mask where the scene keeps it, so that it is sampled once only; else out of the labels.
    """
    if scene.photo_masks is None:
        mask, matrix = (scene.labels == person + 1).astype(np.uint8), roi_from_input
    else:
        photo = scene.photo_masks
        mask = decode_mask(photo.segmentations[person], photo.height, photo.width)
        matrix = compose(roi_from_input, photo.canvas_from_photo)
    return cv2.warpAffine(mask * 255, matrix, (size, size), flags=cv2.INTER_LINEAR) > 127


def strangers_mask(scene: Scene, person: int, roi_from_input: F64, size: int) -> NDArray[np.bool_]:
    """(size, size) where the other people of a scene are seen through a window."""
    others = (scene.labels > 0) & (scene.labels != person + 1) & (scene.labels != LABEL_COVERED)
    return cv2.warpAffine(others.astype(np.uint8) * 255, roi_from_input, (size, size), flags=cv2.INTER_LINEAR) > 127


def annotated_box(scene: Scene, person: int) -> F64:
    """(4,) a person's box in px edges of the scene: as annotated where that is known, else around the visible px."""
    return scene.boxes[person] if scene.boxes is not None else visible_box(scene.labels, person + 1)


def build_rois(
    rng: Generator,
    scenes: list[Scene],
    predicted: list[F32] | None,
    templates: F32,
    *,
    size: int,
    max_rois: int,
    predicted_share: float,
    augmented: bool = True,
    augmented_share: float = 0.85,
    jitter: bool = True,
    align: AlignSettings = PLAIN_ALIGN,
    fallback: F64 | None = None,
    feature_from_input: ArrayLike = FEATURE_FROM_INPUT,
    neighbours: bool = False,
) -> RoiBatch | None:
    """Choose people with masks and make their ROIs.

    Args:
        rng: draws people, jitter and augmentation.
        scenes: the batch's pictures.
        predicted: for each scene (M, 17, 3) poses the network found, v in {0, 2}; None to use true poses only.
        templates: pose templates of the fit.
        size: side S of the ROI.
        max_rois: people at most.
        predicted_share: chance that a person found by the network (OKS > 0.4) is learned from the found pose.
        augmented: False gives true poses and plain windows.
        augmented_share: share of windows that are turned, scaled and shifted.
        jitter: true poses get the errors that found ones have.
        align: how windows are found.
        fallback: (2, 3) window of a person for whom there is no other; None: the whole picture, px edges on px edges.
        feature_from_input: (2, 3) of the network.
        neighbours: fill `RoiBatch.present`. All people of a scene then have found poses, or all have true ones.

    Returns:
        None when no scene has a person with a mask.
    """
    people = [(b, n) for b, scene in enumerate(scenes) for n in np.flatnonzero(scene.has_mask)]
    if not people:
        return None
    if len(people) > max_rois:
        people = [people[i] for i in sorted(rng.choice(len(people), max_rois, replace=False))]
    matches = (
        [oks(scene.keypoints, poses) for scene, poses in zip(scenes, predicted, strict=True)]
        if predicted is not None
        else []
    )

    poses, targets, strangers, matrices = [], [], [], []
    seen: list[F32] = []  # of each scene (M, 17, 3) whoever is there for the network
    if neighbours:
        crowds = [
            _crowd(
                rng,
                scene,
                predicted[b] if predicted is not None and augmented and rng.random() < predicted_share else None,
                matches[b] if predicted is not None else None,
                jitter=augmented and jitter,
            )
            for b, scene in enumerate(scenes)
        ]
        seen = [everybody[rng.random(len(everybody)) >= MISSED_SHARE * augmented] for _, everybody in crowds]
        poses = [crowds[b][0][n] for b, n in people]
    else:
        for b, n in people:
            scene = scenes[b]
            pose = scene.keypoints[n]
            similarity = matches[b][n] if predicted is not None and len(predicted[b]) else np.zeros(0)
            if (
                augmented
                and predicted is not None
                and len(similarity)
                and similarity.max() > SAME_OKS
                and rng.random() < predicted_share
            ):
                pose = predicted[b][int(similarity.argmax())].copy()
            elif augmented and jitter:
                pose = jitter_pose(rng, pose)
            poses.append(pose)
    height, width = scenes[0].labels.shape
    boxes = np.stack([annotated_box(scenes[b], n) for b, n in people]) if align.mode == "roi" else None
    if fallback is None:
        fallback = whole_frame_roi(height, width, size).astype(np.float64)
    fitted = roi_from_people(np.stack(poses).astype(np.float32), boxes, fallback, templates, align, size)
    for (b, n), roi_from_input in zip(people, fitted, strict=True):
        matrix = (
            compose(roi_augmentation(rng, size), roi_from_input)
            if augmented and rng.random() < augmented_share
            else roi_from_input
        )
        matrices.append(matrix)
        targets.append(target_mask(scenes[b], int(n), matrix, size))
        strangers.append(strangers_mask(scenes[b], int(n), matrix, size))
    images = [b for b, _ in people]
    feature_from_roi, roi_image, roi_keypoints = _fed(np.stack(matrices), images, np.stack(poses), feature_from_input)
    present = None
    if neighbours:
        everybody = np.concatenate(seen).astype(np.float32)
        windows = roi_from_people(everybody, None, fallback, templates, PLAIN_ALIGN, size)
        images = [b for b, some in enumerate(seen) for _ in some]
        present = _fed(windows, images, everybody, feature_from_input)
    return RoiBatch(
        feature_from_roi=feature_from_roi,
        roi_image=roi_image,
        roi_keypoints=roi_keypoints,
        targets=torch.from_numpy(np.stack(targets).astype(np.float32)),
        strangers=torch.from_numpy(np.stack(strangers).astype(np.float32)),
        present=present,
    )


def _crowd(rng: Generator, scene: Scene, found: F32 | None, match: F64 | None, *, jitter: bool) -> tuple[F32, F32]:
    """(N, 17, 3) poses to learn a scene's people from, and (M, 17, 3) those of everybody who counts as being there.

    With ``found`` these are what the network found, phantoms included, and true poses only of people it did not find;
    a bad pose that may be such a person's is then not there.
    """
    poses = scene.keypoints.astype(np.float32)
    if jitter:
        for n, pose in enumerate(poses):
            poses[n] = jitter_pose(rng, pose)
    if found is None or match is None:
        return poses, poses
    if not (len(found) and len(poses)):
        return poses, found
    best = match.argmax(1)
    matched = match.max(1) > SAME_OKS
    poses[matched] = found[best[matched]]
    strange = np.ones(len(found), np.bool_)
    strange[(match[~matched] > DOUBTFUL_OKS).any(0)] = False
    strange[best[matched]] = True
    return poses, found[strange]


def _fed(
    roi_from_input: F64, images: list[int], poses: F32, feature_from_input: ArrayLike
) -> tuple[Tensor, Tensor, Tensor]:
    """feature_from_roi, roi_image and roi_keypoints of poses (N, 17, 3) in input px."""
    keypoints = poses.astype(np.float32)
    moved = transform_points(roi_from_input, keypoints[..., :2])
    keypoints[..., :2] = np.where(keypoints[..., 2:] > 0, moved, 0)
    matrices = compose(feature_from_input, invert(roi_from_input)).astype(np.float32)
    return (
        torch.from_numpy(matrices.reshape(-1, 2, 3)),
        torch.tensor(images, dtype=torch.int32),
        torch.from_numpy(keypoints.reshape(-1, 17, 3)),
    )
