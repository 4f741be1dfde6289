"""OCHuman's own file: joints and their marks, masks with holes, splits and subsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import ochuman
from training.dataset import DataError, decode_mask, is_taught, read_photos
from training.ochuman import coco_from_ochuman, main

SIDES = [
    f"{side}_{joint}" for side in ("right", "left") for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
]
NAMES = [*SIDES, "head", "neck", "right_ear", "left_ear", "nose", "right_eye", "left_eye"]
MARKS = {"missing": 0, "vis": 1, "self_occluded": 2, "others_occluded": 3}


def person(max_iou: float, *, joints: bool = True, mask: bool = True) -> dict[str, Any]:
    keypoints = [float(value) for number in range(19) for value in (number + 1, 10 * number, number % 4)]
    square, hole = [10, 10, 40, 10, 40, 30, 10, 30], [20, 15, 30, 15, 30, 25, 20, 25]
    segms = {"outer": [square, [1, 2, 3, 4]], "inner": [hole], "height": 48, "width": 64}
    return {
        "bbox": [10, 10, 40, 30],
        "keypoints": keypoints if joints else None,
        "segms": segms if mask else None,
        "max_iou": max_iou,
    }


def document(*pictures: list[dict[str, Any]]) -> dict[str, Any]:
    images = [
        {"image_id": 900 - i, "file_name": f"{i:06d}.jpg", "width": 64, "height": 48, "annotations": people}
        for i, people in enumerate(pictures)
    ]
    return {"keypoint_names": NAMES, "keypoint_visible": dict(MARKS), "images": images}


def test_joints_get_cocos_order_and_marks() -> None:
    made = coco_from_ochuman(document([person(0.6)]))
    (annotation,) = made["annotations"]
    pose = np.array(annotation["keypoints"]).reshape(17, 3)
    nose, left_ear = NAMES.index("nose"), NAMES.index("left_ear")
    assert nose % 4 == 0 and not pose[0].any()  # missing as well
    assert pose[6].tolist() == [0, 0, 0]  # right shoulder, number 0: missing
    assert pose[3].tolist() == [left_ear + 1, 10 * left_ear, 1]  # number 15: hidden by others
    assert pose[8].tolist() == [2, 10, 2] and pose[10].tolist() == [3, 20, 2]  # seen; hidden by the own body
    assert annotation["num_keypoints"] == (pose[:, 2] > 0).sum() == 13


def test_a_mask_is_the_outer_polygons_without_the_inner() -> None:
    (annotation,) = coco_from_ochuman(document([person(0.6)]))["annotations"]
    mask = decode_mask(annotation["segmentation"], 48, 64)
    assert mask[12, 12] == 1 and mask[20, 25] == 0 and mask[40, 50] == 0
    assert mask.sum() == pytest.approx(30 * 20 - 10 * 10, rel=0.05)
    assert annotation["bbox"] == [10, 10, 30, 20] and annotation["area"] == 600


def test_people_without_joints_or_mask_and_their_empty_pictures_are_dropped() -> None:
    content = document(
        [person(0.6), person(0.6, mask=False)],
        [person(0.9, joints=False)],
        [person(0.8), person(0.55)],
    )
    made = coco_from_ochuman(content)
    assert [image["file_name"] for image in made["images"]] == ["000000.jpg", "000002.jpg"]
    assert [(a["id"], a["image_id"]) for a in made["annotations"]] == [(1, 1), (2, 2), (3, 2)]


def test_splits_count_pictures_in_the_order_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ochuman, "VAL_PICTURES", 2)
    content = document([person(0.6)], [person(0.6, mask=False)], [person(0.7)], [person(0.8)])
    names = {
        split: [image["file_name"] for image in coco_from_ochuman(content, split=split)["images"]]
        for split in ("all", "val", "test")
    }
    assert names["val"] == ["000000.jpg", "000002.jpg"] and names["test"] == ["000003.jpg"]
    assert names["all"] == names["val"] + names["test"]


def test_subsets_by_max_iou_with_the_others_absent_or_ignored() -> None:
    content = document([person(0.5), person(0.75)], [person(0.74), person(0.3)], [person(0.99), person(1.0)])

    def found(subset: str, others: str = "absent") -> list[tuple[float, int]]:
        made = coco_from_ochuman(content, subset=subset, others=others)
        return [(a["max_iou"], a["iscrowd"]) for a in made["annotations"]]

    assert found("moderate") == [(0.5, 0), (0.74, 0)]
    assert found("hard") == [(0.75, 0), (0.99, 0)]
    assert len(found("all")) == 6
    assert found("hard", "ignore") == [(0.5, 1), (0.75, 0), (0.99, 0), (1.0, 1)]
    assert len(coco_from_ochuman(content, subset="hard", others="ignore")["images"]) == 2


def test_the_command_writes_files_that_everything_here_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "ochuman.json"
    source.write_text(json.dumps(document([person(0.6), person(0.8)])))
    assert main(["--annotations", str(source), "--output", str(tmp_path / "coco")]) == 0
    assert len(list((tmp_path / "coco").glob("*.json"))) == 6
    printed = capsys.readouterr().out
    assert "val_all.json: 1 pictures, 2 people; published 2,500 and 4,313" in printed
    (photo,) = read_photos(tmp_path / "coco" / "val_hard.json")
    assert [is_taught(p) for p in photo.people] == [True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("keypoint_names"), "at its head: KeyError 'keypoint_names'"),
        (lambda d: d["keypoint_visible"].update(hidden=4), "at its head: KeyError 'hidden'"),
        (lambda d: d["images"][0]["annotations"][0].pop("max_iou"), "at picture 000000.jpg: KeyError 'max_iou'"),
        (lambda d: d["images"][0]["annotations"][0]["keypoints"].pop(), "at picture 000000.jpg"),
        (lambda d: d["images"][0]["annotations"][0]["segms"].pop("outer"), "at picture 000000.jpg: KeyError 'outer'"),
    ],
)
def test_a_foreign_file_is_named_with_its_picture(
    change: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document([person(0.6)])
    change(content)
    with pytest.raises(DataError, match=said):
        coco_from_ochuman(content)
    source = tmp_path / "other.json"
    source.write_text(json.dumps(content))
    assert main(["--annotations", str(source), "--output", str(tmp_path / "coco")]) == 2
    assert f"{source}: not OCHuman's annotation file" in capsys.readouterr().err
    source.write_text("[")
    assert main(["--annotations", str(source), "--output", str(tmp_path / "coco")]) == 2
    assert "is not JSON" in capsys.readouterr().err
