"""Accuracy of an artifact on annotated pictures, with pycocotools.

    python -m training.evaluate --annotations F.json --images DIR [--model DIR | --checkpoint RUN/step-N]
    --poses gt|engine|FILE.json [--json OUT] [--sheet OUT.png]

Poses come from the annotations (`gt`: what the mask part can do), from the artifact's keypoint graph (`engine`: end to
end; a model of the family `paper` finds none) or from a file of COCO keypoint results. Masks are those that are served,
which never overlap; `--masks overlapping` lets them, as the paper does. `--masks limbs` replaces the SegModule by the
trivial baseline, a thick drawing of the skeleton; `--masks personlab` by PersonLab's own masks, of a network that has
them.

Protocol. Keypoint AP is COCO's: people without labelled joints are ignored. Mask AP follows COCOPersons (the paper's
set): the true people are those with both keypoints and a mask; people without keypoints are absent, so a correct mask
on one of them counts as false. Scores are 1.0 for poses from the annotations, as in the paper's tables, and pose score
x mask score otherwise; `--score` chooses.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rich.progress import track

from engines import EngineError, default_artifact
from kernels.coordinates import F32, U8
from kernels.personlab_decoding import PersonLabParameters
from kernels.square_letterbox import SquareLetterbox
from training.average_precision import average_precision
from training.dataset import CocoFolder, DataError, Photo, decode_mask
from training.evaluated_model import (
    LONG_SIDE,
    Detector,
    FoundPeople,
    Model,
    Plan,
    checkpoint_model,
    masks_beside_each_other,
    open_model,
    people_in,
    picture_features,
    picture_plan,
    run_keypoints,
)
from training.holdout import validation_ids
from training.limb_masks import limb_mask
from training.personlab_baseline import personlab_masks
from training.settings import SCORES
from training.worst_cases import worst_cases

MASKS = ("exclusive", "overlapping", "limbs", "personlab")


def true_people(photo: Photo) -> list[int]:
    """Indices of the people the mask figures are about: keypoints and a mask, neither crowd nor weak."""
    return [
        i
        for i, p in enumerate(photo.people)
        if p.has_keypoints and p.segmentation is not None and not p.crowd and not p.ignore
    ]


def poses_from_annotations(photo: Photo) -> FoundPeople:
    people = [photo.people[i] for i in true_people(photo)]
    keypoints = np.stack([p.keypoints for p in people]) if people else np.zeros((0, 17, 3), np.float32)
    return FoundPeople(
        keypoints=keypoints,
        visibility=keypoints[..., 2].copy(),
        scores=np.ones(len(people), np.float32),
        boxes=np.stack([p.box for p in people]) if people else np.zeros((0, 4)),
    )


def poses_from_file(path: Path, joint_threshold: float) -> dict[int, FoundPeople]:
    """COCO keypoint results by image id.

    Raises:
        DataError: not a list of results with image_id, keypoints and score.
    """
    try:
        results = json.loads(path.read_text())
        if not isinstance(results, list):
            raise TypeError(f"it holds a {type(results).__name__}")
        by_image: dict[int, list[tuple[Any, float]]] = {}
        for entry in results:
            by_image.setdefault(int(entry["image_id"]), []).append(
                (np.asarray(entry["keypoints"], np.float32).reshape(17, 3), float(entry["score"]))
            )
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected a list of COCO keypoint results (image_id, keypoints, score): {error}"
        ) from error
    found = {}
    for image_id, entries in by_image.items():
        keypoints = np.stack([k for k, _ in entries])
        visibility = np.where(keypoints[..., 2] >= joint_threshold, 2.0, 0.0).astype(np.float32)
        found[image_id] = FoundPeople(
            keypoints=keypoints, visibility=visibility, scores=np.array([s for _, s in entries], np.float32)
        )
    return found


def truth_for(photos: list[Photo]) -> tuple[COCO, COCO]:
    """(keypoint truth, mask truth) of the same pictures for pycocotools; the mask truth lists `true_people` only."""
    images = [{"id": p.image_id, "width": p.width, "height": p.height, "file_name": p.file_name} for p in photos]
    category = [{"id": 1, "name": "person"}]
    with_keypoints, with_masks = [], []
    for photo in photos:
        listed = set(true_people(photo))
        for index, person in enumerate(photo.people):
            if person.ignore:
                continue
            rle: dict[str, Any] | None = None
            area = float(np.prod(person.box[2:] - person.box[:2])) * 0.53  # COCO people fill about half their box
            if person.segmentation is not None:
                rle = coco_mask.encode(np.asfortranarray(decode_mask(person.segmentation, photo.height, photo.width)))
                area = float(coco_mask.area(rle))
            x0, y0, x1, y1 = person.box
            entry = {
                "id": len(with_keypoints) + 1,
                "image_id": photo.image_id,
                "category_id": 1,
                "iscrowd": int(person.crowd),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "keypoints": person.keypoints.reshape(-1).tolist(),
                "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
            }
            with_keypoints.append(entry)
            if index in listed:
                with_masks.append({**entry, "segmentation": rle})
    return tuple(
        _coco({"images": images, "annotations": a, "categories": category, "info": {}})
        for a in (with_keypoints, with_masks)
    )  # type: ignore[return-value]


def _coco(content: dict[str, Any]) -> COCO:
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """Results of a set of pictures, gathered picture by picture."""

    keypoint_results: list[dict[str, Any]] = field(default_factory=list)
    mask_results: list[dict[str, Any]] = field(default_factory=list)
    cases: list[tuple[float, Photo, int, U8]] = field(
        default_factory=list
    )  # IoU, picture, true person, mask in its picture


def evaluate_photo(
    model: Model,
    image: U8,
    photo: Photo,
    plan: Plan,
    poses: FoundPeople | None,
    out: Evaluation,
    *,
    masks: str,
    score: str,
) -> None:
    """Run one picture; ``poses`` None takes the keypoint graph's own."""
    features: F32 = np.zeros((1, 1, 1, 1), np.float32)
    outputs: Mapping[str, F32] = {}
    if isinstance(plan, SquareLetterbox) and poses is not None:
        if masks != "limbs" and len(poses.scores):
            features = picture_features(model, image, plan)
    elif masks != "limbs" or poses is None:
        outputs = run_keypoints(model, image, plan)
        features = outputs["features"]
        poses = people_in(model, outputs, plan) if poses is None else poses
    assert poses is not None
    n = len(poses.scores)
    mask_scores = np.ones(n, np.float32)
    rles: list[dict[str, Any]] = []
    if n and masks in {"exclusive", "overlapping"}:
        rles, mask_scores = masks_beside_each_other(
            model, features, plan, poses, photo.height, photo.width, exclusive=masks == "exclusive"
        )
    elif n:
        if masks == "personlab":
            drawn = personlab_masks(outputs, poses.keypoints, poses.visibility, plan, model.decode)
        else:
            believed = zip(poses.keypoints, poses.visibility, strict=True)
            drawn = [limb_mask(k, v, photo.height, photo.width) for k, v in believed]
        rles = [_rle(m) for m in drawn]
    values = {"one": np.ones(n), "pose": poses.scores, "mask": mask_scores, "pose*mask": poses.scores * mask_scores}[
        score
    ]
    for i in range(n):
        shared = {"image_id": photo.image_id, "category_id": 1, "score": float(values[i])}
        flat = poses.keypoints[i].astype(float).round(2).reshape(-1).tolist()
        out.keypoint_results.append({**shared, "score": float(poses.scores[i]), "keypoints": flat})
    record_masks(photo, rles, values, out)


