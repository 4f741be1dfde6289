"""The demo clip: the right size and length, two people who cross and hide each other, the same every time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pycocotools.mask
import pytest

pytest.importorskip("skimage", reason="the clip is cut out of a portrait that scikit-image ships: extra 'demo'")

from examples.make_demo_clip import FRAMES, HEIGHT, WIDTH, cut_out, lowest_visible_edge_y, render, write_clip

CROSSINGS = (FRAMES // 4, 3 * FRAMES // 4)


@dataclass(frozen=True)
class Clip:
    path: Path
    truth: dict[str, Any]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder / "clip.mp4", truth_path=folder / "truth.json")
    return Clip(folder / "clip.mp4", json.loads((folder / "truth.json").read_text()))


def visible_masks(index: int) -> dict[int, np.ndarray[Any, np.dtype[np.bool_]]]:
    return {person.track: person.mask for person in render(index)[1]}


def test_file_is_a_720p_clip_of_eight_seconds(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 1280, 720)
        assert stream.average_rate == 25
        pts = [frame.time for frame in container.decode(stream)]
    assert pts == pytest.approx([index / 25 for index in range(FRAMES)])
    assert 8 <= len(pts) / 25 <= 10


def test_decoded_frames_are_the_rendered_ones(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in (0, *CROSSINGS):
                difference = frame.to_ndarray(format="rgb24").astype(float) - render(index)[0]
                assert np.sqrt((difference**2).mean()) < 6  # H.264 at crf 18; another frame differs by 25 and more


def test_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        cut_out.cache_clear()
        write_clip(tmp_path / name, frames=5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_straight_lower_edge_of_the_portrait_never_shows() -> None:
    assert lowest_visible_edge_y() > HEIGHT + 10


@pytest.mark.parametrize("index", [0, FRAMES // 2, FRAMES - 1])
def test_both_are_in_full_view_at_the_ends(index: int) -> None:
    masks = visible_masks(index)
    assert set(masks) == {1, 2}
    assert all(mask.sum() > 0.08 * mask.size for mask in masks.values())
    left, right = (1, 2) if index != FRAMES // 2 else (2, 1)
    assert np.nonzero(masks[left])[1].max() < np.nonzero(masks[right])[1].min()


@pytest.mark.parametrize(("index", "front", "back"), [(CROSSINGS[0], 1, 2), (CROSSINGS[1], 2, 1)])
def test_each_hides_the_other_once(index: int, front: int, back: int) -> None:
    before, at = visible_masks(index - FRAMES // 8), visible_masks(index)
    assert at[front].sum() > before[front].sum()
    assert at[back].sum() < 0.15 * before[back].sum()
    hidden = next(person.keypoints for person in render(index)[1] if person.track == back)
    assert (hidden[:, 2] == 1).sum() >= 5


def test_visible_masks_never_share_a_pixel() -> None:
    for index in range(0, FRAMES, 9):
        masks = visible_masks(index)
        assert not (masks[1] & masks[2]).any()


def test_mask_follows_the_picture() -> None:
    """The suit is orange and the wall is not: most of the mask below the head is, and nothing outside it."""
    image, visible = render(0)
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    orange = (red > 170) & (red - blue > 110) & (red - green > 80)
    anyone = visible[0].mask | visible[1].mask
    assert (orange & anyone).sum() > 0.3 * anyone.sum()
    assert (orange & ~anyone).sum() < 0.002 * anyone.sum()


def test_joints_of_the_mirrored_copy_keep_their_side() -> None:
    upright, mirrored = (person.keypoints for person in render(0)[1])
    left_eye, right_eye = 1, 2
    for person in (upright, mirrored):  # both look at the camera, so their left is on the right of the picture
        assert person[left_eye, 0] > person[right_eye, 0] + 20
    left_elbow, right_elbow = 7, 8
    assert (upright[left_elbow, 2], upright[right_elbow, 2]) == (0, 2)  # the helmet hides her left arm,
    assert (mirrored[left_elbow, 2], mirrored[right_elbow, 2]) == (2, 0)  # which is the right one of the copy


def test_camera_moves() -> None:
    corners = [render(index)[0][:200, 600:680].astype(float) for index in (0, 1, 6)]
    assert np.abs(corners[1] - corners[0]).mean() > 1
    assert np.abs(corners[2] - corners[0]).mean() > 5


def test_truth_is_coco(clip: Clip) -> None:
    truth = clip.truth
    assert len(truth["images"]) == FRAMES
    assert {(image["width"], image["height"]) for image in truth["images"]} == {(WIDTH, HEIGHT)}
    assert {annotation["track"] for annotation in truth["annotations"]} == {1, 2}
    by_frame = [a for a in truth["annotations"] if a["image_id"] == CROSSINGS[0] - 9]
    masks = visible_masks(CROSSINGS[0] - 10)
    for annotation in by_frame:
        decoded = pycocotools.mask.decode(annotation["segmentation"])
        np.testing.assert_array_equal(decoded, masks[annotation["track"]])
        assert annotation["area"] == decoded.sum()
        assert len(annotation["keypoints"]) == 51
        assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3]) >= 7


def test_frame_outside_the_clip() -> None:
    with pytest.raises(ValueError, match=f"frame must be from 0 to {FRAMES - 1}, got {FRAMES}"):
        render(FRAMES)


def test_clock_of_the_clip_is_exact(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(8)
