from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.zones.shape import Zone
from pipeline.zones.stage import LOST_S, ZoneStage, ZoneWatcher, foot_point
from tests.live_results import person, result

FPS = 25
RIGHT = Zone(name="right", corners=((0.5, 0), (1, 0), (1, 1), (0.5, 1)), enter_s=0.2, leave_s=0.4, margin=0.0)


def events_of(watcher: ZoneWatcher, path, *, start: int = 0):
    """Events of a person 7 who is at x of the path, a frame each; None: not seen."""
    found = []
    for index, x in enumerate(path, start):
        people = [] if x is None else [person(7, x, 60)]
        found += [(index, event) for event in watcher.watch(result(index, people))]
    return found


def kinds(found) -> list[tuple[int, str]]:
    return [(index, event.kind) for index, event in found]


def test_a_walk_through() -> None:
    found = events_of(ZoneWatcher((RIGHT,), run="r"), [20] * 10 + [100] * 50 + [20] * 25)
    assert kinds(found) == [(15, "enter"), (70, "leave")]
    enter, leave = (event for _, event in found)
    assert enter.to_dict() == {
        "key": "r-0-1",
        "kind": "enter",
        "zone": "right",
        "id": 7,
        "seconds": 0.2,
        "point": [round(100.5 / 128, 4), round(60.5 / 96, 4)],
        "lost": False,
        "inside": 1,
    }
    assert leave.seconds == pytest.approx(2.0)
    assert (leave.inside, leave.lost) == (0, False)


def test_a_step_over_the_border_and_back_is_nothing() -> None:
    assert events_of(ZoneWatcher((RIGHT,)), [20] * 5 + [100] * 4 + [20] * 20) == []
    found = events_of(ZoneWatcher((RIGHT,)), [100] * 10 + [20] * 9 + [100] * 20)
    assert kinds(found) == [(5, "enter")]


def test_trembling_on_the_border_is_one_visit() -> None:
    """Feet that jump 4 px around the border for ten seconds, of which the margin forgives 5."""
    zone = Zone(name="right", corners=RIGHT.corners, enter_s=0.2, leave_s=0.0, margin=5 / 96)
    found = events_of(ZoneWatcher((zone,)), [*[70] * 10, *([61, 67] * 125), *[40] * 5])
    assert kinds(found) == [(5, "enter"), (260, "leave")]


def test_somebody_who_is_hidden_for_a_second_stays_and_after_two_is_gone() -> None:
    path = [100] * 20 + [None] * FPS + [100] * 20
    assert kinds(events_of(ZoneWatcher((RIGHT,)), path)) == [(5, "enter")]
    found = events_of(ZoneWatcher((RIGHT,)), [100] * 20 + [None] * 60)
    assert kinds(found) == [(5, "enter"), (19 + round(LOST_S * FPS), "leave")]
    assert found[1][1].lost
    assert found[1][1].seconds == pytest.approx(19 / FPS)


def test_dwell_comes_once_a_visit() -> None:
    zone = Zone(name="z", corners=RIGHT.corners, enter_s=0.0, leave_s=0.0, dwell_s=1.0)
    found = events_of(ZoneWatcher((zone,)), [100] * 60 + [20] * 5 + [100] * 60)
    assert [kind for _, kind in kinds(found)] == ["enter", "dwell", "leave", "enter", "dwell"]
    assert found[1][0] == FPS


def test_a_gap_in_the_stream_ends_visits_with_the_next_frame() -> None:
    watcher = ZoneWatcher((RIGHT,))
    events_of(watcher, [100] * 20)
    assert watcher.inside() == {"right": 1}
    assert [event.kind for event in watcher.watch(result(1000))] == ["leave"]
    assert watcher.inside() == {"right": 0}


def test_another_clip_begins_anew() -> None:
    watcher = ZoneWatcher((RIGHT,))
    events_of(watcher, [100] * 20)
    assert watcher.watch(result(0, [person(7, 20, 60)], clip=1)) == ()
    assert watcher.inside() == {"right": 0}


def test_where_somebody_stands() -> None:
    assert foot_point(person(1, 40, 60)) == (40, 60)
    assert foot_point(person(1, 40, 60, ankles=False)) == (40, 60)  # of the box
    nobody = person(1, 40, 60, ankles=False)
    object.__setattr__(nobody.crop, "mask", np.zeros((0, 0), np.bool_))
    nobody.joint_visible[:] = False
    assert foot_point(nobody) is None


def test_streams_have_their_own_zones_and_people() -> None:
    other = Zone(name="other", corners=RIGHT.corners, streams=(1,), enter_s=0.0)
    stage = ZoneStage((RIGHT, other))
    seen: dict[int, list[str]] = {0: [], 1: []}
    for index in range(10):
        for stream in (0, 1):
            done = stage.process(result(index, [person(3, 100, 60)], stream=stream))
            seen[stream] += [event.zone for event in done.events]
    assert seen == {0: ["right"], 1: ["other", "right"]}


def test_events_are_in_the_lines_and_zones_in_the_picture() -> None:
    stage = ZoneStage((RIGHT,))
    given_result = result(0, [person(3, 100, 60)])
    assert "events" not in json.loads(given_result.to_json())
    assert json.loads(stage.process(given_result).to_json())["events"] == []
    picture = given_result.frame.image.copy()
    object.__setattr__(given_result, "drawn", picture)
    stage.process(given_result)
    changed = (picture != given_result.frame.image).any(axis=2)
    assert changed[:, 60:70].any() and changed[:, 120:].any()
    assert not changed[:, :55].any()


def test_lines_with_events_fit_the_schema() -> None:
    schema = json.loads((Path(__file__).parents[3] / "docs" / "schema" / "frame.schema.json").read_text())
    stage = ZoneStage((RIGHT,))
    lines = [json.loads(stage.process(result(index, [person(3, 100, 60)])).to_json()) for index in range(10)]
    assert sum(len(line["events"]) for line in lines) == 1
    for line in lines:
        jsonschema.validate(line, schema)


def test_another_picture_size_is_the_same_zone() -> None:
    watcher = ZoneWatcher((RIGHT,))
    small = [*watcher.watch(result(0, [person(1, 30, 20)], height=48, width=64))]
    for index in range(1, 20):
        people = [person(1, 100, 60, height=192, width=256)]
        small += watcher.watch(result(index, people, height=192, width=256))
    assert small == []  # x = 100 of 256 is left of the middle


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 127)), max_size=120),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 0.1),
)
def test_enter_and_leave_take_turns_and_the_count_is_theirs(path, enter_s, leave_s, margin) -> None:
    zone = Zone(name="z", corners=RIGHT.corners, enter_s=enter_s, leave_s=leave_s, margin=margin, dwell_s=0.5)
    watcher = ZoneWatcher((zone,))
    found = events_of(watcher, path)
    turns = [event for _, event in found if event.kind != "dwell"]
    assert [event.kind for event in turns] == ["enter", "leave"] * (len(turns) // 2) + ["enter"] * (len(turns) % 2)
    assert watcher.inside()["z"] == len(turns) % 2
    assert len({event.key for _, event in found}) == len(found)
    for _, event in found:
        assert event.seconds >= (enter_s if event.kind != "leave" else 0) - 1e-5
