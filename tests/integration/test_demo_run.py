"""The main job on the demo clip with the model that ships: the outputs of `make demo`, held against the exact truth."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pycocotools.mask
import pytest

pytest.importorskip("skimage", reason="the clip is cut out of a portrait that scikit-image ships: extra 'demo'")

from examples.make_demo_clip import FPS, FRAMES, HEIGHT, WIDTH, write_clip

ROOT = Path(__file__).resolve().parents[2]
IN_VIEW_PX = 60_000  # about half of the smaller person; with less to be seen she is behind the other one
FACE_AND_SHOULDERS = slice(0, 7)

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class DemoRun:
    folder: Path
    truth: list[list[dict[str, Any]]]  # per frame: annotations
    lines: list[dict[str, Any]]  # per frame: what the program wrote
    printed: str

    def in_view(self) -> list[tuple[int, dict[str, Any], dict[str, Any] | None, float]]:
        """(frame, annotation, the person found there or None, mask IoU) of everybody who is not mostly hidden."""
        found = []
        for index, (people, line) in enumerate(zip(self.truth, self.lines, strict=True)):
            for annotation in people:
                if annotation["area"] < IN_VIEW_PX:
                    continue
                masks = [person["mask"] for person in line["people"]]
                ious = pycocotools.mask.iou(masks, [annotation["segmentation"]], [0])[:, 0] if masks else np.zeros(0)
                best = int(ious.argmax()) if len(ious) else -1
                if best >= 0 and ious[best] > 0.3:
                    found.append((index, annotation, line["people"][best], float(ious[best])))
                else:
                    found.append((index, annotation, None, 0.0))
        return found


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    folder = tmp_path_factory.mktemp("demo")
    write_clip(folder / "clip.mp4", truth_path=folder / "truth.json")
    outputs = ["--output", "demo.mp4", "--json", "demo.jsonl", "--sheet", "demo.png"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), "clip.mp4", *outputs],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    truth: list[list[dict[str, Any]]] = [[] for _ in range(FRAMES)]
    for annotation in json.loads((folder / "truth.json").read_text())["annotations"]:
        truth[annotation["image_id"] - 1].append(annotation)
    lines = [json.loads(line) for line in (folder / "demo.jsonl").read_text().splitlines()]
    return DemoRun(folder, truth, lines, done.stdout)


def test_one_line_per_frame(demo_run: DemoRun) -> None:
    assert len(demo_run.lines) == FRAMES


def test_video_has_every_frame_and_is_drawn_on(demo_run: DemoRun) -> None:
    with av.open(str(demo_run.folder / "demo.mp4")) as container:
        times_s, drawn = [], None
        for frame in container.decode(video=0):
            times_s.append(frame.time)
            if drawn is None:
                drawn = frame.to_ndarray(format="rgb24")
    assert times_s == pytest.approx([index / FPS for index in range(FRAMES)], abs=1e-3)
    assert drawn is not None
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    with av.open(str(demo_run.folder / "clip.mp4")) as container:
        original = next(container.decode(video=0)).to_ndarray(format="rgb24")
    changed = np.abs(drawn.astype(int) - original).max(axis=2) > 40
    people = sum(pycocotools.mask.decode(annotation["segmentation"]) for annotation in demo_run.truth[0]) > 0
    assert changed[people].mean() > 0.5
    assert changed[~people].mean() < 0.1


def test_sheet_is_a_picture(demo_run: DemoRun) -> None:
    sheet = cv2.imread(str(demo_run.folder / "demo.png"))
    assert min(sheet.shape[:2]) > 400


def test_summary_names_frames_people_speed_and_stages(demo_run: DemoRun) -> None:
    for word in ("200 frames", "people", "FPS", "decode", "keypoints", "segment", "write"):
        assert word in demo_run.printed


def test_people_in_view_are_found_with_their_own_mask(demo_run: DemoRun) -> None:
    in_view = demo_run.in_view()
    ious = np.array([iou for _, _, _, iou in in_view])
    print(f"{len(ious)} people in view, found {np.mean(ious > 0.5):.3f}, mean IoU {ious.mean():.3f}")
    assert len(ious) > 300
    assert np.mean(ious > 0.5) > 0.95
    assert ious.mean() > 0.8


def test_joints_of_face_and_shoulders_are_where_they_are(demo_run: DemoRun) -> None:
    """In units of the distance between the shoulders; the other joints are hidden by the helmet or below the frame."""
    errors = []
    for _, annotation, person, _ in demo_run.in_view():
        if person is None:
            continue
        true = np.reshape(annotation["keypoints"], (17, 3))
        joints = np.array(person["keypoints"])
        shoulders = true[5, :2] - true[6, :2]
        if (true[FACE_AND_SHOULDERS, 2] == 2).all():
            distance = np.linalg.norm(joints[FACE_AND_SHOULDERS, :2] - true[FACE_AND_SHOULDERS, :2], axis=1)
            errors.append(distance / np.linalg.norm(shoulders))
    assert len(errors) > 200
    assert np.median(errors) < 0.05
    assert np.percentile(errors, 90) < 0.2


def test_nobody_is_invented(demo_run: DemoRun) -> None:
    invented = 0
    for people, line in zip(demo_run.truth, demo_run.lines, strict=True):
        truth = [annotation["segmentation"] for annotation in people]
        for person in line["people"]:
            invented += pycocotools.mask.iou([person["mask"]], truth, [0] * len(truth)).max() < 0.1
    assert invented <= 0.02 * FRAMES


def test_each_keeps_one_id_until_she_is_hidden(demo_run: DemoRun) -> None:
    for track in (1, 2):
        ids = [
            person["id"]
            for index, annotation, person, _ in demo_run.in_view()
            if annotation["track"] == track and person is not None and index < FRAMES // 8
        ]
        assert len(ids) > FRAMES // 10
        assert len(set(ids)) == 1
