"""Fit poses to pose templates: the similarity that carries each person upright into a square region of interest (ROI).

Convention: points are (x, y) in frame px (any frame of uniform scale will do) and pass into ROI px; a fit is rotation,
uniform scale and shift, four numbers, never a reflection and never a shear. Left-right mirrored people are met by
mirrored templates.

Source: Pose2Seg section 3.2, Eq. 5, as the released code computes it (score, hard rule, scale rule). Differs: closed
form instead of an SVD per template, the same minimum; coinciding joints fall back instead of getting a minimum-norm
solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels.compilation import compiled
from kernels.coordinates import F32, F64, I32, half_pixel_scale
from kernels.skeleton import FLIPPED_JOINTS

MIN_SHARED_JOINTS = 3  # fewer do not describe a pose (paper and released code)
MIN_SPREAD_PX2 = 1e-6  # sum of squared distances to the mean below which joints coincide and no scale is defined
MIN_ROI_SCALE = 1e-6  # ROI px per frame px below which a fit could not be inverted in float32

# Left joints and the nose of the three published templates: x, y in the unit square, mean visibility 0..2.
# The right joint is the left one with x -> 1 - x.
_PAPER_LEFT_HALVES = (
    (  # whole body, from the front
        (0.5, 0.147437, 1.960407),
        (0.505838, 0.175305, 1.709234),
        (0.521291, 0.278846, 1.150592),
        (0.570226, 0.237861, 1.933152),
        (0.599468, 0.386978, 1.716712),
        (0.576052, 0.433977, 1.679903),
        (0.547493, 0.527833, 1.918972),
        (0.555678, 0.697245, 1.893046),
        (0.545439, 0.854169, 1.642211),
    ),
    (  # whole body, from behind: no nose, no eyes
        (0.5, 0.466761, 0.122448),
        (0.496377, 0.475740, 0.108411),
        (0.480106, 0.316720, 0.908671),
        (0.458187, 0.228389, 1.801237),
        (0.452676, 0.386632, 1.458999),
        (0.460152, 0.441518, 1.181585),
        (0.473981, 0.512317, 1.880290),
        (0.471225, 0.696298, 1.791279),
        (0.476583, 0.840807, 1.556111),
    ),
    (  # half body: no knees, no ankles
        (0.5, 0.253295, 1.823628),
        (0.521409, 0.245208, 1.665919),
        (0.547606, 0.319759, 1.203848),
        (0.624892, 0.406239, 1.843165),
        (0.638273, 0.627854, 1.421133),
        (0.566791, 0.617182, 1.280994),
        (0.557347, 0.769513, 1.151778),
        (0.510567, 0.579487, 0.256791),
        (0.501339, 0.522282, 0.066889),
    ),
)


def _both_halves(left_halves: ArrayLike) -> F32:
    half = np.asarray(left_halves, np.float64)  # (k, 9, 3)
    centres = np.empty((len(half), 17, 3))
    centres[:, 0] = half[:, 0]
    centres[:, 1::2] = half[:, 1:]
    centres[:, 2::2] = half[:, 1:]
    centres[:, 2::2, 0] = 1.0 - half[:, 1:, 0]
    return centres.astype(np.float32)


#: (3, 17, 3) float32: cluster centres of the published system, x, y in the unit square and mean visibility 0..2.
PAPER_TEMPLATES: F32 = _both_halves(_PAPER_LEFT_HALVES)
PAPER_TEMPLATES.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseFit:
    """Where each person's ROI lies in the frame, and which template said so."""

    roi_from_frame: F32
    """(N, 2, 3): frame px to ROI px."""
    template_index: I32
    """(N,): index into the templates; -1 where no template was accepted and the whole frame is the ROI."""
    fit_scores: F32
    """(N,): 0..1, how well the best accepted template explains the pose; 0 for the fallback."""


