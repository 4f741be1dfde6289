"""FrameResult -> how much of each px belongs to whom: what all layers of a run are cut with, made once per frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from kernels.alpha_edges import change_between, refine_alpha, steady_alpha
from kernels.coordinates import U8, scale_of
from kernels.mask_paste import PastedAlpha, paste_alpha
from pipeline.messages import FrameResult
from pipeline.person import Person

REFINE_RADIUS_ROI_PX = 0.8  # measured on the demo clip's true masks: docs/experiments.md
REFINE_RADIUS_MIN_PX = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PersonAlpha:
    """One person of a frame, with soft edges."""

    person: Person
    alpha: PastedAlpha
    pasted: PastedAlpha
    """The same before its edges were refined and steadied."""


class AlphaMaker:
    """Keeps the frame before, to hold edges still. Asked again about the newest frame, it gives what it made."""

    def __init__(self, *, mask_threshold: float, exclusive: bool, refine: bool, steady: bool) -> None:
        """Set up.

        Args:
            mask_threshold: alpha is 128 or more above this probability, before refining and steadying.
            exclusive: a px that is somebody's is no part of anybody else, see `paste_alpha`; before refining and
                steadying, too. Not for hiding: each person who is hidden is covered wherever they may be.
            refine: move edges onto edges of the picture.
            steady: hold edges still where the picture stands still.
        """
        self._mask_threshold = mask_threshold
        self._exclusive = exclusive
        self._refine = refine
        self._steady = steady
        self._result: FrameResult | None = None
        self._alphas: list[PersonAlpha] = []
        self._scene: tuple[int, int] | None = None  # clip and stream of the frame before
        self._gray: U8 | None = None
        self._alpha_before: dict[int, PastedAlpha] = {}

    def of(self, result: FrameResult) -> Sequence[PersonAlpha]:
        """Everybody in the frame, in falling order of score."""
        if result is not self._result:
            self._alphas = self._made(result)
            self._result = result
            self._scene = (result.frame.clip, result.frame.stream)
            self._alpha_before = {one.person.id: one.alpha for one in self._alphas} if self._steady else {}
        return self._alphas

    def to_state(self) -> dict[str, Any]:
        """What the next frame needs; see `pipeline.layers.state`."""
        if not self._steady:
            return {}
        return {
            "scene": self._scene,
            "gray": self._gray,
            "alphas": [[person_id, alpha_state(alpha)] for person_id, alpha in self._alpha_before.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        if state:
            self._scene = None if state["scene"] is None else (state["scene"][0], state["scene"][1])
            self._gray = state["gray"]
            self._alpha_before = {person_id: alpha_of_state(alpha) for person_id, alpha in state["alphas"]}

    def _made(self, result: FrameResult) -> list[PersonAlpha]:
        frame, rois = result.frame, result.masks.rois
        gray: U8 | None = None
        if self._refine or self._steady:
            gray = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)
        same_scene = self._scene == (frame.clip, frame.stream)
        gray_before = self._gray if same_scene and self._steady else None
        if gray is None or gray_before is None or gray_before.shape != gray.shape:
            gray_before = None
        self._gray = gray
        pasted = paste_alpha(
            result.masks.probabilities,
            rois.roi_from_frame,
            frame.height,
            frame.width,
            threshold=self._mask_threshold,
            exclusive=self._exclusive,
        )
        row_of = {int(person_id): row for row, person_id in enumerate(rois.ids)}
        alphas = []
        for person in result.people:
            row = row_of[person.id]
            alpha = pasted[row]
            if gray is not None and self._refine and alpha.alpha.size:
                radius_px = REFINE_RADIUS_ROI_PX / float(scale_of(rois.roi_from_frame[row]))
                alpha = _refined(alpha, gray, max(REFINE_RADIUS_MIN_PX, round(radius_px)))
            if gray is not None and gray_before is not None and person.id in self._alpha_before:
                alpha = _steadied(alpha, self._alpha_before[person.id], gray, gray_before)
            alphas.append(PersonAlpha(person=person, alpha=alpha, pasted=pasted[row]))
        return alphas


def _refined(alpha: PastedAlpha, gray: U8, radius_px: int) -> PastedAlpha:
    wide = enlarged(alpha, 2 * radius_px, *gray.shape[:2])
    height, width = wide.alpha.shape
    part = gray[wide.y0 : wide.y0 + height, wide.x0 : wide.x0 + width]
    return PastedAlpha(x0=wide.x0, y0=wide.y0, alpha=refine_alpha(wide.alpha, part, radius_px))


def _steadied(alpha: PastedAlpha, before: PastedAlpha, gray: U8, gray_before: U8) -> PastedAlpha:
    boxes = [box_of(one) for one in (alpha, before) if one.alpha.size]
    if not boxes:
        return alpha
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    rows, columns = slice(y0, y1), slice(x0, x1)
    new, old = (crop_of(one, x0, y0, x1, y1) for one in (alpha, before))
    steady = steady_alpha(new, old, change_between(gray[rows, columns], gray_before[rows, columns]))
    return trimmed(PastedAlpha(x0=x0, y0=y0, alpha=steady))


def alpha_state(alpha: PastedAlpha) -> list[Any]:
    """For `pipeline.layers.state`."""
    return [alpha.x0, alpha.y0, alpha.alpha]


def alpha_of_state(state: list[Any]) -> PastedAlpha:
    """What `alpha_state` was given."""
    return PastedAlpha(x0=state[0], y0=state[1], alpha=state[2])


def box_of(alpha: PastedAlpha) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 px, end exclusive."""
    return alpha.x0, alpha.y0, alpha.x0 + alpha.alpha.shape[1], alpha.y0 + alpha.alpha.shape[0]


