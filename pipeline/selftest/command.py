"""``pose2seg selftest``: the promises of live runs, each provoked on this machine and measured.

Cameras are played by `pipeline.selftest.servers` on the loopback interface. Every picture carries its number, and with
it the time it was made, so it is seen which pictures came through and how old they were.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.channel import END, ChannelClosed
from pipeline.command_line import SettingsParser, read_path, read_whole_number
from pipeline.errors import EXIT_BUG, EXIT_OK, SourceError
from pipeline.live.outputs import LiveSink
from pipeline.live.run import LiveRun, SourceSnapshot
from pipeline.live.settings import LiveSettings
from pipeline.live.source import SourceState
from pipeline.messages import FrameResult
from pipeline.metrics import percentile
from pipeline.selftest.servers import Camera, CameraServer, HttpCameraServer, RtspCameraServer, number_of
from pipeline.video_input import VideoInput

WAIT_S: Final = 60.0
PLAIN_WIDTH: Final = 150
STOP_S: Final = 5.0
LOST_S: Final = 1.0
LATENCY_MS: Final = 250.0
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

    def __init__(self, *, model: Path | None, long_side: int | None, cycles: int, seconds: float, folder: Path) -> None:
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
    def command(self, *arguments: str, most_bytes: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """The live command as a process of its own; killed at the end if it still runs.

        Args:
            arguments: behind ``live``.
            most_bytes: no file of the process may become larger, as if the disk was full.
        """
        model = [] if self.model is None else ["--model", str(self.model)]
        side = [] if self.long_side is None else ["--long-side", str(self.long_side)]
        limit = () if most_bytes is None else (most_bytes, most_bytes)
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-c", _COMMAND, "live", *arguments, *model, *side, "--stats-every-s", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) if limit else None,  # noqa: PLW1509
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def address_of(server: CameraServer) -> str:
    """Where to find the camera behind a server."""
    if isinstance(server, RtspCameraServer):
        return f"rtsp://user:secret@127.0.0.1:{server.port}/camera"
    if isinstance(server, HttpCameraServer):
        return f"http://127.0.0.1:{server.port}/stream.ts"
    return f"tcp://127.0.0.1:{server.port}"


def killed(chaos: Chaos) -> str:
    """The server goes away and comes back."""
    back_s = []
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        for _ in range(chaos.cycles):
            watched.fresh(count=3)
            server.kill()
            watched.wait(lambda: watched.report().source.state is SourceState.RECONNECTING, "the loss is noticed")
            server.start()
            back_s.append(watched.fresh(count=3))
        connects = watched.report().source.connects
    watched.check_order()
    if connects < chaos.cycles + 1:
        raise NotKept(f"{connects} connections for {chaos.cycles} restarts")
    return f"{chaos.cycles} of {chaos.cycles} times back, after {max(back_s):.1f} s at most"


def stalled(chaos: Chaos) -> str:
    """The connection stays, the pictures do not."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=3)
        chaos.camera.silent.set()
        started = time.monotonic()
        try:
            watched.wait(lambda: watched.report().source.reconnects.get("stalled", 0) > 0, "the silence is noticed")
            noticed_s = time.monotonic() - started
        finally:
            chaos.camera.silent.clear()
        back_s = watched.fresh(count=3)
    watched.check_order()
    return f"noticed after {noticed_s:.1f} s (--stall-timeout 2), pictures again after {back_s:.1f} s"


