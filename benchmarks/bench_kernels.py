"""Time every kernel against its reference, or against OpenCV, NumPy or pycocotools doing the same job, in one run.

    python -m benchmarks.bench_kernels [--save] [--only fit_poses ...]

Each case compares the outputs of both contestants first and stops the run when they disagree. One thread for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.measure import Row, measure, report
from kernels.affine_align import affine_align
from kernels.coordinates import F32, compose, invert, transform_points
from kernels.joint_smoothing import smooth_joints, smooth_joints_reference
from kernels.letterbox import letterbox, letterbox_reference, plan_letterbox
from kernels.mask_paste import paste_alpha, paste_masks
from kernels.mask_rle import encode_rle
from kernels.neighbours import neighbour_features, neighbour_features_reference
from kernels.pose_decoding import decode_people, decode_people_reference
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, fit_poses_reference, prepare_templates, whole_frame_roi
from kernels.pose_similarity import (
    pose_similarities,
    pose_similarities_reference,
    pose_sizes,
    return_chances,
    return_chances_reference,
)
from kernels.skeleton import skeleton_features, skeleton_features_reference

FRAME_HEIGHT, FRAME_WIDTH = 720, 1280
LONG_SIDE = 384
ROI_SIZE = 64
CHANNELS = 64
FIT_PEOPLE, FIT_TARGET = (
    20,
    50.0,
)  # the claim made for the fit: so many people, so many times faster than a loop of SVDs
TEMPLATES = prepare_templates(PAPER_TEMPLATES)
FALLBACK = whole_frame_roi(FRAME_HEIGHT, FRAME_WIDTH, ROI_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two ways to compute the same, and the check that they do."""

    name: str
    settings: Mapping[str, object]
    contestants: Mapping[str, Callable[[], object]]
    """Ours first, then the baseline."""
    agree: Callable[[object, object], None]
    """Raises AssertionError when the two outputs differ by more than the case allows."""


def crowd(people: int) -> F32:
    """(N, 17, 3) people of 100 to 500 px all over the frame, a little off a template, a tenth of the joints absent."""
    rng = np.random.default_rng(people)
    keypoints = np.empty((people, 17, 3), np.float32)
    for n in range(people):
        height = rng.uniform(100, 500)
        corner = rng.uniform((0, 0), (FRAME_WIDTH - height, FRAME_HEIGHT - height))
        keypoints[n, :, :2] = TEMPLATES[0, :, :2] * height + corner + rng.normal(0, 0.02 * height, (17, 2))
        keypoints[n, :, 2] = np.where(rng.random(17) < 0.1, 0, 2)
    keypoints[keypoints[:, :, 2] == 0] = 0
    return keypoints


def cases() -> Iterator[Case]:
    """Every case of the suite; arrays are made when a case is reached."""
    yield from fit_cases()
    yield from decode_cases()
    yield from tracking_cases()
    yield from skeleton_cases()
    yield from neighbour_cases()
    yield from align_cases()
    yield from paste_cases()
    yield from exclusive_cases()
    yield from letterbox_cases()


def fit_cases() -> Iterator[Case]:
    """Pose fit against the published loop."""

    def agree(fast: object, slow: object) -> None:
        np.testing.assert_array_equal(fast.template_index, slow.template_index)
        np.testing.assert_allclose(fast.roi_from_frame, slow.roi_from_frame, rtol=1e-5, atol=1e-3)

    for people in (1, FIT_PEOPLE, 100):
        arguments = (crowd(people), TEMPLATES, FALLBACK)
        yield Case(
            name="fit_poses",
            settings={"people": people, "templates": len(TEMPLATES)},
            contestants={
                "numba, closed form": partial(fit_poses, *arguments),
                "loop of SVDs": partial(fit_poses_reference, *arguments),
            },
            agree=agree,
        )


