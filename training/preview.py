"""A picture of what a run will learn from: `python -m training.preview --recipe F.json --data DIR --output sheet.png`.

Samples are drawn as training draws them, with who is visible where tinted, visible joints filled and hidden joints as
rings, and what the keypoint heads do not look at (`Scene.unlabelled`) whitened. A look at it before a long run finds
swapped sides, shifted masks and people nobody labelled.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kernels.coordinates import U8
from kernels.skeleton import LIMBS
from training.dataset import LABEL_COVERED, DataError, Scene, SceneDataset
from training.settings import settings_from_json

COLOURS = ((66, 135, 245), (245, 130, 48), (60, 180, 75), (230, 25, 160), (255, 225, 25), (145, 30, 180))
COVERED_COLOUR = (120, 120, 120)
UNLABELLED_COLOUR = (255, 255, 255)
LABEL_SHARE = 0.45  # of the label's colour in the tint
GAP_PX = 6


def draw_scene(scene: Scene, *, zoom: int = 1) -> U8:
    """(zoom H, zoom W, 3) RGB: labels and unlabelled as tints, limbs as lines, joints as discs or, if hidden, rings."""
    picture = scene.image.astype(np.float32)
    for label in np.unique(scene.labels[scene.labels > 0]).tolist():
        colour = COVERED_COLOUR if label == LABEL_COVERED else COLOURS[(label - 1) % len(COLOURS)]
        inside = scene.labels == label
        picture[inside] += LABEL_SHARE * (np.array(colour, np.float32) - picture[inside])
    if scene.unlabelled is not None:
        inside = scene.unlabelled > 0
        picture[inside] += LABEL_SHARE * (np.array(UNLABELLED_COLOUR, np.float32) - picture[inside])
    size = (zoom * scene.image.shape[1], zoom * scene.image.shape[0])
    canvas: U8 = cv2.resize(picture.astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    for index, pose in enumerate(scene.keypoints):
        colour = COLOURS[index % len(COLOURS)]
        points = [(round(zoom * (x + 0.5) - 0.5), round(zoom * (y + 0.5) - 0.5)) for x, y in pose[:, :2].tolist()]
        for a, b in LIMBS:
            if pose[a, 2] > 0 and pose[b, 2] > 0:
                cv2.line(canvas, points[a], points[b], (255, 255, 255), zoom, cv2.LINE_AA)
        for point, v in zip(points, pose[:, 2], strict=True):
            if v > 0:
                cv2.circle(canvas, point, zoom + 1, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(canvas, point, zoom + 1, colour if v > 1 else (0, 0, 0), -1 if v > 1 else zoom, cv2.LINE_AA)
    return canvas


def sheet_of(tiles: Sequence[U8], columns: int) -> U8:
    """Tiles of one size side by side and below one another, on white."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (index // columns) * (height + GAP_PX), (index % columns) * (width + GAP_PX)
        sheet[y : y + height, x : x + width] = tile
    return sheet


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="JSON file of settings, as for training.train")
    parser.add_argument("--data", type=Path, required=True, help="folder the recipe's sources are relative to")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--samples", type=int, nargs="+", default=list(range(6)), help="numbers of the samples to draw")
    parser.add_argument("--columns", type=int, default=3, help="samples side by side")
    parser.add_argument("--seed", type=int, help="overrides the recipe")
    options = parser.parse_args(arguments)
    try:
        recipe = json.loads(options.recipe.read_text())
        dataset = SceneDataset(settings_from_json(recipe, data=options.data, output=options.output, seed=options.seed))
        scenes = [dataset.scene(index) for index in options.samples]
        sheet = sheet_of([draw_scene(scene, zoom=2) for scene in scenes], max(1, options.columns))
        if options.output.suffix.lower() != ".png":
            raise DataError(f"cannot write {options.output}: expected a name that ends in .png")
        if not cv2.imwrite(str(options.output), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
            raise DataError(f"cannot write {options.output}: is its folder there and writable?")
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for index, scene in zip(options.samples, scenes, strict=True):
        hidden = int((scene.keypoints[..., 2] == 1).sum())
        overlap = f", greatest box IoU {scene.max_iou.max():.2f}" if len(scene.max_iou) else ""
        print(f"sample {index}: {len(scene.keypoints)} people, {hidden} hidden joints{overlap}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
