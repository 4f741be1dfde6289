"""Whose px a mask holds: against the px-by-px twin, and the laws of shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.identity_confusion import NOBODY, mask_shares, mask_shares_reference, owners_by_overlap

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn, *, disjoint: bool = False) -> Case:
    """Masks, people and owners: 0, 1 or several of each, odd sizes, density from empty to full."""
    m, p = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    masks = rng.random((m, height, width)) < draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    if disjoint:
        truth = rng.integers(0, p + 1, (height, width))[None] == np.arange(1, p + 1)[:, None, None]
    else:
        truth = rng.random((p, height, width)) < 0.4
    return masks, truth, rng.integers(NOBODY, p, m)


@given(cases())
def test_equals_the_twin(case: Case) -> None:
    np.testing.assert_allclose(mask_shares(*case), mask_shares_reference(*case), rtol=1e-12)


@given(cases())
def test_shares_add_up_and_the_empty_mask_has_none(case: Case) -> None:
    masks, truth, owner = case
    shares = mask_shares(masks, truth, owner)
    assert shares.shape == (len(masks), 3) and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), masks.any((1, 2)).astype(float), atol=1e-12)
    assert (shares[owner == NOBODY, 0] == 0).all()


@given(cases(disjoint=True), st.integers(0, 10**6))
def test_true_masks_are_all_own_and_exchanged_ones_all_another_s(case: Case, seed: int) -> None:
    _, truth, _ = case
    seen = truth[truth.any((1, 2))]
    n = len(seen)
    np.testing.assert_array_equal(mask_shares(seen, seen, np.arange(n)), np.tile((1.0, 0, 0), (n, 1)))
    if n > 1:
        shift = 1 + seed % (n - 1)
        np.testing.assert_array_equal(mask_shares(seen, seen, (np.arange(n) + shift) % n), np.tile((0, 1.0, 0), (n, 1)))


@given(cases(), st.integers(0, 10**6))
def test_neither_order_nor_mirroring_matters(case: Case, seed: int) -> None:
    masks, truth, owner = case
    shares = mask_shares(masks, truth, owner)
    rng = np.random.default_rng(seed)
    order, people = rng.permutation(len(masks)), rng.permutation(len(truth))
    new_number = np.argsort(people)
    renamed = np.array([NOBODY if o == NOBODY else new_number[o] for o in owner[order]], np.int64)
    np.testing.assert_array_equal(mask_shares(masks[order], truth[people], renamed), shares[order])
    np.testing.assert_array_equal(mask_shares(masks[..., ::-1], truth[..., ::-1], owner), shares)


@given(cases())
def test_px_of_the_owner_never_raise_confusion_and_background_never_does(case: Case) -> None:
    masks, truth, owner = case
    before = mask_shares(masks, truth, owner)
    larger = masks.copy()
    for row, person in enumerate(owner):
        if person != NOBODY:
            larger[row] |= truth[person]
    assert (mask_shares(larger, truth, owner)[:, 1] <= before[:, 1] + 1e-12).all()
    assert (mask_shares(masks | ~truth.any(0), truth, owner)[:, 1] <= before[:, 1] + 1e-12).all()


def test_by_hand() -> None:
    truth = np.zeros((2, 4, 6), np.bool_)
    truth[0, :, :3] = truth[1, :, 3:5] = True
    mask = np.zeros((1, 4, 6), np.bool_)
    mask[0, :2, 1:] = True  # 10 px: 4 on the first, 4 on the second, 2 on nobody
    np.testing.assert_allclose(mask_shares(mask, truth, np.array([0])), [[0.4, 0.4, 0.2]])
    np.testing.assert_allclose(mask_shares(mask, truth, np.array([NOBODY])), [[0, 0.8, 0.2]])


def test_where_two_people_overlap_a_px_is_its_owner_s() -> None:
    truth = np.ones((2, 2, 2), np.bool_)
    np.testing.assert_array_equal(mask_shares(truth, truth, np.array([0, 1])), [[1, 0, 0], [1, 0, 0]])


def test_owners_by_overlap() -> None:
    iou = np.array([[0.1, 0.6], [0.0, 0.0], [0.2, 0.1]])
    assert owners_by_overlap(iou).tolist() == [1, NOBODY, 0]
    assert owners_by_overlap(np.zeros((2, 0))).tolist() == [NOBODY, NOBODY]
    assert owners_by_overlap(np.zeros((0, 3))).tolist() == []


@pytest.mark.parametrize("function", [mask_shares, mask_shares_reference])
def test_what_does_not_fit_is_refused(function: object) -> None:
    masks, truth = np.zeros((1, 3, 4), np.bool_), np.zeros((2, 3, 5), np.bool_)
    with pytest.raises(ValueError, match=r"expected masks \(M, H, W\)"):
        function(masks, truth, np.array([0]))  # type: ignore[operator]
    with pytest.raises(ValueError, match="owners must be from -1 to 0, got 1 to 1"):
        function(masks, masks, np.array([1]))  # type: ignore[operator]
