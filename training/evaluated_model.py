"""The model under evaluation: two engines, or a detector, and how a picture goes through them.

A `Model` comes from an artifact folder (`open_model`) or from a checkpoint that PyTorch runs (`checkpoint_model`). What
is measured, and against what, is in `training.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines import ArtifactError, Engine, EngineOptions, load_artifact, open_graph
from kernels.coordinates import F32, F64, U8
from kernels.groupings import GroupingParameters, group_people, grouping_parameters
from kernels.letterbox import Letterbox, letterbox, plan_letterbox
from kernels.mask_paste import paste_masks
from kernels.mask_rle import encode_rle
from kernels.neighbours import OWN_ONLY
from kernels.pose_decoding import DecodeParameters
from kernels.pose_fit import whole_frame_roi
from kernels.roi_inputs import segment_feeds
from kernels.square_letterbox import SquareLetterbox, plan_square_letterbox, square_letterbox, whole_input_roi
from training.dataset import DataError
from training.model_settings import AlignSettings
from training.windows import roi_from_people

EVALUATED_PERSON_SCORE = 0.02  # weaker people change AP by less than their noise, and cost time
LONG_SIDE = 512  # px: of checkpoints, which have no manifest to say it


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Two engines and what the manifest says about them."""

    keypoints: Engine | None = None  # of the family `live`
    features: Engine | None = None  # of the family `paper`
    segment: Engine
    templates: F32
    feature_from_input: F32
    roi_size: int
    joint_threshold: float
    person_threshold: float = 0.25  # who scores less is not served
    decode: GroupingParameters = field(default_factory=DecodeParameters)
    align: AlignSettings = field(default_factory=AlignSettings)  # of networks that are evaluated before their export


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundPeople:
    """People of one picture, frame px."""

    keypoints: F32  # (N, 17, 3) x, y, confidence (or v for true poses)
    visibility: NDArray[np.float32]  # (N, 17) 0, 1, 2
    scores: F32  # (N,)
    boxes: F64 | None = None  # (N, 4) annotated xyxy, px edges; None where nobody annotated them


def open_model(folder: Path, *, engine: str = "auto", threads: int | None = None) -> tuple[Model, int]:
    """An artifact folder's graphs, and the long side it was measured at."""
    artifact = load_artifact(folder)
    try:
        decode = grouping_parameters(artifact.grouping, artifact.decode)
    except ValueError as error:
        raise ArtifactError(f"{folder}: decode parameters are not those of this version: {error}") from error
    options = EngineOptions(threads=threads)
    of_picture = artifact.graphs[0]
    model = Model(
        **{of_picture: open_graph(artifact, of_picture, engine=engine, options=options)},
        segment=open_graph(artifact, "segment", engine=engine, options=options),
        templates=artifact.templates,
        feature_from_input=artifact.feature_from_input,
        roi_size=artifact.roi_size,
        joint_threshold=artifact.joint_threshold,
        person_threshold=artifact.person_threshold,
        decode=decode,
    )
    return model, artifact.long_side


class Detector(Protocol):
    """A network that finds people and their masks by itself, from the picture alone."""

    def people(self, image: U8, long_side: int) -> tuple[list[dict[str, Any]], F32]:
        """Masks as COCO RLE of the picture's size, and their scores (N,), the best first.

        Args:
            image: (H, W, 3) uint8 RGB.
            long_side: px the picture is scaled to.
        """
        ...


Plan = Letterbox | SquareLetterbox


def picture_plan(model: Model, height: int, width: int, long_side: int) -> Plan:
    """How a picture becomes the model's input: each family as it was trained."""
    if model.features is not None:
        return plan_square_letterbox(height, width, side=long_side)
    return plan_letterbox(height, width, long_side=long_side)


def picture_features(model: Model, image: U8, plan: SquareLetterbox) -> F32:
    """(1, C, h, w) of a model that finds no people."""
    if model.features is None:
        raise ValueError("this model's features come with the people it finds")
    features: F32 = model.features.run({"image": square_letterbox(image, plan)[None]})["features"]
    return features


