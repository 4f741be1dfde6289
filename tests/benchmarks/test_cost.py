"""The cost model is a formula over a measured file; nothing in it is made up."""

from __future__ import annotations

import json

import pytest

from benchmarks.cost import BEGIN, END, PAGE, ROOT, machine_hours, table


def test_by_hand() -> None:
    assert machine_hours(video_fps=25, machine_fps=50) == 500
    assert machine_hours(video_fps=30, machine_fps=10, hours=2) == 6
    with pytest.raises(ValueError, match="must be positive"):
        machine_hours(video_fps=25, machine_fps=0)


def test_rows_come_from_the_file() -> None:
    document = {
        "environment": {"cpu": "abacus", "cores": 2},
        "rows": [
            {"name": "whole run, per frame", "settings": {"clip": "a", "long_side": 384, "people": 2.0, "fps": 50.0}},
            {"name": "  decode", "settings": {"busy": "1%"}},
        ],
    }
    text = table(document, source="../x.json", video_fps=25, price=0.2)
    assert "| a | 384 | 2.0 | 50.0 | 500 | 100 |" in text
    assert text.count("| a |") == 1
    with pytest.raises(ValueError, match="expected rows of whole runs"):
        table({**document, "rows": []}, source="x", video_fps=25, price=1)


def test_the_page_names_a_file_that_is_there() -> None:
    block = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    link = block.split("](")[1].split(")")[0]
    rows = json.loads((PAGE.parent / link).read_text())["rows"]
    assert sum(row["name"].startswith("whole run") for row in rows) >= 1
    assert (PAGE.parent / link).resolve().is_relative_to(ROOT)
