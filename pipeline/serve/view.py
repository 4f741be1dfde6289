"""What one viewer wants to see of one stream, and the picture of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import cv2
import numpy as np

from kernels.alpha_edges import blend_over
from kernels.coordinates import U8
from pipeline.layers.alpha import AlphaMaker, together
from pipeline.layers.cover import CoverMemory
from pipeline.layers.covered_frames import CoveredFrame
from pipeline.layers.options import ChosenPeople
from pipeline.layers.pictures import blur, blurred_scene
from pipeline.messages import FrameResult
from pipeline.overlay import draw_people, highlight_person
from pipeline.person import Person

BACKGROUNDS: Final = ("original", "blur", "dim", "black", "green")
COVER_FRAMES: Final = 25  # somebody who is not found stays blurred for so long
MAX_ID: Final = 2**31 - 1
NEAR_SHARE: Final = 0.08  # of the frame's mean side: how far from a person a click may be
_DIMMED: Final = 0.3
_COLORS: Final = {"black": (0, 0, 0), "green": (0, 177, 64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """Switches of one viewer for one stream.

    Attributes:
        mask: tint and contour of each person who is not blurred.
        skeleton: joints and limbs of the same.
        ids: id and score beside each person.
        blur_others: everybody but the selected person is blurred; everybody, while none is selected.
        background: what is around the people, one of `BACKGROUNDS`.
        selected: id of the person with the white line; None: nobody.
    """

    mask: bool = True
    skeleton: bool = True
    ids: bool = True
    blur_others: bool = False
    background: str = "original"
    selected: int | None = None

    def changed(self, wish: Mapping[str, Any]) -> ViewOptions:
        """With other values, which come from outside.

        Raises:
            ValueError: an unknown name or a wrong value; says what was expected.
        """
        names = [field.name for field in fields(self)]
        for name, value in wish.items():
            if name not in names:
                raise ValueError(f"expected some of {', '.join(names)}, got {name[:40]!r}")
            if name == "background":
                if value not in BACKGROUNDS:
                    raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}")
            elif name == "selected":
                if value is not None and (type(value) is not int or not 1 <= value <= MAX_ID):
                    raise ValueError("selected must be the id of a person, from 1, or null")
            elif type(value) is not bool:
                raise ValueError(f"{name} must be true or false")
        return replace(self, **wish)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ViewPainter:
    """Paints results of one stream with fixed options; remembers where hidden people were. For one thread."""

    def __init__(self, options: ViewOptions, *, mask_threshold: float) -> None:
        self._options = options
        self._maker = AlphaMaker(mask_threshold=mask_threshold, exclusive=False, refine=False, steady=False)
        kept = frozenset() if options.selected is None else frozenset({options.selected})
        self._covers = CoverMemory(self._maker, ChosenPeople(ids=kept, others=True), frames=COVER_FRAMES)

    def paint(self, result: FrameResult) -> U8:
        """(H, W, 3) uint8 RGB of the frame's size; a new array, or `FrameResult.drawn` itself."""
        options = self._options
        if options == ViewOptions() and result.drawn is not None:
            return result.drawn
        picture = self._with_others_hidden(result) if options.blur_others else result.frame.image.copy()
        if options.background != "original":
            picture = self._before_background(picture, result)
        chosen = [person for person in result.people if person.id == options.selected]
        others = [person for person in result.people if person.id != options.selected]
        # Somebody who is picked out stands out: the others lose their tint; who is blurred keeps no more than the id.
        shows = not options.blur_others
        draw_people(
            picture,
            others,
            masks=options.mask and shows and not chosen,
            skeletons=options.skeleton and shows,
            labels=options.ids,
        )
        draw_people(picture, chosen, masks=options.mask, skeletons=options.skeleton, labels=options.ids)
        for person in chosen:
            highlight_person(picture, person)
        return picture

    def _with_others_hidden(self, result: FrameResult) -> U8:
        covers = list(self._covers.of(result))
        return blur(
            CoveredFrame(
                frame=result.frame, covers=covers, occupied=[], newcomers=[], steps=self._covers.steps, result=result
            )
        )

    def _before_background(self, picture: U8, result: FrameResult) -> U8:
        frame = result.frame
        alphas = [one.alpha for one in self._maker.of(result)]
        kind = self._options.background
        if kind == "blur":
            scene = blurred_scene(picture, together(alphas, frame.height, frame.width))
        elif kind == "dim":
            scene = np.asarray(cv2.convertScaleAbs(picture, alpha=_DIMMED), np.uint8)
        else:
            scene = np.empty_like(picture)
            scene[...] = _COLORS[kind]
        for alpha in reversed(alphas):
            if alpha.alpha.size:
                height, width = alpha.alpha.shape
                part = picture[alpha.y0 : alpha.y0 + height, alpha.x0 : alpha.x0 + width]
                blend_over(scene, np.ascontiguousarray(part), alpha.alpha, alpha.x0, alpha.y0)
        return scene


def person_at(result: FrameResult, x: float, y: float) -> Person | None:
    """Who was meant by a click: the best person whose mask is there, or who is near.

    Args:
        result: what was shown.
        x, y: share of the width and height, 0..1.
    """
    frame = result.frame
    column, row = min(int(x * frame.width), frame.width - 1), min(int(y * frame.height), frame.height - 1)
    for person in result.people:
        crop = person.crop
        top, left = row - crop.y0, column - crop.x0
        if 0 <= top < crop.mask.shape[0] and 0 <= left < crop.mask.shape[1] and crop.mask[top, left]:
            return person
    nearest, least = None, NEAR_SHARE * (frame.width * frame.height) ** 0.5
    for person in result.people:
        x0, y0, width, height = person.bbox
        if not width and not height:
            continue
        away_x = max(x0 - column, 0.0, column - (x0 + width))
        away_y = max(y0 - row, 0.0, row - (y0 + height))
        distance = (away_x**2 + away_y**2) ** 0.5
        if distance < least:
            nearest, least = person, distance
    return nearest


def fitted(picture: U8, max_side_px: int) -> U8:
    """(h, w, 3) no longer than ``max_side_px``, both sides even, as encoders ask."""
    height, width = picture.shape[:2]
    scale = min(1.0, max_side_px / max(height, width))
    size = (max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2))
    if size == (width, height):
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
