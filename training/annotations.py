"""COCO-format annotation files: what they say of people, checked when they are read.

An error names the file, the annotation or picture and the field. Polygons of fewer than six numbers are left out and
counted, as the paper's code does; a person whose polygons are all such has no mask.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from kernels.coordinates import F32, F64, U8

LOG = logging.getLogger(__name__)
JOINTS = 17
LEAST_POLYGON = 6  # numbers: three points


class DataError(ValueError):
    """A data set is not what it says it is: names the file, what was expected and what came."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """One annotated person of a photograph, image px."""

    box: F64  # (4,) x0, y0, x1, y1
    keypoints: F32  # (17, 3) x, y, v; all zero where the person has none
    segmentation: Any  # COCO polygons or RLE, None without a mask
    ignore: bool  # weak label: neither a positive nor background
    crowd: bool
    area: float | None = None  # px, as annotated; None where it is not
    max_iou: float | None = None  # as stored by sets that do (OCHuman); None where it is not

    @property
    def has_keypoints(self) -> bool:
        return bool((self.keypoints[:, 2] > 0).any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """One picture of a data set and the people annotated in it."""

    image_id: int
    file_name: str
    height: int
    width: int
    people: tuple[Person, ...]
    near_duplicate_group: int | None = None  # pictures of one group are nearly the same


def run_lengths(counts: str | bytes) -> list[int]:
    """The run lengths in a compressed COCO RLE.

    Raises:
        ValueError: it ends in the middle of a number, or has other characters than COCO's.
    """
    coded = counts.encode("latin-1", "replace") if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    value, shift = 0, 0
    for byte in coded:
        six = byte - 48
        if not 0 <= six < 64:
            raise ValueError(f"a compressed RLE cannot hold the character {chr(byte)!r}")
        value |= (six & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a number of the compressed RLE is too long")
        if six & 0x20:
            continue
        if six & 0x10:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("the compressed RLE is cut off")
    return runs


def checked_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
    """A mask that pycocotools can draw, and how many polygons of fewer than six numbers were left out.

    pycocotools itself fills what a short RLE leaves open with whatever lies in memory, and may crash on a broken one.

    Args:
        segmentation: as annotated: polygons, plain or compressed RLE; nothing or an empty list: no mask.
        height: of the picture, px.
        width: of the picture, px.

    Raises:
        ValueError: it is none of these, or an RLE of another size.
    """
    if segmentation is None or segmentation == []:
        return None, 0
    if isinstance(segmentation, list):
        kept = []
        for polygon in segmentation:
            numbers = np.asarray(polygon, np.float64)
            if numbers.ndim != 1 or not np.isfinite(numbers).all():
                raise ValueError("a polygon must be a flat list of finite numbers")
            if len(numbers) % 2:
                raise ValueError(f"a polygon must be x, y pairs, got {len(numbers)} numbers")
            if len(numbers) >= LEAST_POLYGON:
                kept.append(polygon)
        return kept or None, len(segmentation) - len(kept)
    if not isinstance(segmentation, dict):
        raise ValueError(f"expected polygons or an RLE, got {type(segmentation).__name__}")
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"an RLE of {list(size)} px in a picture of {[height, width]}")
    runs = run_lengths(counts) if isinstance(counts, str | bytes) else [int(run) for run in counts]
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"the runs of the RLE must add up to {height * width} px, got {sum(runs)}")
    return segmentation, 0


def decode_mask(segmentation: Any, height: int, width: int) -> U8:
    """COCO polygons, compressed or plain RLE to (H, W) uint8 of 0 and 1."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    mask: U8 = coco_mask.decode(rle)
    return mask


def _read_person(annotation: dict[str, Any], height: int, width: int, left_out: Counter[str]) -> Person:
    def numbers(name: str, shape: tuple[int, ...]) -> Any:
        values = np.asarray(annotation[name], np.float64)
        if values.size != np.prod(shape):
            raise ValueError(f"{name} must have {int(np.prod(shape))} numbers, got {values.size}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite")
        return values.reshape(shape)

    x, y, w, h = numbers("bbox", (4,))
    if w < 0 or h < 0:
        raise ValueError(f"bbox must not have a negative size, got {w:g} x {h:g}")
    if x > width or y > height or x + w < 0 or y + h < 0:
        raise ValueError(f"bbox {[x, y, w, h]} lies outside of the picture of {width} x {height} px")
    keypoints = np.zeros((JOINTS, 3), np.float32)
    if annotation.get("keypoints"):
        keypoints[:] = numbers("keypoints", (JOINTS, 3))
        keypoints[keypoints[:, 2] <= 0] = 0
    try:
        segmentation, short = checked_segmentation(annotation.get("segmentation"), height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"segmentation: {error}") from error
    if short:
        left_out["polygons of fewer than six numbers"] += short
        if segmentation is None:
            left_out["people who have no mask then"] += 1
    area, max_iou = annotation.get("area"), annotation.get("max_iou")
    return Person(
        box=np.array([x, y, x + w, y + h]),
        keypoints=keypoints,
        segmentation=segmentation,
        ignore=bool(annotation.get("ignore", False)),
        crowd=bool(annotation.get("iscrowd", 0)) or bool(annotation.get("merged", False)),
        area=None if area is None else float(area),
        max_iou=None if max_iou is None else float(max_iou),
    )


def _picture_entry(entry: dict[str, Any]) -> tuple[str, int, int]:
    """(file name, height, width) of an entry of `images`."""
    name, height, width = entry["file_name"], entry["height"], entry["width"]
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"file_name must be a path below the folder of the pictures, got {name!r}")
    for field, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} must be a whole number of at least 1, got {value!r}")
    return name, height, width


def read_photos(annotations: Path) -> list[Photo]:
    """The pictures of a COCO-format annotation file with the people annotated in them; no pixel data is read.

    Raises:
        DataError: the file is missing or not COCO; names the annotation or picture, and the field.
    """
    where = ""
    try:
        content = json.loads(Path(annotations).read_text())
        by_image: dict[int, list[Person]] = {}
        entries: list[tuple[dict[str, Any], tuple[str, int, int]]] = []
        for entry in content["images"]:
            where = f"image {entry.get('id')}: "
            if entry["id"] in by_image:
                raise ValueError("this id is there twice")
            by_image[entry["id"]] = []
            entries.append((entry, _picture_entry(entry)))
        sizes = {entry["id"]: (height, width) for entry, (_, height, width) in entries}
        ids: set[Any] = set()
        left_out: Counter[str] = Counter()
        for annotation in content.get("annotations", ()):
            number = annotation.get("id")
            where = f"annotation {number}: "
            if number is not None and number in ids:
                raise ValueError("this id is there twice")
            ids.add(number)
            image_id = annotation["image_id"]
            if image_id not in by_image:
                raise ValueError(f"image_id {image_id} is no image of this file")
            by_image[image_id].append(_read_person(annotation, *sizes[image_id], left_out))
        where = ""
    except FileNotFoundError:
        raise DataError(f"annotation file not found: {annotations}") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{annotations} is not a COCO keypoint file: {where}{type(error).__name__} {error}") from error
    if left_out:
        LOG.warning("%s: left out %s", annotations, ", ".join(f"{n:,} {what}" for what, n in left_out.items()))
    return [
        Photo(
            image_id=entry["id"],
            file_name=name,
            height=height,
            width=width,
            people=tuple(by_image[entry["id"]]),
            near_duplicate_group=entry.get("near_duplicate_group"),
        )
        for entry, (name, height, width) in entries
    ]
