"""A picture and poses that somebody else found -> masks: the paper's own task, by either family of models.

    model = open_pose_guided(load_artifact(folder))
    masks = masks_from_poses(model, image, keypoints)
    pasted = kernels.mask_paste.paste_masks(masks.probabilities, masks.roi_from_frame, *image.shape[:2])

Poses are fitted to the model's templates, and the segment graph looks at the picture's features through each person's
window. A model of the family `paper` takes the picture centred in a square, one of the family `live` as the pipeline
gives it; the latter's own people are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engines.artifact import Artifact, open_graph
from engines.device import Array, Device, HostDevice, device_of
from engines.engine import DEFAULT_OPTIONS, Engine, EngineOptions
from kernels.coordinates import F32, U8
from kernels.letterbox import letterbox, plan_letterbox
from kernels.pose_fit import fit_poses, whole_frame_roi
from kernels.roi_inputs import segment_feeds
from kernels.square_letterbox import plan_square_letterbox, square_letterbox, whole_input_roi

RANDOM = "random"  # how the provenance of weights that know nothing begins


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseGuidedModel:
    """A model folder and the two engines that turn given poses into masks."""

    artifact: Artifact
    picture_engine: Engine
    """Of the graph features (family `paper`) or keypoints (family `live`)."""
    segment_engine: Engine
    device: Device = field(default_factory=HostDevice)
    """Where both engines work; the features stay there."""

    @property
    def has_random_weights(self) -> bool:
        """Whether the masks mean nothing: a figure of such a model is one of time only, and has to say so."""
        return str(self.artifact.provenance.get("weights", "")).startswith(RANDOM)

    def close(self) -> None:
        """Free both engines."""
        self.picture_engine.close()
        self.segment_engine.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseGuidedMasks:
    """Masks of N people in their own windows."""

    probabilities: F32
    """(N, S, S) in ROI px, 0..1."""
    scores: F32
    """(N,) of the masks, 0..1."""
    roi_from_frame: F32
    """(N, 2, 3): frame px to ROI px."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureFeatures:
    """What the segment graph needs to know of a picture."""

    features: Array
    """(1, C, h, w) on the model's device."""
    input_from_frame: F32
    """(2, 3): frame px to input px."""
    whole_window: F32
    """(2, 3): frame px to ROI px, of a person whom no template fits."""


def open_pose_guided(
    artifact: Artifact, *, engine: str = "auto", options: EngineOptions = DEFAULT_OPTIONS
) -> PoseGuidedModel:
    """Load the graphs of a model folder of either family.

    Raises:
        EngineError: a graph cannot be used.
    """
    of_picture, segment = artifact.graphs
    picture_engine = open_graph(artifact, of_picture, engine=engine, options=options)
    try:
        segment_engine = open_graph(artifact, segment, engine=engine, options=options)
    except BaseException:
        picture_engine.close()
        raise
    return PoseGuidedModel(
        artifact=artifact,
        picture_engine=picture_engine,
        segment_engine=segment_engine,
        device=device_of(picture_engine, segment_engine),
    )


def picture_features(model: PoseGuidedModel, image: U8) -> PictureFeatures:
    """Run the graph that takes the picture.

    Args:
        model: from `open_pose_guided`.
        image: (H, W, 3) uint8 RGB.

    Raises:
        ValueError: not such an image. EngineRunError: the runtime failed.
    """
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.dtype} {image.shape}")
    artifact, (height, width) = model.artifact, image.shape[:2]
    if artifact.family == "paper":
        square = plan_square_letterbox(height, width, side=artifact.long_side)
        pixels, input_from_frame = square_letterbox(image, square), square.input_from_frame
        window = whole_input_roi(square, artifact.roi_size)
    else:
        plan = plan_letterbox(height, width, long_side=artifact.long_side, multiple=artifact.input_multiple)
        pixels, input_from_frame = letterbox(image, plan), plan.input_from_frame
        window = whole_frame_roi(height, width, artifact.roi_size)
    features = model.device.run(model.picture_engine, {"image": pixels[None]})["features"]
    return PictureFeatures(features=features, input_from_frame=input_from_frame, whole_window=window)


def masks_from_poses(model: PoseGuidedModel, image: U8, keypoints: F32) -> PoseGuidedMasks:
    """Masks of people whose poses are given.

    Args:
        model: from `open_pose_guided`.
        image: (H, W, 3) uint8 RGB.
        keypoints: (N, 17, 3): x, y in frame px; v 0 absent, 1 labelled but hidden, 2 visible. Nobody: no network runs.

    Returns:
        One window and one mask in it for each pose, in order. More people than the engine takes (`limits`) are several
        calls; where masks depend on neighbours (`Artifact.neighbours`), those of another call are not seen.

    Raises:
        ValueError: the shapes. EngineRunError: the runtime failed.
    """
    if keypoints.ndim != 3 or keypoints.shape[1:] != (17, 3):
        raise ValueError(f"keypoints must be (N, 17, 3), got {keypoints.shape}")
    artifact, size = model.artifact, model.artifact.roi_size
    if not len(keypoints):
        return PoseGuidedMasks(
            probabilities=np.zeros((0, size, size), np.float32),
            scores=np.zeros(0, np.float32),
            roi_from_frame=np.zeros((0, 2, 3), np.float32),
        )
    picture = picture_features(model, image)
    usable = np.where(np.isfinite(keypoints).all(-1, keepdims=True), keypoints, 0).astype(np.float32)
    fit = fit_poses(usable, artifact.templates, picture.whole_window, roi_size=size)
    feeds = segment_feeds(
        usable, usable[..., 2], fit.roi_from_frame, picture.input_from_frame, artifact.feature_from_input
    )
    most = int(getattr(model.segment_engine, "limits", {}).get("N", 0)) or len(keypoints)
    parts = []
    for start in range(0, len(keypoints), most):
        some = {name: feed[start : start + most] for name, feed in feeds.items()}
        outputs = model.device.run(model.segment_engine, {"features": picture.features, **some})
        parts.append(model.device.to_host(outputs))
    return PoseGuidedMasks(
        probabilities=np.concatenate([part["probabilities"] for part in parts]),
        scores=np.concatenate([part["scores"] for part in parts]),
        roi_from_frame=fit.roi_from_frame,
    )
