"""Blocks that changed: hand-made cases, the twin over odd sizes, and what noise must not do."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.changed_blocks import changed_blocks, changed_blocks_reference


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture = seen.copy()
    moved = rng.random((height, width)) < 0.02
    picture[moved] = rng.integers(0, 256, (int(moved.sum()), 3), np.uint8)
    return picture, seen


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (16, 16), (33, 47), (96, 160)])
@pytest.mark.parametrize("threshold", [0.0, 6.0, 10.0, 254.0, 255.0])
def test_twin(height: int, width: int, threshold: float) -> None:
    picture, seen = pictures(height, width)
    fast = changed_blocks(picture, seen, threshold=threshold)
    np.testing.assert_array_equal(fast, changed_blocks_reference(picture, seen, threshold=threshold))
    assert fast.shape == (-(-height // 16), -(-width // 16))


def test_strided_pictures_give_the_same() -> None:
    picture, seen = pictures(40, 70)
    expected = changed_blocks(picture, seen, threshold=6)
    assert expected.any()
    assert not expected.all()
    mirrored = changed_blocks(np.ascontiguousarray(picture[:, ::-1])[:, ::-1], seen, threshold=6)
    np.testing.assert_array_equal(mirrored, expected)


def test_one_cell_in_one_colour_is_enough_and_stays_in_its_block() -> None:
    seen = np.full((48, 48, 3), 100, np.uint8)
    picture = seen.copy()
    picture[20:24, 44:48, 2] += 11
    changed = changed_blocks(picture, seen, threshold=10)
    assert np.argwhere(changed).tolist() == [[1, 2]]
    assert not changed_blocks(picture, seen, threshold=11).any()
    assert changed_blocks(seen, picture, threshold=10).any()  # darker counts like brighter


def test_noise_of_a_sensor_is_no_change() -> None:
    rng = np.random.default_rng(1)
    wall = np.full((288, 512, 3), 120.0)
    first, second = ((wall + rng.normal(0, 5, wall.shape)).astype(np.uint8) for _ in range(2))
    assert not changed_blocks(first, second, threshold=10).any()


@pytest.mark.parametrize(
    ("picture", "seen"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.int16)),
    ],
)
def test_other_shapes_and_types_are_refused(picture: np.ndarray, seen: np.ndarray) -> None:
    for function in (changed_blocks, changed_blocks_reference):
        with pytest.raises(ValueError, match="must be"):
            function(picture, seen, threshold=1)
