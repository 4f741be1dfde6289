"""``pose2seg batch INPUT... --out DIR``: many videos, resumable, each in a worker process."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from engines import EngineError, EngineLoadError, default_artifact, load_artifact
from pipeline.batch.file import FileOptions, outputs_are_there
from pipeline.batch.machine import Resources, resources, share
from pipeline.batch.plan import BatchInput, plan_inputs, shown_name
from pipeline.batch.probe import measured_fps, plan_table, probe
from pipeline.batch.progress import ActiveFile, BatchDisplay, BatchFigures, PatientConsole, say
from pipeline.batch.report import HTML_NAME, rows_of, write_report
from pipeline.batch.settings import BatchSettings
from pipeline.batch.state import FileState, JobFolder
from pipeline.batch.worker import THREAD_VARIABLES, WorkerOptions, work
from pipeline.command_line import parser_of
from pipeline.errors import EXIT_ENGINE, EXIT_OK, EXIT_PARTIAL, PipelineError, SinkError

log = logging.getLogger(__name__)

DESCRIPTION = "Find every person in many videos. Started again after whatever stopped it, it goes on where it was."
EPILOG = (
    "examples:  pose2seg batch footage/ --out results/\n"
    "           pose2seg batch 'day*/**/*.mov' @more.txt --out results/ --write video,json,coco,sheet\n"
    "           pose2seg batch footage/ --out results/ --dry-run\n"
    "exit codes: 0 all inputs are done, 10 some are not (the report says which and why), others as pose2seg --help"
)
_END_S: Final = 30.0  # a worker closes its model; more than this is a hang
_POLL_S: Final = 0.2
_DEATHS_AT_START: Final = 3
_ROWS_SHOWN: Final = 50  # of the table at the end; the report has all


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: without ``batch``.

    Returns:
        Exit code, see `pipeline.errors`.

    Raises:
        PipelineError, EngineError: nothing can be done at all.
    """
    parser = parser_of(BatchSettings, prog="pose2seg batch", description=DESCRIPTION, epilog=EPILOG)
    values = vars(parser.parse_args(arguments))
    several = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    settings = BatchSettings(**(values | several))
    out = settings.out if settings.out is not None else Path()
    artifact = load_artifact(settings.model if settings.model is not None else default_artifact())
    job = JobFolder(out)
    known = job.names() if (job.folder / "files").is_dir() else {}
    inputs = plan_inputs(settings.inputs, out, known=known)
    if settings.dry_run:
        return _dry_run(job, inputs, settings)
    job.create()
    with job.locked():
        found = resources()
        workers, threads = _share(settings, len(inputs), found)
        deciding = {**settings.deciding(), "model_files": artifact_digest(artifact.folder), "threads": threads}
        threads = int(job.settle(deciding, overwrite=settings.overwrite)["threads"])
        workers, _ = _share(settings, len(inputs), found, threads)
        options = WorkerOptions(
            out=out,
            file=FileOptions(
                settings=settings.of_files(threads),
                write=settings.kinds,
                segment_s=settings.segment_seconds,
                overwrite=settings.overwrite,
            ),
        )
        log.info(
            "%d files, %d workers of %d threads (%d cores, %.1f GB free)",
            len(inputs),
            workers,
            threads,
            found.cores,
            found.memory_bytes / 1e9,
        )
        batch = Batch(job, inputs, options, workers)
        batch.prepare(overwrite=settings.overwrite, retry_failed=settings.retry_failed)
        errors = PatientConsole(stderr=True, highlight=False)
        display = BatchDisplay(errors, settings.stats_every_s)
        with _signals(batch):
            batch.run(display)
        return _conclude(batch, options.file)


def _share(settings: BatchSettings, files: int, found: Resources, threads: int | None = None) -> tuple[int, int]:
    """Workers and threads of each; ``threads``: as a run before settled them."""
    workers = None if settings.workers == "auto" else int(settings.workers)
    return share(found, files, workers=workers, threads=threads or settings.threads, gpu=_on_gpu(settings))


