"""The command and the Python API on files, with real decoding, a real engine and real outputs."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pose2seg
from run_stream import main
from tests.clips import number_of, numbered_picture, read_video, write_images, write_video

pytestmark = pytest.mark.timeout(120)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_with_all_outputs(tmp_path, model_folder, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", 40, height=240, width=320)
    code = run(
        *(source, "--model", model_folder, "--long-side", 320),
        *("--output", tmp_path / "out.mp4", "--json", tmp_path / "out.jsonl", "--sheet", tmp_path / "out.png"),
    )
    assert code == 0
    out = capsys.readouterr()
    assert "40 frames, 1.00 people per frame" in out.out

    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["frame"] for line in lines] == list(range(40))
    assert [line["pts_s"] for line in lines] == pytest.approx([i / 25 for i in range(40)])
    assert {(line["width"], line["height"]) for line in lines} == {(320, 240)}
    for number, line in enumerate(lines):
        (person,) = line["people"]
        assert person["id"] == 1
        drawn = numbered_picture(number, 240, 320)
        magenta = (drawn == (255, 0, 255)).all(axis=2)
        mask = coco_mask.decode(person["mask"]).astype(bool)
        assert (mask & magenta).sum() / (mask | magenta).sum() > 0.8

    frames, times_s = read_video(tmp_path / "out.mp4")
    assert [number_of(frame) for frame in frames] == list(range(40))
    assert times_s == pytest.approx([i / 25 for i in range(40)])
    assert cv2.imread(str(tmp_path / "out.png")) is not None


def test_max_frames_and_overwrite(tmp_path, model_folder, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", 20)
    output = tmp_path / "out.jsonl"
    assert run(source, "--model", model_folder, "--json", output, "--max-frames", 3) == 0
    assert len(read_lines(output)) == 3
    assert run(source, "--model", model_folder, "--json", output, "--max-frames", 5) == 5
    assert "exists already: choose another name or add --overwrite" in capsys.readouterr().err
    assert len(read_lines(output)) == 3
    assert run(source, "--model", model_folder, "--json", output, "--max-frames", 5, "--overwrite") == 0
    assert len(read_lines(output)) == 5


def test_a_folder_of_images_against_its_ground_truth(tmp_path, model_folder) -> None:
    """COCO results of our own output against masks that we know: loadable, and right for masks and joints."""
    names = ["b.png", "a.png", "000000000077.png"]
    folder = write_images(tmp_path / "in", names, height=240, width=320)
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number, name in enumerate(names):
        magenta = (numbered_picture(number, 240, 320) == (255, 0, 255)).all(axis=2)
        rle = coco_mask.encode(np.asfortranarray(magenta.astype(np.uint8)))
        truth["images"].append({"id": 900 + number, "file_name": name, "width": 320, "height": 240})
        truth["annotations"].append(
            {
                "id": number + 1,
                "image_id": 900 + number,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(magenta.sum()),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    truth["info"] = {}
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth))
    results = tmp_path / "out.json"
    code = run(
        *(folder, "--model", model_folder, "--long-side", 320, "--coco", results, "--coco-images", annotations),
        *("--json", tmp_path / "out.jsonl"),
    )
    assert code == 0
    assert sorted(entry["image_id"] for entry in json.loads(results.read_text())) == [900, 901, 902]
    ground_truth = COCO(str(annotations))
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(results)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] > 0.6
    lines = read_lines(tmp_path / "out.jsonl")
    assert [Path(line["source"]).name for line in lines] == ["000000000077.png", "a.png", "b.png"]
    assert [line["people"][0]["id"] for line in lines] == [1, 1, 1]  # unrelated pictures


def test_image_ids_without_annotations(tmp_path, model_folder) -> None:
    folder = write_images(tmp_path / "in", ["000000000077.png", "x.png"])
    assert run(folder, "--model", model_folder, "--coco", tmp_path / "out.json") == 0
    assert [entry["image_id"] for entry in json.loads((tmp_path / "out.json").read_text())] == [77, 2]


def test_images_of_different_sizes_become_a_video(tmp_path, model_folder) -> None:
    folder = write_images(tmp_path / "in", ["a.png"], height=96, width=128)
    write_images(folder, ["b.png"], height=200, width=90)
    code = run(folder, "--model", model_folder, "--output", tmp_path / "out.mp4", "--image-fps", 4)
    assert code == 0
    frames, times_s = read_video(tmp_path / "out.mp4")
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 2
    assert times_s == [0.0, 0.25]


def test_a_folder_of_videos_starts_ids_anew(tmp_path, model_folder) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "in" / name, 5)
    assert run(tmp_path / "in", "--model", model_folder, "--json", tmp_path / "out.jsonl") == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(Path(line["source"]).name, line["frame"]) for line in lines] == [
        (name, i) for name in ("a.mp4", "b.mp4") for i in range(5)
    ]
    assert {line["people"][0]["id"] for line in lines} == {1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "ffv1", "pixel_format": "bgr0", "height": 1, "width": 1}),
        ("a.mkv", {"codec": "ffv1", "pixel_format": "bgr0", "height": 5, "width": 3}),
        ("a.mkv", {"codec": "ffv1", "pixel_format": "bgr0", "height": 96, "width": 7680}),
        ("a.mkv", {"codec": "ffv1", "pixel_format": "gray"}),
        ("a.mkv", {"codec": "ffv1", "pixel_format": "yuv420p10le"}),
        ("a.mp4", {"rotation": 90}),
        ("a.mp4", {"times_ms": [0, 10, 500, 510]}),
    ],
    ids=["1x1", "3x5", "7680 wide", "gray", "10 bit", "rotated", "variable rate"],
)
def test_unusual_videos_run_through(tmp_path, model_folder, name, options) -> None:
    source = write_video(tmp_path / name, 4, **options)
    code = run(
        *(source, "--model", model_folder, "--output", tmp_path / "out.mp4", "--json", tmp_path / "out.jsonl"),
        *("--sheet", tmp_path / "out.png"),
    )
    assert code == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["frame"] for line in lines] == [0, 1, 2, 3]
    frames, times_s = read_video(tmp_path / "out.mp4")
    height, width = lines[0]["height"], lines[0]["width"]
    assert [frame.shape[:2] for frame in frames] == [(height + height % 2, width + width % 2)] * 4
    if "times_ms" in options:
        assert [round(1000 * time) for time in times_s] == options["times_ms"]
    if options.get("rotation"):
        assert (height, width) == (128, 96)


def test_the_python_api(tmp_path, model_folder) -> None:
    source = write_video(tmp_path / "in.mp4", 12, height=240, width=320)
    results = list(pose2seg.stream(source, model=model_folder, long_side=320))
    assert [number_of(result.frame.image) for result in results] == list(range(12))
    (person,) = results[3].people
    assert isinstance(person, pose2seg.Person)
    assert person.mask.shape == (240, 320)
    assert person.keypoints.shape == (17, 3)
    assert results[3].overlay().shape == (240, 320, 3)
    assert json.loads(results[3].to_json())["frame"] == 3
    assert results[3].to_coco(image_id=5)[0]["image_id"] == 5


def test_leaving_the_loop_early_joins_the_threads(tmp_path, model_folder) -> None:
    source = write_video(tmp_path / "in.mp4", 50)
    before = threading.active_count()
    results = pose2seg.stream(source, model=model_folder)
    assert next(results).frame.index == 0
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


def test_the_api_checks_its_options_at_once_and_the_source_with_the_first_step(tmp_path, model_folder) -> None:
    with pytest.raises(pose2seg.SettingsError, match="--threads must be from 1"):
        pose2seg.stream("a.mp4", threads=0)
    results = pose2seg.stream(tmp_path / "missing.mp4", model=model_folder)
    with pytest.raises(pose2seg.SourceError, match="no such file"):
        next(results)


def test_the_window(tmp_path, model_folder, monkeypatch) -> None:
    pytest.importorskip("pygame", reason="the extra `window` is not installed")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    source = write_video(tmp_path / "in.mp4", 5)
    assert run(source, "--model", model_folder, "--show", "--json", tmp_path / "out.jsonl") == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 5