def prepare_templates(centres: ArrayLike, *, threshold: float = 0.4, factor: float = 1.0) -> F32:
    """Turn cluster centres into the templates that poses are fitted to.

    Args:
        centres: (k, 17, 3): x, y in the unit square, mean visibility 0..2.
        threshold: joints whose mean visibility does not exceed it are undefined in the template.
        factor: enlarges the templates about the middle of the square; above 1 the ROI is tighter around the person.

    Returns:
        (2k, 17, 3) float32: the k templates, then their mirror images (left and right labels swapped); undefined joints
        are all zero, the third value of the others is their mean visibility.
    """
    templates = np.array(centres, np.float32)
    if templates.ndim != 3 or templates.shape[1:] != (17, 3):
        raise ValueError(f"template centres must be (k, 17, 3), got {templates.shape}")
    templates[..., :2] = 0.5 + (templates[..., :2] - 0.5) * factor
    templates[templates[..., 2] <= threshold] = 0.0
    return np.concatenate((templates, templates[:, FLIPPED_JOINTS]))


def whole_frame_roi(frame_height: int, frame_width: int, roi_size: int) -> F32:
    """Matrix (2, 3) that takes the whole frame into the ROI, upright, its top-left corner on the ROI's; frame px to ROI
    px.

    Scale roi_size / max(height, width) with pixel edges kept in place: the ROI of a person whom no template fits.
    """
    if min(frame_height, frame_width, roi_size) < 1:
        raise ValueError(f"sizes must be at least 1 px, got frame {frame_height} x {frame_width}, ROI {roi_size}")
    scale = roi_size / max(frame_height, frame_width)
    return half_pixel_scale(scale, scale).astype(np.float32)


def fit_poses(
    keypoints: NDArray[np.floating],
    templates: NDArray[np.floating],
    fallback_roi_from_frame: ArrayLike,
    *,
    roi_size: int = 64,
    hard_rule: bool = True,
    min_scale_rule: bool = True,
    printed_score: bool = False,
) -> PoseFit:
    """Fit each pose to every template by least squares and keep the best.

    Args:
        keypoints: (N, K, 3): x, y in frame px, third value > 0 where the joint is usable. A joint with NaN or infinity
            is not.
        templates: (T, K, 3): x, y in the unit square, third value > 0 where defined; see `prepare_templates`.
        fallback_roi_from_frame: (2, 3) matrix of a person whom no template fits; see `whole_frame_roi`.
        roi_size: side S of the ROI, px; the unit square of the templates fills it.
        hard_rule: a template without one of the person's joints does not compete (else the whole-body front template
            would never lose to the others by much).
        min_scale_rule: the best fit is used only if it magnifies more than the fallback does.
        printed_score: rate a fit as the paper prints it, exp(-|residual of all shared joints together|), in place of
            the released code's score below.

    Returns:
        PoseFit for N people. Nobody accepted (fewer than three shared joints, coinciding joints, scale rule): index -1,
        score 0 and the fallback matrix, which is no error. Of equal scores the first template wins.

    Raises:
        ValueError: the shapes do not agree.

    Source: Pose2Seg section 3.2, Eq. 5; released score = mean of exp(-|residual|^2 / 2) over the shared joints, times
    shared / joints in either; residuals in units of the template's square.
    """
    fallback = _checked(keypoints, templates, fallback_roi_from_frame)
    roi_from_frame, template_index, fit_scores = _fit_poses(
        np.ascontiguousarray(keypoints, np.float32),
        np.ascontiguousarray(templates, np.float32),
        fallback,
        float(roi_size),
        hard_rule,
        min_scale_rule,
        printed_score,
    )
    return PoseFit(roi_from_frame=roi_from_frame, template_index=template_index, fit_scores=fit_scores)


def _checked(
    keypoints: NDArray[np.floating], templates: NDArray[np.floating], fallback_roi_from_frame: ArrayLike
) -> F64:
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"keypoints must be (N, K, 3), got {keypoints.shape}")
    if templates.ndim != 3 or templates.shape[1:] != keypoints.shape[1:]:
        raise ValueError(f"templates must be (T, K={keypoints.shape[1]}, 3) like the keypoints, got {templates.shape}")
    fallback = np.ascontiguousarray(fallback_roi_from_frame, np.float64)
    if fallback.shape != (2, 3):
        raise ValueError(f"fallback_roi_from_frame must be (2, 3), got {fallback.shape}")
    return fallback


