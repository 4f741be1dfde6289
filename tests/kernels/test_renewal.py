"""What to look at again: the twin, the promises as properties, and small cases by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.changed_blocks import BLOCK_PX
from kernels.renewal import Renewal, plan_renewal, plan_renewal_reference, pose_boxes

NOBODY = np.zeros((0, 4), np.int64)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    grid = draw(st.sampled_from([16, 32]))
    height, width = grid * draw(st.integers(1, 9)), grid * draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    changed = rng.random((-(-height // BLOCK_PX), -(-width // BLOCK_PX))) < draw(st.sampled_from([0, 0.01, 0.05, 0.3]))
    count = draw(st.integers(0, 5))
    corner = rng.integers(-40, [width, height], (count, 2))
    people = np.concatenate((corner, corner + rng.integers(1, 120, (count, 2))), 1)
    return {
        "changed": changed,
        "people": people,
        "height": height,
        "width": width,
        "grid": grid,
        "margin": grid * draw(st.integers(0, 2)),
    }


def meets(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((np.minimum(first[2:], second[2:]) > np.maximum(first[:2], second[:2])).all())


def inside(inner: np.ndarray, outer: np.ndarray) -> bool:
    return bool((inner[:2] >= outer[:2]).all() and (inner[2:] <= outer[2:]).all())


@given(cases())
def test_twin(case: dict[str, Any]) -> None:
    fast, slow = plan_renewal(**case), plan_renewal_reference(**case)
    if fast is None or slow is None:
        assert fast is slow
        return
    for name in ("crops", "cores", "kept"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


@given(cases())
def test_promises(case: dict[str, Any]) -> None:
    plan = plan_renewal(**case)
    if plan is None:
        return
    picture = np.array([0, 0, case["width"], case["height"]])
    grid, margin = case["grid"], case["margin"]
    for crop, core in zip(plan.crops, plan.cores, strict=True):
        assert inside(crop, picture)
        assert not (crop % grid).any()
        assert (crop[2:] - crop[:2] >= grid).all()
        assert inside(core, crop)
        cut = crop != picture
        np.testing.assert_array_equal(np.abs(crop - core), np.where(cut, margin, 0))
    for row, column in np.argwhere(case["changed"]):  # every change is looked at, and believed
        block = np.array([column, row, column + 1, row + 1]) * BLOCK_PX
        assert any(inside(np.minimum(block, np.tile(picture[2:], 2)), core) for core in plan.cores)
    for person, kept in zip(case["people"], plan.kept, strict=True):
        visible = np.array([*np.clip(person[:2], 0, picture[2:]), *np.clip(person[2:], 0, picture[2:])])
        if kept:
            assert not any(meets(person, core) for core in plan.cores)
        elif (visible[2:] > visible[:2]).all():  # looked at as a whole
            assert any(inside(visible, core) for core in plan.cores)


def planned(changed: np.ndarray, people: np.ndarray, **options: int) -> Renewal:
    height, width = (side * BLOCK_PX for side in changed.shape)
    plan = plan_renewal(changed, people, **{"height": height, "width": width, "grid": 32, "margin": 32, **options})
    assert plan is not None
    return plan


def test_nothing_changed_is_nothing_to_look_at() -> None:
    plan = planned(np.zeros((18, 32), np.bool_), np.array([[10, 10, 90, 200]]))
    assert (len(plan.crops), plan.kept.tolist()) == (0, [True])


def test_a_change_takes_the_person_it_touches_along_and_leaves_the_other() -> None:
    changed = np.zeros((18, 32), np.bool_)
    changed[9, 6] = True
    people = np.array([[90, 70, 150, 250], [400, 60, 470, 260]])
    plan = planned(changed, people)
    assert plan.kept.tolist() == [False, True]
    assert plan.crops.tolist() == [[32, 32, 192, 288]]
    assert plan.cores.tolist() == [[64, 64, 160, 288]]


def test_changes_far_apart_are_two_crops_and_near_ones_one() -> None:
    changed = np.zeros((18, 32), np.bool_)
    changed[2, 2] = changed[15, 29] = True
    assert len(planned(changed, NOBODY).crops) == 2
    changed[2, 5] = True
    assert len(planned(changed, NOBODY).crops) == 2


def test_snow_is_the_whole_picture() -> None:
    changed = np.zeros((60, 60), np.bool_)
    changed[::3, ::3] = True
    assert plan_renewal(changed, NOBODY, height=960, width=960, grid=32, margin=32) is None


def test_boxes_of_poses() -> None:
    pose = np.zeros((2, 17, 3), np.float32)
    pose[0, 3], pose[0, 7], pose[0, 9] = (10, 20, 0.5), (30, 60, 0.9), (500, 500, 0.01)
    pose[1, :, :2] = (5.5, 7)
    assert pose_boxes(pose, grow=0.25).tolist() == [[0, 10, 41, 71], [5, 7, 7, 8]]
    assert pose_boxes(pose[:0], grow=0.25).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changed": np.zeros((3, 3), np.bool_)}, "changed must be bool"),
        ({"changed": np.zeros((2, 4), np.uint8)}, "changed must be bool"),
        ({"people": np.zeros((2, 3), np.int64)}, r"people must be \(N, 4\)"),
        ({"margin": 20}, "multiples of the grid"),
        ({"grid": 48, "margin": 48}, "multiples of the grid"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"changed": np.zeros((2, 4), np.bool_), "people": NOBODY, "grid": 32, "margin": 32, **change}
    for function in (plan_renewal, plan_renewal_reference):
        with pytest.raises(ValueError, match=message):
            function(**arguments, height=32, width=64)
