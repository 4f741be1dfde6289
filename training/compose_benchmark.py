"""An occlusion benchmark out of cut-out people: pictures, exact masks and joints, as COCO and as OCHuman.

    python -m training.compose_benchmark --data DATA --output DIR [--seed N] [--scenes N] [--mix 1 1 1]
    [--recipe training/ablation.json] [--seen-by RECIPE.json ...]

Scenes are made for a chosen MaxIoU (`training.occluded_scenes`): general below 0.5, moderate from 0.5 to 0.75, hard
from 0.75. People are cut out of the tenth of each set that `hold_back_tenth` keeps out of training
(`training.holdout`); ``--seen-by`` also leaves out whoever a run with that recipe learned from. Scene i depends on the
seed and on i alone, so a shorter benchmark is the beginning of a longer one, and the same command with the same
library versions on the same kind of processor writes the same bytes; benchmark.json lists their SHA-256.

Written are images/*.png; annotations.json (COCO; `segmentation` is what is seen; of our own `amodal_segmentation` is
the body as far as it lies in the picture, hidden parts too, `joint_flags` says of each joint visible, occluded, outside
or unlabelled, `amodal_keypoints` keeps those outside, `max_iou` of the boxes of what is seen, `visible_share`, `depth`
0 is furthest back, `cutout` the photograph and the person in it); ochuman.json, as the authors of OCHuman write theirs;
benchmark.json; max_iou.png, histograms; sheet.png, some scenes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import track

from kernels.coordinates import F64, U8
from kernels.skeleton import JOINT_NAMES, LIMBS
from training.compose import Cutout, cut_out_people, random_crop, read_pictures
from training.dataset import DataError, Scene, greatest_iou, open_source
from training.holdout import held_back_ids, unseen_ids
from training.occluded_scenes import MAX_IOU_PARTS, OccludedScene, compose_occluded
from training.ochuman import KEYPOINT_NAMES, MARKS
from training.pixel_outlines import pixel_outlines
from training.settings import TrainSettings, settings_from_json

RECIPE = Path(__file__).parent / "ablation.json"
CANVAS = (384, 512)  # height, width, px
SHEET_SCENES = 12
FORMAT = 1  # of benchmark.json


def read_recipe(path: Path, data: Path) -> TrainSettings:
    """A recipe's settings.

    Raises:
        DataError: no recipe; names the file.
    """
    try:
        return settings_from_json(json.loads(path.read_text()), data=data, output=data)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a recipe of training.train: {error}") from error


class HeldBackPeople:
    """The cut-out people and backgrounds that a benchmark may show.

    Args:
        recipe: its sources with a `cutout_weight`, and its backgrounds.
        seen_by: recipes of runs that must not have learned from anybody here.

    Raises:
        DataError: nobody, or no background, is left.
    """

    def __init__(self, recipe: TrainSettings, seen_by: Sequence[TrainSettings] = ()) -> None:
        self.groups: list[list[Cutout]] = []
        weights = []
        self.counts: dict[str, int] = {}
        for source in recipe.sources:
            if source.cutout_weight <= 0:
                continue
            folder = open_source(recipe.data, source)
            kept = held_back_ids(folder.photos)
            for other in seen_by:
                for theirs in other.sources:
                    if theirs.annotations == source.annotations and theirs.cutout_weight + theirs.photo_weight > 0:
                        kept &= unseen_ids(folder.photos, theirs)
            everything_else = {photo.image_id for photo in folder.photos} - kept
            name = Path(source.annotations).parent.name
            people = [
                replace(cutout, origin=f"{name}/{cutout.origin}")
                for cutout in cut_out_people(folder, without=everything_else)
            ]
            self.counts[source.annotations] = len(people)
            if people:
                self.groups.append(people)
                weights.append(source.cutout_weight)
        if not self.groups:
            raise DataError(
                "nobody is left to compose scenes of: the recipe needs a source with masks, keypoints and "
                "cutout_weight > 0, with pictures in its held-back tenth (training/holdout.py) that no run of a "
                "--seen-by recipe learned from"
            )
        self.share = np.array(weights) / sum(weights)
        self.backgrounds = [picture for folder in recipe.backgrounds for picture in read_pictures(recipe.data / folder)]
        if not self.backgrounds:
            raise DataError(f"no pictures without people in {', '.join(recipe.backgrounds) or 'the recipe'}")

    def scene(self, seed: int, index: int, part: str, height: int, width: int) -> OccludedScene:
        """Scene ``index``; a function of its arguments."""
        rng = np.random.default_rng((seed, index))

        def person() -> Cutout:
            group = self.groups[int(rng.choice(len(self.groups), p=self.share))]
            return group[rng.integers(len(group))]

        return compose_occluded(
            rng,
            person,
            lambda: random_crop(rng, self.backgrounds, height, width),
            part=part,
            height=height,
            width=width,
        )


def parts_of(mix: Sequence[float], scenes: int) -> list[str]:
    """Which part each scene is made for: always the one that lags furthest behind its share.

    Args:
        mix: how many scenes of each of `MAX_IOU_PARTS`, in relation to each other.
        scenes: how many.
    """
    share = np.array(mix, np.float64)
    if share.shape != (len(MAX_IOU_PARTS),) or not np.isfinite(share).all() or (share < 0).any() or share.sum() == 0:
        raise DataError(f"--mix takes {len(MAX_IOU_PARTS)} numbers of at least 0, one of them above, got {list(mix)}")
    share /= share.sum()
    made = np.zeros(len(share))
    names = list(MAX_IOU_PARTS)
    result = []
    for number in range(1, scenes + 1):
        chosen = int(np.argmax(share * number - made))
        made[chosen] += 1
        result.append(names[chosen])
    return result


def _rle(mask: Any) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}


def _xywh(box: F64) -> list[float]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _flat(pose: Any) -> list[float]:
    return [round(float(value), 2) for value in pose.reshape(-1)]


def coco_entries(scene: OccludedScene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of everybody in a scene, with our own fields; see the module docstring."""
    boxes, whole_boxes, visible, flags = scene.boxes(), scene.whole_boxes(), scene.visible, scene.joint_flags()
    max_iou, whole_max_iou = greatest_iou(boxes), greatest_iou(whole_boxes)
    return [
        {
            "id": first_id + person,
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": _xywh(boxes[person]),
            "area": int(visible[person].sum()),
            "segmentation": _rle(visible[person]),
            "keypoints": _flat(pose),
            "num_keypoints": int((pose[:, 2] > 0).sum()),
            "joint_flags": flags[person],
            "amodal_segmentation": _rle(scene.whole[person]),
            "amodal_bbox": _xywh(whole_boxes[person]),
            "amodal_keypoints": _flat(scene.placed_keypoints[person]),
            "max_iou": round(float(max_iou[person]), 4),
            "amodal_max_iou": round(float(whole_max_iou[person]), 4),
            "visible_share": round(float(visible[person].sum() / scene.whole[person].sum()), 4),
            "depth": person,
            "cutout": scene.cutouts[person].origin,
        }
        for person, pose in enumerate(scene.keypoints)
    ]


