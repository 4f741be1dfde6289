"""One picture per frame for each kind of layer. Px far from anybody are those of the frame, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernels.alpha_edges import blend_over
from kernels.background_model import FREE_FRAMES, learn_background, spread_into_holes
from kernels.coordinates import U8
from kernels.mask_paste import PastedAlpha
from pipeline.errors import SettingsError
from pipeline.layers.alpha import AlphaMaker, PersonAlpha, box_of, enlarged, together
from pipeline.layers.cover import widened
from pipeline.layers.covered_frames import CoveredFrame
from pipeline.layers.options import ChosenPeople
from pipeline.messages import FrameResult
from pipeline.overlay import color_of

Paint = Callable[[FrameResult], U8]
HidingPaint = Callable[[CoveredFrame], U8]

HIDDEN_LEVELS = 12  # px that are left of a hidden person's long side: nobody is known by them
BLOCK_MIN_PX = 8
BLOCK_STEP_PX = 4  # sizes of blocks; between them a person may come nearer without the grid changing
KEPT_RIM_PX = 8  # px around a cut-out that keep their colour: codecs mix neighbours, and the edge would darken
SCENE_STEP = 8  # the blurred scene is made on a picture this much smaller
OUTLINE_SHARE = 1 / 240  # width of the outline, of the frame's mean side
SCENE_CHANGED_LEVELS = 24.0  # mean difference to what is known: a cut, or the camera moved
PROBE_STEP = 8
NEWCOMER_SHARE = 0.5  # of the long side: how far somebody may have come before they were found
FILL_CONTEXT_SHARE = 0.25  # of the region's size around it, from which unknown px are filled


def cutout(maker: AlphaMaker, chosen: ChosenPeople) -> Paint:
    """(H, W, 4) uint8: the chosen people in their own colours, everything else transparent."""

    def paint(result: FrameResult) -> U8:
        frame = result.frame
        return cut_out(frame.image, together(_chosen(maker, chosen, result), frame.height, frame.width))

    return paint


def cut_out(image: U8, alpha: U8) -> U8:
    """The px of ``image`` (H, W, 3) under ``alpha`` (H, W), not multiplied: (H, W, 4), no colour away from them."""
    picture = np.zeros((*alpha.shape, 4), np.uint8)
    x, y, width, height = cv2.boundingRect(alpha)
    if not width:
        return picture
    rim = KEPT_RIM_PX
    rows, columns = slice(max(0, y - rim), y + height + rim), slice(max(0, x - rim), x + width + rim)
    near = cv2.dilate(alpha[rows, columns], np.ones((2 * rim + 1, 2 * rim + 1), np.uint8))
    with_alpha = cv2.merge((image[rows, columns], alpha[rows, columns]))
    cv2.copyTo(with_alpha, near, picture[rows, columns])
    return picture


def matte(maker: AlphaMaker, chosen: ChosenPeople) -> Paint:
    """(H, W) uint8: the alpha of the chosen people."""

    def paint(result: FrameResult) -> U8:
        return together(_chosen(maker, chosen, result), result.frame.height, result.frame.width)

    return paint


def outline(maker: AlphaMaker, chosen: ChosenPeople, *, alone: bool) -> Paint:
    """A line around each chosen person, in the colour of the id: on the frame, or alone with alpha (H, W, 4)."""

    def paint(result: FrameResult) -> U8:
        frame = result.frame
        lines = np.zeros((frame.height, frame.width), np.uint8)
        canvas = np.zeros((frame.height, frame.width, 3), np.uint8) if alone else frame.image.copy()
        width = max(1, round(OUTLINE_SHARE * (frame.height * frame.width) ** 0.5))
        for one in reversed(maker.of(result)):
            if one.person.id in chosen and one.alpha.alpha.size:
                _draw_outline(canvas, lines, one, width, alone=alone)
        return cv2.merge((canvas, lines)).astype(np.uint8, copy=False) if alone else canvas

    return paint


def _draw_outline(canvas: U8, lines: U8, one: PersonAlpha, width: int, *, alone: bool) -> None:
    height_px, width_px = canvas.shape[:2]
    wide = enlarged(one.alpha, width + 2, height_px, width_px)
    inside = (wide.alpha >= 128).view(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = np.zeros_like(wide.alpha)
    cv2.polylines(line, contours, True, 255, width, cv2.LINE_AA)
    x0, y0, x1, y1 = box_of(wide)
    color = np.empty((*line.shape, 3), np.uint8)
    color[...] = color_of(one.person.id)
    if alone:  # not mixed with black: alpha does that
        cv2.copyTo(color, line, canvas[y0:y1, x0:x1])
        part = lines[y0:y1, x0:x1]
        cv2.max(part, line, dst=part)
    else:
        blend_over(canvas, color, line, x0, y0)


def blur(covered: CoveredFrame) -> U8:
    """The frame with the chosen people blurred beyond recognition."""
    return _hidden(covered, _blurred)


def pixelate(covered: CoveredFrame) -> U8:
    """The frame with the chosen people as large blocks."""
    return _hidden(covered, _in_blocks)


def _hidden(covered: CoveredFrame, hide: Callable[[U8, PastedAlpha], U8]) -> U8:
    image = covered.frame.image
    picture = image.copy()
    for cover in covered.covers:
        if cover.alpha.size:
            blend_over(picture, hide(image, cover), cover.alpha, cover.x0, cover.y0)
    return picture


def _blurred(image: U8, cover: PastedAlpha) -> U8:
    x0, y0, x1, y1 = box_of(cover)
    region = image[y0:y1, x0:x1]
    step = max(BLOCK_MIN_PX, -(-max(region.shape[:2]) // HIDDEN_LEVELS))
    size = (-(-region.shape[1] // step), -(-region.shape[0] // step))
    small = cv2.resize(region, size, interpolation=cv2.INTER_AREA)
    # Linear steps of the small picture would be seen as a grid: smaller ones, smoothed.
    medium = cv2.resize(small, (size[0] * 4, size[1] * 4), interpolation=cv2.INTER_LINEAR)
    smooth = cv2.blur(medium, (5, 5), borderType=cv2.BORDER_REPLICATE)
    whole = cv2.resize(smooth, (region.shape[1], region.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(whole, np.uint8)


def _in_blocks(image: U8, cover: PastedAlpha) -> U8:
    x0, y0, x1, y1 = box_of(cover)
    share = max(cover.alpha.shape) / HIDDEN_LEVELS
    block = max(BLOCK_MIN_PX, BLOCK_STEP_PX * int(np.ceil(share / BLOCK_STEP_PX)))
    # Blocks lie on a grid of the frame: they do not crawl along with the person.
    left, top = x0 - x0 % block, y0 - y0 % block
    columns, rows = -(-(x1 - left) // block), -(-(y1 - top) // block)
    region = image[top : top + rows * block, left : left + columns * block]
    missing_rows, missing_columns = rows * block - region.shape[0], columns * block - region.shape[1]
    if missing_rows or missing_columns:
        region = np.pad(region, ((0, missing_rows), (0, missing_columns), (0, 0)), mode="edge")
    small = cv2.resize(region, (columns, rows), interpolation=cv2.INTER_AREA)
    whole = cv2.resize(small, (columns * block, rows * block), interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(whole[y0 - top : y1 - top, x0 - left : x1 - left], np.uint8)


class Remover:
    """The frame without the chosen people: the scene behind them as it was seen, or the colours around them.

    Nothing is learned where anybody is, be they chosen or not.
    """

    def __init__(self) -> None:
        self._background: U8 = np.zeros((0, 0, 3), np.uint8)
        self._free_frames: U8 = np.zeros((0, 0), np.uint8)
        self._clip = -1

    def __call__(self, covered: CoveredFrame) -> U8:
        frame = covered.frame
        size = (frame.height, frame.width)
        occupied = np.zeros(size, np.uint8)
        for cover in covered.occupied:
            x0, y0, x1, y1 = box_of(cover)
            np.maximum(occupied[y0:y1, x0:x1], cover.alpha, out=occupied[y0:y1, x0:x1])
        if self._free_frames.shape != size or self._clip != frame.clip or self._changed(frame.image, occupied):
            self._background = np.zeros((*size, 3), np.uint8)
            self._free_frames = np.zeros(size, np.uint8)
            self._clip = frame.clip
        for newcomer in covered.newcomers:  # they may have been taken for a part of the scene
            region = widened(newcomer.region, round(NEWCOMER_SHARE * newcomer.long_side), *size)
            x0, y0, x1, y1 = box_of(region)
            self._free_frames[y0:y1, x0:x1][region.alpha > 0] = 0
        learn_background(self._background, self._free_frames, frame.image, occupied)
        picture = frame.image.copy()
        for cover in covered.covers:
            if cover.alpha.size:
                blend_over(picture, self._scene(frame.image, occupied, cover), cover.alpha, cover.x0, cover.y0)
        return picture

    def to_state(self) -> dict[str, Any]:
        """What was learned; see `pipeline.layers.state`."""
        return {"background": self._background, "free_frames": self._free_frames, "clip": self._clip}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._background, self._free_frames = state["background"].copy(), state["free_frames"].copy()
        self._clip = state["clip"]

    def _changed(self, image: U8, occupied: U8) -> bool:
        """A cut, or a camera that moved: what was learned is of another scene."""
        step = (slice(None, None, PROBE_STEP),) * 2
        usable = (self._free_frames[step] >= FREE_FRAMES) & (occupied[step] == 0)
        if not usable.any():
            return False
        difference = cv2.absdiff(np.ascontiguousarray(image[step]), np.ascontiguousarray(self._background[step]))
        return float(difference[usable].mean()) > SCENE_CHANGED_LEVELS

    def _scene(self, image: U8, occupied: U8, cover: PastedAlpha) -> U8:
        """What is behind a cover."""
        x0, y0, x1, y1 = box_of(cover)
        scene = np.ascontiguousarray(self._background[y0:y1, x0:x1])
        known = self._free_frames[y0:y1, x0:x1] >= FREE_FRAMES
        if (known | (cover.alpha == 0)).all():
            return scene
        context = max(8, round(FILL_CONTEXT_SHARE * max(y1 - y0, x1 - x0)))
        rows = slice(max(0, y0 - context), y1 + context)
        columns = slice(max(0, x0 - context), x1 + context)
        seen = self._free_frames[rows, columns] >= FREE_FRAMES
        around = image[rows, columns].copy()
        cv2.copyTo(np.ascontiguousarray(self._background[rows, columns]), seen.view(np.uint8), around)
        hole = (~seen & (occupied[rows, columns] != 0)).view(np.uint8)
        filled = spread_into_holes(around, hole)
        top, left = y0 - rows.start, x0 - columns.start
        part = np.ascontiguousarray(filled[top : top + y1 - y0, left : left + x1 - x0])
        cv2.copyTo(scene, known.view(np.uint8), part)
        return part


class NewBackground:
    """The chosen people over a picture, a colour, or the blurred scene, in which nobody else is sharp."""

    def __init__(self, maker: AlphaMaker, chosen: ChosenPeople, background: tuple[int, int, int] | U8 | None) -> None:
        """Set up.

        Args:
            maker: of the run's alphas.
            chosen: who stays.
            background: RGB, a picture (h, w, 3) uint8 RGB of any size, or None for the blurred scene.
        """
        self._maker = maker
        self._chosen = chosen
        self._background = background
        self._fitted: U8 = np.zeros((0, 0, 3), np.uint8)

    def __call__(self, result: FrameResult) -> U8:
        frame = result.frame
        people = _chosen(self._maker, self._chosen, result)
        if self._background is None:
            canvas = blurred_scene(frame.image, together(people, frame.height, frame.width))
        else:
            if self._fitted.shape[:2] != (frame.height, frame.width):
                self._fitted = _filling(self._background, frame.height, frame.width)
            canvas = self._fitted.copy()
        for alpha in reversed(people):
            if alpha.alpha.size:
                x0, y0, x1, y1 = box_of(alpha)
                blend_over(canvas, np.ascontiguousarray(frame.image[y0:y1, x0:x1]), alpha.alpha, x0, y0)
        return canvas


def blurred_scene(image: U8, people: U8) -> U8:
    """The frame without the people, blurred: their colours do not shine around them.

    Args:
        image: (H, W, 3) uint8.
        people: (H, W) uint8, not 0 where somebody is.
    """
    height, width = people.shape
    size = (max(1, width // SCENE_STEP), max(1, height // SCENE_STEP))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(people, size, interpolation=cv2.INTER_AREA)
    scene = spread_into_holes(np.asarray(small, np.uint8), (np.asarray(share) > 0).view(np.uint8))
    kept = cv2.copyTo(np.asarray(small, np.uint8), (np.asarray(share) == 0).view(np.uint8), scene)
    smooth = cv2.GaussianBlur(kept, (0, 0), 2.0)
    return np.ascontiguousarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _filling(background: tuple[int, int, int] | U8, height: int, width: int) -> U8:
    """A colour or picture that fills the frame; what is too much of a picture is cut off on both sides."""
    if isinstance(background, tuple):
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[...] = background
        return canvas
    scale = max(height / background.shape[0], width / background.shape[1])
    size = (max(width, round(background.shape[1] * scale)), max(height, round(background.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    whole = np.asarray(cv2.resize(background, size, interpolation=method), np.uint8)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def read_picture(path: Path) -> U8:
    """(h, w, 3) uint8 RGB.

    Raises:
        SettingsError: it is missing or no picture.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise SettingsError(
            f"--layer-background {path}: cannot be read ({error.strerror}): give a picture, a colour such as #00ff00, "
            "or blur"
        ) from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if picture is None:
        raise SettingsError(f"--layer-background {path}: expected a picture such as PNG or JPEG, this is none")
    return np.asarray(picture, np.uint8)


def _chosen(maker: AlphaMaker, chosen: ChosenPeople, result: FrameResult) -> Sequence[PastedAlpha]:
    return [one.alpha for one in maker.of(result) if one.person.id in chosen]
