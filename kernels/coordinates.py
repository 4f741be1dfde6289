"""The pixel convention of the whole project, and the few operations on 2x3 matrices that everything is built from.

Convention
    * Integer coordinates are pixel centres: the first pixel of an image is centred at (0, 0), its edges lie at -0.5
      and 0.5.
    * Points are (x, y), sizes are (height, width), boxes are (x0, y0, x1, y1).
    * A matrix is named ``target_from_source`` and acts on columns: ``p_target = target_from_source @ [x, y, 1]``.
      Names then read off: ``roi_from_feature @ feature_from_frame = roi_from_frame``.
    * Scaling an image by ``s`` the way OpenCV does (half-pixel rule) is ``x' = s x + (s - 1) / 2``, see
      `half_pixel_scale`.
    * A network's feature grid lies on its input as the artifact's ``feature_from_input`` says; nothing assumes it.
    * Sampling uses exact indices with zeros outside; for ``torch.nn.functional.grid_sample`` that is
      ``g = (2 x + 1) / W - 1`` with ``align_corners=False``.

All functions take arrays of shape (..., 2, 3) and compute in float64 unless the input says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

IDENTITY: F64 = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def compose(outer: ArrayLike, inner: ArrayLike) -> F64:
    """Matrix of "first ``inner``, then ``outer``": (..., 2, 3) and (..., 2, 3), broadcast, to (..., 2, 3)."""
    a, b = np.asarray(outer, np.float64), np.asarray(inner, np.float64)
    product: F64 = a[..., :, :2] @ b
    product[..., :, 2] += a[..., :, 2]
    return product


def invert(matrix: ArrayLike) -> F64:
    """Closed-form inverse of (..., 2, 3) matrices.

    Raises:
        ValueError: a matrix is singular or not finite.
    """
    m = np.asarray(matrix, np.float64)
    a, b, tx = m[..., 0, 0], m[..., 0, 1], m[..., 0, 2]
    c, d, ty = m[..., 1, 0], m[..., 1, 1], m[..., 1, 2]
    determinant = a * d - b * c
    if not np.all(np.isfinite(m)) or np.any(determinant == 0):
        raise ValueError("matrix cannot be inverted: it is singular or holds NaN or infinity")
    inverse: F64 = np.empty_like(m)
    inverse[..., 0, 0], inverse[..., 0, 1] = d / determinant, -b / determinant
    inverse[..., 1, 0], inverse[..., 1, 1] = -c / determinant, a / determinant
    inverse[..., 0, 2] = -(inverse[..., 0, 0] * tx + inverse[..., 0, 1] * ty)
    inverse[..., 1, 2] = -(inverse[..., 1, 0] * tx + inverse[..., 1, 1] * ty)
    return inverse


def transform_points(matrix: ArrayLike, points: ArrayLike) -> F64:
    """Move points (..., K, 2) by matrices (..., 2, 3); the leading axes broadcast."""
    m, p = np.asarray(matrix, np.float64), np.asarray(points, np.float64)
    return p @ np.swapaxes(m[..., :, :2], -1, -2) + m[..., None, :, 2]


def scale_of(matrix: ArrayLike) -> F64:
    """Uniform magnification sqrt(|det|) of (..., 2, 3) matrices, in target px per source px."""
    m = np.asarray(matrix, np.float64)
    return np.sqrt(np.abs(m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] * m[..., 1, 0]))


def half_pixel_scale(scale_x: float, scale_y: float) -> F64:
    """Matrix of an image resize with pixel edges kept in place (OpenCV's rule): x' = s x + (s - 1) / 2."""
    return np.array([[scale_x, 0.0, (scale_x - 1.0) / 2.0], [0.0, scale_y, (scale_y - 1.0) / 2.0]])
