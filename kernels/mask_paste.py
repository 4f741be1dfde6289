"""Bring person masks from their regions of interest (ROI) back into the frame.

Convention: frame px and ROI px, integer coordinates are pixel centres. A frame px looks up the ROI's *probability* at
``roi_from_frame @ [x, y, 1]`` by bilinear interpolation, with zeros outside the ROI, and is person where that exceeds
the threshold. Nothing here does work, or takes memory, for the whole frame: each mask is a crop in its own box.

Source: Pose2Seg section 3 as released: no overlap arbitration between people, strict threshold. With ``exclusive`` it
differs: a px belongs to one person at most. Whoever's probability is above the threshold there claims it, the highest
probability gets it, of equal ones the first; so everybody together have the same px either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F32, F64, U8

I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Pixel = TypeVar("Pixel", np.bool_, np.uint8)

EDGE_PX = 1.5  # frame px over which alpha rises, at least: less looks like stairs
EDGE_ROI_PX = 0.5  # the same in ROI px: the network knows the border no better than that
STEEPEST = 6.0  # alpha per probability where the network is undecided
FLOOR = 0.02  # probabilities up to this are nobody: half of a network's window carries some


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastedMask:
    """One person's px in the frame: the smallest crop that holds them all."""

    x0: int
    """Frame column of the crop's first px; 0 for an empty mask."""
    y0: int
    """Frame row of the crop's first px; 0 for an empty mask."""
    mask: Bool
    """(h, w) bool, C-contiguous; (0, 0) when no px is person."""

    def in_frame(self, frame_height: int, frame_width: int) -> Bool:
        """The mask as a full (frame_height, frame_width) bool picture."""
        full = np.zeros((frame_height, frame_width), np.bool_)
        height, width = self.mask.shape
        full[self.y0 : self.y0 + height, self.x0 : self.x0 + width] = self.mask
        return full


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastedAlpha:
    """How much of each frame px belongs to one person: a crop that holds all px above 0."""

    x0: int
    """Frame column of the crop's first px; 0 for an empty one."""
    y0: int
    """Frame row of the crop's first px; 0 for an empty one."""
    alpha: U8
    """(h, w) uint8, C-contiguous: 0 none of the px, 255 all of it; (0, 0) when nobody is there."""

    def in_frame(self, frame_height: int, frame_width: int) -> U8:
        """The alpha as a full (frame_height, frame_width) uint8 picture."""
        full = np.zeros((frame_height, frame_width), np.uint8)
        height, width = self.alpha.shape
        full[self.y0 : self.y0 + height, self.x0 : self.x0 + width] = self.alpha
        return full


def paste_masks(
    probabilities: F32,
    roi_from_frame: NDArray[np.floating],
    frame_height: int,
    frame_width: int,
    *,
    threshold: float = 0.5,
    exclusive: bool = False,
) -> list[PastedMask]:
    """Inverse warp of each person's mask, inside that person's box only.

    Args:
        probabilities: (N, S, S) float32 in ROI px, 0..1. NaN is never person.
        roi_from_frame: (N, 2, 3), frame px to ROI px, as the ROIs were cut.
        frame_height: px.
        frame_width: px.
        threshold: a px is person where the interpolated probability is greater; 0 <= threshold < 1.
        exclusive: a px that several people claim goes to the surest of them alone; else masks may share px.

    Returns:
        One PastedMask per person, in order. Nothing above the threshold, outside the frame, a matrix that cannot be
        inverted, or no px that is left to this person: empty.

    Raises:
        ValueError: shapes or threshold.
    """
    _check(probabilities, roi_from_frame, frame_height, frame_width, threshold)
    probabilities = np.ascontiguousarray(probabilities, np.float32)
    matrices = np.ascontiguousarray(roi_from_frame, np.float64)
    supports, boxes = _boxes(probabilities, matrices, frame_height, frame_width, threshold)
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2) width, height
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    pixels = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    tight = _fill(probabilities, matrices, threshold, supports, boxes, pixels)
    if exclusive:
        meetings = _meetings(boxes, tight)
        _shrink(pixels, boxes, tight, _settle(probabilities, matrices, boxes, meetings, pixels))
    masks = []
    for n in range(len(probabilities)):
        width, height = int(sizes[n, 0]), int(sizes[n, 1])
        x0, y0, x1, y1 = tight[n].tolist()
        crop = pixels[ends[n] - width * height : ends[n]].reshape(height, width)[y0:y1, x0:x1]
        if crop.size:
            masks.append(
                PastedMask(
                    x0=int(boxes[n, 0]) + x0, y0=int(boxes[n, 1]) + y0, mask=np.ascontiguousarray(crop).view(np.bool_)
                )
            )
        else:
            masks.append(PastedMask(x0=0, y0=0, mask=np.zeros((0, 0), np.bool_)))
    return masks


