"""Scenes of two to four people who pass, hide each other, meet and come back, with exact truth for every frame.

Each person is one cut-out that slides along a scripted path, grows when coming nearer, sways and opens and closes the
legs while walking. Depth order is fixed, so the label map of a frame says exactly what is seen of whom. A scene depends
on its seed and on the list of cut-outs alone, to the byte; the picture is drawn only on request.

Cut-outs keep their pose while they move. A method that recognised people by limb proportions would profit from that
more than it deserves; ours does not look at them.

Convention: x, y in frame px, integer coordinates are pixel centres; world px differ from frame px by the camera's
offset only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kernels.coordinates import F32, F64, U8
from kernels.skeleton import FLIPPED_JOINTS
from training.compose import Cutout
from training.dataset import LABEL_COVERED

JOINTS = 17
SIZES = ((640, 360), (480, 270), (640, 480), (768, 432))
FRAME_RATES = (10.0, 12.5, 15.0, 25.0, 30.0)
FINE_S = 0.01  # step of the paths
SMOOTHING_S = 0.3  # nobody starts, stops or turns at once
STRIDE_HZ = 1.9  # steps a second at an ordinary walk
ORDINARY_SPEED = 0.8  # body heights a second
PILLAR_SHARE, PAN_SHARE, SHAKE_SHARE = 0.15, 0.3, 0.2  # of the scenes
MANOEUVRES = ("pass", "overtake", "meet", "hide", "leave")
MIN_VISIBLE_SHARE, MIN_VISIBLE_JOINTS = 0.15, 3  # with less of them to be seen people are not asked for


@dataclass(frozen=True, kw_only=True, eq=False)
class Walker:
    """One person and the whole way, in world px at steps of `FINE_S`."""

    image: U8  # (h, w, 3) RGB, about as large as drawn
    alpha: U8  # (h, w)
    keypoints: F64  # (17, 3) px of the cut-out
    x: F64  # of the feet
    feet_y: F64
    height_px: F64
    pace: F64  # 0..1: how much the legs move
    phase: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything that a seed decides."""

    seed: int
    manoeuvres: tuple[str, ...]
    width: int
    height: int
    fps: float
    frames: int
    walkers: tuple[Walker, ...]  # from back to front
    camera: F64  # (steps, 2) world px of the frame's corner
    pillar: tuple[float, float] | None  # world x of its edges
    background: U8  # (height, wide, 3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is seen of each person in one frame.

    Attributes:
        time_s: of the frame.
        labels: (H, W) uint8: 0 background, 1.. the person on top, 255 a thing.
        keypoints: (P, 17, 3): x, y in frame px; 2 seen, 1 hidden by somebody or something or outside the picture, 0
            not labelled. Hidden joints have their exact place too.
        boxes: (P, 4) x0, y0, x1, y1 of the seen px, end exclusive; zeros where none is.
        visible_share: (P,) seen px over all px of the body, those outside the picture included.
    """

    time_s: float
    labels: U8
    keypoints: F64
    boxes: F64
    visible_share: F64

    @property
    def asked_for(self) -> NDArray[np.bool_]:
        """(P,) people of whom enough is seen."""
        seen_joints = (self.keypoints[:, :, 2] == 2).sum(axis=1)
        return (self.visible_share >= MIN_VISIBLE_SHARE) & (seen_joints >= MIN_VISIBLE_JOINTS)


def make_scene(seed: int, cutouts: Sequence[Cutout], backgrounds: Sequence[U8] = ()) -> Scene:
    """Decide everything about one scene.

    Args:
        seed: of the scene.
        cutouts: whole people, see `Cutout`.
        backgrounds: RGB pictures without people; grey without any.
    """
    rng = np.random.default_rng([seed, 5])
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    seconds = float(rng.uniform(5.0, 7.0))
    steps = round(seconds / FINE_S) + 1
    people = int(rng.choice((2, 3, 4), p=(0.6, 0.25, 0.15)))
    body_px = height * float(np.exp(rng.uniform(np.log(0.32), np.log(0.95))))
    chosen = rng.permutation(len(cutouts))[:people]
    depths = np.sort(rng.uniform(0, 1, people))
    manoeuvres, ways = _ways(rng, people, steps, width / body_px)
    order = rng.permutation(people)  # who of the script stands how near
    walkers = []
    for place, actor in enumerate(order):
        nearness = 0.85 + 0.3 * depths[place]
        approach = float(rng.choice((0.0, 0.0, rng.uniform(-0.12, 0.12))))
        size = nearness * float(np.exp(rng.normal(0, 0.06))) * np.linspace(1 - approach, 1 + approach, steps)
        feet_y = height * (0.5 + rng.uniform(-0.03, 0.03)) + body_px * (0.5 * nearness + 0.1 * (depths[place] - 0.5))
        x = width / 2 + body_px * ways[actor]
        speed = np.abs(np.gradient(ways[actor], FINE_S))
        walkers.append(
            _walker(
                cutouts[int(chosen[actor])],
                mirrored=bool(rng.random() < 0.5),
                x=x,
                feet_y=np.full(steps, feet_y),
                height_px=body_px * size,
                pace=np.clip(speed / ORDINARY_SPEED, 0.0, 1.3),
                phase=float(rng.uniform(0, 2 * np.pi)),
            )
        )
    camera = _camera(rng, steps, width)
    pillar = None
    if rng.random() < PILLAR_SHARE:
        centre, half = width * rng.uniform(0.3, 0.7), body_px * rng.uniform(0.05, 0.2)
        pillar = (centre - half, centre + half)
    return Scene(
        seed=seed,
        manoeuvres=manoeuvres,
        width=width,
        height=height,
        fps=fps,
        frames=int(seconds * fps),
        walkers=tuple(walkers),
        camera=camera,
        pillar=pillar,
        background=_background(rng, backgrounds, camera, width, height),
    )


def _ways(rng: Generator, people: int, steps: int, room: float) -> tuple[tuple[str, ...], list[F64]]:
    """Everybody's feet, in body heights from the middle of the frame, at steps of `FINE_S`.

    The first two people do a manoeuvre together; each further one passes through.
    """
    manoeuvre = MANOEUVRES[rng.integers(len(MANOEUVRES))]
    middle = rng.uniform(0.4, 0.6) * steps * FINE_S
    pair = _pair(rng, manoeuvre, steps, middle, room)
    if rng.random() < 0.5:
        pair = [-way for way in pair]
    ways, names = list(pair), [manoeuvre]
    for _ in range(people - 2):
        direction, speed = rng.choice((-1.0, 1.0)), rng.uniform(0.3, 1.3)
        meets_s = rng.uniform(0.25, 0.75) * steps * FINE_S
        ways.append(_walk([(0.0, direction * speed)], steps, at=(meets_s, float(rng.uniform(-0.3, 0.3)))))
        names.append("pass")
    return tuple(names), ways


def _pair(rng: Generator, manoeuvre: str, steps: int, middle: float, room: float) -> list[F64]:
    place = float(rng.uniform(-0.2, 0.2)) * room
    fast, slow = rng.uniform(0.5, 1.5), rng.uniform(0.3, 1.2)
    if manoeuvre == "pass":
        return [
            _walk([(0.0, fast)], steps, at=(middle, place)),
            _walk([(0.0, -slow)], steps, at=(middle + rng.normal(0, 0.15), place)),
        ]
    if manoeuvre == "overtake":
        slow = rng.uniform(0.0, 0.45) * fast
        return [_walk([(0.0, fast)], steps, at=(middle, place)), _walk([(0.0, slow)], steps, at=(middle, place))]
    pause = rng.uniform(0.0, 1.5)
    leaves = middle + pause
    if manoeuvre == "meet":
        gap = rng.uniform(0.0, 0.35)
        return [
            _walk([(0.0, fast), (middle, 0.0), (leaves, -fast)], steps, at=(middle, place - gap / 2)),
            _walk([(0.0, -slow), (middle, 0.0), (leaves + 0.2, slow)], steps, at=(middle, place + gap / 2)),
        ]
    if manoeuvre == "hide":
        goes_on = fast if rng.random() < 0.5 else -fast
        shift = float(rng.uniform(-0.08, 0.08))
        return [
            _walk([(0.0, fast), (middle, 0.0), (leaves, goes_on)], steps, at=(middle, place + shift)),
            _walk([(0.0, rng.choice((0.0, 0.0, 0.15)))], steps, at=(middle, place)),
        ]
    outside = room / 2 + 0.35  # leave: out of the picture and back again
    turn = rng.uniform(0.45, 0.55) * steps * FINE_S
    back = turn + rng.uniform(0.2, 1.2)
    return [
        _walk([(0.0, fast), (turn, 0.0), (back, -fast)], steps, at=(turn, outside)),
        _walk([(0.0, rng.choice((0.0, -0.2, 0.2)))], steps, at=(turn, float(rng.uniform(-0.1, 0.35)) * room)),
    ]


def _walk(speeds: Sequence[tuple[float, float]], steps: int, *, at: tuple[float, float]) -> F64:
    """(steps,) places: speeds from given times on, smoothed; at one time the place is known."""
    times = np.arange(steps) * FINE_S
    speed = np.zeros(steps)
    for start, value in speeds:
        speed[times >= start] = value
    reach = round(SMOOTHING_S / FINE_S)
    padded = np.pad(speed, reach // 2, mode="edge")
    smooth = np.convolve(padded, np.ones(reach + 1 - reach % 2) / (reach + 1 - reach % 2), mode="same")
    way = np.cumsum(smooth[reach // 2 : reach // 2 + steps]) * FINE_S
    return way - np.interp(at[0], times, way) + at[1]


def _walker(cutout: Cutout, *, mirrored: bool, x: F64, feet_y: F64, height_px: F64, pace: F64, phase: float) -> Walker:
    image, alpha, keypoints = cutout.image, cutout.alpha, cutout.keypoints.astype(np.float64)
    if mirrored:
        image, alpha = image[:, ::-1], alpha[:, ::-1]
        keypoints = keypoints[FLIPPED_JOINTS]
        keypoints[:, 0] = alpha.shape[1] - 1 - keypoints[:, 0]
    scale = min(1.0, float(height_px.max()) / alpha.shape[0])
    if scale < 0.8:  # no aliasing: shrink by area once
        size = (max(2, round(alpha.shape[1] * scale)), max(2, round(alpha.shape[0] * scale)))
        sx, sy = size[0] / alpha.shape[1], size[1] / alpha.shape[0]
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(np.ascontiguousarray(alpha), size, interpolation=cv2.INTER_AREA)
        keypoints[:, 0], keypoints[:, 1] = sx * (keypoints[:, 0] + 0.5) - 0.5, sy * (keypoints[:, 1] + 0.5) - 0.5
    keypoints[cutout.keypoints[FLIPPED_JOINTS if mirrored else slice(None), 2] <= 0] = 0.0
    return Walker(
        image=np.ascontiguousarray(image),
        alpha=np.ascontiguousarray(alpha),
        keypoints=keypoints,
        x=x,
        feet_y=feet_y,
        height_px=height_px,
        pace=pace,
        phase=phase,
    )


def _camera(rng: Generator, steps: int, width: int) -> F64:
    times = np.arange(steps) * FINE_S
    offset = np.zeros((steps, 2))
    if rng.random() < PAN_SHARE:
        offset[:, 0] += width * rng.uniform(0.03, 0.12) * np.sin(times * rng.uniform(0.5, 1.5) + rng.uniform(0, 6.28))
    if rng.random() < SHAKE_SHARE:
        for axis in (0, 1):
            for hertz in (0.9, 2.3, 4.1):
                offset[:, axis] += width * 0.003 * np.sin(6.28 * hertz * times + rng.uniform(0, 6.28))
    return offset


def _background(rng: Generator, pictures: Sequence[U8], camera: F64, width: int, height: int) -> U8:
    """Large enough for all the camera sees, so that one crop of it is a frame's background."""
    low, high = np.floor(camera.min(axis=0)).astype(int), np.ceil(camera.max(axis=0)).astype(int)
    wide, tall = width + int(high[0] - low[0]) + 1, height + int(high[1] - low[1]) + 1
    if not pictures:
        return np.full((tall, wide, 3), 128, np.uint8)
    picture = pictures[rng.integers(len(pictures))]
    scale = max(wide / picture.shape[1], tall / picture.shape[0])
    size = (max(wide, round(picture.shape[1] * scale)), max(tall, round(picture.shape[0] * scale)))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[:tall, :wide])


