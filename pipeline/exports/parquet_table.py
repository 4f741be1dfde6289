"""One row per person per frame in a Parquet file, for pandas, Polars, DuckDB and spreadsheets (extra ``interop``).

A Parquet file cannot be read before its end is written. So rows are kept in parts beside it, each a whole file, and the
parts become the one file at the end: after a kill they can be read as they are, and a few seconds are lost.
"""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from kernels.skeleton import JOINT_NAMES
from pipeline.errors import SettingsError, SinkError
from pipeline.messages import FrameResult
from pipeline.stage6_sinks import check_output, sink_error

ROWS_PER_GROUP: Final = 20_000
PART_EVERY_S: Final = 5.0
PARTS_SUFFIX: Final = ".parts"
COLUMNS: Final = (
    *(("source", "string"), ("stream", "int32"), ("clip", "int32"), ("frame", "int64"), ("pts_s", "float64")),
    *(("width", "int32"), ("height", "int32"), ("id", "int32"), ("score", "float32")),
    *(("x", "float32"), ("y", "float32"), ("box_width", "float32"), ("box_height", "float32")),
    *(("area", "int64"), ("mask_rle", "string")),
    *((f"{joint}_{value}", "float32") for joint in JOINT_NAMES for value in ("x", "y", "confidence")),
)
"""Name and type of each column; docs/interop.md says what they mean."""


def require_pyarrow(flag: str) -> None:
    """Refuse early what could not be written at the end.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise SettingsError(f'{flag} needs pyarrow: pip install "pose2seg-live[interop]"') from error


def rows_of(result: FrameResult) -> list[tuple[Any, ...]]:
    """A row per person, in the order of `COLUMNS`."""
    frame = result.frame
    start = (frame.source, frame.stream, frame.clip, frame.index, frame.pts_s, frame.width, frame.height)
    return [
        (
            *start,
            person.id,
            person.score,
            *person.bbox,
            int(person.crop.mask.sum()),
            person.mask_rle["counts"],
            *person.keypoints.ravel().tolist(),
        )
        for person in result.people
    ]


class ParquetSink:
    """A table that is a folder of parts until the run ends."""

    def __init__(self, path: Path, *, overwrite: bool, flag: str = "--table") -> None:
        """Set up.

        Args:
            path: of the file.
            overwrite: replace it, and parts that a killed run left.
            flag: that asks for it, for messages.

        Raises:
            SettingsError: pyarrow is not installed.
        """
        require_pyarrow(flag)
        self._path = path
        self._folder = path.with_name(path.name + PARTS_SUFFIX)
        self._overwrite = overwrite
        self._rows: list[tuple[Any, ...]] = []
        self._parts: list[Path] = []
        self._begun = False
        self._saved_s = 0.0

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)
        if self._folder.exists() and not self._overwrite:
            raise SinkError(
                f"{self._folder}: parts of a run that was killed, they can be read as they are: move them away or add "
                "--overwrite"
            )

    def write(self, result: FrameResult) -> None:
        if not self._begun:
            self._begin()
            self._begun = True
        self._rows += rows_of(result)
        if len(self._rows) >= ROWS_PER_GROUP or time.monotonic() - self._saved_s >= PART_EVERY_S:
            self._save()

    def close(self) -> None:
        if not self._begun:
            return
        self._save()
        beside = self._folder / "whole.parquet"
        try:
            join_tables(self._parts, beside)
            os.replace(beside, self._path)
        except OSError as error:
            raise error if isinstance(error, SinkError) else sink_error(self._path, error) from error
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self) -> None:
        self.check()
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        except OSError as error:
            raise sink_error(self._folder, error) from error
        self._saved_s = time.monotonic()

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        if not self._rows:
            return
        part = self._folder / f"{len(self._parts):06d}.parquet"
        beside = part.with_suffix(".unfinished")
        try:
            write_table(self._rows, beside)
            os.replace(beside, part)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise sink_error(part, error) from error
        self._parts.append(part)
        self._rows = []


def table_schema() -> Any:
    """The Arrow schema of `COLUMNS`."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS])


def write_table(rows: Iterable[tuple[Any, ...]], path: Path) -> None:
    """Write rows as a Parquet file.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema()
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def join_tables(parts: Iterable[Path], path: Path) -> None:
    """Put the rows of parts into one file, `ROWS_PER_GROUP` in each row group however the parts were cut.

    Raises:
        OSError: a part cannot be read, or the file not be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, table_schema(), compression="zstd") as writer:
        held = pa.Table.from_batches([], table_schema())
        for batch in _batches(parts):
            held = pa.concat_tables([held, pa.Table.from_batches([batch], table_schema())])
            while held.num_rows >= ROWS_PER_GROUP:
                writer.write_table(held.slice(0, ROWS_PER_GROUP).combine_chunks())
                held = held.slice(ROWS_PER_GROUP)
        if held.num_rows:
            writer.write_table(held.combine_chunks())


def _batches(parts: Iterable[Path]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as stored:
            yield from stored.iter_batches(batch_size=ROWS_PER_GROUP)
