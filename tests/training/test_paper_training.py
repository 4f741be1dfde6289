"""The family `paper` in the common training loop: its data, learning, resuming, and evaluation with given poses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.square_letterbox import plan_square_letterbox, square_letterbox
from tests.training.drawn_people import (
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    polygon,
    write_coco,
    write_people,
)
from training import evaluate, evaluated_model
from training.checkpoint import CheckpointError, load_weights, read_state
from training.dataset import CocoFolder, DataError, SceneDataset, is_taught, letterbox_scene
from training.families import new_network_of
from training.losses import mask_loss
from training.settings import TrainSettings, settings_from_json
from training.train import Trainer, build_optimiser, main, set_mode, train

MODEL = {
    "family": "paper",
    "feature_channels": 8,
    "seg_width": 8,
    "roi_size": 32,
    "backbone": {"width": 4},
    "seg": {"units": 2},
}


def paper_run(data: Path, output: Path, **changes: Any) -> TrainSettings:
    content = {
        "model": MODEL,
        "sources": [{"annotations": "people/annotations.json", "images": "people/images", "photo_weight": 1.0}],
        "compose_weight": 0.0,
        "canvas": [128, 128],
        "view": "letterbox",
        "order": "epochs",
        "photometric": False,
        "steps": 4,
        "batch_size": 2,
        "max_rois": 8,
        "schedule": "release",
        "optimiser": "adam",
        "weight_decay": 0.0,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "ema": 0.0,
        "dice_weight": 0.0,
        "mask_loss_weight": 1.0,
        "roi_augmentation_share": 1.0,
        "pose_jitter": False,
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 100,
        **changes,
    }
    return settings_from_json(content, data=data, output=output)


# Data


def test_a_letterboxed_scene_is_the_photograph_and_its_people_as_they_are(data: Path) -> None:
    folder = CocoFolder(data / "people/annotations.json", data / "people/images")
    photo = folder.photos[1]
    scene = letterbox_scene(folder, photo, 64)
    plan = plan_square_letterbox(96, 128, side=64)  # scale 1/2, 8 px of padding above
    np.testing.assert_array_equal(scene.image, square_letterbox(folder.image(photo), plan))
    np.testing.assert_allclose(scene.keypoints[0, :, :2], photo.people[0].keypoints[:, :2] / 2 + (0, 8), atol=1e-4)
    assert (scene.keypoints[0, :, 2] == 2).all()
    x0, y0, x1, y1 = photo.people[0].box
    # An edge half a px out of a px's centre moves with the centres: (x0 - 0.5) / 2 + 0.5.
    np.testing.assert_allclose(scene.boxes[0], [x0 / 2 + 0.25, y0 / 2 + 8.25, x1 / 2 + 0.25, y1 / 2 + 8.25])
    assert scene.photo_masks is not None and scene.photo_masks.segmentations == (photo.people[0].segmentation,)
    assert (scene.labels == 1).sum() == pytest.approx(drawn_mask(photo.people[0].keypoints).sum() / 4, rel=0.1)
    assert scene.has_mask.tolist() == [1]


def test_who_is_in_the_papers_training_set(tmp_path: Path) -> None:
    pose = drawn_pose(20, 2, 90)
    mask = drawn_mask(pose)
    outline = polygon(mask)
    thin = annotation(8, 1, pose, mask)
    thin["bbox"] = [5, 5, 1, 40]
    people = [
        annotation(1, 1, pose, mask),
        annotation(2, 1, pose, None),
        annotation(3, 1, None, mask),
        annotation(4, 1, pose, mask, iscrowd=1),
        annotation(5, 1, pose, mask, ignore=True),
        {**annotation(6, 1, pose, mask), "segmentation": outline},
        {**annotation(7, 1, pose, mask), "segmentation": [outline[0][:4]]},
        thin,
    ]
    write_coco(tmp_path, {1: background(1)}, people)
    photo = CocoFolder(tmp_path / "annotations.json", tmp_path / "images").photos[0]
    assert [is_taught(person) for person in photo.people] == [True, False, False, False, False, True, False, False]


def test_an_epoch_is_every_photograph_once_in_another_order(tmp_path: Path) -> None:
    write_people(tmp_path / "people", pictures=7)
    settings = paper_run(tmp_path, tmp_path / "run", steps=14)
    dataset = SceneDataset(settings)
    pictures = [dataset[i].image.tobytes() for i in range(14)]
    first, second = pictures[:7], pictures[7:]
    assert len(set(first)) == len(set(second)) == 7 and set(first) == set(second)
    assert first != second
    again = SceneDataset(settings)
    assert [again[i].image.tobytes() for i in (13, 0, 8)] == [pictures[i] for i in (13, 0, 8)]
    other = SceneDataset(replace(settings, seed=1))
    assert [other[i].image.tobytes() for i in range(7)] != first


# Learning


@pytest.mark.slow
def test_it_over_fits_a_few_people(data: Path, tmp_path: Path) -> None:
    settings = paper_run(data, tmp_path, learning_rate=3e-3)
    torch.manual_seed(0)
    network = new_network_of(settings.model)
    optimiser = build_optimiser(network, settings)
    assert {group["base"] for group in optimiser.param_groups} == {3e-3}
    set_mode(network, settings)
    assert network.backbone.training and network.seg_module.training
    trainer = Trainer(network, replace(settings, roi_augmentation_share=0.0))
    dataset = SceneDataset(settings)
    scenes = [dataset[i] for i in range(4)]
    image = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    values = []
    for _ in range(30):
        losses = trainer(image, scenes, np.random.default_rng(0))
        assert set(losses) == {"mask"}
        optimiser.zero_grad()
        losses["mask"].backward()
        optimiser.step()
        values.append(float(losses["mask"].detach()))
    assert values[0] > 0.5 and np.mean(values[-3:]) < 0.3 * values[0]


def test_without_dice_the_loss_is_the_cross_entropy_alone() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 4), (torch.rand(2, 4, 4) > 0.5).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(mask_loss(logits, targets, dice_weight=0.0), entropy)
    assert mask_loss(logits, targets) > entropy


@pytest.mark.slow
def test_a_step_of_the_published_size() -> None:
    """Forward, backward and a step of Adam with all 41 million parameters, on one person."""
    recipe = Path(__file__).resolve().parents[2] / "training" / "paper.json"
    settings = settings_from_json(json.loads(recipe.read_text()), data="data", output="out")
    network = new_network_of(settings.model)
    build_optimiser(network, settings)
    set_mode(network, settings)
    features = network(torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8))["features"]
    assert features.shape == (1, 256, 128, 128)
    pose = torch.from_numpy(drawn_pose(0, 0, 64))
    matrix = torch.tensor([[[1.0, 0, 20], [0, 1, 20]]])
    logits = network.segment(features, matrix, torch.zeros(1, dtype=torch.int32), pose[None])
    assert logits.shape == (1, 64, 64)
    mask_loss(logits, torch.ones(1, 64, 64), dice_weight=0.0).backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Path]:
    settings = paper_run(data, tmp_path_factory.mktemp("paper"))
    return settings, train(settings)


def test_resuming_equals_not_stopping(finished: tuple[TrainSettings, Path], tmp_path: Path) -> None:
    settings = replace(finished[0], output=tmp_path / "resumed")
    assert train(settings, stop_after=2).name == "step-0000002"
    torch.manual_seed(99)
    resumed = train(settings)
    one, other = (load_weights(path).state_dict() for path in (finished[1], resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_an_average_the_exported_weights_are_the_last(finished: tuple[TrainSettings, Path]) -> None:
    average, last = (load_weights(finished[1], average=which).state_dict() for which in (True, False))
    assert all(torch.equal(value, last[name]) for name, value in average.items())


def test_a_folder_is_not_continued_with_another_ablation(finished: tuple[TrainSettings, Path]) -> None:
    settings = finished[0]
    other = settings_from_json({**settings.to_json(), "model": {**MODEL, "skeleton": {"enabled": False}}})
    with pytest.raises(CheckpointError, match=r"model\.skeleton\.enabled was True, now False"):
        train(other)
    one = settings_from_json(
        {**settings.to_json(), "init_checkpoint": str(finished[1]), "model": other.to_json()["model"]}
    )
    with pytest.raises(CheckpointError, match="holds another network"):
        train(replace(one, output=settings.output.parent / "ablated"))


def test_validation_looks_at_given_poses_with_the_papers_score(tmp_path: Path) -> None:
    write_people(tmp_path / "people", pictures=4)
    source = {
        "annotations": "people/annotations.json",
        "images": "people/images",
        "photo_weight": 1.0,
        "holdout_every": 2,
        "complete": True,
    }
    settings = paper_run(tmp_path, tmp_path / "run", sources=[source], steps=1, eval={"score": "one"})
    figures = read_state(train(settings))["history"][-1]["validation"]
    assert set(figures) == {"people mean IoU", "people mask AP"}


# Evaluation


def evaluated(checkpoint: Path, data: Path, tmp_path: Path, *flags: str) -> dict[str, Any]:
    figures = tmp_path / "figures.json"
    people = data / "people"
    common = ["--annotations", str(people / "annotations.json"), "--images", str(people / "images")]
    flags = ("--poses", "gt", "--long-side", "128", *flags)
    assert evaluate.main([*common, "--checkpoint", str(checkpoint), *flags, "--json", str(figures)]) == 0
    content: dict[str, Any] = json.loads(figures.read_text())
    return content


def test_a_checkpoint_is_evaluated_with_true_poses(
    finished: tuple[TrainSettings, Path], data: Path, tmp_path: Path
) -> None:
    figures = evaluated(finished[1], data, tmp_path)
    assert (figures["people_with_mask"], figures["score"], figures["poses"]) == (4, "one", "gt")
    assert figures["mask"]["AP"] is not None and figures["keypoints"] is None


def test_the_command_evaluates_a_checkpoint(finished: tuple[TrainSettings, Path], data: Path) -> None:
    """As a process of its own: run as a command, the module's classes must be those that others import."""
    people = data / "people"
    command = [sys.executable, "-m", "training.evaluate", "--checkpoint", str(finished[1]), "--poses", "gt"]
    command += ["--annotations", str(people / "annotations.json"), "--images", str(people / "images")]
    command += ["--long-side", "128"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 with keypoints and mask" in done.stdout


def test_a_checkpoint_is_evaluated_with_other_windows_than_it_was_trained_with(
    finished: tuple[TrainSettings, Path], data: Path, tmp_path: Path
) -> None:
    plain = evaluated(finished[1], data, tmp_path)["mean_iou"]
    boxes = ("--set", "model.align.mode=roi")
    joints = (*boxes, "--set", "model.align.box=joints", "--set", "model.align.expand=0.5")
    others = [
        evaluated(finished[1], data, tmp_path, *changes)["mean_iou"]
        for changes in (boxes, joints, ("--set", "model.templates.factor=1.3"))
    ]
    assert len({plain, *others}) == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--poses", "engine"], "a model of the family paper finds no people: give --poses gt"),
        (["--poses", "gt", "--set", "model.seg.units=3"], "do not fit the network"),
        (["--poses", "gt", "--set", "steps=3"], "only settings of the model can change here"),
        (["--poses", "gt", "--set", "model.align.mode=zoom"], "align.mode must be one of affine, roi"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_said_in_one_line(
    finished: tuple[TrainSettings, Path], data: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    people = data / "people"
    common = ["--annotations", str(people / "annotations.json"), "--images", str(people / "images")]
    assert evaluate.main([*common, "--checkpoint", str(finished[1]), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ")


def test_boxes_from_the_annotations_need_annotated_people(finished: tuple[TrainSettings, Path], data: Path) -> None:
    model, _ = evaluated_model.checkpoint_model(finished[1], ["model.align.mode=roi"], None)
    folder = CocoFolder(data / "people/annotations.json", data / "people/images")
    people = evaluate.poses_from_annotations(folder.photos[0])
    plan = evaluated_model.picture_plan(model, 96, 128, 128)
    features = evaluated_model.picture_features(model, folder.image(folder.photos[0]), plan)
    evaluated_model.segment_people(model, features, plan, people)
    with pytest.raises(ValueError, match=r"align\.box gt needs annotated boxes"):
        evaluated_model.segment_people(model, features, plan, replace(people, boxes=None))


def test_nobody_is_found_without_keypoint_heads(finished: tuple[TrainSettings, Path]) -> None:
    model, _ = evaluated_model.checkpoint_model(finished[1], [], None)
    plan = evaluated_model.picture_plan(model, 96, 128, 128)
    with pytest.raises(DataError, match="finds no people"):
        evaluated_model.find_people(model, np.zeros((96, 128, 3), np.uint8), plan)


def test_the_command_trains_an_ablation(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.json"
    content = paper_run(data, tmp_path).to_json()
    recipe.write_text(json.dumps({key: value for key, value in content.items() if key not in {"data", "output"}}))
    flags = ["--recipe", str(recipe), "--data", str(data), "--output", str(tmp_path / "run"), "--steps", "1"]
    roi = ["--set", "model.align.mode=roi", "--set", "model.skeleton.enabled=false"]
    assert main([*flags, *roi]) == 0, capsys.readouterr().err
    stored = read_state(tmp_path / "run" / "step-0000001")["settings"]["model"]
    assert (stored["align"]["mode"], stored["skeleton"]["enabled"]) == ("roi", False)
