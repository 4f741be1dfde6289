"""Part affinity fields: joints are joined limb by limb along a field that points from one end of a limb to the other.

The network gives candidates for each joint and, for each of the 19 limbs, a field of unit vectors along it.

    1. For each pair of candidates that could be the ends of a limb, the field is read at some places of the straight
       line between them. Its mean along the line, less something for lines longer than half the picture's height, is
       the pair's score. Enough of the places must agree.
    2. For each limb the pair with the highest score goes first, each candidate once.
    3. Pairs that share a candidate are one person. Two people who are joined by a pair become one if they have no joint
       twice; a pair that would give a person a joint twice is left away.
    4. People of few joints or low mean score are dropped.

Source: Cao, Simon, Wei, Sheikh, "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", CVPR 2017,
eq. 10 and section 2.4, and its published code for the limits. Differs: the field is read bilinearly; COCO's 19 limbs
are all used, so a pair that contradicts what is joined already is left away where the published code writes over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.compilation import compiled
from kernels.coordinates import F32, F64, I32
from kernels.keypoint_maps import (
    MAP_STRIDE,
    cell_of,
    check_candidates,
    check_maps,
    check_range,
    sample,
    sample_reference,
)
from kernels.skeleton import JOINTS, LIMBS

FIELD_CHANNELS = 2 * len(LIMBS)
NOBODY = -1
_SHORTEST_PX = 1e-3  # two ends closer than this have no direction


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityParameters:
    """How limbs become people; the published values."""

    min_joint: float = 0.1
    """Candidates below this probability are not looked at."""
    samples: float = 10
    """Places along the line, its ends included."""
    min_agreement: float = 0.05
    """A place agrees if the field along the line is greater than this."""
    min_share: float = 0.8
    """Share of the places that must agree."""
    min_joints: float = 4
    """People of fewer joints are dropped."""
    min_mean_score: float = 0.4
    """People are dropped whose joints and limbs have together less than this for each joint."""
    stride: float = MAP_STRIDE
    """Input px for each cell of the fields."""

    def __post_init__(self) -> None:
        check_range(
            self,
            min_joint=(0, 1),
            samples=(2, 100),
            min_agreement=(-1, 1),
            min_share=(0, 1),
            min_joints=(1, JOINTS),
            min_mean_score=(0, 3),
            stride=(1, 64),
        )


DEFAULT_AFFINITY = AffinityParameters()


def group_by_limbs(
    joint_candidates: F32, affinity_fields: F32, *, parameters: AffinityParameters = DEFAULT_AFFINITY
) -> tuple[F32, F32]:
    """People of one image.

    Args:
        joint_candidates: (17, M, 4): x, y in input px, probability, and a value that is not used here.
        affinity_fields: (38, h, w): x and y of the field of each limb, in the order of `kernels.skeleton.LIMBS`.
        parameters: see there.

    Returns:
        keypoints (N, 17, 3) float32: x, y in input px and probability; a joint that was not found is (0, 0, 0).
        scores (N,) float32 in 0..1, falling: all probabilities and limb scores over the number of joints and limbs
        there are. N may be 0. Candidates with NaN or infinity are left out; such fields count as 0.

    Raises:
        ValueError: the shapes.
    """
    check_candidates(joint_candidates, JOINTS)
    check_maps("affinity_fields", affinity_fields, FIELD_CHANNELS)
    keypoints, scores = _group(
        np.ascontiguousarray(joint_candidates, np.float32),
        np.ascontiguousarray(affinity_fields, np.float32),
        LIMBS,
        parameters.min_joint,
        int(parameters.samples),
        parameters.min_agreement,
        parameters.min_share,
        int(parameters.min_joints),
        parameters.min_mean_score,
        parameters.stride,
    )
    return keypoints, scores


@compiled
def _limb_score(
    first: F32,
    second: F32,
    field_x: F32,
    field_y: F32,
    samples: int,
    min_agreement: float,
    min_share: float,
    stride: float,
) -> float:
    """Mean of the field along the line less the penalty of its length; 0 where it is no limb."""
    x1, y1 = np.float64(first[0]), np.float64(first[1])
    dx, dy = np.float64(second[0]) - x1, np.float64(second[1]) - y1
    length = np.sqrt(dx * dx + dy * dy)
    if length < _SHORTEST_PX:
        return 0.0
    total, agreed = 0.0, 0
    for i in range(samples):
        along = i / (samples - 1.0)
        x, y = cell_of(x1 + along * dx, stride), cell_of(y1 + along * dy, stride)
        value = (sample(field_x, x, y) * dx + sample(field_y, x, y) * dy) / length
        total += value
        if value > min_agreement:
            agreed += 1
    if agreed < min_share * samples:
        return 0.0
    half_height_px = 0.5 * field_x.shape[0] * stride
    return float(max(0.0, total / samples + min(half_height_px / length - 1.0, 0.0)))


@compiled
def _group(
    candidates: F32,
    fields: F32,
    limbs: I32,
    min_joint: float,
    samples: int,
    min_agreement: float,
    min_share: float,
    min_joints: int,
    min_mean_score: float,
    stride: float,
) -> tuple[F32, F32]:
    joints, peaks = candidates.shape[0], candidates.shape[1]
    valid = np.zeros((joints, peaks), np.bool_)
    for k in range(joints):
        for m in range(peaks):
            valid[k, m] = candidates[k, m, 2] >= min_joint and np.isfinite(candidates[k, m, :3]).all()

    most = joints * peaks
    person_of = np.full((joints, peaks), NOBODY, np.int64)
    members = np.full((most, joints), NOBODY, np.int64)
    totals = np.zeros(most)
    people = 0
    scores = np.empty(peaks * peaks)
    pairs = np.empty((peaks * peaks, 2), np.int64)
    for limb in range(len(limbs)):
        i, j = limbs[limb]
        count = 0
        for a in range(peaks):
            for b in range(peaks):
                if valid[i, a] and valid[j, b]:
                    score = _limb_score(
                        candidates[i, a],
                        candidates[j, b],
                        fields[2 * limb],
                        fields[2 * limb + 1],
                        samples,
                        min_agreement,
                        min_share,
                        stride,
                    )
                    if score > 0:
                        scores[count], pairs[count, 0], pairs[count, 1] = score, a, b
                        count += 1
        used_a, used_b = np.zeros(peaks, np.bool_), np.zeros(peaks, np.bool_)
        for p in np.argsort(-scores[:count], kind="mergesort"):
            a, b = pairs[p]
            if used_a[a] or used_b[b]:
                continue
            used_a[a] = used_b[b] = True
            first, second = person_of[i, a], person_of[j, b]
            if first == NOBODY and second == NOBODY:
                first = people
                people += 1
                members[first, i], members[first, j] = a, b
                person_of[i, a] = person_of[j, b] = first
            elif second == NOBODY:
                if members[first, j] != NOBODY:
                    continue
                members[first, j], person_of[j, b] = b, first
            elif first == NOBODY:
                if members[second, i] != NOBODY:
                    continue
                members[second, i], person_of[i, a] = a, second
                first = second
            elif first != second:
                shared = False
                for k in range(joints):
                    shared = shared or (members[first, k] != NOBODY and members[second, k] != NOBODY)
                if shared:
                    continue
                for k in range(joints):
                    if members[second, k] != NOBODY:
                        members[first, k] = members[second, k]
                        person_of[k, members[second, k]] = first
                        members[second, k] = NOBODY
                totals[first] += totals[second]
                totals[second] = 0.0
            totals[first] += scores[p]

    kept = np.empty(people, np.int64)
    count = 0
    for n in range(people):
        found = 0
        for k in range(joints):
            if members[n, k] != NOBODY:
                found += 1
                totals[n] += candidates[k, members[n, k], 2]
        if found >= min_joints and totals[n] >= min_mean_score * found:
            kept[count] = n
            count += 1
    kept = kept[:count]
    order = kept[np.argsort(-totals[kept], kind="mergesort")]
    keypoints = np.zeros((count, joints, 3), np.float32)
    out_scores = np.empty(count, np.float32)
    for n in range(count):
        for k in range(joints):
            if members[order[n], k] != NOBODY:
                keypoints[n, k] = candidates[k, members[order[n], k], :3]
        out_scores[n] = min(totals[order[n]] / (joints + len(limbs)), 1.0)
    return keypoints, out_scores


def group_by_limbs_reference(
    joint_candidates: F32, affinity_fields: F32, *, parameters: AffinityParameters = DEFAULT_AFFINITY
) -> tuple[F32, F32]:
    """`group_by_limbs` in plain Python: people are sets of limbs that grow and merge."""
    check_candidates(joint_candidates, JOINTS)
    check_maps("affinity_fields", affinity_fields, FIELD_CHANNELS)
    candidates = {
        (k, m): row.astype(np.float64)
        for k in range(JOINTS)
        for m, row in enumerate(joint_candidates[k])
        if row[2] >= parameters.min_joint and np.isfinite(row[:3]).all()
    }
    people: list[tuple[dict[int, int], list[float]]] = []  # joint -> candidate, and scores of its limbs
    for limb, (i, j) in enumerate(LIMBS.tolist()):
        scored = []
        for k, a in candidates:
            for other, b in candidates:
                if (k, other) == (i, j):
                    ends = candidates[i, a][:2], candidates[j, b][:2]
                    score = _limb_score_reference(*ends, affinity_fields[2 * limb : 2 * limb + 2], parameters)
                    if score > 0:
                        scored.append((score, a, b))
        chosen: list[tuple[float, int, int]] = []
        for score, a, b in sorted(scored, key=lambda pair: -pair[0]):
            if all(a != other_a and b != other_b for _, other_a, other_b in chosen):
                chosen.append((score, a, b))
        for score, a, b in chosen:
            touched = [p for p in people if p[0].get(i) == a or p[0].get(j) == b]
            joined: dict[int, int] = {i: a, j: b}
            fits = all(joined.setdefault(k, m) == m for members, _ in touched for k, m in members.items())
            distinct = len(touched) < 2 or not set(touched[0][0]) & set(touched[1][0])
            if fits and distinct:
                limbs = [value for _, values in touched for value in values] + [score]
                people = [p for p in people if not any(p is t for t in touched)] + [(joined, limbs)]

    found = []
    for members, limbs in people:
        total = sum(limbs) + sum(candidates[k, m][2] for k, m in members.items())
        if len(members) >= int(parameters.min_joints) and total >= parameters.min_mean_score * len(members):
            keypoints = np.zeros((JOINTS, 3))
            for k, m in members.items():
                keypoints[k] = candidates[k, m][:3]
            found.append((min(total / (JOINTS + len(LIMBS)), 1.0), keypoints))
    found.sort(key=lambda entry: -entry[0])
    joints = np.array([keypoints for _, keypoints in found], np.float32).reshape(-1, JOINTS, 3)
    return joints, np.array([score for score, _ in found], np.float32)


def _limb_score_reference(first: F64, second: F64, field: F32, parameters: AffinityParameters) -> float:
    """Equation 10 as a sum, for the field (2, h, w) of one limb."""
    length = float(np.hypot(*(second - first)))
    if length < _SHORTEST_PX:
        return 0.0
    direction = (second - first) / length
    values = []
    for along in np.linspace(0, 1, int(parameters.samples)):
        x, y = (first + along * (second - first) + 0.5) / parameters.stride - 0.5
        values.append(sum(sample_reference(field[axis], x, y) * direction[axis] for axis in range(2)))
    if np.sum(np.array(values) > parameters.min_agreement) < parameters.min_share * len(values):
        return 0.0
    half_height_px = 0.5 * field.shape[1] * parameters.stride
    return float(max(0.0, np.mean(values) + min(half_height_px / length - 1.0, 0.0)))
