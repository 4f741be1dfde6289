"""Which blocks of a picture have changed since it was last looked at.

Noise of single px must not count and a small thing that moves must: so small cells are averaged first, which takes the
noise of a sensor down to about a level, and a block has changed as soon as one cell in one colour has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import U8

Bools = NDArray[np.bool_]

CELL_PX = 4
BLOCK_PX = 16


def changed_blocks(picture: U8, seen: U8, *, threshold: float) -> Bools:
    """Compare two pictures block by block.

    Args:
        picture: (H, W, 3) uint8.
        seen: of the same shape.
        threshold: mean levels (0..255) by which a colour of a cell of 4 x 4 px must differ; at the right and lower
            border cells may be smaller.

    Returns:
        (ceil(H / 16), ceil(W / 16)): True where a cell of the block differs by more.

    Raises:
        ValueError: the pictures do not have one such shape and type.
    """
    _check(picture, seen)
    return _changed_blocks(np.ascontiguousarray(picture), np.ascontiguousarray(seen), threshold)


def _check(picture: U8, seen: U8) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture must be (H, W, 3) uint8, got {picture.dtype} {picture.shape}")
    if seen.shape != picture.shape or seen.dtype != np.uint8:
        raise ValueError(f"seen must be uint8 {picture.shape} as the picture, got {seen.dtype} {seen.shape}")


@compiled
def _changed_blocks(picture: U8, seen: U8, threshold: float) -> Bools:
    height, width, _ = picture.shape
    rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    changed = np.zeros((rows, columns), np.bool_)
    cells = -(-width // CELL_PX)
    # Sums of differences of one row of cells; 16 px of 255 levels fit easily.
    sums = np.empty((cells, 3), np.int32)
    for top in range(0, height, CELL_PX):
        bottom = min(top + CELL_PX, height)
        sums[:] = 0
        for y in range(top, bottom):
            for cell in range(cells):
                for x in range(cell * CELL_PX, min((cell + 1) * CELL_PX, width)):
                    sums[cell, 0] += np.int32(picture[y, x, 0]) - np.int32(seen[y, x, 0])
                    sums[cell, 1] += np.int32(picture[y, x, 1]) - np.int32(seen[y, x, 1])
                    sums[cell, 2] += np.int32(picture[y, x, 2]) - np.int32(seen[y, x, 2])
        for cell in range(cells):
            size = (bottom - top) * (min((cell + 1) * CELL_PX, width) - cell * CELL_PX)
            largest = max(abs(sums[cell, 0]), abs(sums[cell, 1]), abs(sums[cell, 2]))
            if largest > threshold * size:
                changed[top // BLOCK_PX, cell * CELL_PX // BLOCK_PX] = True
    return changed


def changed_blocks_reference(picture: U8, seen: U8, *, threshold: float) -> Bools:
    """`changed_blocks`, one block and one cell after the other."""
    _check(picture, seen)
    height, width, _ = picture.shape
    difference = picture.astype(np.float64) - seen
    changed = np.zeros((-(-height // BLOCK_PX), -(-width // BLOCK_PX)), np.bool_)
    for row, column in np.ndindex(*changed.shape):
        block = difference[row * BLOCK_PX : (row + 1) * BLOCK_PX, column * BLOCK_PX : (column + 1) * BLOCK_PX]
        cells = [
            block[y : y + CELL_PX, x : x + CELL_PX]
            for y in range(0, block.shape[0], CELL_PX)
            for x in range(0, block.shape[1], CELL_PX)
        ]
        changed[row, column] = any(np.abs(cell.sum((0, 1))).max() > threshold * cell[..., 0].size for cell in cells)
    return changed
