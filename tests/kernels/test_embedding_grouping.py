"""Grouping by tags: perfect maps of known people, the published rules one by one, the twin, and broken input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.embedding_grouping import EmbeddingParameters, group_by_tags, group_by_tags_reference
from tests.perfect_maps import candidates, crowds_apart, farthest, heatmaps, standing, tags
from tests.tolerances import SAME_FORMULA

SHAPE = (50, 170)  # cells; 200 x 680 px
NOSE, LEFT_EYE, LEFT_WRIST = 0, 1, 9
QUARTER_PX = 1.0 * np.sqrt(2) + 0.1  # a cell is known to a quarter of itself, that is 1 px each way


def perfect(people, **changes):
    maps, labels = heatmaps(people, SHAPE), tags(people, SHAPE, **changes)
    return candidates(people, maps, labels), maps, labels


@given(crowds_apart())
def test_perfect_maps_give_the_people_they_were_drawn_from(people) -> None:
    found, scores = group_by_tags(*perfect(people))
    assert len(found) == len(people)
    assert farthest(found, people) < QUARTER_PX
    assert (scores > 0.7).all()


def test_people_in_each_others_arms_are_told_apart_by_tags_alone() -> None:
    people = [standing(20, 0), standing(30, 2)]  # joints 10 px apart, boxes almost the same
    found, _ = group_by_tags(*perfect(people))
    assert len(found) == 2
    assert farthest(found, people) < QUARTER_PX
    found, maps, labels = perfect(people)
    found[:9, :, 3] = found[:9, ::-1, 3]  # of the joints above the hands each one has the tag of the other person
    labels[:9] = 3.0 - labels[:9]
    swapped, _ = group_by_tags(found, maps, labels)
    assert len(swapped) == 2
    assert farthest(swapped, [np.concatenate((people[1 - n][:9], people[n][9:])) for n in range(2)]) < QUARTER_PX


def noise(people: int, seed: int = 0, shape=(13, 17)):
    rng = np.random.default_rng(seed)
    found = rng.uniform(0, 60, (17, people, 4))
    found[..., 2] = rng.uniform(0, 1, (17, people))
    found[..., 3] = rng.normal(0, 3, (17, people))
    return tuple(
        part.astype(np.float32)
        for part in (found, rng.uniform(0, 1, (17, *shape)) ** 4, rng.normal(0, 3, (17, *shape)))
    )


@pytest.mark.parametrize("count", [0, 1, 2, 9, 31])
@pytest.mark.parametrize("shape", [(1, 1), (13, 17)])
def test_twin(count, shape) -> None:
    for seed in range(3):
        for parameters in (
            EmbeddingParameters(),
            EmbeddingParameters(min_joint=0.5, max_tag_distance=0.3, max_people=5, refine=0, stride=8),
        ):
            both = [
                group(*noise(count, seed, shape), parameters=parameters)
                for group in (group_by_tags, group_by_tags_reference)
            ]
            for fast, slow in zip(*both, strict=True):
                assert fast.shape == slow.shape
                np.testing.assert_allclose(fast, slow, **SAME_FORMULA)
            assert (np.diff(both[0][1]) <= 0).all()


@given(st.integers(0, 500), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(seed, random) -> None:
    found, maps, labels = noise(7, seed)
    order = list(range(7))
    random.shuffle(order)
    straight, shuffled = group_by_tags(found, maps, labels), group_by_tags(found[:, order], maps, labels)
    # those who start alone are numbered in another order: equal scores may change places, nothing else
    np.testing.assert_allclose(straight[1], shuffled[1], rtol=1e-6)
    rows = [sorted(map(tuple, one[0].reshape(len(one[0]), -1).tolist())) for one in (straight, shuffled)]
    assert rows[0] == rows[1]


@given(crowds_apart(most=3), st.floats(-20, 20))
def test_only_differences_of_tags_count(people, shift) -> None:
    found, maps, labels = perfect(people)
    found[..., 3] += np.float32(shift)
    moved, scores = group_by_tags(found, maps, labels + np.float32(shift))
    assert len(scores) == len(people) and farthest(moved, people) < QUARTER_PX


def by_hand(*rows: tuple[int, float, float, float], shape=(20, 20)):
    """Candidates joint, x, probability, tag; and empty maps."""
    found = np.zeros((17, 4, 4), np.float32)
    used = dict.fromkeys(range(17), 0)
    for joint, x, probability, tag in rows:
        found[joint, used[joint]] = (x, 10, probability, tag)
        used[joint] += 1
    return found, np.zeros((17, *shape), np.float32), np.zeros((17, *shape), np.float32)


def test_the_sum_of_distances_decides_not_the_nearest() -> None:
    """An eye of tag 1.4 is nearer to the person of 2, but the other eye, of 2.6, has nobody else."""
    found, scores = group_by_tags(
        *by_hand((NOSE, 0, 0.9, 0.0), (NOSE, 40, 0.8, 2.0), (LEFT_EYE, 4, 0.9, 1.4), (LEFT_EYE, 44, 0.9, 2.6)),
        parameters=EmbeddingParameters(max_tag_distance=1.5, refine=0),
    )
    assert len(scores) == 2
    first = found[np.argsort(found[:, NOSE, 0])]
    assert first[:, LEFT_EYE, 0].tolist() == [4, 44]


def test_beyond_the_greatest_distance_somebody_new_starts() -> None:
    rows = ((NOSE, 0, 0.9, 0.0), (LEFT_EYE, 4, 0.9, 0.9))
    assert len(group_by_tags(*by_hand(*rows), parameters=EmbeddingParameters(refine=0))[1]) == 1
    parameters = EmbeddingParameters(refine=0, max_tag_distance=0.8)
    assert len(group_by_tags(*by_hand(*rows), parameters=parameters)[1]) == 2
    parameters = EmbeddingParameters(refine=0, max_tag_distance=0.8, max_people=1)
    assert len(group_by_tags(*by_hand(*rows), parameters=parameters)[1]) == 1


def test_of_equal_distances_the_surer_candidate_goes_first() -> None:
    rows = ((NOSE, 0, 0.9, 0.0), (LEFT_EYE, 4, 0.5, 0.1), (LEFT_EYE, 8, 0.9, 0.2))
    found, _ = group_by_tags(*by_hand(*rows), parameters=EmbeddingParameters(refine=0))
    assert found[0, LEFT_EYE, 0] == 8


def test_a_joint_moves_a_quarter_of_a_cell_towards_its_higher_neighbour() -> None:
    found, maps, labels = by_hand((NOSE, 21.5, 0.9, 0.0))  # cell 5; the row is px 10, cell 2.125
    maps[NOSE, 2, 4:7] = 0.2, 0.9, 0.4
    joints, _ = group_by_tags(found, maps, labels)
    assert joints[0, NOSE, 0] == 22.5 and joints[0, NOSE, 1] == 10
    maps[NOSE, 2, 4:7] = 0.4, 0.9, 0.4
    assert group_by_tags(found, maps, labels)[0][0, NOSE, 0] == 21.5  # neither is higher


def test_a_missing_joint_is_looked_for_where_tags_agree() -> None:
    found, maps, labels = by_hand((NOSE, 21.5, 0.9, 5.0))
    maps[LEFT_WRIST, 3, 4], labels[LEFT_WRIST, 3, 4] = 0.08, 5.4  # too weak to be a candidate
    maps[LEFT_WRIST, 9, 9], labels[LEFT_WRIST, 9, 9] = 0.9, 6.6  # of somebody else: its distance rounds to 2
    joints, scores = group_by_tags(found, maps, labels)
    np.testing.assert_allclose(joints[0, LEFT_WRIST], (4.5 * 4 - 0.5, 3.5 * 4 - 0.5, 0.08), atol=1e-6)
    assert scores[0] == pytest.approx(0.9 / 17)  # the score is that of before
    assert joints[0, 10].tolist() == [0, 0, 0]  # nothing anywhere in the map
    alone, _ = group_by_tags(found, maps, labels, parameters=EmbeddingParameters(refine=0))
    assert alone[0, LEFT_WRIST].tolist() == [0, 0, 0]


@given(st.integers(0, 500), st.data())
def test_nan_and_infinity_never_come_out(seed, data) -> None:
    arrays = noise(5, seed)
    for array in arrays:
        for _ in range(data.draw(st.integers(0, 4))):
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(
                st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38])
            )
    keypoints, scores = group_by_tags(*arrays)
    assert np.isfinite(scores).all()
    assert np.isfinite(keypoints[..., 2]).all() and not np.isnan(keypoints).any()
    slow, _ = group_by_tags_reference(*arrays)
    np.testing.assert_allclose(keypoints, slow, **SAME_FORMULA)


def test_errors_say_what_came() -> None:
    found, maps, labels = noise(2)
    with pytest.raises(ValueError, match=r"joint_candidates must be \(17, M, 4\), got \(16, 2, 4\)"):
        group_by_tags(found[:16], maps, labels)
    with pytest.raises(ValueError, match=r"tags must be \(17, 13, 17\), got \(17, 13, 16\)"):
        group_by_tags(found, maps, labels[..., 1:])
    with pytest.raises(ValueError, match="max_people must be from 1 to 256, got 1000000000"):
        EmbeddingParameters(max_people=1e9)
