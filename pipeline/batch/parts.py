"""Outputs of one segment of a file, and how those of all segments become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from pipeline.contact_sheet import ContactSheetSink
from pipeline.messages import FrameResult
from pipeline.stage6_sinks import close_output, create_output, write_whole


class KeptOpen:
    """A stage whose engine serves the next segment, too."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.name: str = stage.name

    @property
    def batch_limit(self) -> int:
        return int(self._stage.batch_limit)

    def open(self) -> None:
        self._stage.open()

    def process(self, item: Any) -> Any:
        return self._stage.process(item)

    def process_batch(self, items: Any) -> Any:
        return self._stage.process_batch(items)

    def close(self) -> None:
        """Whoever opened the model closes it."""


class Unfinished:
    """A sink that is written at the end of the file, not of the segment."""

    def __init__(self, sink: ContactSheetSink) -> None:
        self._sink = sink

    def check(self) -> None:
        self._sink.check()

    def write(self, result: FrameResult) -> None:
        self._sink.write(result)

    def close(self) -> None:
        """Goes on in the next segment."""


class CocoEntries:
    """COCO results of a segment, an entry per line; the image id is the number of the frame, from 1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def check(self) -> None:
        """The folder is our own."""

    def write(self, result: FrameResult) -> None:
        if self._file is None:
            self._file = create_output(self._path, overwrite=True)
        entries = result.to_coco(result.frame.index + 1)
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        write_whole(self._file, lines.encode(), self._path)

    def close(self) -> None:
        close_output(self._file, self._path)


def join_files(parts: list[Path], target: Path) -> None:
    with target.open("wb") as output:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    output.write(block)


def join_entries(parts: list[Path], target: Path) -> None:
    with target.open("wb") as output:
        output.write(b"[")
        separator = b"\n"
        for part in parts:
            with part.open("rb") as file:
                for line in file:
                    output.write(separator + line.rstrip(b"\n"))
                    separator = b",\n"
        output.write(b"\n]\n")
