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


def neighbour_features(
    feature_from_roi: Tensor,
    roi_image: Tensor,
    roi_keypoints: Tensor,
    size: int,
    present: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Draw where the bodies of all other people of the same picture are seen, and where they are hidden.

    Args:
        feature_from_roi: (N, 2, 3) ROI px to feature cells.
        roi_image: (N,) which picture each person is in.
        roi_keypoints: (N, 17, 3) x, y in the person's own ROI px; third value 0 absent, 1 hidden, 2 visible, 3
            visible but not drawn for others.
        size: side S of the ROI, px.
        present: everybody who is in the pictures, as matrices, pictures and keypoints of M people, for training; only
            their pose tells a person from others then. None: the N people.

    Returns:
        (N, 2, S, S) in 0..1, see `kernels.neighbours.neighbour_features`.
    """
    device, dtype = roi_keypoints.device, roi_keypoints.dtype
    first, second = (torch.tensor([point[end] for point in BODY_POINTS], device=device) for end in (0, 1))
    share = torch.tensor([point[2] for point in BODY_POINTS], device=device, dtype=dtype)
    own_x, own_y, own_v = _usable(roi_keypoints)
    own_matrices, own_determinant, own_window = _windows(feature_from_roi)
    if present is None:
        x, y, v = own_x, own_y, own_v
        matrices, determinant, has_window, images = own_matrices, own_determinant, own_window, roi_image
    else:
        x, y, v = _usable(present[2])
        matrices, determinant, has_window = _windows(present[0])
        images = present[1]
    point_x, point_y = (
        of_joints.index_select(1, first) * (1 - share) + of_joints.index_select(1, second) * share
        for of_joints in (x, y)
    )
    seen = torch.minimum(v.index_select(1, first), v.index_select(1, second))  # (M, P)

    (a, b, shift_x), (c, d, shift_y) = (matrices[:, row].unbind(-1) for row in (0, 1))
    (own_a, own_b, own_shift_x), (own_c, own_d, own_shift_y) = (own_matrices[:, row].unbind(-1) for row in (0, 1))

    # Products one by one, not of matrices: those are in half precision wherever a runtime may choose.
    def in_every_window(of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:  # (M, K) own px -> (N, M, K)
        cell_x = a[:, None] * of_x + b[:, None] * of_y + shift_x[:, None]
        cell_y = c[:, None] * of_x + d[:, None] * of_y + shift_y[:, None]
        from_x, from_y = cell_x[None] - own_shift_x[:, None, None], cell_y[None] - own_shift_y[:, None, None]
        inverse_a, inverse_b, inverse_c, inverse_d = (
            (value / own_determinant)[:, None, None] for value in (own_d, -own_b, -own_c, own_a)
        )
        return inverse_a * from_x + inverse_b * from_y, inverse_c * from_x + inverse_d * from_y

    joint_x, joint_y = in_every_window(x, y)
    common = (own_v[:, None] > 0.5) & (v[None] > 0.5)  # (N, M, 17)
    apart = torch.sqrt((joint_x - own_x[:, None]) ** 2 + (joint_y - own_y[:, None]) ** 2)
    shared = common.to(dtype).sum(-1)
    distance = torch.where(common, apart, 0.0).sum(-1) / shared.clamp(min=1.0)
    same = (shared > 0.5) & (distance < SAME_PERSON_PX)
    other = (roi_image[:, None] == images[None]) & ~same & own_window[:, None] & has_window[None]  # (N, M)
    if present is None:
        number = torch.arange(v.shape[0], device=device)
        other = other & (number[:, None] != number[None])

    scale, own_scale = torch.sqrt(determinant.abs()), torch.sqrt(own_determinant.abs())
    sigma = (SIGMA_PX * scale[None] / own_scale[:, None]).clamp(MIN_SIGMA_PX, MAX_SIGMA_PX)  # (N, M)
    fall = -0.5 / sigma**2
    grid = torch.arange(size, device=device, dtype=dtype)
    across, down = (  # (N, M * P, S)
        torch.exp((grid - place[..., None]) ** 2 * fall[..., None, None]).flatten(1, 2)
        for place in in_every_window(point_x, point_y)
    )
    kinds = torch.stack(((seen > 1.5) & (seen <= 2.5), (seen > 0.5) & (seen <= 1.5)), dim=0)  # (2, M, P)
    weight = (kinds[:, None] & other[None, :, :, None]).to(dtype).flatten(2)  # (2, N, M * P)
    drawn = (down[None] * weight[..., None]).transpose(2, 3) @ across[None]  # (2, N, S, S)
    return drawn.clamp(max=1.0).transpose(0, 1)


def _usable(roi_keypoints: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and v (N, 17) of poses; v is 0, and so are absent x and y, where a joint is nowhere."""
    v = torch.where(roi_keypoints.abs().sum(-1) < FAR, roi_keypoints[..., 2], 0.0)
    x, y = (torch.where(v > 0.5, roi_keypoints[..., axis], 0.0) for axis in (0, 1))
    return x, y, v


def _windows(feature_from_roi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (N, 2, 3) that can be inverted, their determinants, and (N,) whether they are the given ones."""
    has_window = (feature_from_roi.abs().sum((1, 2)) < FAR) & (_determinant(feature_from_roi).abs() > MIN_AREA)
    usual = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=feature_from_roi.device, dtype=feature_from_roi.dtype
    )
    matrices = torch.where(has_window[:, None, None], feature_from_roi, usual)
    return matrices, _determinant(matrices), has_window


def _determinant(matrices: Tensor) -> Tensor:
    return matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
