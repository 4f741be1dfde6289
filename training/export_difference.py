"""How far an exported keypoint graph is from the network it came from, whatever order equal peaks come in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kernels.coordinates import F32, F64
from training.graphs import CENTRE_WINDOW, JOINT_WINDOW, MIN_MASS
from training.model import JOINTS, STRIDE

MAX_DIFFERENCE = 2e-3  # between exported and eager outputs, of probabilities and of px relative to the input size


def largest(difference: F64) -> float:
    """Largest magnitude; infinite where a value is not a number."""
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max(initial=0.0))


def _second_highest(probability: F64, window: int) -> F64:
    """(h, w): the highest value of the window around each cell, that cell left out."""
    reach = window // 2
    height, width = probability.shape
    padded = np.pad(probability, reach, constant_values=-np.inf)
    others = [
        padded[y : y + height, x : x + width] for y in range(window) for x in range(window) if (y, x) != (reach, reach)
    ]
    highest: F64 = np.maximum.reduce(others)
    return highest


def peak_difference(rows: F64, probabilities: F64, cells: F64, probability: F64, window: int) -> float:
    """How far a graph's list of peaks is from those of a map, whatever the order of peaks of equal height.

    Each row must be a peak of the map, and no two the same: the difference is that of its best cell, the largest of the
    differences of probability and of values, and of what the cell lacks to the highest in its window. Each peak must be
    in the rows: the difference is that of its best row, but no more than by how much it is a peak, nor than by how much
    it is higher than the last row, for in a flat map rounding decides which cells are peaks and which come first.

    Args:
        rows: (M, K) values of the exported rows, in units in which 1 is all.
        probabilities: (M,) of the rows; 0 marks an empty row.
        cells: (h * w, K) what a row of each cell would be.
        probability: (h, w) map.
        window: side of the square in which a peak is the highest, cells.
    """
    last = max(float(probabilities.min()), 0.0)
    used = probabilities > 0
    rows, probabilities = rows[used], probabilities[used]
    flat = probability.ravel()
    margin = flat - _second_highest(probability, window).ravel()
    cost = np.abs(probabilities[:, None] - flat[None])
    for row, cell in zip(rows.T, cells.T, strict=True):
        np.maximum(cost, np.abs(row[:, None] - cell[None]), out=cost)
    cost = np.nan_to_num(cost, nan=np.inf)
    missed = np.minimum(np.minimum(cost.min(0, initial=np.inf), margin), flat - last).max()
    if not len(rows):
        return largest(np.maximum(missed, 0.0))
    np.maximum(cost, -margin[None], out=cost)
    unfounded = cost.min(1).max()
    chosen, second = cost.argmin(1), np.partition(cost, 1, axis=1)[:, 1]
    repeated = 0.0
    for cell in np.flatnonzero(np.bincount(chosen) > 1):  # all but one of these rows must be another cell's
        repeated = max(repeated, float(np.sort(second[chosen == cell])[-2]))
    return largest(np.maximum((missed, unfounded, repeated), 0.0))


def joint_difference(candidates: F32, maps: Mapping[str, torch.Tensor]) -> float:
    """Difference of joint_candidates (B, 17, M, 4) of a graph from the network's own maps; see `peak_difference`.

    Positions count relative to the long side of the picture; the fourth value must be 0.
    """
    heat = maps["heatmaps"].double().sigmoid().numpy()
    _, _, h, w = heat.shape
    offsets = maps["offsets"].double().unflatten(1, (JOINTS, 2)).numpy()
    grid_yx = np.stack(np.mgrid[:h, :w]).astype(np.float64)
    long_side = STRIDE * max(h, w)
    worst = largest(candidates[..., 3])
    for image in range(len(heat)):
        for joint in range(JOINTS):
            cells = ((grid_yx + offsets[image, joint])[::-1] * STRIDE - 0.5).reshape(2, -1).T / long_side
            found = candidates[image, joint].astype(np.float64)
            worst = max(
                worst,
                peak_difference(found[:, :2] / long_side, found[:, 2], cells, heat[image, joint], JOINT_WINDOW),
                largest(np.maximum(np.diff(found[:, 2]), 0)),  # the best come first
            )
    return worst


def person_difference(scores: F32, keypoints: F32, maps: Mapping[str, torch.Tensor]) -> float:
    """Difference of person_scores (B, P) and person_keypoints (B, P, 17, 3) of a graph from the network's own maps.

    As `joint_difference`, with all joints of a guess as values. The probability at a guess is that of the heatmap's
    cell there, or of its neighbour where the guess lies within `MAX_DIFFERENCE` cells of the border between them.
    """
    centre = maps["centre"].double().sigmoid().numpy()
    heat = maps["heatmaps"].double().sigmoid().numpy()
    _, _, h, w = heat.shape
    regression = maps["regression"].double().unflatten(1, (JOINTS, 2)).numpy()
    grid_yx = np.stack(np.mgrid[:h, :w]).astype(np.float64)
    long_side = STRIDE * max(h, w)
    worst = 0.0
    for image in range(len(heat)):
        cells_xy = (grid_yx + regression[image])[:, ::-1] * STRIDE - 0.5  # (17, 2, h, w)
        cells = cells_xy.reshape(2 * JOINTS, -1).T / long_side
        score, guess = scores[image].astype(np.float64), keypoints[image].astype(np.float64)
        rows = guess[..., :2].reshape(len(guess), -1) / long_side
        differences = [
            np.abs(guess[..., 2] - _heat_at(heat[image], guess[..., :2], (dy, dx)))
            for dy in (-MAX_DIFFERENCE, MAX_DIFFERENCE)
            for dx in (-MAX_DIFFERENCE, MAX_DIFFERENCE)
        ]
        worst = max(
            worst,
            peak_difference(rows, score, cells, centre[image, 0], CENTRE_WINDOW),
            largest(np.maximum(np.diff(score), 0)),
            largest(np.min(differences, axis=0)),
        )
    return worst


def _heat_at(heat: F64, points: F64, shift_yx: tuple[float, float]) -> F64:
    """(P, 17) values of (17, h, w) heatmaps at (P, 17, 2) points x, y in px, moved by some cells; 0 outside."""
    _, h, w = heat.shape
    cell = (points[..., ::-1] + 0.5) / STRIDE + np.array(shift_yx)
    row, column = np.moveaxis(np.floor(cell), -1, 0)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    y, x = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
    values: F64 = heat[np.arange(JOINTS)[None], y, x] * inside
    return values


def candidate_difference(candidates: F32, heat: F64, cells_yx: F64, values: F64) -> float:
    """Difference of joint_candidates (B, 17, M, 4) of a graph from peaks of a network's own maps.

    Args:
        candidates: of the graph.
        heat: (B, 17, h, w) probabilities.
        cells_yx: (B, 17, 2, h, w) where a peak in each cell would lie, cells.
        values: (B, 17, h, w) its fourth value.

    Positions count relative to the long side of the picture, values relative to their largest where that exceeds 1.
    """
    long_side, unit = STRIDE * max(heat.shape[2:]), max(1.0, largest(values))
    worst = 0.0
    for image in range(len(heat)):
        for joint in range(JOINTS):
            cells_px = (cells_yx[image, joint][::-1] + 0.5) * STRIDE - 0.5
            cells = np.concatenate((cells_px / long_side, values[image, joint][None] / unit)).reshape(3, -1).T
            found = candidates[image, joint].astype(np.float64)
            rows = np.concatenate((found[:, :2] / long_side, found[:, 3:] / unit), axis=1)
            worst = max(
                worst,
                peak_difference(rows, found[:, 2], cells, heat[image, joint], JOINT_WINDOW),
                largest(np.maximum(np.diff(found[:, 2]), 0)),  # the best come first
            )
    return worst


def grouping_difference(keypoints: str, found: Mapping[str, F32], maps: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of a graph's tensors from a network's own maps, for every grouping.

    Args:
        keypoints: kind of the network.
        found: tensors of the graph.
        maps: raw maps of the network for the same pictures.
    """
    if keypoints == "centre":
        return max(
            person_difference(found["person_scores"], found["person_keypoints"], maps),
            joint_difference(found["joint_candidates"], maps),
        )
    raw = {name: tensor.double().numpy() for name, tensor in maps.items()}
    heat: F64 = maps["heatmaps"].double().sigmoid().numpy()
    pictures, joints, height, width = heat.shape
    grid_yx = np.broadcast_to(np.stack(np.mgrid[:height, :width]), (pictures, joints, 2, height, width))
    if keypoints == "embedding":
        unit = max(1.0, largest(raw["tags"]))
        return max(
            candidate_difference(found["joint_candidates"], heat, grid_yx.astype(np.float64), raw["tags"]),
            largest(found["heatmaps"] - heat),
            largest(found["tags"] - raw["tags"]) / unit,
        )
    if keypoints == "affinity":
        padded = np.pad(heat, ((0, 0), (0, 0), (1, 1), (1, 1)))
        mass, moment = np.zeros_like(heat), np.zeros(grid_yx.shape)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                shifted = padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
                mass += shifted
                moment += np.array([dy, dx], np.float64)[:, None, None] * shifted[:, :, None]
        centres = grid_yx + moment / np.maximum(mass, MIN_MASS)[:, :, None]
        unit = max(1.0, largest(raw["affinity_fields"]))
        return max(
            candidate_difference(found["joint_candidates"], heat, centres, np.zeros_like(heat)),
            largest(found["affinity_fields"] - raw["affinity_fields"]) / unit,
        )
    person = maps["person"].double().sigmoid().numpy()
    offsets = ("short_offsets", "mid_offsets", "long_offsets")
    return max(
        largest(found["heatmaps"] - heat),
        largest(found["person"] - person),
        *(largest(found[name] - raw[name]) / max(heat.shape[2:]) for name in offsets),
    )
