"""What --skip-still saves and what it costs.

    python -m benchmarks.bench_still [VIDEO ...] [--frames 100] [--data DIR --scenes 12] [--save]

Videos: the same frames whole and in parts, in turns; processor time of the process, share of the px that the network
looked at, and how far the people differ from those of whole pictures (mask IoU; people missed or added). Scenes: people
composed before photographs, filmed from a tripod by a sensor with noise (`benchmarks.crossing_scenes`), so that the
truth of every frame is known: mask IoU and share of people found, both ways. ``--data`` is the folder of the data sets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.crossing_scenes import Scene, make_scene, render
from benchmarks.crossings import held_out_people, pictures_without_people
from benchmarks.measure import RESULTS, device, environment
from engines.device import HostDevice
from kernels.coordinates import U8
from pipeline.build import Model, model_stages, open_model
from pipeline.messages import Frame
from pipeline.settings import Settings
from pipeline.stage5_compose import ComposeStage

FIRST_SEED = 3000  # no other benchmark uses these scenes
NOISE_LEVELS = 3.0  # standard deviation
FOUND_IOU = 0.3
PASSES = 2
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(kw_only=True)
class Pass:
    """Masks of every frame, and what they took."""

    masks: list[list[Mask]] = field(default_factory=list)
    processor_ms: float = 0.0
    looked_at: float = 1.0


def run_pass(images: Iterable[U8], model: Model, *, skip_still: bool, long_side: int | None = None) -> Pass:
    """All stages but the outputs, one frame after the other."""
    device_here = HostDevice()
    stages = [
        *model_stages(Settings(source="0", skip_still=skip_still, long_side=long_side), model, device_here),
        ComposeStage(device_here, mask_threshold=0.5, draw=False),
    ]
    for stage in stages:
        stage.open()
    made, spent = Pass(), 0.0
    for index, image in enumerate(images):
        item: Any = Frame(
            index=index, source="", clip=0, pts=index, time_base=Fraction(1, 25), captured_s=0.0, pixels=image
        )
        started = time.process_time()
        for stage in stages:
            item = stage.process(item)
        spent += time.process_time() - started
        made.masks.append([person.mask for person in item.people])
    made.processor_ms = 1e3 * spent / max(len(made.masks), 1)
    made.looked_at = stages[0].looked_at  # type: ignore[union-attr]
    return made


def overlaps(wanted: list[Mask], found: list[Mask]) -> tuple[list[float], int]:
    """Best IoU of each wanted mask, each found one used once, the most alike first; and how many are left over."""
    pairs = sorted(
        (
            (float((a & b).sum() / max((a | b).sum(), 1)), i, j)
            for i, a in enumerate(wanted)
            for j, b in enumerate(found)
        ),
        reverse=True,
    )
    best, used = [0.0] * len(wanted), set()
    taken = set()
    for iou, i, j in sorted(pairs, reverse=True):
        if iou >= FOUND_IOU and i not in taken and j not in used:
            best[i] = iou
            taken.add(i)
            used.add(j)
    return best, len(found) - len(used)


def summary(ious: list[float], added: int) -> dict[str, Any]:
    """Counts and means over people times frames."""
    found = [iou for iou in ious if iou > 0]
    return {
        "people_times_frames": len(ious),
        "found": len(found) / max(len(ious), 1),
        "mean_iou_of_found": float(np.mean(found)) if found else 0.0,
        "tenth_iou_of_found": float(np.quantile(found, 0.1)) if found else 0.0,
        "added": added,
    }


def of_video(path: Path, model: Model, frames: int, long_side: int | None) -> dict[str, Any]:
    """Whole and in parts, in turns."""
    images = []
    with av.open(str(path)) as source:
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            images.append(frame.to_ndarray(format="rgb24"))
    passes: dict[bool, list[Pass]] = {False: [], True: []}
    for _ in range(PASSES):
        for skip_still, made in passes.items():
            made.append(run_pass(images, model, skip_still=skip_still, long_side=long_side))
    ious, added = [], 0
    for wanted, found in zip(passes[False][-1].masks, passes[True][-1].masks, strict=True):
        best, more = overlaps(wanted, found)
        ious += best
        added += more
    return {
        "name": path.stem,
        "long_side": long_side,
        "frames": len(images),
        "looked_at": passes[True][-1].looked_at,
        "processor_ms_whole": min(made.processor_ms for made in passes[False]),
        "processor_ms_parts": min(made.processor_ms for made in passes[True]),
        "against_whole": summary(ious, added),
    }


def tripod_scenes(data: Path, count: int) -> Iterator[Scene]:
    """Scenes whose camera does not move."""
    people, backgrounds = held_out_people(data), pictures_without_people(data)
    seed = FIRST_SEED
    while count:
        scene = make_scene(seed, people, backgrounds)
        seed += 1
        if not np.ptp(scene.camera, axis=0).any():
            count -= 1
            yield scene


def of_scenes(scenes: Iterable[Scene], model: Model, frames: int, long_side: int | None) -> dict[str, Any]:
    """Against the truth, both ways."""
    ious: dict[bool, list[float]] = {False: [], True: []}
    added = {False: 0, True: 0}
    spent: dict[bool, list[float]] = {False: [], True: []}
    looked_at, count = [], 0
    for scene in scenes:
        rng = np.random.default_rng(scene.seed)
        images, wanted = [], []
        for image, truth in render(scene):
            assert image is not None
            images.append(np.clip(image + rng.normal(0, NOISE_LEVELS, image.shape), 0, 255).astype(np.uint8))
            wanted.append([truth.labels == n + 1 for n in np.flatnonzero(truth.asked_for)])
            if len(images) == frames:
                break
        count += len(images)
        for skip_still in (False, True):
            made = run_pass(images, model, skip_still=skip_still, long_side=long_side)
            spent[skip_still].append(made.processor_ms)
            for masks, found in zip(wanted, made.masks, strict=True):
                best, more = overlaps(masks, found)
                ious[skip_still] += best
                added[skip_still] += more
        looked_at.append(made.looked_at)
    return {
        "name": "scenes from a tripod",
        "long_side": long_side,
        "frames": count,
        "looked_at": float(np.mean(looked_at)),
        "processor_ms_whole": float(np.mean(spent[False])),
        "processor_ms_parts": float(np.mean(spent[True])),
        "whole_against_truth": summary(ious[False], added[False]),
        "parts_against_truth": summary(ious[True], added[True]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="*", metavar="VIDEO")
    parser.add_argument("--frames", type=int, default=100, help="most frames of each video and scene (100)")
    parser.add_argument("--data", type=Path, help="folder of the data sets, for the scenes")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--long-side", type=int, help="of the network input, px; the model's own by default")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    model = open_model(Settings(source="0", engine="onnx", device="cpu", threads=1, long_side=options.long_side))
    rows = [of_video(path, model, options.frames, options.long_side) for path in options.videos]
    if options.data is not None:
        rows.append(of_scenes(tripod_scenes(options.data, options.scenes), model, options.frames, options.long_side))
    table = Table(title="--skip-still")
    headings = ("", "frames", "looked at", "processor ms, whole", "in parts", "people", "found", "mean IoU", "added")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        timed = (f"{row['looked_at']:.0%}", f"{row['processor_ms_whole']:.1f}", f"{row['processor_ms_parts']:.1f}")
        for key in ("against_whole", "whole_against_truth", "parts_against_truth"):
            if key in row:
                found = row[key]
                table.add_row(
                    f"{row['name']}, {key.replace('_', ' ')}",
                    str(row["frames"]),
                    *timed,
                    str(found["people_times_frames"]),
                    f"{found['found']:.1%}",
                    f"{found['mean_iou_of_found']:.3f}",
                    str(found["added"]),
                )
    Console(width=140).print(table)
    document = {"schema": 1, "suite": "still", "environment": environment(), "rows": rows}
    if options.save:
        folder = RESULTS / device()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "still.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
