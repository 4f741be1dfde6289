"""The comparison of whole pictures and parts: matching by hand, and a pass over fake people."""

from __future__ import annotations

import numpy as np

from benchmarks.bench_still import overlaps, run_pass, summary
from tests.fakes import fake_model, picture


def box(x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((10, 40), np.bool_)
    mask[:, x0:x1] = True
    return mask


def test_each_mask_is_used_once_and_what_is_left_is_counted() -> None:
    wanted = [box(0, 10), box(10, 20), box(30, 40)]
    found = [box(5, 15), box(0, 10), box(20, 24)]
    assert overlaps(wanted, found) == ([1.0, 1 / 3, 0.0], 1)
    assert overlaps([], found) == ([], 3)
    assert overlaps(wanted, []) == ([0.0] * 3, 0)


def test_summary_tells_missing_from_bad() -> None:
    told = summary([1.0, 0.5, 0.0, 0.0], 3)
    assert (told["people_times_frames"], told["found"], told["mean_iou_of_found"], told["added"]) == (4, 0.5, 0.75, 3)
    assert summary([], 0)["found"] == 0


def test_a_pass_over_a_still_picture() -> None:
    images = [picture(128, 128, (20, 20, 50, 110))] * 4
    whole, parts = (run_pass(images, fake_model(long_side=128), skip_still=on) for on in (False, True))
    assert (whole.looked_at, parts.looked_at) == (1.0, 0.25)
    assert whole.processor_ms > 0
    for ours, theirs in zip(whole.masks, parts.masks, strict=True):
        assert len(ours) == len(theirs) == 1
        np.testing.assert_array_equal(ours[0], theirs[0])
