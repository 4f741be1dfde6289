"""Frames a second from decode to the written mp4 and JSON lines, and where the time goes.

    python -m benchmarks.bench_pipeline VIDEO [VIDEO ...] [--long-side 384 512] [--skip-still] [--repeat 3] [--save]

Every combination of clip and long side (with ``--skip-still`` the model's own long side with it, too) is run
``--repeat`` times, in turns (A B A B), with a real overlay video and real JSON lines on disk. Latency is decode to sink
of one frame while the stages work at full speed, so it holds the waiting in the queues. The median run is reported with
the service time of every stage; the baseline beside each total is decoding and encoding the same clip without any
network, the floor of what a clip can cost.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from benchmarks.measure import Row, Timing, report, summarise
from pipeline.build import build
from pipeline.metrics import StageStats
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pass over a clip."""

    frames: int
    people_mean: float
    seconds: float  # from the first decoded frame to the closed outputs
    startup_s: float  # from the call to the first result
    latency_ms: list[float]
    stages: list[StageStats]

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is run; the fields are `pipeline.settings.Settings`'."""

    video: Path
    long_side: int | None
    skip_still: bool = False

    def described(self) -> dict[str, object]:
        named: dict[str, object] = {"clip": self.video.stem, "long_side": self.long_side or "model"}
        return {**named, "skip_still": True} if self.skip_still else named


def run_once(
    case: Case, folder: Path, *, model: Path | None = None, threads: int | None = None, max_frames: int | None = None
) -> Run:
    """Process one clip with all outputs into ``folder``."""
    started = time.monotonic()
    pipeline = build(
        Settings(
            source=str(case.video),
            output=folder / "overlay.mp4",
            json=folder / "people.jsonl",
            overwrite=True,
            long_side=case.long_side,
            skip_still=case.skip_still,
            model=model,
            threads=threads,
            max_frames=max_frames,
        )
    )
    frames, people, first_decoded, startup_s = 0, 0, 0.0, 0.0
    latency_ms = []
    for result in pipeline.results():
        now = time.monotonic()
        if not frames:
            first_decoded, startup_s = result.frame.captured_s, now - started
        latency_ms.append((now - result.frame.captured_s) * 1e3)
        frames += 1
        people += len(result.people)
    return Run(
        frames=frames,
        people_mean=people / max(frames, 1),
        seconds=time.monotonic() - first_decoded,
        startup_s=startup_s,
        latency_ms=latency_ms,
        stages=pipeline.stats(),
    )


def copy_once(video: Path, folder: Path, max_frames: int | None = None) -> list[float]:
    """Decode a clip to RGB and encode it again as the overlay video is encoded, nothing between; ms per frame."""
    settings = Settings(source=str(video))
    times = []
    with av.open(str(video)) as source, av.open(str(folder / "copy.mp4"), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream("libx264", rate=stream.average_rate)
        out.width, out.height, out.pix_fmt = stream.width & ~1, stream.height & ~1, "yuv420p"
        out.options = {"crf": str(settings.video_crf), "preset": settings.video_preset}
        begin = time.perf_counter()
        for frame in source.decode(stream):
            picture = frame.to_ndarray(format="rgb24")[: out.height, : out.width]
            target.mux(out.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            times.append((time.perf_counter() - begin) * 1e3)
            if len(times) == max_frames:
                break
            begin = time.perf_counter()
        target.mux(out.encode())
    return times


def rows_of(runs: list[Run], copies: list[float], settings: dict[str, object]) -> Iterator[Row]:
    """The median run as rows: the total beside its floor, latency, then each stage."""
    median = sorted(runs, key=lambda run: run.fps)[len(runs) // 2]
    per_frame = [1e3 / run.fps for run in runs if run.fps]
    described = {**settings, "people": round(median.people_mean, 2), "fps": round(median.fps, 2)}
    yield Row(
        name="whole run, per frame",
        settings=described,
        timings={"pose2seg": summarise(per_frame), "copy only": summarise(copies)},
    )
    yield Row(name="decode to sink", settings=settings, timings={"latency": summarise(median.latency_ms)})
    for stage in median.stages:
        timing = Timing(
            median_ms=stage.p50_ms, iqr_ms=0.0, p95_ms=stage.p95_ms, p99_ms=stage.p95_ms, samples=stage.frames
        )
        share = {"busy": f"{100 * stage.busy_s / median.seconds:.0f}%"}
        yield Row(name=f"  {stage.name}", settings=share, timings={"service": timing})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument(
        "--long-side", type=int, nargs="+", default=[None], help="network input sizes; the model's own by default"
    )
    parser.add_argument("--skip-still", action="store_true", help="also with --skip-still, the model's own long side")
    parser.add_argument("--model", type=Path, help="model folder; the default one otherwise")
    parser.add_argument("--threads", type=int, help="cores one network call may use")
    parser.add_argument("--max-frames", type=int, help="most frames of each clip")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each combination")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    cases = [Case(video=video, long_side=side) for video in options.videos for side in options.long_side]
    if options.skip_still:
        cases += [Case(video=video, long_side=None, skip_still=True) for video in options.videos]
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    copies: dict[Path, list[float]] = {video: [] for video in options.videos}
    shared = {"model": options.model, "threads": options.threads, "max_frames": options.max_frames}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_once(cases[0], folder, **shared)  # compiles, loads
        for _ in range(options.repeat):
            for case in cases:
                runs[case].append(run_once(case, folder, **shared))
            for video in options.videos:
                copies[video] += copy_once(video, folder, options.max_frames)
    rows = [row for case in cases for row in rows_of(runs[case], copies[case.video], case.described())]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report("pipeline", rows, notes={"peak_memory_mb": round(peak_mb, 1), "repeat": options.repeat}, save=options.save)


if __name__ == "__main__":
    main()