def run_keypoints(model: Model, image: U8, plan: Plan) -> dict[str, F32]:
    """Tensors of the keypoint graph for one picture.

    Raises:
        DataError: the model has none.
    """
    if model.keypoints is None or not isinstance(plan, Letterbox):
        raise DataError(
            "a model of the family paper finds no people: give --poses gt, or a file of COCO keypoint results"
        )
    outputs: dict[str, F32] = model.keypoints.run({"image": letterbox(image, plan)[None]})
    return outputs


def people_in(model: Model, outputs: Mapping[str, F32], plan: Plan) -> FoundPeople:
    """People out of what `run_keypoints` gave."""
    keypoints, scores = group_people({name: tensor[0] for name, tensor in outputs.items()}, model.decode)
    kept = scores >= EVALUATED_PERSON_SCORE
    keypoints, scores = keypoints[kept].copy(), scores[kept]
    scale, shift = plan.input_from_frame[[0, 1], [0, 1]], plan.input_from_frame[:, 2]
    keypoints[..., :2] = (keypoints[..., :2] - shift) / scale
    visibility = np.where(keypoints[..., 2] >= model.joint_threshold, 2.0, 0.0).astype(np.float32)
    return FoundPeople(keypoints=keypoints, visibility=visibility, scores=scores)


def find_people(model: Model, image: U8, plan: Plan) -> tuple[FoundPeople, F32]:
    """Run the keypoint graph on one picture; also returns the features for `segment_people`.

    Raises:
        DataError: the model has none.
    """
    outputs = run_keypoints(model, image, plan)
    return people_in(model, outputs, plan), outputs["features"]


def segment_people(model: Model, features: F32, plan: Plan, people: FoundPeople) -> tuple[F32, F32, F32]:
    """Probabilities (N, S, S), mask scores (N,) and roi_from_frame (N, 2, 3) of the given poses."""
    poses = people.keypoints.copy()
    poses[..., 2] = people.visibility
    if isinstance(plan, SquareLetterbox):
        fallback = whole_input_roi(plan, model.roi_size)
    else:
        fallback = whole_frame_roi(plan.frame_height, plan.frame_width, model.roi_size)
    matrices = roi_from_people(poses, people.boxes, fallback, model.templates, model.align, model.roi_size)
    roi_from_frame = matrices.astype(np.float32)
    feeds = segment_feeds(
        people.keypoints, people.visibility, roi_from_frame, plan.input_from_frame, model.feature_from_input
    )
    outputs = model.segment.run({"features": features, **feeds})
    return outputs["probabilities"], outputs["scores"], roi_from_frame


def masks_beside_each_other(
    model: Model, features: F32, plan: Plan, people: FoundPeople, height: int, width: int, *, exclusive: bool
) -> tuple[list[dict[str, Any]], F32]:
    """COCO RLE and mask scores (N,) of the given poses.

    Average precision counts people down to scores that nobody is served. Those who reach `Model.person_threshold` get
    masks as if the weaker ones were not there, since then they are not.
    """
    weak = people.scores < model.person_threshold
    visibility = np.where(weak[:, None] & (people.visibility > 0), OWN_ONLY, people.visibility).astype(np.float32)
    seen = replace(people, visibility=visibility)
    probabilities, scores, roi_from_frame = segment_people(model, features, plan, seen)
    rles = list(
        encode_rle(paste_masks(probabilities, roi_from_frame, height, width, exclusive=exclusive), height, width)
    )
    sure = np.flatnonzero(~weak)
    if exclusive and 0 < len(sure) < len(rles):
        served = paste_masks(probabilities[sure], roi_from_frame[sure], height, width, exclusive=True)
        for place, rle in zip(sure, encode_rle(served, height, width), strict=True):
            rles[place] = rle
    return rles, scores


def checkpoint_model(path: Path, changes: list[str], threads: int | None) -> tuple[Model | Detector, int]:
    """A checkpoint's moving average run by PyTorch, and the long side to measure it at: a detector's is its canvas.

    Raises:
        DataError: it cannot be read, or does not fit the changed settings.
    """
    import torch

    from training.checkpoint import CheckpointError, describe, load_weights
    from training.torch_engine import network_model

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        network = load_weights(path, changes=changes)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network_model(network.to(device))
    canvas = describe(path)["settings"].get("canvas")
    return model, LONG_SIDE if isinstance(model, Model) or not canvas else max(canvas)