def render(scene: Scene, *, pictures: bool = True) -> Iterator[tuple[U8 | None, Truth]]:
    """All frames of a scene in order.

    Args:
        scene: see `make_scene`.
        pictures: draw the (H, W, 3) RGB pictures; without them only the truth is made, several times as fast.
    """
    low = np.floor(scene.camera.min(axis=0))
    for index in range(scene.frames):
        time_s = index / scene.fps
        step = round(time_s / FINE_S)
        camera = scene.camera[step]
        image = None
        if pictures:
            x, y = np.rint(camera - low).astype(int)
            image = scene.background[y : y + scene.height, x : x + scene.width].astype(np.float32)
        labels = np.zeros((scene.height, scene.width), np.uint8)
        areas, poses = [], []
        for number, walker in enumerate(scene.walkers):
            area, pose = _draw(image, labels, walker, step, time_s, camera, number + 1)
            areas.append(area)
            poses.append(pose)
        if scene.pillar is not None:
            x0, x1 = (round(float(np.clip(edge - camera[0], 0, scene.width))) for edge in scene.pillar)
            labels[:, x0:x1] = LABEL_COVERED
            if image is not None:
                image[:, x0:x1] = (112, 104, 96)
        drawn = None if image is None else np.clip(image, 0, 255).astype(np.uint8)
        yield drawn, _truth(time_s, labels, np.stack(poses), np.array(areas, np.float64))


