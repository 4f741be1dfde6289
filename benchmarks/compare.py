"""Ours beside what one would pick instead: same clip, same machine, in turns, decode to drawn masks.

    python -m benchmarks.compare --install [GROUP ...]      # an environment for each group, below runs/compare
    python -m benchmarks.compare VIDEO [--movenet F.onnx] [--frames 67] [--repeat 3] [--only NAME ...] [--save]

Every contestant is a process of its own (benchmarks/peers), loaded before the first pass and idle while another one
runs. Passes take turns: A B C A B C. Writing a video is left out for all: a frame is finished when its people are
drawn. Networks whose weights cannot be downloaded by a package manager have random ones ("random": for timing only);
they draw as many people in each frame as ours found there. What cannot run is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import RESULTS, device, environment, usable_cores

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
FOLDER = ROOT / "runs" / "compare"
MODELS = FOLDER / "models"
SLOW_FRAMES = 12  # of a contestant that takes about a second a frame
EXPORTS = {"ultralytics": "benchmarks.peers.export_yolo", "rfdetr": "benchmarks.peers.export_rfdetr"}


class Unavailable(RuntimeError):
    """A contestant cannot run here."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """How one line of the table is made.

    Attributes:
        name: of the line.
        group: environment below `FOLDER`; empty for ours.
        arguments: of the process.
        models: file names in `MODELS`, or paths.
        licence: of code and, where it differs, weights.
        gives: what a user gets.
        weights: real, random, or none.
        slow: runs `SLOW_FRAMES` only.
    """

    name: str
    group: str
    arguments: tuple[str, ...]
    models: tuple[str, ...] = ()
    licence: str
    gives: str
    weights: str
    slow: bool = False


def yolo(version: str, runtime: str, *, pose: bool) -> Contestant:
    tasks = ("seg", "pose") if pose else ("seg",)
    if version == "26" and runtime == "openvino":  # it does not read the ONNX file of this head
        models = tuple(f"yolo26n-{task}_openvino_model/yolo26n-{task}.xml" for task in tasks)
    else:
        models = tuple(f"yolo{version}n-{task}.onnx" for task in tasks)
    return Contestant(
        name=f"YOLO{version}n-seg{' + -pose' if pose else ''}, {runtime}",
        group="runtimes",
        arguments=("yolo", "--runtime", runtime.partition(" ")[0].lower()),
        models=models,
        licence="AGPL-3.0",
        gives="masks, joints" if pose else "masks",
        weights="random",
    )


def contestants(movenet: Path | None) -> list[Contestant]:
    ours = {"group": "", "licence": "Apache-2.0", "gives": "masks, joints, ids", "weights": "real"}
    listed = [
        Contestant(name="pose2seg-live", arguments=("--engine", "onnx"), **ours),
        Contestant(name="pose2seg-live, long side 384", arguments=("--engine", "onnx", "--long-side", "384"), **ours),
        Contestant(name="pose2seg-live, --skip-still", arguments=("--engine", "onnx", "--skip-still"), **ours),
        Contestant(
            name="pose2seg-live, OpenVINO bfloat16",
            arguments=("--engine", "openvino", "--precision", "bfloat16"),
            **ours,
        ),
        Contestant(
            name="pose2seg-live, OpenVINO bfloat16, --skip-still",
            arguments=("--engine", "openvino", "--precision", "bfloat16", "--skip-still"),
            **ours,
        ),
        *(
            yolo(v, runtime, pose=pose)
            for v in ("26", "11")
            for runtime in ("onnxruntime", "openvino")
            for pose in (False, True)
        ),
    ]
    listed.extend(
        Contestant(
            name=f"RF-DETR-Seg nano, {runtime}",
            group="runtimes",
            arguments=("rfdetr", "--runtime", runtime),
            models=("rfdetr-seg-nano-312.onnx",),
            licence="Apache-2.0",
            gives="masks",
            weights="random",
        )
        for runtime in ("onnxruntime", "openvino")
    )
    listed.append(
        Contestant(
            name="MediaPipe Pose with mask (one person)",
            group="mediapipe",
            arguments=("blazepose",),
            licence="Apache-2.0",
            gives="one mask, joints",
            weights="real",
        )
    )
    if movenet is not None:
        listed.append(
            Contestant(
                name="MoveNet MultiPose at 512, onnxruntime",
                group="runtimes",
                arguments=("movenet",),
                models=(str(movenet.resolve()),),
                licence="Apache-2.0",
                gives="joints",
                weights="real",
            )
        )
    listed.append(
        Contestant(
            name="torchvision Mask R-CNN R50-FPN",
            group="torchvision",
            arguments=("maskrcnn",),
            licence="BSD-3-Clause",
            gives="masks",
            weights="random",
            slow=True,
        )
    )
    return listed


def install(groups: Sequence[str]) -> None:
    """Environments and exported networks of the named groups; a group that fails is reported, the others go on."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for group in groups or sorted(path.stem for path in PEERS.glob("*.txt")):
        target = FOLDER / f"venv-{group}"
        steps = [
            [sys.executable, "-m", "venv", str(target)],
            [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(PEERS / f"{group}.txt")],
        ]
        if group in EXPORTS:
            steps.append([str(target / "bin" / "python"), "-m", EXPORTS[group], str(MODELS)])
        for step in steps:
            if subprocess.run(step, cwd=ROOT, check=False).returncode:  # noqa: S603  our own commands
                print(f"{group}: cannot be installed; failed: {' '.join(step)}", file=sys.stderr)
                break
        else:
            print(f"{group}: ready")


