"""Decoding of joint candidates: scenes with known people, the twin, and what must hold for any network output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.pose_decoding import DecodeParameters, decode_people, decode_people_reference, suppress
from kernels.pose_fit import PAPER_TEMPLATES
from tests.tolerances import SAME_FORMULA

LEFT_ELBOW, LEFT_WRIST, RIGHT_WRIST = 7, 9, 10
STANDING = PAPER_TEMPLATES[0, :, :2].astype(np.float64)


def standing(x: float, y: float, height: float = 200.0) -> np.ndarray:
    """(17, 2) joints of a person whose unit square starts at (x, y)."""
    return STANDING * height + (x, y)


def network_output(
    poses: list[np.ndarray],
    *,
    guesses: list[np.ndarray] | None = None,
    centre: float = 0.64,
    probability: float = 0.8,
    peaks: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a network would give: a row per person, a peak per person and joint; more peaks have probability 0."""
    rows = poses if guesses is None else guesses
    count = max(len(poses), 1) if peaks is None else peaks
    candidates = np.zeros((17, count, 4), np.float32)
    for n, pose in enumerate(poses):
        candidates[:, n, :2], candidates[:, n, 2] = pose, probability
    keypoints = np.full((len(rows), 17, 3), 0.3, np.float32)
    for n, guess in enumerate(rows):
        keypoints[n, :, :2] = guess
    return np.full(len(rows), centre, np.float32), keypoints, candidates


