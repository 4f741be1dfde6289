"""A second opinion for `training.pseudo_masks`: MediaPipe Pose's masks of people whose joints are annotated.

    runs/compare/venv-mediapipe/bin/python training/mediapipe_masks.py --annotations F.json --images ZIP --output P.npz

MediaPipe's networks see one person, so each is cut out around the annotated joints with a margin and enlarged. A mask
counts if at least 60 % of the annotated joints were found near their places: else it is somebody else's. It runs in the
environment that `python -m benchmarks.compare --install` makes, so this file imports nothing of the repository. The
networks are those inside MediaPipe's wheel (0.10.21, Apache-2.0), the middle one of three sizes.

The file holds for each person, by annotation id: ``ID.corner`` (2,) x, y of the cut-out's first px, ``ID.mask`` (h, w)
uint8, 255 times the probability.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# MediaPipe's 33 landmarks to COCO's 17 joints, as in benchmarks/mediapipe_poses.py (a test holds them equal)
LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
MIN_JOINTS = 6
MARGIN = 0.3  # of the longer side of the box around the joints
MIN_SIDE = 288  # px that a cut-out is enlarged to; the network looks at 256
MIN_CUT_OUT = 24  # px of its shorter side: of less nothing can be said
NEAR = 0.12  # of the longer side: a landmark that close to its joint is right
MIN_RIGHT = 0.6


def window_of(joints: Any, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in px around (J, 2) joints, inside the picture."""
    low, high = joints.min(0), joints.max(0)
    margin = MARGIN * float((high - low).max())
    x0, y0 = (max(0, int(value - margin)) for value in low)
    x1, y1 = (min(size, int(value + margin)) for value, size in zip(high, (width, height), strict=True))
    return x0, y0, x1, y1


def is_same_person(found: Any, keypoints: Any) -> bool:
    """Whether (17, 2) found joints lie on the (17, 3) annotated ones."""
    present = keypoints[:, 2] > 0
    longer = float(np.ptp(keypoints[present, :2], axis=0).max())
    distance = np.linalg.norm(found - keypoints[:, :2], axis=1)[present]
    return bool((distance < NEAR * longer).mean() >= MIN_RIGHT)


def mask_of(pose: Any, picture: Any, keypoints: Any) -> tuple[Any, Any] | None:
    """Corner and mask of one person; None where MediaPipe finds nobody there, or somebody else."""
    x0, y0, x1, y1 = window_of(keypoints[keypoints[:, 2] > 0, :2], *picture.shape[:2])
    if min(x1 - x0, y1 - y0) < MIN_CUT_OUT:
        return None
    cut = picture[y0:y1, x0:x1]
    scale = max(1.0, MIN_SIDE / max(cut.shape[:2]))
    enlarged = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    result = pose.process(cv2.cvtColor(enlarged, cv2.COLOR_BGR2RGB))
    if result.pose_landmarks is None:
        return None
    points = [result.pose_landmarks.landmark[number] for number in LANDMARKS]
    found = np.array([(point.x * (x1 - x0) + x0 - 0.5, point.y * (y1 - y0) + y0 - 0.5) for point in points])
    if not is_same_person(found, keypoints):
        return None
    mask = cv2.resize(result.segmentation_mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return np.array([x0, y0], np.int32), np.rint(mask.clip(0, 1) * 255).astype(np.uint8)


def reader_of(images: Path) -> Callable[[str], bytes]:
    """Reads a picture's file from a folder or a zip (members NAME or images/NAME)."""
    if images.is_dir():
        return lambda name: (images / name).read_bytes()
    packed = zipfile.ZipFile(images)
    names = set(packed.namelist())
    return lambda name: packed.read(name if name in names else f"images/{name}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of its pictures")
    parser.add_argument("--output", type=Path, required=True, help=".npz to write")
    options = parser.parse_args(arguments)
    try:
        from mediapipe.python.solutions.pose import Pose
    except ImportError as error:
        print(f"error: MediaPipe cannot be imported ({error}): python -m benchmarks.compare --install", file=sys.stderr)
        return 2
    content = json.loads(options.annotations.read_text())
    names = {picture["id"]: picture["file_name"] for picture in content["images"]}
    read = reader_of(options.images)
    arrays: dict[str, Any] = {}
    asked = 0
    with Pose(static_image_mode=True, model_complexity=1, enable_segmentation=True) as pose:
        for person in content["annotations"]:
            keypoints = np.array(person.get("keypoints") or [0.0] * 51).reshape(17, 3)
            if person.get("iscrowd") or person.get("ignore") or (keypoints[:, 2] > 0).sum() < MIN_JOINTS:
                continue
            name = names[person["image_id"]]
            try:
                picture = cv2.imdecode(np.frombuffer(read(name), np.uint8), cv2.IMREAD_COLOR)
            except (OSError, KeyError) as error:
                print(f"error: {name} cannot be read from {options.images}: {error}", file=sys.stderr)
                return 2
            if picture is None:
                print(f"error: {name}: expected a picture in {options.images}", file=sys.stderr)
                return 2
            asked += 1
            found = mask_of(pose, picture, keypoints)
            if found is not None:
                arrays[f"{person['id']}.corner"], arrays[f"{person['id']}.mask"] = found
            if asked % 200 == 0:
                print(f"{asked} people, {len(arrays) // 2} masks", flush=True)
    np.savez_compressed(options.output, **arrays)
    print(f"{asked} people, {len(arrays) // 2} masks: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
