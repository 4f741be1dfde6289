"""``pose2seg live SOURCE [SOURCE ...]``: cameras and streams that run until somebody stops them."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from pipeline.command_line import parser_of
from pipeline.errors import EXIT_OK, SettingsError
from pipeline.live.outputs import SinkReport
from pipeline.live.run import LiveRun, SourceSnapshot
from pipeline.live.settings import LiveSettings
from pipeline.live.show import open_window, run_in_window
from pipeline.live.source import SourceState
from pipeline.progress import announce_on

if TYPE_CHECKING:
    from pipeline.serve.server import PageServer

log = logging.getLogger(__name__)

DESCRIPTION: Final = "Find every person in live streams, for ever; what breaks is opened again. See docs/operations.md."
EPILOG: Final = (
    "examples:  pose2seg live rtsp://camera/1 rtsp://camera/2 --output-dir recordings\n"
    "           pose2seg live 0 --json - | your-program\n"
    "           pose2seg live cameras.streams --allow-url 'rtsp://10.0.0.*'\n"
    "           pose2seg live clip.mp4 --realtime\n"
    "           pose2seg live rtsp://camera/1 --push rtmp://server/live/KEY --publish mqtt://broker/site/7\n"
    "           pose2seg live 0 --zone 'door:0.1,0.4 0.4,0.4 0.4,1 0.1,1' --webhook https://example.org/hook\n"
    "           pose2seg live 0 --serve          the web page on http://127.0.0.1:8080\n"
    "exit codes: 0 finished or asked to stop, 2 settings, 3 source, 4 model, 5 output, 1 a bug"
)
REFRESH_S: Final = 0.5
PLAIN_WIDTH: Final = 150
_STYLES: Final = {
    SourceState.CONNECTING: "yellow",
    SourceState.LIVE: "green",
    SourceState.STALLED: "yellow",
    SourceState.RECONNECTING: "red",
    SourceState.ENDED: "dim",
}


def parse_live_settings(arguments: Sequence[str]) -> LiveSettings:
    """Settings from arguments.

    Raises:
        SettingsError: unknown flag, missing SOURCE, or a value that cannot be used.
        SystemExit: after --help.
    """
    parser = parser_of(LiveSettings, prog="pose2seg live", description=DESCRIPTION, epilog=EPILOG)
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    several = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return LiveSettings(**(values | several))


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: without ``live``.

    Returns:
        Exit code, see `pipeline.errors`.

    Raises:
        PipelineError, EngineError: what ended the run.
    """
    settings = parse_live_settings(arguments)
    errors = _console_of_the_log()
    window = open_window("pose2seg live") if settings.show else None
    run = LiveRun(settings, announce=announce_on(errors))
    ended = threading.Event()
    page = _start_page(run, settings, errors)
    with _signals(run):
        shower = threading.Thread(target=_show, args=(run, errors, settings, ended), name="display", daemon=True)
        shower.start()
        if settings.seconds is not None:
            timer = threading.Timer(settings.seconds, run.request_stop)
            timer.daemon = True
            timer.start()
        try:
            if window is None:
                run.run()
            else:
                run_in_window(run, window)
        finally:
            ended.set()
            shower.join(2.0)
            if page is not None:
                page.stop()
            width = None if errors.is_terminal else PLAIN_WIDTH
            out = Console(stderr=settings.json is not None, highlight=False, width=width)
            out.print(summary_table(run))
    return EXIT_OK


def _start_page(run: LiveRun, settings: LiveSettings, console: Console) -> PageServer | None:
    """The page, where it is wanted; the model is closed again when it cannot be had."""
    if settings.serve is None:
        return None
    try:
        try:
            from pipeline.serve.start import start_page
        except ModuleNotFoundError as error:
            raise SettingsError(f"--serve needs {error.name}: pip install 'pose2seg-live[serve]'") from error
        return start_page(run, settings, console)
    except BaseException:
        run.close()
        raise


