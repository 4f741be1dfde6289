"""Mask paste and run lengths: hand-worked px, the twin, COCO's own encoder; align-then-paste keeps the mask; a px has
one owner where that is wanted.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from kernels.affine_align import affine_align
from kernels.coordinates import half_pixel_scale, invert
from kernels.mask_paste import (
    PastedAlpha,
    PastedMask,
    paste_alpha,
    paste_alpha_reference,
    paste_masks,
    paste_masks_reference,
)
from kernels.mask_rle import encode_rle
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, prepare_templates, whole_frame_roi
from tests.strategies import masks_in_frames, similarities

UNIT = np.array([[1.0, 0, 0], [0, 1, 0]])


def rois(people: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random probabilities (N, S, S) and similarities (N, 2, 3) that look at a frame of about 100 px."""
    rng = np.random.default_rng(seed + people)
    coarse = rng.uniform(0, 1, (people, 5, 5))
    stretch = np.linspace(0, 4, side)
    low, part = np.minimum(stretch.astype(int), 3), stretch - np.minimum(stretch.astype(int), 3)
    rows = coarse[:, low] * (1 - part)[:, None] + coarse[:, low + 1] * part[:, None]
    probabilities = (rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part).astype(np.float32)
    angle, scale = rng.uniform(-np.pi, np.pi, people), rng.uniform(0.2, 2.0, people)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    centre = rng.uniform(0, 90, (people, 2))
    shift_x = side / 2 - a * centre[:, 0] - b * centre[:, 1]
    shift_y = side / 2 + b * centre[:, 0] - a * centre[:, 1]
    return probabilities, np.stack((np.stack((a, b, shift_x), -1), np.stack((-b, a, shift_y), -1)), 1)


def equal(first: list[PastedMask], second: list[PastedMask]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.x0, a.y0) == (b.x0, b.y0)
        np.testing.assert_array_equal(a.mask, b.mask)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_one_px_of_the_roi_becomes_its_px_in_the_frame() -> None:
    probabilities = np.zeros((1, 8, 8), np.float32)
    probabilities[0, 2, 5] = 1
    (pasted,) = paste_masks(probabilities, np.array([[[1.0, 0, -10], [0, 1, -20]]]), 40, 30)
    assert (pasted.x0, pasted.y0, pasted.mask.tolist()) == (15, 22, [[True]])


def test_the_threshold_is_strict_and_works_on_the_interpolated_probability() -> None:
    probabilities = np.array([[[0.0, 1.0], [0.0, 1.0]]], np.float32)
    quarters = half_pixel_scale(0.25, 0.25)[None]  # u = x / 4 - 3 / 8: x = 0..7 see -3/8, -1/8, 1/8, ... 11/8
    rows = [paste_masks(probabilities, quarters, 8, 8, threshold=t)[0].in_frame(8, 8)[4] for t in (0.0, 0.5, 0.625)]
    assert [np.nonzero(row)[0].tolist() for row in rows] == [[2, 3, 4, 5, 6, 7], [4, 5, 6, 7], [5, 6]]


@pytest.mark.parametrize("people", [0, 1, 7, 30])
@pytest.mark.parametrize("frame", [(1, 1), (3, 5), (97, 61), (80, 120)])
@pytest.mark.parametrize("side", [1, 8, 33])
@pytest.mark.parametrize("exclusive", [False, True])
def test_twin(people: int, frame: tuple[int, int], side: int, exclusive: bool) -> None:
    probabilities, matrices = (
        rois(people, side) if side > 1 else (np.ones((people, 1, 1), np.float32), rois(people, 8)[1])
    )
    for threshold in (0.3, 0.5):
        fast = paste_masks(probabilities, matrices, *frame, threshold=threshold, exclusive=exclusive)
        slow = paste_masks_reference(probabilities, matrices, *frame, threshold=threshold, exclusive=exclusive)
        equal(fast, slow)
        assert len(fast) == people


