"""What a batch would do and how long it would take: opens every input, and measures on a few frames of some."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import av
from rich.table import Table
from rich.text import Text

from engines.device import device_of
from pipeline.batch.file import ENCODER_THREADS
from pipeline.batch.parts import KeptOpen
from pipeline.batch.plan import BatchInput, is_image, require_plain_file, shown_name
from pipeline.batch.progress import duration
from pipeline.batch.storage import opened
from pipeline.batch.video import MarkedVideo, SegmentedVideo, SegmentSource
from pipeline.build import Model, model_stages, open_model
from pipeline.errors import PipelineError
from pipeline.layers.options import read_layers
from pipeline.layers.sinks import LayerSet
from pipeline.redaction import redact
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import WriteStage
from pipeline.video_output import VideoSink

MEASURED_FILES: Final = 3
MEASURED_FRAMES: Final = 40
_WARM_FRAMES: Final = 5  # the first ones pay for what later ones find ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One input before it is processed.

    Attributes:
        item: the input.
        frames: None where the file does not say.
        seconds: its length; None likewise.
        size: height, width in px, as stored; None where it cannot be opened.
        problem: why it will fail; empty for none.
    """

    item: BatchInput
    frames: int | None = None
    seconds: float | None = None
    size: tuple[int, int] | None = None
    problem: str = ""


def probe(item: BatchInput) -> Probe:
    """Open an input and read what its header says."""
    if is_image(item.name):
        return Probe(item=item, problem="expected a video, this is a picture")
    try:
        if not item.address:
            require_plain_file(item.name, Path(item.file).stat().st_mode)
        with opened(item) as file:
            video = MarkedVideo(item.file, timeout_s=10.0, file=file)
            try:
                frames = video.frame_total
                seconds = frames / float(video.frame_rate) if frames is not None else None
                return Probe(item=item, frames=frames, seconds=seconds, size=video.stored_size)
            finally:
                video.close()
    except (PipelineError, av.FFmpegError, OSError, ValueError) as error:
        return Probe(item=item, problem=redact(str(error)))


def measured_fps(probes: Iterable[Probe], settings: Settings, *, kinds: Sequence[str]) -> float | None:
    """Frames a second of one worker, from the first frames of some inputs; None where nothing can be read.

    Args:
        probes: inputs.
        settings: of the model.
        kinds: what is written; the video, which costs most of these, is drawn and encoded here too, and so are layers.

    Raises:
        EngineError: there is no model.
    """
    model = open_model(settings)
    frames, seconds = 0, 0.0
    try:
        readable = [found for found in probes if not found.problem and not found.item.address]
        for found in itertools.islice(readable, MEASURED_FILES):
            try:
                count, took_s = _measure(found.item, model, settings, video="video" in kinds)
            except PipelineError:
                continue
            frames, seconds = frames + count, seconds + took_s
    finally:
        model.close()
    return frames / seconds if seconds > 0 else None


def _measure(item: BatchInput, model: Model, settings: Settings, *, video: bool) -> tuple[int, float]:
    device = device_of(model.keypoint_engine, model.segment_engine, frames_per_call=settings.batch)
    keypoints, affine, segment = model_stages(settings, model, device)
    exclusive = not settings.overlapping_masks
    compose = ComposeStage(device, mask_threshold=settings.mask_threshold, draw=video, exclusive_masks=exclusive)
    reader = SegmentedVideo(item.path, shown=item.name, segment_s=86400.0)
    with tempfile.TemporaryDirectory() as folder:
        sink = VideoSink(
            Path(folder) / "measured.mp4",
            overwrite=True,
            crf=settings.video_crf,
            preset=settings.video_preset,
            threads=ENCODER_THREADS,
            encoder=settings.video_encoder,
        )
        placed = [replace(layer, path=Path(folder) / layer.path) for layer in read_layers(settings.layer)]
        layers = LayerSet(settings, placed).sinks
        pipeline = Pipeline(
            SegmentSource(reader, item.name),
            [
                KeptOpen(keypoints),
                affine,
                KeptOpen(segment),
                compose,
                WriteStage([*([sink] if video else []), *layers]),
            ],
            max_frames=MEASURED_FRAMES,
        )
        try:
            count, started = 0, 0.0
            for count, _ in enumerate(pipeline.results(), 1):
                if count == _WARM_FRAMES:
                    started = time.monotonic()
            return (count - _WARM_FRAMES, time.monotonic() - started) if count > _WARM_FRAMES else (0, 0.0)
        finally:
            reader.close()


def plan_table(probes: Sequence[Probe], *, workers: int, fps: float | None) -> Table:
    """What would be done.

    Args:
        probes: inputs that are left to do.
        workers: processes.
        fps: of one worker; None: not measured.
    """
    known = [found for found in probes if not found.problem]
    frames = sum(found.frames or 0 for found in known)
    unknown = sum(found.frames is None for found in known)
    longest = max((found.frames or 0 for found in known), default=0)
    bad = len(probes) - len(known)
    # a file is one worker's, so the longest one is a bound
    eta_s = max(frames / (fps * workers), longest / fps) if fps else None
    table = Table(
        title=Text(f"{len(probes)} files to do, {bad} cannot be read"),
        caption=Text(
            f"{frames} frames{f' and {unknown} files of unknown length' if unknown else ''}, {workers} workers of "
            f"{f'{fps:.1f}' if fps else '?'} FPS each: about {duration(eta_s)}"
        ),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("file", overflow="fold")
    for heading in ("frames", "length", "size"):
        table.add_column(heading, justify="right")
    table.add_column("problem", overflow="fold")
    for found in probes:
        table.add_row(
            Text(found.item.name),
            "?" if found.frames is None else str(found.frames),
            duration(found.seconds),
            "-" if found.size is None else f"{found.size[1]} x {found.size[0]}",
            Text(shown_name(found.problem)),
        )
    return table
