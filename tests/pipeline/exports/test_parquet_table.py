"""The table, read back by pyarrow: rows, types, row groups, what a kill leaves."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.errors import SettingsError, SinkError
from pipeline.exports import parquet_table
from pipeline.exports.parquet_table import COLUMNS, ParquetSink, join_tables, rows_of, write_table
from tests.layer_results import result_of

LEFT = (20.0, 30.0, 50.0, 100.0)
RIGHT = (100.0, 25.0, 135.0, 105.0)


def written(path: Path, results, *, overwrite: bool = False) -> None:
    sink = ParquetSink(path, overwrite=overwrite)
    sink.check()
    try:
        for result in results:
            sink.write(result)
    finally:
        sink.close()


def test_one_row_per_person_per_frame(tmp_path) -> None:
    results = [result_of({4: LEFT, 2: RIGHT}), result_of({}, number=1), result_of({2: RIGHT}, number=2)]
    written(tmp_path / "t.parquet", results)
    table = pq.read_table(tmp_path / "t.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        (name, {"float32": "float", "float64": "double"}.get(kind, kind)) for name, kind in COLUMNS
    ]
    rows = table.to_pylist()
    people = [(result.frame.index, person) for result in results for person in result.people]
    assert [(row["frame"], row["id"]) for row in rows] == [(index, person.id) for index, person in people]
    for row, (index, person) in zip(rows, people, strict=True):
        assert row["pts_s"] == index / 25
        assert (row["x"], row["y"], row["box_width"], row["box_height"]) == person.bbox
        mask = coco_mask.decode({"size": [row["height"], row["width"]], "counts": row["mask_rle"]}).astype(bool)
        np.testing.assert_array_equal(mask, person.mask)
        assert row["area"] == mask.sum()
        assert np.float32(row["score"]) == np.float32(person.score)
        assert row["left_wrist_x"] == person.keypoints[9, 0] and row["left_wrist_confidence"] == person.keypoints[9, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet"]


def test_no_frames_no_file_and_nobody_an_empty_table(tmp_path) -> None:
    written(tmp_path / "none.parquet", [])
    assert not list(tmp_path.iterdir())
    written(tmp_path / "nobody.parquet", [result_of({}), result_of({}, number=1)])
    table = pq.read_table(tmp_path / "nobody.parquet")
    assert table.num_rows == 0 and table.column_names == [name for name, _ in COLUMNS]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 40), max_size=5))
def test_row_groups_do_not_depend_on_parts(tmp_path_factory, monkeypatch, cuts) -> None:
    monkeypatch.setattr(parquet_table, "ROWS_PER_GROUP", 16)
    folder = tmp_path_factory.mktemp("parts")
    (row,) = rows_of(result_of({1: LEFT}))
    frame = [name for name, _ in COLUMNS].index("frame")
    rows = [(*row[:frame], number, *row[frame + 1 :]) for number in range(40)]
    edges = [0, *sorted(cuts), 40]
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        parts.append(folder / f"{number}.parquet")
        write_table(rows[start:end], parts[-1])
    join_tables(parts, folder / "whole.parquet")
    with pq.ParquetFile(folder / "whole.parquet") as whole:
        assert [whole.metadata.row_group(n).num_rows for n in range(whole.num_row_groups)] == [16, 16, 8]
        assert whole.read().column("frame").to_pylist() == list(range(40))


def test_existing_files_and_parts_are_refused(tmp_path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"precious")
    with pytest.raises(SinkError, match="exists already"):
        ParquetSink(path, overwrite=False).check()
    written(path, [result_of({1: LEFT})], overwrite=True)
    assert pq.read_table(path).num_rows == 1
    path.unlink()
    (tmp_path / "t.parquet.parts").mkdir()
    with pytest.raises(SinkError, match="parts of a run that was killed"):
        ParquetSink(path, overwrite=False).check()
    written(path, [result_of({1: LEFT})], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet"]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SettingsError, match=r'--table needs pyarrow: pip install "pose2seg-live\[interop\]"'):
        ParquetSink(tmp_path / "t.parquet", overwrite=False)


KILL_WHILE_WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline.exports import parquet_table
from tests.pipeline.exports.test_parquet_table import LEFT, result_of, written
parquet_table.ROWS_PER_GROUP = 10
def results():
    for number in range(95):
        yield result_of({{1: LEFT}}, number=number)
    os.kill(os.getpid(), 9)
written(Path({folder!r}) / "t.parquet", results())
"""


def test_a_killed_process_leaves_parts_that_can_be_read(tmp_path) -> None:
    code = KILL_WHILE_WRITING.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -9, done.stderr
    frames = pyarrow.dataset.dataset(tmp_path / "t.parquet.parts", format="parquet").to_table().column("frame")
    assert sorted(frames.to_pylist()) == list(range(90))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch) -> None:
    def full(rows, path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    sink = ParquetSink(tmp_path / "t.parquet", overwrite=False)
    sink.write(result_of({1: LEFT}))
    monkeypatch.setattr(parquet_table, "write_table", full)
    with pytest.raises(SinkError, match="No space left on device"):
        sink.close()
