"""A source that never gives up: it opens, watches and opens again, for as long as the run lasts.

Each connection is read on a thread of its own, so that a library that hangs holds up nobody: silence is noticed by a
clock, the connection is left behind, and its thread closes it whenever the library returns.

    connecting -> live <-> stalled -> reconnecting -> live ...       ended: stopped, or a file that is over

Times: `Frame.captured_s` is the monotonic clock when the picture was decoded; the wall clock is not used. `Frame.pts`
keeps the distances of the stream's own times and rises for ever: after a reconnect it goes on by the time that passed,
so `Frame.clip` stays 0, a person who is back within the tracker's memory keeps the id, and no id is given twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, Protocol

from pipeline.backoff import BACKOFF_S, Backoff
from pipeline.errors import SourceError
from pipeline.messages import Frame
from pipeline.redaction import redact
from pipeline.video_input import Picture

log = logging.getLogger(__name__)

STALLED_AFTER_S: Final = (
    2.0  # without a frame a source is shown as stalled; `stall_timeout_s` is what ends a connection
)
MAX_LEFT_BEHIND: Final = (
    3  # connections whose library does not return; no further one is opened before one of them ends
)
TIME_BASE: Final = Fraction(1, 90_000)  # of RTP and MPEG-TS, and a multiple of the usual frame rates
JUMP_S: Final = 5.0  # stream times that run ahead of the clock by more are a jump of the sender's clock
RECENT_S: Final = 3.0
POLL_S: Final = 0.25
OPEN_TIMEOUT_S: Final = 10.0  # to the first frame; finding out what a stream is takes a second or two of it


class SourceState(StrEnum):
    """Where a source is in its life."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALLED = "stalled"
    RECONNECTING = "reconnecting"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """One source at one moment.

    Attributes:
        name: of the source, without passwords.
        state: see `SourceState`.
        width, height: of the newest picture, px; 0 before the first.
        frames: decoded so far.
        fps: frames a second in the last seconds.
        age_s: since the newest frame; None before the first.
        connects: how often it was opened successfully.
        reconnects: how often a connection was given up, by reason.
        dropped: frames and packets that were lost here, by reason.
        size_changes: of the picture.
        time_jumps: of the stream's own clock.
        trouble: the last thing that went wrong.
        next_try_s: seconds until it is opened again; None when it is not waiting for that.
    """

    name: str
    state: SourceState
    width: int
    height: int
    frames: int
    fps: float
    age_s: float | None
    connects: int
    reconnects: dict[str, int]
    dropped: dict[str, int]
    size_changes: int
    time_jumps: int
    trouble: str
    next_try_s: float | None


class LiveInput(Protocol):
    """An open connection, as `pipeline.video_input.VideoInput` is one."""

    @property
    def endless(self) -> bool:
        """False: when its pictures end, the source is over."""

    @property
    def packets_broken(self) -> int:
        """Packets so far that could not be decoded."""

    def pictures(self, given_up: Callable[[], bool]) -> Iterator[Picture]:
        """Pictures as they come; ends soon after ``given_up`` says so."""

    def close(self) -> None: ...


Opener = Callable[[], LiveInput]
Clock = Callable[[], float]


class Timeline:
    """Puts the times of one connection after the other on one line that always rises, in units of `TIME_BASE`."""

    def __init__(self) -> None:
        self.jumps = 0
        self._offset = Fraction(0)
        self._last = 0
        self._last_given: Fraction | None = None
        self._last_now_s = 0.0

    def place(self, given_s: Fraction, now_s: float, *, new_connection: bool) -> int:
        """Time of a frame.

        Args:
            given_s: the stream's own time, s.
            now_s: monotonic clock, s.
            new_connection: it is the first frame of one.
        """
        if self._last_given is None:
            self._last = round(given_s / TIME_BASE)
        else:
            elapsed = Fraction(max(now_s - self._last_now_s, 0.0))
            step = given_s - self._last_given
            goes_on = abs(step - elapsed) < 1 if new_connection else -1 <= step <= elapsed + Fraction(JUMP_S)
            if not goes_on:
                self.jumps += not new_connection
                self._offset = self._last * TIME_BASE + elapsed - given_s
            self._last = max(round((given_s + self._offset) / TIME_BASE), self._last + 1)
        self._last_given, self._last_now_s = given_s, now_s
        return self._last


