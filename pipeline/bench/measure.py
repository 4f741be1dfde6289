"""The measurements of `pose2seg bench`: the whole pipeline, the segment network alone, given poses, ceilings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines import EngineLoadError, EngineOptions, load_artifact
from engines.device import Ceilings, Device, device_of
from engines.graph_cost import graph_cost
from engines.pose_guided import masks_from_poses, open_pose_guided
from kernels.coordinates import F32, U8
from kernels.letterbox import plan_letterbox
from kernels.pose_fit import PAPER_TEMPLATES
from kernels.roi_inputs import segment_feeds
from pipeline.build import Model, model_stages, open_model
from pipeline.errors import SettingsError
from pipeline.messages import Frame, FrameResult, Poses
from pipeline.metrics import StageStats, percentile
from pipeline.protocols import Sink, Source
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage1_decode import open_source
from pipeline.stage2_keypoints import KeypointStage
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import JsonLinesSink, WriteStage
from pipeline.video_output import VideoSink

log = logging.getLogger(__name__)

FEATURE_CHANNELS = 64  # where the graph does not say
FRAME_SIZE = (720, 1280)
FRAMES_IN_MEMORY = 16
FULL_BODY = 0  # the template of a standing person


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one line of the table measures.

    Attributes:
        clip: name of the file, or ``memory`` for frames that lie in memory.
        people: given poses a frame; None: whoever is found.
        batch: frames that one network call may take.
    """

    clip: str
    people: int | None
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of one case; times in ms.

    Attributes:
        case: what was measured.
        frames: how many frames came out at full speed.
        fps: frames a second, from the first decoded frame to the closed outputs.
        people_mean: people a frame.
        queued_ms: decode to result at full speed, p50, p95, p99; holds the waiting in the queues.
        alone_ms: the same with one frame in the pipeline at a time; None for batches.
        stages: service time of each stage at full speed.
        device_memory_mb: most that was held on a GPU so far; None on the host.
    """

    case: Case
    frames: int
    fps: float
    people_mean: float
    queued_ms: tuple[float, float, float]
    alone_ms: tuple[float, float, float] | None
    stages: tuple[StageStats, ...]
    device_memory_mb: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What the networks need at least, and what the device can do at most.

    Attributes:
        ceilings: of the device.
        frame_macs: multiply-accumulates of the keypoint network.
        person_macs: of the segment network, for one person.
        frame_bytes, person_bytes: weights, inputs and outputs, each moved once.
    """

    ceilings: Ceilings
    frame_macs: int
    person_macs: int
    frame_bytes: int
    person_bytes: int

    def most_fps(self, people: int) -> float:
        """Frames a second if the networks ran at whichever ceiling is lower, and nothing else took time."""
        flops = 2.0 * (self.frame_macs + people * self.person_macs)
        moved = self.frame_bytes + people * self.person_bytes
        return 1.0 / max(flops / self.ceilings.flops, moved / self.ceilings.copy_bytes_per_s)


class MemorySource:
    """Pictures in memory, over and over, until a time is up; the decoder costs nothing."""

    live = False
    still_images = False
    frame_total = None
    frames_lost = 0
    name = "memory"

    def __init__(self, images: Sequence[U8], *, seconds: float, turn: threading.Semaphore | None = None) -> None:
        """Give frames for some time.

        Args:
            images: (H, W, 3) uint8 RGB.
            seconds: from the first frame on.
            turn: one frame for each release; None: as fast as they are taken.
        """
        self._images = list(images)
        self._seconds = seconds
        self._turn = turn
        self._stop = threading.Event()

    def frames(self) -> Iterator[Frame]:
        started = time.monotonic()
        index = 0
        while not self._stop.is_set() and time.monotonic() - started < self._seconds:
            if self._turn is not None and not self._turn.acquire(timeout=1.0):
                continue
            yield Frame(
                index=index,
                source=self.name,
                clip=0,
                pts=index,
                time_base=Fraction(1, 30),
                captured_s=time.monotonic(),
                pixels=self._images[index % len(self._images)],
            )
            index += 1

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Nothing is held."""


class GivenPeople:
    """The keypoint stage with its finds replaced by people who stand side by side, all of one size."""

    name = "keypoints"

    def __init__(self, inner: KeypointStage, count: int) -> None:
        self._inner = inner
        self._count = count

    @property
    def batch_limit(self) -> int:
        """Of the stage inside."""
        return self._inner.batch_limit

    def open(self) -> None:
        self._inner.open()

    def process(self, frame: Frame) -> Poses:
        return self.process_batch([frame])[0]

    def process_batch(self, frames: Sequence[Frame]) -> list[Poses]:
        return [
            replace(
                poses,
                keypoints=standing_people(self._count, poses.frame.height, poses.frame.width),
                scores=np.linspace(0.95, 0.6, self._count, dtype=np.float32),
            )
            for poses in self._inner.process_batch(frames)
        ]

    def close(self) -> None:
        self._inner.close()


def standing_people(count: int, frame_height: int, frame_width: int) -> F32:
    """(count, 17, 3) keypoints in frame px of people in rows that fill the frame; confidence 0.9."""
    rows = max(1, round((count * frame_height / frame_width / 2) ** 0.5)) if count else 1
    columns = -(-count // rows)
    cell_height, cell_width = frame_height / rows, frame_width / max(columns, 1)
    height = 0.9 * min(cell_height, 2.2 * cell_width)
    template = PAPER_TEMPLATES[FULL_BODY]
    keypoints = np.zeros((count, 17, 3), np.float32)
    for n in range(count):
        row, column = divmod(n, columns)
        centre = ((column + 0.5) * cell_width, (row + 0.5) * cell_height)
        keypoints[n, :, 0] = centre[0] + (template[:, 0] - 0.5) * height
        keypoints[n, :, 1] = centre[1] + (template[:, 1] - 0.5) * height
        keypoints[n, :, 2] = 0.9 * (template[:, 2] > 0)
    return keypoints


def memory_images(count: int = FRAMES_IN_MEMORY) -> list[U8]:
    """Frames without people, coloured noise of several scales, seeded: what is in them costs the networks nothing."""
    generator = np.random.default_rng(7)
    height, width = FRAME_SIZE
    images = []
    for _ in range(count):
        image = np.zeros((height, width, 3), np.float32)
        for cells in (9, 45, 180):
            noise = generator.uniform(0, 85, (cells, cells * width // height, 3)).astype(np.float32)
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What `pose2seg bench` measures."""

    settings: Settings
    source: Path | None
    people: tuple[int, ...]
    batches: tuple[int, ...]
    seconds: float