@compiled
def _fit_poses(
    keypoints: F32,
    templates: F32,
    fallback: F64,
    roi_size: float,
    hard_rule: bool,
    min_scale_rule: bool,
    printed_score: bool,
) -> tuple[F32, I32, F32]:
    people, joints = keypoints.shape[0], keypoints.shape[1]
    roi_from_frame = np.empty((people, 2, 3), np.float32)
    template_index = np.full(people, -1, np.int32)
    fit_scores = np.zeros(people, np.float32)
    fallback_scale = np.sqrt(fallback[0, 0] ** 2 + fallback[0, 1] ** 2)
    smallest = max(fallback_scale, MIN_ROI_SCALE) if min_scale_rule else MIN_ROI_SCALE
    usable = np.empty(joints, np.bool_)

    for n in range(people):
        for j in range(joints):
            px, py, v = keypoints[n, j, 0], keypoints[n, j, 1], keypoints[n, j, 2]
            usable[j] = v > 0 and np.isfinite(px) and np.isfinite(py) and np.isfinite(v)

        best_score, best_a, best_b, best_tx, best_ty = 0.0, 0.0, 0.0, 0.0, 0.0
        best_index = -1
        for t in range(templates.shape[0]):
            shared, either, refused = 0, 0, False
            mean_x, mean_y, mean_u, mean_v = 0.0, 0.0, 0.0, 0.0
            for j in range(joints):
                defined = templates[t, j, 2] > 0
                if usable[j] and defined:
                    shared += 1
                    mean_x += keypoints[n, j, 0]
                    mean_y += keypoints[n, j, 1]
                    mean_u += templates[t, j, 0]
                    mean_v += templates[t, j, 1]
                if usable[j] or defined:
                    either += 1
                if usable[j] and not defined:
                    refused = hard_rule
            if refused or shared < MIN_SHARED_JOINTS:
                continue
            mean_x /= shared
            mean_y /= shared
            mean_u /= shared
            mean_v /= shared

            # Centred least squares of u = a x + b y + tx, v = -b x + a y + ty: two sums over the spread of the joints.
            spread, sum_a, sum_b = 0.0, 0.0, 0.0
            for j in range(joints):
                if usable[j] and templates[t, j, 2] > 0:
                    x, y = keypoints[n, j, 0] - mean_x, keypoints[n, j, 1] - mean_y
                    u, v = templates[t, j, 0] - mean_u, templates[t, j, 1] - mean_v
                    spread += x * x + y * y
                    sum_a += x * u + y * v
                    sum_b += y * u - x * v
            if not spread >= MIN_SPREAD_PX2:
                continue
            a, b = sum_a / spread, sum_b / spread
            tx, ty = mean_u - (a * mean_x + b * mean_y), mean_v - (a * mean_y - b * mean_x)

            total = 0.0
            for j in range(joints):
                if usable[j] and templates[t, j, 2] > 0:
                    du = a * keypoints[n, j, 0] + b * keypoints[n, j, 1] + tx - templates[t, j, 0]
                    dv = a * keypoints[n, j, 1] - b * keypoints[n, j, 0] + ty - templates[t, j, 1]
                    total += du * du + dv * dv if printed_score else np.exp(-(du * du + dv * dv) / 2.0)
            score = np.exp(-np.sqrt(total)) if printed_score else total / shared * (shared / either)
            if score > best_score:
                best_score, best_index = score, t
                best_a, best_b, best_tx, best_ty = a, b, tx, ty

        if best_index >= 0 and np.sqrt(best_a * best_a + best_b * best_b) * roi_size > smallest:
            template_index[n] = best_index
            fit_scores[n] = best_score
            roi_from_frame[n, 0, 0] = roi_size * best_a
            roi_from_frame[n, 0, 1] = roi_size * best_b
            roi_from_frame[n, 0, 2] = roi_size * best_tx
            roi_from_frame[n, 1, 0] = -roi_size * best_b
            roi_from_frame[n, 1, 1] = roi_size * best_a
            roi_from_frame[n, 1, 2] = roi_size * best_ty
        else:
            for row in range(2):
                for column in range(3):
                    roi_from_frame[n, row, column] = fallback[row, column]
    return roi_from_frame, template_index, fit_scores


