"""Table 1 by hand: two people who share half of each other, one alone, a crowd."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.drawn_people import annotation, background, drawn_pose, write_coco
from training.dataset import read_photos
from training.dataset_stats import main, statistics


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((96, 128), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Picture 1: boxes 10 x 10 of which two share 8 columns (IoU 8 / 12), and a crowd over both. 2: alone. 3: empty."""
    pose = drawn_pose(0, 2, 90)
    corner = block(2, 0, 12, 10)
    corner[:, 6:] = 0  # of the second person only four columns show: masks share 4 of 10
    corner[9, 11] = 1  # its box stays 10 x 10
    people = [
        annotation(1, 1, pose, block(0, 0, 10, 10)),
        annotation(2, 1, pose, corner),
        annotation(3, 1, None, block(0, 0, 12, 10), iscrowd=1),
        annotation(4, 2, pose, block(20, 20, 50, 80)),
        annotation(5, 2, pose, None),
    ]
    people[4]["bbox"] = [100, 0, 20, 90]
    return write_coco(tmp_path / "set", {i: background(i) for i in (1, 2, 3)}, people) / "annotations.json"


def test_figures_by_hand(crowded: Path) -> None:
    figures = statistics(read_photos(crowded))
    taught, plain, everybody = (figures[name] for name in ("joints and mask", "no crowds", "everybody"))
    assert [(f["pictures"], f["people"]) for f in (taught, plain, everybody)] == [(2, 3), (2, 4), (2, 5)]
    assert taught["box"]["above_0.5"] == 2 and taught["box"]["above_0.75"] == 0
    assert taught["box"]["mean"] == pytest.approx(2 * (8 / 12) / 3, abs=1e-4)
    assert plain["box"]["mean"] == pytest.approx(2 * (8 / 12) / 4, abs=1e-4)
    shared = 40 / (100 + 41 - 40)
    assert taught["mask"]["people"] == 3 and plain["mask"]["people"] == 3
    assert taught["mask"]["mean"] == pytest.approx(2 * shared / 3, abs=1e-4)
    assert everybody["box"]["above_0.75"] == 3  # each of the two fills ten of the crowd's twelve columns
    assert sum(taught["box"]["histogram"]) == 3 and taught["box"]["histogram"][13] == 2


def test_the_command_prints_writes_and_draws(crowded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--annotations", str(crowded), "--json", str(tmp_path / "f.json"), "--picture", str(tmp_path / "p.png")]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "MaxIoU of box > 0.5" in printed and "2 (66.7 %)" in printed and "mean MaxIoU of mask" in printed
    assert json.loads((tmp_path / "f.json").read_text()) == statistics(read_photos(crowded))
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_published_counts_are_demanded(crowded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--annotations", str(crowded), "--expect", "val"]) == 2
    assert "COCOPersons val has 2,346 pictures and 6,352 people" in capsys.readouterr().err


def test_nobody_at_all_has_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path, {1: background(1)}, []) / "annotations.json"
    assert statistics(read_photos(path))["everybody"]["box"]["mean"] is None
    assert main(["--annotations", str(path)]) == 0
    assert "-" in capsys.readouterr().out


def test_a_broken_mask_or_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pose = drawn_pose(0, 2, 90)
    broken = annotation(7, 1, pose, block(0, 0, 9, 9))
    broken["segmentation"] = {"size": [96, 128]}
    path = write_coco(tmp_path, {1: background(1)}, [broken]) / "annotations.json"
    assert main(["--annotations", str(path)]) == 2
    assert "annotation 7: ValueError segmentation: 'counts'" in capsys.readouterr().err
    content = json.loads(path.read_text())
    del content["annotations"][0]["bbox"]
    path.write_text(json.dumps(content))
    assert main(["--annotations", str(path)]) == 2
    assert "annotation 7: KeyError 'bbox'" in capsys.readouterr().err
    assert main(["--annotations", str(tmp_path / "none.json")]) == 2
    assert "annotation file not found" in capsys.readouterr().err
