"""The paper's tables made again: end to end on drawn people, after kills, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.training.drawn_people import (
    COLOURS,
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    paint,
    write_backgrounds,
    write_coco,
    write_people,
)
from training import evaluate, evaluated_model
from training.reproduce import data_set_figures, main, started_from, title_of
from training.settings import TrainSettings, with_changes
from training.tables import published
from training.tables.cells import Options, Remembered, run_settings
from training.tables.layout import Line, Result, document, figure, from_document, markdown, terminal
from training.tables.plan import PERSONLAB, Table, budget_setup, full_setup, make_table
from training.train import train

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "sources": [
        {
            "annotations": "people/annotations.json",
            "images": "people/images",
            "photo_weight": 0.3,
            "cutout_weight": 1.0,
            "complete": True,
        }
    ],
    "backgrounds": ["backgrounds"],
    "model": {"feature_channels": 8, "seg_width": 8, "seg_dilations": [1], "roi_size": 32},
    "canvas": [64, 64],
    "steps": 12,
    "learning_rate": 0.02,
    "ema": 0.0,
    "batch_size": 1,
    "max_rois": 2,
    "warmup_steps": 1,
    "keypoint_loss_weight": 0,
    "predicted_pose_share": 0,
    "workers": 0,
    "log_every": 1,
    "checkpoint_every": 4,
    "validate_every": 1000,
}
PAPER = {
    **{key: TINY[key] for key in ("canvas", "batch_size", "warmup_steps", "workers", "log_every", "checkpoint_every")},
    "model": {
        "family": "paper",
        "feature_channels": 8,
        "seg_width": 8,
        "roi_size": 32,
        "backbone": {"width": 4},
        "seg": {"units": 10},
    },
    "sources": [
        {
            "annotations": "coco/annotations/person_keypoints_train2017.json",
            "images": "coco/train2017",
            "photo_weight": 1.0,
        }
    ],
    "compose_weight": 0.0,
    "view": "letterbox",
    "order": "epochs",
    "steps": 1,
}


def write_crowd(folder: Path) -> Path:
    """One picture of two people, one in front of the other; what is seen of each is the mask."""
    image = background(7)
    behind, front = drawn_pose(14, 2, 90), drawn_pose(34, 4, 90)
    masks = [drawn_mask(behind), drawn_mask(front)]
    masks[0] = masks[0] * (1 - masks[1])
    for mask, colour in zip(masks, COLOURS, strict=False):
        paint(image, mask, colour)
    entries = [
        annotation(n, 1, pose, mask) for n, (pose, mask) in enumerate(zip((behind, front), masks, strict=True), 1)
    ]
    return write_coco(folder, {1: image}, entries)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, and two test sets below one folder; read only."""
    folder = tmp_path_factory.mktemp("world")
    write_people(folder / "data/people", pictures=2)
    write_backgrounds(folder / "data/backgrounds")
    write_people(folder / "general", pictures=1)
    write_crowd(folder / "crowded")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return folder