class _Connection:
    """One opened stream and its reader thread. The newest picture waits; older ones give way unless ``lossless``."""

    def __init__(self, opener: Opener, name: str, *, lossless: bool, clock: Clock) -> None:
        self._opener = opener
        self._lossless = lossless
        self._clock = clock
        self._condition = threading.Condition()
        self._waiting: deque[tuple[float, Picture]] = deque()
        self._input: LiveInput | None = None
        self._given_up = False
        self.opened = False
        self.ended = False
        self.endless = True
        self.error: Exception | None = None
        self.replaced = 0
        self.thread = threading.Thread(target=self._read, name=f"connection to {name}", daemon=True)
        self.thread.start()

    def take(self, timeout_s: float) -> tuple[float, Picture] | None:
        """The next picture and when it was decoded; None when the time is up, or nothing more comes."""
        with self._condition:
            self._condition.wait_for(lambda: bool(self._waiting) or self.ended or self._given_up, timeout_s)
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            self._condition.notify_all()
            return taken

    def give_up(self) -> None:
        """Leave it; the thread closes what it opened as soon as it can."""
        with self._condition:
            self._given_up = True
            self._condition.notify_all()

    @property
    def over(self) -> bool:
        """Nothing waits and nothing more comes."""
        with self._condition:
            return self.ended and not self._waiting

    @property
    def packets_broken(self) -> int:
        return 0 if self._input is None else self._input.packets_broken

    def _read(self) -> None:
        try:
            opened = self._opener()
            self._input = opened
            try:
                self.endless = opened.endless
                self.opened = True
                if not self._given_up:
                    for picture in opened.pictures(lambda: self._given_up):
                        self._put((self._clock(), picture))
            finally:
                opened.close()
        except Exception as error:
            self.error = error
        finally:
            with self._condition:
                self.ended = True
                self._condition.notify_all()

    def _put(self, item: tuple[float, Picture]) -> None:
        with self._condition:
            if self._lossless:
                self._condition.wait_for(lambda: not self._waiting or self._given_up)
            else:
                self.replaced += len(self._waiting)
                self._waiting.clear()
            self._waiting.append(item)
            self._condition.notify_all()


