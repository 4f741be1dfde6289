"""A worker process of a batch: one model, one input after the other. It ends when its batch does."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from engines import EngineError
from pipeline.batch.file import FileOptions, FileProgress, Interrupted, process_file
from pipeline.batch.plan import BatchInput
from pipeline.batch.state import JobFolder
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
    """Serve one batch: receives ``("file", BatchInput)``, ``("stop",)`` and ``("end",)``.

    Sends ``("ready",)``, ``("progress", name -> value)``, ``("log", level, text)``, ``("done", path)``,
    ``("failed", path, text)``, ``("interrupted", path)``, and ``("fatal", exit code, text)`` if there is no model.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal tells the whole group; the batch tells its workers
    _Worker(connection, options).run()


class _Worker:
    def __init__(self, connection: Connection, options: WorkerOptions) -> None:
        self._connection = connection
        self._options = options
        self._stop = threading.Event()
        self._orders: queue.SimpleQueue[BatchInput | None] = queue.SimpleQueue()
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
        self.send("ready")
        job = JobFolder(self._options.out)
        while (item := self._orders.get()) is not None:
            try:
                process_file(item, job, model, self._options.file, report=self._report, stop=self._stop.is_set)
                self.send("done", item.path)
            except Interrupted:
                self.send("interrupted", item.path)
            except (PipelineError, EngineError, OSError) as error:
                self.send("failed", item.path, _text(error))
            except Exception as error:
                logging.getLogger(__name__).debug("bug", exc_info=True)
                self.send("failed", item.path, f"a bug: {type(error).__name__}: {_text(error)}")
        model.close()

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
            if order[0] == "file":
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

    def __init__(self, worker: _Worker, level: int) -> None:
        super().__init__(level)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.send("log", record.levelno, redact(record.getMessage()))


def _text(error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    return redact("; ".join([str(error).strip() or type(error).__name__, *notes]))
