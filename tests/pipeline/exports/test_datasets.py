"""Label folders, read back: COCO and CVAT by pycocotools, YOLO by a strict reader; kills, names, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from pipeline.build import make_sinks
from pipeline.errors import SettingsError, SinkError
from pipeline.exports import datasets
from pipeline.settings import Settings
from pipeline.stage6_sinks import WriteStage
from tests.layer_results import Box, result_of

LEFT: Box = (20.0, 30.0, 50.0, 100.0)
RIGHT: Box = (100.0, 25.0, 135.0, 105.0)
EDGE: Box = (-12.0, 20.0, 18.0, 90.0)
KINDS = ("coco", "cvat", "yolo-pose", "yolo-seg")


def exported(folder: Path, results, *kinds: str, **options) -> Path:
    texts = tuple(f"{kind}={folder / kind}" for kind in kinds)
    stage = WriteStage(make_sinks(Settings(source="in.mp4", export=texts, **options), None))
    try:
        for result in results:
            stage.process(result)
    finally:
        stage.close()
    return folder


def some_results():
    return [result_of({1: LEFT, 2: RIGHT}), result_of({}, number=1), result_of({2: RIGHT, 5: EDGE}, number=2)]


def read_yolo(folder: Path, values_of_row: int | None) -> dict[str, list[list[float]]]:
    """What Ultralytics demands of labels: a text for each picture, numbers only, all in 0..1, of one length or even."""
    found = {}
    config = yaml.safe_load((folder / "data.yaml").read_text())
    assert config["names"] == {0: "person"}
    assert "path" not in config  # without it Ultralytics takes the folder of the file, wherever it is
    pictures = sorted((folder / config["train"]).glob("*.jpg"))
    assert pictures and (folder / config["val"]).is_dir()
    labels = folder / config["train"].replace("images", "labels")
    assert {path.stem for path in labels.glob("*.txt")} == {path.stem for path in pictures}
    assert len(list(labels.iterdir())) == len(pictures)
    for path in pictures:
        rows = []
        for line in (labels / f"{path.stem}.txt").read_text().splitlines():
            first, *texts = line.split(" ")
            assert first == "0"
            values = [float(text) for text in texts]
            assert all(0 <= value <= 1 for value in values if value not in {0.0, 1.0, 2.0})
            assert len(values) == values_of_row if values_of_row else len(values) >= 6 and len(values) % 2 == 0
            rows.append(values)
        found[path.stem] = rows
    return found


@pytest.mark.parametrize("kind", ["coco", "cvat"])
def test_coco_read_back(tmp_path, kind) -> None:
    results = some_results()
    folder = exported(tmp_path, results, kind) / kind
    labels = (
        ["labels.json"]
        if kind == "coco"
        else [f"annotations/{name}_default.json" for name in ("instances", "person_keypoints")]
    )
    pictures = folder / ("data" if kind == "coco" else "images/default")
    for label in labels:
        coco = COCO(str(folder / label))
        assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
            f"a_{number:06d}.jpg" for number in range(3)
        ]
        assert coco.loadCats(1)[0]["keypoints"][0] == "nose"
        for result, image in zip(results, coco.loadImgs(coco.getImgIds()), strict=True):
            picture = cv2.imread(str(pictures / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3) == (120, 160, 3)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert [one["track_id"] for one in annotations] == [person.id for person in result.people]
            for one, person in zip(annotations, result.people, strict=True):
                mask = coco.annToMask(one).astype(bool)
                shared = (mask & person.mask).sum() / (mask | person.mask).sum()
                assert shared == 1.0 if kind == "coco" else shared > 0.95
                assert one["area"] == person.mask.sum()
                assert one["bbox"] == list(person.bbox)
                joints = np.array(one["keypoints"]).reshape(17, 3)
                inside = (person.keypoints[:, 0] >= 0) & (person.keypoints[:, 0] < 160)
                np.testing.assert_array_equal(joints[:, 2] == 2, inside)
                np.testing.assert_allclose(joints[inside, :2], person.keypoints[inside, :2], atol=0.006)
                assert not joints[~inside].any()


def test_yolo_poses_read_back(tmp_path) -> None:
    results = some_results()
    folder = exported(tmp_path, results, "yolo-pose") / "yolo-pose"
    config = yaml.safe_load((folder / "data.yaml").read_text())
    assert config["kpt_shape"] == [17, 3]
    assert sorted(config["flip_idx"]) == list(range(17))
    found = read_yolo(folder, 4 + 17 * 3)
    for result, rows in zip(results, found.values(), strict=True):
        assert len(rows) == len(result.people)
        for row, person in zip(rows, result.people, strict=True):
            x, y, width, height = person.bbox
            box = [(x + width / 2) / 160, (y + height / 2) / 120, width / 160, height / 120]
            assert row[:4] == pytest.approx(box, abs=1e-6)
            joints = np.array(row[4:]).reshape(17, 3)
            seen = joints[:, 2] == 2
            np.testing.assert_allclose(joints[seen, :2] * (160, 120), person.keypoints[seen, :2], atol=1e-3)
            assert not joints[~seen].any()


def test_yolo_outlines_read_back(tmp_path) -> None:
    results = some_results()
    found = read_yolo(exported(tmp_path, results, "yolo-seg") / "yolo-seg", None)
    for result, rows in zip(results, found.values(), strict=True):
        for row, person in zip(rows, result.people, strict=True):
            mask = np.zeros((120, 160), np.uint8)
            points = np.array(row).reshape(-1, 2) * (160, 120) - 0.5
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
            assert (mask.astype(bool) & person.mask).sum() / (mask.astype(bool) | person.mask).sum() > 0.93


def test_every_nth_frame_from_the_first(tmp_path) -> None:
    folder = exported(tmp_path, [result_of({1: LEFT}, number=n) for n in range(7)], *KINDS, export_every=3)
    names = [f"a_{number:06d}" for number in (0, 3, 6)]
    images = json.loads((folder / "coco/labels.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"{name}.jpg" for name in names]
    assert sorted(path.stem for path in (folder / "yolo-seg/labels/train").iterdir()) == names


def test_names_are_harmless_and_each_once(tmp_path) -> None:
    results = []
    for clip, source in enumerate(["../../x y?.mp4", "other/x y?.avi", "", "ü.mp4", "a" * 300 + ".mp4"]):
        result = result_of({1: LEFT}, clip=clip)
        frame = replace(result.frame, source=source)
        poses = replace(result.masks.rois.poses, frame=frame)
        results.append(replace(result, masks=replace(result.masks, rois=replace(result.masks.rois, poses=poses))))
    exported(tmp_path, results, "yolo-seg", "coco")
    names = sorted(path.name for path in (tmp_path / "coco/data").iterdir())
    assert len(names) == 5
    assert {"x_y__000000.jpg", "x_y__000000_2.jpg", "frame_000000.jpg", "ü_000000.jpg"} <= set(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "yolo-seg"]


def test_a_person_without_a_mask(tmp_path) -> None:
    folder = exported(tmp_path, [result_of({1: LEFT}, empty_masks=True)], *KINDS)
    assert read_yolo(folder / "yolo-seg", None) == {"a_000000": []}
    assert len(read_yolo(folder / "yolo-pose", 55)["a_000000"]) == 1
    coco = COCO(str(folder / "coco/labels.json"))
    assert not coco.annToMask(coco.loadAnns(coco.getAnnIds())[0]).any()
    (annotation,) = json.loads((folder / "cvat/annotations/instances_default.json").read_text())["annotations"]
    assert annotation["segmentation"] == [] and annotation["bbox"][2] > 0


def test_folders_that_cannot_be(tmp_path) -> None:
    full = tmp_path / "coco"
    full.mkdir()
    (full / "notes.txt").write_text("precious")
    with pytest.raises(SinkError, match="has files in it already"):
        exported(tmp_path, some_results(), "coco")
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    exported(tmp_path, some_results(), "coco", overwrite=True)
    assert (full / "notes.txt").read_text() == "precious"
    (tmp_path / "cvat").write_text("a file")
    for sink in make_sinks(Settings(source="x", export=(f"cvat={tmp_path / 'cvat'}",), overwrite=True), None):
        with pytest.raises(SinkError, match="expected a folder for a dataset, this is a file"):
            sink.check()
    for sink in make_sinks(Settings(source="x", export=(f"coco={tmp_path / 'no/where'}",)), None):
        with pytest.raises(SinkError, match="its folder does not exist"):
            sink.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"export": ("voc=x",)}, "KIND one of coco, cvat, yolo-pose, yolo-seg, srt, vtt"),
        ({"export": ("coco",)}, "--export coco expects a path"),
        ({"export": ("coco=x.json",)}, "makes a folder: expected a name without suffix"),
        ({"export": ("srt=x.vtt",)}, "expects a name ending in .srt"),
        ({"export": ("coco=x", "cvat=./x")}, "--export coco and --export cvat both name"),
        ({"export_every": 0}, "--export-every must be 1 or more"),
        ({"table": Path("x.csv")}, "--table expects a name ending in .parquet"),
        ({"output": Path("-"), "pipe": "avi"}, "--pipe must be one of matroska, rawvideo"),
    ],
)
def test_options_that_cannot_be(options, message) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(source="in.mp4", **options)


def test_no_frames_no_folders(tmp_path) -> None:
    exported(tmp_path, [], *KINDS)
    assert not list(tmp_path.iterdir())


KILL_WHILE_WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline.exports import datasets
from tests.pipeline.exports.test_datasets import KINDS, exported, result_of, LEFT
datasets.SAVE_EVERY_S = 0.0
datasets.SAVE_SHARE = 1e9
def results():
    for number in range(20):
        yield result_of({{1: LEFT}}, number=number)
    os.kill(os.getpid(), 9)
exported(Path({folder!r}), results(), *KINDS)
"""


