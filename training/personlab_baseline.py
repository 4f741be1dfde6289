"""PersonLab's own masks in the picture: the baseline that `training.evaluate --masks personlab` scores."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, U8, compose, transform_points
from kernels.letterbox import Letterbox
from kernels.personlab_decoding import PersonLabParameters
from kernels.personlab_masks import MAX_DISTANCE, embedding_distances

MIN_PERSON = 0.5  # probability of a px that is part of a mask
COMPUTED_FROM = 0.05  # cells below it are far from any mask; the border of one is interpolated between the others
FAR = 10.0  # distance of cells that point to nobody


def personlab_masks(
    outputs: Mapping[str, F32],
    keypoints: F32,
    visibility: NDArray[np.float32],
    plan: Letterbox,
    parameters: PersonLabParameters,
) -> list[U8]:
    """Masks of people by the long offsets of a network; px may belong to several people, as published.

    Args:
        outputs: tensors of a keypoint graph with the grouping `personlab`, of one picture, with the batch axis.
        keypoints: (N, 17, 3): x, y in frame px; confidence, or v of true poses.
        visibility: (N, 17): 0 where a joint is not believed.
        plan: how the picture became the input.
        parameters: of the grouping, for the stride.

    Returns:
        N masks (H, W) uint8 of 0 and 1.
    """
    poses = keypoints.copy()
    poses[..., :2] = transform_points(plan.input_from_frame, keypoints[..., :2])
    poses[..., 2] = np.where(visibility > 0, np.clip(keypoints[..., 2], 0, 1), 0)
    person = outputs["person"][0, 0]
    distances = embedding_distances(
        person,
        outputs["long_offsets"][0],
        outputs["short_offsets"][0],
        poses,
        min_person=COMPUTED_FROM,
        stride=parameters.stride,
    )
    per_px = 1.0 / parameters.stride
    cell_from_input = np.array([[per_px, 0.0, 0.5 * per_px - 0.5], [0.0, per_px, 0.5 * per_px - 0.5]])
    cell_from_frame = compose(cell_from_input, plan.input_from_frame)

    def in_frame(field: F32) -> F32:
        size = (plan.frame_width, plan.frame_height)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped: F32 = cv2.warpAffine(field, cell_from_frame, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return warped

    likely = in_frame(np.ascontiguousarray(person, np.float32)) > MIN_PERSON
    return [(likely & (in_frame(np.minimum(distance, FAR)) <= MAX_DISTANCE)).astype(np.uint8) for distance in distances]
