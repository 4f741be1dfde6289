"""Whose px a mask holds: its own person's, another person's, or nobody's.

Identity confusion of a mask is the share of its px that lie on another person. Average precision hides it: a mask that
takes the arm of a neighbour loses a few hundredths of IoU, but in a cut-out of one person the arm is all that is seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F64

NOBODY = -1


def mask_shares(masks: NDArray[np.bool_], truth: NDArray[np.bool_], owner: NDArray[np.int64]) -> F64:
    """Shares of each mask's px on its owner, on other people only, and on nobody.

    Args:
        masks: (M, H, W) found masks; M may be 0.
        truth: (P, H, W) what is seen of each person; P may be 0. Where two overlap, a px is its owner's first.
        owner: (M,) whose mask it is meant to be, `NOBODY` where it is nobody's: all people are others to it then.

    Returns:
        (M, 3) own, others, background; they add up to 1. A mask without px: all 0.

    Raises:
        ValueError: sizes differ, or an owner is none of the people.
    """
    _check(masks, truth, owner)
    anybody = truth.any(0)
    result = np.zeros((len(masks), 3))
    for row, (mask, person) in enumerate(zip(masks, owner, strict=True)):
        total = int(mask.sum())
        if total == 0:
            continue
        on_anybody = int((mask & anybody).sum())
        own = int((mask & truth[person]).sum()) if person != NOBODY else 0
        result[row] = np.array([own, on_anybody - own, total - on_anybody]) / total
    return result


def mask_shares_reference(masks: NDArray[np.bool_], truth: NDArray[np.bool_], owner: NDArray[np.int64]) -> F64:
    """`mask_shares`, px by px."""
    _check(masks, truth, owner)
    result = np.zeros((len(masks), 3))
    for row, mask in enumerate(masks):
        counts = [0, 0, 0]
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                if not mask[y, x]:
                    continue
                here = [person for person in range(len(truth)) if truth[person, y, x]]
                if owner[row] in here:
                    counts[0] += 1
                elif here:
                    counts[1] += 1
                else:
                    counts[2] += 1
        if sum(counts):
            result[row] = [count / sum(counts) for count in counts]
    return result


def _check(masks: NDArray[np.bool_], truth: NDArray[np.bool_], owner: NDArray[np.int64]) -> None:
    if masks.ndim != 3 or truth.ndim != 3 or masks.shape[1:] != truth.shape[1:] or owner.shape != masks.shape[:1]:
        raise ValueError(
            f"expected masks (M, H, W), truth (P, H, W) and owner (M,), got {masks.shape}, {truth.shape}, {owner.shape}"
        )
    if len(owner) and (owner.min() < NOBODY or owner.max() >= len(truth)):
        raise ValueError(f"owners must be from {NOBODY} to {len(truth) - 1}, got {owner.min()} to {owner.max()}")


def owners_by_overlap(iou: F64) -> NDArray[np.int64]:
    """(M, P) IoU of found masks with people to (M,) the person each overlaps best; `NOBODY` where it overlaps none."""
    if iou.shape[1] == 0:
        return np.full(len(iou), NOBODY)
    best = iou.argmax(1)
    return np.where(iou[np.arange(len(iou)), best] > 0, best, NOBODY)
