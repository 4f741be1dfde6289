"""What a SegModule looks at, filled in place: the twin, channels that are not ours, and calls that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.segment_windows import fill_segment_windows, fill_segment_windows_reference
from tests.tolerances import FLOAT32_BILINEAR, SKELETON

FILL = 7.5  # what channels hold that must be left alone


def scene(people: int, channels: int, height: int, width: int, size: int) -> dict[str, Any]:
    rng = np.random.default_rng(people + 10 * channels + 100 * height + size)
    joints = rng.uniform(-0.3 * size, 1.3 * size, (people, 17, 3)).astype(np.float32)
    joints[..., 2] = rng.integers(0, 3, (people, 17))
    matrices = rng.normal(size=(people, 2, 3)) * np.array([0.7, 0.7, 0.4 * width])
    return {
        "features": rng.uniform(-1, 1, (2, channels, height, width)).astype(np.float32),
        "feature_from_roi": matrices.astype(np.float32),
        "roi_image": rng.integers(0, 2, people).astype(np.int32),
        "roi_keypoints": joints,
    }


def filled(fill: Any, feeds: dict[str, Any], depth: int, size: int, **options: Any) -> np.ndarray:
    windows = np.full((len(feeds["roi_image"]), depth, size, size), FILL, np.float32)
    fill(windows, **feeds, **options)
    return windows


@pytest.mark.parametrize("people", [0, 1, 2, 9])
@pytest.mark.parametrize(("size", "channels", "extent"), [(1, 1, (1, 1)), (9, 3, (7, 31)), (64, 5, (19, 8))])
@pytest.mark.parametrize("spare", [0, 9])
@pytest.mark.parametrize("neighbours", [False, True])
def test_twin(people: int, size: int, channels: int, extent: tuple[int, int], spare: int, neighbours: bool) -> None:
    feeds = scene(people, channels, *extent, size)
    drawn = channels + 55 + 2 * neighbours
    fast = filled(fill_segment_windows, feeds, drawn + spare, size, neighbours=neighbours)
    slow = filled(fill_segment_windows_reference, feeds, drawn + spare, size, neighbours=neighbours)
    np.testing.assert_allclose(fast[:, :channels], slow[:, :channels], **FLOAT32_BILINEAR)
    np.testing.assert_allclose(fast[:, channels:], slow[:, channels:], **SKELETON)
    assert (fast[:, drawn:] == FILL).all()


@pytest.mark.parametrize("fill", [fill_segment_windows, fill_segment_windows_reference])
def test_windows_of_some_people_show_all_others(fill: Any) -> None:
    feeds = scene(9, 3, 19, 8, 32)
    everybody = filled(fill, feeds, 60, 32, neighbours=True)
    assert everybody[:, 58:].max() > 0.5
    for first, people in ((0, 4), (3, 5), (8, 1), (9, 0)):
        some = np.full((people, 60, 32, 32), FILL, np.float32)
        fill(some, **feeds, neighbours=True, first_person=first)
        np.testing.assert_array_equal(some, everybody[first : first + people])


def test_what_was_there_before_is_gone() -> None:
    """Also where a window leaves the map, and for a matrix that is no number."""
    feeds = scene(5, 3, 9, 9, 16)
    feeds["feature_from_roi"][1, 0, 0] = np.nan
    feeds["feature_from_roi"][2, :, 2] = 1e6
    once = filled(fill_segment_windows, feeds, 58, 16)
    again = np.full_like(once, np.nan)
    fill_segment_windows(again, **feeds)
    np.testing.assert_array_equal(once, again)
    assert not once[1:3, :3].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": np.zeros((2, 57, 16, 16), np.float32)}, r"at least 3 \+ 55"),
        ({"windows": np.zeros((3, 58, 16, 16), np.float32)}, r"at most N=2 from person 0 on, at least"),
        ({"first_person": 1}, "at most N=2 from person 1 on"),
        ({"first_person": -1}, "from person -1 on"),
        ({"neighbours": True}, r"at least 3 \+ 57"),
        ({"windows": np.zeros((2, 58, 16, 15), np.float32)}, "S, S"),
        ({"windows": np.zeros((2, 58, 16, 16))}, "float32"),
        ({"windows": np.zeros((2, 58, 16, 32), np.float32)[..., ::2]}, "C-contiguous"),
        ({"roi_keypoints": np.zeros((1, 17, 3), np.float32)}, r"\(N=2, 17, 3\)"),
        ({"roi_image": np.array([0, 2], np.int32)}, r"roi_image must be in 0\.\.1"),
        ({"feature_from_roi": np.zeros((2, 3, 3), np.float32)}, "feature_from_roi must be"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"windows": np.zeros((2, 58, 16, 16), np.float32), **scene(2, 3, 9, 9, 16), **change}
    for fill in (fill_segment_windows, fill_segment_windows_reference):
        with pytest.raises(ValueError, match=message):
            fill(**arguments)
