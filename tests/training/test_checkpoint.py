"""Checkpoints come back as they were, a half-written one is never taken for a whole one, and errors name the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.drawn_people import TINY_MODEL, tiny_settings
from training.checkpoint import CheckpointError, latest_checkpoint, load_weights, read_state, restore, save_checkpoint
from training.model import LiveNetwork


def network(seed: int) -> LiveNetwork:
    torch.manual_seed(seed)
    return LiveNetwork(TINY_MODEL)


def stepped(net: LiveNetwork) -> torch.optim.Optimizer:
    """An optimiser that has moments of a few parameters."""
    optimiser = torch.optim.AdamW(net.seg_module.parameters(), lr=1e-3)
    for parameter in net.seg_module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    return optimiser


def save(folder: Path, step: int, **kept: Any) -> tuple[Path, LiveNetwork, LiveNetwork, torch.optim.Optimizer]:
    net, average = network(step), network(step + 100)
    optimiser = stepped(net)
    state = {"settings": tiny_settings(folder, folder).to_json(), "history": [{"step": step}]}
    path = save_checkpoint(folder, step=step, network=net, ema=average, optimiser=optimiser, state=state, **kept)
    return path, net, average, optimiser


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_everything_comes_back(tmp_path: Path) -> None:
    path, net, average, optimiser = save(tmp_path, 3)
    expected_random = torch.rand(3)  # the next numbers after saving
    assert {p.name for p in path.iterdir()} == {
        "weights.safetensors",
        "ema.safetensors",
        "optimiser.safetensors",
        "state.json",
    }
    assert latest_checkpoint(tmp_path) == path

    fresh, fresh_average = network(7), network(8)
    fresh_optimiser = stepped(fresh)
    state = restore(path, network=fresh, ema=fresh_average, optimiser=fresh_optimiser)
    assert (state["step"], state["history"]) == (3, [{"step": 3}])
    assert_equal(fresh, net)
    assert_equal(fresh_average, average)
    for key, moments in optimiser.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, fresh_optimiser.state_dict()["state"][key][name])
    groups, expected = (json.loads(json.dumps(o.state_dict()["param_groups"])) for o in (fresh_optimiser, optimiser))
    assert groups == expected
    assert torch.equal(torch.rand(3), expected_random)


def test_average_or_raw_weights(tmp_path: Path) -> None:
    path, net, average, _ = save(tmp_path, 1)
    assert_equal(load_weights(path), average)
    assert_equal(load_weights(path, average=False), net)
    assert not load_weights(path).training


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        newest = save(tmp_path, step)[0]
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-0000002", "step-0000010"]
    assert latest_checkpoint(tmp_path) == newest
    again = save(tmp_path, 10)[0]  # a repeated step replaces its own folder
    assert again == newest and latest_checkpoint(tmp_path) == newest


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)[0]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == path
    load_weights(path)
    assert save(tmp_path, 2)[0] == latest_checkpoint(tmp_path)  # the remains do not stop the next one


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "latest").write_text("step-0000009")
    assert latest_checkpoint(tmp_path) is None


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing is not a checkpoint \(expected state\.json"):
        read_state(tmp_path / "nothing")
    path = save(tmp_path, 1)[0]
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_weights(path)


@pytest.mark.parametrize("name", ["weights", "ema", "optimiser"])
@pytest.mark.parametrize("how", ["missing", "cut", "other network"])
def test_spoiled_tensors_are_a_checkpoint_error(tmp_path: Path, name: str, how: str) -> None:
    path = save(tmp_path, 1)[0]
    spoiled = path / f"{name}.safetensors"
    if how == "missing":
        spoiled.unlink()
    elif how == "cut":
        spoiled.write_bytes(spoiled.read_bytes()[:1000])
    else:
        from safetensors.torch import save_file

        save_file({"0.strange": torch.zeros(3), "999.exp_avg": torch.zeros(2)}, str(spoiled))
    net = network(1)
    with pytest.raises(CheckpointError, match="step-0000001"):
        restore(path, network=net, ema=network(2), optimiser=torch.optim.AdamW(net.seg_module.parameters()))
