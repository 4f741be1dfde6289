"""What the cases of the selftest share: a watched run, a command as a process of its own, outcomes.

Cameras are played by `pipeline.selftest.servers` on the loopback interface. Every picture carries its number, and with
it the time it was made, so it is seen which pictures came through and how old they were.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from pipeline.channel import END, ChannelClosed
from pipeline.errors import SourceError
from pipeline.live.outputs import LiveSink
from pipeline.live.run import LiveRun, SourceSnapshot
from pipeline.live.settings import LiveSettings
from pipeline.selftest.servers import Camera, CameraServer, HttpCameraServer, RtspCameraServer, number_of
from pipeline.video_input import VideoInput

WAIT_S: Final = 60.0
_COMMAND: Final = "import sys, run_stream; sys.exit(run_stream.main(sys.argv[1:]))"


class NotKept(Exception):
    """A promise was not kept; the text is what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line of the table."""

    promise: str
    provoked: str
    measured: str
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A promise and what provokes it; ``measure`` returns what was seen or raises `NotKept`."""

    name: str
    promise: str
    provoked: str
    measure: Callable[[Chaos], str]


class Watched:
    """A live run on a thread of its own, and the numbers of the pictures that came out of it."""

    def __init__(self, chaos: Chaos, *servers: CameraServer, sinks: Sequence[LiveSink] = (), **options: Any) -> None:
        given = {"stall_timeout": 2.0, "model": chaos.model, "long_side": chaos.long_side} | options
        self.camera = chaos.camera
        self.run = LiveRun(LiveSettings(sources=tuple(map(address_of, servers)), **given), extra_sinks=sinks)
        self.numbers: list[list[int]] = [[] for _ in servers]
        self.ages_ms: list[list[float]] = [[] for _ in servers]
        self.sizes: set[tuple[int, int]] = set()
        self.stopped_after_s = 0.0
        self._error: BaseException | None = None
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), name=f"reader {stream}", daemon=True)
            for stream in range(len(servers))
        ]
        self._thread = threading.Thread(target=self._run, name="live run", daemon=True)

    def __enter__(self) -> Self:
        for reader in self._readers:
            reader.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        started = time.monotonic()
        self.run.request_stop()
        self._thread.join(30.0)
        self.stopped_after_s = time.monotonic() - started
        if self._error is not None:
            raise NotKept(f"the run ended: {self._error}")

    def _run(self) -> None:
        try:
            self.run.run()
        except BaseException as error:
            self._error = error

    def _read(self, stream: int) -> None:
        channel = self.run.subscribe(stream)
        with contextlib.suppress(ChannelClosed):
            while (result := channel.get()) is not END:
                number = number_of(result.frame.image)
                self.ages_ms[stream].append((time.monotonic() - self.camera.made_s(number)) * 1e3)
                self.numbers[stream].append(number)
                self.sizes.add((result.frame.height, result.frame.width))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something.

        Raises:
            NotKept: it does not come true.
        """
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline or self._error is not None:
                raise NotKept(f"not within {WAIT_S:.0f} s: {what}")
            time.sleep(0.02)

    def fresh(self, stream: int = 0, count: int = 10) -> float:
        """Wait for pictures that are made from now on; how long that took, s."""
        started = time.monotonic()
        now = int((started - self.camera.started_s) * self.camera.fps)
        seen = self.numbers[stream]
        self.wait(lambda: len(seen) >= count and min(seen[-count:]) > now, f"{count} new pictures of stream {stream}")
        return time.monotonic() - started

    def report(self, stream: int = 0) -> SourceSnapshot:
        """Of one source, now."""
        return self.run.sources()[stream]

    def check_order(self) -> None:
        """Pictures came in the order they were made, none twice.

        Raises:
            NotKept: they did not.
        """
        for seen in self.numbers:
            if seen != sorted(set(seen)):
                raise NotKept("pictures came twice or out of order")


class Chaos:
    """What all cases share."""

    def __init__(
        self,
        *,
        model: Path | None,
        long_side: int | None,
        cycles: int,
        seconds: float,
        folder: Path,
        minutes: float = 1.0,
        clip: Path | None = None,
        samples: Path | None = None,
    ) -> None:
        """Set up.

        Args:
            model: folder; None: the installed one.
            long_side: of the network input, px; None: the model's.
            cycles: how often something is killed.
            seconds: length of the latency measurement.
            folder: empty; for what cases write.
            minutes: length of the soak.
            clip: video that the soak plays over and over; None: numbered pictures.
            samples: CSV file for what the soak measured on its way.
        """
        self.minutes = minutes
        self.clip = clip
        self.samples = samples
        self.model = model
        self.long_side = long_side
        self.cycles = cycles
        self.seconds = seconds
        self.folder = folder
        self.camera = Camera()

    def folder_of(self, name: str) -> Path:
        """An empty folder."""
        path = self.folder / name
        path.mkdir()
        return path

    @contextlib.contextmanager
    def command(
        self,
        *arguments: str,
        most_bytes: int | None = None,
        variables: Mapping[str, str] | None = None,
        prelude: str = "",
        log: Path | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """The live command as a process of its own; killed at the end if it still runs.

        Args:
            arguments: behind ``live``.
            most_bytes: no file of the process may become larger, as if the disk was full.
            variables: of its environment, besides ours.
            prelude: Python that runs in it first.
            log: gets what it says; None: it stands in the pipes of the process.
        """
        model = [] if self.model is None else ["--model", str(self.model)]
        side = [] if self.long_side is None else ["--long-side", str(self.long_side)]
        limit = () if most_bytes is None else (most_bytes, most_bytes)
        output = subprocess.PIPE if log is None else log.open("wb")
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-c", prelude + _COMMAND, "live", *arguments, *model, *side, "--stats-every-s", "1"],
            stdout=output,
            stderr=output,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
            | dict(variables or {}),
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) if limit else None,  # noqa: PLW1509
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            if not isinstance(output, int):
                output.close()


def address_of(server: CameraServer) -> str:
    """Where to find the camera behind a server."""
    if isinstance(server, RtspCameraServer):
        return f"rtsp://user:secret@127.0.0.1:{server.port}/camera"
    if isinstance(server, HttpCameraServer):
        return f"http://127.0.0.1:{server.port}/stream.ts"
    return f"tcp://127.0.0.1:{server.port}"


def numbers_in(video: Path) -> list[int]:
    """Numbers of the pictures that a player shows of a recording; none of one that cannot be opened."""
    try:
        opened = VideoInput(str(video), timeout_s=5.0)
        return [number_of(np.asarray(picture.pixels)) for picture in opened.pictures()]
    except SourceError:
        return []


def results_in(log_text: str) -> int:
    """The last count of results in the lines of a live run."""
    found = [part.partition("=")[2] for part in log_text.split() if part.startswith("results=")]
    return int(found[-1]) if found else 0
