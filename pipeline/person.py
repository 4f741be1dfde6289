"""One person in one frame, as users see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32
from kernels.mask_paste import PastedMask
from kernels.mask_rle import Rle, encode_rle

PERSON_CATEGORY_ID = 1  # of COCO


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """A person: who, where, how sure.

    Attributes:
        id: stable number within one source, from 1.
        score: 0..1, how sure the system is of this person and this mask.
        keypoints: (17, 3) float32 in COCO order: x, y in frame px, confidence 0..1.
        joint_visible: (17,) bool: confidence reached the joint threshold, so the joint guided the mask and is drawn.
        crop: the mask inside its own box.
        frame_height: px.
        frame_width: px.
    """

    id: int
    score: float
    keypoints: F32
    joint_visible: NDArray[np.bool_]
    crop: PastedMask
    frame_height: int
    frame_width: int

    def __repr__(self) -> str:
        x, y, width, height = self.bbox
        return f"Person(id={self.id}, score={self.score:.2f}, bbox=[{x:.0f}, {y:.0f}, {width:.0f}, {height:.0f}])"

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool mask over the whole frame; a new array each time."""
        return self.crop.in_frame(self.frame_height, self.frame_width)

    @cached_property
    def bbox(self) -> tuple[float, float, float, float]:
        """x, y, width, height in px: the tight box of the mask, or of the visible joints where the mask is empty.

        As in COCO, a mask of one pixel (5, 7) has the box (5, 7, 1, 1).
        """
        height, width = self.crop.mask.shape
        if height and width:  # the crop is the smallest one
            return (float(self.crop.x0), float(self.crop.y0), float(width), float(height))
        points = self.keypoints[self.joint_visible, :2]
        if not len(points):
            return (0.0, 0.0, 0.0, 0.0)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return (float(x0), float(y0), float(x1 - x0), float(y1 - y0))

    @cached_property
    def mask_rle(self) -> Rle:
        """The mask as compressed COCO RLE: {"size": [H, W], "counts": str}."""
        return encode_rle([self.crop], self.frame_height, self.frame_width)[0]

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``people`` in a JSON line; see docs/jsonl.md."""
        return {
            "id": self.id,
            "score": round(self.score, 4),
            "bbox": [round(value, 2) for value in self.bbox],
            "keypoints": rounded_keypoints(self.keypoints),
            "mask": self.mask_rle,
        }

    def to_coco(self, image_id: int) -> dict[str, Any]:
        """A COCO result for both ``segm`` and ``keypoints``.

        There is no ``bbox`` on purpose: pycocotools would take the box area for the mask area.
        """
        return {
            "image_id": image_id,
            "category_id": PERSON_CATEGORY_ID,
            "score": round(self.score, 6),
            "segmentation": self.mask_rle,
            "keypoints": [value for joint in rounded_keypoints(self.keypoints) for value in joint],
        }


def rounded_keypoints(keypoints: F32) -> list[list[float]]:
    """17 x [x, y, confidence] as plain numbers: coordinates to 0.01 px, confidences to 0.0001."""
    return [[round(float(x), 2), round(float(y), 2), round(float(c), 4)] for x, y, c in keypoints]