def _dry_run(job: JobFolder, inputs: Sequence[BatchInput], settings: BatchSettings) -> int:
    """Say what would be done; nothing is written."""
    workers, threads = _share(settings, len(inputs), resources())
    options = FileOptions(settings=settings.of_files(threads), write=settings.kinds, segment_s=settings.segment_seconds)
    batch = Batch(job, inputs, WorkerOptions(out=job.out, file=options), workers)
    left = inputs if settings.overwrite else batch.left_to_do(retry_failed=settings.retry_failed)
    probes = [probe(item) for item in left]
    fps = measured_fps(probes, options.settings, kinds=settings.kinds)
    console = PatientConsole(highlight=False)
    say(console, plan_table(probes, workers=workers, fps=fps))
    if len(left) < len(inputs):
        say(console, Text(f"{len(inputs) - len(left)} files are settled by a run before"))
    return EXIT_OK


def artifact_digest(folder: Path) -> str:
    """The manifest holds the SHA-256 of every file of a model, so its own stands for all."""
    import hashlib

    return hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    item: BatchInput | None = None
    frames: int | None = None  # of the input in work, as told last


class Batch:
    """Inputs, the workers that process them, and what became of each."""

    def __init__(self, job: JobFolder, inputs: Sequence[BatchInput], options: WorkerOptions, workers: int) -> None:
        self.job = job
        self.inputs = list(inputs)
        self.states: dict[str, FileState] = {}
        self.interrupted = False
        self._options = options
        self._count = workers
        self._pending: deque[BatchInput] = deque()
        self._workers: list[_Worker] = []
        self._died_at: dict[str, int] = {}
        self._deaths_at_start = 0
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
        try:
            while True:
                self._follow_signals()
                self._give_work()
                if not any(worker.item is not None for worker in self._workers):
                    break
                self._listen()
                self._update_figures()
                display.update(self.figures)
        finally:
            display.close()
            self._end_workers()

    def _is_settled(self, item: BatchInput, state: FileState, *, retry_failed: bool) -> bool:
        try:
            same = state.is_of(Path(item.path).stat())
        except OSError:
            same = state.size < 0
        if state.status == "failed":
            return same and not retry_failed
        return state.status == "done" and same and outputs_are_there(item, self.job.out, state, self._options.file)

    def _settle(self, item: BatchInput, state: FileState) -> None:
        self.states[item.path] = state
        self.figures.active.pop(item.path, None)
        if state.status == "failed":
            self.figures.failed += 1
        else:
            self.figures.done += 1

    def _give_work(self) -> None:
        idle = [worker for worker in self._workers if worker.item is None]
        while self._pending:
            if not idle:
                if len(self._workers) >= self._count:
                    return
                idle.append(self._start())
            worker, item = idle.pop(), self._pending.popleft()
            worker.item, worker.frames = item, None
            self.figures.active[item.path] = ActiveFile(name=item.name, total=self._lengths.get(item.path))
            with contextlib.suppress(OSError):  # it has just died: its end is seen by `_listen`
                worker.connection.send(("file", item))

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._options), name="pose2seg batch worker", daemon=True)
        threads = str(self._options.file.settings.threads or 1)
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _listen(self) -> None:
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        by_end: dict[Any, _Worker] = {worker.process.sentinel: worker for worker in self._workers}
        heard = wait([*by_connection, *by_end], _POLL_S)
        for thing in heard:
            worker = by_connection.get(thing)
            if worker is not None:
                self._receive(worker)
        for thing in heard:
            worker = by_end.get(thing)
            if worker is not None:
                self._receive(worker)
                self._bury(worker)

    def _receive(self, worker: _Worker) -> None:
        try:
            while worker.connection.poll():
                self._take(worker, worker.connection.recv())
        except (EOFError, OSError):
            return

    def _take(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        kind = message[0]
        item = worker.item
        if kind == "ready":
            worker.ready = True
            self._deaths_at_start = 0
        elif kind == "fatal":
            code, text = message[1:]
            raise EngineLoadError(text) if code == EXIT_ENGINE else PipelineError(text)
        elif kind == "log":
            log.log(message[1], "%s", f"{item.name}: {message[2]}" if item is not None else message[2])
        elif item is None:
            return
        elif kind == "progress":
            self._note_progress(worker, item, message[1])
        elif kind == "done":
            worker.item = None
            state = self.job.load(item.key)
            if state is None:
                self._fail(item, "its state file is gone: somebody removed it during the run")
            else:
                self._settle(item, state)
                log.info("done %s: %d frames, %.1f FPS", item.name, state.frames, _fps(state))
        elif kind == "failed":
            worker.item = None
            self._fail(item, message[2])
        elif kind == "interrupted":
            worker.item = None
            self.figures.active.pop(item.path, None)

    def _note_progress(self, worker: _Worker, item: BatchInput, told: dict[str, Any]) -> None:
        active = self.figures.active[item.path]
        if worker.frames is not None:
            self.figures.frames += max(0, told["frames"] - worker.frames)
        worker.frames = told["frames"]
        active.frames, active.people = told["frames"], told["people"]
        active.total = told["total"] if told["total"] is not None else active.total
        active.speed.note(active.frames)

    def _fail(self, item: BatchInput, text: str) -> None:
        log.warning("failed %s: %s", item.name, text)
        state = self.job.load(item.key)
        if state is None:
            try:
                state = self.job.fresh(item, Path(item.path).stat())
            except OSError:
                state = FileState(path=item.path, name=item.name, size=-1, mtime_ns=0)
        state.status, state.error = "failed", text
        try:
            self.job.save(item.key, state)
        except SinkError as error:
            log.warning("%s", error)
        self._settle(item, state)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.join()
        worker.connection.close()
        code = worker.process.exitcode or 0
        if not worker.ready:
            self._deaths_at_start += 1
        item = worker.item
        if item is None:
            return
        self.figures.active.pop(item.path, None)
        if self.interrupted:
            return
        cause = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"code {code}"
        if not worker.ready and self._deaths_at_start >= _DEATHS_AT_START:
            raise PipelineError(f"workers die before they begin ({cause}): see the lines above, try --workers 1")
        state = self.job.load(item.key)
        segments = len(state.segments) if state is not None else 0
        if self._died_at.get(item.path) == segments:
            hint = ": probably out of memory, try fewer --workers" if code == -signal.SIGKILL else ""
            self._fail(item, f"its worker died twice in segment {segments} by {cause}{hint}")
            return
        log.warning("%s: its worker died by %s in segment %d: tried once more", item.name, cause, segments)
        self._died_at[item.path] = segments
        self._pending.appendleft(item)

    def _follow_signals(self) -> None:
        if not self._signals:
            return
        self._pending.clear()
        if self._signals > 1:
            for worker in self._workers:
                worker.process.kill()
        elif not self._stop_told:
            self._stop_told = True
            log.info("stopping: segments in work are left, finished ones are kept; once more ends at once")
            for worker in self._workers:
                with contextlib.suppress(OSError):
                    worker.connection.send(("stop",))

    def _end_workers(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(("end",) if worker.item is None else ("stop",))
            if worker.item is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(_END_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _update_figures(self) -> None:
        figures = self.figures
        figures.speed.note(figures.frames)
        left: int | None = 0
        for item in [*self._pending, *(worker.item for worker in self._workers if worker.item is not None)]:
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


@contextlib.contextmanager
def _signals(batch: Batch) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the batch; a closed terminal does not."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        batch.request_stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(batch: Batch, options: FileOptions) -> int:
    """Write the report, print its short form."""
    rows = rows_of(batch.job, batch.inputs, batch.states)
    table = Table(title=Text(f"report: {batch.job.out / HTML_NAME}"), title_justify="left")
    for heading in ("file", "frames", "people per frame", "FPS", "result"):
        table.add_column(heading, overflow="fold", justify="left" if heading in {"file", "result"} else "right")
    for row in rows[:_ROWS_SHOWN]:
        texts = [row.state.error, *row.state.warnings] if row.state is not None else []
        said = ": ".join([row.result, *filter(None, ["; ".join(filter(None, texts))])])
        frames = row.state.frames if row.state is not None else 0
        figures = (str(frames), f"{row.people_per_frame:.2f}", f"{row.fps:.1f}")
        table.add_row(Text(row.item.name), *figures, Text(shown_name(said)))
    if len(rows) > _ROWS_SHOWN:
        table.caption = Text(f"and {len(rows) - _ROWS_SHOWN} more in the report")
    say(PatientConsole(highlight=False), table)
    try:
        write_report(batch.job.out, rows, options.write, options.layers)
    except SinkError as error:
        log.warning("no report: %s", error)
    if batch.interrupted:
        log.info("interrupted: the same command goes on where it stopped")
    return EXIT_OK if all(row.result == "done" for row in rows) else EXIT_PARTIAL


def _fps(state: FileState) -> float:
    return state.frames / state.seconds if state.seconds else 0.0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _on_gpu(settings: BatchSettings) -> bool:
    if settings.device is not None:
        return settings.device != "cpu"
    if settings.engine in {"onnx", "openvino"}:
        return False
    from engines.selection import ThisMachine

    try:
        return bool(ThisMachine().driver.gpus)
    except EngineError:
        return False
