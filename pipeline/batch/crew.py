"""Workers of a batch as processes of this machine, and what a batch expects of workers anywhere."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, Protocol

from pipeline.batch.worker import THREAD_VARIABLES, WorkerOptions, work

END_S: Final = 30.0  # a worker closes its model; more than this is a hang


class Link(Protocol):
    """The way to one worker."""

    def send(self, *message: Any) -> None:
        """Tell it something, see `pipeline.batch.worker.work`; nothing happens if it is dead."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """What is heard last of a worker.

    Attributes:
        cause: for people.
        hint: what may have been the reason; empty where nobody knows.
    """

    cause: str
    hint: str = ""


class Crew(Protocol):
    """All workers of a batch, in one place or many."""

    @property
    def patient(self) -> bool:
        """Work is given to workers that are ready only: one may never come."""

    @property
    def deaths_allowed(self) -> int:
        """In one piece of work; one more, and the work is taken for the cause."""

    def start(self) -> Link:
        """One more worker; it says when it is ready."""

    def listen(self, timeout_s: float) -> Iterator[tuple[Link, tuple[Any, ...] | Died]]:
        """What workers have said, each one's in order. Somebody who died is heard of once more."""

    def end(self) -> None:
        """Let everybody finish and go; who does not is killed. Waits, within a limit."""


@dataclass(slots=True, eq=False)
class ProcessLink:
    """The way to a process of this machine."""

    process: SpawnProcess
    connection: Connection

    def send(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # it has just died: its end is seen by `ProcessCrew.listen`
            self.connection.send(message)

    def kill(self) -> None:
        self.process.kill()


class ProcessCrew:
    """Processes of this machine. See `Crew`."""

    patient = False
    deaths_allowed = 1

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._links: list[ProcessLink] = []

    def start(self) -> Link:
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
        link = ProcessLink(process, ours)
        self._links.append(link)
        return link

    def listen(self, timeout_s: float) -> Iterator[tuple[Link, tuple[Any, ...] | Died]]:
        by_connection: dict[Any, ProcessLink] = {link.connection: link for link in self._links}
        by_end: dict[Any, ProcessLink] = {link.process.sentinel: link for link in self._links}
        heard = wait([*by_connection, *by_end], timeout_s)
        for thing in heard:
            if thing in by_connection:
                yield from self._messages(by_connection[thing])
        for thing in heard:
            if thing in by_end:
                link = by_end[thing]
                yield from self._messages(link)
                self._links.remove(link)
                link.process.join()
                link.connection.close()
                yield link, _death(link.process.exitcode or 0)

    def end(self) -> None:
        for link in self._links:
            link.send("end")
        for link in self._links:
            link.process.join(END_S)
            if link.process.is_alive():
                link.process.kill()
                link.process.join()
            link.connection.close()
        self._links.clear()

    @staticmethod
    def _messages(link: ProcessLink) -> Iterator[tuple[Link, tuple[Any, ...]]]:
        try:
            while link.connection.poll():
                yield link, link.connection.recv()
        except (EOFError, OSError):
            return


def _death(code: int) -> Died:
    if code >= 0:
        return Died(cause=f"code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = "probably out of memory, try fewer --workers" if code == -signal.SIGKILL else ""
    return Died(cause=f"signal {-code} ({name})", hint=hint)
