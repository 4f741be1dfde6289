"""Occlusion by composition: scenes of one to six cut-out people whose visible masks and hidden joints are known
exactly.

People are cut out of photographs with masks, placed on backgrounds in depth order (contact pairs at the same scale
among them), and things are pasted in front of some of them. Where a person is covered the label map shows who covers; a
covered joint becomes v = 1 (labelled but hidden), a joint outside the picture v = 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kernels.coordinates import F32, F64, U8
from training.dataset import (
    LABEL_COVERED,
    CocoFolder,
    DataError,
    Scene,
    decode_mask,
    greatest_iou,
    visible_box,
    warp_keypoints,
)
from training.holdout import unseen_ids
from training.settings import SourceSettings, TrainSettings

PEOPLE_SHARE = (0.18, 0.30, 0.22, 0.14, 0.09, 0.07)  # of scenes with 1..6 people
MAX_CUTOUT_HEIGHT_PX = 420  # people are rarely drawn larger; keeps a few thousand of them in memory
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.1, 60  # people less visible than this are drawn but neither listed nor background
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cutout:
    """One person lifted out of a photograph, in px of the crop."""

    image: U8  # (h, w, 3) RGB
    alpha: U8  # (h, w) 0..255
    keypoints: F32  # (17, 3)
    cut_below: bool  # the photograph's border cuts the body at the bottom
    origin: str = ""  # file name of the photograph and the person's number in it


class CutoutLibrary:
    """All cut-out people and backgrounds of a run, in memory (worker processes share it).

    Without composed scenes (``compose_weight`` 0) nobody is cut out and no backgrounds are needed.

    Raises:
        DataError: there are no people or backgrounds to compose scenes of, or the folders of backgrounds hold none.
    """

    def __init__(self, folders: Mapping[SourceSettings, CocoFolder], settings: TrainSettings) -> None:
        composes = settings.compose_weight > 0
        self.groups: list[list[Cutout]] = []
        weights = []
        for source, folder in folders.items():
            if composes and source.cutout_weight > 0:
                self.groups.append(cut_out_people(folder, without=unseen_ids(folder.photos, source)))
                weights.append(source.cutout_weight)
        if composes and (not self.groups or not all(self.groups)):
            raise DataError("composition needs a source with masks and keypoints and cutout_weight > 0; there is none")
        self.share = np.array(weights) / sum(weights) if weights else np.zeros(0)
        self.backgrounds = [
            picture for folder in settings.backgrounds for picture in read_pictures(settings.data / folder)
        ]
        if not self.backgrounds and (composes or settings.backgrounds):
            given = f"no pictures ({', '.join(PICTURE_SUFFIXES)}) in {', '.join(settings.backgrounds)}"
            lacking = given if settings.backgrounds else "composition needs pictures without people"
            raise DataError(f"{lacking}: set `backgrounds` to at least one folder of them")

    def person(self, rng: Generator) -> Cutout:
        group = self.groups[int(rng.choice(len(self.groups), p=self.share))]
        return group[rng.integers(len(group))]

    def background(self, rng: Generator, height: int, width: int) -> U8:
        """A random, possibly mirrored crop of a background, (height, width) px; black if the run has none."""
        if not self.backgrounds:
            return np.zeros((height, width, 3), np.uint8)
        return random_crop(rng, self.backgrounds, height, width)


def random_crop(rng: Generator, pictures: Sequence[U8], height: int, width: int) -> U8:
    """A random, possibly mirrored crop of one of the pictures, scaled to (height, width) px."""
    picture = pictures[rng.integers(len(pictures))]
    full_h, full_w = picture.shape[:2]
    side = rng.uniform(0.35, 1.0)
    crop_h = max(8, int(side * min(full_h, full_w * height / width)))
    crop_w = max(8, min(full_w, int(crop_h * width / height)))
    y, x = rng.integers(full_h - crop_h + 1), rng.integers(full_w - crop_w + 1)
    crop = picture[y : y + crop_h, x : x + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    shrinks = crop_h > height
    return cv2.resize(
        np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def read_pictures(folder: Path) -> list[U8]:
    """The pictures of a folder as RGB, in the order of their names; none if there is no folder.

    Raises:
        DataError: a file that is named like a picture is none.
    """
    pictures = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        picture = cv2.imdecode(np.frombuffer(path.read_bytes() or b"0", np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise DataError(f"{path}: expected a picture, got {path.stat().st_size} bytes that are none")
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return pictures


def cut_out_people(folder: CocoFolder, *, without: Collection[int]) -> list[Cutout]:
    """Everybody with a mask in one piece and at least four joints, but for the pictures with the given ids.

    Raises:
        DataError: a picture or a mask cannot be read.
    """
    cutouts = []
    for photo in folder.photos:
        people = [
            (number, p)
            for number, p in enumerate(photo.people)
            if p.segmentation is not None and not p.crowd and (p.keypoints[:, 2] > 0).sum() >= 4
        ]
        if not people or photo.image_id in without:
            continue
        image = folder.image(photo)
        for number, person in people:
            mask = decode_mask(person.segmentation, photo.height, photo.width)
            if mask.sum() < 900 or is_in_pieces(mask):
                continue
            cutouts.append(cut_out(image, mask, person.keypoints, origin=f"{photo.file_name}#{number}"))
    return cutouts


def is_in_pieces(mask: U8) -> bool:
    """Whether something in front splits the person: pasted elsewhere the parts would float."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = np.sort(stats[1:count, cv2.CC_STAT_AREA])
    return bool(len(areas) > 1 and areas[-1] < 0.9 * areas.sum())


