"""Several sources as one: their frames share the model's calls, and one slow or broken source stops no other.

Each source is read on a thread of its own into a short queue of its own. The pipeline takes the queues in turn, so that
a fast source cannot crowd out a slow one. A live source's queue holds its newest frame; a file's blocks.

The first stage reads these queues directly (`StreamGroup.channel`): no frame waits anywhere else before the networks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.channel import END, Channel, ChannelClosed, ChannelStats, End
from pipeline.errors import SourceError
from pipeline.messages import Frame
from pipeline.protocols import Source

log = logging.getLogger(__name__)

JOIN_S = 10.0  # a source that was asked to stop; a silent camera is left to its own time limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """One source of a group so far.

    Attributes:
        name: of the source.
        frames: read from it.
        dropped: replaced by newer ones before the pipeline took them; 0 for files.
        error: why it ended early; None while it runs, or ended as it should.
        ended: it gives no more frames.
    """

    name: str
    frames: int
    dropped: int
    error: str | None
    ended: bool


class _Member:
    """A source and its queue; guarded by the group's condition."""

    def __init__(self, source: Source, capacity: int) -> None:
        self.source = source
        self.capacity = 1 if source.live else capacity
        self.frames: deque[Frame] = deque()
        self.read = self.dropped = 0
        self.error: SourceError | None = None
        self.ended = False


class StreamGroup:
    """See the module. To the pipeline it is a file: what is old is dropped here, per stream, not in its channels."""

    live = False
    still_images = False

    def __init__(self, sources: Sequence[Source], *, capacity: int = 2) -> None:
        """Take sources that are open; the n-th gives the frames with ``stream == n``.

        Args:
            sources: at least one.
            capacity: frames of a file that may wait.
        """
        if not sources:
            raise ValueError("a group needs at least one source")
        self._members = [_Member(source, capacity) for source in sources]
        self._condition = threading.Condition()
        self._stopped = False
        self._position = 0
        self.channel = TurnsChannel(self)
        self._threads: list[threading.Thread] = []
        self.name = ", ".join(source.name for source in sources)
        totals = [source.frame_total for source in sources]
        self.frame_total = None if None in totals else sum(total for total in totals if total is not None)

    @property
    def frames_lost(self) -> int:
        return sum(member.source.frames_lost for member in self._members)

    @property
    def frames_dropped(self) -> int:
        """Of all live sources together."""
        with self._condition:
            return sum(member.dropped for member in self._members)

    def stats(self) -> list[StreamStats]:
        """A consistent snapshot, in the order of the sources."""
        with self._condition:
            return [
                StreamStats(
                    name=member.source.name,
                    frames=member.read,
                    dropped=member.dropped,
                    error=None if member.error is None else str(member.error),
                    ended=member.ended,
                )
                for member in self._members
            ]

    def frames(self) -> Iterator[Frame]:
        """Frames of all sources in turn, until all have ended.

        Raises:
            SourceError: every source ended with an error; the first of them, the others are its notes.
        """
        self._start()
        while (frame := self.take()) is not None:
            yield frame
        self._raise_if_all_failed()

    def fill(self) -> None:
        """Read all sources into their queues until all have ended and all frames are taken from `channel`.

        Raises:
            SourceError: as `frames`.
        """
        self._start()
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or all(m.ended and not m.frames for m in self._members))
        self._raise_if_all_failed()

    def _raise_if_all_failed(self) -> None:
        if self._stopped:
            return
        errors = [member.error for member in self._members if member.error is not None]
        if len(errors) == len(self._members):
            first = errors[0]
            for other in errors[1:]:
                first.add_note(f"and: {other}")
            raise first

    def take(self) -> Frame | None:
        """A frame of the next source in turn that has one, waiting for it. None at the end and after a stop."""
        with self._condition:
            while not self._stopped:
                frame = self._take_now()
                if frame is not None or all(member.ended for member in self._members):
                    return frame
                self._condition.wait()
        return None

    def take_waiting(self, limit: int) -> list[Frame]:
        """Up to ``limit`` frames that wait already, one source after the other."""
        found: list[Frame] = []
        with self._condition:
            while len(found) < limit and not self._stopped and (frame := self._take_now()) is not None:
                found.append(frame)
        return found

    def _take_now(self) -> Frame | None:
        count = len(self._members)
        for n in (*range(self._position, count), *range(self._position)):
            if self._members[n].frames:
                self._position = (n + 1) % count
                self._condition.notify_all()
                frame: Frame = self._members[n].frames.popleft()
                return frame
        return None

    def channel_stats(self) -> ChannelStats:
        """All queues together."""
        with self._condition:
            received = sum(member.read for member in self._members)
            dropped = sum(member.dropped for member in self._members)
            held = sum(len(member.frames) for member in self._members)
        return ChannelStats(
            received=received,
            delivered=received - dropped - held,
            dropped=dropped,
            held=held,
            held_max=len(self._members),
            writer_wait_s=0.0,
            reader_wait_s=0.0,
        )

    def _start(self) -> None:
        for n, member in enumerate(self._members):
            name = f"stream {n} of {member.source.name}"
            thread = threading.Thread(target=self._read, args=(n, member), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self, stream: int, member: _Member) -> None:
        """One source's thread: whatever happens to it ends this source and no other."""
        try:
            for frame in member.source.frames():
                self._put(member, replace(frame, stream=stream))
                if self._stopped:
                    break
        except Exception as error:
            said = error if isinstance(error, SourceError) else SourceError(f"{member.source.name}: {error}")
            if said is not error:
                said.__cause__ = error
            log.warning("stream %d ended: %s", stream, said)
            with self._condition:
                member.error = said
        finally:
            member.source.close()
            with self._condition:
                member.ended = True
                self._condition.notify_all()

    def _put(self, member: _Member, frame: Frame) -> None:
        with self._condition:
            member.read += 1
            if member.source.live:
                while len(member.frames) >= member.capacity:
                    member.frames.popleft()
                    member.dropped += 1
            else:
                self._condition.wait_for(lambda: len(member.frames) < member.capacity or self._stopped)
            if not self._stopped:
                member.frames.append(frame)
                self._condition.notify_all()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        for member in self._members:
            member.source.stop()

    def close(self) -> None:
        self.stop()
        deadline = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("%s did not stop yet; it ends with its own time limit", thread.name)
        if not self._threads:  # never started: nobody else closes them
            for member in self._members:
                member.source.close()


class TurnsChannel(Channel[Frame]):
    """The queues of a group, as the first stage's channel."""

    def __init__(self, group: StreamGroup) -> None:
        super().__init__("streams", 1)
        self._group = group

    def put(self, item: Frame) -> None:
        raise NotImplementedError("the group's own threads fill its queues")

    def get(self) -> Frame | End:
        if self._hung_up:
            raise ChannelClosed(self.name)
        frame = self._group.take()
        if self._hung_up:
            raise ChannelClosed(self.name)
        return END if frame is None else frame

    def take_waiting(self, limit: int) -> list[Frame]:
        if self._hung_up:
            raise ChannelClosed(self.name)
        return self._group.take_waiting(limit)

    def hang_up(self) -> None:
        super().hang_up()
        self._group.stop()

    def stats(self) -> ChannelStats:
        return self._group.channel_stats()
