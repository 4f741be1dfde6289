"""Frames a second of a batch with one worker and with two, as processes and on a Ray cluster.

    python -m benchmarks.bench_batch VIDEO [--files 6] [--frames 75] [--rounds 3] [--kinds video,json] [--save]

Copies of the first frames of the clip are the inputs. The arrangements take turns. Each worker has one thread for a
network call and is pinned to a core of its own, as two machines of one core each would be; without --pin the threads of
decoding, drawing and encoding of one worker use the other core, too. Time runs from when all workers are ready until
the last file's outputs are in place. What the arrangements write is compared: other results get no time. The cluster is
two nodes of one core each on loopback, and its daemons run in every round, beside the processes, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from rich.console import Console

from benchmarks.measure import Row, Timing, report, summarise, usable_cores
from engines import default_artifact
from pipeline.batch.crew import Crew, Died, Link, ProcessCrew, ProcessLink
from pipeline.batch.file import FileOptions
from pipeline.batch.plan import plan_inputs
from pipeline.batch.progress import BatchDisplay
from pipeline.batch.schedule import Batch
from pipeline.batch.state import JobFolder, artifact_digest
from pipeline.batch.worker import WorkerOptions
from pipeline.settings import Settings

STORE_BYTES = 80 * 2**20
Pids = Callable[[Link], int]


class ReadyFirst:
    """A crew that begins when all are there; workers are pinned to a core each, and the time is noted."""

    deaths_allowed = 0
    patient = True

    def __init__(self, crew: Crew, workers: int, pid_of: Pids, *, pin: bool) -> None:
        self._crew = crew
        self._workers = workers
        self._pid_of = pid_of
        self._pin = pin
        self._held: list[tuple[Link, Any]] = []
        self._ready: list[Link] = []
        self.began_s = self.ended_s = 0.0

    def start(self) -> Link:
        return self._crew.start()

    def listen(self, timeout_s: float) -> Iterator[tuple[Link, tuple[Any, ...] | Died]]:
        for link, message in self._crew.listen(timeout_s):
            if not self.began_s and not isinstance(message, Died) and message[0] == "ready":
                self._ready.append(link)
                self._held.append((link, message))
                continue
            if not isinstance(message, Died) and message[0] == "done":
                self.ended_s = time.perf_counter()
            yield link, message
        if not self.began_s and len(self._ready) == self._workers:
            if self._pin:
                for core, link in zip(sorted(os.sched_getaffinity(0)), self._ready, strict=False):
                    pin(self._pid_of(link), core)
            self.began_s = time.perf_counter()
            yield from self._held

    def end(self) -> None:
        self._crew.end()


def pin(pid: int, core: int) -> None:
    """Keep a process, and every thread it starts from now on, on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def shorten(video: Path, target: Path, frames: int) -> Path:
    """The first frames of a clip, encoded again."""
    with av.open(str(video)) as source, av.open(str(target), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "18"})
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            if not number:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return target