class LiveSource:
    """See the module. It ends when it is stopped or a finite stream is over; without ``reconnect`` at the first end."""

    still_images = False
    frame_total = None

    def __init__(
        self,
        name: str,
        opener: Opener,
        *,
        stall_timeout_s: float = 10.0,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        reconnect: bool = True,
        lossless: bool = False,
        backoff: Backoff | None = None,
        clock: Clock = time.monotonic,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            name: for people, without passwords.
            opener: opens the stream; may block, fail and hang.
            stall_timeout_s: a connection that gives no frame for so long is given up.
            open_timeout_s: the same until the first frame, where this is longer.
            reconnect: open again, for ever; otherwise the first end is the end.
            lossless: a slow pipeline holds the stream up instead of dropping frames.
            backoff: between tries.
            clock: monotonic, s.
            wait: sleeps between tries; by default until the time is up or the source is stopped.
        """
        self.name = redact(name)
        self.live = not lossless
        self._opener = opener
        self._stall_timeout_s = stall_timeout_s
        self._open_timeout_s = max(open_timeout_s, stall_timeout_s)
        self._reconnect = reconnect
        self._backoff = backoff if backoff is not None else Backoff()
        self._clock = clock
        self._stop = threading.Event()
        self._wait = wait if wait is not None else self._wait_for_stop
        self._connection: _Connection | None = None
        self._left_behind: list[threading.Thread] = []
        self._timeline = Timeline()
        self._lock = threading.Lock()
        self._state = SourceState.CONNECTING
        self._frames = self._connects = self._size_changes = 0
        self._size = (0, 0)
        self._index = -1
        self._index_offset = 0
        self._newest_s: float | None = None
        self._recent: deque[float] = deque()
        self._reconnects: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._trouble = ""
        self._next_try_s: float | None = None

    @property
    def frames_lost(self) -> int:
        """Packets that could not be decoded."""
        return self.report().dropped.get("broken packet", 0)

    def report(self) -> SourceReport:
        """State and counters; callable from any thread."""
        now = self._clock()
        with self._lock:
            dropped = self._dropped + self._losses_of(self._connection)
            age_s = None if self._newest_s is None else max(now - self._newest_s, 0.0)
            state = self._state
            if state is SourceState.LIVE and age_s is not None and age_s > self._stalled_after_s:
                state = SourceState.STALLED
            recent = [at for at in self._recent if at > now - RECENT_S]
            span = recent[-1] - recent[0] if recent else 0.0
            return SourceReport(
                name=self.name,
                state=state,
                width=self._size[1],
                height=self._size[0],
                frames=self._frames,
                fps=(len(recent) - 1) / span if span > 0 else 0.0,
                age_s=age_s,
                connects=self._connects,
                reconnects=dict(self._reconnects),
                dropped=dict(dropped),
                size_changes=self._size_changes,
                time_jumps=self._timeline.jumps,
                trouble=self._trouble,
                next_try_s=None if self._next_try_s is None else max(self._next_try_s - now, 0.0),
            )

    def frames(self) -> Iterator[Frame]:
        """Frames of one connection after the other.

        Raises:
            SourceError: the stream ended or failed, and it is not to be opened again.
        """
        try:
            while not self._stop.is_set():
                started = self._clock()
                reason, trouble = yield from self._connected()
                if self._stop.is_set() or not reason:
                    return
                worked_s = max(self._newest_s - started, 0.0) if self._newest_s is not None else 0.0
                with self._lock:
                    self._trouble = trouble
                    self._reconnects[reason] += 1
                if not self._reconnect:
                    raise SourceError(f"{self.name}: {reason}: {trouble}")
                delay_s = self._backoff.next_s(worked_s=worked_s)
                with self._lock:
                    self._state = SourceState.RECONNECTING
                    self._next_try_s = self._clock() + delay_s
                log.warning("%s: %s: next try in %.1f s", self.name, trouble, delay_s)
                self._wait(delay_s)
                while len(self._hanging()) >= MAX_LEFT_BEHIND and not self._stop.is_set():
                    with self._lock:
                        self._trouble = f"{MAX_LEFT_BEHIND} earlier connections hang"
                    self._wait(BACKOFF_S[2])
                with self._lock:
                    self._next_try_s = None
        finally:
            self._leave()
            with self._lock:
                self._state = SourceState.ENDED
                self._next_try_s = None

    def stop(self) -> None:
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.give_up()

    def close(self) -> None:
        self.stop()

    def _connected(self) -> Generator[Frame, None, tuple[str, str]]:
        """Frames of one connection. Returns why it ended, and what was said; an empty reason at a proper end."""
        connection = _Connection(self._opener, self.name, lossless=not self.live, clock=self._clock)
        with self._lock:
            self._connection = connection
        first = True
        last_s = self._clock()
        while not self._stop.is_set():
            limit_s = self._open_timeout_s if first else self._stall_timeout_s
            taken = connection.take(min(POLL_S, max(limit_s - (self._clock() - last_s), 0.0)))
            if taken is not None:
                last_s = self._clock()
                yield self._frame(*taken, new_connection=first)
                last_s = max(last_s, self._clock()) if not self.live else last_s
                first = False
            elif connection.over:
                return self._ending(connection)
            elif self._clock() - last_s >= limit_s:
                said = f"no frame for {limit_s:g} s"
                reason = "stalled" if not first else "no frame" if connection.opened else "no answer"
                self._leave()
                return reason, said
        return "", ""

    def _ending(self, connection: _Connection) -> tuple[str, str]:
        error = connection.error
        self._leave()
        if error is None:
            return ("", "") if not connection.endless else ("closed", "the stream ended")
        said = redact(str(error) or type(error).__name__).removeprefix(f"{self.name}: ")
        return ("failed" if connection.opened else "cannot open"), said

    def _frame(self, captured_s: float, picture: Picture, *, new_connection: bool) -> Frame:
        height, width = int(picture.pixels.shape[0]), int(picture.pixels.shape[1])
        with self._lock:
            if new_connection:
                self._connects += 1
                again = self._connects > 1
                self._state = SourceState.LIVE
                log.info("%s: live%s, %d x %d", self.name, " again" if again else "", width, height)
            if self._size not in {(0, 0), (height, width)}:
                self._size_changes += 1
                log.info("%s: pictures of %d x %d from now on", self.name, width, height)
            self._size = (height, width)
            if new_connection:
                self._index_offset = self._index + 1
            self._index = self._index_offset + picture.index
            self._frames += 1
            self._newest_s = captured_s
            self._recent.append(captured_s)
            while self._recent[0] < captured_s - RECENT_S:
                self._recent.popleft()
            jumps = self._timeline.jumps
            pts = self._timeline.place(picture.pts * picture.time_base, captured_s, new_connection=new_connection)
            if self._timeline.jumps > jumps:
                log.info("%s: the stream's clock jumped", self.name)
        return Frame(
            index=self._index,
            source=self.name,
            clip=0,
            pts=pts,
            time_base=TIME_BASE,
            captured_s=captured_s,
            pixels=picture.pixels,
        )

    def _leave(self) -> None:
        """Give the connection up and keep its counters."""
        connection = self._connection
        if connection is None:
            return
        connection.give_up()
        with self._lock:
            self._dropped += self._losses_of(connection)
            self._connection = None
        self._left_behind.append(connection.thread)

    def _hanging(self) -> list[threading.Thread]:
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        return self._left_behind

    @staticmethod
    def _losses_of(connection: _Connection | None) -> Counter[str]:
        """Nothing where nothing was lost: a Counter's sum drops what is 0."""
        if connection is None:
            return Counter()
        return Counter({"broken packet": connection.packets_broken, "newer frame": connection.replaced})

    @property
    def _stalled_after_s(self) -> float:
        return min(STALLED_AFTER_S, self._stall_timeout_s / 2)

    def _wait_for_stop(self, seconds: float) -> None:
        self._stop.wait(seconds)
