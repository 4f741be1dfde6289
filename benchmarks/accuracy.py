"""Accuracy of a model on a COCO-format set, beside the trivial baseline and, if given, somebody else's poses.

    python -m benchmarks.accuracy --annotations F.json --images DIR [--poses NAME=F.json[@THRESHOLD] ...] [--save NAME]
    [--engine ENGINE --precision PRECISION]

For each source of poses (the annotations, the model's own keypoint network, each ``--poses`` file of COCO keypoint
results) the masks are made once by the model and once by drawing the skeleton thickly. Foreign poses may bring the
joint confidence from which they guide the mask: another network's scores mean something else than ours. For the
protocol see training/evaluate.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import RESULTS, environment
from engines import ENGINE_NAMES, PRECISIONS, EngineOptions, default_artifact, load_artifact, open_graph
from training.dataset import CocoFolder
from training.evaluate import evaluate
from training.evaluated_model import open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=default_artifact())
    parser.add_argument("--poses", action="append", default=[], metavar="NAME=F.json[@THRESHOLD]")
    parser.add_argument("--long-side", type=int, help="the model's own by default")
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", metavar="NAME", help="keep the figures as benchmarks/results/accuracy/NAME.json")
    options = parser.parse_args()
    model, own_side = open_model(options.model, engine=options.engine, threads=options.threads)
    if options.precision != "auto":
        chosen = EngineOptions(threads=options.threads, precision=options.precision)
        artifact = load_artifact(options.model)
        model = replace(model, keypoints=open_graph(artifact, "keypoints", engine=options.engine, options=chosen))
    folder = CocoFolder(options.annotations, options.images)
    long_side = options.long_side or own_side
    own = {"ours": "engine"} if model.keypoints is not None else {}  # the family `paper` finds no people
    sources = {"annotations": "gt", **own} | dict(item.split("=", 1) for item in options.poses)
    rows = []
    for name, given in sources.items():
        poses, _, threshold = given.partition("@")
        guided = replace(model, joint_threshold=float(threshold)) if threshold else model
        for masks in ("exclusive", "limbs"):
            figures, _ = evaluate(folder, guided, long_side=long_side, poses=poses, masks=masks)
            rows.append({**figures, "poses": name, "joint_threshold": guided.joint_threshold})
    first = rows[0]
    counts = (
        f"{first['images']} images, {first['people_with_keypoints']} people with keypoints, "
        f"{first['people_with_mask']} with keypoints and mask, long side {long_side}"
    )
    table = Table(title=counts)
    for heading in ("poses", "masks"):
        table.add_column(heading)
    for heading in ("keypoint AP", "mask AP", "AP50", "AP75", "medium", "large", "mean IoU"):
        table.add_column(heading, justify="right")
    for row in rows:
        mask, keypoints = row["mask"], row["keypoints"]
        shown = [
            keypoints["AP"] if keypoints else None,
            *(mask[k] for k in ("AP", "AP50", "AP75", "AP_medium", "AP_large")),
        ]
        cells = ["-" if value is None else f"{value:.3f}" for value in (*shown, row["mean_iou"])]
        table.add_row(row["poses"], "thick limbs" if row["masks"] == "limbs" else "ours", *cells)
    Console(width=120).print(table)
    document = {"schema": 1, "suite": "accuracy", "environment": environment(), "rows": rows}
    if options.save:
        target = RESULTS / "accuracy" / f"{options.save}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