def _draw(
    image: F32 | None, labels: U8, walker: Walker, step: int, time_s: float, camera: F64, label: int
) -> tuple[int, F64]:
    """Draw one person over what is there; returns the px of the whole body, also outside, and (17, 3) joints."""
    h, w = walker.alpha.shape
    scale = float(walker.height_px[step]) / h
    pace = float(walker.pace[step])
    stride = 2 * np.pi * STRIDE_HZ / 2 * time_s + walker.phase
    lean = np.deg2rad(1.5) * pace * np.sin(stride)
    bob = 0.012 * h * pace * abs(np.sin(stride))
    foot = np.array([(w - 1) / 2, h - 1.0])
    place = np.array([walker.x[step], walker.feet_y[step]]) - camera
    linear = scale * np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    matrix = np.concatenate(
        (linear, (place - linear @ (foot + np.array([0.0, bob])))[:, None]), axis=1
    )  # frame_from_cutout
    opening, swing = 0.15 * pace * np.sin(2 * stride), 0.03 * h * pace * np.sin(stride)

    pose = walker.keypoints.copy()
    low = np.clip((pose[:, 1] / h - 0.5) / 0.5, 0.0, 1.0)  # legs only
    pose[:, 0] = foot[0] + (pose[:, 0] - foot[0]) * (1.0 + opening * low) + swing * low
    pose[:, :2] = pose[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    pose[walker.keypoints[:, 2] <= 0] = 0.0

    reach = 0.2 * w + abs(swing)
    corners = np.array([[-reach, -2], [w + reach, -2], [-reach, h + 1], [w + reach, h + 1]])
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    x0, y0 = np.floor(corners.min(axis=0)).astype(int)
    x1, y1 = np.ceil(corners.max(axis=0)).astype(int) + 1
    back = np.linalg.inv(matrix[:, :2])
    px, py = np.meshgrid(np.arange(x0, x1) - matrix[0, 2], np.arange(y0, y1) - matrix[1, 2])
    u, v = back[0, 0] * px + back[0, 1] * py, back[1, 0] * px + back[1, 1] * py
    low_map = np.clip((v / h - 0.5) / 0.5, 0.0, 1.0)
    u = foot[0] + (u - foot[0] - swing * low_map) / (1.0 + opening * low_map)
    maps = u.astype(np.float32), v.astype(np.float32)
    cover = cv2.remap(walker.alpha, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    area = int((cover > 127).sum())
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, labels.shape[1]), min(y1, labels.shape[0])
    if left < right and top < bottom:
        inside = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
        cover = cover[inside]
        labels[top:bottom, left:right][cover > 127] = label
        if image is not None:
            colour = cv2.remap(
                walker.image, maps[0][inside], maps[1][inside], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            weight = cover[..., None].astype(np.float32) / 255
            region = image[top:bottom, left:right]
            region += weight * (colour - region)
    return area, pose


def _truth(time_s: float, labels: U8, poses: F64, areas: F64) -> Truth:
    height, width = labels.shape
    boxes = np.zeros((len(poses), 4))
    seen = np.bincount(labels.ravel(), minlength=256)[1 : len(poses) + 1]
    for n, pose in enumerate(poses):
        columns, rows = np.rint(pose[:, 0]).astype(int), np.rint(pose[:, 1]).astype(int)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        on_top = labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        covered = (on_top > n + 1) | ~inside  # a joint may lie a px beside its own thin limb: that hides nothing
        pose[:, 2] = np.where(pose[:, 2] > 0, np.where(covered, 1, 2), 0)
        if seen[n]:
            mask = labels == n + 1
            mask_rows, mask_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes[n] = mask_columns[0], mask_rows[0], mask_columns[-1] + 1, mask_rows[-1] + 1
    return Truth(
        time_s=time_s,
        labels=labels,
        keypoints=poses,
        boxes=boxes,
        visible_share=seen / np.maximum(areas, 1.0),
    )
