"""Pose templates by K-means: `python -m training.cluster_templates --annotations F.json [...] --k 3 --output F.json`.

Every pose with at least 8 joints is moved into the unit square by its own person box, added once more as its mirror
image, and clustered as 51 numbers: x, y and visibility of 17 joints. Visibility ranges over 0..2 and positions over
0..1, so that poses part by which joints can be seen (whole body, from behind, half body) before they part by posture.
The centres are what `kernels.pose_fit.prepare_templates` takes.

Source: Pose2Seg section 3.1, Eq. 1-3; the mirrored copies, the limit of 8 joints and the box of w - 1, h - 1 are the
released code's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.coordinates import F32, F64
from kernels.pose_fit import PAPER_TEMPLATES
from kernels.skeleton import FLIPPED_JOINTS, JOINT_NAMES, JOINTS, LIMBS
from training.dataset import DataError

MIN_JOINTS = 8
ITERATIONS = 100
VALID_VISIBILITY = 0.4  # mean visibility above which a joint belongs to its template
ABSENT = (0.5, 0.5, 0.0)  # Eq. 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Result of `cluster`, the largest cluster first."""

    centres: F64  # (k, 17, 3) x, y in the unit square, mean visibility
    sizes: NDArray[np.int64]  # (k,) poses in each, mirrored copies included
    spread: float  # mean squared distance of a pose to its centre


def normalise_pose(keypoints: F32, box: Sequence[float], height: int, width: int) -> F64:
    """A person's joints in the unit square around the box.

    Args:
        keypoints: (17, 3) x, y in px, v in 0, 1, 2.
        box: x, y, width, height in px; clipped to the picture as x, y, x + w - 1, y + h - 1.
        height: of the picture, px.
        width: of the picture, px.

    Returns:
        (17, 3): one scale for both axes, the short side padded equally; absent joints are (0.5, 0.5, 0).

    Raises:
        ValueError: the box has no extent.
    """
    x0, y0 = max(0.0, box[0]), max(0.0, box[1])
    x1, y1 = min(width - 1.0, box[0] + box[2] - 1), min(height - 1.0, box[1] + box[3] - 1)
    side = max(x1 - x0, y1 - y0)
    if not side > 0:
        raise ValueError(f"box {list(box)} has no extent inside a picture of {width}x{height}")
    pose = np.asarray(keypoints, np.float64).copy()
    pose[:, :2] = (pose[:, :2] - ((x0 + x1) / 2, (y0 + y1) / 2)) / side + 0.5
    pose[pose[:, 2] <= 0] = ABSENT
    return pose


def mirror(poses: F64) -> F64:
    """(..., 17, 3) poses in the unit square as a mirror shows them: x -> 1 - x, left and right joints swapped."""
    mirrored = poses[..., FLIPPED_JOINTS, :].copy()
    mirrored[..., 0] = 1.0 - mirrored[..., 0]
    return mirrored


