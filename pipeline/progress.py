"""What a person sees of a run: a live bar on a terminal, a plain line now and then elsewhere, one table at the end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from engines import Announce, announce_in_log
from pipeline.messages import FrameResult
from pipeline.metrics import StageStats
from pipeline.runtime import Pipeline

log = logging.getLogger(__name__)

RECENT_S = 3.0
BAR_REFRESH_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals:
    """Figures of a whole run.

    Attributes:
        frames: results that came out.
        people_mean: people per frame.
        seconds: from the start to the last result.
        startup_s: from the start to the first result: compiled code is loaded, the first frame passes all stages.
        fps: frames a second, from the moment the first frame was decoded to the last result.
        dropped: frames of a live source that newer ones replaced.
        lost: frames that the source should have had but that could not be decoded.
        stages: figures of each stage, in flow order.
    """

    frames: int
    people_mean: float
    seconds: float
    startup_s: float
    fps: float
    dropped: int
    lost: int
    stages: tuple[StageStats, ...]


class RunCounter:
    """Counts results as they come."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._started = time.monotonic()
        self._first = self._last = self._first_decoded = self._started
        self._recent: deque[float] = deque()
        self.frames = 0
        self.people_now = 0
        self._people = 0

    def count(self, result: FrameResult) -> None:
        """Take one result into account."""
        self._last = time.monotonic()
        if not self.frames:
            self._first = self._last
            self._first_decoded = result.frame.captured_s
        self.frames += 1
        self.people_now = len(result.people)
        self._people += self.people_now
        self._recent.append(self._last)
        while self._recent[0] < self._last - RECENT_S:
            self._recent.popleft()

    @property
    def recent_fps(self) -> float:
        """Frames a second lately; 0 before the second frame."""
        span = self._recent[-1] - self._recent[0] if self._recent else 0.0
        return (len(self._recent) - 1) / span if span > 0 else 0.0

    def totals(self) -> RunTotals:
        """Everything so far."""
        span = self._last - self._first_decoded
        return RunTotals(
            frames=self.frames,
            people_mean=self._people / self.frames if self.frames else 0.0,
            seconds=self._last - self._started,
            startup_s=self._first - self._started,
            fps=self.frames / span if span > 0 else 0.0,
            dropped=self._pipeline.frames_dropped,
            lost=self._pipeline.source.frames_lost,
            stages=tuple(self._pipeline.stats()),
        )


class TerminalProgress:
    """Two live lines: frames, FPS, people, time left; and the time that each stage takes."""

    def __init__(self, console: Console, counter: RunCounter, total: int | None) -> None:
        self._counter = counter
        self._next = 0.0
        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[fps]:5.1f} FPS"),
            TextColumn("{task.fields[people]} people"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("frames", total=total, fps=0.0, people=0)
        self._stages = Text("", style="dim", no_wrap=True)
        self._live = Live(Group(self._bar, self._stages), console=console, transient=True)
        self._live.start()

    def update(self) -> None:
        """Show the newest figures, a few times a second at most."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + BAR_REFRESH_S
        self._bar.update(
            self._task,
            completed=self._counter.frames,
            fps=self._counter.recent_fps,
            people=self._counter.people_now,
        )
        stages = [f"{stage.name} {stage.p50_ms:.0f}" for stage in self._counter.totals().stages]
        self._stages.plain = "ms per frame: " + "  ".join(stages)

    def close(self) -> None:
        """Take the bar away."""
        self._live.stop()


class PlainProgress:
    """One ``key=value`` log line every few seconds: for logs and pipes."""

    def __init__(self, counter: RunCounter, total: int | None, every_s: float) -> None:
        self._counter = counter
        self._total = total
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def update(self) -> None:
        """Write a line if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            log.info("%s", progress_line(self._counter, self._total))

    def close(self) -> None:
        """Nothing to take away."""


def progress_line(counter: RunCounter, total: int | None) -> str:
    """All live figures as ``key=value``."""
    totals = counter.totals()
    parts = [
        f"frame={totals.frames}" + (f"/{total}" if total is not None else ""),
        f"fps={counter.recent_fps:.1f}",
        f"people={counter.people_now}",
        f"dropped={totals.dropped}",
        f"lost={totals.lost}",
    ]
    for stage in totals.stages:
        waiting = f",{stage.input.held}waiting" if stage.input is not None else ""
        parts.append(f"{stage.name}_ms={stage.p50_ms:.1f}/{stage.p95_ms:.1f}{waiting}")
    return " ".join(parts)


def summary_table(name: str, totals: RunTotals) -> Table:
    """The table at the end: what came out, and where the time went."""
    dropped = f", {totals.dropped} dropped" if totals.dropped else ""
    lost = f", {totals.lost} lost" if totals.lost else ""
    table = Table(
        # Text, because a file name may hold what Rich takes for markup
        title=Text(
            f"{name}\n{totals.frames} frames{dropped}{lost}, {totals.people_mean:.2f} people per frame, "
            f"{totals.fps:.1f} FPS"
        ),
        caption=f"{totals.seconds:.1f} s in all, the first result after {totals.startup_s:.1f} s; "
        "stages run at the same time, so their shares add up to more than 100 %",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("stage")
    for heading in ("frames", "p50 ms", "p95 ms", "busy", "waits for input", "dropped"):
        table.add_column(heading, justify="right")
    for stage in totals.stages:
        share = stage.busy_s / totals.seconds if totals.seconds > 0 else 0.0
        waits = f"{stage.input.reader_wait_s:.1f} s" if stage.input is not None else "-"
        table.add_row(
            stage.name,
            str(stage.frames),
            f"{stage.p50_ms:.1f}",
            f"{stage.p95_ms:.1f}",
            f"{share:.0%}",
            waits,
            str(stage.input.dropped) if stage.input is not None else "-",
        )
    return table


def announce_on(console: Console) -> Announce:
    """Shows that something takes long, such as building a plan: a bar on a terminal, plain log lines elsewhere."""
    if not console.is_terminal:
        return announce_in_log

    @contextlib.contextmanager
    def bar(text: str) -> Iterator[Callable[[float, str], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escape(text), total=None)  # runs to and fro until the share is known
            yield lambda share, _phase: progress.update(task, total=1.0, completed=share)

    return bar
