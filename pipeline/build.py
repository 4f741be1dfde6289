"""Settings -> wired pipeline, in flow order."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np

from engines import (
    Announce,
    ArtifactError,
    Engine,
    EngineOptions,
    announce_in_log,
    default_artifact,
    load_artifact,
    open_graphs,
)
from engines.artifact import Artifact
from engines.device import FRAMES_PER_CALL, Device, HostDevice, device_of
from engines.signatures import DEFAULT_GROUPING
from kernels.changed_blocks import BLOCK_PX
from kernels.groupings import PARAMETERS, GroupingParameters, grouping_parameters
from pipeline.contact_sheet import ContactSheetSink
from pipeline.errors import SettingsError
from pipeline.exports.datasets import CocoFolder, CvatFolder, YoloFolder
from pipeline.exports.options import SUBTITLES, Export, read_exports
from pipeline.exports.parquet_table import ParquetSink
from pipeline.exports.piped_video import MatroskaPipe, RawPipe
from pipeline.exports.subtitles import SubtitleSink
from pipeline.layers.draw_stage import DrawStage
from pipeline.layers.hide_stage import HideStage
from pipeline.layers.options import HIDING, Layer, read_background, read_ids
from pipeline.layers.sinks import make_layer_paint, make_layer_sinks
from pipeline.protocols import Sink, Source
from pipeline.runtime import STAGE_JOIN_S, Pipeline
from pipeline.settings import Settings
from pipeline.stage1_decode import find_files, is_stream, open_source
from pipeline.stage2_keypoints import KeypointStage
from pipeline.stage3_affine import AffineStage
from pipeline.stage4_segment import SegmentStage
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import CocoSink, JsonLinesSink, WriteStage, read_image_ids
from pipeline.video_output import VideoSink

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A model folder and its two networks, loaded."""

    artifact: Artifact
    keypoint_engine: Engine
    segment_engine: Engine

    def close(self) -> None:
        """Free both networks; a running pipeline does it itself."""
        self.keypoint_engine.close()
        self.segment_engine.close()


def open_model(settings: Settings, *, announce: Announce = announce_in_log) -> Model:
    """Load the model that the settings name; the log says in one line which engine runs it and why.

    Args:
        settings: model, engine, device, precision and sizes are used.
        announce: shows a person that a plan is being built, which may take minutes.

    Raises:
        EngineError: the folder or a network cannot be used.
    """
    artifact = load_artifact(settings.model if settings.model is not None else default_artifact())
    options = EngineOptions(
        threads=settings.threads,
        device=settings.device,
        precision=settings.precision,
        max_batch=max(settings.batch or 0, FRAMES_PER_CALL),
        long_side=_chosen(settings.long_side, artifact.long_side),
    )
    opened = open_graphs(artifact, ("keypoints", "segment"), engine=settings.engine, options=options, announce=announce)
    return Model(artifact=artifact, keypoint_engine=opened["keypoints"], segment_engine=opened["segment"])


def build(
    settings: Settings,
    *,
    model: Model | None = None,
    source: Source | None = None,
    announce: Announce = announce_in_log,
) -> Pipeline:
    """Open everything a run needs and wire it; nothing runs and no output is touched yet.

    Args:
        settings: what to do.
        model: networks to use in place of those that ``settings.model`` names; the pipeline closes them.
        source: frames to use in place of ``settings.source``.
        announce: see `open_model`.

    Raises:
        SinkError: an output exists or cannot be.
        SourceError: the source cannot be opened.
        EngineError: the model cannot be used.
        SettingsError: the options do not fit the source, the model or the device.
    """
    image_ids = read_image_ids(settings.coco_images) if settings.coco_images is not None else None
    sinks = make_sinks(settings, image_ids)
    for sink in sinks:
        sink.check()
    given = source is not None
    if source is None:
        source = open_source(settings.source, timeout_s=settings.timeout_s, image_fps=settings.image_fps)
    try:
        if not given:
            refuse_to_replace_inputs(settings)
        if settings.coco is not None and not source.still_images:
            raise SettingsError(f"--coco writes results of images, {source.name} is a video: use --json")
        if model is None:
            model = open_model(settings, announce=announce)
        device = device_of(model.keypoint_engine, model.segment_engine, frames_per_call=settings.batch)
        if not given:
            source = decoded_on(device, source, settings)
        return Pipeline(
            source,
            [
                *model_stages(settings, model, device),
                *compose_stages(settings, device, draw=draws(settings)),
                WriteStage(sinks),
            ],
            queue_depth=max(settings.queue_depth, device.frames_per_call),
            max_frames=settings.max_frames,
            source_join_s=settings.timeout_s + STAGE_JOIN_S,
        )
    except BaseException:
        source.close()
        raise