def crop_of(alpha: PastedAlpha, x0: int, y0: int, x1: int, y1: int) -> U8:
    """The alpha inside a box that holds it, zeros around: (y1 - y0, x1 - x0)."""
    crop = np.zeros((y1 - y0, x1 - x0), np.uint8)
    height, width = alpha.alpha.shape
    crop[alpha.y0 - y0 : alpha.y0 - y0 + height, alpha.x0 - x0 : alpha.x0 - x0 + width] = alpha.alpha
    return crop


def enlarged(alpha: PastedAlpha, by_px: int, frame_height: int, frame_width: int) -> PastedAlpha:
    """The same with zeros around it, as far as the frame goes."""
    x0, y0, x1, y1 = box_of(alpha)
    x0, y0 = max(0, x0 - by_px), max(0, y0 - by_px)
    x1, y1 = min(frame_width, x1 + by_px), min(frame_height, y1 + by_px)
    return PastedAlpha(x0=x0, y0=y0, alpha=crop_of(alpha, x0, y0, x1, y1))


def trimmed(alpha: PastedAlpha) -> PastedAlpha:
    """The smallest crop that holds all px above 0."""
    x, y, width, height = cv2.boundingRect(alpha.alpha) if alpha.alpha.size else (0, 0, 0, 0)
    if not width:
        return PastedAlpha(x0=0, y0=0, alpha=np.zeros((0, 0), np.uint8))
    crop = np.ascontiguousarray(alpha.alpha[y : y + height, x : x + width])
    return PastedAlpha(x0=alpha.x0 + x, y0=alpha.y0 + y, alpha=crop)


def together(alphas: Sequence[PastedAlpha], frame_height: int, frame_width: int) -> U8:
    """(H, W) uint8: the alphas of all added up, at most 255. Two who share an edge px share it without a seam."""
    full = np.zeros((frame_height, frame_width), np.uint8)
    for one in alphas:
        if one.alpha.size:
            x0, y0, x1, y1 = box_of(one)
            part = full[y0:y1, x0:x1]
            cv2.add(part, one.alpha, dst=part)
    return full
