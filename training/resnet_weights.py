"""Start the paper's backbone from ImageNet weights of ResNet-50 in torchvision's file format."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.paper_model import ResNet

CLASSIFIER = ("fc.weight", "fc.bias")  # of the thousand classes; no use here
NAMES_SHOWN = 5


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a ``.safetensors`` file, or of a PyTorch file that holds tensors and nothing that runs.

    Raises:
        ValueError: another kind of file, or one that would run code when read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: expected tensors by name (.safetensors, or a PyTorch file of weights only): {first}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected tensors by name, got {type(content).__name__} of other things")
    return dict(content)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    rest = len(listed) - NAMES_SHOWN
    return ", ".join(listed[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def require_same_tensors(path: Path, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: which are missing, which nobody asked for, and which have another shape.
    """
    complaints = []
    missing, unexpected = expected.keys() - got.keys(), got.keys() - expected.keys()
    if missing:
        complaints.append(f"missing: {_some(missing)}")
    if unexpected:
        complaints.append(f"unexpected: {_some(unexpected)}")
    wrong = [
        f"{name} is {tuple(got[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & got.keys()
        if got[name].shape != expected[name].shape
    ]
    if wrong:
        complaints.append(f"wrong shape: {_some(wrong)}")
    if complaints:
        raise ValueError(f"{path} holds another network; {'; '.join(complaints)}")


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the batch counters of norm layers, which files of PyTorch before 0.4.1 lack and which nothing reads."""
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def load_resnet(trunk: ResNet, path: Path) -> None:
    """Copy ImageNet weights, classifier left out, into a trunk.

    Raises:
        ValueError: the file cannot be read or is another network; names what is missing, unexpected or of other shape.
    """
    tensors = without_counters(read_tensors(path))
    for name in CLASSIFIER:
        tensors.pop(name, None)
    require_same_tensors(path, without_counters(trunk.state_dict()), tensors)
    trunk.load_state_dict(tensors, strict=False)
