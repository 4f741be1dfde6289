"""COCO's average precision of results, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MEDIUM_AREA_PX = (32**2, 96**2)  # COCO's medium people; larger ones are large


def average_precision(truth: COCO, results: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """COCO summary of `keypoints` or `segm` results; None where the truth has nobody of that size."""
    names = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR")
    if not results:  # COCOeval cannot read an empty list
        counted = [
            a["area"] for a in truth.anns.values() if not a["iscrowd"] and (kind != "keypoints" or a["num_keypoints"])
        ]
        low, high = MEDIUM_AREA_PX
        some = {
            "AP_medium": any(low <= area <= high for area in counted),
            "AP_large": any(area >= high for area in counted),
        }
        return {name: (0.0 if some.get(name, bool(counted)) else None) for name in names}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    s = evaluation.stats
    picked = (s[0], s[1], s[2], s[3], s[4], s[5]) if kind == "keypoints" else (s[0], s[1], s[2], s[4], s[5], s[8])
    return {name: (round(float(value), 4) if value >= 0 else None) for name, value in zip(names, picked, strict=True)}
