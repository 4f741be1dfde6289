"""People hidden before anybody sees a picture: nothing behind the stage has their px, and no frame is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.layers.draw_stage import DrawStage
from pipeline.layers.hide_stage import HideStage
from pipeline.layers.options import HIDING, ChosenPeople
from tests.layer_results import Box, result_of, textured

PERSON: Box = (40.0, 30.0, 70.0, 100.0)
SCENE = textured(120, 160, seed=3) // 4  # dark


def seen(number: int, *, found: bool = True, stream: int = 0):
    """Bright stripes stand where the person is."""
    image = SCENE.copy()
    image[30:100, 40:70:2] = 255
    result = result_of({1: PERSON} if found else {}, number=number, image=image)
    frame = replace(result.frame, stream=stream)
    poses = replace(result.masks.rois.poses, frame=frame)
    return replace(result, masks=replace(result.masks, rois=replace(result.masks.rois, poses=poses)))


def stage(kind: str = "blur", *, ahead: int = 0, draw: bool = False, chosen: ChosenPeople | None = None) -> HideStage:
    made = HideStage(kind, chosen or ChosenPeople(), mask_threshold=0.5, frames=20, ahead=ahead, draw=draw)
    made.open()
    return made


def stripes(picture: np.ndarray) -> bool:
    """Whether the person can be told in a picture."""
    return bool((picture[30:100, 40:70].max(axis=2) > 250).any())


@pytest.mark.parametrize("kind", HIDING)
def test_no_picture_behind_the_stage_shows_them(kind: str) -> None:
    hide = stage(kind, draw=True)
    for number in range(30):
        given_result = seen(number, found=number % 5 < 3)
        result = hide.process(given_result)
        assert stripes(given_result.frame.image)
        assert not stripes(result.frame.image)
        assert result.masks.rois.poses.frame is result.frame
        assert result.drawn is not None
        assert [person.id for person in result.people] == [person.id for person in given_result.people]
        np.testing.assert_array_equal(result.frame.image[:, 100:], SCENE[:, 100:])
        if not result.people:  # what is drawn begins with the hidden picture
            np.testing.assert_array_equal(result.drawn, result.frame.image)


@pytest.mark.parametrize("kind", HIDING)
@pytest.mark.parametrize("chosen", [ChosenPeople(), ChosenPeople(ids=frozenset({2}), others=False)])
def test_whoever_is_hidden_is_hidden_where_somebody_else_is_surer(kind: str, chosen: ChosenPeople) -> None:
    """Masks that do not overlap change no px of what is hidden: also not where the other one may be seen."""
    pictures = []
    for exclusive in (False, True):
        hide = stage(kind, chosen=chosen)
        boxes: dict[int, Box] = {1: (20.0, 10.0, 90.0, 110.0), 2: (50.0, 40.0, 75.0, 100.0)}
        for number in range(4):
            if number == 2:
                boxes[2] = (60.0, 40.0, 105.0, 100.0)
            result = result_of(boxes, number=number, sure=0.9, exclusive=exclusive)
            pictures.append(hide.process(result).frame.image)
        assert (result.people[1].crop.mask.shape[1] == 45) == (not exclusive)
    for overlapping, exclusive in zip(pictures[:4], pictures[4:], strict=True):
        np.testing.assert_array_equal(overlapping, exclusive)


@given(streams=st.lists(st.integers(0, 2), max_size=30), ahead=st.integers(0, 5))
def test_every_stream_is_held_back_by_itself_and_loses_nothing(streams: list[int], ahead: int) -> None:
    hide = stage(ahead=ahead)
    given_numbers: dict[int, list[int]] = {}
    out: dict[int, list[int]] = {}
    for number, stream in enumerate(streams):
        given_numbers.setdefault(stream, []).append(number)
        for result in hide.process_held(seen(number, stream=stream)):
            out.setdefault(stream, []).append(result.frame.index)
            assert len(given_numbers[stream]) - len(out[stream]) == ahead
    for result in hide.rest():
        out.setdefault(result.frame.stream, []).append(result.frame.index)
    assert out == given_numbers


def test_somebody_who_comes_into_view_is_hidden_in_the_frames_before() -> None:
    for ahead, shown in ((0, 4), (4, 0), (6, 0), (2, 2)):
        hide = stage(ahead=ahead)
        results = [one for n in range(8) for one in hide.process_held(seen(n, found=n >= 4))]
        results += hide.rest()
        assert sum(stripes(result.frame.image) for result in results) == shown


def test_only_what_is_drawn_hides_them() -> None:
    hide = HideStage("blur", ChosenPeople(), mask_threshold=0.5, frames=20, ahead=0, draw=False, drawn_only=True)
    result = hide.process(seen(0))
    assert hide.name == "draw"
    assert stripes(result.frame.image) and not stripes(result.drawn)


def test_a_layer_is_drawn_for_each_stream_by_itself() -> None:
    made: list[int] = []

    def make_paint():
        made.append(len(made))
        number = made[-1]
        return lambda result: np.full((120, 160), 10 * number, np.uint8)

    draw = DrawStage(make_paint)
    for number, stream in enumerate([0, 1, 0, 2, 1]):
        result = draw.process(seen(number, stream=stream))
        assert result.drawn.shape == (120, 160, 3)
        assert (result.drawn == 10 * stream).all()
        assert stripes(result.frame.image)
    assert made == [0, 1, 2]


def test_only_chosen_people() -> None:
    assert stripes(stage(chosen=ChosenPeople(ids=frozenset({1}))).process(seen(0)).frame.image)
    assert not stripes(stage(chosen=ChosenPeople(ids=frozenset({1}), others=False)).process(seen(0)).frame.image)
