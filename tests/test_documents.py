"""Documents: docs/paper.md leads from equations to functions and tests; every name in it must exist, and every link."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.findall(r"`([^`]+)`", (ROOT / "docs" / "paper.md").read_text())
TESTS = [name for name in NAMED if "::" in name]
FUNCTIONS = [name for name in NAMED if re.fullmatch(r"(kernels|training|pipeline|engines)(\.\w+)+", name)]

PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md"))


def names_in(path: Path) -> set[str]:
    """Top-level functions, classes and constants of a file."""
    names = set()
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_page_was_read() -> None:
    assert len(TESTS) >= 10
    assert len(FUNCTIONS) >= 10


@pytest.mark.parametrize("name", sorted(set(TESTS)))
def test_tests_named_in_the_page_exist(name: str) -> None:
    path, _, test = name.partition("::")
    assert test in names_in(ROOT / path)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS)))
def test_functions_named_in_the_page_exist(name: str) -> None:
    module, _, function = name.rpartition(".")
    path = ROOT / module.replace(".", "/")
    assert function in names_in(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda p: p.name
)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
