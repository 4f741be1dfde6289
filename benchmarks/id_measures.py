"""HOTA, IDF1 and id switches of many sequences by TrackEval, which this module alone imports.

Poses are compared with the truth by object keypoint similarity (OKS) over the joints that can be seen, boxes by
overlap. People of whom next to nothing is seen are not asked for, and whoever names them is not punished: that is what
MOTChallenge does with what it ignores.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F64
from kernels.pose_decoding import OKS_SPREADS

BODY_SHARE_OF_BOX = 0.5  # of the box around the joints: OKS wants the body's area
SAME = 0.5  # similarity from which a pose is that person, as in MOTChallenge


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedFrame:
    """What a tracker said about one frame, and what is true.

    Attributes:
        truth_ids: (G,) people who can be seen well enough to be asked for.
        ids: (N,) of the tracker, all different.
        similarity: (G, N) 0..1.
    """

    truth_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    similarity: F64


def pose_similarity_to_truth(keypoints: F64, truth: F64) -> F64:
    """(P, N) OKS of (N, 17, >=2) poses to (P, 17, 3) true ones, over the joints with visibility 2; 0 where none is."""
    result = np.zeros((len(truth), len(keypoints)))
    for p, true in enumerate(truth):
        seen = true[:, 2] == 2
        labelled = true[true[:, 2] > 0, :2]
        if not seen.any() or not len(keypoints):
            continue
        area = BODY_SHARE_OF_BOX * float(np.prod(np.ptp(labelled, axis=0) + 1.0))
        distances2 = ((keypoints[:, seen, :2] - true[seen, :2]) ** 2).sum(axis=2)
        result[p] = np.exp(-distances2 / (2.0 * area * OKS_SPREADS[seen] ** 2)).mean(axis=1)
    return result


def box_overlap(boxes: F64, others: F64) -> F64:
    """(N, M) intersection over union of x0, y0, x1, y1 boxes."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others))
    return common / np.maximum(areas[:, None] + other_areas[None, :] - common, 1e-9)


def answer(similarity: F64, asked_for: NDArray[np.bool_], ids: NDArray[np.integer[Any]]) -> NamedFrame:
    """What counts of a frame's answer.

    Args:
        similarity: (P, N) of everybody in the scene, seen or not, to every pose.
        asked_for: (P,) who is seen well enough.
        ids: (N,) of the tracker; below 1: it did not name that pose.
    """
    named = ids > 0
    if (~asked_for).any() and similarity.size:
        best = similarity.argmax(axis=0)
        excused = ~asked_for[best] & (similarity.max(axis=0) >= SAME)
        named = named & ~excused
    return NamedFrame(
        truth_ids=np.flatnonzero(asked_for),
        ids=ids[named].astype(np.int64),
        similarity=similarity[np.ix_(asked_for, named)],
    )


def measure_ids(sequences: Mapping[str, Sequence[NamedFrame]]) -> dict[str, float]:
    """Figures of all sequences together.

    Returns:
        HOTA, AssA, DetA (shares, mean over TrackEval's thresholds), IDF1, MOTA, recall, precision, switches (CLEAR's
        IDSW), fragments, sequences_with_a_switch, sequences, people, truths (people times frames), named.
    """
    from trackeval.metrics import CLEAR, HOTA, Identity

    metrics = (HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False}))
    each: list[dict[str, Any]] = [{} for _ in metrics]
    with redirect_stdout(io.StringIO()):  # it prints its settings
        for name, frames in sequences.items():
            data = _trackeval_data(frames)
            for metric, results in zip(metrics, each, strict=True):
                results[name] = metric.eval_sequence(data)
        hota, clear, identity = (m.combine_sequences(r) for m, r in zip(metrics, each, strict=True))
    return {
        "HOTA": float(np.mean(hota["HOTA"])),
        "AssA": float(np.mean(hota["AssA"])),
        "DetA": float(np.mean(hota["DetA"])),
        "IDF1": float(identity["IDF1"]),
        "MOTA": float(clear["MOTA"]),
        "recall": float(clear["CLR_Re"]),
        "precision": float(clear["CLR_Pr"]),
        "switches": int(clear["IDSW"]),
        "fragments": int(clear["Frag"]),
        "sequences_with_a_switch": sum(int(result["IDSW"]) > 0 for result in each[1].values()),
        "sequences": len(sequences),
        "people": sum(len(np.unique(np.concatenate([f.truth_ids for f in frames]))) for frames in sequences.values()),
        "truths": int(clear["CLR_TP"] + clear["CLR_FN"]),
        "named": int(clear["CLR_TP"] + clear["CLR_FP"]),
    }


def _trackeval_data(frames: Sequence[NamedFrame]) -> dict[str, Any]:
    """One sequence in the form that TrackEval's metrics take: ids counted from 0."""
    truth_names, truth_ids = _renumber([frame.truth_ids for frame in frames])
    names, ids = _renumber([frame.ids for frame in frames])
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": truth_names,
        "num_tracker_ids": names,
        "num_gt_dets": sum(map(len, truth_ids)),
        "num_tracker_dets": sum(map(len, ids)),
        "gt_ids": truth_ids,
        "tracker_ids": ids,
        "similarity_scores": [frame.similarity for frame in frames],
    }


def _renumber(ids: Sequence[NDArray[np.int64]]) -> tuple[int, list[NDArray[np.int64]]]:
    known, numbers = np.unique(np.concatenate(ids) if ids else np.zeros(0, np.int64), return_inverse=True)
    ends = np.cumsum([len(frame) for frame in ids])[:-1]
    return len(known), np.split(numbers.astype(np.int64), ends)
