"""The command: ``python run_stream.py SOURCE --output F.mp4``, installed as ``pose2seg``.

Other commands, such as ``pose2seg engines list``, are in `pipeline.command_line.COMMANDS`.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler

from pipeline.build import build
from pipeline.command_line import command_of, parse_settings
from pipeline.errors import EXIT_OK, exit_code_of
from pipeline.exports.piped_video import ReaderLeft
from pipeline.progress import PlainProgress, RunCounter, TerminalProgress, announce_on, summary_table
from pipeline.redaction import redact
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.window import ResultWindow

log = logging.getLogger("pose2seg")
HANDLER_NAME = "pose2seg command"


class StopRequest:
    """SIGINT and SIGTERM: the first one lets the run finish what it has in hand, the second one ends it at once."""

    def __init__(self) -> None:
        self.count = 0
        self._pipeline: Pipeline | None = None
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def attach(self, pipeline: Pipeline) -> None:
        """Stop this pipeline from now on; at once if the signal came while it was being built."""
        self._pipeline = pipeline
        if self.count:
            pipeline.request_stop()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._pipeline is None:
            if self.count > 1:
                raise KeyboardInterrupt
        elif self.count == 1:
            self._pipeline.request_stop()
        else:
            self._pipeline.abort()


class RedactingFormatter(logging.Formatter):
    """No password of a stream address reaches a log, whoever wrote the message."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        Exit code, see `pipeline.errors`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        command = command_of(arguments)
        if command is not None:
            set_up_logging(errors, debug=debug)
            return command([argument for argument in arguments[1:] if argument != "--debug"])
        settings = parse_settings(arguments)
        set_up_logging(errors, debug=settings.debug)
        stop = StopRequest()
        try:
            return run(settings, errors, stop)
        finally:
            stop.restore()
    except KeyboardInterrupt:
        return EXIT_OK
    except ReaderLeft as left:
        log.info("%s: stopped; what was written is whole", left)
        return EXIT_OK
    except Exception as error:
        if debug:
            errors.print(redact(traceback.format_exc()), markup=False)
        errors.print(f"pose2seg: error: {redact(str(error) or type(error).__name__)}", markup=False)
        for note in getattr(error, "__notes__", ()):
            errors.print(f"pose2seg: {redact(note)}", markup=False)
        return exit_code_of(error)


def run(settings: Settings, errors: Console, stop: StopRequest) -> int:
    """Build the pipeline, follow it to its end, print the table. Raises what ended it early."""
    log.debug("settings %s", settings.describe())
    window = ResultWindow(f"pose2seg {redact(settings.source)}") if settings.show else None
    pipeline = build(settings, announce=announce_on(errors))
    stop.attach(pipeline)
    counter = RunCounter(pipeline)
    total = expected_frames(settings, pipeline)
    progress: TerminalProgress | PlainProgress
    if errors.is_terminal:
        progress = TerminalProgress(errors, counter, total)
    else:
        progress = PlainProgress(counter, total, settings.stats_every_s)
    try:
        for result in pipeline.results():
            counter.count(result)
            progress.update()
            if window is not None and not window.show(result):
                window.close()
                window = None
                pipeline.request_stop()
    finally:
        progress.close()
        if window is not None:
            window.close()
    if stop.count:
        log.info("stopped on request after %d frames", counter.frames)
    Console(highlight=False, stderr=settings.is_piped()).print(summary_table(pipeline.source.name, counter.totals()))
    return EXIT_OK


def expected_frames(settings: Settings, pipeline: Pipeline) -> int | None:
    """How long the run will be, None when nobody knows."""
    known = [count for count in (settings.max_frames, pipeline.source.frame_total) if count is not None]
    if pipeline.source.frame_total is None and pipeline.source.live:
        return settings.max_frames
    return min(known) if known else None


def set_up_logging(console: Console, *, debug: bool) -> None:
    """Log to stderr: around the bar on a terminal, as plain lines elsewhere."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
        handler.setFormatter(RedactingFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    handler.set_name(HANDLER_NAME)
    root = logging.getLogger()
    for old in list(root.handlers):
        if old.get_name() == HANDLER_NAME:  # a second call in one process replaces the first
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("numba").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
