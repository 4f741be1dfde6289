"""What 1,000 hours of video take, from the frames a second that were measured.

    python -m benchmarks.cost [--results F.json] [--video-fps 25] [--price 0.10] [--write]

Price is what a machine like the measured one costs an hour: an input, nobody measured it. --write puts the table into
docs/scale.md, between its marks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- cost: begin -->", "<!-- cost: end -->"
HOURS = 1000


def machine_hours(*, video_fps: float, machine_fps: float, hours: float = HOURS) -> float:
    """Hours that one machine works.

    Args:
        video_fps: frames a second of the video.
        machine_fps: frames a second that the machine processes.
        hours: of video.
    """
    if video_fps <= 0 or machine_fps <= 0:
        raise ValueError(f"frames a second must be positive, got {video_fps} and {machine_fps}")
    return hours * video_fps / machine_fps


def table(document: Mapping[str, Any], *, source: str, video_fps: float, price: float) -> str:
    """The rows of whole runs as Markdown."""
    rows = [row["settings"] for row in document["rows"] if row["name"].startswith("whole run")]
    if not rows:
        raise ValueError(f"{source}: expected rows of whole runs, found none: measure with benchmarks.bench_pipeline")
    environment = document["environment"]
    lines = [
        f"For {video_fps:g} FPS video, at {price:.2f} an hour for a machine (assumed, in any currency), from",
        f"[{Path(source).name}]({source}): {environment['cores']} cores of {environment['cpu']}, one process,",
        "overlay video and JSON lines written.",
        "",
        f"| clip | `--long-side` | people | FPS measured | machine hours per {HOURS:,} h | cost per {HOURS:,} h |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        hours = machine_hours(video_fps=video_fps, machine_fps=row["fps"])
        measured = f"{row['clip']} | {row['long_side']} | {row['people']:.1f} | {row['fps']:.1f}"
        lines.append(f"| {measured} | {hours:,.0f} | {hours * price:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = ROOT / "benchmarks" / "results" / "cpu-2core" / "pipeline.json"
    parser.add_argument("--results", type=Path, default=results, help="file of benchmarks.bench_pipeline")
    parser.add_argument("--video-fps", type=float, default=25.0, help="(25)")
    parser.add_argument("--price", type=float, default=0.10, help="of a machine hour, in any currency (0.10)")
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    flags = parser.parse_args()
    source = Path("..") / flags.results.resolve().relative_to(ROOT)
    text = table(
        json.loads(flags.results.read_text()), source=source.as_posix(), video_fps=flags.video_fps, price=flags.price
    )
    print(text)
    if flags.write:
        before, rest = PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
