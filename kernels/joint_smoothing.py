"""Joints that tremble less: a low-pass filter whose cutoff rises with speed, so that what rests is still and what moves
is not late.

Convention: x, y in frame px. Speeds are measured in body sizes, so that near and far people are treated alike.

Source: the One Euro filter (Casiez, Roussel, Vogel: "1 Euro Filter", CHI 2012), with its speed in body sizes per second
in place of px, and x and y of a joint sharing one cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F64

Visible = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingParameters:
    """How much is smoothed; chosen on the tuning seeds of benchmarks/crossings.py, see docs/experiments.md."""

    resting_cutoff_hz: float = 0.3
    """Cutoff at rest: smaller is stiller."""
    cutoff_per_speed: float = 10.0
    """Hz that the cutoff rises for each body size per second: greater is less late."""
    speed_cutoff_hz: float = 6.0
    """Cutoff of the speed that decides."""


DEFAULT_SMOOTHING = SmoothingParameters()


def smooth_joints(
    points: F64,
    visible: Visible,
    last_points: F64,
    last_speeds: F64,
    known: Visible,
    sizes: F64,
    elapsed_s: F64,
    *,
    parameters: SmoothingParameters = DEFAULT_SMOOTHING,
) -> tuple[F64, F64]:
    """One step of the filter for all joints of all people.

    Args:
        points: (N, 17, 2) as measured.
        visible: (N, 17) joints that were really seen; the others pass through.
        last_points: (N, 17, 2) what this function returned before.
        last_speeds: (N, 17, 2) likewise, px/s.
        known: (N, 17) joints that were seen before; what appears starts where it was measured, at rest.
        sizes: (N,) body size, px.
        elapsed_s: (N,) since then; where it is not positive nothing is smoothed.

    Returns:
        smoothed points (N, 17, 2) and their speeds (N, 17, 2) px/s.
    """
    step = np.where(elapsed_s > 0, elapsed_s, 1.0)[:, None, None]
    filtered = (visible & known & (elapsed_s > 0)[:, None])[:, :, None]
    speeds = last_speeds + _share(parameters.speed_cutoff_hz, step) * ((points - last_points) / step - last_speeds)
    bodies_per_s = np.sqrt((speeds**2).sum(axis=2, keepdims=True)) / sizes[:, None, None]
    cutoff_hz = parameters.resting_cutoff_hz + parameters.cutoff_per_speed * bodies_per_s
    smoothed = last_points + _share(cutoff_hz, step) * (points - last_points)
    return np.where(filtered, smoothed, points), np.where(filtered, speeds, 0.0)


def _share(cutoff_hz: F64 | float, step_s: F64) -> F64:
    """Share of the new value in a first-order low-pass filter."""
    turn = 2.0 * np.pi * cutoff_hz * step_s
    result: F64 = turn / (turn + 1.0)
    return result


def smooth_joints_reference(
    points: F64,
    visible: Visible,
    last_points: F64,
    last_speeds: F64,
    known: Visible,
    sizes: F64,
    elapsed_s: F64,
    *,
    parameters: SmoothingParameters = DEFAULT_SMOOTHING,
) -> tuple[F64, F64]:
    """`smooth_joints`, one joint at a time, in the words of the paper: alpha = 1 / (1 + tau / T)."""
    smoothed, speeds = points.copy(), np.zeros_like(points)
    for n, j in np.ndindex(visible.shape):
        period = float(elapsed_s[n])
        if not (visible[n, j] and known[n, j] and period > 0):
            continue

        def alpha(cutoff_hz: float, period: float = period) -> float:
            return 1.0 / (1.0 + 1.0 / (2.0 * np.pi * cutoff_hz) / period)

        a = alpha(parameters.speed_cutoff_hz)
        speeds[n, j] = a * (points[n, j] - last_points[n, j]) / period + (1.0 - a) * last_speeds[n, j]
        bodies_per_s = float(np.hypot(*speeds[n, j])) / float(sizes[n])
        a = alpha(parameters.resting_cutoff_hz + parameters.cutoff_per_speed * bodies_per_s)
        smoothed[n, j] = a * points[n, j] + (1.0 - a) * last_points[n, j]
    return smoothed, speeds
