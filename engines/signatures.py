"""The tensors that each graph of a model folder takes and gives; docs/architecture.md says what they mean.

The keypoint graph gives what its grouping reads. Every grouping has `features`, which the segment graph takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from engines.engine import TensorSpec

KEYPOINT_COUNT: Final = 17
DEFAULT_GROUPING: Final = "centre"

_F32, _U8, _I32 = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int32)


def _maps(name: str, channels: int) -> TensorSpec:
    return TensorSpec(name, _F32, ("B", channels, "h", "w"))


_CANDIDATES = TensorSpec("joint_candidates", _F32, ("B", KEYPOINT_COUNT, "M", 4))
_FEATURES = TensorSpec("features", _F32, ("B", "C", "h", "w"))

KEYPOINT_OUTPUTS: Final[Mapping[str, tuple[TensorSpec, ...]]] = MappingProxyType(
    {
        "centre": (
            TensorSpec("person_scores", _F32, ("B", "P")),
            TensorSpec("person_keypoints", _F32, ("B", "P", KEYPOINT_COUNT, 3)),
            _CANDIDATES,
            _FEATURES,
        ),
        "embedding": (_CANDIDATES, _maps("heatmaps", KEYPOINT_COUNT), _maps("tags", KEYPOINT_COUNT), _FEATURES),
        "affinity": (_CANDIDATES, _maps("affinity_fields", 38), _FEATURES),
        "personlab": (
            _maps("heatmaps", KEYPOINT_COUNT),
            _maps("short_offsets", 2 * KEYPOINT_COUNT),
            _maps("mid_offsets", 64),
            _maps("long_offsets", 2 * KEYPOINT_COUNT),
            _maps("person", 1),
            _FEATURES,
        ),
    }
)
"""Grouping -> what its keypoint graph gives."""

GROUPINGS: Final = tuple(KEYPOINT_OUTPUTS)

SIGNATURES: Final[Mapping[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]] = MappingProxyType(
    {
        "keypoints": (
            (TensorSpec("image", _U8, ("B", "H", "W", 3)),),
            KEYPOINT_OUTPUTS[DEFAULT_GROUPING],
        ),
        "features": (
            (TensorSpec("image", _U8, ("B", "H", "W", 3)),),
            (TensorSpec("features", _F32, ("B", "C", "h", "w")),),
        ),
        "segment": (
            (
                TensorSpec("features", _F32, ("B", "C", "h", "w")),
                TensorSpec("feature_from_roi", _F32, ("N", 2, 3)),
                TensorSpec("roi_image", _I32, ("N",)),
                TensorSpec("roi_keypoints", _F32, ("N", KEYPOINT_COUNT, 3)),
            ),
            (TensorSpec("probabilities", _F32, ("N", "S", "S")), TensorSpec("scores", _F32, ("N",))),
        ),
    }
)
"""Graph name -> (inputs, outputs) that serving relies on; the keypoint graph with the default grouping."""


def signature_of(graph: str, grouping: str = DEFAULT_GROUPING) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) of a graph of a model folder with this grouping."""
    inputs, outputs = SIGNATURES[graph]
    return inputs, KEYPOINT_OUTPUTS[grouping] if graph == "keypoints" else outputs
