"""Settings: JSON and back, unknown keys, values that are not allowed, and the command's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.drawn_people import tiny_settings
from training.model import LiveNetwork, ModelSettings
from training.settings import MASK_PART_LEARNS, SourceSettings, TrainSettings, settings_from_json
from training.train import parse_arguments

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
        ({"schedule": "linear"}, "schedule must be one of cosine, paper, release, got 'linear'"),
        ({"optimiser": "sgd"}, "optimiser must be one of adamw, adam, got 'sgd'"),
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_readable(path: Path) -> None:
    settings = settings_from_json(json.loads(path.read_text()), data="data", output="out")
    assert sum(source.cutout_weight for source in settings.sources) > 0
    assert settings.backgrounds
    assert set(settings.lr_scale) == {name for name, _ in LiveNetwork(settings.model).named_children()}


def test_a_recipe_names_only_the_rates_it_changes(tmp_path) -> None:
    settings = settings_from_json({"lr_scale": {"seg_module": 0.5}}, data=tmp_path, output=tmp_path)
    assert settings.lr_scale == {**MASK_PART_LEARNS, "seg_module": 0.5}
    with pytest.raises(ValueError, match=r"lr_scale names head; parts are backbone, top_down"):
        settings_from_json({"lr_scale": {"head": 0.5}}, data=tmp_path, output=tmp_path)