def test_strided_input_gives_the_same() -> None:
    probabilities, matrices = rois(5, 16)
    strided = np.asfortranarray(probabilities)
    equal(
        paste_masks(strided, matrices.astype(np.float32), 80, 90),
        paste_masks(probabilities, matrices.astype(np.float32), 80, 90),
    )


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 3)),
        np.full((2, 3), np.nan),
        np.array([[1.0, 0, 1e30], [0, 1, 0]]),
        UNIT * 1e-200,
        np.array([[1.0, 0, 500], [0, 1, 0]]),
    ],
    ids=["singular", "NaN", "infinitely far", "infinitely large", "outside the frame"],
)
def test_an_impossible_matrix_gives_an_empty_mask_and_leaves_the_others_alone(matrix: np.ndarray) -> None:
    probabilities = np.ones((2, 8, 8), np.float32)
    broken, sound = paste_masks(probabilities, np.stack((matrix, UNIT)), 20, 20)
    assert (broken.x0, broken.y0, broken.mask.shape) == (0, 0, (0, 0))
    assert sound.mask.shape == (8, 8)
    assert sound.mask.all()


def test_nan_is_not_person() -> None:
    probabilities = np.ones((1, 4, 4), np.float32)
    probabilities[0, 1, 2] = np.nan
    (pasted,) = paste_masks(probabilities, UNIT[None], 6, 6)
    expected = np.ones((4, 4), bool)
    # A px on an index has weight 0 for its right and lower neighbours, and 0 times NaN is NaN.
    expected[0:2, 1:3] = False
    np.testing.assert_array_equal(pasted.mask, expected)
    equal([pasted], paste_masks_reference(probabilities, UNIT[None], 6, 6))


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_crop_is_as_small_as_can_be(exclusive: bool) -> None:
    probabilities, matrices = rois(12, 33)
    for pasted in paste_masks(probabilities, matrices, 97, 61, exclusive=exclusive):
        if pasted.mask.size:
            edges = (pasted.mask[0], pasted.mask[-1], pasted.mask[:, 0], pasted.mask[:, -1])
            assert all(edge.any() for edge in edges)
            assert pasted.mask.flags.c_contiguous


@given(similarities(min_scale=40, max_scale=90, max_shift=1))
def test_align_then_paste_keeps_the_mask(frame_from_unit: np.ndarray) -> None:
    """An ellipse around a person, cut out through the person's own fit and pasted back, is the same ellipse."""
    template = prepare_templates(PAPER_TEMPLATES)
    frame_from_unit[:, 2] += np.array([100.0, 100.0]) - frame_from_unit[:, :2] @ [0.5, 0.5]
    pose = template[:1].copy()
    pose[0, :, :2] = template[0, :, :2] @ frame_from_unit[:, :2].T + frame_from_unit[:, 2]
    unit = (np.stack(np.mgrid[:200, :200][::-1], -1) - frame_from_unit[:, 2]) @ np.linalg.inv(frame_from_unit[:, :2]).T
    ellipse = ((unit[..., 0] - 0.5) / 0.22) ** 2 + ((unit[..., 1] - 0.5) / 0.42) ** 2 < 1

    fit = fit_poses(pose, template, whole_frame_roi(200, 200, 64))
    assert fit.template_index.tolist() == [0]
    roi = affine_align(ellipse[None, None].astype(np.float32), invert(fit.roi_from_frame), np.zeros(1, np.int32), 64)
    (pasted,) = paste_masks(roi[:, 0], fit.roi_from_frame, 200, 200)
    assert iou(pasted.in_frame(200, 200), ellipse) > 0.95


@given(masks_in_frames())
def test_run_lengths_are_cocos(crop: tuple[np.ndarray, int, int, int, int]) -> None:
    mask, x0, y0, height, width = crop
    pasted = PastedMask(x0=x0, y0=y0, mask=mask)
    (encoded,) = encode_rle([pasted], height, width)
    expected = coco_mask.encode(np.asfortranarray(pasted.in_frame(height, width), np.uint8))
    assert encoded == {"size": expected["size"], "counts": expected["counts"].decode("ascii")}


