"""Figures on hand-made sets with a known answer, the protocol's choices, and the command's outputs and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from engines import load_artifact, write_artifact
from kernels.neighbours import OWN_ONLY
from tests.fakes import STANDING, FakeKeypointEngine, FakeSegmentEngine, fake_model, picture
from tests.magenta_model import write_magenta_model
from tests.training.drawn_people import annotation, drawn_pose, tiny_settings, write_coco
from training.average_precision import average_precision
from training.dataset import CocoFolder, DataError
from training.evaluate import (
    evaluate,
    main,
    poses_from_file,
    truth_for,
    validate,
)
from training.evaluated_model import Model
from training.limb_masks import limb_mask

HEIGHT, WIDTH = 160, 200
BOX = (60, 30, 130, 140)  # x0, y0, x1, y1 of the magenta people
HALF_OF_THE_RECALL = 51 / 101  # of COCO's 101 recall steps 0, 0.01, ... 1 those up to one half


def magenta() -> Model:
    """The fake networks: each magenta box is a standing person, and the mask is what is magenta."""
    fake = fake_model()
    return Model(
        keypoints=FakeKeypointEngine(),
        segment=FakeSegmentEngine(),
        templates=fake.artifact.templates,
        feature_from_input=fake.artifact.feature_from_input,
        roi_size=64,
        joint_threshold=0.2,
    )


def standing(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    joints = STANDING * (x1 - x0, y1 - y0) + (x0 - 0.5, y0 - 0.5)
    return np.concatenate((joints, np.full((17, 1), 2)), 1).astype(np.float32)


def box_mask(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def limbs(pose: np.ndarray) -> np.ndarray:
    return limb_mask(pose, pose[:, 2], HEIGHT, WIDTH)


def write_set(folder: Path, *, wrong: int | None = None) -> CocoFolder:
    """Two pictures with one magenta person each; their true masks are drawn limbs, of the ``wrong`` one elsewhere."""
    pose = standing(BOX)
    elsewhere = np.roll(limbs(pose), 55, axis=1)
    entries = [annotation(i, i, pose, elsewhere if i == wrong else limbs(pose)) for i in (1, 2)]
    path = write_coco(folder, {i: picture(HEIGHT, WIDTH, BOX) for i in (1, 2)}, entries)
    return CocoFolder(path / "annotations.json", path / "images")


def result(image_id: int, pose: np.ndarray, score: float) -> dict:
    return {"image_id": image_id, "category_id": 1, "keypoints": pose.reshape(-1).tolist(), "score": score}


# Known figures


def test_perfect_masks_are_one(tmp_path: Path) -> None:
    figures, _ = evaluate(write_set(tmp_path), magenta(), long_side=128, poses="gt", masks="limbs")
    assert figures["mask"] == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0, "AP_medium": 1.0, "AP_large": None, "AR": 1.0}
    assert figures["mean_iou"] == 1.0
    assert figures["keypoints"] is None  # the annotations compared with themselves
    assert (figures["images"], figures["people_with_keypoints"], figures["people_with_mask"]) == (2, 2, 2)
    assert (figures["poses"], figures["masks"], figures["score"], figures["long_side"]) == ("gt", "limbs", "one", 128)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [(2, HALF_OF_THE_RECALL), (1, HALF_OF_THE_RECALL / 2)],
    ids=["the false mask comes last", "the false mask comes first"],
)
def test_one_wrong_mask_of_two(tmp_path: Path, wrong: int, expected: float) -> None:
    figures, out = evaluate(write_set(tmp_path, wrong=wrong), magenta(), long_side=128, poses="gt", masks="limbs")
    assert figures["mask"]["AP"] == pytest.approx(expected, abs=1e-4)
    assert figures["mask"]["AR"] == 0.5
    poor, good = sorted(case[0] for case in out.cases)
    assert poor < 0.5 and good == 1.0
    assert figures["mean_iou"] == pytest.approx((poor + good) / 2, abs=1e-4)


def test_poses_from_a_file(tmp_path: Path) -> None:
    """A true pose, and a false one that comes first in the file but scores less."""
    folder = write_set(tmp_path)
    true, false = standing(BOX), standing((150, 100, 190, 150))
    path = tmp_path / "poses.json"
    path.write_text(json.dumps([result(1, false, 0.3), result(1, true, 0.9)]))
    figures, out = evaluate(folder, magenta(), long_side=128, poses=path, masks="limbs")
    assert figures["keypoints"]["AP"] == pytest.approx(HALF_OF_THE_RECALL, abs=1e-4)
    assert figures["mask"]["AP"] == pytest.approx(HALF_OF_THE_RECALL, abs=1e-4)
    assert figures["keypoints"]["AR"] == 0.5
    assert figures["score"] == "pose*mask"
    assert sorted(r["score"] for r in out.mask_results) == pytest.approx([0.3, 0.9])
    equal, out = evaluate(folder, magenta(), long_side=128, poses=path, masks="limbs", score="one")
    assert {r["score"] for r in out.mask_results} == {1.0}
    assert equal["mask"]["AP"] < figures["mask"]["AP"]  # without scores the false one counts in full


def test_who_is_too_weak_to_be_served_takes_nothing_from_those_who_are(tmp_path: Path) -> None:
    """The same person found twice: of two masks that are equally sure the first would get every px."""
    folder = write_set(tmp_path)
    pose = standing(BOX)
    served = {}
    for weak in (0.24, 0.25):
        path = tmp_path / "poses.json"
        path.write_text(json.dumps([result(1, pose, weak), result(1, pose, 0.9)]))
        model = magenta()
        _, out = evaluate(folder, model, long_side=128, poses=path, score="pose")
        found = {round(r["score"], 2): coco_mask.area(r["segmentation"]) for r in out.mask_results}
        served[weak] = (
            int(found[weak]),
            int(found[0.9]),
            model.segment.feeds["roi_keypoints"][:, :, 2].max(1).tolist(),
        )
    whole = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    assert served[0.24][0] == served[0.24][1] == pytest.approx(whole, rel=0.1)
    assert served[0.24][2] == [OWN_ONLY, 2]
    assert served[0.25][0] == pytest.approx(whole, rel=0.1)
    assert served[0.25][1] == 0
    assert served[0.25][2] == [2, 2]


def test_own_poses_and_masks_of_the_magenta_people(tmp_path: Path) -> None:
    """End to end through letterbox, decoding, fit, sampling and paste: joints exact, masks the magenta box."""
    boxes = [BOX, (20, 20, 60, 100)]
    images = {i: picture(HEIGHT, WIDTH, box) for i, box in enumerate(boxes, 1)}
    entries = [annotation(i, i, standing(box), box_mask(box)) for i, box in enumerate(boxes, 1)]
    path = write_coco(tmp_path / "set", images, entries)
    folder = CocoFolder(path / "annotations.json", path / "images")
    figures, out = evaluate(folder, magenta(), long_side=256, poses="engine")
    assert figures["keypoints"]["AP"] == 1.0
    assert figures["mask"]["AP50"] == 1.0 and figures["mean_iou"] > 0.8
    assert len(out.keypoint_results) == len(out.mask_results) == 2
    for entry, box in zip(sorted(out.keypoint_results, key=lambda e: e["image_id"]), boxes, strict=True):
        np.testing.assert_allclose(np.reshape(entry["keypoints"], (17, 3))[:, :2], standing(box)[:, :2], atol=1.5)
    given, _ = evaluate(folder, magenta(), long_side=256, poses="gt")
    assert given["mask"]["AP50"] == 1.0 and given["mean_iou"] > 0.8


def test_nobody_found_is_zero_and_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "poses.json"
    path.write_text("[]")
    figures, _ = evaluate(write_set(tmp_path), magenta(), long_side=128, poses=path, masks="limbs")
    assert figures["mask"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AP_medium": 0.0, "AP_large": None, "AR": 0.0}
    assert figures["keypoints"]["AP"] == 0.0 and figures["mean_iou"] == 0.0


# The protocol


def test_who_counts_in_which_truth(tmp_path: Path) -> None:
    pose, mask = drawn_pose(20, 20, 120), box_mask(BOX)
    entries = [
        annotation(1, 1, pose, mask),
        annotation(2, 1, pose, None),  # joints only: keypoint truth only
        annotation(3, 1, None, mask),  # mask only: ignored by keypoint AP, absent from mask AP
        annotation(4, 1, pose, mask, ignore=True),
        annotation(5, 1, None, mask, iscrowd=1),
    ]
    path = write_coco(tmp_path / "set", {1: picture(HEIGHT, WIDTH)}, entries)
    photos = CocoFolder(path / "annotations.json", path / "images").photos
    keypoints, masks = truth_for(photos)
    listed = keypoints.dataset["annotations"]
    assert [(a["num_keypoints"], a["iscrowd"]) for a in listed] == [(17, 0), (17, 0), (0, 0), (0, 1)]
    assert [a["id"] for a in masks.dataset["annotations"]] == [1]
    assert listed[0]["area"] == mask.sum()
    assert 0 < listed[1]["area"] < np.prod(np.ptp(pose[:, :2], axis=0))


def test_people_without_joints_neither_count_nor_harm_in_keypoint_ap(tmp_path: Path) -> None:
    pose, other = standing(BOX), standing((5, 5, 45, 105))
    hidden = other.copy()
    hidden[:, 2] = 0
    entries = [annotation(1, 1, pose, box_mask(BOX)), annotation(2, 1, hidden, box_mask((5, 5, 45, 105)))]
    path = write_coco(tmp_path / "set", {1: picture(HEIGHT, WIDTH, BOX)}, entries)
    truth, _ = truth_for(CocoFolder(path / "annotations.json", path / "images").photos)
    found = [result(1, pose, 0.5), result(1, other, 0.9)]
    assert average_precision(truth, found, "keypoints")["AP"] == 1.0
    assert average_precision(truth, [], "keypoints")["AP"] == 0.0


def test_empty_truth_has_no_figures(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set", {1: picture(HEIGHT, WIDTH)}, [])
    folder = CocoFolder(path / "annotations.json", path / "images")
    figures, _ = evaluate(folder, magenta(), long_side=128, poses="engine")
    assert set(figures["mask"].values()) == set(figures["keypoints"].values()) == {None}
    assert figures["mean_iou"] is None


def test_limbs_by_hand() -> None:
    pose = np.zeros((17, 3), np.float32)
    assert not limb_mask(pose, pose[:, 2], 50, 60).any()
    pose[5], pose[7] = (10, 20, 2), (50, 20, 1)  # a level upper arm of 40 px: 0.12 of it thick
    arm = limb_mask(pose, pose[:, 2], 50, 60)
    assert arm[20, 10] and arm[20, 50] and arm[20, 30] and arm[22, 30] and not arm[25, 30] and not arm[20, 57]
    pose[7, 2] = 0
    assert not limb_mask(pose, pose[:, 2], 50, 60).any()  # one joint of a limb, not of the head
    pose[0] = (30, 10, 2)
    assert limb_mask(pose, pose[:, 2], 50, 60)[10, 30]


@pytest.mark.parametrize("content", ["{", "{}", '[{"image_id": 1}]', '[{"image_id": 1, "keypoints": [1], "score": 1}]'])
def test_a_file_that_is_not_keypoint_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "poses.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"poses\.json: expected a list of COCO keypoint results"):
        poses_from_file(path, 0.1)


def test_joints_of_a_file_count_from_the_threshold_on(tmp_path: Path) -> None:
    pose = standing(BOX)
    pose[:, 2] = np.linspace(0, 1, 17)
    path = tmp_path / "poses.json"
    path.write_text(json.dumps([result(7, pose, 0.5)]))
    found = poses_from_file(path, 0.5)[7]
    np.testing.assert_array_equal(found.visibility[0], np.where(np.linspace(0, 1, 17) >= 0.5, 2, 0))
    np.testing.assert_allclose(found.keypoints[0], pose)


def test_validation_of_a_run_looks_at_the_held_out_pictures(data: Path, tmp_path: Path) -> None:
    from training.train import new_network

    settings = tiny_settings(data, tmp_path)
    network = new_network(settings)
    assert validate(network, settings) == {}
    held = replace(settings, sources=(replace(settings.sources[0], holdout_every=4),))
    figures = validate(network, held)
    assert set(figures) == {"people mean IoU", "people mask AP", "people end-to-end AP", "people keypoint AP"}
    incomplete = replace(settings, sources=(replace(held.sources[0], complete=False),))
    assert set(validate(network, incomplete)) == {"people mean IoU"}


# The command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_magenta_model(tmp_path_factory.mktemp("magenta"))


def flags(folder: CocoFolder, model: Path, *more: str) -> list[str]:
    where = folder.images.parent
    return [
        "--annotations",
        str(where / "annotations.json"),
        "--images",
        str(folder.images),
        "--model",
        str(model),
        *more,
    ]


def test_the_command_writes_figures_results_and_worst_cases(tmp_path: Path, model_folder: Path, capsys) -> None:
    folder = write_set(tmp_path / "set")
    figures, results, sheet = (tmp_path / name for name in ("figures.json", "results.json", "sheet.png"))
    outputs = ["--json", str(figures), "--results", str(results), "--sheet", str(sheet)]
    assert main(flags(folder, model_folder, "--poses", "engine", *outputs)) == 0
    text = capsys.readouterr().out
    assert "2 images, 2 people with keypoints, 2 with keypoints and mask" in text
    content = json.loads(figures.read_text())
    assert content["keypoints"]["AP"] == 1.0
    assert set(content["mask"]) == {"AP", "AP50", "AP75", "AP_medium", "AP_large", "AR"}
    assert 0 <= content["mask"]["AP"] <= 1
    assert (content["images"], content["long_side"]) == (2, 128)
    assert cv2.imread(str(sheet)).shape == (260, 4 * 260, 3)
    # Its own results are a pose file, and say the same again.
    again = tmp_path / "again.json"
    assert main(flags(folder, model_folder, "--poses", str(results), "--json", str(again))) == 0
    repeated = json.loads(again.read_text())
    assert repeated["keypoints"] == content["keypoints"]
    assert repeated["mean_iou"] == pytest.approx(content["mean_iou"], abs=0.02)


def test_the_command_knows_the_limbs_baseline(tmp_path: Path, model_folder: Path) -> None:
    folder = write_set(tmp_path / "set")
    figures = tmp_path / "figures.json"
    more = ["--poses", "gt", "--masks", "limbs", "--long-side", "96", "--json", str(figures)]
    assert main(flags(folder, model_folder, *more)) == 0
    content = json.loads(figures.read_text())
    assert content["mask"]["AP"] == content["mean_iou"] == 1.0
    assert content["keypoints"] is None and content["long_side"] == 96


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--annotations": "none.json"}, "annotation file not found"),
        ({"--images": "nowhere"}, "pictures not found"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--engine": "fpga"}, "onnx"),
        ({"--poses": "none.json"}, "none.json: expected a list of COCO keypoint results"),
        ({"--json": "missing/figures.json"}, "missing"),
        ({"--sheet": "sheet.unknown"}, "cannot write"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_code_two(
    tmp_path: Path, model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, change: dict, said: str
) -> None:
    folder = write_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    arguments = flags(folder, model_folder, "--poses", "gt")
    for flag, value in change.items():
        arguments += [flag, value]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1


def test_unknown_choices_list_the_allowed_ones(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--annotations", "a", "--images", "b", "--masks", "boxes"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "exclusive" in error and "limbs" in error


def test_decode_parameters_of_another_version_are_an_error(tmp_path: Path, model_folder: Path, capsys) -> None:
    artifact = load_artifact(model_folder)
    manifest = json.loads((model_folder / "model.json").read_text())
    known = {k: manifest[k] for k in ("family", "long_side", "input_multiple", "feature_from_input", "roi_size")}
    known |= {
        k: manifest[k]
        for k in ("templates", "person_threshold", "joint_threshold", "trained_on", "measured", "provenance")
    }
    graphs = {"keypoints": artifact.keypoints_path, "segment": artifact.segment_path}
    write_artifact(tmp_path / "newer", {**known, "decode": {"telepathy": 1.0}}, graphs)
    assert main(flags(write_set(tmp_path / "set"), tmp_path / "newer")) == 2
    assert "telepathy" in capsys.readouterr().err


def test_masks_are_coded_as_coco_reads_them(tmp_path: Path) -> None:
    _, out = evaluate(write_set(tmp_path), magenta(), long_side=128, poses="engine")
    for entry in out.mask_results:
        assert entry["segmentation"]["size"] == [HEIGHT, WIDTH]
        assert coco_mask.decode(entry["segmentation"]).shape == (HEIGHT, WIDTH)