def record_masks(photo: Photo, rles: list[dict[str, Any]], scores: ArrayLike, out: Evaluation) -> None:
    """Note the masks of one picture (COCO RLE) with their scores (N,), and how well each true person is met."""
    n = len(rles)
    for rle, score in zip(rles, np.asarray(scores, float), strict=True):
        out.mask_results.append(
            {"image_id": photo.image_id, "category_id": 1, "score": float(score), "segmentation": rle}
        )
    listed = true_people(photo)
    if not listed:
        return
    truth = [_rle(decode_mask(photo.people[i].segmentation, photo.height, photo.width)) for i in listed]
    iou = (
        np.asarray(coco_mask.iou(rles, truth, [0] * len(truth))).reshape(n, len(truth))
        if n
        else np.zeros((0, len(truth)))
    )
    for column, index in enumerate(listed):
        best = int(iou[:, column].argmax()) if n else -1
        value = float(iou[best, column]) if n else 0.0
        shown = coco_mask.decode(rles[best]) if n else np.zeros((photo.height, photo.width), np.uint8)
        out.cases.append((value, photo, index, shown))


def _rle(mask: U8) -> dict[str, Any]:
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask))
    return rle


def summarise(photos: list[Photo], evaluation: Evaluation) -> dict[str, Any]:
    """Figures with their counts; see the module docstring for the protocol."""
    keypoint_truth, mask_truth = truth_for(photos)
    with_joints = sum(1 for a in keypoint_truth.dataset["annotations"] if a["num_keypoints"] and not a["iscrowd"])
    people = len(mask_truth.dataset["annotations"])
    return {
        "images": len(photos),
        "people_with_keypoints": with_joints,
        "people_with_mask": people,
        "keypoints": average_precision(keypoint_truth, evaluation.keypoint_results, "keypoints"),
        "mask": average_precision(mask_truth, evaluation.mask_results, "segm"),
        "mean_iou": round(float(np.mean([c[0] for c in evaluation.cases])), 4) if evaluation.cases else None,
    }


