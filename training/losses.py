"""What the keypoint heads and the SegModule are taught: targets on the stride-4 grid, and losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kernels.coordinates import F32
from training.dataset import Scene
from training.model import JOINTS, STRIDE

# Heatmap sigma in cells as a line over the person's extent in cells: what the initial weights' own peaks measure (1.0
# below 20 cells of extent, 1.1 at 30, 1.2 at 50 and above; medians over 549 joints), so that fine-tuning need not
# reshape them.
SIGMA_AT_ZERO, SIGMA_PER_EXTENT, MIN_SIGMA_CELLS, MAX_SIGMA_CELLS = 0.9, 0.007, 1.0, 1.3
CENTRE_SIGMA_CELLS = 1.5
INCOMPLETE_WEIGHT = 0.1  # weight of empty regions in pictures where not everybody is labelled


def mask_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    dice_weight: float = 0.5,
    strangers: Tensor | None = None,
    stranger_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy plus a share of a soft Dice loss; logits and targets (N, S, S), mean over people.

    Without Dice it is the paper's loss: the logit is the difference of its two classes' logits. Px where ``strangers``
    is 1 weigh ``stranger_weight`` more in the cross-entropy.
    """
    weight = None if strangers is None or stranger_weight == 0 else 1 + stranger_weight * strangers
    entropy = F.binary_cross_entropy_with_logits(logits, targets, weight)
    if dice_weight == 0:
        return entropy
    p = logits.sigmoid().flatten(1)
    t = targets.flatten(1)
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return entropy + dice_weight * dice.mean()


