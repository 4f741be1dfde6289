"""What the networks see in one segment, found ahead of its turn and kept until it is: people without names.

Who somebody is depends on all frames before; what the networks find in a frame does not. So the networks may run on any
segment, on any machine, at any time. The pass in order reads what they found, and does the rest as it always does.

    OUT/.pose2seg/files/KEY/people-N.found    segment N: a line of JSON, then a record for each frame

A record: pts, number of people, length of what follows (<qIi), then, deflated, keypoints (N, 17, 3) float32, scores
(N,), mask scores (N,) and mask probabilities (N, S, S) float32: all bits, as the networks gave them. The last record
has milliseconds, frames and the length -1. Weak poses are in it, too, so more people share a call of the segment
network than in one pass. That gives the same bits as long as the network treats each person by themselves; a test holds
it to that.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, cast

import numpy as np

from engines.device import Device
from kernels.coordinates import F32
from kernels.letterbox import plan_letterbox
from pipeline.batch.parts import KeptOpen
from pipeline.batch.video import SegmentedVideo, SegmentSource
from pipeline.build import Model, model_stages
from pipeline.errors import PipelineError, SourceError
from pipeline.messages import AlignedRois, Features, Frame, InstanceMasks, Poses
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage3_affine import AffineStage
from pipeline.stage6_sinks import sink_error, write_whole

DETECTIONS: Final = "people-{:06d}.found"
_VERSION: Final = 1
_RECORD: Final = struct.Struct("<qIi")
_END: Final = -1
_EFFORT: Final = 1  # of deflating: probabilities shrink to a fraction at the first level, and little at higher ones
_MAX_RECORD_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file of detections is about; all of it must fit, or it is not used.

    Attributes:
        origin: of the input and the options, see `origin_of`.
        number: of the segment.
        start: number of its first frame in the input.
        roi_size: S, ROI px.
        version: of the layout.
    """

    origin: str
    number: int
    start: int
    roi_size: int
    version: int = _VERSION


def origin_of(path: str, size: int, mtime_ns: int, settings: Settings, segment_s: float, model: str) -> str:
    """A text that differs whenever the networks may find something else.

    Args:
        path: of the input.
        size: of the input, bytes.
        mtime_ns: when it was changed.
        settings: of the run.
        segment_s: length of a segment.
        model: digest of the model folder.
    """
    said = [path, size, mtime_ns, segment_s, model, settings.long_side, settings.person_threshold]
    said += [settings.joint_threshold, settings.precision, settings.engine, settings.threads]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class EveryoneStage:
    """Poses -> AlignedRois for all poses, weak ones too: who goes on under which name is found out later."""

    name = "everyone"

    def __init__(self, affine: AffineStage) -> None:
        self._affine = affine

    def open(self) -> None:
        self._affine.open()

    def process(self, poses: Poses) -> AlignedRois:
        return self._affine.align(poses, np.arange(1, len(poses.scores) + 1, dtype=np.int32))

    def close(self) -> None:
        self._affine.close()


def detect(
    video: SegmentedVideo,
    model: Model,
    settings: Settings,
    device: Device,
    path: Path,
    found: Found,
    *,
    report: Callable[[int, int], None],
    stop: Callable[[], bool] = bool,
) -> int:
    """Run the networks on the next segment and keep all they find.

    Args:
        video: at the border before the segment; it stays open.
        model: networks; they stay open.
        settings: of the model.
        device: where they run.
        path: file to write; it is there when it is whole.
        found: what it is about.
        report: told frames and people so far, after every frame.
        stop: asked after every frame; True ends, and nothing is kept.

    Returns:
        Frames; 0 if it was stopped.

    Raises:
        PipelineError: it cannot be read or written.
    """
    keypoints, affine, segment = model_stages(settings, model, device)
    source = SegmentSource(video, "detections")
    pipeline = Pipeline(
        source,
        [KeptOpen(keypoints), EveryoneStage(affine), KeptOpen(segment)],
        queue_depth=max(settings.queue_depth, device.frames_per_call),
    )
    started = time.monotonic()
    beside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.new")
    frames = people = 0
    try:
        with beside.open("wb", buffering=0) as file:
            write_whole(file, json.dumps(asdict(found)).encode() + b"\n", beside)
            for result in pipeline.results():
                masks = cast("InstanceMasks", result)
                _write_frame(file, beside, masks)
                frames += 1
                people += len(masks.scores)
                report(frames, people)
                if stop():
                    return 0
            if not source.ended or not frames:
                raise SourceError(f"segment {found.number} gave no frames: try another copy")
            spent_ms = round(1000 * (time.monotonic() - started))
            write_whole(file, _RECORD.pack(spent_ms, frames, _END), beside)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise error if isinstance(error, PipelineError) else sink_error(path, error) from error
    finally:
        beside.unlink(missing_ok=True)
    return frames


def _write_frame(file: IO[bytes], path: Path, masks: InstanceMasks) -> None:
    poses = masks.rois.poses
    n = len(poses.scores)
    arrays = (poses.keypoints, poses.scores, masks.scores, masks.probabilities)
    content = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    packed = zlib.compress(content, _EFFORT) if n else b""
    write_whole(file, _RECORD.pack(poses.frame.pts, n, len(packed)) + packed, path)