def ochuman_entry(scene: OccludedScene, image_id: int, file_name: str) -> dict[str, Any]:
    """A picture as OCHuman's own file has it; head and neck, which nobody knows, are missing."""
    boxes, visible = scene.boxes(), scene.visible
    max_iou = greatest_iou(boxes)
    height, width = scene.labels.shape
    people = []
    for person, pose in enumerate(scene.keypoints):
        of_v = {0: MARKS["missing"], 1: MARKS["others_occluded"], 2: MARKS["vis"]}
        flat: list[float] = []
        for name in KEYPOINT_NAMES:
            x, y, v = pose[JOINT_NAMES.index(name)] if name in JOINT_NAMES else (0, 0, 0)
            flat += [round(float(x), 2), round(float(y), 2), of_v[int(v)]]
        outer, inner = pixel_outlines(visible[person].astype(np.uint8))
        people.append(
            {
                "bbox": boxes[person].tolist(),
                "keypoints": flat,
                "segms": {"outer": outer, "inner": inner, "height": height, "width": width},
                "max_iou": round(float(max_iou[person]), 4),
            }
        )
    size = {"width": width, "height": height}
    return {"image_id": f"{image_id:06d}", "file_name": file_name, **size, "annotations": people}


def drawable(scene: OccludedScene) -> Scene:
    """The scene as `training.preview` draws it."""
    return Scene(
        image=scene.image,
        labels=scene.labels,
        keypoints=scene.keypoints,
        has_mask=np.ones(len(scene.keypoints), np.uint8),
        complete=True,
        max_iou=greatest_iou(scene.boxes()),
    )