def _console_of_the_log() -> Console:
    """The one that log lines go to, so that they appear above the table and not through it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            return handler.console
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def _signals(run: LiveRun) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the run finish what it has in hand, the second one ends it at once."""
    count = 0

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        # On a thread: the handler interrupts whatever holds a lock on the main thread.
        wanted = run.request_stop if count == 1 else run.abort
        threading.Thread(target=wanted, name="stop", daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(run: LiveRun, console: Console, settings: LiveSettings, ended: threading.Event) -> None:
    """A table that changes on a terminal, a line per source now and then elsewhere."""
    if console.is_terminal:
        with Live(live_table(run.sources()), console=console, transient=True, auto_refresh=False) as live:
            while not ended.wait(REFRESH_S):
                live.update(live_table(run.sources()), refresh=True)
        return
    while not ended.wait(settings.stats_every_s):
        for snapshot in run.sources():
            log.info("%s", stats_line(snapshot))
        for sink in run.shared_sinks():
            log.info("%s", sink_line(sink))


def live_table(snapshots: Sequence[SourceSnapshot]) -> Table:
    """One row per source, as it is now."""
    table = Table()
    for heading in ("", "source", "state", "size"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")  # rows that grow would make the table jump
    for heading in ("FPS", "people", "p50 ms", "p95 ms", "frames", "dropped", "reconnects"):
        table.add_column(heading, justify="right")
    for snapshot in snapshots:
        source = snapshot.source
        state = Text(source.state.value, style=_STYLES[source.state])
        if source.next_try_s is not None:
            state.append(f" in {source.next_try_s:.0f} s: {source.trouble}", style="dim")
        table.add_row(
            str(snapshot.stream),
            Text(source.name),
            state,
            f"{source.width} x {source.height}" if source.width else "-",
            f"{source.fps:.1f}",
            str(snapshot.people),
            f"{snapshot.p50_ms:.0f}",
            f"{snapshot.p95_ms:.0f}",
            str(source.frames),
            str(sum(snapshot.dropped.values())),
            str(sum(source.reconnects.values())),
        )
    return table


def stats_line(snapshot: SourceSnapshot) -> str:
    """All about a source as ``key=value``."""
    source = snapshot.source
    parts = [
        f"stream={snapshot.stream}",
        f"state={source.state}",
        f"fps={source.fps:.1f}",
        f"people={snapshot.people}",
        f"frames={source.frames}",
        f"results={snapshot.results}",
        f"latency_ms={snapshot.p50_ms:.0f}/{snapshot.p95_ms:.0f}",
        *(f"dropped[{reason.replace(' ', '-')}]={count}" for reason, count in snapshot.dropped.items()),
        *(f"reconnects[{reason.replace(' ', '-')}]={count}" for reason, count in source.reconnects.items()),
        *(
            f"{sink.name.split(' ')[0]}_lost[{reason.replace(' ', '-')}]={count}"
            for sink in snapshot.sinks
            for reason, count in sink.dropped.items()
        ),
    ]
    return " ".join(parts)


def sink_line(sink: SinkReport) -> str:
    """All about a sink of all sources as ``key=value``."""
    lost = (f"lost[{reason.replace(' ', '-')}]={count}" for reason, count in sink.dropped.items())
    return " ".join(
        [f"sink={sink.name.replace(' ', '-')}", f"written={sink.written}", f"away={sink.away}".lower(), *lost]
    )


def summary_table(run: LiveRun) -> Table:
    """What happened to each source."""
    table = Table(title=Text("live run"), title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in ("frames", "results", "dropped before the networks", "reconnects", "p50 / p95 ms", "sinks"):
        table.add_column(heading, overflow="fold")
    for snapshot in run.sources():
        source = snapshot.source
        table.add_row(
            Text(f"{snapshot.stream}: {source.name}"),
            str(source.frames),
            str(snapshot.results),
            _counts(snapshot.dropped),
            _counts(source.reconnects),
            f"{snapshot.p50_ms:.0f} / {snapshot.p95_ms:.0f}",
            "\n".join(f"{sink.name}: {sink.written}, lost {_counts(sink.dropped)}" for sink in snapshot.sinks) or "-",
        )
    for sink in run.shared_sinks():
        table.add_row("all", "", "", "", "", "", f"{sink.name}: {sink.written}, lost {_counts(sink.dropped)}")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
