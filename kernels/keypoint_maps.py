"""Maps of a keypoint network, read at any place.

A map of stride s lies on the network's input by the half-pixel rule (`kernels.coordinates`): cell i is centred on input
px (i + 0.5) s - 0.5. Positions in cells are such indices, so cell 3 is centred at 3.0. Maps are (..., h, w); channel
pairs of offsets hold y before x, those of affinity fields x before y (as the drawn skeleton does).
"""

from __future__ import annotations

import numpy as np

from kernels.compilation import compiled
from kernels.coordinates import F32, F64

MAP_STRIDE = 4.0
"""px of the input for each cell of the maps that the keypoint graph gives, unless the manifest says otherwise."""


@compiled
def cell_of(px: float, stride: float) -> float:
    """Input px to cells."""
    return (px + 0.5) / stride - 0.5


@compiled
def px_of(cell: float, stride: float) -> float:
    """Cells to input px."""
    return (cell + 0.5) * stride - 0.5


@compiled
def sample(field: F32, x: float, y: float) -> float:
    """Bilinear value of a map (h, w) at a place in cells; beyond the border the border's. 0 for NaN and infinity."""
    height, width = field.shape
    if not (np.isfinite(x) and np.isfinite(y)):
        return 0.0
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    column, row = int(x), int(y)
    right, below = min(column + 1, width - 1), min(row + 1, height - 1)
    u, v = x - column, y - row
    value = (1.0 - v) * ((1.0 - u) * np.float64(field[row, column]) + u * np.float64(field[row, right])) + v * (
        (1.0 - u) * np.float64(field[below, column]) + u * np.float64(field[below, right])
    )
    return float(value) if np.isfinite(value) else 0.0


@compiled
def inside(field: F32, x: float, y: float) -> bool:
    """Whether a place in cells lies on the map (h, w), its outer half cells included."""
    return bool(-0.5 <= x <= field.shape[1] - 0.5 and -0.5 <= y <= field.shape[0] - 0.5)


def sample_reference(field: F32, x: float, y: float) -> float:
    """`sample` by its formula: each cell weighs max(0, 1 - |dx|) max(0, 1 - |dy|)."""
    height, width = field.shape
    if not (np.isfinite(x) and np.isfinite(y)):
        return 0.0
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    rows, columns = (
        np.clip(1 - np.abs(np.arange(height) - y), 0, None),
        np.clip(1 - np.abs(np.arange(width) - x), 0, None),
    )
    # 0 times infinity would be NaN: only the cells that count, and those next to them, as the fast one reads them
    first_row, first_column = int(y), int(x)
    patch: F64 = field[first_row : first_row + 2, first_column : first_column + 2].astype(np.float64)
    weights = np.outer(rows[first_row : first_row + 2], columns[first_column : first_column + 2])
    with np.errstate(invalid="ignore"):
        value = float((patch * weights).sum())
    return value if np.isfinite(value) else 0.0


def check_maps(name: str, maps: F32, channels: int, like: tuple[int, ...] | None = None) -> None:
    """Raise ValueError unless the maps are (channels, h, w) with at least one cell, and as large as `like` (h, w)."""
    if maps.ndim != 3 or maps.shape[0] != channels or 0 in maps.shape or (like is not None and maps.shape[1:] != like):
        size = "h, w" if like is None else f"{like[0]}, {like[1]}"
        raise ValueError(f"{name} must be ({channels}, {size}), got {maps.shape}")


def check_candidates(joint_candidates: F32, joints: int) -> None:
    """Raise ValueError unless joint candidates are (joints, M, 4)."""
    if joint_candidates.ndim != 3 or joint_candidates.shape[0] != joints or joint_candidates.shape[2] != 4:
        raise ValueError(f"joint_candidates must be ({joints}, M, 4), got {joint_candidates.shape}")


def check_range(owner: object, **limits: tuple[float, float]) -> None:
    """Raise ValueError if a parameter is not a number within its limits, which are allowed; NaN never is."""
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
