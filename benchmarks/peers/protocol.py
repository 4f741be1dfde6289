"""What every contestant of `benchmarks.compare` does with a clip: decode on one thread, network and drawing on another.

A contestant is a process of its own, in a virtual environment of its own, that reads one JSON object per line from
stdin and answers each with one on stdout. `{"clip": F, "frames": N, "people": [..]}` runs the clip once, decode to
drawn frame, and is answered with the figures of `PassFigures`. The end of stdin ends the process.

Only the standard library, NumPy and PyAV: this file is imported in every environment.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np

DECODED_WAITING = 2  # frames, as in our own pipeline


@dataclass(kw_only=True)
class PassFigures:
    """One pass over a clip.

    Attributes:
        frames: how many were drawn.
        seconds: from the call to the last drawn frame.
        cpu_s: processor time of all threads of the process in that while; another program beside it changes it little.
        model_ms: time inside network calls, per frame.
        frame_ms: time between drawn frames, from the second on.
        people: masks or skeletons drawn, per frame.
        peak_memory_mb: of the process, so far.
    """

    frames: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    model_ms: list[float] = field(default_factory=list)
    frame_ms: list[float] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    peak_memory_mb: float = 0.0


def decoded(clip: str, frames: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Pictures (H, W, 3) uint8 RGB of a clip, decoded on a thread beside the caller."""
    waiting: queue.Queue[np.ndarray[Any, np.dtype[np.uint8]] | None] = queue.Queue(DECODED_WAITING)

    def decode() -> None:
        with av.open(clip) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                if index == frames:
                    break
                waiting.put(frame.to_ndarray(format="rgb24"))
        waiting.put(None)

    threading.Thread(target=decode, daemon=True).start()
    while (picture := waiting.get()) is not None:
        yield picture


Draw = Callable[[np.ndarray[Any, np.dtype[np.uint8]], int], tuple[int, float]]
"""Picture, drawn on in place, and how many people it is to have -> people drawn, seconds inside network calls."""


def run_clip(draw: Draw, clip: str, frames: int, people: Sequence[int]) -> PassFigures:
    """One pass with a contestant that works picture by picture."""
    figures = PassFigures()
    started = last = time.perf_counter()
    for index, picture in enumerate(decoded(clip, frames)):
        drawn, network_s = draw(picture, people[index] if index < len(people) else 0)
        now = time.perf_counter()
        figures.people.append(drawn)
        figures.model_ms.append(network_s * 1e3)
        if index:
            figures.frame_ms.append((now - last) * 1e3)
        last = now
    figures.frames = len(figures.people)
    figures.seconds = last - started
    return figures


def serve(run: Callable[[str, int, Sequence[int]], PassFigures], about: dict[str, Any]) -> None:
    """Say what this contestant is, then answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # libraries print to stdout as they like
    os.dup2(2, 1)
    answers.write(json.dumps({"environment_mb": environment_mb(), **about}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        cpu_before = time.process_time()
        figures = run(request["clip"], request["frames"], request["people"])
        figures.cpu_s = time.process_time() - cpu_before
        figures.peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.write(json.dumps(asdict(figures)) + "\n")
        answers.flush()


def environment_mb(roots: Sequence[str] = ()) -> float:
    """Size on disk of what is installed, MB: of ``roots`` and all they need, or of the whole environment but pip."""
    sizes: dict[str, float] = {}
    needs: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = _plain(distribution.metadata["Name"])
        files = [Path(str(file.locate())) for file in distribution.files or ()]
        sizes[name] = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
        needs[name] = {
            _plain(requirement) for requirement in distribution.requires or () if "extra ==" not in requirement
        }
    wanted, waiting = set[str](), [_plain(root) for root in roots] or [*sizes]
    while waiting:
        name = waiting.pop()
        if name in sizes and name not in wanted | {"pip", "setuptools"}:
            wanted.add(name)
            waiting += needs[name] if roots else []
    return sum(sizes[name] for name in wanted)


def _plain(requirement: str) -> str:
    """Distribution name of a requirement, in the one spelling all spellings have in common."""
    name = requirement.strip()
    for index, character in enumerate(name):
        if not (character.isalnum() or character in "-_."):
            name = name[:index]
            break
    return name.lower().replace("_", "-").replace(".", "-")
