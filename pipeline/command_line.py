"""Flags -> Settings: exactly one flag per field, made from the field itself."""

from __future__ import annotations

import argparse
import importlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, NoReturn

from pipeline.errors import SettingsError
from pipeline.settings import Settings, flag_of

DESCRIPTION = "Find every person in a video: 17 joints, a mask, a score and a stable id each."
EPILOG = (
    "examples:  pose2seg walk.mp4 --output out.mp4 --json out.jsonl\n"
    "           pose2seg photos/ --coco results.json --coco-images annotations.json\n"
    "           pose2seg 0 --show\n"
    "           pose2seg selftest              the promises of live, provoked here and measured\n"
    "           pose2seg live rtsp://cam/1 0   cameras that run for ever (live --help)\n"
    "           pose2seg batch footage/ --out results/   thousands of files, resumable (batch --help)\n"
    "           pose2seg bench                 frames a second of this machine (bench --help)\n"
    "           pose2seg engines list          what can run the networks here (engines --help)\n"
    "exit codes: 0 finished or asked to stop, 2 settings, 3 source, 4 model, 5 output, 1 a bug"
)


COMMANDS: Final = {
    "batch": "pipeline.batch.command",
    "bench": "pipeline.bench.command",
    "engines": "pipeline.engines_command",
    "live": "pipeline.live.command",
    "selftest": "pipeline.selftest.command",
}
"""First word of the arguments -> module whose ``main(arguments)`` runs the command and returns the exit code.

A source that is called like a command is reached as ``./engines``.
"""


class SettingsParser(argparse.ArgumentParser):
    """Raises where argparse would print a usage block and exit."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see {self.prog} --help)")


def command_of(arguments: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """What runs the command that the arguments begin with; None where they begin with a source or a flag."""
    if not arguments or arguments[0] not in COMMANDS:
        return None
    run: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[arguments[0]]).main
    return run


def parse_settings(arguments: Sequence[str]) -> Settings:
    """Settings from command-line arguments.

    Raises:
        SettingsError: unknown flag, missing SOURCE, or a value that cannot be used; the message lists the allowed ones.
        SystemExit: after --help.
    """
    values = vars(make_parser().parse_args(arguments))
    several = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Settings(**(values | several))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the main command."""
    return parser_of(Settings, prog="pose2seg", description=DESCRIPTION, epilog=EPILOG)


def parser_of(settings: type[Any], *, prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """One argument per field of a settings class: SOURCE is positional, everything else is a flag.

    Args:
        settings: a dataclass whose fields have ``help``, ``metavar`` and ``choices`` in their metadata. A tuple of
            texts takes any number of them; one with ``bare`` may be given without a value and has that one then.
        prog: name of the command.
        description: for --help.
        epilog: for --help.
    """
    parser = SettingsParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    types = typing.get_type_hints(settings)
    for option in fields(settings):
        text = option.metadata["help"]
        several = typing.get_origin(types[option.name]) is tuple
        if option.default is MISSING:
            nargs = "+" if several else None
            parser.add_argument(option.name, metavar=option.metadata["metavar"], nargs=nargs, help=text)
            continue
        flag = flag_of(option.name)
        if several:
            parser.add_argument(flag, action="append", default=[], metavar=option.metadata["metavar"], help=text)
            continue
        value_type = _plain_type(types[option.name])
        if value_type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=option.default, help=text)
            continue
        if option.default is not None:
            text += f" (default {option.default})"
        choices = option.metadata["choices"]
        parser.add_argument(
            flag,
            type=str if choices else _READERS[value_type],
            choices=choices,
            metavar=None if choices else option.metadata["metavar"],
            default=option.default,
            help=text,
            **({"nargs": "?", "const": option.metadata["bare"]} if "bare" in option.metadata else {}),
        )
    return parser


def _plain_type(annotation: Any) -> Any:
    """``int`` of ``int | None``."""
    members = [member for member in typing.get_args(annotation) if member is not NoneType]
    return members[0] if len(members) == 1 else annotation


def read_whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def read_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got nothing")
    return Path(text)


_READERS: dict[Any, Callable[[str], Any]] = {int: read_whole_number, float: _number, Path: read_path, str: str}
