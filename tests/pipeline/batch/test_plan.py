"""Names of inputs and outputs: nothing collides, nothing leaves the output folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch.plan import plan_inputs, require_inside, safe_name
from pipeline.batch.state import replace_file
from pipeline.errors import SettingsError, SinkError


def touch(folder, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(inputs) -> list[str]:
    return [item.name for item in inputs]


def test_folders_are_mirrored(tmp_path) -> None:
    touch(tmp_path, "in/b.mp4", "in/a.mov", "in/x/y/a.mov", "in/.hidden.mp4", "in/notes.doc", "in/.git/c.mp4")
    planned = plan_inputs([str(tmp_path / "in")], tmp_path / "out")
    assert names(planned) == ["a.mov", "b.mp4", "x/y/a.mov"]
    assert planned[2].output(tmp_path, "json") == tmp_path / "x" / "y" / "a.mov.jsonl"


def test_one_stem_two_files(tmp_path) -> None:
    touch(tmp_path, "in/a.mp4", "in/a.mov")
    planned = plan_inputs([str(tmp_path / "in")], tmp_path / "out")
    assert len({item.output(tmp_path, "video") for item in planned}) == 2


def test_equal_names_from_two_places(tmp_path) -> None:
    touch(tmp_path, "x/a.mp4", "y/a.mp4", "y/A.mp4")
    arguments = [str(tmp_path / name) for name in ("x/a.mp4", "y/a.mp4", "y/A.mp4")]
    planned = plan_inputs(arguments, tmp_path / "out")
    assert len({name.casefold() for name in names(planned)}) == 3
    folders = plan_inputs([str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "out")
    assert names(folders) == ["x/a.mp4", "y/A.mp4~" + names(folders)[1][-8:], "y/a.mp4~" + names(folders)[2][-8:]]


def test_a_name_stays_when_inputs_are_added(tmp_path) -> None:
    touch(tmp_path, "x/a.mp4", "y/a.mp4")
    (first,) = plan_inputs([str(tmp_path / "x/a.mp4")], tmp_path / "out")
    known = {first.path: first.name}
    both = plan_inputs([str(tmp_path / "y/a.mp4"), str(tmp_path / "x/a.mp4")], tmp_path / "out", known=known)
    assert both[1] == first
    assert both[0].name != first.name


def test_globs_lists_and_standard_input(tmp_path, monkeypatch) -> None:
    touch(tmp_path, "in/1/a.mp4", "in/2/a.mp4", "in/2/b.avi")
    pattern = str(tmp_path / "in" / "**" / "*.mp4")
    assert names(plan_inputs([pattern], tmp_path / "out")) == ["1/a.mp4", "2/a.mp4"]
    listing = tmp_path / "list.txt"
    listing.write_text("# comment\nin/2/b.avi\n\nin/1\n")
    for argument in (str(listing), f"@{listing}"):
        assert names(plan_inputs([argument], tmp_path / "out")) == ["b.avi", "a.mp4"]
    monkeypatch.chdir(tmp_path)
    assert names(plan_inputs(["-"], tmp_path / "out", stdin=["in/2/b.avi\n"])) == ["b.avi"]
    with pytest.raises(SettingsError, match="list cannot be read"):
        plan_inputs(["@missing"], tmp_path / "out")


def test_missing_files_are_inputs_that_will_fail(tmp_path) -> None:
    assert names(plan_inputs([str(tmp_path / "gone.mp4")], tmp_path / "out")) == ["gone.mp4"]


def test_addresses_are_no_inputs(tmp_path) -> None:
    with pytest.raises(SettingsError, match="a batch reads files") as caught:
        plan_inputs(["rtsp://admin:hunter2@cam/1"], tmp_path / "out")
    assert "hunter2" not in str(caught.value)


def test_outputs_are_no_inputs(tmp_path) -> None:
    touch(tmp_path, "in/a.mp4", "in/out/a.mp4.people.mp4")
    assert names(plan_inputs([str(tmp_path / "in")], tmp_path / "in" / "out")) == ["a.mp4"]
    assert names(plan_inputs([str(tmp_path / "in" / "**" / "*.mp4")], tmp_path / "in" / "out")) == ["a.mp4"]
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(SettingsError, match="holds the input"):
            plan_inputs([str(tmp_path / "in")], out)


def test_nothing_found(tmp_path) -> None:
    with pytest.raises(SettingsError, match="found none"):
        plan_inputs([str(tmp_path)], tmp_path / "out")


@given(st.text(st.characters(codec=None), max_size=400))
def test_no_name_leaves_the_folder(text: str) -> None:
    name = safe_name(text)
    parts = name.split("/")
    assert parts[0].casefold() != ".pose2seg"
    assert os.path.normpath(f"/out/{name}") == f"/out/{name}"
    for part in parts:
        assert part not in {"", ".", ".."}
        assert len(part.encode()) <= 200
        assert not any(ord(c) < 32 or ord(c) == 127 for c in part)


def test_hostile_names(tmp_path) -> None:
    assert safe_name("../../etc/passwd") == "etc/passwd"
    assert safe_name("/abs/a.mp4") == "abs/a.mp4"
    assert safe_name(".pose2seg/lock") == "_.pose2seg/lock"
    assert "\n" not in safe_name("a\nb.mp4")
    assert safe_name("a\nb.mp4") != safe_name("a\tb.mp4")
    assert safe_name("..") == "_"
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.mp4", os.O_CREAT))
    (planned,) = plan_inputs([str(tmp_path)], tmp_path / "out")
    planned.name.encode("utf-8")


def test_a_link_out_of_the_folder(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    require_inside(tmp_path / "out" / "other", tmp_path / "out")
    with pytest.raises(SinkError, match="lies outside"):
        require_inside(tmp_path / "out" / "sub" / "x", tmp_path / "out")


def test_what_a_killed_process_left_beside_a_file_does_not_stay(tmp_path) -> None:
    path = tmp_path / "report.html"
    killed = "import os; os.fsync = lambda number: os._exit(9)\n"
    killed += "from pathlib import Path; from pipeline.batch.state import replace_file\n"
    killed += "replace_file(Path('report.html'), b'never in place')"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    replace_file(path, b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == b"whole"
