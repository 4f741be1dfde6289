"""The optimal assignment: by hand, against its twin, and against an implementation that is not ours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from kernels.assignment import assign, assign_reference


def test_by_hand() -> None:
    cost = np.array([[1.0, 2.0, 9.0], [1.0, 4.0, 9.0]])
    assert assign(cost).tolist() == [1, 0]  # the first one gives way: 2 + 1 is less than 1 + 4
    assert assign_reference(cost).tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (1, 1), (1, 5)])
def test_few(shape) -> None:
    cost = np.arange(np.prod(shape), dtype=float).reshape(shape)[:, ::-1]
    expected = [shape[1] - 1] * shape[0]
    assert assign(cost).tolist() == expected == assign_reference(cost).tolist()


@st.composite
def costs(draw, whole: bool = False):
    rows = draw(st.integers(0, 7))
    columns = rows + draw(st.integers(0, 4))
    elements = st.integers(-3, 3).map(float) if whole else st.floats(-100, 100)
    return draw(hnp.arrays(np.float64, (rows, columns), elements=elements))


@given(st.one_of(costs(), costs(whole=True)))
def test_the_sum_is_the_smallest_there_is(cost) -> None:
    """Ties may be told apart differently; the sum may not differ."""
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns].sum()
    for chosen in (assign(cost), assign_reference(cost)):
        assert len(set(chosen.tolist())) == len(cost)
        assert cost[np.arange(len(cost)), chosen].sum() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("rows", [5, 31])
def test_twin(rows) -> None:
    cost = np.random.default_rng(rows).normal(size=(rows, rows + 3))  # no two assignments have the same sum
    np.testing.assert_array_equal(assign(cost), assign_reference(cost))


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"n at most m, got \(3, 2\)"):
        assign(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        assign(np.array([[np.nan]]))
