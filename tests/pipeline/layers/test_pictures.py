"""What each layer shows; px away from people are the frame's own, byte for byte."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.alpha_edges import blend_over
from kernels.background_model import FREE_FRAMES
from pipeline.errors import SettingsError
from pipeline.layers.cover import CoverMemory
from pipeline.layers.covered_frames import CoveredFrames
from pipeline.layers.options import ChosenPeople
from pipeline.layers.pictures import (
    NewBackground,
    Remover,
    blur,
    cutout,
    matte,
    outline,
    pixelate,
    read_picture,
)
from pipeline.layers.presence_map import presence_map
from tests.layer_results import Box, plain_maker, result_of, textured

SIZE = (120, 160)
EVERYBODY = ChosenPeople()
LEFT: Box = (20.0, 30.0, 50.0, 100.0)
RIGHT: Box = (100.0, 25.0, 135.0, 105.0)
boxes = st.tuples(st.floats(-20, 120), st.floats(-20, 80), st.floats(12, 60), st.floats(12, 60)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


def hiding(paint, chosen: ChosenPeople = EVERYBODY):
    """Result -> picture, with nothing held back."""
    covered = CoveredFrames(plain_maker(), chosen, frames=10)

    def painted(result) -> np.ndarray:
        (due,) = covered.of(result)
        return paint(due)

    return painted


def covered_px(result) -> np.ndarray:
    full = np.zeros(SIZE, np.bool_)
    for cover in CoverMemory(plain_maker(), EVERYBODY, frames=10).of(result):
        full |= cover.in_frame(*SIZE) > 0
    return full


@given(st.lists(boxes, max_size=3))
def test_hiding_leaves_all_other_px_untouched(people: list[Box]) -> None:
    result = result_of(dict(enumerate(people, 1)))
    before = result.frame.image.copy()
    free = ~covered_px(result)
    for paint in (hiding(blur), hiding(pixelate), hiding(Remover())):
        picture = paint(result)
        assert picture.shape == before.shape and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture[free], before[free])
    np.testing.assert_array_equal(result.frame.image, before)


@given(st.lists(boxes, max_size=3))
def test_a_cutout_over_its_own_frame_is_the_frame(people: list[Box]) -> None:
    result = result_of(dict(enumerate(people, 1)))
    picture = cutout(plain_maker(), EVERYBODY)(result)
    target = result.frame.image.copy()
    blend_over(target, np.ascontiguousarray(picture[:, :, :3]), np.ascontiguousarray(picture[:, :, 3]), 0, 0)
    np.testing.assert_array_equal(target, result.frame.image)
    np.testing.assert_array_equal(picture[:, :, 3], matte(plain_maker(), EVERYBODY)(result))


def test_a_cutout_shows_nothing_of_the_scene() -> None:
    picture = cutout(plain_maker(), ChosenPeople(ids=frozenset({1}), others=False))(result_of({1: LEFT, 2: RIGHT}))
    assert picture[60, 35, 3] == 255
    assert not picture[60, 70:, :].any()


@pytest.mark.parametrize("make", [blur, pixelate], ids=["blur", "pixelate"])
def test_what_is_hidden_has_lost_its_detail(make) -> None:
    """A person of fine stripes: their contrast is gone, and what is left is much coarser than a face."""
    image = np.full((*SIZE, 3), 128, np.uint8)
    image[:, ::2] = 255
    image[:, 1::2] = 0
    picture = hiding(make)(result_of({1: RIGHT}, image=image))
    inside = picture[40:90, 108:128].astype(int)
    assert np.abs(np.diff(inside, axis=1)).max() <= 40
    assert np.abs(inside - 128).max() < 40


def test_blocks_stay_on_their_grid_while_a_person_moves() -> None:
    image = textured(*SIZE)
    first = hiding(pixelate)(result_of({1: LEFT}, image=image))
    second = hiding(pixelate)(result_of({1: (LEFT[0] + 1, *LEFT[1:3], LEFT[3])}, image=image))
    np.testing.assert_array_equal(first[40:90, 28:44], second[40:90, 28:44])


def test_everybody_else_is_hidden_and_wins_over_the_chosen_one() -> None:
    others = ChosenPeople(ids=frozenset({1}), others=True)
    result = result_of({1: LEFT, 2: (40.0, 30.0, 80.0, 100.0)})
    picture = hiding(blur, others)(result)
    np.testing.assert_array_equal(picture[40:90, 21:33], result.frame.image[40:90, 21:33])
    assert not np.array_equal(picture[40:90, 42:49], result.frame.image[40:90, 42:49])  # where both are


def test_removed_people_give_way_to_the_scene_seen_before() -> None:
    scene = textured(*SIZE, seed=5)
    remover = hiding(Remover())
    start: Box = (110.0, 30.0, 140.0, 100.0)
    for number in range(FREE_FRAMES + 2):
        remover(result_of({1: start}, number=number, image=scene))
    with_person = scene.copy()
    with_person[30:100, 20:50] = 255
    picture = remover(result_of({1: LEFT}, number=FREE_FRAMES + 2, image=with_person))
    rows, columns = slice(20, 110), slice(0, 60)
    np.testing.assert_array_equal(picture[rows, columns], scene[rows, columns])


def test_somebody_who_was_not_found_for_long_is_not_shown_as_scene() -> None:
    """They were learned as a part of the scene; when they are found at last, that is forgotten around them."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[30:100, 20:50] = (255, 0, 0)
    remover = hiding(Remover())
    for number in range(3 * FREE_FRAMES):
        remover(result_of({}, number=number, image=image))
    picture = remover(result_of({1: LEFT}, number=3 * FREE_FRAMES, image=image))
    assert np.abs(picture.astype(int) - 90).max() <= 2