def _check(
    probabilities: F32, roi_from_frame: NDArray[np.floating], frame_height: int, frame_width: int, threshold: float
) -> None:
    people = len(probabilities)
    if (
        probabilities.ndim != 3
        or probabilities.shape[1] != probabilities.shape[2]
        or roi_from_frame.shape != (people, 2, 3)
    ):
        raise ValueError(
            "probabilities must be (N, S, S) and roi_from_frame (N, 2, 3), "
            f"got {probabilities.shape} and {roi_from_frame.shape}"
        )
    if min(frame_height, frame_width) < 1:
        raise ValueError(f"frame must be at least 1 x 1 px, got {frame_height} x {frame_width}")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must be in 0 <= threshold < 1, got {threshold}")


@compiled
def _boxes(probabilities: F32, matrices: F64, frame_height: int, frame_width: int, threshold: float) -> tuple[I64, I64]:
    """Where in the ROI, and hence where in the frame, anything can exceed the threshold: (N, 4) x0, y0, x1, y1, end
    exclusive.

    An interpolated value exceeds it only within one ROI px of a px that does.
    """
    people, side = probabilities.shape[0], probabilities.shape[1]
    supports = np.zeros((people, 4), np.int64)
    boxes = np.zeros((people, 4), np.int64)
    for n in range(people):
        u0, v0, u1, v1 = side, side, -1, -1
        for v in range(side):
            for u in range(side):
                if probabilities[n, v, u] > threshold:
                    u0, v0, u1, v1 = min(u0, u), min(v0, v), max(u1, u), max(v1, v)
        if u1 < 0:
            continue
        supports[n, 0], supports[n, 1], supports[n, 2], supports[n, 3] = u0 - 1, v0 - 1, u1 + 1, v1 + 1

        a, b, tx = matrices[n, 0, 0], matrices[n, 0, 1], matrices[n, 0, 2]
        c, d, ty = matrices[n, 1, 0], matrices[n, 1, 1], matrices[n, 1, 2]
        determinant = a * d - b * c
        if determinant == 0 or not np.isfinite(determinant) or not np.isfinite(tx) or not np.isfinite(ty):
            continue
        x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
        for corner in range(4):
            u = (supports[n, 0] if corner % 2 == 0 else supports[n, 2]) - tx
            v = (supports[n, 1] if corner < 2 else supports[n, 3]) - ty
            x, y = (d * u - b * v) / determinant, (a * v - c * u) / determinant
            x_low, y_low, x_high, y_high = min(x_low, x), min(y_low, y), max(x_high, x), max(y_high, y)
        # Clipped as floats: a tiny determinant gives numbers that no integer holds.
        x0, x1 = max(np.floor(x_low), 0.0), min(np.ceil(x_high) + 1.0, float(frame_width))
        y0, y1 = max(np.floor(y_low), 0.0), min(np.ceil(y_high) + 1.0, float(frame_height))
        if x0 < x1 and y0 < y1:
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = int(x0), int(y0), int(x1), int(y1)
    return supports, boxes


