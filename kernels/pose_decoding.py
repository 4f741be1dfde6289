"""Group the joint candidates of a bottom-up keypoint network into people, without boxes and without box suppression.

The network gives, for each likely person centre, a rough guess of all 17 joints, and for each joint the peaks of a
heatmap that all people share. Here every guessed joint looks for its peak:

    1. Of the peaks within reach, the one with the greatest *claim* = probability / (1 + distance^2 / spread^2),
       distance and spread measured against the size of that person (the heavy tail lets stretched limbs reach their
       peak).
    2. The guesses move along with the joints found at the other ends of their limbs, and step 1 is repeated.
    3. Rows that describe the same pose are suppressed by object keypoint similarity (OKS), a measure on joints: two
       people in each other's arms have overlapping boxes but different joints.
    4. Two people who claim the same peak: the weaker claim moves to its next peak if that is nearly as good, else the
       joint is shared.

Convention: x, y in input px throughout; nothing here knows the frame.

Source: the decoding of MoveNet MultiPose weighs a shared heatmap by a Gaussian around the regressed joint; claims,
repetition, suppression and second choices are ours, see `DecodeParameters` for what they were selected on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.compilation import compiled
from kernels.coordinates import F32, F64
from kernels.skeleton import JOINTS, LIMBS

#: (17,) COCO's per-joint constants k_i of the object keypoint similarity: twice the annotators' standard deviation over
#: sqrt(area).
OKS_SPREADS: F64 = 2.0 * np.array(
    [
        0.026,
        0.025,
        0.025,
        0.035,
        0.035,
        0.079,
        0.079,
        0.072,
        0.072,
        0.062,
        0.062,
        0.107,
        0.107,
        0.087,
        0.087,
        0.089,
        0.089,
    ]
)
NO_PEAK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeParameters:
    """How peaks become people.

    The defaults were selected with the raw maps of MoveNet MultiPose Lightning, before any fine-tuning, by keypoint AP
    on the 28 images of the COCO-MINI training set at long sides 384, 448 and 512 together, and on 300 LSPe images at
    384; no validation image took part. They lie on a plateau: neighbouring values change AP by less than 0.005.
    """

    min_centre_score: float = 0.05
    """Centres below it are not decoded at all. It saves time; the caller's threshold on the person score decides what
    is shown."""
    spread: float = 0.2
    """Distance from the guess at which a claim is halved, as a share of the person's size (diagonal of the guessed
    joints)."""
    reach: float = 0.8
    """Peaks further from the guess than this share of the person's size are not considered: the guess itself stands."""
    guess_weight: float = 0.3
    """Step 2: weight of "stay where you are" against the claims of the joints found at the other ends of the limbs."""
    second_choice: float = 0.5
    """Step 4: a beaten claim moves if its next free peak is worth at least this share of the one it lost."""
    centre_exponent: float = 0.5
    """Person score = centre score to this power, times the mean confidence of the counted joints."""
    min_counted_joint: float = 0.1
    """Joints with less confidence do not count in the person score."""
    max_oks: float = 0.7
    """A row more similar than this to a better row is the same person."""

    def __post_init__(self) -> None:
        for name in ("spread", "reach", "guess_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")


DEFAULT_PARAMETERS = DecodeParameters()