def command(world: Path, table: str, output: Path, *more: str) -> list[str]:
    """The command on the drawn world, on a budget."""
    tests = [f"--test={name}={world / name}/annotations.json,{world / name}/images" for name in ("general", "crowded")]
    recipe = ["--recipe", str(world / "tiny.json"), "--long-side", "128", "--threads", "1"]
    return [table, "--budget", "--data", str(world / "data"), "--output", str(output), *tests, *recipe, *more]


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after an uninterrupted Table 5; read only."""
    output = tmp_path_factory.mktemp("tables")
    assert main(command(world, "table5", output)) == 0
    return output


def figures_of(folder: Path, table: str = "table5") -> list[list[float | None]]:
    rows = json.loads((folder / f"{table}.json").read_text())["rows"]
    return [[cell["ours"] for cell in row["cells"]] for row in rows]


# The tables


def test_table5_is_trained_measured_and_laid_beside_the_papers(made: Path) -> None:
    content = json.loads((made / "table5.json").read_text())
    assert content["title"].startswith(
        "Table 5 in small, not the paper's network nor data: family live, 12 steps; crowded"
    )
    assert "1 pictures, 2 people" in content["title"]
    learned = next(note for note in content["notes"] if note.startswith("Learned from: "))
    assert "affine_skeleton 12 pictures, from random weights;" in learned
    assert set(content["networks"]) == {"affine_skeleton", "affine_plain", "roi_skeleton", "roi_plain"}
    assert content["networks"]["roi_plain"]["model"]["align"]["mode"] == "roi"
    assert not content["networks"]["affine_plain"]["model"]["skeleton"]["enabled"]
    assert len(content["rows"]) == 10
    last = content["rows"][-1]
    assert last["label"] == "Affine-Align -> Affine-Align"
    assert [cell["published"] for cell in last["cells"]] == [0.544, 0.141, 0.582, 0.386]
    for row in content["rows"]:
        for cell in row["cells"]:
            assert 0 <= cell["ours"] <= 1
            assert cell["difference"] == pytest.approx(cell["ours"] - cell["published"], abs=1e-6)
    assert len(list((made / "cells").glob("*.json"))) == 40
    grown = [e for e in content["evaluations"] if e["row"] == "true box -> box of joints + 50 %"]
    assert {e["run"] for e in grown} == {
        "roi_skeleton",
        "roi_plain",
    }  # tested only: the weights of the row of true boxes
    assert (made / "table5.md").read_text().count("\n|") == 12  # head, line, ten rows


def test_a_cell_is_what_the_evaluation_says(made: Path, world: Path, tmp_path: Path) -> None:
    content = json.loads((made / "table5.json").read_text())
    kept = next(e for e in content["evaluations"] if e["run"] == "roi_skeleton" and "+ 40 %" in e["row"])
    assert kept["set"] == "crowded"
    out = tmp_path / "figures.json"
    changes = ["--set", "model.align.box=joints", "--set", "model.align.expand=0.4"]
    sets = ["--annotations", str(world / "crowded/annotations.json"), "--images", str(world / "crowded/images")]
    checkpoint = ["--checkpoint", str(made / "runs/roi_skeleton/step-0000012")]
    options = ["--poses", "gt", "--masks", "overlapping", "--long-side", "128", "--threads", "1", "--json", str(out)]
    assert evaluate.main([*sets, *checkpoint, *changes, *options]) == 0
    again = json.loads(out.read_text())
    assert again["masks"] == kept["masks"] == "overlapping"  # as in the paper
    assert again["mean_iou"] == kept["mean_iou"] > 0
    assert again["mask"] == kept["mask"]


def test_made_again_nothing_is_trained_or_measured(made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    before = (copy / "table5.json").read_bytes()
    assert (
        main(command(world, "table5", copy, "--json", str(tmp_path / "t.json"), "--markdown", str(tmp_path / "t.md")))
        == 0
    )
    said = capsys.readouterr().out
    assert "0 evaluations measured, the others were there already" in said
    assert "step=" not in said
    assert (copy / "table5.json").read_bytes() == before == (tmp_path / "t.json").read_bytes()
    assert (tmp_path / "t.md").read_text() == (copy / "table5.md").read_text()


def test_a_damaged_cell_is_measured_again(made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    first, second, *_ = sorted((copy / "cells").glob("*.json"))
    first.write_text(first.read_text()[:100])
    second.write_text(json.dumps({"identity": {}, "figures": {"mask": {"AP": 1.0}}}))
    assert main(command(world, "table5", copy)) == 0
    assert "2 evaluations measured, the others were there already" in capsys.readouterr().out
    assert figures_of(copy) == figures_of(made)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twice_it_goes_on_and_ends_with_the_same_figures(made: Path, world: Path, tmp_path: Path) -> None:
    """Once with a network half trained, once between two cells; nothing that was complete is made again."""
    output = tmp_path / "tables"
    kills: list[Callable[[], bool]] = [
        (output / "runs/roi_skeleton/latest").exists,
        lambda: any((output / "cells").glob("*.json")),
    ]
    for reached in kills:
        running = subprocess.Popen(
            [sys.executable, "-m", "training.reproduce", *command(world, "table5", output)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            deadline = time.monotonic() + 300
            while not reached():
                assert running.poll() is None, running.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=60)
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "cells").glob("*.json")}
    assert kept
    assert not (output / "table5.json").exists()
    assert main(command(world, "table5", output)) == 0
    assert figures_of(output) == figures_of(made)
    assert {
        path.name: path.stat().st_mtime_ns for path in (output / "cells").glob("*.json") if path.name in kept
    } == kept
    left = {path.name for path in output.rglob("*.partial")} | {path.name for path in output.rglob(".partial*")}
    assert not left


def test_tables_2_and_3_say_what_is_not_measured(made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    """With weights for the paper's own network only: its rows are filled, those of other methods are not."""
    given_weights = f"affine_skeleton={made}/runs/affine_skeleton/step-0000012"
    options = ["--weights", given_weights, "--no-training"]
    assert main(command(world, "table3", tmp_path, *options)) == 0
    content = json.loads((tmp_path / "table3.json").read_text())
    rows = {row["label"]: [cell["ours"] for cell in row["cells"]] for row in content["rows"]}
    assert rows["Mask R-CNN, ResNet50-FPN"] == [None] * 3
    assert rows["Mask R-CNN on MoveNet's trunk (not in the paper)"] == [None] * 3
    assert rows["PersonLab, ResNet101"] == [None] * 3
    assert rows["Pose2Seg, true poses"][0] is not None
    assert rows["Pose2Seg, predicted poses"][0] is not None  # the live family finds them itself
    assert any("Not measured: Mask R-CNN" in note for note in content["notes"])
    assert content["networks"]["affine_skeleton"]["given"] == "step-0000012"
    assert not (tmp_path / "runs").exists()
    assert main(command(world, "table2", tmp_path, *options)) == 0
    assert "Not measured: Mask R-CNN" in capsys.readouterr().out
    assert figures_of(tmp_path, "table2")[3] == [figures_of(made)[-1][0]]  # crowded, true poses: Table 5's last row


