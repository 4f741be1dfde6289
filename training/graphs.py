"""The serving graphs around a network, exactly as they are exported: uint8 picture in, people's candidates
out; ROIs in, masks out.

Normalisation, peak finding and top-k are inside, so that serving needs nothing but arrays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.families import Network
from training.model import JOINTS, STRIDE, LiveNetwork
from training.paper_model import PaperNetwork

PEOPLE = 32  # rows of candidates for people
CANDIDATES = 32  # rows of candidates per joint
CENTRE_WINDOW = 5  # cells: a person's centre is the maximum of such a square
JOINT_WINDOW = 3
MIN_MASS = (
    1e-3  # of the probabilities around a peak; runtimes' fast sigmoids are off by 1e-7, and no centre can be made of it
)


def _peaks(probability: Tensor, window: int, count: int) -> tuple[Tensor, Tensor]:
    """Local maxima of (B, C, h, w): values and flat cells of the best, (B, C, count) each; the missing have value 0."""
    highest = F.max_pool2d(probability, window, 1, window // 2)
    peaks = torch.where(probability >= highest, probability, torch.zeros_like(probability))
    values, cells = peaks.flatten(2).topk(count, dim=2)
    return values, cells


def _at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Values of (B, C, h, w) at flat cells (B, M) -> (B, M, C)."""
    flat = maps.flatten(2)
    return flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def _row_column(cells: Tensor, width: int) -> Tensor:
    """Flat cells (...) of a grid of this width -> (..., 2) row and column, as float."""
    # no remainder: the exporter has none for a dynamic size
    rows = torch.div(cells, width, rounding_mode="floor")
    return torch.stack((rows, cells - rows * width), dim=-1).to(torch.float32)


