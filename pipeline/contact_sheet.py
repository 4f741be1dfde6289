"""A picture of the whole run: drawn frames at even distances, each with its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.messages import FrameResult
from pipeline.overlay import draw_text
from pipeline.stage6_sinks import check_output, close_output, create_output, write_whole
from pipeline.video_output import fit_into

TILES = 12
KEPT_MAX = 4 * TILES  # enough to choose from that distances look even
COLUMNS = 3
TILE_WIDTH = 480
GAP = 6
_BACKGROUND = 18
_MAX_TILE_HEIGHT = 854  # upright phone video


class ContactSheetSink:
    """Keeps at most four times as many small frames as it shows: a run of any length needs the same memory."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite
        self._kept: list[U8] = []
        self._every = 1
        self._seen = 0
        self._tile = (0, 0)  # height, width

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        if not self._seen:
            frame = result.frame
            height = max(1, round(TILE_WIDTH * frame.height / frame.width))
            self._tile = (min(height, _MAX_TILE_HEIGHT), TILE_WIDTH)
        if self._seen % self._every == 0:
            self._kept.append(self._tile_of(result))
            if len(self._kept) >= KEPT_MAX:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def to_state(self) -> dict[str, Any]:
        """Where it is, as plain JSON values, without the pictures of `kept`."""
        return {"every": self._every, "seen": self._seen, "tile": list(self._tile)}

    @property
    def kept(self) -> list[U8]:
        """The small frames, all of one size."""
        return list(self._kept)

    def restore(self, state: dict[str, Any], kept: list[U8]) -> None:
        """Go on where `to_state` was called."""
        self._every, self._seen = state["every"], state["seen"]
        self._tile = (state["tile"][0], state["tile"][1])
        self._kept = list(kept)

    def close(self) -> None:
        if not self._kept:
            return
        count = min(TILES, len(self._kept))
        picks = [self._kept[round(i * (len(self._kept) - 1) / max(1, count - 1))] for i in range(count)]
        ok, data = cv2.imencode(self._path.suffix, cv2.cvtColor(arrange(picks), cv2.COLOR_RGB2BGR))
        if not ok:
            raise SinkError(
                f"{self._path}: the contact sheet could not be encoded: choose a name ending in .png or .jpg"
            )
        file = create_output(self._path, overwrite=self._overwrite)
        try:
            write_whole(file, data.tobytes(), self._path)
        finally:
            close_output(file, self._path)

    def _tile_of(self, result: FrameResult) -> U8:
        drawn = result.drawn if result.drawn is not None else result.overlay()
        tile = fit_into(drawn, *self._tile).copy()
        people = len(result.people)
        text = f"{result.frame.pts_s:.2f} s   {people} {'person' if people == 1 else 'people'}"
        draw_text(tile, text, 6, self._tile[0] - 6, height=13, color=(255, 255, 255), background=(18, 18, 18))
        return tile


def arrange(tiles: list[U8]) -> U8:
    """Tiles of one size in rows of `COLUMNS`, dark gaps between them."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[:2]
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), _BACKGROUND, np.uint8)
    for index, tile in enumerate(tiles):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