def test_a_title_says_what_each_family_learned(made: Path) -> None:
    content = json.loads((made / "table5.json").read_text())
    live = content["networks"]["affine_skeleton"]
    detector = {
        **live,
        "model": {"family": "mask_rcnn"},
        "initial_weights": {"init_movenet": "m.onnx"},
        "batch_size": 6,
    }
    networks = {"affine_skeleton": live, "a": {**detector, "step": 400}, "b": {**detector, "step": 1000}}
    setup = budget_setup(made)
    table = Table(name="table2", source="", columns=(), rows=())
    shown = title_of(table, setup, networks)
    assert "family live, 12 steps; family mask_rcnn, 400 and 1,000 steps; " in shown
    assert started_from({"a": networks["a"], "live": live}) == [
        "Learned from: a 2,400 pictures, from m.onnx; live 12 pictures, from random weights."
    ]
    assert started_from({"converted": {"model": {"family": "paper"}, "step": None}}) == []


def test_detectors_start_from_the_weights_of_their_backbone() -> None:
    initial = {name: Path(name) for name in ("init_movenet", "init_resnet", "init_mask_rcnn")}
    setup = budget_setup(Path("scenes"))
    options = Options(data=Path("data"), folder=Path("out"), initial=initial)
    given = {
        name: [key for key in initial if getattr(run_settings(setup.runs[name], options), key) is not None]
        for name in ("affine_skeleton", "mask_rcnn", "mask_rcnn_movenet")
    }
    assert given == {
        "affine_skeleton": ["init_movenet"],
        "mask_rcnn": ["init_mask_rcnn"],
        "mask_rcnn_movenet": ["init_movenet"],
    }


