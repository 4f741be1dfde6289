"""How many people a hiding layer leaves uncovered, with and without frames held back, and the cost: on any clips.

    python -m benchmarks.uncovered_people CLIP... [--ahead 0 5 15 30] [--frames 200] [--save]

Clips have no truth, so a stronger look at them stands in for it: the same network at `--reference-side` px with a low
person threshold, and of what that finds people who were seen in `MIN_FRAMES` frames or more and under whose mask the
picture changed: what never changes is a thing. It misses people, too, and its masks are not always right. A person in a
frame counts as uncovered if less than `ENOUGH` of the mask is under whole cover (alpha 255), and as seen if less than
`HALF` is. `late` are those of the uncovered whom the run itself finds later: what `--hide-ahead` is for; the rest it
never finds, or has lost for good.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import pose2seg
from benchmarks.measure import environment
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.covered_frames import CoveredFrame, CoveredFrames
from pipeline.layers.options import ChosenPeople

MIN_FRAMES = 8
ENOUGH = 0.9
HALF = 0.5
THING_LEVELS = 8.0  # of 255: a picture that changed by less under the mask, in all frames of a track, shows a thing
MATCH_IOU = 0.3
RESULTS = Path(__file__).resolve().parent / "results" / "cpu-2core" / "uncovered.json"


@dataclass(slots=True)
class Reference:
    """Masks of a stronger look: frame number -> track -> (x0, y0, mask)."""

    people: dict[int, dict[int, tuple[int, int, np.ndarray]]] = field(default_factory=dict)

    @staticmethod
    def of(clip: str, *, long_side: int, threshold: float, frames: int) -> Reference:
        seen: Counter[int] = Counter()
        changed: Counter[int] = Counter()  # the most, in levels, from the first sight on
        first: dict[int, tuple[tuple[slice, slice], np.ndarray, np.ndarray]] = {}
        found: dict[int, dict[int, tuple[int, int, np.ndarray]]] = {}
        for result in pose2seg.stream(clip, long_side=long_side, person_threshold=threshold, max_frames=frames):
            crops = {person.id: person.crop for person in result.people if person.crop.mask.any()}
            found[result.frame.index] = {number: (crop.x0, crop.y0, crop.mask) for number, crop in crops.items()}
            seen.update(crops.keys())
            for number, crop in crops.items():
                if number not in first:
                    height, width = crop.mask.shape
                    place = (slice(crop.y0, crop.y0 + height), slice(crop.x0, crop.x0 + width))
                    first[number] = (place, crop.mask, result.frame.image[place].astype(np.int16))
                place, mask, before = first[number]
                difference = np.abs(result.frame.image[place] - before).mean(axis=2)[mask]
                changed[number] = max(changed[number], round(float(difference.mean())))
        kept = {number for number, count in seen.items() if count >= MIN_FRAMES and changed[number] >= THING_LEVELS}
        return Reference({n: {k: v for k, v in people.items() if k in kept} for n, people in found.items()})

    def person_frames(self) -> int:
        return sum(len(people) for people in self.people.values())


def covered_px(covered: CoveredFrame) -> np.ndarray:
    """(H, W) bool: whole covers only."""
    full = np.zeros((covered.frame.height, covered.frame.width), np.bool_)
    for cover in covered.covers:
        height, width = cover.alpha.shape
        full[cover.y0 : cover.y0 + height, cover.x0 : cover.x0 + width] |= cover.alpha == 255
    return full


def uncovered(reference: Reference, clip: str, aheads: Sequence[int], *, frames: int) -> list[dict[str, Any]]:
    """One row for each number of frames held back; all see the same run."""
    maker = AlphaMaker(mask_threshold=0.5, exclusive=False, refine=False, steady=False)
    lines = {ahead: CoveredFrames(maker, ChosenPeople(), frames=60, ahead=ahead) for ahead in aheads}
    left: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seen: Counter[int] = Counter()
    share: Counter[int] = Counter()
    ms: Counter[int] = Counter()
    found: dict[int, list[int]] = defaultdict(list)  # of a reference track: frames in which the run found them
    count = 0
    first_s: float | None = None
    last_s = 0.0

    def note(ahead: int, due: Sequence[CoveredFrame]) -> None:
        for covered in due:
            full = covered_px(covered)
            share[ahead] += full.mean()
            for track, (x0, y0, mask) in reference.people.get(covered.frame.index, {}).items():
                part = full[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
                hidden = part[mask].mean()
                seen[ahead] += hidden < HALF
                if hidden < ENOUGH:
                    left[ahead].append((track, covered.frame.index))

    for result in pose2seg.stream(clip, max_frames=frames):
        count += 1
        last_s = result.frame.pts_s
        first_s = last_s if first_s is None else first_s
        maker.of(result)
        for track, (x0, y0, mask) in reference.people.get(result.frame.index, {}).items():
            for person in result.people:
                part = person.mask[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
                both = int((part & mask).sum())
                if both / max(1, int(mask.sum()) + int(person.crop.mask.sum()) - both) >= MATCH_IOU:
                    found[track].append(result.frame.index)
        for ahead, line in lines.items():
            started = time.perf_counter()
            due = line.of(result)
            ms[ahead] += 1000 * (time.perf_counter() - started)
            note(ahead, due)
    for ahead, line in lines.items():
        note(ahead, line.rest())
    total = reference.person_frames()
    rows = []
    for ahead in aheads:
        late = sum(any(later > frame for later in found[track]) for track, frame in left[ahead])
        rows.append(
            {
                "clip": Path(clip).name,
                "frames": count,
                "fps": round((count - 1) / max(1e-9, last_s - (first_s or 0.0)), 1) if count > 1 else None,
                "ahead": ahead,
                "person_frames": total,
                "uncovered": len(left[ahead]),
                "seen": int(seen[ahead]),
                "late": late,
                "tracks_uncovered": len({track for track, _ in left[ahead]}),
                "frame_share_covered": round(float(share[ahead]) / max(1, count), 4),
                "ms_per_frame": round(float(ms[ahead]) / max(1, count), 3),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, one line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 5, 15, 30])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--reference-side", type=int, default=960)
    parser.add_argument("--reference-threshold", type=float, default=0.15)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} beside the other results")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for clip in options.clips:
        reference = Reference.of(
            clip, long_side=options.reference_side, threshold=options.reference_threshold, frames=options.frames
        )
        rows += uncovered(reference, clip, options.ahead, frames=options.frames)
    print(f"{'clip':32} ahead  people  uncovered  seen  late  tracks  share covered  ms a frame")
    for row in rows:
        print(
            f"{row['clip'][:32]:32} {row['ahead']:5} {row['person_frames']:7} {row['uncovered']:10} {row['seen']:5}"
            f" {row['late']:5}"
            f" {row['tracks_uncovered']:7} {row['frame_share_covered']:14.3f} {row['ms_per_frame']:11.2f}"
        )
    document = {
        "schema": 1,
        "suite": "uncovered",
        "environment": environment(),
        "reference": {"long_side": options.reference_side, "person_threshold": options.reference_threshold},
        "min_frames": MIN_FRAMES,
        "enough": ENOUGH,
        "load_average_1min": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "rows": rows,
    }
    if options.save:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
