from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from pipeline.zones.shape import MAX_CORNERS, Zone, parse_zone, read_zone_file, read_zones

SQUARE = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]


def test_a_zone_as_a_flag() -> None:
    zone = parse_zone("shop: door:0.1,0.5 .4,0.5  0.4,1 0.1,1")
    assert zone.name == "shop: door"
    assert zone.corners == ((0.1, 0.5), (0.4, 0.5), (0.4, 1.0), (0.1, 1.0))
    assert zone.streams == ()


def test_a_file(tmp_path) -> None:
    path = tmp_path / "zones.json"
    entry = {"name": "Tür", "polygon": SQUARE, "streams": [1], "enter_s": 0, "leave_s": 2, "dwell_s": 10, "margin": 0}
    path.write_text(json.dumps({"zones": [entry, {"name": "b", "polygon": SQUARE, "dwell_s": None}]}), "utf-8")
    first, second = read_zones(["c:0,0 1,0 1,1"], path)[1:]
    assert first == Zone(
        name="Tür",
        corners=tuple(map(tuple, SQUARE)),
        streams=(1,),
        enter_s=0.0,
        leave_s=2.0,
        dwell_s=10.0,
        margin=0.0,
    )
    assert second.dwell_s is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no colon"),
        ("door", "no colon"),
        ("door:", "3 to 256 corners, got 0 corners"),
        ("door:0,0 1,1", "got 2 corners"),
        (":0,0 1,0 1,1", "a name of 1 to 64"),
        ("a\nb:0,0 1,0 1,1", "a name of 1 to 64"),
        ("d:0,0 1,0 1,x", "corners such as 0.25,0.5, got 1,x"),
        ("d:0,0 1,0 1,1,1", "corners such as"),
        ("d:0,0 1,0 1,nan", "y from 0 to 1, got NaN"),
        ("d:0,0 1,0 1,1.01", "y from 0 to 1"),
        ("d:-0.1,0 1,0 1,1", "x from 0 to 1"),
        ("d:0,0 0,0 1,1", "three corners that differ, got 2"),
        ("d:" + "0,0 1,0 1,1 " * 100, f"3 to {MAX_CORNERS} corners, got 300"),
    ],
)
def test_flags_that_are_refused(text, said) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        parse_zone(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1" + b"0" * 10_000 + b"]", "expected JSON"),
        (b'{"zones": []}', "with at least one zone"),
        (b'{"zones": [1], "more": 1}', "with at least one zone"),
        (b'{"zones": [1]}', "zone 1: expected an object with name and polygon, got 1"),
        (b'{"zones": [{"name": "a", "polygon": [[0, NaN]]}]}', "NaN is no number"),
        (b'{"zones": [{"name": "a", "polygon": [[0, 1e999], [0, 0], [1, 1]]}]}', "y from 0 to 1, got Infinity"),
        (b'{"zones": [{"name": "a", "polygon": [[true, 0], [0, 0], [1, 1]]}]}', "x from 0 to 1, got true"),
        (b'{"zones": [{"name": "a", "polygon": [[0, 0, 0], [0, 0], [1, 1]]}]}', "corners"),
        (b'{"zones": [{"name": "a", "polygon": [[0, 0], [1, 0], [1, 1]], "dwel_s": 1}]}', "got dwel_s"),
        (b'{"zones": [{"name": "a", "polygon": [[0, 0], [1, 0], [1, 1]], "enter_s": -1}]}', "enter_s from 0"),
        (b'{"zones": [{"name": "a", "polygon": [[0, 0], [1, 0], [1, 1]], "streams": [true]}]}', "streams as a list"),
        (b" " * 1_000_001, "at most 1000000 bytes"),
    ],
)
def test_files_that_are_refused(tmp_path, content, said) -> None:
    path = tmp_path / "zones.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        read_zone_file(path)


def test_missing_files_and_names_that_come_twice(tmp_path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_zones([], tmp_path / "none.json")
    with pytest.raises(SettingsError, match="comes twice"):
        read_zones(["a:0,0 1,0 1,1"] * 2, None)
    with pytest.raises(SettingsError, match="at most 64 zones"):
        read_zones([f"{n}:0,0 1,0 1,1" for n in range(65)], None)


@given(st.integers(2, 2000), st.integers(2, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_whole_picture_holds_every_pixel(height, width, x, y) -> None:
    zone = Zone(name="all", corners=((0, 0), (1, 0), (1, 1), (0, 1)))
    outline = zone.outline(height, width)
    point = (x * (width - 1), y * (height - 1))
    assert zone.distance(outline, point) >= 0.49  # half a pixel from the edge to the outermost centres


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_even_odd_rule_decides(x, y) -> None:
    """A bow tie: left and right halves are inside, above and below the crossing is outside."""
    zone = Zone(name="tie", corners=((0, 0), (1, 1), (1, 0), (0, 1)))
    size = 1001
    inside = zone.distance(zone.outline(size, size), (x * (size - 1), y * (size - 1)))
    expected = abs(x - 0.5) - abs(y - 0.5)
    if abs(expected) > 0.01:
        assert (inside > 0) is (expected > 0)
