"""Promises that take time: a soak at speed, a wall clock that jumps, targets that go away."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, Self

from pipeline.selftest.chaos import WAIT_S, Case, Chaos, NotKept, Watched, address_of, numbers_in
from pipeline.selftest.servers import CameraServer, ClipServer, clip_of_numbers, read_clip

SAMPLES: Final = 120
MIN_SAMPLE_S: Final = 0.25
WARM_UP_SHARE: Final = 0.25  # of the samples: allocators fill their pools, kernels compile
GROWTH_MB: Final = 20.0
GROWTH_SHARE: Final = 0.05
MORE_THREADS: Final = 2  # connections to a dead source come and go
MORE_HANDLES: Final = 3
DAY_S: Final = 86_400
MOST_KILLS: Final = 3  # of a target: waits grow to a minute for one that goes away at once again and again
GAP_S: Final = 10.0  # a busy machine drops pictures; a wait that follows the wall clock would be hours
_FAKETIME: Final = "faketime/libfaketimeMT.so.1"


class LineServer:
    """Takes TCP connections and counts lines; it can be killed and comes back at the same port."""

    def __init__(self) -> None:
        self.lines = 0
        self.port = 0
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Listen, at the port of before."""
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), name="lines", daemon=True).start()

    def kill(self) -> None:
        """Close the port and all connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._clients.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._read, args=(client,), name="lines of one", daemon=True).start()

    def _read(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65_536):
                self.lines += data.count(b"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A process at one moment."""

    second: float
    results: int
    memory_mb: float
    threads: int
    handles: int