@compiled
def _fill(probabilities: F32, matrices: F64, threshold: float, supports: I64, boxes: I64, pixels: U8) -> I64:
    """Write all boxes one after the other; return (N, 4) the smallest box of person px within each, end exclusive."""
    people, side = probabilities.shape[0], probabilities.shape[1]
    tight = np.zeros((people, 4), np.int64)
    bordered = np.zeros((side + 2, side + 2), np.float32)  # zeros around, so that no tap needs a check
    start = 0
    for n in range(people):
        width, height = boxes[n, 2] - boxes[n, 0], boxes[n, 3] - boxes[n, 1]
        if width * height == 0:
            continue
        bordered[1 : side + 1, 1 : side + 1] = probabilities[n]
        a, b, tx = matrices[n, 0, 0], matrices[n, 0, 1], matrices[n, 0, 2]
        c, d, ty = matrices[n, 1, 0], matrices[n, 1, 1], matrices[n, 1, 2]
        x_min, y_min, x_max, y_max = width, height, -1, -1
        for row in range(height):
            line = pixels[start + row * width : start + (row + 1) * width]
            line[:] = 0
            y = boxes[n, 1] + row
            u_row, v_row = b * y + tx, d * y + ty
            # The row crosses the support, a convex window, in one stretch of columns.
            first, last = _stretch(a, u_row, float(supports[n, 0]), float(supports[n, 2]), boxes[n, 0], boxes[n, 2])
            first, last = _stretch(c, v_row, float(supports[n, 1]), float(supports[n, 3]), first, last)
            for x in range(first, last):
                # In the bordered map, where both coordinates are above 0.
                line[x - boxes[n, 0]] = _probability(bordered, a * x + u_row + 1.0, c * x + v_row + 1.0) > threshold
            left, right = first - boxes[n, 0], last - boxes[n, 0] - 1
            while left <= right and line[left] == 0:
                left += 1
            while right >= left and line[right] == 0:
                right -= 1
            if left <= right:
                x_min, x_max = min(x_min, left), max(x_max, right)
                y_min, y_max = min(y_min, row), row
        start += width * height
        if x_max >= 0:
            tight[n, 0], tight[n, 1], tight[n, 2], tight[n, 3] = x_min, y_min, x_max + 1, y_max + 1
    return tight


@compiled
def _probability(bordered: F32, u: float, v: float) -> float:
    """Interpolated at (u, v), which lies in the map.

    Between equal values it is exactly that value: people who are equally sure stay so, wherever their windows lie.
    """
    u0, v0 = int(u), int(v)
    fu, fv = u - u0, v - v0
    p00, p10 = np.float64(bordered[v0, u0]), np.float64(bordered[v0 + 1, u0])
    top = p00 + (bordered[v0, u0 + 1] - p00) * fu
    bottom = p10 + (bordered[v0 + 1, u0 + 1] - p10) * fu
    value: float = top + (bottom - top) * fv
    return value


