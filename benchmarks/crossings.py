"""Ids on composed crossings with exact truth: switches, IDF1 and HOTA of our tracker beside ByteTrack's.

    python -m pip install --no-deps -r requirements/crossings.txt     # TrackEval and ByteTrack
    python -m benchmarks.crossings --data DIR [--source simulated|model ...] [--seeds 1000:1120] [--save]
    python -m benchmarks.crossings --data DIR --seeds 1000:1012 --sheet runs/crossings.png

Scenes are made of people cut out of pictures that training never saw (`benchmarks.crossing_scenes`). All trackers get
the same poses: either drawn around the truth with the errors of the default model (``simulated``), or what the default
model says about the rendered frames (``model``; kept in ``--cache``, a seed takes some ten seconds). ByteTrack sees the
boxes around the joints that ours sees, and our thresholds; its other values were chosen on the tuning seeds.

Seeds 0 to 99 are for tuning, 1000 to 1119 for reporting: nothing was chosen by what they gave.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.crossing_scenes import JOINTS, Scene, Truth, make_scene, render
from benchmarks.id_measures import SAME, answer, box_overlap, measure_ids, pose_similarity_to_truth
from benchmarks.measure import RESULTS, device, environment
from benchmarks.simulated_poses import FramePoses, simulate
from engines import default_artifact, load_artifact
from kernels.coordinates import F64, U8
from pipeline.smoothing import JointSmoother
from pipeline.stage2_keypoints import KEPT_SHARE
from pipeline.tracking import PersonTracker
from training.compose import Cutout, cut_out, is_in_pieces
from training.dataset import CocoFolder, DataError, decode_mask
from training.evaluated_model import find_people, open_model, picture_plan
from training.holdout import is_held_out

#: Folder, and every how many-th of its pictures training/live.json keeps out of training.
PEOPLE = (("ccp", 25), ("humanseg", 25), ("coco_mini_train", 5))
BACKGROUNDS = "coco_mini_train/backgrounds"
MIN_JOINTS, MIN_HEIGHT_PX, MIN_ASPECT = 14, 100, 1.6
JUMP = 0.05  # of the body height between two frames: a joint found elsewhere, no trembling
RESTING = 0.1  # body heights a second
BOX_MARGIN = 0.1  # joints lie inside a body: what a box tracker gets is a little larger than their box
REPORTED = range(1000, 1120)
SHEET_COLUMNS, SHEET_WIDTH_PX = 8, 320
EXTRA_LIBRARIES = ("trackeval", "trackers", "supervision", "scipy")

Namer = Callable[[FramePoses], NDArray[np.integer[Any]]]
"""Ids of one frame's poses, below 1 for those that are not named; called frame after frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """What the model folder prescribes."""

    joint: float
    person: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One scene as a keypoint network reported it."""

    seed: int
    manoeuvre: str
    fps: float
    frames: Sequence[FramePoses]


def held_out_people(data: Path) -> list[Cutout]:
    """Whole people from the pictures that training never saw.

    Raises:
        DataError: the folder lacks a data set, or hardly anybody is left.
    """
    people = []
    for name, every in PEOPLE:
        folder = CocoFolder(data / name / "annotations.json", data / name / "images")
        for photo in folder.photos:
            if not is_held_out(photo.image_id, every):
                continue
            for person in photo.people:
                if person.segmentation is None or person.crowd or (person.keypoints[:, 2] > 0).sum() < MIN_JOINTS:
                    continue
                mask = decode_mask(person.segmentation, photo.height, photo.width)
                if is_in_pieces(mask):
                    continue
                cutout = cut_out(folder.image(photo), mask, person.keypoints)
                height, width = cutout.alpha.shape
                if height > MIN_ASPECT * width and height >= MIN_HEIGHT_PX and not cutout.cut_below:
                    people.append(cutout)
    if len(people) < 4:
        raise DataError(f"{data}: expected at least 4 whole people in pictures kept out of training, got {len(people)}")
    return people


def pictures_without_people(data: Path) -> list[U8]:
    """All backgrounds, RGB."""
    paths = sorted((data / BACKGROUNDS).glob("*.jpg"))
    return [cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for path in paths]


def simulated(scenes: Sequence[Scene]) -> Iterator[Clip]:
    for scene in scenes:
        yield _clip(scene, simulate(scene))


def reported_by_model(scenes: Sequence[Scene], folder: Path, cache: Path) -> Iterator[Clip]:
    """What a model says about rendered scenes; scenes that it was shown before are read from the cache."""
    model, long_side = open_model(folder)
    kept_from = KEPT_SHARE * load_artifact(folder).person_threshold
    key = hashlib.sha256((folder / "keypoints.onnx").read_bytes()).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        path = cache / f"{scene.seed}.npz"
        said = _cached(path, key)
        if said is None:
            said = []
            for image, _ in render(scene):
                assert image is not None
                found, _ = find_people(model, image, picture_plan(model, *image.shape[:2], long_side))
                kept = found.scores >= kept_from
                said.append((found.keypoints[kept], found.scores[kept]))
            counts = np.array([len(scores) for _, scores in said])
            keypoints = np.concatenate([keypoints for keypoints, _ in said]).reshape(-1, JOINTS, 3)
            part = path.with_suffix(".part.npz")
            np.savez(part, key=key, counts=counts, keypoints=keypoints, scores=np.concatenate([s for _, s in said]))
            os.replace(part, path)
        frames = (
            FramePoses(keypoints=keypoints, scores=scores, truth=truth, owners=np.full(len(scores), -1))
            for (keypoints, scores), (_, truth) in zip(said, render(scene, pictures=False), strict=True)
        )
        yield _clip(scene, frames)


def _cached(path: Path, key: str) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]] | None:
    try:
        with np.load(path) as stored:
            if str(stored["key"]) != key:
                return None
            ends = np.cumsum(stored["counts"])[:-1]
            return list(zip(np.split(stored["keypoints"], ends), np.split(stored["scores"], ends), strict=True))
    except (FileNotFoundError, zipfile.BadZipFile):
        return None


def _clip(scene: Scene, frames: Iterator[FramePoses]) -> Clip:
    """The frames without their pictures of labels, which nobody looks at any more."""
    bare = [replace(f, truth=replace(f.truth, labels=np.zeros((0, 0), np.uint8))) for f in frames]
    return Clip(seed=scene.seed, manoeuvre=scene.manoeuvres[0], fps=scene.fps, frames=bare)


def pose_boxes(frame: FramePoses, joint_threshold: float) -> F64:
    """(N, 4) x0, y0, x1, y1 around the joints that count, with a margin."""
    boxes = np.zeros((len(frame.keypoints), 4))
    for n, pose in enumerate(frame.keypoints.astype(np.float64)):
        counted = pose[:, 2] >= joint_threshold
        points = pose[counted, :2] if counted.any() else pose[:, :2]
        low, high = points.min(axis=0), points.max(axis=0)
        margin = BOX_MARGIN * (high - low) + 0.5
        boxes[n] = *(low - margin), *(high + margin)
    return boxes


def our_tracker(clip: Clip, thresholds: Thresholds, tracker: PersonTracker | None = None) -> Namer:
    """As `pipeline.stage3_affine` uses it."""
    tracker = tracker or PersonTracker()

    def name(frame: FramePoses) -> NDArray[np.integer[Any]]:
        confidence = frame.keypoints[:, :, 2]
        return tracker.assign(
            frame.keypoints,
            (confidence >= thresholds.joint) & (confidence > 0),
            frame.scores >= thresholds.person,
            clip=clip.seed,
            time_s=frame.truth.time_s,
        )

    return name


class OptimalTracker(PersonTracker):
    """Ours with an assignment solver in place of taking the best pair first."""

    @staticmethod
    def pairs(values: F64) -> list[tuple[int, int]]:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(-values)
        return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if values[r, c] > 0]


def box_tracker(clip: Clip, thresholds: Thresholds, *, kind: str, **options: Any) -> Namer:
    """ByteTrack or OC-SORT of the ``trackers`` package on the boxes of the same poses."""
    import supervision
    import trackers

    kinds = {"bytetrack": trackers.ByteTrackTracker, "ocsort": trackers.OCSORTTracker}
    tracker = kinds[kind](
        frame_rate=clip.fps,
        high_conf_det_threshold=thresholds.person,
        **{"minimum_consecutive_frames": 1, "lost_track_buffer": 60, "minimum_iou_threshold": 0.1, **options},
    )

    def name(frame: FramePoses) -> NDArray[np.integer[Any]]:
        count = len(frame.scores)
        detections = supervision.Detections(
            xyxy=pose_boxes(frame, thresholds.joint),
            confidence=frame.scores.astype(np.float64),
            class_id=np.zeros(count, int),
            data={"row": np.arange(count)},
        )
        said = tracker.update(detections)
        ids = np.zeros(count, np.int64)
        if len(said):
            ids[said.data["row"]] = said.tracker_id + 1  # theirs start at 0, and -1 is nobody
        return ids

    return name


def contestants(thresholds: Thresholds) -> dict[str, Callable[[Clip], Namer]]:
    start = {"track_activation_threshold": thresholds.person}
    return {
        "ours": lambda clip: our_tracker(clip, thresholds),
        "ours, optimal assignment": lambda clip: our_tracker(clip, thresholds, OptimalTracker()),
        "ByteTrack": lambda clip: box_tracker(clip, thresholds, kind="bytetrack", **start),
        "OC-SORT": lambda clip: box_tracker(clip, thresholds, kind="ocsort"),
    }


def compare(clips: Sequence[Clip], thresholds: Thresholds) -> list[dict[str, Any]]:
    """One row per contestant and way to compare with the truth, with the switches of each manoeuvre."""
    named = {name: {c.seed: _names(c, make(c)) for c in clips} for name, make in contestants(thresholds).items()}
    rows = []
    for by in ("poses", "boxes"):
        similarities = {c.seed: [_similarity(frame, by, thresholds) for frame in c.frames] for c in clips}
        for name, ids in named.items():
            answers = {
                str(clip.seed): [
                    answer(similarity, frame.truth.asked_for, frame_ids)
                    for frame, similarity, frame_ids in zip(
                        clip.frames, similarities[clip.seed], ids[clip.seed], strict=True
                    )
                ]
                for clip in clips
            }
            manoeuvres: dict[str, dict[str, int]] = {}
            for manoeuvre in sorted({clip.manoeuvre for clip in clips}):
                chosen = {str(c.seed): answers[str(c.seed)] for c in clips if c.manoeuvre == manoeuvre}
                figures = measure_ids(chosen)
                manoeuvres[manoeuvre] = {"sequences": len(chosen), "switches": int(figures["switches"])}
            rows.append({"tracker": name, "compared_by": by, **measure_ids(answers), "manoeuvres": manoeuvres})
    return rows


def _names(clip: Clip, namer: Namer) -> list[NDArray[np.integer[Any]]]:
    return [namer(frame) for frame in clip.frames]


def _similarity(frame: FramePoses, by: str, thresholds: Thresholds) -> F64:
    if by == "poses":
        return pose_similarity_to_truth(frame.keypoints.astype(np.float64), frame.truth.keypoints)
    return box_overlap(frame.truth.boxes, pose_boxes(frame, thresholds.joint))


def smoothing(clips: Sequence[Clip], thresholds: Thresholds, smoother: Callable[[], JointSmoother]) -> dict[str, float]:
    """What smoothing does to joints that are seen, on the ids that ours gives.

    Returns:
        jitter_raw, jitter_smoothed: root mean square of how much a joint's error changes from frame to frame where
        the joint truly rests (slower than `RESTING`), as a share of the body height, leaving out changes of more than
        `JUMP`, which no filter is meant for;
        lag_s: how much later smoothed joints are where they should be than raw ones, by least squares of the error on
        the true velocity; error_raw, error_smoothed: mean distance from the truth over body height.
    """
    changes: dict[str, list[F64]] = {"raw": [], "smoothed": []}
    errors: dict[str, list[F64]] = {"raw": [], "smoothed": []}
    late, moved = {"raw": 0.0, "smoothed": 0.0}, 0.0
    for clip in clips:
        names, filtered = our_tracker(clip, thresholds), smoother()
        before: dict[tuple[int, int], tuple[NDArray[np.bool_], F64, dict[str, F64]]] = {}
        for frame in clip.frames:
            ids = names(frame)
            visible = frame.keypoints[:, :, 2] >= thresholds.joint
            time_s = frame.truth.time_s
            stiller = filtered.smooth(
                ids[ids > 0].astype(np.int32), frame.keypoints[ids > 0], visible[ids > 0], clip=clip.seed, time_s=time_s
            )
            smoothed = frame.keypoints.copy()
            smoothed[ids > 0] = stiller
            similarity = pose_similarity_to_truth(frame.keypoints.astype(np.float64), frame.truth.keypoints)
            now = {}
            for row in np.flatnonzero(ids > 0).tolist():
                person = int(similarity[:, row].argmax())
                true = frame.truth.keypoints[person]
                if similarity[person, row] < SAME:
                    continue
                height = float(np.ptp(true[true[:, 2] > 0, 1]))
                seen = visible[row] & (true[:, 2] == 2)
                error = {
                    name: (points[row, :, :2] - true[:, :2]) / height
                    for name, points in (("raw", frame.keypoints), ("smoothed", smoothed))
                }
                key = (int(ids[row]), person)
                now[key] = (seen, true[:, :2] / height, error)
                if key not in before:
                    continue
                both = seen & before[key][0]
                velocity = (true[:, :2] / height - before[key][1]) * clip.fps
                both &= np.hypot(*(error["raw"] - before[key][2]["raw"]).T) < JUMP
                moved += float((velocity[both] ** 2).sum())
                rests = both & (np.hypot(*velocity.T) < RESTING)
                for name, values in error.items():
                    changes[name].append((values - before[key][2][name])[rests])
                    errors[name].append(np.hypot(*values[both].T))
                    late[name] -= float((values[both] * velocity[both]).sum())
            before = now
    jitter = {name: float(np.sqrt((np.concatenate(c) ** 2).sum(axis=1).mean())) for name, c in changes.items()}
    error_means = {name: float(np.concatenate(e).mean()) for name, e in errors.items()}
    return {
        "jitter_raw": jitter["raw"],
        "jitter_smoothed": jitter["smoothed"],
        "jitter_ratio": jitter["raw"] / jitter["smoothed"],
        "lag_s": (late["smoothed"] - late["raw"]) / moved,
        "error_raw": error_means["raw"],
        "error_smoothed": error_means["smoothed"],
    }


def draw_sheet(scenes: Sequence[Scene]) -> U8:
    """One row of frames per scene, RGB: boxes of those who are asked for, seen joints green and hidden ones red."""
    rows = []
    for scene in scenes:
        wanted = set(np.linspace(0, scene.frames - 1, SHEET_COLUMNS).astype(int).tolist())
        cells = [_cell(image, truth) for i, (image, truth) in enumerate(render(scene)) if i in wanted]
        text = f"{scene.seed}: {', '.join(scene.manoeuvres)}, {scene.fps:g} fps"
        cv2.putText(cells[0], text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(np.hstack(cells))
    return np.vstack(rows)


def _cell(image: U8 | None, truth: Truth) -> U8:
    assert image is not None
    for pose, box, asked in zip(truth.keypoints, truth.boxes, truth.asked_for, strict=True):
        x0, y0, x1, y1 = box.astype(int).tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), (255, 255, 0) if asked else (255, 0, 255), 1)
        for x, y, v in pose[pose[:, 2] > 0]:
            cv2.circle(image, (round(x), round(y)), 2, (0, 255, 0) if v == 2 else (255, 0, 0), -1)
    return cv2.resize(image, (SHEET_WIDTH_PX, SHEET_WIDTH_PX * 9 // 16), interpolation=cv2.INTER_AREA)


def show(source: str, rows: Sequence[Mapping[str, Any]]) -> None:
    first = rows[0]
    table = Table(
        title=f"{source}: {first['sequences']} sequences, {first['people']} people, {first['truths']} times seen"
    )
    table.add_column("compared by")
    table.add_column("tracker")
    columns = ("switches", "sequences_with_a_switch", "IDF1", "HOTA", "AssA", "DetA", "recall", "precision")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        figures = (str(row[c]) if isinstance(row[c], int) else f"{row[c]:.3f}" for c in columns)
        table.add_row(row["compared_by"], row["tracker"], *figures)
    Console(width=150).print(table)


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with " + ", ".join(name for name, _ in PEOPLE))
    parser.add_argument("--source", choices=("simulated", "model"), action="append", help="both by default")
    parser.add_argument("--seeds", type=_seeds, default=REPORTED, metavar="FIRST:END")
    parser.add_argument("--model", type=Path, default=default_artifact())
    parser.add_argument("--cache", type=Path, default=Path("runs/crossings"), help="what the model said is kept here")
    parser.add_argument("--sheet", type=Path, help="draw the scenes into this picture instead of measuring")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/crossings.json")
    options = parser.parse_args()
    people, backgrounds = held_out_people(options.data), pictures_without_people(options.data)
    scenes = [make_scene(seed, people, backgrounds) for seed in options.seeds]
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(options.sheet), cv2.cvtColor(draw_sheet(scenes), cv2.COLOR_RGB2BGR))
        print(f"{options.sheet}: {len(scenes)} scenes")
        return
    artifact = load_artifact(options.model)
    thresholds = Thresholds(joint=artifact.joint_threshold, person=artifact.person_threshold)
    rows, stillness = [], {}
    for source in options.source or ("simulated", "model"):
        make = simulated(scenes) if source == "simulated" else reported_by_model(scenes, options.model, options.cache)
        clips = list(track(make, description=source, total=len(scenes), disable=not Console().is_terminal))
        compared = compare(clips, thresholds)
        show(source, compared)
        rows += [{"source": source, **row} for row in compared]
        stillness[source] = smoothing(clips, thresholds, JointSmoother)
    document = {
        "schema": 1,
        "suite": "crossings",
        "environment": environment() | {"trackers": {name: metadata.version(name) for name in EXTRA_LIBRARIES}},
        "rows": rows,
        "notes": {
            "seeds": f"{options.seeds.start}:{options.seeds.stop}",
            "cut_outs": len(people),
            "smoothing": stillness,
        },
    }
    if options.save:
        target = RESULTS / device() / "crossings.json"
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
