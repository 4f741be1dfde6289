"""A tiny COCO-format data set that tests draw themselves: people made of limbs, whose masks and joints are known."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from kernels.pose_fit import PAPER_TEMPLATES
from kernels.skeleton import LIMBS
from training.model_settings import ModelSettings
from training.settings import SourceSettings, TrainSettings

HEIGHT, WIDTH = 96, 128
COLOURS = ((200, 60, 40), (40, 90, 210), (230, 200, 30), (90, 30, 140))
TINY_MODEL = ModelSettings(feature_channels=8, seg_width=8, seg_dilations=(1, 2), roi_size=32)


def drawn_pose(left: float, top: float, side: float, v: float = 2.0) -> NDArray[np.float32]:
    """(17, 3) standing person that fills a square of ``side`` px at (left, top), all joints with visibility ``v``."""
    pose = PAPER_TEMPLATES[0].copy()
    pose[:, :2] = pose[:, :2] * side + (left, top)
    pose[:, 2] = v
    return pose


def drawn_mask(pose: NDArray[np.float32], height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width) 0 or 1: limbs, torso and head of a `drawn_pose`, as thick as a person."""
    mask = np.zeros((height, width), np.uint8)
    side = float(np.ptp(pose[:, 1])) / 0.71
    points = np.round(pose[:, :2]).astype(np.int32)
    for a, b in LIMBS:
        cv2.line(mask, points[a].tolist(), points[b].tolist(), 1, max(3, round(0.09 * side)))
    cv2.fillConvexPoly(mask, points[[5, 6, 12, 11]], 1)
    cv2.circle(mask, points[0].tolist(), max(3, round(0.09 * side)), 1, -1)
    return mask


def paint(image: NDArray[np.uint8], mask: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    """Fill a person with a colour and stripes, so that the inside is not flat."""
    rows = np.arange(image.shape[0])[:, None, None] // 3 % 2
    image[:] = np.where(mask[..., None] > 0, np.array(colour) * (0.7 + 0.3 * rows), image).astype(np.uint8)


def background(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: soft random colours."""
    coarse = np.random.default_rng(seed).integers(60, 190, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def annotation(number: int, image_id: int, pose: Any, mask: Any, **extra: Any) -> dict[str, Any]:
    """One COCO annotation; ``pose`` or ``mask`` may be None."""
    if mask is not None:
        ys, xs = np.nonzero(mask)
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    else:
        low, high = pose[:, :2].min(0), pose[:, :2].max(0)
        box = [float(value) for value in (*low, *(high - low))]
    entry: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "bbox": box}
    entry["area"] = int(mask.sum()) if mask is not None else box[2] * box[3] * 0.5
    if pose is not None:
        entry["keypoints"] = np.asarray(pose, float).reshape(-1).tolist()
        entry["num_keypoints"] = int((pose[:, 2] > 0).sum())
    if mask is not None:
        entry["segmentation"] = rle(mask)
    return {**entry, **extra}


def rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Compressed COCO RLE that JSON can hold."""
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(packed["size"]), "counts": packed["counts"].decode()}


def plain_rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Uncompressed COCO RLE: run lengths down the columns, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [len(flat)]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def polygon(mask: NDArray[np.uint8]) -> list[list[int]]:
    """The outline of the largest part of a mask as a COCO polygon."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [max(outlines, key=len).reshape(-1).tolist()]


def write_coco(
    folder: Path, images: dict[int, NDArray[np.uint8]], annotations: list[dict[str, Any]], *, zipped: bool = False
) -> Path:
    """Write ``annotations.json`` and the pictures (``images/`` or ``images.zip``) of RGB images by id; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    packed = zipfile.ZipFile(folder / "images.zip", "w") if zipped else None
    for image_id, image in images.items():
        name = f"{image_id:06d}.png"
        done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        assert done
        if packed is not None:
            packed.writestr(f"images/{name}", data.tobytes())
        else:
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / name).write_bytes(data.tobytes())
        entries.append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
    if packed is not None:
        packed.close()
    categories = [{"id": 1, "name": "person"}]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def write_people(folder: Path, *, pictures: int = 4, zipped: bool = False) -> Path:
    """A clean set: one person in each picture, with joints, a mask, and nothing else."""
    images, annotations = {}, []
    for number in range(1, pictures + 1):
        image = background(number)
        pose = drawn_pose(14 + 6 * (number % 4), 2, 90)
        mask = drawn_mask(pose)
        paint(image, mask, COLOURS[number % len(COLOURS)])
        images[number] = image
        annotations.append(annotation(number, number, pose, mask))
    return write_coco(folder, images, annotations, zipped=zipped)


def write_backgrounds(folder: Path) -> Path:
    """Two pictures without people."""
    folder.mkdir(parents=True)
    for seed in (100, 101):
        cv2.imwrite(str(folder / f"{seed}.png"), background(seed))
    return folder


def write_data(folder: Path) -> Path:
    """A data folder as training wants it: ``people`` with masks and ``backgrounds`` without people."""
    write_people(folder / "people")
    write_backgrounds(folder / "backgrounds")
    return folder


def tiny_settings(data: Path, output: Path, **changes: Any) -> TrainSettings:
    """A run of seconds on `write_data`: 64 x 64 px, two pictures a step, every part of a narrow network learns."""
    parts = ("backbone", "top_down", "keypoint_heads", "mask_laterals", "seg_module")
    chosen: dict[str, Any] = {
        "sources": (
            SourceSettings(
                annotations="people/annotations.json",
                images="people/images",
                photo_weight=0.3,
                cutout_weight=1.0,
                complete=True,
            ),
        ),
        "backgrounds": ("backgrounds",),
        "model": TINY_MODEL,
        "canvas": (64, 64),
        "steps": 6,
        "batch_size": 2,
        "max_rois": 4,
        "learning_rate": 1e-3,
        "lr_scale": dict.fromkeys(parts, 1.0),
        "warmup_steps": 2,
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 100,
        **changes,
    }
    return TrainSettings(data=data, output=output, **chosen)
