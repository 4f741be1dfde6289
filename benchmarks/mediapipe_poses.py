"""Poses of MediaPipe Pose on a COCO-format set, as keypoint results to compare our own network with.

    runs/compare/venv-mediapipe/bin/python benchmarks/mediapipe_poses.py --annotations F.json --images DIR --output P
    python -m benchmarks.accuracy --annotations F.json --images DIR --poses MediaPipe=P@0.2

MediaPipe Pose finds one person a picture. It runs in the environment that `python -m benchmarks.compare --install`
makes, so this file imports nothing of the repository. The networks are those inside MediaPipe's wheel (0.10.21), the
middle one of three sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2

# MediaPipe's 33 landmarks to COCO's 17 joints
LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)


def result_of(landmarks: Any, image_id: int, height: int, width: int) -> dict[str, Any]:
    """COCO keypoint result of one person; landmarks are shares of the picture, px centres lie half a px before."""
    flat: list[float] = []
    visibilities = []
    for number in LANDMARKS:
        point = landmarks[number]
        flat += [round(point.x * width - 0.5, 3), round(point.y * height - 0.5, 3), round(point.visibility, 4)]
        visibilities.append(point.visibility)
    score = round(sum(visibilities) / len(visibilities), 5)
    return {"image_id": image_id, "category_id": 1, "keypoints": flat, "score": score}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its pictures")
    parser.add_argument("--output", type=Path, required=True, help="COCO keypoint results to write")
    options = parser.parse_args(arguments)
    try:
        from mediapipe.python.solutions.pose import Pose
    except ImportError as error:
        print(f"error: MediaPipe cannot be imported ({error}): python -m benchmarks.compare --install", file=sys.stderr)
        return 2
    results = []
    pictures = json.loads(options.annotations.read_text())["images"]
    with Pose(static_image_mode=True, model_complexity=1) as pose:
        for picture in pictures:
            bgr = cv2.imread(str(options.images / picture["file_name"]))
            if bgr is None:
                print(f"error: {picture['file_name']}: expected an image in {options.images}", file=sys.stderr)
                return 2
            found = pose.process(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).pose_landmarks
            if found is not None:
                results.append(result_of(found.landmark, picture["id"], *bgr.shape[:2]))
    options.output.write_text(json.dumps(results) + "\n")
    print(f"{len(pictures)} pictures, {len(results)} people: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
