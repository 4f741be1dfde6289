"""Work on a file ahead of its turn: find the borders of its segments, run the networks on one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from engines.device import device_of
from pipeline.batch.detections import DETECTIONS, check_detections, detect
from pipeline.batch.file import FileOptions, FileProgress, Interrupted, found_in, prepare_file
from pipeline.batch.plan import BatchInput
from pipeline.batch.state import JobFolder
from pipeline.batch.video import Position, SegmentedVideo
from pipeline.build import Model
from pipeline.errors import PipelineError, SourceError

log = logging.getLogger(__name__)

LEAST_SEGMENTS = 2  # a file that is shorter gains nothing


def scout_file(
    item: BatchInput,
    job: JobFolder,
    model: Model,
    options: FileOptions,
    *,
    border: Callable[[int, dict[str, Any] | None], None],
    stop: Callable[[], bool] = bool,
) -> int:
    """Decode a file to find where its segments begin, from where it is to its end.

    A border behind which nobody could find the place again by seeking is not told, nor is any after it: from there on
    the pass in order runs the networks itself.

    Args:
        item: the input.
        job: where its state is.
        model: of the batch.
        options: what to do.
        border: told number and position (`pipeline.batch.video.Position.to_state`) of each segment's start; None is the
            start of the file.
        stop: asked after every frame; True ends with `Interrupted`.

    Returns:
        How many were told; 0 for a file that is short or done.

    Raises:
        Interrupted: see ``stop``.
        PipelineError: the file cannot be read, or not be processed at all.
    """
    state = prepare_file(item, job, model, options)
    if state.status in {"done", "publishing"} or state.ended:
        return 0
    position = Position.of_state(state.resume["position"]) if state.resume is not None else None
    video = SegmentedVideo(item.file, shown=item.name, segment_s=options.segment_s, position=position)
    try:
        left = None if video.frame_total is None else video.frame_total - (position.index if position else 0)
        if left is not None and left < LEAST_SEGMENTS * options.segment_s * video.frame_rate:
            return 0
        first = number = len(state.segments)
        while video.has_more():
            if position is not None and not position.seekable:
                log.info("%s: no place in it is found by seeking: done by one worker from %d on", item.name, number)
                break
            border(number, None if position is None else position.to_state())
            for _ in video.segment():
                if stop():
                    raise Interrupted
            number, position = number + 1, video.position
        return number - first
    finally:
        video.close()


def detect_segment(
    item: BatchInput,
    number: int,
    start: dict[str, Any] | None,
    job: JobFolder,
    model: Model,
    options: FileOptions,
    *,
    report: Callable[[FileProgress], None],
    stop: Callable[[], bool] = bool,
) -> None:
    """Run the networks on one segment and keep what they find until the pass in order is there.

    A worker may be late: given up as lost while it only was slow. Where the pass in order has done the segment
    meanwhile, nothing is kept, at whatever moment that happens: the pass notes what it has done before it removes what
    was found ahead, and here the note is read again after the file is written.

    Args:
        item: the input.
        number: of the segment.
        start: as `scout_file` told it.
        job: where its state is.
        model: networks; they stay open.
        options: what to do.
        report: told frames and people of the segment, after every frame.
        stop: asked after every frame; True ends with `Interrupted`.

    Raises:
        Interrupted: see ``stop``; nothing is kept.
        PipelineError, EngineError: the segment failed.
    """
    state = job.load(item.key)
    if state is None:
        raise SourceError(f"{item.name}: its state file is gone: somebody removed it during the run")
    if state.is_past(number):
        return
    position = Position.of_state(start) if start is not None else None
    index = position.index if position is not None else 0
    found = found_in(item, state, number, index, model, options)
    path = job.folder_of(item.key) / DETECTIONS.format(number)
    summary = check_detections(path, found)
    if summary is not None:  # of a run that was interrupted
        report(FileProgress(frames=summary.frames, people=0, total=summary.frames, segments=number))
        return
    device = device_of(model.keypoint_engine, model.segment_engine, frames_per_call=1)
    video = SegmentedVideo(item.file, shown=item.name, segment_s=options.segment_s, position=position)

    def told(frames: int, people: int) -> None:
        report(FileProgress(frames=frames, people=people, total=None, segments=number))

    try:
        if not video.has_more():
            raise SourceError(f"{item.name}: has no segment {number} any more: it was changed")
        kept = detect(video, model, options.settings, device, path, found, report=told, stop=stop)
    except PipelineError:
        if _is_wanted(item, number, job):
            raise
        return  # the file that was being written has been removed
    finally:
        video.close()
    if not kept:
        raise Interrupted
    if not _is_wanted(item, number, job):
        path.unlink(missing_ok=True)


def _is_wanted(item: BatchInput, number: int, job: JobFolder) -> bool:
    state = job.load(item.key)
    return state is not None and not state.is_past(number)
