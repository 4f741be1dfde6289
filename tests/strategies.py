"""Hypothesis strategies for the things that kernels work on."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@st.composite
def similarities(draw: st.DrawFn, *, min_scale: float = 0.05, max_scale: float = 20.0, max_shift: float = 500.0) -> F64:
    """(2, 3) rotation, uniform scale and shift, without reflection: [[a, b, tx], [-b, a, ty]]."""
    angle = draw(st.floats(-np.pi, np.pi))
    scale = draw(st.floats(min_scale, max_scale))
    shift_x, shift_y = draw(st.tuples(*[st.floats(-max_shift, max_shift)] * 2))
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, b, shift_x], [-b, a, shift_y]])


@st.composite
def crowds(draw: st.DrawFn, *, max_people: int = 6, side_px: float = 400.0) -> NDArray[np.float32]:
    """(N, 17, 3) float32: joints anywhere in and around a frame, some absent, now and then NaN or infinity."""
    people = draw(st.integers(0, max_people))
    xy = draw(hnp.arrays(np.float32, (people, 17, 2), elements=st.floats(-50, side_px, width=32)))
    v = draw(hnp.arrays(np.float32, (people, 17, 1), elements=st.sampled_from([0.0, 1.0, 2.0])))
    keypoints = np.concatenate((xy, v), axis=-1)
    for _ in range(draw(st.integers(0, 2)) if people else 0):
        place = draw(st.tuples(st.integers(0, people - 1), st.integers(0, 16), st.integers(0, 2)))
        keypoints[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return keypoints


@st.composite
def masks_in_frames(draw: st.DrawFn) -> tuple[NDArray[np.bool_], int, int, int, int]:
    """A (h, w) bool crop, its x0 and y0, and the height and width of a frame that holds it."""
    height, width = draw(st.tuples(*[st.integers(1, 12)] * 2))
    left, top, right, bottom = draw(st.tuples(*[st.integers(0, 4)] * 4))
    mask = draw(hnp.arrays(np.bool_, (height, width)))
    return mask, left, top, top + height + bottom, left + width + right
