"""Compile every CUDA source for all architectures and say what each kernel needs: `python -m kernels.native [--json]`.

Needs nvcc, but no GPU. The exit status is 1 where a source does not compile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.native.compile import CUDA_ARCHITECTURES, NativeBuildError, fatbin, find_nvcc, resource_report

PACKAGE = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.native", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    options = parser.parse_args(arguments)
    sources = []
    try:
        for source in sorted(PACKAGE.glob("*/*.cu")):
            rows = sorted(resource_report(source), key=lambda row: str(row["kernel"]))
            name = source.relative_to(PACKAGE).as_posix()
            sources.append({"source": name, "fatbin_bytes": len(fatbin(source)), "kernels": rows})
    except NativeBuildError as error:
        print(error, file=sys.stderr)  # noqa: T201  a command talks to a person
        return 1
    report = {"compiler": find_nvcc(), "architectures": CUDA_ARCHITECTURES, "sources": sources}
    print(json.dumps(report, indent=1) if options.json else _table(sources))  # noqa: T201
    return 0


def _table(sources: Sequence[dict[str, object]]) -> str:
    lines = []
    for source in sources:
        rows = source["kernels"]
        assert isinstance(rows, list)  # noqa: S101  made above
        names = list(dict.fromkeys(row["kernel"] for row in rows))
        width = max(map(len, names), default=0)
        lines += [
            f"{source['source']}: {source['fatbin_bytes']} bytes for all architectures",
            "registers of a thread (s shared, l local, spilled bytes where there are any)",
            " ".join([" " * width, *(f"{'sm_' + one:>11}" for one in CUDA_ARCHITECTURES)]),
        ]
        for name in names:
            cells = {row["architecture"]: _cell(row) for row in rows if row["kernel"] == name}
            lines.append(" ".join([f"{name:{width}}", *(f"{cells.get(one, '-'):>11}" for one in CUDA_ARCHITECTURES)]))
        lines.append("")
    return "\n".join(lines)


def _cell(row: dict[str, object]) -> str:
    spilled = f"!{row['spill_store_bytes']}" if row["spill_store_bytes"] else ""
    shared = f"s{row['shared_bytes']}" if row["shared_bytes"] else ""
    local = f"l{row['stack_bytes']}" if row["stack_bytes"] else ""
    return f"{row['registers']}{shared}{local}{spilled}"


if __name__ == "__main__":
    sys.exit(main())
