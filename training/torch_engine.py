"""The network under training behind the same `Engine` interface as an exported graph, so that validation runs the
serving code path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engines.engine import TensorSpec
from engines.signatures import DEFAULT_GROUPING, signature_of
from kernels.groupings import grouping_parameters
from training.evaluated_model import Detector, Model
from training.families import Network
from training.graphs import FeaturesGraph, KeypointGraph, SegmentGraph
from training.mask_rcnn import MaskRcnnDetector, MaskRcnnNetwork
from training.paper_model import PaperNetwork

JOINT_THRESHOLD = 0.2


class TorchGraph:
    """One serving graph run eagerly; see `engines.engine.Engine`."""

    name = "torch eager"

    def __init__(
        self, graph: nn.Module, signature: str, device: torch.device, grouping: str = DEFAULT_GROUPING
    ) -> None:
        self.graph, self.device = graph.eval(), device
        self.inputs: tuple[TensorSpec, ...]
        self.outputs: tuple[TensorSpec, ...]
        self.inputs, self.outputs = signature_of(signature, grouping)

    @torch.no_grad()
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])).to(self.device) for spec in self.inputs]
        results = self.graph(*tensors)
        if isinstance(results, torch.Tensor):
            results = (results,)
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Nothing to free."""


def network_model(network: Network) -> Model | Detector:
    """A network as `training.evaluate` wants it. The network is put into eval mode."""
    if isinstance(network, MaskRcnnNetwork):
        return MaskRcnnDetector(network)
    device, keypoints = next(network.parameters()).device, network.settings.keypoints
    if isinstance(network, PaperNetwork):
        of_picture = {"features": TorchGraph(FeaturesGraph(network), "features", device)}
    else:
        of_picture = {"keypoints": TorchGraph(KeypointGraph(network), "keypoints", device, keypoints)}
    return Model(
        **of_picture,
        segment=TorchGraph(SegmentGraph(network), "segment", device),
        templates=network.settings.templates.prepared(),
        feature_from_input=np.array(network.feature_from_input, np.float32),
        roi_size=network.settings.roi_size,
        joint_threshold=JOINT_THRESHOLD,
        decode=grouping_parameters(keypoints, {}),
        align=network.settings.align,
    )
