"""People in pictures with their keypoints and masks, read from COCO-format files.

`CocoFolder` reads an annotation file and its pictures (a folder or a zip); `Scene` is what everything downstream learns
from, made either from a photograph (`photo_scene`) or by composition (`training.compose`). `SceneDataset` mixes the
sources; sample ``i`` depends on the seed and on ``i`` alone, so that a resumed run sees what an uninterrupted one would
have seen.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from kernels.coordinates import F32, F64, U8, transform_points
from kernels.skeleton import FLIPPED_JOINTS
from kernels.square_letterbox import plan_square_letterbox, square_letterbox
from training.annotations import JOINTS, DataError, Person, Photo, decode_mask, read_photos
from training.holdout import unseen_ids
from training.settings import SourceSettings, TrainSettings

LABEL_BACKGROUND = 0
LABEL_COVERED = 255  # something that is in front and belongs to nobody in the scene's list
MAX_PEOPLE = 254


class CocoFolder:
    """A COCO-format annotation file with its pictures in a folder or in a zip.

    Reads keypoints (17 joints), polygons and RLE masks, and the extra fields ``ignore`` and ``merged`` (a mask over
    several people counts as crowd). Pixel data is read on demand; a zip is opened once per process.

    Raises:
        DataError: a file is missing or not COCO.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        self.images = Path(images)
        if not self.images.exists():
            raise DataError(f"pictures not found: {images} (expected a folder or a zip)")
        self.photos = read_photos(annotations)
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def _bytes(self, photo: Photo) -> bytes:
        if self.images.is_dir():
            return (self.images / photo.file_name).read_bytes()
        packed = self._open_zip()
        name = next((n for n in (photo.file_name, f"images/{photo.file_name}") if n in packed.NameToInfo), None)
        if name is None:
            raise DataError(f"{photo.file_name} is not in {self.images}")
        try:
            return packed.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{photo.file_name} in {self.images} is damaged: {error}") from error

    def _open_zip(self) -> zipfile.ZipFile:
        """Opened once a process: workers must not share a place in the file."""
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), zipfile.ZipFile(self.images))
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.images} is not a zip: {error}") from None
        return self._zip[1]

    def require_files(self, photos: Iterable[Photo]) -> None:
        """Raise DataError unless the files of all these pictures are there; nothing is decoded."""
        if self.images.is_dir():
            missing = [p.file_name for p in photos if not (self.images / p.file_name).is_file()]
        else:
            names = self._open_zip().NameToInfo
            missing = [p.file_name for p in photos if not {p.file_name, f"images/{p.file_name}"} & names.keys()]
        if missing:
            more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
            raise DataError(f"pictures are not in {self.images}: {', '.join(missing[:3])}{more}")

    def image(self, photo: Photo) -> U8:
        """(H, W, 3) uint8 RGB.

        Raises:
            DataError: the file is missing, is no picture, or has another size than annotated; names it.
        """
        try:
            data = np.frombuffer(self._bytes(photo), np.uint8)
        except FileNotFoundError:
            raise DataError(f"picture {photo.file_name} is not in {self.images}") from None
        except OSError as error:
            raise DataError(f"picture {photo.file_name} in {self.images} cannot be read: {error}") from error
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if picture is None or picture.shape[:2] != (photo.height, photo.width):
            came = "not a picture" if picture is None else f"{picture.shape[1]}x{picture.shape[0]}"
            raise DataError(f"{photo.file_name}: expected a picture of {photo.width}x{photo.height}, got {came}")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoMasks:
    """The masks of a scene's people as they are stored with its photograph, to be decoded when somebody is learned."""

    segmentations: tuple[Any, ...]  # COCO polygons or RLE, one for each person of the scene
    height: int  # of the photograph, px
    width: int
    canvas_from_photo: F64  # (2, 3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture to learn from, with exact knowledge of who is visible where."""

    image: U8  # (H, W, 3) RGB
    labels: U8  # (H, W): 0 nobody listed, i + 1 person i visible, LABEL_COVERED a stranger or thing in front
    keypoints: F32  # (N, 17, 3) x, y in px of this picture, v 0 absent, 1 hidden, 2 visible
    has_mask: U8  # (N,) 1 where `labels` holds the person's true mask
    complete: bool  # every person is listed or in `unlabelled`: the rest is true background for keypoints
    max_iou: F32  # (N,) greatest box IoU with another listed person, of masks as far as visible, of boxes as in view
    unlabelled: U8 | None = None  # (H, W) 1 where people are of whom no joints are taught; None: nowhere
    boxes: F64 | None = None  # (N, 4) annotated xyxy, px edges of this picture; None: not kept
    photo_masks: PhotoMasks | None = None  # everybody's whole mask; None: `labels` is all that is known


