"""A reproduced table as a terminal table, as Markdown and as JSON: the paper's figure, ours, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: for each column the printed figure and ours; None where there is none."""

    label: str
    published: tuple[float | None, ...]
    ours: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is printed and kept."""

    name: str
    title: str  # says honestly what was measured
    source: str  # where the printed figures stand
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # weights, sets, versions


def difference(published: float | None, ours: float | None) -> float | None:
    """Ours less the printed figure."""
    return None if published is None or ours is None else ours - published


def figure(value: float | None, *, sign: bool = False) -> str:
    """0.5444 -> .544, 4731 -> 4,731, 19.6 -> 19.6, None -> a dash."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    if abs(value) >= 2:
        return f"{value:+.1f}" if sign else f"{value:.1f}"
    text = f"{abs(value):.3f}".removeprefix("0")
    return ("-" if value < 0 else "+" if sign else "") + text


def cell_texts(line: Line) -> list[tuple[str, str, str]]:
    """(printed, ours, difference) of each column."""
    return [
        (figure(published), figure(ours), figure(difference(published, ours), sign=True))
        for published, ours in zip(line.published, line.ours, strict=True)
    ]


def terminal(result: Result) -> RichTable:
    """For people at a terminal. Brackets stay what they are."""
    table = RichTable(title=escape(result.title), caption=escape("\n".join(result.notes)), caption_justify="left")
    table.add_column(escape(result.source))
    for column in result.columns:
        table.add_column(f"{escape(column)}\npaper / ours / diff", justify="right")
    for line in result.lines:
        table.add_row(escape(line.label), *(" / ".join(texts) for texts in cell_texts(line)))
    return table


def markdown(result: Result) -> str:
    """For documents; three columns for each of the table's."""
    heads = [f"{column}: paper | ours | diff" for column in result.columns]
    lines = [
        f"**{result.title}**",
        "",
        f"| {_escaped(result.source)} | {' | '.join(heads)} |",
        f"|---|{'---:|---:|---:|' * len(result.columns)}",
    ]
    for line in result.lines:
        cells = [text for texts in cell_texts(line) for text in texts]
        lines.append(f"| {_escaped(line.label)} | {' | '.join(cells)} |")
    lines += [f"\n{note}" for note in result.notes]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def document(result: Result) -> dict[str, Any]:
    """For programs; every figure with its difference, unrounded as measured."""
    rows = []
    for line in result.lines:
        cells = [
            {
                "column": column,
                "published": published,
                "ours": ours,
                "difference": _rounded(difference(published, ours)),
            }
            for column, published, ours in zip(result.columns, line.published, line.ours, strict=True)
        ]
        rows.append({"label": line.label, "cells": cells})
    return {
        "schema": SCHEMA,
        "suite": "reproduce",
        "table": result.name,
        "title": result.title,
        "source": result.source,
        "rows": rows,
        "notes": list(result.notes),
        **result.details,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def from_document(content: dict[str, Any]) -> Result:
    """`document` back, as far as it is printed."""
    rows: Sequence[dict[str, Any]] = content["rows"]
    return Result(
        name=content["table"],
        title=content["title"],
        source=content["source"],
        columns=tuple(cell["column"] for cell in rows[0]["cells"]) if rows else (),
        lines=tuple(
            Line(
                label=row["label"],
                published=tuple(cell["published"] for cell in row["cells"]),
                ours=tuple(cell["ours"] for cell in row["cells"]),
            )
            for row in rows
        ),
        notes=tuple(content["notes"]),
    )
