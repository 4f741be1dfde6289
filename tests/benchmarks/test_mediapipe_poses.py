"""Landmarks of MediaPipe to COCO's joints; the library itself lives in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mediapipe_poses import LANDMARKS, result_of
from kernels.skeleton import FLIPPED_JOINTS, JOINT_NAMES

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mediapipe_poses.py"
# MediaPipe's own names, by number
NAMES = {
    0: "nose",
    2: "left_eye",
    5: "right_eye",
    7: "left_ear",
    8: "right_ear",
    11: "left_shoulder",
    12: "right_shoulder",
    13: "left_elbow",
    14: "right_elbow",
    15: "left_wrist",
    16: "right_wrist",
    23: "left_hip",
    24: "right_hip",
    25: "left_knee",
    26: "right_knee",
    27: "left_ankle",
    28: "right_ankle",
}


@dataclass
class Landmark:
    x: float
    y: float
    visibility: float


def test_each_joint_is_its_landmark() -> None:
    assert tuple(NAMES[number] for number in LANDMARKS) == tuple(JOINT_NAMES)
    assert len(set(LANDMARKS)) == len(FLIPPED_JOINTS) == 17


def test_shares_of_the_picture_become_px_centres() -> None:
    landmarks = [Landmark(number / 33, 1.0, number / 100) for number in range(33)]
    result = result_of(landmarks, 7, height=40, width=330)
    assert (result["image_id"], result["category_id"], len(result["keypoints"])) == (7, 1, 51)
    assert result["keypoints"][3:6] == [2 * 10 - 0.5, 39.5, 0.02]  # the second joint is landmark 2
    assert result["score"] == round(sum(LANDMARKS) / 17 / 100, 5)


def test_without_the_library_it_says_what_to_do(tmp_path) -> None:
    arguments = ["--annotations", "a.json", "--images", "b", "--output", str(tmp_path / "c.json")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: MediaPipe cannot be imported") and "--install" in done.stderr