@pytest.mark.parametrize("fill", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_of_large_masks(fill: float) -> None:
    mask = np.random.default_rng(0).random((700, 900)) < fill
    whole, crop, none = (
        PastedMask(x0=0, y0=0, mask=mask),
        PastedMask(x0=311, y0=95, mask=mask[::2, ::3]),
        PastedMask(x0=0, y0=0, mask=np.zeros((0, 0), bool)),
    )
    for pasted in (whole, crop, none):
        (encoded,) = encode_rle([pasted], 700, 900)
        full = pasted.in_frame(700, 900)
        assert encoded["counts"] == coco_mask.encode(np.asfortranarray(full, np.uint8))["counts"].decode("ascii")
        np.testing.assert_array_equal(coco_mask.decode(encoded), full)
    assert encode_rle([], 700, 900) == []


def test_errors_say_what_came() -> None:
    probabilities, matrices = rois(3, 8)
    with pytest.raises(ValueError, match=r"got \(3, 8, 8\) and \(2, 2, 3\)"):
        paste_masks(probabilities, matrices[:2], 10, 10)
    with pytest.raises(ValueError, match="frame must be at least 1 x 1 px, got 0 x 10"):
        paste_masks(probabilities, matrices, 0, 10)
    with pytest.raises(ValueError, match=r"0 <= threshold < 1, got 1\.5"):
        paste_masks(probabilities, matrices, 10, 10, threshold=1.5)
    with pytest.raises(ValueError, match="2 x 3 px at x 9, y 0 is outside a frame of 10 x 10 px"):
        encode_rle([PastedMask(x0=9, y0=0, mask=np.ones((2, 3), bool))], 10, 10)


@pytest.mark.parametrize("people", [0, 1, 7])
@pytest.mark.parametrize("frame", [(1, 1), (3, 5), (97, 61), (80, 120)])
@pytest.mark.parametrize("side", [1, 8, 33])
@pytest.mark.parametrize("exclusive", [False, True])
def test_alpha_twin(people: int, frame: tuple[int, int], side: int, exclusive: bool) -> None:
    probabilities, matrices = (
        rois(people, side) if side > 1 else (np.ones((people, 1, 1), np.float32), rois(people, 8)[1])
    )
    for threshold in (0.0, 0.3, 0.5):
        fast = paste_alpha(probabilities, matrices, *frame, threshold=threshold, exclusive=exclusive)
        slow = paste_alpha_reference(probabilities, matrices, *frame, threshold=threshold, exclusive=exclusive)
        assert len(fast) == len(slow) == people
        for a, b in zip(fast, slow, strict=True):
            difference = np.abs(a.in_frame(*frame).astype(int) - b.in_frame(*frame))
            assert difference.max() <= 1  # a sum in another order may round the other way
            assert a.alpha.flags.c_contiguous


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("exclusive", [False, True])
def test_alpha_is_half_and_more_exactly_inside_the_mask(threshold: float, exclusive: bool) -> None:
    probabilities, matrices = rois(8, 33, seed=3)
    alphas = paste_alpha(probabilities, matrices, 97, 61, threshold=threshold, exclusive=exclusive)
    masks = paste_masks(probabilities, matrices, 97, 61, threshold=threshold, exclusive=exclusive)
    for alpha, mask in zip(alphas, masks, strict=True):
        np.testing.assert_array_equal(alpha.in_frame(97, 61) >= 128, mask.in_frame(97, 61))


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_alpha_moves_with_parts_of_a_px(shift: float) -> None:
    """A straight border: the sum of alpha along a row is where the border lies, to a twentieth of a px."""
    probabilities = np.zeros((1, 16, 16), np.float32)
    probabilities[0, :, :8] = 1  # the border, p = 0.5, lies at u = 7.5
    scale = 0.25  # four frame px for one of the ROI
    matrix = np.array([[[scale, 0, -shift * scale], [0, scale, 0]]])
    (pasted,) = paste_alpha(probabilities, matrix, 64, 64)
    full = pasted.in_frame(64, 64)
    row = full[32] / 255.0
    # Columns 0..n are whole, px n covers n - 0.5 .. n + 0.5; the left border of the window fades, too, at u = -0.5.
    border = row[8:].sum() + 7.5
    assert border == pytest.approx(7.5 / scale + shift, abs=0.05)
    edge = row[(row > 0) & (row < 1) & (np.arange(64) > 8)]
    assert 1 <= len(edge) <= 3  # narrow, though the probability falls over four px
    assert full[32, 20] == 255


def test_an_undecided_network_gives_half_an_alpha() -> None:
    """Flat 0.52: no border is near, and alpha does not jump from 0 to 255 when 0.52 becomes 0.48."""
    for level, low, high in ((0.52, 130, 170), (0.48, 85, 126), (0.7, 255, 255), (0.3, 0, 0)):
        (pasted,) = paste_alpha(np.full((1, 8, 8), level, np.float32), UNIT[None], 8, 8)
        assert low <= pasted.in_frame(8, 8)[4, 4] <= high


def test_alpha_of_impossible_matrices_and_nan() -> None:
    probabilities = np.ones((3, 8, 8), np.float32)
    probabilities[2, 4, 4] = np.nan
    matrices = np.stack((np.zeros((2, 3)), UNIT, UNIT))
    nothing, sound, holed = paste_alpha(probabilities, matrices, 20, 20)
    assert nothing.alpha.shape == (0, 0)
    assert sound.alpha.all()
    assert holed.in_frame(20, 20)[4, 4] == 0 and holed.in_frame(20, 20)[6, 6] == 255
    with pytest.raises(ValueError, match="frame must be at least"):
        paste_alpha(probabilities, matrices, 0, 10)


# ------------------------------------------------------------------------------------------------- a px has one owner


def full(pasted: list[PastedMask] | list[PastedAlpha], height: int, width: int) -> np.ndarray:
    if not pasted:
        return np.zeros((0, height, width), bool)
    return np.array([one.in_frame(height, width) for one in pasted])


@given(st.integers(0, 9), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.randoms())
def test_masks_that_do_not_overlap(people: int, seed: int, threshold: float, shuffler: random.Random) -> None:
    probabilities, matrices = rois(people, 16, seed)
    size, options = (60, 70), {"threshold": threshold, "exclusive": True}
    masks = full(paste_masks(probabilities, matrices, *size, **options), *size)
    alone = full(paste_masks(probabilities, matrices, *size, threshold=threshold), *size)
    assert masks.sum(axis=0).max(initial=0) <= 1
    np.testing.assert_array_equal(masks.any(axis=0), alone.any(axis=0))
    assert not (masks & ~alone).any()
    order = list(range(people))
    shuffler.shuffle(order)
    shuffled = paste_masks(probabilities[order], matrices[order], *size, **options)
    np.testing.assert_array_equal(full(shuffled, *size), masks[order])
    equal(
        paste_masks(probabilities[:1], matrices[:1], *size, **options),
        paste_masks(probabilities[:1], matrices[:1], *size, threshold=threshold),
    )


@given(st.integers(0, 9), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.randoms())
def test_alphas_that_end_at_seams(people: int, seed: int, threshold: float, shuffler: random.Random) -> None:
    probabilities, matrices = rois(people, 16, seed)
    size, options = (60, 70), {"threshold": threshold, "exclusive": True}
    alphas = full(paste_alpha(probabilities, matrices, *size, **options), *size)
    alone = full(paste_alpha(probabilities, matrices, *size, threshold=threshold), *size)
    assert (alphas >= 128).sum(axis=0).max(initial=0) <= 1
    np.testing.assert_array_equal(alphas.max(axis=0, initial=0), alone.max(axis=0, initial=0))
    nobodys = (alone < 128).all(axis=0)
    np.testing.assert_array_equal(alphas[:, nobodys], alone[:, nobodys])
    order = list(range(people))
    shuffler.shuffle(order)
    shuffled = full(paste_alpha(probabilities[order], matrices[order], *size, **options), *size)
    np.testing.assert_array_equal(shuffled, alphas[order])


def test_who_is_surest_there_has_the_px() -> None:
    """Three windows with their own ramps over the same px: the highest of the three at each, where it is above 0.5."""
    ramps = np.array([[0.9, 0.8, 0.7, 0.6, 0.4], [0.6, 0.7, 0.8, 0.9, 0.45], [0.55, 0.81, 0.75, 0.6, 0.3]], np.float32)
    probabilities = np.repeat(ramps[:, None], 5, axis=1)
    matrices = np.repeat(UNIT[None], 3, axis=0)
    masks = full(paste_masks(probabilities, matrices, 5, 5, exclusive=True), 5, 5)
    assert masks[:, 2].astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]


