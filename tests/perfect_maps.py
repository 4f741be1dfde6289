"""What a perfect keypoint network would give for people whose joints are known: maps of every grouping, in NumPy.

Written apart from the targets of training, so that decoders are tested against the definitions and not against each
other's mistakes. All maps lie on a grid of stride `STRIDE`: cell i is centred on input px (i + 0.5) STRIDE - 0.5.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kernels.personlab_decoding import TREE
from kernels.pose_fit import PAPER_TEMPLATES
from kernels.skeleton import LIMBS

STRIDE = 4.0
STANDING = PAPER_TEMPLATES[0, :, :2].astype(np.float64)


def standing(x: float, y: float, height: float = 200.0) -> np.ndarray:
    """(17, 2) joints of a person whose unit square starts at (x, y), px."""
    return STANDING * height + (x, y)


@st.composite
def crowds_apart(draw: st.DrawFn, *, most: int = 4) -> list[np.ndarray]:
    """People of any size, turn and place, each in a cell of its own of a wide grid, so that maps hold them all."""
    people = []
    for n in range(draw(st.integers(0, most))):
        size, angle = draw(st.floats(110, 170)), draw(st.floats(-0.6, 0.6))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([100 + 150 * n, 100]) + draw(st.tuples(st.floats(-8, 8), st.floats(-8, 8)))
        people.append((STANDING - 0.5) @ rotation.T * size + centre)
    return people


def cells(points: np.ndarray) -> np.ndarray:
    """px to cells."""
    return (points + 0.5) / STRIDE - 0.5


def heatmaps(people: list[np.ndarray], shape: tuple[int, int], sigma: float = 1.2) -> np.ndarray:
    """(17, h, w) Gaussians."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    maps = np.zeros((17, *shape), np.float32)
    for person in people:
        for k, (x, y) in enumerate(cells(person)):
            maps[k] = np.maximum(maps[k], np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)))
    return maps


def candidates(people: list[np.ndarray], maps: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """(17, M, 4) one candidate for each person and joint: the middle of its cell, its probability, its value."""
    found = np.zeros((17, max(len(people), 1), 4), np.float32)
    for n, person in enumerate(people):
        for k, place in enumerate(np.rint(cells(person)).astype(int)):
            column, row = np.clip(place, 0, np.array(maps.shape[2:0:-1]) - 1)
            found[k, n, :2] = (np.array([column, row]) + 0.5) * STRIDE - 0.5
            found[k, n, 2] = maps[k, row, column]
            found[k, n, 3] = 0.0 if values is None else values[k, row, column]
    return found


def tags(people: list[np.ndarray], shape: tuple[int, int], apart: float = 3.0) -> np.ndarray:
    """(17, h, w): the tag of the nearest person, n times `apart`."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    if not people:
        return np.zeros((17, *shape), np.float32)
    places = np.stack([cells(person) for person in people])  # (N, 17, 2)
    distance = np.hypot(rows - places[..., 1, None, None], columns - places[..., 0, None, None])
    return (apart * distance.argmin(0)).astype(np.float32)


def affinity_fields(people: list[np.ndarray], shape: tuple[int, int], half_width: float = 1.5) -> np.ndarray:
    """(38, h, w): unit vectors along each limb, 0 elsewhere."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    fields = np.zeros((2 * len(LIMBS), *shape), np.float32)
    for person in people:
        places = cells(person)
        for limb, (i, j) in enumerate(LIMBS):
            vector = places[j] - places[i]
            length = np.hypot(*vector)
            unit = vector / length
            dx, dy = columns - places[i, 0], rows - places[i, 1]
            along, across = dx * unit[0] + dy * unit[1], dx * unit[1] - dy * unit[0]
            on = (np.abs(across) <= half_width) & (along >= -half_width) & (along <= length + half_width)
            fields[2 * limb][on], fields[2 * limb + 1][on] = unit
    return fields


def personlab_maps(people: list[np.ndarray], shape: tuple[int, int], radius_px: float = 16.0) -> dict[str, np.ndarray]:
    """heatmaps, short_offsets, mid_offsets, long_offsets and person; discs and masks go to the nearest person.

    A person is everywhere within 1.5 radii of one of their joints.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radius = radius_px / STRIDE
    discs = np.zeros((17, *shape), np.float32)
    short, long = np.zeros((17, 2, *shape), np.float32), np.zeros((17, 2, *shape), np.float32)
    mid = np.zeros((len(TREE), 2, 2, *shape), np.float32)
    person = np.zeros(shape, np.float32)
    if people:
        places = np.stack([cells(one) for one in people])
        distance = np.hypot(rows - places[..., 1, None, None], columns - places[..., 0, None, None])  # (N, 17, h, w)
        owner = distance.min(1).argmin(0)
        person = (distance.min((0, 1)) <= 1.5 * radius).astype(np.float32)
        for k in range(17):
            nearest = distance[:, k].argmin(0)
            discs[k] = distance[:, k].min(0) <= radius
            short[k] = places[nearest, k, 1] - rows, places[nearest, k, 0] - columns
            long[k] = places[owner, k, 1] - rows, places[owner, k, 0] - columns
            for edge, ends in enumerate(TREE):
                for back in range(2):
                    if ends[back] == k:
                        other = ends[1 - back]
                        mid[edge, back] = places[nearest, other, 1] - rows, places[nearest, other, 0] - columns
    return {
        "heatmaps": discs,
        "short_offsets": short.reshape(34, *shape) * discs.repeat(2, axis=0),
        "mid_offsets": mid.reshape(64, *shape),
        "long_offsets": long.reshape(34, *shape) * person,
        "person": person,
    }


def farthest(found: np.ndarray, people: list[np.ndarray]) -> float:
    """Greatest distance of a joint, px, when each person is compared with the row that is nearest on the whole."""
    worst = 0.0
    for person in people:
        distance = np.linalg.norm(found[:, :, :2] - person, axis=-1)
        worst = max(worst, float(distance[distance.mean(1).argmin()].max()))
    return worst