def cut_out(image: U8, mask: U8, keypoints: F32, *, origin: str = "") -> Cutout:
    """Lift one person, (H, W) 0 or 1, out of an RGB photograph."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = max(rows[0] - 2, 0), rows[-1] + 3, max(columns[0] - 2, 0), columns[-1] + 3
    cut_below = bool(rows[-1] >= mask.shape[0] - 3)
    tight = cv2.erode(mask, np.ones((3, 3), np.uint8))  # leaves the old background's fringe behind
    soft = cv2.GaussianBlur(tight[y0:y1, x0:x1] * 255, (0, 0), 0.8)
    crop = image[y0:y1, x0:x1]
    moved = keypoints.copy()
    moved[moved[:, 2] > 0, :2] -= (x0, y0)
    scale = min(1.0, MAX_CUTOUT_HEIGHT_PX / crop.shape[0])
    if scale < 1.0:
        size = (max(2, round(crop.shape[1] * scale)), MAX_CUTOUT_HEIGHT_PX)
        sx, sy = size[0] / crop.shape[1], size[1] / crop.shape[0]
        crop, soft = (
            cv2.resize(crop, size, interpolation=cv2.INTER_AREA),
            cv2.resize(soft, size, interpolation=cv2.INTER_AREA),
        )
        moved[:, 0], moved[:, 1] = sx * moved[:, 0] + (sx - 1) / 2, sy * moved[:, 1] + (sy - 1) / 2
        moved[moved[:, 2] <= 0] = 0
    return Cutout(
        image=np.ascontiguousarray(crop),
        alpha=np.ascontiguousarray(soft),
        keypoints=moved,
        cut_below=cut_below,
        origin=origin,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """A cut-out person where it stands on the canvas."""

    cutout: Cutout
    matrix: F64  # canvas_from_cutout
    mirrored: bool
    box: F64  # x0, y0, x1, y1 of the placed crop on the canvas


def turned(rng: Generator, cutout: Cutout, drawn_height: float) -> tuple[F64, bool, F64, F64]:
    """A random pose of a cut-out on the canvas, still without a place.

    Returns:
        (2, 2) linear part of canvas_from_cutout, whether it mirrors, and the (2,) low and high corner of the crop then.
    """
    h, w = cutout.alpha.shape
    scale = drawn_height / h
    angle = np.deg2rad(rng.normal(0, 7) if rng.random() < 0.9 else rng.uniform(-45, 45))
    if cutout.cut_below:
        angle *= 0.4
    mirrored = bool(rng.random() < 0.5)
    linear = (
        scale
        * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    )
    corners = (np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]]) @ linear.T).astype(np.float64)
    return linear, mirrored, corners.min(0), corners.max(0)


def at_offset(cutout: Cutout, linear: F64, offset: F64, low: F64, high: F64, *, mirrored: bool) -> Placement:
    """What `turned` gave, moved by ``offset`` px."""
    matrix = np.concatenate((linear, offset[:, None]), axis=1)
    return Placement(cutout=cutout, matrix=matrix, mirrored=mirrored, box=np.concatenate((low + offset, high + offset)))


def place(
    rng: Generator,
    cutout: Cutout,
    drawn_height: float,
    near: Placement | None,
    height: int,
    width: int,
    *,
    close: bool = False,
) -> Placement:
    """Somewhere on the canvas, or in touch with somebody who stands there; cut-off people at its lower border.

    ``close``: so near to them that one hides most of the other.
    """
    linear, mirrored, low, high = turned(rng, cutout, drawn_height)
    drawn_w, drawn_h = high - low
    if near is not None:
        side = rng.choice((-1.0, 1.0))
        if close:
            gap = rng.uniform(0.0, 0.3)
        else:
            gap = rng.uniform(0.05, 0.55) if rng.random() < 0.75 else rng.uniform(0.55, 1.2)
        centre_x = (near.box[0] + near.box[2]) / 2 + side * gap * max(near.box[2] - near.box[0], drawn_w)
        bottom = near.box[3] + rng.normal(0, 0.05) * drawn_h
    else:
        centre_x = rng.uniform(0.05, 0.95) * width
        bottom = rng.uniform(max(0.45 * height, 0.35 * drawn_h), height + 0.35 * drawn_h)
    if cutout.cut_below and rng.random() < 0.9:
        bottom = max(bottom, height + 0.02 * drawn_h)
    offset = np.array([centre_x - drawn_w / 2, bottom - drawn_h]) - low
    return at_offset(cutout, linear, offset, low, high, mirrored=mirrored)


def _match_light(rng: Generator, cutout: U8, alpha: U8, background: U8) -> F32:
    """The cut-out with its own random exposure, drawn part of the way to the background's brightness."""
    light = cutout.astype(np.float32)
    inside = alpha > 127
    if inside.any():
        pull = rng.uniform(0.0, 0.5)
        light += pull * (float(background.mean()) - float(cutout[inside].mean()))
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3)
    result: F32 = np.clip(light * gain.astype(np.float32) + np.float32(rng.normal(0, 8)), 0, 255).astype(np.float32)
    return result