def test_of_equally_sure_people_the_first_has_the_px() -> None:
    probabilities = np.full((3, 6, 6), 0.7, np.float32)
    probabilities[2, :, 3:] = 0.8
    matrices = np.repeat(UNIT[None], 3, axis=0)
    masks = paste_masks(probabilities, matrices, 6, 6, exclusive=True)
    assert [(mask.x0, mask.mask.sum()) for mask in masks] == [(0, 18), (0, 0), (3, 18)]
    alphas = full(paste_alpha(probabilities[:2], matrices[:2], 6, 6, exclusive=True), 6, 6)
    assert alphas[0].min() > 128 and not alphas[1].any()


def test_equally_sure_people_with_other_windows_are_still_equally_sure() -> None:
    """No px of the common part is the second's: rounding decides nothing where both maps are flat."""
    probabilities = np.full((2, 16, 16), np.float32(0.9995117), np.float32)
    matrices = np.array([[[0.31, 0.12, -1.3], [-0.12, 0.31, 4.1]], [[0.27, -0.05, 1.7], [0.05, 0.27, -2.2]]])
    first, second = full(paste_masks(probabilities, matrices, 60, 60), 60, 60)
    masks = full(paste_masks(probabilities, matrices, 60, 60, exclusive=True), 60, 60)
    inner = np.s_[10:30, 15:35]
    assert (first & second)[inner].all()
    assert masks[0][inner].all() and not masks[1][inner].any()


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_alpha_at_a_seam(shift: float) -> None:
    """One is surer on the left, the other on the right, and both are sure enough on both sides: no px is lost between
    them, each ends within a px of the seam, and the loser leaves no line where their own mask would have ended.
    """
    columns = np.linspace(0.98, 0.02, 32)
    left = np.where(np.arange(32) < 24, np.linspace(1.0, 0.6, 32), 0.0)  # ends itself at 24
    right = np.where(np.arange(32) > 7, columns[::-1] * 0.5 + 0.5, 0.0)
    probabilities = np.repeat(np.stack((left, right)).astype(np.float32)[:, None], 32, axis=1)
    matrices = np.repeat(np.array([[[0.5, 0, shift], [0, 0.5, 0]]]), 2, axis=0)
    alone = full(paste_alpha(probabilities, matrices, 64, 64), 64, 64)[:, 32]
    alphas = full(paste_alpha(probabilities, matrices, 64, 64, exclusive=True), 64, 64)[:, 32].astype(int)
    assert alone[0, 46] and alone[1, 16]  # their own ends lie inside the other
    owner_ends = np.flatnonzero(alphas[0] >= 128)[-1]
    difference = np.interp((np.arange(64) * 0.5 + shift), np.arange(32), left - right)
    assert owner_ends == np.flatnonzero(difference >= 0)[np.flatnonzero(difference >= 0) < 40][-1]
    assert not alphas[0, owner_ends + 2 :].any() and not alphas[1, : owner_ends - 1].any()
    assert alphas[0, owner_ends + 1] < 128 and alphas[1, owner_ends] < 128
    assert alphas[0, owner_ends + 1] + alphas[1, owner_ends] > 0  # antialiased
    np.testing.assert_array_equal(alphas.max(axis=0), alone.max(axis=0))


def test_nan_claims_nothing_from_others() -> None:
    probabilities = np.full((2, 4, 4), 0.6, np.float32)
    probabilities[1] = 0.9
    probabilities[1, 2, 2] = np.nan
    matrices = np.repeat(UNIT[None], 2, axis=0)
    masks = full(paste_masks(probabilities, matrices, 4, 4, exclusive=True), 4, 4)
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True  # all that the NaN is a neighbour of, with weight 0
    np.testing.assert_array_equal(masks[0], expected)
    np.testing.assert_array_equal(masks[1], ~expected)