class Process:
    """A contestant that was started; see `benchmarks.peers.protocol`."""

    def __init__(self, contestant: Contestant) -> None:
        python = (
            Path(sys.executable) if not contestant.group else FOLDER / f"venv-{contestant.group}" / "bin" / "python"
        )
        if not python.is_file():
            raise Unavailable(f"not installed: python -m benchmarks.compare --install {contestant.group}")
        module = "benchmarks.peers.networks" if contestant.group else "benchmarks.peers.ours"
        command = [str(python), "-m", module, *contestant.arguments]
        models = [MODELS / name for name in contestant.models]  # an absolute name stays what it is
        for path in models:
            if not path.is_file():
                raise Unavailable(f"{path.name} is missing: python -m benchmarks.compare --install")
        if contestant.group:
            command += ["--threads", str(usable_cores())]
        if models:
            command += ["--model", *map(str, models)]
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603  our own command
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        )
        self.about = self._answer()
        self.load_s = time.perf_counter() - started

    def run(self, clip: Path, frames: int, people: Sequence[int]) -> dict[str, Any]:
        """One pass; `benchmarks.peers.protocol.PassFigures` as a mapping."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"clip": str(clip), "frames": frames, "people": list(people)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, trouble = self._process.communicate()
            last = [text for text in trouble.splitlines() if text.strip()]
            raise Unavailable(last[-1] if last else f"ended with code {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def compare(
    listed: Sequence[Contestant], clip: Path, *, frames: int, repeat: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the table, and why others are missing."""
    running: dict[str, Process] = {}
    missing: dict[str, str] = {}
    passes: dict[str, list[dict[str, Any]]] = {}
    people: list[int] = []
    try:
        for contestant in listed:
            try:
                process = Process(contestant)
                warm = process.run(clip, min(frames, SLOW_FRAMES // 3 if contestant.slow else frames), people)
            except Unavailable as error:
                missing[contestant.name] = str(error)
                continue
            running[contestant.name], passes[contestant.name] = process, []
            people = people or warm["people"]  # the first is ours
        for _ in range(repeat):
            for contestant in listed:
                if contestant.name in running:
                    count = min(frames, SLOW_FRAMES) if contestant.slow else frames
                    passes[contestant.name].append(running[contestant.name].run(clip, count, people))
    finally:
        for process in running.values():
            process.close()
    rows = [_row(line, running[line.name], passes[line.name]) for line in listed if line.name in running]
    return rows, missing


def _row(contestant: Contestant, process: Process, passes: list[dict[str, Any]]) -> dict[str, Any]:
    middle = sorted(passes, key=lambda figures: figures["seconds"] / figures["frames"])[len(passes) // 2]
    between = [value for figures in passes for value in figures["frame_ms"]]
    return {
        "name": contestant.name,
        "weights": contestant.weights,
        "runtime": process.about["runtime"],
        "gives": contestant.gives,
        "licence": contestant.licence,
        "fps": middle["frames"] / middle["seconds"],
        "fps_of_each_pass": [figures["frames"] / figures["seconds"] for figures in passes],
        "model_ms": statistics.mean(middle["model_ms"]),
        "frame_ms_p50": float(np.percentile(between, 50)),
        "frame_ms_p95": float(np.percentile(between, 95)),
        "cpu_ms": statistics.median(figures["cpu_s"] * 1e3 / figures["frames"] for figures in passes),
        "peak_memory_mb": max(figures["peak_memory_mb"] for figures in passes),
        "weights_mb": process.about["weights_mb"],
        "environment_mb": process.about["environment_mb"],
        "frames": middle["frames"],
        "people_drawn": sum(middle["people"]),
    }


def markdown(rows: Sequence[dict[str, Any]], missing: dict[str, str], title: str) -> str:
    """The table as it stands in docs/performance.md."""
    first = rows[0]["fps"]
    columns = {
        "": "name",
        "weights": "weights",
        "FPS": "fps:.1f",
        "CPU ms a frame": "cpu_ms:.0f",
        "model ms": "model_ms:.1f",
        "frame ms p50": "frame_ms_p50:.0f",
        "p95": "frame_ms_p95:.0f",
        "people drawn": "people_drawn",
        "frames": "frames",
        "peak MB": "peak_memory_mb:.0f",
        "libraries MB": "environment_mb:.0f",
        "licence": "licence",
        "gives": "gives",
    }
    headings = [*columns, "weights MB", "ours is"]
    lines = [title, "", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        cells = []
        for column in columns.values():
            key, _, form = column.partition(":")
            cells.append(format(row[key], form))
        cells.append("-" if row["weights_mb"] is None else f"{row['weights_mb']:.0f}")
        cells.append(f"{first / row['fps']:.2f} x as fast")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Left out: {name} ({reason})" for name, reason in missing.items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, nargs="?", metavar="VIDEO")
    parser.add_argument("--install", nargs="*", metavar="GROUP", help="make the environments, then end")
    parser.add_argument("--movenet", type=Path, metavar="F.onnx", help="MoveNet MultiPose Lightning with its decoding")
    parser.add_argument("--frames", type=int, default=67)
    parser.add_argument("--repeat", type=int, default=3, help="passes of each")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="lines whose name holds one of these, beside our first"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    if options.install is not None:
        install(options.install)
        return
    if options.video is None:
        parser.error("a VIDEO, or --install")
    listed = contestants(options.movenet)
    if options.only:
        listed = [line for line in listed if line is listed[0] or any(part in line.name for part in options.only)]
    rows, missing = compare(listed, options.video, frames=options.frames, repeat=options.repeat)
    if options.movenet is None and not options.only:
        missing["MoveNet MultiPose"] = "no file: --movenet F.onnx"
    about = environment()
    title = f"{options.video.stem}, {rows[0]['frames']} frames, {about['cpu']}, {about['cores']} cores, passes in turns"
    text = markdown(rows, missing, title)
    table = Table(title=title)
    for heading in ("", "weights", "FPS", "CPU ms", "model ms", "p95 ms", "peak MB", "people"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["name"],
            row["weights"],
            f"{row['fps']:.1f}",
            f"{row['cpu_ms']:.0f}",
            f"{row['model_ms']:.1f}",
            f"{row['frame_ms_p95']:.0f}",
            f"{row['peak_memory_mb']:.0f}",
            str(row["people_drawn"]),
        )
    Console(width=130).print(table)
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    document = {
        "schema": 1,
        "suite": "compare",
        "environment": about,
        "clip": options.video.stem,
        "rows": rows,
        "missing": missing,
    }
    if options.save:
        folder = RESULTS / device()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (folder / "compare.md").write_text(text, encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
