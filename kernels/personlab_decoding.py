"""PersonLab: every joint that is seen votes for its place, and people grow from their surest joint along a tree.

The network gives, for each joint, a disc-shaped heatmap and the short offset from each cell to the joint; and for each
edge of a tree over the joints the middle offsets from one end to the other, both ways.

    1. Hough voting: each cell of a heatmap gives its probability, through its short offset, to the place it points to.
    2. Peaks of the votes, highest first, are seeds. A seed within `nms_radius_px` of the same joint of somebody found
       already is left away.
    3. From a seed the tree is walked: each next joint is where the middle offset points to, refined by the short offset
       there, twice.
    4. A joint's score is the object keypoint similarity (OKS) to expect there, given the votes around it.
    5. People are ranked by their mean joint score; then a joint that lies within `nms_radius_px` of the same joint of
       somebody better does not count: the suppression is of joints and soft, nobody is removed for overlapping.

Source: Papandreou et al., "PersonLab", ECCV 2018, eq. 1 to 3 and section 3.1. Differs: maps of stride 4 are read
bilinearly, where the paper enlarges them first; middle offsets are refined where they are read, not as whole maps; the
radii fit inputs of 512 px (the paper: 32 and 10 px at 801 and more).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F32, F64
from kernels.keypoint_maps import (
    MAP_STRIDE,
    check_maps,
    check_range,
    inside,
    px_of,
    sample,
    sample_reference,
)
from kernels.pose_decoding import OKS_SPREADS
from kernels.skeleton import JOINTS

#: (16, 2) the tree of the published model: from the nose outwards.
TREE: NDArray[np.int64] = np.array(
    [
        (0, 1),
        (1, 3),
        (0, 2),
        (2, 4),
        (0, 5),
        (5, 7),
        (7, 9),
        (5, 11),
        (11, 13),
        (13, 15),
        (0, 6),
        (6, 8),
        (8, 10),
        (6, 12),
        (12, 14),
        (14, 16),
    ]
)
MID_CHANNELS = 4 * len(TREE)
DISC_RADIUS_PX = 16.0
"""Radius around a joint in which the heatmap is 1 and offsets are defined, input px."""
MAX_SEEDS = 2000
FARTHEST_PX = 1e6  # of a joint; broken offsets may point anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonLabParameters:
    """How votes become people."""

    radius_px: float = DISC_RADIUS_PX
    """Of the discs that the network was taught, input px."""
    nms_radius_px: float = 8.0
    """Two joints of a kind closer than this are one, input px."""
    min_seed: float = 0.01
    """Votes below it start nobody; a disc whose cells all agree gives about 1 in one place."""
    min_vote: float = 0.02
    """Probabilities below it do not vote."""
    min_joint: float = 0.1
    """Joints below this probability do not count for a person's size."""
    refinements: float = 2
    max_people: float = 30
    stride: float = MAP_STRIDE
    """Input px for each cell of the maps."""

    def __post_init__(self) -> None:
        check_range(
            self,
            radius_px=(1, 256),
            nms_radius_px=(0, 256),
            min_seed=(1e-6, 1),
            min_vote=(0, 1),
            min_joint=(0, 1),
            refinements=(0, 10),
            max_people=(1, 256),
            stride=(1, 64),
        )
        if self.radius_px > 16 * self.stride:
            raise ValueError(f"radius_px must be at most 16 cells of {self.stride:g} px, got {self.radius_px:g}")


DEFAULT_PERSONLAB = PersonLabParameters()


def hough_votes(heatmaps: F32, short_offsets: F32, *, parameters: PersonLabParameters = DEFAULT_PERSONLAB) -> F32:
    """Step 1: votes (17, h, w) for each joint: eq. 1, sum over cells i of p_i B(i + S_i - x) / (pi R^2), B bilinear.

    Args:
        heatmaps: (17, h, w) probability that the cell is within the disc of a joint.
        short_offsets: (34, h, w): y and x to that joint, cells.
        parameters: radius, stride and least vote. Cells with NaN or infinity do not vote.

    Raises:
        ValueError: the shapes.
    """
    _check(heatmaps, short_offsets)
    votes: F32 = _hough_votes(
        np.ascontiguousarray(heatmaps, np.float32),
        np.ascontiguousarray(short_offsets, np.float32),
        parameters.radius_px / parameters.stride,
        parameters.min_vote,
    )
    return votes


