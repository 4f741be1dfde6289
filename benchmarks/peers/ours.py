"""pose2seg-live as a contestant of `benchmarks.compare`: the pipeline as users run it, decode to drawn frame.

python -m benchmarks.peers.ours [--engine onnx] [--precision auto] [--long-side 512] [--skip-still]
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.peers.protocol import PassFigures, environment_mb, serve
from engines import Engine
from pipeline.build import build, open_model
from pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


class TimedEngine:
    """An engine that adds up the time its calls take; see `engines.engine.Engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self.seconds = 0.0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        started = time.perf_counter()
        results = self._engine.run(feeds)
        self.seconds += time.perf_counter() - started
        return results

    def close(self) -> None:
        """Stays open: the next pass uses it again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--long-side", type=int)
    parser.add_argument("--skip-still", action="store_true")
    options = parser.parse_args()

    def settings(clip: str, frames: int | None = None) -> Settings:
        return Settings(
            source=clip,
            max_frames=frames,
            engine=options.engine,
            precision=options.precision,
            long_side=options.long_side,
            skip_still=options.skip_still,
            device="cpu",
        )

    opened = open_model(settings("0"))
    keypoints, segment = TimedEngine(opened.keypoint_engine), TimedEngine(opened.segment_engine)
    model = replace(opened, keypoint_engine=keypoints, segment_engine=segment)

    def run(clip: str, frames: int, _people: Sequence[int]) -> PassFigures:
        keypoints.seconds = segment.seconds = 0.0
        figures = PassFigures()
        started = last = time.perf_counter()
        for result in build(settings(clip, frames), model=model).results():
            result.overlay()
            now = time.perf_counter()
            if figures.people:
                figures.frame_ms.append((now - last) * 1e3)
            figures.people.append(len(result.people))
            last = now
        figures.seconds = last - started
        figures.frames = len(figures.people)
        # The two networks run beside each other, on different frames: the mean of their sum is all that can be said.
        figures.model_ms = [1e3 * (keypoints.seconds + segment.seconds) / max(figures.frames, 1)]
        return figures

    weights = sum(path.stat().st_size for path in opened.artifact.folder.glob("*.onnx"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    roots = project["dependencies"] + (["openvino"] if options.engine == "openvino" else [])
    about = {"runtime": keypoints.name, "weights_mb": weights / 1e6, "environment_mb": environment_mb(roots)}
    serve(run, about)


if __name__ == "__main__":
    main()
