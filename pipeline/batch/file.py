"""One input of a batch, segment after segment, until its outputs are in place.

Segments of a file run in order, and everything that one frame leaves for the next (who is known, smoothed joints, the
pictures of the sheet) is written at the border and read back behind it, in every run. So it makes no difference whether
a run was interrupted there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from engines.device import device_of
from kernels.coordinates import U8
from pipeline.batch.detections import (
    DETECTIONS,
    DetectionsDamaged,
    Found,
    check_detections,
    origin_of,
    stored_stages,
)
from pipeline.batch.exports import CountsPart, TablePart, subtitles_of
from pipeline.batch.layers import (
    SegmentLayers,
    assemble_layer,
    existing_outputs,
    files_below,
    outputs_of,
    put_in_place,
    remove_output,
    save_heatmaps,
)
from pipeline.batch.parts import CocoEntries, KeptOpen, Unfinished, join_entries, join_files
from pipeline.batch.plan import BatchInput, is_image, require_inside, require_plain_file
from pipeline.batch.state import FileState, JobFolder, Segment, bring_to_disk, replace_file
from pipeline.batch.video import Position, SegmentedVideo, SegmentSource, join_video
from pipeline.build import Model, model_stages
from pipeline.contact_sheet import ContactSheetSink
from pipeline.errors import PipelineError, SinkError, SourceError, StageError
from pipeline.exports.options import SUBTITLES
from pipeline.exports.parquet_table import join_tables
from pipeline.layers.options import Layer, read_layers
from pipeline.layers.state import pack_state, unpack_state
from pipeline.messages import FrameResult
from pipeline.protocols import Sink
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage3_affine import AffineStage
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import JsonLinesSink, WriteStage, sink_error
from pipeline.video_output import VideoSink

log = logging.getLogger(__name__)

ENCODER_THREADS: Final = 1  # x264 makes other bits of the same frames with other numbers of threads
PICTURE_WIDTH: Final = 320  # px, in the report
LAYER_STATE: Final = "layers-{:06d}.npz"
_PART: Final = {"video": ".mp4", "json": ".jsonl", "coco": ".coco", "parquet": ".parquet", "srt": ".srt", "vtt": ".vtt"}


class Interrupted(Exception):
    """The batch is to end; the segment in work is thrown away."""


class Paused(Exception):
    """The segments that were asked for are finished, and there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    """Where an input is: frames and people so far, frames expected, finished segments."""

    frames: int
    people: int
    total: int | None
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """What to do with each input.

    Attributes:
        settings: of the model, of what is written and of layers, whose paths are relative; its source and other
            outputs are not used.
        write: kinds of `pipeline.batch.plan.OUTPUT_SUFFIXES`.
        segment_s: see `pipeline.batch.video.SegmentedVideo`.
        overwrite: replace outputs that are not of this job.
        model_digest: of the model folder; what was found with another one is not used.
        upload: address below which outputs are put when they are whole; they are removed here then.
    """

    settings: Settings
    write: tuple[str, ...]
    segment_s: float
    overwrite: bool = False
    model_digest: str = ""
    upload: str | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        return read_layers(self.settings.layer)


def process_file(
    item: BatchInput,
    job: JobFolder,
    model: Model,
    options: FileOptions,
    *,
    report: Callable[[FileProgress], None],
    stop: Callable[[], bool] = bool,
    until: int | None = None,
) -> FileState:
    """Process one input from where it is to its end, and put its outputs into place.

    What the networks found ahead in a segment (`pipeline.batch.detections`) is read; where there is nothing they run.

    Args:
        item: the input.
        job: where its state is.
        model: networks; they stay open.
        options: what to do.
        report: told after every frame.
        stop: asked after every frame; True ends with `Interrupted`.
        until: pause when so many segments are finished; None goes on to the end.

    Raises:
        Interrupted: see ``stop``; the state is that of the last finished segment.
        Paused: see ``until``.
        PipelineError, EngineError: the input failed; finished segments stay finished.
    """
    with job.file_locked(item.key):
        return _OneFile(item, job, model, options, report, stop, until).run()