def box_iou(boxes: F64) -> F64:
    """(N, 4) xyxy to (N, N) intersection over union."""
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return overlap / np.maximum(area[:, None] + area[None] - overlap, 1e-9)


def greatest_iou(boxes: F64) -> F32:
    """(N, 4) xyxy to (N,) each box's greatest intersection over union with another; 0 where it is alone."""
    iou = box_iou(boxes.reshape(-1, 4))
    np.fill_diagonal(iou, 0)
    return iou.max(1, initial=0).astype(np.float32)


def visible_box(labels: U8, label: int) -> F64:
    """(4,) xyxy around the px of a label, px edges; all zero if there are none."""
    ys, xs = np.nonzero(labels == label)
    if not len(xs):
        return np.zeros(4)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)


def warp_keypoints(matrix: F64, keypoints: F32, height: int, width: int, *, mirrored: bool) -> F32:
    """Move (N, 17, 3) keypoints by a 2x3 matrix, swap left and right if it mirrors, drop what leaves the picture."""
    moved = keypoints.copy()
    moved[..., :2] = transform_points(matrix, keypoints[..., :2])
    if mirrored:
        moved = moved[:, FLIPPED_JOINTS]
    inside = (
        (moved[..., 0] > -0.5) & (moved[..., 0] < width - 0.5) & (moved[..., 1] > -0.5) & (moved[..., 1] < height - 0.5)
    )
    moved[~inside | (moved[..., 2] <= 0)] = 0
    return moved


def random_view(rng: Generator, photo: Photo, height: int, width: int) -> tuple[F64, bool]:
    """A random similarity from photo px to a (height, width) canvas that keeps one of its people in sight."""
    people = [p for p in photo.people if not p.crowd]
    box = people[rng.integers(len(people))].box if people else np.array([0.0, 0.0, photo.width, photo.height])
    extent = max(box[3] - box[1], 0.6 * (box[2] - box[0]), 8.0)
    fit = min(height / photo.height, width / photo.width)
    wanted = height * np.exp(rng.uniform(np.log(0.3), np.log(1.4))) / extent
    scale = float(np.clip(wanted, 0.7 * fit, 3.0))
    angle = np.deg2rad(rng.normal(0.0, 9.0))
    mirrored = bool(rng.random() < 0.5)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[a, -b], [b, a]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    source = np.array([rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3])])
    target = np.array([rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height])
    return np.concatenate((linear, (target - linear @ source)[:, None]), axis=1), mirrored


def photo_scene(rng: Generator, folder: CocoFolder, photo: Photo, backdrop: U8, *, complete: bool) -> Scene:
    """A random view of a photograph and its people with keypoints, with ``backdrop`` beyond its border.

    People of whom fewer than three joints are in view, people without keypoints (whether or not they have a mask),
    crowds and weak labels are not listed: they are neither learned nor background, and `Scene.unlabelled` says where
    they are, by their mask or else by their whole box. A listed person's own mask is never part of it.

    Args:
        rng: draws the view.
        folder: where the picture is read.
        photo: the picture and its people.
        backdrop: (height, width, 3) RGB of the canvas; read only.
        complete: as in `Scene`.

    Raises:
        DataError: the picture cannot be read.
    """
    height, width = backdrop.shape[:2]
    matrix, mirrored = random_view(rng, photo, height, width)
    flags = cv2.INTER_AREA if abs(np.linalg.det(matrix[:, :2])) < 0.3 else cv2.INTER_LINEAR
    image = cv2.warpAffine(
        folder.image(photo), matrix, (width, height), backdrop.copy(), flags=flags, borderMode=cv2.BORDER_TRANSPARENT
    )
    labels = np.zeros((height, width), np.uint8)
    listed = sorted(
        (p for p in photo.people if p.has_keypoints and not p.crowd and not p.ignore),
        key=lambda p: -float(p.box[3] - p.box[1]),
    )
    others = [p for p in photo.people if not p.has_keypoints or p.crowd or p.ignore]
    shown = []
    keypoints = []
    for person in listed:
        moved = warp_keypoints(matrix, person.keypoints[None], height, width, mirrored=mirrored)[0]
        if (moved[:, 2] > 0).sum() < 3 or len(keypoints) == MAX_PEOPLE:
            others.append(person)
            continue
        if person.segmentation is not None:
            labels[_moved_mask(person.segmentation, photo, matrix, height, width)] = len(keypoints) + 1
        keypoints.append(moved)
        shown.append(person)
    n = len(shown)
    has_mask = [person.segmentation is not None for person in shown]
    boxes = [
        visible_box(labels, index + 1) if has_mask[index] else _box_in_view(person.box, matrix, height, width)
        for index, person in enumerate(shown)
    ]
    return Scene(
        image=image,
        labels=labels,
        keypoints=np.stack(keypoints).astype(np.float32) if n else np.zeros((0, JOINTS, 3), np.float32),
        has_mask=np.array(has_mask, np.uint8),
        complete=complete,
        max_iou=greatest_iou(np.array(boxes)),
        unlabelled=_region_of(others, photo, matrix, labels),
    )