def read_poses(annotations: Path, *, min_joints: int = MIN_JOINTS) -> F64:
    """(N, 17, 3) normalised poses of a COCO-format file; people marked `iscrowd` or `ignore` are left out.

    Raises:
        DataError: the file is missing or not COCO.
    """
    try:
        content = json.loads(annotations.read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        poses = []
        for entry in content["annotations"]:
            if entry.get("iscrowd") or entry.get("ignore") or not entry.get("keypoints"):
                continue
            keypoints = np.asarray(entry["keypoints"], np.float32).reshape(JOINTS, 3)
            if (keypoints[:, 2] > 0).sum() >= min_joints and min(entry["bbox"][2:]) > 1:
                poses.append(normalise_pose(keypoints, entry["bbox"], *sizes[entry["image_id"]]))
    except FileNotFoundError:
        raise DataError(f"annotation file not found: {annotations}") from None
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{annotations} is not a COCO keypoint file: {type(error).__name__} {error}") from error
    return np.array(poses).reshape(-1, JOINTS, 3)


def squared_distances(points: F64, centres: F64) -> F64:
    """(N, D) and (k, D) to (N, k)."""
    return np.stack([((points - centre) ** 2).sum(1) for centre in centres], axis=1)


def first_centres(rng: np.random.Generator, points: F64, k: int) -> F64:
    """k samples far from one another: each drawn in proportion to its squared distance to those before (k-means++)."""
    chosen = [points[rng.integers(len(points))]]
    for _ in range(1, k):
        nearest = squared_distances(points, np.stack(chosen)).min(1)
        total = nearest.sum()
        chosen.append(points[rng.choice(len(points), p=nearest / total if total > 0 else None)])
    return np.stack(chosen)


def cluster(poses: F64, k: int, *, seed: int = 0, iterations: int = ITERATIONS, restarts: int = 10) -> Clusters:
    """K-means of poses and their mirror images.

    Args:
        poses: (N, 17, 3) as `normalise_pose` gives them, without mirrored copies.
        k: number of centres.
        seed: of the draws of the first centres.
        iterations: at most; ends earlier when no pose changes its cluster.
        restarts: the best of so many runs counts.

    Raises:
        ValueError: fewer different poses than centres.
    """
    both = np.concatenate((poses, mirror(poses)))
    points = both.reshape(len(both), -1)
    if k < 1 or len(np.unique(points, axis=0)) < k:
        raise ValueError(f"{k} templates need at least as many different poses, got {len(poses)} poses")
    rng = np.random.default_rng(seed)
    best: tuple[float, F64, NDArray[np.int64]] | None = None
    for _ in range(restarts):
        centres, labels = lloyd(points, first_centres(rng, points, k), iterations)
        spread = float(((points - centres[labels]) ** 2).sum(1).mean())
        if best is None or spread < best[0] - 1e-12:
            best = spread, centres, labels
    assert best is not None
    spread, centres, labels = best
    sizes = np.bincount(labels, minlength=k)
    order = np.argsort(-sizes, kind="stable")
    return Clusters(centres=centres[order].reshape(k, JOINTS, 3), sizes=sizes[order], spread=spread)


def lloyd(points: F64, centres: F64, iterations: int) -> tuple[F64, NDArray[np.int64]]:
    """Lloyd's iterations on (N, D) points: centres (k, D) and the nearest one of each point (N,).

    A centre that lost all its points moves to the point that is worst served.
    """
    centres = centres.copy()
    labels = np.full(len(points), -1)
    for _ in range(iterations):
        distances = squared_distances(points, centres)
        nearest = distances.argmin(1)
        for empty in np.setdiff1d(np.arange(len(centres)), nearest):
            worst = int(distances[np.arange(len(points)), nearest].argmax())
            nearest[worst] = empty
            distances[worst] = 0.0
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        for index in range(len(centres)):
            centres[index] = points[labels == index].mean(0)
    return centres, labels


def mean_sides(centre: F64) -> F64:
    """(17, 3) centre averaged with its mirror image: exactly symmetric, so that one half tells all of it."""
    average: F64 = (centre + mirror(centre)) / 2
    return average


def table(clusters: Clusters) -> str:
    """Nose and left joints of each template, averaged with the mirrored right ones: x, y, mean visibility."""
    lines = []
    rows = [0, *range(1, JOINTS, 2)]
    for index, centre in enumerate(clusters.centres, 1):
        valid = int((centre[:, 2] > VALID_VISIBILITY).sum())
        share = clusters.sizes[index - 1] / clusters.sizes.sum()
        lines.append(f"T{index}: {clusters.sizes[index - 1]} poses ({share:.0%}), {valid} valid joints")
        for joint, (x, y, v) in zip(rows, mean_sides(centre)[rows], strict=True):
            lines.append(f"  {JOINT_NAMES[joint]:<14} {x:.4f} {y:.4f} {v:.4f}{'' if v > VALID_VISIBILITY else '  -'}")
    return "\n".join(lines)


def as_json(clusters: Clusters, *, poses: int, sources: Sequence[str], seed: int) -> dict[str, Any]:
    """What the output file holds; ``centres`` is for `kernels.pose_fit.prepare_templates`."""
    return {
        "centres": clusters.centres.round(6).tolist(),
        "joints": list(JOINT_NAMES),
        "cluster_sizes": clusters.sizes.tolist(),
        "valid_joints": [int((c[:, 2] > VALID_VISIBILITY).sum()) for c in clusters.centres],
        "mean_squared_distance": round(clusters.spread, 6),
        "poses": poses,
        "mirrored_copies": True,
        "min_joints": MIN_JOINTS,
        "sources": list(sources),
        "seed": seed,
    }


def draw(clusters: Clusters, path: Path) -> None:
    """A PNG of the templates as skeletons in the unit square, with the published ones behind them in grey.

    Raises:
        DataError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    k = len(clusters.centres)
    figure, axes = plt.subplots(1, k, figsize=(3.0 * k, 3.4), squeeze=False)
    for index, (axis, centre) in enumerate(zip(axes[0], clusters.centres, strict=True)):
        near = [_joint_distance(centre, paper) for paper in PAPER_TEMPLATES]
        for pose, colour, width in ((PAPER_TEMPLATES[int(np.argmin(near))], "0.75", 4.0), (centre, None, 2.0)):
            for a, b in LIMBS:
                if min(pose[a, 2], pose[b, 2]) > VALID_VISIBILITY:
                    side = "tab:blue" if a % 2 and b % 2 else "tab:red" if not (a % 2 or b % 2) else "tab:green"
                    axis.plot(pose[[a, b], 0], pose[[a, b], 1], color=colour or side, linewidth=width)
        valid = centre[:, 2] > VALID_VISIBILITY
        axis.scatter(centre[valid, 0], centre[valid, 1], s=8 * centre[valid, 2], color="black", zorder=3)
        share = clusters.sizes[index] / clusters.sizes.sum()
        axis.set(
            xlim=(0, 1), ylim=(1, 0), aspect="equal", title=f"T{index + 1}: {int(valid.sum())} joints, {share:.0%}"
        )
        axis.set_xticks([0, 0.5, 1])
        axis.set_yticks([0, 0.5, 1])
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except ValueError as error:  # a suffix that matplotlib does not know
        raise DataError(f"cannot write {path}: {error}") from error
    finally:
        plt.close(figure)


def _joint_distance(one: F64, other: F32) -> float:
    return float(((one - other) ** 2).sum())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.cluster_templates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", type=Path, required=True, nargs="+", help="COCO-format JSON with keypoints")
    parser.add_argument("--k", type=int, default=3, help="number of templates, without their mirror images")
    parser.add_argument("--seed", type=int, default=0, help="of the first centres")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG of the templates to write")
    options = parser.parse_args(arguments)
    try:
        found = [read_poses(path) for path in options.annotations]
        poses = np.concatenate(found)
        clusters = cluster(poses, options.k, seed=options.seed)
        sources = [f"{path.parent.name}/{path.name}" for path in options.annotations]
        content = as_json(clusters, poses=len(poses), sources=sources, seed=options.seed)
        options.output.write_text(json.dumps(content, indent=1) + "\n")
        if options.picture is not None:
            draw(clusters, options.picture)
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{source} {len(part)}" for source, part in zip(sources, found, strict=True))
    print(f"{len(poses)} poses with at least {MIN_JOINTS} joints ({counts}), and their mirror images")
    print(table(clusters))
    return 0


if __name__ == "__main__":
    sys.exit(main())
