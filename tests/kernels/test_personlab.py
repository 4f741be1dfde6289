"""PersonLab: perfect maps of known people, each step by hand, the twins, broken input, and masks by long offsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.personlab_decoding import (
    TREE,
    PersonLabParameters,
    decode_personlab,
    decode_personlab_reference,
    hough_votes,
    hough_votes_reference,
)
from kernels.personlab_masks import MAX_DISTANCE, embedding_distances, embedding_distances_reference
from kernels.pose_decoding import OKS_SPREADS
from tests.perfect_maps import crowds_apart, farthest, personlab_maps, standing
from tests.tolerances import SAME_FORMULA

SHAPE = (50, 170)
READ = ("heatmaps", "short_offsets", "mid_offsets")
NOSE = 0
SURE = 0.25  # score below which nobody counts


def sure(maps: dict[str, np.ndarray], **parameters) -> np.ndarray:
    found, scores = decode_personlab(*(maps[name] for name in READ), parameters=PersonLabParameters(**parameters))
    return found[scores > SURE]


@given(crowds_apart())
def test_perfect_maps_give_the_people_they_were_drawn_from(people) -> None:
    found = sure(personlab_maps(people, SHAPE))
    assert len(found) == len(people)
    assert farthest(found, people) < 0.5


def test_people_in_each_others_arms_stay_two() -> None:
    people = [standing(20, 0, 195), standing(50, 2, 195)]
    found = sure(personlab_maps(people, SHAPE))
    assert len(found) == 2
    assert farthest(found, people) < 0.5


def test_the_tree_reaches_every_joint_once() -> None:
    assert len(TREE) == 16 and set(TREE.ravel().tolist()) == set(range(17))
    assert len(set(TREE[:, 1].tolist())) == 16  # each has one joint before it, but for the nose


def noise(seed: int = 0, shape=(13, 17)):
    rng = np.random.default_rng(seed)
    return tuple(
        part.astype(np.float32)
        for part in (
            rng.uniform(0, 1, (17, *shape)) ** 4,
            rng.normal(0, 1, (34, *shape)),
            rng.normal(0, 4, (64, *shape)),
        )
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (13, 17)])
def test_twins(shape) -> None:
    for seed in range(3):
        heat, short, mid = noise(seed, shape)
        for parameters in (
            PersonLabParameters(),
            PersonLabParameters(radius_px=9, nms_radius_px=3, refinements=0, max_people=5, min_vote=0.3),
        ):
            fast, slow = (votes(heat, short, parameters=parameters) for votes in (hough_votes, hough_votes_reference))
            np.testing.assert_allclose(fast, slow, **SAME_FORMULA)
            both = [
                decode(heat, short, mid, parameters=parameters)
                for decode in (decode_personlab, decode_personlab_reference)
            ]
            for one, other in zip(*both, strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)  # sums of votes stored as float32
            assert (np.diff(both[0][1]) <= 0).all()


def test_nobody_in_empty_maps() -> None:
    maps = personlab_maps([], SHAPE)
    assert decode_personlab(*(maps[name] for name in READ))[0].shape == (0, 17, 3)


def test_votes_gather_where_they_point_to() -> None:
    maps = personlab_maps([standing(20, 0, 180)], SHAPE)
    votes = hough_votes(maps["heatmaps"], maps["short_offsets"])
    cells = maps["heatmaps"].sum((1, 2))
    np.testing.assert_allclose(votes.sum((1, 2)), cells / (np.pi * 4.0**2), rtol=1e-4)  # none is lost
    assert (np.count_nonzero(votes > 1e-3, axis=(1, 2)) <= 4).all()  # all of a disc in one place, split bilinearly


def test_a_vote_is_split_between_the_four_cells_around_it() -> None:
    heat, short = np.zeros((17, 6, 6), np.float32), np.zeros((34, 6, 6), np.float32)
    heat[NOSE, 2, 2], short[:2, 2, 2] = 0.5, (1.25, 0.5)
    votes = hough_votes(heat, short, parameters=PersonLabParameters(radius_px=4))[NOSE] * np.pi
    np.testing.assert_allclose(votes[3:5, 2:4], 0.5 * np.outer((0.75, 0.25), (0.5, 0.5)), rtol=1e-6)
    assert votes.sum() == pytest.approx(0.5)


def test_a_middle_offset_is_refined_by_the_short_one_where_it_ends() -> None:
    person = standing(20, 0, 180)
    maps = personlab_maps([person], SHAPE)
    rng = np.random.default_rng(0)
    maps["mid_offsets"] += rng.uniform(-1.5, 1.5, maps["mid_offsets"].shape).astype(np.float32)
    assert farthest(sure(maps), [person]) < 0.5
    assert farthest(sure(maps, refinements=0), [person]) > 2.0


def test_a_joint_of_somebody_better_does_not_count_twice() -> None:
    """Two people who share their legs: the second one's score is that of the upper body alone."""
    one, two = standing(20, 0, 190), standing(70, 0, 190)
    two[13:] = one[13:] + np.array([1, 0])
    maps = personlab_maps([one, two], SHAPE)
    found, scores = decode_personlab(*(maps[name] for name in READ))
    assert len(scores) >= 2
    assert scores[1] < 0.9 * scores[0]
    apart, apart_scores = decode_personlab(
        *(maps[name] for name in READ), parameters=PersonLabParameters(nms_radius_px=0.01)
    )
    assert len(apart) >= 2 and apart_scores[1] > scores[1]
    assert farthest(found[:2], [one]) < 1.5


