"""Alphas of a run, and where hiding layers must cover: also when detection fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.mask_paste import PastedAlpha
from pipeline.layers.alpha import AlphaMaker, enlarged, together, trimmed
from pipeline.layers.cover import CoverMemory, soft_cover, widened
from pipeline.layers.options import ChosenPeople
from tests.layer_results import Box, plain_maker, result_of, textured

SIZE = (120, 160)
PERSON: Box = (40.0, 30.0, 70.0, 100.0)


def covered(memory: CoverMemory, result) -> np.ndarray:
    """(H, W) uint8: the strongest cover of each px."""
    full = np.zeros((result.frame.height, result.frame.width), np.uint8)
    for cover in memory.of(result):
        np.maximum(full, cover.in_frame(*full.shape), out=full)
    return full


def memory_of(*, frames: int = 20, chosen: ChosenPeople | None = None) -> CoverMemory:
    return CoverMemory(plain_maker(), chosen or ChosenPeople(), frames=frames)


def inside(box: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = (round(value) for value in box)
    return slice(y0, y1), slice(x0, x1)


def moved(box: Box, by: float) -> Box:
    return box[0] + by, box[1], box[2] + by, box[3]


def test_alpha_of_people_who_are_apart_adds_up() -> None:
    result = result_of({1: (10, 20, 40, 100), 2: (80, 20, 120, 110)})
    first, second = plain_maker().of(result)
    both = together([first.alpha, second.alpha], *SIZE)
    np.testing.assert_array_equal(both, first.alpha.in_frame(*SIZE) + second.alpha.in_frame(*SIZE))
    assert both.max() == 255
    np.testing.assert_array_equal(both >= 128, first.person.mask | second.person.mask)


def test_px_that_two_people_share_are_whole_and_never_more() -> None:
    half = PastedAlpha(x0=0, y0=0, alpha=np.full((4, 4), 128, np.uint8))
    most = PastedAlpha(x0=2, y0=2, alpha=np.full((4, 4), 200, np.uint8))
    full = together([half, most], 8, 8)
    assert full[3, 3] == 255 and full[0, 0] == 128 and full[5, 5] == 200 and full[7, 7] == 0


def test_asked_twice_about_a_frame_nothing_moves_on() -> None:
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=False, steady=True)
    memory = CoverMemory(maker, ChosenPeople(), frames=2)
    memory.of(result_of({1: PERSON}))
    lost = result_of({}, number=1)
    assert maker.of(lost) is maker.of(lost)
    for _ in range(5):
        assert memory.of(lost)
    assert memory.of(result_of({}, number=2))
    assert not memory.of(result_of({}, number=3))


def test_edges_hold_still_on_a_still_picture_and_start_anew_with_a_clip() -> None:
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=False, steady=True)
    picture = textured(*SIZE)
    wide: Box = (36.0, 30.0, 74.0, 100.0)
    maker.of(result_of({1: PERSON}, image=picture))
    (held,) = maker.of(result_of({1: wide}, number=1, image=picture))
    (fresh,) = plain_maker().of(result_of({1: wide}, image=picture))
    at = (60, 38)  # new in the wide one
    assert fresh.alpha.in_frame(*SIZE)[at] == 255
    assert 0 < held.alpha.in_frame(*SIZE)[at] < 100
    (anew,) = maker.of(result_of({1: wide}, number=2, image=picture, clip=1))
    np.testing.assert_array_equal(anew.alpha.in_frame(*SIZE), fresh.alpha.in_frame(*SIZE))


def test_edges_follow_at_once_where_the_picture_changes() -> None:
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=False, steady=True)
    maker.of(result_of({1: PERSON}, image=textured(*SIZE, seed=1)))
    (alpha,) = maker.of(result_of({1: moved(PERSON, 9)}, number=1, image=textured(*SIZE, seed=2)))
    (fresh,) = plain_maker().of(result_of({1: moved(PERSON, 9)}))
    np.testing.assert_array_equal(alpha.alpha.in_frame(*SIZE), fresh.alpha.in_frame(*SIZE))


def test_refined_edges_of_a_person_at_the_border_stay_in_the_frame() -> None:
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=True, steady=True)
    for number in range(3):
        (one,) = maker.of(result_of({1: (-20.0, -10.0, 60.0, 130.0)}, number=number))
        assert one.alpha.in_frame(*SIZE).shape == SIZE


def test_a_person_is_covered_whole_and_a_little_more() -> None:
    full = covered(memory_of(), result_of({1: PERSON}))
    assert (full[inside(PERSON)] == 255).all()
    assert full[29, 50] == 255
    assert full[25 - 12, 50] == 0  # but not everything
    assert full[60, 90] == 0


@pytest.mark.parametrize("speed", [0.0, 1.0, 3.0])
def test_detections_that_are_dropped_leave_the_person_covered(speed: float) -> None:
    """The person walks on while the network finds nobody; the region grows as fast as they went."""
    memory = memory_of(frames=15)
    for number in range(5):
        covered(memory, result_of({1: moved(PERSON, speed * number)}, number=number))
    for number in range(5, 20):
        full = covered(memory, result_of({}, number=number))
        assert (full[inside(moved(PERSON, speed * number))] == 255).all(), number
    assert not covered(memory, result_of({}, number=20)).any()  # the limit that --cover-frames sets


@given(st.lists(st.booleans(), min_size=3, max_size=25), st.floats(-2.0, 2.0))
def test_any_pattern_of_dropped_detections(found: list[bool], speed: float) -> None:
    memory = memory_of(frames=30)
    for number in range(4):
        memory.of(result_of({1: moved(PERSON, speed * number)}, number=number))
    for number, here in enumerate(found, 4):
        box = moved(PERSON, speed * number)
        full = covered(memory, result_of({1: box} if here else {}, number=number))
        assert (full[inside(box)] == 255).all(), number


def test_a_mask_that_fails_is_replaced_by_the_box_of_the_joints() -> None:
    memory = memory_of()
    full = covered(memory, result_of({1: PERSON}, empty_masks=True))
    joints = result_of({1: PERSON}).people[0].keypoints[:, :2]
    assert all(full[round(y), round(x)] == 255 for x, y in joints)
    assert (full == 255).sum() > 0.8 * 30 * 70


def test_an_alpha_that_lost_something_uncovers_nothing() -> None:
    """Refined edges may be wrong: the mask of the network is covered all the same."""

    class Eaten(AlphaMaker):
        def of(self, result):
            eaten = PastedAlpha(x0=50, y0=40, alpha=np.full((9, 9), 255, np.uint8))
            return [replace(one, alpha=eaten) for one in super().of(result)]

    maker = Eaten(mask_threshold=0.5, exclusive=False, refine=False, steady=False)
    full = covered(CoverMemory(maker, ChosenPeople(), frames=5), result_of({1: PERSON}))
    assert (full[inside(PERSON)] == 255).all()


def test_an_arm_that_the_mask_leaves_out_is_covered() -> None:
    result = result_of({1: PERSON})
    (person,) = result.people
    keypoints = person.keypoints.copy()
    keypoints[9, :2] = (110.0, 40.0)  # the left wrist, far to the right
    result = replace(result, people=(replace(person, keypoints=keypoints),))
    full = covered(memory_of(), result)
    elbow = keypoints[7, :2]
    for share in (0.3, 0.6, 1.0):
        x, y = elbow + share * (keypoints[9, :2] - elbow)
        assert full[round(y), round(x)] == 255
    assert full[90, 110] == 0


def test_a_mask_that_collapses_keeps_the_region_of_before() -> None:
    memory = memory_of()
    covered(memory, result_of({1: PERSON}))
    full = covered(memory, result_of({1: (50.0, 80.0, 60.0, 100.0)}, number=1))
    assert (full[inside(PERSON)] == 255).all()


def test_only_chosen_people_and_a_new_clip_forgets() -> None:
    people = {1: PERSON, 2: (100.0, 30.0, 130.0, 100.0)}
    for chosen, expected in (
        (ChosenPeople(ids=frozenset({1}), others=False), (True, False)),
        (ChosenPeople(ids=frozenset({1}), others=True), (False, True)),
    ):
        memory = memory_of(chosen=chosen)
        full = covered(memory, result_of(people))
        assert ((full[65, 55] == 255), (full[65, 115] == 255)) == expected
        assert not covered(memory, result_of({}, number=1, clip=1)).any()


@pytest.mark.parametrize("box", [(-30.0, -30.0, 20.0, 60.0), (150.0, 100.0, 170.0, 140.0), (0.0, 0.0, 160.0, 120.0)])
def test_covers_at_the_border_of_the_frame(box: Box) -> None:
    memory = memory_of()
    for number in range(8):
        full = covered(memory, result_of({1: box} if number < 2 else {}, number=number))
        rows, columns = inside((max(0, box[0]), max(0, box[1]), min(160, box[2]), min(120, box[3])))
        assert (full[rows, columns] == 255).all()


def test_growing_and_trimming() -> None:
    dot = PastedAlpha(x0=3, y0=4, alpha=np.full((1, 1), 255, np.uint8))
    wide = widened(dot, 2, 12, 12)
    assert wide.in_frame(12, 12).sum() == 25 * 255
    assert (trimmed(enlarged(dot, 5, 12, 12)).x0, trimmed(enlarged(dot, 5, 12, 12)).y0) == (3, 4)
    soft = soft_cover(dot, 4, 30, 30).in_frame(30, 30)
    assert soft[4, 3] == 255 and soft[4, 3 + 2] == 255 and 0 < soft[4, 3 + 5] < 255 and soft[4, 3 + 7] == 0
    empty = PastedAlpha(x0=0, y0=0, alpha=np.zeros((0, 0), np.uint8))
    assert not soft_cover(empty, 4, 30, 30).alpha.size
    assert not trimmed(PastedAlpha(x0=2, y0=2, alpha=np.zeros((3, 3), np.uint8))).alpha.size


def test_the_region_of_before_is_given_up_after_the_time_of_a_lost_person() -> None:
    memory = memory_of(frames=5)
    small: Box = (50.0, 80.0, 60.0, 100.0)
    covered(memory, result_of({1: PERSON}))
    kept = [covered(memory, result_of({1: small}, number=number))[40, 55] == 255 for number in range(1, 9)]
    assert kept == [True] * 5 + [False] * 3
    full = covered(memory, result_of({1: small}, number=9))
    assert (full[inside(small)] == 255).all()