def damaged(chaos: Chaos) -> str:
    """Bits flip on the way."""
    with CameraServer(chaos.camera) as server:
        server.corrupt_share = 0.02
        with Watched(chaos, server) as watched:
            watched.wait(lambda: watched.report().results >= 10 * chaos.camera.fps // 2, "pictures all the same")
            snapshot = watched.report()
    broken = snapshot.source.dropped.get("broken packet", 0)
    return f"{snapshot.source.frames} pictures decoded, {broken} packets thrown away, run goes on"


def resized(chaos: Chaos) -> str:
    """Another picture size in the middle."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=3)
        before = chaos.camera.size
        chaos.camera.size = (360, 640)
        try:
            watched.wait(lambda: (360, 640) in watched.sizes, "pictures of the new size")
            watched.fresh(count=3)
        finally:
            chaos.camera.size = before
        connects = watched.report().source.connects
    watched.check_order()
    if connects != 1:
        raise NotKept(f"{connects} connections")
    return "480 x 270 became 640 x 360, same connection"


def one_dead(chaos: Chaos) -> str:
    """Four cameras, one of them away."""
    with contextlib.ExitStack() as stack:
        kinds = (RtspCameraServer, HttpCameraServer, CameraServer, CameraServer)
        servers = [stack.enter_context(kind(chaos.camera)) for kind in kinds]
        servers[3].kill()
        watched = stack.enter_context(Watched(chaos, *servers))
        for stream in range(3):
            watched.fresh(stream, count=10)
        snapshots = watched.run.sources()
    watched.check_order()
    tries = sum(snapshots[3].source.reconnects.values())
    disturbed = [s.stream for s in snapshots[:3] if s.source.reconnects]
    if disturbed:
        raise NotKept(f"streams {disturbed} had to be opened again")
    return f"{', '.join(str(s.results) for s in snapshots[:3])} results of the others, {tries} tries for the dead one"


class SlowSink:
    """Takes a second for each frame."""

    name = "slow"

    def __init__(self) -> None:
        self.ended = threading.Event()

    def write(self, result: FrameResult) -> None:
        del result
        self.ended.wait(1.0)

    def close(self) -> None:
        """Nothing is held."""


def slow_sink(chaos: Chaos) -> str:
    """One output takes a second per frame."""
    sink = SlowSink()
    folder = chaos.folder_of("slow")
    with (
        CameraServer(chaos.camera) as server,
        Watched(chaos, server, sinks=[sink], output_dir=folder, record="off", keep_free_gb=0.0) as watched,
    ):
        watched.fresh(count=3)
        watched.wait(lambda: watched.report().results >= 5 * chaos.camera.fps, "results")
        quick = watched.report().sinks[0]
        slow = watched.run.shared_sinks()[0]
        results = watched.report().results
        sink.ended.set()
    if quick.dropped or quick.written < results - 20:
        raise NotKept(f"the other sink wrote {quick.written} of {results}, lost {quick.dropped}")
    lost = slow.dropped.get("sink too slow", 0)
    return f"{results} results; JSON lines lost none; the slow sink wrote {slow.written}, {lost} left out and counted"


def disk_full(chaos: Chaos) -> str:
    """No file may grow beyond 60 kB."""
    folder = chaos.folder_of("full")
    with (
        CameraServer(chaos.camera) as server,
        chaos.command(
            address_of(server), "--output-dir", str(folder), "--keep-free-gb", "0", "--seconds", "12", most_bytes=60_000
        ) as process,
    ):
        _, errors = process.communicate(timeout=WAIT_S)
    said = errors.count("recording stopped")
    lines = results_in(errors)
    videos = sorted(folder.rglob("*.mp4"))
    shown = sum(len(numbers_in(video)) for video in videos)
    if process.returncode or not said or said > 4 or not lines or not shown:
        raise NotKept(f"exit code {process.returncode}, {said} lines of warning, {lines} results, {shown} frames kept")
    return f"{lines} results went on, said {said} times, {len(videos)} recordings with {shown} frames that play"


def killed_hard(chaos: Chaos) -> str:
    """The process is killed while it records."""
    folder = chaos.folder_of("killed")
    with (
        CameraServer(chaos.camera) as server,
        chaos.command(address_of(server), "--output-dir", str(folder), "--keep-free-gb", "0") as process,
    ):
        deadline = time.monotonic() + WAIT_S
        while not any(path.stat().st_size > 100_000 for path in folder.rglob("*.mp4")):
            if time.monotonic() > deadline or process.poll() is not None:
                raise NotKept(f"no recording: {process.communicate()[1][-300:]}")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        process.wait(10)
    video = max(folder.rglob("*.mp4"))
    numbers = numbers_in(video)
    lost_s = killed_s - chaos.camera.made_s(max(numbers, default=0))
    if numbers != sorted(set(numbers)) or lost_s > LOST_S:
        raise NotKept(f"{len(numbers)} frames play, {lost_s:.2f} s are lost")
    return f"{len(numbers)} frames play, the last {lost_s:.2f} s are lost"


def terminated(chaos: Chaos) -> str:
    """SIGTERM in the middle, one camera silent."""
    folder = chaos.folder_of("terminated")
    with CameraServer(chaos.camera) as server, CameraServer(chaos.camera) as mute:
        mute.mute = True
        with chaos.command(
            *(address_of(server), address_of(mute), "--output-dir", str(folder), "--keep-free-gb", "0")
        ) as process:
            deadline = time.monotonic() + WAIT_S
            while not any(path.stat().st_size > 20_000 for path in folder.rglob("*.mp4")):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise NotKept(f"no recording: {process.communicate()[1][-300:]}")
                time.sleep(0.02)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=WAIT_S)
            took_s = time.monotonic() - started
    video = max(folder.rglob("*.mp4"))
    lines = max(folder.rglob("*.jsonl")).read_text().splitlines()
    frames = len(numbers_in(video))
    for line in lines:
        json.loads(line)
    if process.returncode or took_s > STOP_S or not frames:
        raise NotKept(f"exit code {process.returncode} after {took_s:.1f} s, {frames} frames")
    return f"exit code 0 after {took_s:.1f} s; {frames} frames and {len(lines)} lines are whole"


def latency(chaos: Chaos) -> str:
    """How old a picture is when its result is there."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=20)
        began = len(watched.ages_ms[0])
        time.sleep(chaos.seconds)
        ages = watched.ages_ms[0][began:]
    halves = [sorted(part) for part in (ages[: len(ages) // 2], ages[len(ages) // 2 :])]
    (p50, p95), later = ((percentile(sorted(ages), share) for share in (0.5, 0.95)), percentile(halves[1], 0.95))
    load = os.getloadavg()[0]
    text = (
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms ({percentile(halves[0], 0.95):.0f} in the first half, {later:.0f} in the "
        f"second), {len(ages)} results in {chaos.seconds:.0f} s; {os.cpu_count()} cores, load {load:.1f}"
    )
    if p95 > LATENCY_MS:
        raise NotKept(text)
    return text


CASES: Final = (
    Case(
        name="killed",
        promise="a camera that went away comes back",
        provoked="RTSP server killed and started again",
        measure=killed,
    ),
    Case(
        name="stalled",
        promise="silence is noticed",
        provoked="connection stays open, no pictures for a while",
        measure=stalled,
    ),
    Case(name="damaged", promise="broken packets end nothing", provoked="2 % of the packets damaged", measure=damaged),
    Case(name="resized", promise="another size needs no restart", provoked="size changed mid-stream", measure=resized),
    Case(name="dead", promise="a dead camera stops no other", provoked="four cameras, one away", measure=one_dead),
    Case(
        name="slow-sink",
        promise="a slow output slows no other",
        provoked="an output that takes 1 s for each frame",
        measure=slow_sink,
    ),
    Case(
        name="disk-full",
        promise="a full disk ends the recording, not the run",
        provoked="files may not grow beyond 60 kB",
        measure=disk_full,
    ),
    Case(
        name="kill-9",
        promise=f"a crash costs at most {LOST_S:g} s of recording",
        provoked="kill -9 while recording",
        measure=killed_hard,
    ),
    Case(
        name="sigterm",
        promise=f"SIGTERM ends within {STOP_S:g} s, outputs whole",
        provoked="SIGTERM while recording, one more camera silent",
        measure=terminated,
    ),
    Case(
        name="latency",
        promise=f"glass to result p95 under {LATENCY_MS:g} ms on two idle cores",
        provoked="RTSP, 480 x 270 at 25 FPS",
        measure=latency,
    ),
)


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


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: without ``selftest``.

    Returns:
        0 when all promises were kept, else 1.

    Raises:
        SettingsError: a flag or value that cannot be used.
        EngineError: the model cannot be used.
    """
    flags = _parser().parse_args(arguments)
    wanted = [case for case in CASES if not flags.case or case.name in flags.case]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="pose2seg-selftest-") as folder:
        chaos = Chaos(
            model=flags.model,
            long_side=flags.long_side,
            cycles=flags.cycles,
            seconds=flags.seconds,
            folder=Path(folder),
        )
        for case in wanted:
            with console.status(Text(f"{case.promise}: {case.provoked}")):
                outcomes.append(outcome_of(case, chaos))
    if flags.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))  # noqa: T201  for another program
    else:
        console.print(table_of(outcomes))
    return EXIT_OK if all(outcome.kept for outcome in outcomes) else EXIT_BUG


def outcome_of(case: Case, chaos: Chaos) -> Outcome:
    """Provoke and measure."""
    try:
        measured, kept = case.measure(chaos), True
    except (NotKept, subprocess.TimeoutExpired) as error:
        measured, kept = str(error), False
    return Outcome(promise=case.promise, provoked=case.provoked, measured=measured, kept=kept)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """For people."""
    table = Table()
    for heading in ("promise", "how provoked", "measured"):
        table.add_column(heading, overflow="fold")
    table.add_column("verdict")
    for outcome in outcomes:
        verdict = Text("kept", style="green") if outcome.kept else Text("NOT KEPT", style="bold red")
        table.add_row(Text(outcome.promise), Text(outcome.provoked), Text(outcome.measured), verdict)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser(prog="pose2seg selftest", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--case",
        action="append",
        choices=[case.name for case in CASES],
        help="only this one; may be given several times",
    )
    parser.add_argument(
        "--cycles", type=read_whole_number, default=3, metavar="N", help="how often the server is killed (default 3)"
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, metavar="S", help="length of the latency measurement (default 15)"
    )
    parser.add_argument("--model", type=read_path, metavar="DIR", help="model folder; the installed one by default")
    parser.add_argument("--long-side", type=read_whole_number, metavar="PX", help="long side of the network input")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    return parser
