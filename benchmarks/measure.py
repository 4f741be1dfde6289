"""Timing for all benchmarks: how samples are taken, what is recorded beside them, how they are printed and stored.

Rules. Outputs are compared before anything is timed: a wrong kernel gets no time. Everything runs a while before the
first sample (compilers, caches, clocks). Contestants take turns sample by sample, so that a slow second of the machine
hits all of them. A sample is at least `MIN_SAMPLE_S` long; shorter calls are repeated within it. The printed number is
the median, with the inter-quartile range and p95 beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

SCHEMA = 1
MIN_SAMPLE_S = 500e-6  # 1000 times the clock's resolution and its own cost
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("numpy", "numba", "opencv-python-headless", "opencv-python", "av", "onnxruntime", "torch", "pycocotools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Distribution of one call's wall time, ms."""

    median_ms: float
    iqr_ms: float
    p95_ms: float
    p99_ms: float
    samples: int
    calls_per_sample: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a suite: what was timed, with which settings, and the times."""

    name: str
    settings: Mapping[str, object]
    timings: Mapping[str, Timing]
    """Contestant to its time; when there are two, the first is ours and the second the baseline."""

    @property
    def speedup(self) -> float | None:
        """Baseline's median over ours; None without a baseline."""
        ours, *others = self.timings.values()
        return others[0].median_ms / ours.median_ms if others else None


def summarise(samples_ms: Sequence[float], *, calls_per_sample: int = 1) -> Timing:
    """Percentiles of wall times in ms.

    Raises:
        ValueError: there are no samples.
    """
    if not len(samples_ms):
        raise ValueError("no samples to summarise")
    q25, median, q75, p95, p99 = (float(q) for q in np.percentile(samples_ms, (25, 50, 75, 95, 99)))
    return Timing(
        median_ms=median,
        iqr_ms=q75 - q25,
        p95_ms=p95,
        p99_ms=p99,
        samples=len(samples_ms),
        calls_per_sample=calls_per_sample,
    )


def measure(
    contestants: Mapping[str, Callable[[], object]],
    *,
    warm_up_s: float = 0.2,
    seconds: float = 2.0,
    min_samples: int = 20,
    max_samples: int = 2000,
) -> dict[str, Timing]:
    """Time several ways to do the same, taking turns.

    Args:
        contestants: name to a call without arguments.
        warm_up_s: each runs that long first, and at least twice.
        seconds: sampling goes on about that long in all, within the two bounds on samples.
        min_samples: samples of each, however long they take.
        max_samples: samples of each, however short they are.
    """
    calls: dict[str, int] = {}
    for name, call in contestants.items():
        call()  # compiles
        started, count = time.perf_counter(), 0
        while count < 1 or time.perf_counter() - started < warm_up_s:
            call()
            count += 1
        calls[name] = max(1, round(MIN_SAMPLE_S * count / (time.perf_counter() - started)))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    started, rounds = time.perf_counter(), 0
    while rounds < min_samples or (rounds < max_samples and time.perf_counter() - started < seconds):
        for name, call in contestants.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                call()
            samples[name].append((time.perf_counter() - begin) * 1e3 / calls[name])
        rounds += 1
    return {name: summarise(times, calls_per_sample=calls[name]) for name, times in samples.items()}


def device() -> str:
    """Short name of the machine's kind, the folder that results are kept in: ``cpu-2core``.

    On a GPU's machine `benchmarks.gpu_check` names it, in POSE2SEG_BENCH_DEVICE.
    """
    return os.environ.get("POSE2SEG_BENCH_DEVICE") or f"cpu-{usable_cores()}core"


def usable_cores() -> int:
    """Cores this process may use: not those of the whole machine when it is confined to a part."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, object]:
    """What a reader needs to judge a number: machine, versions, commit, command. No host name, no paths."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": versions,
        "commit": _commit(),
        "command": _command(),
        "date": datetime.now(UTC).date().isoformat(),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or "unknown"


def _commit() -> str:
    """Hash of the checked-out commit, with ``+changes`` when tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603  fixed arguments
            ["git", *arguments],  # noqa: S607  whichever git the developer uses
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _command() -> str:
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    script = f"-m {module.name}" if module else Path(sys.argv[0]).name
    return " ".join(["python", script, *(_without_folder(argument) for argument in sys.argv[1:])])


def _without_folder(argument: str) -> str:
    """An argument whose absolute path, if it is one, has lost the folders that only one machine knows."""
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def report(
    suite: str,
    rows: Sequence[Row],
    *,
    notes: Mapping[str, object] | None = None,
    save: bool = False,
    results: Path = RESULTS,
) -> dict[str, object]:
    """Print a table for people and one line of JSON last; with ``save`` also write ``results/<device>/<suite>.json``.

    Args:
        suite: name of the suite, the file's name.
        rows: what was timed.
        notes: other figures of the run, stored with it.
        save: write the file; an older one is replaced.
        results: folder of the device folders.

    Returns:
        The document that was printed: schema, suite, environment, rows, notes.
    """
    document: dict[str, object] = {
        "schema": SCHEMA,
        "suite": suite,
        "environment": environment(),
        "rows": [
            {
                "name": row.name,
                "settings": dict(row.settings),
                "timings": {name: asdict(timing) for name, timing in row.timings.items()},
                "speedup": row.speedup,
            }
            for row in rows
        ],
        "notes": dict(notes or {}),
    }
    table = Table(title=f"{suite} on {document['environment']['cpu']}, {usable_cores()} cores")  # type: ignore[index]
    for heading in ("case", "settings", "contestant"):
        table.add_column(heading)
    for heading in ("median ms", "IQR", "p95", "times faster"):
        table.add_column(heading, justify="right")
    for row in rows:
        for position, (name, timing) in enumerate(row.timings.items()):
            first = position == 0
            table.add_row(
                row.name if first else "",
                " ".join(f"{key}={value}" for key, value in row.settings.items()) if first else "",
                name,
                *(f"{value:.3g}" for value in (timing.median_ms, timing.iqr_ms, timing.p95_ms)),
                f"{row.speedup:.1f}" if first and row.speedup is not None else "",
                end_section=position == len(row.timings) - 1,
            )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for key, value in (notes or {}).items():
        console.print(f"{key}: {value}", highlight=False)
    if save:
        folder = results / device()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{suite}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document), flush=True)
    return document
