"""Frames that are held back: whoever is found later is covered in the frames before; gaps and other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.layers.covered_frames import CoveredFrame, CoveredFrames
from pipeline.layers.options import ChosenPeople
from tests.layer_results import Box, plain_maker, result_of

HEIGHT, WIDTH = 120, 400


def line(*, ahead: int, frames: int = 20, chosen: ChosenPeople | None = None) -> CoveredFrames:
    return CoveredFrames(plain_maker(), chosen or ChosenPeople(), frames=frames, ahead=ahead)


def walking(number: int, speed: float) -> Box:
    return (10.0 + speed * number, 30.0, 40.0 + speed * number, 100.0)


def covered_share(covered: CoveredFrame, box: Box) -> float:
    """Of the px of a box inside the frame, how many are whole under a cover."""
    size = (covered.frame.height, covered.frame.width)
    full = np.zeros(size, np.uint8)
    for cover in covered.covers:
        full = np.maximum(full, cover.in_frame(*size))
    x0, y0, x1, y1 = (round(value) for value in box)
    part = full[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    return float((part == 255).mean()) if part.size else 1.0


def run(covered: CoveredFrames, results) -> list[CoveredFrame]:
    found = [one for result in results for one in covered.of(result)]
    return [*found, *covered.rest()]


@given(ahead=st.integers(0, 12), count=st.integers(0, 20))
def test_every_frame_comes_once_in_order_and_so_late(ahead: int, count: int) -> None:
    covered = line(ahead=ahead)
    seen = 0
    for number in range(count):
        due = covered.of(result_of({}, number=number))
        assert [one.frame.index for one in due] == ([number - ahead] if number >= ahead else [])
        assert covered.of(due[0].result) is due if due and ahead == 0 else True
        seen += len(due)
    assert [one.frame.index for one in covered.rest()] == list(range(seen, count))
    assert covered.rest() is covered.rest()


@given(speed=st.floats(0, 5), found_at=st.integers(1, 12), ahead=st.integers(1, 12))
def test_somebody_who_is_found_late_is_covered_in_the_frames_before(speed: float, found_at: int, ahead: int) -> None:
    frames = [
        result_of({1: walking(n, speed)} if n >= found_at else {}, number=n, height=HEIGHT, width=WIDTH)
        for n in range(found_at + ahead + 1)
    ]
    for covered in run(line(ahead=ahead), frames):
        number = covered.frame.index
        if number >= found_at - ahead:
            # a walk of 70 px in height is grown by its whole height at most
            assert covered_share(covered, walking(number, speed)) == 1.0, number
    (first, *_) = run(line(ahead=0), frames)
    assert covered_share(first, walking(0, speed)) == 0.0


def test_who_is_not_chosen_is_not_covered_before_they_are_found() -> None:
    frames = [result_of({1: walking(n, 2.0)} if n >= 3 else {}, number=n) for n in range(8)]
    for chosen, share in ((ChosenPeople(ids=frozenset({1})), 0.0), (ChosenPeople(ids=frozenset({2})), 1.0)):
        found = run(line(ahead=4, chosen=chosen), frames)
        assert covered_share(found[1], walking(1, 2.0)) == share
        assert len(found[1].occupied) == 1  # nothing is learned there all the same


def test_people_of_the_next_clip_cover_nothing_in_this_one() -> None:
    frames = [result_of({}, number=0), result_of({1: walking(0, 0.0)}, number=0, clip=1)]
    found = run(line(ahead=3), frames)
    assert [len(one.covers) for one in found] == [0, 1]


@pytest.mark.parametrize("gap", [1, 4])
def test_a_cover_grows_with_the_frames_that_were_left_out(gap: int) -> None:
    """A live source drops frames: whoever is lost has gone on during those, too."""
    covered = line(ahead=0, frames=3)
    for number in range(8):
        covered.of(result_of({1: walking(number, 4.0)}, number=number, height=HEIGHT, width=WIDTH))
    for step in range(1, 4):
        number = 7 + step * gap
        (due,) = covered.of(result_of({}, number=number, height=HEIGHT, width=WIDTH))
        assert covered_share(due, walking(number, 4.0)) == 1.0
    (due,) = covered.of(result_of({}, number=number + 1, height=HEIGHT, width=WIDTH))
    assert not due.covers


@pytest.mark.parametrize(("found", "lost"), [((0, 1), (6, 11)), ((0, 6, 7), (13, 19)), ((0, 5, 10, 11), (16,))])
def test_a_stream_that_begins_with_gaps_covers_as_far_as_people_went(
    found: tuple[int, ...], lost: tuple[int, ...]
) -> None:
    """Of few distances a gap is half: it is not the usual one all the same."""
    covered = line(ahead=0)
    for number in found:
        covered.of(result_of({1: walking(number, 5.0)}, number=number, height=HEIGHT, width=WIDTH))
    for number in lost:
        (due,) = covered.of(result_of({}, number=number, height=HEIGHT, width=WIDTH))
        assert covered_share(due, walking(number, 5.0)) == 1.0, number


def test_after_a_long_gap_people_stay_covered_until_they_were_looked_for() -> None:
    """A source that was away for a minute: frames that nobody saw do not count against the cover."""
    covered = line(ahead=0, frames=3)
    for number in range(5):
        covered.of(result_of({1: walking(0, 0.0)}, number=number))
    (due,) = covered.of(result_of({}, number=5, pts=25 * 60))
    assert covered_share(due, walking(0, 0.0)) == 1.0


@pytest.mark.parametrize(("height", "width"), [(240, 320), (60, 80), (90, 240), (1, 1)])
def test_another_picture_size_keeps_what_was_covered(height: int, width: int) -> None:
    covered = line(ahead=0)
    for number in range(3):
        covered.of(result_of({1: (40.0, 30.0, 70.0, 100.0)}, number=number))
    (due,) = covered.of(result_of({}, number=3, height=height, width=width))
    x, y = width / 160, height / 120
    assert covered_share(due, (40 * x, 30 * y, 70 * x, 100 * y)) == 1.0
    restored = line(ahead=0)
    restored.restore(covered.to_state())
    (due,) = restored.of(result_of({}, number=4, height=height, width=width))
    assert covered_share(due, (40 * x, 30 * y, 70 * x, 100 * y)) == 1.0
