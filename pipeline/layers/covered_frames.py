"""Frames with all that is covered in them, in order; held back for some frames if wanted.

Somebody who comes into view is not covered until the network has found them. If frames are held back (`--hide-ahead`),
a person who is found in one of the next ones is covered in those before, too: where they were found, grown by as much
as a lost person's region would be in the same time. So the cover memory runs in both directions of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kernels.mask_paste import PastedAlpha
from pipeline.layers.alpha import AlphaMaker, alpha_of_state, alpha_state
from pipeline.layers.cover import (
    SPEED_MAX_SHARE,
    CoverMemory,
    Newcomer,
    grown_px,
    margin_px,
    soft_cover,
    widened,
)
from pipeline.layers.options import ChosenPeople
from pipeline.messages import Frame, FrameResult


@dataclass(slots=True, kw_only=True)
class CoveredFrame:
    """A frame, and where it must be covered.

    Attributes:
        frame: the picture.
        covers: of the people who are hidden, soft at their rims.
        occupied: where anybody is or may be.
        newcomers: who is found for the first time.
        steps: from the frame before, in usual distances of frames.
        result: of this frame; None behind a border of a batch.
    """

    frame: Frame
    covers: list[PastedAlpha]
    occupied: list[PastedAlpha]
    newcomers: list[Newcomer]
    steps: int
    result: FrameResult | None = field(default=None, repr=False)


class CoveredFrames:
    """What hiding layers share. Asked again about the newest frame, it gives what it made."""

    def __init__(self, maker: AlphaMaker, chosen: ChosenPeople, *, frames: int, ahead: int = 0) -> None:
        """Set up.

        Args:
            maker: see `CoverMemory`.
            chosen: who is covered.
            frames: how many frames a person who is not found stays covered.
            ahead: how many frames are held back.
        """
        self._chosen = chosen
        self._ahead = ahead
        self._covers = CoverMemory(maker, chosen, frames=frames)
        self._everybody = CoverMemory(maker, ChosenPeople(), frames=frames)
        self._held: deque[CoveredFrame] = deque()
        self._newest: FrameResult | None = None
        self._due: list[CoveredFrame] = []
        self._rest: list[CoveredFrame] | None = None

    def of(self, result: FrameResult) -> Sequence[CoveredFrame]:
        """The frames that are due with this one: itself where nothing is held back, else none or an earlier one."""
        if result is not self._newest:
            self._newest = result
            everybody = list(self._everybody.of(result))
            everyone_goes = self._chosen == ChosenPeople()
            self._held.append(
                CoveredFrame(
                    frame=result.frame,
                    covers=list(everybody) if everyone_goes else list(self._covers.of(result)),
                    occupied=everybody,
                    newcomers=list(self._everybody.newcomers(result)),
                    steps=self._everybody.steps,
                    result=result,
                )
            )
            self._due = [self._released()] if len(self._held) > self._ahead else []
        return self._due

    def rest(self) -> Sequence[CoveredFrame]:
        """The frames that are still held, when no other one comes."""
        if self._rest is None:
            self._rest = [self._released() for _ in range(len(self._held))]
        return self._rest

    def to_state(self) -> dict[str, Any]:
        """What the next frame needs; see `pipeline.layers.state`. The pictures that are held are a part of it."""
        return {
            "covers": self._covers.to_state(),
            "everybody": self._everybody.to_state(),
            "held": [_held_state(held) for held in self._held],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._covers.restore(state["covers"])
        self._everybody.restore(state["everybody"])
        self._held.extend(_held_of_state(held) for held in state["held"])

    def _released(self) -> CoveredFrame:
        """The oldest one, with what the others tell about it."""
        oldest = self._held.popleft()
        steps = 0
        size = (oldest.frame.height, oldest.frame.width)
        for later in self._held:
            scene = (later.frame.clip, later.frame.height, later.frame.width)
            if scene != (oldest.frame.clip, *size):
                break
            steps += later.steps
            for newcomer in later.newcomers:
                cover = self._where_from(newcomer, steps, *size)
                oldest.occupied.append(cover)
                if newcomer.person_id in self._chosen:
                    oldest.covers.append(cover)
        return oldest

    def _where_from(self, newcomer: Newcomer, steps: int, height: int, width: int) -> PastedAlpha:
        """Where somebody may have been so many steps before they were found."""
        speed_px = self._everybody.speed_of(newcomer.person_id)
        if speed_px is None:
            speed_px = SPEED_MAX_SHARE * newcomer.long_side  # found in one frame only so far
        by_px = round(grown_px(steps, speed_px, newcomer.long_side))
        region = widened(newcomer.region, by_px, height, width)
        return soft_cover(region, margin_px(newcomer.long_side), height, width)


def _held_state(held: CoveredFrame) -> dict[str, Any]:
    frame = held.frame
    return {
        "index": frame.index,
        "source": frame.source,
        "clip": frame.clip,
        "stream": frame.stream,
        "pts": frame.pts,
        "time_base": [frame.time_base.numerator, frame.time_base.denominator],
        "image": frame.image,
        "covers": [alpha_state(cover) for cover in held.covers],
        "occupied": [alpha_state(cover) for cover in held.occupied],
        "newcomers": [[one.person_id, alpha_state(one.region), one.long_side] for one in held.newcomers],
        "steps": held.steps,
    }


def _held_of_state(state: dict[str, Any]) -> CoveredFrame:
    return CoveredFrame(
        frame=Frame(
            index=state["index"],
            source=state["source"],
            clip=state["clip"],
            stream=state["stream"],
            pts=state["pts"],
            time_base=Fraction(*state["time_base"]),
            captured_s=0.0,
            pixels=state["image"],
        ),
        covers=[alpha_of_state(cover) for cover in state["covers"]],
        occupied=[alpha_of_state(cover) for cover in state["occupied"]],
        newcomers=[
            Newcomer(person_id=person_id, region=alpha_of_state(region), long_side=long_side)
            for person_id, region, long_side in state["newcomers"]
        ],
        steps=state["steps"],
    )
