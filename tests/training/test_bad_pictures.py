"""A run and one bad picture: which one it was is said in a line, and the mended run goes on exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels.coordinates import U8
from tests.training.drawn_people import tiny_settings, write_data
from training.checkpoint import latest_checkpoint
from training.compose import read_pictures
from training.dataset import DataError, Photo, SceneDataset
from training.settings import TrainSettings
from training.train import main


def photos_shown(settings: TrainSettings) -> list[str]:
    """The photographs that the samples of a run are views of, in order."""
    dataset = SceneDataset(settings)
    (source,) = dataset.sources
    shown: list[str] = []
    image: Callable[[Photo], U8] = source.folder.image

    def told(photo: Photo) -> U8:
        shown.append(photo.file_name)
        return image(photo)

    source.folder.image = told  # type: ignore[method-assign]
    for index in range(settings.steps * settings.batch_size):
        dataset.scene(index)
    return shown


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_named_and_the_mended_run_goes_on_as_if_nothing_had_been(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    chosen = tiny_settings(
        tmp_path, tmp_path / "out", compose_weight=0.0, workers=workers, steps=3, checkpoint_every=1, seed=5
    )
    recipe = {key: value for key, value in chosen.to_json().items() if key not in {"data", "output"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    flags = ["--recipe", str(tmp_path / "recipe.json"), "--data", str(tmp_path), "--output"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    shown = photos_shown(chosen)
    name = max(set(shown), key=shown.index)  # the one that is looked at last for the first time
    sample = shown.index(name)
    step = sample // chosen.batch_size
    assert step >= 1  # there is a checkpoint to go on from
    bad = tmp_path / "people" / "images" / name
    content = bad.read_bytes()
    bad.write_bytes(b"broken")
    capsys.readouterr()
    assert main([*flags, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    said = f"error: step {step}, sample {sample} of seed 5: {name}: expected a picture of 128x96, got not a picture"
    assert said in error and "Traceback" not in error
    assert latest_checkpoint(chosen.output) == chosen.output / f"step-{step:07d}"
    bad.write_bytes(content)
    assert main([*flags, str(tmp_path / "out")]) == 0
    for part in ("weights", "ema", "optimiser"):
        whole, mended = (tmp_path / run / "step-0000003" / f"{part}.safetensors" for run in ("whole", "out"))
        assert whole.read_bytes() == mended.read_bytes(), part


def test_a_picture_that_is_not_there_is_named_before_the_first_step(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "people" / "images" / "000003.png").unlink()
    with pytest.raises(DataError, match=r"pictures are not in .*images: 000003\.png$"):
        SceneDataset(tiny_settings(tmp_path, tmp_path / "out", compose_weight=0.0))


def test_a_background_that_is_no_picture_is_named(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "backgrounds" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "backgrounds" / "notes.txt").write_text("left alone")
    with pytest.raises(DataError, match=re.escape("broken.png: expected a picture, got 10 bytes that are none")):
        SceneDataset(tiny_settings(tmp_path, tmp_path / "out"))
    (tmp_path / "backgrounds" / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"broken\.png: expected a picture, got 0 bytes"):
        SceneDataset(tiny_settings(tmp_path, tmp_path / "out"))
    (tmp_path / "backgrounds" / "broken.png").unlink()
    assert len(read_pictures(tmp_path / "backgrounds")) == 2 and read_pictures(tmp_path / "none") == []
