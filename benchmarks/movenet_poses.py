"""Poses of a MoveNet MultiPose file on a COCO-format set, as keypoint results to compare our own network with.

    python -m benchmarks.movenet_poses --model movenet.onnx --annotations F.json --images DIR --output poses.json
    python -m training.evaluate --annotations F.json --images DIR --poses poses.json

The file is not part of this repository. Expected is the published network as ONNX with its decoding inside: input int32
[1, height, width, 3] RGB, sides multiples of 32; output [1, 6, 56], rows of 17 x (y, x, score), box (ymin, xmin, ymax,
xmax) and person score, coordinates as shares of the padded input. The picture is scaled to the long side (area average
when it shrinks, bilinear when it grows), placed top-left and padded with zeros.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import Engine, EngineError, open_engine
from kernels.coordinates import F32, U8, invert, transform_points
from kernels.letterbox import Letterbox, letterbox, plan_letterbox
from kernels.pose_decoding import suppress
from training.dataset import CocoFolder, DataError

JOINTS = 17
ROW_LENGTH = 3 * JOINTS + 5
MIN_PERSON_SCORE = 0.02


def decode_rows(rows: NDArray[np.floating], plan: Letterbox) -> tuple[F32, F32]:
    """People of one picture out of the network's rows.

    Args:
        rows: (P, 56) as the module docstring says.
        plan: how the picture was scaled and padded.

    Returns:
        keypoints (N, 17, 3) x, y in px of the picture and joint score, and person scores (N,), falling. Rows below
        `MIN_PERSON_SCORE` and rows that repeat a better one are dropped.
    """
    rows = rows[rows[:, -1] >= MIN_PERSON_SCORE].astype(np.float32)
    joints = rows[:, : 3 * JOINTS].reshape(-1, JOINTS, 3)
    keypoints = np.empty_like(joints)
    # A share of the input is a continuous coordinate, px centres lie half a px before it.
    input_xy = joints[..., 1::-1] * (plan.input_width, plan.input_height) - 0.5
    keypoints[..., :2] = transform_points(invert(plan.input_from_frame), input_xy)
    keypoints[..., 2] = joints[..., 2]
    scores = rows[:, -1]
    kept = suppress(keypoints, scores)
    return keypoints[kept], scores[kept]


def find_people(engine: Engine, image: U8, long_side: int) -> tuple[F32, F32]:
    """Run the network on one RGB picture; see `decode_rows`."""
    plan = plan_letterbox(image.shape[0], image.shape[1], long_side=long_side)
    feeds = {engine.inputs[0].name: letterbox(image, plan)[None].astype(np.int32)}
    return decode_rows(engine.run(feeds)[engine.outputs[0].name][0], plan)


def open_movenet(path: Path) -> Engine:
    """Open the file and check that it looks like MoveNet MultiPose.

    Raises:
        DataError: another network.
    """
    engine = open_engine(path, engine="onnx")
    shapes = [(spec.dtype, len(spec.shape), spec.shape[-1]) for spec in (*engine.inputs, *engine.outputs)]
    if shapes != [(np.dtype(np.int32), 4, 3), (np.dtype(np.float32), 3, ROW_LENGTH)]:
        found = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in (*engine.inputs, *engine.outputs))
        engine.close()
        raise DataError(f"{path}: expected int32 [1, H, W, 3] in and float32 [1, 6, {ROW_LENGTH}] out, got {found}")
    return engine


def results_of(engine: Engine, folder: CocoFolder, long_side: int) -> list[dict[str, Any]]:
    """COCO keypoint results of every picture of a set."""
    results = []
    for photo in folder.photos:
        keypoints, scores = find_people(engine, folder.image(photo), long_side)
        for pose, score in zip(keypoints, scores, strict=True):
            flat = [round(float(value), 3) for value in pose.reshape(-1)]
            results.append(
                {"image_id": photo.image_id, "category_id": 1, "keypoints": flat, "score": round(float(score), 5)}
            )
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.movenet_poses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="MoveNet MultiPose Lightning as ONNX")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder or zip of its pictures")
    parser.add_argument("--long-side", type=int, default=384, help="length the longer side is scaled to, px")
    parser.add_argument("--output", type=Path, required=True, help="COCO keypoint results to write")
    options = parser.parse_args(arguments)
    try:
        engine = open_movenet(options.model)
        folder = CocoFolder(options.annotations, options.images)
        results = results_of(engine, folder, options.long_side)
        options.output.write_text(json.dumps(results) + "\n")
    except (DataError, EngineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(folder.photos)} pictures, {len(results)} people at long side {options.long_side}: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
