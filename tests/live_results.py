"""Results with people in chosen places, for what comes behind the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kernels.mask_paste import PastedMask
from pipeline.messages import FrameResult
from pipeline.person import Person
from tests.clips import numbered_picture
from tests.fakes import frame, masks_of


def person(person_id: int, x: float, y: float, *, ankles: bool = True, height: int = 96, width: int = 128) -> Person:
    """Somebody whose feet are at (x, y) px, in a picture of this size."""
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[:, :2] = x, y - 20
    keypoints[15], keypoints[16] = (x - 2, y, 0.9), (x + 2, y, 0.9)
    visible = np.zeros(17, np.bool_)
    visible[15:] = ankles
    visible[5:7] = True
    left, top = round(x) - 2, round(y) - 9
    crop = PastedMask(x0=left, y0=top, mask=np.ones((10, 5), np.bool_))
    return Person(
        id=person_id,
        score=0.9,
        keypoints=keypoints,
        joint_visible=visible,
        crop=crop,
        frame_height=height,
        frame_width=width,
    )


def result(
    index: int = 0,
    people: Sequence[Person] = (),
    *,
    stream: int = 0,
    clip: int = 0,
    height: int = 96,
    width: int = 128,
    source: str = "list",
) -> FrameResult:
    """Frame ``index`` of 25 a second, with its number in the picture."""
    of = replace(frame(index, image=numbered_picture(index, height, width), clip=clip, source=source), stream=stream)
    return FrameResult(masks=masks_of(of), people=tuple(people), drawn=None)
