"""The examples of docs/interop.md, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clips import write_video

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "interop.md").read_text()
NOT_INSTALLED = ("fiftyone",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.ffmpeg
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_examples_of_the_page(tmp_path, model_folder) -> None:
    write_video(tmp_path / "walk.mp4", 25)
    command = f'{sys.executable} {ROOT / "run_stream.py"} "$@" --model {model_folder}'
    shell = f"set -e -o pipefail\npose2seg() {{ {command}; }}\n{blocks('sh')[0]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in (
        *("walk_coco/labels.json", "walk_cvat/annotations/instances_default.json", "walk_pose/data.yaml"),
        *("walk_seg/data.yaml", "walk.parquet", "walk.srt", "walk.vtt", "walk_small.mp4"),
        *("results/walk.mp4.parquet", "results/walk.mp4.srt"),
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    ran = 0
    for code in blocks("python"):
        if not any(f"import {name}" in code for name in NOT_INSTALLED):
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout
            ran += 1
    assert ran == 2


def test_the_columns_are_those_of_the_table() -> None:
    from pipeline.exports.parquet_table import COLUMNS

    rows = re.search(r"\| column \| type \| meaning \|\n\|.*?\n(.*?)\n\n", PAGE, re.DOTALL)[1].splitlines()
    described = {name: row.split("|")[2].strip() for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    kinds = dict(COLUMNS)
    assert {name: kinds[name] for name in described} == described
    assert set(kinds) - set(described) == {name for name, _ in COLUMNS[-16 * 3 :]}
