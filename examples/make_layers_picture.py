"""Make the picture of the layers in README.md: one frame of the demo clip, once for each layer.

    python examples/make_demo_clip.py out/demo_input.mp4
    python -m examples.make_layers_picture out/demo_input.mp4 docs/images/layers.jpg

The frame comes late in the clip, so that `remove` has seen some of the scene behind the people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

import pose2seg
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.covered_frames import CoveredFrames
from pipeline.layers.options import ChosenPeople
from pipeline.layers.pictures import NewBackground, Remover, blur, cutout, matte, outline, pixelate
from pipeline.overlay import draw_text

COLUMNS, TILE_WIDTH, GAP = 3, 400, 6
CHECKER_PX = 24
FRAME = 60
QUALITY = 85


def over_checkers(picture: np.ndarray) -> np.ndarray:
    """What is transparent becomes the chess board that editors show."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] // CHECKER_PX
    board = np.where((rows + columns) % 2, 210, 165)[:, :, None]
    share = picture[:, :, 3:] / 255.0
    return (picture[:, :, :3] * share + board * (1 - share)).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("output", type=Path)
    parser.add_argument("--frame", type=int, default=FRAME)
    options = parser.parse_args(arguments)
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=True, steady=True)
    everybody, first = ChosenPeople(), ChosenPeople(ids=frozenset({1}), others=False)
    covered = CoveredFrames(maker, everybody, frames=60)
    others = CoveredFrames(maker, ChosenPeople(ids=frozenset({1})), frames=60)
    remover = Remover()
    paints = {
        "cutout": cutout(maker, everybody),
        "cutout, --layer-ids 1": cutout(maker, first),
        "matte": matte(maker, everybody),
        "outline": outline(maker, everybody, alone=False),
        "background, #00b140": NewBackground(maker, everybody, (0, 177, 64)),
        "background, blur": NewBackground(maker, everybody, None),
        "blur, --layer-ids not:1": lambda result: blur(others.of(result)[0]),
        "pixelate": lambda result: pixelate(covered.of(result)[0]),
        "remove": lambda result: remover(covered.of(result)[0]),
    }
    pictures: dict[str, np.ndarray] = {}
    for result in pose2seg.stream(options.clip, max_frames=options.frame + 1):
        pictures = {name: paint(result) for name, paint in paints.items()}
    if not pictures:
        print(f"{options.clip}: no frame", file=sys.stderr)
        return 1
    tiles = []
    for name, picture in pictures.items():
        shown = over_checkers(picture) if picture.ndim == 3 and picture.shape[2] == 4 else picture
        shown = shown if shown.ndim == 3 else cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB)
        height = round(TILE_WIDTH * shown.shape[0] / shown.shape[1])
        tile = np.ascontiguousarray(cv2.resize(shown, (TILE_WIDTH, height), interpolation=cv2.INTER_AREA))
        draw_text(tile, name, 6, height - 6, height=13, color=(255, 255, 255), background=(18, 18, 18))
        tiles.append(tile)
    height = tiles[0].shape[0]
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * (height + GAP) - GAP, COLUMNS * (TILE_WIDTH + GAP) - GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // COLUMNS * (height + GAP), index % COLUMNS * (TILE_WIDTH + GAP)
        sheet[top : top + height, left : left + TILE_WIDTH] = tile
    cv2.imwrite(str(options.output), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return 0


if __name__ == "__main__":
    sys.exit(main())