def test_the_score_of_a_joint_is_the_similarity_to_expect() -> None:
    person = standing(20, 0, 180)
    maps = personlab_maps([person], SHAPE)
    _, scores = decode_personlab(*(maps[name] for name in READ))
    # all votes lie in the four cells around each joint, up to 0.7 cells away: near 1, and nearest for large joints
    assert 0.6 < scores[0] <= 1.0
    maps["heatmaps"] *= 0.5
    _, halved = decode_personlab(*(maps[name] for name in READ))
    assert halved[0] == pytest.approx(0.5 * scores[0], rel=1e-3)
    assert OKS_SPREADS.shape == (17,)


@given(st.integers(0, 300), st.data())
def test_nan_and_infinity_never_come_out(seed, data) -> None:
    arrays = noise(seed, (7, 9))
    for array in arrays:
        for _ in range(data.draw(st.integers(0, 4))):
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(
                st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38])
            )
    keypoints, scores = decode_personlab(*arrays)
    assert np.isfinite(keypoints).all() and np.isfinite(scores).all()


def test_errors_say_what_came() -> None:
    heat, short, mid = noise()
    with pytest.raises(ValueError, match=r"short_offsets must be \(34, 13, 17\), got \(34, 12, 17\)"):
        decode_personlab(heat, short[:, 1:], mid)
    with pytest.raises(ValueError, match=r"mid_offsets must be \(64, 13, 17\), got \(62, 13, 17\)"):
        decode_personlab(heat, short, mid[2:])
    with pytest.raises(ValueError, match="refinements must be from 0 to 10, got 1000000"):
        PersonLabParameters(refinements=1e6)
    with pytest.raises(ValueError, match="radius_px must be at most 16 cells of 1 px, got 100"):
        PersonLabParameters(radius_px=100, stride=1)


# Masks


@given(crowds_apart(most=3))
def test_every_cell_of_a_mask_goes_to_its_own_person(people) -> None:
    maps = personlab_maps(people, SHAPE)
    poses = np.array([np.concatenate((p, np.ones((17, 1))), 1) for p in people], np.float32).reshape(-1, 17, 3)
    distances = embedding_distances(maps["person"], maps["long_offsets"], maps["short_offsets"], poses)
    assert distances.shape == (len(people), *SHAPE)
    taken = distances <= MAX_DISTANCE
    inside = maps["person"] > 0.5
    assert not taken[:, ~inside].any()
    np.testing.assert_array_equal(taken.sum(0)[inside], 1)  # everybody stands apart: each cell is one person's
    for n, person in enumerate(people):
        column, row = np.rint((person[NOSE] + 0.5) / 4 - 0.5).astype(int)
        assert taken[n, row, column]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_mask_twin(count) -> None:
    rng = np.random.default_rng(count)
    heat, short, mid = noise(count)
    poses = rng.uniform(0, 60, (count, 17, 3)).astype(np.float32)
    poses[..., 2] = rng.choice([0.0, 0.05, 0.5, 1.0], (count, 17))
    if count:
        poses[0, 3, 0], poses[0, 4, 2], mid[3, 2, 2] = np.nan, np.inf, np.nan
    arguments = heat[0], mid[:34], short, poses
    fast, slow = (
        distances(*arguments, min_person=0.2) for distances in (embedding_distances, embedding_distances_reference)
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-5)
    assert not np.isnan(fast).any()


def test_a_distance_by_hand() -> None:
    """Two joints, 3 and 6 cells across; the cell points 1 cell beside the first and 2 beside the second."""
    person = np.ones((20, 20), np.float32)
    long = np.zeros((34, 20, 20), np.float32)
    pose = np.zeros((1, 17, 3), np.float32)
    pose[0, 0], pose[0, 1] = (17.5, 17.5, 1.0), (29.5, 41.5, 0.5)  # cells (4, 4) and (7, 10)
    long[:2, 5, 5], long[2:4, 5, 5] = (-1, 0), (5, 4)  # from (5, 5) to (5, 4) and (9, 10); y before x
    distance = embedding_distances(person, long, np.zeros((34, 20, 20), np.float32), pose)[0, 5, 5]
    assert distance == pytest.approx((1.0 * 1 + 0.5 * 2) / 1.5 / np.sqrt(3 * 6))


def test_masks_say_what_came() -> None:
    heat, short, mid = noise()
    with pytest.raises(ValueError, match=r"keypoints must be \(N, 17, 3\), got \(17, 3\)"):
        embedding_distances(heat[0], mid[:34], short, np.zeros((17, 3), np.float32))
    with pytest.raises(ValueError, match=r"long_offsets must be \(34, 13, 17\)"):
        embedding_distances(heat[0], mid, short, np.zeros((0, 17, 3), np.float32))
