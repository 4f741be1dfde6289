"""How well people who hide each other are told apart: AP by MaxIoU, and identity confusion.

    python -m training.evaluate_occlusion --annotations F.json --images DIR [--model DIR | --checkpoint RUN/step-N]
    [--poses gt|engine|FILE.json] [--masks exclusive|overlapping|limbs] [--results SEGM.json] [--json OUT]

For any COCO-format set, made for those of `training.compose_benchmark`. People fall into parts by MaxIoU, the greatest
IoU of their box with another person's: general below 0.5, moderate from 0.5, hard from 0.75.

A mask belongs to the person whose pose it was made from if poses are given as `gt`, else to the one it overlaps best.
AP of a part is COCO's over its people and their masks; masks that overlap nobody count as false in every part. With
``--others absent`` found masks of other people count as false, too, as they do against the file of a subset. Identity
confusion of a mask is the share of its px that lie on another person than its own. Intervals are 95 % of a bootstrap
over pictures: they tell nothing of another set of people or another training seed.

Detectors write many masks of low score, and all of them count in the mean of identity confusion: ``--least-score``
leaves those out whom nobody would show. AP wants them all.

``--results`` evaluates the masks of any other system: a list of COCO results with image_id, score and segmentation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from engines import EngineError, default_artifact
from kernels.coordinates import F64
from training.annotations import checked_segmentation
from training.dataset import CocoFolder, DataError, Photo, greatest_iou
from training.evaluate import MASKS, evaluate, true_people, truth_for
from training.evaluated_model import checkpoint_model, open_model
from training.identity_confusion import NOBODY, mask_shares, owners_by_overlap
from training.occluded_scenes import MAX_IOU_PARTS
from training.settings import SCORES

PARTS = {"all": (0.0, np.inf), **{name: (low, high) for name, (low, high) in MAX_IOU_PARTS.items()}}
PARTS["hard"] = (MAX_IOU_PARTS["hard"][0], np.inf)  # equal boxes are hard, too
RESAMPLES = 200
MOSTLY = 0.5  # a mask with more of it on somebody else is the wrong person's


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundMasks:
    """Everything about one picture that the figures need."""

    max_iou: F64  # (P,) of the true people
    iou: F64  # (M, P)
    owner: NDArray[np.int64]  # (M,)
    px: NDArray[np.int64]  # (M,) sizes of the masks
    shares: F64  # (M, 3) see `mask_shares`


def max_iou_of(photo: Photo) -> F64:
    """(people,) each person's MaxIoU as stored, else the greatest box IoU with another; crowds are nobody."""
    people = [i for i, person in enumerate(photo.people) if not person.crowd and not person.ignore]
    result = np.zeros(len(photo.people))
    if people:
        result[people] = greatest_iou(np.stack([photo.people[i].box for i in people]))
    for number, person in enumerate(photo.people):
        if person.max_iou is not None:
            result[number] = person.max_iou
    return result


def read_results(path: Path, photos: Sequence[Photo]) -> list[dict[str, Any]]:
    """Masks of another system.

    Raises:
        DataError: not a list of COCO segmentation results of these pictures; names the entry.
    """
    sizes = {photo.image_id: [photo.height, photo.width] for photo in photos}
    where = ""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, list):
            raise TypeError(f"it holds a {type(content).__name__}")
        results = []
        for number, entry in enumerate(content):
            where = f"entry {number}: "
            size = sizes[entry["image_id"]]
            rle = entry["segmentation"]
            if not isinstance(rle, dict) or not isinstance(rle["counts"], str):
                raise TypeError("segmentation must be a compressed RLE")
            checked_segmentation(rle, *size)
            score = float(entry["score"])
            if not np.isfinite(score):
                raise ValueError(f"score is {score}")
            results.append({"image_id": entry["image_id"], "category_id": 1, "score": score, "segmentation": rle})
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a list of COCO results (image_id, score, segmentation as compressed RLE): {where}"
            f"{type(error).__name__} {error}"
        ) from error
    return results


def _masks(rles: Sequence[Any], height: int, width: int) -> NDArray[np.bool_]:
    if not rles:
        return np.zeros((0, height, width), np.bool_)
    decoded: NDArray[np.bool_] = coco_mask.decode(list(rles)).transpose(2, 0, 1).astype(np.bool_)
    return decoded


