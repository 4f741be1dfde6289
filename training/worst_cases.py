"""A picture of the people on whom a model did worst, drawn after an evaluation (`training.evaluate --sheet`)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kernels.coordinates import U8
from training.dataset import CocoFolder, DataError, Photo, decode_mask

WORST_CASES = 16


def worst_cases(
    folder: CocoFolder, cases: list[tuple[float, Photo, int, U8]], path: Path, count: int = WORST_CASES
) -> None:
    """A sheet of the people with the lowest IoU: truth outlined in green, the result tinted."""
    tiles = []
    for value, photo, index, mask in sorted(cases, key=lambda c: c[0])[:count]:
        image = folder.image(photo).copy()
        inside = mask > 0
        image[inside] = (0.45 * image[inside] + 0.55 * np.array([255, 64, 64])).astype(np.uint8)
        truth = decode_mask(photo.people[index].segmentation, photo.height, photo.width)
        outlines, _ = cv2.findContours(truth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outlines, -1, (0, 255, 0), 2)
        for x, y, v in photo.people[index].keypoints:
            if v > 0:
                cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 0) if v > 1 else (255, 160, 0), -1)
        x0, y0, x1, y1 = photo.people[index].box
        side = max(x1 - x0, y1 - y0) * 1.4
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        matrix = np.array([[260 / side, 0, 130 - cx * 260 / side], [0, 260 / side, 130 - cy * 260 / side]])
        tile = cv2.warpAffine(image, matrix, (260, 260), flags=cv2.INTER_AREA, borderValue=(40, 40, 40))
        cv2.putText(
            tile,
            f"IoU {value:.2f}  {photo.file_name}",
            (6, 252),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.38,
            (255, 255, 255),
            1,
            cv2.LINE_AA,
        )
        tiles.append(tile)
    if not tiles:
        return
    while len(tiles) % 4:
        tiles.append(np.zeros_like(tiles[0]))
    sheet = np.concatenate([np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, len(tiles), 4)])
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    except cv2.error:  # a suffix that OpenCV does not know
        written = False
    if not written:
        raise DataError(f"cannot write {path}: expected a writable .png path")
