"""``pose2seg selftest``: the promises of live runs, each provoked on this machine and measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.command_line import SettingsParser, read_path, read_whole_number
from pipeline.errors import EXIT_BUG, EXIT_OK
from pipeline.selftest.chaos import Case, Chaos, NotKept, Outcome
from pipeline.selftest.endurance import ENDURANCE
from pipeline.selftest.promises import PROMISES

PLAIN_WIDTH: Final = 150
CASES: Final = (*PROMISES, *ENDURANCE)


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
            minutes=flags.minutes,
            clip=flags.clip,
            samples=flags.samples,
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
    parser.add_argument("--minutes", type=float, default=1.0, metavar="MIN", help="length of the soak (default 1)")
    parser.add_argument(
        "--clip",
        type=read_path,
        metavar="VIDEO",
        help="what the soak plays over and over; numbered pictures by default",
    )
    parser.add_argument("--samples", type=read_path, metavar="F.csv", help="what the soak measured on its way")
    parser.add_argument("--model", type=read_path, metavar="DIR", help="model folder; the installed one by default")
    parser.add_argument("--long-side", type=read_whole_number, metavar="PX", help="long side of the network input")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    return parser
