"""The preview draws what training sees: labels as a tint, visible joints filled, hidden ones as rings."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.training.drawn_people import tiny_settings
from training.dataset import LABEL_COVERED, Scene, SceneDataset
from training.preview import COLOURS, COVERED_COLOUR, LABEL_SHARE, UNLABELLED_COLOUR, draw_scene, main, sheet_of


def scene() -> Scene:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:6, 2:6], labels[2:6, 20:26] = 1, LABEL_COVERED
    unlabelled = np.zeros((20, 30), np.uint8)
    unlabelled[2:6, 12:16] = 1
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, 0], keypoints[0, 16] = (10, 14, 2), (22, 14, 1)  # no limb between them
    return Scene(
        image=np.full((20, 30, 3), 100, np.uint8),
        labels=labels,
        keypoints=keypoints,
        has_mask=np.ones(1, np.uint8),
        complete=True,
        max_iou=np.zeros(1, np.float32),
        unlabelled=unlabelled,
    )


def test_tints_and_joints_by_hand() -> None:
    drawn = draw_scene(scene(), zoom=1)
    assert drawn.shape == (20, 30, 3)
    for place, colour in (((4, 4), COLOURS[0]), ((4, 22), COVERED_COLOUR), ((4, 14), UNLABELLED_COLOUR)):
        expected = 100 + LABEL_SHARE * (np.array(colour) - 100)
        np.testing.assert_allclose(drawn[place], expected, atol=1)
    assert drawn[10, 2].tolist() == [100, 100, 100]
    np.testing.assert_allclose(drawn[14, 10], COLOURS[0], atol=2)  # visible: filled
    assert drawn[14, 22].min() > 200  # hidden: the middle of a ring
    assert draw_scene(scene(), zoom=3).shape == (60, 90, 3)


def test_a_sheet_has_rows_and_columns() -> None:
    tiles = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    sheet = sheet_of(tiles, 3)
    assert sheet.shape == (4 + 6 + 4, 3 * 6 + 2 * 6, 3)
    assert (sheet[0, 0, 0], sheet[0, 12, 0], sheet[0, 24, 0], sheet[10, 0, 0]) == (10, 20, 30, 40)
    assert (sheet[10:, 12:] == 255).all() and (sheet[4:10] == 255).all()


def recipe_of(data: Path, tmp_path: Path) -> Path:
    content = tiny_settings(data, tmp_path).to_json()
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in {"data", "output"}}))
    return path


def test_the_command_draws_the_samples_of_the_run(data: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "sheet.png"
    flags = ["--recipe", str(recipe_of(data, tmp_path)), "--data", str(data), "--output", str(output)]
    assert main([*flags, "--samples", "3", "0", "--columns", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    dataset = SceneDataset(tiny_settings(data, tmp_path))
    assert [line.split(",")[0] for line in lines] == [
        f"sample {index}: {len(dataset.scene(index).keypoints)} people" for index in (3, 0)
    ]
    sheet = cv2.cvtColor(cv2.imread(str(output)), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (128, 2 * 128 + 6, 3)
    np.testing.assert_array_equal(sheet[:, :128], draw_scene(dataset.scene(3), zoom=2))


@pytest.mark.parametrize("case", ["no recipe", "no data", "suffix", "folder"])
def test_bad_input_is_one_line_and_code_two(data: Path, tmp_path: Path, capsys, case: str) -> None:
    recipe = tmp_path / "none.json" if case == "no recipe" else recipe_of(data, tmp_path)
    name = {"suffix": "sheet.what", "folder": "missing/sheet.png"}.get(case, "sheet.png")
    where = tmp_path / "nowhere" if case == "no data" else data
    flags = ["--recipe", str(recipe), "--data", str(where), "--output", str(tmp_path / name), "--samples", "0"]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
