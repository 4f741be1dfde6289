"""Tables and subtitles of a batch: what each segment leaves, and how that becomes an output."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from pipeline.exports.parquet_table import rows_of, write_table
from pipeline.exports.subtitles import Cues
from pipeline.messages import FrameResult
from pipeline.stage6_sinks import close_output, create_output, sink_error, write_whole


class TablePart:
    """The rows of a segment, in a Parquet file that is written at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[Any, ...]] = []

    def check(self) -> None:
        """The folder is our own."""

    def write(self, result: FrameResult) -> None:
        self._rows += rows_of(result)

    def close(self) -> None:
        try:
            write_table(self._rows, self._path)
        except OSError as error:
            raise sink_error(self._path, error) from error


class CountsPart:
    """A line for each frame of a segment: its time as a fraction of seconds, and how many people."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def check(self) -> None:
        """The folder is our own."""

    def write(self, result: FrameResult) -> None:
        if self._file is None:
            self._file = create_output(self._path, overwrite=True)
        time_s = result.frame.pts * result.frame.time_base
        write_whole(self._file, f"{time_s} {len(result.people)}\n".encode(), self._path)

    def close(self) -> None:
        close_output(self._file, self._path)


def subtitles_of(parts: Sequence[Path], origin_s: Fraction, *, vtt: bool) -> bytes:
    """The subtitles of a whole input.

    Args:
        parts: of `CountsPart`, in order.
        origin_s: time of the first frame.
        vtt: WebVTT in place of SubRip.
    """
    cues = Cues(vtt=vtt)
    text = [cues.header]
    now = before = Fraction(0)
    for part in parts:
        for line in part.read_text().splitlines():
            time, people = line.split()
            before, now = now, Fraction(time) - origin_s
            text.append(cues.add(float(now), int(people)))
    text.append(cues.end(float(now + max(now - before, Fraction(1, 1000)))))
    return b"".join(text)
