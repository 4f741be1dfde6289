"""The occlusion benchmark: bytes by seed, MaxIoU as wanted, exact masks and joints, and who may be in it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.training.drawn_people import tiny_settings, write_backgrounds, write_people
from training.compose import Cutout
from training.compose_benchmark import HeldBackPeople, compose, main, parts_of, read_recipe
from training.dataset import LABEL_COVERED, CocoFolder, DataError, decode_mask, greatest_iou
from training.occluded_scenes import (
    MAX_IOU_PARTS,
    MIN_VISIBLE_PX,
    MIN_VISIBLE_SHARE,
    OccludedScene,
    compose_occluded,
)
from training.ochuman import coco_from_ochuman

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 128, 160


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a recipe; pictures 1 to 12, of which 5 is in the held-back tenth, and its double 12."""
    folder = tmp_path_factory.mktemp("held")
    write_people(folder / "people", pictures=12)
    file = folder / "people" / "annotations.json"
    content = json.loads(file.read_text())
    content["images"][4]["near_duplicate_group"] = content["images"][11]["near_duplicate_group"] = 3
    file.write_text(json.dumps(content))
    write_backgrounds(folder / "backgrounds")
    recipe = tiny_settings(folder, folder / "out").to_json()
    recipe["sources"][0]["hold_back_tenth"] = True
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def people(held: Path) -> HeldBackPeople:
    return HeldBackPeople(read_recipe(held / "recipe.json", held))


