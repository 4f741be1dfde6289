"""``pose2seg engines``: what can run the networks here, and the plans that were compiled for this machine."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines import ENGINE_NAMES, PRECISIONS, EngineError, EngineLoadError, EngineOptions, default_artifact
from engines.artifact import load_artifact
from engines.engine import DEFAULT_OPTIONS, DEVICE_PATTERN
from engines.plan_cache import Entry, PlanCache
from engines.planned_engine import CONVERTERS, Build, plan_of, staleness
from engines.segment_cut import how_segment_runs
from engines.selection import AUTO_ORDER, PLAN_ENGINES, Candidate, Machine, ThisMachine, candidate
from engines.triton_repository import TritonOptions, export_triton
from pipeline.command_line import SettingsParser, read_path, read_whole_number
from pipeline.errors import EXIT_OK, EXIT_SINK, SettingsError, SinkError
from pipeline.progress import announce_on

log = logging.getLogger(__name__)

PLAIN_WIDTH: Final = 150
"""Columns of the tables where the output is no terminal."""

_DAY_S: Final = 86400.0


def main(arguments: Sequence[str], machine: Machine | None = None, build: Build | None = None) -> int:
    """Run the command.

    Args:
        arguments: without ``engines``.
        machine: whose engines; this machine's by default.
        build: makes plans; TensorRT by default.

    Returns:
        Exit code, see `pipeline.errors`.

    Raises:
        SettingsError: a flag or value that cannot be used.
        EngineError: a plan cannot be built, or the cache folder is not safe.
    """
    flags = _parser().parse_args(arguments)
    machine = machine if machine is not None else ThisMachine()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    if flags.command == "build":
        return _build(flags, machine, build, console)
    if flags.command == "clean":
        return _clean(flags, machine, console)
    if flags.command == "export-triton":
        return _export_triton(flags, console)
    found = describe(machine)
    if flags.json:
        print(json.dumps(found, indent=1))  # noqa: T201  plain, so that another program can read it
    else:
        _show(found, console)
    return EXIT_OK


def describe(machine: Machine) -> dict[str, Any]:
    """Everything that ``engines list`` tells, as plain JSON values."""
    engines = [_engine(name, machine) for name in ENGINE_NAMES if name != "auto"]
    chosen = next((name for name in AUTO_ORDER if not candidate(name, DEFAULT_OPTIONS, machine).problem), None)
    cache = PlanCache()
    try:
        folder = str(cache.folder())
    except OSError as error:
        folder = f"none ({error})"
    driver = machine.driver
    return {
        "auto": chosen,
        "engines": engines,
        "segment_graph": how_segment_runs(default_artifact() / "segment.onnx"),
        "driver": {"version": driver.version, "cuda": list(driver.cuda), "problem": driver.problem},
        "gpus": [{**asdict(gpu), "capability": list(gpu.capability)} for gpu in driver.gpus],
        "cache": {"folder": folder, "plans": [_plan(entry, machine) for entry in cache.entries()]},
    }


def _engine(name: str, machine: Machine) -> dict[str, Any]:
    found = candidate(name, DEFAULT_OPTIONS, machine)
    by_name_only = name not in AUTO_ORDER
    if found.problem and name == "torch":
        on_cpu = candidate(name, EngineOptions(device="cpu"), machine, may_be_slow=True)
        if machine.driver.problem and not on_cpu.problem:
            found, by_name_only = on_cpu, True
    library = machine.library(name)
    return {
        "name": name,
        "available": not found.problem,
        "by_name_only": by_name_only,
        "version": library.version if library is not None else None,
        "device": None if found.problem else _device(found),
        "problem": found.problem,
        "remedy": found.remedy,
    }


def _device(found: Candidate) -> str:
    return found.device if found.gpu is None else f"{found.device} {found.gpu.name}"


def _plan(entry: Entry, machine: Machine) -> dict[str, Any]:
    why = entry.problem or (staleness(entry.key, machine) if entry.key is not None else "")
    state = "damaged" if entry.problem else "stale" if why else "valid"
    return {
        "key": entry.digest,
        "state": state,
        "why": why,
        "graph": entry.graph,
        "bytes": entry.size_bytes,
        "created_s": entry.created_s,
        "used_s": entry.used_s,
        "made_for": asdict(entry.key) if entry.key is not None else None,
    }


def _show(found: dict[str, Any], console: Console) -> None:
    driver = found["driver"]
    title = f"NVIDIA driver {driver['version']}, CUDA {'.'.join(map(str, driver['cuda']))}"
    if not driver["version"]:
        title = driver["problem"]
    table = Table(title=Text(title), title_justify="left")
    for heading in ("engine", "version", "device", "available", "auto"):
        table.add_column(heading, overflow="fold")
    for engine in found["engines"]:
        refusal = ": ".join(filter(None, (engine["problem"], engine["remedy"])))
        table.add_row(
            engine["name"],
            engine["version"] or "-",
            Text(engine["device"] or "-"),
            Text("yes" if engine["available"] else refusal),
            "takes this" if engine["name"] == found["auto"] else "by name only" if engine["by_name_only"] else "",
        )
    console.print(table)
    console.print(Text(f"segment graph of the default model on onnx and openvino: {found['segment_graph']}"))
    plans = found["cache"]["plans"]
    total = _size(sum(plan["bytes"] for plan in plans))
    caption = Text(f"{len(plans)} plans, {total}, in {found['cache']['folder']}")
    if not plans:
        console.print(caption)
        return
    table = Table(title=caption, title_justify="left")
    for heading in ("key", "graph", "made for", "precision", "size", "age", "state"):
        table.add_column(heading, overflow="fold", justify="right" if heading in {"size", "age"} else "left")
    for plan in plans:
        key = plan["made_for"]
        made_for = f"{key['library']} {key['library_version']}, GPU {key['gpu']}" if key else "-"
        state = f"{plan['state']}: {plan['why']}" if plan["why"] else plan["state"]
        table.add_row(
            plan["key"][:12],
            Text(plan["graph"] or "-"),
            Text(made_for),
            key["precision"] if key else "-",
            _size(plan["bytes"]),
            _age(time.time() - plan["created_s"]) if plan["created_s"] else "-",
            Text(state),
        )
    console.print(table)


def _build(flags: argparse.Namespace, machine: Machine, build: Build | None, console: Console) -> int:
    artifact = load_artifact(flags.model if flags.model is not None else default_artifact())
    libraries = _buildable(flags.engine, flags.device, machine)
    options = EngineOptions(
        device=flags.device,
        precision=flags.precision,
        max_batch=flags.max_batch,
        max_people=flags.max_people,
        long_side=flags.long_side if flags.long_side is not None else artifact.long_side,
    )
    announce = announce_on(Console(stderr=True, highlight=False))
    table = Table(title="plans", title_justify="left")
    for heading in ("engine", "graph", "layers", "size", "time", "kept"):
        table.add_column(heading, justify="right" if heading in {"layers", "size", "time"} else "left")
    failures: list[EngineError] = []
    all_kept = True
    for library in libraries:
        for graph in artifact.graphs:
            started = time.monotonic()
            try:
                made = plan_of(
                    artifact.graph_path(graph),
                    library,
                    options,
                    converter=flags.converter,
                    announce=announce,
                    machine=machine,
                    build=build,
                )
            except EngineLoadError as error:
                failures.append(error)
                table.add_row(library, graph, "-", "-", "-", "failed")
                continue
            seconds = "-" if made.from_cache else f"{time.monotonic() - started:.1f} s"
            kept = "was there" if made.from_cache else "yes" if made.stored else "no"
            table.add_row(library, graph, str(len(made.layers)), _size(len(made.plan)), seconds, kept)
            all_kept &= made.stored
    console.print(table)
    for failure in failures[:-1]:
        log.error("%s", failure)
    if failures:
        raise failures[-1]
    return EXIT_OK if all_kept else EXIT_SINK


def _buildable(wanted: str, device: str | None, machine: Machine) -> list[str]:
    """The libraries to build with. TensorRT for RTX builds without a GPU, TensorRT on the GPU that it builds for.

    Raises:
        EngineLoadError: the one that is asked for cannot build here, or none can.
    """
    refusals = []
    possible = []
    for name in PLAN_ENGINES if wanted == "all" else (wanted,):
        found = candidate(name, EngineOptions(device=device), machine)
        without_gpu = name == "tensorrt-rtx" and not machine.driver.gpus and machine.library(name) is not None
        if not found.problem or without_gpu:
            possible.append(name)
        else:
            refusals.append(f"{name}: {found.refusal}")
    if not possible:
        raise EngineLoadError(f"no plan can be built here ({'; '.join(refusals)})")
    for refusal in refusals:
        log.info("not built: %s", refusal)
    return possible


def _clean(flags: argparse.Namespace, machine: Machine, console: Console) -> int:
    oldest = time.time() - flags.older_than * _DAY_S if flags.older_than is not None else None
    stale = flags.stale or (oldest is None and not flags.all)

    def unwanted(entry: Entry) -> bool:
        if flags.all or (oldest is not None and entry.used_s < oldest):
            return True
        return stale and (bool(entry.problem) or entry.key is None or bool(staleness(entry.key, machine)))

    cache = PlanCache()
    try:
        removed = cache.remove(unwanted)
    except OSError as error:
        raise SettingsError(f"the plan cache cannot be cleaned ({error}): check the folder's permissions") from error
    freed = _size(sum(entry.size_bytes for entry in removed))
    console.print(Text(f"removed {len(removed)} plans, {freed}; {len(cache.entries())} stay"))
    return EXIT_OK


def _export_triton(flags: argparse.Namespace, console: Console) -> int:
    try:
        options = TritonOptions(
            max_batch=flags.max_batch,
            queue_delay_us=flags.queue_delay_us,
            instances=flags.instances,
            gpu=flags.gpu,
            threads=flags.threads,
            tensorrt=flags.tensorrt,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    artifact = load_artifact(flags.model if flags.model is not None else default_artifact())
    try:
        files = export_triton(artifact, flags.out, options)
    except OSError as error:
        raise SinkError(f"{flags.out}: {error.strerror or error}: choose another --out") from error
    for path in files:
        console.print(Text(str(path)), soft_wrap=True)
    return EXIT_OK


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _age(seconds: float) -> str:
    for unit, length_s in (("days", _DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser(
        prog="pose2seg engines", description="What runs the networks here, and its plans.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|build|clean|export-triton")
    listing = commands.add_parser(
        "list", allow_abbrev=False, help="every engine, whether it works here and why not; plans in the cache"
    )
    listing.add_argument("--json", action="store_true", help="for another program")
    build = commands.add_parser("build", allow_abbrev=False, help="compile plans now, not at the first run")
    build.add_argument("--engine", choices=(*PLAN_ENGINES, "all"), default="all", help="all that work, by default")
    build.add_argument("--model", type=read_path, metavar="DIR", help="model folder; the installed one by default")
    build.add_argument("--device", type=_device_name, metavar="DEVICE", help="GPU to build for (cuda:0)")
    build.add_argument("--precision", choices=PRECISIONS, default=DEFAULT_OPTIONS.precision, help="(auto)")
    for flag, default, text in (
        ("--long-side", None, "long side of the network input in px; the model's own by default"),
        ("--max-batch", DEFAULT_OPTIONS.max_batch, f"most images of one call ({DEFAULT_OPTIONS.max_batch})"),
        ("--max-people", DEFAULT_OPTIONS.max_people, f"most people of one call ({DEFAULT_OPTIONS.max_people})"),
    ):
        build.add_argument(flag, type=_from_1_to(4096), default=default, metavar="N", help=text)
    build.add_argument("--converter", choices=CONVERTERS, default=CONVERTERS[0], help="what reads the graph (onnx)")
    triton = commands.add_parser(
        "export-triton", allow_abbrev=False, help="write a model repository for Triton Inference Server (docs/scale.md)"
    )
    triton.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder to make")
    triton.add_argument("--model", type=read_path, metavar="DIR", help="model folder; the installed one by default")
    for flag, low, high, default, text in (
        ("--max-batch", 1, 1024, 8, "images that may share a call (8)"),
        ("--queue-delay-us", 0, 1_000_000, 2000, "how long an image may wait for others, microseconds (2000)"),
        ("--instances", 1, 256, 1, "copies of each graph at work, on each GPU or on the CPU (1)"),
        ("--threads", 0, 1024, 0, "cores of one call on the CPU; 0 leaves it to ONNX Runtime (0)"),
    ):
        triton.add_argument(flag, type=_from_to(low, high), default=default, metavar="N", help=text)
    triton.add_argument("--gpu", action="store_true", help="on GPUs; on the CPU by default")
    triton.add_argument("--tensorrt", action="store_true", help="with --gpu: through TensorRT, in half precision")
    clean = commands.add_parser("clean", allow_abbrev=False, help="remove plans")
    clean.add_argument("--all", action="store_true", help="all of them")
    clean.add_argument("--stale", action="store_true", help="damaged, or made for another machine; the default")
    clean.add_argument("--older-than", type=_from_1_to(36500), metavar="DAYS", help="not used for so long")
    return parser


def _from_1_to(most: int) -> Callable[[str], int]:
    return _from_to(1, most)


def _from_to(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = read_whole_number(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}, got {number}")
        return number

    return read


def _device_name(text: str) -> str:
    if not DEVICE_PATTERN.fullmatch(text) or text == "cpu":
        raise argparse.ArgumentTypeError(f"must be cuda or cuda:N, got {text!r}")
    return text
