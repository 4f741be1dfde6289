"""OCHuman's own annotation file -> COCO files of its parts.

    python -m training.ochuman --annotations ochuman.json --output DIR

Written are ``{val,test}_{all,moderate,hard}.json``, which every command here takes as ``--annotations``. Kept are
people with joints and a mask. The first 2,500 pictures that have such people, in the order of the file, are val, the
rest test. Moderate and hard are people whose stored greatest box IoU with somebody else is in [0.5, 0.75) and [0.75,
1). In a file of a subset the other people are absent, and so are pictures without members; ``--others ignore`` lists
them with ``iscrowd`` 1 instead, which pycocotools leaves out of the count either way (`training.evaluate` knows the
first form).

Joints: seen, or hidden by the person's own body: v = 2; hidden by others: v = 1; head and neck, which COCO does not
have, are dropped. ``area`` is that of the box, as the authors write it: COCO's medium and large mean nothing here.
Ids count from 1 in every file: join files by ``file_name``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from kernels.skeleton import JOINT_NAMES
from training.dataset import DataError

VAL_PICTURES = 2500
SUBSETS = {"all": (0.0, np.inf), "moderate": (0.5, 0.75), "hard": (0.75, 1.0)}
V_OF_MARK = {"missing": 0, "vis": 2, "self_occluded": 2, "others_occluded": 1}  # COCO's v
KEYPOINT_NAMES = (  # in the order of the authors' file
    *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "head", "neck"),
    *("right_ear", "left_ear", "nose", "right_eye", "left_eye"),
)
MARKS = {"missing": 0, "vis": 1, "self_occluded": 2, "others_occluded": 3}  # their numbers in that file
PUBLISHED = {"val_all": (2500, 4313), "test_all": (2231, 3797)}  # pictures, people


def _mask_rle(segms: dict[str, Any]) -> dict[str, Any]:
    """Union of the outer polygons without the inner ones, as COCO RLE that JSON can hold."""
    height, width = segms["height"], segms["width"]

    def union(polygons: list[list[float]]) -> Any:
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), np.uint8)
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))

    mask = union(segms["outer"]) * (1 - union(segms["inner"]))
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": packed["counts"].decode()}


def _keypoints(flat: list[float], places: list[int], v_of: dict[int, int]) -> list[float]:
    result: list[float] = []
    for place in places:
        x, y, mark = flat[3 * place : 3 * place + 3]
        v = v_of[int(mark)]
        result += [x, y, v] if v else [0, 0, 0]
    return result


def coco_from_ochuman(
    content: dict[str, Any], *, split: str = "all", subset: str = "all", others: str = "absent"
) -> dict[str, Any]:
    """One part of OCHuman as a COCO document.

    Args:
        content: of the authors' file.
        split: val, test, or all.
        subset: all, moderate or hard; see the module docstring.
        others: what becomes of people outside the subset: absent or ignore.

    Raises:
        DataError: a field is missing or of another kind; names the picture.
    """
    where = "its head"
    try:
        places = [content["keypoint_names"].index(name) for name in JOINT_NAMES]
        v_of = {number: V_OF_MARK[mark] for mark, number in content["keypoint_visible"].items()}
        low, high = SUBSETS[subset]
        pictures = []
        for picture in content["images"]:
            where = f"picture {picture['file_name']}"
            people = [p for p in picture["annotations"] if p["keypoints"] and p["segms"]]
            if people:
                pictures.append((picture, people))
        chosen = {"all": pictures, "val": pictures[:VAL_PICTURES], "test": pictures[VAL_PICTURES:]}[split]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for picture, people in chosen:
            where = f"picture {picture['file_name']}"
            member = [low <= p["max_iou"] < high for p in people]
            if not any(member):
                continue
            size = {"height": picture["height"], "width": picture["width"]}
            images.append({"id": len(images) + 1, "file_name": picture["file_name"], **size})
            for person, is_member in zip(people, member, strict=True):
                if not is_member and others == "absent":
                    continue
                x0, y0, x1, y1 = person["bbox"]
                keypoints = _keypoints(person["keypoints"], places, v_of)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": 1,
                        "iscrowd": int(not is_member),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
                        "keypoints": keypoints,
                        "segmentation": _mask_rle(person["segms"]),
                        "max_iou": person["max_iou"],
                    }
                )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"not OCHuman's annotation file, at {where}: {type(error).__name__} {error}") from error
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(JOINT_NAMES)}
    return {"images": images, "annotations": annotations, "categories": [category]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.ochuman", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="the authors' ochuman.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the COCO files")
    parser.add_argument("--others", choices=("absent", "ignore"), default="absent", help="people outside a subset")
    options = parser.parse_args(arguments)
    try:
        try:
            content = json.loads(options.annotations.read_text())
        except ValueError as error:
            raise DataError(f"{options.annotations} is not JSON: {error}") from error
        options.output.mkdir(parents=True, exist_ok=True)
        for split in ("val", "test"):
            for subset in SUBSETS:
                try:
                    made = coco_from_ochuman(content, split=split, subset=subset, others=options.others)
                except DataError as error:
                    raise DataError(f"{options.annotations}: {error}") from error
                name = f"{split}_{subset}"
                (options.output / f"{name}.json").write_text(json.dumps(made))
                counts = (len(made["images"]), sum(not a["iscrowd"] for a in made["annotations"]))
                published = PUBLISHED.get(name)
                remark = "" if published is None else f"; published {published[0]:,} and {published[1]:,}"
                print(f"{name}.json: {counts[0]:,} pictures, {counts[1]:,} people{remark}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
