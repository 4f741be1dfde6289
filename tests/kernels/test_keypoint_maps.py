"""Maps read at any place, and the choice of a grouping by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.signatures import GROUPINGS, KEYPOINT_OUTPUTS
from kernels.groupings import PARAMETERS, READS, group_people, grouping_parameters, warm_up
from kernels.keypoint_maps import cell_of, px_of, sample, sample_reference
from kernels.personlab_decoding import PersonLabParameters

FIELDS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    elements=st.one_of(st.floats(-8, 8, width=32), st.sampled_from([np.nan, np.inf, -np.inf])),
)
PLACES = st.one_of(st.floats(-3, 8), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30]))


@given(FIELDS, PLACES, PLACES)
def test_sample_twin(field, x, y) -> None:
    assert sample(field, x, y) == pytest.approx(sample_reference(field, x, y), abs=1e-5)


def test_sample_by_hand() -> None:
    field = np.array([[0, 4], [8, 12]], np.float32)
    assert sample(field, 0.25, 0.5) == 5.0
    assert sample(field, -7.0, 9.0) == 8.0  # the border's beyond the border
    assert sample(field, np.nan, 0.0) == 0.0


@given(st.floats(-1e4, 1e4), st.sampled_from([1.0, 4.0, 16.0]))
def test_cells_and_px_are_inverse(px, stride) -> None:
    assert px_of(cell_of(px, stride), stride) == pytest.approx(px, abs=1e-9)
    assert cell_of(0.5 * stride - 0.5, stride) == 0  # the middle of the first cell


def test_groupings_of_engines_and_kernels_are_the_same() -> None:
    assert tuple(PARAMETERS) == GROUPINGS
    for name, kind in PARAMETERS.items():
        assert set(READS[kind]) <= {spec.name for spec in KEYPOINT_OUTPUTS[name]}
        assert "features" in {spec.name for spec in KEYPOINT_OUTPUTS[name]}


@pytest.mark.parametrize("grouping", list(PARAMETERS))
def test_every_grouping_finds_nobody_in_nothing(grouping) -> None:
    parameters = grouping_parameters(grouping, {})
    warm_up(parameters)
    shapes = {"M": 3, "P": 2, "h": 5, "w": 7}
    tensors = {
        spec.name: np.zeros([shapes.get(size, size) for size in spec.shape[1:]], np.float32)
        for spec in KEYPOINT_OUTPUTS[grouping]
        if spec.name in READS[type(parameters)]
    }
    keypoints, scores = group_people(tensors, parameters)
    assert keypoints.shape == (0, 17, 3) and scores.shape == (0,)


def test_a_grouping_is_chosen_by_name() -> None:
    assert grouping_parameters("personlab", {"radius_px": 20.0}) == PersonLabParameters(radius_px=20.0)
    with pytest.raises(ValueError, match="grouping must be one of centre, embedding, affinity, personlab, got 'beam'"):
        grouping_parameters("beam", {})
    with pytest.raises(ValueError, match=r"expected decode parameters among .*max_tag_distance.* got reach"):
        grouping_parameters("embedding", {"reach": 1.0})
    with pytest.raises(ValueError, match="stride must be from 1 to 64, got nan"):
        grouping_parameters("affinity", {"stride": float("nan")})