def run_case(options: BenchOptions, case: Case, folder: Path, *, alone: bool) -> tuple[Outcome, FrameResult | None]:
    """Measure one case; also gives its last result.

    Args:
        options: of the run.
        case: which.
        folder: where the outputs of a file are written.
        alone: one frame at a time.
    """
    model = open_model(options.settings)
    try:
        device = device_of(model.keypoint_engine, model.segment_engine, frames_per_call=case.batch)
        pipeline = _pipeline(options, case, folder, model, device, turn := threading.Semaphore(1) if alone else None)
    except BaseException:
        model.close()
        raise
    first_decoded = last = 0.0
    latency_ms: list[float] = []
    frames = people = 0
    result: FrameResult | None = None
    for result in pipeline.results():
        last = time.monotonic()
        if not frames:
            first_decoded = result.frame.captured_s
        frames += 1
        people += len(result.people)
        latency_ms.append((last - result.frame.captured_s) * 1e3)
        if turn is not None:
            turn.release()
    closed = time.monotonic()
    if not frames:
        raise SettingsError(f"{case.clip}: no frame came out within {options.seconds} s: give --seconds more")
    times = percentiles(latency_ms[min(3, len(latency_ms) - 1) :])  # the first calls still set things up
    return (
        Outcome(
            case=case,
            frames=frames,
            fps=frames / max(closed - first_decoded, 1e-9),
            people_mean=people / frames,
            queued_ms=times,
            alone_ms=times if alone else None,
            stages=tuple(pipeline.stats()),
            device_memory_mb=None if (held := device.memory_bytes()) is None else held / 1e6,
        ),
        result,
    )


def _pipeline(
    options: BenchOptions,
    case: Case,
    folder: Path,
    model: Model,
    device: Device,
    turn: threading.Semaphore | None,
) -> Pipeline:
    settings = options.settings
    sinks: list[Sink] = []
    source: Source
    if options.source is None or turn is not None:
        images = memory_images() if options.source is None else _first_images(options.source)
        source = MemorySource(images, seconds=options.seconds, turn=turn)
    else:
        source = open_source(str(options.source), decoder=None if settings.decode == "cpu" else device.decoder)
    if options.source is not None:
        sinks = [
            VideoSink(folder / "overlay.mp4", overwrite=True, crf=settings.video_crf, preset=settings.video_preset),
            JsonLinesSink(folder / "people.jsonl", overwrite=True),
        ]
    keypoints, affine, segment = model_stages(settings, model, device)
    return Pipeline(
        source,
        [
            keypoints if case.people is None else GivenPeople(keypoints, case.people),
            affine,
            segment,
            ComposeStage(
                device,
                mask_threshold=settings.mask_threshold,
                draw=bool(sinks),
                exclusive_masks=not settings.overlapping_masks,
            ),
            WriteStage(sinks),
        ],
        queue_depth=max(settings.queue_depth, case.batch),
    )