def prepare_file(item: BatchInput, job: JobFolder, model: Model, options: FileOptions) -> FileState:
    """What is known of an input, as `process_file` would begin with it.

    Raises:
        PipelineError: it cannot be processed at all.
    """
    with job.file_locked(item.key):
        return _OneFile(item, job, model, options, lambda _progress: None, bool, None).prepared()


def found_in(item: BatchInput, state: FileState, number: int, start: int, model: Model, options: FileOptions) -> Found:
    """What detections of a segment must be about.

    Args:
        item: the input.
        state: of it.
        number: of the segment.
        start: number of its first frame.
        model: networks.
        options: what to do.
    """
    origin = origin_of(item.path, state.size, state.mtime_ns, options.settings, options.segment_s, options.model_digest)
    return Found(origin=origin, number=number, start=start, roi_size=model.artifact.roi_size)


def outputs_are_there(item: BatchInput, out: Path, state: FileState, options: FileOptions) -> bool:
    """Whether all outputs of an input that is done are in place."""
    if state.uploaded:
        return True
    names = outputs_of(options.layers, state.segments)
    return all(item.output(out, kind).is_file() for kind in options.write) and all(
        (out / f"{item.name}.{name}").exists() for name in names
    )


class _OneFile:
    def __init__(
        self,
        item: BatchInput,
        job: JobFolder,
        model: Model,
        options: FileOptions,
        report: Callable[[FileProgress], None],
        stop: Callable[[], bool],
        until: int | None,
    ) -> None:
        self._item = item
        self._job = job
        self._model = model
        self._options = options
        self._report = report
        self._stop = stop
        self._until = until
        self._folder = job.folder_of(item.key)
        self._state = self._known_state()

    def prepared(self) -> FileState:
        if self._state.status not in {"done", "publishing"}:
            self._refuse_foreign_outputs()
        return self._state

    def run(self) -> FileState:
        state = self.prepared()
        if state.status == "done":
            return state
        if not state.ended:
            self._process()
        self._publish()
        return state

    def _known_state(self) -> FileState:
        if is_image(self._item.name):
            raise SourceError(
                f"{self._item.name}: expected a video, this is a picture: use pose2seg SOURCE for pictures"
            )
        try:
            stat = Path(self._item.file).stat()
        except OSError as error:
            raise SourceError(
                f"{self._item.name}: cannot be read ({error.strerror}): check path and permissions"
            ) from error
        require_plain_file(self._item.name, stat.st_mode)
        state = self._job.load(self._item.key)
        if state is not None and state.status == "failed":
            state.status, state.error = "running", ""
        if state is None or not state.is_of(stat) or not self._is_usable(state):
            ours = state is not None and (state.replaces or state.status in {"done", "publishing"})
            self._job.forget(self._item.key)
            state = self._job.fresh(self._item, stat)
            state.replaces = ours or self._options.overwrite
            self._job.save(self._item.key, state)
        return state

    def _is_usable(self, state: FileState) -> bool:
        if state.status == "done":
            return outputs_are_there(self._item, self._job.out, state, self._options)
        return self._job.parts_are_whole(self._item.key, state)

    def _refuse_foreign_outputs(self) -> None:
        for kind in self._options.write:
            path = self._item.output(self._job.out, kind)
            require_inside(path.parent, self._job.out)
            if path.exists() and not self._state.replaces:
                raise SinkError(f"{path}: exists already and is not of this batch: move it away or add --overwrite")
        base = self._job.out / self._item.name
        require_inside(base.parent, self._job.out)
        found = existing_outputs(self._options.layers, base)
        if found and not self._state.replaces:
            raise SinkError(f"{found[0]}: exists already and is not of this batch: move it away or add --overwrite")

    def _process(self) -> None:
        state = self._state
        video = self._open_video()
        try:
            while video.has_more():
                if self._until is not None and len(state.segments) >= self._until:
                    raise Paused
                try:
                    self._segment(video)
                except StageError as error:
                    if not isinstance(error.__cause__, DetectionsDamaged):
                        raise
                    log.warning("detections of segment %d do not fit: made again", len(state.segments))
                    (self._folder / DETECTIONS.format(len(state.segments))).unlink(missing_ok=True)
                    video.close()
                    video = self._open_video()
            if not state.segments:
                raise SourceError(f"{self._item.name}: expected at least one video frame, found none: try another copy")
            state.ended, state.lost = True, video.frames_lost
            if state.lost:
                state.warnings.append(f"{state.lost} frames lost: the file is cut or damaged")
            self._job.save(self._item.key, state)
        finally:
            video.close()

    def _open_video(self) -> SegmentedVideo:
        resume = self._state.resume
        position = Position.of_state(resume["position"]) if resume is not None else None
        return SegmentedVideo(
            self._item.file, shown=self._item.name, segment_s=self._options.segment_s, position=position
        )

    def _segment(self, video: SegmentedVideo) -> None:
        state, settings = self._state, self._options.settings
        number = len(state.segments)
        started = time.monotonic()
        device = device_of(self._model.keypoint_engine, self._model.segment_engine, frames_per_call=settings.batch)
        keypoints, affine, segment = model_stages(settings, self._model, device)
        networks: tuple[Any, Any] = (KeptOpen(keypoints), KeptOpen(segment))
        found_path, found = self._folder / DETECTIONS.format(number), self._found(number)
        summary = check_detections(found_path, found)
        if summary is not None:
            networks = stored_stages(found_path, found, self._model, settings)
        compose = ComposeStage(
            device,
            mask_threshold=settings.mask_threshold,
            draw="video" in self._options.write,
            exclusive_masks=not settings.overlapping_masks,
            smooth_joints=settings.smooth_joints,
        )
        sheet = ContactSheetSink(self._folder / "sheet.png", overwrite=True)
        layers = SegmentLayers(settings, self._options.layers, self._folder, number)
        self._restore(affine, compose, sheet, layers)
        parts = {kind: self._folder / f"{number:06d}{_PART[kind]}" for kind in self._options.write if kind in _PART}
        sinks = self._sinks(parts, video)
        source = SegmentSource(video, self._item.name)
        border = _Border(layers, lambda: source.ended and video.has_more())
        sinks += [border, *layers.set.sinks]
        pipeline = Pipeline(
            source,
            [networks[0], affine, networks[1], compose, WriteStage([*sinks, Unfinished(sheet)])],
            queue_depth=max(settings.queue_depth, device.frames_per_call),
        )
        first: FrameResult | None = None
        frames = people = 0
        before_frames, before_people, total = state.frames, state.people, video.frame_total
        for result in pipeline.results():
            first = result if first is None else first
            frames += 1
            people += len(result.people)
            self._report(
                FileProgress(frames=before_frames + frames, people=before_people + people, total=total, segments=number)
            )
            if self._stop():
                raise Interrupted
        if first is None or not source.ended:
            raise SourceError(f"{self._item.name}: segment {number} gave no frames: try another copy")
        pictures = self._save_sheet(sheet, number)
        if self._options.layers:
            replace_file(self._folder / LAYER_STATE.format(number), pack_state(border.state))
        base = first.frame.time_base
        state.segments.append(
            Segment(
                frames=frames,
                people=people,
                seconds=time.monotonic() - started + (summary.seconds if summary is not None else 0.0),
                first_pts=first.frame.pts,
                time_base=(base.numerator, base.denominator),
                parts={path.name: _size_on_disk(path) for path in [*parts.values(), *layers.parts()]},
                starts=layers.starts(),
            )
        )
        state.resume = {
            "position": video.position.to_state(),
            "tracker": affine.tracker_of(0).to_state(),
            "smoother": compose.smoother_of(0).to_state(),
            "sheet": sheet.to_state(),
            "pictures": pictures,
            "layers": LAYER_STATE.format(number) if self._options.layers else None,
        }
        self._job.save(self._item.key, state)
        for old in (*self._folder.glob("pictures-*.png"), *self._folder.glob("layers-*.npz")):
            if old.name not in {pictures, state.resume["layers"]}:
                old.unlink(missing_ok=True)
        found_path.unlink(missing_ok=True)

    def _found(self, number: int) -> Found:
        resume = self._state.resume
        start = resume["position"]["index"] if resume is not None else 0
        return found_in(self._item, self._state, number, start, self._model, self._options)

    def _sinks(self, parts: dict[str, Path], video: SegmentedVideo) -> list[Sink]:
        settings = self._options.settings
        sinks: list[Sink] = []
        for kind, path in parts.items():
            if kind == "json":
                sinks.append(JsonLinesSink(path, overwrite=True))
            elif kind == "coco":
                sinks.append(CocoEntries(path))
            elif kind == "parquet":
                sinks.append(TablePart(path))
            elif kind in SUBTITLES:
                sinks.append(CountsPart(path))
            else:
                sinks.append(
                    VideoSink(
                        path,
                        overwrite=True,
                        crf=settings.video_crf,
                        preset=settings.video_preset,
                        threads=ENCODER_THREADS,
                        encoder=settings.video_encoder,
                        size=video.position.size if self._state.segments else None,
                    )
                )
        return sinks

    def _restore(
        self, affine: AffineStage, compose: ComposeStage, sheet: ContactSheetSink, layers: SegmentLayers
    ) -> None:
        resume = self._state.resume
        if resume is None:
            return
        resume = json.loads(json.dumps(resume))  # what a run that starts here would read
        affine.tracker_of(0).restore(resume["tracker"])
        compose.smoother_of(0).restore(resume["smoother"])
        sheet.restore(resume["sheet"], self._pictures(resume))
        if self._options.layers:
            layers.set.restore(self._layer_state(resume))

    def _layer_state(self, resume: dict[str, Any]) -> Any:
        try:
            return unpack_state((self._folder / resume["layers"]).read_bytes())
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{self._item.name}: {resume['layers']} is damaged: add --overwrite to start anew"
            ) from error

    def _pictures(self, resume: dict[str, Any]) -> list[U8]:
        image = cv2.imread(str(self._folder / resume["pictures"]))
        if image is None:
            raise SourceError(f"{self._item.name}: {resume['pictures']} is damaged: add --overwrite to start anew")
        height = resume["sheet"]["tile"][0]
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return [np.ascontiguousarray(rgb[top : top + height]) for top in range(0, len(rgb), height)]

    def _save_sheet(self, sheet: ContactSheetSink, number: int) -> str:
        name = f"pictures-{number:06d}.png"
        stacked = cv2.cvtColor(np.concatenate(sheet.kept), cv2.COLOR_RGB2BGR)
        ok, data = cv2.imencode(".png", stacked, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not ok:
            raise SinkError(f"{self._folder / name}: the picture could not be encoded: report this")
        replace_file(self._folder / name, data.tobytes())
        return name

    def _publish(self) -> None:
        state = self._state
        resume = state.resume
        if resume is None:
            raise RuntimeError("no segment is finished")
        finished: list[tuple[Path, Path]] = []
        try:
            for kind in self._options.write:
                target = self._item.output(self._job.out, kind)
                require_inside(target.parent, self._job.out)
                target.parent.mkdir(parents=True, exist_ok=True)
                require_inside(target.parent, self._job.out)
                beside = target.with_name(f".{target.name[:180]}.{self._item.key[:8]}.part{target.suffix}")
                finished.append((beside, target))
                self._assemble(kind, beside, resume)
                bring_to_disk(beside)
            finished += self._assemble_layers(resume)
            kept = self._pictures(resume)
            replace_file(self._folder / "picture.jpg", _report_picture(kept[len(kept) // 2]))
            state.status, state.replaces = "publishing", True
            self._job.save(self._item.key, state)
            for beside, target in finished:
                put_in_place(beside, target)
                bring_to_disk(target.parent)
            self._remove_people_of_before({target for _, target in finished})
            self._upload([target for _, target in finished])
        except (OSError, av.FFmpegError) as error:
            for beside, _ in finished:
                remove_output(beside)
            if isinstance(error, PipelineError):
                raise
            path = finished[-1][1] if finished else self._job.out
            if isinstance(error, OSError):
                raise sink_error(path, error) from error
            raise SinkError(f"{path}: cannot be joined ({error}): report this") from error
        state.status = "done"
        state.error = ""
        state.resume = None
        self._job.save(self._item.key, state)
        self._job.remove_parts(self._item.key)

    def _upload(self, outputs: list[Path]) -> None:
        """Outputs go where they are wanted, and are here no more."""
        place = self._options.upload
        if place is None:
            return
        from pipeline.batch.storage import upload

        for path in files_below(outputs):
            upload(path, f"{place.rstrip('/')}/{path.relative_to(self._job.out).as_posix()}")
        for path in outputs:
            remove_output(path)
        self._state.uploaded = True

    def _assemble_layers(self, resume: dict[str, Any]) -> list[tuple[Path, Path]]:
        """Outputs of all layers, each with the name that it gets; what is half done when it fails is removed."""
        layers, segments = self._options.layers, self._state.segments
        if not layers:
            return []
        base = self._job.out / self._item.name
        require_inside(base.parent, self._job.out)
        base.parent.mkdir(parents=True, exist_ok=True)
        origin_s = self._origin_s(resume)
        found = outputs_of(layers, segments)
        finished = {
            name: (base.with_name(f".{base.name[:100]}.{self._item.key[:8]}.part.{name}"), self._layer_path(name))
            for name in found
        }
        try:
            for name, parts in found.items():
                if parts:
                    assemble_layer(name, parts, segments, self._folder, finished[name][0], origin_s=origin_s)
            if any(layer.kind == "heatmap" for layer in layers):
                targets = {name: beside for name, (beside, _) in finished.items()}
                save_heatmaps(self._options.settings, layers, self._layer_state(resume), targets)
            for file in files_below(beside for beside, _ in finished.values()):
                bring_to_disk(file)
        except BaseException:
            for beside, _ in finished.values():
                remove_output(beside)
            raise
        return list(finished.values())

    def _layer_path(self, name: str) -> Path:
        return self._job.out / f"{self._item.name}.{name}"

    def _remove_people_of_before(self, placed: set[Path]) -> None:
        """Files of people whom an earlier run of this batch found, and this one did not."""
        if self._state.replaces:
            for path in existing_outputs(self._options.layers, self._job.out / self._item.name):
                if path not in placed:
                    remove_output(path)

    def _assemble(self, kind: str, path: Path, resume: dict[str, Any]) -> None:
        count = len(self._state.segments)
        parts = [self._folder / f"{number:06d}{_PART[kind]}" for number in range(count if kind in _PART else 0)]
        if kind == "json":
            join_files(parts, path)
        elif kind == "coco":
            join_entries(parts, path)
        elif kind == "parquet":
            join_tables(parts, path)
        elif kind in SUBTITLES:
            path.write_bytes(subtitles_of(parts, self._origin_s(resume), vtt=kind == "vtt"))
        elif kind == "sheet":
            path.unlink(missing_ok=True)
            sheet = ContactSheetSink(path, overwrite=True)
            sheet.restore(resume["sheet"], self._pictures(resume))
            sheet.close()
        else:
            origin_s = self._origin_s(resume)
            starts = [segment.first_pts * Fraction(*segment.time_base) for segment in self._state.segments]
            timed = [(part, start_s - origin_s) for part, start_s in zip(parts, starts, strict=True)]
            for warning in join_video(timed, self._item.file, origin_s, path):
                if warning not in self._state.warnings:
                    self._state.warnings.append(warning)

    @staticmethod
    def _origin_s(resume: dict[str, Any]) -> Fraction:
        """Time of the file's first frame."""
        pts, numerator, denominator = resume["position"]["origin"]
        return int(pts) * Fraction(numerator, denominator)


class _Border:
    """Closed before the layers' sinks: takes what they remember, and whether another segment follows."""

    def __init__(self, layers: SegmentLayers, goes_on: Callable[[], bool]) -> None:
        self._layers = layers
        self._goes_on = goes_on
        self.state: Any = None

    def check(self) -> None:
        """Writes nothing."""

    def write(self, result: FrameResult) -> None:
        """Waits for the end."""

    def close(self) -> None:
        if self._goes_on():
            self._layers.set.close_later()
        self.state = self._layers.set.to_state()


def _size_on_disk(path: Path) -> int:
    try:
        bring_to_disk(path)
        return path.stat().st_size
    except OSError as error:
        raise sink_error(path, error) from error


def _report_picture(tile: U8) -> bytes:
    height = max(1, round(PICTURE_WIDTH * tile.shape[0] / tile.shape[1]))
    small = cv2.resize(tile, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes() if ok else b""
