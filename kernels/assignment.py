"""Optimal assignment of rows to columns: the Hungarian method in its form with shortest augmenting paths, O(n^2 m)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F64


def assign(cost: F64) -> NDArray[np.int64]:
    """Give each row a column of its own so that the sum of their costs is smallest.

    Args:
        cost: (n, m) finite, n at most m. Either may be 0.

    Returns:
        (n,) column of each row.

    Raises:
        ValueError: more rows than columns, or a cost that is not finite.

    Source: Kuhn 1955, Munkres 1957; the potentials and paths are those of Jonker and Volgenant 1987.
    """
    _check(cost)
    columns: NDArray[np.int64] = assign_rows(np.ascontiguousarray(cost, np.float64))
    return columns


def _check(cost: F64) -> None:
    if cost.ndim != 2 or cost.shape[0] > cost.shape[1]:
        raise ValueError(f"cost must be (n, m) with n at most m, got {cost.shape}")
    if not np.isfinite(cost).all():
        raise ValueError("cost must be finite, got NaN or infinity")


@compiled
def assign_rows(cost: F64) -> NDArray[np.int64]:
    """`assign` for compiled callers, unchecked."""
    rows, columns = cost.shape
    # Row and column 0 are the outside; `holder[c]` is the row that has column c.
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    holder, previous = np.zeros(columns + 1, np.int64), np.zeros(columns + 1, np.int64)
    for row in range(1, rows + 1):
        holder[0] = row
        at = 0
        least = np.full(columns + 1, np.inf)
        done = np.zeros(columns + 1, np.bool_)
        while holder[at] != 0 or at == 0:
            done[at] = True
            best, step = -1, np.inf
            for column in range(1, columns + 1):
                if done[column]:
                    continue
                reduced = cost[holder[at] - 1, column - 1] - row_price[holder[at]] - column_price[column]
                if reduced < least[column]:
                    least[column], previous[column] = reduced, at
                if least[column] < step:
                    best, step = column, least[column]
            for column in range(columns + 1):
                if done[column]:
                    row_price[holder[column]] += step
                    column_price[column] -= step
                else:
                    least[column] -= step
            at = best
        while at != 0:
            holder[at] = holder[previous[at]]
            at = previous[at]
    result = np.zeros(rows, np.int64)
    for column in range(1, columns + 1):
        if holder[column] != 0:
            result[holder[column] - 1] = column - 1
    return result


def assign_reference(cost: F64) -> NDArray[np.int64]:
    """`assign` row by row: each newcomer takes the cheapest way to a free column, along which others move over.

    The way is found by relaxing all moves until none is cheaper (Bellman and Ford), which needs no prices.
    """
    _check(cost)
    rows, columns = cost.shape
    owner: dict[int, int] = {}  # column -> row
    for newcomer in range(rows):
        distance = {column: float(cost[newcomer, column]) for column in range(columns)}
        came_from: dict[int, int | None] = dict.fromkeys(range(columns))
        for _ in range(columns):
            for taken, row in owner.items():
                for column in range(columns):
                    moved = distance[taken] - cost[row, taken] + cost[row, column]
                    if column != taken and moved < distance[column] - 1e-9:
                        distance[column], came_from[column] = float(moved), taken
        at: int | None = min((c for c in range(columns) if c not in owner), key=lambda column: distance[column])
        while at is not None:
            source = came_from[at]
            owner[at] = newcomer if source is None else owner[source]
            at = source
    result = np.zeros(rows, np.int64)
    for column, row in owner.items():
        result[row] = column
    return result