def fit_poses_reference(
    keypoints: NDArray[np.floating],
    templates: NDArray[np.floating],
    fallback_roi_from_frame: ArrayLike,
    *,
    roi_size: int = 64,
    hard_rule: bool = True,
    min_scale_rule: bool = True,
    printed_score: bool = False,
) -> PoseFit:
    """`fit_poses` the way the published code works: one linear system per person and template, solved by SVD."""
    fallback = _checked(keypoints, templates, fallback_roi_from_frame)
    fallback_scale = float(np.hypot(fallback[0, 0], fallback[0, 1]))
    smallest = max(fallback_scale if min_scale_rule else 0.0, MIN_ROI_SCALE)
    roi_from_frame = np.empty((len(keypoints), 2, 3), np.float32)
    template_index = np.full(len(keypoints), -1, np.int32)
    fit_scores = np.zeros(len(keypoints), np.float32)
    for n, pose in enumerate(keypoints):
        best_score, best_index, best = 0.0, -1, fallback
        for t, template in enumerate(templates):
            score, unit_from_frame = _fit_one_reference(pose, template, hard_rule, printed_score)
            if score > best_score:
                best_score, best_index, best = score, t, unit_from_frame * roi_size
        if best_index >= 0 and np.hypot(best[0, 0], best[0, 1]) > smallest:
            roi_from_frame[n], template_index[n], fit_scores[n] = best, best_index, best_score
        else:
            roi_from_frame[n] = fallback
    return PoseFit(roi_from_frame=roi_from_frame, template_index=template_index, fit_scores=fit_scores)


def _fit_one_reference(
    pose: NDArray[np.floating], template: NDArray[np.floating], hard_rule: bool, printed_score: bool
) -> tuple[float, F64]:
    refused = 0.0, np.zeros((2, 3))
    usable = [bool(np.all(np.isfinite(joint)) and joint[2] > 0) for joint in pose]
    defined = [bool(joint[2] > 0) for joint in template]
    shared = [j for j in range(len(pose)) if usable[j] and defined[j]]
    either = [j for j in range(len(pose)) if usable[j] or defined[j]]
    if len(shared) < MIN_SHARED_JOINTS or (
        hard_rule and any(u and not d for u, d in zip(usable, defined, strict=True))
    ):
        return refused
    points = pose[shared, :2].astype(np.float64)
    if np.sum((points - points.mean(axis=0)) ** 2) < MIN_SPREAD_PX2:
        return refused
    rows: list[list[float]] = []
    targets: list[float] = []
    for (x, y), (u, v) in zip(points, template[shared, :2].astype(np.float64), strict=True):
        rows.append([x, y, 1.0, 0.0])
        rows.append([y, -x, 0.0, 1.0])
        targets.extend((u, v))
    left, singular, right = np.linalg.svd(np.array(rows), full_matrices=False)
    a, b, tx, ty = right.T @ ((left.T @ np.array(targets)) / singular)
    unit_from_frame = np.array([[a, b, tx], [-b, a, ty]])
    squares = []
    for (x, y), target in zip(points, template[shared, :2], strict=True):
        residual = unit_from_frame @ np.array([x, y, 1.0]) - target
        squares.append(np.sum(residual**2))
    if printed_score:
        return float(np.exp(-np.sqrt(np.sum(squares)))), unit_from_frame
    return float(np.mean(np.exp(-np.array(squares) / 2.0))) * len(shared) / len(either), unit_from_frame