def decode_personlab(
    heatmaps: F32, short_offsets: F32, mid_offsets: F32, *, parameters: PersonLabParameters = DEFAULT_PERSONLAB
) -> tuple[F32, F32]:
    """People of one image.

    Args:
        heatmaps: (17, h, w) probability that the cell is within the disc of a joint.
        short_offsets: (34, h, w): y and x to that joint, cells.
        mid_offsets: (64, h, w): for each edge of `TREE` y and x from its first to its second joint, then y and x back;
            cells.
        parameters: see there.

    Returns:
        keypoints (N, 17, 3) float32: x, y in input px and the heatmap's probability there. Every joint of a person is
        given; the caller chooses which probability to believe.
        scores (N,) float32 in 0..1, falling. N may be 0. NaN and infinity in the maps count as 0.

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(heatmaps, short_offsets, mid_offsets)
    keypoints, scores = _decode(
        np.ascontiguousarray(heatmaps, np.float32),
        np.ascontiguousarray(short_offsets, np.float32),
        np.ascontiguousarray(mid_offsets, np.float32),
        TREE,
        OKS_SPREADS,
        parameters.radius_px / parameters.stride,
        parameters.nms_radius_px / parameters.stride,
        parameters.min_seed,
        parameters.min_vote,
        parameters.min_joint,
        int(parameters.refinements),
        int(parameters.max_people),
        parameters.stride,
    )
    return keypoints, scores


def _check(heatmaps: F32, short_offsets: F32, mid_offsets: F32 | None = None) -> None:
    check_maps("heatmaps", heatmaps, JOINTS)
    check_maps("short_offsets", short_offsets, 2 * JOINTS, heatmaps.shape[1:])
    if mid_offsets is not None:
        check_maps("mid_offsets", mid_offsets, MID_CHANNELS, heatmaps.shape[1:])


@compiled
def _hough_votes(heatmaps: F32, short_offsets: F32, radius: float, min_vote: float) -> F32:
    joints, height, width = heatmaps.shape
    votes = np.zeros((joints, height, width), np.float64)
    share = 1.0 / (np.pi * radius * radius)
    for k in range(joints):
        for row in range(height):
            for column in range(width):
                p = np.float64(heatmaps[k, row, column])
                y = row + np.float64(short_offsets[2 * k, row, column])
                x = column + np.float64(short_offsets[2 * k + 1, row, column])
                # the bounds also refuse NaN and infinity, which no integer can hold
                if not (min_vote <= p <= 1.0 and -1.0 < y < height and -1.0 < x < width):
                    continue
                top, left = int(np.floor(y)), int(np.floor(x))
                v, u = y - top, x - left
                for dy in range(2):
                    for dx in range(2):
                        r, c = top + dy, left + dx
                        if 0 <= r < height and 0 <= c < width:
                            votes[k, r, c] += share * p * (v if dy else 1.0 - v) * (u if dx else 1.0 - u)
    return votes.astype(np.float32)


@compiled
def _refined(x: float, y: float, offsets_y: F32, offsets_x: F32, times: int) -> tuple[float, float]:
    for _ in range(times):
        x, y = x + sample(offsets_x, x, y), y + sample(offsets_y, x, y)
    return x, y


@compiled
def _seeds(votes: F32, min_seed: float) -> tuple[NDArray[np.int64], F64]:
    """Cells (K, 3) joint, row, column that no neighbour exceeds, with their votes (K,); highest first."""
    joints, height, width = votes.shape
    cells = np.empty((votes.size, 3), np.int64)
    values = np.empty(votes.size)
    count = 0
    for k in range(joints):
        for row in range(height):
            for column in range(width):
                value = votes[k, row, column]
                if not value >= min_seed:
                    continue
                highest = True
                for r in range(max(row - 1, 0), min(row + 2, height)):
                    for c in range(max(column - 1, 0), min(column + 2, width)):
                        highest = highest and votes[k, r, c] <= value
                if highest:
                    cells[count, 0], cells[count, 1], cells[count, 2] = k, row, column
                    values[count] = value
                    count += 1
    order = np.argsort(-values[:count], kind="mergesort")[:MAX_SEEDS]
    return cells[:count][order], values[:count][order]


@compiled
def _decode(
    heatmaps: F32,
    short_offsets: F32,
    mid_offsets: F32,
    tree: NDArray[np.int64],
    spreads: F64,
    radius: float,
    nms_radius: float,
    min_seed: float,
    min_vote: float,
    min_joint: float,
    refinements: int,
    max_people: int,
    stride: float,
) -> tuple[F32, F32]:
    joints = heatmaps.shape[0]
    votes = _hough_votes(heatmaps, short_offsets, radius, min_vote)
    cells, _ = _seeds(votes, min_seed)
    places = np.zeros((max_people, joints, 2))  # x, y in cells
    people = 0
    placed = np.empty(joints, np.bool_)
    for seed in range(len(cells)):
        if people == max_people:
            break
        k = cells[seed, 0]
        x, y = _refined(
            float(cells[seed, 2]), float(cells[seed, 1]), short_offsets[2 * k], short_offsets[2 * k + 1], refinements
        )
        claimed = False
        for n in range(people):
            dx, dy = places[n, k, 0] - x, places[n, k, 1] - y
            claimed = claimed or dx * dx + dy * dy <= nms_radius * nms_radius
        if claimed:
            continue
        places[people, k, 0], places[people, k, 1] = x, y
        placed[:] = False
        placed[k] = True
        grows = True
        while grows:  # a tree is placed after as many rounds as it has levels
            grows = False
            for edge in range(len(tree)):
                for back in range(2):
                    a, b = tree[edge, back], tree[edge, 1 - back]
                    if placed[a] and not placed[b]:
                        channel = 4 * edge + 2 * back
                        x, y = places[people, a, 0], places[people, a, 1]
                        x, y = x + sample(mid_offsets[channel + 1], x, y), y + sample(mid_offsets[channel], x, y)
                        x, y = _refined(x, y, short_offsets[2 * b], short_offsets[2 * b + 1], refinements)
                        places[people, b, 0], places[people, b, 1] = x, y
                        placed[b] = grows = True
        people += 1

    probability = np.zeros((people, joints))
    joint_scores = np.zeros((people, joints))
    ranks = np.zeros(people)
    for n in range(people):
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        for k in range(joints):
            x, y = places[n, k, 0], places[n, k, 1]
            if inside(heatmaps[k], x, y):
                probability[n, k] = min(max(sample(heatmaps[k], x, y), 0.0), 1.0)
            if probability[n, k] >= min_joint:
                low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
        area = max((high_x - low_x) * (high_y - low_y), 1.0) if high_x >= low_x else 1.0
        for k in range(joints):
            joint_scores[n, k] = probability[n, k] * _expected_oks(
                votes[k], places[n, k, 0], places[n, k, 1], radius, 2.0 * area * spreads[k] ** 2
            )
            ranks[n] += joint_scores[n, k] / joints

    order = np.argsort(-ranks, kind="mergesort")
    scores = np.zeros(people)
    for i in range(people):
        for k in range(joints):
            x, y = places[order[i], k, 0], places[order[i], k, 1]
            free = True
            for better in range(i):
                dx, dy = places[order[better], k, 0] - x, places[order[better], k, 1] - y
                free = free and dx * dx + dy * dy > nms_radius * nms_radius
            if free:
                scores[i] += joint_scores[order[i], k] / joints
    final = np.argsort(-scores, kind="mergesort")
    keypoints = np.empty((people, joints, 3), np.float32)
    out_scores = np.empty(people, np.float32)
    count = 0
    for i in final:
        if not scores[i] > 0:
            continue
        for k in range(joints):
            for axis in range(2):
                keypoints[count, k, axis] = min(
                    max(px_of(places[order[i], k, axis], stride), -FARTHEST_PX), FARTHEST_PX
                )
            keypoints[count, k, 2] = probability[order[i], k]
        out_scores[count] = scores[i]
        count += 1
    return keypoints[:count], out_scores[:count]


@compiled
def _expected_oks(votes: F32, x: float, y: float, radius: float, variance2: float) -> float:
    """Eq. 3: mean of exp(-d^2 / (2 area k^2)) over the votes within the disc around a place; 0 without votes."""
    height, width = votes.shape
    if not (abs(x) < 1e6 and abs(y) < 1e6):
        return 0.0
    total, weight = 0.0, 0.0
    for row in range(max(int(np.ceil(y - radius)), 0), min(int(np.floor(y + radius)) + 1, height)):
        for column in range(max(int(np.ceil(x - radius)), 0), min(int(np.floor(x + radius)) + 1, width)):
            distance2 = (column - x) ** 2 + (row - y) ** 2
            if distance2 <= radius * radius:
                weight += votes[row, column]
                total += votes[row, column] * np.exp(-distance2 / variance2)
    return float(total / weight) if weight > 0 else 0.0


def hough_votes_reference(
    heatmaps: F32, short_offsets: F32, *, parameters: PersonLabParameters = DEFAULT_PERSONLAB
) -> F32:
    """`hough_votes` as eq. 1 reads: for each place the sum over all cells."""
    _check(heatmaps, short_offsets)
    _, height, width = heatmaps.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    radius = parameters.radius_px / parameters.stride
    votes = np.zeros(heatmaps.shape)
    with np.errstate(invalid="ignore"):
        for k, heatmap in enumerate(heatmaps.astype(np.float64)):
            y, x = rows + short_offsets[2 * k], columns + short_offsets[2 * k + 1]
            counts = (heatmap >= parameters.min_vote) & (heatmap <= 1) & np.isfinite(y) & np.isfinite(x)
            p, y, x = heatmap[counts], y[counts], x[counts]
            for row in range(height):
                for column in range(width):
                    kernel = np.clip(1 - np.abs(y - row), 0, None) * np.clip(1 - np.abs(x - column), 0, None)
                    votes[k, row, column] = (p * kernel).sum() / (np.pi * radius**2)
    return votes.astype(np.float32)


def decode_personlab_reference(
    heatmaps: F32, short_offsets: F32, mid_offsets: F32, *, parameters: PersonLabParameters = DEFAULT_PERSONLAB
) -> tuple[F32, F32]:
    """`decode_personlab` in plain Python, the five steps of the module's text one after the other."""
    _check(heatmaps, short_offsets, mid_offsets)
    radius, nms = parameters.radius_px / parameters.stride, parameters.nms_radius_px / parameters.stride

    def shifted(place: F64, offsets: F32) -> F64:
        """A place x, y moved by the offsets (2, h, w), y before x, that are read there."""
        moved: F64 = place + np.array([sample_reference(offsets[axis], *place) for axis in (1, 0)])
        return moved

    def refined(place: F64, joint: int) -> F64:
        for _ in range(int(parameters.refinements)):
            place = shifted(place, short_offsets[2 * joint : 2 * joint + 2])
        return place

    votes = hough_votes_reference(heatmaps, short_offsets, parameters=parameters)
    padded = np.pad(votes, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    _, height, width = votes.shape
    around = np.max([padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3)], axis=0)
    seeds = np.argwhere((votes >= around) & (votes >= parameters.min_seed))
    seeds = seeds[np.argsort(-votes[tuple(seeds.T)].astype(np.float64), kind="stable")][:MAX_SEEDS]

    people: list[dict[int, F64]] = []
    for joint, row, column in seeds.tolist():
        if len(people) == int(parameters.max_people):
            break
        place = refined(np.array([column, row], np.float64), joint)
        if any(np.sum((person[joint] - place) ** 2) <= nms**2 for person in people):
            continue
        person = {joint: place}
        waiting = [joint]
        while waiting:
            a = waiting.pop()
            for edge, ends in enumerate(TREE.tolist()):
                if a in ends and ends[1 - ends.index(a)] not in person:
                    back = ends.index(a)
                    b = ends[1 - back]
                    channel = 4 * edge + 2 * back
                    person[b] = refined(shifted(person[a], mid_offsets[channel : channel + 2]), b)
                    waiting.append(b)
        people.append(person)

    scored = []
    for person in people:
        places = np.array([person[k] for k in range(JOINTS)])
        at_joints = np.zeros(JOINTS)
        for k, (x, y) in enumerate(places):
            if -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5:
                at_joints[k] = np.clip(sample_reference(heatmaps[k], x, y), 0, 1)
        sure = places[at_joints >= parameters.min_joint]
        area = max(float(np.prod(np.ptp(sure, axis=0))), 1.0) if len(sure) else 1.0
        expected = [_expected_oks_reference(votes[k], places[k], radius, area, OKS_SPREADS[k]) for k in range(JOINTS)]
        scored.append((places, at_joints, at_joints * expected))
    scored.sort(key=lambda one: -float(one[2].mean()))
    result = []
    for i, (places, at_joints, joint_scores) in enumerate(scored):
        free = [
            all(np.sum((better[k] - places[k]) ** 2) > nms**2 for better, _, _ in scored[:i]) for k in range(JOINTS)
        ]
        score = float((joint_scores * free).mean())
        if score > 0:
            px = np.clip((places + 0.5) * parameters.stride - 0.5, -FARTHEST_PX, FARTHEST_PX)
            result.append((score, np.concatenate((px, at_joints[:, None]), axis=1)))
    result.sort(key=lambda one: -one[0])
    keypoints = np.array([person for _, person in result], np.float32).reshape(-1, JOINTS, 3)
    return keypoints, np.array([score for score, _ in result], np.float32)


def _expected_oks_reference(votes: F32, place: F64, radius: float, area: float, spread: float) -> float:
    rows, columns = np.mgrid[: votes.shape[0], : votes.shape[1]]
    distance2 = (columns - place[0]) ** 2 + (rows - place[1]) ** 2
    weight = np.where(distance2 <= radius**2, votes.astype(np.float64), 0.0)
    similarity = np.exp(-distance2 / (2 * area * spread**2))
    return float((weight * similarity).sum() / weight.sum()) if weight.sum() > 0 else 0.0
