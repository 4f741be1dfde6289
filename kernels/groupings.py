"""The ways in which a keypoint network's tensors become people, by the name that a model folder states.

| grouping | what the network gives | module |
|---|---|---|
| `centre` | people's centres with a guess of their joints, and peaks | `kernels.pose_decoding` |
| `embedding` | peaks with tags, heatmaps, maps of tags | `kernels.embedding_grouping` |
| `affinity` | peaks, part affinity fields | `kernels.affinity_grouping` |
| `personlab` | discs, short, middle and long offsets, person probability | `kernels.personlab_decoding` |

The parameters carry the choice: their type is the grouping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Final

import numpy as np

from kernels.affinity_grouping import FIELD_CHANNELS, AffinityParameters, group_by_limbs
from kernels.coordinates import F32
from kernels.embedding_grouping import EmbeddingParameters, group_by_tags
from kernels.personlab_decoding import MID_CHANNELS, PersonLabParameters, decode_personlab
from kernels.pose_decoding import DecodeParameters, decode_people
from kernels.skeleton import JOINTS

GroupingParameters = DecodeParameters | EmbeddingParameters | AffinityParameters | PersonLabParameters

PARAMETERS: Final[Mapping[str, type[GroupingParameters]]] = MappingProxyType(
    {
        "centre": DecodeParameters,
        "embedding": EmbeddingParameters,
        "affinity": AffinityParameters,
        "personlab": PersonLabParameters,
    }
)
"""Name of a grouping -> the class of its parameters."""

READS: Final[Mapping[type[GroupingParameters], tuple[str, ...]]] = MappingProxyType(
    {
        DecodeParameters: ("person_scores", "person_keypoints", "joint_candidates"),
        EmbeddingParameters: ("joint_candidates", "heatmaps", "tags"),
        AffinityParameters: ("joint_candidates", "affinity_fields"),
        PersonLabParameters: ("heatmaps", "short_offsets", "mid_offsets"),
    }
)
"""Parameters -> the tensors of the keypoint graph that the grouping reads, in the order of its arguments."""

_SMALLEST: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "person_scores": (1,),
        "person_keypoints": (1, JOINTS, 3),
        "joint_candidates": (JOINTS, 1, 4),
        "heatmaps": (JOINTS, 1, 1),
        "tags": (JOINTS, 1, 1),
        "affinity_fields": (FIELD_CHANNELS, 1, 1),
        "short_offsets": (2 * JOINTS, 1, 1),
        "mid_offsets": (MID_CHANNELS, 1, 1),
    }
)


def grouping_parameters(grouping: str, values: Mapping[str, float]) -> GroupingParameters:
    """Parameters of a grouping by name; those that are not given keep their defaults.

    Raises:
        ValueError: the grouping or a name is unknown (the message lists what is known), or a value is out of range.
    """
    if grouping not in PARAMETERS:
        raise ValueError(f"grouping must be one of {', '.join(PARAMETERS)}, got {grouping!r}")
    kind = PARAMETERS[grouping]
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"expected decode parameters among {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return kind(**values)


def group_people(tensors: Mapping[str, F32], parameters: GroupingParameters) -> tuple[F32, F32]:
    """People of one image.

    Args:
        tensors: at least those of `READS`, of one image each, without the batch axis.
        parameters: choose the grouping.

    Returns:
        keypoints (N, 17, 3) float32: x, y in input px and confidence 0..1; scores (N,) float32, falling. N may be 0.

    Raises:
        ValueError: the shapes do not agree.
    """
    read = [np.asarray(tensors[name], np.float32) for name in READS[type(parameters)]]
    if isinstance(parameters, DecodeParameters):
        return decode_people(*read, parameters=parameters)
    if isinstance(parameters, EmbeddingParameters):
        return group_by_tags(*read, parameters=parameters)
    if isinstance(parameters, AffinityParameters):
        return group_by_limbs(*read, parameters=parameters)
    return decode_personlab(*read, parameters=parameters)


def warm_up(parameters: GroupingParameters) -> None:
    """Compile what `group_people` needs, so that the first frame does not wait for it."""
    group_people({name: np.zeros(_SMALLEST[name], np.float32) for name in READS[type(parameters)]}, parameters)
