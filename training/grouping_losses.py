"""What the heads of associative embedding and of part affinity fields are taught, and the choice between all groupings.

Targets lie on the stride-4 grid; positions are indices of cells, (px + 0.5) / 4 - 0.5: whole in a cell's middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.coordinates import F32, F64
from kernels.skeleton import JOINTS, LIMBS
from training.dataset import Scene
from training.losses import cell_weight, person_sigma
from training.model import STRIDE
from training.personlab_losses import personlab_losses, personlab_targets

FIELD_HALF_WIDTH_CELLS = 1.0  # of a limb, across and beyond its ends
PUSH_WEIGHT = 4.0  # against the pull; with equal weights, as published, short runs end with all tags alike
TAG_DEVIATION = 1.0  # sigma of the push loss: tags about this far apart are told apart


@dataclass(frozen=True, kw_only=True)
class JointTargets:
    """Heatmaps of a batch, and which cell is whose joint."""

    heatmaps: Tensor  # (B, 17, h, w) 0..1
    weight: Tensor  # (B, 1, h, w)
    joints: Tensor  # (M, 4) int64: image, joint, row, column of every joint in view
    person: Tensor  # (M,) int64: whose it is, counted through the batch


def joint_cells(pose: F32) -> F64:
    """(17, 3) x, y, v in px to (17, 2) x, y in cells."""
    cells: F64 = (pose[:, :2].astype(np.float64) + 0.5) / STRIDE - 0.5
    return cells


def joint_targets(scenes: list[Scene]) -> JointTargets:
    """Gaussians around every joint, where it is and not where its cell is: a quarter of a cell can be read off them."""
    height, width = scenes[0].labels.shape
    h, w = height // STRIDE, width // STRIDE
    rows, columns = np.arange(h), np.arange(w)
    heatmaps = np.zeros((len(scenes), JOINTS, h, w), np.float32)
    weight = np.ones((len(scenes), 1, h, w), np.float32)
    joints, person, people = [], [], 0
    for b, scene in enumerate(scenes):
        known = np.zeros((h, w), bool)
        for pose in scene.keypoints:
            present = pose[:, 2] > 0
            cells = joint_cells(pose)
            sigma = person_sigma(float(np.ptp(cells[present], axis=0).max()) + 1.0)
            for joint in np.flatnonzero(present):
                x, y = cells[joint]
                row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
                if 0 <= row < h and 0 <= column < w:
                    bump = np.outer(
                        np.exp(-((rows - y) ** 2) / (2 * sigma**2)), np.exp(-((columns - x) ** 2) / (2 * sigma**2))
                    )
                    np.maximum(heatmaps[b, joint], bump, out=heatmaps[b, joint], casting="same_kind")
                    known[row, column] = True
                    joints.append((b, joint, row, column))
                    person.append(people)
            people += 1
        weight[b, 0] = cell_weight(scene, heatmaps[b].max(0), known)
    return JointTargets(
        heatmaps=torch.from_numpy(heatmaps),
        weight=torch.from_numpy(weight),
        joints=torch.tensor(joints, dtype=torch.int64).reshape(-1, 4),
        person=torch.tensor(person, dtype=torch.int64),
    )


def heatmap_loss(logits: Tensor, targets: JointTargets, kind: str = "squared") -> Tensor:
    """Error of the probabilities, summed and divided by the number of joints.

    Args:
        logits: (B, 17, h, w).
        targets: see there.
        kind: ``squared``, as both papers have it; ``entropy``, the cross-entropy with the same targets, which is least
            at the same probabilities and still has a slope where a network says 0 for sure, as one may do that starts
            from nothing.
    """
    wanted = targets.heatmaps.to(logits.device)
    if kind == "entropy":
        error = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    else:
        error = (logits.float().sigmoid() - wanted) ** 2
    return (error * targets.weight.to(logits.device)).sum() / max(len(targets.joints), 1)


def tag_losses(tags: Tensor, targets: JointTargets) -> tuple[Tensor, Tensor]:
    """Pull and push of associative embedding, eq. 1.

    Args:
        tags: (B, 17, h, w).
        targets: whose joint lies where.

    Returns:
        pull: squared distance of the tags of a person's joints to their mean; mean over joints, then over people.
        push: exp(-d^2 / (2 sigma^2)) of the mean tags of each two people of a picture; mean over pairs of a picture,
        then over the pictures that have some. Both 0 where there is nobody, or nobody else.

    Source: Newell et al. 2017, section 3.3; means in place of sums from the published code.
    """
    device = tags.device
    image, joint, row, column = targets.joints.to(device).unbind(1)
    if not len(image):
        return tags.sum() * 0.0, tags.sum() * 0.0
    values = tags.float()[image, joint, row, column]
    _, person = targets.person.to(device).unique(return_inverse=True)
    people = int(person.max()) + 1
    counts = torch.zeros(people, device=device).index_add(0, person, torch.ones_like(values))
    mean = torch.zeros(people, device=device).index_add(0, person, values) / counts
    pulled = torch.zeros(people, device=device).index_add(0, person, (values - mean[person]) ** 2) / counts
    of_image = torch.zeros(people, dtype=torch.int64, device=device).index_copy(0, person, image)
    others = (of_image[:, None] == of_image[None]) & ~torch.eye(people, dtype=torch.bool, device=device)
    near = torch.exp(-((mean[:, None] - mean[None]) ** 2) / (2 * TAG_DEVIATION**2)) * others
    pairs = others.sum(1)
    pictures = len(of_image[pairs > 0].unique())
    in_picture = (of_image[:, None] == of_image[None]).sum(1).clamp(min=2)
    push = (near.sum(1) / (in_picture * (in_picture - 1))).sum() / max(pictures, 1)
    return pulled.mean(), push


def field_targets(scenes: list[Scene]) -> F32:
    """(B, 38, h, w) part affinity fields: the unit vector along a limb where it is, the mean of them where limbs cross.

    Source: Cao et al. 2017, eq. 8 and 9. x before y, as in the drawn skeleton.
    """
    height, width = scenes[0].labels.shape
    h, w = height // STRIDE, width // STRIDE
    grid_y, grid_x = np.mgrid[:h, :w].astype(np.float64)
    fields = np.zeros((len(scenes), 2 * len(LIMBS), h, w), np.float32)
    for b, scene in enumerate(scenes):
        counts = np.zeros((len(LIMBS), h, w), np.float32)
        for pose in scene.keypoints:
            cells = joint_cells(pose)
            for limb, (i, j) in enumerate(LIMBS):
                if pose[i, 2] <= 0 or pose[j, 2] <= 0:
                    continue
                vector = cells[j] - cells[i]
                length = float(np.hypot(*vector))
                if length < 1e-3:
                    continue
                unit = vector / length
                dx, dy = grid_x - cells[i, 0], grid_y - cells[i, 1]
                along, across = dx * unit[0] + dy * unit[1], dx * unit[1] - dy * unit[0]
                reach = FIELD_HALF_WIDTH_CELLS
                on_limb = (np.abs(across) <= reach) & (along >= -reach) & (along <= length + reach)
                for axis in range(2):
                    fields[b, 2 * limb + axis][on_limb] += unit[axis]
                counts[limb][on_limb] += 1
        fields[b] /= np.maximum(counts, 1).repeat(2, axis=0)
    return fields


def field_loss(fields: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Squared error of (B, 38, h, w) fields, summed and divided by the number of cells that limbs cover."""
    error = (fields.float() - targets) ** 2 * weight
    covered = (targets != 0).unflatten(1, (-1, 2)).any(2).sum()
    return error.sum() / covered.clamp(min=1)


def grouping_losses(
    keypoints: str, maps: dict[str, Tensor], scenes: list[Scene], *, kind: str = "squared"
) -> dict[str, Tensor]:
    """Loss of each head of a keypoint network whose grouping is not `centre`, by name.

    Args:
        keypoints: embedding, affinity or personlab.
        maps: raw maps of the network.
        scenes: what it saw.
        kind: of `heatmap_loss`; PersonLab's heatmaps have a loss of their own.
    """
    if keypoints == "personlab":
        targets = personlab_targets(scenes)
        return personlab_losses(maps, targets.to(maps["heatmaps"].device))
    drawn = joint_targets(scenes)
    losses = {"heatmaps": heatmap_loss(maps["heatmaps"], drawn, kind)}
    if keypoints == "embedding":
        losses["pull"], push = tag_losses(maps["tags"], drawn)
        losses["push"] = PUSH_WEIGHT * push
    else:
        fields = maps["affinity_fields"]
        wanted = torch.from_numpy(field_targets(scenes)).to(fields.device)
        losses["fields"] = field_loss(fields, wanted, drawn.weight.to(fields.device))
    return losses