def test_personlab_is_a_network_of_table_3_with_masks_of_its_own(
    made: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a budget: its own poses and long offsets, beside the printed figures of the smallest at one scale."""
    output = tmp_path / "out"
    setup = budget_setup(output / "scenes", recipe=world / "tiny.json")
    train(run_settings(setup.runs["personlab"], Options(data=world / "data", folder=output)))
    # A few steps make nobody sure; masks all the same.
    monkeypatch.setattr(evaluated_model, "EVALUATED_PERSON_SCORE", 0.0)
    given_weights = f"affine_skeleton={made}/runs/affine_skeleton/step-0000012"
    assert main(command(world, "table3", output, "--weights", given_weights, "--no-training")) == 0
    content = json.loads((output / "table3.json").read_text())
    ours = {row["label"]: [cell["ours"] for cell in row["cells"]] for row in content["rows"]}
    assert ours["PersonLab, ResNet101"][0] is not None
    others = ("PersonLab, ResNet101, several scales", "PersonLab, ResNet152", "PersonLab, ResNet152, several scales")
    assert all(ours[label] == [None] * 3 for label in others)
    network = content["networks"]["personlab"]
    assert network["model"]["keypoints"] == "personlab"
    assert (network["step"], network["batch_size"]) == (12, 1)  # as many pictures as the other networks saw
    kept = next(e for e in content["evaluations"] if e["run"] == "personlab")
    assert (kept["masks"], kept["poses"], kept["set"]) == ("personlab", "predicted", "general")
    assert any(note.startswith("PersonLab: printed figures are of all people of COCO") for note in content["notes"])
    out = tmp_path / "figures.json"
    sets = ["--annotations", str(world / "general/annotations.json"), "--images", str(world / "general/images")]
    checkpoint = ["--checkpoint", str(output / "runs/personlab/step-0000012"), "--poses", "engine"]
    options = ["--masks", "personlab", "--long-side", "128", "--threads", "1", "--json", str(out)]
    assert evaluate.main([*sets, *checkpoint, *options]) == 0
    again = json.loads(out.read_text())
    assert (again["mask"], again["mean_iou"]) == (kept["mask"], kept["mean_iou"])


def test_personlab_on_a_budget_follows_its_recipe() -> None:
    """What the recipe says of the method; pictures and budget are those of the other networks."""
    recipe = json.loads((ROOT / "training/personlab.json").read_text())
    budget = {"sources", "backgrounds", "compose_weight", "batch_size", "steps", "validate_every", "checkpoint_every"}
    method = {key: value for key, value in recipe.items() if key not in budget}
    weight = next(f.default for f in dataclasses.fields(TrainSettings) if f.name == "keypoint_loss_weight")
    assert with_changes({}, PERSONLAB) == {**method, "keypoint_loss_weight": weight}


def test_in_full_table_3_says_what_personlab_lacks() -> None:
    table = make_table("table3", full_setup(Path("d")))
    rows = [row for row in table.rows if row.label.startswith("PersonLab")]
    assert len(rows) == 4
    assert all(row.cells == (None, None, None) for row in rows)
    assert "the family paper has no heads for discs and offsets" in table.notes[0]
    assert "personlab" not in full_setup(Path("d")).runs


@pytest.mark.slow
def test_the_papers_network_on_sets_laid_out_as_the_papers(world: Path, tmp_path: Path, capsys: Any) -> None:
    """Table 4 in full, but tiny: four networks of one step, predicted poses out of a file."""
    coco = tmp_path / "data/coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(world / "general/images", coco / f"{split}2017")
        shutil.copy(world / "general/annotations.json", coco / f"annotations/person_keypoints_{split}2017.json")
    recipe = tmp_path / "paper.json"
    recipe.write_text(json.dumps(PAPER))
    entry = json.loads((world / "general/annotations.json").read_text())["annotations"][0]
    poses = tmp_path / "poses.json"
    poses.write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": entry["keypoints"], "score": 0.9}]))
    flags = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--recipe", str(recipe)]
    size = ["--long-side", "128", "--threads", "1"]
    assert main(["table4", *flags, *size]) == 0
    content = json.loads((tmp_path / "out/table4.json").read_text())
    assert content["title"] == "Table 4, the paper's network and sets"
    assert set(content["networks"]) == {"units_5", "affine_skeleton", "units_15", "units_20"}
    assert content["networks"]["units_20"]["model"]["seg"]["units"] == 20
    assert [row["cells"][1]["ours"] for row in content["rows"]] == [None] * 4
    assert "the family paper finds no poses: give --poses coco_val=FILE.json" in content["notes"][1]
    assert main(["table4", *flags, *size, "--poses", f"coco_val={poses}"]) == 0
    assert "4 evaluations measured, the others were there already" in capsys.readouterr().out
    assert all(
        row["cells"][1]["ours"] is not None for row in json.loads((tmp_path / "out/table4.json").read_text())["rows"]
    )


class Counting:
    """A picture's graph that counts its calls."""

    name, inputs, outputs = "counting", (), ()

    def __init__(self) -> None:
        self.calls = 0

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"features": feeds["image"].astype(np.float32) + 1}

    def close(self) -> None:
        pass