def test_people_who_were_always_there_give_way_to_the_colours_around_them() -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[30:100, 20:50] = (255, 0, 0)
    picture = hiding(Remover())(result_of({1: LEFT}, image=image))
    assert np.abs(picture.astype(int) - 90).max() <= 2


def test_a_scene_that_changed_is_forgotten() -> None:
    """After a cut nothing of the old scene may come back, also without a new clip."""
    remover = hiding(Remover())
    for number in range(FREE_FRAMES + 2):
        remover(result_of({}, number=number, image=np.full((*SIZE, 3), 20, np.uint8)))
    picture = remover(result_of({1: LEFT}, number=FREE_FRAMES + 2, image=np.full((*SIZE, 3), 180, np.uint8)))
    assert np.abs(picture.astype(int) - 180).max() <= 2


@pytest.mark.parametrize("background", [(0, 177, 64), None, "picture"], ids=["colour", "blur", "picture"])
def test_people_over_another_background(background) -> None:
    given_picture = textured(70, 50, seed=9) if background == "picture" else background
    result = result_of({1: LEFT, 2: RIGHT})
    only_first = ChosenPeople(ids=frozenset({1}), others=False)
    picture = NewBackground(plain_maker(), only_first, given_picture)(result)
    np.testing.assert_array_equal(picture[35:95, 25:45], result.frame.image[35:95, 25:45])
    assert not np.array_equal(picture[35:95, 105:130], result.frame.image[35:95, 105:130])
    if background == (0, 177, 64):
        assert (picture[:, 60:] == background).all()


def test_a_blurred_scene_holds_nothing_of_the_people() -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[30:100, 20:50] = (255, 0, 0)
    picture = NewBackground(plain_maker(), EVERYBODY, None)(result_of({1: LEFT}, image=image))
    far = np.ones(SIZE, np.bool_)
    far[28:102, 18:52] = False
    assert np.abs(picture[far].astype(int) - 90).max() <= 2  # no red shine


def test_outlines_on_the_frame_and_alone() -> None:
    result = result_of({1: LEFT})
    drawn = outline(plain_maker(), EVERYBODY, alone=False)(result)
    alone = outline(plain_maker(), EVERYBODY, alone=True)(result)
    line = alone[:, :, 3] > 0
    assert line[60, 18:23].any() and not line[60, 35] and not line[60, 100]
    np.testing.assert_array_equal(drawn[~line], result.frame.image[~line])
    assert (drawn[line] != result.frame.image[line]).any()


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_picture(tmp_path / "missing.png")
    for content in (b"", b"no picture"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(SettingsError, match="expected a picture"):
            read_picture(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 3, 3), (0, 0, 255), np.uint8))
    assert read_picture(tmp_path / "a.png")[0, 0].tolist() == [255, 0, 0]


def test_the_presence_map_is_brightest_where_somebody_stayed_longest() -> None:
    alpha_sum = np.zeros(SIZE, np.float32)
    alpha_sum[20:60, 20:60] = 255 * 10
    alpha_sum[20:60, 90:130] = 255 * 1
    picture = presence_map(np.full((*SIZE, 3), 60, np.uint8), alpha_sum, 20).astype(int).sum(axis=2)
    assert picture[40, 40] > picture[40, 110] > picture[80, 80]
    assert presence_map(textured(*SIZE), np.zeros(SIZE, np.float32), 3).shape == (*SIZE, 3)