def compare(
    photo: Photo, truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], *, in_order: bool
) -> FoundMasks:
    """One picture's masks beside the true ones.

    Args:
        photo: the picture.
        truth: COCO annotations with `segmentation` as RLE and `max_iou`.
        found: COCO results.
        in_order: mask i was made for person i.
    """
    rles = [entry["segmentation"] for entry in found]
    true_rles = [entry["segmentation"] for entry in truth]
    iou = np.zeros((len(found), len(truth)))
    if rles and true_rles:
        iou = np.asarray(coco_mask.iou(rles, true_rles, [0] * len(truth)), np.float64)
    owner = np.arange(len(found)) if in_order else owners_by_overlap(iou)
    masks = _masks(rles, photo.height, photo.width)
    return FoundMasks(
        max_iou=np.array([entry["max_iou"] for entry in truth], np.float64),
        iou=iou,
        owner=owner,
        px=masks.sum((1, 2)),
        shares=mask_shares(masks, _masks(true_rles, photo.height, photo.width), owner),
    )


class _PartEvaluation(COCOeval):
    """COCOeval that ignores the people outside of a part, without making crowds of them."""

    def __init__(self, truth: COCO, found: COCO, members: set[int]) -> None:
        super().__init__(truth, found, "segm")
        self.members = members
        self.params.areaRng, self.params.areaRngLbl = [[0, 1e10]], ["all"]
        self.params.maxDets = [100]

    def _prepare(self) -> None:
        super()._prepare()
        for people in self._gts.values():
            for person in people:
                person["ignore"] = int(person["id"] not in self.members)


def _precision(evaluation: COCOeval, order: Sequence[int] | None = None) -> dict[str, float | None]:
    """AP of evaluated pictures, or of a resampling of them."""
    kept, ids = evaluation.evalImgs, evaluation.params.imgIds
    if order is not None:
        evaluation.evalImgs = [kept[i] for i in order]
        evaluation.params.imgIds = list(range(len(order)))
        evaluation._paramsEval.imgIds = evaluation.params.imgIds  # noqa: SLF001 - accumulate reads it
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    evaluation.evalImgs, evaluation.params.imgIds = kept, ids
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # thresholds x recalls
    if (precision == -1).all():
        return {"AP": None, "AP50": None, "AP75": None}
    rows = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6]}
    return {name: float(values[values > -1].mean()) for name, values in rows.items()}