def evaluate(
    folder: CocoFolder,
    model: Model | Detector,
    *,
    long_side: int,
    poses: str | Path,
    masks: str | None = None,
    score: str | None = None,
    photos: list[Photo] | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], Evaluation]:
    """Figures of a model on a data set; see `main` for the options. Of a model, ``masks`` None is ``exclusive``."""
    chosen = folder.photos if photos is None else photos
    if not isinstance(model, Model):
        return _evaluate_detector(folder, model, chosen, long_side, str(poses), masks, score, progress=progress)
    from_file = poses_from_file(Path(poses), model.joint_threshold) if poses not in ("gt", "engine") else None
    score = score or ("one" if poses == "gt" else "pose*mask")
    masks = masks or MASKS[0]
    if masks == "personlab" and not isinstance(model.decode, PersonLabParameters):
        raise DataError("--masks personlab needs a model whose keypoints are personlab: give --model or --checkpoint")
    out = Evaluation()
    steps: Iterator[Photo] = iter(track(chosen, description="evaluate")) if progress else iter(chosen)
    nobody = FoundPeople(
        keypoints=np.zeros((0, 17, 3), np.float32),
        visibility=np.zeros((0, 17), np.float32),
        scores=np.zeros(0, np.float32),
    )
    for photo in steps:
        plan = picture_plan(model, photo.height, photo.width, long_side)
        given: FoundPeople | None = None
        if poses == "gt":
            given = poses_from_annotations(photo)
        elif from_file is not None:
            given = from_file.get(photo.image_id, nobody)
        evaluate_photo(model, folder.image(photo), photo, plan, given, out, masks=masks, score=score)
    figures = summarise(chosen, out)
    if poses == "gt":
        figures["keypoints"] = None  # comparing the annotations with themselves says nothing
    return {**figures, "poses": str(poses), "masks": masks, "score": score, "long_side": long_side}, out


def _evaluate_detector(
    folder: CocoFolder,
    model: Detector,
    photos: list[Photo],
    long_side: int,
    poses: str,
    masks: str | None,
    score: str | None,
    *,
    progress: bool,
) -> tuple[dict[str, Any], Evaluation]:
    if poses != "engine" or masks is not None or score not in (None, "mask", "one"):
        raise DataError(
            f"a detector finds people and masks by itself: expected --poses engine, no --masks and --score mask or "
            f"one, got {poses}, {masks} and {score}"
        )
    out = Evaluation()
    for photo in track(photos, description="evaluate") if progress else photos:
        rles, scores = model.people(folder.image(photo), long_side)
        record_masks(photo, rles, np.ones(len(rles)) if score == "one" else scores, out)
    figures = {**summarise(photos, out), "keypoints": None}  # it has no joints
    return {**figures, "poses": "none", "masks": "detector", "score": score or "mask", "long_side": long_side}, out


