"""Rows of the occlusion evaluation side by side, and the committed figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import RESULTS
from benchmarks.occlusion import PARTS, cells_of, main, markdown, read_rows


def figures(ap: float | None, confusion: float | None, people: int = 7) -> dict[str, Any]:
    part = {
        "people": people,
        "mask": {"AP": ap, "AP50": ap, "AP75": ap, "AP_interval": None if ap is None else [ap - 0.01, ap + 0.01]},
        "mean_iou": 0.5,
        "confusion": {"masks": people, "mean": confusion},
    }
    return {"images": 3, **dict.fromkeys(("all", *PARTS), part)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "one.json").write_text(json.dumps(figures(0.25, 0.125)))
    (tmp_path / "other.json").write_text(json.dumps(figures(None, None)))
    made = {"seed": 3, "scenes": 3, "mix": {}, "canvas": [1, 2], "cutouts": {}, "people": 7}
    made |= {"people_by_max_iou": {}, "cutouts_shown": 2, "sha256": {"a": "b"}}
    (tmp_path / "benchmark.json").write_text(json.dumps(made))
    return tmp_path


def test_a_row_is_ap_then_confusion_with_intervals(files: Path) -> None:
    one, other = read_rows([f"ours = best={files / 'one.json'}", f"theirs={files / 'other.json'}"])
    assert cells_of(one) == ["ours = best", *[".250 (.240 to .260)"] * 3, *["12.5 %"] * 3]
    assert cells_of(other) == ["theirs", *["-"] * 6]
    lines = markdown([one, other]).splitlines()
    assert lines[0].startswith("|  | AP general (7) | AP moderate (7) |") and len(lines) == 4
    assert {line.count("|") for line in lines} == {8}


def test_what_does_not_belong_together_is_refused(files: Path) -> None:
    with pytest.raises(ValueError, match="expected NAME=FILE, got 'x'"):
        read_rows(["x"])
    with pytest.raises(ValueError, match=r"is not what training\.evaluate_occlusion --json writes"):
        read_rows([f"a={files / 'benchmark.json'}"])
    (files / "third.json").write_text(json.dumps(figures(0.1, 0.1, people=8)))
    with pytest.raises(ValueError, match=r"rows of different scenes: \(7, 7, 7\) and \(8, 8, 8\)"):
        read_rows([f"a={files / 'one.json'}", f"b={files / 'third.json'}"])


def test_the_command_keeps_rows_and_what_they_were_measured_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.occlusion.RESULTS", files)
    command = ["occlusion", "--scenes", str(files), "--row", f"a={files / 'one.json'}", "--save", "kept"]
    monkeypatch.setattr("sys.argv", [*command, "--title", "a test"])
    main()
    assert "| a | .250" in capsys.readouterr().out
    kept = json.loads((files / "accuracy" / "kept.json").read_text())
    assert kept["title"] == "a test" and kept["scenes"]["seed"] == 3 and "sha256" not in kept["scenes"]
    assert kept["rows"][0]["name"] == "a"


@pytest.mark.parametrize("path", sorted((RESULTS / "accuracy").glob("occlusion*.json")), ids=lambda path: path.stem)
def test_committed_figures_say_what_was_measured_and_are_in_the_document(path: Path) -> None:
    document = json.loads(path.read_text())
    assert document["suite"] == "occlusion" and document["title"] and document["scenes"]["scenes"] >= 100
    text = (RESULTS.parents[1] / "docs" / "occlusion.md").read_text()
    assert path.name in text
    for row in document["rows"]:
        assert row["all"]["people"] == document["scenes"]["people"]
        for cell in cells_of(row)[1:]:
            assert cell.split(" (")[0] in text
