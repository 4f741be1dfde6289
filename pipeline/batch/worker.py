"""A worker process of a batch: one model, one input after the other. It ends when its batch does."""

from __future__ import annotations

import functools
import logging
import os
import queue
import signal
import threading
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

from engines import EngineError
from pipeline.batch.ahead import detect_segment, scout_file
from pipeline.batch.file import FileOptions, FileProgress, Interrupted, Paused, process_file
from pipeline.batch.orders import DetectOrder, Order, ScoutOrder
from pipeline.batch.state import JobFolder
from pipeline.build import Model
from pipeline.errors import PipelineError, exit_code_of
from pipeline.redaction import redact

REPORT_EVERY_S: Final = 0.2
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is started with: the output folder, what to do with each input, cores for one call."""

    out: Path
    file: FileOptions
    debug: bool = False


def work(connection: Connection, options: WorkerOptions) -> None:
    """Serve one batch: receives ``("order", Order)``, ``("stop",)`` and ``("end",)``.

    Sends ``("ready", description)``, ``("progress", name -> value)``, ``("border", number, position)``,
    ``("log", level, text)``, and at the end of each order one of ``("done",)``, ``("paused",)``, ``("scouted",)``,
    ``("detected",)``, ``("failed", text)`` and ``("interrupted",)``. ``("fatal", exit code, text)``: there is no model.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal tells the whole group; the batch tells its workers
    Worker(connection, options).run()


class Messages(Protocol):
    """Both directions between a worker and its batch: a pipe, or queues."""

    def send(self, message: tuple[Any, ...], /) -> None:
        """To the batch."""

    def recv(self) -> tuple[Any, ...]:
        """From the batch; waits for it.

        Raises:
            EOFError: the batch is gone.
        """


class Worker:
    """One model and what is done with it, order after order."""

    def __init__(self, connection: Messages, options: WorkerOptions) -> None:
        self._connection = connection
        self._options = options
        self._stop = threading.Event()
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._next_report = 0.0

    def run(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        root = logging.getLogger()
        root.setLevel(logging.INFO)
        root.addHandler(_Forward(self, logging.DEBUG if self._options.debug else logging.INFO))
        logging.getLogger("numba").setLevel(logging.WARNING)
        try:
            import cv2

            from pipeline.build import open_model

            cv2.setNumThreads(max(1, self._options.file.settings.threads or 1))
            model = open_model(self._options.file.settings)
        except Exception as error:
            self.send("fatal", exit_code_of(error), _text(error))
            return
        self.send("ready", {"engines": sorted({model.keypoint_engine.name, model.segment_engine.name})})
        job = JobFolder(self._options.out)
        while (order := self._orders.get()) is not None:
            try:
                self.send(self._carry_out(order, job, model))
            except Interrupted:
                self.send("interrupted")
            except Paused:
                self.send("paused")
            except (PipelineError, EngineError, OSError) as error:
                self.send("failed", _text(error))
            except Exception as error:
                logging.getLogger(__name__).debug("bug", exc_info=True)
                self.send("failed", f"a bug: {type(error).__name__}: {_text(error)}")
        model.close()

    def _carry_out(self, order: Order, job: JobFolder, model: Model) -> str:
        options, stop = self._options.file, self._stop.is_set
        if order.item.address:
            from pipeline.batch.storage import staged

            order = replace(order, item=staged(order.item, job, stop=stop))
        if isinstance(order, ScoutOrder):
            scout_file(order.item, job, model, options, border=functools.partial(self.send, "border"), stop=stop)
            return "scouted"
        if isinstance(order, DetectOrder):
            detect_segment(order.item, order.number, order.start, job, model, options, report=self._report, stop=stop)
            return "detected"
        process_file(order.item, job, model, options, report=self._report, stop=stop, until=order.until)
        return "done"

    def send(self, *message: Any) -> None:
        """To the batch; if it is gone, there is nobody to work for."""
        try:
            with self._sending:
                self._connection.send(message)
        except (OSError, ValueError):
            os._exit(1)

    def _listen(self) -> None:
        while True:
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the batch was killed: what is not finished is not wanted
            if order[0] == "order":
                self._orders.put(order[1])
            elif order[0] == "stop":
                self._stop.set()
            else:
                self._orders.put(None)
                return

    def _report(self, progress: FileProgress) -> None:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + REPORT_EVERY_S
            self.send("progress", asdict(progress))


class _Forward(logging.Handler):
    """Log lines go to the batch, which has the terminal."""

    def __init__(self, worker: Worker, level: int) -> None:
        super().__init__(level)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.send("log", record.levelno, redact(record.getMessage()))


def _text(error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    return redact("; ".join([str(error).strip() or type(error).__name__, *notes]))