@compiled
def _meetings(boxes: I64, tight: I64) -> I64:
    """Every two people whose px lie in each other's way.

    Args:
        boxes: (N, 4) in frame px, end exclusive.
        tight: (N, 4) within each box: where there can be anything but 0.

    Returns:
        (M, 8), by n and then k: n < k, where the px of n and of k begin if all boxes stand one after the other, and
        x0, y0, x1, y1 of what they have in common in frame px, end exclusive.
    """
    people = len(boxes)
    found = np.empty((people * (people - 1) // 2, 8), np.int64)
    count, start_n = 0, 0
    for n in range(people):
        start_k = start_n + (boxes[n, 2] - boxes[n, 0]) * (boxes[n, 3] - boxes[n, 1])
        next_n = start_k
        for k in range(n + 1, people):
            x0 = max(boxes[n, 0] + tight[n, 0], boxes[k, 0] + tight[k, 0])
            y0 = max(boxes[n, 1] + tight[n, 1], boxes[k, 1] + tight[k, 1])
            x1 = min(boxes[n, 0] + tight[n, 2], boxes[k, 0] + tight[k, 2])
            y1 = min(boxes[n, 1] + tight[n, 3], boxes[k, 1] + tight[k, 3])
            if x0 < x1 and y0 < y1:
                meeting = found[count]
                meeting[0], meeting[1], meeting[2], meeting[3] = n, k, start_n, start_k
                meeting[4], meeting[5], meeting[6], meeting[7] = x0, y0, x1, y1
                count += 1
            start_k += (boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1])
        start_n = next_n
    return found[:count]


@compiled
def _settle(probabilities: F32, matrices: F64, boxes: I64, meetings: I64, owned: U8) -> Bool:
    """Leave each px to the surest of those who claim it.

    Two by two, where both still hold the px: whoever is surest wins each time, and two others cannot both be left.

    Args:
        probabilities: (N, S, S).
        matrices: (N, 2, 3), frame px to ROI px.
        boxes: (N, 4) in frame px, end exclusive.
        meetings: from `_meetings`.
        owned: all boxes one after the other, not 0 where the probability is above the threshold; changed.

    Returns:
        (N,) who lost a px.
    """
    people, side = probabilities.shape[0], probabilities.shape[1]
    lost = np.zeros(people, np.bool_)
    first, second = np.zeros((side + 2, side + 2), np.float32), np.zeros((side + 2, side + 2), np.float32)
    loaded = -1
    for meeting in meetings:
        n, k, start_n, start_k = meeting[0], meeting[1], meeting[2], meeting[3]
        x0, y0, x1, y1 = meeting[4], meeting[5], meeting[6], meeting[7]
        if n != loaded:
            first[1 : side + 1, 1 : side + 1] = probabilities[n]
            loaded = n
        second[1 : side + 1, 1 : side + 1] = probabilities[k]
        a, b, tx = matrices[n, 0, 0], matrices[n, 0, 1], matrices[n, 0, 2]
        c, d, ty = matrices[n, 1, 0], matrices[n, 1, 1], matrices[n, 1, 2]
        a_k, b_k, tx_k = matrices[k, 0, 0], matrices[k, 0, 1], matrices[k, 0, 2]
        c_k, d_k, ty_k = matrices[k, 1, 0], matrices[k, 1, 1], matrices[k, 1, 2]
        for y in range(y0, y1):
            row_n = start_n + (y - boxes[n, 1]) * (boxes[n, 2] - boxes[n, 0]) - boxes[n, 0]
            row_k = start_k + (y - boxes[k, 1]) * (boxes[k, 2] - boxes[k, 0]) - boxes[k, 0]
            u_n, v_n, u_k, v_k = b * y + tx, d * y + ty, b_k * y + tx_k, d_k * y + ty_k
            for x in range(x0, x1):
                if owned[row_n + x] == 0 or owned[row_k + x] == 0:
                    continue
                of_n = _probability(first, a * x + u_n + 1.0, c * x + v_n + 1.0)
                of_k = _probability(second, a_k * x + u_k + 1.0, c_k * x + v_k + 1.0)
                if of_k > of_n:
                    owned[row_n + x] = 0
                    lost[n] = True
                else:
                    owned[row_k + x] = 0
                    lost[k] = True
    return lost


@compiled
def _shrink(pixels: U8, boxes: I64, tight: I64, changed: Bool) -> None:
    """Make ``tight`` of the people who changed the smallest again: (N, 4), zeros where no px is left."""
    start = 0
    for n in range(len(boxes)):
        width = boxes[n, 2] - boxes[n, 0]
        if changed[n]:
            x_min, y_min, x_max, y_max = tight[n, 2], tight[n, 3], -1, -1
            for row in range(tight[n, 1], tight[n, 3]):
                line = pixels[start + row * width : start + (row + 1) * width]
                left, right = tight[n, 0], tight[n, 2] - 1
                while left <= right and line[left] == 0:
                    left += 1
                while right >= left and line[right] == 0:
                    right -= 1
                if left <= right:
                    x_min, x_max = min(x_min, left), max(x_max, right)
                    y_min, y_max = min(y_min, row), row
            tight[n, :] = 0
            if x_max >= 0:
                tight[n, 0], tight[n, 1], tight[n, 2], tight[n, 3] = x_min, y_min, x_max + 1, y_max + 1
        start += width * (boxes[n, 3] - boxes[n, 1])


@compiled
def _stretch(slope: float, offset: float, low: float, high: float, first: int, last: int) -> tuple[int, int]:
    """Columns first <= x < last where low < slope * x + offset < high; rounding never lets one in that is not."""
    if slope != 0.0:
        near, far = (low - offset) / slope, (high - offset) / slope
        if near > far:
            near, far = far, near
        # One column more on both sides, clipped as floats; then only what truly lies inside.
        first = int(min(max(np.floor(near) - 1.0, float(first)), float(last)))
        last = int(max(min(np.ceil(far) + 2.0, float(last)), float(first)))
    while first < last and not low < slope * first + offset < high:
        first += 1
    while last > first and not low < slope * (last - 1) + offset < high:
        last -= 1
    return first, last


def paste_masks_reference(
    probabilities: F32,
    roi_from_frame: NDArray[np.floating],
    frame_height: int,
    frame_width: int,
    *,
    threshold: float = 0.5,
    exclusive: bool = False,
) -> list[PastedMask]:
    """`paste_masks` over the whole frame for every person, cropped afterwards."""
    _check(probabilities, roi_from_frame, frame_height, frame_width, threshold)
    y, x = np.mgrid[:frame_height, :frame_width].astype(np.float64)
    values = np.zeros((len(probabilities), frame_height, frame_width))
    for n, (probability, matrix) in enumerate(zip(probabilities, roi_from_frame.astype(np.float64), strict=True)):
        if np.isfinite(matrix).all() and np.linalg.det(matrix[:, :2]) != 0:
            u, v = (matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] for row in range(2))
            values[n] = _bilinear_reference(probability.astype(np.float64), u, v)
    claimed = values > threshold
    full = _owned_reference(values, claimed) if exclusive else claimed
    masks = []
    for one in full:
        x0, y0, crop = _cropped_reference(one)
        masks.append(PastedMask(x0=x0, y0=y0, mask=crop))
    return masks