def decode_cases() -> Iterator[Case]:
    """Grouping of candidates with the network's fixed number of rows and peaks, of which so many are people."""

    def agree(fast: object, slow: object) -> None:
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)

    rows = peaks = 32
    for people in (1, 5, 20):
        rng = np.random.default_rng(people)
        poses = crowd(people)[:, :, :2]
        scores = np.full(rows, 0.01, np.float32)
        scores[:people] = 0.5
        keypoints = rng.uniform(0, LONG_SIDE, (rows, 17, 3)).astype(np.float32)
        keypoints[:people, :, :2] = poses + rng.normal(0, 8, poses.shape)
        candidates = rng.uniform(0, 1, (17, peaks, 4)).astype(np.float32)
        candidates[..., :2] *= FRAME_WIDTH
        candidates[:, :people, :2] = poses.transpose(1, 0, 2)
        arguments = (scores, keypoints, candidates)
        yield Case(
            name="decode_people",
            settings={"people": people, "rows": rows, "peaks": peaks},
            contestants={
                "numba": partial(decode_people, *arguments),
                "numpy": partial(decode_people_reference, *arguments),
            },
            agree=agree,
        )


def tracking_cases() -> Iterator[Case]:
    """What ids are given by and joints are smoothed by, a crowd against itself a moment later."""

    def close(fast: object, slow: object) -> None:
        np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-9)

    rng = np.random.default_rng(5)
    for people in (6, 20):
        points = crowd(people)[:, :, :2].astype(np.float64)
        moved = points + rng.normal(0, 4, (people, 1, 2))
        visible = rng.random((people, 17)) < 0.9
        unseen, sizes = np.full(people, 0.04), pose_sizes(points, visible)
        speeds = rng.normal(0, 50, points.shape)
        for name, (fast, slow), arguments in (
            ("pose_similarities", (pose_similarities, pose_similarities_reference), (moved, visible, points, visible)),
            (
                "return_chances",
                (return_chances, return_chances_reference),
                (moved, visible, points, points, visible, sizes),
            ),
            (
                "smooth_joints",
                (smooth_joints, smooth_joints_reference),
                (moved, visible, points, speeds, visible, sizes),
            ),
        ):
            yield Case(
                name=name,
                settings={"people": people},
                contestants={"ours": partial(fast, *arguments, unseen), "loop": partial(slow, *arguments, unseen)},
                agree=close,
            )


def skeleton_cases() -> Iterator[Case]:
    """Skeleton maps against every formula on the whole grid."""

    def agree(fast: object, slow: object) -> None:
        np.testing.assert_allclose(fast, slow, atol=1e-5)

    for people in (1, 5, 20):
        pose = TEMPLATES[:1].repeat(people, axis=0) * np.array([ROI_SIZE, ROI_SIZE, 0], np.float32) + np.array(
            [0, 0, 2], np.float32
        )
        pose[:, :, :2] += np.random.default_rng(people).normal(0, 2, (people, 17, 2)).astype(np.float32)
        yield Case(
            name="skeleton_features",
            settings={"people": people, "size": ROI_SIZE},
            contestants={
                "numba": partial(skeleton_features, pose, ROI_SIZE),
                "numpy, whole grid": partial(skeleton_features_reference, pose, ROI_SIZE),
            },
            agree=agree,
        )


def neighbour_cases() -> Iterator[Case]:
    """The others in every window of a crowd against every Gaussian on the whole grid."""

    def agree(fast: object, slow: object) -> None:
        np.testing.assert_allclose(fast, slow, atol=1e-5)

    for people in (1, 3, 10, 20):
        poses = crowd(people)
        roi_from_frame = fit_poses(poses, TEMPLATES, FALLBACK, roi_size=ROI_SIZE).roi_from_frame
        matrices = np.stack([invert(matrix) for matrix in roi_from_frame]).astype(np.float32)
        images = np.zeros(people, np.int32)
        poses[:, :, :2] = np.stack([transform_points(m, p[:, :2]) for m, p in zip(roi_from_frame, poses, strict=True)])
        arguments = (matrices, images, poses)
        yield Case(
            name="neighbour_features",
            settings={"people": people, "size": ROI_SIZE},
            contestants={
                "numba": partial(neighbour_features, *arguments, ROI_SIZE),
                "numpy, whole grid": partial(neighbour_features_reference, *arguments, ROI_SIZE),
            },
            agree=agree,
        )


