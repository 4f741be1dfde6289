"""Annotation files that are not what they say: errors name file, entry and field, short polygons are counted skips."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from tests.training.drawn_people import (
    HEIGHT,
    WIDTH,
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    plain_rle,
    polygon,
    rle,
    write_coco,
)
from training.annotations import DataError, checked_segmentation, decode_mask, read_photos, run_lengths
from training.dataset import is_taught

POSE = drawn_pose(20, 2, 90)
MASK = drawn_mask(POSE)


def written(tmp_path: Path, change: Callable[[dict[str, Any]], object], *, people: int = 2) -> Path:
    """The annotation file of a clean set of two pictures after a change."""
    entries = [annotation(10 + n, 1, POSE, MASK) for n in range(people)]
    path = write_coco(tmp_path / "set", {1: background(1), 2: background(2)}, entries) / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def first(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][0].update(changes)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][0].pop(name)


def image(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["images"][1].update(changes)


TOO_SHORT = {"size": [HEIGHT, WIDTH], "counts": [5, 9]}
CUT = {"size": [HEIGHT, WIDTH], "counts": rle(MASK)["counts"][:-3]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("bbox"), "annotation 10: KeyError 'bbox'"),
        (without("image_id"), "annotation 10: KeyError 'image_id'"),
        (first(image_id=9), "annotation 10: ValueError image_id 9 is no image of this file"),
        (first(bbox=[0, 0, 5]), "annotation 10: ValueError bbox must have 4 numbers, got 3"),
        (first(bbox=[0, 0, -5, 5]), "annotation 10: ValueError bbox must not have a negative size, got -5 x 5"),
        (first(bbox=[0, 0, float("nan"), 5]), "annotation 10: ValueError bbox must be finite"),
        (first(bbox=[WIDTH + 1, 0, 5, 5]), "annotation 10: ValueError bbox .* lies outside of the picture of 128 x 96"),
        (first(bbox=[0, -9, 5, 5]), "lies outside of the picture"),
        (first(bbox="box"), "annotation 10: ValueError"),
        (first(keypoints=[1, 2, 2] * 16), "annotation 10: ValueError keypoints must have 51 numbers, got 48"),
        (first(keypoints=[float("inf"), 2, 2] * 17), "annotation 10: ValueError keypoints must be finite"),
        (first(keypoints=[["x"]]), "annotation 10: ValueError"),
        (first(id=11), "annotation 11: ValueError this id is there twice"),
        (first(segmentation={"size": [HEIGHT, WIDTH]}), "annotation 10: ValueError segmentation: 'counts'"),
        (first(segmentation={"counts": "0"}), "segmentation: 'size'"),
        (first(segmentation=TOO_SHORT), "segmentation: the runs of the RLE must add up to 12288 px, got 14"),
        (first(segmentation={"size": [HEIGHT, WIDTH], "counts": [-4, 12292]}), "segmentation: the runs of the RLE"),
        (first(segmentation={**rle(MASK), "size": [4, 4]}), r"segmentation: an RLE of \[4, 4\] px in a picture of"),
        (first(segmentation=CUT), "segmentation: the (runs of the RLE|compressed RLE is cut off)"),
        (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "!!"}), "segmentation: a compressed RLE cannot hold"),
        (first(segmentation={"size": [HEIGHT, WIDTH], "counts": None}), "segmentation"),
        (first(segmentation="mask"), "segmentation: expected polygons or an RLE, got str"),
        (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "segmentation: a polygon must be x, y pairs, got 7 numbers"),
        (first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "segmentation: a polygon must be a flat list of finite"),
        (first(segmentation=[1, 2, 3, 4, 5, 6]), "segmentation: a polygon must be a flat list of finite"),
        (first(segmentation=[["a"] * 6]), "segmentation"),
        (image(id=1), "image 1: ValueError this id is there twice"),
        (image(height=0), "image 2: ValueError height must be a whole number of at least 1, got 0"),
        (image(width="128"), "image 2: ValueError width must be a whole number of at least 1, got '128'"),
        (image(file_name="../../secret.png"), "image 2: ValueError file_name must be a path below the folder"),
        (image(file_name="/etc/passwd"), "image 2: ValueError file_name must be a path below the folder"),
        (image(file_name=7), "image 2: ValueError file_name must be a path below the folder"),
        (lambda c: c["images"][1].pop("file_name"), "image 2: KeyError 'file_name'"),
        (lambda c: c["images"][1].pop("id"), "image None: KeyError 'id'"),
        (lambda c: c.pop("images"), "KeyError 'images'"),
        (lambda c: c.update(annotations=[3]), "AttributeError"),
    ],
)
def test_what_is_wrong_is_named_with_file_entry_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = written(tmp_path, change)
    with pytest.raises(DataError, match=f"annotations.json is not a COCO keypoint file: .*{said}"):
        read_photos(path)


def test_pictures_without_people_and_boxes_over_the_border_are_fine(tmp_path: Path) -> None:
    path = written(tmp_path, first(bbox=[-3, -2, WIDTH + 9, HEIGHT + 9]))
    one, empty = read_photos(path)
    assert one.people[0].box.tolist() == [-3, -2, WIDTH + 6, HEIGHT + 7]
    assert empty.people == () and (empty.height, empty.width) == (HEIGHT, WIDTH)
    assert read_photos(written(tmp_path / "none", lambda c: c.pop("annotations")))[0].people == ()


def test_polygons_of_fewer_than_six_numbers_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = polygon(MASK)

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4], *whole, [1, 2]]
        content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]

    path = written(tmp_path, change)
    with caplog.at_level(logging.WARNING):
        photo = read_photos(path)[0]
    assert (
        "annotations.json: left out 3 polygons of fewer than six numbers, 1 people who have no mask then" in caplog.text
    )
    np.testing.assert_array_equal(
        decode_mask(photo.people[0].segmentation, HEIGHT, WIDTH), decode_mask(whole, HEIGHT, WIDTH)
    )
    assert photo.people[1].segmentation is None and photo.people[1].has_keypoints
    assert [is_taught(person) for person in photo.people] == [True, False]


@pytest.mark.parametrize(
    ("changes", "taught"),
    [
        ({}, True),
        ({"area": 0}, False),
        ({"area": -1.5}, False),
        ({"bbox": [0, 0, 1, 50]}, False),
        ({"ignore": 1}, False),
        ({"iscrowd": 1}, False),
        ({"keypoints": [0] * 51}, False),
        ({"segmentation": []}, False),
    ],
)
def test_whom_the_paper_s_sets_have(tmp_path: Path, changes: dict[str, Any], taught: bool) -> None:
    assert is_taught(read_photos(written(tmp_path, first(**changes)))[0].people[0]) == taught


def test_stored_max_iou_and_area_are_kept(tmp_path: Path) -> None:
    one, other = read_photos(written(tmp_path, first(max_iou=0.8)))[0].people
    assert one.max_iou == 0.8 and other.max_iou is None
    assert one.area == MASK.sum()
    assert read_photos(written(tmp_path / "x", without("area")))[0].people[0].area is None


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)))
@example(np.zeros((1, 1), np.uint8))
@example(np.ones((1, 33), np.uint8))
def test_run_lengths_are_those_that_pycocotools_packed(mask: np.ndarray) -> None:
    packed = coco_mask.encode(np.asfortranarray(mask))
    runs = run_lengths(packed["counts"])
    assert runs == run_lengths(packed["counts"].decode()) == (plain_rle(mask)["counts"] if mask.size else [])
    assert sum(runs) == mask.size
    coded = {"size": list(mask.shape), "counts": packed["counts"].decode()}
    assert checked_segmentation(coded, *mask.shape) == (coded, 0)


@given(st.binary(max_size=40))
def test_random_bytes_are_refused_or_add_up(coded: bytes) -> None:
    """What passes the check is safe to draw: the runs are those of a mask of that size."""
    segmentation = {"size": [6, 7], "counts": coded}
    try:
        checked_segmentation(segmentation, 6, 7)
    except ValueError:
        return
    assert coco_mask.decode(segmentation).shape == (6, 7)
