"""The pack for a GPU machine without network: parts that arrive one after the other, and one that arrives damaged."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
LIBRARY = "libtensorrt_rtx.so.1"
CONTENT = bytes(range(256)) * 40


def wheel(path: Path) -> None:
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("tiny.py", "answer = 42\n")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        made.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{info}/RECORD", "")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two parts as pack_gpu.sh deals them: a library in two pieces, a wheel with the second."""
    made = [tmp_path / "part1", tmp_path / "part2"]
    for part in made:
        part.mkdir()
        shutil.copy(SCRIPTS / "unpack_gpu.sh", part / "unpack.sh")
    packed = lzma.compress(CONTENT)
    (made[0] / f"{LIBRARY}.xz.000").write_bytes(packed[:100])
    (made[1] / f"{LIBRARY}.xz.001").write_bytes(packed[100:])
    wheel(made[1] / "tiny-1.0-py3-none-any.whl")
    files = [file for part in made for file in part.iterdir() if file.name != "unpack.sh"]
    manifest = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files))
    for part in made:
        (part / "MANIFEST").write_text(manifest)
    return made


def unpack(part: Path, target: Path) -> str:
    environment = {**os.environ, "PYTHON": sys.executable, "POSE2SEG_PACK": str(target.parent / "store")}
    done = subprocess.run(
        ["bash", str(part / "unpack.sh"), str(target)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parts_complete_each_other_in_any_order(parts, tmp_path):
    target = tmp_path / "site"
    said = unpack(parts[1], target)
    assert f"not here yet: {LIBRARY}" in said
    assert (target / "tiny.py").read_text() == "answer = 42\n"
    assert not (target / "tensorrt_rtx_libs" / LIBRARY).exists()
    said = unpack(parts[0], target)
    assert f"not here yet: {LIBRARY} " not in said
    assert (target / "tensorrt_rtx_libs" / LIBRARY).read_bytes() == CONTENT
    unpack(parts[0], target)  # again does no harm


def test_a_damaged_piece_is_not_installed(parts, tmp_path):
    piece = parts[0] / f"{LIBRARY}.xz.000"
    piece.write_bytes(piece.read_bytes()[:-1] + b"!")
    target = tmp_path / "site"
    unpack(parts[1], target)
    assert f"not here yet: {LIBRARY} " in unpack(parts[0], target)
    assert not (target / "tensorrt_rtx_libs" / LIBRARY).exists()


@pytest.mark.parametrize("script", ["pack_gpu.sh", "unpack_gpu.sh"])
def test_scripts_are_sound_shell(script):
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    assert os.access(SCRIPTS / script, os.X_OK)
