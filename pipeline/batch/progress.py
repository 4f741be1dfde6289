"""What a person sees of a batch: a live table on a terminal, plain lines elsewhere; it outlives both."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

REFRESH_S: Final = 0.5
_RECENT_S: Final = 10.0


class PatientConsole(Console):
    """Says that nobody reads any more; Rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads any more")


class Speed:
    """Frames a second lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, frames: int) -> None:
        """So many frames are done by now."""
        now = self._clock()
        self._seen.append((now, frames))
        while self._seen[0][0] < now - _RECENT_S and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def fps(self) -> float:
        """0 before the second note."""
        if len(self._seen) < 2:
            return 0.0
        (before_s, before), (now_s, now) = self._seen[0], self._seen[-1]
        return (now - before) / (now_s - before_s) if now_s > before_s else 0.0


@dataclass(slots=True, kw_only=True)
class ActiveFile:
    """An input in work."""

    name: str
    frames: int = 0
    people: int = 0
    total: int | None = None
    speed: Speed = field(default_factory=Speed)


@dataclass(slots=True, kw_only=True)
class BatchFigures:
    """The whole batch at one moment.

    Attributes:
        active: path -> input in work.
        files: inputs of the batch.
        done: finished ones, those of runs before included.
        failed: ones that failed, likewise.
        frames: of this run, by all workers.
        frames_left: None while somebody's length is not known.
    """

    files: int
    active: dict[str, ActiveFile] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    frames: int = 0
    frames_left: int | None = None
    speed: Speed = field(default_factory=Speed)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end; None where nobody knows."""
        fps = self.speed.fps
        return self.frames_left / fps if self.frames_left is not None and fps > 0 else None


class BatchDisplay:
    """Shows figures now and then. A terminal that is closed, or a pipe whose reader is gone, ends the showing only."""

    def __init__(self, console: Console, every_s: float) -> None:
        self._console = console
        self._every_s = REFRESH_S if console.is_terminal else every_s
        self._next = 0.0 if console.is_terminal else time.monotonic() + every_s
        self._live: Live | None = None
        self._gone = False

    def update(self, figures: BatchFigures) -> None:
        """Show the figures if it is time."""
        now = time.monotonic()
        if self._gone or now < self._next:
            return
        self._next = now + self._every_s
        try:
            if not self._console.is_terminal:
                log.info("%s", batch_line(figures))
                return
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(batch_table(figures), refresh=True)
        except (OSError, ValueError):
            self._gone = True

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            try:
                self._live.stop()
            except (OSError, ValueError):
                self._gone = True


def batch_table(figures: BatchFigures) -> Table:
    """One row per input in work, and the totals below."""
    eta = duration(figures.eta_s)
    table = Table(
        caption=Text(
            f"{figures.done} of {figures.files} files done, {figures.failed} failed, {figures.frames} frames, "
            f"{figures.speed.fps:.1f} FPS, {eta} left"
        ),
        caption_justify="left",
        expand=True,
    )
    table.add_column("file", overflow="ellipsis", no_wrap=True, ratio=1)
    for heading in ("frames", "FPS", "left", "people"):
        table.add_column(heading, justify="right", no_wrap=True)
    for active in figures.active.values():
        fps = active.speed.fps
        left_s = (active.total - active.frames) / fps if active.total is not None and fps > 0 else None
        table.add_row(
            Text(active.name),  # a name may hold what Rich takes for markup
            f"{active.frames}/{active.total if active.total is not None else '?'}",
            f"{fps:.1f}",
            duration(left_s),
            f"{active.people / active.frames:.1f}" if active.frames else "-",
        )
    return table


def batch_line(figures: BatchFigures) -> str:
    """The totals as ``key=value``."""
    return (
        f"files={figures.done}/{figures.files} failed={figures.failed} active={len(figures.active)} "
        f"frames={figures.frames} fps={figures.speed.fps:.1f} left={duration(figures.eta_s).replace(' ', '')}"
    )


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``3 min 20 s``, ``12 s``; ``?`` where it is not known."""
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def say(console: Console, content: Table | Text) -> None:
    """Print, unless nobody is there to read any more; then whatever is still written goes nowhere."""
    try:
        console.print(content)
        console.file.flush()
    except (OSError, ValueError):
        silence()


def silence(streams: Mapping[str, int] | None = None) -> None:
    """Point standard output and error to nowhere, so that the end of the process does not fail on a broken pipe."""
    numbers = {"stdout": 1, "stderr": 2} if streams is None else streams
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for name, number in numbers.items():
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            os.dup2(nowhere, number)
    os.close(nowhere)
