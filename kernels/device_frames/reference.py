"""Slow twins of the kernels on frames, as the definitions read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, F64, U8
from kernels.mask_paste import PastedMask, paste_masks_reference

#: Share of red and of blue in luma.
LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def rgb_of_yuv420_reference(luma: U8, chroma: U8, *, matrix: str = "bt601", full_range: bool = False) -> U8:
    """YUV 4:2:0 to RGB in float64, each chroma px standing for its two by two px.

    Args:
        luma: (H, W) uint8.
        chroma: (ceil(H / 2), ceil(W / 2), 2) uint8: U and V.
        matrix: "bt601" or "bt709".
        full_range: 0..255 stands for black to white, not 16..235.

    Returns:
        (H, W, 3) uint8 RGB, rounded.

    Source: ITU-R BT.601 and BT.709, section 3. The kernel differs by what swscale's integers lose: up to 3 levels.
    """
    height, width = luma.shape
    full_size = chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width].astype(np.float64) - 128
    if full_range:
        y, u, v = luma.astype(np.float64), full_size[..., 0], full_size[..., 1]
    else:
        y = (luma.astype(np.float64) - 16) * 255 / 219
        u, v = (full_size[..., channel] * 255 / 224 for channel in range(2))
    red_share, blue_share = LUMA_SHARES[matrix]
    red, blue = y + 2 * (1 - red_share) * v, y + 2 * (1 - blue_share) * u
    green = (y - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    return np.clip(np.rint(np.stack((red, green, blue), axis=-1)), 0, 255).astype(np.uint8)


def paste_and_blend_reference(
    frame: U8,
    probabilities: F32,
    roi_from_frame: NDArray[np.floating],
    *,
    threshold: float,
    colors: U8,
    opacity: float,
    order: NDArray[np.integer] | None = None,
    exclusive: bool = False,
) -> tuple[U8, list[PastedMask]]:
    """Masks of everybody over the whole frame, then one blend after the other in float64, each rounded.

    Args:
        frame: (H, W, 3) uint8; not changed.
        probabilities: (N, S, S).
        roi_from_frame: (N, 2, 3).
        threshold: a px is person where the interpolated probability is greater.
        colors: (N, 3) uint8 RGB.
        opacity: share of the colour, 0..1.
        order: people from bottom to top; that of the arguments when not given.
        exclusive: a px that several people claim goes to the surest of them alone.

    Returns:
        The blended frame, and the masks.
    """
    height, width = frame.shape[:2]
    masks = paste_masks_reference(
        probabilities, roi_from_frame, height, width, threshold=threshold, exclusive=exclusive
    )
    blended = frame.copy()
    for n in range(len(masks)) if order is None else order:
        inside = masks[n].in_frame(height, width)
        mixed: F64 = (1.0 - opacity) * blended[inside].astype(np.float64) + opacity * colors[n].astype(np.float64)
        blended[inside] = np.rint(mixed).astype(np.uint8)
    return blended, masks