def decoded_on(device: Device, source: Source, settings: Settings) -> Source:
    """The source, opened again with the device's decoder where that is wanted and there is one.

    Raises:
        SettingsError: the GPU's decoder is asked for by name, and the networks do not run on a GPU.
        SourceError: it is asked for by name and cannot decode this source.
    """
    decoder = device.decoder
    if settings.decode == "gpu" and decoder is None:
        raise SettingsError(
            f"--decode gpu needs the networks on a GPU, they run on {device.name}: choose --engine torch or tensorrt"
        )
    if decoder is None or settings.decode == "cpu" or source.still_images or settings.source.isdecimal():
        return source
    source.close()
    return open_source(
        settings.source,
        timeout_s=settings.timeout_s,
        image_fps=settings.image_fps,
        decoder=decoder,
        decoder_required=settings.decode == "gpu",
    )


def refuse_to_replace_inputs(settings: Settings) -> None:
    """An output must not be one of the files that are read: --overwrite would destroy it while it is decoded.

    Raises:
        SettingsError: it is.
    """
    inputs = [] if is_stream(settings.source) else find_files(settings.source)
    if settings.coco_images is not None:
        inputs.append(str(settings.coco_images))
    background = read_background(settings.layer_background)
    if isinstance(background, Path):
        inputs.append(str(background))
    real_inputs = {os.path.realpath(name) for name in inputs}
    for flag, path in settings.output_paths():
        if os.path.realpath(path) in real_inputs:
            raise SettingsError(f"{flag} {path} is also read by this run: choose another name")


def model_stages(settings: Settings, model: Model, device: Device) -> tuple[KeypointStage, AffineStage, SegmentStage]:
    """The three stages that the model has a say in; what the settings leave open, the model's manifest decides."""
    artifact = model.artifact
    return (
        KeypointStage(
            model.keypoint_engine,
            device,
            long_side=_chosen(settings.long_side, artifact.long_side),
            input_multiple=artifact.input_multiple,
            person_threshold=_chosen(settings.person_threshold, artifact.person_threshold),
            parameters=decode_parameters(artifact),
            skip_still=_feature_stride(artifact, device) if settings.skip_still else None,
        ),
        AffineStage(
            artifact.templates,
            roi_size=artifact.roi_size,
            joint_threshold=_chosen(settings.joint_threshold, artifact.joint_threshold),
            person_threshold=_chosen(settings.person_threshold, artifact.person_threshold),
        ),
        SegmentStage(
            model.segment_engine,
            device,
            feature_from_input=artifact.feature_from_input,
            roi_size=artifact.roi_size,
            neighbours=artifact.neighbours,
            person_threshold=_chosen(settings.person_threshold, artifact.person_threshold),
        ),
    )


def compose_stages(
    settings: Settings, device: Device, *, draw: bool
) -> tuple[ComposeStage | HideStage | DrawStage, ...]:
    """Masks into frames; people hidden in them before anybody sees a picture; what is shown: all as it is wanted.

    Raises:
        SettingsError: the picture of ``--layer-background`` cannot be read.
    """
    hides, shows_people = settings.hide != "off", settings.draw == "people"
    stages: list[ComposeStage | HideStage | DrawStage] = [
        ComposeStage(
            device,
            mask_threshold=settings.mask_threshold,
            draw=draw and shows_people and not hides,
            exclusive_masks=not settings.overlapping_masks,
            smooth_joints=settings.smooth_joints,
        )
    ]
    if hides:
        stages.append(_hide_stage(settings, settings.hide, draw=draw and shows_people))
    if settings.draw in HIDING:
        stages.append(_hide_stage(settings, settings.draw, draw=False, drawn_only=True))
    elif not shows_people:
        layer = Layer(kind=settings.draw, path=Path("shown.mp4"))
        make_layer_paint(settings, layer)  # a background that cannot be read is told now
        stages.append(DrawStage(lambda: make_layer_paint(settings, layer)))
    return tuple(stages)


