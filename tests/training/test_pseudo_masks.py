"""Masks where two opinions agree: who gets one, who keeps what there is, and what is said of bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from benchmarks import mediapipe_poses
from tests.fakes import STANDING, picture
from tests.magenta_model import write_magenta_model
from tests.training.drawn_people import annotation, write_coco
from training.annotations import decode_mask
from training.mediapipe_masks import LANDMARKS, is_same_person, window_of
from training.pseudo_masks import Opinions, main

HEIGHT, WIDTH = 160, 450
BOXES = ((20, 30, 70, 140), (200, 30, 250, 140), (380, 30, 430, 140))  # x0, y0, x1, y1 of the magenta people, far apart
SCRIPT = Path(__file__).resolve().parents[2] / "training" / "mediapipe_masks.py"


def standing(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    joints = STANDING * (x1 - x0, y1 - y0) + (x0 - 0.5, y0 - 0.5)
    return np.concatenate((joints, np.full((17, 1), 2)), 1).astype(np.float32)


def own_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[100:120, 100:120] = 1
    return mask


@pytest.fixture(scope="module")
def magenta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_magenta_model(tmp_path_factory.mktemp("magenta"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    image = picture(HEIGHT, WIDTH, *BOXES)
    people = [annotation(number, 7, standing(box), None) for number, box in enumerate(BOXES, 1)]
    people.append(annotation(4, 7, standing(BOXES[1]), own_mask()))
    people.append(annotation(5, 7, standing(BOXES[0]), None, ignore=True))
    return write_coco(tmp_path / "set", {7: image}, people)


def opinion(x: int, y: int, height: int = 110, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x, y], np.int32), np.full((height, width), 255, np.uint8)


def save(path: Path, people: dict[int, tuple[np.ndarray, np.ndarray]]) -> Path:
    arrays: dict[str, Any] = {}
    for number, (corner, mask) in people.items():
        arrays |= {f"{number}.corner": corner, f"{number}.mask": mask}
    np.savez_compressed(path, **arrays)
    return path


def run(data: Path, model: Path, second: Path, *more: str) -> tuple[int, Path]:
    output = data / "masks" / "annotations.json"
    arguments = ["--annotations", str(data / "annotations.json"), "--images", str(data / "images")]
    arguments += ["--model", str(model), "--second", str(second), "--output", str(output), "--engine", "onnx", *more]
    return main(arguments), output


def test_masks_come_where_both_agree_and_nothing_else_changes(
    data: Path, magenta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = save(
        tmp_path / "second.npz",
        {1: opinion(20, 30), 2: opinion(225, 30), 4: opinion(200, 30), 5: opinion(20, 30)},  # 2 is half a body beside
    )
    sheet = tmp_path / "sheet.png"
    code, output = run(data, magenta, second, "--sheet", str(sheet))
    assert code == 0
    assert "3 people with two opinions" in capsys.readouterr().out  # weak labels are not asked about
    before = {entry["id"]: entry for entry in json.loads((data / "annotations.json").read_text())["annotations"]}
    after = {entry["id"]: entry for entry in json.loads(output.read_text())["annotations"]}
    assert [number for number, entry in after.items() if entry != before[number]] == [1]
    assert after[1]["mask_source"] == "pseudo"
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[30:140, 20:70] = 1
    found = decode_mask(after[1]["segmentation"], HEIGHT, WIDTH)
    assert (found & truth).sum() / (found | truth).sum() > 0.9
    assert after[1]["area"] == found.sum() == coco_masks.area(after[1]["segmentation"])
    x, y, width, height = after[1]["bbox"]
    assert found[int(y) : int(y + height), int(x) : int(x + width)].sum() == found.sum()
    assert sheet.stat().st_size > 500


def test_a_stricter_limit_takes_fewer(data: Path, magenta: Path, tmp_path: Path) -> None:
    second = save(
        tmp_path / "second.npz", {1: opinion(20, 30), 3: opinion(385, 30)}
    )  # 3 is a tenth of its width beside

    def made(limit: str) -> list[int]:
        _, output = run(data, magenta, second, "--agree", limit)
        return [entry["id"] for entry in json.loads(output.read_text())["annotations"] if "mask_source" in entry]

    assert made("0.5") == [1, 3]
    assert made("0.9") == [1]


def test_small_pieces_are_left_away() -> None:
    ours = np.zeros((40, 60), np.float32)
    ours[5:35, 5:25] = 0.9
    ours[5:12, 40:52] = 0.9  # 84 px of 600: a hand behind something
    ours[30:33, 40:43] = 0.9
    mask = Opinions(ours, ours).mask()
    assert mask[5:35, 5:25].all() and mask[5:12, 40:52].all()
    assert mask.sum() == 30 * 20 + 7 * 12


def test_opinions_of_nothing_agree_about_nothing() -> None:
    nothing = np.zeros((4, 4), np.float32)
    assert Opinions(nothing, nothing).iou == 0
    half = nothing.copy()
    half[:2] = 0.8
    assert Opinions(half, np.full((4, 4), 0.8, np.float32)).iou == 0.5


@pytest.mark.parametrize("corner", [(420, 30), (-3, 30)])
def test_a_mask_beside_the_picture_is_named(
    corner: tuple[int, int], data: Path, magenta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run(data, magenta, save(tmp_path / "second.npz", {3: opinion(*corner)}))
    assert code == 2 and not output.exists()
    assert "mask of annotation 3: expected uint8 inside 450 x 160 px, got uint8 50 x 110 at" in capsys.readouterr().err


def test_what_is_no_file_of_masks_is_named(
    data: Path, magenta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "second.npz").write_text("no")
    code, _ = run(data, magenta, tmp_path / "second.npz")
    assert code == 2
    assert "second.npz: expected an .npz of masks" in capsys.readouterr().err


# The other opinion


def test_joints_are_those_of_the_benchmarks_script() -> None:
    """Both run where nothing of the repository can be imported, so each names them."""
    assert LANDMARKS == mediapipe_poses.LANDMARKS


def test_a_cut_out_holds_the_joints_with_a_margin_and_stays_in_the_picture() -> None:
    joints = np.array([[50.0, 20.0], [70.0, 120.0]])
    assert window_of(joints, 200, 300) == (20, 0, 100, 150)
    assert window_of(joints, 130, 90) == (20, 0, 90, 130)


def test_somebody_else_is_not_the_person() -> None:
    keypoints = standing(BOXES[0])
    found = keypoints[:, :2].copy()
    assert is_same_person(found, keypoints)
    found[:6] += 40  # 11 of 17 are right
    assert is_same_person(found, keypoints)
    found[6:8] += 40
    assert not is_same_person(found, keypoints)
    keypoints[:8, 2] = 0  # joints that nobody labelled say nothing
    assert is_same_person(found, keypoints)


def test_without_the_library_it_says_what_to_do(tmp_path: Path) -> None:
    arguments = ["--annotations", "a.json", "--images", "b", "--output", str(tmp_path / "c.npz")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "python -m benchmarks.compare --install" in done.stderr
