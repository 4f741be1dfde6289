"""What became of a batch: one HTML page that needs no other file, and a table for programs."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pipeline.batch.layers import outputs_of
from pipeline.batch.plan import OUTPUT_SUFFIXES, BatchInput, shown_name
from pipeline.batch.progress import duration
from pipeline.batch.state import FileState, JobFolder, replace_file
from pipeline.errors import SinkError
from pipeline.layers.options import Layer

HTML_NAME: Final = "report.html"
CSV_NAME: Final = "report.csv"
COLUMNS: Final = ("file", "result", "frames", "people_per_frame", "fps", "seconds", "lost", "warnings", "error", "path")
_FORMULA_SIGNS: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run what begins so

_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .6rem; border-bottom: 1px solid #8884; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 12rem; }
img { width: 160px; border-radius: 4px; display: block; }
.done { color: #1a7f37; } .failed { color: #cf222e; } .open { color: #9a6700; }
.text { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One input.

    Attributes:
        item: the input.
        state: None: nothing is known of it, the batch was stopped before.
        picture: JPEG of one of its frames; empty where there is none.
    """

    item: BatchInput
    state: FileState | None
    picture: bytes = b""

    @property
    def result(self) -> str:
        """``done``, ``failed`` or ``not finished``."""
        status = self.state.status if self.state is not None else "running"
        return status if status in {"done", "failed"} else "not finished"

    @property
    def people_per_frame(self) -> float:
        return self.state.people / self.state.frames if self.state is not None and self.state.frames else 0.0

    @property
    def fps(self) -> float:
        return self.state.frames / self.state.seconds if self.state is not None and self.state.seconds else 0.0


def rows_of(job: JobFolder, inputs: Sequence[BatchInput], states: dict[str, FileState]) -> list[ReportRow]:
    """All inputs in their order; failed ones first, because they are what somebody has to look at."""
    rows = []
    for item in inputs:
        try:
            picture = (job.folder_of(item.key) / "picture.jpg").read_bytes()
        except OSError:
            picture = b""
        rows.append(ReportRow(item=item, state=states.get(item.path) or job.load(item.key), picture=picture))
    order = {"failed": 0, "not finished": 1, "done": 2}
    return sorted(rows, key=lambda row: order[row.result])


def write_report(out: Path, rows: Sequence[ReportRow], kinds: Sequence[str], layers: Sequence[Layer] = ()) -> None:
    """Write both files, each as a whole.

    Raises:
        SinkError: there is no room.
    """
    for name, text in ((HTML_NAME, html_report(rows, kinds, layers)), (CSV_NAME, csv_report(rows))):
        path = out / name
        if path.is_symlink():
            raise SinkError(f"{path}: expected no link where the report goes: remove it")
        replace_file(path, text.encode())


def csv_report(rows: Sequence[ReportRow]) -> str:
    """A line per input, `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        state = row.state
        warnings = "; ".join(state.warnings) if state is not None else ""
        error = state.error if state is not None else ""
        writer.writerow(
            [
                _cell(row.item.name),
                row.result,
                state.frames if state is not None else 0,
                f"{row.people_per_frame:.3f}",
                f"{row.fps:.2f}",
                f"{state.seconds:.2f}" if state is not None else "0.00",
                state.lost if state is not None else 0,
                _cell(warnings),
                _cell(error),
                _cell(row.item.path),
            ]
        )
    return text.getvalue()


def html_report(rows: Sequence[ReportRow], kinds: Sequence[str], layers: Sequence[Layer] = ()) -> str:
    """The page. Everything that comes from names or messages is escaped; it holds no script."""
    counts = {result: sum(row.result == result for row in rows) for result in ("done", "failed", "not finished")}
    frames = sum(row.state.frames for row in rows if row.state is not None)
    seconds = sum(row.state.seconds for row in rows if row.state is not None)
    body = "\n".join(_html_row(row, kinds, layers) for row in rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>pose2seg batch</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>pose2seg batch</h1>
<p>{len(rows)} files: <span class="done">{counts["done"]} done</span>,
<span class="failed">{counts["failed"]} failed</span>,
<span class="open">{counts["not finished"]} not finished</span>.
{frames} frames, {duration(seconds)} of work of all workers together.</p>
<table>
<thead><tr><th></th><th>file</th><th class="n">frames</th><th class="n">people per frame</th><th class="n">FPS</th>
<th>result</th></tr></thead>
<tbody>
{body}
</tbody>
</table>
</body>
</html>
"""


def _html_row(row: ReportRow, kinds: Sequence[str], layers: Sequence[Layer]) -> str:
    state = row.state
    picture = ""
    if row.picture:
        data = base64.b64encode(row.picture).decode()
        picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    links = ""
    if row.result == "done":
        named = [(kind, OUTPUT_SUFFIXES[kind]) for kind in kinds]
        named += [(Path(name).stem, f".{name}") for name in outputs_of(layers, state.segments if state else ())]
        links = "<br>" + " ".join(
            f'<a href="{html.escape(quote(f"./{row.item.name}{ending}"))}">{kind}</a>' for kind, ending in named
        )
    texts = [*state.warnings, state.error] if state is not None else []
    said = "".join(f"<br>{html.escape(shown_name(text))}" for text in texts if text)
    kind = {"done": "done", "failed": "failed"}.get(row.result, "open")
    return (
        f'<tr><td>{picture}</td><td class="name">{html.escape(shown_name(row.item.name))}{links}</td>'
        f'<td class="n">{state.frames if state is not None else 0}</td><td class="n">{row.people_per_frame:.2f}</td>'
        f'<td class="n">{row.fps:.1f}</td><td class="text"><span class="{kind}">{row.result}</span>{said}</td></tr>'
    )


def _cell(text: str) -> str:
    shown = shown_name(text)
    return "'" + shown if shown.startswith(_FORMULA_SIGNS) else shown