def _limb_neighbours() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(17, most) the joints that share a limb with each joint, and (17,) how many of them there are."""
    lists = [[int(b if a == j else a) for a, b in LIMBS if j in (a, b)] for j in range(JOINTS)]
    counts = np.array([len(joints) for joints in lists])
    table = np.zeros((JOINTS, counts.max()), np.int64)
    for j, joints in enumerate(lists):
        table[j, : len(joints)] = joints
    return table, counts


_NEIGHBOURS, _NEIGHBOUR_COUNTS = _limb_neighbours()


def decode_people(
    person_scores: F32,
    person_keypoints: F32,
    joint_candidates: F32,
    *,
    parameters: DecodeParameters = DEFAULT_PARAMETERS,
) -> tuple[F32, F32]:
    """People of one image from the tensors of the keypoint network.

    Args:
        person_scores: (P,) probability of each centre.
        person_keypoints: (P, 17, 3): the guessed joints of each centre, x, y in input px; third value the heatmap's
            probability there.
        joint_candidates: (17, M, 4): heatmap peaks of each joint: x, y in input px, probability, grouping value (not
            used here).
        parameters: see there.

    Returns:
        keypoints (N, 17, 3) float32: x, y in input px and confidence 0..1 = sqrt(claim x probability); a joint that
        found no peak keeps its guess and the heatmap's probability there. Every joint of a person is given; the caller
        chooses which confidence to believe.
        scores (N,) float32, falling. N may be 0. Rows, joints and candidates with NaN or infinity are left out
        (confidence 0).

    Raises:
        ValueError: the shapes do not agree.
    """
    _check(person_scores, person_keypoints, joint_candidates)
    keypoints, scores = _decode(
        np.ascontiguousarray(person_scores, np.float32),
        np.ascontiguousarray(person_keypoints, np.float32),
        np.ascontiguousarray(joint_candidates, np.float32),
        parameters.min_centre_score,
        parameters.spread,
        parameters.reach,
        parameters.guess_weight,
        parameters.second_choice,
        parameters.centre_exponent,
        parameters.min_counted_joint,
        parameters.max_oks,
    )
    return keypoints, scores


def suppress(keypoints: F32, scores: F32, *, max_oks: float = DEFAULT_PARAMETERS.max_oks) -> NDArray[np.int64]:
    """Rows to keep when several describe the same pose.

    Args:
        keypoints: (N, 17, 2 or more): x, y in px of any frame.
        scores: (N,).
        max_oks: a row is dropped if its object keypoint similarity to a better row exceeds this; in 0..1.

    Returns:
        Indices of the kept rows, best first. The similarity uses all 17 joints and the mean area of both joint boxes.
    """
    if (
        keypoints.ndim != 3
        or keypoints.shape[1] != JOINTS
        or keypoints.shape[2] < 2
        or scores.shape != keypoints.shape[:1]
    ):
        raise ValueError(
            f"keypoints must be (N, 17, 2 or more) and scores (N,), got {keypoints.shape} and {scores.shape}"
        )
    points = np.ascontiguousarray(keypoints[..., :2], np.float64)
    kept: NDArray[np.int64] = _suppress(points, np.ascontiguousarray(scores, np.float64), max_oks)
    return kept


def _check(person_scores: F32, person_keypoints: F32, joint_candidates: F32) -> None:
    people = len(person_scores)
    if person_scores.ndim != 1 or person_keypoints.shape != (people, JOINTS, 3):
        raise ValueError(
            f"person_scores must be (P,) and person_keypoints (P, {JOINTS}, 3), "
            f"got {person_scores.shape} and {person_keypoints.shape}"
        )
    if joint_candidates.ndim != 3 or joint_candidates.shape[0] != JOINTS or joint_candidates.shape[2] != 4:
        raise ValueError(f"joint_candidates must be ({JOINTS}, M, 4), got {joint_candidates.shape}")


@compiled
def _decode(
    person_scores: F32,
    person_keypoints: F32,
    joint_candidates: F32,
    min_centre_score: float,
    spread: float,
    reach: float,
    guess_weight: float,
    second_choice: float,
    centre_exponent: float,
    min_counted_joint: float,
    max_oks: float,
) -> tuple[F32, F32]:
    # Who is decoded, and how large they are.
    rows = np.empty(len(person_scores), np.int64)
    sizes = np.empty(len(person_scores), np.float64)
    count = 0
    for p in range(len(person_scores)):
        size = _size(person_keypoints[p])
        if person_scores[p] >= min_centre_score and np.isfinite(person_scores[p]) and size > 0:
            rows[count], sizes[count] = p, size
            count += 1

    guess = np.empty((count, JOINTS, 2), np.float64)
    moved = np.empty((count, JOINTS, 2), np.float64)
    found = np.empty((count, JOINTS), np.int64)
    claim = np.empty((count, JOINTS), np.float64)
    joints = np.zeros((count, JOINTS, 3), np.float64)
    for i in range(count):
        for k in range(JOINTS):
            for axis in range(2):
                guess[i, k, axis] = person_keypoints[rows[i], k, axis]
                moved[i, k, axis] = guess[i, k, axis]
        for k in range(JOINTS):
            found[i, k], claim[i, k] = _best_peak(joint_candidates[k], guess[i, k], sizes[i], spread, reach)
        for k in range(JOINTS):
            total, shift_x, shift_y = guess_weight, 0.0, 0.0
            for q in range(_NEIGHBOUR_COUNTS[k]):
                other = _NEIGHBOURS[k, q]
                if found[i, other] != NO_PEAK:
                    weight = claim[i, other]
                    total += weight
                    shift_x += weight * (joint_candidates[other, found[i, other], 0] - guess[i, other, 0])
                    shift_y += weight * (joint_candidates[other, found[i, other], 1] - guess[i, other, 1])
            moved[i, k, 0] += shift_x / total
            moved[i, k, 1] += shift_y / total
        for k in range(JOINTS):
            found[i, k], claim[i, k] = _best_peak(joint_candidates[k], moved[i, k], sizes[i], spread, reach)
            _place(joints[i, k], person_keypoints[rows[i], k], joint_candidates[k], found[i, k], claim[i, k])

    scores = np.empty(count, np.float64)
    for i in range(count):
        scores[i] = _person_score(joints[i], person_scores[rows[i]], centre_exponent, min_counted_joint)
    kept = _suppress(joints[:, :, :2].copy(), scores, max_oks)

    # Two people on one peak: strongest claim first, the others look on among the free peaks.
    taken = np.empty(joint_candidates.shape[1], np.bool_)
    for k in range(JOINTS):
        taken[:] = False
        wishes = np.empty(len(kept), np.float64)
        for n in range(len(kept)):
            wishes[n] = -claim[kept[n], k]
        for n in np.argsort(wishes, kind="mergesort"):
            i = kept[n]
            if found[i, k] == NO_PEAK:
                continue
            if taken[found[i, k]]:
                best, best_claim = NO_PEAK, second_choice * claim[i, k]
                for m in range(joint_candidates.shape[1]):
                    if not taken[m]:
                        worth = _claim(joint_candidates[k, m], moved[i, k], sizes[i], spread, reach)
                        if worth > best_claim:
                            best, best_claim = m, worth
                if best != NO_PEAK:
                    found[i, k], claim[i, k] = best, best_claim
                    _place(joints[i, k], person_keypoints[rows[i], k], joint_candidates[k], best, best_claim)
            taken[found[i, k]] = True

    final = np.empty(len(kept), np.float64)
    for n in range(len(kept)):
        final[n] = _person_score(joints[kept[n]], person_scores[rows[kept[n]]], centre_exponent, min_counted_joint)
    order = np.argsort(-final, kind="mergesort")
    keypoints = np.empty((len(kept), JOINTS, 3), np.float32)
    out_scores = np.empty(len(kept), np.float32)
    for n in range(len(kept)):
        out_scores[n] = final[order[n]]
        for k in range(JOINTS):
            for c in range(3):
                keypoints[n, k, c] = joints[kept[order[n]], k, c]
    return keypoints, out_scores


@compiled
def _size(keypoints: F32) -> float:
    """Diagonal of the box around the finite joints, px; 0 when there are none."""
    x0, y0, x1, y1 = np.inf, np.inf, -np.inf, -np.inf
    for k in range(keypoints.shape[0]):
        x, y = keypoints[k, 0], keypoints[k, 1]
        if np.isfinite(x) and np.isfinite(y):
            x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x), max(y1, y)
    if x1 < x0:
        return 0.0
    return float(np.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2))


@compiled
def _claim(candidate: F32, guess: F64, size: float, spread: float, reach: float) -> float:
    """Worth of a peak for a guessed joint; 0 out of reach and for NaN or infinity in either."""
    dx, dy = candidate[0] - guess[0], candidate[1] - guess[1]
    distance2 = (dx * dx + dy * dy) / (size * size)
    if not (distance2 <= reach * reach and np.isfinite(candidate[2])):
        return 0.0
    return float(candidate[2] / (1.0 + distance2 / (spread * spread)))


@compiled
def _best_peak(candidates: F32, guess: F64, size: float, spread: float, reach: float) -> tuple[int, float]:
    best, best_claim = NO_PEAK, 0.0
    for m in range(candidates.shape[0]):
        worth = _claim(candidates[m], guess, size, spread, reach)
        if worth > best_claim:
            best, best_claim = m, worth
    return best, best_claim


@compiled
def _place(joint: F64, guess: F32, candidates: F32, peak: int, claim: float) -> None:
    """Write x, y and confidence of one joint: at its peak, or where it was guessed."""
    joint[:] = 0.0
    if peak != NO_PEAK:
        joint[0], joint[1] = candidates[peak, 0], candidates[peak, 1]
        joint[2] = np.sqrt(claim * candidates[peak, 2])
    elif np.isfinite(guess[0]) and np.isfinite(guess[1]) and np.isfinite(guess[2]):
        joint[0], joint[1], joint[2] = guess[0], guess[1], guess[2]


@compiled
def _person_score(joints: F64, centre_score: float, centre_exponent: float, min_counted_joint: float) -> float:
    total, counted = 0.0, 0
    for k in range(joints.shape[0]):
        if joints[k, 2] > min_counted_joint:
            total += joints[k, 2]
            counted += 1
    if counted == 0:
        return 0.0
    return float(centre_score**centre_exponent * total / counted)


@compiled
def _suppress(points: F64, scores: F64, max_oks: float) -> NDArray[np.int64]:
    kept = np.empty(len(scores), np.int64)
    areas = np.empty(len(scores), np.float64)
    count = 0
    for i in np.argsort(-scores, kind="mergesort"):
        areas[i] = max(1.0, np.ptp(points[i, :, 0]) * np.ptp(points[i, :, 1]))
        double = False
        for n in range(count):
            j = kept[n]
            area = (areas[i] + areas[j]) / 2.0
            similarity = 0.0
            for k in range(points.shape[1]):
                dx, dy = points[i, k, 0] - points[j, k, 0], points[i, k, 1] - points[j, k, 1]
                similarity += np.exp(-(dx * dx + dy * dy) / (2.0 * area * OKS_SPREADS[k] ** 2))
            if similarity / points.shape[1] > max_oks:
                double = True
                break
        if not double:
            kept[count] = i
            count += 1
    return kept[:count]


def decode_people_reference(
    person_scores: F32,
    person_keypoints: F32,
    joint_candidates: F32,
    *,
    parameters: DecodeParameters = DEFAULT_PARAMETERS,
) -> tuple[F32, F32]:
    """`decode_people` in plain NumPy, the four steps of the module's text one after the other."""
    _check(person_scores, person_keypoints, joint_candidates)
    candidates = joint_candidates.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        people = []
        for centre_score, row in zip(
            person_scores.astype(np.float64), person_keypoints.astype(np.float64), strict=True
        ):
            finite = row[np.isfinite(row[:, :2]).all(axis=1), :2]
            if not (np.isfinite(centre_score) and centre_score >= parameters.min_centre_score and len(finite)):
                continue
            size = float(np.hypot(*np.ptp(finite, axis=0)))
            if size <= 0:
                continue
            claims = _claims_reference(candidates, row[:, :2], size, parameters)
            shifts = {
                k: candidates[k, claims[k].argmax(), :2] - row[k, :2]
                for k in range(JOINTS)
                if claims[k].max(initial=0.0) > 0
            }
            moved = row[:, :2].copy()
            for k in range(JOINTS):
                ends = [int(b if a == k else a) for a, b in LIMBS if k in (a, b)]
                weights = {j: claims[j].max() for j in ends if j in shifts}
                moved[k] += sum((weights[j] * shifts[j] for j in weights), np.zeros(2)) / (
                    parameters.guess_weight + sum(weights.values())
                )
            claims = _claims_reference(candidates, moved, size, parameters)
            peaks = [int(claims[k].argmax()) if claims[k].max(initial=0.0) > 0 else NO_PEAK for k in range(JOINTS)]
            people.append((float(centre_score), row, claims, peaks))

        first = [_person_reference(candidates, person, parameters) for person in people]
        kept: list[int] = []
        for i in sorted(range(len(people)), key=lambda i: -first[i][1]):
            if all(_oks_reference(first[i][0][:, :2], first[j][0][:, :2]) <= parameters.max_oks for j in kept):
                kept.append(i)

        for k in range(JOINTS):
            taken: set[int] = set()
            wishing = [i for i in kept if people[i][3][k] != NO_PEAK]
            for i in sorted(wishing, key=lambda i: -people[i][2][k][people[i][3][k]]):
                claims, peaks = people[i][2][k], people[i][3]
                if peaks[k] in taken:
                    free = np.where(np.isin(np.arange(len(claims)), list(taken)), 0.0, claims)
                    if free.max() > parameters.second_choice * claims[peaks[k]]:
                        peaks[k] = int(free.argmax())
                taken.add(peaks[k])

        final = sorted(
            (_person_reference(candidates, people[i], parameters) for i in kept), key=lambda person: -person[1]
        )
    keypoints = np.array([joints for joints, _ in final], np.float32).reshape(-1, JOINTS, 3)
    return keypoints, np.array([score for _, score in final], np.float32)


