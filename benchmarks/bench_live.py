"""What somebody who watches notices: delay of one live stream, memory, and the wait for the first result.

    python -m benchmarks.bench_live VIDEO [--fps 15] [--seconds 20] [--engine onnx] [--repeat 3] [--save]

The clip is played over and over at its own rate (or ``--fps``) by a source that does not wait, as a camera's does not:
a frame comes when it is due, and one that finds the pipeline busy replaces the one that waits. Latency runs from the
moment a frame is due to the moment its result is handed out, drawn. Memory is the peak of the process. The wait for
the first result is that of fresh processes, from before the first import, with the Numba cache that the first of them
leaves behind; their median is reported.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from benchmarks.measure import Row, report, summarise
from pipeline.build import build
from pipeline.messages import Frame
from pipeline.settings import Settings
from pipeline.stage1_decode import open_source

ROOT = Path(__file__).resolve().parents[1]
FIRST_RESULT = """
import time
started = time.perf_counter()
import sys
import pose2seg
for result in pose2seg.stream(sys.argv[1], engine=sys.argv[2]):
    print(time.perf_counter() - started, time.process_time(), flush=True)
    break
"""


@dataclass
class PacedClip:
    """A clip as a live source; see `pipeline.protocols.Source`. It is decoded before it starts."""

    path: Path
    fps: float | None
    seconds: float
    name: str = "paced clip"
    live: bool = True
    still_images: bool = False
    frame_total: int | None = None
    frames_lost: int = 0
    sent: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        source = open_source(str(self.path), timeout_s=10.0, image_fps=2.0)
        self._frames = [*source.frames()]
        source.close()
        first, last = self._frames[0], self._frames[-1]
        span_s = float((last.pts - first.pts) * first.time_base)
        self._step_s = 1.0 / self.fps if self.fps else span_s / max(len(self._frames) - 1, 1)

    def frames(self) -> Iterator[Frame]:
        started = time.monotonic()
        while not self._stopped.is_set():
            if self.sent * self._step_s > self.seconds + 1e-9:
                return
            due = started + self.sent * self._step_s
            time.sleep(max(0.0, due - time.monotonic()))
            frame = self._frames[self.sent % len(self._frames)]
            yield replace(
                frame,
                index=self.sent,
                pts=round(self.sent * self._step_s * 90000),
                time_base=Fraction(1, 90000),
                captured_s=due,
            )
            self.sent += 1

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        """Nothing is held."""


def live_latency(clip: Path, *, fps: float | None, seconds: float, settings: Settings) -> tuple[list[float], int, int]:
    """ms from due to handed out and drawn, of every frame that was not dropped; how many were sent and dropped."""
    source = PacedClip(clip, fps, seconds)
    pipeline = build(settings, source=source)
    latency_ms = []
    for result in pipeline.results():
        result.overlay()
        latency_ms.append((time.monotonic() - result.frame.captured_s) * 1e3)
    return latency_ms[len(latency_ms) // 10 :], source.sent, pipeline.frames_dropped  # the first tenth warms up


def first_result_s(clip: Path, engine: str) -> tuple[float, float]:
    """Seconds from the first import to the first result in a fresh process, and its processor time."""
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", FIRST_RESULT, str(clip), engine], cwd=ROOT, capture_output=True, text=True, check=True
    )
    waited_s, busy_s = map(float, done.stdout.split())
    return waited_s, busy_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("--fps", type=float, help="rate of the stream; the clip's own by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the stream")
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--long-side", type=int, help="network input; the model's own by default")
    parser.add_argument("--repeat", type=int, default=3, help="fresh processes for the first result")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    first_result_s(options.video, options.engine)  # compiles what no process compiled before
    waits = [first_result_s(options.video, options.engine) for _ in range(options.repeat)]
    settings = Settings(
        source="0",  # not opened: the paced clip takes its place
        engine=options.engine,
        precision=options.precision,
        long_side=options.long_side,
        device="cpu",
    )
    latency_ms, sent, dropped = live_latency(options.video, fps=options.fps, seconds=options.seconds, settings=settings)
    described = {
        "clip": options.video.stem,
        "engine": options.engine,
        "precision": options.precision,
        "long_side": options.long_side or "model",
    }
    rows = [
        Row(
            name="live, due to drawn",
            settings={**described, "sent": sent, "dropped": dropped},
            timings={"latency": summarise(latency_ms)},
        ),
        Row(
            name="first import to first result",
            settings=described,
            timings={
                "wall": summarise([1e3 * waited_s for waited_s, _ in waits]),
                "processor": summarise([1e3 * busy_s for _, busy_s in waits]),
            },
        ),
    ]
    notes = {
        "latency_p95_ms": round(summarise(latency_ms).p95_ms, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "first_result_s": round(statistics.median(waited_s for waited_s, _ in waits), 2),
        "first_result_processor_s": round(statistics.median(busy_s for _, busy_s in waits), 2),
    }
    report("live", rows, notes=notes, save=options.save)


if __name__ == "__main__":
    main()
