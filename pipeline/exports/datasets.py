"""Folders of pictures and labels, as annotation tools and trainers read them: COCO, CVAT, YOLO.

Labels are what the run found: a start for people who correct them, no truth. Each picture is written before its labels
name it; text labels are whole or not there, and JSON is replaced as a whole every few seconds and at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from kernels.mask_polygons import mask_polygons, one_polygon
from kernels.skeleton import FLIPPED_JOINTS, JOINT_NAMES, LIMBS
from pipeline.errors import SinkError
from pipeline.messages import FrameResult
from pipeline.person import PERSON_CATEGORY_ID, Person
from pipeline.stage6_sinks import check_output, close_output, create_output, sink_error, write_whole

JPEG_QUALITY: Final = 95
SAVE_EVERY_S: Final = 5.0  # what a crash costs of the labels
SAVE_SHARE: Final = 0.05  # of the time at most goes into writing all labels again
VISIBLE: Final = 2  # COCO's mark of a joint that is labelled and seen
DESCRIPTION: Final = "people found by pose2seg-live; not checked by anybody"


class DatasetFolder:
    """A folder that gets a picture and its labels for every n-th frame.

    Pictures are upright JPEG files named for the source and the number of the frame.
    """

    _pictures = "data"

    def __init__(self, path: Path, *, overwrite: bool, every: int) -> None:
        """Set up.

        Args:
            path: of the folder.
            overwrite: write into a folder that has files in it.
            every: which frames: the first, and every n-th behind it.
        """
        self._path = path
        self._overwrite = overwrite
        self._every = every
        self._seen = 0
        self._begun = False
        self._names: Counter[str] = Counter()

    def check(self) -> None:
        if not self._path.exists() and not self._path.is_symlink():
            check_output(self._path, overwrite=self._overwrite)
            return
        if not self._path.is_dir():
            raise SinkError(f"{self._path}: expected a folder for a dataset, this is a file: choose another name")
        if not self._overwrite and any(self._path.iterdir()):
            raise SinkError(f"{self._path}: has files in it already: choose another folder or add --overwrite")
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise SinkError(f"{self._path}: may not be written: check its permissions")

    def write(self, result: FrameResult) -> None:
        wanted = self._seen % self._every == 0
        self._seen += 1
        if not wanted:
            return
        if not self._begun:
            self._begin()
            self._begun = True
        name = self._name_of(result)
        picture = cv2.cvtColor(result.frame.image, cv2.COLOR_RGB2BGR)
        ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise SinkError(f"{self._path}: a picture of {result.frame.image.shape} cannot be made a JPEG")
        replace_output(self._path / self._pictures / f"{name}.jpg", data.tobytes())
        self._label(name, result)

    def close(self) -> None:
        """Nothing is held."""

    def _label(self, name: str, result: FrameResult) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        self.check()
        self._make(self._path / self._pictures)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise sink_error(folder, error) from error

    def _name_of(self, result: FrameResult) -> str:
        """Of harmless characters, each once."""
        frame = result.frame
        stem = "".join(char if char.isalnum() or char in "-_" else "_" for char in Path(frame.source).stem)[:100]
        name = f"{stem or 'frame'}_{frame.index:06d}"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


class CocoFolder(DatasetFolder):
    """``data/*.jpg`` and ``labels.json``, masks as run lengths: as FiftyOne and others read COCO."""

    _labels: tuple[str, ...] = ("labels.json",)

    def __init__(self, path: Path, *, overwrite: bool, every: int) -> None:
        super().__init__(path, overwrite=overwrite, every=every)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._saved_s = self._cost_s = 0.0

    def close(self) -> None:
        if self._begun:
            self._save()

    def _begin(self) -> None:
        super()._begin()
        for label in self._labels:
            self._make((self._path / label).parent)
        self._saved_s = time.monotonic()

    def _label(self, name: str, result: FrameResult) -> None:
        frame = result.frame
        image_id = len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "file_name": f"{name}.jpg",
                "width": frame.width,
                "height": frame.height,
                "frame": frame.index,
                "pts_s": round(frame.pts_s, 6),
            }
        )
        for person in result.people:
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": PERSON_CATEGORY_ID,
                    "iscrowd": 0,
                    "bbox": [round(value, 2) for value in person.bbox],
                    "area": int(person.crop.mask.sum()),
                    "segmentation": self._segmentation(person),
                    "keypoints": coco_keypoints(person),
                    "num_keypoints": int(person.joint_visible.sum()),
                    "score": round(person.score, 4),
                    "track_id": person.id,
                    "attributes": {"track_id": person.id},
                }
            )
        if time.monotonic() - self._saved_s >= max(SAVE_EVERY_S, self._cost_s / SAVE_SHARE):
            self._save()

    def _segmentation(self, person: Person) -> Any:
        return person.mask_rle

    def _save(self) -> None:
        started = time.monotonic()
        document = {
            "info": {"description": DESCRIPTION, "version": "1.0"},
            "licenses": [],
            "categories": [
                {
                    "id": PERSON_CATEGORY_ID,
                    "name": "person",
                    "supercategory": "person",
                    "keypoints": list(JOINT_NAMES),
                    "skeleton": (LIMBS + 1).tolist(),
                }
            ],
            "images": self._images,
            "annotations": self._annotations,
        }
        data = json.dumps(document, separators=(",", ":")).encode()
        for label in self._labels:
            replace_output(self._path / label, data)
        self._saved_s = time.monotonic()
        self._cost_s = self._saved_s - started


class CvatFolder(CocoFolder):
    """Names and folders of CVAT's COCO 1.0 and COCO Keypoints 1.0; masks as polygons, which can be corrected there."""

    _pictures = "images/default"
    _labels = ("annotations/instances_default.json", "annotations/person_keypoints_default.json")

    def _segmentation(self, person: Person) -> Any:
        return [[round(float(value), 2) for value in part.ravel()] for part in mask_polygons(person.crop)]


class YoloFolder(DatasetFolder):
    """``images/train``, ``labels/train``, ``data.yaml`` as Ultralytics trains on them: poses, or outlines of masks."""

    _pictures = "images/train"
    _texts = "labels/train"

    def __init__(self, path: Path, *, overwrite: bool, every: int, pose: bool) -> None:
        super().__init__(path, overwrite=overwrite, every=every)
        self._pose = pose

    def _begin(self) -> None:
        super()._begin()
        self._make(self._path / self._texts)
        lines = [f"# {DESCRIPTION}", "train: images/train", "val: images/train", "names:", "  0: person"]
        if self._pose:
            lines += [f"kpt_shape: [{len(JOINT_NAMES)}, 3]", f"flip_idx: {FLIPPED_JOINTS.tolist()}"]
        replace_output(self._path / "data.yaml", ("\n".join(lines) + "\n").encode())

    def _label(self, name: str, result: FrameResult) -> None:
        size = (result.frame.width, result.frame.height)
        row = yolo_pose_row if self._pose else yolo_segment_row
        rows = [text for person in result.people if (text := row(person, *size))]
        replace_output(self._path / self._texts / f"{name}.txt", "".join(rows).encode())


def coco_keypoints(person: Person) -> list[float]:
    """17 x (x, y, v) flat; joints that were not seen, or lie outside of the picture, are 0, 0, 0."""
    flat: list[float] = []
    for (x, y, _), visible in zip(person.keypoints.tolist(), _seen(person).tolist(), strict=True):
        flat += [round(x, 2), round(y, 2), VISIBLE] if visible else [0, 0, 0]
    return flat


def yolo_pose_row(person: Person, width: int, height: int) -> str:
    """``0 x y w h`` of the box and 17 x ``x y v``, all but v as shares of the picture; empty where nothing is seen."""
    x, y, box_width, box_height = person.bbox
    if not box_width or not box_height:
        return ""
    values = [(x + box_width / 2) / width, (y + box_height / 2) / height, box_width / width, box_height / height]
    texts = [f"{min(1.0, max(0.0, value)):.6f}" for value in values]
    for (joint_x, joint_y, _), visible in zip(person.keypoints.tolist(), _seen(person).tolist(), strict=True):
        texts += [f"{joint_x / width:.6f}", f"{joint_y / height:.6f}", str(VISIBLE)] if visible else ["0", "0", "0"]
    return f"0 {' '.join(texts)}\n"


def yolo_segment_row(person: Person, width: int, height: int) -> str:
    """``0 x y x y ...``, one outline, as shares of the picture; empty for an empty mask."""
    parts = mask_polygons(person.crop)
    if not parts:
        return ""
    shares = np.clip(one_polygon(parts) / np.array([width, height], np.float32), 0.0, 1.0)
    return f"0 {' '.join(f'{value:.6f}' for value in shares.ravel().tolist())}\n"


def _seen(person: Person) -> np.ndarray[Any, np.dtype[np.bool_]]:
    x, y = person.keypoints[:, 0], person.keypoints[:, 1]
    inside = (x >= 0) & (y >= 0) & (x < person.frame_width) & (y < person.frame_height)
    return person.joint_visible & inside


def replace_output(path: Path, data: bytes) -> None:
    """Write a file as a whole: after a kill there is the old one, or the new one.

    Raises:
        SinkError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    file = create_output(beside, overwrite=True)
    try:
        try:
            write_whole(file, data, path)
        finally:
            close_output(file, path)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise error if isinstance(error, SinkError) else sink_error(path, error) from error
