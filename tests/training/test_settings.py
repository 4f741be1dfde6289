"""Settings: JSON and back, unknown keys, values that are not allowed, and the command's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.drawn_people import tiny_settings
from training.families import new_network_of
from training.model import LiveNetwork
from training.model_settings import ModelSettings
from training.settings import (
    MASK_PART_LEARNS,
    SourceSettings,
    TrainSettings,
    parts_of,
    settings_from_json,
    with_changes,
)
from training.train import learning_rate_factor, parse_arguments

RECIPES = sorted((Path(__file__).resolve().parents[2] / "training").glob("*.json"))


def test_json_round_trip_gives_the_same_settings() -> None:
    settings = tiny_settings(
        Path("data"), Path("out"), init_movenet=Path("movenet.onnx"), schedule="paper", backgrounds=("a", "b")
    )
    text = json.dumps(settings.to_json())
    assert settings_from_json(json.loads(text)) == settings
    defaults = TrainSettings(data=Path("data"), output=Path("out"))
    assert settings_from_json(json.loads(json.dumps(defaults.to_json()))) == defaults


def test_keyword_arguments_win_and_none_does_not() -> None:
    content = tiny_settings(Path("data"), Path("out")).to_json()
    merged = settings_from_json(content, steps=99, seed=None, output="elsewhere")
    assert (merged.steps, merged.seed, merged.output) == (99, 0, Path("elsewhere"))


def test_unknown_keys_are_named_with_the_known_ones() -> None:
    content = {**tiny_settings(Path("data"), Path("out")).to_json(), "stepps": 3, "bath_size": 2}
    with pytest.raises(ValueError, match=r"unknown training settings bath_size, stepps; known are .*batch_size.*steps"):
        settings_from_json(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"sources": [{"annotations": "a", "images": "b", "wieght": 1}]},
            r"unknown settings wieght of a source; known are",
        ),
        ({"sources": [{"images": "b"}]}, r"a source lacks annotations"),
        ({"model": {"width": 3}}, r"unknown settings width of the model; known are .*seg_width"),
    ],
)
def test_parts_of_a_recipe_are_checked_too(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_from_json({**tiny_settings(Path("data"), Path("out")).to_json(), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"canvas": [100, 128]}, "canvas must be multiples of 32, got .100, 128."),
        ({"schedule": "linear"}, "schedule must be one of cosine, paper, release, detectron, got 'linear'"),
        ({"optimiser": "lion"}, "optimiser must be one of adamw, adam, sgd, got 'lion'"),
    ],
)
def test_values_that_are_not_allowed_name_the_allowed_ones(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_from_json({**tiny_settings(Path("data"), Path("out")).to_json(), **change})


def test_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="family must be 'live' here, got 'paper'"):
        LiveNetwork(replace(ModelSettings(), family="paper"))


def test_flags_override_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    source = {"annotations": "a.json", "images": "images", "cutout_weight": 1.0}
    recipe.write_text(
        json.dumps({"sources": [source], "steps": 7, "canvas": [64, 96], "model": {"seg_dilations": [1]}})
    )
    flags = ["--recipe", str(recipe), "--data", "d", "--output", "o"]
    plain = parse_arguments(flags)
    assert plain.sources == (SourceSettings(annotations="a.json", images="images", cutout_weight=1.0),)
    assert (plain.steps, plain.canvas, plain.model.seg_dilations) == (7, (64, 96), (1,))
    assert plain.batch_size == TrainSettings(data=Path(), output=Path()).batch_size
    changed = parse_arguments([*flags, "--steps", "9", "--learning-rate", "0.5", "--init-checkpoint", "c"])
    assert (changed.steps, changed.learning_rate, changed.init_checkpoint) == (9, 0.5, Path("c"))
    ablated = parse_arguments([*flags, "--set", "model.align.hard_rule=false", "--set", "model.skeleton.enabled=false"])
    assert not ablated.model.align.hard_rule and not ablated.model.skeleton.enabled
    assert ablated.model.align.min_scale_rule and ablated.steps == 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_readable(path: Path) -> None:
    settings = settings_from_json(json.loads(path.read_text()), data="data", output="out")
    assert set(settings.lr_scale) == set(parts_of(settings.model))
    if settings.model.family != "mask_rcnn":  # whose parts tests/training/test_mask_rcnn.py checks
        with torch.device("meta"):
            parts = {name for name, _ in new_network_of(settings.model).named_children()}
        assert set(settings.lr_scale) == parts
    if settings.model.family == "live":
        assert sum(source.cutout_weight for source in settings.sources) > 0
        assert settings.backgrounds
    assert settings_from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(("name", "epochs", "drops"), [("paper", 40, (33,)), ("paper_release", 25, (15, 20))])
def test_the_recipes_of_the_paper_say_what_the_paper_says(name: str, epochs: int, drops: tuple[int, ...]) -> None:
    path = next(path for path in RECIPES if path.stem == name)
    settings = settings_from_json(json.loads(path.read_text()), data="data", output="out")
    assert settings.model == ModelSettings(family="paper")
    assert (settings.model.feature_channels, settings.model.seg_width, settings.model.seg.units) == (256, 256, 10)
    assert (settings.batch_size, settings.max_rois, settings.learning_rate) == (4, 8, 2e-4)
    assert (settings.optimiser, settings.weight_decay, settings.warmup_steps) == ("adam", 0.0, 1000)
    assert (settings.canvas, settings.view, settings.order, settings.photometric) == (
        (512, 512),
        "letterbox",
        "epochs",
        False,
    )
    assert (settings.dice_weight, settings.pose_jitter, settings.roi_augmentation_share) == (0.0, False, 1.0)
    assert (settings.ema, settings.mask_loss_weight, settings.eval.score) == (0.0, 1.0, "one")
    per_epoch = 14_150  # 56,599 pictures, four a step
    assert settings.steps == epochs * per_epoch
    for number, epoch in enumerate(drops):
        before, after = (learning_rate_factor(settings, epoch * per_epoch + d) for d in (-2, 1))
        assert before == pytest.approx(0.1**number) and after == pytest.approx(0.1 ** (number + 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.family=dead", "family must be one of live, paper, mask_rcnn, got 'dead'"),
        ("model.seg.units=0", r"seg\.units must be a whole number of at least 1, got 0"),
        ("model.seg.depth=3", "unknown settings depth of the model's seg; known are units"),
        ("model.seg=3", "the model's seg must be a JSON object, got 3"),
        ("model.skeleton.enabled=1", r"skeleton\.enabled must be true or false, got 1"),
        ("model.skeleton.negative_occluded=no", r"skeleton\.negative_occluded must be true or false, got 'no'"),
        ("model.align.mode=box", r"align\.mode must be one of affine, roi, got 'box'"),
        ("model.align.box=person", r"align\.box must be one of gt, joints, got 'person'"),
        ("model.align.box=joints", r"align\.box and align\.expand belong to align\.mode roi"),
        ("model.align.expand=0.5", r"align\.box and align\.expand belong to align\.mode roi"),
        ("model.align.min_scale_rule=0", r"align\.min_scale_rule must be true or false"),
        ("model.align.score=ours", r"align\.score must be one of ref, paper, got 'ours'"),
        ("model.align.compat=pt1", r"align\.compat must be one of exact, ref_pt10, ref_pt13, got 'pt1'"),
        ("model.templates.k=4", r"templates\.k must be one of 1, 2, 3, got 4"),
        ("model.templates.factor=0", r"templates\.factor must be from 0\.1 to 10, got 0"),
        ("model.backbone.stride_in=5x5", r"backbone\.stride_in must be one of 3x3, 1x1, got '5x5'"),
        ("model.roi_size=63", "roi_size must be even and at least 8 px, got 63"),
        ("model.seg_dilations=[1]", "seg_dilations belong to the family live"),
        ("eval.score=best", r"eval\.score must be one of auto, one, pose, mask, pose\*mask, got 'best'"),
        ("view=zoom", "view must be one of random, letterbox, got 'zoom'"),
        ("canvas=[512, 640]", "view letterbox needs a square canvas, got"),
        ("order=any", "order must be one of drawn, epochs, got 'any'"),
        ("compose_weight=0.5", "order epochs goes through photographs: set compose_weight and cutout_weight to 0"),
        ("keypoint_loss_weight=1.0", "the family paper has no keypoint heads: set keypoint_loss_weight 0"),
        ("init_movenet=m.onnx", "the family paper has no keypoint heads: set init_movenet None"),
        ("lr_scale.top_down=0", "lr_scale names top_down; parts are backbone, seg_module"),
    ],
)
def test_values_the_paper_family_refuses(change: str, said: str) -> None:
    path = next(path for path in RECIPES if path.stem == "paper")
    with pytest.raises(ValueError, match=said):
        settings_from_json(with_changes(json.loads(path.read_text()), [change]), data="d", output="o")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"seg": {"units": 5}}, r"seg\.units belong to the family paper, this is live"),
        ({"backbone": {"width": 8}, "align": {"compat": "ref_pt10"}}, r"backbone, align\.compat belong to the family"),
        ({"align": {"mode": "roi", "expand": 0.3}}, r"align\.expand grows boxes around joints"),
    ],
)
def test_settings_that_the_live_family_does_not_have(model: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_from_json({"model": model}, data="d", output="o")


def test_changes_by_name_reach_into_settings_and_leave_the_recipe_alone() -> None:
    content = {"steps": 5, "model": {"align": {"mode": "affine"}}}
    changes = ["model.align.mode=roi", "model.align.box=joints", "steps=7", "model.seg.units=5", "canvas=[64, 64]"]
    changed = with_changes(content, changes)
    assert changed == {
        "steps": 7,
        "canvas": [64, 64],
        "model": {"align": {"mode": "roi", "box": "joints"}, "seg": {"units": 5}},
    }
    assert content == {"steps": 5, "model": {"align": {"mode": "affine"}}}
    for change, said in (("steps", "expected NAME=VALUE"), ("steps.more=1", "steps holds a value, not settings")):
        with pytest.raises(ValueError, match=said):
            with_changes(content, [change])


def test_a_recipe_names_only_the_rates_it_changes(tmp_path) -> None:
    settings = settings_from_json({"lr_scale": {"seg_module": 0.5}}, data=tmp_path, output=tmp_path)
    assert settings.lr_scale == {**MASK_PART_LEARNS, "seg_module": 0.5}
    with pytest.raises(ValueError, match=r"lr_scale names head; parts are backbone, top_down"):
        settings_from_json({"lr_scale": {"head": 0.5}}, data=tmp_path, output=tmp_path)
