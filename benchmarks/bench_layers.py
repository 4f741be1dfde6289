"""What layers cost per frame, how much steadier their edges are, and how much refining brings: on any clip.

    python -m benchmarks.bench_layers out/demo_input.mp4 [--truth out/demo_truth.json] [--frames 60] [--save]

Every frame goes through all steps and layers in turn, so that a slow second of the machine hits all of them. `paint`
makes a layer's picture, `write` encodes it. Flicker is the mean change of alpha from frame to frame, in levels of 255,
on px within 4 px of an edge whose neighbourhood in the picture stands still (2 levels or less); the residue is the mean
alpha that holding still leaves where something moves and nobody is. With the truth of `examples/make_demo_clip.py`:
IoU, and the mean error of alpha within 10 px of the true edge.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

import pose2seg
from benchmarks.measure import Row, report, summarise
from pipeline.layers.alpha import AlphaMaker, together
from pipeline.layers.cover import CoverMemory
from pipeline.layers.options import ChosenPeople
from pipeline.layers.sinks import HidingSink, LayerSink, make_layer_sinks
from pipeline.messages import FrameResult
from pipeline.settings import Settings

LAYERS = (
    *("cutout=c.mov", "cutout=c.webm", "cutout=c", "matte=m.mp4", "matte=m.mkv", "outline=o.mp4", "background=g.mp4"),
    *("blur=b.mp4", "pixelate=x.mp4", "remove=r.mp4", "heatmap=h.png"),
)
WARM_UP_FRAMES = 5
EDGE_PX = 4
STILL_LEVELS = 2
BAND_PX = 10


def maker(*, refine: bool = False, steady: bool = False) -> AlphaMaker:
    return AlphaMaker(mask_threshold=0.5, exclusive=False, refine=refine, steady=steady)


def costs(results: list[FrameResult]) -> dict[str, list[float]]:
    """Step or layer -> ms per frame."""
    makers = {"alpha": maker(), "alpha, steady": maker(steady=True), "alpha, refined": maker(refine=True)}
    shared = maker()
    covers = CoverMemory(shared, ChosenPeople(), frames=60)
    samples: defaultdict[str, list[float]] = defaultdict(list)

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = call()
        samples[name].append(1000 * (time.perf_counter() - started))
        return value

    with tempfile.TemporaryDirectory() as folder:
        named = tuple(text.replace("=", f"={folder}/") for text in LAYERS)
        sinks = dict(zip(LAYERS, make_layer_sinks(Settings(source="in.mp4", layer=named)), strict=True))
        for result in results:
            for name, each in makers.items():
                timed(name, lambda each=each, result=result: each.of(result))
            shared.of(result)
            timed("covers of hidden people", lambda result=result: covers.of(result))
            for sink in sinks.values():  # what they share is made before they are timed
                if isinstance(sink, LayerSink):
                    sink.paint(result)
                    break
            for name, sink in sinks.items():
                if isinstance(sink, (LayerSink, HidingSink)):
                    given = result if isinstance(sink, LayerSink) else sink._covered.of(result)[0]  # noqa: SLF001
                    picture = timed(f"{name}: paint", lambda sink=sink, given=given: sink.paint(given))
                    timed(
                        f"{name}: write",
                        lambda sink=sink, picture=picture, result=result: sink._writer.write_picture(  # noqa: SLF001
                            picture, result.frame
                        ),
                    )
                else:
                    timed(f"{name}: paint", lambda sink=sink, result=result: sink.write(result))
        for sink in sinks.values():
            sink.close()
    return {name: times[WARM_UP_FRAMES:] for name, times in samples.items()}


def flicker(results: list[FrameResult], used: AlphaMaker) -> tuple[float, float]:
    """Levels of change on still edges, and of residue on moving background."""
    plain = maker()
    before: tuple[np.ndarray, np.ndarray] | None = None
    changes, residues = [], []
    side = np.ones((2 * EDGE_PX + 1,) * 2, np.uint8)
    for result in results:
        size = (result.frame.height, result.frame.width)
        alpha = together([one.alpha for one in used.of(result)], *size)
        fresh = together([one.alpha for one in plain.of(result)], *size)
        gray = np.asarray(cv2.cvtColor(result.frame.image, cv2.COLOR_RGB2GRAY))
        if before is not None:
            change = cv2.blur(cv2.absdiff(gray, before[1]), (5, 5))
            edges = [
                cv2.morphologyEx((a > 127).astype(np.uint8), cv2.MORPH_GRADIENT, side) > 0 for a in (alpha, before[0])
            ]
            still = (edges[0] | edges[1]) & (change <= STILL_LEVELS)
            if still.sum() > 50:
                changes.append(np.abs(alpha.astype(int) - before[0])[still].mean())
            moving = (fresh == 0) & (change > STILL_LEVELS) & (cv2.dilate(fresh, np.ones((61, 61), np.uint8)) > 0)
            if moving.sum() > 50:
                residues.append(alpha[moving].mean())
        before = (alpha, gray)
    return float(np.mean(changes or [0.0])), float(np.mean(residues or [0.0]))


def edge_errors(results: list[FrameResult], truth: Path, used: AlphaMaker) -> tuple[float, float, int]:
    """Mean IoU, mean error of alpha near the true edge (0..1), and how many people were compared."""
    masks: defaultdict[int, list[np.ndarray]] = defaultdict(list)
    for annotation in json.loads(truth.read_text())["annotations"]:
        masks[annotation["image_id"] - 1].append(coco_mask.decode(annotation["segmentation"]))
    ious, errors = [], []
    for result in results[::5]:
        size = (result.frame.height, result.frame.width)
        for one in used.of(result):
            alpha = one.alpha.in_frame(*size)
            inside = alpha > 127
            scored = [
                ((inside & (m > 0)).sum() / max(1, (inside | (m > 0)).sum()), m) for m in masks[result.frame.index]
            ]
            iou, mask = max(scored, key=lambda pair: pair[0], default=(0.0, inside))
            if iou > 0.75:  # somebody is found; who is mostly hidden says nothing about edges
                band = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2 * BAND_PX + 1,) * 2, np.uint8)) > 0
                ious.append(iou)
                errors.append(np.abs(alpha / 255.0 - mask)[band].mean())
    return float(np.mean(ious)), float(np.mean(errors)), len(ious)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--truth", type=Path, help="annotations of examples/make_demo_clip.py --truth")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/layers.json")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    results = list(pose2seg.stream(options.clip, threads=1, max_frames=options.frames))
    frame = results[0].frame
    people = sum(len(result.people) for result in results) / len(results)
    notes: dict[str, object] = {
        "clip": f"{Path(options.clip).name}, {frame.width} x {frame.height}",
        "frames, people": f"{len(results)}, {people:.1f}",
        "load before": round(os.getloadavg()[0], 1),
    }
    for name, used in (("as pasted", maker()), ("steady", maker(steady=True))):
        change, residue = flicker(results, used)
        notes[f"flicker, {name}"] = f"{change:.2f} levels, residue {residue:.2f}"
    if options.truth:
        for name, used in (("as pasted", maker()), ("refined", maker(refine=True)), ("steady", maker(steady=True))):
            iou, error, count = edge_errors(results, options.truth, used)
            notes[f"true edges, {name}"] = f"IoU {iou:.4f}, error {error:.4f}, {count} people"
    rows = [
        Row(name=name, settings={"people": round(people, 1)}, timings={"ms per frame": summarise(times)})
        for name, times in costs(results).items()
    ]
    notes["load after"] = round(os.getloadavg()[0], 1)
    report("layers", rows, notes=notes, save=options.save)


if __name__ == "__main__":
    main()
