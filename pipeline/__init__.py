"""Live, per-person masks: a source goes in, results come out, every step on a thread of its own.

    stage1_decode     file, folder, camera or address  -> Frame          upright RGB with its own time
    stage2_keypoints  Frame         -> Poses           letterbox, keypoint network, grouping into people
    stage3_affine     Poses         -> AlignedRois     fit to pose templates: an upright window per person
    stage4_segment    AlignedRois   -> InstanceMasks   segment network, one mask per window
    stage5_compose    InstanceMasks -> FrameResult     masks into the frame, stable ids, drawing
    stage6_sinks      FrameResult   -> video, JSON lines, COCO results, contact sheet

`build` wires them from `Settings`; `Pipeline.results` runs them.
"""

from __future__ import annotations

from pipeline.build import Model, build, open_model
from pipeline.errors import PipelineError, SettingsError, SinkError, SourceError, StageError
from pipeline.messages import AlignedRois, Frame, FrameResult, InstanceMasks, Poses
from pipeline.person import Person
from pipeline.runtime import Pipeline
from pipeline.settings import Settings

__all__ = [
    "AlignedRois",
    "Frame",
    "FrameResult",
    "InstanceMasks",
    "Model",
    "Person",
    "Pipeline",
    "PipelineError",
    "Poses",
    "Settings",
    "SettingsError",
    "SinkError",
    "SourceError",
    "StageError",
    "build",
    "open_model",
]
