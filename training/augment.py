"""Random changes of pictures, poses and ROIs that training draws; every function takes its own generator."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from kernels.coordinates import F32, F64, U8


def photometric(rng: Generator, image: U8) -> U8:
    """Exposure, contrast, colour, blur, noise and compression as cameras and codecs do; (H, W, 3) uint8 RGB."""
    out = image.astype(np.float32)
    mean = out.mean()
    out = (out - mean) * rng.uniform(0.75, 1.25) + mean * rng.uniform(0.75, 1.25)
    out *= rng.uniform(0.92, 1.08, 3).astype(np.float32)
    if rng.random() < 0.08:
        out[:] = out.mean(-1, keepdims=True)
    if rng.random() < 0.15:
        out = 255 * (np.clip(out, 0, 255) / 255) ** rng.uniform(0.6, 1.6)
    if rng.random() < 0.2:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.4))
    if rng.random() < 0.3:
        out = out + rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(1, 9))
    result: U8 = np.clip(out, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, packed = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 85))])
        result = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return result


def jitter_pose(rng: Generator, keypoints: F32) -> F32:
    """Errors a keypoint network makes: misplaced, missed and over-confident joints. (17, 3), v in 0, 1, 2."""
    pose = keypoints.copy()
    present = pose[:, 2] > 0
    if present.sum() < 3:
        return pose
    extent = float(np.ptp(pose[present, :2], axis=0).max())
    if rng.random() < 0.6:
        pose[present, :2] += rng.normal(0, rng.uniform(0, 0.035) * extent, (int(present.sum()), 2)).astype(np.float32)
        dropped = present & (rng.random(len(pose)) < 0.08)
        if (present & ~dropped).sum() >= 3:
            pose[dropped] = 0
    if rng.random() < 0.4:
        hidden = pose[:, 2] == 1
        pose[hidden, 2] = 2 if rng.random() < 0.6 else 0
        pose[pose[:, 2] <= 0] = 0
    return pose


def roi_augmentation(
    rng: Generator, size: int, *, rotation_deg: float = 30.0, scale: float = 0.2, shift: float = 0.1
) -> F64:
    """Random roi_from_roi: rotation, scale and shift about the window's centre (spec section 7), (2, 3).

    Args:
        rng: drawn from uniformly.
        size: side of the window, px.
        rotation_deg: largest rotation either way.
        scale: largest relative change of scale either way.
        shift: largest shift either way, as a share of ``size``.
    """
    angle = np.deg2rad(rng.uniform(-rotation_deg, rotation_deg))
    s = rng.uniform(1 - scale, 1 + scale)
    linear = s * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, size / 2)
    moved = centre + rng.uniform(-shift, shift, 2) * size
    return np.concatenate((linear, (moved - linear @ centre)[:, None]), axis=1)
