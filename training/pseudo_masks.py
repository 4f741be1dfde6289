"""Masks for people of whom only the joints are annotated, where two networks agree about them.

    python -m training.pseudo_masks --annotations F.json --images DIR_OR_ZIP --second P.npz --output G.json
    [--model DIR] [--agree 0.75] [--sheet OUT.png]

One opinion is a model's of ours, guided by the annotated joints; the other comes from elsewhere
(`training/mediapipe_masks.py` writes such a file). Where the two have at least ``--agree`` IoU, the mean of both
probabilities above one half becomes the person's mask, small pieces left away, and the annotation is marked
``"mask_source": "pseudo"``. Everything else in the file stays as it is: whoever has a mask keeps it, whoever gets none
goes on teaching joints only. The sheet shows some of the masks, in green what the two disagree about.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_masks
from rich.progress import track

from engines import ArtifactError, EngineError, EngineOptions, default_artifact, load_artifact
from engines.pose_guided import PoseGuidedModel, masks_from_poses, open_pose_guided
from kernels.coordinates import F32, U8
from training.dataset import CocoFolder, DataError, Photo

AGREE = 0.75
MIN_PX = 150
PIECE = 0.1  # of the largest piece: smaller ones are left away
SHEET_TILES, TILE = 24, 200


@dataclass(frozen=True, slots=True, eq=False)
class Opinions:
    """Two probabilities that a px is a person's, (H, W) each, and how far the two agree."""

    ours: F32
    second: F32

    @property
    def iou(self) -> float:
        ours, second = self.ours > 0.5, self.second > 0.5
        union = (ours | second).sum()
        return float((ours & second).sum() / union) if union else 0.0

    def mask(self) -> U8:
        """(H, W) 0 or 1: the mean above one half, without small pieces."""
        both = ((self.ours + self.second) > 1.0).astype(np.uint8)
        count, labels, statistics, _ = cv2.connectedComponentsWithStats(both)
        if count <= 2:
            return both
        areas = statistics[:, cv2.CC_STAT_AREA]
        kept = np.flatnonzero(areas >= PIECE * areas[1:].max())
        return np.isin(labels, kept[kept > 0]).astype(np.uint8)


def second_opinion(second: Mapping[str, Any], person: int, height: int, width: int) -> F32 | None:
    """(H, W) of one person out of the file; None where it has none.

    Raises:
        DataError: a mask that does not lie in the picture.
    """
    if f"{person}.mask" not in second:
        return None
    (x, y), part = second[f"{person}.corner"], second[f"{person}.mask"]
    whole = np.zeros((height, width), np.float32)
    target = whole[y : y + part.shape[0], x : x + part.shape[1]]
    if x < 0 or y < 0 or target.shape != part.shape or part.dtype != np.uint8:
        raise DataError(
            f"mask of annotation {person}: expected uint8 inside {width} x {height} px, got {part.dtype} "
            f"{part.shape[1]} x {part.shape[0]} at {x}, {y}"
        )
    target[:] = part / np.float32(255)
    return whole


def opinions_of(
    model: PoseGuidedModel, image: U8, people: Sequence[dict[str, Any]], second: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Opinions]]:
    """Both opinions about those people of a picture whom the file knows.

    Args:
        model: ours.
        image: (H, W, 3) RGB.
        people: its annotations with joints; all of them are told to the model, which may heed neighbours.
        second: arrays of the other opinion.
    """
    height, width = image.shape[:2]
    keypoints = np.array([person["keypoints"] for person in people], np.float32).reshape(-1, 17, 3)
    found = masks_from_poses(model, image, keypoints)
    for person, probability, matrix in zip(people, found.probabilities, found.roi_from_frame, strict=True):
        other = second_opinion(second, person["id"], height, width)
        if other is None:
            continue
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        ours = cv2.warpAffine(probability, matrix, (width, height), flags=flags)
        yield person, Opinions(np.asarray(ours, np.float32), other)


def rle_of(mask: U8) -> dict[str, Any]:
    """COCO's compressed run lengths, as JSON takes them."""
    rle = coco_masks.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def with_joints(person: Mapping[str, Any]) -> bool:
    return bool(any(person.get("keypoints") or [])) and not person.get("ignore") and not person.get("iscrowd")


