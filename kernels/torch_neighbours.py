"""The other people in a person's window, in PyTorch: what training uses and what is drawn inside the exported segment
graph.

Same numbers as `kernels.neighbours.neighbour_features`; only operators that ONNX has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.neighbours import (
    BODY_POINTS,
    FAR,
    MAX_SIGMA_PX,
    MIN_AREA,
    MIN_SIGMA_PX,
    SAME_PERSON_PX,
    SIGMA_PX,
)


def neighbour_features(feature_from_roi: Tensor, roi_image: Tensor, roi_keypoints: Tensor, size: int) -> Tensor:
    """Draw where the bodies of all other people of the same picture are seen, and where they are hidden.

    Args:
        feature_from_roi: (N, 2, 3) ROI px to feature cells.
        roi_image: (N,) which picture each person is in.
        roi_keypoints: (N, 17, 3) x, y in the person's own ROI px; third value 0 absent, 1 hidden, 2 visible.
        size: side S of the ROI, px.

    Returns:
        (N, 2, S, S) in 0..1, see `kernels.neighbours.neighbour_features`.
    """
    device, dtype = roi_keypoints.device, roi_keypoints.dtype
    first, second = (torch.tensor([point[end] for point in BODY_POINTS], device=device) for end in (0, 1))
    share = torch.tensor([point[2] for point in BODY_POINTS], device=device, dtype=dtype)
    v = torch.where(roi_keypoints.abs().sum(-1) < FAR, roi_keypoints[..., 2], 0.0)
    x, y = (torch.where(v > 0.5, roi_keypoints[..., axis], 0.0) for axis in (0, 1))
    point_x, point_y = (
        of_joints.index_select(1, first) * (1 - share) + of_joints.index_select(1, second) * share
        for of_joints in (x, y)
    )
    seen = torch.minimum(v.index_select(1, first), v.index_select(1, second))  # (N, P)

    determinant = _determinant(feature_from_roi)
    has_window = (feature_from_roi.abs().sum((1, 2)) < FAR) & (determinant.abs() > MIN_AREA)
    usual = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device, dtype=dtype)
    matrices = torch.where(has_window[:, None, None], feature_from_roi, usual)
    determinant = _determinant(matrices)
    (a, b, shift_x), (c, d, shift_y) = (matrices[:, row].unbind(-1) for row in (0, 1))

    # Products one by one, not of matrices: those are in half precision wherever a runtime may choose.
    def in_every_window(of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:  # (N, K) own px -> (N windows, N, K)
        cell_x = a[:, None] * of_x + b[:, None] * of_y + shift_x[:, None]
        cell_y = c[:, None] * of_x + d[:, None] * of_y + shift_y[:, None]
        from_x, from_y = cell_x[None] - shift_x[:, None, None], cell_y[None] - shift_y[:, None, None]
        inverse_a, inverse_b, inverse_c, inverse_d = ((value / determinant)[:, None, None] for value in (d, -b, -c, a))
        return inverse_a * from_x + inverse_b * from_y, inverse_c * from_x + inverse_d * from_y

    joint_x, joint_y = in_every_window(x, y)
    common = (v[:, None] > 0.5) & (v[None] > 0.5)  # (N, N, 17)
    apart = torch.sqrt((joint_x - x[:, None]) ** 2 + (joint_y - y[:, None]) ** 2)
    shared = common.to(dtype).sum(-1)
    distance = torch.where(common, apart, 0.0).sum(-1) / shared.clamp(min=1.0)
    same = (shared > 0.5) & (distance < SAME_PERSON_PX)
    number = torch.arange(len(v), device=device)
    other = (roi_image[:, None] == roi_image[None]) & (number[:, None] != number[None]) & ~same  # (N, N)
    other = other & has_window[:, None] & has_window[None]

    scale = torch.sqrt(determinant.abs())
    sigma = (SIGMA_PX * scale[None] / scale[:, None]).clamp(MIN_SIGMA_PX, MAX_SIGMA_PX)  # (N, N)
    fall = -0.5 / sigma**2
    grid = torch.arange(size, device=device, dtype=dtype)
    across, down = (  # (N, N * P, S)
        torch.exp((grid - place[..., None]) ** 2 * fall[..., None, None]).flatten(1, 2)
        for place in in_every_window(point_x, point_y)
    )
    kinds = torch.stack((seen > 1.5, (seen > 0.5) & (seen <= 1.5)), dim=0)  # (2, N, P)
    weight = (kinds[:, None] & other[None, :, :, None]).to(dtype).flatten(2)  # (2, N, N * P)
    drawn = (down[None] * weight[..., None]).transpose(2, 3) @ across[None]  # (2, N, S, S)
    return drawn.clamp(max=1.0).transpose(0, 1)


def _determinant(matrices: Tensor) -> Tensor:
    return matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
