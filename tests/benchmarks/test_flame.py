"""Folding what py-spy saw into our own functions."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.flame import draw, main, stacks

STAGE = "thread (12): segment;Thread.run (threading.py:982);Pipeline._run_stage (pipeline/runtime.py:172)"

CALL = f"{STAGE};SegmentStage.process (pipeline/stage4_segment.py:50)"


def test_only_work_is_kept_and_named_by_our_functions() -> None:
    folded = "\n".join(
        (
            f"{CALL};SegmentStage.process (pipeline/x:1);OnnxEngine.run (engines/o);run (onnxruntime/x) 40",
            f"{STAGE};Channel.get (pipeline/channel.py:111);Condition.wait (threading.py:327) 900",
            f"{STAGE};SegmentStage.open (pipeline/stage4_segment.py:30);compile (numba/core.py:1) 70",
            f"{CALL};<listcomp> (pipeline/x.py:1) 2",
            "thread (1): MainThread;main (run_stream.py:89) 5",
        )
    )
    assert [*stacks(folded)] == [
        (("segment", "SegmentStage.process", "OnnxEngine.run", "ONNX Runtime"), 40),
        (("segment", "SegmentStage.process"), 2),
    ]


def test_picture_is_written(tmp_path: Path) -> None:
    draw(Counter({("a", "b"): 3, ("a",): 1, ("c",): 4}), tmp_path / "flame.png")
    assert (tmp_path / "flame.png").stat().st_size > 1000


def test_without_py_spy_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["flame", "clip.mp4", "--plot", str(tmp_path / "flame.png")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="py-spy is not installed: pip install py-spy"):
        main()
