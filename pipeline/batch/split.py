"""One file whose segments several workers have in hand, and what of it is to be done next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.batch.orders import DetectOrder, FileOrder, Order
from pipeline.batch.plan import BatchInput

Split = Literal["auto", "always", "never"]
SPLITS: Final = ("auto", "always", "never")

AT_ONCE: Final = 4
"""Segments that the pass in order should find ready: fewer, and opening the file again costs more than it is worth."""


@dataclass(slots=True, eq=False)
class SplitFile:
    """Who does what of one file. Nothing here waits, and nothing is lost when a worker is.

    The scout tells the borders, one after the other. Networks run behind each border, on any worker, at most ``ahead``
    segments before the pass in order, which bounds what lies on the disk. One worker at a time does the pass in order.

    Attributes:
        item: the input.
        ahead: segments.
        borders: number of a segment that is not finished -> where it begins.
        told: the scout has found one.
        scouted: no further border will be told.
        detected: segments whose detections are there.
        in_work: segments whose networks run.
        next: segment that the pass in order does next.
        in_order: a worker does the pass in order.
    """

    item: BatchInput
    ahead: int
    borders: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    told: bool = False
    scouted: bool = False
    detected: set[int] = field(default_factory=set)
    in_work: set[int] = field(default_factory=set)
    next: int = 0
    in_order: bool = False

    def border(self, number: int, start: dict[str, Any] | None) -> None:
        """The scout found one; a second scout also tells those of segments that are finished by now."""
        if not self.told:
            self.next, self.told = number, True
        if number >= self.next:
            self.borders[number] = start

    def scout_ended(self) -> None:
        self.scouted = True

    def take(self) -> Order | None:
        """The next piece of work; None: it has to wait for another one."""
        ready = self._ready()
        if not self.in_order:
            if self.scouted and ready == len(self.borders):
                self.in_order = True
                return FileOrder(item=self.item)
            if ready >= AT_ONCE:
                self.in_order = True
                return FileOrder(item=self.item, until=self.next + ready)
        for number, start in self.borders.items():
            if number >= self.next + self.ahead:
                break
            if number not in self.detected and number not in self.in_work:
                self.in_work.add(number)
                return DetectOrder(item=self.item, number=number, start=start)
        return None

    def done(self, order: Order) -> None:
        """A piece of work is finished; of the pass in order: it has paused."""
        if isinstance(order, DetectOrder):
            self.in_work.discard(order.number)
            self.detected.add(order.number)
        elif isinstance(order, FileOrder):
            self.in_order = False
            for number in range(self.next, order.until or self.next):
                self.borders.pop(number, None)
                self.detected.discard(number)
            self.next = order.until or self.next

    def lost(self, order: Order) -> None:
        """A piece of work is to be done again."""
        if isinstance(order, DetectOrder):
            self.in_work.discard(order.number)
        elif isinstance(order, FileOrder):
            self.in_order = False

    def _ready(self) -> int:
        """Segments in a row from the next one whose detections are there."""
        count = 0
        while self.next + count in self.detected:
            count += 1
        return count
