"""Who may import whom, what an installation without extras can do, and that lists kept by hand match the code."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import pose2seg
from pipeline.batch.settings import BatchSettings
from pipeline.command_line import make_parser, parser_of
from pipeline.live.settings import LiveSettings
from pipeline.settings import Settings, flag_of

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("pipeline", "engines", "kernels", "training")
SCRIPTS = ("run_stream", "pose2seg")

# run_stream, pose2seg -> pipeline -> engines -> kernels; training -> engines, kernels
MAY_IMPORT = {
    "run_stream": {"pipeline"},
    "pose2seg": {"pipeline", "engines"},
    "pipeline": {"pipeline", "engines", "kernels"},
    "engines": {"engines", "kernels"},
    "kernels": {"kernels"},
    "training": {"training", "engines", "kernels"},
}
KERNELS_NEED = {"numpy", "numba", "cv2"}
TORCH_FAMILY = {"torch", "onnx", "onnxscript", "safetensors"}
TENSORRT = {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_libs", "torch2trt"}
# Files and the runtime libraries that only they import.
RUNTIMES = {
    "engines/onnx_engine.py": {"onnxruntime"},
    "engines/openvino_engine.py": {"openvino"},
    "engines/tensorrt_*.py": {*TENSORRT, "onnx"},
    "engines/torch2trt_converter.py": TENSORRT,
    "engines/half_precision.py": {"onnx"},
    "engines/graph_cost.py": {"onnx"},
    "engines/segment_cut.py": {"onnx"},
    "training/quantize.py": {"onnxruntime"},  # its quantisation tool, which writes graphs
}
ONLY_WITH_EXTRAS = (
    "tensorrt",
    "tensorrt_rtx",
    "torch2trt",
    "openvino",
    "torch",
    "onnx",  # of the base installation, but loaded where it is used: it takes its time
    "onnxscript",
    "safetensors",
    "matplotlib",
    "scipy",
    "PIL",
    "skimage",
    "pygame",
    "pyarrow",
    "supervision",
    *("aiohttp", "aioice", "aiortc", "prometheus_client"),
    "ray",
    "fsspec",
    "s3fs",
)
# Folders that are loaded once somebody asks for what they do; these files of theirs need no extra all the same.
WITH_AN_EXTRA = {"pipeline.serve": {"pipeline.serve", "pipeline.serve.listen"}}


def python_files(*tops: str) -> Iterator[Path]:
    for top in tops:
        if (ROOT / f"{top}.py").is_file():
            yield ROOT / f"{top}.py"
        yield from sorted((ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes_run_by_import(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node except the bodies of functions, and what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        for_checker = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_checker and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from nodes_run_by_import(child)


def imported_modules(path: Path, *, at_once: bool = False) -> set[str]:
    """Full names of all modules that a file imports: anywhere, or only those that importing the file imports."""
    names = set()
    tree = ast.parse(path.read_text(), str(path))
    for node in nodes_run_by_import(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tops(path: Path, *, at_once: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(path, at_once=at_once)}


def is_torch_module(path: Path) -> bool:
    """Whether the file may import torch: those that are named for it, in engines/ and kernels/."""
    named_for_it = path.name.startswith(("torch_", "torch2trt_"))
    return named_for_it and path.relative_to(ROOT).parts[0] in {"engines", "kernels"}


def runtimes_of(path: Path) -> set[str]:
    """Runtime libraries that a file may import."""
    name = path.relative_to(ROOT).as_posix()
    return set().union(*(names for pattern, names in RUNTIMES.items() if fnmatch.fnmatch(name, pattern)))


ALL_FILES = list(python_files(*PACKAGES, *SCRIPTS))
SERVING_FILES = [path for path in python_files("pipeline", "engines", "kernels", *SCRIPTS) if not is_torch_module(path)]


def test_files_were_found() -> None:
    assert {module_name(path).partition(".")[0] for path in ALL_FILES} == {*PACKAGES, *SCRIPTS}


@pytest.mark.parametrize("path", ALL_FILES, ids=module_name)
def test_imports_follow_the_flow(path: Path) -> None:
    own = module_name(path).partition(".")[0]
    ours = tops(path) & {*PACKAGES, *SCRIPTS, "tests", "examples", "benchmarks"}
    assert ours <= MAY_IMPORT[own], f"{own} must not import {sorted(ours - MAY_IMPORT[own])}"


@pytest.mark.parametrize("path", list(python_files("kernels")), ids=module_name)
def test_kernels_need_little(path: Path) -> None:
    allowed = KERNELS_NEED | ({"torch", "onnx", "onnxscript"} if is_torch_module(path) else set())
    foreign = tops(path) - {"kernels", "__future__"} - sys.stdlib_module_names
    assert foreign <= allowed


@pytest.mark.parametrize("path", SERVING_FILES, ids=module_name)
def test_serving_knows_nothing_of_torch(path: Path) -> None:
    allowed = {"onnx"} if runtimes_of(path) >= {"onnx"} else set()
    assert tops(path) & TORCH_FAMILY <= allowed
    if path.relative_to(ROOT).parts[0] == "kernels":
        reached = imported_modules(path)
    else:
        reached = imported_modules(path, at_once=True)  # engines and pipeline may load our torch files when they run
    assert not any(part.startswith(("torch_", "torch2trt_")) for name in reached for part in name.split("."))


@pytest.mark.parametrize("path", ALL_FILES, ids=module_name)
def test_runtime_libraries_stay_in_their_engine(path: Path) -> None:
    everywhere = {"onnxruntime", "openvino", *TENSORRT}
    assert tops(path) & everywhere <= runtimes_of(path)
    if not is_torch_module(path):  # every file imports on a machine that has only the base installation
        assert tops(path, at_once=True) & everywhere <= {"onnxruntime"}


def needs_an_extra(module: str) -> bool:
    folder = module if module in WITH_AN_EXTRA else module.rpartition(".")[0]
    return folder in WITH_AN_EXTRA and module not in WITH_AN_EXTRA[folder]


@pytest.mark.parametrize("path", SERVING_FILES, ids=module_name)
def test_files_with_an_extra_are_loaded_when_they_are_asked_for(path: Path) -> None:
    if not needs_an_extra(module_name(path)):
        assert not any(needs_an_extra(name) for name in imported_modules(path, at_once=True))


def run_python(code: str) -> str:
    """Run code in a fresh interpreter without a display; its stdout."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_but_training_imports_with_the_base_dependencies() -> None:
    modules = [name for name in map(module_name, SERVING_FILES) if not needs_an_extra(name)]
    assert any(needs_an_extra(module_name(path)) for path in SERVING_FILES)
    code = f"""
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {ONLY_WITH_EXTRAS!r}:
            raise ModuleNotFoundError(f'{{name}} is not part of the base installation', name=name)
sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
print('done')
"""
    assert run_python(code) == "done\n"