def validate(network: Any, settings: Any) -> dict[str, float | None]:
    """Figures on the held-out pictures of every source during training: mean IoU with true poses, and AP on complete
    sources.
    """
    from training.dataset import open_source
    from training.torch_engine import network_model

    model = network_model(network)
    score = None if settings.eval.score == "auto" else settings.eval.score
    detects = not isinstance(model, Model)
    long_side = max(settings.canvas) if detects else LONG_SIDE
    figures: dict[str, float | None] = {}
    for source in settings.sources:
        if not source.holdout_every or source.photo_weight + source.cutout_weight <= 0:
            continue
        folder = open_source(settings.data, source)
        kept = validation_ids(folder.photos, source)
        photos = [p for p in folder.photos if p.image_id in kept and true_people(p)]
        if photos:
            name = Path(source.annotations).parent.name
            poses = "engine" if detects else "gt"
            result, _ = evaluate(folder, model, long_side=long_side, poses=poses, score=score, photos=photos)
            figures[f"{name} mean IoU"] = result["mean_iou"]
            if source.complete:
                figures[f"{name} mask AP"] = result["mask"]["AP"]
            if source.complete and isinstance(model, Model) and model.keypoints is not None:
                own, _ = evaluate(folder, model, long_side=LONG_SIDE, poses="engine", score=score, photos=photos)
                figures[f"{name} end-to-end AP"] = own["mask"]["AP"]
                figures[f"{name} keypoint AP"] = own["keypoints"]["AP"]
    return figures


def report(figures: Mapping[str, Any]) -> str:
    """The figures as lines for people."""
    masked = f"{figures['people_with_mask']} with keypoints and mask"
    lines = [
        f"{figures['images']} images, {figures['people_with_keypoints']} people with keypoints, {masked}",
        "  ".join(f"{name} {figures[name]}" for name in ("poses", "masks", "score", "long_side")),
    ]
    for kind in ("keypoints", "mask"):
        if figures[kind] is not None:
            cells = [f"{name} {'-' if v is None else f'{v:.3f}'}" for name, v in figures[kind].items()]
            lines.append(f"{kind:>9}  {'  '.join(cells)}")
    lines.append(f" mean IoU  {'-' if figures['mean_iou'] is None else format(figures['mean_iou'], '.3f')}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of its pictures")
    parser.add_argument(
        "--model", type=Path, default=default_artifact(), help="artifact folder; default: the one that is installed"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="a step-N folder or a file of converted weights, in place of --model"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="evaluate the checkpoint with another model setting, such as model.align.box=joints; may be given again",
    )
    parser.add_argument("--engine", default="auto", help="as in run_stream.py")
    parser.add_argument("--threads", type=int, help="cores one call may use")
    parser.add_argument("--poses", default="engine", help="gt, engine, or a file of COCO keypoint results")
    parser.add_argument(
        "--masks",
        choices=MASKS,
        help="exclusive, the default: as served, a px that several masks claim goes to the surest; overlapping: each "
        "keeps it, as in the paper; baselines: limbs, a thick skeleton, and personlab, the masks of a PersonLab "
        "network by its own long offsets",
    )
    parser.add_argument(
        "--score", choices=SCORES, help="score of each mask; default: one for --poses gt, else pose*mask"
    )
    parser.add_argument("--long-side", type=int, help="letterbox size, px; default: the artifact's")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--results", type=Path, help="write COCO keypoint results here")
    parser.add_argument("--sheet", type=Path, help="write a picture of the worst cases here")
    options = parser.parse_args(arguments)
    try:
        if options.checkpoint is not None:
            model: Model | Detector
            model, long_side = checkpoint_model(options.checkpoint, options.set, options.threads)
        elif options.set:
            raise ValueError("--set changes a checkpoint, not an exported model: give --checkpoint")
        else:
            model, long_side = open_model(options.model, engine=options.engine, threads=options.threads)
        folder = CocoFolder(options.annotations, options.images)
        figures, out = evaluate(
            folder,
            model,
            long_side=options.long_side or long_side,
            poses=options.poses,
            masks=options.masks,
            score=options.score,
            progress=sys.stderr.isatty(),
        )
        print(report(figures))
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
        if options.results is not None:
            options.results.write_text(json.dumps(out.keypoint_results) + "\n")
        if options.sheet is not None:
            worst_cases(folder, out.cases, options.sheet)
    except (DataError, EngineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