def sample_of(process: subprocess.Popen[str], second: float, results: int) -> Sample:
    """Measure, from /proc.

    Raises:
        NotKept: the process has ended.
    """
    folder = Path("/proc") / str(process.pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Sample(
            second=round(second, 2),
            results=results,
            memory_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
            threads=int(status["Threads"]),
            handles=len(os.listdir(folder / "fd")),  # noqa: PTH208  a count of links, not files
        )
    except (OSError, KeyError) as error:
        raise NotKept(f"the run ended after {second:.0f} s with exit code {process.poll()}") from error


def soak(chaos: Chaos) -> str:
    """Everything at once, as fast as it goes, and what the process holds meanwhile."""
    folder = chaos.folder_of("soak")
    clip = clip_of_numbers(100) if chaos.clip is None else read_clip(chaos.clip)
    seconds = chaos.minutes * 60
    with ClipServer(chaos.camera, clip) as server, CameraServer(chaos.camera) as dead, LineServer() as lines:
        dead.kill()
        arguments = [
            *(address_of(server), address_of(dead), "--buffer", "all", "--publish", f"tcp://127.0.0.1:{lines.port}"),
            *("--output-dir", str(folder), "--rotate-minutes", str(chaos.minutes / 20), "--keep-free-gb", "0"),
            *("--zone", "left:0,0 0.5,0 0.5,1 0,1"),
        ]
        with chaos.command(*arguments, log=folder / "log.txt") as process:
            samples = list(_sampled(process, lines, seconds))
    log = (folder / "log.txt").read_text(errors="replace")
    if chaos.samples is not None:
        _save(samples, chaos.samples)
    warm = samples[round(len(samples) * WARM_UP_SHARE) :]
    third = max(1, len(warm) // 3)
    first, last = warm[:third], warm[-third:]

    def medians(name: str) -> tuple[float, float]:
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (first, last))
        return before, after

    memory, threads, handles = medians("memory_mb"), medians("threads"), medians("handles")
    recordings, end = len(list(folder.rglob("*.mp4"))), samples[-1]
    text = (
        f"{end.second / 60:.1f} min, {end.results} results, {end.results / end.second:.0f} a second, "
        f"{recordings} recordings; memory {memory[0]:.0f} -> {memory[1]:.0f} MB, threads {threads[0]:.0f} -> "
        f"{threads[1]:.0f}, handles {handles[0]:.0f} -> {handles[1]:.0f} (medians of the first and last third)"
    )
    grown = memory[1] - memory[0] > max(GROWTH_MB, GROWTH_SHARE * memory[0])
    if grown or threads[1] - threads[0] > MORE_THREADS or handles[1] - handles[0] > MORE_HANDLES or "Traceback" in log:
        raise NotKept(text)
    return text


def _sampled(process: subprocess.Popen[str], lines: LineServer, seconds: float) -> Iterator[Sample]:
    deadline = time.monotonic() + WAIT_S
    while not lines.lines:
        if time.monotonic() > deadline or process.poll() is not None:
            raise NotKept(f"no result within {WAIT_S:.0f} s, exit code {process.poll()}")
        time.sleep(0.02)
    started, step_s = time.monotonic(), max(seconds / SAMPLES, MIN_SAMPLE_S)
    while (passed_s := time.monotonic() - started) < seconds:
        time.sleep(min(step_s, seconds - passed_s))
        yield sample_of(process, time.monotonic() - started, lines.lines)


def _save(samples: list[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in fields(Sample)])
        writer.writerows(astuple(sample) for sample in samples)


def find_faketime() -> Path | None:
    """The library that shows processes another time; Debian: libfaketime."""
    found = sorted(Path("/usr/lib").glob(f"*/{_FAKETIME}")) + sorted(Path("/usr/lib").glob(_FAKETIME))
    return found[0] if found else None


def clock_jump(chaos: Chaos) -> str:
    """The wall clock goes a day ahead, then two days back, while a camera is recorded."""
    folder, offset = chaos.folder_of("clock"), chaos.folder / "clock-offset"
    offset.write_text("+0\n")
    library = find_faketime()
    variables, prelude, how = {}, _patched_clock(offset), "time.time and datetime replaced"
    if library is not None:
        prelude, how = "", "libfaketime"
        variables = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
    log = chaos.folder / "clock.txt"
    with CameraServer(chaos.camera) as server:
        arguments = [address_of(server), "--output-dir", str(folder), "--rotate-minutes", "0.03"]
        with chaos.command(*arguments, "--keep-free-gb", "0", variables=variables, prelude=prelude, log=log) as process:
            for shift in ("+0", f"+{DAY_S}", f"-{DAY_S}"):
                offset.write_text(f"{shift}\n")
                _wait_for_recordings(process, folder, 2)
            process.terminate()
            process.wait(WAIT_S)
    days = {path.name[:8] for path in folder.rglob("*.mp4")}
    numbers = sorted({number for path in folder.rglob("*.mp4") for number in numbers_in(path)})
    gap_s = max((later - sooner for sooner, later in itertools.pairwise(numbers)), default=0) / chaos.camera.fps
    said = log.read_text(errors="replace")
    text = f"{len(numbers)} pictures over {len(days)} days by its own clock, longest gap {gap_s:.1f} s ({how})"
    if len(days) < 3:
        raise NotKept(f"the clock did not jump: {text}")
    if gap_s > GAP_S or "reconnects[" in said or process.returncode:
        raise NotKept(f"{text}, exit code {process.returncode}")
    return text


def _wait_for_recordings(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many more have begun."""
    wanted, deadline = len(list(folder.rglob("*.mp4"))) + count, time.monotonic() + WAIT_S
    while len(list(folder.rglob("*.mp4"))) < wanted:
        if time.monotonic() > deadline or process.poll() is not None:
            raise NotKept(f"recording stopped, exit code {process.poll()}")
        time.sleep(0.05)


def _patched_clock(offset: Path) -> str:
    """Python that shows the process another wall clock, where libfaketime is not installed."""
    return f"""
import datetime, pathlib, time
_file, _real = pathlib.Path({str(offset)!r}), time.time
time.time = lambda: _real() + float(_file.read_text() or 0)
class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = _Shifted
"""


def targets_killed(chaos: Chaos) -> str:
    """A target of --publish goes away and comes back, another one was never there."""
    cycles = min(chaos.cycles, MOST_KILLS)
    with CameraServer(chaos.camera) as server, LineServer() as lines, LineServer() as never:
        never.kill()
        targets = tuple(f"tcp://127.0.0.1:{one.port}" for one in (lines, never))
        with Watched(chaos, server, publish=targets) as watched:
            for _ in range(cycles):
                before = lines.lines
                watched.wait(lambda before=before: lines.lines > before + 10, "lines arrive")  # type: ignore[misc]
                lines.kill()
                watched.wait(lambda: watched.run.shared_sinks()[0].away, "the loss is noticed")
                lines.start()
            before = lines.lines
            watched.wait(lambda: lines.lines > before + 10, "lines arrive again")
            watched.fresh(count=5)
            snapshot, (alive, dead) = watched.report(), watched.run.shared_sinks()
    if snapshot.source.reconnects or dead.written:
        raise NotKept(f"the camera was disturbed: {snapshot.source.reconnects}")
    lost = sum(alive.dropped.values())
    return (
        f"{cycles} of {cycles} times back; {alive.written} lines arrived, {lost} left out meanwhile and "
        f"counted; {sum(dead.dropped.values())} for the one that was never there"
    )


ENDURANCE: Final = (
    Case(
        name="targets",
        promise="a dead target is connected again and costs only itself",
        provoked="TCP receiver killed and started again",
        measure=targets_killed,
    ),
    Case(
        name="clock",
        promise="a wall clock that jumps does nothing",
        provoked="a day ahead, two days back, while it records",
        measure=clock_jump,
    ),
    Case(
        name="soak",
        promise="memory, threads and handles stay as they are",
        provoked="a clip over and over as fast as it goes, one more camera dead, all kinds of outputs",
        measure=soak,
    ),
)