def _hide_stage(settings: Settings, kind: str, *, draw: bool, drawn_only: bool = False) -> HideStage:
    return HideStage(
        kind,
        read_ids(settings.layer_ids),
        mask_threshold=settings.mask_threshold,
        frames=settings.cover_frames,
        ahead=settings.hide_ahead,
        draw=draw,
        drawn_only=drawn_only,
    )


def _feature_stride(artifact: Artifact, device: Device) -> int:
    """Input px from one feature to the next, where parts of a picture can be looked at on their own.

    Raises:
        SettingsError: they cannot, on this device or with this model.
    """
    if not isinstance(device, HostDevice):
        raise SettingsError(
            "--skip-still works where the networks run on the CPU with the engines onnx and openvino, here they run on "
            f"{device.name}: leave it out, or choose --engine onnx"
        )
    if artifact.grouping != DEFAULT_GROUPING:
        raise SettingsError(
            f"--skip-still needs a model that groups joints by {DEFAULT_GROUPING}, this one does it by "
            f"{artifact.grouping}: leave it out"
        )
    matrix = artifact.feature_from_input
    stride = round(1 / float(matrix[0, 0])) if matrix[0, 0] > 0 else 0
    on_grid = stride >= 1 and np.allclose(matrix[:, :2] * stride, np.eye(2), atol=1e-5)
    if not on_grid or artifact.input_multiple % stride or artifact.input_multiple % BLOCK_PX:
        raise SettingsError(
            f"--skip-still needs a model whose features and input lie on one grid of {BLOCK_PX} px, this one has "
            f"feature_from_input {matrix.tolist()} and input_multiple {artifact.input_multiple}: leave it out"
        )
    return stride


def decode_parameters(artifact: Artifact) -> GroupingParameters:
    """The grouping of a model and its parameters; those its manifest does not name keep their defaults.

    Raises:
        ArtifactError: a name that this version does not know, or a value out of range.
    """
    known = {field.name for field in fields(PARAMETERS[artifact.grouping])}
    advice = "export the model again" if set(artifact.decode) <= known else "a newer folder needs a newer pose2seg-live"
    try:
        return grouping_parameters(artifact.grouping, artifact.decode)
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.folder}: decode parameters of {artifact.grouping!r}: {error}: {advice}"
        ) from error


def make_sinks(settings: Settings, image_ids: dict[str, int] | None) -> list[Sink]:
    """One sink per output that the settings name."""
    sinks: list[Sink] = []
    if settings.json is not None:
        sinks.append(JsonLinesSink(Path(settings.json), overwrite=settings.overwrite))
    if settings.coco is not None:
        sinks.append(CocoSink(Path(settings.coco), overwrite=settings.overwrite, image_ids=image_ids))
    if settings.table is not None:
        sinks.append(ParquetSink(Path(settings.table), overwrite=settings.overwrite))
    sinks += [export_sink(export, settings) for export in read_exports(settings.export)]
    if settings.is_piped():
        sinks.append(piped_video(settings))
    elif settings.output is not None:
        sinks.append(
            VideoSink(
                Path(settings.output),
                overwrite=settings.overwrite,
                crf=settings.video_crf,
                preset=settings.video_preset,
                encoder=settings.video_encoder,
            )
        )
    if settings.sheet is not None:
        sinks.append(ContactSheetSink(Path(settings.sheet), overwrite=settings.overwrite))
    return sinks + make_layer_sinks(settings)


def export_sink(export: Export, settings: Settings) -> Sink:
    """What writes an ``--export``."""
    if export.kind in SUBTITLES:
        return SubtitleSink(export.path, overwrite=settings.overwrite)
    if export.kind in {"coco", "cvat"}:
        folder = CocoFolder if export.kind == "coco" else CvatFolder
        return folder(export.path, overwrite=settings.overwrite, every=settings.export_every)
    pose = export.kind == "yolo-pose"
    return YoloFolder(export.path, overwrite=settings.overwrite, every=settings.export_every, pose=pose)


def piped_video(settings: Settings) -> Sink:
    """What writes ``--output -``."""
    if settings.pipe == "rawvideo":
        return RawPipe()
    return MatroskaPipe(crf=settings.video_crf, preset=settings.video_preset, encoder=settings.video_encoder)


def draws(settings: Settings) -> bool:
    """Whether anybody looks at the drawn frames."""
    return settings.output is not None or settings.sheet is not None or settings.show


def _chosen(given: Value | None, default: Value) -> Value:
    return default if given is None else given
