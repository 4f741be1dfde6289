"""How far a fast kernel may be from its reference, and why. Every twin test takes its number from here."""

from __future__ import annotations

from typing import Final

#: Both compute in float64 and differ only in the order of sums; results are stored as float32 (24 bits).
SAME_FORMULA: Final = {"rtol": 2e-6, "atol": 1e-6}

#: Closed form against an SVD of the same system: its condition times float64, then float32 of thousands of ROI px.
CLOSED_FORM_AGAINST_SVD: Final = {"rtol": 1e-5, "atol": 2e-4}

#: Sums of four float32 products in float32 against float64; features of size about 1.
FLOAT32_BILINEAR: Final = {"rtol": 0.0, "atol": 2e-6}

#: grid_sample normalises coordinates to -1..1 in float32: about 1e-5 of a feature px, times the slope there.
GRID_SAMPLE: Final = {"rtol": 0.0, "atol": 2e-4}

#: OpenCV's bilinear resize of bytes works with 11-bit weights, its area resize rounds sums of float32.
OPENCV_RESIZE_LEVELS: Final = 1

#: float32 against float64 Gaussians and unit vectors, values in -1..1.
SKELETON: Final = {"rtol": 0.0, "atol": 1e-5}

#: Joints and matrices in float64 through several products; px.
GEOMETRY_PX: Final = 1e-6

#: OpenCV's affine warp of bytes places each sample on a grid of 1/32 px, and rounds once more.
OPENCV_WARP_STEP_PX: Final = 1 / 32