@pytest.fixture(scope="module")
def made(held: Path, people: HeldBackPeople, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "scenes"
    compose(people, folder, seed=7, scenes=9, canvas=(HEIGHT, WIDTH))
    return folder


def sums(folder: Path) -> dict[str, str]:
    names = [*sorted(p.relative_to(folder).as_posix() for p in folder.glob("images/*")), "annotations.json"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in [*names, "ochuman.json"]}


def test_another_process_writes_the_same_bytes_and_says_which(held: Path, made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.compose_benchmark", "--data", held, "--recipe", held / "recipe.json"]
    command += ["--output", tmp_path / "again", "--seed", "7", "--scenes", "9", "--canvas", str(HEIGHT), str(WIDTH)]
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "9 scenes" in done.stdout
    assert sums(tmp_path / "again") == sums(made)
    document = json.loads((tmp_path / "again" / "benchmark.json").read_text())
    assert document["sha256"] == sums(made)
    assert document["people"] == len(json.loads((made / "annotations.json").read_text())["annotations"])


def test_a_shorter_benchmark_is_the_beginning_and_another_seed_is_another(
    people: HeldBackPeople, made: Path, tmp_path: Path
) -> None:
    compose(people, tmp_path / "short", seed=7, scenes=4, canvas=(HEIGHT, WIDTH))
    compose(people, tmp_path / "other", seed=8, scenes=4, canvas=(HEIGHT, WIDTH))
    pictures = {k: v for k, v in sums(tmp_path / "short").items() if k.endswith(".png")}
    assert pictures == {k: v for k, v in sums(made).items() if k in pictures} and len(pictures) == 4
    assert not set(pictures.values()) & set(sums(tmp_path / "other").values())


def check(scene: OccludedScene, part: str) -> None:
    n = len(scene.keypoints)
    low, high = MAX_IOU_PARTS[part]
    assert low <= greatest_iou(scene.boxes()).max() < high
    visible, whole = scene.visible, scene.whole
    assert whole.shape == (n, *scene.labels.shape) and scene.image.shape == (*scene.labels.shape, 3)
    assert not (visible & ~whole).any()  # what is seen of a body is a part of it
    assert (visible.sum(0) <= 1).all()  # one person a px
    # Hidden px of a body are exactly those that somebody later or a thing has painted over.
    later = (scene.labels[None] > np.arange(1, n + 1)[:, None, None]) & whole
    np.testing.assert_array_equal(whole & ~visible, later)
    assert (visible.sum((1, 2)) >= np.maximum(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * whole.sum((1, 2)))).all()
    height, width = scene.labels.shape
    for person, (pose, placed, flags) in enumerate(
        zip(scene.keypoints, scene.placed_keypoints, scene.joint_flags(), strict=True), 1
    ):
        for (x, y, v), (px, py, pv), flag in zip(pose.tolist(), placed.tolist(), flags, strict=True):
            inside = -0.5 < px < width - 0.5 and -0.5 < py < height - 0.5
            if pv == 0:
                assert flag == "unlabelled" and (x, y, v) == (0, 0, 0)
            elif not inside:
                assert flag == "outside" and (x, y, v) == (0, 0, 0)
            else:
                assert (x, y) == pytest.approx((px, py), abs=1e-3)
                on_top = scene.labels[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)]
                assert flag == ("occluded" if on_top > person else "visible")
                assert v == (1 if flag == "occluded" else 2)


@given(st.integers(0, 10**6), st.sampled_from(sorted(MAX_IOU_PARTS)))
@settings(max_examples=25)
def test_every_scene_is_what_it_says(people: HeldBackPeople, seed: int, part: str) -> None:
    check(people.scene(seed, 0, part, HEIGHT, WIDTH), part)


def test_both_formats_hold_the_same_people_and_are_read_back(people: HeldBackPeople, made: Path) -> None:
    document = json.loads((made / "annotations.json").read_text())
    truth = COCO(made / "annotations.json")
    photos = CocoFolder(made / "annotations.json", made / "images").photos
    ochuman = json.loads((made / "ochuman.json").read_text())
    ours = coco_from_ochuman(ochuman)
    parts = parts_of((1, 1, 1), 9)
    assert parts.count("general") == parts.count("moderate") == parts.count("hard") == 3
    theirs = iter(ours["annotations"])
    for index, photo in enumerate(photos):
        scene = people.scene(7, index, parts[index], HEIGHT, WIDTH)
        picture = cv2.cvtColor(cv2.imread(str(made / "images" / photo.file_name)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(picture, scene.image)  # lossless
        entries = truth.loadAnns(truth.getAnnIds(imgIds=[photo.image_id]))
        assert len(entries) == len(photo.people) == len(scene.keypoints)
        for person, (entry, read) in enumerate(zip(entries, photo.people, strict=True)):
            np.testing.assert_array_equal(truth.annToMask(entry), scene.visible[person])
            np.testing.assert_array_equal(decode_mask(read.segmentation, HEIGHT, WIDTH), scene.visible[person])
            amodal = coco_mask.decode(entry["amodal_segmentation"])
            np.testing.assert_array_equal(amodal, scene.whole[person])
            assert entry["area"] == scene.visible[person].sum() and entry["depth"] == person
            assert entry["visible_share"] == pytest.approx(entry["area"] / amodal.sum(), abs=1e-4)
            np.testing.assert_allclose(read.keypoints, scene.keypoints[person], atol=0.006)
            other = next(theirs)
            np.testing.assert_array_equal(coco_mask.decode(other["segmentation"]), scene.visible[person])
            np.testing.assert_allclose(other["keypoints"], entry["keypoints"], atol=1e-6)
            assert other["bbox"] == entry["bbox"]
        np.testing.assert_allclose(
            [e["max_iou"] for e in entries], greatest_iou(np.stack([p.box for p in photo.people])), atol=1e-4
        )
        assert document["images"][index]["part"] == parts[index]
    assert next(theirs, None) is None
    hard = coco_from_ochuman(ochuman, subset="hard")
    assert len(hard["annotations"]) == sum(a["max_iou"] >= 0.75 for a in document["annotations"]) >= 3


def test_only_held_back_people_are_shown(held: Path, people: HeldBackPeople, made: Path) -> None:
    """5 is in the tenth, 12 its near duplicate; nobody else may appear."""
    assert {c.origin for group in people.groups for c in group} == {"people/000005.png#0", "people/000012.png#0"}
    shown = {a["cutout"] for a in json.loads((made / "annotations.json").read_text())["annotations"]}
    assert shown <= {"people/000005.png#0", "people/000012.png#0"}


def test_seen_by_leaves_out_whoever_a_run_learned_from(held: Path) -> None:
    recipe = read_recipe(held / "recipe.json", held)
    (source,) = recipe.sources
    older = replace(recipe, sources=(replace(source, hold_back_tenth=False, holdout_every=6),))
    left = HeldBackPeople(recipe, [older])
    assert {c.origin for group in left.groups for c in group} == {"people/000012.png#0"}
    everything = replace(recipe, sources=(replace(source, hold_back_tenth=False),))
    with pytest.raises(DataError, match="nobody is left to compose scenes of"):
        HeldBackPeople(recipe, [everything])
    elsewhere = replace(recipe, sources=(replace(source, annotations="other/annotations.json"),))
    assert sum(len(g) for g in HeldBackPeople(recipe, [elsewhere]).groups) == 2
    unused = replace(recipe, sources=(replace(source, hold_back_tenth=False, photo_weight=0.0, cutout_weight=0.0),))
    assert sum(len(g) for g in HeldBackPeople(recipe, [unused]).groups) == 2


@pytest.mark.parametrize(
    ("mix", "counts"),
    [((1, 1, 1), (4, 4, 4)), ((0, 0, 2), (0, 0, 12)), ((2, 1, 1), (6, 3, 3)), ((1, 0, 5), (2, 0, 10))],
)
def test_the_mix_is_kept_in_every_beginning(mix: tuple[float, ...], counts: tuple[int, ...]) -> None:
    parts = parts_of(mix, 12)
    assert tuple(parts.count(name) for name in MAX_IOU_PARTS) == counts
    assert parts_of(mix, 5) == parts[:5]


@pytest.mark.parametrize("mix", [(0, 0, 0), (1, -1, 1), (1, 1), (1, float("nan"), 1)])
def test_a_mix_that_is_none_is_refused(mix: Any) -> None:
    with pytest.raises(DataError, match="--mix takes 3 numbers of at least 0"):
        parts_of(mix, 5)


def test_what_cannot_be_composed_is_said(people: HeldBackPeople) -> None:
    """A dot of a person cannot be seen enough: the tries end, with advice."""
    dot = Cutout(
        image=np.zeros((3, 3, 3), np.uint8),
        alpha=np.full((3, 3), 20, np.uint8),
        keypoints=np.zeros((17, 3), np.float32),
        cut_below=False,
    )
    with pytest.raises(DataError, match=r"no hard scene of 64x64 px in \d+ tries.*leave that part out of --mix"):
        compose_occluded(
            np.random.default_rng(0),
            lambda: dot,
            lambda: np.zeros((64, 64, 3), np.uint8),
            part="hard",
            height=64,
            width=64,
        )


def test_an_existing_folder_is_left_alone_and_a_broken_run_leaves_nothing(
    held: Path, people: HeldBackPeople, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("kept")
    with pytest.raises(DataError, match="exists: give --output a new folder"):
        compose(people, mine, seed=0, scenes=1, canvas=(HEIGHT, WIDTH))
    assert (mine / "file").read_text() == "kept"
    with pytest.raises(DataError, match="tries"):
        compose(people, tmp_path / "never", seed=0, scenes=3, mix=(1, 0, 1), canvas=(32, 4096))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenes", "0"], "--scenes must be at least 1"),
        (["--canvas", "8", "100"], "--canvas from 32 to 4096 px"),
        (["--recipe", "missing.json"], "expected a recipe of training.train"),
    ],
)
def test_the_command_says_what_is_wrong(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    given = ["--data", str(held), "--output", str(tmp_path / "out"), "--recipe", str(held / "recipe.json")]
    assert main([*given, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_things_in_front_belong_to_nobody(people: HeldBackPeople) -> None:
    scenes = [people.scene(seed, 0, "general", HEIGHT, WIDTH) for seed in range(40)]
    with_things = [scene for scene in scenes if (scene.labels == LABEL_COVERED).any()]
    assert 3 <= len(with_things) <= 25
    for scene in with_things:
        assert not (scene.visible & (scene.labels == LABEL_COVERED)).any()