def is_taught(person: Person) -> bool:
    """Whether the paper's training set has the person: joints and a mask, no crowd, nothing degenerate.

    Degenerate: a box of at most 1 px, or an area of none. (Polygons of fewer than six numbers are no mask.)
    """
    if not person.has_keypoints or person.segmentation is None or person.crowd or person.ignore:
        return False
    if person.area is not None and person.area <= 0:
        return False
    return bool((person.box[2:] - person.box[:2]).min() > 1)


def letterbox_scene(folder: CocoFolder, photo: Photo, side: int) -> Scene:
    """A whole photograph, upright and centred in a square, with everybody whom the paper's training set has.

    `Scene.labels` shows masks that cover each other with the later person in front; `Scene.photo_masks` keeps them
    whole.

    Args:
        folder: where the picture is read.
        photo: the picture and its people.
        side: of the square, px.

    Raises:
        DataError: the picture cannot be read.
    """
    plan = plan_square_letterbox(photo.height, photo.width, side=side)
    matrix = plan.input_from_frame.astype(np.float64)
    shown = [person for person in photo.people if is_taught(person)][:MAX_PEOPLE]
    labels = np.zeros((side, side), np.uint8)
    for number, person in enumerate(shown, 1):
        labels[_moved_mask(person.segmentation, photo, matrix, side, side)] = number
    keypoints = np.stack([p.keypoints for p in shown]) if shown else np.zeros((0, JOINTS, 3), np.float32)
    moved = keypoints.copy()
    moved[..., :2] = transform_points(matrix, keypoints[..., :2])
    moved[keypoints[..., 2] <= 0] = 0
    corners = np.stack([_moved_corners(p.box, matrix) for p in shown]) + 0.5 if shown else np.zeros((0, 4, 2))
    return Scene(
        image=square_letterbox(folder.image(photo), plan),
        labels=labels,
        keypoints=moved,
        has_mask=np.ones(len(shown), np.uint8),
        complete=False,
        max_iou=greatest_iou(np.array([p.box for p in shown])),
        boxes=np.concatenate((corners.min(1), corners.max(1)), axis=1),
        photo_masks=PhotoMasks(
            segmentations=tuple(p.segmentation for p in shown),
            height=photo.height,
            width=photo.width,
            canvas_from_photo=matrix,
        ),
    )


def _moved_mask(segmentation: Any, photo: Photo, canvas_from_photo: F64, height: int, width: int) -> NDArray[np.bool_]:
    mask = decode_mask(segmentation, photo.height, photo.width)
    moved: NDArray[np.bool_] = (
        cv2.warpAffine(mask * 255, canvas_from_photo, (width, height), flags=cv2.INTER_LINEAR) > 127
    )
    return moved


def _moved_corners(box: F64, canvas_from_photo: F64) -> F64:
    """(4, 2) corners of a photo's box on the canvas, in turn; a box counts px edges, points count px centres."""
    x0, y0, x1, y1 = box - 0.5
    return transform_points(canvas_from_photo, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))


def _box_in_view(box: F64, canvas_from_photo: F64, height: int, width: int) -> F64:
    """(4,) xyxy around a photo's box on the canvas, clipped to it; px edges."""
    corners = np.clip(_moved_corners(box, canvas_from_photo) + 0.5, 0, (width, height))
    return np.concatenate((corners.min(0), corners.max(0)))