def _interval(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [round(float(v), 4) for v in np.percentile(known, (2.5, 97.5))] if known else None


def _confusion(pictures: Sequence[FoundMasks], low: float, high: float) -> dict[str, float | None]:
    """Shares over all masks of a part, empty ones left out."""
    shares, px = [], []
    for picture in pictures:
        mine = np.flatnonzero((picture.owner != NOBODY) & (picture.px > 0))
        of_person = picture.max_iou[picture.owner[mine]]
        mine = mine[(of_person >= low) & (of_person < high)]
        shares.append(picture.shares[mine])
        px.append(picture.px[mine])
    share, size = (np.concatenate(values) if values else np.zeros((0, 3)) for values in (shares, px))
    if not len(share):
        return {"masks": 0, "mean": None, "of_all_px": None, "wrong_person": None, "background": None}
    return {
        "masks": len(share),
        "mean": float(share[:, 1].mean()),
        "of_all_px": float((share[:, 1] * size).sum() / size.sum()),
        "wrong_person": float((share[:, 1] > MOSTLY).mean()),
        "background": float(share[:, 2].mean()),
    }


def _mean_iou(pictures: Sequence[FoundMasks], low: float, high: float, *, in_order: bool) -> float | None:
    values: list[float] = []
    for picture in pictures:
        for person in np.flatnonzero((picture.max_iou >= low) & (picture.max_iou < high)):
            column = picture.iou[:, person]
            values.append(float(column[person]) if in_order else float(column.max(initial=0)))
    return float(np.mean(values)) if values else None


def occlusion_figures(
    photos: Sequence[Photo],
    results: Sequence[dict[str, Any]],
    *,
    in_order: bool = False,
    others: str = "ignore",
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """AP, mean IoU and identity confusion of each of `PARTS`, with counts and intervals.

    Args:
        photos: pictures with their true people.
        results: COCO segmentation results.
        in_order: within a picture result i was made from the pose of true person i.
        others: people outside of a part: ignore or absent; see the module docstring.
        resamples: of the bootstrap over pictures; 0 leaves the intervals out.

    Raises:
        ValueError: ``in_order`` and the number of masks is another than that of people.
    """
    truth = truth_for(list(photos))[1]
    everybody: dict[int, list[dict[str, Any]]] = {photo.image_id: [] for photo in photos}
    for photo in photos:
        max_iou = max_iou_of(photo)
        for person, entry in zip(true_people(photo), truth.imgToAnns[photo.image_id], strict=True):
            everybody[photo.image_id].append({**entry, "max_iou": float(max_iou[person])})
    found: dict[int, list[dict[str, Any]]] = {photo.image_id: [] for photo in photos}
    for entry in results:
        found[entry["image_id"]].append(entry)
    pictures = []
    for photo in photos:
        people, masks = everybody[photo.image_id], found[photo.image_id]
        if in_order and len(people) != len(masks):
            raise ValueError(f"{photo.file_name}: {len(masks)} masks for the poses of {len(people)} people")
        pictures.append(compare(photo, people, masks, in_order=in_order))
    figures: dict[str, Any] = {
        "images": len(photos),
        "masks_on_nobody": int(sum((p.owner == NOBODY).sum() for p in pictures)),
        "empty_masks": int(sum((p.px == 0).sum() for p in pictures)),
        "others": others,
    }
    every = others == "absent" and not in_order
    for name, (low, high) in PARTS.items():
        members = {e["id"] for people in everybody.values() for e in people if low <= e["max_iou"] < high}
        confusion = _confusion(pictures, low, high)
        part: dict[str, Any] = {
            "people": len(members),
            "mask": _average_precision(
                _only(truth, members) if others == "absent" else truth,
                [
                    entry
                    for photo, picture in zip(photos, pictures, strict=True)
                    for entry in _of_part(found[photo.image_id], picture, low, high, every=every)
                ],
                members,
                resamples=resamples,
            ),
            "mean_iou": _rounded(_mean_iou(pictures, low, high, in_order=in_order)),
            "confusion": {key: _rounded(value) for key, value in confusion.items()},
        }
        if resamples and confusion["masks"]:
            rng = np.random.default_rng(0)
            drawn = [
                _confusion([pictures[i] for i in rng.integers(len(pictures), size=len(pictures))], low, high)
                for _ in range(resamples)
            ]
            for key in ("mean", "of_all_px", "wrong_person"):
                part["confusion"][f"{key}_interval"] = _interval([d[key] for d in drawn])
        figures[name] = part
    return figures


def _rounded(value: float | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else round(value, 4)


def _of_part(
    masks: Sequence[dict[str, Any]], picture: FoundMasks, low: float, high: float, *, every: bool
) -> list[dict[str, Any]]:
    """A picture's masks that count in a part: its people's and nobody's, or every one where the part has people."""
    inside = (picture.max_iou >= low) & (picture.max_iou < high)
    if every:
        return list(masks) if inside.any() else []
    return [mask for mask, owner in zip(masks, picture.owner, strict=True) if owner == NOBODY or inside[owner]]


def _only(truth: COCO, members: set[int]) -> COCO:
    """The truth without anybody else, and without pictures that have none of the members."""
    people = [entry for entry in truth.dataset["annotations"] if entry["id"] in members]
    kept = {entry["image_id"] for entry in people}
    images = [entry for entry in truth.dataset["images"] if entry["id"] in kept]
    subset = COCO()
    subset.dataset = {**truth.dataset, "annotations": people, "images": images}
    with contextlib.redirect_stdout(io.StringIO()):
        subset.createIndex()
    return subset


def _average_precision(
    truth: COCO, used: Sequence[dict[str, Any]], members: set[int], *, resamples: int
) -> dict[str, Any]:
    """COCO's AP of the members, with everybody else ignored."""
    if not members:
        return {"AP": None, "AP50": None, "AP75": None}
    # Copies of what counts: pycocotools writes into its results, and takes a box that it wrote before for a question.
    names = ("image_id", "category_id", "score", "segmentation")
    flat = [{name: entry[name] for name in names} for entry in used]
    if not flat:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _PartEvaluation(truth, truth.loadRes(flat), members)
        evaluation.evaluate()
    figures: dict[str, Any] = {name: _rounded(value) for name, value in _precision(evaluation).items()}
    if resamples:
        rng = np.random.default_rng(0)
        count = len(evaluation.evalImgs)
        drawn = [_precision(evaluation, rng.integers(count, size=count).tolist())["AP"] for _ in range(resamples)]
        figures["AP_interval"] = _interval(drawn)
    return figures


def table_of(figures: Mapping[str, Any]) -> Table:
    """The figures for people."""
    table = Table(title=f"{figures['images']:,} pictures; people outside of a part: {figures['others']}")
    table.add_column("MaxIoU")
    for heading in ("people", "mask AP", "95 %", "AP50", "AP75", "mean IoU", "confusion", "95 %", "wrong person"):
        table.add_column(heading, justify="right")

    def shown(value: Any, form: str = ".3f") -> str:
        if isinstance(value, list):
            return f"{value[0]:{form}} to {value[1]:{form}}"
        return "-" if value is None else f"{value:{form}}"

    for name in PARTS:
        part = figures[name]
        mask, confusion = part["mask"], part["confusion"]
        table.add_row(
            name,
            f"{part['people']:,}",
            shown(mask["AP"]),
            shown(mask.get("AP_interval")),
            shown(mask["AP50"]),
            shown(mask["AP75"]),
            shown(part["mean_iou"]),
            shown(confusion["mean"], ".1%"),
            shown(confusion.get("mean_interval"), ".1%"),
            shown(confusion["wrong_person"], ".1%"),
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_occlusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of its pictures")
    parser.add_argument(
        "--model", type=Path, default=default_artifact(), help="artifact folder; default: the installed"
    )
    parser.add_argument("--checkpoint", type=Path, help="a step-N folder or converted weights, in place of --model")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in training.evaluate")
    parser.add_argument("--results", type=Path, help="masks of another system, in place of a model")
    parser.add_argument("--engine", default="auto", help="as in run_stream.py")
    parser.add_argument("--threads", type=int, help="cores one call may use")
    parser.add_argument("--poses", default="gt", help="gt, engine, or a file of COCO keypoint results")
    parser.add_argument("--masks", choices=MASKS, help="as in training.evaluate")
    parser.add_argument("--score", choices=SCORES, help="of each mask; default: one for --poses gt, else pose*mask")
    parser.add_argument("--long-side", type=int, help="letterbox size, px; default: the artifact's")
    parser.add_argument("--others", choices=("ignore", "absent"), default="ignore", help="people outside of a part")
    parser.add_argument("--least-score", type=float, default=0.0, help="leave out masks that score less")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap; 0: no intervals")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    try:
        if options.resamples < 0:
            raise DataError(f"--resamples must be at least 0, got {options.resamples}")
        folder = CocoFolder(options.annotations, options.images)
        about: dict[str, Any] = {}
        if options.results is not None:
            results, in_order = read_results(options.results, folder.photos), False
        else:
            if options.checkpoint is not None:
                model, long_side = checkpoint_model(options.checkpoint, options.set, options.threads)
            elif options.set:
                raise ValueError("--set changes a checkpoint, not an exported model: give --checkpoint")
            else:
                model, long_side = open_model(options.model, engine=options.engine, threads=options.threads)
            overall, out = evaluate(
                folder,
                model,
                long_side=options.long_side or long_side,
                poses=options.poses,
                masks=options.masks,
                score=options.score,
                progress=sys.stderr.isatty(),
            )
            results, in_order = out.mask_results, options.poses == "gt"
            about = {name: overall[name] for name in ("poses", "masks", "score", "long_side", "keypoints")}
        if options.least_score > 0:
            if in_order:
                raise DataError("--least-score is for masks that were found: with --poses gt everybody has one")
            results = [entry for entry in results if entry["score"] >= options.least_score]
            about["least_score"] = options.least_score
        figures = occlusion_figures(
            folder.photos, results, in_order=in_order, others=options.others, resamples=options.resamples
        )
        Console(width=120).print(table_of(figures))
        if options.json is not None:
            options.json.write_text(json.dumps({**about, **figures}, indent=1) + "\n")
    except (DataError, EngineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