def test_a_picture_goes_through_a_network_once_while_results_fit() -> None:
    engine = Counting()
    images = [np.full((1, 4, 4, 3), value, np.uint8) for value in range(3)]
    remembered = Remembered(engine, limit_bytes=2 * images[0].size * 4)  # two results
    for _ in range(2):
        for image in images:
            np.testing.assert_array_equal(remembered.run({"image": image})["features"], image.astype(np.float32) + 1)
    assert engine.calls == 4  # the third picture is never kept
    remembered.run({"image": images[0].reshape(1, 2, 8, 3)})  # the same bytes, another picture
    assert engine.calls == 5


def test_table1_counts_by_hand(world: Path, tmp_path: Path) -> None:
    assert data_set_figures([world / "general/annotations.json"]) == {
        "images": 1,
        "persons": 1,
        "persons with MaxIoU > 0.5": 0,
        "persons with MaxIoU > 0.75": 0,
        "mean MaxIoU": 0.0,
    }
    stored = json.loads((world / "crowded/annotations.json").read_text())
    for entry, value in zip(stored["annotations"], (0.8, 0.6), strict=True):
        entry["max_iou"] = value  # as OCHuman's file says, whatever the boxes say
    (tmp_path / "stored.json").write_text(json.dumps(stored))
    both = data_set_figures([tmp_path / "stored.json", world / "general/annotations.json"])
    assert both == {
        "images": 2,
        "persons": 3,
        "persons with MaxIoU > 0.5": 2,
        "persons with MaxIoU > 0.75": 1,
        "mean MaxIoU": round((0.8 + 0.6 + 0) / 3, 4),
    }


