"""What this machine really has for workers: cores it may use, memory that is free, also inside a container."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.onnx_engine import usable_cores

WORKER_BYTES: Final = (
    800_000_000  # measured with the default model and all outputs: 470 MB at 480 x 270, 750 MB at 1080p
)
_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Cores that may be used at the same time, and bytes that are free."""

    cores: int
    memory_bytes: int


def resources(cgroup: Path = _CGROUP, memory: Path = _MEMORY) -> Resources:
    """What is there: of the scheduler's mask, the container's share of time and memory, and the machine's memory."""
    cores = usable_cores()
    quota, _, period = _line(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    free = [int(line.split()[1]) * 1024 for line in _lines(memory) if line.startswith("MemAvailable:")]
    limit, used = _line(cgroup / "memory.max"), _line(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        free.append(max(0, int(limit) - int(used)))
    return Resources(cores=cores, memory_bytes=min(free, default=WORKER_BYTES))


def share(found: Resources, files: int, *, workers: int | None, threads: int | None, gpu: bool) -> tuple[int, int]:
    """Workers and threads of each, so that together they have no more threads at work than there are cores.

    Args:
        found: what is there.
        files: inputs to process; more workers than that would wait.
        workers: as many as somebody said.
        threads: of a network call, as many as somebody said.
        gpu: networks run on a GPU: one process drives it.
    """
    if workers is None:
        by_memory = max(1, found.memory_bytes // WORKER_BYTES)
        by_cores = 1 if gpu else max(1, found.cores // (threads or 1))
        workers = max(1, min(files, by_memory, by_cores))
    return workers, threads if threads is not None else max(1, found.cores // workers)


def _line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