def _claims_reference(candidates: F64, guess: F64, size: float, parameters: DecodeParameters) -> F64:
    """(17, M): worth of every peak for every guessed joint of one person."""
    distance2 = np.sum((candidates[:, :, :2] - guess[:, None]) ** 2, axis=-1) / size**2
    claims: F64 = candidates[:, :, 2] / (1.0 + distance2 / parameters.spread**2)
    return np.where((distance2 <= parameters.reach**2) & np.isfinite(candidates[:, :, 2]), claims, 0.0)


def _person_reference(
    candidates: F64, person: tuple[float, F64, F64, list[int]], parameters: DecodeParameters
) -> tuple[F64, float]:
    centre_score, row, claims, peaks = person
    joints = np.where(np.isfinite(row).all(axis=1, keepdims=True), row, 0.0)
    for k, peak in enumerate(peaks):
        if peak != NO_PEAK:
            joints[k, :2] = candidates[k, peak, :2]
            joints[k, 2] = np.sqrt(claims[k, peak] * candidates[k, peak, 2])
    counted = joints[joints[:, 2] > parameters.min_counted_joint, 2]
    return joints, float(centre_score**parameters.centre_exponent * counted.mean()) if len(counted) else 0.0


def _oks_reference(first: F64, second: F64) -> float:
    area = np.mean([max(1.0, float(np.prod(np.ptp(points, axis=0)))) for points in (first, second)])
    distance2 = np.sum((first - second) ** 2, axis=-1)
    return float(np.mean(np.exp(-distance2 / (2.0 * area * OKS_SPREADS**2))))
