"""Builds one plan in a process of its own, which TensorRT may end: JSON on the command line in, JSON out.

python tensorrt_build_report.py '{"graph": "f.onnx", "options": {"precision": "float16"}, "keep": "f.plan"}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engines import EngineError, EngineOptions
from engines.tensorrt_build import build_plan


def main() -> None:
    wish = json.loads(sys.argv[1])
    told: list[tuple[float, str]] = []
    try:
        built = build_plan(
            wish.get("library", "tensorrt-rtx"),
            wish["graph"],
            EngineOptions(**wish.get("options", {})),
            capabilities=wish.get("capabilities", ()),
            affine_align=wish.get("affine_align", "auto"),
            progress=lambda share, phase: told.append((share, phase)),
        )
    except EngineError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return
    if "keep" in wish:
        Path(wish["keep"]).write_bytes(built.plan)
    counts = {kind: built.layers.count(kind) for kind in sorted(set(built.layers))}
    shares = [share for share, _ in told]
    print(
        json.dumps(
            {
                "bytes": len(built.plan),
                "layers": counts,
                "affine_align": built.affine_align,
                "precision": built.precision,
                "profile": {name: [list(shape) for shape in shapes] for name, shapes in built.profile.items()},
                "progress": {"calls": len(told), "grows": shares == sorted(shares), "last": shares[-1]},
            }
        )
    )


if __name__ == "__main__":
    main()
