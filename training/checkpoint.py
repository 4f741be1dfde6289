"""Checkpoints: safetensors for every tensor, JSON for everything else, written so that a crash never leaves a half one.

FOLDER/step-0001000/weights.safetensors   the network
                   /ema.safetensors       its moving average: what is exported
                   /optimiser.safetensors moments of the optimiser
                   /state.json            settings, step, random states, history of losses and validations
FOLDER/latest                             name of the newest complete one

Weights alone, from elsewhere, are one file, NAME.safetensors, whose header holds the model's settings. It can be read
wherever a checkpoint's weights can.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.families import Network, new_network_of
from training.model_settings import ModelSettings, model_settings_from_json
from training.settings import TrainSettings, changed_settings, with_changes


class CheckpointError(RuntimeError):
    """A checkpoint folder cannot be read; says what was expected and what came."""


def _flat(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[Any]]:
    state = optimiser.state_dict()
    tensors = {f"{index}.{name}": value for index, moments in state["state"].items() for name, value in moments.items()}
    return tensors, state["param_groups"]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    network: Network,
    ema: Network,
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write a complete checkpoint and point ``latest`` at it; older ones beyond ``keep`` are removed."""
    final = folder / f"step-{step:07d}"
    partial = folder / f".partial-{step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(partial / "weights.safetensors"))
    save_file({k: v.contiguous() for k, v in ema.state_dict().items()}, str(partial / "ema.safetensors"))
    tensors, groups = _flat(optimiser)
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, str(partial / "optimiser.safetensors"))
    content = {**state, "step": step, "optimiser_groups": groups, "torch_rng": torch.get_rng_state().tolist()}
    (partial / "state.json").write_text(json.dumps(content))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    pointer = folder / "latest.partial"
    pointer.write_text(final.name)
    os.replace(pointer, folder / "latest")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def save_weights(
    path: Path, state: Mapping[str, Tensor], settings: ModelSettings, *, provenance: Mapping[str, Any]
) -> None:
    """Write weights alone as one file that says which network they belong to.

    Args:
        path: a .safetensors file; replaced whole or not at all.
        state: of the network.
        settings: of the network.
        provenance: where the weights come from, plain values.
    """
    header = {"model": json.dumps(dataclasses.asdict(settings)), "provenance": json.dumps(dict(provenance))}
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in state.items()}, str(partial), metadata=header)
    os.replace(partial, path)


def describe(path: Path) -> dict[str, Any]:
    """Model settings, and what else is known of the weights of a checkpoint folder or of a file of `save_weights`.

    Returns:
        ``settings`` with at least ``model``; ``step`` of a checkpoint; ``provenance`` of a file.

    Raises:
        CheckpointError: it is neither.
    """
    if not path.is_file():
        return read_state(path)
    try:
        with safe_open(str(path), "pt") as opened:
            header = opened.metadata() or {}
        return {"settings": {"model": json.loads(header["model"])}, "provenance": json.loads(header["provenance"])}
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is neither a checkpoint folder nor weights of training.convert_authors_checkpoint: {error}"
        ) from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None if there is none."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    path = folder / pointer.read_text().strip()
    return path if (path / "state.json").exists() else None


def read_state(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "state.json").read_text())  # type: ignore[no-any-return]
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint (expected state.json and *.safetensors): {error}") from error


def require_same_settings(path: Path, settings: TrainSettings) -> None:
    """Refuse to continue a checkpoint with settings that would make it another run; see `changed_settings`.

    Raises:
        CheckpointError: names each setting that differs, with both values.
    """
    try:
        changes = changed_settings(read_state(path)["settings"], settings)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}; another --output starts a new one") from error
    if changes:
        raise CheckpointError(
            f"{path} does not fit this run: {'; '.join(changes)}; give the settings it has, or another --output for a "
            "new run"
        )


def load_weights(path: Path, *, average: bool = True, changes: Sequence[str] = ()) -> Network:
    """The network of a checkpoint, in eval mode.

    Args:
        path: a step-N folder, or a file of `save_weights`.
        average: its moving average; False: the raw weights.
        changes: other model settings than it was trained with, such as ``model.align.box=joints``; see
            `training.settings.with_changes`.

    Raises:
        CheckpointError: it cannot be read, or its weights do not fit the settings.
    """
    try:
        settings = with_changes({"model": describe(path)["settings"]["model"]}, changes)
        if set(settings) != {"model"}:
            raise ValueError(f"only settings of the model can change here, got {', '.join(changes)}")
        network = new_network_of(model_settings_from_json(settings["model"]))
    except ImportError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: state.json does not describe a network of this version: {error}") from error
    try:
        file = path if path.is_file() else path / ("ema.safetensors" if average else "weights.safetensors")
        network.load_state_dict(load_file(str(file)))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"weights of {path} do not fit the network its state.json describes: {error}") from error
    return network.eval()


def restore(path: Path, *, network: Network, ema: Network, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a run back exactly where the checkpoint left it; returns its state.

    Raises:
        CheckpointError: a file is missing or broken, or belongs to another network or another choice of learning parts.
    """
    state = read_state(path)
    try:
        network.load_state_dict(load_file(str(path / "weights.safetensors")))
        ema.load_state_dict(load_file(str(path / "ema.safetensors")))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(str(path / "optimiser.safetensors")).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        _check_moments(moments, optimiser)
        optimiser.load_state_dict({"state": moments, "param_groups": state["optimiser_groups"]})
        torch.set_rng_state(torch.tensor(state["torch_rng"], dtype=torch.uint8))
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}; another --output starts a new one") from error
    return state


def _check_moments(moments: dict[int, dict[str, Tensor]], optimiser: torch.optim.Optimizer) -> None:
    """PyTorch itself would take moments of any shape and fail, or worse, at the next step."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, tensors in moments.items():
        shape = parameters[index].shape if index < len(parameters) else None
        for name, value in tensors.items():
            if shape is None or (value.ndim and value.shape != shape):
                expected = "no such parameter" if shape is None else f"shape {tuple(shape)}"
                raise ValueError(f"optimiser state {index}.{name}: expected {expected}, got shape {tuple(value.shape)}")