def test_importing_engines_loads_no_runtime() -> None:
    assert run_python("import sys, engines, pipeline.settings; print('onnxruntime' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", ["engines", "pipeline", "pose2seg"])
def test_public_names_exist_once(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__) > 0
    assert [listed for listed in module.__all__ if not hasattr(module, listed)] == []


def test_public_names_of_the_user_facing_module() -> None:
    """What users may write; taking a name away breaks them, so it takes an edit here too."""
    assert {
        "stream",
        "FrameResult",
        "Person",
        "PipelineError",
        "SettingsError",
        "SourceError",
        "SinkError",
        "StageError",
        "EngineError",
    } <= set(pose2seg.__all__)


def test_one_flag_for_each_setting() -> None:
    by_field = {action.dest: action for action in make_parser()._actions if action.dest != "help"}
    assert set(by_field) == {option.name for option in fields(Settings)}
    for name, action in by_field.items():
        flags = [flag for flag in action.option_strings if not flag.startswith("--no-")]
        assert flags == ([] if name == "source" else [flag_of(name)])
        assert action.help


def test_stream_takes_the_settings_that_make_sense_in_python() -> None:
    """Same names and defaults as the flags; outputs and the terminal are the command's own business."""
    command_only = {
        *("output", "pipe", "json", "coco", "coco_images", "table", "export", "export_every", "sheet", "overwrite"),
        "show",
        *(
            "layer",
            "layer_ids",
            "layer_background",
            "refine_edges",
            "steady_edges",
            "cover_frames",
            "hide_ahead",
            "hide",
            "draw",
        ),
        *("video_crf", "video_preset", "video_encoder", "stats_every_s", "debug"),
    }
    parameters = inspect.signature(pose2seg.stream).parameters
    assert set(parameters) == {option.name for option in fields(Settings)} - command_only
    for option in fields(Settings):
        if option.name in parameters and option.name != "source":
            assert parameters[option.name].default == option.default, option.name


def test_readme_names_only_flags_that_exist() -> None:
    kinds = (BatchSettings, LiveSettings)
    parsers = (make_parser(), *(parser_of(kind, prog="x", description="", epilog="") for kind in kinds))
    flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    commands = re.findall(r"(?:pose2seg|run_stream\.py) .*", (ROOT / "README.md").read_text())
    used = {flag for command in commands for flag in re.findall(r"(?<![\w-])--[a-z-]+", command)}
    assert used
    assert used <= flags


def test_package_list_is_complete() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    found = {module_name(path.parent / "__init__.py") for top in PACKAGES for path in (ROOT / top).rglob("*.py")}
    assert set(setuptools["packages"]) == found
    assert set(setuptools["py-modules"]) == set(SCRIPTS)
    for package in found:
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file()


def test_package_data_is_complete() -> None:
    names = [
        path.relative_to(ROOT).as_posix()
        for top in PACKAGES
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, listed in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in listed
    ]
    assert names
    for name in names:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"{name} would not be installed"


def test_names_say_what_they_hold() -> None:
    forbidden = re.compile(r"(^|_)(utils?|helpers?|managers?|common|misc|base|handlers?|processors?)($|_)")
    for path in ALL_FILES:
        assert not forbidden.search(path.stem), path
        if path.stem != "__init__":
            assert path.stem not in sys.stdlib_module_names, f"{path} hides a standard module's name"


def test_nothing_points_out_of_the_repository() -> None:
    """Absolute paths of somebody's machine have no place in code."""
    for path in [*ALL_FILES, *python_files("tests", "examples", "benchmarks")]:
        for line, text in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(r"[\"'](/home/|/root/|/Users/)", text), f"{path}:{line}"


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    wanted = PYPROJECT["project"]["dependencies"] + [
        requirement for extra in PYPROJECT["project"]["optional-dependencies"].values() for requirement in extra
    ]
    assert {re.split(r"[<>=\[; ]", requirement)[0].lower() for requirement in wanted} <= pinned
    assert "torch==2.13.0" in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()


def test_hooks_use_the_pinned_ruff() -> None:
    pinned = re.findall(r"ruff==[\d.]+", (ROOT / "requirements" / "constraints.txt").read_text())
    assert set(re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())) == set(pinned)