def align_cases() -> Iterator[Case]:
    """Affine-Align against OpenCV's warp of every channel."""

    def opencv(features: F32, feature_from_roi: NDArray[np.float64], size: int) -> F32:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.stack(
            [
                [
                    cv2.warpAffine(c, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)
                    for c in features[0]
                ]
                for matrix in feature_from_roi
            ]
        )

    def agree(fast: object, slow: object) -> None:
        # OpenCV rounds coordinates to 1/32 px.
        np.testing.assert_allclose(fast, slow, atol=1 / 16)

    height, width = LONG_SIDE * 9 // 16 // 4 + 2, LONG_SIDE // 4
    y, x = np.mgrid[:height, :width]
    phases = np.arange(CHANNELS)[:, None, None]
    features = np.sin(x / 5 + phases)[None] * np.cos(y / 7 - phases)[None]
    features = features.astype(np.float32)
    feature_from_frame = np.array([[width / FRAME_WIDTH, 0, 0], [0, width / FRAME_WIDTH, 0]])
    for people in (1, 5, 20):
        fit = fit_poses(crowd(people), TEMPLATES, FALLBACK)
        matrices = compose(feature_from_frame, invert(fit.roi_from_frame))
        yield Case(
            name="affine_align",
            settings={"people": people, "channels": CHANNELS, "map": f"{height}x{width}", "size": ROI_SIZE},
            contestants={
                "numba": partial(affine_align, features, matrices, np.zeros(people, np.int32), ROI_SIZE),
                "OpenCV, per channel": partial(opencv, features, matrices, ROI_SIZE),
            },
            agree=agree,
        )


def paste_cases() -> Iterator[Case]:
    """Masks into the frame against a full-frame warp per person, and run lengths against pycocotools."""

    def full_frame(probabilities: F32, roi_from_frame: F32) -> list[NDArray[np.bool_]]:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return [
            cv2.warpAffine(p, m, (FRAME_WIDTH, FRAME_HEIGHT), flags=flags) > 0.5
            for p, m in zip(probabilities, roi_from_frame.astype(np.float64), strict=True)
        ]

    def agree_masks(fast: object, slow: object) -> None:
        for pasted, full in zip(fast, slow, strict=True):
            # OpenCV rounds coordinates to 1/32 px: px on the outline may differ.
            different = (pasted.in_frame(FRAME_HEIGHT, FRAME_WIDTH) != full).sum()
            assert different <= 0.01 * full.sum() + 2, f"{different} of {full.sum()} px differ"

    def agree_counts(fast: object, slow: object) -> None:
        assert [one["counts"] for one in fast] == [one["counts"].decode("ascii") for one in slow]

    y, x = np.mgrid[:ROI_SIZE, :ROI_SIZE] / ROI_SIZE - 0.5
    body = (1 / (1 + np.exp(40 * (np.sqrt((x / 0.25) ** 2 + (y / 0.45) ** 2) - 1) * 0.25))).astype(np.float32)
    for people in (1, 5, 20):
        matrices = fit_poses(crowd(people), TEMPLATES, FALLBACK).roi_from_frame
        probabilities = np.repeat(body[None], people, axis=0)
        settings = {"people": people, "frame": f"{FRAME_HEIGHT}x{FRAME_WIDTH}"}
        yield Case(
            name="paste_masks",
            settings=settings,
            contestants={
                "numba, own box": partial(paste_masks, probabilities, matrices, FRAME_HEIGHT, FRAME_WIDTH),
                "OpenCV, full frame": partial(full_frame, probabilities, matrices),
            },
            agree=agree_masks,
        )
        masks = paste_masks(probabilities, matrices, FRAME_HEIGHT, FRAME_WIDTH)
        full = [np.asfortranarray(mask.in_frame(FRAME_HEIGHT, FRAME_WIDTH), np.uint8) for mask in masks]
        yield Case(
            name="encode_rle",
            settings=settings,
            contestants={
                "numba, crops": partial(encode_rle, masks, FRAME_HEIGHT, FRAME_WIDTH),
                "pycocotools, full frame": lambda full=full: [coco_mask.encode(one) for one in full],
            },
            agree=agree_counts,
        )


