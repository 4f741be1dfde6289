"""What the parts of a pipeline look like to the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from pipeline.channel import Channel
from pipeline.messages import Frame, FrameResult

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Source(Protocol):
    """Where frames come from. `frames` runs on the decode thread; the other members may be read from any thread."""

    @property
    def name(self) -> str:
        """What is read, for people; never holds a password."""

    @property
    def live(self) -> bool:
        """True: the world does not wait, so a slow pipeline drops frames. False: every frame is processed."""

    @property
    def still_images(self) -> bool:
        """True: pictures that have nothing to do with each other."""

    @property
    def frame_total(self) -> int | None:
        """How many frames are expected, None when nobody knows."""

    @property
    def frames_lost(self) -> int:
        """Frames (or pictures) so far that the source should have had but that could not be decoded."""

    def frames(self) -> Iterator[Frame]:
        """Decode until the end or until `stop`.

        Raises:
            SourceError: it cannot be read, or not one frame of it could be decoded.
        """

    def stop(self) -> None:
        """Ask `frames` to end soon; callable from any thread and from signal handlers."""

    def close(self) -> None:
        """Free files and devices; called on the decode thread after `frames` ended."""


@runtime_checkable
class QueueingSource(Protocol):
    """A source with queues of its own, which the first stage reads directly."""

    @property
    def channel(self) -> Channel[Frame]: ...

    def fill(self) -> None:
        """Fill the queues until the end or until `Source.stop`; runs on the decode thread.

        Raises:
            SourceError: as `Source.frames`.
        """


class Stage(Protocol[In, Out]):
    """One step from message to message. All three methods run on the stage's own thread."""

    @property
    def name(self) -> str: ...

    def open(self) -> None:
        """Pay all first-time costs."""

    def process(self, item: In) -> Out: ...

    def close(self) -> None:
        """Free what `open` took; called exactly once, also after a failure."""


@runtime_checkable
class BatchStage(Protocol[In, Out]):
    """A stage that also takes several messages at once, those that wait anyway: nobody waits for a batch to fill."""

    @property
    def batch_limit(self) -> int:
        """How many messages one call of `process_batch` should get at most; read after `open`."""

    def process_batch(self, items: Sequence[In]) -> Sequence[Out]:
        """One result per message, in order; the same as `process` of each."""


@runtime_checkable
class HoldingStage(Protocol[In, Out]):
    """A stage that may give the result of a message later, when others have come; it never waits for them."""

    def process_held(self, item: In) -> Sequence[Out]:
        """What is due with this message, in the order of messages: nothing, one or several."""

    def rest(self) -> Sequence[Out]:
        """What is still held, when no other message comes."""


class Sink(Protocol):
    """Where results go."""

    def check(self) -> None:
        """Refuse early, before any work is done and without leaving anything behind.

        Raises:
            SinkError: the output exists, or its folder is missing or not writable.
        """

    def write(self, result: FrameResult) -> None:
        """Take one frame. What was written before stays readable whatever happens now.

        Raises:
            SinkError: the output cannot be written.
        """

    def close(self) -> None:
        """Finish the output; called exactly once, also after a failure and when nothing was written.

        Raises:
            SinkError: the end could not be written.
        """
