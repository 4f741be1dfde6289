"""Figures of `training.evaluate_occlusion` side by side: which system keeps people apart who hide each other.

    python -m benchmarks.occlusion --scenes DIR --row "NAME=F.json" [--row ...] [--title TEXT] [--save NAME]

Each row is a file that ``training.evaluate_occlusion --json`` wrote; ``--scenes`` is the benchmark they were measured
on, whose seed, counts and mix are kept with them. Prints a table for people and as Markdown, writes
benchmarks/results/accuracy/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import RESULTS, environment

PARTS = ("general", "moderate", "hard")
KEPT_OF_SCENES = ("seed", "scenes", "mix", "canvas", "cutouts", "people", "people_by_max_iou", "cutouts_shown")


def read_rows(given: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of NAME=FILE pairs, in order.

    Raises:
        ValueError: no such pair, or a file that is not of `training.evaluate_occlusion`.
    """
    rows = []
    for item in given:
        name, sign, path = item.rpartition("=")
        if not sign or not name:
            raise ValueError(f"expected NAME=FILE, got {item!r}")
        figures = json.loads(Path(path).read_text())
        if not isinstance(figures, dict) or not all("confusion" in figures.get(part, {}) for part in ("all", *PARTS)):
            raise ValueError(f"{path} is not what training.evaluate_occlusion --json writes")
        rows.append({"name": name, **figures})
    people = {tuple(row[part]["people"] for part in PARTS) for row in rows}
    if len(people) > 1:
        raise ValueError(f"rows of different scenes: {' and '.join(map(str, sorted(people)))} people by part")
    return rows


def _span(value: float | None, interval: Sequence[float] | None, percent: bool) -> str:
    if value is None:
        return "-"

    def shown(number: float) -> str:
        return f"{100 * number:.1f} %" if percent else f"{number:.3f}".replace("0.", ".", 1)

    return shown(value) + (f" ({shown(interval[0])} to {shown(interval[1])})" if interval else "")


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row: AP of each part, then confusion of each part."""
    aps = [_span(row[p]["mask"]["AP"], row[p]["mask"].get("AP_interval"), percent=False) for p in PARTS]
    confusions = [
        _span(row[p]["confusion"]["mean"], row[p]["confusion"].get("mean_interval"), percent=True) for p in PARTS
    ]
    return [row["name"], *aps, *confusions]


def headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Column headings with the numbers of people."""
    counts = [f"{part} ({rows[0][part]['people']:,})" for part in PARTS]
    return ["", *(f"AP {count}" for count in counts), *(f"confusion {part}" for part in PARTS)]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [headings(rows), ["---", *["---:"] * (2 * len(PARTS))], *(cells_of(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder that training.compose_benchmark wrote")
    parser.add_argument("--row", action="append", required=True, metavar="NAME=F.json")
    parser.add_argument("--title", default="", help="what was measured, in words")
    parser.add_argument("--save", metavar="NAME", help="keep as benchmarks/results/accuracy/NAME.json")
    options = parser.parse_args()
    rows = read_rows(options.row)
    made = json.loads((options.scenes / "benchmark.json").read_text())
    table = Table(title=options.title)
    for heading in headings(rows):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*cells_of(row))
    Console(width=170).print(table)
    print(markdown(rows))
    document = {
        "schema": 1,
        "suite": "occlusion",
        "title": options.title,
        "scenes": {name: made[name] for name in KEPT_OF_SCENES},
        "environment": environment(),
        "rows": rows,
    }
    if options.save:
        target = RESULTS / "accuracy" / f"{options.save}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