def people_candidates(maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Raw keypoint maps to what the grouping reads.

    Args:
        maps: centre (B, 1, h, w) and heatmaps (B, 17, h, w) logits; regression and offsets (B, 34, h, w) in cells, y
            before x.

    Returns:
        person_scores (B, P): centre probability, falling.
        person_keypoints (B, P, 17, 3): the guess regressed from the centre, x, y in input px; third the joint's
        probability there. joint_candidates (B, 17, M, 4): x, y in input px, probability, grouping value (0 in this
        family: people are told apart by the guess).
    """
    _, _, h, w = maps["heatmaps"].shape
    heat = maps["heatmaps"].sigmoid()

    score, centre = _peaks(maps["centre"].sigmoid(), CENTRE_WINDOW, PEOPLE)
    score, centre = score[:, 0], centre[:, 0]  # (B, P)
    centre_yx = _row_column(centre, w)
    guess = centre_yx[:, :, None] + _at_cells(maps["regression"], centre).unflatten(2, (JOINTS, 2))  # (B, P, 17, 2)
    cell = guess.floor()
    row, column = cell.unbind(-1)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    flat = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().transpose(1, 2)  # (B, 17, P)
    at_guess = heat.flatten(2).gather(2, flat).transpose(1, 2) * inside.to(heat.dtype)
    guess_px = guess.flip(-1) * STRIDE - 0.5
    person_keypoints = torch.cat((guess_px, at_guess[..., None]), dim=-1)

    probability, cells = _peaks(heat, JOINT_WINDOW, CANDIDATES)  # (B, 17, M)
    offsets = maps["offsets"].flatten(2).unflatten(1, (JOINTS, 2))  # (B, 17, 2, h * w)
    shift = offsets.gather(3, cells[:, :, None].expand(-1, -1, 2, -1)).transpose(2, 3)  # (B, 17, M, 2)
    candidate_yx = _row_column(cells, w) + shift
    candidate_px = candidate_yx.flip(-1) * STRIDE - 0.5
    joint_candidates = torch.cat(
        (candidate_px, probability[..., None], torch.zeros_like(probability)[..., None]), dim=-1
    )
    return score, person_keypoints, joint_candidates


def embedding_tensors(maps: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Heatmap logits and tags (B, 17, h, w) to joint_candidates (B, 17, M, 4) with tags, heatmaps and tags.

    A candidate lies in the middle of its cell: the grouping adjusts it, with those of joints that it looks for itself.
    """
    heat, tags = maps["heatmaps"].sigmoid(), maps["tags"]
    probability, cells = _peaks(heat, JOINT_WINDOW, CANDIDATES)
    candidate_px = (_row_column(cells, heat.shape[3]) + 0.5).flip(-1) * STRIDE - 0.5
    tag = tags.flatten(2).gather(2, cells)
    return torch.cat((candidate_px, probability[..., None], tag[..., None]), dim=-1), heat, tags


def affinity_tensors(maps: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Heatmap logits (B, 17, h, w) and fields (B, 38, h, w) to joint_candidates (B, 17, M, 4) and affinity_fields.

    A candidate lies in the centre of mass of the 3 x 3 probabilities around its peak.
    """
    heat = maps["heatmaps"].sigmoid()
    joints, w = heat.shape[1], heat.shape[3]
    probability, cells = _peaks(heat, JOINT_WINDOW, CANDIDATES)
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=heat.dtype, device=heat.device)
    moments = torch.stack((torch.ones_like(side)[:, None].expand(3, 3), side[:, None].expand(3, 3), side.expand(3, 3)))
    sums = F.conv2d(heat, moments[:, None].repeat(joints, 1, 1, 1), padding=1, groups=joints)  # (B, 17 * 3, h, w)
    at_peaks = sums.flatten(2).unflatten(1, (joints, 3)).gather(3, cells[:, :, None].expand(-1, -1, 3, -1))
    mass, dy, dx = at_peaks.unbind(2)  # (B, 17, M)
    shift = torch.stack((dy, dx), dim=-1) / mass.clamp(min=MIN_MASS)[..., None]
    candidate_px = (_row_column(cells, w) + 0.5 + shift).flip(-1) * STRIDE - 0.5
    rest = torch.stack((probability, torch.zeros_like(probability)), dim=-1)
    return torch.cat((candidate_px, rest), dim=-1), maps["affinity_fields"]


def personlab_tensors(maps: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Raw maps to heatmaps, short_offsets, mid_offsets, long_offsets and person: votes gather in the grouping."""
    offsets = (maps[name] for name in ("short_offsets", "mid_offsets", "long_offsets"))
    return (maps["heatmaps"].sigmoid(), *offsets, maps["person"].sigmoid())


TENSORS_OF = {
    "centre": people_candidates,
    "embedding": embedding_tensors,
    "affinity": affinity_tensors,
    "personlab": personlab_tensors,
}
"""Kind of keypoint network -> what makes the tensors of the keypoint graph, but features, in their order."""


class KeypointGraph(nn.Module):
    """image [B, H, W, 3] uint8 RGB -> the tensors that the network's grouping reads, and features."""

    def __init__(self, network: LiveNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(image.permute(0, 3, 1, 2).to(torch.float32))
        return (*TENSORS_OF[self.network.settings.keypoints](maps), maps["features"])


class FeaturesGraph(nn.Module):
    """image [B, H, W, 3] uint8 RGB -> features [B, C, H/4, W/4], of the family `paper`."""

    def __init__(self, network: PaperNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.features(image.permute(0, 3, 1, 2).to(torch.float32))


class SegmentGraph(nn.Module):
    """features, feature_from_roi, roi_image, roi_keypoints -> probabilities [N, S, S], scores [N]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor
    ) -> tuple[Tensor, Tensor]:
        probabilities = self.network.segment(features, feature_from_roi, roi_image, roi_keypoints).sigmoid()
        inside = (probabilities > 0.5).to(probabilities.dtype)
        scores = (probabilities * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1.0)
        return probabilities, scores