def noisy_output(rows: int, peaks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A crowded scene: people, doubles of them, noise of every kind."""
    rng = np.random.default_rng(seed)
    people = [standing(*rng.uniform(0, 300, 2), height=rng.uniform(40, 300)) for _ in range(max(1, rows // 2))]
    scores = np.sort(rng.uniform(0, 1, rows).astype(np.float32))[::-1].copy()
    keypoints = np.zeros((rows, 17, 3), np.float32)
    for n in range(rows):
        keypoints[n, :, :2] = people[n % len(people)] + rng.normal(0, 6, (17, 2))
    keypoints[..., 2] = rng.uniform(0, 0.5, (rows, 17))
    candidates = rng.uniform(0, 400, (17, peaks, 4)).astype(np.float32)
    for m in range(min(peaks, len(people))):
        candidates[:, m, :2] = people[m] + rng.normal(0, 3, (17, 2))
    candidates[..., 2] = rng.uniform(0, 1, (17, peaks))
    return scores, keypoints, candidates


def test_a_clear_person_stands_on_the_peaks() -> None:
    pose = standing(100, 50)
    keypoints, scores = decode_people(*network_output([pose]))
    np.testing.assert_allclose(keypoints[0, :, :2], pose, atol=1e-4)
    np.testing.assert_allclose(keypoints[0, :, 2], 0.8, atol=1e-6)  # sqrt(claim x probability), no distance
    np.testing.assert_allclose(scores, [0.8 * 0.8], atol=1e-6)  # sqrt(0.64) x mean confidence
    assert (keypoints.dtype, scores.dtype) == (np.float32, np.float32)


def test_a_rough_guess_moves_onto_the_peaks_with_less_confidence() -> None:
    pose = standing(100, 50)
    guess = pose + np.random.default_rng(0).normal(0, 8, (17, 2))
    keypoints, _ = decode_people(*network_output([pose], guesses=[guess]))
    np.testing.assert_allclose(keypoints[0, :, :2], pose, atol=1e-4)
    assert (keypoints[0, :, 2] < 0.8).all()
    assert (keypoints[0, :, 2] > 0.6).all()


def test_a_joint_without_a_peak_in_reach_keeps_its_guess() -> None:
    pose = standing(100, 50)
    scores, rows, candidates = network_output([pose])
    candidates[LEFT_WRIST, 0, :2] = (2000, 2000)
    keypoints, _ = decode_people(scores, rows, candidates)
    # The elbow stands where it was guessed, so the wrist's guess has not moved either.
    np.testing.assert_allclose(keypoints[0, LEFT_WRIST], [*pose[LEFT_WRIST], 0.3], atol=1e-4)


def test_a_found_elbow_takes_the_wrists_guess_along() -> None:
    """Arm raised far from where it was guessed; a second peak lies nearer to the wrist's first guess."""
    pose = standing(100, 50)
    raised = pose.copy()
    raised[LEFT_ELBOW] += (40, -30)
    raised[LEFT_WRIST] += (60, -45)
    scores, rows, candidates = network_output([raised], guesses=[pose], peaks=2)
    candidates[LEFT_WRIST, 1] = (*(pose[LEFT_WRIST] - (40, 0)), 0.6, 0)
    keypoints, _ = decode_people(scores, rows, candidates)
    np.testing.assert_allclose(keypoints[0, LEFT_WRIST, :2], raised[LEFT_WRIST], atol=1e-4)
    unmoved, _ = decode_people(scores, rows, candidates, parameters=DecodeParameters(guess_weight=1e9))
    np.testing.assert_allclose(unmoved[0, LEFT_WRIST, :2], candidates[LEFT_WRIST, 1, :2], atol=1e-4)


def test_twenty_people_are_found() -> None:
    poses = [standing(60 * (n % 5), 110 * (n // 5), height=100) for n in range(20)]
    keypoints, scores = decode_people(*network_output(poses))
    assert len(scores) == 20
    for pose in poses:
        assert np.abs(keypoints[:, :, :2] - pose).max(axis=(1, 2)).min() < 1e-3


def test_two_rows_of_one_person_are_one_person() -> None:
    pose = standing(100, 50)
    scores, rows, candidates = network_output([pose], guesses=[pose, pose + 5])
    scores[:] = 0.5, 0.6
    keypoints, person_scores = decode_people(scores, rows, candidates)
    assert len(keypoints) == 1
    assert person_scores[0] == pytest.approx(np.sqrt(0.6) * 0.8, abs=2e-3)  # the better row's


def test_two_people_in_one_box_stay_two() -> None:
    """Arm in arm: boxes overlap by three quarters, joints do not."""
    poses = [standing(100, 50), standing(125, 55)]
    keypoints, _ = decode_people(*network_output(poses))
    assert len(keypoints) == 2
    found = keypoints[np.argsort(keypoints[:, 0, 0]), :, :2]
    np.testing.assert_allclose(found, poses, atol=1e-3)


def contested(second_peak_probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Two people guess their inner wrists on one peak; another peak lies a little further for the second of them."""
    left, right = standing(100, 50), standing(170, 50)
    scores, rows, candidates = network_output([left, right])
    peak = np.array([left[LEFT_WRIST], right[LEFT_WRIST]]).mean(axis=0) - (10, 0)
    rows[0, LEFT_WRIST, :2], rows[1, LEFT_WRIST, :2] = peak, peak + np.array([6, 0])
    candidates[LEFT_WRIST, 0] = (*peak, 0.9, 0)
    candidates[LEFT_WRIST, 1] = (peak[0] + 25, peak[1], second_peak_probability, 0)
    keypoints, _ = decode_people(scores, rows, candidates)
    keypoints = keypoints[np.argsort(keypoints[:, 0, 0])]
    return keypoints[:, LEFT_WRIST, :2], candidates[LEFT_WRIST, :, :2]


def test_of_two_who_claim_a_peak_the_weaker_takes_a_good_second() -> None:
    wrists, peaks = contested(second_peak_probability=0.85)
    np.testing.assert_allclose(wrists, peaks, atol=1e-4)


def test_without_a_good_second_the_peak_is_shared() -> None:
    wrists, peaks = contested(second_peak_probability=0.1)
    np.testing.assert_allclose(wrists, peaks[[0, 0]], atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 7, 32])
@pytest.mark.parametrize("peaks", [0, 1, 5, 32])
def test_twin(rows: int, peaks: int) -> None:
    for seed in range(5):
        output = noisy_output(rows, peaks, seed)
        for parameters in (
            DecodeParameters(),
            DecodeParameters(spread=0.1, reach=0.2, second_choice=0.1, max_oks=0.3, min_centre_score=0.3),
        ):
            fast, slow = (decode(*output, parameters=parameters) for decode in (decode_people, decode_people_reference))
            for a, b in zip(fast, slow, strict=True):
                assert a.shape == b.shape
                np.testing.assert_allclose(a, b, **SAME_FORMULA)
            assert (np.diff(fast[1]) <= 0).all()


@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_peaks_does_not_matter(seed: int, random) -> None:
    scores, rows, candidates = noisy_output(9, 6, seed)
    row_order, peak_order = list(range(9)), list(range(6))
    random.shuffle(row_order)
    random.shuffle(peak_order)
    straight = decode_people(scores, rows, candidates)
    shuffled = decode_people(scores[row_order], rows[row_order], candidates[:, peak_order])
    np.testing.assert_array_equal(straight[0], shuffled[0])
    np.testing.assert_array_equal(straight[1], shuffled[1])


@given(st.integers(0, 1000), st.floats(0.5, 8), st.floats(-300, 300), st.floats(-300, 300))
def test_people_scale_and_move_with_the_picture(seed: int, scale: float, x: float, y: float) -> None:
    scores, rows, candidates = noisy_output(6, 6, seed)
    still, still_scores = decode_people(scores, rows, candidates)
    for points in (rows, candidates):
        points[..., :2] = points[..., :2] * scale + np.array([x, y], np.float32)
    moved, moved_scores = decode_people(scores, rows, candidates)
    assert moved.shape == still.shape
    np.testing.assert_allclose(moved_scores, still_scores, atol=1e-3)
    np.testing.assert_allclose(moved[..., :2], still[..., :2] * scale + (x, y), atol=0.05)


@given(st.integers(0, 1000), st.data())
def test_nan_and_infinity_never_come_out(seed: int, data: st.DataObject) -> None:
    output = noisy_output(6, 6, seed)
    for array in output:
        for _ in range(data.draw(st.integers(0, 4))):
            flat = data.draw(st.integers(0, array.size - 1))
            array.reshape(-1)[flat] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    keypoints, scores = decode_people(*output)
    assert np.isfinite(keypoints).all()
    assert np.isfinite(scores).all()
    slow, slow_scores = decode_people_reference(*output)
    np.testing.assert_allclose(keypoints, slow, **SAME_FORMULA)
    np.testing.assert_allclose(scores, slow_scores, **SAME_FORMULA)


def test_weak_centres_are_not_decoded() -> None:
    output = network_output([standing(100, 50)], centre=0.04)
    assert decode_people(*output)[0].shape == (0, 17, 3)
    assert len(decode_people(*output, parameters=DecodeParameters(min_centre_score=0.01))[1]) == 1


def test_strided_input_gives_the_same() -> None:
    scores, rows, candidates = noisy_output(8, 8)
    strided = np.asfortranarray(rows), np.repeat(candidates, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(decode_people(scores, *strided)[0], decode_people(scores, rows, candidates)[0])


def test_suppress_keeps_the_best_of_equal_poses_and_tells_the_order() -> None:
    poses = np.stack([standing(0, 0), standing(1, 0), standing(300, 0), standing(0, 0)]).astype(np.float32)
    scores = np.array([0.5, 0.9, 0.7, 0.1], np.float32)
    assert suppress(poses, scores).tolist() == [1, 2]
    assert suppress(poses, scores, max_oks=1.0).tolist() == [1, 2, 0, 3]
    assert suppress(poses[:0], scores[:0]).tolist() == []


def test_suppression_measures_against_the_size_of_the_people() -> None:
    large = np.stack([standing(0, 0, 400), standing(12, 0, 400)])
    small = np.stack([standing(0, 0, 40), standing(12, 0, 40)])
    scores = np.array([0.5, 0.4])
    assert len(suppress(large, scores)) == 1
    assert len(suppress(small, scores)) == 2


def test_errors_say_what_came() -> None:
    scores, rows, candidates = network_output([standing(0, 0)])
    with pytest.raises(ValueError, match=r"got \(1,\) and \(1, 16, 3\)"):
        decode_people(scores, rows[:, :16], candidates)
    with pytest.raises(ValueError, match=r"joint_candidates must be \(17, M, 4\), got \(17, 1, 3\)"):
        decode_people(scores, rows, candidates[:, :, :3])
    with pytest.raises(ValueError, match=r"got \(1, 17, 3\) and \(2,\)"):
        suppress(rows, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="spread must be greater than 0, got 0"):
        DecodeParameters(spread=0)