def _owned_reference(values: F64, claimed: Bool) -> Bool:
    """(N, H, W): the surest of those who claim a px, of equally sure ones the first."""
    if not len(values):
        return claimed
    surest = np.where(claimed, values, -1.0).argmax(axis=0)
    owned: Bool = claimed & (np.arange(len(values))[:, None, None] == surest)
    return owned


def _cropped_reference(full: NDArray[Pixel]) -> tuple[int, int, NDArray[Pixel]]:
    """Column and row of the smallest crop that holds all px but zeros, and the crop; zeros and (0, 0) without any."""
    rows, columns = np.nonzero(full.any(axis=1))[0], np.nonzero(full.any(axis=0))[0]
    if not len(rows):
        return 0, 0, np.zeros((0, 0), full.dtype)
    crop = full[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int(columns[0]), int(rows[0]), np.ascontiguousarray(crop)


def _bilinear_reference(image: F64, u: F64, v: F64) -> F64:
    """Values of a square image at (u, v), zeros outside."""
    side = len(image)
    padded = np.pad(image, 2)
    u, v = np.clip(u, -2, side), np.clip(v, -2, side)  # all that lies beyond reads zeros of the border
    u0, v0 = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = u - u0, v - v0
    taps = [[padded[v0 + 2 + dv, np.minimum(u0 + 2 + du, side + 3)] for du in range(2)] for dv in range(2)]
    top, bottom = (row[0] + (row[1] - row[0]) * fu for row in taps)
    value: F64 = top + (bottom - top) * fv
    return value


def paste_alpha(
    probabilities: F32,
    roi_from_frame: NDArray[np.floating],
    frame_height: int,
    frame_width: int,
    *,
    threshold: float = 0.5,
    exclusive: bool = False,
) -> list[PastedAlpha]:
    """`paste_masks` with edges between px: alpha rises across the border of the mask, and is 0 or 255 away from it.

    The probability is not the alpha: it rises over two ROI px, ten frame px and more for a large person. So it
    is divided by its own slope, which gives the distance to the border in frame px, and alpha rises from 0 to 255 over
    `EDGE_PX`, or `EDGE_ROI_PX` where that is more. Where the slope is flat the network is undecided, and alpha follows
    the probability, `STEEPEST` times as steep, so that a small change of it stays a small change.

    With ``exclusive``, a px that is somebody's is no part of anybody else. Its owner has the greatest alpha of all
    people there, so the greatest over everybody is what it is without. The others' alpha ends at the seam, where two
    are equally sure, and is antialiased on their side of it, in px beside those they own: it falls from 127 to 0 over
    half of `EDGE_PX`. The distance to the seam is the difference of the two probabilities, divided by its slope. Px
    that are nobody's keep all their alphas.

    Args:
        probabilities: (N, S, S) float32 in ROI px, 0..1. NaN is never person.
        roi_from_frame: (N, 2, 3), frame px to ROI px, as the ROIs were cut.
        frame_height: px.
        frame_width: px.
        threshold: alpha is 128 or more exactly where `paste_masks` with this threshold and ``exclusive`` says person.
        exclusive: see above; else alphas may lie over one another.

    Returns:
        One PastedAlpha per person, in order; empty as in `paste_masks`. Px whose probability is `FLOOR` or less are 0.

    Raises:
        ValueError: shapes or threshold.
    """
    _check(probabilities, roi_from_frame, frame_height, frame_width, threshold)
    probabilities = np.ascontiguousarray(probabilities, np.float32)
    matrices = np.ascontiguousarray(roi_from_frame, np.float64)
    supports, boxes = _boxes(probabilities, matrices, frame_height, frame_width, min(FLOOR, threshold))
    sizes = boxes[:, 2:] - boxes[:, :2]
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    pixels = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    tight = _fill_alpha(probabilities, matrices, threshold, supports, boxes, pixels)
    if exclusive and len(meetings := _meetings(boxes, tight)):
        owned = (pixels >= 128).view(np.uint8)
        _settle(probabilities, matrices, boxes, meetings, owned)
        _shrink(pixels, boxes, tight, _end_at_seams(probabilities, matrices, boxes, meetings, owned, pixels))
    pasted = []
    for n in range(len(probabilities)):
        width, height = int(sizes[n, 0]), int(sizes[n, 1])
        x0, y0, x1, y1 = tight[n].tolist()
        crop = pixels[ends[n] - width * height : ends[n]].reshape(height, width)[y0:y1, x0:x1]
        if crop.size:
            x0, y0 = int(boxes[n, 0]) + x0, int(boxes[n, 1]) + y0
            pasted.append(PastedAlpha(x0=x0, y0=y0, alpha=np.ascontiguousarray(crop)))
        else:
            pasted.append(PastedAlpha(x0=0, y0=0, alpha=np.zeros((0, 0), np.uint8)))
    return pasted


@compiled
def _fill_alpha(probabilities: F32, matrices: F64, threshold: float, supports: I64, boxes: I64, pixels: U8) -> I64:
    """As `_fill`, with alpha in place of 0 and 1."""
    people, side = probabilities.shape[0], probabilities.shape[1]
    tight = np.zeros((people, 4), np.int64)
    bordered = np.zeros((side + 2, side + 2), np.float32)
    floor = min(FLOOR, threshold)
    start = 0
    for n in range(people):
        width, height = boxes[n, 2] - boxes[n, 0], boxes[n, 3] - boxes[n, 1]
        if width * height == 0:
            continue
        bordered[1 : side + 1, 1 : side + 1] = probabilities[n]
        a, b, tx = matrices[n, 0, 0], matrices[n, 0, 1], matrices[n, 0, 2]
        c, d, ty = matrices[n, 1, 0], matrices[n, 1, 1], matrices[n, 1, 2]
        edge_px = max(EDGE_PX, EDGE_ROI_PX / np.sqrt(abs(a * d - b * c)))
        x_min, y_min, x_max, y_max = width, height, -1, -1
        for row in range(height):
            line = pixels[start + row * width : start + (row + 1) * width]
            line[:] = 0
            y = boxes[n, 1] + row
            u_row, v_row = b * y + tx, d * y + ty
            first, last = _stretch(a, u_row, float(supports[n, 0]), float(supports[n, 2]), boxes[n, 0], boxes[n, 2])
            first, last = _stretch(c, v_row, float(supports[n, 1]), float(supports[n, 3]), first, last)
            for x in range(first, last):
                u, v = a * x + u_row + 1.0, c * x + v_row + 1.0
                u0, v0 = int(u), int(v)
                fu, fv = u - u0, v - v0
                p00, p01 = np.float64(bordered[v0, u0]), np.float64(bordered[v0, u0 + 1])
                p10, p11 = np.float64(bordered[v0 + 1, u0]), np.float64(bordered[v0 + 1, u0 + 1])
                top, bottom = p00 + (p01 - p00) * fu, p10 + (p11 - p10) * fu
                probability = top + (bottom - top) * fv
                if not probability > floor:  # NaN is not
                    continue
                along_u = (p01 - p00) * (1.0 - fv) + (p11 - p10) * fv
                along_v = bottom - top
                rise = edge_px * np.sqrt((along_u * a + along_v * c) ** 2 + (along_u * b + along_v * d) ** 2)
                steepness = 1.0 / rise if rise * STEEPEST > 1.0 else STEEPEST
                value = np.ceil(255.0 * (0.5 + (probability - threshold) * steepness) - 0.5)
                if probability > threshold:
                    line[x - boxes[n, 0]] = int(min(max(value, 128.0), 255.0))
                else:
                    line[x - boxes[n, 0]] = int(max(min(value, 127.0), 0.0))
            left, right = first - boxes[n, 0], last - boxes[n, 0] - 1
            while left <= right and line[left] == 0:
                left += 1
            while right >= left and line[right] == 0:
                right -= 1
            if left <= right:
                x_min, x_max = min(x_min, left), max(x_max, right)
                y_min, y_max = min(y_min, row), row
        start += width * height
        if x_max >= 0:
            tight[n, 0], tight[n, 1], tight[n, 2], tight[n, 3] = x_min, y_min, x_max + 1, y_max + 1
    return tight


@compiled
def _end_at_seams(probabilities: F32, matrices: F64, boxes: I64, meetings: I64, owned: U8, pixels: U8) -> Bool:
    """Give the owner of each px the greatest alpha there, and the others what is left of theirs near a seam.

    Args:
        probabilities: (N, S, S).
        matrices: (N, 2, 3), frame px to ROI px.
        boxes: (N, 4) in frame px, end exclusive.
        meetings: from `_meetings`.
        owned: all boxes one after the other, not 0 where the px is this person's.
        pixels: alphas in the same places; changed.

    Returns:
        (N,) who lost some.
    """
    people, side = probabilities.shape[0], probabilities.shape[1]
    lost = np.zeros(people, np.bool_)
    first, second = np.zeros((side + 2, side + 2), np.float32), np.zeros((side + 2, side + 2), np.float32)
    loaded = -1
    for meeting in meetings:
        n, k, start_n, start_k = meeting[0], meeting[1], meeting[2], meeting[3]
        x0, y0, x1, y1 = meeting[4], meeting[5], meeting[6], meeting[7]
        if n != loaded:
            first[1 : side + 1, 1 : side + 1] = probabilities[n]
            loaded = n
        second[1 : side + 1, 1 : side + 1] = probabilities[k]
        for y in range(y0, y1):
            row_n = start_n + (y - boxes[n, 1]) * (boxes[n, 2] - boxes[n, 0]) - boxes[n, 0]
            row_k = start_k + (y - boxes[k, 1]) * (boxes[k, 2] - boxes[k, 0]) - boxes[k, 0]
            for x in range(x0, x1):
                if pixels[row_n + x] == 0 or pixels[row_k + x] == 0:
                    continue
                if owned[row_n + x]:
                    loser, loser_start, owner_place, place = k, start_k, row_n + x, row_k + x
                elif owned[row_k + x]:
                    loser, loser_start, owner_place, place = n, start_n, row_k + x, row_n + x
                else:
                    continue
                left = 0
                if _owns_beside(owned, loser_start, boxes[loser], x, y):
                    of_n, across_n, down_n = _slope(first, matrices[n], x, y)
                    of_k, across_k, down_k = _slope(second, matrices[k], x, y)
                    margin, slope = abs(of_n - of_k), np.sqrt((across_n - across_k) ** 2 + (down_n - down_k) ** 2)
                    if 2.0 * margin < EDGE_PX * slope:
                        left = int(min(np.ceil(255.0 * (0.5 - margin / slope / EDGE_PX) - 0.5), 127.0))
                pixels[owner_place] = max(pixels[owner_place], pixels[place])
                if left < pixels[place]:
                    pixels[place] = left
                    lost[loser] = True
    return lost


@compiled
def _owns_beside(owned: U8, start: int, box: I64, x: int, y: int) -> bool:
    """Whether one of the eight frame px around (x, y) is owned, by whose box begins at ``start``."""
    width = box[2] - box[0]
    for row in range(max(y - 1, box[1]), min(y + 2, box[3])):
        for column in range(max(x - 1, box[0]), min(x + 2, box[2])):
            if owned[start + (row - box[1]) * width + column - box[0]]:
                return True
    return False


@compiled
def _slope(bordered: F32, matrix: F64, x: int, y: int) -> tuple[float, float, float]:
    """Interpolated probability of a frame px, and what it rises by per frame px to the right and down."""
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    u, v = a * x + (b * y + matrix[0, 2]) + 1.0, c * x + (d * y + matrix[1, 2]) + 1.0
    u0, v0 = int(u), int(v)
    fu, fv = u - u0, v - v0
    p00, p01 = np.float64(bordered[v0, u0]), np.float64(bordered[v0, u0 + 1])
    p10, p11 = np.float64(bordered[v0 + 1, u0]), np.float64(bordered[v0 + 1, u0 + 1])
    top, bottom = p00 + (p01 - p00) * fu, p10 + (p11 - p10) * fu
    along_u = (p01 - p00) * (1.0 - fv) + (p11 - p10) * fv
    along_v = bottom - top
    return top + (bottom - top) * fv, along_u * a + along_v * c, along_u * b + along_v * d


def paste_alpha_reference(
    probabilities: F32,
    roi_from_frame: NDArray[np.floating],
    frame_height: int,
    frame_width: int,
    *,
    threshold: float = 0.5,
    exclusive: bool = False,
) -> list[PastedAlpha]:
    """`paste_alpha` over the whole frame for every person, cropped afterwards."""
    _check(probabilities, roi_from_frame, frame_height, frame_width, threshold)
    y, x = np.mgrid[:frame_height, :frame_width].astype(np.float64)
    floor = min(FLOOR, threshold)
    people = len(probabilities)
    values, across, down = np.zeros((3, people, frame_height, frame_width))
    edges_px = np.ones(people)
    for n, (probability, matrix) in enumerate(
        zip(probabilities.astype(np.float64), roi_from_frame.astype(np.float64), strict=True)
    ):
        if np.isfinite(matrix).all() and np.linalg.det(matrix[:, :2]) != 0:
            # Sums in the order of the fast one: the slope jumps at whole coordinates.
            u, v = (matrix[row, 0] * x + (matrix[row, 1] * y + matrix[row, 2]) for row in range(2))
            values[n] = _bilinear_reference(probability, u, v)
            along_u, along_v = _slopes_reference(probability, u, v)
            across[n] = along_u * matrix[0, 0] + along_v * matrix[1, 0]
            down[n] = along_u * matrix[0, 1] + along_v * matrix[1, 1]
            edges_px[n] = max(EDGE_PX, EDGE_ROI_PX / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    edge_px = edges_px[:, None, None]
    with np.errstate(divide="ignore"):
        steepness = np.minimum(1.0 / (edge_px * np.hypot(across, down)), STEEPEST)
    alpha = np.ceil(255.0 * (0.5 + (values - threshold) * steepness) - 0.5)
    alpha = np.where(values > threshold, np.clip(alpha, 128, 255), np.clip(alpha, 0, 127))
    full = np.where(values > floor, alpha, 0.0).astype(np.uint8)
    if exclusive and people:
        owned = _owned_reference(values, values > threshold)
        owner = owned.argmax(axis=0)[None]
        margin, to_right, to_below = (np.take_along_axis(field, owner, 0) - field for field in (values, across, down))
        slope = np.hypot(to_right, to_below)
        with np.errstate(divide="ignore", invalid="ignore"):
            seam = np.ceil(255.0 * (0.5 - margin / slope / EDGE_PX) - 0.5)
        seam = np.where((slope > 0) & _beside_reference(owned), np.clip(seam, 0, 127), 0).astype(np.uint8)
        full = np.where(owned, full.max(axis=0), np.where(owned.any(axis=0), np.minimum(full, seam), full))
    pasted = []
    for one in full:
        x0, y0, crop = _cropped_reference(one)
        pasted.append(PastedAlpha(x0=x0, y0=y0, alpha=crop))
    return pasted


def _beside_reference(owned: Bool) -> Bool:
    """(N, H, W): px that have an owned one among the nine of which they are the middle."""
    height, width = owned.shape[1:]
    padded = np.pad(owned, ((0, 0), (1, 1), (1, 1)))
    beside = np.zeros_like(owned)
    for row in range(3):
        for column in range(3):
            beside |= padded[:, row : row + height, column : column + width]
    return beside


def _slopes_reference(image: F64, u: F64, v: F64) -> tuple[F64, F64]:
    """Derivatives of the bilinear surface of `_bilinear_reference` along u and v, in the cell right and below."""
    side = len(image)
    padded = np.pad(image, 2)
    u, v = np.clip(u, -2, side), np.clip(v, -2, side)
    u0, v0 = np.floor(u).astype(np.int64) + 2, np.floor(v).astype(np.int64) + 2
    u1, v1 = np.minimum(u0 + 1, side + 3), np.minimum(v0 + 1, side + 3)
    fu, fv = u - np.floor(u), v - np.floor(v)
    along_u = (padded[v0, u1] - padded[v0, u0]) * (1 - fv) + (padded[v1, u1] - padded[v1, u0]) * fv
    along_v = (padded[v1, u0] - padded[v0, u0]) * (1 - fu) + (padded[v1, u1] - padded[v0, u1]) * fu
    return along_u, along_v
