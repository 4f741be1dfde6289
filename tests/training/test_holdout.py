"""Pictures that a run never learns from: the tenth for reporting, near duplicates, and who looks at what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.drawn_people import tiny_settings, write_people
from training.compose import CutoutLibrary, cut_out_people
from training.dataset import Photo, SceneDataset, open_source, read_photos
from training.holdout import HELD_BACK_OF, HELD_BACK_REMAINDERS, held_back_ids, is_held_out, unseen_ids, validation_ids
from training.settings import SourceSettings, settings_from_json


def photo(image_id: int, group: int | None = None) -> Photo:
    return Photo(
        image_id=image_id, file_name=f"{image_id}.png", height=8, width=8, people=(), near_duplicate_group=group
    )


def source(**changes: object) -> SourceSettings:
    return SourceSettings(annotations="a.json", images="a", **changes)  # type: ignore[arg-type]


def test_held_out_pictures_are_every_nth_id() -> None:
    assert [i for i in range(10) if is_held_out(i, 4)] == [0, 4, 8]
    assert not any(is_held_out(i, 0) for i in range(10))


def test_a_tenth_is_held_back_and_it_holds_what_older_recipes_held_out() -> None:
    photos = [photo(i) for i in range(1000)]
    held = held_back_ids(photos)
    assert len(held) == 100
    assert all(i in held for i in range(0, 1000, 25))
    assert all(is_held_out(i, 5) for i in held)


def test_near_duplicates_stay_together_whoever_comes_first() -> None:
    together = [photo(50, 1), photo(51, 1), photo(3, 2), photo(25, 2), photo(75), photo(76)]
    assert held_back_ids(together) == {50, 51, 75}
    assert held_back_ids(reversed(together)) == {50, 51, 75}
    assert held_back_ids([]) == frozenset()


@given(st.dictionaries(st.integers(0, 10**9), st.none() | st.integers(0, 20), max_size=60))
def test_no_group_is_on_both_sides(groups: dict[int, int | None]) -> None:
    photos = [photo(i, group) for i, group in groups.items()]
    held = held_back_ids(photos)
    assert held <= set(groups)
    for group in set(groups.values()) - {None}:
        assert len({i in held for i, g in groups.items() if g == group}) == 1
    for image_id, group in groups.items():
        if group is None:
            assert (image_id in held) == (image_id % HELD_BACK_OF in HELD_BACK_REMAINDERS)


def test_what_a_run_sees_and_what_it_validates_on() -> None:
    photos = [photo(i) for i in range(100)]
    held = held_back_ids(photos)
    both = source(holdout_every=4, hold_back_tenth=True)
    assert unseen_ids(photos, both) == held | {i for i in range(100) if i % 4 == 0}
    assert validation_ids(photos, both) == {i for i in range(100) if i % 4 == 0} - held
    assert unseen_ids(photos, source(holdout_every=4)) == validation_ids(photos, source(holdout_every=4))
    assert unseen_ids(photos, source(hold_back_tenth=True)) == held
    assert validation_ids(photos, source(hold_back_tenth=True)) == frozenset()
    assert unseen_ids(photos, source()) == frozenset()


def test_training_neither_cuts_out_nor_shows_held_back_people(tmp_path: Path) -> None:
    """The library, the photographs and the reader's group, end to end; ids 1 to 6, 5 is in the tenth, 6 its double."""
    write_people(tmp_path / "people", pictures=6)
    file = tmp_path / "people" / "annotations.json"
    content = json.loads(file.read_text())
    for entry in content["images"][4:]:
        entry["near_duplicate_group"] = 1
    file.write_text(json.dumps(content))
    held = SourceSettings(
        annotations="people/annotations.json",
        images="people/images",
        photo_weight=1.0,
        cutout_weight=1.0,
        hold_back_tenth=True,
    )
    folder = open_source(tmp_path, held)
    assert held_back_ids(folder.photos) == {5, 6}
    assert [c.origin for c in cut_out_people(folder, without=())] == [f"{i:06d}.png#0" for i in range(1, 7)]
    (tmp_path / "backgrounds").mkdir()
    (tmp_path / "backgrounds" / "1.png").write_bytes((tmp_path / "people" / "images" / "000001.png").read_bytes())
    chosen = tiny_settings(tmp_path, tmp_path / "out", sources=(held,))
    library = CutoutLibrary({held: folder}, chosen)
    assert {c.origin for c in library.groups[0]} == {f"{i:06d}.png#0" for i in range(1, 5)}
    assert {p.image_id for _, p in SceneDataset(chosen).photos} == {1, 2, 3, 4}
    everybody = SceneDataset(replace(chosen, sources=(replace(held, hold_back_tenth=False),)))
    assert {p.image_id for _, p in everybody.photos} == {1, 2, 3, 4, 5, 6}
    assert [p.near_duplicate_group for p in read_photos(file)] == [None] * 4 + [1, 1]


def test_the_key_of_a_recipe_must_be_a_switch() -> None:
    entry = {"annotations": "a", "images": "b", "hold_back_tenth": True}
    assert settings_from_json({"sources": [entry]}, data="d", output="o").sources[0].hold_back_tenth
    with pytest.raises(ValueError, match="hold_back_tenth of a source must be true or false, got 10"):
        settings_from_json({"sources": [{**entry, "hold_back_tenth": 10}]}, data="d", output="o")
