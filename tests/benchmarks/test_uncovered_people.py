"""The count of people whom a hiding layer leaves uncovered, on results made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import uncovered_people
from benchmarks.uncovered_people import Reference, main, uncovered
from tests.layer_results import result_of

FOUND_AT, FRAMES = 6, 20


def box(number: int) -> tuple[float, float, float, float]:
    return (10.0 + 2 * number, 30.0, 40.0 + 2 * number, 100.0)


def results(*, reference: bool):
    """Somebody walks; a stronger look sees them at once, and takes a thing for a person."""
    for number in range(FRAMES):
        image = np.full((120, 160, 3), 60, np.uint8)
        x0, y0, x1, y1 = (round(value) for value in box(number))
        image[y0:y1, x0:x1] = 200
        people = {1: box(number)} if reference or number >= FOUND_AT else {}
        if reference:
            people[2] = (120.0, 20.0, 150.0, 90.0)
        yield result_of(people, number=number, image=image)


@pytest.fixture
def streams(monkeypatch) -> None:
    def stream(clip: str, *, long_side: int | None = None, max_frames: int, **_):
        return (one for one in results(reference=long_side is not None) if one.frame.index < max_frames)

    monkeypatch.setattr(uncovered_people.pose2seg, "stream", stream)


def test_people_who_are_found_late_are_counted(streams) -> None:
    reference = Reference.of("a.mp4", long_side=960, threshold=0.1, frames=FRAMES)
    assert reference.person_frames() == FRAMES  # the thing is left out
    rows = {row["ahead"]: row for row in uncovered(reference, "a.mp4", [0, 4, 10], frames=FRAMES)}
    assert [rows[ahead]["uncovered"] for ahead in (0, 4, 10)] == [6, 2, 0]
    assert [rows[ahead]["seen"] for ahead in (0, 4, 10)] == [6, 2, 0]
    assert [rows[ahead]["late"] for ahead in (0, 4, 10)] == [6, 2, 0]
    shares = [rows[ahead]["frame_share_covered"] for ahead in (0, 4, 10)]
    assert shares == sorted(shares) and 0 < shares[0] < shares[2] < 1
    assert rows[0]["fps"] == 25.0


def test_the_command_prints_a_table_and_json(streams, capsys) -> None:
    assert main(["some/a.mp4", "--ahead", "0", "10", "--frames", "12"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    document = json.loads(last)
    assert {"commit", "command", "cpu"} <= set(document["environment"])
    assert [row["frames"] for row in document["rows"]] == [12, 12]
