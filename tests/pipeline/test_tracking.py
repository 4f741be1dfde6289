from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking import MEMORY_S, PersonTracker
from tests.fakes import STANDING

EVERY_S = 1 / 25


def poses(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    keypoints = np.full((len(boxes), 17, 3), 0.9, np.float32)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        keypoints[n, :, :2] = np.array([x0, y0]) + STANDING * (x1 - x0, y1 - y0)
    return keypoints


def assign(tracker: PersonTracker, time_s: float, *boxes, clip: int = 0, weak: tuple[int, ...] = ()) -> list[int]:
    keypoints = poses(*boxes)
    sure = np.ones(len(boxes), np.bool_)
    sure[list(weak)] = False
    visible = np.ones((len(boxes), 17), np.bool_)
    return tracker.assign(keypoints, visible, sure, clip=clip, time_s=time_s).tolist()


def test_a_walking_person_keeps_the_id() -> None:
    tracker = PersonTracker()
    ids = [assign(tracker, i * EVERY_S, (10 + 6 * i, 20, 60 + 6 * i, 180))[0] for i in range(100)]
    assert set(ids) == {1}


def test_two_people_who_pass_each_other_keep_their_ids() -> None:
    """They walk on the same line through each other; at the crossing only their speed tells them apart."""
    tracker = PersonTracker()
    for i in range(60):
        right, left = (10 + 5 * i, 20, 60 + 5 * i, 180), (310 - 5 * i, 22, 360 - 5 * i, 182)
        order = (right, left) if i % 2 else (left, right)  # the network's order means nothing
        ids = assign(tracker, i * EVERY_S, *order)
        if i == 0:
            left_id, right_id = ids
        assert ids == ([right_id, left_id] if i % 2 else [left_id, right_id]), i


def test_a_short_absence_is_forgiven_a_long_one_is_not() -> None:
    tracker = PersonTracker()
    box = (10, 20, 60, 180)
    assert assign(tracker, 0.0, box) == [1]
    assert assign(tracker, 0.1) == []
    assert assign(tracker, 0.9 * MEMORY_S, box) == [1]
    assert assign(tracker, 0.9 * MEMORY_S + 1.1 * MEMORY_S, box) == [2]


def test_somebody_far_away_is_somebody_else() -> None:
    tracker = PersonTracker()
    assert assign(tracker, 0.0, (10, 20, 60, 180)) == [1]
    assert assign(tracker, EVERY_S, (400, 20, 450, 180)) == [2]
    assert assign(tracker, 2 * EVERY_S, (10, 20, 60, 180), (400, 20, 450, 180)) == [1, 2]


def test_a_weak_pose_goes_on_being_somebody_but_is_nobody_new() -> None:
    tracker = PersonTracker()
    here, there = (10, 20, 60, 180), (200, 20, 250, 180)
    assert assign(tracker, 0.0, here, there, weak=(1,)) == [1, 0]
    assert assign(tracker, EVERY_S, here, there, weak=(0, 1)) == [1, 0]
    assert assign(tracker, 2 * EVERY_S, here, there, weak=(0,)) == [1, 2]
    assert assign(tracker, 3 * EVERY_S, here, here, there, weak=(1, 2)) == [1, 0, 2]  # a double row is nobody
    assert assign(tracker, 4 * EVERY_S + MEMORY_S, here, weak=(0,)) == [0]


def test_another_clip_starts_anew() -> None:
    tracker = PersonTracker()
    assert assign(tracker, 0.0, (10, 20, 60, 180), (200, 20, 250, 180)) == [1, 2]
    assert assign(tracker, 0.0, (200, 20, 250, 180), clip=1) == [1]


def test_time_may_jump_back() -> None:
    tracker = PersonTracker()
    assert assign(tracker, 1000.0, (10, 20, 60, 180)) == [1]
    assert assign(tracker, 0.0, (10, 20, 60, 180)) == [2]
    assert assign(tracker, EVERY_S, (10, 20, 60, 180)) == [2]


def test_equal_times_are_no_division_by_zero() -> None:
    tracker = PersonTracker()
    assert assign(tracker, 1.0, (10, 20, 60, 180)) == [1]
    assert assign(tracker, 1.0, (14, 20, 64, 180)) == [1]


@pytest.mark.parametrize("seen", [slice(0, 2), slice(0, 0)])
def test_people_with_hardly_a_joint_get_ids(seen) -> None:
    tracker = PersonTracker()
    visible = np.zeros((1, 17), np.bool_)
    visible[0, seen] = True
    for i in range(3):
        ids = tracker.assign(poses((10, 20, 60, 180)), visible, np.ones(1, np.bool_), clip=0, time_s=i * EVERY_S)
        assert ids.tolist() == [1]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 500), st.integers(0, 300), st.integers(1, 200)), max_size=5),
        max_size=12,
    )
)
def test_ids_differ_within_a_frame_and_are_never_used_twice(frames) -> None:
    tracker = PersonTracker()
    last_seen: dict[int, int] = {}
    newest = 0
    for i, people in enumerate(frames):
        ids = assign(tracker, i * 0.2, *((x, y, x + size / 2, y + size) for x, y, size in people))
        assert len(set(ids)) == len(ids) == len(people)
        for person_id in ids:
            if person_id in last_seen:
                assert (i - last_seen[person_id]) * 0.2 <= MEMORY_S + 1e-9
            else:
                assert person_id == newest + 1
                newest = person_id
            last_seen[person_id] = i


