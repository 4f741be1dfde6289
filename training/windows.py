"""Each person's window, in every way the paper compares, and what the SegModule gets to see through it.

A window is a matrix from the picture into the ROI. Affine-Align fits the pose to templates, RoI-Align stretches an
upright box to the square; both are sampled, drawn on and learned from by the same code.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kernels.affine_align.torch_op import affine_align
from kernels.coordinates import F32, F64
from kernels.neighbours import CHANNELS as NEIGHBOUR_CHANNELS
from kernels.pose_fit import fit_poses
from kernels.torch_neighbours import neighbour_features
from kernels.torch_skeleton import skeleton_features
from training.model_settings import AlignSettings, ModelSettings

SKELETON_CHANNELS = 55
SMALLEST_BOX_PX = 1e-3  # a box thinner than this has no window


def roi_from_boxes(boxes: NDArray[np.floating], fallback: ArrayLike, size: int) -> F64:
    """Windows that stretch upright boxes to the square.

    Args:
        boxes: (N, 4) x0, y0, x1, y1, px edges (a box over the first px only is -0.5, -0.5, 0.5, 0.5 in points).
        fallback: (2, 3) window of a box without area, or with NaN or infinity.
        size: side S of the ROI, px.

    Returns:
        (N, 2, 3): the box's edges on the ROI's.
    """
    result = np.tile(np.asarray(fallback, np.float64), (len(boxes), 1, 1))
    for n, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, np.float64)):
        width, height = x1 - x0, y1 - y0
        if not (np.isfinite((x0, y0, x1, y1)).all() and min(width, height) > SMALLEST_BOX_PX):
            continue
        scale_x, scale_y = size / width, size / height
        result[n] = (
            (scale_x, 0, scale_x * (0.5 - x0) - 0.5),
            (0, scale_y, scale_y * (0.5 - y0) - 0.5),
        )
    return result


def boxes_around_joints(poses: F32, expand: float) -> F64:
    """(N, 17, 3) poses to (N, 4) boxes around their joints with v > 0, px edges; no joint: no area.

    Args:
        poses: x, y in px, v.
        expand: width and height grow by this share about the middle; 0.5 makes them half as large again.
    """
    boxes = np.zeros((len(poses), 4))
    for n, pose in enumerate(np.asarray(poses, np.float64)):
        points = pose[(pose[:, 2] > 0) & np.isfinite(pose).all(1), :2]
        if len(points):
            low, high = points.min(0), points.max(0)
            grow = expand * (high - low) / 2
            boxes[n] = (*(low - grow + 0.5), *(high + grow + 0.5))
    return boxes


def roi_from_people(
    poses: F32, boxes: F64 | None, fallback: ArrayLike, templates: F32, align: AlignSettings, size: int
) -> F64:
    """The window of each person, as ``align`` says.

    Args:
        poses: (N, 17, 3) x, y in px of the picture, v > 0 where usable.
        boxes: (N, 4) annotated boxes in the same px, edges; read by ``align.box`` gt only.
        fallback: (2, 3) window of a person for whom there is no other.
        templates: see `kernels.pose_fit.fit_poses`.
        align: which way.
        size: side S of the ROI, px.

    Returns:
        (N, 2, 3) picture px to ROI px.

    Raises:
        ValueError: annotated boxes are wanted and there are none.
    """
    if align.mode == "roi":
        if align.box == "joints":
            boxes = boxes_around_joints(poses, align.expand)
        if boxes is None:
            raise ValueError("align.box gt needs annotated boxes, these people have none: set align.box joints")
        return roi_from_boxes(boxes, fallback, size)
    fit = fit_poses(
        poses,
        templates,
        fallback,
        roi_size=size,
        hard_rule=align.hard_rule,
        min_scale_rule=align.min_scale_rule,
        printed_score=align.score == "paper",
    )
    return fit.roi_from_frame.astype(np.float64)


def reference_sampling(feature_from_roi: Tensor, compat: str, height: int, width: int) -> Tensor:
    """(N, 2, 3) exact matrices to those that the released code in effect samples with, L i + t being exact.

    ``ref_pt10`` (PyTorch to 1.2): L i + t (side - 1) / side, so that features slip towards the origin.
    ``ref_pt13`` (later, by a changed default): L (i + 1/2) + t - 1/2. ``exact`` changes nothing.
    """
    if compat == "exact":
        return feature_from_roi
    linear, shift = feature_from_roi[..., :2], feature_from_roi[..., 2]
    if compat == "ref_pt10":
        shift = shift * torch.tensor([(width - 1) / width, (height - 1) / height], device=shift.device)
    else:
        shift = shift + linear.sum(-1) / 2 - 0.5
    return torch.cat((linear, shift[..., None]), dim=-1)


def seg_inputs(
    settings: ModelSettings,
    features: Tensor,
    feature_from_roi: Tensor,
    roi_image: Tensor,
    roi_keypoints: Tensor,
    present: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """What the SegModule reads: aligned features, the skeleton, the other people; (N, `seg_channels`, S, S).

    Args:
        settings: `skeleton`, `align.compat` and `roi_size` are read.
        features, feature_from_roi, roi_image, roi_keypoints: as in the segment graph.
        present: see `kernels.torch_neighbours.neighbour_features`.
    """
    size, sampling = settings.roi_size, feature_from_roi
    if settings.align.compat != "exact":
        height, width = features.shape[-2:]
        sampling = reference_sampling(feature_from_roi, settings.align.compat, height, width)
    aligned = affine_align(features, sampling, roi_image, size)
    if not settings.skeleton.enabled:
        return aligned
    if not settings.skeleton.negative_occluded:
        seen = torch.where(roi_keypoints[..., 2:] > 0.5, 2.0, 0.0).to(roi_keypoints.dtype)
        roi_keypoints = torch.cat((roi_keypoints[..., :2], seen), dim=-1)
    drawn = skeleton_features(roi_keypoints.to(aligned.dtype), size)
    if not settings.skeleton.neighbours:
        return torch.cat((aligned, drawn), dim=1)
    others = neighbour_features(feature_from_roi, roi_image, roi_keypoints, size, present)
    return torch.cat((aligned, drawn, others.to(aligned.dtype)), dim=1)


def seg_channels(settings: ModelSettings) -> int:
    """Channels of `seg_inputs`."""
    skeleton = settings.skeleton
    drawn = SKELETON_CHANNELS + NEIGHBOUR_CHANNELS * skeleton.neighbours
    return settings.feature_channels + drawn * skeleton.enabled
