"""FrameResult -> objects of the supervision library (extra ``interop``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import supervision

    from pipeline.messages import FrameResult

PERSON_CLASS = 0
CLASS_NAME = "person"


class SupervisionResult(NamedTuple):
    """What supervision's annotators, zones and metrics take; row n of both is the same person."""

    detections: supervision.Detections
    keypoints: supervision.KeyPoints


def to_supervision(result: FrameResult) -> SupervisionResult:
    """See `FrameResult.to_supervision`.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'to_supervision needs the supervision library: pip install "pose2seg-live[interop]"', name=error.name
        ) from error
    people = result.people
    count, size = len(people), (result.frame.height, result.frame.width)
    boxes = np.array([person.bbox for person in people], np.float32).reshape(count, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.zeros((count, *size), np.bool_)
    for n, person in enumerate(people):
        masks[n] = person.mask
    scores = np.array([person.score for person in people], np.float32)
    classes = np.full(count, PERSON_CLASS, np.int64)
    joints = np.array([person.keypoints for person in people], np.float32).reshape(count, 17, 3)
    visible = np.array([person.joint_visible for person in people], np.bool_).reshape(count, 17)
    names = np.full(count, CLASS_NAME)
    ids = np.array([person.id for person in people], np.int64)
    return SupervisionResult(
        supervision.Detections(
            xyxy=boxes,
            mask=masks,
            confidence=scores,
            class_id=classes,
            tracker_id=ids,
            data={"class_name": names},
        ),
        supervision.KeyPoints(
            xy=joints[:, :, :2].copy(),
            keypoint_confidence=joints[:, :, 2].copy(),
            detection_confidence=scores.copy(),
            class_id=classes.copy(),
            visible=visible,
            data={"class_name": names.copy(), "tracker_id": ids.copy()},
        ),
    )