def exclusive_cases() -> Iterator[Case]:
    """Each px to the surest of those who claim it, against masks and alphas that may lie over one another."""

    def agree(fast: object, slow: object) -> None:
        ours, whole = (np.array([one.in_frame(FRAME_HEIGHT, FRAME_WIDTH) for one in pasted]) for pasted in (fast, slow))
        np.testing.assert_array_equal(ours.max(axis=0), whole.max(axis=0))

    y, x = np.mgrid[:ROI_SIZE, :ROI_SIZE] / ROI_SIZE - 0.5
    body = (1 / (1 + np.exp(40 * (np.sqrt((x / 0.25) ** 2 + (y / 0.45) ** 2) - 1) * 0.25))).astype(np.float32)
    for people in (1, 3, 10):
        for overlapping in (False, True):
            # Side by side in windows of 120 px, or each 20 px to the right of the one before in windows of 400 px.
            side_px, step_px = (400, 20) if overlapping else (120, 120)
            scale = np.float32(ROI_SIZE / side_px)
            matrices = np.array([[[scale, 0, -scale * step_px * n], [0, scale, -scale * 100]] for n in range(people)])
            probabilities = np.repeat(body[None], people, axis=0)
            for paste in (paste_masks, paste_alpha):
                call = partial(paste, probabilities, matrices.astype(np.float32), FRAME_HEIGHT, FRAME_WIDTH)
                yield Case(
                    name=f"{paste.__name__}, exclusive",
                    settings={"people": people, "overlapping": overlapping},
                    contestants={"exclusive": partial(call, exclusive=True), "as they are": call},
                    agree=agree,
                )


def letterbox_cases() -> Iterator[Case]:
    """Frame to network input; OpenCV does the work on our side."""

    def agree(fast: object, slow: object) -> None:
        assert np.abs(fast.astype(int) - slow).max() <= 1

    image = np.random.default_rng(0).integers(0, 256, (FRAME_HEIGHT, FRAME_WIDTH, 3), dtype=np.uint8)
    plan = plan_letterbox(FRAME_HEIGHT, FRAME_WIDTH, long_side=LONG_SIDE)
    out = np.empty((plan.input_height, plan.input_width, 3), np.uint8)
    yield Case(
        name="letterbox",
        settings={"frame": f"{FRAME_HEIGHT}x{FRAME_WIDTH}", "long_side": LONG_SIDE},
        contestants={
            "OpenCV into a kept array": partial(letterbox, image, plan, out),
            "numpy": partial(letterbox_reference, image, plan),
        },
        agree=agree,
    )


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/kernels.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to run, by name")
    parser.add_argument("--seconds", type=float, default=2.0, help="sampling time of a case (default %(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    for case in cases():
        if options.only and case.name not in options.only:
            continue
        case.agree(*(call() for call in case.contestants.values()))
        timings = measure(case.contestants, seconds=options.seconds)
        rows.append(Row(name=case.name, settings=case.settings, timings=timings))
    notes: dict[str, object] = {"threads": 1}
    for row in rows:
        if row.name == "fit_poses" and row.settings["people"] == FIT_PEOPLE and row.speedup is not None:
            notes["fit speedup"] = round(row.speedup, 1)
            notes["fit target"] = f"{FIT_TARGET:.0f} times: {'met' if row.speedup >= FIT_TARGET else 'MISSED'}"
    report("kernels", rows, notes=notes, save=options.save)


if __name__ == "__main__":
    main()
