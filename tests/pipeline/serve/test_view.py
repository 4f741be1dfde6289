from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.overlay import color_of
from pipeline.serve.view import BACKGROUNDS, ViewOptions, ViewPainter, fitted, person_at
from tests.fakes import MAGENTA
from tests.pipeline.serve.held_run import result_of

BARE = ViewOptions(mask=False, skeleton=False, ids=False)
LEFT, RIGHT = (10, 20, 60, 110), (100, 20, 150, 110)


def paint(result, **options):
    return ViewPainter(replace(BARE, **options), mask_threshold=0.5).paint(result)


def middle_of(box) -> tuple[int, int]:
    return (box[1] + box[3]) // 2, (box[0] + box[2]) // 2


def test_nothing_wanted_is_the_frame_itself() -> None:
    result = result_of(0, LEFT, RIGHT)
    before = result.frame.image.copy()
    assert (paint(result) == before).all()
    for options in (ViewOptions(), ViewOptions(blur_others=True, background="blur", selected=1)):
        ViewPainter(options, mask_threshold=0.5).paint(result)
        assert (result.frame.image == before).all()  # arrays in messages are read-only


def test_all_wanted_is_what_a_recording_shows() -> None:
    result = result_of(0, LEFT, RIGHT)
    assert (ViewPainter(ViewOptions(), mask_threshold=0.5).paint(result) == result.overlay()).all()
    drawn = replace(result, drawn=result.overlay())
    assert ViewPainter(ViewOptions(), mask_threshold=0.5).paint(drawn) is drawn.drawn


def test_each_switch_changes_the_picture() -> None:
    result = result_of(0, LEFT, RIGHT)
    pictures = [
        paint(result),
        paint(result, mask=True),
        paint(result, skeleton=True),
        paint(result, ids=True),
        paint(result, blur_others=True),
        *(paint(result, background=kind) for kind in BACKGROUNDS[1:]),
        paint(result, selected=result.people[0].id),
    ]
    for one, other in itertools.combinations(pictures, 2):
        assert (one != other).any()


def test_who_is_not_selected_is_blurred_and_who_is_stays_sharp() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    result = result_of(0, LEFT, RIGHT)
    result.frame.image[...] = noise
    left = next(person for person in result.people if person.bbox[0] < 80)
    hidden = paint(result, blur_others=True, selected=left.id)
    row, column = middle_of(LEFT)
    same = (hidden == noise).all(axis=2)
    assert same[row - 15 : row + 15, column - 8 : column + 8].all()
    row, column = middle_of(RIGHT)
    assert hidden[row - 15 : row + 15, column - 8 : column + 8].std() < 0.3 * noise.std()
    everybody = paint(result, blur_others=True)
    row, column = middle_of(LEFT)
    assert everybody[row - 15 : row + 15, column - 8 : column + 8].std() < 0.3 * noise.std()


@pytest.mark.parametrize(("kind", "color"), [("black", (0, 0, 0)), ("green", (0, 177, 64)), ("dim", (27, 27, 27))])
def test_backgrounds_lie_behind_the_people(kind, color) -> None:
    result = result_of(0, LEFT, RIGHT)
    picture = paint(result, background=kind)
    assert picture[5, 80].tolist() == list(color)
    assert picture[middle_of(LEFT)].tolist() == list(MAGENTA)


def test_who_is_blurred_stays_blurred_before_another_background() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    result = result_of(0, LEFT, RIGHT)
    result.frame.image[...] = noise
    picture = paint(result, blur_others=True, background="black")
    row, column = middle_of(RIGHT)
    part = picture[row - 15 : row + 15, column - 8 : column + 8]
    assert 0 < part.std() < 0.3 * noise.std()
    assert (picture[:10] == 0).all()


def test_the_selected_person_stands_out() -> None:
    result = result_of(0, LEFT, RIGHT)
    left = next(person for person in result.people if person.bbox[0] < 80)
    other = next(person for person in result.people if person is not left)
    picture = paint(result, mask=True, selected=left.id)
    tinted = 0.58 * np.array(MAGENTA) + 0.42 * np.array(color_of(left.id))
    assert picture[middle_of(LEFT)].tolist() == pytest.approx(tinted.tolist(), abs=2)
    assert picture[middle_of(RIGHT)].tolist() == list(MAGENTA)
    assert (picture[:, :80] == 255).all(axis=2).any()
    gone = paint(result, mask=True, selected=other.id + 100)
    assert (gone == paint(result, mask=True)).all()


def test_nobody_in_the_picture() -> None:
    for options in (BARE, ViewOptions(blur_others=True), *(ViewOptions(background=kind) for kind in BACKGROUNDS)):
        picture = ViewPainter(options, mask_threshold=0.5).paint(result_of(0))
        assert picture.shape == (120, 160, 3)
        assert picture.flags.c_contiguous


def test_clicks() -> None:
    result = result_of(0, LEFT, RIGHT)
    left = next(person for person in result.people if person.bbox[0] < 80)
    assert person_at(result, 35 / 160, 65 / 120) is left
    assert person_at(result, 5 / 160, 65 / 120) is left  # beside
    assert person_at(result, 125 / 160, 65 / 120) is not left
    assert person_at(result, 80 / 160, 65 / 120) is None
    assert person_at(result, 0.5, 0.0) is None
    assert person_at(result_of(0), 0.5, 0.5) is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_click_on_a_mask_is_that_person(x, y) -> None:
    result = result_of(0, LEFT, RIGHT)
    found = person_at(result, x, y)
    column, row = min(int(x * 160), 159), min(int(y * 120), 119)
    on = [person for person in result.people if person.mask[row, column]]
    if on:
        assert found is on[0]


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sizes_that_are_shown(height, width) -> None:
    shown = fitted(np.zeros((height, width, 3), np.uint8), 1280)
    assert shown.shape[0] % 2 == shown.shape[1] % 2 == 0
    assert max(shown.shape) <= 1280
    if height % 2 == width % 2 == 0 and max(height, width) <= 1280:
        assert shown.shape == (height, width, 3)


@given(
    st.dictionaries(
        st.sampled_from(["mask", "skeleton", "ids", "blur_others", "background", "selected", "other", ""]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from(BACKGROUNDS)
        | st.text(max_size=9)
        | st.lists(st.none()),
    )
)
def test_wishes_from_outside_are_taken_whole_or_not_at_all(wish) -> None:
    try:
        options = ViewOptions().changed(wish)
    except ValueError:
        return
    assert options.to_dict() == ViewOptions().to_dict() | wish
    assert all(type(options.to_dict()[name]) is bool for name in ("mask", "skeleton", "ids", "blur_others"))
    assert options.background in BACKGROUNDS
    assert options.selected is None or options.selected >= 1


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"mask": 1}, "mask must be true or false"),
        ({"background": "red"}, "background must be one of original, blur"),
        ({"background": ["blur"]}, "background must be one of"),
        ({"selected": True}, "selected must be the id"),
        ({"selected": 0}, "selected must be the id"),
        ({"colour": True}, "expected some of mask, skeleton"),
    ],
)
def test_wrong_wishes_are_explained(wish, said) -> None:
    with pytest.raises(ValueError, match=said):
        ViewOptions().changed(wish)