def compose(
    people: HeldBackPeople,
    output: Path,
    *,
    seed: int,
    scenes: int,
    mix: Sequence[float] = (1, 1, 1),
    canvas: tuple[int, int] = CANVAS,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a benchmark; returns what benchmark.json says. The folder appears when all of it is there.

    Raises:
        DataError: the folder exists, or scenes cannot be composed.
    """
    from training.preview import draw_scene, sheet_of

    if output.exists():
        raise DataError(f"{output} exists: give --output a new folder, or remove it")
    height, width = canvas
    parts = parts_of(mix, scenes)
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    (partial / "images").mkdir(parents=True)
    try:
        hashes: dict[str, str] = {}
        images, annotations, pictures, tiles = [], [], [], []
        steps: Iterator[int] = iter(track(range(scenes), "compose")) if progress else iter(range(scenes))
        for index in steps:
            scene = people.scene(seed, index, parts[index], height, width)
            name = f"{index + 1:06d}.png"
            hashes[f"images/{name}"] = _write_png(partial / "images" / name, scene.image)
            images.append({"id": index + 1, "file_name": name, "width": width, "height": height, "part": scene.part})
            annotations += coco_entries(scene, index + 1, len(annotations) + 1)
            pictures.append(ochuman_entry(scene, index + 1, name))
            if len(tiles) < SHEET_SCENES:
                tiles.append(draw_scene(drawable(scene)))
        skeleton = [[int(a) + 1, int(b) + 1] for a, b in LIMBS]
        category = {"id": 1, "name": "person", "keypoints": list(JOINT_NAMES), "skeleton": skeleton}
        coco = {"images": images, "annotations": annotations, "categories": [category]}
        ochuman = {"keypoint_names": list(KEYPOINT_NAMES), "keypoint_visible": MARKS, "images": pictures}
        for file_name, content in (("annotations.json", coco), ("ochuman.json", ochuman)):
            data = (json.dumps(content) + "\n").encode()
            (partial / file_name).write_bytes(data)
            hashes[file_name] = hashlib.sha256(data).hexdigest()
        _write_png(partial / "sheet.png", sheet_of(tiles, 3))
        made = {
            "format": FORMAT,
            "seed": seed,
            "scenes": scenes,
            "mix": dict(zip(MAX_IOU_PARTS, map(float, mix), strict=True)),
            "canvas": list(canvas),
            "cutouts": people.counts,
            "backgrounds": len(people.backgrounds),
            "people": len(annotations),
            "people_by_max_iou": count_by_part([entry["max_iou"] for entry in annotations]),
            "cutouts_shown": len({entry["cutout"] for entry in annotations}),
            "versions": {"numpy": np.__version__, "opencv": cv2.__version__},
            "sha256": hashes,
        }
        draw_histograms(
            annotations, partial / "max_iou.png", f"{scenes:,} composed scenes, {len(annotations):,} people"
        )
        (partial / "benchmark.json").write_text(json.dumps(made, indent=1) + "\n")
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return made


def count_by_part(max_iou: Sequence[float]) -> dict[str, int]:
    """How many people each of `MAX_IOU_PARTS` has."""
    values = np.array(max_iou, np.float64)
    return {name: int(((values >= low) & (values < high)).sum()) for name, (low, high) in MAX_IOU_PARTS.items()}


def _write_png(path: Path, image: U8) -> str:
    """Write RGB losslessly; returns the SHA-256 of the file."""
    done, packed = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"{path}: OpenCV could not encode a PNG of {image.shape[1]}x{image.shape[0]} px")
    data = packed.tobytes()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def draw_histograms(annotations: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """People by MaxIoU, in the colours of its parts, and by the share of them that is seen; PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    max_iou = np.array([entry["max_iou"] for entry in annotations])
    seen = np.array([entry["visible_share"] for entry in annotations])
    bins = np.linspace(0, 1, 21)
    for axis, values in ((left, max_iou), (right, seen)):
        groups = [values[(max_iou >= low) & (max_iou < high)] for low, high in MAX_IOU_PARTS.values()]
        labels = [f"{name}: {len(group):,}" for name, group in zip(MAX_IOU_PARTS, groups, strict=True)]
        axis.hist(groups, bins, stacked=True, label=labels, color=("#9aa5b1", "#4a90d9", "#d9534f"))
    left.set(xlabel="MaxIoU of the boxes of what is seen", ylabel="people")
    right.set(xlabel="share of the body that is seen")
    left.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.compose_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder the recipe's sources are relative to")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="names the sources and the backgrounds")
    parser.add_argument(
        "--seen-by",
        type=Path,
        action="append",
        default=[],
        metavar="RECIPE.json",
        help="leave out everybody that a run with this recipe learned from; may be given again",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=300, help="how many, at least 1")
    parser.add_argument(
        "--mix",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        metavar=("GENERAL", "MODERATE", "HARD"),
        help="scenes of each kind in relation to each other",
    )
    parser.add_argument(
        "--canvas", type=int, nargs=2, default=CANVAS, metavar=("HEIGHT", "WIDTH"), help="px, default 384 512"
    )
    options = parser.parse_args(arguments)
    try:
        if options.scenes < 1 or options.seed < 0 or not all(32 <= side <= 4096 for side in options.canvas):
            raise DataError("--scenes must be at least 1, --seed at least 0, and --canvas from 32 to 4096 px")
        people = HeldBackPeople(
            read_recipe(options.recipe, options.data),
            [read_recipe(path, options.data) for path in options.seen_by],
        )
        made = compose(
            people,
            options.output,
            seed=options.seed,
            scenes=options.scenes,
            mix=options.mix,
            canvas=tuple(options.canvas),
            progress=sys.stderr.isatty(),
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count:,} {part}" for part, count in made["people_by_max_iou"].items())
    shown = f"{made['cutouts_shown']} of {sum(made['cutouts'].values())} cut-outs"
    print(f"{options.output}: {made['scenes']:,} scenes, {made['people']:,} people ({counts}), {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
