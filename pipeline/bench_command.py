"""`pose2seg bench`: frames a second and latency of this machine, decode to sink, with every stage's share.

Two questions are answered for every number of people and every batch: how many frames a second come out when frames are
always at hand (*throughput*), and how long one frame takes when the next one waits for its result (*alone*). The
number of people is set by putting given poses in the place of those that were found, after the keypoint network and the
grouping have done their work on the frame, so that their cost is in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from engines import ENGINE_NAMES, PRECISIONS, EngineLoadError, EngineOptions, load_artifact
from engines.device import Ceilings, Device, device_of
from engines.graph_cost import graph_cost
from engines.pose_guided import masks_from_poses, open_pose_guided
from kernels.coordinates import F32, U8
from kernels.letterbox import plan_letterbox
from kernels.pose_fit import PAPER_TEMPLATES
from kernels.roi_inputs import segment_feeds
from pipeline.build import Model, model_stages, open_model
from pipeline.command_line import SettingsParser
from pipeline.errors import EXIT_OK, SettingsError
from pipeline.messages import Frame, FrameResult, Poses
from pipeline.metrics import StageStats, percentile
from pipeline.overlay import draw_text
from pipeline.protocols import Sink, Source
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage1_decode import open_source
from pipeline.stage2_keypoints import KeypointStage
from pipeline.stage5_compose import ComposeStage
from pipeline.stage6_sinks import JsonLinesSink, WriteStage
from pipeline.video_output import VideoSink

log = logging.getLogger(__name__)

SCHEMA = 1
FEATURE_CHANNELS = 64  # where the graph does not say
PLAIN_WIDTH = 130  # columns of the tables where the output is no terminal
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
FRAME_SIZE = (720, 1280)
FRAMES_IN_MEMORY = 16
FULL_BODY = 0  # the template of a standing person
LIBRARIES = ("numpy", "numba", "opencv-python-headless", "av", "onnxruntime", "openvino", "torch", "tensorrt")


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
    times = _percentiles(latency_ms[min(3, len(latency_ms) - 1) :])  # the first calls still set things up
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
            ComposeStage(device, mask_threshold=settings.mask_threshold, draw=bool(sinks)),
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


def _percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95, p99."""
    ordered = sorted(samples)
    return percentile(ordered, 0.50), percentile(ordered, 0.95), percentile(ordered, 0.99)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: without ``bench``.

    Returns:
        Exit code, see `pipeline.errors`.

    Raises:
        SettingsError: a flag or value that cannot be used.
        SourceError, EngineError: as a run.
    """
    flags = _parser().parse_args(arguments)
    if flags.picture is not None and flags.picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise SettingsError(f"--picture expects a name ending in {', '.join(PICTURE_SUFFIXES)}, got {flags.picture}")
    options = BenchOptions(
        settings=Settings(
            source=str(flags.source or "memory"),
            engine=flags.engine,
            precision=flags.precision,
            device=flags.device,
            model=flags.model,
            threads=flags.threads,
            long_side=flags.long_side,
            decode=flags.decode,
        ),
        source=flags.source,
        people=flags.people,
        batches=flags.batch,
        seconds=flags.seconds,
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    roofline = measure_roofline(options)
    outcomes, last, device_name = run_all(options, console)
    console.print(results_table(outcomes, device_name))
    console.print(stages_table(outcomes))
    if roofline is not None:
        console.print(roofline_line(roofline))
    document = document_of(options, outcomes, device_name, roofline)
    document["segment"] = [compare_segment(options, count) for count in options.people or (1, 5, 20)]
    for compared in document["segment"]:
        console.print(
            "segment network, {people} people: {together_ms:.2f} ms in one call, {one_by_one_ms:.2f} ms one by one as "
            "published ({ratio:.1f}x)".format(**compared)
        )
    if flags.paper is not None:
        document["paper"] = [run_paper(options, flags.paper, count) for count in options.people or (4,)]
        for measured in document["paper"]:
            console.print(
                "{model}, {weights}, keypoints given, {people} people: {fps:.1f} FPS, p50 {p50:.2f} ms, "
                "p95 {p95:.2f} ms".format(**measured)
            )
    if flags.json is not None:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        console.print(f"figures: {flags.json}", markup=False)
    if flags.picture is not None:
        flags.picture.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(
            str(flags.picture), cv2.cvtColor(picture_of(outcomes, last, device_name), cv2.COLOR_RGB2BGR)
        ):
            raise SettingsError(f"--picture {flags.picture}: cannot be written: end its name in .png or .jpg")
        console.print(f"picture: {flags.picture}", markup=False)
    return EXIT_OK


def run_all(options: BenchOptions, console: Console) -> tuple[list[Outcome], FrameResult | None, str]:
    """Every case once to warm up and once to measure; with a line of progress each."""
    model = open_model(options.settings)
    device_name = f"{device_of(model.keypoint_engine, model.segment_engine).name}, {model.keypoint_engine.name}"
    model.close()
    clip = "memory" if options.source is None else options.source.name
    people: tuple[int | None, ...] = options.people or ((None,) if options.source is not None else (1, 5, 20))
    outcomes: list[Outcome] = []
    last: FrameResult | None = None
    with tempfile.TemporaryDirectory(prefix="pose2seg-bench-") as name, _without_engine_lines():
        folder = Path(name)
        warm = replace(options, seconds=min(1.0, options.seconds), source=None)
        for batch in options.batches:
            for count in people:
                case = Case(clip=clip, people=count, batch=batch)
                run_case(warm, replace(case, people=count or 1), folder, alone=False)
                outcome, result = run_case(options, case, folder, alone=False)
                last = result or last
                if batch == 1:
                    alone, _ = run_case(options, case, folder, alone=True)
                    outcome = replace(outcome, alone_ms=alone.alone_ms)
                outcomes.append(outcome)
                console.print(f"[dim]{_name_of(case)}: {outcome.fps:.1f} FPS[/dim]")
    return outcomes, last, device_name


@contextlib.contextmanager
def _without_engine_lines() -> Iterator[None]:
    """What runs the networks was said once; each case opens them again."""
    engines = logging.getLogger("engines")
    before = engines.level
    engines.setLevel(logging.WARNING)
    try:
        yield
    finally:
        engines.setLevel(before)


def results_table(outcomes: Sequence[Outcome], device_name: str) -> Table:
    """Frames a second and latency of every case."""
    table = Table(title=f"pose2seg bench on {device_name}", title_justify="left")
    table.add_column("case")
    for heading in ("frames", "people", "FPS", "alone p50", "p95", "p99 ms", "queued p50", "p95", "p99 ms"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        alone = [f"{value:.1f}" for value in outcome.alone_ms] if outcome.alone_ms is not None else ["-"] * 3
        table.add_row(
            _name_of(outcome.case),
            str(outcome.frames),
            f"{outcome.people_mean:.2f}",
            f"{outcome.fps:.1f}",
            *alone,
            *(f"{value:.1f}" for value in outcome.queued_ms),
        )
    return table


def stages_table(outcomes: Sequence[Outcome]) -> Table:
    """Median service time of each stage, ms a frame."""
    table = Table(title="ms a frame, median, at full speed", title_justify="left")
    table.add_column("case")
    for stage in outcomes[0].stages:
        table.add_column(stage.name, justify="right")
    for outcome in outcomes:
        table.add_row(_name_of(outcome.case), *(f"{stage.p50_ms:.2f}" for stage in outcome.stages))
    return table


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
        p50, p95, p99 = _percentiles(times_ms)
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


def roofline_line(roofline: Roofline) -> str:
    """The ceilings, the needs, and how many frames a second the ceilings alone would allow."""
    limits = ", ".join(f"{count}: {roofline.most_fps(count):,.0f}" for count in (1, 5, 20))
    return (
        f"roofline: copy {roofline.ceilings.copy_bytes_per_s / 1e9:,.1f} GB/s, "
        f"{roofline.ceilings.dtype} matrix product {roofline.ceilings.flops / 1e9:,.0f} GFLOP/s; "
        f"a frame needs {roofline.frame_macs / 1e9:.2f} GMAC and "
        f"{roofline.frame_bytes / 1e6:.1f} MB at least, a person {roofline.person_macs / 1e9:.2f} GMAC and "
        f"{roofline.person_bytes / 1e6:.2f} MB; most FPS by people, networks alone: {limits}"
    )


def document_of(
    options: BenchOptions, outcomes: Sequence[Outcome], device_name: str, roofline: Roofline | None
) -> dict[str, Any]:
    """Everything as JSON; no paths and no host name in it."""
    return {
        "schema": SCHEMA,
        "suite": "bench",
        "environment": environment(device_name),
        "frame_size": list(FRAME_SIZE) if options.source is None else None,
        "seconds_per_case": options.seconds,
        "outcomes": [
            {
                **asdict(outcome.case),
                "frames": outcome.frames,
                "fps": outcome.fps,
                "people_mean": outcome.people_mean,
                "device_memory_mb": outcome.device_memory_mb,
                "queued_ms": dict(zip(("p50", "p95", "p99"), outcome.queued_ms, strict=True)),
                "alone_ms": None
                if outcome.alone_ms is None
                else dict(zip(("p50", "p95", "p99"), outcome.alone_ms, strict=True)),
                "stages": {
                    stage.name: {"p50_ms": stage.p50_ms, "p95_ms": stage.p95_ms, "busy_s": stage.busy_s}
                    for stage in outcome.stages
                },
            }
            for outcome in outcomes
        ],
        "roofline": None if roofline is None else asdict(roofline),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def environment(device_name: str) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": device_name,
        "cores": cores,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def picture_of(outcomes: Sequence[Outcome], last: FrameResult | None, device_name: str) -> U8:
    """(H, 1280, 3) uint8 RGB: a bar per case, longer is faster, over the last drawn frame where there is one."""
    row_px, margin_px = 44, 24
    height = 2 * margin_px + 40 + row_px * len(outcomes)
    chart = np.full((height, 1280, 3), 250, np.uint8)
    ink, paper = (30, 30, 30), (250, 250, 250)
    draw_text(
        chart, f"frames a second, decode to sink: {device_name}", margin_px, 56, height=18, color=ink, background=paper
    )
    fastest = max(outcome.fps for outcome in outcomes)
    for row, outcome in enumerate(outcomes):
        top = margin_px + 44 + row * row_px
        right = 420 + round(640 * outcome.fps / fastest)
        cv2.rectangle(chart, (420, top), (right, top + row_px - 12), (64, 128, 200), cv2.FILLED)
        draw_text(chart, _name_of(outcome.case), margin_px, top + row_px - 10, height=14, color=ink, background=paper)
        latency = "" if outcome.alone_ms is None else f"   {outcome.alone_ms[0]:.1f} ms alone"
        draw_text(
            chart, f"{outcome.fps:.1f}{latency}", right + 6, top + row_px - 10, height=14, color=ink, background=paper
        )
    if last is None or last.drawn is None:
        return chart
    frame = last.drawn
    shown = cv2.resize(frame, (1280, round(frame.shape[0] * 1280 / frame.shape[1])), interpolation=cv2.INTER_AREA)
    return np.concatenate((shown, chart))


def _name_of(case: Case) -> str:
    people = "people as found" if case.people is None else f"{case.people} people"
    return f"{case.clip}, {people}, batch {case.batch}"


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser(
        prog="pose2seg bench",
        description="Frames a second and latency on this machine, from decode to sink.",
        allow_abbrev=False,
    )
    parser.add_argument("--source", type=Path, metavar="F", help="a video; 1280 x 720 frames in memory otherwise")
    parser.add_argument("--people", type=_counts, default=(), metavar="N,N", help="given people a frame (1,5,20)")
    parser.add_argument("--batch", type=_counts, default=(1,), metavar="N,N", help="frames a network call takes (1)")
    parser.add_argument("--seconds", type=_seconds, default=5.0, metavar="S", help="of each measurement (5)")
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="auto", help="what runs the networks")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="arithmetic of the networks")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N")
    parser.add_argument("--decode", choices=("auto", "cpu", "gpu"), default="auto", help="what decodes --source")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder")
    parser.add_argument(
        "--paper", type=Path, metavar="DIR", help="also time this model with keypoints given, as the paper does"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="cores each network may use")
    parser.add_argument("--long-side", type=int, metavar="PX", help="long side of the network input")
    parser.add_argument("--json", type=Path, metavar="F.json", help="write all figures")
    parser.add_argument("--picture", type=Path, metavar="F.png", help="draw them")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between, got {text!r}") from error
    if not counts or min(counts) < 1 or max(counts) > 256:
        raise argparse.ArgumentTypeError(f"must be numbers from 1 to 256, got {text!r}")
    return counts


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}") from error
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 3600 seconds, got {text!r}")
    return seconds