def run_once(
    folder: Path, out: Path, crew_of: Callable[[WorkerOptions], Crew], pid_of: Pids, *, workers: int, flags: Any
) -> tuple[float, int, dict[str, bytes]]:
    """Seconds, frames and results of one batch."""
    job = JobFolder(out)
    job.create()
    inputs = plan_inputs([str(folder)], out)
    options = FileOptions(
        settings=Settings(source="x", engine="onnx", threads=1, long_side=flags.long_side),
        write=tuple(flags.kinds.split(",")),
        segment_s=30.0,
        model_digest=artifact_digest(default_artifact()),
    )
    crew = ReadyFirst(crew_of(WorkerOptions(out=out, file=options)), workers, pid_of, pin=flags.pin)
    batch = Batch(job, inputs, options, crew=crew, workers=workers)
    batch.prepare(overwrite=False, retry_failed=False)
    display = BatchDisplay(Console(stderr=True, force_terminal=False), 1e9)
    batch.run(display)
    states = list(batch.states.values())
    if len(states) != len(inputs) or any(state.status != "done" for state in states):
        raise RuntimeError(f"not all inputs are done: {[state.error for state in states]}")
    results = {path.name: path.read_bytes() for path in sorted(out.glob("*.mp4.*")) if path.is_file()}
    return crew.ended_s - crew.began_s, sum(state.frames for state in states), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--files", type=int, default=6, help="copies of the clip (6)")
    parser.add_argument("--frames", type=int, default=75, help="of each (75)")
    parser.add_argument("--rounds", type=int, default=3, help="of all arrangements (3)")
    parser.add_argument("--long-side", type=int, default=384, help="of the networks, px (384)")
    parser.add_argument("--kinds", default="video,json", help="outputs (video,json)")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True, help="a core for each worker")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/batch.json")
    flags = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    from pipeline.batch.cluster import RayCluster, RayLink

    def process_pid(link: Link) -> int:
        if not isinstance(link, ProcessLink) or link.process.pid is None:
            raise TypeError("expected a running process")
        return link.process.pid

    def actor_pid(link: Link) -> int:
        if not isinstance(link, RayLink):
            raise TypeError("expected an actor")
        return int(link.ray.get(link.actor.__ray_call__.remote(lambda _actor: os.getpid()), timeout=60))

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    work = Path(tempfile.mkdtemp(prefix="bench_batch_"))
    loads: list[float] = []
    times_ms: dict[str, list[float]] = {}
    frames = 0
    expected: dict[str, bytes] | None = None
    try:
        nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        folder = work / "in"
        folder.mkdir()
        short = shorten(flags.video, work / "short.mp4", flags.frames)
        for number in range(flags.files):
            shutil.copyfile(short, folder / f"{number}.mp4")
        for turn in range(flags.rounds + 1):  # the first one warms caches, and is not counted
            for where in ("processes", "cluster"):
                for workers in (1, 2):
                    out = work / f"{turn}-{where}-{workers}"
                    if where == "processes":
                        seconds, frames, results = run_once(
                            folder, out, ProcessCrew, process_pid, workers=workers, flags=flags
                        )
                    else:
                        cluster = RayCluster(nodes.address)
                        try:
                            seconds, frames, results = run_once(
                                folder,
                                out,
                                lambda options, cluster=cluster: cluster.crew(options, gpu=False),  # type: ignore[misc]
                                actor_pid,
                                workers=workers,
                                flags=flags,
                            )
                        finally:
                            cluster.close()
                    if expected is not None and results != expected:
                        raise RuntimeError(f"{where} with {workers} workers gave other results")
                    expected = results
                    shutil.rmtree(out)
                    if turn:
                        loads.append(os.getloadavg()[0])
                        times_ms.setdefault(f"{where}, {workers}", []).append(1e3 * seconds / frames)
                    print(f"round {turn} {where} {workers}: {frames / seconds:.1f} FPS", flush=True)
    finally:
        nodes.shutdown()
        shutil.rmtree(work, ignore_errors=True)
    timings: dict[str, Timing] = {name: summarise(samples) for name, samples in times_ms.items()}
    settings = {
        "clip": flags.video.name,
        "files": flags.files,
        "frames": frames,
        "long_side": flags.long_side,
        "kinds": flags.kinds,
        "pinned": flags.pin,
    }
    median = {name: timing.median_ms for name, timing in timings.items()}
    ratios = {
        "two processes against one": median["processes, 1"] / median["processes, 2"],
        "cluster of one worker against one process": median["processes, 1"] / median["cluster, 1"],
        "cluster: two workers against one": median["cluster, 1"] / median["cluster, 2"],
        "cluster of two workers against one process": median["processes, 1"] / median["cluster, 2"],
    }
    notes: dict[str, object] = {
        "FPS": {name: round(1e3 / value, 2) for name, value in median.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "load average": {"least": round(min(loads), 2), "most": round(max(loads), 2)},
        "cores": usable_cores(),
    }
    report("batch", [Row(name="ms a frame", settings=settings, timings=timings)], notes=notes, save=flags.save)


if __name__ == "__main__":
    main()
