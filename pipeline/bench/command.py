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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from engines import ENGINE_NAMES, PRECISIONS
from engines.device import device_of
from kernels.coordinates import U8
from pipeline.bench.measure import (
    FRAME_SIZE,
    BenchOptions,
    Case,
    Outcome,
    Roofline,
    compare_segment,
    measure_roofline,
    run_case,
    run_paper,
)
from pipeline.build import open_model
from pipeline.command_line import SettingsParser
from pipeline.errors import EXIT_OK, SettingsError
from pipeline.messages import FrameResult
from pipeline.overlay import draw_text
from pipeline.settings import Settings

SCHEMA = 1
PLAIN_WIDTH = 130  # columns of the tables where the output is no terminal
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LIBRARIES = ("numpy", "numba", "opencv-python-headless", "av", "onnxruntime", "openvino", "torch", "tensorrt")


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
