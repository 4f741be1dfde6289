"""What of a batch is done when and by whom, and what became of each input."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from engines import EngineLoadError
from pipeline.batch.crew import Crew, Died, Link
from pipeline.batch.file import FileOptions, outputs_are_there
from pipeline.batch.orders import DetectOrder, FileOrder, Order, ScoutOrder
from pipeline.batch.plan import BatchInput
from pipeline.batch.probe import probe
from pipeline.batch.progress import ActiveFile, BatchDisplay, BatchFigures
from pipeline.batch.split import Split, SplitFile
from pipeline.batch.state import FileState, JobFolder
from pipeline.batch.storage import unstage, version_of
from pipeline.errors import EXIT_ENGINE, PipelineError, SinkError

log = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_DEATHS_AT_START: Final = 3
_NOBODY_S: Final = 120.0
"""So long nobody is there to work before a batch gives up; a node of a cluster may take its time to come."""
_AHEAD: Final = 4  # segments per worker that may lie detected before the pass in order


@dataclass(slots=True, eq=False)
class _Worker:
    link: Link
    ready: bool = False
    order: Order | None = None
    frames: int | None = None  # of the order in work, as told last
    counted: int = 0  # of these, in the figures


class Batch:
    """Inputs, the workers that process them, and what became of each."""

    def __init__(
        self,
        job: JobFolder,
        inputs: Sequence[BatchInput],
        options: FileOptions,
        *,
        crew: Crew,
        workers: int,
        split: Split = "never",
    ) -> None:
        """Take everything over; nothing starts yet.

        Args:
            job: where states are.
            inputs: all of them.
            options: what to do with each.
            crew: who works.
            workers: how many at most.
            split: whether several workers share a file; ``auto``: those do who would have nothing to do.
        """
        self.job = job
        self.inputs = list(inputs)
        self.states: dict[str, FileState] = {}
        self.interrupted = False
        self._options = options
        self._crew = crew
        self._count = workers
        self._split: Split = split
        self._splits: dict[str, SplitFile] = {}
        self._pending: deque[BatchInput] = deque()
        self._again: deque[Order] = deque()
        self._workers: list[_Worker] = []
        self._deaths: dict[tuple[str, str], int] = {}
        self._deaths_at_start = 0
        self._somebody_s = time.monotonic()
        self._lengths: dict[str, int | None] = {}
        self._signals = 0
        self._stop_told = False
        self.figures = BatchFigures(files=len(inputs))

    def prepare(self, *, overwrite: bool, retry_failed: bool) -> None:
        """Find out what is left to do."""
        if overwrite:
            for item in self.inputs:
                self.job.forget(item.key)
        self._pending.extend(self.left_to_do(retry_failed=retry_failed))
        for item in self.inputs:
            state = self.states.get(item.path)
            if state is not None and state.status == "done":
                self.job.remove_parts(item.key)  # a worker may have been killed before it could

    def left_to_do(self, *, retry_failed: bool) -> list[BatchInput]:
        """Inputs that no run before has settled; the others are noted with their results."""
        left = []
        for item in self.inputs:
            state = self.job.load(item.key)
            if state is not None and self._is_settled(item, state, retry_failed=retry_failed):
                self._settle(item, state)
            else:
                left.append(item)
        return left

    def request_stop(self) -> None:
        """The first one lets workers leave their segment, the second one ends them; callable from signal handlers."""
        self._signals += 1
        self.interrupted = True

    def run(self, display: BatchDisplay) -> None:
        """Process everything that is left.

        Raises:
            PipelineError, EngineError: no worker can work.
        """
        threading.Thread(target=self._probe, args=(list(self._pending),), daemon=True).start()
        self._somebody_s = time.monotonic()
        try:
            while True:
                self._follow_signals()
                self._give_work()
                if not self._is_busy():
                    break
                for link, message in self._crew.listen(_POLL_S):
                    self._hear(link, message)
                self._require_somebody()
                self._update_figures()
                display.update(self.figures)
        finally:
            display.close()
            for worker in self._workers:
                if worker.order is not None:
                    worker.link.kill()
            self._crew.end()
            self._workers.clear()

    def _is_busy(self) -> bool:
        if any(worker.order is not None for worker in self._workers):
            return True
        return not self.interrupted and bool(self._pending or self._again or self._splits)

    def _require_somebody(self) -> None:
        now = time.monotonic()
        if not self._crew.patient or any(worker.ready for worker in self._workers):
            self._somebody_s = now
        elif now - self._somebody_s > _NOBODY_S:
            raise PipelineError(
                f"no worker came within {_NOBODY_S:.0f} s: the cluster has no room for one; see what it has with "
                "`ray status`, or ask for less with --threads"
            )

    def _is_settled(self, item: BatchInput, state: FileState, *, retry_failed: bool) -> bool:
        try:
            same = state.is_of(version_of(item))
        except OSError:
            same = state.size < 0
        if state.status == "failed":
            return same and not retry_failed
        return state.status == "done" and same and outputs_are_there(item, self.job.out, state, self._options)

    def _settle(self, item: BatchInput, state: FileState) -> None:
        self.states[item.path] = state
        unstage(item, self.job)
        self._splits.pop(item.path, None)
        self.figures.active.pop(item.path, None)
        if state.status == "failed":
            self.figures.failed += 1
        else:
            self.figures.done += 1

    def _give_work(self) -> None:
        idle = [worker for worker in self._workers if worker.order is None and (worker.ready or not self._crew.patient)]
        while not self.interrupted:
            if not idle:
                if len(self._workers) >= self._count or not (self._pending or self._again or self._splits):
                    return
                worker = _Worker(self._crew.start())
                self._workers.append(worker)
                if self._crew.patient:
                    continue
                idle.append(worker)
            order = self._next_order()
            if order is None:
                return
            worker = idle.pop()
            worker.order, worker.frames, worker.counted = order, None, 0
            item = order.item
            if item.path not in self.figures.active:
                self.figures.active[item.path] = ActiveFile(name=item.name, total=self._lengths.get(item.path))
            worker.link.send("order", order)

    def _next_order(self) -> Order | None:
        """What is lost first, then files that several share, then the next file."""
        while self._again:
            order = self._again.popleft()
            if order.item.path not in self.states:
                return order
        for split in self._splits.values():
            piece = split.take()
            if piece is not None:
                return piece
        if not self._pending:
            return None
        item = self._pending.popleft()
        if not self._shares():
            return FileOrder(item=item)
        self._splits[item.path] = SplitFile(item=item, ahead=max(_AHEAD * self._count, 2 * _AHEAD))
        return ScoutOrder(item=item)

    def _shares(self) -> bool:
        """Whether the file that is next is shared: workers would be left with nothing to do."""
        if self._split == "auto":
            in_hand = sum(isinstance(worker.order, FileOrder) for worker in self._workers)
            return in_hand + len(self._pending) + 1 < self._count
        return self._split == "always"

    def _hear(self, link: Link, message: tuple[Any, ...] | Died) -> None:
        worker = next((worker for worker in self._workers if worker.link is link), None)
        if worker is None:
            return
        if isinstance(message, Died):
            self._bury(worker, message)
        else:
            self._take(worker, message)

    def _take(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        kind, order = message[0], worker.order
        item = order.item if order is not None else None
        if kind == "ready":
            worker.ready = True
            self._deaths_at_start = 0
        elif kind == "fatal":
            code, text = message[1:]
            raise EngineLoadError(text) if code == EXIT_ENGINE else PipelineError(text)
        elif kind == "log":
            log.log(message[1], "%s", f"{item.name}: {message[2]}" if item is not None else message[2])
        elif order is None or item is None:
            return
        elif kind == "progress":
            self._note_progress(worker, order, message[1])
        elif kind == "border":
            split = self._splits.get(item.path)
            if split is not None:
                split.border(message[1], message[2])
                active = self.figures.active.get(item.path)
                if active is not None and message[2] is not None and not active.frames:
                    active.frames = message[2]["index"] if message[1] == split.next else 0
        else:
            worker.order = None
            self._take_end(order, kind, message[1:])

    def _take_end(self, order: Order, kind: str, rest: tuple[Any, ...]) -> None:
        item, split = order.item, self._splits.get(order.item.path)
        if kind == "failed":
            if item.path not in self.states:  # several workers may fail on one file
                self._fail(item, rest[0])
        elif kind == "interrupted":
            self.figures.active.pop(item.path, None)
        elif kind == "scouted":
            if split is not None:
                split.scout_ended()
        elif kind in {"detected", "paused"}:
            if split is not None:
                split.done(order)
        elif kind == "done":
            state = self.job.load(item.key)
            if state is None:
                self._fail(item, "its state file is gone: somebody removed it during the run")
            else:
                self._settle(item, state)
                fps = state.frames / state.seconds if state.seconds else 0.0
                log.info("done %s: %d frames, %.1f FPS", item.name, state.frames, fps)

    def _note_progress(self, worker: _Worker, order: Order, told: dict[str, Any]) -> None:
        active = self.figures.active.get(order.item.path)
        if active is None:
            return
        frames = told["frames"]
        active.total = told["total"] if told["total"] is not None else active.total
        if isinstance(order, DetectOrder):
            self.figures.frames += max(0, frames - worker.counted)
            active.frames += frames - worker.counted
            active.people += told["people"] - (worker.frames or 0)
            worker.counted, worker.frames = frames, told["people"]
        elif order.item.path in self._splits:  # what networks have seen already is counted
            self.figures.frames += max(0, frames - active.frames)
            active.frames = max(active.frames, frames)
        else:
            if worker.frames is not None:
                self.figures.frames += max(0, frames - worker.frames)
            worker.frames = frames
            active.frames, active.people = frames, told["people"]
        active.speed.note(active.frames)

    def _fail(self, item: BatchInput, text: str) -> None:
        log.warning("failed %s: %s", item.name, text)
        state = self.job.load(item.key)
        if state is None:
            try:
                state = self.job.fresh(item, version_of(item))
            except OSError:
                state = FileState(path=item.path, name=item.name, size=-1, mtime_ns=0)
        state.status, state.error = "failed", text
        try:
            self.job.save(item.key, state)
        except SinkError as error:
            log.warning("%s", error)
        self._settle(item, state)

    def _bury(self, worker: _Worker, death: Died) -> None:
        self._workers.remove(worker)
        if not worker.ready:
            self._deaths_at_start += 1
        order = worker.order
        if not self.interrupted and not worker.ready and self._deaths_at_start >= _DEATHS_AT_START:
            raise PipelineError(f"workers die before they begin ({death.cause}): see the lines above, try --workers 1")
        if order is None:
            return
        item, split = order.item, self._splits.get(order.item.path)
        active = self.figures.active.get(item.path)
        if active is not None and isinstance(order, DetectOrder):
            active.frames -= worker.counted
        if split is None:
            self.figures.active.pop(item.path, None)
        if self.interrupted or item.path in self.states:
            return
        where = self._unit(order)
        deaths = self._deaths[item.path, where] = self._deaths.get((item.path, where), 0) + 1
        if deaths > self._crew.deaths_allowed:
            times = "twice" if deaths == 2 else f"{deaths} times"
            self._fail(item, f"its worker died {times} {where} by {death.cause}{death.hint and ': ' + death.hint}")
            return
        log.warning("%s: its worker died by %s %s: tried once more", item.name, death.cause, where)
        if split is None or isinstance(order, ScoutOrder):
            self._again.appendleft(order)
        if split is not None:
            split.lost(order)

    def _unit(self, order: Order) -> str:
        """What a worker was at, for people."""
        if isinstance(order, ScoutOrder):
            return "while it was looked through"
        if isinstance(order, DetectOrder):
            return f"in segment {order.number}"
        state = self.job.load(order.item.key)
        return f"in segment {len(state.segments) if state is not None else 0}"

    def _follow_signals(self) -> None:
        if not self._signals:
            return
        self._pending.clear()
        if self._signals > 1:
            for worker in self._workers:
                worker.link.kill()
        elif not self._stop_told:
            self._stop_told = True
            log.info("stopping: segments in work are left, finished ones are kept; once more ends at once")
            for worker in self._workers:
                worker.link.send("stop")

    def _update_figures(self) -> None:
        figures = self.figures
        figures.speed.note(figures.frames)
        left: int | None = 0
        in_hand = {worker.order.item.path: worker.order.item for worker in self._workers if worker.order is not None}
        for item in [*self._pending, *in_hand.values()]:
            length = self._lengths.get(item.path)
            if length is None and item.path not in self._lengths:
                left = None
                break
            active = figures.active.get(item.path)
            left = (left or 0) + max(0, (length or 0) - (active.frames if active is not None else 0))
        figures.frames_left = left

    def _probe(self, items: Sequence[BatchInput]) -> None:
        """Lengths for the time left; beside the work, because thousands of files take a while to open."""
        for item in items:
            self._lengths[item.path] = probe(item).frames