@dataclass(frozen=True, kw_only=True)
class KeypointTargets:
    """Targets of a batch on the (h, w) grid of stride 4; y before x."""

    heatmaps: Tensor  # (B, 17, h, w) 0..1
    centre: Tensor  # (B, 1, h, w) 0..1
    weight: Tensor  # (B, 1, h, w) of the two maps above; 0 where people are whose joints nobody labelled
    people: Tensor  # (N, 3) int64: image, row, column of each person's centre
    regression: Tensor  # (N, 17, 2) joint - centre cell, cells
    regression_weight: Tensor  # (N, 17)
    joints: Tensor  # (M, 4) int64: image, joint, row, column
    offsets: Tensor  # (M, 2) joint - cell, cells

    def to(self, device: torch.device) -> KeypointTargets:
        return KeypointTargets(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def _splat(target: F32, y: float, x: float, sigma: float) -> None:
    """Maximum of the map and a Gaussian whose peak cell is exactly 1."""
    h, w = target.shape
    row, column, reach = int(y), int(x), int(np.ceil(3 * sigma))
    y0, y1, x0, x1 = max(row - reach, 0), min(row + reach + 1, h), max(column - reach, 0), min(column + reach + 1, w)
    if y0 >= y1 or x0 >= x1:
        return
    ys, xs = np.arange(y0, y1) - row, np.arange(x0, x1) - column
    bump = np.exp(-(ys[:, None] ** 2 + xs[None] ** 2) / (2 * sigma**2)).astype(np.float32)
    np.maximum(target[y0:y1, x0:x1], bump, out=target[y0:y1, x0:x1])


def person_sigma(extent: float) -> float:
    """Deviation of a person's Gaussians, cells, from their extent in cells."""
    return float(np.clip(SIGMA_AT_ZERO + SIGMA_PER_EXTENT * extent, MIN_SIGMA_CELLS, MAX_SIGMA_CELLS))


def cell_weight(scene: Scene, near: F32, known: NDArray[np.bool_]) -> F32:
    """(h, w) how much each cell of a scene's heatmaps counts.

    Args:
        scene: where not everybody is listed, empty regions count `INCOMPLETE_WEIGHT`; where people are of whom no
            joints are taught, nothing.
        near: (h, w) greatest target of any map: what exceeds 0.01 is not empty.
        known: (h, w) cells that count whatever is unlabelled there.
    """
    h, w = near.shape
    weight = np.ones((h, w), np.float32)
    if not scene.complete:
        weight[near <= 0.01] = INCOMPLETE_WEIGHT
    if scene.unlabelled is not None:
        touched = scene.unlabelled.reshape(h, STRIDE, w, STRIDE).any((1, 3))
        weight[touched & ~known] = 0.0
    return weight


def keypoint_targets(scenes: list[Scene]) -> KeypointTargets:
    """Draw the targets of a batch. A cell owns [4i, 4i + 4) px; positions are continuous cells, (px + 0.5) / 4."""
    height, width = scenes[0].labels.shape
    h, w = height // STRIDE, width // STRIDE
    heatmaps = np.zeros((len(scenes), JOINTS, h, w), np.float32)
    centre = np.zeros((len(scenes), 1, h, w), np.float32)
    weight = np.ones((len(scenes), 1, h, w), np.float32)
    people, regression, regression_weight, joints, offsets = [], [], [], [], []
    for b, scene in enumerate(scenes):
        for pose in scene.keypoints:
            present = pose[:, 2] > 0
            cells = (pose[:, 1::-1] + 0.5) / STRIDE  # (17, 2) y, x
            extent = float(np.ptp(cells[present], axis=0).max()) + 1.0
            sigma = person_sigma(extent)
            middle = np.clip((cells[present].min(0) + cells[present].max(0)) / 2, 0, (h - 1e-3, w - 1e-3))
            _splat(centre[b, 0], middle[0], middle[1], CENTRE_SIGMA_CELLS)
            people.append((b, int(middle[0]), int(middle[1])))
            regression.append(cells - np.floor(middle))
            regression_weight.append(present / (extent * max(present.sum(), 1)))
            for joint in np.flatnonzero(present):
                y, x = cells[joint]
                if 0 <= y < h and 0 <= x < w:
                    _splat(heatmaps[b, joint], y, x, sigma)
                    joints.append((b, joint, int(y), int(x)))
                    offsets.append((y - int(y), x - int(x)))
        near = np.maximum(heatmaps[b].max(0), centre[b, 0])
        weight[b, 0] = cell_weight(scene, near, near == 1.0)  # peaks of listed people stay
    return KeypointTargets(
        heatmaps=torch.from_numpy(heatmaps),
        centre=torch.from_numpy(centre),
        weight=torch.from_numpy(weight),
        people=torch.tensor(people, dtype=torch.int64).reshape(-1, 3),
        regression=torch.from_numpy(np.array(regression, np.float32).reshape(-1, JOINTS, 2)),
        regression_weight=torch.from_numpy(np.array(regression_weight, np.float32).reshape(-1, JOINTS)),
        joints=torch.tensor(joints, dtype=torch.int64).reshape(-1, 4),
        offsets=torch.from_numpy(np.array(offsets, np.float32).reshape(-1, 2)),
    )


def focal_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Penalty-reduced focal loss of CornerNet (eq. 1; alpha 2, beta 4), summed and divided by the number of peaks."""
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    peak = targets > 0.999
    positive = torch.where(peak, (1 - p) ** 2 * p.log(), torch.zeros_like(p))
    negative = torch.where(peak, torch.zeros_like(p), (1 - targets) ** 4 * p**2 * (1 - p).log())
    return -((positive + negative) * weight).sum() / peak.sum().clamp(min=1)


def keypoint_losses(maps: dict[str, Tensor], targets: KeypointTargets) -> dict[str, Tensor]:
    """Loss of each head; see `KeypointTargets` for the shapes."""
    losses = {
        "centre": focal_loss(maps["centre"].float(), targets.centre, targets.weight),
        "heatmaps": focal_loss(maps["heatmaps"].float(), targets.heatmaps, targets.weight),
    }
    b, y, x = targets.people.unbind(1)
    at_centres = maps["regression"].float()[b, :, y, x].unflatten(1, (JOINTS, 2))
    error = F.smooth_l1_loss(at_centres, targets.regression, reduction="none", beta=1.0).sum(-1)
    losses["regression"] = 4.0 * (error * targets.regression_weight).sum() / max(len(b), 1)
    b, joint, y, x = targets.joints.unbind(1)
    predicted = torch.stack(
        (maps["offsets"].float()[b, 2 * joint, y, x], maps["offsets"].float()[b, 2 * joint + 1, y, x]), dim=-1
    )
    losses["offsets"] = F.l1_loss(predicted, targets.offsets, reduction="sum") / max(len(b), 1)
    return losses


def distillation_loss(
    maps: dict[str, Tensor], reference: dict[str, Tensor], targets: KeypointTargets, incomplete: Tensor
) -> Tensor:
    """Keep unlabelled people alive: stay close to a reference network where not everybody is labelled.

    Args:
        maps: raw maps of the network that learns.
        reference: raw maps of a frozen network on the same pictures.
        targets: whose low weights (`INCOMPLETE_WEIGHT`) say where nothing is labelled.
        incomplete: (B,) 1 for pictures with unlabelled people, 0 otherwise.

    Returns:
        Squared difference of the probabilities, summed over the unlabelled cells, and of the regressed joints at the
        reference's own confident centres relative to the extent they span; divided by the number of pictures concerned.
    """
    unlabelled = (targets.weight < 1).float() * incomplete[:, None, None, None]
    count = incomplete.sum().clamp(min=1)
    total = maps["centre"].sum() * 0.0
    for name in ("centre", "heatmaps"):
        difference = maps[name].float().sigmoid() - reference[name].float().sigmoid()
        total = total + (difference**2 * unlabelled).sum() / count
    probability = reference["centre"].float().sigmoid()
    peak = (probability >= F.max_pool2d(probability, 5, 1, 2)) & (probability > 0.3) & (unlabelled > 0)
    b, _, y, x = peak.nonzero().unbind(1)
    if len(b):
        ours, theirs = (m["regression"].float()[b, :, y, x].unflatten(1, (JOINTS, 2)) for m in (maps, reference))
        extent = (theirs.amax(1) - theirs.amin(1)).amax(1).clamp(min=1.0) + 1.0
        total = total + ((ours - theirs).abs().mean((1, 2)) / extent).sum() * 4.0 / count
    return total
