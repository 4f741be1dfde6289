"""Live, per-person masks from poses, as a Python generator.

    import pose2seg

    for result in pose2seg.stream("walk.mp4"):
        for person in result.people:
            print(person.id, person.score, person.bbox, person.mask.sum())
        picture = result.overlay()

The command `pose2seg` is the same pipeline with outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path

from engines import EngineError
from engines.engine import Precision
from pipeline import (
    FrameResult,
    Person,
    PipelineError,
    Settings,
    SettingsError,
    SinkError,
    SourceError,
    StageError,
    build,
)
from pipeline.settings import Decode

__all__ = [
    "EngineError",
    "FrameResult",
    "Person",
    "PipelineError",
    "SettingsError",
    "SinkError",
    "SourceError",
    "StageError",
    "stream",
]


def stream(
    source: str | PathLike[str] | int,
    *,
    model: str | PathLike[str] | None = None,
    engine: str = "auto",
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    decode: Decode = "auto",
    batch: int | None = None,
    long_side: int | None = None,
    skip_still: bool = False,
    person_threshold: float | None = None,
    joint_threshold: float | None = None,
    smooth_joints: bool = False,
    mask_threshold: float = 0.5,
    overlapping_masks: bool = False,
    max_frames: int | None = None,
    queue_depth: int = 2,
    image_fps: float = 2.0,
    timeout_s: float = 10.0,
) -> Iterator[FrameResult]:
    """Process a source frame by frame.

    Files wait for the loop; live sources do not, they drop frames (gaps in ``result.frame.index``). Leaving the loop
    early stops and joins all threads as soon as the generator is closed, which Python does when it is no longer
    referenced.

    Args:
        source: a video or image file, a folder or glob of them, a webcam number, or an rtsp:// or http(s):// address.
        model: model folder; the one that comes with the package by default.
        engine: what runs the networks, one of `engines.ENGINE_NAMES`.
        device: where the networks run: "cpu", "cuda" or "cuda:N"; the best that works by default.
        precision: arithmetic of the networks, one of `engines.PRECISIONS`.
        threads: cores each network may use; all by default.
        decode: what decodes video; auto takes the GPU where the networks run on one.
        batch: most frames of one call of the networks, if they wait anyway; up to the device by default.
        long_side: long side of the network input in px; the model's own by default.
        skip_still: the networks skip what has not changed: faster where the camera stands still.
        person_threshold: score (0..1) it takes to appear, half of it to stay; the model's own by default.
        joint_threshold: joints below this confidence (0..1) do not guide the mask; the model's own by default.
        smooth_joints: hold joints that tremble still; masks do not change.
        mask_threshold: mask pixels are those above this probability (0..1).
        overlapping_masks: a px may lie in several masks, as in the paper; else only in that of the surest person.
        max_frames: stop after this many frames.
        queue_depth: frames that may wait between two stages.
        image_fps: pictures a second that still images count as.
        timeout_s: give a network source up after this many seconds of silence.

    Yields:
        One `FrameResult` per frame, in order. ``people`` may be empty.

    Raises:
        SettingsError: an option cannot be used; raised by the call itself, everything else by the first or a later
            step of the loop.
        SourceError: the source cannot be read.
        EngineError: the model cannot be used.
        StageError: a stage failed on a frame.
    """
    settings = Settings(
        source=str(source) if isinstance(source, int) else fspath(source),
        model=None if model is None else Path(model),
        engine=engine,
        device=device,
        precision=precision,
        threads=threads,
        decode=decode,
        batch=batch,
        long_side=long_side,
        skip_still=skip_still,
        person_threshold=person_threshold,
        joint_threshold=joint_threshold,
        smooth_joints=smooth_joints,
        mask_threshold=mask_threshold,
        overlapping_masks=overlapping_masks,
        max_frames=max_frames,
        queue_depth=queue_depth,
        image_fps=image_fps,
        timeout_s=timeout_s,
    )
    return _results(settings)


def _results(settings: Settings) -> Iterator[FrameResult]:
    yield from build(settings).results()