def _region_of(people: Iterable[Person], photo: Photo, canvas_from_photo: F64, labels: U8) -> U8 | None:
    """`Scene.unlabelled` of people who are not listed, (H, W) as ``labels``, which hold the masks of the listed."""
    region = np.zeros_like(labels)
    for person in people:
        if person.segmentation is not None:
            region[_moved_mask(person.segmentation, photo, canvas_from_photo, *labels.shape)] = 1
        else:
            corners = np.round(_moved_corners(person.box, canvas_from_photo)).astype(np.int32)
            cv2.fillConvexPoly(region, corners, 1)
    region[labels > 0] = 0
    return region if region.any() else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _PhotoSource:
    folder: CocoFolder
    photos: list[Photo]
    weight: float
    complete: bool


class SceneDataset(torch.utils.data.Dataset[Scene]):
    """Random access to an endless, seeded stream of scenes; item ``i`` is a function of (seed, i).

    Raises:
        DataError: a file is missing or not what it should be, or the settings leave nothing to draw samples from.
    """

    def __init__(self, settings: TrainSettings) -> None:
        from training.compose import CutoutLibrary

        self.settings = settings
        folders = {source: open_source(settings.data, source) for source in settings.sources}
        self.sources = []
        for source, folder in folders.items():
            unseen = unseen_ids(folder.photos, source)
            photos = [
                p
                for p in folder.photos
                if p.image_id not in unseen
                and any(
                    is_taught(q) if settings.view == "letterbox" else q.has_keypoints and not q.ignore for q in p.people
                )
            ]
            if source.photo_weight > 0:
                if not photos:
                    raise DataError(
                        f"{source.annotations}: photo_weight is {source.photo_weight:g}, but no picture outside the "
                        "held-out ones has a person with keypoints"
                    )
                folder.require_files(photos)
                self.sources.append(
                    _PhotoSource(folder=folder, photos=photos, weight=source.photo_weight, complete=source.complete)
                )
        self.cutouts = CutoutLibrary(folders, settings)
        weights = np.array([settings.compose_weight, *(source.weight for source in self.sources)])
        if not weights.sum() > 0:
            raise DataError("no samples: set compose_weight or the photo_weight of a source above 0")
        self.share = weights / weights.sum()
        self.photos = [(source, photo) for source in self.sources for photo in source.photos]
        self._shuffled: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))  # epoch and its order

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size * max(1, int(os.environ.get("WORLD_SIZE", "1")))

    def scene(self, index: int) -> Scene:
        from training.augment import photometric
        from training.compose import compose_scene

        rng = np.random.default_rng((self.settings.seed, index))
        height, width = self.settings.canvas
        choice = 0
        if self.settings.order == "drawn":
            choice = int(rng.choice(len(self.share), p=self.share))
        if self.settings.order == "drawn" and choice == 0:
            scene = compose_scene(rng, self.cutouts, height, width, close_share=self.settings.close_share)
        else:
            if self.settings.order == "epochs":
                source, photo = self.photos[self._place_in_epoch(index)]
            else:
                source = self.sources[choice - 1]
                photo = source.photos[rng.integers(len(source.photos))]
            if self.settings.view == "letterbox":
                scene = letterbox_scene(source.folder, photo, height)
            else:
                backdrop = (
                    self.cutouts.background(rng, height, width)
                    if rng.random() < 0.6
                    else np.zeros((height, width, 3), np.uint8)
                )
                scene = photo_scene(rng, source.folder, photo, backdrop, complete=source.complete)
        return replace(scene, image=photometric(rng, scene.image)) if self.settings.photometric else scene

    def _place_in_epoch(self, index: int) -> int:
        """Which photograph sample ``index`` is: each epoch goes through all of them in a shuffled order of its own."""
        epoch, place = divmod(index, len(self.photos))
        if self._shuffled[0] != epoch:
            order = np.random.default_rng((self.settings.seed, 2, epoch)).permutation(len(self.photos))
            self._shuffled = (epoch, order)
        return int(self._shuffled[1][place])

    def __getitem__(self, index: int) -> Scene:
        return self.scene(index)


def open_source(data: Path, source: SourceSettings) -> CocoFolder:
    return CocoFolder(data / source.annotations, data / source.images)
