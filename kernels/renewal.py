"""Which parts of a picture a network has to look at again, when only some blocks of it have changed.

    changed blocks -> groups of neighbours -> boxes -> + people they touch -> crops with a margin, merged where cheaper

Convention: boxes are x0, y0, x1, y1 in whole input px, the last ones exclusive. A crop is what the network sees; its
core is where the result is believed: the crop less a margin at every side that is not the picture's own border, since
near a cut the network misses what lies beyond. Crops lie on a grid, so that every stride of the network meets the same
px as in the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.changed_blocks import BLOCK_PX, Bools
from kernels.compilation import compiled
from kernels.coordinates import F32

Boxes = NDArray[np.int64]

CALL_PX = 4096  # what a network call costs beside its px, in px: 2 % of a picture of 512 x 384
MAX_GROUPS = 64  # with more there is little left to save, and merging takes the square of it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Renewal:
    """What to look at.

    Attributes:
        crops: (R, 4) what the network sees.
        cores: (R, 4) where its result is believed; disjoint from the boxes of people who are kept.
        kept: (N,) whether each known person stays as they are.
    """

    crops: Boxes
    cores: Boxes
    kept: Bools


def plan_renewal(changed: Bools, people: Boxes, *, height: int, width: int, grid: int, margin: int) -> Renewal | None:
    """Choose the crops.

    Args:
        changed: (ceil(H / 16), ceil(W / 16)), see `kernels.changed_blocks.changed_blocks`.
        people: (N, 4) boxes of known people, see `pose_boxes`. Somebody who meets a core is looked at as a whole.
        height: of the picture, px; a multiple of ``grid``.
        width: the same.
        grid: crops begin and end on multiples of it, px; the network's largest stride.
        margin: px; a multiple of ``grid``.

    Returns:
        The crops, none if nothing has changed. None: more than `MAX_GROUPS` groups, so the whole picture is due.

    Raises:
        ValueError: shapes, or sizes that are not on the grid.
    """
    _check(changed, people, height, width, grid, margin)
    boxes, count = _group_boxes(np.ascontiguousarray(changed), height, width)
    if count > MAX_GROUPS:
        return None
    crops, cores, kept = _plan(boxes[:count], np.ascontiguousarray(people, np.int64), height, width, grid, margin)
    return Renewal(crops=crops, cores=cores, kept=kept)


def pose_boxes(keypoints: F32, *, grow: float, min_confidence: float = 0.05) -> Boxes:
    """Boxes around people.

    Args:
        keypoints: (N, 17, 3) x, y in px, confidence 0..1.
        grow: added on each side, as a share of the longer side of the joints' box.
        min_confidence: joints below it do not count, unless all are.

    Returns:
        (N, 4).
    """
    boxes = np.zeros((len(keypoints), 4), np.int64)
    for n, person in enumerate(keypoints.astype(np.float64)):
        sure = person[person[:, 2] >= min_confidence]
        points = (sure if len(sure) else person)[:, :2]
        low, high = points.min(0), points.max(0)
        more = grow * (high - low).max()
        boxes[n, :2], boxes[n, 2:] = np.floor(low - more), np.ceil(high + more) + 1
    return boxes


def window_renewals(
    renewed: NDArray[np.int64], input_from_roi: NDArray[np.floating], *, roi_size: int, margin: float
) -> NDArray[np.int64]:
    """When something was last looked at anew within each person's window.

    Args:
        renewed: (ceil(H / 16), ceil(W / 16)) number of the picture in which a block was last looked at.
        input_from_roi: (N, 2, 3), ROI px to input px.
        roi_size: side S of the windows, ROI px.
        margin: input px beside the window that have a say in it: interpolation reads a feature beyond.

    Returns:
        (N,) largest number of the blocks that the box around the window meets. A window beside the picture, or with NaN
        or infinity, has that of the whole picture.
    """
    rows, columns = renewed.shape
    end = roi_size - 1
    corners = np.array([[0, 0], [end, 0], [0, end], [end, end]], np.float64)
    points = np.einsum("nij,kj->nki", input_from_roi[..., :2], corners) + input_from_roi[:, None, :, 2]
    newest = np.full(len(points), renewed.max(initial=0), np.int64)
    for n, window in enumerate(points):
        if not np.isfinite(window).all():
            continue
        low = np.clip((window.min(0) - margin) // BLOCK_PX, 0, (columns, rows)).astype(int)
        high = np.clip((window.max(0) + margin) // BLOCK_PX + 1, 0, (columns, rows)).astype(int)
        newest[n] = renewed[low[1] : high[1], low[0] : high[0]].max(initial=-1)
        if newest[n] < 0:
            newest[n] = renewed.max(initial=0)
    return newest


def _check(changed: Bools, people: Boxes, height: int, width: int, grid: int, margin: int) -> None:
    expected = (-(-height // BLOCK_PX), -(-width // BLOCK_PX))
    if changed.shape != expected or changed.dtype != np.bool_:
        raise ValueError(f"changed must be bool {expected}, got {changed.dtype} {changed.shape}")
    if people.ndim != 2 or people.shape[1] != 4:
        raise ValueError(f"people must be (N, 4), got {people.shape}")
    if grid < 1 or height % grid or width % grid or margin % grid:
        raise ValueError(f"height {height}, width {width} and margin {margin} must be multiples of the grid, {grid}")


@compiled
def _group_boxes(changed: Bools, height: int, width: int) -> tuple[Boxes, int]:
    """Boxes around groups of changed blocks; blocks with at most one unchanged block between belong together."""
    rows, columns = changed.shape
    seen = np.zeros((rows, columns), np.bool_)
    boxes = np.empty((MAX_GROUPS + 1, 4), np.int64)
    stack = np.empty((rows * columns, 2), np.int64)
    count = 0
    for row in range(rows):
        for column in range(columns):
            if seen[row, column] or not changed[row, column]:
                continue
            if count > MAX_GROUPS:
                return boxes, count
            top, left, bottom, right = row, column, row, column
            stack[0] = row, column
            seen[row, column] = True
            depth = 1
            while depth:
                depth -= 1
                y, x = stack[depth]
                top, left, bottom, right = min(top, y), min(left, x), max(bottom, y), max(right, x)
                for v in range(max(y - 2, 0), min(y + 3, rows)):
                    for u in range(max(x - 2, 0), min(x + 3, columns)):
                        if changed[v, u] and not seen[v, u]:
                            seen[v, u] = True
                            stack[depth] = v, u
                            depth += 1
            boxes[count, 0], boxes[count, 1] = left * BLOCK_PX, top * BLOCK_PX
            boxes[count, 2] = min((right + 1) * BLOCK_PX, width)
            boxes[count, 3] = min((bottom + 1) * BLOCK_PX, height)
            count += 1
    return boxes, count


@compiled
def _plan(groups: Boxes, people: Boxes, height: int, width: int, grid: int, margin: int) -> tuple[Boxes, Boxes, Bools]:
    boxes = groups.copy()
    count = len(boxes)
    kept = np.ones(len(people), np.bool_)
    crops = np.empty((count, 4), np.int64)
    cores = np.empty((count, 4), np.int64)
    for i in range(count):
        crops[i], cores[i] = _crop(boxes[i], height, width, grid, margin)
    while True:
        joined = False
        for n in range(len(people)):
            for i in range(count):
                if kept[n] and _meet(people[n], cores[i]):
                    kept[n] = False
                    boxes[i] = _union(boxes[i], people[n])
                    crops[i], cores[i] = _crop(boxes[i], height, width, grid, margin)
                    joined = True
        if joined:
            continue
        best, first, second = 0, -1, -1
        for i in range(count):
            for j in range(i):
                union, _ = _crop(_union(boxes[i], boxes[j]), height, width, grid, margin)
                saved = _area(crops[i]) + _area(crops[j]) + CALL_PX - _area(union)
                if saved > best:
                    best, first, second = saved, j, i
        if first < 0:
            return crops[:count], cores[:count], kept
        boxes[first] = _union(boxes[first], boxes[second])
        crops[first], cores[first] = _crop(boxes[first], height, width, grid, margin)
        count -= 1
        boxes[second], crops[second], cores[second] = boxes[count], crops[count], cores[count]


@compiled
def _crop(box: Boxes, height: int, width: int, grid: int, margin: int) -> tuple[Boxes, Boxes]:
    crop = np.empty(4, np.int64)
    core = np.empty(4, np.int64)
    for axis, length in ((0, width), (1, height)):
        low = min(max((box[axis] - margin) // grid * grid, 0), length - grid)
        high = max(min(-(-(box[axis + 2] + margin) // grid) * grid, length), low + grid)
        crop[axis], crop[axis + 2] = low, high
        core[axis] = low + margin if low > 0 else 0
        core[axis + 2] = high - margin if high < length else length
    return crop, core


@compiled
def _union(first: Boxes, second: Boxes) -> Boxes:
    return np.array(
        [min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])]
    )


@compiled
def _meet(first: Boxes, second: Boxes) -> bool:
    across = min(first[2], second[2]) > max(first[0], second[0])
    return bool(across and min(first[3], second[3]) > max(first[1], second[1]))


@compiled
def _area(box: Boxes) -> int:
    return int((box[2] - box[0]) * (box[3] - box[1]))


def plan_renewal_reference(
    changed: Bools, people: Boxes, *, height: int, width: int, grid: int, margin: int
) -> Renewal | None:
    """`plan_renewal` in plain Python: sets of blocks, lists of boxes, everything worked out again after each step."""
    _check(changed, people, height, width, grid, margin)
    left = {(int(y), int(x)) for y, x in np.argwhere(changed)}
    groups: list[set[tuple[int, int]]] = []
    while left:
        group = {min(left)}
        while more := {(y, x) for y, x in left - group if any(max(abs(y - v), abs(x - u)) <= 2 for v, u in group)}:
            group |= more
        groups.append(group)
        left -= group
    if len(groups) > MAX_GROUPS:
        return None
    boxes: list[tuple[int, ...]] = [
        (
            min(x for _, x in group) * BLOCK_PX,
            min(y for y, _ in group) * BLOCK_PX,
            min((max(x for _, x in group) + 1) * BLOCK_PX, width),
            min((max(y for y, _ in group) + 1) * BLOCK_PX, height),
        )
        for group in groups
    ]
    kept = [True] * len(people)

    def crop_and_core(box: tuple[int, ...]) -> tuple[list[int], list[int]]:
        crop, core = [0] * 4, [0] * 4
        for axis, length in enumerate((width, height)):
            begin = min(max((box[axis] - margin) // grid * grid, 0), length - grid)
            end = max(min(-((-box[axis + 2] - margin) // grid) * grid, length), begin + grid)
            crop[axis], crop[axis + 2] = begin, end
            core[axis], core[axis + 2] = begin + margin * (begin > 0), end - margin * (end < length)
        return crop, core

    def union(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))

    def meet(a: tuple[int, ...], b: list[int]) -> bool:
        return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])

    def area(box: list[int]) -> int:
        return (box[2] - box[0]) * (box[3] - box[1])

    while True:
        joined = False
        for n, person in enumerate(tuple(map(int, person)) for person in people):
            for i in range(len(boxes)):
                if kept[n] and meet(person, crop_and_core(boxes[i])[1]):
                    kept[n], joined = False, True
                    boxes[i] = union(boxes[i], person)
        if joined:
            continue
        crops = [crop_and_core(box)[0] for box in boxes]
        savings = [
            (area(crops[i]) + area(crops[j]) + CALL_PX - area(crop_and_core(union(boxes[i], boxes[j]))[0]), -i, -j)
            for i in range(len(boxes))
            for j in range(i)
        ]
        saved, i, j = max(savings, default=(0, 0, 0))
        if saved <= 0:
            break
        boxes[-j] = union(boxes[-j], boxes[-i])
        last = boxes.pop()
        if -i < len(boxes):
            boxes[-i] = last
    both = [crop_and_core(box) for box in boxes]
    return Renewal(
        crops=np.array([crop for crop, _ in both], np.int64).reshape(-1, 4),
        cores=np.array([core for _, core in both], np.int64).reshape(-1, 4),
        kept=np.array(kept, np.bool_),
    )