def paint(rng: Generator, image: F32, labels: U8, placement: Placement, label: int) -> NDArray[np.bool_]:
    """Draw one person over what is there; returns the px of the canvas that the whole body takes, (H, W)."""
    height, width = labels.shape
    whole = np.zeros((height, width), np.bool_)
    x0, y0 = np.maximum(np.floor(placement.box[:2]).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(placement.box[2:]).astype(int) + 2, (width, height))
    if x1 <= x0 or y1 <= y0:
        return whole
    matrix = placement.matrix - np.array([[0, 0, x0], [0, 0, y0]])
    size = (int(x1 - x0), int(y1 - y0))
    source, alpha = placement.cutout.image, placement.cutout.alpha
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.6:  # no aliasing: shrink by area first
        small = (max(2, round(source.shape[1] * scale)), max(2, round(source.shape[0] * scale)))
        sx, sy = small[0] / source.shape[1], small[1] / source.shape[0]
        source, alpha = (
            cv2.resize(source, small, interpolation=cv2.INTER_AREA),
            cv2.resize(alpha, small, interpolation=cv2.INTER_AREA),
        )
        back = np.array([[1 / sx, 0, (1 / sx - 1) / 2], [0, 1 / sy, (1 / sy - 1) / 2], [0, 0, 1]])
        matrix = matrix @ back
    region = image[y0:y1, x0:x1]
    lit = _match_light(rng, source, alpha, region)
    warped = cv2.warpAffine(lit, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(alpha, matrix, size, flags=cv2.INTER_LINEAR)
    weight = cover[..., None].astype(np.float32) / 255
    region += weight * (warped - region)
    inside = cover > 127
    labels[y0:y1, x0:x1][inside] = label
    whole[y0:y1, x0:x1] = inside
    return whole


def occluder_shape(rng: Generator, height: int, width: int, box: F64) -> U8:
    """A filled random blob, bar or slanted panel over part of a person's box, (height, width) 0 or 255."""
    shape = np.zeros((height, width), np.uint8)
    w, h = max(box[2] - box[0], 8), max(box[3] - box[1], 8)
    centre = (int(rng.uniform(box[0], box[2])), int(rng.uniform(box[1] + 0.2 * h, box[3])))
    kind = rng.integers(3)
    if kind == 0:
        axes = (int(rng.uniform(0.15, 0.5) * w) + 2, int(rng.uniform(0.08, 0.3) * h) + 2)
        cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    elif kind == 1:
        size = (rng.uniform(0.3, 1.6) * w, rng.uniform(0.04, 0.35) * h)
        corners = cv2.boxPoints((centre, size, float(rng.choice((0.0, 90.0)) + rng.normal(0, 8))))
        cv2.fillPoly(shape, [corners.astype(np.int32)], 255)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        radius = rng.uniform(0.12, 0.4) * np.minimum(w * 1.5, h)
        points = np.stack((np.cos(angles), np.sin(angles)), 1) * radius * rng.uniform(0.6, 1.0, (7, 1)) + centre
        cv2.fillPoly(shape, [points.astype(np.int32)], 255)
    return shape


def compose_scene(
    rng: Generator, library: CutoutLibrary, height: int, width: int, *, close_share: float = 0.0
) -> Scene:
    """Render one scene with exact visible masks, (height, width) px; everybody is listed unless nearly invisible.

    ``close_share``: of the people beside somebody, as good as in the same place.
    """
    image = library.background(rng, height, width).astype(np.float32)
    labels = np.zeros((height, width), np.uint8)
    count = 1 + int(rng.choice(len(PEOPLE_SHARE), p=PEOPLE_SHARE))
    low, high = (0.2, 1.6) if count < 3 else (0.14, 1.0)
    scene_height = height * np.exp(rng.uniform(np.log(low), np.log(high)))
    placements: list[Placement] = []
    for _ in range(count):
        cutout = library.person(rng)
        drawn = scene_height * np.exp(rng.normal(0, 0.16)) * (0.65 if cutout.cut_below else 1.0)
        drawn = float(np.clip(drawn, 16, 2.2 * height))
        near = placements[rng.integers(len(placements))] if placements and rng.random() < 0.72 else None
        close = near is not None and close_share > 0 and rng.random() < close_share
        placements.append(place(rng, cutout, drawn, near, height, width, close=close))
    by_depth = sorted(placements, key=lambda p: float(p.box[3])) if rng.random() < 0.6 else placements
    occluder_after = int(rng.integers(count)) if rng.random() < 0.35 else -1

    areas, keypoints = [], []
    for index, placement in enumerate(by_depth):
        areas.append(int(paint(rng, image, labels, placement, index + 1).sum()))
        keypoints.append(
            warp_keypoints(
                placement.matrix, placement.cutout.keypoints[None], height, width, mirrored=placement.mirrored
            )[0]
        )
        if index == occluder_after:
            shape = occluder_shape(rng, height, width, by_depth[rng.integers(index + 1)].box)
            inside = shape > 0
            image[inside] = library.background(rng, height, width)[inside]
            labels[inside] = LABEL_COVERED
    return _listed_scene(np.clip(image, 0, 255).astype(np.uint8), labels, np.stack(keypoints), np.array(areas))


def mark_hidden_joints(keypoints: F32, labels: U8) -> None:
    """Set v = 1 where somebody or something painted later covers a joint; (N, 17, 3) in the order of painting."""
    for index, pose in enumerate(keypoints):
        for joint in np.flatnonzero(pose[:, 2] > 0):
            x, y = round(float(pose[joint, 0])), round(float(pose[joint, 1]))
            on_top = labels[min(max(y, 0), labels.shape[0] - 1), min(max(x, 0), labels.shape[1] - 1)]
            if on_top > index + 1:
                pose[joint, 2] = 1


def _listed_scene(image: U8, labels: U8, keypoints: F32, areas: F64) -> Scene:
    """Mark hidden joints and drop people of whom next to nothing is left: what is left of them is unlabelled."""
    n = len(keypoints)
    visible_px = np.bincount(labels.ravel(), minlength=256)[1 : n + 1]
    kept = []
    mark_hidden_joints(keypoints, labels)
    for index in range(n):
        pose = keypoints[index]
        enough = visible_px[index] >= max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * areas[index])
        if enough and (pose[:, 2] > 0).sum() >= 3:
            kept.append(index)
    renumber = np.full(256, LABEL_COVERED, np.uint8)
    renumber[0] = 0
    for new, old in enumerate(kept):
        renumber[old + 1] = new + 1
    dropped = np.isin(labels, [old + 1 for old in range(n) if old not in kept])
    relabelled = renumber[labels]
    boxes = [visible_box(relabelled, new + 1) for new in range(len(kept))]
    return Scene(
        image=image,
        labels=relabelled,
        keypoints=keypoints[kept],
        has_mask=np.ones(len(kept), np.uint8),
        complete=True,
        max_iou=greatest_iou(np.array(boxes)),
        unlabelled=dropped.astype(np.uint8) if dropped.any() else None,
    )
