"""Start a run from a model folder: the weights that `training.export_onnx` wrote, brought back into the network.

An export folds each norm layer into the convolution before it. What the layer did to its input follows from the
folded weights, but not the statistics that it learns by: they are measured again on pictures of the run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.artifact import load_artifact
from kernels.neighbours import CHANNELS as NEIGHBOUR_CHANNELS
from training.checkpoint import CheckpointError
from training.dataset import Scene

_IN_THE_GRAPH = "network."
_FOLDED = "_bias"  # what the exporter adds to a weight's name for the bias it got from a norm layer


def load_artifact_weights(network: nn.Module, folder: Path) -> None:
    """Copy the weights of a model folder into a network of the same form.

    Norm layers that the export folded away come out as such that change nothing but the bias: `restore_norms` has to
    follow before anything is learned. A network that draws neighbours starts from one that does not, with weights of
    zero for them.

    Raises:
        CheckpointError: the folder's graphs are another network's, or cannot be read.
    """
    import onnx
    from onnx import numpy_helper

    artifact = load_artifact(folder)
    tensors: dict[str, Tensor] = {}
    for graph in artifact.graphs:
        for tensor in onnx.load(str(artifact.graph_path(graph))).graph.initializer:
            if tensor.name.startswith(_IN_THE_GRAPH):
                tensors[tensor.name.removeprefix(_IN_THE_GRAPH)] = torch.from_numpy(
                    np.array(numpy_helper.to_array(tensor), np.float32)
                )
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            owner, _, kind = name.rpartition(".")
            before, _, place = owner.rpartition(".")
            folded = f"{before}.{int(place) - 1}.weight{_FOLDED}" if place.isdigit() else ""
            if name in tensors:
                found = tensors.pop(name)
            elif folded in tensors:  # a norm layer behind a convolution
                norm = network.get_submodule(owner)
                unchanged = {"running_mean": 0.0, "running_var": 1.0, "weight": (1 + norm.eps) ** 0.5}
                found = torch.full_like(value, unchanged[kind]) if kind in unchanged else tensors[folded]
            else:
                raise CheckpointError(f"{folder} has no {name}: it is another network's, or not our export")
            if found.ndim == value.ndim > 1 and value.shape[1] == found.shape[1] + NEIGHBOUR_CHANNELS:
                zeros = torch.zeros(len(found), NEIGHBOUR_CHANNELS, *found.shape[2:])
                found = torch.cat((found, zeros), dim=1)
            if found.shape != value.shape:
                raise CheckpointError(
                    f"{folder}: {name} is {tuple(found.shape)}, the network has {tuple(value.shape)}: other "
                    "model settings"
                )
            value.copy_(found)


@torch.no_grad()
def restore_norms(model: nn.Module, network: nn.Module, scenes: list[Scene]) -> None:
    """Give the norm layers that `load_artifact_weights` left without statistics those of some scenes.

    What the network computes stays the same.

    Args:
        model: takes pictures, scenes and a random generator, and lets everything in the network run.
        network: whose layers are meant.
        scenes: one batch.
    """

    def measure(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        norm.bias += mean
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]

    blank = [
        m
        for m in network.modules()
        if isinstance(m, nn.BatchNorm2d) and not m.running_mean.any() and bool((m.running_var == 1).all())  # type: ignore[union-attr, operator]
    ]
    hooks = [norm.register_forward_pre_hook(measure) for norm in blank]
    network.eval()
    device = next(network.parameters()).device
    image = torch.from_numpy(np.stack([scene.image for scene in scenes])).to(device).permute(0, 3, 1, 2)
    model(image, scenes, np.random.default_rng(0))
    for hook in hooks:
        hook.remove()
