"""Import torchvision beside a PyTorch without CUDA.

The package index has torchvision for Linux only in a build whose operators need CUDA's libraries. Two operators are all
that the contestants need: suppression (here in NumPy) and RoIAlign (here as one `grid_sample`, the same numbers where a
box lies inside the map).
"""

from __future__ import annotations

from typing import Any


def import_torchvision() -> Any:
    """The module, with the two operators in place where its own do not load."""
    import torch
    from torch.nn import functional as F

    arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{name}", arguments)
        except RuntimeError:  # the build has its own
            continue

    import torchvision
    from torchvision.ops import boxes as box_operators
    from torchvision.ops import poolers

    if torchvision.extension._has_ops():  # noqa: SLF001  how torchvision asks itself
        return torchvision

    @torch.library.impl("torchvision::nms", "CPU")
    def nms(boxes: Any, scores: Any, threshold: float) -> Any:
        order = scores.argsort(descending=True)
        boxes = boxes[order]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = torch.ones(len(boxes), dtype=torch.bool)
        for index in range(len(boxes)):
            if not kept[index]:
                continue
            low = torch.maximum(boxes[index, :2], boxes[index + 1 :, :2])
            high = torch.minimum(boxes[index, 2:], boxes[index + 1 :, 2:])
            shared = (high - low).clamp(min=0).prod(1)
            kept[index + 1 :] &= shared <= threshold * (areas[index] + areas[index + 1 :] - shared)
        return order[kept]

    def roi_align(
        features: Any, rois: Any, output_size: Any, spatial_scale: float, sampling_ratio: int, **_: Any
    ) -> Any:
        """(N, C, S, S) of one image: ``sampling_ratio`` squared samples for each px, averaged."""
        side = output_size[0] * sampling_ratio
        height, width = features.shape[2:]
        boxes = rois[:, 1:] * spatial_scale
        steps = (torch.arange(side) + 0.5) / side
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
        x = boxes[:, 0, None] + steps * size[:, :1]
        y = boxes[:, 1, None] + steps * size[:, 1:]
        grid = torch.stack(
            (
                (x[:, None] / (width - 1) * 2 - 1).expand(-1, side, -1),
                (y[:, :, None] / (height - 1) * 2 - 1).expand(-1, -1, side),
            ),
            3,
        )
        rows = grid.reshape(1, -1, side, 2)
        samples = F.grid_sample(features, rows, align_corners=True, padding_mode="border")
        samples = samples.reshape(features.shape[1], len(rois), side, side).transpose(0, 1)
        return F.avg_pool2d(samples, sampling_ratio)

    box_operators._assert_has_ops = lambda: None  # noqa: SLF001  it has one now
    poolers.roi_align = roi_align
    return torchvision
