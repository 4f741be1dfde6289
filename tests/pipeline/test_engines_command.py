"""``pose2seg engines``: what it lists on each kind of machine, builds, and removes."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

import run_stream
from engines import EngineLoadError, EngineOptions
from engines.engine import Progress
from engines.nvidia_driver import Gpu, NvidiaDriver
from engines.selection import Library
from pipeline.command_line import COMMANDS, command_of
from pipeline.engines_command import main
from pipeline.errors import SettingsError
from pipeline.progress import announce_on
from tests.clips import write_video
from tests.magenta_model import write_magenta_model

H100 = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30)


class Machine:
    def __init__(self, *gpus: Gpu, driver: str = "580.95.05", **libraries: str) -> None:
        self.driver = (
            NvidiaDriver(version=driver, cuda=(13, 0), gpus=gpus)
            if gpus
            else NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)")
        )
        self._versions = {name.replace("_", "-"): version for name, version in {"onnx": "1.32.0", **libraries}.items()}

    def library(self, engine: str) -> Library | None:
        version = self._versions.get(engine)
        return None if version is None else Library(version, 13)


LAPTOP = Machine()
SERVER = Machine(H100, tensorrt="11.4.0", torch="2.11.0+cu130")


@dataclass
class Built:
    plan: bytes
    layers: list[str] = field(default_factory=lambda: ["PLUGIN_V3", "CONVOLUTION"])


class Builder:
    def __init__(self, size: int = 5000, fail: str = "") -> None:
        self.asked: list[tuple[str, str, EngineOptions, str]] = []
        self._size, self._fail = size, fail

    def __call__(self, path: Path, library: str, options: EngineOptions, converter: str, progress: Progress) -> Built:
        self.asked.append((path.name, library, options, converter))
        if path.name == self._fail:
            raise EngineLoadError(f"{path}: unknown operator")
        progress(0.5, "half")
        return Built(bytes(self._size))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_magenta_model(tmp_path / "model", long_side=160))


def listed(capsys, machine: Machine) -> dict:
    assert main(["list", "--json"], machine) == 0
    return json.loads(capsys.readouterr().out)


def test_a_laptop(capsys) -> None:
    found = listed(capsys, LAPTOP)
    assert found["auto"] == "onnx"
    assert found["gpus"] == []
    engines = {engine["name"]: engine for engine in found["engines"]}
    assert list(engines) == ["tensorrt", "tensorrt-rtx", "torch", "openvino", "onnx"]
    assert [name for name, engine in engines.items() if engine["available"]] == ["onnx"]
    assert engines["onnx"]["version"] == "1.32.0"
    assert "no NVIDIA driver" in engines["tensorrt"]["problem"]
    assert engines["openvino"]["remedy"] == "pip install openvino"
    assert found["segment_graph"] == "windows by our kernel, 112 channels of 64 x 64"
    assert found["cache"]["plans"] == []


def test_a_server(capsys) -> None:
    found = listed(capsys, SERVER)
    assert found["auto"] == "tensorrt"
    assert found["gpus"] == [{"index": 0, "name": "NVIDIA H100", "capability": [9, 0], "memory_bytes": 80 << 30}]
    engines = {engine["name"]: engine for engine in found["engines"]}
    assert engines["tensorrt"]["device"] == "cuda:0 NVIDIA H100"
    assert engines["tensorrt-rtx"]["problem"] == "it is not installed"


def test_torch_on_a_laptop_is_there_by_name(capsys) -> None:
    engines = {engine["name"]: engine for engine in listed(capsys, Machine(torch="2.13.0+cpu"))["engines"]}
    assert (engines["torch"]["available"], engines["torch"]["by_name_only"]) == (True, True)
    assert engines["torch"]["device"] == "cpu"


def test_the_table_is_for_people(capsys, model) -> None:
    main(["build", "--model", model], SERVER, Builder())
    capsys.readouterr()
    assert main(["list"], SERVER) == 0
    text = capsys.readouterr().out
    for wanted in (
        "NVIDIA driver 580.95.05, CUDA 13.0",
        "takes this",
        "pip install tensorrt-rtx",
        "2 plans, 1",
        "windows by our",
    ):
        assert wanted in text
    assert "segment.onnx" in text
    assert "windows by our kernel" in text
    assert "tensorrt 11.4.0, GPU NVIDIA H100" in text
    assert "valid" in text


def test_build_makes_what_a_run_will_look_for(capsys, model) -> None:
    builder = Builder()
    assert main(["build", "--model", model], SERVER, builder) == 0
    assert [(graph, library, converter) for graph, library, _, converter in builder.asked] == [
        ("keypoints.onnx", "tensorrt", "onnx"),
        ("segment.onnx", "tensorrt", "onnx"),
    ]
    assert builder.asked[0][2] == EngineOptions(long_side=160)
    capsys.readouterr()
    assert main(["build", "--model", model], SERVER, builder) == 0
    assert len(builder.asked) == 2
    assert capsys.readouterr().out.count("was there") == 2
    plans = listed(capsys, SERVER)["cache"]["plans"]
    assert [(plan["state"], plan["why"]) for plan in plans] == [("valid", ""), ("valid", "")]
    assert plans[0]["made_for"]["long_side"] == 160


def test_flags_reach_the_builder(model) -> None:
    builder = Builder()
    flags = ("--precision", "int8", "--long-side", "320", "--max-batch", "2", "--max-people", "64")
    more = ("--converter", "torch2trt", "--engine", "tensorrt", "--device", "cuda:0")
    assert main(["build", "--model", model, *flags, *more], SERVER, builder) == 0
    _, library, options, converter = builder.asked[0]
    assert (library, converter) == ("tensorrt", "torch2trt")
    assert options == EngineOptions(precision="int8", long_side=320, max_batch=2, max_people=64, device="cuda:0")


def test_rtx_builds_without_a_gpu(model) -> None:
    builder = Builder()
    assert main(["build", "--model", model], Machine(tensorrt_rtx="1.7.1"), builder) == 0
    assert {library for _, library, *_ in builder.asked} == {"tensorrt-rtx"}


def test_the_other_converter_says_what_to_install(model, capsys) -> None:
    """torch2trt is on no package index, so no test has it."""
    pytest.importorskip("tensorrt_rtx")
    arguments = ["engines", "build", "--engine", "tensorrt-rtx", "--converter", "torch2trt", "--model", model]
    assert run_stream.main(arguments) == 4
    assert "torch2trt is not installed: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["tensorrt", "all"])
def test_nothing_to_build_with(model, engine) -> None:
    with pytest.raises(EngineLoadError, match=r"no plan can be built here .*no NVIDIA driver"):
        main(["build", "--model", model, "--engine", engine], LAPTOP, Builder())


def test_one_graph_that_fails_does_not_stop_the_other(capsys, model) -> None:
    builder = Builder(fail="keypoints.onnx")
    with pytest.raises(EngineLoadError, match="unknown operator"):
        main(["build", "--model", model], SERVER, builder)
    assert len(builder.asked) == 2
    assert "failed" in capsys.readouterr().out


def test_plans_that_cannot_be_kept_are_an_output_error(tmp_path, monkeypatch, model, caplog) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "file"))
    assert main(["build", "--model", model], SERVER, Builder()) == 5
    assert os.strerror(errno.EEXIST) in caplog.text


def test_clean_takes_stale_and_damaged_plans(capsys, cache, model) -> None:
    main(["build", "--model", model], SERVER, Builder())
    capsys.readouterr()
    assert main(["clean"], SERVER) == 0
    assert "removed 0 plans, 0 B; 2 stay" in capsys.readouterr().out
    os.truncate(next(cache.glob("*.plan")), 10)
    states = [plan["state"] for plan in listed(capsys, SERVER)["cache"]["plans"]]
    assert sorted(states) == ["damaged", "valid"]
    assert main(["clean", "--stale"], SERVER) == 0
    assert "removed 1 plans" in capsys.readouterr().out
    updated = Machine(H100, driver="590.10", tensorrt="11.4.0", torch="2.11.0+cu130")
    (plan,) = listed(capsys, updated)["cache"]["plans"]
    assert (plan["state"], plan["why"]) == ("stale", "driver was 580.95.05, is 590.10")
    assert main(["clean"], updated) == 0
    assert list(cache.iterdir()) == []


def test_clean_by_age_and_all(capsys, cache, model) -> None:
    main(["build", "--model", model], SERVER, Builder())
    old = time.time() - 10 * 86400
    os.utime(next(cache.glob("*.json")), (old, old))
    main(["clean", "--older-than", "30"], SERVER)
    assert "removed 0 plans" in capsys.readouterr().out
    main(["clean", "--older-than", "9"], SERVER)
    assert "removed 1 plans" in capsys.readouterr().out
    main(["clean", "--all"], SERVER)
    assert "removed 1 plans" in capsys.readouterr().out
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------------------------------------- as part of the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: list|build|clean|export-triton (see pose2seg engines --help)"),
        (("lst",), "invalid choice: 'lst'"),
        (("build", "--engine", "onnx"), "choose from"),
        (("build", "--max-batch", "0"), "--max-batch: must be from 1 to 4096, got 0"),
        (("build", "--max-people", "x"), "--max-people: must be a whole number, got 'x'"),
        (("build", "--device", "cpu"), "--device: must be cuda or cuda:N, got 'cpu'"),
        (("build", "--precision", "half"), "float16"),
        (("clean", "--older-than", "-1"), "--older-than: must be from 1 to 36500, got -1"),
        (("list", "--jso"), "unrecognized arguments: --jso"),
    ],
)
def test_flags_that_cannot_be(capsys, arguments, message) -> None:
    with pytest.raises(SettingsError) as caught:
        main(arguments)
    assert message in str(caught.value)
    assert run_stream.main(["engines", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_on_this_machine(capsys) -> None:
    assert run_stream.main(["engines", "list", "--json", "--debug"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auto"] in {"tensorrt", "tensorrt-rtx", "torch", "onnx"}
    assert run_stream.main(["engines", "clean"]) == 0


def test_an_unsafe_cache_is_an_engine_error(capsys, cache) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    for arguments in (("list",), ("clean",)):
        assert run_stream.main(["engines", *arguments]) == 4
        assert "may be written by others" in capsys.readouterr().err


def test_a_run_says_which_engine_and_a_named_one_is_an_error(tmp_path, capsys, model) -> None:
    video = str(write_video(tmp_path / "in.mp4", 3))
    assert run_stream.main([video, "--model", model, "--device", "cpu"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "engine " in line)
    assert line.startswith("INFO engine onnx: onnxruntime ")
    assert "(auto; not tensorrt, tensorrt-rtx, torch: it needs a GPU, not --device cpu)" in line
    assert run_stream.main([video, "--model", model, "--device", "cpu", "--engine", "tensorrt"]) == 4
    assert "engine tensorrt cannot be used: it needs a GPU, not --device cpu" in capsys.readouterr().err
    assert run_stream.main([video, "--model", model, "--device", "cuda:99"]) == 4
    assert "no engine can run here" in capsys.readouterr().err


def test_a_source_that_is_called_like_a_command(tmp_path, monkeypatch, capsys) -> None:
    assert command_of(["./engines"]) is None
    assert command_of([]) is None
    assert command_of(["--debug", "engines"]) is None
    monkeypatch.chdir(tmp_path)
    assert run_stream.main(["./engines"]) == 3  # a missing source
    assert "./engines: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_help(capsys, name) -> None:
    with pytest.raises(SystemExit) as caught:
        run_stream.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: pose2seg {name}" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- progress of building


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with announce_on(console)("building [a] plan") as progress:
        progress(0.25, "tactics")
        time.sleep(0.15)
    assert "building [a] plan" in screen.getvalue()
    assert "25%" in screen.getvalue()


def test_no_terminal_gets_lines(caplog) -> None:
    console = Console(file=io.StringIO())
    with caplog.at_level(logging.INFO), announce_on(console)("building a plan") as progress:
        progress(0.25, "tactics")
    assert caplog.messages[0] == "building a plan ..."
    assert caplog.messages[1].startswith("building a plan: done in 0.0 s")
