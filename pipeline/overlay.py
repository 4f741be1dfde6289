"""Draw people on a frame: mask colour, contour, skeleton, id and score.

Colours belong to ids; sizes of lines and letters belong to the frame and the person.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from kernels.coordinates import U8
from kernels.skeleton import LIMBS
from pipeline.person import Person

Color = tuple[int, int, int]

MASK_OPACITY = 0.42
SMALL_PERSON_PX = 110.0  # below it the skeleton is bare lines; larger on frames of more than about 720 px
_GOLDEN_ANGLE = math.pi * (
    3.0 - math.sqrt(5.0)
)  # neighbours in id lie far apart on the colour circle, for any number of ids
_FONT = cv2.FONT_HERSHEY_DUPLEX
_OUTLINE: Color = (16, 16, 16)
_SUBPIXEL_BITS = 4
_REFERENCE_SIDE_PX = 720.0  # geometric mean side at which a line is 2 px; smaller frames never go below 1 px


def color_of(person_id: int) -> Color:
    """RGB colour of an id: evenly bright, neighbours clearly different. The first ids are the ones furthest apart."""
    return _color_of(person_id)


@lru_cache(maxsize=4096)
def _color_of(person_id: int) -> Color:
    hue = 0.45 + person_id * _GOLDEN_ANGLE
    lightness = (0.72, 0.80, 0.76)[person_id % 3]
    return _rgb_of_oklch(lightness, 0.17, hue)


def _rgb_of_oklch(lightness: float, chroma: float, hue: float) -> Color:
    """sRGB of a colour in Oklab polar form (Ottosson 2020); chroma shrinks until the colour can be shown."""
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
        if all(0.0 <= value <= 1.0 for value in linear) or chroma < 0.01:
            red, green, blue = (round(255 * _srgb(min(max(value, 0.0), 1.0))) for value in linear)
            return red, green, blue
        chroma *= 0.95


def _srgb(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def draw_people(
    image: U8,
    people: Sequence[Person],
    *,
    tinted: bool = False,
    masks: bool = True,
    skeletons: bool = True,
    labels: bool = True,
) -> None:
    """Draw on ``image`` (H, W, 3) uint8 RGB in place: tints, contours, skeletons, labels; better people on top.

    Args:
        image: the frame.
        people: of the frame.
        tinted: the masks are tinted already, see `engines.device.Device.paste`.
        masks: tints and contours.
        skeletons: joints and limbs.
        labels: id and score.
    """
    scale = max(0.5, math.sqrt(image.shape[0] * image.shape[1]) / _REFERENCE_SIDE_PX)
    ordered = sorted(people, key=lambda person: person.score)
    if masks and not tinted:
        for person in ordered:
            _tint(image, person)
    if masks:
        for person in ordered:
            _draw_contour(image, person, scale)
    if skeletons:
        for person in ordered:
            _draw_skeleton(image, person, scale)
    taken: list[tuple[int, int, int, int]] = []
    if labels:
        for person in reversed(ordered):
            _draw_label(image, person, scale, taken)


def highlight_person(image: U8, person: Person) -> None:
    """A white line with a dark rim around one person on ``image`` (H, W, 3) uint8 RGB, in place; the box if no mask."""
    scale = max(0.5, math.sqrt(image.shape[0] * image.shape[1]) / _REFERENCE_SIDE_PX)
    mask = person.crop.mask
    if mask.any():
        contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        lines = [contour + np.array((person.crop.x0, person.crop.y0), np.int32) for contour in contours]
    else:
        x, y, width, height = (round(value) for value in person.bbox)
        lines = [np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.int32)]
    cv2.polylines(image, lines, True, _OUTLINE, max(3, round(6.0 * scale)), cv2.LINE_AA)
    cv2.polylines(image, lines, True, (255, 255, 255), max(1, round(3.0 * scale)), cv2.LINE_AA)


def _tint(image: U8, person: Person) -> None:
    mask = person.crop.mask
    if not mask.any():
        return
    height, width = mask.shape
    region = image[person.crop.y0 : person.crop.y0 + height, person.crop.x0 : person.crop.x0 + width]
    cv2.copyTo(cv2.LUT(region, _tint_table(color_of(person.id))), mask.view(np.uint8), region)


def _draw_contour(image: U8, person: Person, scale: float) -> None:
    mask = person.crop.mask
    if not mask.any():
        return
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # The line lies half outside the mask, so it is drawn on the frame, not on the mask's box.
    shifted = [contour + np.array((person.crop.x0, person.crop.y0), np.int32) for contour in contours]
    cv2.polylines(image, shifted, True, color_of(person.id), max(1, round(1.4 * scale)), cv2.LINE_AA)


@lru_cache(maxsize=1024)
def _tint_table(color: Color) -> U8:
    """(256, 1, 3): old level -> level under a mask of this colour; one look-up per px is all that blending takes."""
    levels = np.arange(256.0)[:, None, None]
    table: U8 = np.rint((1.0 - MASK_OPACITY) * levels + MASK_OPACITY * np.array(color)).astype(np.uint8)
    return table


def _draw_skeleton(image: U8, person: Person, scale: float) -> None:
    """Limbs in the person's colour on a dark line, so that they are seen on any background."""
    _, _, box_width, box_height = person.bbox
    size = max(box_width, box_height)
    # Small people get thin limbs: a line must not cover an arm.
    width = min(2.6 * scale, max(1.0, size / 60.0))
    color = _lighter(color_of(person.id))
    points = [
        (round(float(x) * 2**_SUBPIXEL_BITS), round(float(y) * 2**_SUBPIXEL_BITS)) for x, y in _clamped(person, image)
    ]
    limbs = [(int(a), int(b)) for a, b in LIMBS if person.joint_visible[a] and person.joint_visible[b]]
    if size < SMALL_PERSON_PX * max(1.0, scale):  # an outline and dots would hide such a person
        for a, b in limbs:
            cv2.line(image, points[a], points[b], color, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
        return
    outline = max(1, round(width + 1.6 * min(scale, width)))
    for line_color, thickness in ((_OUTLINE, outline), (color, max(1, round(width)))):
        for a, b in limbs:
            cv2.line(image, points[a], points[b], line_color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    radius = max(1.2, 1.15 * width)
    for joint in np.flatnonzero(person.joint_visible):
        for dot_color, extra in ((_OUTLINE, 0.5 * min(scale, width)), ((255, 255, 255), 0.0)):
            dot = round((radius + extra) * 2**_SUBPIXEL_BITS)
            cv2.circle(image, points[joint], dot, dot_color, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _clamped(person: Person, image: U8) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Joint positions, those far outside brought near: OpenCV's fixed-point lines overflow on huge coordinates."""
    height, width = image.shape[:2]
    points = np.nan_to_num(person.keypoints[:, :2].astype(np.float64))
    return np.clip(points, (-width, -height), (2 * width, 2 * height))


def _draw_label(image: U8, person: Person, scale: float, taken: list[tuple[int, int, int, int]]) -> None:
    x, y, box_width, box_height = person.bbox
    text = f"{person.id}  {person.score:.2f}"
    height = max(9, min(round(15 * scale), round(0.14 * max(box_width, box_height))))
    label_width, label_height = text_size(text, height)
    left = round(x + box_width / 2 - label_width / 2)
    top = round(y - label_height - 3 * scale)
    left = min(max(left, 0), max(0, image.shape[1] - label_width))
    top = min(max(top, 0), max(0, image.shape[0] - label_height))
    for _ in range(len(taken)):  # move down past labels that lie there already
        hit = next((box for box in taken if _boxes_touch(box, (left, top, label_width, label_height))), None)
        if hit is None:
            break
        top = hit[1] + hit[3] + 1
    taken.append((left, top, label_width, label_height))
    color = color_of(person.id)
    draw_text(image, text, left, top + label_height, height=height, color=_ink_on(color), background=color)


def _boxes_touch(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    x, y, width, height = first
    other_x, other_y, other_width, other_height = second
    return x < other_x + other_width and other_x < x + width and y < other_y + other_height and other_y < y + height


def text_size(text: str, height: int) -> tuple[int, int]:
    """Width and height in px of a label with letters ``height`` px tall, its border included."""
    (width, _), _ = cv2.getTextSize(text, _FONT, height / 22.0, _stroke(height))
    border = max(2, round(height * 0.35))
    return width + 2 * border, height + 2 * border


def draw_text(image: U8, text: str, left: int, bottom: int, *, height: int, color: Color, background: Color) -> None:
    """Write a label on a filled box whose bottom-left corner is (left, bottom) px; what lies outside is cut off."""
    label_width, label_height = text_size(text, height)
    border = max(2, round(height * 0.35))
    top = bottom - label_height
    region = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(left + label_width, 0)]
    if not region.size:
        return
    tint = np.empty_like(region)
    tint[...] = background
    cv2.addWeighted(region, 0.18, tint, 0.82, 0.0, dst=region)
    cv2.putText(
        image, text, (left + border, bottom - border), _FONT, height / 22.0, color, _stroke(height), cv2.LINE_AA
    )


def _stroke(height: int) -> int:
    return max(1, round(height / 14.0))


def _lighter(color: Color) -> Color:
    red, green, blue = (round(value + 0.35 * (255 - value)) for value in color)
    return red, green, blue


def _ink_on(color: Color) -> Color:
    """Black or white, whichever reads better on ``color``."""
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    return (10, 10, 10) if luminance > 110 else (255, 255, 255)
