"""Weights between the start and the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.artifact import default_artifact
from tests.training.drawn_people import tiny_settings
from tests.training.test_artifact_weights import INSTALLED
from training.blend import blend, main
from training.checkpoint import load_weights
from training.settings import MASK_PART_LEARNS
from training.train import start_of, train


def test_weights_lie_between_start_and_end(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", steps=2)
    checkpoint = train(settings)
    start, end = start_of(settings).state_dict(), load_weights(checkpoint).state_dict()
    for share in (0.0, 0.25, 1.0):
        found = load_weights(blend(checkpoint, tmp_path / f"{share}", share=share)).state_dict()
        for name, value in found.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, start[name] + share * (end[name] - start[name]))
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_a_run_from_a_model_folder_starts_with_its_statistics(data: Path, tmp_path: Path) -> None:
    changes = {"model": INSTALLED, "lr_scale": dict(MASK_PART_LEARNS), "init_artifact": default_artifact()}
    settings = tiny_settings(data, tmp_path / "run", steps=1, learning_rate=1e-12, weight_decay=0.0, **changes)
    end = load_weights(train(settings), average=False).state_dict()
    for name, value in start_of(settings).state_dict().items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(end[name], value, atol=1e-6, rtol=1e-5)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "error:" in capsys.readouterr().err
    with pytest.raises(ValueError, match="share must be from 0 to 1, got 2"):
        blend(tmp_path, tmp_path, share=2)
