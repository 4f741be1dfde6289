"""How crowded a data set is: Table 1 of the paper for any COCO-format file.

    python -m training.dataset_stats --annotations F.json [--picture P.png] [--json OUT.json] [--expect train|val]

For each person the greatest IoU with anybody else in the picture (MaxIoU), of the boxes, as in the paper, and of the
masks. Three columns: everybody annotated (what the paper's Table 1 counts for COCO), everybody but crowds, and the
people whom the paper's training and validation sets have: joints and a mask, no crowd, nothing degenerate.
``--expect`` compares the last column with the published counts of COCOPersons and fails if they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table

from kernels.coordinates import F64
from training.dataset import DataError, Person, Photo, greatest_iou, is_taught, read_photos

THRESHOLDS = (0.5, 0.75)
BINS = np.linspace(0, 1, 21)
PUBLISHED = {"train": (56_599, 149_813), "val": (2_346, 6_352)}  # COCOPersons: pictures, people
CHOICES: dict[str, Callable[[Person], bool]] = {
    "everybody": lambda _person: True,
    "no crowds": lambda person: not person.crowd,
    "joints and mask": is_taught,
}


def greatest_mask_iou(people: list[Person], photo: Photo) -> F64:
    """(N,) of those people who have a mask, in order: the greatest IoU of each one's mask with another's."""
    rles = []
    for person in people:
        coded = person.segmentation
        if coded is None:
            continue
        if isinstance(coded, list):
            rles.append(coco_mask.merge(coco_mask.frPyObjects(coded, photo.height, photo.width)))
        elif isinstance(coded["counts"], list):
            rles.append(coco_mask.frPyObjects(coded, photo.height, photo.width))
        else:
            rles.append(coded)
    if not rles:
        return np.zeros(0)
    iou = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)), np.float64)
    np.fill_diagonal(iou, 0)
    return iou.max(1)


def crowding(photos: list[Photo], wanted: Callable[[Person], bool]) -> dict[str, Any]:
    """Counts and MaxIoU of the wanted people, each among the wanted people of the same picture.

    Returns:
        pictures and people; ``box`` and ``mask``: people measured, how many above each of `THRESHOLDS`, the mean, and a
        histogram over `BINS`.

    Raises:
        DataError: a mask that cannot be read.
    """
    boxes: list[F64] = []
    masks: list[F64] = []
    pictures = 0
    for photo in photos:
        people = [person for person in photo.people if wanted(person)]
        if not people:
            continue
        pictures += 1
        boxes.append(greatest_iou(np.stack([person.box for person in people])).astype(np.float64))
        try:
            masks.append(greatest_mask_iou(people, photo))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{photo.file_name}: a mask cannot be read: {error}") from error
    result: dict[str, Any] = {"pictures": pictures, "people": sum(map(len, boxes))}
    for name, values in (("box", boxes), ("mask", masks)):
        flat = np.concatenate(values) if values else np.zeros(0)
        result[name] = {
            "people": len(flat),
            **{f"above_{threshold:g}": int((flat > threshold).sum()) for threshold in THRESHOLDS},
            "mean": round(float(flat.mean()), 4) if len(flat) else None,
            "histogram": np.histogram(flat, BINS)[0].tolist(),
        }
    return result


def statistics(photos: list[Photo]) -> dict[str, Any]:
    """`crowding` of each of `CHOICES`."""
    return {name: crowding(photos, wanted) for name, wanted in CHOICES.items()}


def show(figures: dict[str, Any]) -> Table:
    """The figures as a table for people."""
    table = Table()
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    rows: list[tuple[str, list[str]]] = [
        (label, [f"{column[label]:,}" for column in figures.values()]) for label in ("pictures", "people")
    ]
    for kind in ("box", "mask"):
        columns = [column[kind] for column in figures.values()]
        if kind == "mask":
            rows.append(("people with a mask", [f"{column['people']:,}" for column in columns]))
        for threshold in THRESHOLDS:
            cells = []
            for column in columns:
                count = column[f"above_{threshold:g}"]
                cells.append(f"{count:,} ({100 * count / max(column['people'], 1):.1f} %)")
            rows.append((f"MaxIoU of {kind} > {threshold:g}", cells))
        cells = ["-" if column["mean"] is None else f"{column['mean']:.2f}" for column in columns]
        rows.append((f"mean MaxIoU of {kind}", cells))
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def draw(figures: dict[str, Any], path: Path, title: str) -> None:
    """Histograms of both MaxIoU, people in the pictures that have them, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, kind in zip(axes, ("box", "mask"), strict=True):
        for name, column in figures.items():
            axis.stairs(column[kind]["histogram"], BINS, label=name)
        axis.set(title=f"MaxIoU of {kind}", xlabel="MaxIoU", yscale="log")
    axes[0].set_ylabel("people")
    axes[1].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.dataset_stats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON; its pictures are not needed")
    parser.add_argument("--picture", type=Path, help="write histograms here, PNG")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--expect", choices=tuple(PUBLISHED), help="fail unless these are the published counts")
    options = parser.parse_args(arguments)
    try:
        figures = statistics(read_photos(options.annotations))
        Console(width=110).print(show(figures))
        if options.picture is not None:
            draw(figures, options.picture, options.annotations.name)
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
        if options.expect is not None:
            column = figures["joints and mask"]
            found, published = (column["pictures"], column["people"]), PUBLISHED[options.expect]
            if found != published:
                raise DataError(
                    f"COCOPersons {options.expect} has {published[0]:,} pictures and {published[1]:,} people, "
                    f"{options.annotations} gives {found[0]:,} and {found[1]:,}"
                )
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