class DetectionsDamaged(Exception):
    """A file of detections cannot be used; the networks run again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundFrame:
    """What was found in one frame: keypoints (N, 17, 3), scores, mask_scores (N,), probabilities (N, S, S), pts."""

    pts: int
    keypoints: F32
    scores: F32
    mask_scores: F32
    probabilities: F32


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a whole file: frames, and how long the networks took, s."""

    frames: int
    seconds: float


def check_detections(path: Path, found: Found) -> Summary | None:
    """Whether a file is there, whole and about this; reads all of it.

    Args:
        path: of `detect`.
        found: what it must be about.
    """
    try:
        with path.open("rb") as file:
            summary = None
            for entry in _entries(file, found):
                summary = entry if isinstance(entry, Summary) else None
            return summary
    except (OSError, DetectionsDamaged):
        return None


def read_detections(path: Path, found: Found) -> Iterator[FoundFrame]:
    """The frames of a file, in order.

    Raises:
        DetectionsDamaged: it is about something else, or not whole.
    """
    try:
        with path.open("rb") as file:
            for entry in _entries(file, found):
                if isinstance(entry, FoundFrame):
                    yield entry
    except OSError as error:
        raise DetectionsDamaged(f"{path}: {error.strerror}") from error


def _entries(file: IO[bytes], found: Found) -> Iterator[FoundFrame | Summary]:
    try:
        head = json.loads(file.readline(1 << 16))
    except ValueError:
        head = None
    if head != asdict(found):
        raise DetectionsDamaged("detections of something else")
    frames = 0
    side = found.roi_size
    while True:
        record = file.read(_RECORD.size)
        if len(record) != _RECORD.size:
            raise DetectionsDamaged("detections end early")
        pts, n, length = _RECORD.unpack(record)
        if length == _END:
            if n != frames or file.read(1):
                raise DetectionsDamaged("detections of another number of frames")
            yield Summary(frames=frames, seconds=pts / 1000)
            return
        if not 0 <= length <= _MAX_RECORD_BYTES or n > 4096:
            raise DetectionsDamaged("impossible detections")
        content = _inflated(file.read(length), n * 4 * (17 * 3 + 2 + side * side))
        values = np.frombuffer(content, "<f4").astype(np.float32)
        keypoints, scores, mask_scores, probabilities = np.split(values, np.cumsum([n * 51, n, n]))
        frames += 1
        yield FoundFrame(
            pts=pts,
            keypoints=keypoints.reshape(n, 17, 3),
            scores=scores,
            mask_scores=mask_scores,
            probabilities=probabilities.reshape(n, side, side),
        )


def _inflated(packed: bytes, expected: int) -> bytes:
    if not expected and not packed:
        return b""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(packed, expected + 1)
    except zlib.error as error:
        raise DetectionsDamaged(str(error)) from error
    if len(content) != expected or not inflater.eof:
        raise DetectionsDamaged("detections of another size")
    return content


def stored_stages(path: Path, found: Found, model: Model, settings: Settings) -> tuple[StoredPoses, StoredMasks]:
    """What stands in place of both networks for a segment.

    Args:
        path: of `detect`.
        found: what it must be about.
        model: whose networks ran.
        settings: of the run.
    """
    artifact = model.artifact
    long_side = artifact.long_side if settings.long_side is None else settings.long_side
    frames = read_detections(path, found)
    return StoredPoses(frames, long_side=long_side, input_multiple=artifact.input_multiple), StoredMasks()


class StoredPoses:
    """Frame -> Poses from a file, in place of the keypoint network."""

    name = "keypoints"

    def __init__(self, frames: Iterator[FoundFrame], *, long_side: int, input_multiple: int) -> None:
        """Take the place of a stage.

        Args:
            frames: of `read_detections`.
            long_side: of the network's input, px.
            input_multiple: see `pipeline.stage2_keypoints.KeypointStage`.
        """
        self._frames = frames
        self._long_side = long_side
        self._multiple = input_multiple

    def open(self) -> None:
        """Nothing to load."""

    def process(self, frame: Frame) -> Poses:
        stored = next(self._frames, None)
        if stored is None or stored.pts != frame.pts:
            raise DetectionsDamaged("detections of other frames")
        return Poses(
            frame=frame,
            keypoints=stored.keypoints,
            scores=stored.scores,
            letterbox=plan_letterbox(frame.height, frame.width, long_side=self._long_side, multiple=self._multiple),
            features=Features(maps=stored, row=0, picture=frame.pixels),
        )

    def close(self) -> None:
        """The reader closes its file."""


class StoredMasks:
    """AlignedRois -> InstanceMasks from what `StoredPoses` read, in place of the segment network."""

    name = "segment"

    def open(self) -> None:
        """Nothing to load."""

    def process(self, rois: AlignedRois) -> InstanceMasks:
        poses = rois.poses
        if poses.features is None:
            raise DetectionsDamaged("no detections")
        stored: FoundFrame = poses.features.maps
        row_of = {pose.tobytes(): row for row, pose in enumerate(stored.keypoints)}
        rows = np.array([row_of[pose.tobytes()] for pose in poses.keypoints], np.intp)
        return InstanceMasks(rois=rois, probabilities=stored.probabilities[rows], scores=stored.mask_scores[rows])

    def close(self) -> None:
        """Nothing is held."""
