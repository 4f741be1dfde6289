"""Make the demo clip: two people who cross twice and hide each other, filmed by a hand-held camera.

    python examples/make_demo_clip.py out/demo_input.mp4 [--truth out/demo_truth.json]

The person is the portrait of Eileen Collins by NASA (public domain) that scikit-image ships as `data.astronaut`; the
wall is its `data.gravel`. Both lie inside the scikit-image wheel, so nothing is downloaded. She walks in from the left,
a mirrored copy from the right; the one in front is the larger one, and on the way back the order is the other way
round. `--truth` writes what is visible of each of them in every frame, as COCO annotations with masks, joints and a
track id.

Convention: integer coordinates are pixel centres; points are (x, y); matrices are (2, 3), `target_from_source`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pycocotools.mask
from numpy.typing import NDArray
from skimage import data

WIDTH, HEIGHT, FPS, SECONDS = 1280, 720, 25, 8
FRAMES = FPS * SECONDS

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_PORTRAIT_SIDE = 512
_BOTTOM_BELOW_FRAME_PX = (
    56  # the portrait ends at the chest; swaying and camera shake must never lift its edge into view
)
_OUTLINE = Path(__file__).with_name("astronaut_outline.json")

# Joints that can be seen in the portrait, in its pixels, by COCO index. The left elbow and wrist are behind the helmet
# that she holds, and the picture ends above the hips.
_JOINTS = {
    0: (223.0, 122.0),
    1: (247.5, 103.0),
    2: (202.0, 101.0),
    3: (272.0, 128.0),
    4: (176.5, 124.0),
    5: (322.0, 272.0),
    6: (85.0, 265.0),
    8: (52.0, 425.0),
    10: (135.0, 497.0),
}
_MIRRORED_JOINT = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


@dataclass(frozen=True)
class CutOut:
    """The portrait without its background."""

    colour: F32  # (512, 512, 3) RGB 0..255, already multiplied with alpha
    alpha: F32  # (512, 512) 0..1: the person with the helmet in her arm
    person: F32  # (512, 512) 0..1: the person alone, as a COCO mask would have it


@dataclass(frozen=True)
class Actor:
    """One of the two people at one moment."""

    track: int
    mirrored: bool
    frame_from_portrait: F64


@dataclass(frozen=True)
class Layer:
    """One actor drawn into the box (rows, columns) of the frame that it fills; arrays as in `CutOut`."""

    actor: Actor
    box: tuple[slice, slice]
    colour: F32
    alpha: F32
    person: F32


@dataclass(frozen=True)
class Visible:
    """What can be seen of one actor in one frame."""

    track: int
    mask: NDArray[np.bool_]  # (720, 1280)
    keypoints: F32  # (17, 3): x, y in frame px; 2 visible, 1 hidden by the other person, 0 outside or not labelled


def render(index: int) -> tuple[U8, list[Visible]]:
    """Draw frame `index` of `FRAMES`: (720, 1280, 3) uint8 RGB, and what is visible of each person, by track."""
    if not 0 <= index < FRAMES:
        raise ValueError(f"frame must be from 0 to {FRAMES - 1}, got {index}")
    turn = 2 * math.pi * index / FRAMES
    camera = _frame_from_world(turn)
    wall_matrix = _product(camera, _world_from_wall())
    image = cv2.warpAffine(_wall(), wall_matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    covered = np.zeros((HEIGHT, WIDTH), np.bool_)
    visible = []
    layers = [_warp(actor) for actor in _actors(turn, camera)]
    for layer in layers:  # painted from back to front
        image[layer.box] = image[layer.box] * (1 - layer.alpha[..., None]) + layer.colour
    for layer in reversed(layers):  # hidden from front to back
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask[layer.box] = (layer.person > 0.5) & ~covered[layer.box]
        visible.append(Visible(layer.actor.track, mask, _keypoints(layer.actor, covered)))
        covered[layer.box] |= (layer.alpha > 0.5) | (layer.person > 0.5)  # the drawn edge lies a little inside
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), sorted(visible, key=lambda item: item.track)


def write_clip(path: Path, *, frames: int = FRAMES, truth_path: Path | None = None) -> None:
    """Encode the first `frames` frames with H.264; the same bytes every time with the same libraries."""
    truth = _empty_truth()
    with av.open(str(path), "w") as container:
        # Two encoder threads whatever the machine: their number changes the bytes.
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast", "threads": "2"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for index in range(frames):
            image, visible = render(index)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            if truth_path is not None:
                _add_truth(truth, index, visible)
        container.mux(stream.encode(None))
    if truth_path is not None:
        truth_path.write_text(json.dumps(truth))


def lowest_visible_edge_y() -> float:
    """Smallest frame y, over all frames, of the straight edge where the portrait ends: must stay below the frame."""
    edge = np.array([[0, _PORTRAIT_SIDE - 1, 1], [_PORTRAIT_SIDE - 1, _PORTRAIT_SIDE - 1, 1]], np.float64)
    turns = (2 * math.pi * index / FRAMES for index in range(FRAMES))
    return min(
        float((edge @ actor.frame_from_portrait.T)[:, 1].min())
        for turn in turns
        for actor in _actors(turn, _frame_from_world(turn))
    )


@lru_cache(maxsize=1)
def cut_out() -> CutOut:
    """Cut the person out along the committed outline, with soft, clean edges."""
    outline = json.loads(_OUTLINE.read_text())
    person = _fill([outline["person"]])
    alpha = _fill([outline["person"], outline["helmet"]])
    # Pixels at the edge still hold the old background: take their colour from the nearest one well inside.
    inside = cv2.erode(alpha, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)), borderValue=1) > 0.99
    _, label = cv2.distanceTransformWithLabels(
        np.where(inside, 0, 255).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    portrait = data.astronaut().astype(np.float32)
    colour_of_label = np.zeros((int(label.max()) + 1, 3), np.float32)
    colour_of_label[label[inside]] = portrait[inside]
    colour = np.where(inside[..., None], portrait, cv2.GaussianBlur(colour_of_label[label], (0, 0), 0.8))
    soft = np.clip((cv2.GaussianBlur(alpha, (0, 0), 0.8) - 0.3) / 0.6, 0, 1).astype(np.float32)
    return CutOut(colour=colour * soft[..., None], alpha=soft, person=person)


def _fill(polygons: Sequence[Sequence[Sequence[float]]]) -> F32:
    """Cover of each portrait pixel by the union of polygons, 0..1, from four by four samples."""
    fine = np.zeros((_PORTRAIT_SIDE * 4, _PORTRAIT_SIDE * 4), np.uint8)
    for polygon in polygons:
        points = np.array(polygon) * 4 + 1.5  # pixel index -> index of the finer grid
        cv2.fillPoly(fine, [np.rint(points * 16).astype(np.int32)], 255, shift=4)
    return cv2.resize(fine, (_PORTRAIT_SIDE, _PORTRAIT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


@lru_cache(maxsize=1)
def _wall() -> U8:
    """Rough stone: gravel, tiled with mirrored copies so that no seam shows, out of focus, lit from the upper left."""
    stone = cv2.resize(data.gravel(), None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    row = np.hstack([stone, stone[:, ::-1]])
    tiles = cv2.GaussianBlur(row, (0, 0), 1.2)
    contrast = (tiles - tiles.mean()) * 0.7 + 118
    tinted = contrast[..., None] * np.array([0.84, 0.92, 0.98], np.float32)
    y, x = np.mgrid[: tiles.shape[0], : tiles.shape[1]].astype(np.float32)
    light = 1.2 - 0.35 * x / tiles.shape[1] - 0.3 * y / tiles.shape[0]
    return np.clip(tinted * light[..., None], 0, 255).astype(np.uint8)


def _world_from_wall() -> F64:
    height, width = _wall().shape[:2]
    return np.array([[1, 0, (WIDTH - width) / 2], [0, 1, (HEIGHT - height) / 2]])


def _frame_from_world(turn: float) -> F64:
    """Slow pan and zoom plus the shake of a hand; never wider than the world as the actors were placed in it."""
    zoom = 1.045 + 0.04 * math.sin(turn + 0.7)
    pan_x = 26 * math.sin(turn) + 3.0 * math.sin(11 * turn) + 1.5 * math.sin(23 * turn + 1)
    pan_y = 7 * math.sin(2 * turn + 0.4) + 2.5 * math.sin(13 * turn + 2) + 1.2 * math.sin(29 * turn)
    tilt = math.radians(0.5 * math.sin(3 * turn + 1))
    return _similarity(
        zoom, tilt, ((WIDTH - 1) / 2, (HEIGHT - 1) / 2), ((WIDTH - 1) / 2 + pan_x, (HEIGHT - 1) / 2 + pan_y)
    )


def _actors(turn: float, camera: F64) -> list[Actor]:
    """Both people at one moment, the one in the back first."""
    foot = ((_PORTRAIT_SIDE - 1) / 2, float(_PORTRAIT_SIDE - 1))  # middle of the lower edge of the portrait
    actors = []
    for track, side, mirrored in ((1, -1, False), (2, 1, True)):
        scale = 1.12 + 0.2 * -side * math.sin(turn) + (0.04 if mirrored else 0)
        x = (WIDTH - 1) / 2 + side * 350 * math.cos(turn)
        y = HEIGHT - 1 + _BOTTOM_BELOW_FRAME_PX + 6 * math.sin(8 * turn + track)
        lean = math.radians(2.0 * math.sin(4 * turn + 2 * track))
        world_from_portrait = _similarity(scale, lean, foot, (x, y))
        if mirrored:
            world_from_portrait = _product(world_from_portrait, np.array([[-1, 0, _PORTRAIT_SIDE - 1], [0, 1, 0]]))
        actors.append(Actor(track, mirrored, _product(camera, world_from_portrait)))
    front_last = actors[::-1] if math.sin(turn) >= 0 else actors
    return front_last


def _warp(actor: Actor) -> Layer:
    """The cut-out in frame pixels, only as large as its box."""
    last = _PORTRAIT_SIDE - 1
    corners = (
        np.array([[0, 0, 1], [last, 0, 1], [0, last, 1], [last, last, 1]], np.float64) @ actor.frame_from_portrait.T
    )
    left, top = (int(max(0, value)) for value in np.floor(corners.min(0)))
    right, bottom = (
        int(min(limit, value + 1)) for limit, value in zip((WIDTH, HEIGHT), np.ceil(corners.max(0)), strict=True)
    )
    box_from_portrait = actor.frame_from_portrait - [[0, 0, left], [0, 0, top]]
    source = cut_out()
    colour, alpha, person = (
        cv2.warpAffine(plane, box_from_portrait, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
        for plane in (source.colour, source.alpha, source.person)
    )
    return Layer(actor, (slice(top, bottom), slice(left, right)), colour, alpha, person)


def _keypoints(actor: Actor, covered: NDArray[np.bool_]) -> F32:
    keypoints = np.zeros((17, 3), np.float32)
    for joint, (x, y) in _JOINTS.items():
        frame_x, frame_y = actor.frame_from_portrait @ np.array([x, y, 1])
        column, row = round(frame_x), round(frame_y)
        if 0 <= column < WIDTH and 0 <= row < HEIGHT:
            name = _MIRRORED_JOINT[joint] if actor.mirrored else joint
            keypoints[name] = frame_x, frame_y, 1 if covered[row, column] else 2
    return keypoints


def _similarity(scale: float, angle: float, pivot: tuple[float, float], target: tuple[float, float]) -> F64:
    """Turn and scale about `pivot`, which lands on `target`."""
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[a, -b, target[0] - a * pivot[0] + b * pivot[1]], [b, a, target[1] - b * pivot[0] - a * pivot[1]]])


def _product(outer: F64, inner: F64) -> F64:
    return np.hstack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]])


def _empty_truth() -> dict[str, Any]:
    return {
        "info": {"description": "what is visible in the demo clip, exact by construction"},
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }


def _add_truth(truth: dict[str, Any], index: int, visible: Sequence[Visible]) -> None:
    image_id = index + 1
    truth["images"].append({"id": image_id, "file_name": f"{index:06d}.png", "width": WIDTH, "height": HEIGHT})
    for person in visible:
        if not person.mask.any():
            continue
        rle = pycocotools.mask.encode(np.asfortranarray(person.mask.astype(np.uint8)))
        truth["annotations"].append(
            {
                "id": len(truth["annotations"]) + 1,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "track": person.track,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
                "area": int(person.mask.sum()),
                "bbox": [float(value) for value in pycocotools.mask.toBbox(rle)],
                "keypoints": [round(float(value), 2) for value in person.keypoints.ravel()],
                "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo clip: two people who cross and hide each other.")
    parser.add_argument("output", type=Path, help="the .mp4 to write")
    parser.add_argument("--truth", type=Path, help="also write the exact visible masks and joints, as COCO JSON")
    arguments = parser.parse_args()
    for path in filter(None, (arguments.output, arguments.truth)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(arguments.output, truth_path=arguments.truth)
    print(f"{arguments.output}: {FRAMES} frames, {WIDTH}x{HEIGHT}, {FPS} fps")


if __name__ == "__main__":
    main()
