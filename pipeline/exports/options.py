"""What ``--export KIND=PATH`` means: read and checked here, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import SettingsError

DATASETS: Final = ("coco", "cvat", "yolo-pose", "yolo-seg")
"""Kinds that are a folder of pictures and labels."""

SUBTITLES: Final = {"srt": ".srt", "vtt": ".vtt"}
EXPORT_KINDS: Final = (*DATASETS, *SUBTITLES)
STANDARD_OUTPUT: Final = Path("-")
PIPE_FORMATS: Final = ("matroska", "rawvideo")
Pipe = Literal["matroska", "rawvideo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export: its kind, of `EXPORT_KINDS`, and the folder or file."""

    kind: str
    path: Path


def read_export(text: str) -> Export:
    """``coco=labels`` -> Export.

    Raises:
        SettingsError: an unknown kind, no path, or a file of another suffix.
    """
    kind, equals, name = text.partition("=")
    if kind not in EXPORT_KINDS:
        raise SettingsError(f"--export expects KIND=PATH with KIND one of {', '.join(EXPORT_KINDS)}, got {text!r}")
    if not equals or not name:
        raise SettingsError(f"--export {kind} expects a path: --export {kind}=PATH, got {text!r}")
    path = Path(name)
    if kind in SUBTITLES and path.suffix.lower() != SUBTITLES[kind]:
        raise SettingsError(f"--export {kind} expects a name ending in {SUBTITLES[kind]}, got {name}")
    if kind in DATASETS and path.suffix:
        raise SettingsError(f"--export {kind} makes a folder: expected a name without suffix, got {name}")
    return Export(kind=kind, path=path)


def read_exports(texts: Sequence[str]) -> tuple[Export, ...]:
    """All exports of a run.

    Raises:
        SettingsError: see `read_export`.
    """
    return tuple(read_export(text) for text in texts)
