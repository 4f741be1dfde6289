"""What the heads of PersonLab are taught: discs around joints, and offsets to joints from cells of discs and masks.

Targets lie on the stride-4 grid; positions are indices of cells, (px + 0.5) / 4 - 0.5. Offsets: cells, y before x.

Source: Papandreou et al., "PersonLab", ECCV 2018, sections 3.1, 3.2 and 4 (weights of the losses). Differs: losses are
divided by the number of cells that are taught, and the heatmaps' by that of cells in discs, so that a picture with few
people teaches as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kernels.coordinates import F32, F64
from kernels.personlab_decoding import DISC_RADIUS_PX, MID_CHANNELS, TREE
from kernels.skeleton import JOINTS
from training.dataset import LABEL_COVERED, Scene
from training.losses import INCOMPLETE_WEIGHT, cell_weight
from training.model import STRIDE

RADIUS_CELLS = DISC_RADIUS_PX / STRIDE
LOSS_WEIGHTS = {"heatmaps": 4.0, "person": 2.0, "short_offsets": 1.0, "mid_offsets": 0.25, "long_offsets": 0.125}
MASKLESS_MARGIN = 0.3  # share by which the box around the joints of somebody without a mask grows, to hold them


@dataclass(frozen=True, kw_only=True)
class PersonLabTargets:
    """Targets of a batch; a weight of 0 teaches nothing."""

    heatmaps: Tensor  # (B, 17, h, w) 1 in the discs
    heatmap_weight: Tensor  # (B, 1, h, w)
    short_offsets: Tensor  # (B, 34, h, w)
    short_weight: Tensor  # (B, 17, h, w)
    mid_offsets: Tensor  # (B, 64, h, w)
    mid_weight: Tensor  # (B, 32, h, w)
    long_offsets: Tensor  # (B, 34, h, w)
    long_weight: Tensor  # (B, 17, h, w)
    person: Tensor  # (B, 1, h, w) 1 where a person is
    person_weight: Tensor  # (B, 1, h, w)

    def to(self, device: torch.device) -> PersonLabTargets:
        return PersonLabTargets(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def _cells(pose: F32) -> F64:
    """(17, 3) x, y, v in px to (17, 2) y, x in cells."""
    cells: F64 = (pose[:, 1::-1].astype(np.float64) + 0.5) / STRIDE - 0.5
    return cells


def _disc(cell: F64, h: int, w: int) -> tuple[slice, slice, F64]:
    """The window that the disc around a place reaches, and there (2, rows, columns) the way to the place: y, x."""
    low = np.clip(np.ceil(cell - RADIUS_CELLS), 0, (h, w)).astype(int)
    high = np.clip(np.floor(cell + RADIUS_CELLS) + 1, 0, (h, w)).astype(int)
    rows, columns = slice(low[0], max(high[0], low[0])), slice(low[1], max(high[1], low[1]))
    way = cell[:, None, None] - np.mgrid[rows, columns]
    return rows, columns, way


def _draw_discs(scene: Scene, h: int, w: int) -> tuple[F32, F32, F32, F32, F32]:
    """Heatmaps, short offsets and weights, middle offsets and weights of one scene.

    Where discs of a joint overlap, a cell belongs to the nearest.
    """
    heatmaps = np.zeros((JOINTS, h, w), np.float32)
    nearest = np.full((JOINTS, h, w), np.inf)
    short, mid = np.zeros((JOINTS, 2, h, w), np.float32), np.zeros((MID_CHANNELS // 2, 2, h, w), np.float32)
    mid_weight = np.zeros((MID_CHANNELS // 2, h, w), np.float32)
    for pose in scene.keypoints:
        cells = _cells(pose)
        for joint in np.flatnonzero(pose[:, 2] > 0):
            rows, columns, way = _disc(cells[joint], h, w)
            distance = np.hypot(*way)
            mine = (distance <= RADIUS_CELLS) & (distance < nearest[joint, rows, columns])
            heatmaps[joint, rows, columns][mine] = 1.0
            nearest[joint, rows, columns][mine] = distance[mine]
            short[joint, :, rows, columns][:, mine] = way[:, mine]
            for edge, ends in enumerate(TREE):
                for back in range(2):
                    if ends[back] != joint:
                        continue
                    other = ends[1 - back]
                    present = pose[other, 2] > 0
                    mid_weight[2 * edge + back, rows, columns][mine] = float(present)
                    onward = way + (cells[other] - cells[joint])[:, None, None] if present else np.zeros_like(way)
                    mid[2 * edge + back, :, rows, columns][:, mine] = onward[:, mine]
    short_weight = heatmaps.copy()
    return heatmaps, short.reshape(-1, h, w), short_weight, mid.reshape(-1, h, w), mid_weight


def _draw_masks(scene: Scene, h: int, w: int) -> tuple[F32, F32, F32, F32]:
    """Long offsets (34, h, w) and weights (17, h, w), person (h, w) and its weight, of one scene."""
    labels = scene.labels[1::STRIDE, 1::STRIDE][:h, :w]  # the px beside the middle of each cell
    long, long_weight = np.zeros((JOINTS, 2, h, w), np.float32), np.zeros((JOINTS, h, w), np.float32)
    weight = np.full((h, w), 1.0 if scene.complete else INCOMPLETE_WEIGHT, np.float32)
    for index, pose in enumerate(scene.keypoints):
        cells, present = _cells(pose), pose[:, 2] > 0
        if scene.has_mask[index]:
            inside = labels == index + 1
            grid = np.argwhere(inside).astype(np.float64)
            for joint in np.flatnonzero(present):
                long[joint][:, inside] = (cells[joint] - grid).T
                long_weight[joint][inside] = 1.0
        elif present.any():
            low, high = cells[present].min(0), cells[present].max(0)
            margin = MASKLESS_MARGIN * max(float((high - low).max()), 1.0)
            low, high = np.clip(low - margin, 0, (h, w)).astype(int), np.clip(high + margin + 1, 0, (h, w)).astype(int)
            weight[low[0] : high[0], low[1] : high[1]] = 0.0
    masked = np.flatnonzero(scene.has_mask) + 1
    person: NDArray[np.bool_] = np.isin(labels, masked)
    weight[labels == LABEL_COVERED] = 0.0
    if scene.unlabelled is not None:
        weight[scene.unlabelled[1::STRIDE, 1::STRIDE][:h, :w] > 0] = 0.0
    weight[person] = 1.0
    return long.reshape(-1, h, w), long_weight, person.astype(np.float32), weight


def personlab_targets(scenes: list[Scene]) -> PersonLabTargets:
    """Draw the targets of a batch."""
    height, width = scenes[0].labels.shape
    h, w = height // STRIDE, width // STRIDE
    drawn = []
    for scene in scenes:
        discs, masks = _draw_discs(scene, h, w), _draw_masks(scene, h, w)
        near = discs[0].max(0)
        drawn.append((*discs, *masks, cell_weight(scene, near, near > 0)))
    stacked = [torch.from_numpy(np.stack(one)) for one in zip(*drawn, strict=True)]
    heatmaps, short, short_weight, mid, mid_weight, long, long_weight, person, person_weight, weight = stacked
    return PersonLabTargets(
        heatmaps=heatmaps,
        heatmap_weight=weight[:, None],
        short_offsets=short,
        short_weight=short_weight,
        mid_offsets=mid,
        mid_weight=mid_weight,
        long_offsets=long,
        long_weight=long_weight,
        person=person[:, None],
        person_weight=person_weight[:, None],
    )


def _offset_loss(offsets: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Mean distance over the cells with weight, |dy| + |dx| in radii of a disc."""
    error = (offsets.float() - targets).abs().unflatten(1, (-1, 2)).sum(2) / RADIUS_CELLS
    return (error * weight).sum() / weight.sum().clamp(min=1)


def personlab_losses(maps: dict[str, Tensor], targets: PersonLabTargets) -> dict[str, Tensor]:
    """Loss of each head, weighted by `LOSS_WEIGHTS`; see `PersonLabTargets` for the shapes."""
    heat = F.binary_cross_entropy_with_logits(maps["heatmaps"].float(), targets.heatmaps, reduction="none")
    person = F.binary_cross_entropy_with_logits(maps["person"].float(), targets.person, reduction="none")
    losses = {
        "heatmaps": (heat * targets.heatmap_weight).sum() / targets.heatmaps.sum().clamp(min=1),
        "person": (person * targets.person_weight).sum() / targets.person_weight.sum().clamp(min=1),
        "short_offsets": _offset_loss(maps["short_offsets"], targets.short_offsets, targets.short_weight),
        "mid_offsets": _offset_loss(maps["mid_offsets"], targets.mid_offsets, targets.mid_weight),
        "long_offsets": _offset_loss(maps["long_offsets"], targets.long_offsets, targets.long_weight),
    }
    return {name: LOSS_WEIGHTS[name] * loss for name, loss in losses.items()}
