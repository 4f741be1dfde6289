"""The bounded hand-off between two threads.

One writer, one reader. A full channel either blocks the writer (files: nothing is lost) or drops its oldest item (live
sources: the newest frame wins). Every item is accounted for, ``received == delivered + dropped + held`` at any moment,
and order is kept.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Policy = Literal["block", "drop_oldest"]


class End(enum.Enum):
    """The mark behind the last item; compare with ``is``."""

    END = "end"


END = End.END


class ChannelClosed(Exception):
    """The reader went away: nothing more can be handed over, the writer should stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStats:
    """What went through a channel so far.

    Attributes:
        received: items the writer put in.
        delivered: items the reader took out.
        dropped: items thrown away because a newer one came; always 0 when the policy is to block.
        held: items that wait now.
        held_max: most items that ever waited. At capacity: the reader is the slower side.
        writer_wait_s: time the writer was blocked. High: the reader is slow.
        reader_wait_s: time the reader was blocked. High: the writer is slow.
    """

    received: int
    delivered: int
    dropped: int
    held: int
    held_max: int
    writer_wait_s: float
    reader_wait_s: float


class Channel(Generic[Item]):
    """A queue of at most ``capacity`` items from one thread to another."""

    def __init__(self, name: str, capacity: int, policy: Policy = "block") -> None:
        if capacity < 1:
            raise ValueError(f"a channel holds at least 1 item, got capacity {capacity}")
        self.name = name
        self.capacity = capacity
        self.policy = policy
        self._items: deque[Item] = deque()
        self._condition = threading.Condition()
        self._finished = False
        self._hung_up = False
        self._received = self._delivered = self._dropped = self._held_max = 0
        self._writer_wait_s = self._reader_wait_s = 0.0

    def put(self, item: Item) -> None:
        """Hand one item over; waits for room, or drops the oldest one, as the policy says.

        Raises:
            ChannelClosed: the reader hung up.
        """
        with self._condition:
            if self._finished:
                raise RuntimeError(f"channel {self.name}: put after finish")
            if self.policy == "block" and len(self._items) >= self.capacity and not self._hung_up:
                started = time.perf_counter()
                self._condition.wait_for(lambda: len(self._items) < self.capacity or self._hung_up)
                self._writer_wait_s += time.perf_counter() - started
            if self._hung_up:
                raise ChannelClosed(self.name)
            if len(self._items) >= self.capacity:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._received += 1
            self._held_max = max(self._held_max, len(self._items))
            self._condition.notify_all()

    def finish(self) -> None:
        """Say that no more items come. What waits is still delivered. Never blocks; a second call does nothing."""
        with self._condition:
            self._finished = True
            self._condition.notify_all()

    def get(self) -> Item | End:
        """Take the oldest item, waiting for one; `END` behind the last.

        Raises:
            ChannelClosed: `hang_up` was called, by this reader or to abort the run.
        """
        with self._condition:
            if not self._items and not self._finished and not self._hung_up:
                started = time.perf_counter()
                self._condition.wait_for(lambda: bool(self._items) or self._finished or self._hung_up)
                self._reader_wait_s += time.perf_counter() - started
            if self._hung_up:
                raise ChannelClosed(self.name)
            if not self._items:
                return END
            item = self._items.popleft()
            self._delivered += 1
            self._condition.notify_all()
            return item

    def take_waiting(self, limit: int) -> list[Item]:
        """Up to ``limit`` further items that wait already, oldest first; never blocks.

        Raises:
            ChannelClosed: as `get`.
        """
        with self._condition:
            if self._hung_up:
                raise ChannelClosed(self.name)
            items = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._delivered += len(items)
            if items:
                self._condition.notify_all()
            return items

    def hang_up(self) -> None:
        """Stop reading for good: wakes a waiting writer and reader, both get `ChannelClosed`."""
        with self._condition:
            self._hung_up = True
            self._condition.notify_all()

    def stats(self) -> ChannelStats:
        """A consistent snapshot."""
        with self._condition:
            return ChannelStats(
                received=self._received,
                delivered=self._delivered,
                dropped=self._dropped,
                held=len(self._items),
                held_max=self._held_max,
                writer_wait_s=self._writer_wait_s,
                reader_wait_s=self._reader_wait_s,
            )