def drawn(image: U8, mask: U8, opinions: Opinions) -> U8:
    """A tile of the sheet."""
    shown = image.copy()
    shown[mask > 0] = (0.5 * shown[mask > 0] + 0.5 * np.array([255, 40, 40])).astype(np.uint8)
    differ = (opinions.ours > 0.5) != (opinions.second > 0.5)
    shown[differ] = (0.4 * shown[differ] + 0.6 * np.array([40, 255, 40])).astype(np.uint8)
    scale = TILE / max(image.shape[:2])
    small = cv2.resize(shown, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:TILE, :TILE]
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    return tile


def add_masks(
    content: dict[str, Any],
    folder: CocoFolder,
    second: Mapping[str, Any],
    model: PoseGuidedModel,
    *,
    agree: float,
) -> tuple[list[float], list[U8]]:
    """Put masks into the annotations of ``content`` where the two opinions agree.

    Returns:
        The agreement of everybody whom both know, and up to 24 tiles of a sheet.
    """
    photos: dict[int, Photo] = {photo.image_id: photo for photo in folder.photos}
    people: dict[int, list[dict[str, Any]]] = {}
    for person in content["annotations"]:
        if with_joints(person):
            people.setdefault(person["image_id"], []).append(person)
    asked = [number for number, those in people.items() if any(f"{person['id']}.mask" in second for person in those)]
    agreements: list[float] = []
    tiles: list[U8] = []
    for number in track(asked, description="masks", disable=None):
        image = folder.image(photos[number])
        for person, opinions in opinions_of(model, image, people[number], second):
            agreements.append(opinions.iou)
            mask = opinions.mask()
            if opinions.iou < agree or mask.sum() < MIN_PX or person.get("segmentation"):
                continue
            person |= {
                "segmentation": rle_of(mask),
                "area": int(mask.sum()),
                "bbox": [float(value) for value in cv2.boundingRect(mask)],
                "mask_source": "pseudo",
            }
            if len(tiles) < SHEET_TILES and len(agreements) % max(1, len(asked) // SHEET_TILES) == 0:
                tiles.append(drawn(image, mask, opinions))
    return agreements, tiles


def sheet_of(tiles: Sequence[U8], columns: int = 6) -> U8:
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    rows[-1] += [np.zeros_like(tiles[0])] * (columns - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of its pictures")
    parser.add_argument("--second", type=Path, required=True, help="the other opinion, .npz")
    parser.add_argument("--output", type=Path, required=True, help="COCO-format JSON to write")
    parser.add_argument("--model", type=Path, help="artifact folder; default: the one that is installed")
    parser.add_argument("--engine", default="auto", help="as in run_stream.py")
    parser.add_argument("--threads", type=int, help="cores one call may use")
    parser.add_argument("--agree", type=float, default=AGREE, help="IoU of the two opinions from which on they count")
    parser.add_argument("--sheet", type=Path, help="write a picture of some of the masks here")
    options = parser.parse_args(arguments)
    try:
        folder = CocoFolder(options.annotations, options.images)
        content = json.loads(options.annotations.read_text())
        try:
            second = dict(np.load(options.second, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataError(f"{options.second}: expected an .npz of masks ({error})") from error
        model = open_pose_guided(
            load_artifact(options.model or default_artifact()),
            engine=options.engine,
            options=EngineOptions(threads=options.threads),
        )
        agreements, tiles = add_masks(content, folder, second, model, agree=options.agree)
        if options.sheet is not None and tiles:
            cv2.imwrite(str(options.sheet), cv2.cvtColor(sheet_of(tiles), cv2.COLOR_RGB2BGR))
    except (DataError, ArtifactError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content))
    made = sum(person.get("mask_source") == "pseudo" for person in content["annotations"])
    agreement = np.quantile(agreements or [0.0], (0.1, 0.5, 0.9)).round(2)
    print(f"{len(agreements)} people with two opinions, agreement {agreement} (10, 50, 90 %)")
    print(f"{made} masks: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
