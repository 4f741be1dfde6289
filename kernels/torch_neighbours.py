"""The other people in a person's window, in PyTorch: what training uses and what is drawn inside the exported segment
graph.

Same numbers as `kernels.neighbours.neighbour_features`; only operators that ONNX has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.neighbours import (
    BODY_POINTS,
    MAX_SIGMA_PX,
    MIN_SIGMA_PX,
    SAME_PERSON_PX,
    SIGMA_PX,
)


def neighbour_features(feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int) -> Tensor:
    """Draw where the bodies of all other people of the same picture are seen, and where they are hidden.

    Args:
        feature_from_roi: (N, 2, 3) similarities, ROI px to feature cells; none is singular.
        roi_image: (N,) which picture each person is in.
        roi_keypoints: (N, 17, 3) x, y in the person's own ROI px; third value 0 absent, 1 hidden, 2 visible.
        size: side S of the ROI, px.

    Returns:
        (N, 2, S, S) in 0..1, see `kernels.neighbours.neighbour_features`.
    """
    first, second = (
        torch.tensor([point[end] for point in BODY_POINTS], device=roi_keypoints.device) for end in (0, 1)
    )
    share = torch.tensor(
        [point[2] for point in BODY_POINTS], device=roi_keypoints.device, dtype=roi_keypoints.dtype
    )
    xy, v = roi_keypoints[..., :2], roi_keypoints[..., 2]
    there = torch.where(v[..., None] > 0.5, xy, torch.zeros_like(xy))
    points = there.index_select(1, first) * (1 - share)[:, None] + there.index_select(1, second) * share[:, None]
    seen = torch.minimum(v.index_select(1, first), v.index_select(1, second))  # (N, P)
    linear, shift = feature_from_roi[..., :2], feature_from_roi[..., 2]
    a, b, c, d = linear[:, 0, 0], linear[:, 0, 1], linear[:, 1, 0], linear[:, 1, 1]
    determinant = a * d - b * c
    inverse = torch.stack((d, -b, -c, a), dim=-1).unflatten(-1, (2, 2)) / determinant[:, None, None]

    def in_every_window(of_people: Tensor) -> Tensor:  # (N, K, 2) in own px -> (N windows, N people, K, 2)
        cells = of_people @ linear.transpose(1, 2) + shift[:, None]
        from_origin = cells[None] - shift[:, None, None]
        return from_origin @ inverse.transpose(1, 2)[:, None]

    joints = in_every_window(there)
    common = ((v[:, None] > 0.5) & (v[None] > 0.5)).to(xy.dtype)  # (N, N, 17)
    own = torch.diagonal(joints, dim1=0, dim2=1).permute(2, 0, 1)  # (N, 17, 2)
    apart = torch.sqrt(((joints - own[:, None]) ** 2).sum(-1))
    distance = (apart * common).sum(-1) / common.sum(-1).clamp(min=1.0)
    same = (common.sum(-1) > 0) & (distance < SAME_PERSON_PX)
    other = (roi_image[:, None] == roi_image[None]) & ~same  # (N, N); nobody is another than themselves
    other = other & (torch.eye(len(v), device=v.device) < 0.5)

    scale = torch.sqrt(determinant.abs())
    sigma = (SIGMA_PX * scale[None] / scale[:, None]).clamp(MIN_SIGMA_PX, MAX_SIGMA_PX)  # (N, N)
    fall = -0.5 / sigma**2
    place = in_every_window(points)  # (N, N, P, 2)
    grid = torch.arange(size, device=xy.device, dtype=xy.dtype)
    along = torch.exp((grid - place[..., None]) ** 2 * fall[..., None, None, None])  # (N, N, P, 2, S)
    across, down = along[..., 0, :].flatten(1, 2), along[..., 1, :].flatten(1, 2)  # (N, N * P, S)
    kinds = torch.stack(((seen > 1.5), (seen > 0.5) & (seen < 1.5)), dim=0)  # (2, N, P)
    weight = (kinds[:, None] & other[None, :, :, None]).to(xy.dtype).flatten(2)  # (2, N, N * P)
    drawn = (down[None] * weight[..., None]).transpose(2, 3) @ across[None]  # (2, N, S, S)
    return drawn.clamp(max=1.0).transpose(0, 1)