def test_a_weak_double_row_does_not_drag_a_hidden_person_along() -> None:
    """Two walk towards each other; when the one behind is hidden, the one in front is reported twice, once weakly."""
    tracker = PersonTracker()
    for i in range(20):
        front, behind = (100 + 5 * i, 20, 160 + 5 * i, 180), (290 - 5 * i, 24, 340 - 5 * i, 176)
        if i < 12:
            assert assign(tracker, i * EVERY_S, front, behind) == [1, 2]
        else:
            twice = (front[0] + 6, front[1], front[2] + 6, front[3])
            assert assign(tracker, i * EVERY_S, front, twice, weak=(1,)) == [1, 0], i
    front, behind = (100 + 5 * 34, 20, 160 + 5 * 34, 180), (290 - 5 * 34, 24, 340 - 5 * 34, 176)
    assert assign(tracker, 34 * EVERY_S, front, behind) == [1, 2]


def test_a_half_hidden_pose_says_where_somebody_is_but_not_how_fast() -> None:
    tracker = PersonTracker()
    for i in range(10):
        assert assign(tracker, i * EVERY_S, (10 + 6 * i, 20, 60 + 6 * i, 180)) == [1]
    assert assign(tracker, 10 * EVERY_S, (64, 20, 114, 180), weak=(0,)) == [1]  # its joints seem to stand still
    assert assign(tracker, 24 * EVERY_S, (64 + 6 * 14, 20, 114 + 6 * 14, 180)) == [1]


def test_who_disappears_takes_nobody_elses_id_along() -> None:
    """Of two who stand close together either may vanish; the other is still the other, and so is who comes back."""
    for gone in (0, 1):
        tracker = PersonTracker()
        boxes = [(100, 20, 160, 180), (125, 22, 185, 182)]
        for i in range(10):
            assert assign(tracker, i * EVERY_S, *boxes) == [1, 2]
        for i in range(10, 30):
            assert assign(tracker, i * EVERY_S, boxes[1 - gone]) == [2 - gone], i
        assert assign(tracker, 30 * EVERY_S, *boxes) == [1, 2]


def test_who_stops_behind_somebody_comes_back_as_the_same() -> None:
    """Hidden for a second, and then on either side: the last speed no longer says where."""
    for back in (90, 210):
        tracker = PersonTracker()
        standing = (140, 20, 200, 180)
        for i in range(20):
            assert assign(tracker, i * EVERY_S, standing, (20 + 6 * i, 22, 80 + 6 * i, 182)) == [1, 2]
        for i in range(20, 45):
            assert assign(tracker, i * EVERY_S, standing) == [1]
        assert assign(tracker, 45 * EVERY_S, standing, (back, 22, back + 60, 182)) == [1, 2]


def walkers(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Frames of random people who walk, tremble, are missed, weak and half hidden."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    corner, speed = rng.uniform(0, 500, (count, 2)), rng.normal(0, 5, (count, 2))
    size = rng.uniform(80, 240, count)
    frames = []
    for _ in range(25):
        corner += speed
        keypoints = np.full((count, 17, 3), 0.9, np.float32)
        keypoints[:, :, :2] = corner[:, None] + STANDING * (0.4, 1.0) * size[:, None, None]
        keypoints[:, :, :2] += rng.normal(0, 0.01, (count, 17, 2)) * size[:, None, None]
        here = rng.random(count) < 0.8
        frames.append((keypoints[here], rng.random((count, 17))[here] < 0.8, rng.random(count)[here] < 0.8))
    return frames


def names(frames, change=lambda keypoints: keypoints, order=np.arange) -> list[list[int]]:
    """Ids in the frames' own order, numbered by first appearance there, whatever was done to the input."""
    tracker = PersonTracker()
    known: dict[int, int] = {0: 0}
    result = []
    for i, (keypoints, visible, sure) in enumerate(frames):
        shuffled = order(len(sure))
        given = tracker.assign(
            change(keypoints)[shuffled], visible[shuffled], sure[shuffled], clip=0, time_s=i * EVERY_S
        )
        ids = np.zeros(len(sure), int)
        ids[shuffled] = given
        result.append([known.setdefault(person_id, len(known)) for person_id in ids.tolist()])
    return result


@given(st.integers(0, 10**6))
def test_the_order_of_the_poses_means_nothing(seed) -> None:
    frames, rng = walkers(seed), np.random.default_rng(seed)
    assert names(frames, order=rng.permutation) == names(frames)


@given(st.integers(0, 10**6))
def test_a_mirrored_world_gets_the_same_ids(seed) -> None:
    frames = walkers(seed)
    assert names(frames, lambda keypoints: keypoints * np.array([-1, 1, 1], np.float32)) == names(frames)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_a_larger_picture_gets_the_same_ids(scale) -> None:
    """But for a pose at the very threshold: boxes are half a px larger than their joints, at every scale."""
    same = [
        names(frames, lambda keypoints: keypoints * np.array([scale, scale, 1], np.float32)) == names(frames)
        for frames in map(walkers, range(60))
    ]
    assert sum(same) >= 59