def test_a_killed_process_leaves_labels_that_can_be_read(tmp_path) -> None:
    code = KILL_WHILE_WRITING.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -9, done.stderr
    assert len(COCO(str(tmp_path / "coco/labels.json")).getImgIds()) == 20
    assert len(COCO(str(tmp_path / "cvat/annotations/instances_default.json")).getAnnIds()) == 20
    assert len(read_yolo(tmp_path / "yolo-pose", 55)) == 20
    assert len(read_yolo(tmp_path / "yolo-seg", None)) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder that root may not write is hard to make, /proc is one")
def test_a_folder_that_cannot_be_written() -> None:
    (sink,) = make_sinks(Settings(source="x", export=("coco=/proc/coco",)), None)
    with pytest.raises(SinkError, match="/proc/coco"):
        sink.write(result_of({1: LEFT}))


def test_all_labels_are_written_rarely_when_that_takes_long(tmp_path, monkeypatch) -> None:
    """Five percent of the time at most goes into writing all labels again."""
    now = [100.0]
    monkeypatch.setattr(datasets.time, "monotonic", lambda: now[0])
    saves = []
    real = datasets.replace_output

    def slow(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            now[0] += 2.0
            saves.append(now[0])
        real(path, data)

    monkeypatch.setattr(datasets, "replace_output", slow)

    def results():
        for number in range(200):
            now[0] += 1.0
            yield result_of({1: LEFT}, number=number)

    exported(tmp_path, results(), "coco")
    assert 5 <= len(saves) <= 8
    assert np.diff(saves[:-1]).min() >= 38
