"""Grouping by limbs: perfect fields of known people, the published rules one by one, the twin, and broken input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.affinity_grouping import AffinityParameters, group_by_limbs, group_by_limbs_reference
from kernels.skeleton import LIMBS
from tests.perfect_maps import affinity_fields, candidates, crowds_apart, farthest, heatmaps, standing
from tests.tolerances import SAME_FORMULA

SHAPE = (50, 170)
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 7, 9
UPPER_ARM = [tuple(limb) for limb in LIMBS.tolist()].index((LEFT_SHOULDER, LEFT_ELBOW))
LOWER_ARM = [tuple(limb) for limb in LIMBS.tolist()].index((LEFT_ELBOW, LEFT_WRIST))
ANYBODY = AffinityParameters(min_joints=2, min_mean_score=0)


def perfect(people):
    found = candidates(people, heatmaps(people, SHAPE))
    for n, person in enumerate(people):
        found[:, n, :2] = person
    return found, affinity_fields(people, SHAPE)


@given(crowds_apart())
def test_perfect_fields_give_the_people_they_were_drawn_from(people) -> None:
    found, scores = group_by_limbs(*perfect(people))
    assert len(found) == len(people)
    assert farthest(found, people) < 1e-3
    assert (scores > 0.6).all()


def test_people_whose_boxes_overlap_stay_two() -> None:
    people = [standing(10, 0, 190), standing(50, 4, 190)]
    found, _ = group_by_limbs(*perfect(people))
    assert len(found) == 2
    assert farthest(found, people) < 1e-3


def noise(count: int, seed: int = 0, shape=(13, 17)):
    rng = np.random.default_rng(seed)
    found = rng.uniform(0, 60, (17, count, 4))
    found[..., 2] = rng.uniform(0, 1, (17, count))
    return found.astype(np.float32), rng.normal(0.2, 0.5, (38, *shape)).astype(np.float32)


LENIENT = AffinityParameters(min_share=0.5, min_joints=2, min_agreement=-0.2, samples=5, stride=8)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("shape", [(1, 1), (13, 17)])
def test_twin(count, shape) -> None:
    grouped = 0
    for seed in range(3):
        for parameters in (AffinityParameters(), LENIENT):
            both = [
                group(*noise(count, seed, shape), parameters=parameters)
                for group in (group_by_limbs, group_by_limbs_reference)
            ]
            for fast, slow in zip(*both, strict=True):
                assert fast.shape == slow.shape
                np.testing.assert_allclose(fast, slow, **SAME_FORMULA)
            assert (np.diff(both[0][1]) <= 0).all()
            grouped += len(both[0][1])
    assert (grouped > 0) == (count > 0)


@given(st.integers(0, 300), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(seed, random) -> None:
    found, fields = noise(5, seed)
    order = list(range(5))
    random.shuffle(order)
    straight = group_by_limbs(found, fields, parameters=LENIENT)
    shuffled = group_by_limbs(found[:, order], fields, parameters=LENIENT)
    np.testing.assert_allclose(straight[1], shuffled[1], rtol=1e-6)
    rows = [sorted(map(tuple, one[0].reshape(len(one[0]), -1).tolist())) for one in (straight, shuffled)]
    assert rows[0] == rows[1]


@given(st.integers(0, 300), st.floats(1, 8))
def test_people_scale_with_the_stride(seed, scale) -> None:
    found, fields = noise(4, seed)
    small, scores = group_by_limbs(found, fields, parameters=LENIENT)
    larger = found.copy()
    larger[..., :2] = (found[..., :2] + 0.5) * scale - 0.5
    parameters = AffinityParameters(min_share=0.5, min_joints=2, min_agreement=-0.2, samples=5, stride=8 * scale)
    large, large_scores = group_by_limbs(larger, fields, parameters=parameters)
    assert large.shape == small.shape
    np.testing.assert_allclose(large_scores, scores, atol=1e-4)
    present = small[..., 2] > 0
    np.testing.assert_allclose(large[present][:, :2], (small[present][:, :2] + 0.5) * scale - 0.5, rtol=1e-4, atol=1e-3)


def arm(*rows: tuple[int, float, float], shape=(20, 40)):
    """Candidates joint, x, probability on a line, and a field that points along x for both limbs of the left arm."""
    found = np.zeros((17, 3, 4), np.float32)
    used = dict.fromkeys(range(17), 0)
    for joint, x, probability in rows:
        found[joint, used[joint]] = (x, 40, probability, 0)
        used[joint] += 1
    fields = np.zeros((38, *shape), np.float32)
    fields[2 * UPPER_ARM] = fields[2 * LOWER_ARM] = 1.0
    return found, fields


def test_the_integral_is_the_mean_of_the_field_along_the_line() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.9), (LEFT_ELBOW, 30, 0.8))
    _, scores = group_by_limbs(found, fields, parameters=ANYBODY)
    assert scores[0] == pytest.approx((0.9 + 0.8 + 1.0) / (17 + 19))
    _, scores = group_by_limbs(found, 0.5 * fields, parameters=ANYBODY)
    assert scores[0] == pytest.approx((0.9 + 0.8 + 0.5) / (17 + 19))
    assert len(group_by_limbs(found, -fields, parameters=ANYBODY)[1]) == 0  # the field points from the elbow away


def test_lines_longer_than_half_the_height_are_worth_less() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.9), (LEFT_ELBOW, 90, 0.8))
    _, scores = group_by_limbs(found, fields, parameters=ANYBODY)
    assert scores[0] == pytest.approx((0.9 + 0.8 + 0.5) / (17 + 19))  # 80 px in a picture of 80: 1 + (40 / 80 - 1)


def test_enough_of_the_line_must_agree() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.9), (LEFT_ELBOW, 50, 0.8))
    fields[:, :, 5:9] = 0  # of 40 px the middle 12 and a part of a cell on either side
    assert len(group_by_limbs(found, fields, parameters=ANYBODY)[1]) == 0
    some = AffinityParameters(min_joints=2, min_mean_score=0, min_share=0.5)
    assert len(group_by_limbs(found, fields, parameters=some)[1]) == 1


def test_the_best_pair_goes_first_and_each_candidate_once() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.9), (LEFT_ELBOW, 30, 0.8), (LEFT_ELBOW, 50, 0.8))
    fields[2 * UPPER_ARM, :, 8:] = 0.6  # the further elbow is worth less
    people, _ = group_by_limbs(found, fields, parameters=ANYBODY)
    assert len(people) == 1 and people[0, LEFT_ELBOW, 0] == 30


def test_limbs_that_share_a_candidate_are_one_person() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.9), (LEFT_ELBOW, 30, 0.8), (LEFT_WRIST, 50, 0.7))
    people, scores = group_by_limbs(found, fields, parameters=ANYBODY)
    assert people[0, [LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST], 0].tolist() == [10, 30, 50]
    assert scores[0] == pytest.approx((0.9 + 0.8 + 0.7 + 2.0) / (17 + 19))


def test_people_of_few_joints_or_low_scores_are_dropped() -> None:
    found, fields = arm((LEFT_SHOULDER, 10, 0.2), (LEFT_ELBOW, 30, 0.2), (LEFT_WRIST, 50, 0.2))
    assert len(group_by_limbs(found, fields)[1]) == 0  # three joints; four are asked for
    three = AffinityParameters(min_joints=3)
    assert len(group_by_limbs(found, fields, parameters=three)[1]) == 1
    assert len(group_by_limbs(found, 0.2 * fields, parameters=three)[1]) == 0  # (0.6 + 0.4) / 3 is below 0.4


@given(st.integers(0, 300), st.data())
def test_nan_and_infinity_never_come_out(seed, data) -> None:
    arrays = noise(4, seed)
    for array in arrays:
        for _ in range(data.draw(st.integers(0, 4))):
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(
                st.sampled_from([np.nan, np.inf, -np.inf, 3e38])
            )
    keypoints, scores = group_by_limbs(*arrays, parameters=ANYBODY)
    assert np.isfinite(keypoints).all() and np.isfinite(scores).all()


def test_errors_say_what_came() -> None:
    found, fields = noise(2)
    with pytest.raises(ValueError, match=r"joint_candidates must be \(17, M, 4\), got \(17, 2, 3\)"):
        group_by_limbs(found[..., :3], fields)
    with pytest.raises(ValueError, match=r"affinity_fields must be \(38, h, w\), got \(37, 13, 17\)"):
        group_by_limbs(found, fields[:37])
    with pytest.raises(ValueError, match="samples must be from 2 to 100, got 1000000000"):
        AffinityParameters(samples=1e9)
