"""A sink that never gives up: a connection that breaks or cannot be made is made again, after growing waits.

    connecting -> connected -> waiting -> connecting ...

While there is no connection, frames are left out and counted (``not connected``), so nothing waits for a dead target
and nothing old is sent when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from pipeline.backoff import Backoff
from pipeline.live.outputs import NotTaken
from pipeline.messages import FrameResult
from pipeline.publish.target import Target

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0  # to make a connection
SEND_S: Final = 5.0  # to get rid of one frame; longer means that the other side takes nothing any more
MAX_SAID: Final = 300


class Link(Protocol):
    """An open connection."""

    def send(self, result: FrameResult) -> None:
        """Send one frame within `SEND_S`.

        Raises:
            Exception: the connection is of no more use.
        """

    def close(self) -> None:
        """Say goodbye where that is quick, and free everything; never raises."""


class ReconnectingSink:
    """Frames to a target, over one `Link` after the other."""

    def __init__(
        self,
        target: Target,
        connect: Callable[[FrameResult], Link],
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet: the first frame connects.

        Args:
            target: for messages, and to keep its secrets out of them.
            connect: makes a connection for the frames from this one on within some seconds, or raises.
            backoff: between tries.
            clock: monotonic, s.
        """
        self.name = target.name
        self.connects = 0
        self._target = target
        self._connect = connect
        self._backoff = backoff if backoff is not None else Backoff()
        self._clock = clock
        self._link: Link | None = None
        self._next_try_s = 0.0
        self._connected_s = 0.0
        self._said = ""
        self._stopped = threading.Event()

    @property
    def away(self) -> bool:
        """There is no connection; frames that give way meanwhile were not lost to slowness."""
        return self._link is None

    def write(self, result: FrameResult) -> None:
        """Send one frame, connecting first where there is no connection and its time has come.

        Raises:
            NotTaken: it was not sent.
        """
        link = self._link
        if link is None:
            if self._clock() < self._next_try_s or self._stopped.is_set():
                raise NotTaken("not connected", self.name)
            link = self._open(result)
        try:
            link.send(result)
        except Exception as error:
            self._lost(error)
            raise NotTaken("connection lost", self.name) from None

    def stop(self) -> None:
        """The run ends: frames that wait are still sent, and nobody waits for a connection."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _open(self, result: FrameResult) -> Link:
        try:
            link = self._connect(result)
        except Exception as error:
            self._wait(error, worked_s=0.0, what="cannot connect")
            raise NotTaken("not connected", self.name) from None
        self._link, self._connected_s = link, self._clock()
        self.connects += 1
        self._said = ""
        log.info("%s: connected%s", self.name, " again" if self.connects > 1 else "")
        return link

    def _lost(self, error: Exception) -> None:
        worked_s = self._clock() - self._connected_s
        self.close()
        self._wait(error, worked_s=worked_s, what="connection lost")

    def _wait(self, error: Exception, *, worked_s: float, what: str) -> None:
        wait_s = self._backoff.next_s(worked_s=worked_s)
        self._next_try_s = self._clock() + wait_s
        text = self._target.hidden_in(str(error).strip() or type(error).__name__)
        said = "".join(sign if sign.isprintable() else " " for sign in text)[:MAX_SAID]
        level = logging.DEBUG if said == self._said else logging.WARNING  # the same trouble is told once
        log.log(level, "%s: %s (%s): next try in %.1f s", self.name, what, said, wait_s)
        self._said = said