def _first_images(path: Path) -> list[U8]:
    source = open_source(str(path))
    try:
        images = []
        for frame in source.frames():
            images.append(frame.image)
            if len(images) == FRAMES_IN_MEMORY:
                break
        return images
    finally:
        source.close()


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95, p99."""
    ordered = sorted(samples)
    return percentile(ordered, 0.50), percentile(ordered, 0.95), percentile(ordered, 0.99)


def compare_segment(options: BenchOptions, people: int) -> dict[str, Any]:
    """The segment network for all people of a frame at once, and for one after the other, as the published code does;
    taking turns, downloads included, medians.
    """
    model = open_model(options.settings)
    try:
        device = device_of(model.keypoint_engine, model.segment_engine)
        stages = model_stages(options.settings, model, device)
        keypoints = GivenPeople(stages[0], people)
        frame = next(MemorySource(memory_images(1), seconds=60.0).frames())
        rois = stages[1].process(keypoints.process(frame))
        poses = rois.poses
        if poses.features is None:
            raise RuntimeError("a fresh frame has features")
        feeds = segment_feeds(
            poses.keypoints,
            np.where(rois.joint_visible, 2.0, 0.0),
            rois.roi_from_frame,
            poses.letterbox.input_from_frame,
            model.artifact.feature_from_input,
        )
        maps = poses.features.maps
        most = int(getattr(model.segment_engine, "limits", {}).get("N", 0)) or people

        def in_calls_of(count: int) -> float:
            begin = time.perf_counter()
            for start in range(0, people, count):
                some = {name: feed[start : start + count] for name, feed in feeds.items()}
                device.to_host(device.run(model.segment_engine, {"features": maps, **some}))
            return (time.perf_counter() - begin) * 1e3

        for count in (most, 1):
            in_calls_of(count)
        together: list[float] = []
        one_by_one: list[float] = []
        started = time.perf_counter()
        while len(together) < 5 or time.perf_counter() - started < options.seconds / 2:
            together.append(in_calls_of(most))
            one_by_one.append(in_calls_of(1))
    finally:
        model.close()
    first, second = percentile(sorted(together), 0.5), percentile(sorted(one_by_one), 0.5)
    return {"people": people, "together_ms": first, "one_by_one_ms": second, "ratio": second / first}


def run_paper(options: BenchOptions, folder: Path, people: int) -> dict[str, Any]:
    """The paper's own measure: a picture and its keypoints are given, masks in their windows come out, one at a time.

    Args:
        options: engine and time of the run.
        folder: a model, of either family.
        people: in the picture.
    """
    settings = options.settings
    model = open_pose_guided(
        load_artifact(folder),
        engine=settings.engine,
        options=EngineOptions(device=settings.device, precision=settings.precision, threads=settings.threads),
    )
    try:
        side = model.artifact.long_side
        image = cv2.resize(memory_images(1)[0], (side, side)).astype(np.uint8)
        keypoints = standing_people(people, side, side)
        keypoints[..., 2] = np.where(keypoints[..., 2] > 0, 2.0, 0.0)
        for _ in range(3):
            masks_from_poses(model, image, keypoints)
        times_ms: list[float] = []
        started = time.perf_counter()
        while not times_ms or time.perf_counter() - started < options.seconds:
            begin = time.perf_counter()
            masks_from_poses(model, image, keypoints)
            times_ms.append((time.perf_counter() - begin) * 1e3)
        p50, p95, p99 = percentiles(times_ms)
        return {
            "model": f"family {model.artifact.family}, {side} x {side}",
            "weights": "random weights" if model.has_random_weights else "trained weights",
            "engine": model.picture_engine.name,
            "people": people,
            "batch": 1,
            "frames": len(times_ms),
            "fps": 1e3 * len(times_ms) / sum(times_ms),
            "p50": p50,
            "p95": p95,
            "p99": p99,
        }
    finally:
        model.close()


def measure_roofline(options: BenchOptions) -> Roofline | None:
    """The device's ceilings and what the model's graphs need of them; None where the library that counts is missing."""
    model = open_model(options.settings)
    try:
        artifact = model.artifact
        plan = plan_letterbox(
            *FRAME_SIZE, long_side=options.settings.long_side or artifact.long_side, multiple=artifact.input_multiple
        )
        maps = next(spec for spec in model.keypoint_engine.outputs if spec.name == "features").shape
        channels = maps[1] if isinstance(maps[1], int) else FEATURE_CHANNELS
        features = (1, channels, plan.input_height // 4, plan.input_width // 4)
        if artifact.keypoints_path is None:
            return None
        try:
            frame = graph_cost(artifact.keypoints_path, {"image": (1, plan.input_height, plan.input_width, 3)})
            people = [
                graph_cost(
                    artifact.segment_path,
                    {
                        "features": features,
                        "feature_from_roi": (count, 2, 3),
                        "roi_image": (count,),
                        "roi_keypoints": (count, 17, 3),
                    },
                )
                for count in (1, 2)
            ]
        except EngineLoadError as error:
            log.info("no roofline: %s", error)
            return None
        ceilings = device_of(model.keypoint_engine, model.segment_engine).ceilings()
    finally:
        model.close()
    return Roofline(
        ceilings=ceilings,
        frame_macs=frame.macs,
        person_macs=people[1].macs - people[0].macs,
        frame_bytes=frame.weight_bytes + frame.tensor_bytes,
        person_bytes=people[1].tensor_bytes - people[0].tensor_bytes,
    )