def test_scenes_of_a_budget_are_composed_once(tmp_path: Path, capsys: Any) -> None:
    """Of the people that the recipe holds back: ids 5, 20 and 25."""
    images, annotations = {}, []
    for number in (1, 5, 20, 25):
        image, pose = background(number, 160, 200), drawn_pose(40, 5, 150)
        mask = drawn_mask(pose, 160, 200)
        paint(image, mask, COLOURS[number % 4])
        images[number] = image
        annotations.append(annotation(number, number, pose, mask))
    write_coco(tmp_path / "data/people", images, annotations)
    write_backgrounds(tmp_path / "data/backgrounds")
    recipe = {**TINY, "sources": [{**TINY["sources"][0], "hold_back_tenth": True}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    flags = [
        "--data",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "out"),
        "--recipe",
        str(tmp_path / "recipe.json"),
    ]
    assert main(["table1", "--budget", *flags, "--scenes", "2"]) == 0
    assert "Table 1 of composed scenes, not of the paper's sets" in " ".join(capsys.readouterr().out.split())
    content = json.loads((tmp_path / "out/table1.json").read_text())
    cells = {row["label"]: [cell["ours"] for cell in row["cells"]] for row in content["rows"]}
    assert cells["images"] == [2, 2]
    assert cells["persons with MaxIoU > 0.5"][1] >= 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/scenes").rglob("*.png")}
    assert main(["table1", "--budget", *flags, "--scenes", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    said = error_of(["table1", "--budget", *flags, "--scenes", "3"], capsys)
    assert "holds 2 scenes of seed 0, wanted are 3 of seed 0" in said
    recipe["sources"][0]["hold_back_tenth"] = False  # a run with it learns from everybody: nobody is left to test on
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    flags[flags.index("--output") + 1] = str(tmp_path / "other")
    assert "nobody is left to compose scenes of" in error_of(["table1", "--budget", *flags, "--scenes", "2"], capsys)


@pytest.mark.slow
def test_frame_rates_name_the_weights(tmp_path: Path, capsys: Any) -> None:
    assert main(["fps", "--output", str(tmp_path), "--pictures", "1", "--people", "2", "--threads", "1"]) == 0
    content = json.loads((tmp_path / "fps.json").read_text())
    labels = [row["label"] for row in content["rows"]]
    assert labels[0] == "paper family, random weights, PyTorch"
    assert "random weights" in labels[1] and "installed model" in labels[2]
    assert content["rows"][0]["cells"][0]["published"] == 20.0
    assert content["rows"][1]["cells"][0]["published"] is None  # the paper timed its own network only
    assert all(row["cells"][0]["ours"] > 0 for row in content["rows"])
    assert "480, 2 people" in " ".join(capsys.readouterr().out.split())


# Refused before anything runs


def error_of(arguments: list[str], capsys: Any) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            "roi_plain={made}/runs/roi_skeleton/step-0000012",
            "is another network: skeleton.enabled is True, expected False",
        ),
        ("affine_skeleton={made}/runs/roi_skeleton/step-0000012", "is another network: align.mode is 'roi', expected"),
        ("units_5={made}/runs/affine_skeleton/step-0000012", "is another network: seg_dilations is"),
        ("affine_skeleton={world}", "is not a checkpoint"),
        ("affine_skeleton={world}/tiny.json", "is neither a checkpoint folder nor weights"),
        ("pose2seg={made}/runs/roi_skeleton/step-0000012", "networks are affine_skeleton, affine_plain"),
        ("affine_skeleton", "expected NAME=PATH"),
    ],
)
def test_wrong_weights(weights: str, said: str, made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    weights = weights.format(made=made, world=world)
    assert said in error_of(command(world, "table5", tmp_path, "--weights", weights), capsys)
    assert not (tmp_path / "runs").exists()


def test_weights_cut_off_in_the_middle(made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "step-0000012"
    shutil.copytree(made / "runs/affine_skeleton/step-0000012", broken)
    whole = (broken / "ema.safetensors").read_bytes()
    (broken / "ema.safetensors").write_bytes(whole[: len(whole) // 2])
    options = ["--weights", f"affine_skeleton={broken}", "--no-training"]
    assert "do not fit the network" in error_of(command(world, "table3", tmp_path / "out", *options), capsys)


def test_missing_data_names_the_command_that_brings_them(tmp_path: Path, capsys: Any) -> None:
    flags = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    said = error_of(["table3", *flags], capsys)
    assert (
        f"annotations of COCOPersons val not found: {tmp_path}/data/coco/annotations/person_keypoints_val2017" in said
    )
    assert f"get it by python -m training.download coco --output {tmp_path}/data/coco" in said
    assert "training data not found" in said and "person_keypoints_train2017.json" in said
    said = error_of(["table2", *flags], capsys)
    assert f"python -m training.download ochuman --from FILE --output {tmp_path}/data/ochuman" in said
    assert "training.download" in error_of(["table1", *flags], capsys)
    assert not (tmp_path / "out/runs").exists()
    assert "needs --data" in error_of(["table5"], capsys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipe", "{tmp}/none.json"], "recipe {tmp}/none.json of units_5"),
        (["--set", "stepps=3"], "unknown training settings stepps"),
        (["--test", "general=only.json"], "expected NAME=ANNOTATIONS.json,PICTURES"),
        (["--poses", "coco_val=x.json"], "test sets are general, crowded"),
        (["--poses", "general={tmp}/none.json"], "no such file"),
        (["--init-movenet", "{tmp}/none.onnx"], "training data not found: {tmp}/none.onnx"),
    ],
)
def test_wrong_options(more: list[str], said: str, world: Path, tmp_path: Path, capsys: Any) -> None:
    more = [item.format(tmp=tmp_path) for item in more]
    assert said.format(tmp=tmp_path) in error_of(command(world, "table4", tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out/runs").exists()


def test_another_run_in_the_folder_is_not_continued(made: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    said = error_of(command(world, "table5", tmp_path, "--seed", "9"), capsys)
    assert "does not fit this run: seed was 0, now 9" in said


def test_two_commands_do_not_share_a_folder(world: Path, tmp_path: Path, capsys: Any) -> None:
    import fcntl

    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert f"another command works in {tmp_path}" in error_of(command(world, "table5", tmp_path), capsys)


# A dry run


def test_a_dry_run_lists_networks_steps_and_times_and_does_nothing(
    made: Path, world: Path, tmp_path: Path, capsys: Any
) -> None:
    given_weights = f"roi_plain={made}/runs/roi_plain/step-0000012"
    arguments = command(world, "table5", tmp_path / "out", "--weights", given_weights, "--dry-run", "--time-steps", "1")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("not begun") == 3 and said.count("(1 steps timed)") == 3
    assert "given: " in said and "40 evaluations" in said
    assert not (tmp_path / "out").exists()
    shutil.copytree(made / "runs/affine_plain", tmp_path / "half/runs/affine_plain")
    assert main(command(world, "table5", tmp_path / "half", "--dry-run", "--time-steps", "0", "--steps", "25")) == 0
    said = capsys.readouterr().out
    assert "at step 12" in said and "as fast as so far" in said and "not timed (--time-steps)" in said
    assert (
        main(
            [
                "table2",
                "--data",
                str(tmp_path / "none"),
                "--output",
                str(tmp_path / "o"),
                "--dry-run",
                "--time-steps",
                "0",
            ]
        )
        == 0
    )
    assert "training.download ochuman" in capsys.readouterr().out


# Figures and layout


def test_printed_figures_are_complete() -> None:
    """Sums over the published tables, worked out from the paper's by hand: one digit mistyped changes them."""
    assert sum(sum(row) for row in published.OCHUMAN.values()) == pytest.approx(5.505)
    assert sum(value for row in published.COCO_PERSONS.values() for value in row if value) == pytest.approx(9.513)
    assert sum(published.UNITS.values()) == pytest.approx(2.211)
    columns = np.array(list(published.ALIGNMENT.values()))
    assert columns.shape == (10, 4)
    np.testing.assert_allclose(columns.sum(0), (4.39, 0.989, 5.085, 3.835), atol=1e-9)
    assert [key[2] for key in published.ALIGNMENT] == [None, *np.arange(0.3, 1.05, 0.1).round(1), None]
    for name in ("table2", "table3", "table4", "table5"):
        for setup in (full_setup(Path("d")), budget_setup(Path("s"))):
            table = make_table(name, setup)
            assert all(len(row.cells) == len(row.published) == len(table.columns) for row in table.rows)
            assert {cell.run for cell in table.cells()} <= set(setup.runs)
            assert {cell.test for cell in table.cells()} <= set(setup.tests)


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (None, "-", "-"),
        (0.5444, ".544", "+.544"),
        (-0.1, "-.100", "-.100"),
        (0.0, ".000", "+.000"),
        (1.0, "1.000", "+1.000"),
        (4731, "4,731", "+4,731"),
        (19.64, "19.6", "+19.6"),
        (-12345.0, "-12,345", "-12,345"),
    ],
)
def test_figures_are_written_as_in_papers(value: float | None, plain: str, signed: str) -> None:
    assert figure(value) == plain
    assert figure(value, sign=True) == signed


def test_brackets_are_printed_as_they_are() -> None:
    line = Line(label="row [a]", published=(0.5,), ours=(None,))
    result = Result(
        name="t", title="T [b]", source="S [c]", columns=("C [d]",), lines=(line,), notes=("pip install 'x[train]'",)
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal(result))
    printed = console.export_text()
    assert all(text in printed for text in ("row [a]", "T [b]", "S [c]", "C [d]", "'x[train]'"))


CELLS = st.one_of(st.none(), st.floats(0, 1).map(lambda v: round(v, 4)))


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_a_result_reads_back_and_every_row_has_all_columns(columns: int, rows: int, data: st.DataObject) -> None:
    cells = st.tuples(*[CELLS] * columns)
    lines = [Line(label=f"a | b {n}", published=data.draw(cells), ours=data.draw(cells)) for n in range(rows)]
    result = Result(
        name="table9",
        title="T",
        source="S",
        columns=tuple(f"c{n}" for n in range(columns)),
        lines=tuple(lines),
        notes=("n",),
    )
    back = from_document(json.loads(json.dumps(document(result))))
    assert back == result
    table = [line for line in markdown(result).splitlines() if line.startswith("|")]
    assert len(table) == rows + 2
    assert {line.replace("\\|", "").count("|") for line in table} == {3 * columns + 2}
