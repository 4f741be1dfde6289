"""Skeleton features in PyTorch: the form that training uses and that is drawn inside the exported segment graph.

Same numbers as `kernels.skeleton.skeleton_features`; only operators that ONNX has, so that the export needs no function
of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.skeleton import LIMBS

HEATMAP_VARIANCE_2 = 18.0  # 2 sigma^2 with sigma = 3 ROI px (spec section 5)
HEATMAP_CUTOFF = 4.6025  # exponent beyond which the published code writes zero, a floor of 0.01
LIMB_HALF_WIDTH_PX = 1.0


def skeleton_features(roi_keypoints: Tensor, size: int) -> Tensor:
    """Draw 17 joint maps and 19 limb vector fields for each person.

    Args:
        roi_keypoints: (N, 17, 3) float; x, y in ROI px, third value 0 absent, 1 labelled but hidden, 2 visible.
        size: side S of the ROI, px.

    Returns:
        (N, 55, S, S): channels 0..16 the joint maps (negative for hidden joints), 17 + 2k and 18 + 2k limb k's x and y.

    Source: Pose2Seg section 3.3; constants from the released code.
    """
    x, y, v = roi_keypoints.unbind(-1)  # each (N, 17)
    grid = torch.arange(size, device=x.device, dtype=x.dtype)
    dx2 = (grid - x[..., None]) ** 2  # (N, 17, S) along columns
    dy2 = (grid - y[..., None]) ** 2  # (N, 17, S) along rows
    exponent = (dy2[..., :, None] + dx2[..., None, :]) / HEATMAP_VARIANCE_2
    sign = torch.where(v > 1.5, 1.0, torch.where(v > 0.5, -1.0, 0.0)).to(x.dtype)
    joints = torch.where(exponent < HEATMAP_CUTOFF, torch.exp(-exponent), 0.0) * sign[..., None, None]

    first, second = (torch.tensor(ends, device=x.device) for ends in zip(*LIMBS.tolist(), strict=True))
    x1, y1, x2, y2 = (c.index_select(1, i) for i in (first, second) for c in (x, y))  # (N, 19)
    length = torch.sqrt((x2 - x1) ** 2 + (y2 - y1) ** 2)
    drawn = (v.index_select(1, first) > 0) & (v.index_select(1, second) > 0) & (length > 0)
    safe = torch.where(drawn, length, 1.0)
    ex, ey = (x2 - x1) / safe, (y2 - y1) / safe

    def inside(a: Tensor, b: Tensor) -> Tensor:  # (N, 19, S)
        low, high = torch.round(torch.minimum(a, b) - 1), torch.round(torch.maximum(a, b) + 1)
        return (grid >= low[..., None]) & (grid < high[..., None])

    across = (grid - x1[..., None])[..., None, :] * ey[..., None, None] - (grid - y1[..., None])[..., :, None] * ex[
        ..., None, None
    ]
    mask = (
        (across.abs() < LIMB_HALF_WIDTH_PX)
        & inside(y1, y2)[..., :, None]
        & inside(x1, x2)[..., None, :]
        & drawn[..., None, None]
    )
    field = torch.stack((ex, ey), dim=2)[..., None, None] * mask[:, :, None].to(x.dtype)  # (N, 19, 2, S, S)
    return torch.cat((joints, field.flatten(1, 2)), dim=1)
